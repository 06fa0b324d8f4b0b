//! A provider that wants a secret of its clients: the daemon has it, and passes on what people's clients ask, so that it
//! never leaves the daemon.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_core::limit::{Allowance, Bucket};
use atelier_core::sign_in::passing::{self, Endpoint, NotPassedOn, Parameters, Said};
use oauth2::url::form_urlencoded;
use reqwest::header;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::{Asker, Error, Metadata, bounded};
use crate::vault::TextSource;

/// What the provider tells about itself is asked for again after this.
const OLD: Duration = Duration::from_secs(600);
/// And that it told nothing, after this: whoever asks meanwhile need not wait in turn for the same.
const FAILED: Duration = Duration::from_secs(2);
/// Passed on at the same time, in all.
const AT_ONCE: usize = 32;
/// From one address: an office may have but one. Whoever waits with a code asks every five seconds. While the provider
/// is slow, no address has all places.
const OF_ONE: Allowance = Allowance { per_second: 10, burst: 100, at_once: AT_ONCE as u32 / 2 };
/// From all: a provider that is asked too often by a client answers it no more.
const OF_ALL: Allowance = Allowance { per_second: 50, burst: 500, at_once: AT_ONCE as u32 };
/// So many addresses are known at once.
const KNOWN: usize = 10_000;

/// How a client shows its secret (RFC 6749, section 2.3.1).
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// In the header `authorization`: `client_secret_basic`.
    Basic,
    /// In the form: `client_secret_post`.
    Post,
}

/// Why nothing comes of what a client asks.
#[derive(Debug, thiserror::Error)]
pub enum NotAsked {
    /// Clients ask the provider themselves.
    #[error("this workspace's client has no secret: ask the provider without the daemon")]
    NoSecret,
    /// It is not what signing in takes.
    #[error(transparent)]
    NotPassedOn(#[from] NotPassedOn),
    /// Too often.
    #[error(
        "the provider is asked too often by way of this daemon, or from this address; try again in {} s",
        wait.as_secs() + 1
    )]
    Often {
        /// How long to wait.
        wait: Duration,
    },
    /// The secret is not where it is to be. Where that is is the admin's to know.
    #[error(
        "the daemon cannot read the secret that its provider wants; an admin finds more in its log"
    )]
    Secret,
    /// The provider.
    #[error(transparent)]
    Provider(#[from] Error),
}

/// What is asked with a secret.
pub struct Passing {
    client_id: String,
    source: TextSource,
    data_dir: PathBuf,
    shown: Option<Shown>,
    metadata: tokio::sync::Mutex<Option<Told>>,
    room: Semaphore,
    begun: Instant,
    asked: Mutex<Asked>,
}

/// What the provider told about itself, and when.
type Told = (Result<Arc<Metadata>, Error>, Instant);

#[derive(Default)]
struct Asked {
    by_all: Bucket,
    by: HashMap<IpAddr, Address>,
}

/// What one address asks.
#[derive(Default)]
struct Address {
    asked: Bucket,
    /// So much of it is being answered.
    under_way: u32,
}

/// A place among what is passed on at the same time.
struct Place<'a> {
    passing: &'a Passing,
    from: IpAddr,
    _room: SemaphorePermit<'a>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(address) = self.passing.asked().by.get_mut(&self.from) {
            address.under_way -= 1;
        }
    }
}

/// An answer for a client: of HTTP, as if it had asked itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Passed {
    /// Whether it got what it asked for.
    pub succeeded: bool,
    /// JSON.
    pub body: Value,
}

impl Passing {
    /// With the secret that is at `source`, read anew each time: it may be replaced while the daemon runs.
    ///
    /// # Errors
    /// [`Error::Secret`] if there is none now.
    pub fn new(
        client_id: &str,
        source: TextSource,
        shown: Option<Shown>,
        data_dir: PathBuf,
    ) -> Result<Self, Error> {
        source
            .line(&data_dir)
            .map_err(|problem| Error::Secret { place: source.to_string(), problem })?;
        Ok(Self {
            client_id: client_id.to_owned(),
            source,
            data_dir,
            shown,
            metadata: tokio::sync::Mutex::default(),
            room: Semaphore::new(AT_ONCE),
            begun: Instant::now(),
            asked: Mutex::default(),
        })
    }

