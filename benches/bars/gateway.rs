//! How fast the data gateway hands out a file, beside a bare server of hyper that sends the same one.

use std::convert::Infallible;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use axum::body::Body;
use futures::StreamExt as _;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio_util::io::ReaderStream;

use crate::cluster::{Cluster, runtime, wait};
use crate::figures;

const SIZE: u64 = 1 << 30;
const ROUNDS: usize = 9;
/// How much the bare server reads at once: with less it is slower here.
const READ: usize = 256 << 10;
/// The word that makes this program the bare server.
pub(crate) const FLOOR: &str = "floor-of-the-gateway";

/// One file of a gibibyte in the page cache, over one connection and over four.
pub(crate) fn gateway() {
    let cluster = Cluster::start(None);
    let file = cluster.data().join("storage/workspacefilestore/large");
    let block = vec![7; 1 << 20];
    let mut out = fs::File::create(&file).unwrap();
    (0..SIZE >> 20).for_each(|_| out.write_all(&block).unwrap());
    let floor = Floor::start(&file);
    let gateway = format!("{}/data/v1/workspacefilestore/large", cluster.url);
    let client = reqwest::Client::builder().no_proxy().tls_certs_only(std::iter::empty()).build();
    let client = client.unwrap();
    let runtime = runtime();
    let before = peak(cluster.daemon.id());
    for connections in [1, 4] {
        let rate = |url: &str| {
            let begin = Instant::now();
            runtime.block_on(async {
                let reads = (0..connections).map(|_| read(&client, url, &cluster.token));
                futures::future::join_all(reads).await;
            });
            (SIZE * connections) as f64 / begin.elapsed().as_secs_f64() / f64::from(1 << 20)
        };
        // Both once, so that neither is the first to read the file.
        for url in [&floor.url, &gateway] {
            rate(url);
        }
        let (mut bare, mut ours, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (floor, gateway) = (rate(&floor.url), rate(&gateway));
            bare.push(floor);
            ours.push(gateway);
            shares.push(gateway / floor);
        }
        println!("gateway, {connections} at once:");
        figures::rate("  bare hyper, MiB", bare);
        figures::rate("  gateway, MiB", ours);
        figures::share("  gateway of bare hyper", shares);
    }
    let after = peak(cluster.daemon.id());
    println!("most memory of the daemon: {before} before, {after} after");
}

/// The most memory that a process has had.
fn peak(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().to_owned()
}

async fn read(client: &reqwest::Client, url: &str, token: &str) {
    let answer = client.get(url).bearer_auth(token).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let mut bytes = answer.bytes_stream();
    let mut length = 0;
    while let Some(piece) = bytes.next().await {
        length += piece.unwrap().len() as u64;
    }
    assert_eq!(length, SIZE);
}

/// The bare server as a process of its own.
struct Floor {
    process: Child,
    url: String,
}

impl Floor {
    fn start(file: &Path) -> Self {
        let said = file.with_extension("address");
        let process = Command::new(std::env::current_exe().unwrap())
            .args([FLOOR.as_ref(), file.as_os_str(), said.as_os_str()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait("the bare server listens", || said.exists());
        let url = format!("http://{}/", fs::read_to_string(&said).unwrap());
        Self { process, url }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves a file to whoever asks, until it is killed. The address is written to a file.
pub(crate) fn serve(file: PathBuf, said: &Path) {
    // As many threads as the daemon has.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let new = said.with_extension("new");
        fs::write(&new, listener.local_addr().unwrap().to_string()).unwrap();
        fs::rename(&new, said).unwrap();
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let file = file.clone();
            tokio::spawn(async move {
                let answer =
                    hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                        let file = file.clone();
                        async move {
                            let file = tokio::fs::File::open(&file).await.unwrap();
                            let bytes = ReaderStream::with_capacity(file, READ);
                            let mut answer = Response::new(Body::from_stream(bytes));
                            answer.headers_mut().insert(http::header::CONTENT_LENGTH, SIZE.into());
                            Ok::<_, Infallible>(answer)
                        }
                    });
                let io = TokioIo::new(connection);
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(io, answer).await;
            });
        }
    });
}
