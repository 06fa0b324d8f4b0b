//! What a workspace passes on to its provider for a client, with the secret of its own that the provider wants to see
//! (RFC 6749, section 2.3.1), and what of the answer it gives back.
//!
//! The secret makes the workspace believed by the provider, so that only what signing in takes is passed on: nobody
//! gets another scope than the workspace's, or a token for the provider's own services.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Which of a provider's endpoints is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// Where tokens are had (RFC 6749, section 3.2).
    Token,
    /// Where codes for devices are had (RFC 8628, section 3.1).
    DeviceAuthorization,
    /// Where tokens are revoked (RFC 7009).
    Revocation,
}

/// Parameters of a request, by name.
pub type Parameters = BTreeMap<String, String>;

/// Why something is not passed on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotPassedOn {
    /// No sign-in begins or goes on like this.
    #[error(
        "the grant '{}' is not passed on to the provider: authorization_code, refresh_token and device_code are",
        cut(.0)
    )]
    Grant(String),
    /// Something is missing.
    #[error("the parameter '{0}' is missing, without which nothing is passed on to the provider")]
    Missing(&'static str),
    /// Something is too much.
    #[error("the parameter '{}' is not passed on to the provider", cut(.0))]
    Parameter(String),
    /// More than the workspace asks for.
    #[error("the scope '{}' is not one that this workspace asks its provider for (atelier serve --oidc-scope)", cut(.0))]
    Scope(String),
    /// A code that somebody on another machine would be given.
    #[error("the redirect address '{}' is not on the machine of whoever signs in", cut(.0))]
    Redirect(String),
}

/// What somebody wrote, for an error.
fn cut(text: &str) -> String {
    // It goes into the daemon's log, where a line is a line.
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Whether a request is one that signing in takes. What a client says of itself in it is the workspace's to say.
///
/// # Errors
/// [`NotPassedOn`].
pub fn check(
    endpoint: Endpoint,
    parameters: &Parameters,
    scopes: &[String],
) -> Result<(), NotPassedOn> {
    let (needed, optional): (&[&str], &[&str]) = match endpoint {
        Endpoint::Token => match parameters.get("grant_type").map(String::as_str) {
            // The verifier is what whoever has seen the code on its way does not have (RFC 7636).
            Some("authorization_code") => (&["code", "redirect_uri", "code_verifier"], &[]),
            Some("refresh_token") => (&["refresh_token"], &["scope"]),
            Some(DEVICE_CODE) => (&["device_code"], &[]),
            Some(other) => return Err(NotPassedOn::Grant(other.to_owned())),
            None => return Err(NotPassedOn::Missing("grant_type")),
        },
        Endpoint::DeviceAuthorization => (&["scope"], &[]),
        Endpoint::Revocation => (&["token"], &["token_type_hint"]),
    };
    let is_given = |name: &str| parameters.get(name).is_some_and(|value| !value.is_empty());
    if let Some(missing) = needed.iter().find(|name| !is_given(name)) {
        return Err(NotPassedOn::Missing(missing));
    }
    let is_known = |name: &str| {
        needed.contains(&name)
            || optional.contains(&name)
            || (endpoint == Endpoint::Token && name == "grant_type")
    };
    if let Some(other) = parameters.keys().find(|name| !is_known(name)) {
        return Err(NotPassedOn::Parameter(other.clone()));
    }
    let asked = parameters.get("scope").into_iter().flat_map(|scope| scope.split(' '));
    if let Some(other) = asked.filter(|s| !s.is_empty()).find(|s| !scopes.iter().any(|o| o == s)) {
        return Err(NotPassedOn::Scope(other.to_owned()));
    }
    match parameters.get("redirect_uri") {
        Some(to) if !is_here(to) => Err(NotPassedOn::Redirect(to.clone())),
        _ => Ok(()),
    }
}

/// Where the command line waits for a browser, on whatever port.
fn is_here(address: &str) -> bool {
    let rest = address.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.split_once('/'));
    rest.is_some_and(|(port, path)| port.parse::<u16>().is_ok() && path == "callback")
}

/// What a provider says.
#[derive(Clone, PartialEq, Debug)]
pub enum Said {
    /// Something for the client.
    Answer(Map<String, Value>),
    /// It does not take the workspace for the client that it is to be.
    NotTheClient {
        /// Its word for it, and perhaps why: for an admin.
        why: String,
    },
    /// Something that no provider says there.
    Nonsense,
}

/// What of an answer is given back, and whether it is a refusal of the workspace itself.
pub fn answer(endpoint: Endpoint, succeeded: bool, body: &[u8], secret: &str) -> Said {
    let body: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    if !succeeded {
        let Some(body) = body else { return Said::Nonsense };
        let Some(error) = text(&body, "error", secret) else { return Said::Nonsense };
        let why = text(&body, "error_description", secret);
        if error == "invalid_client" {
            return Said::NotTheClient {
                why: why.map_or_else(|| error.clone(), |why| format!("{error}: {why}")),
            };
        }
        let mut said = Map::from_iter([("error".to_owned(), json!(error))]);
        said.extend(why.map(|why| ("error_description".to_owned(), json!(why))));
        return Said::Answer(said);
    }
    let fields: &[&str] = match endpoint {
        Endpoint::Token => &["id_token", "refresh_token", "token_type", "expires_in"],
        Endpoint::DeviceAuthorization => &[
            "device_code",
            "user_code",
            "verification_uri",
            "verification_url",
            "verification_uri_complete",
            "expires_in",
            "interval",
        ],
        // It says nothing.
        Endpoint::Revocation => return Said::Answer(Map::new()),
    };
    let Some(body) = body else { return Said::Nonsense };
    let kept = body.into_iter().filter(|(name, _)| fields.contains(&name.as_str()));
    let mut kept: Map<String, Value> = kept.collect();
    if endpoint == Endpoint::Token {
        // One is required in an answer (section 5.1), and clients have no use for it.
        kept.insert("access_token".to_owned(), json!(""));
    }
    Said::Answer(kept)
}

