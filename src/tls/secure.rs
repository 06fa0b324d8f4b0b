//! What a daemon shows who connects, as it is now.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use atelier_agent::trust::EitherClock;
use atelier_core::id::NodeName;
use atelier_core::time::Timestamp;
use aws_lc_rs::digest;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::{Semaphore, watch};

use super::authority::Authority;
use super::certificate::pem;
use super::given::{Given, Stamp};
use super::peer::uri;
use super::{Certificate, Error, Files, Hosts, Name, Own};
use crate::daemon::Clock;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// How long a certificate of the daemon's own is valid, and after how long it is made anew.
const LIFE_MS: i64 = 90 * DAY_MS;
const RENEWED_MS: i64 = 60 * DAY_MS;
/// Clocks of other machines may be behind by so much.
const BEHIND_MS: i64 = 3600 * 1000;
/// And the daemon itself is taken for what it is by those that are behind by a time zone, or a day.
const BEFORE_MS: i64 = DAY_MS;
/// From when before its end people are told of the admin's certificate.
const WARNED_MS: i64 = 14 * DAY_MS;
/// And of the authority, which every client and node has to be given anew.
const AUTHORITY_WARNED_MS: i64 = 180 * DAY_MS;
/// Between two looks at what there is.
const LOOK: Duration = Duration::from_secs(5);
/// Handshakes at the same time.
const HANDSHAKES: usize = 256;

/// TLS of one daemon.
pub(crate) struct Secure {
    data: PathBuf,
    /// The authority's name.
    called: String,
    authority: RwLock<Arc<Authority>>,
    /// How often other authorities were to count: whoever is connected is to learn of it.
    changes: watch::Sender<u64>,
    own: Own,
    files: Option<Files>,
    provider: Arc<CryptoProvider>,
    shown: Arc<RwLock<Arc<Shown>>>,
    looked: Mutex<Looked>,
    configs: RwLock<Arc<Configs>>,
    pub(super) handshakes: Semaphore,
}

/// SHA-256 of an authority's certificate.
pub(crate) type Fingerprint = [u8; 32];

/// What connections are accepted with.
pub(super) struct Configs {
    /// For who connects from this machine, and from elsewhere.
    pub(super) here: Arc<ServerConfig>,
    pub(super) elsewhere: Arc<ServerConfig>,
    /// Each authority whose nodes are known, the one that issues first.
    authorities: Vec<(Fingerprint, Arc<dyn ClientCertVerifier>)>,
}

impl Configs {
    /// Nodes show certificates; people and jobs have tokens. One of an authority that was retired is taken here, so that
    /// the door can tell what to do.
    fn new(
        authority: &Authority,
        provider: &Arc<CryptoProvider>,
        shown: &Arc<RwLock<Arc<Shown>>>,
    ) -> Result<Self, Error> {
        let own = [authority.certificate()].into_iter();
        let others = authority.previous().map(|before| &before.certificate);
        let all: Vec<_> = own.chain(others).chain(authority.retired()).collect();
        let verifier =
            |of: &[&CertificateDer<'static>]| -> Result<Arc<dyn ClientCertVerifier>, Error> {
                let mut roots = RootCertStore::empty();
                of.iter().try_for_each(|&one| roots.add(one.clone()))?;
                let built =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
                        .allow_unauthenticated()
                        .build()
                        .map_err(|error| rustls::Error::General(error.to_string()))?;
                Ok(Arc::new(EitherClock(built)))
            };
        let nodes = verifier(&all)?;
        let config = |is_here: bool| -> Result<Arc<ServerConfig>, Error> {
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()?
                .with_client_cert_verifier(nodes.clone())
                .with_cert_resolver(Arc::new(Chooser { shown: shown.clone(), is_here }));
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok(Arc::new(config))
        };
        let authorities = all.iter().map(|one| Ok((fingerprint(one), verifier(&[*one])?)));
        let authorities = authorities.collect::<Result<_, Error>>()?;
        Ok(Self { here: config(true)?, elsewhere: config(false)?, authorities })
    }

