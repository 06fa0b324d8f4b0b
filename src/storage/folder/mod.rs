//! A datastore that is a folder on this machine.
//!
//! Every path is walked from the root's descriptor, one segment after the other, without following
//! symbolic links: what a job leaves in its outputs cannot lead a reader or a writer out of the
//! datastore. Objects are written below [`STAGING`], made durable, and renamed to their place.

mod copy;
mod list;
mod pace;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use atelier_core::layout;
use atelier_core::time::Timestamp;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Error, Meta, ObjectPath, OpenedFile, Page, Still};

use pace::Waits;
pub(super) use pace::{Pace, Step};

/// The folder, below a datastore's root, where objects are written before they get their place. On
/// the same file system as they are; never listed, and not part of any path. Files named `put-…`
/// are the daemon's and are removed when it starts.
pub const STAGING: &str = ".staging";

/// What the names of the daemon's files there begin with, in folders that are its alone.
const OWN: &str = "put-";

/// How much is read at once.
const READ: u64 = 256 * 1024;
/// How much is gathered before it is written.
const WRITE: usize = 512 * 1024;
/// From this many objects on, one sync of the whole file system is cheaper than one for each file
/// and folder, and does not wait for much else.
const SYNC_ALL_FROM: usize = 8;

/// A folder as a datastore. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Folder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    path: PathBuf,
    root: OwnedFd,
    /// Made when it is first needed: a folder that is only read stays as it is.
    staging: OnceLock<OwnedFd>,
    /// What the names of files there begin with.
    mark: String,
    /// How its file system is waited for.
    pace: Pace,
    next: AtomicU64,
}

/// A file that has its bytes but not yet its place. Removed when dropped unpublished.
#[derive(Debug)]
pub(super) struct Staged {
    folder: Folder,
    name: String,
    file: Option<File>,
    placed: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.placed {
            // What cannot be removed now is removed at the next start.
            let (folder, name) = (self.folder.clone(), std::mem::take(&mut self.name));
            let remove = move || {
                let Ok(staging) = folder.staging() else { return };
                let _ = rustix::fs::unlinkat(staging, &*name, AtFlags::empty());
            };
            self.folder.inner.pace.leave(remove);
        }
    }
}

