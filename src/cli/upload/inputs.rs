//! Local inputs: files and folders of this machine, stored as objects below
//! the caller's own folder of uploads in the blob store ([`layout::uploads_root`]), under the hash
//! of their content: unchanged inputs are sent once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atelier_core::content::EntryName;
use atelier_core::id::Principal;
use atelier_core::layout::{self, BLOB_STORE};
use atelier_core::url::encoded;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;

use super::cache::StatCache;
use super::plan::Plan;
use super::scan::{self, Found, FoundFile, Scan, Stat};
use super::{Error, Progress, Report, blocking, hash};
use crate::storage::ObjectPath;

/// Files that travel at once.
const AT_ONCE: usize = 16;
/// How much of a file is read at once.
const PIECE: u64 = 256 * 1024;

/// The workspace's data gateway, as a client sees it. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    client: reqwest::Client,
    server: String,
    token: String,
    principal: Principal,
    home: PathBuf,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A local file or folder that the workspace has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalInput {
    /// What replaces the local path: `azureml://datastores/workspaceblobstore/paths/LocalUpload/…`;
    /// a folder's ends with `/`.
    pub uri: String,
    /// Files in it.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Files that the workspace lacked.
    pub files_sent: u64,
    /// Bytes of these files.
    pub bytes_sent: u64,
    /// What was left out though it is not ignored, and why; one line each, for the user.
    pub warnings: Vec<String>,
}

/// A page of the gateway's listing, as far as it matters here.
#[derive(Deserialize)]
struct Page {
    objects: Vec<Stored>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Stored {
    path: String,
    size: u64,
}

/// What the gateway says when it refuses.
#[derive(Deserialize)]
struct Refusal {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    message: String,
}

impl Gateway {
    /// The gateway of the daemon at `server` (`http://HOST:PORT`), with the token of `principal`;
    /// `home` is Atelier's home folder, where the stat cache lies.
    pub fn new(
        client: reqwest::Client,
        server: &str,
        token: &str,
        principal: Principal,
        home: &Path,
    ) -> Self {
        let server = server.trim_end_matches('/').to_owned();
        Self { client, server, token: token.to_owned(), principal, home: home.to_owned() }
    }

    /// Makes the workspace have the file or folder at `path`. Ignore files apply as they do to code.
    ///
    /// # Errors
    /// [`Error`] names the file or folder and what to do.
    pub async fn local_input(&self, path: &Path, report: Report) -> Result<LocalInput, Error> {
        match self.attempt(path, &report).await {
            Err(Error::Changed(_)) => self.attempt(path, &report).await,
            other => other,
        }
    }

