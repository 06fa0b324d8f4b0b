//! The workspace's own certificate authority: who knows its certificate knows the daemon.
//!
//! It is replaced by a new one as RFC 4210 (4.4) has it: the old one vouches for the new one's key with a last
//! certificate, the link, which the daemon shows with its own, so that whoever knows either of them knows the daemon.
//! `ca.pem` holds the new one and, until that is retired, the one before. Giving that file its name is what decides:
//! the key and the link that belong to it are found by what they are, whenever the daemon was killed.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use atelier_core::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use time::OffsetDateTime;

use super::certificate::pem;
use super::{Certificate, Error, Name, file};

/// Its certificate, from the data folder.
pub(super) const CERTIFICATE: &str = atelier_agent::trust::OWN_CA;
const FOLDER: &str = "tls";
const KEY: &str = "ca.key";
/// The key of one that is about to be, or is since the daemon was killed.
const NEXT_KEY: &str = "ca.key.next";
/// What the one before says of the key of this one.
const LINK: &str = "ca-link.pem";
/// Those of before, to tell what was issued by them.
const RETIRED: &str = "ca-retired.pem";
/// So many of those are kept, the newest first.
const RETIRED_KEPT: usize = 4;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// Ten years.
const LIFE_MS: i64 = 3652 * DAY_MS;
/// Clocks of other machines may be behind by so much.
const BEHIND_MS: i64 = DAY_MS;
/// What to do where the files are of no use.
const RESTORE: &str = "restore the folder from a backup, or remove it: then a new one is made, which every client \
                       and node elsewhere has to be given";

/// Its key and certificate, and the way to make others.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    until: Timestamp,
    previous: Option<Previous>,
    retired: Vec<CertificateDer<'static>>,
}

/// The one before, from which this one has taken over, and which counts still.
pub(super) struct Previous {
    pub(super) certificate: CertificateDer<'static>,
    /// Missing only where somebody has taken it away.
    link: Option<CertificateDer<'static>>,
    /// When this one took over.
    pub(super) rotated_at: Timestamp,
}

