//! Reading an object into a file, over as many requests as it takes.

use std::fs::File;
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode};

use super::Error;
use super::error::blocking;
use super::files::{self, Stop};
use super::gateway::{Failure, Patience, accepted};

/// Bytes that are gathered before they are written.
const GATHERED: usize = 1 << 20;

/// A second file that is to have what a first one has: to write both is sooner done than to copy one later.
pub(super) struct Second {
    pub(super) path: PathBuf,
    /// Whether anyone still wants it.
    pub(super) stop: Stop,
}

/// The same, made. What fails with it is no failure of the first: who then copies that is told why.
struct Double {
    wanted: Second,
    file: File,
    is_lost: AtomicBool,
}

impl Second {
    /// `None` where the file system has a copy share its blocks with the first one, or it cannot be made: it is better
    /// copied then.
    fn beside(self, first: &File) -> Option<Double> {
        // The folder may be another try's by now.
        if self.stop.check().is_err() || files::can_share(first, &self.path) {
            return None;
        }
        let file = files::create_new(&self.path, 0o644).ok()?;
        Some(Double { wanted: self, file, is_lost: AtomicBool::new(false) })
    }
}

impl Double {
    fn write(&self, pieces: &[Bytes], from: u64) {
        if self.is_lost.load(Ordering::Acquire) {
            return;
        }
        let written = write_at(&self.file, &self.wanted.path, pieces, from);
        // One of those that write it at once removes it.
        if written.is_err()
            && !self.is_lost.swap(true, Ordering::AcqRel)
            && self.wanted.stop.check().is_ok()
        {
            let _ = files::remove_any(&self.wanted.path);
        }
    }
}

/// Where bytes go in a file, in order from one place on.
pub(super) struct Sink<'a> {
    to: &'a Path,
    file: Arc<File>,
    double: Option<Arc<Double>>,
    /// Where the next byte goes, those that are gathered counted.
    pub(super) at: u64,
    gathered: Vec<Bytes>,
    size: usize,
}

impl<'a> Sink<'a> {
    /// Makes a new file.
    pub(super) async fn create(to: &'a Path) -> Result<Self, Failure> {
        Self::create_with(to, None).await
    }

    /// Makes a new file, and a second one if that is to be.
    pub(super) async fn create_with(to: &'a Path, second: Option<Second>) -> Result<Self, Failure> {
        let path = to.to_owned();
        let make = move || {
            let first =
                File::create_new(&path).map_err(|error| Error::io("write", &path, error))?;
            let double = second.and_then(|second| second.beside(&first)).map(Arc::new);
            Ok((Arc::new(first), double))
        };
        let (file, double) = blocking(make).await.map_err(Failure::Local)?;
        Ok(Self { to, file, double, at: 0, gathered: Vec::new(), size: 0 })
    }

    /// Another one of the same files.
    pub(super) fn from(&self, at: u64) -> Self {
        let (file, double) = (Arc::clone(&self.file), self.double.clone());
        Self { to: self.to, file, double, at, gathered: Vec::new(), size: 0 }
    }

    /// Whether a second file has all that the first has.
    pub(super) fn is_double(&self) -> bool {
        self.double.as_ref().is_some_and(|double| !double.is_lost.load(Ordering::Acquire))
    }

    /// Takes all that comes.
    pub(super) async fn pour(
        &mut self,
        pieces: impl Stream<Item = Result<Bytes, reqwest::Error>>,
    ) -> Result<(), Failure> {
        let mut pieces = pin!(pieces);
        while let Some(piece) = pieces.next().await {
            self.push(piece?).await?;
        }
        Ok(())
    }

    async fn push(&mut self, piece: Bytes) -> Result<(), Failure> {
        self.at += piece.len() as u64;
        self.size += piece.len();
        self.gathered.push(piece);
        if self.size >= GATHERED { self.flush().await } else { Ok(()) }
    }

