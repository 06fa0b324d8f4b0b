//! Who asks: Shared Key, a shared access signature, or a token.
//!
//! Source: <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>.

use atelier_core::datastore::Secret;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, header};
use object_store::azure::{AzureCredential, AzureCredentialProvider};
use object_store::{Error, Result};
use reqwest::Url;
use zeroize::Zeroizing;

use super::text;

/// Headers whose values are signed, in their order.
const SIGNED: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// What opens a share.
pub(in crate::storage::cloud) enum Opened {
    /// The account's key.
    Key(Box<hmac::Key>),
    /// Part of each address.
    Signature(Secret),
    /// Tokens of Entra's.
    Tokens(AzureCredentialProvider),
}

impl Opened {
    /// # Errors
    /// It is no key.
    pub(in crate::storage::cloud) fn by_key(key: &Secret) -> Result<Self> {
        let bytes = STANDARD.decode(key.reveal().trim()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| unfit("the account's key is not Base64"))?;
        Ok(Self::Key(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &bytes))))
    }

    /// What an address of the account's is called by, with its signature if it has one.
    pub(super) fn address(&self, mut url: Url) -> Url {
        if let Self::Signature(signature) = self {
            let signature = signature.reveal().trim_start_matches('?');
            let query = match url.query().filter(|query| !query.is_empty()) {
                Some(query) => Zeroizing::new(format!("{query}&{signature}")),
                None => Zeroizing::new(signature.to_owned()),
            };
            url.set_query(Some(&query));
        }
        url
    }

    /// Adds who asks to a request's headers, which are complete otherwise.
    pub(super) async fn sign(
        &self,
        account: &str,
        method: &Method,
        url: &Url,
        headers: &mut HeaderMap,
    ) -> Result<()> {
        let who = match self {
            Self::Signature(_) => return Ok(()),
            Self::Key(key) => {
                let signed = hmac::sign(key, to_sign(account, method, url, headers).as_bytes());
                format!("SharedKey {account}:{}", STANDARD.encode(signed))
            }
            Self::Tokens(provider) => match &*provider.get_credential().await? {
                AzureCredential::BearerToken(token) => {
                    let backup = HeaderValue::from_static("backup");
                    headers.insert("x-ms-file-request-intent", backup);
                    format!("Bearer {token}")
                }
                _ => return Err(unfit("no token was given for the share")),
            },
        };
        let mut who = HeaderValue::from_str(&who).map_err(|_| unfit("the token is none"))?;
        who.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, who);
        Ok(())
    }
}

fn unfit(why: &str) -> Error {
    Error::NotSupported { source: why.into() }
}

/// What is signed of a request.
fn to_sign(account: &str, method: &Method, url: &Url, headers: &HeaderMap) -> String {
    let mut lines = method.to_string();
    for name in SIGNED {
        let value = text(headers, name).unwrap_or_default();
        let is_empty = name == "content-length" && value == "0";
        lines.push('\n');
        lines.push_str(if is_empty { "" } else { value });
    }
    let mut own: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default().trim()))
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .collect();
    own.sort_unstable();
    lines.push('\n');
    for (name, value) in own {
        lines.push_str(&format!("{name}:{value}\n"));
    }
    lines.push_str(&format!("/{account}{}", url.path()));
    let mut pairs: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (name.to_lowercase(), value.into())).collect();
    pairs.sort();
    for (name, value) in pairs {
        lines.push_str(&format!("\n{name}:{value}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Azure's own client (azure-storage-file-share 12.27.1) sent, with this key.
    #[tokio::test]
    async fn requests_are_signed_as_azures_client_signs_them() {
        let key = Secret::new(STANDARD.encode("a key of the tests only"));
        let by_key = Opened::by_key(&key).unwrap();
        let common =
            [("x-ms-date", "Sun, 29 Nov 2026 06:53:12 GMT"), ("x-ms-version", "2026-10-06")];
        let range: &[_] = &[
            ("content-length", "5"),
            ("content-type", "application/octet-stream"),
            ("x-ms-client-request-id", "8b36253c-ebc1-11f1-9b06-02fc00000001"),
            ("x-ms-range", "bytes=0-4"),
            ("x-ms-write", "update"),
        ];
        let list: &[_] = &[("x-ms-client-request-id", "8b62f954-ebc1-11f1-9054-02fc00000001")];
        for (method, address, headers, expected) in [
            (
                Method::PUT,
                "a%20folder/%C3%A4%2Bb%2520.csv?comp=range",
                range,
                "QiN7oECzkOeoNkLiTYZktWgAVu5PpEAHcGybrwCLaC4=",
            ),
            (
                Method::GET,
                "a%20folder?prefix=x%20y&include=timestamps,Etag&restype=directory&comp=list",
                list,
                "EShyGKTGEbzmf8TD8QO3Kepft1YN9mLbMofmjhxo/bs=",
            ),
        ] {
            let url = format!("https://acct.file.core.windows.net/share/{address}");
            let mut given = HeaderMap::new();
            for (name, value) in headers.iter().chain(&common) {
                given.insert(*name, HeaderValue::from_static(value));
            }
            by_key.sign("acct", &method, &url.parse().unwrap(), &mut given).await.unwrap();
            let signed = format!("SharedKey acct:{expected}");
            assert_eq!(given[header::AUTHORIZATION], signed, "{method} {address}");
        }
    }
}
