//! Who gets in, and what goes on to the daemon.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{any, get};
use serde::Deserialize;
use serde_json::json;

use super::pages::Pages;
use crate::cli::{Context, Error, block_on};
use crate::client::data::within;
use crate::client::{Client, Token, innermost};

const COOKIE: &str = "atelier_ui";
/// The largest body of a page's request, in bytes; the pages send files of 10 MB.
const LARGEST: usize = 16 << 20;
/// What of a request goes on to the daemon.
const ASKED: [HeaderName; 3] = [header::ACCEPT, header::CONTENT_TYPE, header::RANGE];
/// What of an answer goes back to the browser.
const ANSWERED: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::ETAG,
    header::RETRY_AFTER,
];

/// Lets one browser in.
#[derive(Debug)]
pub(super) struct Door {
    /// `NAME.localhost:PORT`, as browsers write it.
    host: String,
    /// What the address shows; gone once it was used.
    code: Mutex<Option<String>>,
    /// What the cookie holds.
    session: String,
}

impl Door {
    /// With a name, a code and a session of its own.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub(super) fn new(port: u16) -> Result<Self, getrandom::Error> {
        let random = |bytes: usize| {
            let mut buffer = vec![0_u8; bytes];
            getrandom::fill(&mut buffer)?;
            Ok::<_, getrandom::Error>(
                buffer.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            )
        };
        // Browsers leave out the port that is a URL's anyway.
        let port = if port == 80 { String::new() } else { format!(":{port}") };
        Ok(Self {
            host: format!("atelier-{}.localhost{port}", random(4)?),
            code: Mutex::new(Some(random(24)?)),
            session: random(24)?,
        })
    }

    /// Where the browser begins.
    pub(super) fn address(&self) -> String {
        let code = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        format!("http://{}/sign-in?code={}", self.host, code.as_deref().unwrap_or_default())
    }

    /// Whether this is the code; it is not the next time.
    fn takes(&self, code: &str) -> bool {
        let mut kept = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = kept.as_deref().is_some_and(|kept| same(kept, code));
        if is_it {
            *kept = None;
        }
        is_it
    }

    /// Whether a request is of these pages, in the browser that was let in.
    fn check(&self, headers: &HeaderMap, is_page: bool) -> Result<(), Refused> {
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        if text(header::HOST) != Some(self.host.as_str()) {
            return Err(Refused::Foreign);
        }
        if text(header::ORIGIN)
            .is_some_and(|origin| origin.strip_prefix("http://") != Some(&self.host))
        {
            return Err(Refused::Foreign);
        }
        let site = text(HeaderName::from_static("sec-fetch-site"));
        if !is_page && site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
            return Err(Refused::Foreign);
        }
        let cookies =
            headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs =
            cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
        match pairs.any(|(name, value)| name.trim() == COOKIE && same(value.trim(), &self.session))
        {
            true => Ok(()),
            false => Err(Refused::NotSignedIn),
        }
    }
}

/// Whether two texts are the same, in a time that does not tell how much of them is.
fn same(one: &str, other: &str) -> bool {
    blake3::hash(one.as_bytes()) == blake3::hash(other.as_bytes())
}

/// Why a request goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// Another page, or another name for this machine.
    Foreign,
    /// The browser has no cookie of ours.
    NotSignedIn,
}

impl Refused {
    fn answer(self) -> Response {
        let (status, word, text) = match self {
            Self::Foreign => {
                (StatusCode::FORBIDDEN, "PERMISSION_DENIED", "this is asked for by another page")
            }
            Self::NotSignedIn => (
                StatusCode::UNAUTHORIZED,
                "UNAUTHENTICATED",
                "this browser was not let in: run `atelier ui` again, and open the address that it prints",
            ),
        };
        (status, axum::Json(json!({ "error_code": word, "message": text }))).into_response()
    }
}

/// Serves the pages, and asks the daemon for what they want.
#[derive(Clone)]
pub(super) struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    door: Arc<Door>,
    pages: Pages,
    context: Context,
    http: reqwest::Client,
    /// For what is sent: the other one's daemon may not be silent for long, and is so until all of it has come.
    patient: reqwest::Client,
    server: String,
    /// Another one when this has expired.
    token: tokio::sync::RwLock<Token>,
}

impl Proxy {
    /// To the daemon of a connection.
    pub(super) fn new(
        door: Arc<Door>,
        pages: Pages,
        context: Context,
        client: &Client,
    ) -> Result<Self, Error> {
        Self::with(door, pages, context, client, client.http()?)
    }

