//! Who is signed in where: a file of this user's alone. Tokens are in the keyring instead, where there is one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keyring::{Keyring, NotKept, Slot, Unusable};
use super::{Error, Token};

/// A session at a daemon, by `atelier login`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// In the file only where no keyring has them.
    #[serde(flatten)]
    secrets: Option<Secrets>,
    /// Whether a keyring has them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    in_keyring: bool,
    /// What the daemon calls its token.
    pub token_id: String,
    /// Until when it is good, in milliseconds since the Unix epoch.
    pub expires_at_ms: i64,
    /// As whom.
    pub user: String,
    /// The provider that vouched.
    pub issuer: String,
    /// What it knows the client as.
    pub client_id: String,
    /// What it was asked for.
    pub scopes: Vec<String>,
    /// Whether it is asked by way of the daemon.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks_daemon: bool,
}

/// With which somebody is known.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Secrets {
    /// The daemon's token.
    token: String,
    /// With which the next session is had, if the provider gives such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Session {
    /// With the daemon's token, and the provider's.
    pub fn new(
        (token, token_id, expires_at_ms): (String, String, i64),
        user: String,
        (issuer, client_id, scopes): (String, String, Vec<String>),
        refresh_token: Option<String>,
    ) -> Self {
        let secrets = Some(Secrets { token, refresh_token });
        Self {
            secrets,
            in_keyring: false,
            token_id,
            expires_at_ms,
            user,
            issuer,
            client_id,
            scopes,
            asks_daemon: false,
        }
    }

    /// The same session, whose provider is asked by way of the daemon, or is not.
    #[must_use]
    pub fn asking_daemon(self, asks_daemon: bool) -> Self {
        Self { asks_daemon, ..self }
    }

    /// The daemon's token.
    pub fn token(&self) -> Token {
        Token::new(self.secrets.as_ref().map_or("", |secrets| &secrets.token))
    }

    /// Whether its token is known.
    pub fn has_token(&self) -> bool {
        self.secrets.is_some()
    }

    /// The same session, with what the provider gave for the next one.
    #[must_use]
    pub fn with_refresh_token(self, refresh_token: Option<String>) -> Self {
        let secrets = self.secrets.map(|secrets| Secrets { refresh_token, ..secrets });
        Self { secrets, ..self }
    }

    /// The provider's, with which it gives the next ID token.
    pub fn refresh_token(&self) -> Option<&str> {
        self.secrets.as_ref()?.refresh_token.as_deref()
    }
}

/// Where a secret lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the keyring of the user's session.
    Keyring,
    /// In a file that only the user can read.
    File,
}

impl Place {
    /// As `atelier context` names it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Keyring => "keyring",
            Self::File => "file",
        }
    }
}

/// Where a session is to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// In the keyring, or else in the file.
    Keyring,
    /// Where the one before is, if that can be.
    AsBefore,
}

/// A session of which nothing is here any more.
pub struct Forgotten {
    /// What it was; without its token where the keyring did not show it.
    pub session: Session,
    /// Why the keyring still has the token.
    pub left: Option<Unusable>,
}

/// The sessions of a user, by the addresses of daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    file: PathBuf,
    keyring: Keyring,
}

/// Nobody else changes the sessions meanwhile.
pub struct Locked<'a> {
    sessions: &'a Sessions,
    _lock: File,
}

type All = BTreeMap<String, Session>;

impl Sessions {
    /// Those that the file has, and for it the keyring.
    pub fn new(file: impl Into<PathBuf>, keyring: Keyring) -> Self {
        Self { file: file.into(), keyring }
    }

    /// The session at a daemon.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read; if the keyring has the token and does not show it.
    pub fn at(&self, server: &str) -> Result<Option<Session>, Error> {
        let Some(session) = self.listed(server)? else { return Ok(None) };
        if !session.in_keyring {
            return Ok(Some(session));
        }
        let what = || server.to_owned();
        let text = self.slot(server).read();
        // One that somebody took out of the keyring is no session any more.
        let text = text.map_err(|problem| Error::Keyring { what: what(), problem })?;
        let secrets = text.map(|text| {
            let problem = || Unusable::Failed("it holds something else; sign in again".to_owned());
            serde_json::from_str(&text)
                .map_err(|_| Error::Keyring { what: what(), problem: problem() })
        });
        Ok(secrets.transpose()?.map(|secrets| Session { secrets: Some(secrets), ..session }))
    }

    /// The same without its token, if that is in the keyring: nobody waits for it.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read.
    pub fn listed(&self, server: &str) -> Result<Option<Session>, Error> {
        Ok(self.all()?.remove(server))
    }

    /// Where the session's token is, if there is a session.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read.
    pub fn place(&self, server: &str) -> Result<Option<Place>, Error> {
        let place =
            |session: Session| if session.in_keyring { Place::Keyring } else { Place::File };
        Ok(self.listed(server)?.map(place))
    }

