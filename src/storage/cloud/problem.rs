//! What a store's answer means, in words that hold nothing of the credentials.

use std::error::Error as _;

use atelier_core::datastore::Source;

use super::Cloud;
use crate::storage::Error;

/// Codes by which stores say that they do not know who asks.
const UNKNOWN: [&str; 12] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSecurity",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "AuthenticationRequired",
    "AuthorizationHeaderMalformed",
    "RequestTimeTooSkewed",
];
/// Codes by which stores say that there is no such bucket.
const MISSING: [&str; 5] = [
    "NoSuchBucket",
    "ContainerNotFound",
    "FilesystemNotFound",
    "ContainerBeingDeleted",
    "AccountIsDisabled",
];
/// Where machines of clouds ask who they are.
const METADATA: [&str; 4] =
    ["169.254.169.254", "169.254.170.2", "metadata.google.internal", "metadata/identity"];
/// The longest text of a store's that is repeated, in bytes.
const MAX_TEXT: usize = 300;

impl Cloud {
    /// The error that a store's is, for `operation` (`read`, `list`, `write` or `delete`) on `path`.
    pub(super) fn problem(
        &self,
        operation: &'static str,
        path: &str,
        error: object_store::Error,
    ) -> Error {
        use object_store::Error as E;
        let told = Told::of(&error);
        let datastore = self.inner.name.clone();
        let away = |problem: String| Error::Away { datastore: datastore.clone(), problem };
        if METADATA.iter().any(|host| told.whole.contains(host)) {
            return Error::Denied {
                datastore,
                operation,
                problem: "it has no credentials, and the daemon's environment and machine give none; give some with \
                          'atelier datastore update'"
                    .to_owned(),
            };
        }
        if self.is_missing(&error) {
            return away(self.missing());
        }
        if self.is_read_only() && matches!(told.status, Some(401 | 403)) {
            let problem = format!("the web server wants to know who asks ({})", told.short());
            return Error::Denied { datastore, operation, problem };
        }
        if told.is_unknown() {
            let problem = format!(
                "the store does not accept the credentials ({}): they may be wrong or have expired; give others with \
                 'atelier datastore update'",
                told.short()
            );
            return Error::Denied { datastore, operation, problem };
        }
        match error {
            E::NotFound { .. } => match operation {
                "read" => Error::NotFound(path.to_owned()),
                "list" => away(self.missing()),
                // An upload that another request has completed or ended.
                _ => away(format!("the store lost what was to be stored at '{path}'; try again")),
            },
            E::Precondition { .. } => Error::Changed(path.to_owned()),
            _ if matches!(told.status, Some(401 | 403)) => Error::Denied {
                datastore,
                operation,
                problem: format!("the credentials do not allow it ({})", told.short()),
            },
            E::InvalidPath { source } => Error::Unsupported {
                datastore,
                problem: format!(
                    "it holds a name that cannot be used here ({}); use a prefix or a folder without it",
                    excerpt(&source.to_string())
                ),
            },
            E::NotImplemented { .. } | E::NotSupported { .. } => Error::Unsupported {
                datastore,
                problem: format!("the store cannot {operation} it"),
            },
            _ if told.is_transient() => {
                tracing::warn!(datastore = %datastore, operation, problem = told.short(), "a store is away");
                away(format!("its store cannot {operation} just now: {}", told.short()))
            }
            _ => Error::Io {
                operation,
                path: format!("{datastore}/{path}"),
                source: std::io::Error::other(told.short()),
            },
        }
    }

    /// Whether the answer is that the whole bucket is not there.
    pub(super) fn is_missing(&self, error: &object_store::Error) -> bool {
        let told = Told::of(error);
        told.code.as_deref().is_some_and(|code| MISSING.contains(&code))
    }

    fn missing(&self) -> String {
        match &self.inner.source {
            Source::AzureBlob(azure) | Source::AzureDataLakeGen2(azure) => format!(
                "account '{}' has no container '{}'; make it, or see whether the name is right",
                azure.account_name, azure.container
            ),
            Source::S3 { bucket, .. } | Source::Gcs { bucket, .. } => {
                format!("there is no bucket '{bucket}'; make it, or see whether the name is right")
            }
            other => format!("there is nothing at {}", other.location()),
        }
    }
}

/// What a store said.
pub(super) struct Told {
    /// All of it, which may hold addresses with signatures.
    whole: String,
    /// The HTTP status.
    status: Option<u16>,
    /// The store's own word for it.
    code: Option<String>,
    message: Option<String>,
}

impl Told {
    fn of(error: &object_store::Error) -> Self {
        let mut whole = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !whole.contains(&text) {
                whole.push_str(": ");
                whole.push_str(&text);
            }
            source = cause.source();
        }
        let status = whole
            .split("status code: ")
            .nth(1)
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok());
        let code = element(&whole, "Code");
        let message = element(&whole, "Message");
        Self { whole, status, code, message }
    }

    /// Whether the store does not know who asks.
    fn is_unknown(&self) -> bool {
        let says = |words: &str| self.message.as_deref().is_some_and(|text| text.contains(words));
        match &self.code {
            Some(code) => UNKNOWN.contains(&code.as_str()) || says("failed to authenticate"),
            None => self.status == Some(401),
        }
    }

    /// Whether the answer is a refusal that does not say why.
    pub(super) fn is_bare(error: &object_store::Error) -> bool {
        let told = Self::of(error);
        told.code.is_none() && matches!(told.status, Some(401 | 403 | 404))
    }

    /// Whether the answer is that the store does not know who asks.
    pub(super) fn is_stranger(error: &object_store::Error) -> bool {
        Self::of(error).is_unknown()
    }

    /// Whether a server answered, whatever it said.
    pub(super) fn is_answer(error: &object_store::Error) -> bool {
        Self::of(error).status.is_some()
    }

    /// Whether another try may succeed: it is not reached, or has too much to do.
    fn is_transient(&self) -> bool {
        self.status.is_none_or(|status| status >= 500 || matches!(status, 408 | 429))
    }

    /// A line for people.
    fn short(&self) -> String {
        let status = self.status.map(|status| format!("HTTP {status}"));
        let message = self.message.as_deref().and_then(|text| text.lines().next()).map(excerpt);
        let parts = [status, self.code.clone().map(|code| excerpt(&code)), message];
        match self.status {
            Some(_) => parts.into_iter().flatten().collect::<Vec<_>>().join(" "),
            None => excerpt(&self.whole),
        }
    }
}

/// What an XML answer has between a pair of tags.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inner.trim().to_owned())
}

/// A short text without the queries of addresses, in which signatures are.
fn excerpt(text: &str) -> String {
    let mut kept = String::with_capacity(text.len().min(MAX_TEXT));
    let mut in_query = false;
    for c in text.chars() {
        let ends = c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ')' | ']');
        in_query = (in_query || c == '?') && !ends;
        if !in_query {
            kept.push(if c.is_control() { ' ' } else { c });
        }
        if kept.len() >= MAX_TEXT {
            kept.push('…');
            break;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_left_out() {
        let said = excerpt(
            "PUT https://a.blob.core.windows.net/c/x?sv=1&sig=S3CR3T in 3s, (http://x/?sig=S3CR3T)",
        );
        assert_eq!(said, "PUT https://a.blob.core.windows.net/c/x in 3s, (http://x/)");
        assert!(excerpt(&"x".repeat(1000)).len() < 310);
    }
}