impl Folder {
    /// Opens the folder; makes it if it does not exist.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let failed =
            |operation, source| Error::Io { operation, path: path.display().to_string(), source };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| failed("make the folder", source))?;
        let path =
            std::fs::canonicalize(path).map_err(|source| failed("open the folder", source))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| failed("open the folder", errno.into()))?;
        let folder = Self::at(path, root, OWN, Pace::Own);
        folder.staging()?;
        Ok(folder)
    }

    /// A folder that is open. Nothing is made in it before something is written; names of what is staged
    /// then begin with `mark`, which no other daemon's may.
    pub(super) fn at(path: PathBuf, root: OwnedFd, mark: &str, pace: Pace) -> Self {
        let (staging, mark, next) = (OnceLock::new(), mark.to_owned(), AtomicU64::new(0));
        Self { inner: Arc::new(Inner { path, root, staging, mark, pace, next }) }
    }

    pub(super) fn of(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(super) fn weak(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    /// Whether the open folder is the same.
    pub(super) fn is(&self, other: &OwnedFd) -> bool {
        let id = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        id(&self.inner.root).is_some_and(|own| Some(own) == id(other))
    }

    /// The staging folder; the first time it is made if need be, and cleared of what an earlier daemon
    /// left.
    fn staging(&self) -> Result<&OwnedFd, Error> {
        if let Some(staging) = self.inner.staging.get() {
            return Ok(staging);
        }
        let failed =
            |operation, source| io_error(operation, &self.inner.path.display().to_string(), source);
        match rustix::fs::mkdirat(&self.inner.root, STAGING, Mode::from(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make the staging folder of", errno.into())),
        }
        let staging = open_folder_at(&self.inner.root, STAGING)
            .map_err(|errno| failed("open the staging folder of", errno.into()))?;
        // One thread clears it, before any has a file there.
        let mut swept = Ok(());
        let staging = self.inner.staging.get_or_init(|| {
            swept = self.sweep(&staging);
            staging
        });
        swept.map_err(|source| failed("clear the staging folder of", source))?;
        Ok(staging)
    }

    /// The folder's absolute path, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.inner.path
    }

    /// Removes what an earlier daemon left unfinished.
    fn sweep(&self, staging: &OwnedFd) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(staging)? {
            let entry = entry?;
            if !entry.file_name().to_bytes().starts_with(self.inner.mark.as_bytes()) {
                continue;
            }
            match rustix::fs::unlinkat(staging, entry.file_name(), AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    std::fs::remove_dir_all(self.inner.path.join(STAGING).join(name))?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// The folder that `path` lies in, and its name there.
    fn parent<'a>(
        &self,
        path: &'a ObjectPath,
        make: Option<Flush>,
    ) -> Result<(OwnedFd, &'a str), Error> {
        let mut segments: Vec<&str> = path.segments().collect();
        let Some(name) = segments.pop() else { return Err(Error::NotFound(path.to_string())) };
        Ok((self.descend(path, &segments, make)?, name))
    }

    /// The folder at the end of `segments`, from the root, without following links.
    fn descend(
        &self,
        path: &ObjectPath,
        segments: &[&str],
        make: Option<Flush>,
    ) -> Result<OwnedFd, Error> {
        let outside = || Error::NotFound(path.to_string());
        if path.segments().next().is_some_and(|first| layout::is_named(first, STAGING)) {
            // Reserved: it cannot be made, and nothing is stored there.
            return Err(if make.is_some() { Error::Conflict(path.clone()) } else { outside() });
        }
        let mut at = self
            .inner
            .root
            .try_clone()
            .map_err(|source| io_error("open", path.as_str(), source))?;
        for segment in segments {
            let mut opened = open_folder_at(&at, segment);
            if let (Err(Errno::NOENT), Some(sync)) = (&opened, make) {
                match rustix::fs::mkdirat(&at, *segment, Mode::from(0o755)) {
                    Ok(()) if sync == Flush::Each => rustix::fs::fsync(&at)
                        .map_err(|errno| io_error("store", path.as_str(), errno.into()))?,
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(io_error("store", path.as_str(), errno.into())),
                }
                opened = open_folder_at(&at, segment);
            }
            at = match opened {
                Ok(folder) => folder,
                Err(Errno::NOENT) => return Err(outside()),
                Err(Errno::NOTDIR | Errno::LOOP) if is_link(&at, segment) => {
                    return Err(Error::Link(path.to_string()));
                }
                Err(Errno::NOTDIR) if make.is_some() => return Err(Error::Conflict(path.clone())),
                Err(Errno::NOTDIR) => return Err(outside()),
                Err(errno) => return Err(io_error("open", path.as_str(), errno.into())),
            };
        }
        Ok(at)
    }

    pub(super) async fn head(&self, path: &ObjectPath) -> Result<Meta, Error> {
        Ok(self.open(path).await?.meta)
    }

    pub(super) async fn open(&self, path: &ObjectPath) -> Result<OpenedFile, Error> {
        let (folder, path) = (self.clone(), path.clone());
        self.run(Step::Short, move || folder.open_now(&path)).await
    }

    /// [`Folder::open`] on this thread.
    pub(super) fn open_now(&self, path: &ObjectPath) -> Result<OpenedFile, Error> {
        let (parent, name) = self.parent(path, None)?;
        // Without NONBLOCK, opening a named pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Err(Error::NotFound(path.to_string())),
            Err(Errno::LOOP) => return Err(Error::Link(path.to_string())),
            Err(errno) => return Err(io_error("open", path.as_str(), errno.into())),
        };
        let stat = rustix::fs::fstat(&file)
            .map_err(|errno| io_error("open", path.as_str(), errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::NotFound(path.to_string()));
        }
        let source = OpenFile { file, path: path.clone(), pace: self.inner.pace.clone() };
        Ok(OpenedFile { meta: meta_of(&stat), source })
    }

    pub(super) async fn put_stream<S, E>(
        &self,
        path: &ObjectPath,
        bytes: S,
        still: Still,
    ) -> Result<Meta, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let folder = self.clone();
        let mut bytes = pin!(bytes);
        let mut staged = self.run(Step::Short, move || folder.stage()).await?;
        loop {
            let (mut gathered, mut length) = (Vec::new(), 0);
            while length < WRITE {
                match bytes.next().await {
                    Some(Ok(piece)) => {
                        length += piece.len();
                        gathered.push(piece);
                    }
                    Some(Err(error)) => {
                        drop(staged);
                        return Err(Error::Interrupted(error.into()));
                    }
                    None => break,
                }
            }
            let at = path.clone();
            if length < WRITE {
                // Whoever gave up may have stored another object there since.
                let (_waits, awaited) = Waits::new();
                let still = move || match awaited.still() {
                    true => still(),
                    false => Err("nobody waits for it any more".to_owned()),
                };
                let publish = move || {
                    staged.write(&at, &gathered)?;
                    let meta = staged.meta(&at)?;
                    staged.folder.clone().publish_if(&still, vec![(staged, at)])?;
                    Ok(meta)
                };
                return self.run(Step::Long, publish).await;
            }
            let write = move || {
                staged.write(&at, &gathered)?;
                Ok(staged)
            };
            staged = self.run(Step::Short, write).await?;
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        step: Step,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.inner.pace.run(step, work).await
    }

    fn staged_name(&self) -> String {
        format!("{}{}", self.inner.mark, self.inner.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A new file in the staging folder.
    pub(super) fn stage(&self) -> Result<Staged, Error> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let staging = self.staging()?;
        loop {
            let name = self.staged_name();
            match rustix::fs::openat(staging, &*name, flags, Mode::from(0o644)) {
                Ok(fd) => {
                    return Ok(Staged {
                        folder: self.clone(),
                        name,
                        file: Some(File::from(fd)),
                        placed: false,
                    });
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(io_error("store in", STAGING, errno.into())),
            }
        }
    }

    /// Gives staged files their places, in this order. Durable when this returns.
    ///
    /// Bytes are durable before any file has its place. The places themselves become durable
    /// together or, after a crash, up to some file of the order: journalling file systems keep the
    /// order of renames.
    pub(super) fn publish(&self, files: Vec<(Staged, ObjectPath)>) -> Result<(), Error> {
        self.publish_if(&|| Ok(()), files)
    }

    /// [`Folder::publish`], unless there is a reason against it when all is on the disk.
    fn publish_if(
        &self,
        still: &dyn Fn() -> Result<(), String>,
        files: Vec<(Staged, ObjectPath)>,
    ) -> Result<(), Error> {
        let Some((_, first)) = files.first() else { return Ok(()) };
        let failed =
            |path: &ObjectPath, errno: Errno| io_error("store", path.as_str(), errno.into());
        let sync = if files.len() < SYNC_ALL_FROM { Flush::Each } else { Flush::All };
        let first = first.clone();
        match sync {
            Flush::Each => {
                for (staged, path) in &files {
                    staged.sync().map_err(|errno| failed(path, errno))?;
                }
            }
            Flush::All => {
                rustix::fs::syncfs(&self.inner.root).map_err(|errno| failed(&first, errno))?;
            }
        }
        for (mut staged, path) in files {
            still().map_err(|why| Error::Interrupted(why.into()))?;
            self.place(&mut staged, &path, sync)?;
        }
        if sync == Flush::All {
            rustix::fs::syncfs(&self.inner.root).map_err(|errno| failed(&first, errno))?;
        }
        Ok(())
    }

    fn place(&self, staged: &mut Staged, path: &ObjectPath, sync: Flush) -> Result<(), Error> {
        // The folder may be deleted between finding it and renaming into it; then it is made anew.
        for _ in 0..8 {
            let (parent, name) = self.parent(path, Some(sync))?;
            match rustix::fs::renameat(self.staging()?, &*staged.name, &parent, name) {
                Ok(()) => {
                    staged.placed = true;
                    if sync == Flush::Each {
                        rustix::fs::fsync(&parent)
                            .map_err(|errno| io_error("store", path.as_str(), errno.into()))?;
                    }
                    return Ok(());
                }
                Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => return Err(Error::Conflict(path.clone())),
                Err(errno) => return Err(io_error("store", path.as_str(), errno.into())),
            }
        }
        let source = io::Error::other("its folder is deleted again and again");
        Err(io_error("store", path.as_str(), source))
    }

    pub(super) async fn list(
        &self,
        below: Option<&ObjectPath>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        let (folder, below, after) =
            (self.clone(), below.cloned(), after.unwrap_or_default().to_owned());
        self.run(Step::Long, move || folder.list_now(below.as_ref(), &after, limit)).await
    }

    pub(super) async fn delete(&self, path: &ObjectPath) -> Result<(), Error> {
        let (folder, path) = (self.clone(), path.clone());
        self.run(Step::Long, move || folder.delete_now(&path)).await
    }

    pub(super) async fn delete_object(&self, path: &ObjectPath) -> Result<(), Error> {
        let (folder, path) = (self.clone(), path.clone());
        let delete = move || {
            let (parent, name) = folder.parent(&path, None)?;
            let failed = |errno: Errno| match errno {
                Errno::NOENT | Errno::ISDIR => Error::NotFound(path.to_string()),
                errno => io_error("delete", path.as_str(), errno.into()),
            };
            rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(failed)?;
            rustix::fs::fsync(&parent).map_err(failed)
        };
        self.run(Step::Short, delete).await
    }

    /// Moves what is there out of the way at once, then removes it.
    pub(super) fn delete_now(&self, path: &ObjectPath) -> Result<(), Error> {
        let (parent, name) = match self.parent(path, None) {
            Ok(found) => found,
            Err(Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let failed = |source| io_error("delete", path.as_str(), source);
        let (staging, trash) = (self.staging()?, self.staged_name());
        match rustix::fs::renameat(&parent, name, staging, &*trash) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno.into())),
        }
        rustix::fs::fsync(&parent).map_err(|errno| failed(errno.into()))?;
        match rustix::fs::unlinkat(staging, &*trash, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                std::fs::remove_dir_all(self.inner.path.join(STAGING).join(trash)).map_err(failed)
            }
            other => other.map_err(|errno| failed(errno.into())),
        }
    }
}

impl Staged {
    /// Nothing more will be written: many staged files must not hold many descriptors.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    fn sync(&self) -> rustix::io::Result<()> {
        match &self.file {
            Some(file) => rustix::fs::fsync(file),
            None => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let staging = self.folder.inner.staging.get().ok_or(Errno::BADF)?;
                rustix::fs::fsync(rustix::fs::openat(staging, &*self.name, flags, Mode::empty())?)
            }
        }
    }

    pub(super) fn write(&mut self, path: &ObjectPath, pieces: &[Bytes]) -> Result<(), Error> {
        let Some(file) = &mut self.file else { return Ok(()) };
        pieces
            .iter()
            .try_for_each(|piece| file.write_all(piece))
            .map_err(|source| io_error("store", path.as_str(), source))
    }

    fn meta(&self, path: &ObjectPath) -> Result<Meta, Error> {
        let stat = match &self.file {
            Some(file) => rustix::fs::fstat(file),
            None => Err(Errno::BADF),
        };
        stat.map(|stat| meta_of(&stat))
            .map_err(|errno| io_error("store", path.as_str(), errno.into()))
    }
}

