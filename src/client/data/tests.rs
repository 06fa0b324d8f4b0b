//! What takes longer than a daemon may be silent, and what it says of what it has stored.

use std::io;

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

async fn write(data: &Data, bytes: Vec<u8>) -> Stored {
    let length = bytes.len() as u64;
    let bytes = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(bytes))]);
    data.write("store", "object", length, bytes).await.unwrap()
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
    assert_eq!(write(&data, vec![7; 1 << 20]).await, Stored::AsSent);
    for recursive in [false, true] {
        assert!(data.delete("store", "object", recursive).await.unwrap().is_empty());
    }
    let page = data.page("store", "folder", None, Depth::Level).await.unwrap();
    assert_eq!(page, Page::default());
}

#[tokio::test]
async fn what_is_stored_is_what_was_sent() {
    let told = async |told: fn(&[u8]) -> String| {
        let store =
            move |body: Bytes| async move { (StatusCode::CREATED, [(STORED, told(&body))]) };
        let data = data(Router::new().fallback(store)).await;
        write(&data, b"mine".to_vec()).await
    };
    assert_eq!(told(|body| Digest::of(body).to_string()).await, Stored::AsSent);
    assert_eq!(told(|_| Digest::of(b"mime").to_string()).await, Stored::Otherwise);
    // Of a daemon of another release, nothing that can be compared.
    assert_eq!(told(|_| "new".to_owned()).await, Stored::AsSent);
}