    fn slot(&self, server: &str) -> Slot {
        self.keyring.slot("session", server, self.folder())
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    fn all(&self) -> Result<All, Error> {
        let text = match fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(All::new()),
            Err(source) => return Err(self.unread(source)),
        };
        // What does not fit may be a token.
        let other =
            || self.unread(io::Error::other("it holds no sessions; remove it and sign in again"));
        let all: All = serde_json::from_slice(&text).map_err(|_| other())?;
        let is_whole = |session: &Session| session.secrets.is_some() != session.in_keyring;
        if all.values().all(is_whole) { Ok(all) } else { Err(other()) }
    }

    fn unread(&self, source: io::Error) -> Error {
        Error::Read { path: self.file.clone(), source }
    }

    fn unwritten(&self, source: io::Error) -> Error {
        Error::Write { path: self.file.clone(), source }
    }

    /// Waits until nobody else changes them. A provider may take each refresh token once, and take two uses for
    /// theft.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub fn lock(&self) -> Result<Locked<'_>, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder());
        made.map_err(|source| self.unwritten(source))?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options
            .open(self.file.with_extension("lock"))
            .map_err(|source| self.unwritten(source))?;
        lock.lock().map_err(|source| self.unwritten(source))?;
        Ok(Locked { sessions: self, _lock: lock })
    }
}

impl Locked<'_> {
    /// The session at a daemon, as it is now.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read.
    pub fn at(&self, server: &str) -> Result<Option<Session>, Error> {
        self.sessions.at(server)
    }

    /// Keeps a session, in place of the one before: says where, and why not in the keyring if it was to be.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep(
        &self,
        server: &str,
        session: Session,
        wish: Wish,
    ) -> Result<(Place, Option<NotKept>), Error> {
        let mut all = self.sessions.all()?;
        let slot = self.sessions.slot(server);
        let was_in_keyring = all.get(server).is_some_and(|old| old.in_keyring);
        let in_keyring = match &session.secrets {
            Some(secrets) if wish == Wish::Keyring || was_in_keyring => {
                let text = serde_json::to_string(secrets).map_err(io::Error::from);
                slot.keep(&text.map_err(|error| self.sessions.unwritten(error))?)
            }
            _ => Err(Unusable::Off),
        };
        let kept = match in_keyring {
            Ok(()) => Session { secrets: None, in_keyring: true, ..session },
            Err(_) => Session { in_keyring: false, ..session },
        };
        all.insert(server.to_owned(), kept);
        self.write(&all)?;
        match in_keyring {
            Ok(()) => Ok((Place::Keyring, None)),
            Err(why) => {
                // What it has still is of a session that this one replaces.
                let left = if was_in_keyring { slot.forget().err() } else { None };
                Ok((Place::File, Some(NotKept { why, left })))
            }
        }
    }

    /// Forgets the session at a daemon, and gives it once more.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn forget(&self, server: &str) -> Result<Option<Forgotten>, Error> {
        let mut all = self.sessions.all()?;
        let Some(listed) = all.remove(server) else { return Ok(None) };
        let shown = self.sessions.at(server);
        self.write(&all)?;
        let left = match listed.in_keyring {
            true => self.sessions.slot(server).forget().err(),
            false => None,
        };
        Ok(Some(Forgotten { session: shown.ok().flatten().unwrap_or(listed), left }))
    }

    fn write(&self, all: &All) -> Result<(), Error> {
        let file = &self.sessions.file;
        let draft = file.with_extension("new");
        let write = || {
            let text = serde_json::to_vec_pretty(all)?;
            // One that a crash left may be anybody's to read.
            match fs::remove_file(&draft) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut new =
                OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
            new.write_all(&text)?;
            new.sync_all()?;
            fs::rename(&draft, file)
        };
        write().map_err(|source| self.sessions.unwritten(source))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn session(user: &str) -> Session {
        let at = ("https://id.example.com".to_owned(), "cli".to_owned(), vec!["openid".to_owned()]);
        Session::new(
            ("atl_x".to_owned(), "1f".to_owned(), 7),
            user.to_owned(),
            at,
            Some("again".to_owned()),
        )
    }

    #[test]
    fn a_session_is_kept_for_each_daemon_where_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("atelier/sessions.json");
        let sessions = Sessions::new(&file, Keyring::Absent);
        assert_eq!(sessions.at("https://a:1").unwrap(), None);
        let locked = sessions.lock().unwrap();
        locked.keep("https://a:1", session("ana"), Wish::Keyring).unwrap();
        locked.keep("https://b:1", session("bo"), Wish::Keyring).unwrap();
        locked.keep("https://a:1", session("ann"), Wish::AsBefore).unwrap();
        assert_eq!(sessions.at("https://a:1").unwrap(), Some(session("ann")));
        let gone = locked.forget("https://a:1").unwrap().unwrap();
        assert_eq!((gone.session, gone.left), (session("ann"), None));
        assert!(locked.forget("https://a:1").unwrap().is_none());
        assert_eq!(sessions.at("https://b:1").unwrap(), Some(session("bo")));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_file_of_something_else_is_told_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sessions.json");
        fs::write(&file, "secret words").unwrap();
        let error =
            Sessions::new(&file, Keyring::Absent).at("https://a:1").unwrap_err().to_string();
        assert!(error.contains("sign in again") && !error.contains("secret words"), "{error}");
        assert!(!format!("{:?}", session("ana")).contains("atl_x"));
    }
}
