//! Transit: a key encryption key that a server of HashiCorp Vault's or OpenBao's keeps. It seals and opens data keys
//! for the daemon, and gives the key to nobody.
//!
//! A data key is bound to its place by the cipher's associated data, or by the context of a key that is derived
//! for each. What is bound the first way the server cannot rewrap: OpenBao and most of Vault take no associated data
//! there. So that is opened and sealed again by the daemon, which has it in hand anyway.

mod request;
mod session;
#[cfg(test)]
pub(in crate::vault) mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use zeroize::Zeroizing;

use self::session::Held;
use super::envelope::{self, DataKey, Place, Plain};
use super::key::KeyId;
use super::source::TextSource;

pub use request::Error;
pub(crate) use request::Limits;
pub(super) use request::Problem;

/// Which key of a server's: where transit is mounted, and the key's name, with a `/` between.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyName(String);

impl KeyName {
    /// As it is written.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where an operation on the key is.
    fn at(&self, operation: &str) -> String {
        let (mount, name) = self.0.rsplit_once('/').unwrap_or(("transit", &self.0));
        format!("{mount}/{operation}/{name}")
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for KeyName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains('/') && is_path(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(
                "write transit:MOUNT/NAME, the path where transit is mounted and the name of a \
                          key there, of letters, digits, '-', '_' and '.'"
                    .to_owned(),
            ),
        }
    }
}

/// Whether it is one or several words that need no encoding in an address.
fn is_path(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.split('/')
        .all(|word| !word.is_empty() && word.chars().all(good) && word.chars().any(|c| c != '.'))
}

/// The server, and who the daemon is there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub address: String,
    /// In which namespace it is asked; `None`: in its root.
    pub namespace: Option<String>,
    /// Certificates of authorities in PEM, in place of the system's.
    pub ca: Option<PathBuf>,
    /// How the daemon logs in.
    pub login: Login,
}

/// How the daemon logs in.
#[derive(Clone, Debug)]
pub enum Login {
    /// It has a token.
    Token(TextSource),
    /// It gets one for a role.
    AppRole {
        /// Where that way of logging in is mounted.
        mount: String,
        /// The role's id, which is no secret.
        role_id: String,
        /// Where the secret id is.
        secret_id: TextSource,
    },
}

impl Login {
    /// Where that is with which it logs in.
    pub(super) fn source(&self) -> &TextSource {
        match self {
            Self::Token(source) | Self::AppRole { secret_id: source, .. } => source,
        }
    }
}

/// Asks the server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Transit(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    settings: Settings,
    data_dir: PathBuf,
    held: Held,
    /// When a request has found another token.
    changed: Notify,
    limits: Limits,
    /// Has room for as many requests as there may be at once: of all attempts, rotations and datastores together.
    room: Semaphore,
}

/// Requests that the server has at once, but those to log in.
const AT_ONCE: usize = 64;

impl Transit {
    /// # Errors
    /// If what the daemon itself has for it cannot be used. The server is not asked.
    pub(super) fn new(
        mut settings: Settings,
        data_dir: &Path,
        limits: Limits,
    ) -> Result<Self, Error> {
        let failed = |settings: &Settings, problem| Error::of(settings, None, problem);
        let address = settings.address.trim_end_matches('/').to_owned();
        settings.address = address;
        if let Some(problem) = request::unfit_address(&settings.address) {
            return Err(failed(&settings, Problem::Address(problem)));
        }
        settings.namespace = settings.namespace.map(|given| given.trim_matches('/').to_owned());
        let mount = match &settings.login {
            Login::AppRole { mount, .. } => mount.as_str(),
            Login::Token(_) => "token",
        };
        let paths = settings.namespace.as_deref().into_iter().chain([mount]);
        if let Some(unfit) = paths.into_iter().find(|path| !is_path(path)) {
            let problem = Problem::Path(unfit.to_owned());
            return Err(failed(&settings, problem));
        }
        let http =
            request::client(&settings, limits).map_err(|problem| failed(&settings, problem))?;
        let source = settings.login.source();
        source.read(data_dir).map_err(|problem| {
            let problem = problem.to_string();
            failed(&settings, Problem::Login { place: source.to_string(), problem })
        })?;
        let (data_dir, held) = (data_dir.to_owned(), Held::default());
        let (changed, room) = (Notify::new(), Semaphore::new(AT_ONCE));
        Ok(Self(Arc::new(Inner { http, settings, data_dir, held, changed, limits, room })))
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// One of its keys.
    pub(super) fn key(&self, name: KeyName) -> TransitKey {
        TransitKey { server: self.clone(), name, is_derived: Arc::default() }
    }
}

/// A key of the server's. Cheap to clone.
#[derive(Clone)]
pub(super) struct TransitKey {
    server: Transit,
    name: KeyName,
    /// Whether it is derived for each context. Looked up with the first use; it never changes.
    is_derived: Arc<OnceLock<bool>>,
}

/// What the server says of a key.
#[derive(Deserialize)]
struct Described {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    derived: bool,
    latest_version: u64,
}

#[derive(Serialize, Default)]
struct Asked<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    associated_data: Option<&'a str>,
}

