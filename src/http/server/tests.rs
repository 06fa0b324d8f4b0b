#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Limits, PREFACE, serve_within};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(3600);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A port that is served until the sender is gone.
async fn port(limits: Limits) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    let routes = Router::new().route("/", get(|| async { "here" }));
    tokio::spawn(serve_within(limits, listener, None, routes, stopping));
    (address, stop)
}

/// Whether the other side ends the connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    // A reset is an end too.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.is_ok()
}

async fn is_answered(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 15];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap();
    read.is_ok() && answer == *b"HTTP/1.1 200 OK"
}

#[tokio::test]
async fn who_says_nothing_or_not_which_version_is_not_waited_for() {
    let limits = Limits { connections: 10, silence: Duration::from_millis(50) };
    let (address, _stop) = port(limits).await;
    for said in [&b""[..], b"P", &PREFACE[..23]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();
        assert!(is_closed(&mut stream).await, "{said:?}");
    }
}

#[tokio::test]
async fn what_was_read_to_know_the_version_is_not_lost() {
    let (address, _stop) = port(Limits { connections: 10, silence: LONG }).await;
    for at in [1, 3, 24, REQUEST.len()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (first, rest) = REQUEST.split_at(at);
        stream.write_all(first).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(rest).await.unwrap();
        assert!(is_answered(&mut stream).await, "{at}");
    }
    // The second version, of which the beginning comes in two pieces.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&PREFACE[..10]).await.unwrap();
    tokio::task::yield_now().await;
    stream.write_all(&PREFACE[10..]).await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut head = [0; 9];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(head[3], 4, "settings come first: {head:?}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_those_that_are_there_stay() {
    let (address, _stop) = port(Limits { connections: 1, silence: LONG }).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(REQUEST).await.unwrap();
    assert!(is_answered(&mut first).await);
    let mut second = TcpStream::connect(address).await.unwrap();
    assert!(is_closed(&mut second).await);
    first.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(8).any(|window| window == b"HTTP/1.1") {
        let read = tokio::time::timeout(PATIENCE, first.read_buf(&mut answer)).await.unwrap();
        assert_ne!(read.unwrap(), 0, "it was closed");
    }
    drop(first);
    // Its place is free once the daemon has seen that it is gone.
    let again = async {
        loop {
            let mut third = TcpStream::connect(address).await.unwrap();
            let asked = third.write_all(REQUEST).await;
            if asked.is_ok() && is_answered(&mut third).await {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
}
