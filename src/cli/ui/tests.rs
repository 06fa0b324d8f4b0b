//! Who gets in, and what goes through, with a real daemon behind.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use reqwest::{Method, StatusCode, header};
use tokio::net::TcpListener;

use super::pages::Pages;
use super::proxy::{Door, Proxy};
use crate::cli::testing::RealDaemon;
use crate::cli::{Context, Kind, Output};
use crate::client::{Client, Wanted};

/// Served pages, and a browser that does as it is told.
struct Served {
    daemon: Option<RealDaemon>,
    folder: tempfile::TempDir,
    http: reqwest::Client,
    port: u16,
    host: String,
    code: String,
    cookie: String,
}

impl Served {
    async fn start() -> Self {
        let daemon = RealDaemon::start().await;
        let (client, wanted) = (daemon.client().await, daemon.wanted());
        let http = client.http().unwrap();
        Self { daemon: Some(daemon), ..Self::before(&client, wanted, http).await }
    }

    /// Before a daemon that is asked over this.
    async fn before(client: &Client, wanted: Wanted, asked: reqwest::Client) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("build");
        fs::create_dir_all(pages.join("static/js")).unwrap();
        fs::write(pages.join("index.html"), "<html>the pages</html>").unwrap();
        fs::write(pages.join("static/js/main.0.js"), "start()").unwrap();
        fs::write(folder.path().join("secret"), "s").unwrap();
        symlink("../secret", pages.join("out")).unwrap();
        let pages = Pages::find(Some(pages)).unwrap();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let door = Door::new(port).unwrap();
        let address = door.address();
        let (host, code) = address
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once("/sign-in?code="))
            .unwrap();
        let (host, code) = (host.to_owned(), code.to_owned());
        let context = Context { output: Output::standard(None, None, true), wanted };
        let proxy = Proxy::with(Arc::new(door), pages, context, client, asked).unwrap();
        tokio::spawn(async move { axum::serve(listener, proxy.router()).await });
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { daemon: None, folder, http, port, host, code, cookie: String::new() }
    }

    fn ask(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("http://127.0.0.1:{}{path}", self.port));
        let request = request.header(header::HOST, &self.host);
        if self.cookie.is_empty() { request } else { request.header(header::COOKIE, &self.cookie) }
    }

    async fn status(&self, path: &str) -> StatusCode {
        self.ask(Method::GET, path).send().await.unwrap().status()
    }

    async fn sign_in(&mut self) {
        let path = format!("/sign-in?code={}", self.code);
        let answer = self.ask(Method::GET, &path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        self.cookie = format!("other=1; {}", cookie.split(';').next().unwrap());
    }
}

const EXPERIMENTS: &str = "/ajax-api/2.0/mlflow/experiments/search?max_results=5";

