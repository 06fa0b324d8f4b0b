//! The workspace's own certificate authority: who knows its certificate knows the daemon.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use atelier_core::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
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
            let (key, certificate) = make(called, now)?;
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
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|error| unusable(format!("ca.pem is damaged ({error})")))?;
        let said = Certificate::parse(&certificate)
            .map_err(|error| unusable(format!("ca.pem is damaged ({error})")))?;
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
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| unusable(format!("ca.pem is damaged ({error})")))?;
        Ok(Self { issuer, certificate, pem: text, until: said.not_after })
    }

    /// Its certificate as PEM.
    pub(super) fn pem(&self) -> &str {
        &self.pem
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
fn make(called: &str, now: Timestamp) -> Result<(KeyPair, CertificateDer<'static>), Error> {
    let made = |error: rcgen::Error| Error::Made(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Atelier");
    params.distinguished_name.push(DnType::CommonName, called);
    params.not_before = moment(Timestamp::from_millis(now.as_millis() - BEHIND_MS))?;
    params.not_after = moment(Timestamp::from_millis(now.as_millis() + LIFE_MS))?;
    // No authorities below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(made)?;
    let certificate = params.self_signed(&key).map_err(made)?;
    Ok((key, certificate.der().clone()))
}

/// Whether a certificate is of this key.
fn is_of(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData as _;
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
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
