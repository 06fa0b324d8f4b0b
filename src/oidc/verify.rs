//! Whether a token is the provider's, for this workspace, and still good.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use atelier_agent::clock;
use atelier_core::content::Digest;
use atelier_core::sign_in::passing::{Endpoint, Parameters};
use atelier_core::sign_in::{Claims, Refused, Rules, User};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Asker, Error, NotAsked, Passed, Passing};

/// Keys are asked for again after this, as a provider may have withdrawn one.
const OLD: Duration = Duration::from_secs(3600);
/// And for a token of an unknown key no sooner than after this, or else anybody could have the provider flooded.
const AGAIN: Duration = Duration::from_secs(10);
/// Tokens that are remembered at once.
const TAKEN: usize = 100_000;
/// For so many seconds after its end a token is accepted: clocks differ.
const LEEWAY: u64 = 60;
/// A token is no longer than this.
const LONGEST: usize = 64 << 10;

/// Those of public keys. A token that is signed with a secret, or with nothing, proves nothing here.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Why somebody with a token of the provider is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// The token is not good.
    #[error("the provider's token is not accepted: {0}; run `atelier login` again")]
    BadToken(String),
    /// It was good once.
    #[error(
        "somebody has signed in with this token of the provider already, and one opens once; run `atelier login` again"
    )]
    Taken,
    /// More have signed in than is remembered.
    #[error(
        "more people have signed in within the life of their tokens than the daemon remembers ({TAKEN}); try later"
    )]
    TooMany,
    /// It is, but who has it may not come in.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The provider's keys cannot be had.
    #[error(transparent)]
    Provider(#[from] Error),
}

/// The provider that vouches for a workspace's people, and what follows from its word.
pub struct Provider {
    asker: Asker,
    /// Who it is, as its tokens say it.
    pub issuer: String,
    /// The workspace's clients, as it knows them.
    pub client_id: String,
    /// What clients ask it for.
    pub scopes: Vec<String>,
    /// How long a session lasts.
    pub session: Duration,
    /// What clients have the daemon ask, if it has a secret for that.
    passing: Option<Passing>,
    rules: Rules,
    keys: RwLock<Option<Keys>>,
    asked: Mutex<Option<Asked>>,
    again: Duration,
    /// Tokens that somebody has signed in with, and until when they are good, in seconds since the Unix epoch.
    taken: std::sync::Mutex<HashMap<Digest, u64>>,
}

struct Keys {
    set: JwkSet,
    at: Instant,
}

/// When the keys were asked for.
struct Asked {
    at: Instant,
    answered: bool,
}

impl Provider {
    /// Nobody is asked yet: the provider may be away when the daemon starts.
    ///
    /// # Errors
    /// [`Error::BadIssuer`].
    pub fn new(
        issuer: &str,
        client_id: &str,
        scopes: &[String],
        session: Duration,
        rules: Rules,
    ) -> Result<Self, Error> {
        let usual = ["openid", "email", "profile", "offline_access"].map(str::to_owned);
        let more = scopes.iter().filter(|scope| !usual.contains(scope)).cloned();
        Ok(Self {
            asker: Asker::new(issuer)?,
            issuer: issuer.to_owned(),
            client_id: client_id.to_owned(),
            scopes: usual.iter().cloned().chain(more).collect(),
            session,
            passing: None,
            rules,
            keys: RwLock::new(None),
            asked: Mutex::new(None),
            again: AGAIN,
            taken: std::sync::Mutex::default(),
        })
    }

    /// With a secret, which the provider wants to see of the workspace's clients.
    #[must_use]
    pub fn with_secret(self, passing: Option<Passing>) -> Self {
        Self { passing, ..self }
    }

    /// Whether clients have the daemon ask the provider.
    pub fn has_secret(&self) -> bool {
        self.passing.is_some()
    }

