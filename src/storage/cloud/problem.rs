//! What a store's answer means, in words that hold nothing of the credentials.

use std::error::Error as _;

use atelier_core::datastore::Source;

use super::Cloud;
use super::public::Whose;
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
const MISSING: [&str; 8] = [
    "NoSuchBucket",
    "ContainerNotFound",
    "FilesystemNotFound",
    "ContainerBeingDeleted",
    "AccountIsDisabled",
    "ShareNotFound",
    "ShareBeingDeleted",
    "ShareDisabled",
];
/// Where machines of clouds ask who they are.
const METADATA: [&str; 4] =
    ["169.254.169.254", "169.254.170.2", "metadata.google.internal", "metadata/identity"];
/// Codes by which stores say that somebody may not.
const FORBIDDEN: [&str; 4] = [
    "AccessDenied",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "InsufficientAccountPermissions",
];
/// Codes by which shares say that there is a folder where a file has to be, or a file where a folder has to be.
const CONFLICTING: [&str; 3] = ["ResourceTypeMismatch", "ResourceAlreadyExists", "ParentNotFound"];
/// Codes by which stores say that they cannot just now.
const BUSY: [&str; 6] = [
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "ServerBusy",
    "OperationTimedOut",
    "RequestTimeout",
];
/// What the library says of a store that sends it elsewhere and does not say where: another region's.
const NO_WAY_ON: &str = "redirect without LOCATION";
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
        if let Whose::User(bucket, _) = &self.inner.whose {
            return self.problem_of_public(bucket, (operation, path), &error, &told);
        }
        let datastore = self.inner.name.clone();
        let away = |problem: String| Error::Away { datastore: datastore.clone(), problem };
        let is_unanswered = told.status.is_none() && !matches!(error, E::NotFound { .. });
        if is_unanswered && METADATA.iter().any(|host| told.whole.contains(host)) {
            return Error::Denied {
                datastore,
                operation,
                problem: format!(
                    "it has no credentials, and the daemon's environment and machine give none; give some {}",
                    self.inner.other_keys
                ),
            };
        }
        if self.is_missing(&error) {
            return away(self.missing());
        }
        if self.is_read_only() && matches!(told.status, Some(401 | 403)) {
            let problem = format!("the web server wants to know who asks ({})", told.short());
            return Error::Denied { datastore, operation, problem };
        }
        if self.is_read_only() && matches!(told.status, Some(300..=399)) {
            return self.unsupported(format!(
                "the web server says that '{path}' is at another server, where the daemon does not follow; make a \
                 datastore of that one"
            ));
        }
        if told.is_unknown() {
            let problem = format!(
                "the store does not accept the credentials ({}): they may be wrong or have expired; give others {}",
                told.short(),
                self.inner.other_keys
            );
            return Error::Denied { datastore, operation, problem };
        }
        if told.is_elsewhere() {
            let problem =
                "the store says that it is elsewhere: its region or endpoint is not the bucket's";
            return self.unsupported(problem);
        }
        if operation == "write" && told.is_conflict() {
            return self.unsupported(format!(
                "'{path}' cannot be stored: a file and a folder would have the same path"
            ));
        }
        match error {
            E::NotFound { .. } => match operation {
                "read" => Error::NotFound(path.to_owned()),
                "list" => away(self.missing()),
                // An upload that another request has completed or ended.
                _ => away(format!("the store lost what was to be stored at '{path}'; try again")),
            },
            E::Precondition { .. } => Error::Changed(path.to_owned()),
            _ if told.is_refusal() => Error::Denied {
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
            Source::AzureFile(azure) => format!(
                "account '{}' has no share '{}'; make it, or see whether the name is right",
                azure.account_name, azure.container
            ),
            Source::OneLake(lake) => format!(
                "there is no workspace '{}' of Fabric's; see whether the name is right",
                lake.workspace
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
        let status: Option<u16> = whole
            .split("status code: ")
            .nth(1)
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok());
        // Of one object of many that were to be deleted there is no more than this.
        let of_one =
            || whole.split_once("(code: ")?.1.split_once(')').map(|(code, _)| code.to_owned());
        let code = element(&whole, "Code").or_else(of_one);
        let message = element(&whole, "Message");
        let status = status.or_else(|| code.as_deref()?.parse().ok());
        Self { whole, status, code, message }
    }

    /// Whether a file is where a folder has to be, or the other way round.
    fn is_conflict(&self) -> bool {
        self.code.as_deref().is_some_and(|code| CONFLICTING.contains(&code))
    }

    /// Whether whoever asks is known and may not, or gets no token to ask with.
    fn is_refusal(&self) -> bool {
        let is_forbidden = |code: &str| FORBIDDEN.contains(&code);
        match self.status {
            Some(401 | 403) => true,
            // Stores say what was wrong with a request; who gives tokens does not say it their way.
            Some(400) => self.code.is_none(),
            _ => self.code.as_deref().is_some_and(is_forbidden),
        }
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

    /// Whether the store found that what was asked for makes no sense.
    pub(super) fn is_misunderstood(error: &object_store::Error) -> bool {
        Self::of(error).status == Some(400)
    }

    /// Whether another try of what failed so may succeed.
    pub(super) fn is_worth_a_try(error: &object_store::Error) -> bool {
        matches!(error, object_store::Error::Generic { .. }) && Self::of(error).is_transient()
    }

    /// Whether another try may succeed: it is not reached, or has too much to do.
    pub(super) fn is_transient(&self) -> bool {
        match (self.status, self.code.as_deref()) {
            (Some(status), _) => status >= 500 || matches!(status, 408 | 429),
            (None, Some(code)) => BUSY.contains(&code),
            (None, None) => true,
        }
    }

    /// Whether the store says that it is somewhere else.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.whole.contains(NO_WAY_ON) || matches!(self.status, Some(300..=399))
    }

    /// Whether the store's own word for it is one of these.
    pub(super) fn is_any(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// A line for people.
    pub(super) fn short(&self) -> String {
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

    fn told(text: &str) -> Told {
        Told::of(&object_store::Error::Generic { store: "S3", source: text.to_owned().into() })
    }

    #[test]
    fn what_is_refused_is_not_tried_for_ever() {
        for (text, is_refusal, is_transient) in [
            ("request failed for key f: no (code: AccessDenied)", true, false),
            ("request failed for key f: wait (code: SlowDown)", false, true),
            ("request failed for key f: no (code: 403)", true, false),
            ("request failed for key f: no (code: MalformedXML)", false, false),
            (
                "Server returned status code: 400 Bad Request: {\"error\":\"invalid_grant\"}",
                true,
                false,
            ),
            ("status code: 400: <Error><Code>InvalidArgument</Code></Error>", false, false),
            ("error sending request", false, true),
            ("status code: 503: x", false, true),
        ] {
            let told = told(text);
            assert_eq!(
                (told.is_refusal(), told.is_transient()),
                (is_refusal, is_transient),
                "{text}"
            );
        }
    }

    #[test]
    fn signatures_are_left_out() {
        let said = excerpt(
            "PUT https://a.blob.core.windows.net/c/x?sv=1&sig=S3CR3T in 3s, (http://x/?sig=S3CR3T)",
        );
        assert_eq!(said, "PUT https://a.blob.core.windows.net/c/x in 3s, (http://x/)");
        assert!(excerpt(&"x".repeat(1000)).len() < 310);
    }
}