    /// By which authority a certificate was issued, which some was: its signature says it, and nothing else.
    pub(super) fn issuer_of(&self, shown: &[CertificateDer<'_>]) -> Option<Fingerprint> {
        let (own, others) = shown.split_first()?;
        let is_of = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier.verify_client_cert(own, others, UnixTime::now()).is_ok()
        };
        let found = self.authorities.iter().find(|(_, verifier)| is_of(verifier));
        found.map(|(fingerprint, _)| *fingerprint)
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    digest::digest(&digest::SHA256, certificate).as_ref().try_into().unwrap_or_default()
}

/// How a workspace's authorities stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Standing {
    /// The certificate of the one that issues, in PEM.
    pub(crate) certificate: String,
    pub(crate) fingerprint: Fingerprint,
    /// The one before, while it counts.
    pub(crate) previous: Option<Before>,
}

/// An authority that has been taken over from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Before {
    pub(crate) certificate: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) rotated_at: Timestamp,
}

/// A certificate by which a node is known.
#[derive(Clone, Debug)]
pub(crate) struct NodeCertificate {
    pub(crate) pem: String,
    pub(crate) until: Timestamp,
}

/// The certificates of one moment.
struct Shown {
    own: Arc<CertifiedKey>,
    given: Option<Given>,
    hosts: Arc<Hosts>,
}

/// What the last look has found.
struct Looked {
    names: BTreeSet<Name>,
    made_at: Timestamp,
    /// Of the files that the admin's certificate is from.
    stamp: Option<Stamp>,
    /// Why the files as they are now cannot be used, as people were told.
    refused: Option<String>,
    /// What people know of the end of the admin's certificate, and of the authority's.
    given: Remaining,
    authority: Remaining,
}

/// What there is of a certificate's time, in the order in which it comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Remaining {
    Much,
    Little,
    None,
}

impl Remaining {
    fn of(until: Timestamp, warned_ms: i64, now: Timestamp) -> Self {
        match until.as_millis() - now.as_millis() {
            ..=0 => Self::None,
            left if left < warned_ms => Self::Little,
            _ => Self::Much,
        }
    }

    /// Takes in what it is now; that, if it is worse than people know.
    fn worsened(&mut self, now: Self) -> Option<Self> {
        let before = std::mem::replace(self, now);
        (now > before).then_some(now)
    }
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure").finish_non_exhaustive()
    }
}

impl Secure {
    /// For the daemon that has this data folder; `called` is its authority's name.
    ///
    /// # Errors
    /// Its authority or its admin's files cannot be used.
    pub(crate) fn open(
        data: &Path,
        called: &str,
        own: Own,
        files: Option<Files>,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authority = Authority::open(data, called, now)?;
        let names = own.now();
        let made = make(&authority, &provider, &names, now..now)?;
        // Before they are read: what changes meanwhile is read again.
        let stamp = files.as_ref().and_then(|files| files.stamp().ok());
        let given = files.as_ref().map(|files| files.read(&provider, now)).transpose()?;
        let shown = Shown::new(made, given, &names);
        let shown = Arc::new(RwLock::new(Arc::new(shown)));
        let configs = Configs::new(&authority, &provider, &shown)?;
        let looked = Mutex::new(Looked {
            names,
            made_at: now,
            stamp,
            refused: None,
            given: Remaining::Much,
            authority: Remaining::Much,
        });
        let handshakes = Semaphore::new(HANDSHAKES);
        let made = Self {
            data: data.to_owned(),
            called: called.to_owned(),
            authority: RwLock::new(Arc::new(authority)),
            changes: watch::Sender::new(0),
            own,
            files,
            provider,
            shown,
            looked,
            configs: RwLock::new(Arc::new(configs)),
            handshakes,
        };
        made.look(now);
        Ok(made)
    }

    fn authority(&self) -> Arc<Authority> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn configs(&self) -> Arc<Configs> {
        self.configs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificates of the authorities that vouch for the daemon as PEM, the one that issues first.
    pub(crate) fn authorities(&self) -> String {
        self.authority().pem().to_owned()
    }

    /// Of the authority's certificate: whoever knows it knows the daemon.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        fingerprint(self.authority().certificate())
    }

    /// Tells when from now on other authorities count.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How the authorities stand.
    pub(crate) fn standing(&self) -> Standing {
        let authority = self.authority();
        let told = |certificate: &CertificateDer<'_>| pem("CERTIFICATE", certificate);
        let previous = authority.previous().map(|before| Before {
            certificate: told(&before.certificate),
            fingerprint: fingerprint(&before.certificate),
            rotated_at: before.rotated_at,
        });
        let certificate = told(authority.certificate());
        Standing { certificate, fingerprint: fingerprint(authority.certificate()), previous }
    }

