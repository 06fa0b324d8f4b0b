//! A server of Azure Files as the documents of its REST API say it is, with one account and the share `made`: no
//! program for that is at hand. Of what is not used here it has nothing.
//!
//! Source: <https://learn.microsoft.com/rest/api/storageservices/file-service-rest-api>.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use tokio::sync::oneshot;

/// The account.
pub(crate) const ACCOUNT: &str = "teststore";
/// The longest range that is written at once.
const MAX_RANGE: usize = 4 << 20;
/// What is told of a folder with one answer, whatever is asked for.
const PAGE: usize = 4;

/// A file, or a folder.
#[derive(Clone)]
enum Node {
    Folder,
    File { bytes: Vec<u8>, version: u64, id: u64, modified: String, copy: Option<u32> },
}

/// What an account's share holds, by paths, and what was asked.
#[derive(Default)]
pub(crate) struct Share {
    key: String,
    nodes: BTreeMap<String, Node>,
    count: u64,
    /// `METHOD PATH?QUERY`, each.
    pub(crate) asked: Vec<String>,
    /// Times that a path's answer is 503.
    pub(crate) busy: u32,
    /// Times that what a file holds breaks off in its middle.
    pub(crate) cut: u32,
}

/// A refusal: its status and its code.
type Refusal = (u16, &'static str);
type Answer = Result<Response<Body>, Refusal>;

/// A server. Dropping it ends it.
pub(crate) struct Server {
    address: String,
    pub(crate) share: Arc<Mutex<Share>>,
    _end: oneshot::Sender<()>,
}

impl Server {
    /// One for whom the account's key is this.
    pub(crate) fn start(key: &str) -> Self {
        let share = Arc::new(Mutex::new(Share { key: key.to_owned(), ..Share::default() }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("http://{}/{ACCOUNT}", listener.local_addr().unwrap());
        let (end, ended) = oneshot::channel::<()>();
        let held = share.clone();
        std::thread::spawn(move || {
            let app = axum::Router::new().fallback(move |request| answer(held.clone(), request));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    _ = axum::serve(listener, app) => {}
                    _ = ended => {}
                }
            });
        });
        Self { address, share, _end: end }
    }

    /// The account's address for files.
    pub(crate) fn url(&self) -> &str {
        &self.address
    }

    /// What a file holds.
    pub(crate) fn read(&self, path: &str) -> Option<Vec<u8>> {
        match self.share.lock().unwrap().nodes.get(path) {
            Some(Node::File { bytes, .. }) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Puts a file there, with its folders.
    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let mut share = self.share.lock().unwrap();
        for (end, _) in path.match_indices('/') {
            share.nodes.insert(path[..end].to_owned(), Node::Folder);
        }
        let file = share.file(bytes.to_vec());
        share.nodes.insert(path.to_owned(), file);
    }

    /// As if nobody had written to a file for a month.
    #[allow(dead_code, reason = "not every crate of tests has use for it")]
    pub(crate) fn age(&self, path: &str) {
        if let Some(Node::File { modified, .. }) = self.share.lock().unwrap().nodes.get_mut(path) {
            *modified = "Sat, 01 Nov 2025 10:00:00 GMT".to_owned();
        }
    }

    /// All paths of files.
    pub(crate) fn files(&self) -> Vec<String> {
        let share = self.share.lock().unwrap();
        let files = share.nodes.iter().filter(|(_, node)| matches!(node, Node::File { .. }));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// A signature that allows everything until a year of this century.
    #[allow(dead_code, reason = "not every crate of tests has use for it")]
    pub(crate) fn sas(key: &str, until: u32) -> String {
        let end = format!("{until}-01-01T00:00:00Z");
        let signed = sas_signature(key, "rwdlc", &end);
        let signature = signed.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let end = end.replace(':', "%3A");
        format!("sv=2022-11-02&ss=f&srt=sco&sp=rwdlc&se={end}&spr=https,http&sig={signature}")
    }
}

fn sign(key: &str, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
    STANDARD.encode(hmac::sign(&key, text.as_bytes()))
}

fn sas_signature(key: &str, rights: &str, end: &str) -> String {
    sign(key, &format!("{ACCOUNT}\n{rights}\nf\nsco\n\n{end}\n\nhttps,http\n2022-11-02\n\n"))
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

fn pairs(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_lowercase(), decoded(value))).collect()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// Whether whoever asks is known.
fn check(key: &str, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let denied = Err((403, "AuthenticationFailed"));
    let query = pairs(uri.query().unwrap_or_default());
    if let Some(signature) = query.get("sig") {
        let is_over = query["se"].as_str() < "2026";
        let signed = sas_signature(key, &query["sp"], &query["se"]);
        return if *signature == signed && !is_over { Ok(()) } else { denied };
    }
    let who = header(headers, "authorization");
    if who.starts_with("Bearer ") {
        return match header(headers, "x-ms-file-request-intent") {
            "backup" => Ok(()),
            _ => Err((400, "MissingRequiredHeader")),
        };
    }
    let length = header(headers, "content-length");
    let mut text = format!(
        "{method}\n\n\n{}\n\n{}\n\n\n{}\n\n\n{}\n",
        if length == "0" { "" } else { length },
        header(headers, "content-type"),
        header(headers, "if-match"),
        header(headers, "range"),
    );
    let own: BTreeMap<&str, &str> = headers
        .keys()
        .map(|name| (name.as_str(), header(headers, name.as_str())))
        .filter(|(name, _)| name.starts_with("x-ms-"))
        .collect();
    own.iter().for_each(|(name, value)| text.push_str(&format!("{name}:{value}\n")));
    text.push_str(&format!("/{ACCOUNT}{}", uri.path()));
    query.iter().for_each(|(name, value)| text.push_str(&format!("\n{name}:{value}")));
    match who == format!("SharedKey {ACCOUNT}:{}", sign(key, &text)) {
        true => Ok(()),
        false if who.is_empty() => Err((401, "NoAuthenticationInformation")),
        false => denied,
    }
}

async fn answer(share: Arc<Mutex<Share>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 16 << 20).await.unwrap();
    let mut share = share.lock().unwrap();
    let done = share.answer(&head.method, &head.uri, &head.headers, body);
    done.unwrap_or_else(|(status, code)| {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>No: {code}.\nRequestId:1\
             </Message></Error>"
        );
        let text = if head.method == Method::HEAD { String::new() } else { text };
        let refused = Response::builder().status(status).header("x-ms-error-code", code);
        refused.body(Body::from(text)).unwrap()
    })
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn range(text: &str) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
}

