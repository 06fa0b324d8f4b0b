//! A certificate that the daemon's admin has from elsewhere.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use atelier_core::time::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{Certificate, Error};

/// The files of `--tls-cert` and `--tls-key`.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What tells that one of them is another than before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp([OfFile; 2]);

/// The time of the last change is also that of rights, owner and name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct OfFile {
    inode: (u64, u64),
    mode: u32,
    length: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

/// What was in them.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) certificate: Certificate,
}

impl Files {
    pub(super) fn stamp(&self) -> io::Result<Stamp> {
        let of = |path: &PathBuf| {
            let found = fs::metadata(path)?;
            Ok::<_, io::Error>(OfFile {
                inode: (found.dev(), found.ino()),
                mode: found.mode(),
                length: found.len(),
                written: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            })
        };
        Ok(Stamp([of(&self.certificate)?, of(&self.key)?]))
    }

    /// Reads both, and sees that they can be used.
    ///
    /// # Errors
    /// They cannot.
    pub(super) fn read(&self, provider: &CryptoProvider, now: Timestamp) -> Result<Given, Error> {
        let wrong = |problem: String| Error::Given {
            certificate: self.certificate.display().to_string(),
            key: self.key.display().to_string(),
            problem,
        };
        let unread = |what: &'static str| {
            move |error: io::Error| wrong(format!("the {what} cannot be read: {error}"))
        };
        let text = fs::read(&self.certificate).map_err(unread("certificate"))?;
        let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| wrong(format!("the certificate is no PEM: {error}")))?;
        let Some(first) = chain.first() else {
            let problem = "there is no certificate in the first; it holds the daemon's own in PEM, and after it those \
                           in between";
            return Err(wrong(problem.to_owned()));
        };
        let certificate = Certificate::parse(first)
            .map_err(|error| wrong(format!("the certificate is damaged: {error}")))?;
        let mode = fs::metadata(&self.key).map_err(unread("key"))?.mode() & 0o777;
        if mode & 0o007 != 0 {
            let key = self.key.display();
            return Err(wrong(format!(
                "everybody may read the key (mode {mode:03o}); make it private with `chmod o= {key}`"
            )));
        }
        let key = fs::read(&self.key).map_err(unread("key"))?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| wrong(format!("the key is no private key in PEM: {error}")))?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => wrong(
                "the key is another certificate's; give the one that it was made with".to_owned(),
            ),
            other => wrong(other.to_string()),
        })?;
        if certificate.not_after <= now {
            let at = certificate.not_after;
            return Err(wrong(format!("it has expired at {at}; renew it")));
        }
        if certificate.not_before > now {
            let at = certificate.not_before;
            return Err(wrong(format!("it is not valid before {at}; check this machine's clock")));
        }
        if certificate.names.is_empty() {
            return Err(wrong(
                "it has no names (subjectAltName), without which no client takes it".to_owned(),
            ));
        }
        Ok(Given { key: Arc::new(key), certificate })
    }
}