    async fn attempt(&self, path: &Path, report: &Report) -> Result<LocalInput, Error> {
        let (path, home, reading) = (path.to_owned(), self.home.clone(), report.clone());
        let uploads = layout::uploads_root(&self.principal);
        let prepared = blocking(move || Prepared::new(&path, &uploads, &home, &reading)).await?;
        let stored = self.stored(&prepared.below).await?;
        let missing: Vec<(FoundFile, ObjectPath)> = prepared
            .files
            .into_iter()
            .filter(|(file, key)| stored.get(key.as_str()) != Some(&file.stat.size))
            .collect();
        let total = missing.iter().map(|(file, _)| file.stat.size).sum();
        let files_sent = missing.len() as u64;
        let done = Arc::new(AtomicU64::new(0));
        futures::stream::iter(missing)
            .map(|(file, key)| {
                let (done, report) = (done.clone(), report.clone());
                let sent = move |bytes| {
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    report(Progress::Sending { done, total });
                };
                self.put(file, key, sent)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(LocalInput {
            uri: format!("azureml://datastores/{BLOB_STORE}/paths/{}", prepared.uri_path),
            files: prepared.count,
            bytes: prepared.bytes,
            files_sent,
            bytes_sent: total,
            warnings: prepared.warnings,
        })
    }

    fn request(&self, method: reqwest::Method, rest: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/data/v1/{BLOB_STORE}{rest}", self.server);
        self.client.request(method, url).bearer_auth(&self.token)
    }

    /// The sizes of the objects below a folder, by path.
    async fn stored(&self, below: &ObjectPath) -> Result<HashMap<String, u64>, Error> {
        let (mut stored, mut after) = (HashMap::new(), None::<String>);
        loop {
            let mut query = format!("?prefix={}", encoded(below.as_str()));
            if let Some(after) = after.take() {
                query.push_str(&format!("&after={}", encoded(&after)));
            }
            let place = Path::new(below.as_str());
            let answer = self.request(reqwest::Method::GET, &query).send().await;
            let answer = accepted(answer, place).await?;
            let failed = |why: String| Error::Gateway { path: place.to_owned(), status: None, why };
            let bytes = answer.bytes().await.map_err(|error| failed(explain(&error)))?;
            let page: Page =
                serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
            stored.extend(page.objects.into_iter().map(|object| (object.path, object.size)));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(stored),
            }
        }
    }

    async fn put(
        &self,
        file: FoundFile,
        key: ObjectPath,
        sent: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let url = format!("/{}", encoded(key.as_str()));
        let body = reqwest::Body::wrap_stream(pieces(file.clone(), sent));
        let answer = self
            .request(reqwest::Method::PUT, &url)
            .header(http::header::CONTENT_LENGTH, file.stat.size)
            .body(body)
            .send()
            .await;
        if answer.is_err() {
            // The body broke off because the file changed, or the connection did.
            let now = fs::metadata(&file.path).map(|metadata| Stat::of(&metadata));
            if now.ok() != Some(file.stat) {
                return Err(Error::Changed(file.path));
            }
        }
        accepted(answer, &file.relative).await.map(|_| ())
    }
}

/// The bytes of a file that must still be the one that was hashed: otherwise the stream fails before
/// its last byte, and the gateway keeps nothing.
pub(in crate::cli) fn pieces(
    file: FoundFile,
    sent: impl Fn(u64) + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<Bytes>> {
    let state = (None::<File>, 0_u64, file, sent);
    futures::stream::try_unfold(state, |(open, offset, file, sent)| async move {
        if offset >= file.stat.size {
            return Ok(None);
        }
        let step = tokio::task::spawn_blocking(move || -> io::Result<_> {
            let source = match open {
                Some(source) => source,
                None => File::open(&file.path)?,
            };
            let length = PIECE.min(file.stat.size - offset);
            let mut piece = vec![0; length as usize];
            source.read_exact_at(&mut piece, offset)?;
            let end = offset + length;
            if end == file.stat.size && Stat::of(&source.metadata()?) != file.stat {
                return Err(io::Error::other("the file has changed"));
            }
            sent(length);
            Ok((Bytes::from(piece), (Some(source), end, file, sent)))
        });
        step.await.map_err(io::Error::other)?.map(Some)
    })
}

async fn accepted(
    answer: reqwest::Result<reqwest::Response>,
    path: &Path,
) -> Result<reqwest::Response, Error> {
    let failed = |status, why| Error::Gateway { path: path.to_owned(), status, why };
    let answer = answer.map_err(|error| failed(None, explain(&error)))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let said = answer.bytes().await.unwrap_or_default();
    let why = serde_json::from_slice::<Refusal>(&said)
        .map_or_else(|_| format!("it answered {status}"), |refusal| refusal.error.message);
    Err(failed(Some(status.as_u16()), why))
}

/// The innermost cause: the outer ones repeat the URL.
fn explain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// An input, scanned and hashed.
struct Prepared {
    /// The folder of this content.
    below: ObjectPath,
    uri_path: String,
    files: Vec<(FoundFile, ObjectPath)>,
    count: u64,
    bytes: u64,
    warnings: Vec<String>,
}

impl Prepared {
    fn new(path: &Path, uploads: &str, home: &Path, report: &Report) -> Result<Self, Error> {
        let real = fs::canonicalize(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing(path.to_owned()),
            _ => Error::Io { operation: "open", path: path.to_owned(), source },
        })?;
        let metadata = fs::metadata(&real).map_err(|source| Error::Io {
            operation: "open",
            path: path.to_owned(),
            source,
        })?;
        let is_file = metadata.is_file();
        let scan = if is_file { single_file(&real, &metadata)? } else { scan::scan(path, home)? };
        let mut warnings = scan.warnings;
        warn_of_links(Path::new(""), &scan.tree, &mut warnings);
        let mut cache = StatCache::load(home, &scan.root);
        let (contents, _) = hash::contents(&scan.files, &cache, report)?;
        cache.update(&scan.files, &contents);
        let mut plan = Plan::new(scan.tree, scan.files, &contents)?;
        // What was hashed is what must be sent.
        for (file, hashed) in plan.files.iter_mut().zip(&contents) {
            file.stat = hashed.stat;
        }
        let named = |why: String| Error::Name { path: path.to_owned(), why };
        let digest = plan.root.to_string();
        let below = ObjectPath::new(&format!("{uploads}/{}", &digest[..32]))
            .map_err(|error| named(error.to_string()))?;
        // The root folder of the machine has no name of its own.
        let name = real.file_name().unwrap_or(OsStr::new("root"));
        let name = name.to_str().ok_or_else(|| named("it is not UTF-8".to_owned()))?;
        let uri_path = if is_file { format!("{below}/{name}") } else { format!("{below}/{name}/") };
        let folder = if is_file { below.to_string() } else { format!("{below}/{name}") };
        let (count, bytes) = (plan.files.len() as u64, plan.bytes);
        let files = plan
            .files
            .into_iter()
            .map(|file| {
                let named = |why| Error::Name { path: file.relative.clone(), why };
                let relative =
                    file.relative.to_str().ok_or_else(|| named("it is not UTF-8".to_owned()))?;
                let key = ObjectPath::new(&format!("{folder}/{relative}"))
                    .map_err(|error| named(error.to_string()))?;
                Ok((file, key))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { below, uri_path, files, count, bytes, warnings })
    }
}

fn single_file(real: &Path, metadata: &fs::Metadata) -> Result<Scan, Error> {
    let name = real.file_name().unwrap_or_default();
    let entry = EntryName::new(name.as_bytes())
        .map_err(|error| Error::Name { path: real.to_owned(), why: error.to_string() })?;
    let file = FoundFile { path: real.to_owned(), relative: name.into(), stat: Stat::of(metadata) };
    Ok(Scan {
        root: real.to_owned(),
        tree: vec![(entry, Found::File(0))],
        files: vec![file],
        warnings: Vec::new(),
    })
}

/// A datastore has no links: those that were not followed are left out.
fn warn_of_links(below: &Path, tree: &[(EntryName, Found)], warnings: &mut Vec<String>) {
    for (name, found) in tree {
        let place = below.join(OsStr::from_bytes(name.as_bytes()));
        match found {
            Found::File(_) => {}
            Found::Folder(entries) => warn_of_links(&place, entries, warnings),
            Found::Link(_) => warnings.push(format!(
                "'{}' is left out: it is a symbolic link that cannot be followed",
                place.display()
            )),
        }
    }
}
