//! A large object of which the node has some blocks: a sparse file, and beside it a map with one byte for each
//! block.
//!
//! Several servers and the agent use the same files at once:
//! - **What is written is the same, whoever writes it:** the file's name follows from the object's tag, so two
//!   that write a block write equal bytes.
//! - **A block is there once its byte in the map says so,** and that is written after the block.
//! - **Who empties a block** takes its byte away first, then counts that in the map's head, and only then gives the
//!   room back; all under a lock on the map. Who reads one that was there looks afterwards that nothing was emptied
//!   meanwhile; who fills one looks so under the lock.
//! - **Once all blocks are there they are sealed:** none is emptied any more, so that the kernel may read the file
//!   by itself while it is still on its way to its place among whole files.
//! - **Who uses the file holds a shared lock on it;** it is removed only by who gets it alone.
//! - The map names the boot in which it was written: what was on its way to the disk when the machine went down is
//!   not taken for read.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use atelier_core::content::Digest;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use crate::data::cache::{Cache, Kind};
use crate::proc;

/// Bytes of a block, the last one of an object may have fewer.
pub(in crate::data) const BLOCK: u64 = 4 << 20;
/// Bytes that are written at once. For a long write ext4 and XFS take runs of pages as long as it, and in a virtual
/// machine whose host takes back what is free those are the ones that it must give anew: a tenth of the speed.
const PIECE: usize = 1 << 20;
/// Bytes of a map before the first block's.
const HEAD: u64 = 64;
/// Where in the head the number of emptied blocks is, and whether the object is whole; before it is the boot.
const EMPTIED: u64 = 40;
const WHOLE: u64 = 48;
/// All blocks are there, and stay.
const SEALED: u64 = 1;
/// The file has its place among whole ones.
const MOVED: u64 = 2;
/// How often somebody may take the files away while they are opened.
const TRIES: u32 = 16;

/// The ending of a map's name.
pub(in crate::data) const MAP: &str = "map";

/// An object's blocks, open. While this lives nobody removes them.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    size: u64,
    data: File,
    map: File,
    /// The lock on the map keeps out others, not this process.
    turn: Mutex<()>,
    /// Which blocks were read since this was last asked.
    used: Vec<AtomicBool>,
}

/// How many blocks an object has.
pub(super) fn blocks(size: u64) -> u32 {
    u32::try_from(size.div_ceil(BLOCK)).unwrap_or(u32::MAX)
}

/// Gives a lock back.
struct Locked<'a>(&'a File);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

fn lock(file: &File) -> io::Result<Locked<'_>> {
    flock(file, FlockOperation::LockExclusive)?;
    Ok(Locked(file))
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    File::options().read(true).write(true).create(create).truncate(false).open(path)
}

