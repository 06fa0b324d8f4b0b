//! A request to the server: how long it is waited for, how often it is tried again, and what its answers mean.

use std::fmt;
use std::time::{Duration, Instant};

use reqwest::header::{self, HeaderValue};
use reqwest::{Certificate, Client, Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{KeyName, Settings, Transit};

/// How long the server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// After these pauses a request is tried again.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];
/// No try is begun after that: an agent that waits for a job's secrets gives up after 30 seconds, and asks again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the server is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long it may take to answer.
    pub(in crate::vault) answer: Duration,
    /// Nobody waits longer than that, however slowly the server answers each try.
    pub(in crate::vault) all: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { answer: Duration::from_secs(8), all: Duration::from_secs(15) }
    }
}

/// More than any answer is long.
const MAX_ANSWER: usize = 256 << 10;
/// What is told of the server's words.
const MAX_WORDS: usize = 300;

/// Why transit did not do something.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(Box<Failed>);

/// Of what that is said.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the vault's key {key} at {address}: {problem}")]
struct Failed {
    key: String,
    address: String,
    problem: Problem,
}

impl Error {
    pub(super) fn of(settings: &Settings, key: Option<&KeyName>, problem: Problem) -> Self {
        let key = key.map_or_else(|| "of transit".to_owned(), |name| format!("transit:{name}"));
        Self(Box::new(Failed { key, address: settings.address.clone(), problem }))
    }

    /// Whether it may be well by itself later.
    pub fn passes(&self) -> bool {
        self.0.problem.passes()
    }

    /// Whether it is the key that is not there.
    pub(in crate::vault) fn is_of_no_key(&self) -> bool {
        matches!(self.0.problem, Problem::NoKey(_))
    }

    /// Whether it is what was sent that is at fault, rather than the server, the key, or who asks.
    pub(in crate::vault) fn is_of_what_was_sent(&self) -> bool {
        matches!(self.0.problem, Problem::Refused { .. })
    }
}

/// What went wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::vault) enum Problem {
    #[error("{0}")]
    Address(&'static str),
    #[error("'{0}' is no path there; write letters, digits, '-', '_' and '.', with '/' between")]
    Path(String),
    #[error("the certificates {path}: {problem}")]
    Ca { path: String, problem: String },
    #[error("what it logs in with, {place}: {problem}")]
    Login { place: String, problem: String },
    #[error("what is at {0} is no token and no secret id")]
    NoToken(String),
    #[error(
        "it cannot be reached ({0}); see that it runs, and that the daemon's machine reaches it"
    )]
    Unreachable(String),
    #[error("the server is sealed; have it unsealed")]
    Sealed,
    #[error("it answers {status}{}", said(.words))]
    Busy { status: u16, words: String },
    #[error(
        "the server denies it{}; its token must be valid, with a policy that lets it read MOUNT/keys/NAME and \
         update MOUNT/encrypt/NAME, MOUNT/decrypt/NAME and, for a derived key, MOUNT/rewrap/NAME",
        said(.0)
    )]
    Denied(String),
    #[error(
        "there is no such key{}; have transit enabled there and the key made (bao write -f MOUNT/keys/NAME)",
        said(.0)
    )]
    NoKey(String),
    #[error(
        "a key of type {0} binds a secret to no place; make one of type aes256-gcm96 or chacha20-poly1305"
    )]
    Unfit(String),
    #[error("it sends to {0}; give the address of the server that answers itself")]
    Redirected(String),
    #[error("it refuses{}", said(.words))]
    Refused { status: u16, words: String },
    #[error("its answer is not one of transit's")]
    Answer,
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

impl Problem {
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Sealed | Self::Busy { .. })
    }
}

/// Why an address cannot be used: what goes there would open all secrets to who reads along.
pub(super) fn unfit_address(text: &str) -> Option<&'static str> {
    let Ok(url) = Url::parse(text) else { return Some("write https://HOST:PORT") };
    let is_local = match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback()),
        None => return Some("write https://HOST:PORT"),
    };
    let is_whole = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    match url.scheme() {
        "http" if !is_local => {
            Some("http is for a server on this machine; write https://HOST:PORT")
        }
        "http" | "https" if is_whole && url.username().is_empty() && url.password().is_none() => {
            None
        }
        _ => Some("write https://HOST:PORT, and nothing more"),
    }
}

pub(super) fn client(settings: &Settings, limits: Limits) -> Result<Client, Problem> {
    let mut builder = Client::builder()
        // A token must not go where an answer says.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
        // A connection of its own for each request: one that hangs must keep no other from its answer.
        .http1_only()
        .connect_timeout(CONNECT)
        .timeout(limits.answer);
    let is_plain = reqwest::Url::parse(&settings.address).is_ok_and(|url| url.scheme() == "http");
    if is_plain {
        builder = builder.no_proxy();
    }
    if let Some(path) = &settings.ca {
        let failed = |problem: String| Problem::Ca { path: path.display().to_string(), problem };
        let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let found =
            Certificate::from_pem_bundle(&pem).map_err(|error| failed(innermost(&error)))?;
        if found.is_empty() {
            return Err(failed("there is none in PEM".to_owned()));
        }
        builder = builder.tls_certs_only(found);
    } else if is_plain {
        builder = builder.tls_certs_only(std::iter::empty());
    }
    builder.build().map_err(|error| Problem::Unreachable(innermost(&error)))
}

