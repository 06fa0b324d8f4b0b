//! A daemon in memory, and a data plane that knows it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::egress::{Egress, Server};
use atelier_proto::agent::v1 as pb;
use atelier_proto::content::v1::content_service_server::{ContentService, ContentServiceServer};
use atelier_proto::content::v1::{
    FindMissingRequest, FindMissingResponse, GetRequest, GetResponse, Object, PutRequest,
    PutResponse,
};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream::{BoxStream, StreamExt as _};
use percent_encoding::percent_decode_str;
use tonic::Status;
use tonic::transport::Endpoint;

use super::super::{DataPlane, Options};
use super::direct;

pub(super) const TOKEN: &str = "attempt-token";
const NODE_TOKEN: &str = "node-token";
pub(super) const STORE: &str = "workspaceblobstore";

/// What the daemon holds and what it was asked.
#[derive(Default)]
pub(super) struct Daemon {
    /// `path` to bytes and tag.
    pub(super) objects: BTreeMap<String, (Bytes, String)>,
    pub(super) content: HashMap<Digest, Bytes>,
    /// Method and path of every request, without failed ones.
    pub(super) requests: Vec<String>,
    /// Digests given out.
    pub(super) given: u64,
    /// Requests to answer with an error.
    failures: u32,
    /// Whether objects are stored, and no answer says so.
    pub(super) loses_answers: bool,
    /// Whether objects are taken and no answer ever comes.
    pub(super) stalls: bool,
    /// What is not stored: what paths end with, and the answer.
    pub(super) refused: Vec<(&'static str, StatusCode, &'static str)>,
    /// Answers to break off in the middle.
    breaks: u32,
    writes: u64,
    /// Where objects can be read and written past the daemon, if they can.
    pub(super) signs: Option<String>,
    /// What is answered there, if it is not what was asked for.
    pub(super) store_says: Option<StatusCode>,
    /// Whether its answers have other tags than its listing.
    pub(super) tags_anew: bool,
    /// Whether an upload in parts is completed.
    pub(super) refuses_to_complete: bool,
    /// How often it does not say where parts go.
    pub(super) signs_later: u32,
    /// Addresses are good for so long, if not for ever: the store looks, and takes a while for each part.
    pub(super) signed_for: Option<Duration>,
    /// Whether it tells the folders that are to be listed by themselves, where there are some.
    pub(super) tells_folders: bool,
    /// Parts of uploads by path and number.
    pub(super) parts: BTreeMap<(String, u32), Bytes>,
}

pub(super) type Shared = Arc<Mutex<Daemon>>;

pub(super) struct World {
    pub(super) plane: DataPlane,
    pub(super) daemon: Shared,
    pub(super) folder: tempfile::TempDir,
    pub(super) address: SocketAddr,
    /// The same where jobs have no way to.
    pub(super) control: SocketAddr,
    shared: bool,
}

impl World {
    pub(super) async fn new(shared: bool) -> Self {
        Self::with_cache(shared, None).await
    }