    /// Those that count no more.
    pub(crate) fn retired(&self) -> Vec<Fingerprint> {
        self.authority().retired().iter().map(|one| fingerprint(one)).collect()
    }

    /// Has a new authority take over: on disk, and for each connection from now on. Writes files.
    ///
    /// # Errors
    /// The one before is not retired yet, or files cannot be written.
    pub(crate) fn rotate(&self, now: Timestamp, system: Timestamp) -> Result<(), Error> {
        self.replace(now, system, |authority, data, called, now| {
            authority.rotate(data, called, now, system)
        })
    }

    /// Has the authority before count no more: on disk, and for each connection from now on. Writes files.
    ///
    /// # Errors
    /// There is none, or files cannot be written.
    pub(crate) fn retire(&self, now: Timestamp) -> Result<(), Error> {
        self.replace(now, now, Authority::retire)
    }

    fn replace(
        &self,
        now: Timestamp,
        system: Timestamp,
        by: impl FnOnce(&Authority, &Path, &str, Timestamp) -> Result<Authority, Error>,
    ) -> Result<(), Error> {
        // One at a time, and not while certificates are made by what there was.
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let authority = by(&self.authority(), &self.data, &self.called, now)?;
        let made =
            make(&authority, &self.provider, &looked.names, now.min(system)..now.max(system))?;
        let configs = Configs::new(&authority, &self.provider, &self.shown)?;
        (looked.made_at, looked.authority) = (now, Remaining::Much);
        let before = self.shown();
        let shown = Shown::new(made, before.given.clone(), &looked.names);
        // Nodes are known by the new one before they get certificates of it.
        *self.configs.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(configs);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shown);
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Makes the certificate by which a node is known for so long, for the key of its signing request.
    ///
    /// # Errors
    /// The request cannot be used, or the certificate not be made.
    pub(crate) fn issue_node(
        &self,
        request: &[u8],
        (workspace, node, identity): (&str, &NodeName, &str),
        now: Timestamp,
        life: Duration,
    ) -> Result<NodeCertificate, Error> {
        let at = |ms: i64| Timestamp::from_millis(now.as_millis().saturating_add(ms));
        let until = at(i64::try_from(life.as_millis()).unwrap_or(DAY_MS));
        let (called, uri) = (format!("node {node}"), uri(workspace, node, identity));
        let made = self.authority().issue_node(request, &called, &uri, at(-BEHIND_MS), until)?;
        let said = Certificate::parse(&made).map_err(Error::Made)?;
        Ok(NodeCertificate { pem: pem("CERTIFICATE", &made), until: said.not_after })
    }

    /// Whether who connects from elsewhere is shown a certificate of the admin's.
    pub(crate) fn is_given(&self) -> bool {
        self.files.is_some()
    }

    /// Hosts that requests may name.
    pub(super) fn hosts(&self) -> Arc<Hosts> {
        self.shown().hosts.clone()
    }

    fn shown(&self) -> Arc<Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes anew what ends or has other names, and reads what has changed. What cannot be read leaves what there
    /// was.
    pub(super) fn look(&self, now: Timestamp) {
        self.look_by(now, now);
    }

