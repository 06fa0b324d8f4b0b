//! Reading an object into a file, over as many requests as it takes.

use std::fs::File;
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode};

use super::Error;
use super::error::blocking;
use super::gateway::{Failure, Patience, accepted};

/// Bytes that are gathered before they are written.
const GATHERED: usize = 1 << 20;

/// Where bytes go in a file, in order from one place on.
pub(super) struct Sink<'a> {
    to: &'a Path,
    file: Arc<File>,
    /// Where the next byte goes, those that are gathered counted.
    pub(super) at: u64,
    gathered: Vec<Bytes>,
    size: usize,
}

impl<'a> Sink<'a> {
    /// Makes a new file.
    pub(super) async fn create(to: &'a Path) -> Result<Self, Failure> {
        let path = to.to_owned();
        let made = blocking(move || {
            File::create_new(&path).map_err(|error| Error::io("write", &path, error))
        });
        Ok(Self::of(to, Arc::new(made.await.map_err(Failure::Local)?), 0))
    }

    fn of(to: &'a Path, file: Arc<File>, at: u64) -> Self {
        Self { to, file, at, gathered: Vec::new(), size: 0 }
    }

    /// Another one of the same file.
    pub(super) fn from(&self, at: u64) -> Self {
        Self::of(self.to, Arc::clone(&self.file), at)
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
        let mut from = self.at - self.size as u64;
        let (pieces, file) = (mem::take(&mut self.gathered), Arc::clone(&self.file));
        self.size = 0;
        let to = self.to.to_owned();
        let write = move || {
            for piece in pieces {
                file.write_all_at(&piece, from).map_err(|error| Error::io("write", &to, error))?;
                from += piece.len() as u64;
            }
            Ok(())
        };
        blocking(write).await.map_err(Failure::Local)
    }

    /// Begins anew.
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
