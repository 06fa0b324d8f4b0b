//! Nodes' certificates: who shows one is that node, for as long as its identity is in force.

use atelier_core::id::NodeName;
use atelier_core::time::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::secure::Fingerprint;

const SCHEME: &str = "atelier://";
const KIND: &str = "node";

/// What a node's certificate says of it. That an authority of the workspace's has made it was checked when the
/// connection was opened; whether that one counts still is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeName,
    /// Of several identities that the name has had.
    pub(crate) identity: String,
    pub(crate) until: Timestamp,
    /// By which authority it was issued.
    pub(crate) authority: Fingerprint,
}

impl Peer {
    /// What it says; `None`: it is no node's.
    pub(super) fn of(certificate: &CertificateDer<'_>, authority: Fingerprint) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let uri = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        })?;
        let mut parts = uri.split('/').skip(1);
        let (Some(KIND), Some(node), Some(identity), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let ends = parsed.validity().not_after.timestamp();
        Some(Self {
            node: NodeName::new(node).ok()?,
            identity: identity.to_owned(),
            until: Timestamp::from_millis(ends.saturating_mul(1000)),
            authority,
        })
    }
}

/// The name in a node's certificate: workspace, node and identity.
pub(super) fn uri(workspace: &str, node: &NodeName, identity: &str) -> String {
    format!("{SCHEME}{workspace}/{KIND}/{node}/{identity}")
}