impl Partial {
    /// Opens the blocks at `path`; `create`: made if there are none.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without `create`, or what the file system says.
    pub(super) fn open(path: &Path, size: u64, boot: &str, create: bool) -> io::Result<Self> {
        let beside = path.with_extension(MAP);
        for _ in 0..TRIES {
            let map = match open(&beside, create) {
                Err(error) if error.kind() == ErrorKind::NotFound && create => {
                    fs::create_dir_all(path.parent().unwrap_or(path))?;
                    open(&beside, create)?
                }
                other => other?,
            };
            let held = lock(&map)?;
            if map.metadata()?.nlink() == 0 {
                // Somebody has removed it, or it is whole by now.
                if !create {
                    return Err(ErrorKind::NotFound.into());
                }
                continue;
            }
            let data = match (has_boot(&map, boot), path.exists()) {
                (true, true) => open(path, false)?,
                // The file has its place among whole ones, and who put it there was killed before the map was gone.
                // Somebody may have both open.
                (true, false) if create => {
                    fs::remove_file(&beside)?;
                    continue;
                }
                (false, _) if create => begin(path, &map, size, boot)?,
                _ => return Err(ErrorKind::NotFound.into()),
            };
            flock(&data, FlockOperation::LockShared)?;
            drop(held);
            let used = (0..blocks(size)).map(|_| AtomicBool::new(false)).collect();
            return Ok(Self {
                path: path.to_owned(),
                size,
                data,
                map,
                turn: Mutex::default(),
                used,
            });
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Whether a block is there.
    pub(super) fn has(&self, block: u32) -> io::Result<bool> {
        let mut state = [0];
        self.map.read_exact_at(&mut state, HEAD + u64::from(block))?;
        Ok(state[0] != 0)
    }

    /// The blocks that are there.
    pub(super) fn present(&self) -> io::Result<Vec<u32>> {
        let mut states = vec![0; blocks(self.size) as usize];
        self.map.read_exact_at(&mut states, HEAD)?;
        let there = (0..).zip(states).filter(|(_, state)| *state != 0);
        Ok(there.map(|(block, _)| block).collect())
    }

    /// Reads bytes that lie in one block; whether they were there, to the end of reading.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<bool> {
        let block = (offset / BLOCK) as u32;
        let emptied = self.head(EMPTIED)?;
        if !self.has(block)? {
            return Ok(false);
        }
        self.data.read_exact_at(into, offset)?;
        if let Some(used) = self.used.get(block as usize) {
            used.store(true, Ordering::Relaxed);
        }
        Ok(self.head(EMPTIED)? == emptied)
    }

    /// Whether a block was read since this was last asked of it.
    pub(super) fn was_used(&self, block: u32) -> bool {
        self.used.get(block as usize).is_some_and(|used| used.swap(false, Ordering::Relaxed))
    }

    fn head(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.map.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Keeps a block; whether all are there now.
    pub(super) fn fill(&self, block: u32, bytes: &[u8]) -> io::Result<bool> {
        let at = u64::from(block) * BLOCK;
        let emptied = self.head(EMPTIED)?;
        self.write(bytes, at)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _held = lock(&self.map)?;
        if self.head(EMPTIED)? != emptied {
            // It may have been this one.
            self.write(bytes, at)?;
        }
        self.map.write_all_at(&[1], HEAD + u64::from(block))?;
        Ok(self.present()?.len() == blocks(self.size) as usize)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut pieces = (at..).step_by(PIECE).zip(bytes.chunks(PIECE));
        pieces.try_for_each(|(at, piece)| self.data.write_all_at(piece, at))
    }

    /// Gives a block's room back; how many bytes that was at most.
    pub(super) fn empty(&self, block: u32) -> io::Result<u64> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _held = lock(&self.map)?;
        if self.head(WHOLE)? != 0 || !self.has(block)? {
            return Ok(0);
        }
        self.map.write_all_at(&[0], HEAD + u64::from(block))?;
        self.map.write_all_at(&(self.head(EMPTIED)? + 1).to_ne_bytes(), EMPTIED)?;
        let at = u64::from(block) * BLOCK;
        let length = BLOCK.min(self.size - at);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.data, flags, at, length)?;
        Ok(length)
    }

    /// Keeps all blocks from being emptied, if all are there; whether they are.
    pub(super) fn seal(&self) -> io::Result<bool> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _held = lock(&self.map)?;
        if self.present()?.len() < blocks(self.size) as usize {
            return Ok(false);
        }
        if self.head(WHOLE)? == 0 {
            self.map.write_all_at(&SEALED.to_ne_bytes(), WHOLE)?;
        }
        Ok(true)
    }

    /// Makes it the whole object's file at `to`, once it is sealed; it is on the disk then.
    pub(super) fn finish(&self, to: &Path) -> io::Result<()> {
        // Before the name says that all is there, a loss of power must not make holes of it.
        self.data.sync_data()?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _held = lock(&self.map)?;
        if self.head(WHOLE)? != SEALED {
            return Ok(());
        }
        self.data.set_permissions(Permissions::from_mode(0o644))?;
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        fs::rename(&self.path, to)?;
        self.map.write_all_at(&MOVED.to_ne_bytes(), WHOLE)?;
        fs::remove_file(self.path.with_extension(MAP))
    }

    /// The file itself, which stays the same when it is whole.
    pub(super) fn file(&self) -> io::Result<File> {
        self.data.try_clone()
    }
}

fn has_boot(map: &File, boot: &str) -> bool {
    let mut head = [0; EMPTIED as usize];
    map.read_exact_at(&mut head, 0).is_ok() && head.starts_with(boot.as_bytes())
}

/// Makes both files anew, under the lock on the map.
fn begin(path: &Path, map: &File, size: u64, boot: &str) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    map.set_len(0)?;
    map.set_len(HEAD + u64::from(blocks(size)))?;
    let data = File::options().read(true).write(true).create_new(true).open(path)?;
    data.set_len(size)?;
    let mut head = [0; EMPTIED as usize];
    let length = boot.len().min(head.len());
    head[..length].copy_from_slice(&boot.as_bytes()[..length]);
    map.write_all_at(&head, 0)?;
    Ok(data)
}