    /// The same, with what asks where nothing is sent.
    pub(super) fn with(
        door: Arc<Door>,
        pages: Pages,
        context: Context,
        client: &Client,
        http: reqwest::Client,
    ) -> Result<Self, Error> {
        let target = client.target();
        let inner = Inner {
            door,
            pages,
            context,
            http,
            patient: client.patient()?,
            server: target.server.trim_end_matches('/').to_owned(),
            token: tokio::sync::RwLock::new(target.token.clone()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The folder of the pages.
    pub(super) fn pages(&self) -> String {
        self.inner.pages.folder().display().to_string()
    }

    /// The routes.
    pub(super) fn router(self) -> Router {
        // What MLflow's pages ask for, and nothing else of the daemon's.
        let asked = Router::new()
            .route("/ajax-api/{*path}", any(forward))
            .route("/graphql", any(forward))
            .route("/get-artifact", get(forward))
            .route("/model-versions/get-artifact", get(forward))
            .route("/version", get(forward))
            .route_layer(middleware::from_fn_with_state(self.clone(), part));
        let pages = Router::new()
            .route("/", get(index))
            .route("/static-files/{*path}", get(file))
            .route_layer(middleware::from_fn_with_state(self.clone(), page));
        Router::new().route("/sign-in", get(sign_in)).merge(asked).merge(pages).with_state(self)
    }
}

async fn part(State(proxy): State<Proxy>, request: Request, next: Next) -> Response {
    guarded(&proxy, false, request, next).await
}

async fn page(State(proxy): State<Proxy>, request: Request, next: Next) -> Response {
    guarded(&proxy, true, request, next).await
}

async fn guarded(proxy: &Proxy, is_page: bool, request: Request, next: Next) -> Response {
    match proxy.inner.door.check(request.headers(), is_page) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.answer(),
    }
}

#[derive(Deserialize)]
struct SignIn {
    code: String,
}

/// Gives the cookie for the code. The page that follows is asked for by this one: a cookie of the strict kind is not sent
/// where another program or site has led the browser.
async fn sign_in(
    State(proxy): State<Proxy>,
    Query(asked): Query<SignIn>,
    headers: HeaderMap,
) -> Response {
    let door = &proxy.inner.door;
    match door.check(&headers, true) {
        Err(Refused::Foreign) => return Refused::Foreign.answer(),
        // The address once more, from the history of the browser that was let in.
        Ok(()) => return Html(ON).into_response(),
        Err(Refused::NotSignedIn) => {}
    }
    if !door.takes(&asked.code) {
        return Refused::NotSignedIn.answer();
    }
    let cookie = format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict", door.session);
    let headers = [
        (header::SET_COOKIE, cookie),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (headers, Html(ON)).into_response()
}

const ON: &str =
    "<!doctype html><meta http-equiv=\"refresh\" content=\"0;url=/\"><title>MLflow</title>";

async fn index(State(proxy): State<Proxy>) -> Response {
    proxy.inner.pages.file("index.html").await
}

async fn file(State(proxy): State<Proxy>, Path(path): Path<String>) -> Response {
    proxy.inner.pages.file(&path).await
}

/// Asks the daemon with the user's token.
async fn forward(State(proxy): State<Proxy>, request: Request) -> Response {
    let inner = &proxy.inner;
    // What a URL's `..` leads to is another path of the daemon.
    let plain = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy();
    if plain.split(['/', '\\']).any(|part| matches!(part, "." | "..")) {
        return Refused::Foreign.answer();
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let url = format!("{}{path}", inner.server);
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST).await else {
        let message = format!("the page sent more than {LARGEST} bytes, or less than it said");
        let body = json!({ "error_code": "INVALID_PARAMETER_VALUE", "message": message });
        return (StatusCode::PAYLOAD_TOO_LARGE, axum::Json(body)).into_response();
    };
    let token = inner.token.read().await.clone();
    let mut answer = inner.ask(&parts, &url, &body, &token).await;
    if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED) {
        let other = inner.renewed(&token).await;
        if other != token {
            answer = inner.ask(&parts, &url, &body, &other).await;
        }
    }
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let message = format!("lost the daemon: {error}");
            let body = json!({ "error_code": "TEMPORARILY_UNAVAILABLE", "message": message });
            return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response();
        }
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    for name in ANSWERED {
        if let Some(value) = answer.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    // A page that a job has written must not act with what these pages may do.
    let guards = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in guards {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    *response.body_mut() = Body::from_stream(answer.bytes_stream());
    response
}

impl Inner {
    async fn ask(
        &self,
        parts: &Parts,
        url: &str,
        body: &Bytes,
        token: &Token,
    ) -> Result<reqwest::Response, String> {
        let http = if body.is_empty() { &self.http } else { &self.patient };
        let mut asked = http.request(parts.method.clone(), url).bearer_auth(token.secret());
        for name in ASKED.iter().chain([&HeaderName::from_static("x-mlflow-workspace")]) {
            if let Some(value) = parts.headers.get(name) {
                asked = asked.header(name, value);
            }
        }
        if !body.is_empty() {
            asked = asked.body(body.clone());
        }
        let within = within(body.len() as u64);
        match tokio::time::timeout(within, asked.send()).await {
            Ok(answer) => answer.map_err(|error| innermost(&error)),
            Err(_) => Err(format!("it did not answer within {} s", within.as_secs())),
        }
    }

    /// Another token than the used one, if there is any: of whoever has signed in, one is good for an hour or so.
    async fn renewed(&self, used: &Token) -> Token {
        let mut token = self.token.write().await;
        if *token == *used {
            // Signing in once more takes a runtime of its own: its future stays on the thread that began it.
            let context = self.context.clone();
            let again = tokio::task::spawn_blocking(move || {
                block_on(async { Ok(context.client().await?.target().token.clone()) })
            });
            match again.await {
                Ok(Ok(other)) => *token = other,
                Ok(Err(error)) => {
                    self.context.output.warn(&format!("cannot renew the token: {}", error.cause));
                }
                // The command is ending.
                Err(_) => {}
            }
        }
        token.clone()
    }
}