/// How files and folders are made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flush {
    /// Each by itself, at once.
    Each,
    /// The whole file system, by the caller.
    All,
}

/// An open object.
pub(super) struct OpenFile {
    file: File,
    path: ObjectPath,
    pace: Pace,
}

impl OpenFile {
    pub(super) fn stream(self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, Error>> {
        let pace = self.pace.clone();
        futures::stream::try_unfold((self, range), move |(source, range)| {
            let pace = pace.clone();
            async move {
                if range.is_empty() {
                    return Ok(None);
                }
                let read = move || {
                    let length = (range.end - range.start).min(READ);
                    let piece = source.read(range.start, length)?;
                    Ok(Some((piece, (source, range.start + length..range.end))))
                };
                pace.run(Step::Short, read).await
            }
        })
    }

    /// Exactly these bytes, on this thread.
    pub(super) fn read(&self, start: u64, length: u64) -> Result<Bytes, Error> {
        let mut piece = Vec::with_capacity(length as usize);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.take(length).read_to_end(&mut piece))
            .and_then(|read| match read as u64 == length {
                true => Ok(piece.into()),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            })
            .map_err(|source| io_error("read", self.path.as_str(), source))
    }
}

/// The tag changes with the content: every store of an object makes a new file (inode and time).
fn meta_of(stat: &Stat) -> Meta {
    let (inode, size) = (stat.st_ino, stat.st_size);
    let etag = format!("\"{inode:x}-{:x}.{:x}-{size:x}\"", stat.st_mtime, stat.st_mtime_nsec);
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let modified = stat.st_mtime.saturating_mul(1000).saturating_add(nanos / 1_000_000);
    let modified = Timestamp::from_millis(modified);
    Meta { size: u64::try_from(size).unwrap_or(0), etag, modified }
}

fn open_folder_at(at: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn is_link(at: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn io_error(operation: &'static str, path: &str, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full,
        _ => Error::Io { operation, path: path.to_owned(), source },
    }
}

/// Runs work that waits for the disk on the runtime's threads for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io_error("work on", "a datastore", io::Error::other(error))),
    }
}
