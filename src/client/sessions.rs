//! Who is signed in where: a file of this user's alone.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Token};

/// A session at a daemon, by `atelier login`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The daemon's token.
    token: String,
    /// What the daemon calls it.
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
        Self {
            token,
            token_id,
            expires_at_ms,
            user,
            issuer,
            client_id,
            scopes,
            asks_daemon: false,
            refresh_token,
        }
    }

    /// The same session, whose provider is asked by way of the daemon, or is not.
    #[must_use]
    pub fn asking_daemon(self, asks_daemon: bool) -> Self {
        Self { asks_daemon, ..self }
    }

    /// The daemon's token.
    pub fn token(&self) -> Token {
        Token::new(&self.token)
    }

    /// The same session, with what the provider gave for the next one.
    #[must_use]
    pub fn with_refresh_token(self, refresh_token: Option<String>) -> Self {
        Self { refresh_token, ..self }
    }

    /// The provider's, with which it gives the next ID token.
    pub fn refresh_token(&self) -> Option<&str> {
        self.refresh_token.as_deref()
    }
}

/// The sessions of a user, by the addresses of daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions(PathBuf);

/// Nobody else changes the sessions meanwhile.
pub struct Locked<'a> {
    sessions: &'a Sessions,
    _lock: File,
}

type All = BTreeMap<String, Session>;

impl Sessions {
    /// Those that the file has.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self(file.into())
    }

    /// The session at a daemon.
    ///
    /// # Errors
    /// If there is a file, and it cannot be read.
    pub fn at(&self, server: &str) -> Result<Option<Session>, Error> {
        Ok(self.all()?.remove(server))
    }

    fn all(&self) -> Result<All, Error> {
        let text = match fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(All::new()),
            Err(source) => return Err(self.unread(source)),
        };
        // What does not fit may be a token.
        serde_json::from_slice(&text).map_err(|_| {
            self.unread(io::Error::other("it holds no sessions; remove it and sign in again"))
        })
    }

    fn unread(&self, source: io::Error) -> Error {
        Error::Read { path: self.0.clone(), source }
    }

    fn unwritten(&self, source: io::Error) -> Error {
        Error::Write { path: self.0.clone(), source }
    }

    /// Waits until nobody else changes them. A provider may take each refresh token once, and take two uses for
    /// theft.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub fn lock(&self) -> Result<Locked<'_>, Error> {
        let folder = self.0.parent().unwrap_or(Path::new("."));
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| self.unwritten(source))?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock =
            options.open(self.0.with_extension("lock")).map_err(|source| self.unwritten(source))?;
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

    /// Keeps a session, in place of the one before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep(&self, server: &str, session: Session) -> Result<(), Error> {
        let mut all = self.sessions.all()?;
        all.insert(server.to_owned(), session);
        self.write(&all)
    }

    /// Forgets the session at a daemon, and gives it once more.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn forget(&self, server: &str) -> Result<Option<Session>, Error> {
        let mut all = self.sessions.all()?;
        let session = all.remove(server);
        if session.is_some() {
            self.write(&all)?;
        }
        Ok(session)
    }

    fn write(&self, all: &All) -> Result<(), Error> {
        let file = &self.sessions.0;
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
        let sessions = Sessions::new(&file);
        assert_eq!(sessions.at("https://a:1").unwrap(), None);
        let locked = sessions.lock().unwrap();
        locked.keep("https://a:1", session("ana")).unwrap();
        locked.keep("https://b:1", session("bo")).unwrap();
        locked.keep("https://a:1", session("ann")).unwrap();
        assert_eq!(sessions.at("https://a:1").unwrap(), Some(session("ann")));
        assert_eq!(locked.forget("https://a:1").unwrap(), Some(session("ann")));
        assert_eq!(locked.forget("https://a:1").unwrap(), None);
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
        let error = Sessions::new(&file).at("https://a:1").unwrap_err().to_string();
        assert!(error.contains("sign in again") && !error.contains("secret words"), "{error}");
        assert!(!format!("{:?}", session("ana")).contains("atl_x"));
    }
}