    pub(super) async fn with_cache(shared: bool, cache_bytes: Option<u64>) -> Self {
        let daemon = Shared::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let grpc = tonic::service::Routes::new(ContentServiceServer::new(Grpc(daemon.clone())));
        let http = Router::new()
            .route("/data/v1/{*object}", axum::routing::any(gateway))
            .route("/store/{*object}", axum::routing::any(direct::store))
            .route("/web/{*object}", axum::routing::any(web))
            .with_state(daemon.clone());
        let app = grpc.into_axum_router().merge(http);
        let orders = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = orders.local_addr().unwrap();
        for (listener, app) in [(listener, app.clone()), (orders, app)] {
            tokio::spawn(async move { axum::serve(listener, app).await });
        }
        let known = crate::reach::Daemon { control: vec![control], ..Default::default() };
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("store").join(".staging")).unwrap();
        fs::create_dir_all(folder.path().join("inputs")).unwrap();
        let http_url = format!("http://{address}");
        let plane = DataPlane::new(Options {
            channel: Endpoint::from_shared(http_url.clone()).unwrap().connect_lazy(),
            http_url,
            token: Some(NODE_TOKEN.into()),
            trust: Default::default(),
            shared,
            cache_dir: folder.path().join("cache"),
            cache_bytes,
            closed: Arc::new(crate::reach::Closed::with(&known)),
            egress: Some(Arc::new(Egress {
                networks: vec!["127.0.0.1".parse().unwrap()],
                servers: vec![Server::new("localhost", address.port())],
            })),
        })
        .unwrap();
        Self { plane, daemon, folder, address, control, shared }
    }

    /// Where the web is.
    pub(super) fn web_port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn store_root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(super) fn inputs(&self) -> PathBuf {
        self.folder.path().join("inputs")
    }

    pub(super) fn at(&self, path: &str) -> pb::StorePath {
        pb::StorePath {
            datastore: STORE.into(),
            path: path.into(),
            shared_root: self.store_root().to_str().unwrap().into(),
        }
    }

    /// Puts an object where the data plane will look.
    pub(super) fn store(&self, path: &str, bytes: &[u8]) {
        if self.shared {
            let at = self.store_root().join(path);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            // As the daemon does: never in place.
            let _ = fs::remove_file(&at);
            fs::write(at, bytes).unwrap();
        } else {
            let mut daemon = self.daemon.lock().unwrap();
            daemon.write(path, Bytes::copy_from_slice(bytes));
        }
    }

    pub(super) fn stored(&self, path: &str) -> Option<Vec<u8>> {
        if self.shared {
            return fs::read(self.store_root().join(path)).ok();
        }
        self.daemon.lock().unwrap().objects.get(path).map(|(bytes, _)| bytes.to_vec())
    }

    /// The paths of all objects.
    pub(super) fn paths(&self) -> Vec<String> {
        if self.shared {
            let all = super::tree(&self.store_root()).into_keys();
            return all.collect();
        }
        self.daemon.lock().unwrap().objects.keys().cloned().collect()
    }

    pub(super) fn fail_next(&self, count: u32) {
        self.daemon.lock().unwrap().failures = count;
    }

    pub(super) fn break_next(&self, count: u32) {
        self.daemon.lock().unwrap().breaks = count;
    }

    pub(super) fn requests(&self, start: &str) -> usize {
        let daemon = self.daemon.lock().unwrap();
        daemon.requests.iter().filter(|request| request.starts_with(start)).count()
    }
}

impl Daemon {
    pub(super) fn write(&mut self, path: &str, bytes: Bytes) {
        self.writes += 1;
        let tag = format!("\"{}-{}\"", self.writes, bytes.len());
        self.objects.insert(path.into(), (bytes, tag));
    }

    pub(super) fn fails(&mut self) -> bool {
        let fails = self.failures > 0;
        self.failures = self.failures.saturating_sub(1);
        fails
    }
}

pub(super) fn refusal(status: StatusCode) -> Response {
    let json = format!(r#"{{"error":{{"code":"C","message":"told {}"}}}}"#, status.as_u16());
    (status, json).into_response()
}

async fn gateway(State(daemon): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let token = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if token != Some(&format!("Bearer {TOKEN}")) {
        return refusal(StatusCode::UNAUTHORIZED);
    }
    let below = head.uri.path().strip_prefix("/data/v1/").unwrap().to_owned();
    if daemon.lock().unwrap().failures > 0 && head.method == Method::PUT {
        daemon.lock().unwrap().failures -= 1;
        return refusal(StatusCode::SERVICE_UNAVAILABLE);
    }
    let is_of_upload = head.uri.query().is_some_and(|query| query.starts_with("upload="));
    if head.method == Method::POST || head.method == Method::DELETE && is_of_upload {
        return direct::answer(&daemon, &head, body).await;
    }
    let Some((_, path)) = below.split_once('/') else {
        return list(&daemon, head.uri.query().unwrap_or_default());
    };
    let path = percent_decode_str(path).decode_utf8().unwrap().into_owned();
    daemon.lock().unwrap().requests.push(format!("{} {path}", head.method));
    if head.method == Method::DELETE {
        let gone = daemon.lock().unwrap().objects.remove(&path);
        return gone
            .map_or(refusal(StatusCode::NOT_FOUND), |_| StatusCode::NO_CONTENT.into_response());
    }
    if let Some(query) = head.uri.query().filter(|_| head.method == Method::PUT) {
        return copy(&mut daemon.lock().unwrap(), query, &path);
    }
    if head.method == Method::PUT {
        let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
            return refusal(StatusCode::BAD_REQUEST);
        };
        let is_stalled = daemon.lock().unwrap().stalls;
        if is_stalled {
            std::future::pending::<()>().await;
        }
        return put(&mut daemon.lock().unwrap(), &path, bytes);
    }
    let mut daemon = daemon.lock().unwrap();
    let Some((bytes, tag)) = daemon.objects.get(&path).cloned() else {
        return refusal(StatusCode::NOT_FOUND);
    };
    serve(&mut daemon, &head.headers, &bytes, &tag)
}