/// A certificate that was made here, with its key.
pub(super) struct Issued {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Authority {
    /// That of a data folder, which nobody else has now; made at first.
    ///
    /// # Errors
    /// It cannot be read, written or used.
    pub(super) fn open(data: &Path, called: &str, now: Timestamp) -> Result<Self, Error> {
        let folder = data.join(FOLDER);
        let (key_at, certificate_at) = (folder.join(KEY), data.join(CERTIFICATE));
        let wrong =
            |problem: String| Error::Authority { folder: folder.display().to_string(), problem };
        let unusable = |problem: String| wrong(format!("{problem}; {RESTORE}"));
        // It has its name last: until then nobody has been told of it.
        let staged_at = certificate_at.with_extension("pem.new");
        let (is_whole, has_key) = (certificate_at.exists(), key_at.exists());
        if !is_whole && has_key && !staged_at.exists() {
            let (key, certificate) = (key_at.display(), certificate_at.display());
            return Err(wrong(format!(
                "{certificate} is missing and its key {key} is there; restore {certificate}, or remove {key} to begin \
                 a new authority, which every client and node elsewhere has to be given"
            )));
        }
        if !is_whole && !has_key {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&folder)
                .map_err(file("make", &folder))?;
            let (key, certificate) = make(called, now, now)?;
            write(&staged_at, 0o644, &pem("CERTIFICATE", &certificate))?;
            write(&key_at, 0o600, &pem("PRIVATE KEY", key.serialized_der()))?;
        }
        if !is_whole {
            let named = fs::rename(&staged_at, &certificate_at).and_then(|()| synced(&folder));
            named.map_err(file("write", &certificate_at))?;
            let certificate = certificate_at.display();
            tracing::info!(%certificate, "the workspace has a certificate authority");
        }
        let read = |path: &PathBuf| fs::read_to_string(path).map_err(file("read", path));
        let text = read(&certificate_at)?;
        let damaged = |problem: &dyn Display| unusable(format!("ca.pem is damaged ({problem})"));
        let all = certificates(&text).map_err(|problem| damaged(&problem))?;
        let Some((certificate, previous)) = all.split_first() else {
            return Err(damaged(&"there is no certificate in it"));
        };
        let certificate = certificate.clone();
        let said = Certificate::parse(&certificate).map_err(|problem| damaged(&problem))?;
        settle_key(&folder, &certificate)?;
        let key = match fs::read(&key_at) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(unusable("ca.key is missing".to_owned()));
            }
            Err(error) => return Err(file("read", &key_at)(error)),
        };
        let mode = fs::metadata(&key_at).map_err(file("read", &key_at))?.mode() & 0o777;
        if mode & 0o007 != 0 {
            let key = key_at.display();
            return Err(wrong(format!(
                "everybody may read ca.key (mode {mode:03o}); make it private with `chmod 600 {key}`"
            )));
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(&key)
            .map_err(|error| unusable(format!("ca.key is damaged ({error})")))?;
        let key = KeyPair::try_from(&key)
            .map_err(|error| unusable(format!("ca.key is damaged ({error})")))?;
        if !is_of(&certificate, &key) {
            return Err(unusable("ca.key is not the key of ca.pem".to_owned()));
        }
        if said.not_after <= now {
            return Err(unusable(format!("it has expired at {}", said.not_after)));
        }
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|problem| damaged(&problem))?;
        let previous = match previous.first() {
            Some(before) => Some(Previous::read(&folder, before, &certificate)?),
            // Of one that was retired, where that was cut short.
            None => remove(&folder.join(LINK)).map(|()| None)?,
        };
        let retired = retired(&folder)?;
        let retired = retired.into_iter().filter(|old| !all.contains(old)).collect();
        let until = said.not_after;
        Ok(Self { issuer, certificate, pem: text, until, previous, retired })
    }

    /// Makes a new one, for which this one vouches, in the data folder and as it is read back from there.
    ///
    /// # Errors
    /// There is one before it still, or it cannot be made or written.
    pub(super) fn rotate(
        &self,
        data: &Path,
        called: &str,
        now: Timestamp,
        system: Timestamp,
    ) -> Result<Self, Error> {
        if self.previous.is_some() {
            return Err(Error::NotRetired);
        }
        let folder = data.join(FOLDER);
        let made = |error: rcgen::Error| Error::Made(error.to_string());
        // Other machines may go by the earlier of both clocks.
        let from = now.min(system);
        let (key, certificate) = make(called, from, now)?;
        let mut params = params(called, from, now)?;
        params.not_after = moment(self.until)?;
        params.use_authority_key_identifier_extension = true;
        // Else it is made of the key, and the new one's own certificate has the same.
        params.serial_number = Some(serial()?);
        let link = params.signed_by(&key, &self.issuer).map_err(made)?;
        write(&folder.join(NEXT_KEY), 0o600, &pem("PRIVATE KEY", key.serialized_der()))?;
        crate::failpoint::hit("ca-key-written");
        write(&folder.join(LINK), 0o644, &pem("CERTIFICATE", link.der()))?;
        crate::failpoint::hit("ca-link-written");
        let own = pem("CERTIFICATE", &certificate);
        write(&data.join(CERTIFICATE), 0o644, &format!("{own}{}", self.pem))?;
        crate::failpoint::hit("ca-named");
        Self::open(data, called, now)
    }

    /// Has the one before count no more, in the data folder and as it is read back from there.
    ///
    /// # Errors
    /// There is none, or it cannot be written.
    pub(super) fn retire(&self, data: &Path, called: &str, now: Timestamp) -> Result<Self, Error> {
        let Some(previous) = &self.previous else { return Err(Error::NothingBefore) };
        let folder = data.join(FOLDER);
        let old = [&previous.certificate].into_iter().chain(&self.retired).take(RETIRED_KEPT);
        let old: String = old.map(|old| pem("CERTIFICATE", old)).collect();
        write(&folder.join(RETIRED), 0o644, &old)?;
        crate::failpoint::hit("ca-retired-written");
        write(&data.join(CERTIFICATE), 0o644, &pem("CERTIFICATE", &self.certificate))?;
        crate::failpoint::hit("ca-retired");
        Self::open(data, called, now)
    }

    /// The certificates of all that vouch for the daemon, in PEM, its own first.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// The one before, while it counts.
    pub(super) fn previous(&self) -> Option<&Previous> {
        self.previous.as_ref()
    }

    /// Those that count no more.
    pub(super) fn retired(&self) -> &[CertificateDer<'static>] {
        &self.retired
    }

    /// What is shown after a certificate of its own: who knows the one before finds the way by the link, and who knows
    /// the fingerprint of one alone finds it here.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let before = self.previous.as_ref();
        let link = before.and_then(|before| before.link.clone());
        let old = before.map(|before| before.certificate.clone());
        link.into_iter().chain([self.certificate.clone()]).chain(old).collect()
    }

    /// Its certificate.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When it ends.
    pub(super) fn until(&self) -> Timestamp {
        self.until
    }

    /// Makes a server's certificate for these names, for so long as the authority itself lasts at most.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn issue(
        &self,
        names: &BTreeSet<Name>,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Issued, Error> {
        let made = |error: rcgen::Error| Error::Made(error.to_string());
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Atelier daemon");
        params.not_before = moment(from)?;
        params.not_after = moment(until.min(self.until))?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(match name {
                Name::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(made)?),
                Name::Address(address) => SanType::IpAddress(*address),
            });
        }
        let key = KeyPair::generate().map_err(made)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(made)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Issued { certificate: certificate.der().clone(), key })
    }
}

