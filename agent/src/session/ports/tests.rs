#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

use super::{answers, jobs_url};
use crate::session::chain;
use crate::trust::Trust;

const HERE: Trust = Trust::System;

async fn served(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

#[tokio::test]
async fn the_daemon_names_its_port_for_jobs() {
    let named = || async { ([(atelier_proto::JOBS_URL, "http://127.0.0.1:7421")], "ok") };
    let url = served(Router::new().route("/healthz", get(named))).await;
    assert_eq!(jobs_url(&url, &HERE).await, "http://127.0.0.1:7421");
    answers(&url, &HERE).await.unwrap();
    // One of an earlier version does not.
    let url = served(Router::new().route("/healthz", get(|| async { "ok" }))).await;
    assert_eq!(jobs_url(&url, &HERE).await, "");
    answers(&url, &HERE).await.unwrap();
}

#[tokio::test]
async fn a_port_for_jobs_that_does_not_answer_is_told_with_its_remedy() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(jobs_url(&format!("http://{free}"), &HERE).await, "");
    let said = chain(&answers(&format!("http://{free}"), &HERE).await.unwrap_err());
    assert!(said.contains(&format!("port for jobs at http://{free}")), "{said}");
    assert!(said.contains(&format!("ssh -L {0}:127.0.0.1:{0}", free.port())), "{said}");
    // Something else is there.
    let other = served(Router::new().fallback(|| async { StatusCode::NOT_FOUND })).await;
    assert!(chain(&answers(&other, &HERE).await.unwrap_err()).contains("404"));
}