fn put(daemon: &mut Daemon, path: &str, bytes: Bytes) -> Response {
    let refused = daemon.refused.iter().find(|(end, ..)| path.ends_with(end));
    if let Some((_, status, code)) = refused {
        let json = format!(r#"{{"error":{{"code":"{code}","message":"refused"}}}}"#);
        return (*status, json).into_response();
    }
    daemon.write(path, bytes);
    if daemon.loses_answers {
        return refusal(StatusCode::BAD_GATEWAY);
    }
    (StatusCode::CREATED, [(header::ETAG, daemon.objects[path].1.clone())]).into_response()
}

fn queried(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")))?;
    Some(percent_decode_str(value).decode_utf8().unwrap().into_owned())
}

fn copy(daemon: &mut Daemon, query: &str, to: &str) -> Response {
    let from = queried(query, "from").unwrap();
    daemon.requests.push(format!("COPY {from}"));
    let (size, wanted) = (queried(query, "size").unwrap(), queried(query, "tag").unwrap());
    match daemon.objects.get(&from).cloned() {
        Some((bytes, tag)) if bytes.len().to_string() == size && tag == wanted => {
            daemon.write(to, bytes);
            StatusCode::OK.into_response()
        }
        _ => refusal(StatusCode::NOT_FOUND),
    }
}

fn list(daemon: &Shared, query: &str) -> Response {
    let get = |name: &str| queried(query, name);
    let prefix = get("prefix").unwrap();
    let after = get("after").unwrap_or_default();
    let mut daemon = daemon.lock().unwrap();
    if daemon.fails() {
        return refusal(StatusCode::BAD_GATEWAY);
    }
    daemon.requests.push(format!("LIST {prefix}"));
    let is_below = |path: &str| {
        let rest = path.strip_prefix(&prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && *path > *after.as_str()
    };
    let folder = |path: &str| {
        let below = path[prefix.len()..].strip_prefix('/')?;
        Some(format!("{prefix}/{}", below.split_once('/')?.0))
    };
    let told = |(path, (bytes, tag)): (&String, &(Bytes, String))| serde_json::json!({ "path": path, "size": bytes.len(), "etag": tag });
    let found = daemon.objects.iter().filter(|(path, _)| is_below(path));
    if daemon.tells_folders && get("parts").is_some() && (after.is_empty() || after == prefix) {
        let folders: BTreeSet<_> = found.clone().filter_map(|(path, _)| folder(path)).collect();
        let objects: Vec<_> =
            found.clone().filter(|(path, _)| folder(path).is_none()).map(told).collect();
        if !folders.is_empty() {
            let answer = serde_json::json!({ "objects": objects, "folders": folders });
            return answer.to_string().into_response();
        }
    }
    // Small pages, so that there are several.
    let mut found: Vec<_> = found.take(3).map(told).collect();
    let next = (found.len() == 3).then(|| {
        found.pop();
        found.last().unwrap()["path"].clone()
    });
    serde_json::json!({ "objects": found, "next": next }).to_string().into_response()
}

/// Bytes with tag and ranges; breaks off after half of them if told to fail.
pub(super) fn serve(
    daemon: &mut Daemon,
    headers: &header::HeaderMap,
    bytes: &Bytes,
    tag: &str,
) -> Response {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if header(header::IF_NONE_MATCH) == Some(tag) {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    if header(header::IF_MATCH).is_some_and(|asked| asked != tag) {
        return refusal(StatusCode::PRECONDITION_FAILED);
    }
    let from = header(header::RANGE)
        .filter(|_| header(header::IF_RANGE) == Some(tag))
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let within = header(header::RANGE).and_then(|range| {
        let (from, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let from = from.or(within.map(|(from, _)| from));
    let to = within.map_or(bytes.len(), |(_, last)| bytes.len().min(last + 1));
    let part = bytes.slice(from.unwrap_or(0)..to);
    daemon.requests.push(format!("SENT {}", part.len()));
    let mut response = Response::builder().header(header::ETAG, tag);
    if let Some(from) = from {
        let range = format!("bytes {from}-{}/{}", to - 1, bytes.len());
        response = response.status(206).header(header::CONTENT_RANGE, range);
    }
    response = response.header(header::CONTENT_LENGTH, part.len());
    let body = if daemon.breaks > 0 {
        daemon.breaks -= 1;
        let half = part.slice(..part.len() / 2);
        // The half is on its way before the connection breaks.
        let broken = futures::stream::once(async {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            Err(std::io::Error::other("broken off"))
        });
        Body::from_stream(futures::stream::once(async { Ok(half) }).chain(broken))
    } else {
        Body::from(part)
    };
    response.body(body).unwrap()
}

/// The web: an object's path, without tags below `untagged/`.
async fn web(State(daemon): State<Shared>, request: Request) -> Response {
    let path = request.uri().path().strip_prefix("/web/").unwrap().to_owned();
    let mut daemon = daemon.lock().unwrap();
    daemon.requests.push(format!("WEB {path}"));
    if path == "forbidden" {
        return StatusCode::FORBIDDEN.into_response();
    }
    if let Some(host) = path.strip_prefix("to/") {
        let to = format!("http://{host}/latest/meta-data");
        return (StatusCode::FOUND, [(header::LOCATION, to)]).into_response();
    }
    let Some((bytes, tag)) = daemon.objects.get(&path).cloned() else {
        return (StatusCode::NOT_FOUND, "<html>no such page</html>").into_response();
    };
    let mut response = serve(&mut daemon, request.headers(), &bytes, &tag);
    if path.starts_with("untagged/") {
        response.headers_mut().remove(header::ETAG);
    }
    response
}

struct Grpc(Shared);

#[tonic::async_trait]
impl ContentService for Grpc {
    async fn find_missing(
        &self,
        _: tonic::Request<FindMissingRequest>,
    ) -> Result<tonic::Response<FindMissingResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn put(
        &self,
        _: tonic::Request<tonic::Streaming<PutRequest>>,
    ) -> Result<tonic::Response<PutResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type GetStream = BoxStream<'static, Result<GetResponse, Status>>;

    async fn get(
        &self,
        request: tonic::Request<GetRequest>,
    ) -> Result<tonic::Response<Self::GetStream>, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if token != Some(&format!("Bearer {NODE_TOKEN}")) {
            return Err(Status::unauthenticated("not the node's token"));
        }
        let mut daemon = self.0.lock().unwrap();
        daemon.requests.push("CONTENT".into());
        let mut answers = Vec::new();
        for group in request.get_ref().digests.chunks(3) {
            if daemon.fails() {
                answers.push(Err(Status::unavailable("told to fail")));
                break;
            }
            let mut objects = Vec::new();
            for digest in group {
                let key = Digest::try_from(&digest[..]).unwrap();
                let Some(data) = daemon.content.get(&key).cloned() else {
                    return Err(Status::not_found(format!("no object {key}")));
                };
                daemon.given += 1;
                objects.push(Object { digest: digest.clone(), data });
            }
            answers.push(Ok(GetResponse { objects }));
        }
        Ok(tonic::Response::new(futures::stream::iter(answers).boxed()))
    }
}
