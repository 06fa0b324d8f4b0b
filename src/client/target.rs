//! Which daemon to talk to, and as whom.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use atelier_agent::trust::{Trust, server_url};

use super::contexts::{Contexts, Entry};
use super::keyring::Slot;
use super::{CONNECT, Error, Home, Sessions, innermost};

/// What the user said about the daemon, as written.
#[derive(Clone, Default)]
pub struct Wanted {
    /// `--server` or `ATELIER_SERVER`.
    pub server: Option<String>,
    /// `--token-file`.
    pub token_file: Option<PathBuf>,
    /// `ATELIER_TOKEN`.
    pub token: Option<String>,
    /// `--ca-file` or `ATELIER_CA_FILE`.
    pub ca_file: Option<PathBuf>,
    /// `--ca-file` alone, which comes before what a context says.
    pub given_ca_file: Option<PathBuf>,
    /// Where somebody has signed in.
    pub sessions: Option<Sessions>,
    /// The local workspace's home, used when no server is named.
    pub home: Option<Home>,
    /// `--context`, or `ATELIER_CONTEXT` where no server is named.
    pub context: Option<String>,
    /// Where contexts are kept: the one in use is used when no server is named.
    pub contexts: Option<Contexts>,
    /// Where the keyring has the token, of a context that keeps it there, and the context's name.
    pub kept: Option<(String, Slot)>,
}

/// An address and a token.
#[derive(Clone)]
pub struct Target {
    /// `https://HOST:PORT` or, on this machine, `http://HOST:PORT`, without a slash at the end.
    pub server: String,
    /// Never printed.
    pub token: Token,
    /// Whether it is the local workspace, whose address may change when it restarts.
    pub local: bool,
    /// Who vouches for it, where it speaks TLS.
    pub trust: Trust,
}

impl Target {
    /// For HTTP at its address. `silence` is how long nothing may come. It begins with a request, also while that is
    /// sent, so that what is answered only when all of it is done says how long it may take in place of it.
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub(super) fn http(&self, silence: Option<Duration>) -> Result<reqwest::Client, Error> {
        let mut builder = reqwest::Client::builder()
            // Connections for control take no proxy either, and the daemon never sends elsewhere.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT);
        if let Some(silence) = silence {
            builder = builder.read_timeout(silence);
        }
        let builder = match self.server.starts_with("https://") {
            true => self.trust.http(builder)?,
            // Reading the system's certificates takes longer than most transfers.
            false => builder.tls_certs_only(std::iter::empty()),
        };
        builder.build().map_err(|error| Error::Http(innermost(&error)))
    }
}

