//! Writing a file so that nobody sees a part of it: under a name of its own beside its place, which it then gets.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::Method;
use object_store::path::Path;
use object_store::{Error, PutPayload, Result};

use super::request::{self, Ask, odd};
use super::{Share, text};
use crate::storage::cloud::beside::{self, folder_of};
use crate::storage::cloud::client::STILL;
use crate::storage::cloud::upload::part_start;

/// The most bytes that one request writes.
const RANGE: usize = 4 << 20;
/// Between two looks at a copy that the service makes.
const PAUSE: Duration = Duration::from_millis(500);
/// What the service wants to know of a new file, and of one that becomes longer.
const NEW: [(&str, &str); 4] = [
    ("x-ms-file-permission", "inherit"),
    ("x-ms-file-attributes", "None"),
    ("x-ms-file-creation-time", "now"),
    ("x-ms-file-last-write-time", "now"),
];
const KEPT: [(&str, &str); 4] = [
    ("x-ms-file-permission", "preserve"),
    ("x-ms-file-attributes", "preserve"),
    ("x-ms-file-creation-time", "preserve"),
    ("x-ms-file-last-write-time", "now"),
];

/// A name of its own beside a file's place.
fn beside(at: &Path) -> Result<String> {
    let id = beside::new_id().ok_or_else(|| odd("no randomness to go with it"))?;
    Ok(beside::beside(at, &id))
}

/// An upload's id: the file's name while it is written, and the service's own for it, which it keeps.
fn parse_id<'a>(at: &Path, id: &'a str) -> Result<(String, &'a str)> {
    let (name, file) = id.split_once(' ').ok_or_else(|| odd("an upload of another store's"))?;
    Ok((format!("{}{name}", folder_of(at)), file))
}

fn length_of(looked: &reqwest::Response) -> Result<u64> {
    let length = text(looked.headers(), "content-length").and_then(|text| text.parse().ok());
    length.ok_or_else(|| odd("no length"))
}

impl Share {
    pub(super) async fn put(&self, at: &Path, bytes: &PutPayload) -> Result<()> {
        let upload = beside(at)?;
        let done = async {
            let file = self.create(at, &upload, bytes.content_length() as u64).await?;
            self.write(&upload, 0, bytes).await?;
            self.place(&upload, at, &file).await
        };
        self.or_give_up(&upload, done.await).await
    }

    /// Makes a file a copy of another. The service may go on after it has answered.
    pub(super) async fn copy_over(&self, from: &Path, to: &Path) -> Result<()> {
        let upload = beside(to)?;
        let done = async {
            let ask = Ask::new(Method::PUT, &upload)
                .with("x-ms-copy-source", self.requests.source(from.as_ref())?)
                .with("x-ms-source-allow-trailing-dot", "true");
            self.in_folders(to, ask).await?;
            let file = self.copied(&upload).await?;
            self.place(&upload, to, &file).await
        };
        self.or_give_up(&upload, done.await).await
    }

