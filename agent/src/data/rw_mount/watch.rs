//! What becomes of the files of outputs, as the kernel tells it (inotify).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::below;
use crate::pollable;

/// Folders watched at most, for each attempt: the kernel bounds them for each user.
const MOST: usize = 8192;
/// Events read at once; each takes at least 16 bytes.
const BUFFER: usize = 16 * 1024;

/// Something has changed. Paths are below the attempt's outputs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Somebody has written a file and closed it, or it came by a rename.
    Closed(String),
    /// A file is there. It may be written still.
    Found(String),
    /// A file or a folder is there no more.
    Gone(String),
    /// More than could be told: all is to be looked at.
    Lost,
}

/// Watches the folders of outputs.
#[derive(Debug)]
pub(super) struct Watch {
    events: AsyncFd<OwnedFd>,
    root: Arc<OwnedFd>,
    /// Names at the top that are looked at.
    wanted: BTreeSet<String>,
    folders: HashMap<i32, String>,
    /// Whether some folder is not watched.
    blind: bool,
}

impl Watch {
    /// Watches what is there; nothing is told of that.
    ///
    /// # Errors
    /// The kernel gives no more watches to this user.
    pub(super) fn open(root: Arc<OwnedFd>, wanted: BTreeSet<String>) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = pollable::readable(events)?;
        let folders = HashMap::new();
        let mut watch = Self { events, root, wanted, folders, blind: false };
        watch.add(String::new(), &mut Vec::new());
        Ok(watch)
    }

    /// Whether some folder is not watched, and has to be looked at from time to time.
    pub(super) fn is_blind(&self) -> bool {
        self.blind
    }

    fn is_wanted(&self, path: &str) -> bool {
        let top = path.split('/').next().unwrap_or_default();
        self.wanted.contains(top)
    }

    /// Watches a folder and all below it, and tells what is there: it may have come before the watch did.
    fn add(&mut self, folder: String, changes: &mut Vec<Change>) {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            match self.add_one(&folder) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    tracing::debug!(folder, %error, "a folder of outputs cannot be watched");
                    self.blind = true;
                    continue;
                }
            }
            // What cannot be read now is found by a later look.
            let level = below::level(&self.root, &folder).unwrap_or_default();
            folders.extend(level.folders.into_iter().filter(|path| self.is_wanted(path)));
            let files = level.files.into_iter().filter(|path| self.is_wanted(path));
            changes.extend(files.map(Change::Found));
        }
    }

    /// `false`: it is gone.
    fn add_one(&mut self, folder: &str) -> io::Result<bool> {
        if self.folders.len() >= MOST {
            return Err(Errno::NOSPC.into());
        }
        let open = match below::folder(&self.root, folder) {
            Ok(open) => open,
            Err(error) if below::is_gone(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        // By its number, since the name may be a link by now.
        let by_number = format!("/proc/self/fd/{}", open.as_raw_fd());
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        let number = inotify::add_watch(self.events.get_ref(), by_number, flags)?;
        // A folder that was moved has the number that it had.
        self.folders.insert(number, folder.to_owned());
        Ok(true)
    }

    /// Watches a folder that went elsewhere no more.
    fn forget(&mut self, folder: &str) {
        let inner = format!("{folder}/");
        let gone: Vec<i32> = self
            .folders
            .iter()
            .filter(|(_, path)| *path == folder || path.starts_with(&inner))
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.folders.remove(&number);
            let _ = inotify::remove_watch(self.events.get_ref(), number);
        }
    }

    /// Waits for changes.
    ///
    /// # Errors
    /// The kernel tells nothing more.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let told = {
                let mut ready = self.events.readable().await?;
                match read(self.events.get_ref()) {
                    Ok(told) => told,
                    Err(Errno::AGAIN) => {
                        ready.clear_ready();
                        continue;
                    }
                    Err(errno) => return Err(errno.into()),
                }
            };
            let mut changes = Vec::new();
            for event in told {
                self.note(event, &mut changes);
            }
            return Ok(changes);
        }
    }

    fn note(&mut self, Told { folder, flags, name }: Told, changes: &mut Vec<Change>) {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            changes.push(Change::Lost);
            // Folders may have come and gone.
            self.folders.clear();
            self.add(String::new(), changes);
            return;
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.folders.remove(&folder);
            return;
        }
        let (Some(above), Some(name)) = (self.folders.get(&folder), name) else { return };
        let path = if above.is_empty() { name } else { format!("{above}/{name}") };
        if !self.is_wanted(&path) {
            return;
        }
        let is_folder = flags.contains(ReadFlags::ISDIR);
        if flags.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
            if is_folder {
                self.forget(&path);
            }
            changes.push(Change::Gone(path));
        } else if is_folder {
            self.add(path, changes);
        } else if flags.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) {
            changes.push(Change::Closed(path));
        } else {
            // A link to a file is made whole, and never closed.
            changes.push(Change::Found(path));
        }
    }
}

/// An event as it is told.
struct Told {
    folder: i32,
    flags: ReadFlags,
    /// `None` if none of a datastore can be.
    name: Option<String>,
}

/// All events that there are, up to some number.
fn read(events: &OwnedFd) -> rustix::io::Result<Vec<Told>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(events, &mut buffer);
    let mut told = Vec::new();
    loop {
        let event = reader.next()?;
        let name = event.file_name().and_then(|name| below::plain(name.to_bytes()));
        told.push(Told {
            folder: event.wd(),
            flags: event.events(),
            name: name.map(str::to_owned),
        });
        if reader.is_buffer_empty() {
            return Ok(told);
        }
    }
}