    /// Passes on what a client at this address asks.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub async fn ask(
        &self,
        endpoint: Endpoint,
        parameters: &Parameters,
        from: Option<IpAddr>,
    ) -> Result<Passed, NotAsked> {
        let passing = self.passing.as_ref().ok_or(NotAsked::NoSecret)?;
        passing.ask(&self.asker, (endpoint, parameters), &self.scopes, from).await
    }

    /// As if time went by faster.
    #[cfg(test)]
    pub(super) fn asks_again_after(self, again: Duration) -> Self {
        Self { again, ..self }
    }

    /// Who has this ID token (OpenID Connect Core 1.0, section 3.1.3.7).
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn user(&self, token: &str) -> Result<User, Rejected> {
        if token.len() > LONGEST {
            return Err(Rejected::BadToken(format!("it has more than {LONGEST} bytes")));
        }
        let header = decode_header(token).map_err(|error| bad(&error))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Rejected::BadToken(
                "it is not signed with a public key's algorithm".to_owned(),
            ));
        }
        let key = self.key(header.kid.as_deref(), header.alg).await?;
        let key = DecodingKey::from_jwk(&key).map_err(|error| bad(&error))?;
        let mut validation = Validation::new(header.alg);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.client_id]);
        validation.validate_nbf = true;
        let claims: Map<String, Value> =
            decode(token, &key, &validation).map_err(|error| bad(&error))?.claims;
        // Made out to several, it must have been asked for by this one.
        let several = claims.get("aud").and_then(Value::as_array).is_some_and(|aud| aud.len() > 1);
        let asked_by = claims.get("azp").and_then(Value::as_str);
        if asked_by.map_or(several, |azp| azp != self.client_id) {
            return Err(Rejected::BadToken("it was given to another client".to_owned()));
        }
        Ok(self.rules.admit(&Claims(claims))?)
    }

    /// Takes a token that [`Self::user`] has accepted, which it does once: who has seen it on its way, or in a file,
    /// comes in with it no second time. What was taken is remembered until it expires, or the daemon ends.
    ///
    /// # Errors
    /// [`Rejected::Taken`], or [`Rejected::TooMany`].
    pub fn take(&self, token: &str) -> Result<(), Rejected> {
        #[derive(serde::Deserialize)]
        struct Until {
            exp: f64,
        }
        let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Until>(token);
        let until = claims.map_err(|error| bad(&error))?.exp as u64 + LEEWAY;
        let now = clock::system().as_millis().unsigned_abs() / 1000;
        // Not its signature, which can be written in other ways.
        let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() >= TAKEN {
            taken.retain(|_, until| *until >= now);
        }
        if taken.len() >= TAKEN {
            return Err(Rejected::TooMany);
        }
        match taken.insert(Digest::of(signed.as_bytes()), until) {
            Some(_) => Err(Rejected::Taken),
            None => Ok(()),
        }
    }

    /// The key of a token, asked for anew where it is not known: providers change theirs.
    async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Jwk, Rejected> {
        if let Some(key) = self.known(id, algorithm) {
            return Ok(key);
        }
        // All who wait here want the same.
        let mut asked = self.asked.lock().await;
        if let Some(key) = self.known(id, algorithm) {
            return Ok(key);
        }
        match *asked {
            Some(Asked { at, answered: true }) if at.elapsed() < self.again => {
                return Err(unknown());
            }
            Some(Asked { at, answered: false }) if at.elapsed() < self.again => {
                let cause = "it did not answer a moment ago; try again".to_owned();
                return Err(self.asker.unavailable("read the keys", cause).into());
            }
            _ => {}
        }
        *asked = Some(Asked { at: Instant::now(), answered: false });
        let metadata = self.asker.metadata().await?;
        let set: JwkSet = self.asker.get(&metadata.jwks_uri, "read the keys").await?;
        *asked = Some(Asked { at: Instant::now(), answered: true });
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Keys { set, at: Instant::now() });
        self.known(id, algorithm).ok_or_else(unknown)
    }

    fn known(&self, id: Option<&str>, algorithm: Algorithm) -> Option<Jwk> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let keys = keys.as_ref().filter(|keys| keys.at.elapsed() < OLD)?;
        find(&keys.set, id, algorithm).cloned()
    }
}

fn unknown() -> Rejected {
    Rejected::BadToken("the provider has no such key".to_owned())
}

/// The key by its id; without one, the only key that could have signed so.
fn find<'a>(set: &'a JwkSet, id: Option<&str>, algorithm: Algorithm) -> Option<&'a Jwk> {
    let fits = |key: &&Jwk| {
        let is_for_signatures =
            !matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption));
        let is_of_kind =
            DecodingKey::from_jwk(key).is_ok_and(|k| k.family().algorithms().contains(&algorithm));
        is_for_signatures && is_of_kind
    };
    let mut fitting = set.keys.iter().filter(fits);
    match id {
        Some(id) => fitting.find(|key| key.common.key_id.as_deref() == Some(id)),
        None => fitting.next().filter(|_| fitting.next().is_none()),
    }
}

/// In words for whoever has the token; never the token.
fn bad(error: &jsonwebtoken::errors::Error) -> Rejected {
    let why = match error.kind() {
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is not valid yet; the clocks may differ",
        ErrorKind::InvalidIssuer => "it is of another issuer",
        ErrorKind::InvalidAudience => "it was made for somebody else",
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::MissingRequiredClaim(claim) => {
            return Rejected::BadToken(format!("it has no claim '{claim}'"));
        }
        _ => "it is no ID token",
    };
    Rejected::BadToken(why.to_owned())
}