#[derive(Deserialize)]
struct SealedThere {
    ciphertext: String,
}

#[derive(Deserialize)]
struct OpenedThere {
    plaintext: String,
}

impl TransitKey {
    pub(super) fn name(&self) -> &KeyName {
        &self.name
    }

    /// The id of the version that seals now.
    pub(super) async fn newest(&self) -> Result<KeyId, Error> {
        let described = self.describe().await.map_err(|problem| self.failed(problem))?;
        Ok(KeyId::of_transit(&self.name, described.latest_version))
    }

    /// Seals a data key for its place.
    pub(super) async fn wrap(&self, place: Place<'_>, plain: Plain) -> Result<DataKey, Error> {
        let text = Zeroizing::new(STANDARD.encode(plain.as_slice()));
        let asked = Asked { plaintext: Some(&text), ..Asked::default() };
        let sealed = self.ask::<SealedThere>("encrypt", asked, place).await;
        let kept = sealed.map_err(|problem| self.failed(problem))?.ciphertext;
        let key = self.version_of(&kept).map_err(|problem| self.failed(problem))?;
        Ok(DataKey { plain, kept: kept.into_bytes(), key })
    }

    /// Opens a data key of its place.
    pub(super) async fn unwrap(&self, place: Place<'_>, kept: &[u8]) -> Result<Plain, Error> {
        let open = async {
            let asked = Asked { ciphertext: Some(text(kept)?), ..Asked::default() };
            let opened = self.ask::<OpenedThere>("decrypt", asked, place).await?;
            let opened = Zeroizing::new(opened.plaintext);
            let bytes = STANDARD.decode(&*opened).map(Zeroizing::new).ok();
            bytes.and_then(|bytes| envelope::plain(&bytes)).ok_or(Problem::Answer)
        };
        open.await.map_err(|problem| self.failed(problem))
    }

    /// Has the server seal a data key of its place with the key's newest version, without giving it to anybody.
    /// `None`: it cannot, as the key binds by associated data.
    pub(super) async fn rewrap(
        &self,
        place: Place<'_>,
        kept: &[u8],
    ) -> Result<Option<(Vec<u8>, KeyId)>, Error> {
        let anew = async {
            if !self.is_derived().await? {
                return Ok(None);
            }
            let asked = Asked { ciphertext: Some(text(kept)?), ..Asked::default() };
            let kept = self.ask::<SealedThere>("rewrap", asked, place).await?.ciphertext;
            let key = self.version_of(&kept)?;
            Ok(Some((kept.into_bytes(), key)))
        };
        anew.await.map_err(|problem| self.failed(problem))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        operation: &str,
        asked: Asked<'_>,
        place: Place<'_>,
    ) -> Result<T, Problem> {
        let bound = STANDARD.encode(place.of_transit());
        let asked = match self.is_derived().await? {
            true => Asked { context: Some(&bound), ..asked },
            false => Asked { associated_data: Some(&bound), ..asked },
        };
        self.server.ask(&self.name.at(operation), Some(request::body(&asked)?)).await
    }

    async fn is_derived(&self) -> Result<bool, Problem> {
        if let Some(known) = self.is_derived.get() {
            return Ok(*known);
        }
        Ok(self.describe().await?.derived)
    }

    /// # Errors
    /// Also if there is no such key. Sealing is not asked for before: it would make one, of whatever type.
    async fn describe(&self) -> Result<Described, Problem> {
        let described: Described = self.server.ask(&self.name.at("keys"), None).await?;
        match described.kind.contains("gcm") || described.kind.contains("poly1305") {
            true => {
                self.is_derived.get_or_init(|| described.derived);
                Ok(described)
            }
            false => Err(Problem::Unfit(described.kind)),
        }
    }

    /// The version that sealed this: it is written before it.
    fn version_of(&self, kept: &str) -> Result<KeyId, Problem> {
        let version = kept.strip_prefix("vault:v").and_then(|rest| rest.split_once(':'));
        let version = version.and_then(|(version, _)| version.parse().ok());
        version.map(|version| KeyId::of_transit(&self.name, version)).ok_or(Problem::Answer)
    }

    fn failed(&self, problem: Problem) -> Error {
        Error::of(&self.server.0.settings, Some(&self.name), problem)
    }
}

/// What the server wrote is text.
fn text(kept: &[u8]) -> Result<&str, Problem> {
    let words = || "what is kept is not what transit has sealed".to_owned();
    str::from_utf8(kept).map_err(|_| Problem::Refused { status: 400, words: words() })
}
