//! One request, tried again as those of other stores are.

use atelier_core::url::encoded;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use object_store::{Error, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Response, Url};

use super::sign::Opened;
use crate::storage::cloud::client::{CONNECT, Retries, STILL, USER_AGENT};

/// The version of the API, the first in which dots at the end of names are kept and tokens are taken.
const VERSION: &str = "2022-11-02";
/// More than any refusal is long.
const MAX_REFUSAL: usize = 64 << 10;
/// Codes that there is no file, or no folder, of that name.
const MISSING: [&str; 3] = ["ResourceNotFound", "ParentNotFound", "ResourceTypeMismatch"];

/// What is asked.
#[derive(Clone)]
pub(super) struct Ask {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Ask {
    pub(super) fn new(method: Method, path: &str) -> Self {
        let (query, headers, body) = Default::default();
        Self { method, path: path.to_owned(), query, headers, body }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }
}

/// Asks for what is in one share.
pub(super) struct Requests {
    http: reqwest::Client,
    /// The share's address.
    root: String,
    account: String,
    opened: Opened,
    pub(super) retries: Retries,
}

/// Why there is no answer.
enum Failure {
    /// Another try may get one.
    Passing(Error),
    Final(Error),
}

impl Requests {
    pub(super) fn new(root: &str, account: &str, opened: Opened, retries: Retries) -> Result<Self> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(STILL)
            .https_only(!root.starts_with("http://"))
            .http1_only()
            .user_agent(USER_AGENT)
            .build()
            .map_err(|error| lost(error.to_string()))?;
        let (root, account) = (root.to_owned(), account.to_owned());
        Ok(Self { http, root, account, opened, retries })
    }

    /// # Errors
    /// What the service refuses, in the words in which refusals are looked for (see `problem`).
    pub(super) async fn send(&self, ask: Ask) -> Result<Response> {
        let mut pauses = self.retries.pauses();
        loop {
            let error = match self.once(&ask).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => error,
            };
            match pauses.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    async fn once(&self, ask: &Ask) -> Result<Response, Failure> {
        let url = self.url(&ask.path, &ask.query).map_err(Failure::Final)?;
        let mut headers = HeaderMap::new();
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let fixed = [
            ("x-ms-version", VERSION.to_owned()),
            ("x-ms-date", date),
            ("x-ms-allow-trailing-dot", "true".to_owned()),
        ];
        for (name, value) in fixed.iter().chain(&ask.headers) {
            let value =
                HeaderValue::from_str(value).map_err(|_| Failure::Final(odd("a header")))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        if ask.method == Method::PUT {
            headers.insert(header::CONTENT_LENGTH, ask.body.len().into());
        }
        let signed = self.opened.sign(&self.account, &ask.method, &url, &mut headers).await;
        signed.map_err(Failure::Final)?;
        let request = self.http.request(ask.method.clone(), self.opened.address(url));
        let answer = request.headers(headers).body(ask.body.clone()).send().await;
        let answer = answer.map_err(|error| Failure::Passing(lost(said(error))))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(refused(&ask.path, status, answer).await),
        }
    }

    fn url(&self, path: &str, query: &[(&'static str, String)]) -> Result<Url> {
        let path = encoded(path);
        let mut text = format!("{}/{path}", self.root).trim_end_matches('/').to_owned();
        for (index, (name, value)) in query.iter().enumerate() {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            text.push_str(&format!("{}{name}={value}", if index == 0 { '?' } else { '&' }));
        }
        text.parse().map_err(|_| odd("an address that is none"))
    }

    /// The address by which the service itself reads a file of the share.
    pub(super) fn source(&self, path: &str) -> Result<String> {
        Ok(self.opened.address(self.url(path, &[])?).into())
    }
}

/// An error with all its causes, without its address, in which a signature may be.
fn said(error: reqwest::Error) -> String {
    use std::error::Error as _;
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(found) = cause {
        text.push_str(&format!(": {found}"));
        cause = found.source();
    }
    text
}

async fn refused(path: &str, status: StatusCode, mut answer: Response) -> Failure {
    let code = super::text(answer.headers(), "x-ms-error-code").unwrap_or_default().to_owned();
    let mut body = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        if body.len() + piece.len() > MAX_REFUSAL {
            break;
        }
        body.extend_from_slice(&piece);
    }
    let mut text = format!("status code: {}: {}", status.as_u16(), String::from_utf8_lossy(&body));
    if !code.is_empty() && !text.contains("<Code>") {
        text.push_str(&format!("<Code>{code}</Code>"));
    }
    let is_missing = MISSING.iter().any(|code| text.contains(&format!("<Code>{code}</Code>")))
        || status == StatusCode::NOT_FOUND && !text.contains("<Code>");
    match status.as_u16() {
        408 | 429 | 500..=599 => Failure::Passing(lost(text)),
        _ if is_missing => {
            Failure::Final(Error::NotFound { path: path.to_owned(), source: text.into() })
        }
        _ => Failure::Final(lost(text)),
    }
}

/// Whether an error is the service's of this code.
pub(super) fn is(error: &Error, code: &str) -> bool {
    use std::error::Error as _;
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    source.contains(&format!("<Code>{code}</Code>"))
}

pub(super) fn lost(text: String) -> Error {
    Error::Generic { store: "AzureFile", source: text.into() }
}

/// An answer that is not as its documents say.
pub(super) fn odd(what: &str) -> Error {
    // Not one that passes.
    Error::NotSupported { source: format!("the answer has {what}").into() }
}
