//! What an attempt is known by: a JSON Web Token (RFC 7519), signed with Ed25519 (RFC 8037) by a key that follows from
//! the workspace's secret. Anybody can verify it by the key that the daemon publishes; whether the attempt is still
//! alive only the daemon knows.

use atelier_core::access::AttemptScope;
use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What the key follows from the secret by; another is another key.
const CONTEXT: &str = "atelier 2026-11 identities of attempts";
/// Whom the token is for.
const AUDIENCE: &str = "atelier";

/// Makes and verifies them.
pub(super) struct Signer {
    pair: Ed25519KeyPair,
    /// The first part of each token: the only one that is read.
    head: String,
    /// Names the key (RFC 7638).
    key_id: String,
    issuer: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    #[serde(flatten)]
    scope: AttemptScope,
}

impl Signer {
    /// With the key of a workspace's secret; `None`: the library refuses it.
    pub(super) fn new(secret: &[u8; 32], workspace: &str) -> Option<Self> {
        let seed = blake3::derive_key(CONTEXT, secret);
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
        let x = URL_SAFE_NO_PAD.encode(pair.public_key());
        // Its members in the order of their names, as the thumbprint has them.
        let thumb = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
        let thumb = digest::digest(&digest::SHA256, thumb.as_bytes());
        let key_id = URL_SAFE_NO_PAD.encode(thumb.as_ref());
        let head = format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{key_id}"}}"#);
        let head = URL_SAFE_NO_PAD.encode(head);
        Some(Self { pair, head, key_id, issuer: format!("atelier:{workspace}") })
    }

    /// An attempt's token: always the same.
    pub(super) fn token(&self, scope: &AttemptScope) -> String {
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("attempt:{}/{}", scope.job, scope.attempt),
            aud: AUDIENCE.to_owned(),
            scope: scope.clone(),
        };
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap_or_default());
        let signed = format!("{}.{body}", self.head);
        let seal = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{seal}")
    }

    /// The attempt that a token was made for; `None`: it was made by somebody else, or changed.
    pub(super) fn scope(&self, token: &str) -> Option<AttemptScope> {
        let (signed, seal) = token.rsplit_once('.')?;
        // What the head says is not asked for: a token does not choose by what it is verified.
        let body = signed.strip_prefix(&self.head)?.strip_prefix('.')?;
        let seal = URL_SAFE_NO_PAD.decode(seal).ok()?;
        let key = UnparsedPublicKey::new(&ED25519, self.pair.public_key());
        key.verify(signed.as_bytes(), &seal).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
        (claims.iss == self.issuer && claims.aud == AUDIENCE).then_some(claims.scope)
    }

    /// The public key, as a set (RFC 7517).
    pub(super) fn keys(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({
            "keys": [{
                "kty": "OKP",
                "crv": "Ed25519",
                "alg": "EdDSA",
                "use": "sig",
                "kid": self.key_id,
                "x": x,
            }]
        })
    }
}