/// A text of a refusal: short, printable, and never with the secret.
fn text(body: &Map<String, Value>, name: &str, secret: &str) -> Option<String> {
    let said = body.get(name)?.as_str()?;
    if !secret.is_empty() && said.contains(secret) {
        return None;
    }
    Some(said.chars().filter(|c| !c.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn checked(endpoint: Endpoint, pairs: &[(&str, &str)]) -> Result<(), NotPassedOn> {
        check(endpoint, &parameters(pairs), &["openid".to_owned(), "email".to_owned()])
    }

    const CODE: [(&str, &str); 4] = [
        ("grant_type", "authorization_code"),
        ("code", "c"),
        ("redirect_uri", "http://127.0.0.1:4711/callback"),
        ("code_verifier", "v"),
    ];

    #[test]
    fn what_signing_in_takes_is_passed_on() {
        let refresh =
            [("grant_type", "refresh_token"), ("refresh_token", "r"), ("scope", "openid email")];
        let device = [("grant_type", DEVICE_CODE), ("device_code", "d")];
        for grant in [&CODE[..], &refresh, &refresh[..2], &device] {
            assert_eq!(checked(Endpoint::Token, grant), Ok(()), "{grant:?}");
        }
        assert_eq!(checked(Endpoint::DeviceAuthorization, &[("scope", "openid")]), Ok(()));
        let token = [("token", "r"), ("token_type_hint", "refresh_token")];
        assert_eq!(checked(Endpoint::Revocation, &token), Ok(()));
    }

    #[test]
    fn what_it_does_not_take_is_not() {
        for missing in 0..CODE.len() {
            let mut some = CODE.to_vec();
            let (name, _) = some.remove(missing);
            assert_eq!(checked(Endpoint::Token, &some), Err(NotPassedOn::Missing(name)));
            some.push((name, ""));
            assert!(checked(Endpoint::Token, &some).is_err(), "{some:?}");
        }
        // With the secret these would be the workspace's own, or somebody else's word for who it is.
        for grant in
            ["client_credentials", "password", "urn:ietf:params:oauth:grant-type:token-exchange"]
        {
            let asked = [("grant_type", grant), ("scope", "openid")];
            assert_eq!(checked(Endpoint::Token, &asked), Err(NotPassedOn::Grant(grant.to_owned())));
        }
        for more in ["client_id", "client_secret", "client_assertion", "resource", "audience"] {
            let asked = [&CODE[..], &[(more, "x")]].concat();
            assert_eq!(
                checked(Endpoint::Token, &asked),
                Err(NotPassedOn::Parameter(more.to_owned()))
            );
        }
        let wide = [("scope", "openid https://graph.example.com/.default")];
        assert!(matches!(
            checked(Endpoint::DeviceAuthorization, &wide),
            Err(NotPassedOn::Scope(_))
        ));
        for to in [
            "https://evil.example.com/callback",
            "http://127.0.0.1.evil.example.com/callback",
            "http://127.0.0.1@evil.example.com/callback",
            "http://127.0.0.1:80@evil.example.com/callback",
            "http://127.0.0.1:4711/elsewhere",
            "http://evil.example.com#http://127.0.0.1/",
            "x",
        ] {
            let mut asked = CODE;
            asked[2].1 = to;
            assert_eq!(checked(Endpoint::Token, &asked), Err(NotPassedOn::Redirect(to.to_owned())));
        }
    }

    #[test]
    fn the_client_is_told_what_it_needs_and_never_the_secret() {
        let tokens = json!({
            "access_token": "for the provider", "token_type": "Bearer", "expires_in": 3600,
            "id_token": "i", "refresh_token": "r", "scope": "openid", "more": { "x": 1 },
        });
        let Said::Answer(said) = answer(Endpoint::Token, true, tokens.to_string().as_bytes(), "s")
        else {
            panic!("no answer")
        };
        let expected = json!({
            "token_type": "Bearer", "expires_in": 3600, "id_token": "i", "refresh_token": "r", "access_token": "",
        });
        assert_eq!(Value::Object(said), expected);

        let refused =
            |body: Value| answer(Endpoint::Token, false, body.to_string().as_bytes(), "top-secret");
        let pending = json!({ "error": "authorization_pending", "error_uri": "x" });
        let told = json!({ "error": "authorization_pending" });
        assert_eq!(refused(pending), Said::Answer(told.as_object().unwrap().clone()));
        let wrong = json!({ "error": "invalid_client", "error_description": "bad\n secret" });
        let why = "invalid_client: bad secret".to_owned();
        assert_eq!(refused(wrong), Said::NotTheClient { why });
        let echo =
            json!({ "error": "invalid_client", "error_description": "'top-secret' is wrong" });
        assert_eq!(refused(echo), Said::NotTheClient { why: "invalid_client".to_owned() });
        for nonsense in [json!([]), json!({}), json!({ "error": 7 }), json!("x")] {
            assert_eq!(refused(nonsense), Said::Nonsense);
        }
        assert_eq!(answer(Endpoint::Token, true, b"<html>", "s"), Said::Nonsense);
        assert_eq!(answer(Endpoint::Revocation, true, b"", "s"), Said::Answer(Map::new()));
    }
}
