//! Servers that answer what real ones would answer at a size that no test could fill them to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// What a server of HTTP answers to a request's first line: the status, further header lines, and the body.
type Answer = dyn Fn(&str) -> (u16, String, String) + Send + Sync;

/// A server of HTTP that makes up what it has. Dropping it ends it.
pub(crate) struct Answering {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
}

impl Answering {
    pub(crate) fn with(
        answer: impl Fn(&str) -> (u16, String, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, closed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, over, answer): (_, _, Arc<Answer>) =
            (asked.clone(), closed.clone(), Arc::new(answer));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (counted, answer) = (counted.clone(), answer.clone());
                thread::spawn(move || drop(serve(client, &counted, &*answer)));
            }
        });
        Self { address, asked, closed }
    }

    /// A bucket (of S3) with so many objects, `many/0000000` and so on.
    pub(crate) fn bucket(objects: usize) -> Self {
        Self::with(move |line| match line.contains("list-type=2") {
            true => (200, String::new(), page(line, objects)),
            false => (404, String::new(), String::new()),
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(client: TcpStream, asked: &AtomicUsize, answer: &Answer) -> std::io::Result<()> {
    let mut requests = BufReader::new(client.try_clone()?);
    let mut client = client;
    loop {
        let (mut first, mut line) = (String::new(), String::new());
        while line != "\r\n" {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if first.is_empty() {
                first.clone_from(&line);
            }
        }
        asked.fetch_add(1, Ordering::SeqCst);
        let (status, headers, body) = answer(first.trim_end());
        let length = body.len();
        let body = if first.starts_with("HEAD") { "" } else { &body };
        write!(client, "HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}")?;
    }
}

/// A parameter of a request's query, decoded as far as its names need it.
fn parameter(line: &str, name: &str) -> Option<String> {
    let query = line.split(' ').nth(1)?.split_once('?')?.1;
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.replace("%2F", "/").replace("%2f", "/"))
}

/// The page that a listing of `objects` asks for.
fn page(line: &str, objects: usize) -> String {
    let after = parameter(line, "continuation-token").or_else(|| parameter(line, "start-after"));
    let number = |key: &str| key.strip_prefix("many/")?.parse::<usize>().ok();
    let first = after.as_deref().and_then(number).map_or(0, |last| last + 1);
    let is_over = after.is_some_and(|after| number(&after).is_none() && *after > *"many/");
    let end = if is_over { first } else { objects.min(first + 1000) };
    let mut text = String::from("<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name>");
    for number in first..end {
        text.push_str(&format!(
            "<Contents><Key>many/{number:07}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>\"{number}\"</ETag><Size>10000000</Size></Contents>"
        ));
    }
    let more = !is_over && end < objects;
    text.push_str(&format!("<IsTruncated>{more}</IsTruncated>"));
    if more {
        text.push_str(&format!(
            "<NextContinuationToken>many/{:07}</NextContinuationToken>",
            end - 1
        ));
    }
    text + "</ListBucketResult>"
}
