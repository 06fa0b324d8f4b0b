//! What takes longer than a daemon may be silent.

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;

use super::super::Token;
use super::*;

/// How long nothing may come of an object that is read.
const SILENCE: Duration = Duration::from_millis(50);

/// A daemon's data.
async fn data(routes: Router) -> Data {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, routes).into_future());
    let token = Token::new("right");
    let target = Target { server, token, local: false, trust: Default::default() };
    Data::with(&target, SILENCE).unwrap()
}

/// Takes what is sent, and answers, long after it may be silent.
async fn slow(request: Request) -> Response {
    tokio::time::sleep(4 * SILENCE).await;
    let (head, body) = request.into_parts();
    to_bytes(body, usize::MAX).await.unwrap();
    match head.method {
        Method::GET => axum::Json(json!({ "objects": [], "next": null })).into_response(),
        Method::DELETE => StatusCode::NO_CONTENT.into_response(),
        _ => StatusCode::CREATED.into_response(),
    }
}

#[tokio::test]
async fn what_is_answered_when_all_of_it_is_done_may_take_long() {
    let data = data(Router::new().fallback(slow)).await;
    // What is read comes piece by piece.
    let silent = data.read("store", "object", 0, None).await.unwrap_err();
    assert_eq!(silent, Error::Lost("operation timed out".to_owned()));
    let large = vec![7; 1 << 20];
    data.write("store", "object", large.len() as u64, large.into()).await.unwrap();
    for recursive in [false, true] {
        assert!(data.delete("store", "object", recursive).await.unwrap().is_empty());
    }
    let page = data.page("store", "folder", None, Depth::Level).await.unwrap();
    assert_eq!(page, Page::default());
}