/// What is at the bottom of an error: the rest repeats the address.
fn innermost(error: &reqwest::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What every answer with data is in.
#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

/// What it says when it does not do something.
#[derive(Deserialize, Default)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// How often something is tried again.
struct Patience {
    begun: Instant,
    pauses: std::array::IntoIter<Duration, { PAUSES.len() }>,
}

impl Patience {
    fn new() -> Self {
        Self { begun: Instant::now(), pauses: PAUSES.into_iter() }
    }

    /// Waits for the next try.
    ///
    /// # Errors
    /// The problem, if none would do better or there were enough.
    async fn wait(&mut self, problem: Problem) -> Result<(), Problem> {
        if !problem.passes() || self.begun.elapsed() > PATIENCE {
            return Err(problem);
        }
        let Some(pause) = self.pauses.next() else { return Err(problem) };
        tracing::debug!(%problem, "transit is asked again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Transit {
    /// Asks as who the daemon is there. Tried again for a while, and with another token when one is refused.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, Problem> {
        let limit = self.0.limits.all;
        let late = || Problem::Unreachable(format!("no answer in {} s", limit.as_secs()));
        let answer = tokio::time::timeout(limit, self.ask_patiently(path, body)).await;
        answer.unwrap_or_else(|_| Err(late()))
    }

    async fn ask_patiently<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, Problem> {
        let body = body.map(Zeroizing::new);
        let mut patience = Patience::new();
        let mut refused: Option<(Zeroizing<String>, String)> = None;
        loop {
            let token = match &refused {
                None => self.token().await,
                Some((token, words)) => match self.other(token).await {
                    Ok(None) => Err(Problem::Denied(words.clone())),
                    Ok(Some(other)) => Ok(other),
                    Err(problem) => Err(problem),
                },
            };
            let token = match token {
                Ok(token) => token,
                Err(problem) => {
                    patience.wait(problem).await?;
                    continue;
                }
            };
            // It is never closed. Held for this try alone, and by nobody who logs in.
            let room = self.0.room.acquire().await.ok();
            let body = body.as_ref().map(|body| body.as_slice());
            let answer = self.send(path, Some(&token), body).await;
            drop(room);
            match answer {
                Ok(answer) => return Ok(read::<Answer<T>>(&answer)?.data),
                Err(Problem::Denied(words)) if refused.is_none() => refused = Some((token, words)),
                Err(problem) => patience.wait(problem).await?,
            }
        }
    }

    /// One request: with a body it is a POST.
    pub(super) async fn send(
        &self,
        path: &str,
        token: Option<&str>,
        body: Option<&[u8]>,
    ) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let settings = self.settings();
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let url = format!("{}/v1/{path}", settings.address);
        // A proxy of Vault's own lets nothing through that a page in a browser could send.
        let mut request = self.0.http.request(method, url).header("X-Vault-Request", "true");
        if let Some(namespace) = &settings.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token)
                .map_err(|_| Problem::NoToken(settings.login.source().to_string()))?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_vec());
        }
        let lost = |error: reqwest::Error| match error.is_timeout() {
            true => {
                let seconds = self.0.limits.answer.as_secs();
                Problem::Unreachable(format!("no answer in {seconds} s"))
            }
            false => Problem::Unreachable(innermost(&error)),
        };
        let mut answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        if status.is_redirection() {
            let to = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            return Err(Problem::Redirected(to.unwrap_or("elsewhere").to_owned()));
        }
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(piece) = answer.chunk().await.map_err(lost)? {
            if bytes.len() + piece.len() > MAX_ANSWER {
                return Err(Problem::Answer);
            }
            bytes.extend_from_slice(&piece);
        }
        match status.is_success() {
            true => Ok(bytes),
            false => Err(meaning(status, &bytes)),
        }
    }
}

/// A body.
pub(super) fn body(of: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(of).map_err(|_| Problem::Answer)
}

/// What an answer holds.
pub(super) fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(answer).map_err(|_| Problem::Answer)
}

/// What the server's refusals mean: <https://developer.hashicorp.com/vault/api-docs#http-status-codes>.
fn meaning(status: StatusCode, body: &[u8]) -> Problem {
    let errors: Errors = serde_json::from_slice(body).unwrap_or_default();
    let mut words = errors.errors.join("; ").replace(char::is_control, " ");
    words.truncate(words.floor_char_boundary(MAX_WORDS));
    match status.as_u16() {
        403 => Problem::Denied(words),
        404 => Problem::NoKey(words),
        503 if words.to_ascii_lowercase().contains("sealed") => Problem::Sealed,
        // Not yet there on this server of a cluster; too many requests; the server's own failures.
        status @ (412 | 429 | 500..=599) => Problem::Busy { status, words },
        status => Problem::Refused { status, words },
    }
}

impl fmt::Debug for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transit({})", self.settings().address)
    }
}
