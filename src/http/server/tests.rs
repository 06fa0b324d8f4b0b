#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{LIMITS, Limits, PREFACE, serve_within};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(3600);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A port that is served until the sender is gone.
async fn port(limits: Limits) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    let large = || async { vec![b'x'; 64 << 20] };
    let routes = Router::new().route("/", get(|| async { "here" })).route("/large", get(large));
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
    let limits = Limits { connections: 10, silence: Duration::from_millis(50), ..LIMITS };
    let (address, _stop) = port(limits).await;
    for said in [&b""[..], b"P", &PREFACE[..23]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();
        assert!(is_closed(&mut stream).await, "{said:?}");
    }
}

#[tokio::test]
async fn what_was_read_to_know_the_version_is_not_lost() {
    let (address, _stop) = port(Limits { connections: 10, silence: LONG, ..LIMITS }).await;
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
    let (address, _stop) = port(Limits { connections: 1, silence: LONG, ..LIMITS }).await;
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

/// Frames of the second version, as RFC 9113 has them.
mod frames {
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const CONTINUATION: u8 = 9;
    /// That it is over, and that no more headers follow.
    pub(super) const END: u8 = 1 | 4;

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// `GET /` of localhost: three fields of the static table, and one written out.
    pub(super) fn get(stream: u32, flags: u8) -> Vec<u8> {
        frame(1, flags, stream, b"\x82\x84\x86\x41\x09localhost")
    }

    /// What a connection begins with.
    pub(super) fn beginning() -> Vec<u8> {
        [super::PREFACE.as_slice(), &frame(SETTINGS, 0, 0, &[])].concat()
    }
}

/// Sends this again and again while others ask; whether the connection was ended before all was sent.
async fn floods(flood: impl Fn(u32) -> Vec<u8> + Send + 'static, times: u32) -> bool {
    let (address, _stop) = port(Limits { silence: LONG, ..LIMITS }).await;
    let mut attacker = TcpStream::connect(address).await.unwrap();
    attacker.write_all(&frames::beginning()).await.unwrap();
    let (mut answers, mut way) = attacker.into_split();
    // What it is told is read, as by a client that means well.
    let told = tokio::spawn(async move {
        let mut told = Vec::new();
        let _ = answers.read_to_end(&mut told).await;
        told
    });
    let flooding = tokio::spawn(async move {
        for n in 0..times {
            if way.write_all(&flood(n)).await.is_err() {
                return true;
            }
        }
        let _ = way.shutdown().await;
        false
    });
    for _ in 0..20 {
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(REQUEST).await.unwrap();
        assert!(is_answered(&mut other).await, "others are served meanwhile");
    }
    let cut = tokio::time::timeout(PATIENCE, flooding).await.unwrap().unwrap();
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    // A GOAWAY whose reason is not that all is well.
    let ended = told
        .windows(17)
        .any(|at| at[..5] == [0, 0, at[2], 7, 0] && at[5..9] == [0; 4] && at[13..17] != [0; 4]);
    cut || ended
}

#[tokio::test(flavor = "multi_thread")]
async fn row_29_floods_are_cut_off_or_harm_nobody_else() {
    use frames::{CONTINUATION, END, PING, RST_STREAM, SETTINGS, frame, get};
    // Rapid reset: begun and given up at once (CVE-2023-44487).
    let reset = |n: u32| {
        let stream = 2 * n + 1;
        [get(stream, END), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    assert!(floods(reset, 200_000).await, "rapid resets");
    // Headers without an end (RUSTSEC-2024-0332).
    let endless = |n: u32| match n {
        0 => get(1, 1),
        _ => frame(CONTINUATION, 0, 1, &[0x88; 1000]),
    };
    assert!(floods(endless, 20_000).await, "headers without an end");
    // What is only answered costs no more than the answer.
    floods(|_| frame(PING, 0, 0, &[7; 8]), 50_000).await;
    floods(|_| frame(SETTINGS, 0, 0, &[]), 50_000).await;
}

#[tokio::test]
async fn headers_without_bounds_are_refused() {
    let (address, _stop) = port(Limits { silence: LONG, ..LIMITS }).await;
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(200));
    for request in [long, many] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may be refused before all of it was sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap();
        assert!(read.is_err() || &answer == b"HTTP/1.1 431", "{answer:?}");
    }
}

#[tokio::test]
async fn who_does_not_read_is_let_go() {
    let limits = Limits { silence: LONG, stall: Duration::from_millis(200), ..LIMITS };
    let (address, _stop) = port(limits).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 1000];
    stream.read_exact(&mut first).await.unwrap();
    // It is gone when it can no longer be written to.
    let gone = async {
        while stream.write_all(REQUEST).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the daemon waits on");
}
