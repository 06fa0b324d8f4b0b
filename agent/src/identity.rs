//! By what this node is let in: a token that it was given, or an identity that it has joined with and keeps in its
//! folder. An identity is a key that never leaves this machine and a certificate for it, or, where the daemon
//! speaks plain HTTP, a token that the node has made for itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use atelier_core::content::Digest;
use atelier_core::id::NodeName;
use atelier_core::time::Timestamp;
use atelier_proto::JOIN_TOKEN;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::AgentArgs;
use crate::clock::wall;
use crate::trust::Shown;
use crate::{data_folder, facts, record};

/// In the agent's folder: the identity, and what a join that has begun needs to be tried again.
const KEPT: &str = "identity.json";
const BEGUN: &str = "joining.json";

/// Why there is nothing by which this node would be let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no token: give a join token with --token, --token-file or ATELIER_TOKEN (an admin makes one with `atelier \
         node token create`)"
    )]
    None,
    #[error("no token: cannot read {}", .path.display())]
    Unread { path: PathBuf, source: io::Error },
    #[error(
        "--token is for join tokens, which open once; a token that lasts would be seen in the list of processes: give \
         it with --token-file"
    )]
    Lasting,
    #[error("the join token is damaged; give it as it was printed")]
    Damaged,
    #[error(
        "this node's certificate expired at {0}, while it could not be renewed, and this machine's clock says {2}; set the \
         clock if that is wrong, or else have an admin make a join token (atelier node token create --node {1}) and \
         start the agent with it once"
    )]
    Expired(Timestamp, String, Timestamp),
    #[error(
        "the agent's folder has the identity of node '{kept}', and the agent is '{asked}'; start it with --node \
         {kept}, or let it join anew with another token (atelier node token create)"
    )]
    OtherNode { kept: String, asked: String },
    #[error("cannot {what} the node's identity {}", .path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the node's identity {} is damaged; let it join anew with another token (atelier node token create)", .0.display())]
    Unusable(PathBuf),
    #[error("the agent has no folder: {0}")]
    NoFolder(String),
}

/// A token with which a machine joins, once.
pub(crate) struct JoinToken {
    /// As the daemon knows it.
    pub(crate) secret: String,
    /// Of the daemon's authority, if the daemon is known by that alone.
    pub(crate) fingerprint: Option<[u8; 32]>,
    hash: Digest,
}

impl JoinToken {
    fn parse(text: &str) -> Result<Self, Error> {
        let (secret, fingerprint) = match text.split_once('.') {
            None => (text, None),
            Some((secret, fingerprint)) => {
                let bytes = URL_SAFE_NO_PAD.decode(fingerprint).map_err(|_| Error::Damaged)?;
                (secret, Some(bytes.try_into().map_err(|_| Error::Damaged)?))
            }
        };
        let hash = Digest::of(secret.as_bytes());
        Ok(Self { secret: secret.to_owned(), fingerprint, hash })
    }
}

/// What an agent was told on its command line.
pub(crate) enum Told {
    /// To join with this.
    Join(JoinToken),
    /// A token that lasts.
    Lasting(String),
    Nothing,
}

/// Read anew each time, so that it can be replaced.
pub(crate) fn told(args: &AgentArgs) -> Result<Told, Error> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) if !token.trim().starts_with(JOIN_TOKEN) => return Err(Error::Lasting),
        (Some(token), _) => token.clone(),
        (None, Some(path)) => match fs::read_to_string(path) {
            Ok(text) => text,
            // Gone once it was used.
            Err(error) if error.kind() == io::ErrorKind::NotFound && kept(args)?.is_some() => {
                return Ok(Told::Nothing);
            }
            Err(source) => return Err(Error::Unread { path: path.clone(), source }),
        },
        (None, None) => std::env::var("ATELIER_TOKEN").unwrap_or_default(),
    };
    let text = text.trim();
    match text.strip_prefix(JOIN_TOKEN) {
        Some(_) => JoinToken::parse(text).map(Told::Join),
        None if text.is_empty() => Ok(Told::Nothing),
        None => Ok(Told::Lasting(text.to_owned())),
    }
}

/// What a node is known by.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) node: String,
    /// Of the token it has joined with.
    pub(crate) joined_with: Digest,
    /// Those that vouch for the daemon, in PEM, where a join token's fingerprint was all that was known of them.
    pub(crate) authority: Option<String>,
    pub(crate) proof: Proof,
}

/// By what it is proved.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Proof {
    /// A certificate and its key, in PEM.
    Certificate { certificate: String, key: String, until: Timestamp, renew_at: Timestamp },
    /// A token of its own.
    Token(String),
}

impl Identity {
    /// Of a join that has succeeded.
    pub(crate) fn new(
        node: &str,
        token: &JoinToken,
        authority: Option<String>,
        proof: Proof,
    ) -> Self {
        Self { node: node.to_owned(), joined_with: token.hash, authority, proof }
    }

    /// Whether it comes of this token.
    pub(crate) fn is_of(&self, token: &JoinToken, node: &str) -> bool {
        self.joined_with == token.hash && self.node == node
    }

    /// Sees that it can be used now, by the node of this name.
    pub(crate) fn check(&self, node: &str) -> Result<(), Error> {
        if self.node != node {
            let (kept, asked) = (self.node.clone(), node.to_owned());
            return Err(Error::OtherNode { kept, asked });
        }
        match &self.proof {
            Proof::Certificate { until, .. } if *until <= wall() => {
                Err(Error::Expired(*until, self.node.clone(), wall()))
            }
            Proof::Certificate { .. } | Proof::Token(_) => Ok(()),
        }
    }

    /// Keeps it. On disk when this returns: the token that it comes of opens no more.
    pub(crate) fn keep(&self, args: &AgentArgs) -> Result<(), Error> {
        let root = root(args)?;
        write(&root, KEPT, self)?;
        let begun = root.join(BEGUN);
        match fs::remove_file(&begun) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { what: "tidy up after", path: begun, source })
            }
            _ => Ok(()),
        }
    }
}

/// The identity in the agent's folder.
pub(crate) fn kept(args: &AgentArgs) -> Result<Option<Identity>, Error> {
    read(&root(args)?, KEPT)
}

/// A join that has begun. It is tried again with the same key, for the daemon may have answered already.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Begun {
    token: Digest,
    node: String,
    pub(crate) proof: Begin,
}

/// What the daemon is shown.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Begin {
    /// A key in PEM, and the request to sign it in DER.
    Key { key: String, request: Vec<u8> },
    /// A token of the node's own.
    Token(String),
}

impl Begun {
    /// The one that has begun with this token, or a new one. On disk when this returns.
    pub(crate) fn with(
        args: &AgentArgs,
        token: &JoinToken,
        node: &str,
        is_encrypted: bool,
    ) -> Result<Self, Error> {
        let root = root(args)?;
        let before: Option<Self> = read(&root, BEGUN)?;
        let is_same = |begun: &Self| {
            let fits = matches!(begun.proof, Begin::Key { .. }) == is_encrypted;
            begun.token == token.hash && begun.node == node && fits
        };
        if let Some(before) = before.filter(is_same) {
            return Ok(before);
        }
        let made = |what, source| Error::File { what, path: root.join(BEGUN), source };
        let proof = if is_encrypted {
            new_key().map_err(|source| made("make the key of", source))?
        } else {
            let mut secret = [0; 32];
            let filled = getrandom::fill(&mut secret);
            filled
                .map_err(|error| made("make the token of", io::Error::other(error.to_string())))?;
            Begin::Token(format!("atl_{}", URL_SAFE_NO_PAD.encode(secret)))
        };
        let begun = Self { token: token.hash, node: node.to_owned(), proof };
        write(&root, BEGUN, &begun)?;
        Ok(begun)
    }
}

/// A new key with the request to sign it. It says no name: the daemon knows who asks.
pub(crate) fn new_key() -> io::Result<Begin> {
    let failed = |error: rcgen::Error| io::Error::other(error.to_string());
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let request = rcgen::CertificateParams::default().serialize_request(&key).map_err(failed)?;
    Ok(Begin::Key {
        key: pem("PRIVATE KEY", key.serialized_der()),
        request: request.der().to_vec(),
    })
}

/// Bytes as PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    const LINE: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// What the daemon is shown in a session.
pub(crate) enum Credential {
    Token(String),
    Certificate(Shown),
}

/// By what this node is let in now, and who vouches for the daemon, where it has learnt that by joining.
pub(crate) fn credential(args: &AgentArgs) -> Result<(Credential, Option<String>), Error> {
    let is_joining = match told(args)? {
        Told::Lasting(token) => return Ok((Credential::Token(token), None)),
        Told::Join(_) => true,
        Told::Nothing => false,
    };
    let identity = match kept(args)? {
        Some(identity) => identity,
        None if is_joining => return Err(Error::Unusable(root(args)?.join(KEPT))),
        None => return Err(Error::None),
    };
    identity.check(&name(args))?;
    let credential = match identity.proof {
        Proof::Token(token) => Credential::Token(token),
        Proof::Certificate { certificate, key, .. } => {
            let damaged = || Error::NoFolder(String::new());
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
            let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|_| damaged());
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| damaged());
            match (chain, key) {
                (Ok(chain), Ok(key)) => Credential::Certificate(Shown { chain, key }),
                _ => return Err(Error::Unusable(root(args)?.join(KEPT))),
            }
        }
    };
    Ok((credential, identity.authority))
}

/// The node's name.
pub(crate) fn name(args: &AgentArgs) -> String {
    args.node.as_ref().map_or_else(facts::hostname, NodeName::to_string)
}

fn root(args: &AgentArgs) -> Result<PathBuf, Error> {
    data_folder(args).map_err(|error| Error::NoFolder(error.to_string()))
}

fn read<T: DeserializeOwned>(root: &Path, name: &str) -> Result<Option<T>, Error> {
    let path = root.join(name);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(read) => Ok(Some(read)),
            Err(_) => Err(Error::Unusable(path)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { what: "read", path, source }),
    }
}

/// Whole or not at all, for the owner alone, and on disk.
fn write(root: &Path, name: &str, value: &impl Serialize) -> Result<(), Error> {
    let path = root.join(name);
    let write = || -> io::Result<()> {
        let temporary = root.join(record::temporary(name));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(root)?.sync_all()
    };
    write().map_err(|source| Error::File { what: "write", path: path.clone(), source })
}

#[cfg(test)]
mod tests;
