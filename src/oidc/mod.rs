//! OpenID Connect: the provider that vouches for people.
//!
//! Clients send people to the provider and bring back its ID token ([`flows`]); the daemon checks the token
//! ([`verify`]), and gives one of its own for it. So requests are as cheap as with any other token, a session can be
//! revoked, and the provider's tokens go nowhere but to the daemon, once. Where the provider wants a secret of its
//! clients, what they ask it goes by way of the daemon ([`passing`]).

pub mod flows;
mod passing;
#[cfg(test)]
mod tests;
mod verify;

use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use passing::{NotAsked, Passed, Passing, Shown};
pub use verify::{Provider, Rejected};

/// Until the provider must have answered.
const ANSWER: Duration = Duration::from_secs(10);
/// An answer has at most so many bytes.
const LARGEST: usize = 1 << 20;

/// Why a provider cannot be asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// What was given is no issuer.
    #[error(
        "'{issuer}' is not the issuer of a provider: write https://HOST[/PATH], or http on this machine"
    )]
    BadIssuer {
        /// As written.
        issuer: String,
    },
    /// It does not answer, or not as it should.
    #[error("cannot {operation} of the provider {issuer}: {cause}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// Of whom.
        issuer: String,
        /// Why it failed.
        cause: String,
    },
    /// The secret of its client is not where it is to be.
    #[error(
        "cannot read the secret of the provider's client from {place}: {problem} (--oidc-client-secret)"
    )]
    Secret {
        /// Where.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// It calls itself otherwise, so that its tokens would be somebody else's.
    #[error(
        "the provider at {issuer} says that it is '{says}': name it as it calls itself, to the letter (--oidc-issuer)"
    )]
    OtherIssuer {
        /// Who was asked.
        issuer: String,
        /// What it said.
        says: String,
    },
}

/// What a provider tells about itself (OpenID Connect Discovery 1.0, section 3).
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    /// Who it is.
    pub issuer: String,
    /// Where browsers are sent.
    pub authorization_endpoint: String,
    /// Where tokens are had.
    pub token_endpoint: String,
    /// Where its keys are.
    pub jwks_uri: String,
    /// Where codes for devices are had (RFC 8628), if it does that.
    pub device_authorization_endpoint: Option<String>,
    /// Where tokens are revoked (RFC 7009), if it does that.
    pub revocation_endpoint: Option<String>,
    /// How clients may show a secret there, if it says so.
    pub token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// What it may be asked for, if it says so.
    pub scopes_supported: Option<Vec<String>>,
}

impl Metadata {
    /// How a client shows its secret, where nobody says how: as all have to know it (RFC 6749, section 2.3.1), unless
    /// this one does not.
    fn client_shows(&self) -> Shown {
        let knows = |name: &str| {
            let all = self.token_endpoint_auth_methods_supported.as_ref();
            all.map(|all| all.iter().any(|known| known == name))
        };
        match (knows("client_secret_basic"), knows("client_secret_post")) {
            (Some(false), Some(true)) => Shown::Post,
            _ => Shown::Basic,
        }
    }

    /// Whether it may be asked for refresh tokens in the way of OpenID Connect (Core 1.0, section 11).
    fn knows_offline_access(&self) -> bool {
        let all = self.scopes_supported.as_ref();
        all.is_none_or(|all| all.iter().any(|known| known == "offline_access"))
    }
}

/// Asks one provider. It is never redirected.
#[derive(Debug, Clone)]
pub struct Asker {
    http: reqwest::Client,
    issuer: String,
}

impl Asker {
    /// For a provider that was named by an admin.
    ///
    /// # Errors
    /// [`Error::BadIssuer`]; if the system gives no sockets.
    pub fn new(issuer: &str) -> Result<Self, Error> {
        let bad = || Error::BadIssuer { issuer: issuer.chars().take(200).collect() };
        let url = Url::parse(issuer).map_err(|_| bad())?;
        if !is_safe(&url) || issuer.contains(['?', '#', '@']) {
            return Err(bad());
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(ANSWER)
            .timeout(ANSWER)
            .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
            .build();
        let http = http.map_err(|error| Error::Unavailable {
            operation: "ask for the metadata",
            issuer: issuer.to_owned(),
            cause: crate::client::innermost(&error),
        })?;
        Ok(Self { http, issuer: issuer.to_owned() })
    }

    /// What it tells about itself; all addresses in it are as safe as its own.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn metadata(&self) -> Result<Metadata, Error> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let operation = "read the metadata";
        let metadata: Metadata = self.get(&url, operation).await?;
        if metadata.issuer != self.issuer {
            let says = metadata.issuer.chars().take(200).collect();
            return Err(Error::OtherIssuer { issuer: self.issuer.clone(), says });
        }
        let required =
            [&metadata.authorization_endpoint, &metadata.token_endpoint, &metadata.jwks_uri];
        let optional = [&metadata.device_authorization_endpoint, &metadata.revocation_endpoint];
        let all = required.into_iter().chain(optional.into_iter().flatten());
        for address in all {
            if !Url::parse(address).is_ok_and(|url| is_safe(&url)) {
                let address: String = address.chars().take(200).collect();
                return Err(
                    self.unavailable(operation, format!("it names {address}, which is not safe"))
                );
            }
        }
        Ok(metadata)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        url: &str,
        operation: &'static str,
    ) -> Result<T, Error> {
        let lost =
            |error: reqwest::Error| self.unavailable(operation, crate::client::innermost(&error));
        let answer = self.http.get(url).send().await.map_err(lost)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(self.unavailable(operation, format!("{url} answers {}", answer.status())));
        }
        let bytes = bounded(answer).await.map_err(|cause| self.unavailable(operation, cause))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            self.unavailable(operation, format!("{url} answers with something else: {error}"))
        })
    }

    fn unavailable(&self, operation: &'static str, cause: String) -> Error {
        Error::Unavailable { operation, issuer: self.issuer.clone(), cause }
    }
}

/// Whether nobody in between could read or change what is sent there.
fn is_safe(url: &Url) -> bool {
    let is_here = match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback()),
        None => return false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_here)
}

/// All of an answer, unless it is too long for one.
async fn bounded(mut answer: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        answer.chunk().await.map_err(|error| crate::client::innermost(&error))?
    {
        if bytes.len() + chunk.len() > LARGEST {
            return Err(format!("its answer has more than {LARGEST} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