fn said(status: u16, headers: &[(&str, String)], body: impl Into<Body>) -> Answer {
    let made = Response::builder().status(status);
    let made = headers.iter().fold(made, |made, (name, value)| made.header(*name, value));
    Ok(made.body(body.into()).unwrap())
}

impl Share {
    fn file(&mut self, bytes: Vec<u8>) -> Node {
        self.count += 1;
        let modified = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        Node::File { bytes, version: self.count, id: self.count, modified, copy: None }
    }

    fn answer(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Answer {
        self.asked.push(format!("{method} {uri}"));
        if self.busy > 0 {
            self.busy -= 1;
            return Err((503, "ServerBusy"));
        }
        check(&self.key, method, uri, headers)?;
        if header(headers, "x-ms-version") < "2022-11-02" {
            return Err((400, "UnsupportedHeader"));
        }
        let query = pairs(uri.query().unwrap_or_default());
        let path = decoded(uri.path());
        let rest = path.strip_prefix(&format!("/{ACCOUNT}/")).ok_or((400, "InvalidUri"))?;
        let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
        if name != "made" {
            return Err((404, "ShareNotFound"));
        }
        let asked = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        match (method.as_str(), asked("restype"), asked("comp")) {
            ("GET", "directory", "list") => {
                let most = asked("maxresults").parse().unwrap_or(PAGE);
                self.list(path, asked("marker"), most)
            }
            ("PUT", "directory", "") => self.make_folder(path),
            ("DELETE", "directory", "") => self.remove_folder(path),
            ("PUT", "", "") if headers.contains_key("x-ms-copy-source") => {
                let from = self.source(header(headers, "x-ms-copy-source"))?;
                let Some(Node::File { bytes, .. }) = self.nodes.get(&from) else {
                    return Err((404, "ResourceNotFound"));
                };
                let copied = bytes.clone();
                self.fits(path)?;
                let mut file = self.file(copied);
                if let Node::File { copy, .. } = &mut file {
                    *copy = Some(2);
                }
                self.nodes.insert(path.to_owned(), file);
                said(202, &[("x-ms-copy-status", "pending".to_owned())], "")
            }
            ("PUT", "", "") => self.create(path, headers),
            ("PUT", "", "range") => self.write(path, headers, &body),
            ("PUT", "", "properties") => self.resize(path, headers),
            ("PUT", "", "rename") => {
                let from = self.source(header(headers, "x-ms-file-rename-source"))?;
                self.rename(&from, path, headers)
            }
            ("DELETE", "", "") => {
                self.node(path)?;
                self.nodes.remove(path);
                said(202, &[], "")
            }
            ("GET" | "HEAD", "", "") => self.read(path, headers),
            _ => Err((400, "InvalidUri")),
        }
    }

    /// The path at an address, which has to be signed as the request is.
    fn source(&self, url: &str) -> Result<String, Refusal> {
        let plain = url.split('?').next().unwrap_or_default();
        let (_, path) = plain.split_once("/made/").ok_or((400, "InvalidHeaderValue"))?;
        Ok(decoded(path))
    }

    /// A file that is there.
    fn node(&mut self, path: &str) -> Result<&mut Node, Refusal> {
        let parent = parent(path).to_owned();
        if !parent.is_empty() && !matches!(self.nodes.get(&parent), Some(Node::Folder)) {
            return Err((404, "ParentNotFound"));
        }
        match self.nodes.get_mut(path) {
            Some(Node::Folder) => Err((409, "ResourceTypeMismatch")),
            Some(file) => Ok(file),
            None => Err((404, "ResourceNotFound")),
        }
    }

    /// Whether there may be a file.
    fn fits(&mut self, path: &str) -> Result<(), Refusal> {
        if path.contains(['"', ':', '<', '>', '|', '*', '?', '\\']) {
            return Err((400, "InvalidResourceName"));
        }
        match self.node(path) {
            Ok(_) | Err((404, "ResourceNotFound")) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    fn make_folder(&mut self, path: &str) -> Answer {
        match self.fits(path).map(|()| self.nodes.contains_key(path)) {
            Ok(false) => {}
            Ok(true) | Err((409, _)) => return Err((409, "ResourceAlreadyExists")),
            Err(refusal) => return Err(refusal),
        }
        self.nodes.insert(path.to_owned(), Node::Folder);
        said(201, &[], "")
    }

    fn remove_folder(&mut self, path: &str) -> Answer {
        if !matches!(self.nodes.get(path), Some(Node::Folder)) {
            return Err((404, "ResourceNotFound"));
        }
        if self.nodes.keys().any(|key| parent(key) == path) {
            return Err((409, "DirectoryNotEmpty"));
        }
        self.nodes.remove(path);
        said(202, &[], "")
    }

    fn create(&mut self, path: &str, headers: &HeaderMap) -> Answer {
        self.fits(path)?;
        let length = header(headers, "x-ms-content-length").parse();
        if header(headers, "x-ms-type") != "file" {
            return Err((400, "MissingRequiredHeader"));
        }
        let file = self.file(vec![0; length.map_err(|_| (400, "InvalidHeaderValue"))?]);
        self.nodes.insert(path.to_owned(), file);
        said(201, &[("x-ms-file-id", self.count.to_string())], "")
    }

    /// Changes a file's bytes, which is another version.
    fn change(&mut self, path: &str, change: impl FnOnce(&mut Vec<u8>) -> bool) -> Answer {
        self.count += 1;
        let count = self.count;
        let Node::File { bytes, version, .. } = self.node(path)? else {
            return Err((409, "ResourceTypeMismatch"));
        };
        if !change(bytes) {
            return Err((416, "InvalidRange"));
        }
        *version = count;
        said(201, &[], "")
    }

    fn write(&mut self, path: &str, headers: &HeaderMap, body: &Bytes) -> Answer {
        let range = range(header(headers, "x-ms-range")).ok_or((400, "InvalidHeaderValue"))?;
        if header(headers, "x-ms-write") != "update" || range.len() != body.len() {
            return Err((400, "InvalidHeaderValue"));
        }
        if body.len() > MAX_RANGE {
            return Err((413, "RequestBodyTooLarge"));
        }
        self.change(path, |bytes| {
            bytes.get_mut(range).map(|place| place.copy_from_slice(body)).is_some()
        })
    }

    fn resize(&mut self, path: &str, headers: &HeaderMap) -> Answer {
        let length = header(headers, "x-ms-content-length").parse();
        let length = length.map_err(|_| (400, "InvalidHeaderValue"))?;
        self.change(path, |bytes| {
            bytes.resize(length, 0);
            true
        })
    }

    fn rename(&mut self, from: &str, to: &str, headers: &HeaderMap) -> Answer {
        self.node(from)?;
        self.fits(to)?;
        let may_replace = header(headers, "x-ms-file-rename-replace-if-exists") == "true";
        if self.nodes.contains_key(to) && !may_replace {
            return Err((409, "ResourceAlreadyExists"));
        }
        let file = self.nodes.remove(from).ok_or((404, "ResourceNotFound"))?;
        self.nodes.insert(to.to_owned(), file);
        said(200, &[], "")
    }

    fn read(&mut self, path: &str, headers: &HeaderMap) -> Answer {
        let cuts = self.cut > 0 && headers.contains_key("x-ms-range");
        let Node::File { bytes, version, id, modified, copy } = self.node(path)? else {
            return Err((404, "ResourceNotFound"));
        };
        let mut told = vec![
            ("etag", format!("\"0x{version:X}\"")),
            ("last-modified", modified.clone()),
            ("x-ms-file-id", id.to_string()),
        ];
        if let Some(left) = copy {
            *left = left.saturating_sub(1);
            let status = if *left == 0 { "success" } else { "pending" };
            told.push(("x-ms-copy-status", status.to_owned()));
            told.push(("x-ms-copy-progress", format!("{left}/{}", bytes.len())));
        }
        let Some(wanted) = range(header(headers, "x-ms-range")) else {
            told.push(("content-length", bytes.len().to_string()));
            return said(200, &told, bytes.clone());
        };
        let wanted = wanted.start..wanted.end.min(bytes.len());
        let part = bytes.get(wanted.clone()).filter(|part| !part.is_empty());
        let part = part.ok_or((416, "InvalidRange"))?.to_vec();
        let last = wanted.end - 1;
        told.push(("content-range", format!("bytes {}-{last}/{}", wanted.start, bytes.len())));
        told.push(("content-length", part.len().to_string()));
        if !cuts {
            return said(206, &told, part);
        }
        self.cut -= 1;
        let half = Bytes::copy_from_slice(&part[..part.len() / 2]);
        let broken = [Ok(half), Err(std::io::Error::other("cut"))];
        said(206, &told, Body::from_stream(futures::stream::iter(broken)))
    }

    fn list(&self, folder: &str, marker: &str, most: usize) -> Answer {
        match self.nodes.get(folder) {
            None if !folder.is_empty() => return Err((404, "ResourceNotFound")),
            Some(Node::File { .. }) => return Err((409, "ResourceTypeMismatch")),
            _ => {}
        }
        let in_folder = |path: &&String| parent(path) == folder && path.as_str() > marker;
        let all: Vec<&String> = self.nodes.keys().filter(in_folder).collect();
        let most = most.min(PAGE);
        let next = all.get(most - 1).filter(|_| all.len() > most).map_or("", |path| path.as_str());
        let entries: String = all.iter().take(most).map(|path| self.entry(path)).collect();
        let text = format!(
            "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ShareName=\"made\" \
             DirectoryPath=\"{}\"><Entries>{entries}</Entries><NextMarker>{}</NextMarker></EnumerationResults>",
            escaped(folder),
            escaped(next),
        );
        said(200, &[("content-type", "application/xml".to_owned())], text)
    }

    fn entry(&self, path: &str) -> String {
        let name = escaped(path.rsplit('/').next().unwrap_or_default());
        match &self.nodes[path] {
            Node::Folder => format!("<Directory><Name>{name}</Name><Properties /></Directory>"),
            Node::File { bytes, version, modified, .. } => format!(
                "<File><FileId>1</FileId><Name>{name}</Name><Properties><Content-Length>{}</Content-Length>\
                 <Last-Modified>{modified}</Last-Modified><Etag>\"0x{version:X}\"</Etag></Properties></File>",
                bytes.len()
            ),
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