    /// The same while the system's clock and the daemon's own differ. What is made is valid by both: some of the
    /// machines may go by a clock that was right before it jumped.
    fn look_by(&self, now: Timestamp, steady: Timestamp) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shown();
        let (mut own, mut given) = (before.own.clone(), before.given.clone());
        let names = self.own.now();
        let age = now.as_millis() - looked.made_at.as_millis();
        // A clock that was put back makes it one of a time to come.
        if names != looked.names || !(-BEHIND_MS..RENEWED_MS).contains(&age) {
            match make(&self.authority(), &self.provider, &names, now.min(steady)..now.max(steady))
            {
                Ok(made) => {
                    tracing::info!(?names, "the daemon has another certificate");
                    (own, looked.names, looked.made_at) = (made, names, now);
                }
                Err(error) => tracing::error!(%error, "the daemon keeps the certificate it has"),
            }
        }
        if let Some(files) = &self.files {
            // Without one they are gone, and reading them says so.
            let stamp = files.stamp().ok();
            if stamp.is_some() && stamp == looked.stamp {
                looked.refused = None;
            } else {
                match files.read(&self.provider, now) {
                    Ok(read) => {
                        let until = read.certificate.not_after;
                        tracing::info!(%until, "the daemon has another certificate of its admin's");
                        (looked.stamp, looked.refused) = (stamp, None);
                        (given, looked.given) = (Some(read), Remaining::Much);
                    }
                    // Tried again at each look: what is mended may leave no mark.
                    Err(error) => {
                        let problem = error.to_string();
                        if looked.refused.as_ref() != Some(&problem) {
                            tracing::error!(%error, "the daemon keeps the certificate it has");
                            looked.refused = Some(problem);
                        }
                    }
                }
            }
        }
        if let Some(given) = &given {
            let until = given.certificate.not_after;
            match looked.given.worsened(Remaining::of(until, WARNED_MS, now)) {
                Some(Remaining::None) => tracing::error!(
                    %until, "the certificate of --tls-cert has expired, and clients refuse it; renew it"
                ),
                Some(_) => {
                    tracing::warn!(%until, "the certificate of --tls-cert expires; renew it")
                }
                None => {}
            }
        }
        let until = self.authority().until();
        match looked.authority.worsened(Remaining::of(until, AUTHORITY_WARNED_MS, now)) {
            Some(Remaining::None) => tracing::error!(
                %until, "the workspace's certificate authority has expired, and clients refuse the daemon"
            ),
            Some(_) => tracing::warn!(
                %until, "the workspace's certificate authority expires; have another take over: atelier ca rotate"
            ),
            None => {}
        }
        let now = Shown::new(own, given, &looked.names);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
    }

    /// Looks after the certificates for as long as the daemon runs.
    pub(crate) async fn tend(self: Arc<Self>, clock: Clock) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let secure = self.clone();
            // It reads files, and asks the system for addresses.
            let look = move || secure.look_by(clock.system(), clock.wall());
            let looked = tokio::task::spawn_blocking(look).await;
            if let Err(error) = looked {
                tracing::error!(%error, "the daemon's certificates could not be looked after");
            }
        }
    }

    /// Why the admin's files as they are now cannot be used, for tests.
    #[cfg(test)]
    pub(super) fn refused(&self) -> Option<String> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }

    /// The certificate that a client gets, for tests.
    #[cfg(test)]
    pub(super) fn chosen(&self, is_here: bool, name: Option<&str>) -> Arc<CertifiedKey> {
        self.shown().choose(is_here, name)
    }
}

fn make(
    authority: &Authority,
    provider: &CryptoProvider,
    names: &BTreeSet<Name>,
    now: Range<Timestamp>,
) -> Result<Arc<CertifiedKey>, Error> {
    let (from, until) = (now.start.plus_millis(-BEFORE_MS), now.end.plus_millis(LIFE_MS));
    let issued = authority.issue(names, from, until)?;
    let mut chain = vec![issued.certificate];
    chain.extend(authority.chain());
    Ok(Arc::new(CertifiedKey::from_der(chain, issued.key, provider)?))
}

impl Shown {
    fn new(own: Arc<CertifiedKey>, given: Option<Given>, names: &BTreeSet<Name>) -> Self {
        let of_given = given.iter().flat_map(|given| given.certificate.names.iter());
        let hosts = Arc::new(Hosts::of(names.iter().chain(of_given).cloned()));
        Self { own, given, hosts }
    }

    /// The admin's if there is one. On the daemon's own machine it counts where it is asked for by name: who asks for
    /// an address, which it hardly has, knows the workspace's own authority.
    fn choose(&self, is_here: bool, name: Option<&str>) -> Arc<CertifiedKey> {
        let Some(given) = &self.given else { return self.own.clone() };
        let has = |name: &str| given.certificate.names.iter().any(|own| own.is_of(name));
        if is_here && !name.is_some_and(has) { self.own.clone() } else { given.key.clone() }
    }
}

/// Chooses the certificate that a client gets.
struct Chooser {
    shown: Arc<RwLock<Arc<Shown>>>,
    is_here: bool,
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chooser").field("is_here", &self.is_here).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner).clone();
        Some(shown.choose(self.is_here, hello.server_name()))
    }
}