#[tokio::test(flavor = "multi_thread")]
async fn only_the_browser_with_the_code_gets_in() {
    let mut served = Served::start().await;
    for path in
        ["/", "/static-files/static/js/main.0.js", EXPERIMENTS, "/sign-in?code=0", "/version"]
    {
        assert_eq!(served.status(path).await, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(served.status("/sign-in").await, StatusCode::BAD_REQUEST);
    served.sign_in().await;
    // The code is used up, but for the browser that has the cookie.
    let again = format!("/sign-in?code={}", served.code);
    assert_eq!(served.status(&again).await, StatusCode::OK);
    let mut other = std::mem::take(&mut served.cookie);
    assert_eq!(served.status(&again).await, StatusCode::UNAUTHORIZED);
    std::mem::swap(&mut other, &mut served.cookie);

    let index = served.ask(Method::GET, "/").send().await.unwrap().text().await.unwrap();
    assert_eq!(index, "<html>the pages</html>");
    served.cookie = "atelier_ui=0".to_owned();
    assert_eq!(served.status("/").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pages_ask_for_goes_to_the_daemon_and_nothing_else_does() {
    let mut served = Served::start().await;
    served.sign_in().await;
    let answer = served.ask(Method::GET, EXPERIMENTS).send().await.unwrap();
    assert_eq!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert!(
        answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("sandbox")
    );
    let found = answer.text().await.unwrap();
    assert!(found.contains("\"Default\""), "{found}");

    let create = served.ask(Method::POST, "/ajax-api/2.0/mlflow/experiments/create");
    let create = create.header(header::CONTENT_TYPE, "application/json");
    let made = create.body(r#"{"name": "of a page"}"#).send().await.unwrap();
    assert_eq!(made.status(), StatusCode::OK, "{:?}", made.text().await);
    let refused =
        served.ask(Method::GET, "/ajax-api/2.0/mlflow/runs/get?run_id=0").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    assert!(refused.text().await.unwrap().contains("RESOURCE_DOES_NOT_EXIST"));

    for path in ["/api/2.0/mlflow/experiments/search", "/data/v1/workspaceblobstore/", "/healthz"] {
        assert_eq!(served.status(path).await, StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["/ajax-api/2.0/..%2f..%2fhealthz", "/ajax-api/..%5c..%5chealthz"] {
        assert_eq!(served.status(path).await, StatusCode::FORBIDDEN, "{path}");
    }
    served.daemon.take().unwrap().stop().await;
    let lost = served.ask(Method::GET, EXPERIMENTS).send().await.unwrap();
    assert_eq!(lost.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_page_cannot_ask() {
    let mut served = Served::start().await;
    served.sign_in().await;
    let attempts = [
        ("host", "127.0.0.1"),
        ("host", "evil.example"),
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ];
    for (name, value) in attempts {
        let mut request = served.ask(Method::GET, EXPERIMENTS).build().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        let answer = served.http.execute(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{name}: {value}");
    }
    let own =
        served.ask(Method::GET, EXPERIMENTS).header("origin", format!("http://{}", served.host));
    let own = own.header("sec-fetch-site", "same-origin").send().await.unwrap();
    assert_eq!(own.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_pages_are_served_and_none_beside_them() {
    let mut served = Served::start().await;
    served.sign_in().await;
    let script = served.ask(Method::GET, "/static-files/static/js/main.0.js").send().await.unwrap();
    assert_eq!(script.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert!(script.headers()[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));
    assert_eq!(script.text().await.unwrap(), "start()");
    for path in [
        "out",
        "..%2fsecret",
        "static/..%2f..%2fsecret",
        "%2fetc%2fpasswd",
        "nothing",
        "static",
        "a%00b",
    ] {
        let path = format!("/static-files/{path}");
        assert_eq!(served.status(&path).await, StatusCode::NOT_FOUND, "{path}");
    }
    assert!(served.folder.path().join("secret").exists());
}

#[test]
fn a_folder_without_pages_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let error = Pages::find(Some(folder.path().to_owned())).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.cause.contains("index.html is missing"), "{}", error.cause);
    assert!(error.help.unwrap().contains("pip install mlflow"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_pages_may_take_longer_than_the_daemon_may_be_silent() {
    const SILENCE: Duration = Duration::from_millis(200);
    let slow = |body: Bytes| async move {
        tokio::time::sleep(4 * SILENCE).await;
        body.len().to_string()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Some(format!("http://{}", listener.local_addr().unwrap()));
    let routes = Router::new().fallback(slow).layer(DefaultBodyLimit::disable());
    tokio::spawn(axum::serve(listener, routes).into_future());
    let wanted = Wanted { server, token: Some("right".to_owned()), ..Wanted::default() };
    let client = Client::connect(wanted.resolve().unwrap()).await.unwrap();
    let http = reqwest::Client::builder().no_proxy().read_timeout(SILENCE).build().unwrap();
    let mut served = Served::before(&client, wanted, http).await;
    served.sign_in().await;
    let path = "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=r&path=table.json";
    assert_eq!(served.status(path).await, StatusCode::SERVICE_UNAVAILABLE);
    let sent = served.ask(Method::POST, path).body(vec![7; 10_000_000]).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::OK);
    assert_eq!(sent.text().await.unwrap(), "10000000");
}