    /// Passes on what a client asks.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub(super) async fn ask(
        &self,
        asker: &Asker,
        (endpoint, parameters): (Endpoint, &Parameters),
        scopes: &[String],
        from: Option<IpAddr>,
    ) -> Result<Passed, NotAsked> {
        passing::check(endpoint, parameters, scopes)?;
        let _place = self.place(from).map_err(|wait| NotAsked::Often { wait })?;
        let secret = self.source.line(&self.data_dir).map_err(|problem| {
            let place = self.source.to_string();
            tracing::error!(place, problem, "cannot read the secret of the provider's client");
            NotAsked::Secret
        })?;
        let metadata = self.metadata(asker).await?;
        let (url, operation) = match endpoint {
            Endpoint::Token => (Some(&metadata.token_endpoint), "get a token"),
            Endpoint::DeviceAuthorization => {
                (metadata.device_authorization_endpoint.as_ref(), "get a code for a device")
            }
            Endpoint::Revocation => (metadata.revocation_endpoint.as_ref(), "revoke a token"),
        };
        let none = || asker.unavailable(operation, "it names no place for that".to_owned());
        let url = url.ok_or_else(none)?;
        let request = self.request(asker, url, parameters, &secret, &metadata);
        let lost = |error| asker.unavailable(operation, crate::client::innermost(&error));
        let answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let body = bounded(answer).await.map_err(|cause| asker.unavailable(operation, cause))?;
        match passing::answer(endpoint, status.is_success(), &body, &secret) {
            Said::Answer(said) => {
                Ok(Passed { succeeded: status.is_success(), body: Value::Object(said) })
            }
            Said::NotTheClient { why } => {
                let client_id = &self.client_id;
                tracing::error!(
                    client_id,
                    why,
                    "the provider does not accept this workspace's client: check --oidc-client-id, --oidc-client-secret \
                     and --oidc-client-auth"
                );
                Ok(Passed { succeeded: false, body: Value::Object(not_the_client()) })
            }
            Said::Nonsense => {
                let cause = format!("it answers {status} with something else");
                Err(asker.unavailable(operation, cause).into())
            }
        }
    }

    fn request(
        &self,
        asker: &Asker,
        url: &str,
        parameters: &Parameters,
        secret: &str,
        metadata: &Metadata,
    ) -> reqwest::RequestBuilder {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(parameters);
        let request = asker.http.post(url);
        let request = match self.shown.unwrap_or_else(|| metadata.client_shows()) {
            Shown::Basic => {
                // Encoded as in a form first.
                let encoded = |text: &str| {
                    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>()
                };
                request.basic_auth(encoded(&self.client_id), Some(encoded(secret)))
            }
            Shown::Post => {
                form.append_pair("client_id", &self.client_id).append_pair("client_secret", secret);
                request
            }
        };
        request
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(form.finish())
    }

    /// Whoever asks at the same time waits for the same answer.
    async fn metadata(&self, asker: &Asker) -> Result<Arc<Metadata>, Error> {
        let mut known = self.metadata.lock().await;
        if let Some((told, at)) = &*known
            && at.elapsed() < if told.is_ok() { OLD } else { FAILED }
        {
            return told.clone();
        }
        let told = asker.metadata().await.map(Arc::new);
        *known = Some((told.clone(), Instant::now()));
        told
    }

    /// A place for one more, or how long to wait for one.
    fn place(&self, from: Option<IpAddr>) -> Result<Place<'_>, Duration> {
        const SOON: Duration = Duration::from_secs(1);
        let room = self.room.try_acquire().map_err(|_| SOON)?;
        let now = self.begun.elapsed();
        let mut asked = self.asked();
        let Asked { by_all, by } = &mut *asked;
        if by.len() >= KNOWN {
            by.retain(|_, address| address.under_way > 0 || !address.asked.is_full(now));
        }
        // Those that are too many to be known are as one.
        let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let from = network(from.unwrap_or(nobody));
        let from = if by.len() < KNOWN || by.contains_key(&from) { from } else { nobody };
        let address = by.entry(from).or_default();
        if address.under_way >= OF_ONE.at_once {
            return Err(SOON);
        }
        // First: who asks too often takes nothing from the others.
        address.asked.take(now, OF_ONE)?;
        by_all.take(now, OF_ALL)?;
        address.under_way += 1;
        drop(asked);
        Ok(Place { passing: self, from, _room: room })
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of version 6 a machine has as many addresses as it likes, in a network of this size.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        address => address,
    }
}

/// What people are told whom it does not help to know more.
fn not_the_client() -> Map<String, Value> {
    let why = "the provider does not accept this workspace's client and its secret; an admin finds more in the daemon's log";
    Map::from_iter([
        ("error".to_owned(), json!("invalid_client")),
        ("error_description".to_owned(), json!(why)),
    ])
}
