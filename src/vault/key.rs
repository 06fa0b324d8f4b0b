//! Key encryption keys, and where they come from: never from the data folder that they protect.

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::source::{self, MAX_TEXT, TextSource, outside};
use super::transit::KeyName;

/// Bytes of a key.
pub(super) const KEY_LEN: usize = 32;

/// Tells keys apart without telling anything else of them: made from a key's hash, or from where transit has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct KeyId(String);

impl KeyId {
    /// As it was stored.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The id of a version of transit's key.
    pub(super) fn of_transit(name: &KeyName, version: u64) -> Self {
        Self(format!("transit:{name}:v{version}"))
    }

    /// Whether it is that of a version of transit's key.
    pub(super) fn is_of_transit(&self, name: &KeyName) -> bool {
        let rest = self.0.strip_prefix("transit:").and_then(|of| of.strip_prefix(name.as_str()));
        rest.is_some_and(|rest| rest.starts_with(":v"))
    }

    /// As text: 16 hexadecimal digits; `transit:MOUNT/NAME:vN` for transit's.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A key encryption key. It is printed nowhere, and wiped when it is dropped.
pub(super) struct Key {
    id: KeyId,
    bytes: Zeroizing<[u8; KEY_LEN]>,
}

impl Key {
    pub(super) fn new(bytes: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let hash = Zeroizing::new(blake3::derive_key("atelier vault 2026 key id", &*bytes));
        let id = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id: KeyId(id), bytes }
    }

    pub(super) fn id(&self) -> &KeyId {
        &self.id
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.bytes
    }

    /// From base64, as `openssl rand -base64 32` writes it.
    fn parse(text: &[u8]) -> Result<Self, Problem> {
        let text = text.trim_ascii();
        let mut bytes = Zeroizing::new(vec![0; MAX_TEXT]);
        let length = STANDARD.decode_slice(text, &mut bytes).map_err(|_| Problem::NotBase64)?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        if length != KEY_LEN {
            return Err(Problem::Length(length));
        }
        key.copy_from_slice(&bytes[..KEY_LEN]);
        Ok(Self::new(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// Where a key encryption key is.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// Written down somewhere; a file may be made by this program.
    Text(TextSource),
    /// With a server that seals and opens data keys, and gives the key to nobody.
    Transit(KeyName),
    /// No place is known, and none was given.
    Nowhere,
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(source) => source.fmt(f),
            Self::Transit(name) => write!(f, "transit:{name}"),
            Self::Nowhere => f.write_str("(no place is known for it)"),
        }
    }
}

impl FromStr for KeySource {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("transit:") {
            return name.parse().map(Self::Transit);
        }
        // What was given may be a key, in the wrong place.
        text.parse().map(Self::Text).map_err(|_: String| {
            "write file:/PATH, credential:NAME, env:NAME or transit:MOUNT/NAME, never the key itself"
                .to_owned()
        })
    }
}

impl TextSource {
    /// Which key is written there.
    ///
    /// # Errors
    /// None that can be used.
    pub fn key_id(&self, data_dir: &Path) -> Result<KeyId, KeyError> {
        self.load(data_dir).map(|key| key.id().clone())
    }

    /// The key that is written there.
    pub(super) fn load(&self, data_dir: &Path) -> Result<Key, KeyError> {
        let text = self.read(data_dir).map_err(|problem| self.error(problem))?;
        Key::parse(&text).map_err(|problem| self.error(problem))
    }

    /// Makes the key where there is none, if that is up to this program.
    pub(super) fn make(&self, data_dir: &Path) -> Result<Key, KeyError> {
        let Self::File(path) = self else { return self.load(data_dir) };
        outside(path, data_dir)
            .map_err(Problem::from)
            .and_then(|()| make_file(path))
            .map_err(|problem| self.error(problem))?;
        self.load(data_dir)
    }

    fn error(&self, problem: impl Into<Problem>) -> KeyError {
        KeyError { place: self.to_string(), problem: problem.into() }
    }
}

/// Why a key is not to be had from its source.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the vault's key {place}: {problem}")]
pub struct KeyError {
    place: String,
    problem: Problem,
}

impl KeyError {
    /// There is no place for one.
    pub(super) fn nowhere() -> Self {
        Self { place: KeySource::Nowhere.to_string(), problem: Problem::NoPlace }
    }

    /// Whether there is none, rather than one that is wrong.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.problem, Problem::Missing)
    }
}

/// What is wrong with a key, or with where it is.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(
        "there is none; put it back from its backup, or make a new one for a vault without secrets \
         (umask 077; openssl rand -base64 32 > FILE)"
    )]
    Missing,
    #[error("{0}")]
    Source(source::Problem),
    #[error("it is not base64; write 32 random bytes as `openssl rand -base64 32` does")]
    NotBase64,
    #[error("it is {0} bytes long instead of {KEY_LEN}; it may have been cut short")]
    Length(usize),
    #[error("give serve one by --vault-key, or set HOME or XDG_CONFIG_HOME")]
    NoPlace,
    #[error("the system gave no random bytes")]
    Random,
}

impl From<source::Problem> for Problem {
    fn from(problem: source::Problem) -> Self {
        match problem {
            source::Problem::Missing => Self::Missing,
            other => Self::Source(other),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Source(source::Problem::Io(error))
    }
}

/// Makes a key in a new file, whole or not at all, and on the disk before any secret depends on it.
fn make_file(path: &Path) -> Result<(), Problem> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *bytes).map_err(|_| Problem::Random)?;
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_LEN));
    STANDARD.encode_string(bytes.as_slice(), &mut text);
    text.push('\n');
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Not over one that another daemon has made meanwhile.
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        File::open(folder)?.sync_all()
    };
    let written = write();
    let _ = fs::remove_file(&temporary);
    Ok(written?)
}