    /// Has everything that came in the file.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        if self.size == 0 {
            return Ok(());
        }
        let from = self.at - self.size as u64;
        let (pieces, file) = (mem::take(&mut self.gathered), Arc::clone(&self.file));
        self.size = 0;
        let (to, double) = (self.to.to_owned(), self.double.clone());
        let write = move || {
            write_at(&file, &to, &pieces, from)?;
            if let Some(double) = double {
                double.write(&pieces, from);
            }
            Ok(())
        };
        blocking(write).await.map_err(Failure::Local)
    }

    /// Begins anew; for one without a second file.
    async fn rewind(&mut self) -> Result<(), Failure> {
        if self.at == 0 {
            return Ok(());
        }
        (self.at, self.size) = (0, 0);
        self.gathered.clear();
        let (file, to) = (Arc::clone(&self.file), self.to.to_owned());
        let empty = move || file.set_len(0).map_err(|error| Error::io("write", &to, error));
        blocking(empty).await.map_err(Failure::Local)
    }
}

fn write_at(file: &File, path: &Path, pieces: &[Bytes], mut from: u64) -> Result<(), Error> {
    for piece in pieces {
        file.write_all_at(piece, from).map_err(|error| Error::io("write", path, error))?;
        from += piece.len() as u64;
    }
    Ok(())
}

/// What came of a download.
#[derive(Debug)]
pub(super) struct Downloaded {
    pub(super) etag: Option<String>,
    /// `false`: the server said that nothing has changed, and sent nothing.
    pub(super) sent: bool,
}

/// Streams what `request` asks for into a new file at `to`. A break in the middle is resumed where
/// the server can, else begun anew; `expected` bytes must come in the end. `closed` says of an answer why it is not
/// taken from where it comes.
pub(super) async fn download(
    to: &Path,
    expected: Option<u64>,
    mut patience: Patience,
    closed: impl Fn(&Response) -> Option<&'static str>,
    request: impl Fn() -> RequestBuilder,
) -> Result<Downloaded, Failure> {
    let mut transfer = Transfer { sink: Sink::create(to).await?, tag: None };
    loop {
        match transfer.go_on(request(), expected, &closed).await {
            Ok(downloaded) => return Ok(downloaded),
            Err(failure) => patience.after(failure).await?,
        }
    }
}

/// A download that may take several requests.
struct Transfer<'a> {
    sink: Sink<'a>,
    /// Of the content that they are from, if the server can continue it.
    tag: Option<String>,
}

impl Transfer<'_> {
    async fn go_on(
        &mut self,
        mut request: RequestBuilder,
        expected: Option<u64>,
        closed: impl Fn(&Response) -> Option<&'static str>,
    ) -> Result<Downloaded, Failure> {
        request = request.header(ACCEPT_ENCODING, "identity");
        if let (1.., Some(tag)) = (self.sink.at, &self.tag) {
            let range = format!("bytes={}-", self.sink.at);
            request = request.header(RANGE, range).header(IF_RANGE, tag);
        }
        let answer = request.send().await?;
        if let Some(why) = closed(&answer) {
            return Err(Failure::Closed(why));
        }
        let response = match accepted(answer).await {
            Ok(response) => response,
            Err(failure) => {
                // It changed, or the range is gone: from the start, next time.
                self.tag = None;
                self.sink.rewind().await?;
                return Err(failure);
            }
        };
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Downloaded { etag: None, sent: false });
        }
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = header(CONTENT_RANGE).unwrap_or_default();
            if !range.starts_with(&format!("bytes {}-", self.sink.at)) {
                return Err(Failure::Broken(format!("the server sent another part: '{range}'")));
            }
        } else {
            self.sink.rewind().await?;
        }
        // A weak tag does not promise equal bytes.
        self.tag = header(ETAG).filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
        let announced = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        let end = expected.or(announced.map(|length| self.sink.at + length));
        let poured = self.sink.pour(response.bytes_stream()).await;
        // What came so far counts only once it is in the file.
        self.sink.flush().await?;
        poured?;
        if let Some(end) = end
            && self.sink.at != end
        {
            let problem = format!("{} bytes came instead of {end}", self.sink.at);
            if self.sink.at > end {
                self.tag = None;
                self.sink.rewind().await?;
            }
            return Err(Failure::Broken(problem));
        }
        Ok(Downloaded { etag: self.tag.take(), sent: true })
    }
}