/// Makes an object's blocks in the cache its whole file there, if all of them are; whether they were.
pub(in crate::data) fn finish(cache: &Cache, id: Digest, size: u64) -> io::Result<bool> {
    if size <= BLOCK {
        return Ok(false);
    }
    let path = cache.place((Kind::Blocks, id));
    match Partial::open(&path, size, &proc::boot_id()?, false) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        opened => {
            let partial = opened?;
            let is_whole = partial.seal()?;
            if is_whole {
                partial.finish(&cache.place((Kind::Files, id)))?;
            }
            Ok(is_whole)
        }
    }
}

/// Removes the blocks at `path` unless somebody uses them; whether they are gone.
pub(in crate::data) fn remove(path: &Path) -> io::Result<bool> {
    let beside = path.with_extension(MAP);
    let map = match open(&beside, false) {
        Ok(map) => Some(map),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let _held = map.as_ref().map(lock).transpose()?;
    if !is_unused(path)? {
        return Ok(false);
    }
    for path in [path, &beside] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(true)
}

/// Whether no process holds a file by a lock. One that is not there nobody holds.
pub(in crate::data) fn is_unused(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    const BOOT: &str = "a boot";
    const SIZE: u64 = 3 * BLOCK + 5;

    fn block(number: u32) -> Vec<u8> {
        let length = BLOCK.min(SIZE - u64::from(number) * BLOCK);
        vec![number as u8 + 1; length as usize]
    }

    fn read(partial: &Partial, number: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; block(number).len()];
        partial.read(u64::from(number) * BLOCK, &mut bytes).unwrap().then_some(bytes)
    }

    #[test]
    fn blocks_come_and_go_and_all_of_them_are_the_object() {
        let folder = tempfile::tempdir().unwrap();
        let (path, whole) = (folder.path().join("b/x"), folder.path().join("f/x"));
        assert_eq!(
            Partial::open(&path, SIZE, BOOT, false).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        let partial = Partial::open(&path, SIZE, BOOT, true).unwrap();
        let other = Partial::open(&path, SIZE, BOOT, true).unwrap();
        for number in [3, 0, 1] {
            assert!(!partial.fill(number, &block(number)).unwrap());
            assert_eq!(read(&other, number).unwrap(), block(number));
        }
        assert_eq!((read(&other, 2), other.present().unwrap()), (None, vec![0, 1, 3]));
        assert_eq!(other.empty(0).unwrap(), BLOCK);
        assert_eq!((other.empty(0).unwrap(), read(&partial, 0)), (0, None));
        assert!(!remove(&path).unwrap(), "it is in use");
        assert!(!partial.seal().unwrap());
        other.fill(0, &block(0)).unwrap();
        assert!(partial.fill(2, &block(2)).unwrap());
        assert!(partial.seal().unwrap());
        // From now on it stays.
        assert_eq!((other.empty(1).unwrap(), read(&other, 1).unwrap()), (0, block(1)));
        for each in [&partial, &other] {
            each.finish(&whole).unwrap();
        }
        assert_eq!(fs::read(&whole).unwrap(), (0..4).flat_map(block).collect::<Vec<u8>>());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        // It is everybody's now.
        assert_eq!((other.empty(1).unwrap(), read(&other, 1).unwrap()), (0, block(1)));
    }

    #[test]
    fn what_another_boot_wrote_and_what_nobody_uses_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        Partial::open(&path, SIZE, BOOT, true).unwrap().fill(1, &block(1)).unwrap();
        assert!(Partial::open(&path, SIZE, BOOT, false).unwrap().has(1).unwrap());
        assert!(Partial::open(&path, SIZE, "another", false).is_err());
        let anew = Partial::open(&path, SIZE, "another", true).unwrap();
        assert_eq!(read(&anew, 1), None);
        drop(anew);
        assert!(remove(&path).unwrap() && remove(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn nobody_reads_what_is_emptied_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let open = || Partial::open(&path, SIZE, BOOT, true).unwrap();
        let (there, changing, rounds) = (AtomicU32::new(0), AtomicU32::new(2), 300);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let partial = open();
                    for _ in 0..rounds {
                        partial.fill(3, &block(3)).unwrap();
                        partial.fill(0, &block(0)).unwrap();
                        partial.empty(3).unwrap();
                        partial.empty(0).unwrap();
                    }
                    changing.fetch_sub(1, Ordering::Relaxed);
                });
            }
            scope.spawn(|| {
                let partial = open();
                while changing.load(Ordering::Relaxed) > 0 {
                    for number in [0, 3] {
                        if let Some(bytes) = read(&partial, number) {
                            assert!(bytes == block(number), "holes in block {number}");
                            there.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        });
        assert!(there.into_inner() > 0);
    }
}