impl Authority {
    /// Makes a certificate by which a node is known: of the request the key alone counts.
    ///
    /// # Errors
    /// The request cannot be read or is not signed with its key, or the certificate cannot be made.
    pub(super) fn issue_node(
        &self,
        request: &[u8],
        called: &str,
        uri: &str,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<CertificateDer<'static>, Error> {
        let made = |error: rcgen::Error| Error::Made(error.to_string());
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|error| Error::Request(error.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, called);
        params.not_before = moment(from)?;
        params.not_after = moment(until.min(self.until))?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(made)?));
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(made)?;
        Ok(certificate.der().clone())
    }
}

/// Makes an authority that vouches for itself.
fn make(
    called: &str,
    from: Timestamp,
    now: Timestamp,
) -> Result<(KeyPair, CertificateDer<'static>), Error> {
    let made = |error: rcgen::Error| Error::Made(error.to_string());
    let params = params(called, from, now)?;
    let key = KeyPair::generate().map_err(made)?;
    let certificate = params.self_signed(&key).map_err(made)?;
    Ok((key, certificate.der().clone()))
}

/// An authority's certificate. All of a workspace have the same name: a link is of the name that issues it then, and
/// such certificates are not counted where there are to be no authorities below (RFC 5280, 4.2.1.9).
fn params(called: &str, from: Timestamp, now: Timestamp) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Atelier");
    params.distinguished_name.push(DnType::CommonName, called);
    params.not_before = moment(Timestamp::from_millis(from.as_millis() - BEHIND_MS))?;
    params.not_after = moment(Timestamp::from_millis(now.as_millis() + LIFE_MS))?;
    // No authorities below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

impl Previous {
    fn read(
        folder: &Path,
        before: &CertificateDer<'_>,
        own: &CertificateDer<'_>,
    ) -> Result<Self, Error> {
        let at = folder.join(LINK);
        let link = optional(&at)?.and_then(|text| certificates(&text).ok()?.into_iter().next());
        let link = link.filter(|link| key_of(link).is_some() && key_of(link) == key_of(own));
        if link.is_none() {
            let link = at.display();
            tracing::error!(
                %link,
                "what the certificate authority before says of the one that there is now is missing: who knows the one \
                 before alone does not know the daemon"
            );
        }
        let said = Certificate::parse(own).map_err(Error::Made)?;
        // Certificates count whole seconds: whoever came in that one came before.
        let rotated_at = said.not_after.plus_millis(999 - LIFE_MS);
        Ok(Self { certificate: before.clone().into_owned(), link, rotated_at })
    }
}

/// Gives the key of an authority that has taken over its name, or removes that of one that has not.
fn settle_key(folder: &Path, certificate: &CertificateDer<'_>) -> Result<(), Error> {
    let (next_at, key_at) = (folder.join(NEXT_KEY), folder.join(KEY));
    let Some(next) = optional(&next_at)? else { return Ok(()) };
    let next = PrivatePkcs8KeyDer::from_pem_slice(next.as_bytes()).ok();
    let next = next.and_then(|key| KeyPair::try_from(&key).ok());
    if next.is_some_and(|next| is_of(certificate, &next)) {
        let named = fs::rename(&next_at, &key_at).and_then(|()| synced(folder));
        return named.map_err(file("write", &key_at));
    }
    tracing::warn!("a rotation of the certificate authority was cut short before it counted");
    remove(&next_at)
}

fn retired(folder: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let at = folder.join(RETIRED);
    let Some(text) = optional(&at)? else { return Ok(Vec::new()) };
    // Nothing but words about what is refused anyway hangs on it.
    Ok(certificates(&text).unwrap_or_else(|error| {
        tracing::warn!(file = %at.display(), error, "the authorities that were retired cannot be read");
        Vec::new()
    }))
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes());
    all.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// What a file holds, if it is there.
fn optional(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The public key of a certificate.
fn key_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

/// A number that no other certificate has.
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Made(error.to_string()))?;
    // Positive, and of full length.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Whether a certificate is of this key.
fn is_of(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData as _;
    key_of(certificate).is_some_and(|of| of == key.subject_public_key_info())
}

fn moment(at: Timestamp) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(at.as_millis().div_euclid(1000))
        .map_err(|error| Error::Made(error.to_string()))
}

/// Writes a file, whole or not at all.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut written =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        written.write_all(text.as_bytes())?;
        written.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) => synced(folder),
            None => Ok(()),
        }
    };
    write().map_err(file("write", path))
}

fn synced(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
