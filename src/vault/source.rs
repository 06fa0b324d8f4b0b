//! Where a text is that opens something: never in the data folder, never on a command line.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use zeroize::Zeroizing;

/// More than any key or token is long as text; the rest of a file is not read.
pub(super) const MAX_TEXT: usize = 4096;

/// Text that opens something: it is not printed, and wiped when the last of its holders is gone.
#[derive(Clone)]
pub struct HeldText(Arc<Zeroizing<Vec<u8>>>);

#[cfg(test)]
impl HeldText {
    pub(super) fn of(text: &[u8]) -> Self {
        Self(Arc::new(Zeroizing::new(text.to_vec())))
    }
}

impl fmt::Debug for HeldText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where such a text is.
#[derive(Clone, Debug)]
pub enum TextSource {
    /// In a file of its owner's, from the root: it must not depend on where the daemon was started.
    File(PathBuf),
    /// In a credential that systemd gives the service.
    Credential(String),
    /// In an environment variable, which is emptied before anything else starts.
    Variable {
        /// Its name.
        name: String,
        /// What it held, once it was taken.
        text: Option<HeldText>,
    },
}

impl fmt::Display for TextSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Variable { name, .. } => write!(f, "env:{name}"),
        }
    }
}

impl FromStr for TextSource {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // What was given may be the text itself, in the wrong place.
        let unknown =
            || "write file:/PATH, credential:NAME or env:NAME, never what is to be there".into();
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

impl TextSource {
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
            *text = Some(HeldText(Arc::new(Zeroizing::new(bytes.to_vec()))));
            zeroize::Zeroize::zeroize(bytes);
            std::env::remove_var(&*name);
        }
    }

    /// What is there now.
    pub(super) fn read(&self, data_dir: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
        match self {
            Self::File(path) => outside(path, data_dir).and_then(|()| read_file(path)),
            Self::Credential(name) => read_credential(name),
            Self::Variable { text: Some(text), .. } => Ok((*text.0).clone()),
            Self::Variable { text: None, .. } => Err(Problem::Missing),
        }
    }
}

impl TextSource {
    /// One line of text that is there now.
    ///
    /// # Errors
    /// What is wrong with the place, in words; never what is there.
    pub fn line(&self, data_dir: &Path) -> Result<Zeroizing<String>, String> {
        let bytes = self.read(data_dir).map_err(|problem| problem.to_string())?;
        let text = std::str::from_utf8(&bytes).map_err(|_| "it is no text".to_owned())?.trim();
        if text.is_empty() || text.contains(char::is_control) {
            return Err("it is not one line of text".to_owned());
        }
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// What is wrong with where a text is to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("there is none")]
    Missing,
    #[error("{0}")]
    Io(io::Error),
    #[error("it is no file")]
    NotAFile,
    #[error(
        "others than its owner may read or write it (mode {0:o}); run chmod 600, or make a new one if somebody may have read it"
    )]
    Open(u32),
    #[error(
        "it is the file of user {0}; it must be that of the user who runs the daemon, or root's"
    )]
    Foreign(u32),
    #[error(
        "it lies in the data folder, whose backups would hold it and the secrets side by side; move it elsewhere"
    )]
    Inside,
    #[error("systemd gives this process no credentials; add LoadCredentialEncrypted= to its unit")]
    NoCredentials,
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
pub(super) fn outside(path: &Path, data_dir: &Path) -> Result<(), Problem> {
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
