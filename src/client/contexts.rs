//! Daemons by name: `atelier context`. A file of this user's settings says where each is. The tokens are
//! in the keyring of the user's session; where there is none they lie beside it, each in a file of its owner's alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keyring::{Keyring, NotKept, Slot, Unusable};
use super::{Error, Place};

/// What the local workspace is called: it is always there and cannot be added.
pub const LOCAL: &str = "local";

/// The folder of this user's contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contexts {
    folder: PathBuf,
    keyring: Keyring,
}

/// A daemon, and as whom.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is.
    pub server: String,
    /// Who vouches for it, if not the system's authorities: a file below the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A file that holds the token, below the folder; without one, and none in the keyring, it is the session of whoever
    /// has signed in there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Whether the keyring has the token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_keyring: bool,
}

impl Entry {
    /// Where its token is, if it has one.
    pub fn place(&self) -> Option<Place> {
        let file = self.token_file.as_ref().map(|_| Place::File);
        if self.in_keyring { Some(Place::Keyring) } else { file }
    }
}

/// What the file says.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Known {
    /// Which is used where nothing is said.
    #[serde(default)]
    pub current: Option<String>,
    /// All of them.
    #[serde(default)]
    pub contexts: BTreeMap<String, Entry>,
}

/// A context to add.
pub struct New {
    /// What to call it.
    pub name: String,
    /// Where it is.
    pub server: String,
    /// The authorities' certificates, in PEM.
    pub authorities: Option<Vec<u8>>,
    /// The token, if it is not by signing in.
    pub token: Option<String>,
}

fn check(name: &str) -> Result<(), Error> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.chars().all(word)
        && name.len() <= 64
        && name != LOCAL;
    if good {
        return Ok(());
    }
    Err(Error::ContextName(name.chars().take(80).collect()))
}

impl Contexts {
    /// Those in this folder, which may not be there yet.
    pub fn new(folder: impl Into<PathBuf>, keyring: Keyring) -> Self {
        Self { folder: folder.into(), keyring }
    }

    /// Where the keyring has the token of this name's context, or would have it.
    pub fn slot(&self, name: &str) -> Slot {
        self.keyring.slot("context", name, &self.folder)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("contexts.json")
    }

    fn broken(path: &Path, problem: impl ToString) -> Error {
        Error::Contexts { path: path.to_owned(), problem: problem.to_string() }
    }

    /// What there is.
    ///
    /// # Errors
    /// If the file cannot be read; that there is none is no error.
    pub fn known(&self) -> Result<Known, Error> {
        let file = self.file();
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| Self::broken(&file, e)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
            Err(error) => Err(Self::broken(&file, error)),
        }
    }

    /// The context of this name, its files with the folder before them; nothing for the local workspace.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&self, name: &str) -> Result<Option<Entry>, Error> {
        if name == LOCAL {
            return Ok(None);
        }
        let mut known = self.known()?;
        let Some(entry) = known.contexts.remove(name) else {
            let names: Vec<String> = known.contexts.into_keys().collect();
            let name = name.chars().take(80).collect();
            return Err(Error::NoContext { name, known: names.join(", ") });
        };
        Ok(Some(Entry {
            ca_file: entry.ca_file.map(|file| self.folder.join(file)),
            token_file: entry.token_file.map(|file| self.folder.join(file)),
            ..entry
        }))
    }

    /// Adds a context, or with `replace` puts it in the place of one. Says why its token is in no keyring, if it is not.
    ///
    /// # Errors
    /// If the name is taken or cannot be one, or a file cannot be written.
    pub fn add(&self, new: New, replace: bool) -> Result<Option<NotKept>, Error> {
        let New { name, server, authorities, token } = new;
        check(&name)?;
        let mut known = self.known()?;
        if known.contexts.contains_key(&name) && !replace {
            return Err(Error::ContextTaken(name));
        }
        let kept = token.as_ref().map(|token| self.slot(&name).keep(token));
        let in_keyring = kept == Some(Ok(()));
        let token_file = match token {
            Some(token) if !in_keyring => {
                let file = Path::new("tokens").join(&name);
                self.write(&self.folder.join(&file), format!("{token}\n").as_bytes())?;
                Some(file)
            }
            _ => None,
        };
        let ca_file = match authorities {
            None => None,
            Some(pem) => {
                let file = Path::new("authorities").join(format!("{name}.pem"));
                self.write(&self.folder.join(&file), &pem)?;
                Some(file)
            }
        };
        let new = Entry { server, ca_file, token_file, in_keyring };
        let old = known.contexts.insert(name.clone(), new);
        self.keep(&known)?;
        let left = match &old {
            Some(old) if old.in_keyring && !in_keyring => self.slot(&name).forget().err(),
            _ => None,
        };
        let named = |file: &PathBuf| {
            let mut all = known.contexts.values();
            all.any(|e| e.token_file.as_ref() == Some(file) || e.ca_file.as_ref() == Some(file))
        };
        let old = old.into_iter().flat_map(|entry| [entry.token_file, entry.ca_file]).flatten();
        for file in old.filter(|file| !named(file)) {
            self.forget(&self.folder.join(file))?;
        }
        Ok(match kept {
            Some(Err(why)) => Some(NotKept { why, left }),
            // One without a token leaves the other's there.
            _ => left.map(|why| NotKept { why: Unusable::Off, left: Some(why) }),
        })
    }

    /// Has a context know its daemon by these authorities, in PEM, in place of what it knows it by.
    ///
    /// # Errors
    /// If there is none of this name, or a file cannot be written.
    pub fn trust(&self, name: &str, authorities: &[u8]) -> Result<(), Error> {
        check(name)?;
        self.find(name)?;
        let file = Path::new("authorities").join(format!("{name}.pem"));
        self.write(&self.folder.join(&file), authorities)?;
        let mut known = self.known()?;
        if let Some(entry) =
            known.contexts.get_mut(name).filter(|e| e.ca_file.as_ref() != Some(&file))
        {
            entry.ca_file = Some(file);
            self.keep(&known)?;
        }
        Ok(())
    }

    /// Has a context used where nothing else is said.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn choose(&self, name: &str) -> Result<(), Error> {
        self.find(name)?;
        let mut known = self.known()?;
        known.current = (name != LOCAL).then(|| name.to_owned());
        self.keep(&known)
    }

    /// Forgets a context, and its token. Says why the keyring has that still, if it does.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove(&self, name: &str) -> Result<Option<Unusable>, Error> {
        check(name)?;
        let Some(entry) = self.find(name)? else { return Ok(None) };
        let mut known = self.known()?;
        known.contexts.remove(name);
        known.current = known.current.filter(|current| current != name);
        self.keep(&known)?;
        let mut files = [entry.token_file, entry.ca_file].into_iter().flatten();
        files.try_for_each(|file| self.forget(&file))?;
        Ok(if entry.in_keyring { self.slot(name).forget().err() } else { None })
    }

    fn forget(&self, file: &Path) -> Result<(), Error> {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Self::broken(file, error)),
            _ => Ok(()),
        }
    }

    fn keep(&self, known: &Known) -> Result<(), Error> {
        let file = self.file();
        let text = serde_json::to_vec_pretty(known).map_err(|e| Self::broken(&file, e))?;
        self.write(&file, &text)
    }

    /// Writes a file that only its owner can read, whole or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            if let Some(folder) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let temporary = path.with_extension(format!("new-{}", std::process::id()));
            let _ = fs::remove_file(&temporary);
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error| Self::broken(path, error))
    }
}
