//! Key encryption keys, and where they come from: never from the data folder that they protect.

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Bytes of a key.
pub(super) const KEY_LEN: usize = 32;
/// More than any key is long as text; the rest of a file is not read.
const MAX_TEXT: usize = 4096;

/// Tells keys apart without telling anything else of them: made from a key's hash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct KeyId(String);

impl KeyId {
    /// As it was stored.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As text: 16 hexadecimal digits.
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

/// Text that holds a key: it is not printed, and wiped when the last of its holders is gone.
#[derive(Clone)]
pub struct KeyText(Arc<Zeroizing<Vec<u8>>>);

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where a key encryption key is.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// In a file of its owner's, from the root: the key must not depend on where the daemon was started.
    File(PathBuf),
    /// In a credential that systemd gives the service.
    Credential(String),
    /// In an environment variable, which is emptied before anything else starts.
    Variable {
        /// Its name.
        name: String,
        /// What it held, once it was taken.
        text: Option<KeyText>,
    },
    /// No place is known, and none was given.
    Nowhere,
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Variable { name, .. } => write!(f, "env:{name}"),
            Self::Nowhere => f.write_str("(no place is known for it)"),
        }
    }
}

impl FromStr for KeySource {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // What was given may be a key, in the wrong place.
        let unknown =
            || "write file:/PATH, credential:NAME or env:NAME, never the key itself".into();
        let (kind, rest) = text.split_once(':').ok_or_else(unknown)?;
        let is_word = |extra: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
            !rest.is_empty() && rest.chars().all(good) && !rest.starts_with('.')
        };
        match kind {
            "file" if rest.starts_with('/') => Ok(Self::File(rest.into())),
            "credential" if is_word("_-.") => Ok(Self::Credential(rest.to_owned())),
            "env" if is_word("_") => Ok(Self::Variable { name: rest.to_owned(), text: None }),
            _ => Err(unknown()),
        }
    }
}

impl KeySource {
    /// Takes what an environment variable holds, and empties it where `/proc` shows it. No program that is
    /// started later has it.
    ///
    /// # Safety
    /// No other thread runs yet: one could read the environment meanwhile.
    #[allow(
        clippy::disallowed_methods,
        reason = "no other thread: what it warns of is its contract"
    )]
    pub unsafe fn take(&mut self) {
        let Self::Variable { name, text } = self else { return };
        let Ok(terminated) = std::ffi::CString::new(name.as_str()) else { return };
        // SAFETY: The caller says that there is no other thread; the string is a C string within the
        // environment, and is not used after its variable is removed.
        unsafe {
            let value = libc::getenv(terminated.as_ptr());
            if value.is_null() {
                return;
            }
            let length = libc::strlen(value);
            let bytes = std::slice::from_raw_parts_mut(value.cast::<u8>(), length);
            *text = Some(KeyText(Arc::new(Zeroizing::new(bytes.to_vec()))));
            zeroize::Zeroize::zeroize(bytes);
            std::env::remove_var(&*name);
        }
    }

    /// The key.
    pub(super) fn load(&self, data_dir: &Path) -> Result<Key, KeyError> {
        let read = match self {
            Self::File(path) => outside(path, data_dir).and_then(|()| read_file(path)),
            Self::Credential(name) => read_credential(name),
            Self::Variable { text: Some(text), .. } => return self.parse(&text.0),
            Self::Variable { text: None, .. } => Err(Problem::Missing),
            Self::Nowhere => Err(Problem::NoPlace),
        };
        let text = read.map_err(|problem| self.error(problem))?;
        self.parse(&text)
    }

    /// Makes the key where there is none, if that is up to this program.
    pub(super) fn make(&self, data_dir: &Path) -> Result<Key, KeyError> {
        let Self::File(path) = self else { return self.load(data_dir) };
        outside(path, data_dir)
            .and_then(|()| make_file(path))
            .map_err(|problem| self.error(problem))?;
        self.load(data_dir)
    }

    fn parse(&self, text: &[u8]) -> Result<Key, KeyError> {
        Key::parse(text).map_err(|problem| self.error(problem))
    }

    fn error(&self, problem: Problem) -> KeyError {
        KeyError { place: self.to_string(), problem }
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
    Io(io::Error),
    #[error("it is no file")]
    NotAFile,
    #[error(
        "others than its owner may read or write it (mode {0:o}); run chmod 600, or make a new key if somebody may have read it"
    )]
    Open(u32),
    #[error(
        "it is the file of user {0}; it must be that of the user who runs the daemon, or root's"
    )]
    Foreign(u32),
    #[error(
        "it lies in the data folder, whose backups would hold key and secrets side by side; move it elsewhere"
    )]
    Inside,
    #[error("it is not base64; write 32 random bytes as `openssl rand -base64 32` does")]
    NotBase64,
    #[error("it is {0} bytes long instead of {KEY_LEN}; it may have been cut short")]
    Length(usize),
    #[error("systemd gives this process no credentials; add LoadCredentialEncrypted= to its unit")]
    NoCredentials,
    #[error("give serve one by --vault-key, or set HOME or XDG_CONFIG_HOME")]
    NoPlace,
    #[error("the system gave no random bytes")]
    Random,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Io(error),
        }
    }
}

/// The file, or the folder that it would be in, links resolved, is not in the data folder.
fn outside(path: &Path, data_dir: &Path) -> Result<(), Problem> {
    let path = std::path::absolute(path)?;
    // The nearest that exists: what is missing below it is no link.
    let found = path.ancestors().find_map(|known| known.canonicalize().ok());
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    match found {
        Some(found) if found.starts_with(&data_dir) => Err(Problem::Inside),
        _ => Ok(()),
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    // Not to wait for a writer where it is a pipe.
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Problem::NotAFile);
    }
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user && found.uid() != 0 {
        return Err(Problem::Foreign(found.uid()));
    }
    if found.mode() & 0o077 != 0 {
        return Err(Problem::Open(found.mode() & 0o7777));
    }
    Ok(read(file)?)
}

/// systemd sees to it that nobody else reads it, by means that the mode does not show.
fn read_credential(name: &str) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or(Problem::NoCredentials)?;
    Ok(read(File::open(Path::new(&folder).join(name))?)?)
}

fn read(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room that need not grow: no copy of it stays behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_TEXT));
    file.take(MAX_TEXT as u64).read_to_end(&mut text)?;
    Ok(text)
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
    written.map_err(Problem::Io)
}
