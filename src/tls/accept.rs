//! From a connection to one that is encrypted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Hosts, Peer, Secure};

/// How long a client may take for its handshake, with the wait for its turn.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long one that speaks no TLS is given to read what it is told.
const FAREWELL: Duration = Duration::from_secs(1);
/// Begins each of its records (RFC 8446, 5.1).
const IS_HANDSHAKE: u8 = 22;
const TOLD: &str = "this port speaks TLS: use https:// instead of http://";

/// What is known of an encrypted connection, for all requests on it.
#[derive(Clone, Debug)]
pub(crate) struct Shaken {
    /// The hosts that they may name.
    pub(crate) hosts: Arc<Hosts>,
    /// The node that has shown its certificate.
    pub(crate) peer: Option<Arc<Peer>>,
}

impl Secure {
    /// Makes a connection an encrypted one. One that does not become one is closed; who speaks plain HTTP is told why.
    pub(crate) async fn accept(
        &self,
        mut stream: TcpStream,
    ) -> Option<(TlsStream<TcpStream>, Shaken)> {
        let configs = self.configs();
        let shaken = async {
            let mut first = [0; 3];
            let seen = stream.peek(&mut first).await.ok()?;
            match first.get(..seen)? {
                [] => return None,
                [IS_HANDSHAKE, ..] => {}
                other => {
                    let _ = refuse(&mut stream, other == b"PRI").await;
                    return None;
                }
            }
            let config = if is_here(&stream) { &configs.here } else { &configs.elsewhere };
            let failed = |error: &io::Error| tracing::debug!(%error, "a TLS handshake failed");
            // Who begins and does not go on takes nobody's turn.
            let greeted = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
            let greeted = greeted.inspect_err(failed).ok()?;
            // Closed only when the daemon is gone.
            let _turn = self.handshakes.acquire().await.ok()?;
            greeted.into_stream(config.clone()).await.inspect_err(failed).ok()
        };
        let stream = tokio::time::timeout(HANDSHAKE, shaken).await.ok().flatten()?;
        let shown = stream.get_ref().1.peer_certificates();
        let peer = shown.and_then(|shown| Peer::of(shown.first()?, configs.issuer_of(shown)?));
        let peer = peer.map(Arc::new);
        Some((stream, Shaken { hosts: self.hosts(), peer }))
    }
}

/// Whether who connects is on this machine.
fn is_here(stream: &TcpStream) -> bool {
    let (Ok(peer), Ok(own)) = (stream.peer_addr(), stream.local_addr()) else { return false };
    let plain = |at: SocketAddr| at.ip().to_canonical();
    plain(peer) == plain(own) || plain(peer).is_loopback() && plain(own).is_loopback()
}

/// Tells a client of plain HTTP what is wrong, in its version's words.
async fn refuse(stream: &mut TcpStream, is_second: bool) -> io::Result<()> {
    if is_second {
        stream.write_all(&goaway()).await?;
    } else {
        let length = TOLD.len() + 1;
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{TOLD}\n"
        );
        stream.write_all(answer.as_bytes()).await?;
    }
    stream.shutdown().await?;
    // What it has sent is read, or the system takes the answer back from it.
    let (mut rest, mut sink) = (stream.take(64 << 10), tokio::io::sink());
    let read = tokio::io::copy(&mut rest, &mut sink);
    let _ = tokio::time::timeout(FAREWELL, read).await;
    Ok(())
}

/// Settings, which come first, and the end of the connection with its reason (RFC 9113, 6.5 and 6.8).
fn goaway() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: u8 = 7;
    // Clients of gRPC take the code for bad security for a refusal of what they may.
    const PROTOCOL_ERROR: u32 = 1;
    let length = 8 + TOLD.len();
    let mut frames = SETTINGS.to_vec();
    frames.extend([0, (length >> 8) as u8, length as u8, GOAWAY, 0]);
    // The connection's own stream, and none that was looked at.
    frames.extend([0; 8]);
    frames.extend(PROTOCOL_ERROR.to_be_bytes());
    frames.extend(TOLD.as_bytes());
    frames
}
