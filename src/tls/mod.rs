//! TLS on the daemon's ports: certificates of its own authority, or those that its admin has.
//!
//! ```text
//! authority (ten years, in the data folder) --(issues)--> the daemon's certificate (90 days, in memory)
//!    ^                                      '-(issues)--> nodes' certificates (24 hours, in their agents' folders)
//!    '-(vouches, with a link)-- the one before, until it is retired
//! --tls-cert, --tls-key --(read again when they change)--> the admin's certificate
//! ```
//! Both are looked after while the daemon runs ([`Secure::tend`]), and connections from then on get the new one.

mod accept;
mod authority;
mod certificate;
mod given;
mod names;
mod peer;
mod secure;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

pub(crate) use accept::Shaken;
pub(crate) use certificate::Certificate;
pub(crate) use given::Files;
pub use names::Name;
pub(crate) use names::{Hosts, Own};
pub(crate) use peer::Peer;
pub(crate) use secure::{Before, Fingerprint, Secure};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The daemon's own authority cannot be used.
    #[error("cannot use the workspace's certificate authority in {folder}: {problem}")]
    Authority {
        /// Where it lies.
        folder: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The admin's files cannot be used.
    #[error("cannot use the certificate {certificate} with the key {key}: {problem}")]
    Given {
        /// The file of the chain.
        certificate: String,
        /// The key's.
        key: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Made(String),
    /// An authority takes over from one, not from two.
    #[error(
        "cannot rotate the workspace's certificate authority: the one before the present one counts still; retire that \
         first (atelier ca retire)"
    )]
    NotRetired,
    /// Nothing is to be retired.
    #[error(
        "cannot retire a certificate authority: there is no other than the present one; `atelier ca rotate` makes one"
    )]
    NothingBefore,
    /// A node's signing request cannot be used.
    #[error("cannot use the certificate signing request: {0}")]
    Request(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

impl Error {
    /// Whether the admin can put it right.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Authority { .. } | Self::Given { .. })
    }
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::File { operation, path, source }
}
