//! Shares of Azure Files, by the REST API of the service, as a store of objects.
//!
//! A share is a file system: folders have to be there before what lies in them, a file has its length before it has
//! its bytes, and both are seen as they are written. So a file is written under a name of its own beside its place,
//! which no listing tells, and renamed once all of it is there. Folders are made as they are needed. One that has
//! become empty stays, unless it is removed as a whole.
//!
//! Source: <https://learn.microsoft.com/rest/api/storageservices/file-service-rest-api>.

mod list;
mod request;
mod sign;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::datastore::AzureStorage;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, Method};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use reqwest::Response;
use tokio::sync::Mutex;

use self::request::{Ask, Requests, odd};
pub(super) use self::sign::Opened;
use super::client::Retries;

/// What names of files and folders may not have in them.
const FORBIDDEN: [char; 8] = ['"', ':', '<', '>', '|', '*', '?', '\\'];
/// The longest name of one file or folder, in UTF-16 code units.
const MAX_NAME: usize = 255;

/// Why a share can have no file of this key; `None`: it can.
pub(super) fn unfit(key: &str) -> Option<String> {
    if let Some(found) = key.chars().find(|c| FORBIDDEN.contains(c) || c.is_control()) {
        return Some(format!("Azure Files has no names with '{}'", found.escape_default()));
    }
    let is_long = |name: &str| name.encode_utf16().count() > MAX_NAME;
    key.split('/')
        .any(is_long)
        .then(|| format!("Azure Files has no names of more than {MAX_NAME} characters"))
}

/// A share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Share {
    requests: Arc<Requests>,
    /// Held by who makes a file longer.
    growing: Arc<Mutex<()>>,
}

/// How long to wait before each further try.
type Pauses = Box<dyn Iterator<Item = Duration> + Send>;

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Share(…)")
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Azure Files")
    }
}

impl Share {
    /// # Errors
    /// There is no client to ask with.
    pub(super) fn new(azure: &AzureStorage, opened: Opened, retries: Retries) -> Result<Self> {
        let root = format!("{}/{}", azure.file_url(), azure.container);
        let requests = Requests::new(&root, &azure.account_name, opened, retries)?;
        Ok(Self { requests: Arc::new(requests), growing: Arc::default() })
    }

    async fn look(&self, at: &Path) -> Result<Response> {
        self.requests.send(Ask::new(Method::HEAD, at.as_ref())).await
    }

    /// The answer to a request for the bytes of `range`, `None`: all, of the version that has this tag.
    async fn begin(
        &self,
        at: &Path,
        range: Option<Range<u64>>,
        tag: Option<&str>,
    ) -> Result<Response> {
        let mut ask = Ask::new(Method::GET, at.as_ref());
        if let Some(Range { start, end }) = range {
            ask = ask.with("x-ms-range", format!("bytes={start}-{}", end.saturating_sub(1)));
        }
        let answer = self.requests.send(ask).await?;
        // The service knows no conditions for files.
        same_version(at, text(answer.headers(), "etag"), tag)?;
        Ok(answer)
    }