/// A secret that names the caller.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token from text; blanks around it are dropped.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The secret, for the `authorization` header.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Wanted {
    /// Reads what is needed to reach the daemon. Files are read each time, as a local daemon that
    /// restarts may have another address.
    pub fn resolve(&self) -> Result<Target, Error> {
        self.meant()?.found()
    }

    /// What is wanted, with what a context says of it.
    fn meant(&self) -> Result<Self, Error> {
        let Some((name, entry)) = self.entry()? else { return Ok(self.clone()) };
        let slot = || Some((name.clone(), self.contexts.as_ref()?.slot(&name)));
        let kept = if entry.in_keyring { slot() } else { None };
        // A context has its own token and authority; those in the environment are for others.
        Ok(Self {
            server: Some(entry.server),
            token_file: self.token_file.clone().or(entry.token_file),
            token: None,
            ca_file: self.given_ca_file.clone().or(entry.ca_file),
            context: None,
            contexts: None,
            kept,
            ..self.clone()
        })
    }

    /// The context that says where to go although the environment has a token, which is not used then.
    ///
    /// # Errors
    /// If the contexts cannot be read.
    pub fn in_place_of_token(&self) -> Result<Option<String>, Error> {
        Ok(match self.token {
            Some(_) => self.entry()?.map(|(name, _)| name),
            None => None,
        })
    }

    /// The context that says where to go, if one does.
    fn entry(&self) -> Result<Option<(String, Entry)>, Error> {
        if self.server.is_some() {
            return if self.context.is_some() { Err(Error::TwoServers) } else { Ok(None) };
        }
        match (&self.contexts, &self.context) {
            (Some(contexts), Some(name)) => {
                Ok(contexts.find(name)?.map(|entry| (name.clone(), entry)))
            }
            (Some(contexts), None) => match contexts.known()?.current {
                Some(name) => Ok(contexts.find(&name)?.map(|entry| (name, entry))),
                None => Ok(None),
            },
            (None, Some(name)) => {
                Err(Error::NoContext { name: name.clone(), known: String::new() })
            }
            (None, None) => Ok(None),
        }
    }

    /// Whether a daemon is meant that is not the local workspace's.
    ///
    /// # Errors
    /// If there is no such context.
    pub fn is_elsewhere(&self) -> Result<bool, Error> {
        Ok(self.server.is_some() || self.entry()?.is_some())
    }

    fn found(&self) -> Result<Target, Error> {
        let (server, local) = self.address()?;
        let token = match (&self.token_file, &self.token, &self.home) {
            (Some(file), _, _) => read_token(file)?,
            // The local workspace has a token of its own; the one in the environment is for others.
            (None, _, Some(home)) if local => read_token(&home.admin_token())?,
            (None, Some(token), _) => Token::new(token),
            (None, None, _) => match &self.kept {
                Some((name, slot)) => kept_token(name, slot, &server)?,
                None => self.session_token(&server)?,
            },
        };
        if token.0.is_empty() || token.0.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(Error::BadToken);
        }
        let trust = self.trust(&server, local)?;
        Ok(Target { server, token, local, trust })
    }

    /// Reads what is needed to reach a daemon that is asked for nothing yet that needs a token.
    ///
    /// # Errors
    /// As [`Self::resolve`], but for tokens.
    pub fn stranger(&self) -> Result<Target, Error> {
        let meant = self.meant()?;
        let (server, local) = meant.address()?;
        let trust = meant.trust(&server, local)?;
        Ok(Target { server, token: Token::new(""), local, trust })
    }

    /// The server whose session would be used, if one would.
    ///
    /// # Errors
    /// If the server's address cannot be used, or there is no such context.
    pub fn session_server(&self) -> Result<Option<String>, Error> {
        let meant = self.meant()?;
        match (&meant.server, &meant.token_file, &meant.token, &meant.kept, &meant.sessions) {
            (Some(server), None, None, None, Some(_)) => Ok(Some(checked(server)?)),
            _ => Ok(None),
        }
    }

    fn address(&self) -> Result<(String, bool), Error> {
        match &self.server {
            Some(server) => Ok((checked(server)?, false)),
            None => Ok((self.local_server()?, true)),
        }
    }

    fn session_token(&self, server: &str) -> Result<Token, Error> {
        let session =
            self.sessions.as_ref().map(|sessions| sessions.at(server)).transpose()?.flatten();
        let server = server.to_owned();
        let session = session.ok_or_else(|| Error::NoToken { server: server.clone() })?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if i128::from(session.expires_at_ms) <= now.as_millis().cast_signed() {
            return Err(Error::SessionOver { user: session.user, server });
        }
        Ok(session.token())
    }

    /// Of the local workspace the authority is its own; the file in the environment is for others.
    fn trust(&self, server: &str, local: bool) -> Result<Trust, Error> {
        let own = || self.home.as_ref().map(Home::authority);
        let file = if local { own() } else { self.ca_file.clone() };
        match file {
            Some(file) if server.starts_with("https://") => Ok(Trust::of_file(&file)?),
            _ => Ok(Trust::System),
        }
    }

    fn local_server(&self) -> Result<String, Error> {
        let home = self.home.as_ref().ok_or(Error::NoHome)?;
        let file = home.endpoint();
        // A daemon that was killed leaves its address behind, and somebody else may listen there now:
        // the token is not for them.
        if !is_locked(&home.data().join("lock")) {
            return Err(Error::NoLocalDaemon);
        }
        match fs::read_to_string(&file) {
            Ok(text) => checked(text.trim()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::NoLocalDaemon),
            Err(source) => Err(Error::Read { path: file, source }),
        }
    }
}

/// Whether a daemon holds the lock of its data folder. It is not held any more when this returns.
fn is_locked(file: &Path) -> bool {
    let Ok(lock) = fs::File::open(file) else { return false };
    matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
}

fn read_token(file: &Path) -> Result<Token, Error> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Token::new(&text)),
        Err(source) => Err(Error::Read { path: file.to_owned(), source }),
    }
}

fn kept_token(name: &str, slot: &Slot, server: &str) -> Result<Token, Error> {
    match slot.read() {
        Ok(Some(token)) => Ok(Token::new(&token)),
        // Somebody took it out.
        Ok(None) => Err(Error::NoToken { server: server.to_owned() }),
        Err(problem) => Err(Error::Keyring { what: format!("the context '{name}'"), problem }),
    }
}

fn checked(server: &str) -> Result<String, Error> {
    server_url(server).map_err(|why| Error::BadServer { server: server.to_owned(), why })
}