    /// Waits for a copy, as long as it comes on; the service's own name for it.
    async fn copied(&self, upload: &str) -> Result<String> {
        let (mut progress, mut since) = (String::new(), Instant::now());
        loop {
            let looked = self.requests.send(Ask::new(Method::HEAD, upload)).await?;
            let said = |name| text(looked.headers(), name).unwrap_or_default();
            match said("x-ms-copy-status") {
                "success" => return Ok(said("x-ms-file-id").to_owned()),
                "pending" if said("x-ms-copy-progress") != progress => {
                    (progress, since) = (said("x-ms-copy-progress").to_owned(), Instant::now());
                }
                "pending" if since.elapsed() < STILL => {}
                other => {
                    let why = said("x-ms-copy-status-description");
                    return Err(request::lost(format!("the copy is not made: {other} {why}")));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) async fn begin_upload(&self, at: &Path) -> Result<String> {
        let upload = beside(at)?;
        let file = self.create(at, &upload, 0).await?;
        Ok(format!("{} {file}", upload.trim_start_matches(folder_of(at))))
    }

    /// Writes a part of an upload; its length. All but the last have the length that those of uploads have.
    pub(super) async fn write_part(
        &self,
        at: &Path,
        id: &str,
        index: usize,
        bytes: &PutPayload,
    ) -> Result<u64> {
        let (upload, _) = parse_id(at, id)?;
        let (start, length) = (part_start(index), bytes.content_length() as u64);
        self.grow(&upload, start + length).await?;
        self.write(&upload, start, bytes).await?;
        Ok(length)
    }

    /// Makes a file at least so long. Parts come in any order, and none may cut another's off.
    async fn grow(&self, upload: &str, length: u64) -> Result<()> {
        let _alone = self.growing.lock().await;
        let looked = self.requests.send(Ask::new(Method::HEAD, upload)).await?;
        if length_of(&looked)? >= length {
            return Ok(());
        }
        let mut ask = Ask::new(Method::PUT, upload)
            .query("comp", "properties")
            .with("x-ms-content-length", length.to_string());
        for (name, value) in KEPT {
            ask = ask.with(name, value);
        }
        self.requests.send(ask).await.map(drop)
    }

    /// Puts an upload in its place. `length`: of all its parts.
    pub(super) async fn complete_upload(&self, at: &Path, id: &str, length: u64) -> Result<()> {
        let (upload, file) = parse_id(at, id)?;
        match self.requests.send(Ask::new(Method::HEAD, &upload)).await {
            // Who made it longer elsewhere at the same time may have cut it off.
            Ok(looked) if length_of(&looked)? != length => return Err(odd("other parts")),
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        self.place(&upload, at, file).await
    }

    pub(super) async fn abort_upload(&self, at: &Path, id: &str) -> Result<()> {
        let (upload, _) = parse_id(at, id)?;
        self.requests.send(Ask::new(Method::DELETE, &upload)).await.map(drop)
    }

    /// Makes a file of this length beside a place; the service's own name for it.
    async fn create(&self, at: &Path, upload: &str, length: u64) -> Result<String> {
        let mut ask = Ask::new(Method::PUT, upload)
            .with("x-ms-type", "file")
            .with("x-ms-content-length", length.to_string());
        for (name, value) in NEW {
            ask = ask.with(name, value);
        }
        let made = self.in_folders(at, ask).await?;
        Ok(text(made.headers(), "x-ms-file-id").unwrap_or_default().to_owned())
    }

    /// Asks for a file to be made beside a place, and for its folders if they are not there.
    async fn in_folders(&self, at: &Path, ask: Ask) -> Result<reqwest::Response> {
        match self.requests.send(ask.clone()).await {
            Err(error) if request::is(&error, "ParentNotFound") => {}
            other => return other,
        }
        for (end, _) in at.as_ref().match_indices('/') {
            let mut folder =
                Ask::new(Method::PUT, &at.as_ref()[..end]).query("restype", "directory");
            for (name, value) in NEW.iter().filter(|(name, _)| *name != "x-ms-file-attributes") {
                folder = folder.with(name, *value);
            }
            match self.requests.send(folder.with("x-ms-file-attributes", "Directory")).await {
                Err(error) if request::is(&error, "ResourceAlreadyExists") => {}
                other => drop(other?),
            }
        }
        self.requests.send(ask).await
    }

    /// Writes bytes of a file, which has to be long enough.
    async fn write(&self, upload: &str, start: u64, bytes: &PutPayload) -> Result<()> {
        let (mut at, mut gathered) = (start, BytesMut::new());
        for piece in bytes {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(RANGE - gathered.len()));
                gathered.extend_from_slice(now);
                rest = later;
                if gathered.len() == RANGE {
                    at = self.write_range(upload, at, gathered.split()).await?;
                }
            }
        }
        match gathered.is_empty() {
            true => Ok(()),
            false => self.write_range(upload, at, gathered).await.map(drop),
        }
    }

    /// Writes a few bytes; where the next begin.
    async fn write_range(&self, upload: &str, at: u64, bytes: BytesMut) -> Result<u64> {
        let next = at + bytes.len() as u64;
        let ask = Ask::new(Method::PUT, upload)
            .query("comp", "range")
            .with("x-ms-write", "update")
            .with("x-ms-range", format!("bytes={at}-{}", next - 1))
            .body(bytes.freeze());
        self.requests.send(ask).await?;
        Ok(next)
    }

    /// Gives a file that is written its place. `file`: the service's own name for it, which it keeps.
    async fn place(&self, upload: &str, to: &Path, file: &str) -> Result<()> {
        match self.rename(upload, to).await {
            // A try whose answer was lost may have done it.
            Err(error @ Error::NotFound { .. }) => match self.look(to).await {
                Ok(found) if text(found.headers(), "x-ms-file-id") == Some(file) => Ok(()),
                _ => Err(error),
            },
            other => other,
        }
    }

    async fn rename(&self, upload: &str, to: &Path) -> Result<()> {
        let ask = Ask::new(Method::PUT, to.as_ref())
            .query("comp", "rename")
            .with("x-ms-file-rename-source", self.requests.source(upload)?)
            .with("x-ms-file-rename-replace-if-exists", "true")
            .with("x-ms-source-allow-trailing-dot", "true");
        self.requests.send(ask).await.map(drop)
    }

    /// What became of a file's writing, after whose failure nothing is left of it.
    async fn or_give_up(&self, upload: &str, done: Result<()>) -> Result<()> {
        if done.is_err() {
            let _ = self.requests.send(Ask::new(Method::DELETE, upload)).await;
        }
        done
    }
}