    /// The bytes of `range`, of which an answer has begun to come: what breaks off goes on where it broke.
    fn bytes(
        self,
        at: Path,
        answer: Response,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes>> {
        let tag = text(answer.headers(), "etag").map(str::to_owned);
        let pauses = Box::new(self.requests.retries.pauses()) as Pauses;
        let state = (self, answer, range, pauses);
        let bytes = futures::stream::try_unfold(state, move |(share, answer, range, pauses)| {
            let (at, tag) = (at.clone(), tag.clone());
            async move {
                let (mut answer, mut range, mut pauses) = (answer, range, pauses);
                while !range.is_empty() {
                    let lost = match answer.chunk().await {
                        Ok(Some(piece)) => {
                            range.start += piece.len() as u64;
                            return Ok(Some((piece, (share, answer, range, pauses))));
                        }
                        Ok(None) => "the answer ended before its end".to_owned(),
                        Err(error) => error.without_url().to_string(),
                    };
                    let Some(pause) = pauses.next() else { return Err(request::lost(lost)) };
                    tokio::time::sleep(pause).await;
                    answer = share.begin(&at, Some(range.clone()), tag.as_deref()).await?;
                }
                Ok(None)
            }
        });
        bytes.boxed()
    }

    /// Removes a file, or a folder that is empty.
    async fn remove(&self, at: &Path) -> Result<()> {
        match self.requests.send(Ask::new(Method::DELETE, at.as_ref())).await {
            Err(Error::NotFound { .. }) => {}
            other => return other.map(drop),
        }
        let folder = || Ask::new(Method::DELETE, at.as_ref()).query("restype", "directory");
        match self.requests.send(folder()).await {
            // What was left of uploads is not seen, and keeps it.
            Err(error) if request::is(&error, "DirectoryNotEmpty") => {
                self.collect(at).await?;
                match self.requests.send(folder()).await {
                    Err(error) if request::is(&error, "DirectoryNotEmpty") => Ok(()),
                    other => other.map(drop),
                }
            }
            other => other.map(drop),
        }
    }
}

#[tonic::async_trait]
impl ObjectStore for Share {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if options.mode != PutMode::Overwrite {
            return Err(not_there("conditional writes"));
        }
        self.put(location, &payload).await?;
        Ok(stored())
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(not_there("uploads that are not by parts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let tag = options.if_match.as_deref();
        let wanted = match (options.head, &options.range) {
            (true, _) | (_, None) => None,
            (false, Some(object_store::GetRange::Bounded(range))) => Some(range.clone()),
            _ => return Err(not_there("ranges without an end")),
        };
        let answer = match options.head {
            true => self.look(location).await?,
            false => self.begin(location, wanted.clone(), tag).await?,
        };
        let meta = meta(location, answer.headers())?;
        same_version(location, meta.e_tag.as_deref(), tag)?;
        if options.if_unmodified_since.is_some_and(|since| meta.last_modified > since) {
            return Err(changed(location));
        }
        let range = match wanted {
            Some(wanted) => wanted.start..wanted.end.min(meta.size),
            None => 0..meta.size,
        };
        let bytes = match options.head {
            true => futures::stream::empty().boxed(),
            false => self.clone().bytes(location.clone(), answer, range.clone()),
        };
        let payload = GetResultPayload::Stream(bytes);
        let (attributes, extensions) = Default::default();
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let share = self.clone();
        let removed = locations.and_then(move |location| {
            let share = share.clone();
            async move {
                share.remove(&location).await?;
                Ok(location)
            }
        });
        removed.boxed()
    }

    fn list(&self, _prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let error = not_there("listings but by pages");
        futures::stream::once(std::future::ready(Err(error))).boxed()
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Path>) -> Result<ListResult> {
        Err(not_there("listings but by pages"))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        match options.mode {
            CopyMode::Overwrite => self.copy_over(from, to).await,
            CopyMode::Create => Err(not_there("conditional copies")),
        }
    }
}

#[tonic::async_trait]
impl MultipartStore for Share {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.begin_upload(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let length = self.write_part(path, id, part_idx, &data).await?;
        Ok(PartId { content_id: length.to_string() })
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let lengths = parts.iter().map(|part| part.content_id.parse::<u64>());
        let length = lengths.sum::<Result<u64, _>>().map_err(|_| odd("a part without length"))?;
        self.complete_upload(path, id, length).await?;
        Ok(stored())
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.abort_upload(path, id).await
    }
}

/// What a file's headers say of it.
fn meta(location: &Path, headers: &HeaderMap) -> Result<ObjectMeta> {
    let total = || text(headers, "content-range")?.rsplit_once('/')?.1.parse().ok();
    let length = || text(headers, "content-length")?.parse().ok();
    let size = total().or_else(length).ok_or_else(|| request::odd("no length"))?;
    let modified = text(headers, "last-modified").ok_or_else(|| request::odd("no time"))?;
    Ok(ObjectMeta {
        location: location.clone(),
        last_modified: time(modified)?.into(),
        size,
        e_tag: text(headers, "etag").map(str::to_owned),
        version: None,
    })
}

fn time(text: &str) -> Result<std::time::SystemTime> {
    let read = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text);
    read.map(Into::into).map_err(|_| request::odd("a time that is none"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn same_version(at: &Path, found: Option<&str>, wanted: Option<&str>) -> Result<()> {
    let plain = |tag: &str| tag.trim_matches('"').to_owned();
    match wanted.is_none_or(|wanted| found.is_some_and(|found| plain(found) == plain(wanted))) {
        true => Ok(()),
        false => Err(changed(at)),
    }
}

fn changed(at: &Path) -> Error {
    Error::Precondition { path: at.to_string(), source: "another version is there".into() }
}

/// Its tag is asked for: the service need not tell that of what was renamed.
fn stored() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

fn not_there(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "Azure Files".to_owned() }
}
