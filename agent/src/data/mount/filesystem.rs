//! What the kernel asks of a server (fuse(4)): names and sizes from memory, bytes from [`super::source`].
//!
//! Nothing that is shown ever changes, so the kernel may keep all it has learnt, pages included. A thread that the
//! kernel's requests come to never waits for the network.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};

use super::ahead::Ahead;
use super::failure::{Failure, Failures};
use super::partial::BLOCK;
use super::source::{Engine, Source};
use super::tree::{Body, Node, Tree};

/// How long the kernel may keep what it was told: nothing changes.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Of requests that the kernel makes ahead of a reader.
const BACKGROUND: u16 = 64;
/// What `stat` says of a block's size: how much programs had best read at once.
const BEST_READ: u32 = 1 << 20;
/// File systems that the one with the node's cache may lie on.
const STACKED: u32 = 2;

/// The inputs of an attempt as files.
pub(super) struct Inputs {
    tree: Arc<Tree>,
    engine: Arc<Engine>,
    failures: Arc<Failures>,
    /// When it was mounted, which is the time of all files.
    time: SystemTime,
    owner: (u32, u32),
    handles: Mutex<HashMap<u64, Opened>>,
    next: AtomicU64,
    /// By file: the kernel reads an open file through this process or by itself, not both.
    ways: Mutex<HashMap<u64, Way>>,
    passes_through: AtomicBool,
}

/// An open file.
#[derive(Clone)]
struct Opened {
    source: Arc<Source>,
    ahead: Arc<Mutex<Ahead>>,
}

/// How the kernel gets at the bytes of a file that is open.
#[derive(Default)]
struct Way {
    /// How often it is open.
    count: u32,
    /// It reads the cache's file itself.
    backing: Option<Arc<BackingId>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inputs {
    pub(super) fn new(tree: Arc<Tree>, engine: Arc<Engine>, failures: Arc<Failures>) -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self {
            tree,
            engine,
            failures,
            time: SystemTime::now(),
            owner,
            handles: Mutex::default(),
            next: AtomicU64::new(1),
            ways: Mutex::default(),
            passes_through: AtomicBool::new(false),
        }
    }

    fn attributes(&self, number: u64, node: &Node) -> FileAttr {
        let (kind, perm, size, nlink) = match &node.body {
            Body::Folder { .. } => (FileType::Directory, 0o555, 4096, 2),
            Body::File { size, .. } => (FileType::RegularFile, 0o444, *size, 1),
        };
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            crtime: self.time,
            kind,
            perm,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BEST_READ,
            flags: 0,
        }
    }

    /// The entries of a folder with the two that every folder has, from a place on.
    fn entries(&self, folder: u64, from: u64) -> Option<impl Iterator<Item = (u64, u64, &str)>> {
        let own = [(folder, "."), (self.tree.parent(folder), "..")];
        let further = self.tree.children(folder, from.saturating_sub(own.len() as u64))?;
        let skipped = usize::try_from(from).unwrap_or(usize::MAX);
        let all = own.into_iter().skip(skipped).chain(further);
        Some((from + 1..).zip(all).map(|(next, (number, name))| (next, number, name)))
    }

    /// Lets the kernel read the cache's file by itself, if it may and all of the object is there.
    fn backing(&self, source: &Source, reply: &ReplyOpen) -> Option<Arc<BackingId>> {
        if !self.passes_through.load(Ordering::Relaxed) {
            return None;
        }
        match reply.open_backing(&*source.whole()?) {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                tracing::info!(%error, "the kernel does not read the cache by itself");
                self.passes_through.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    /// Bytes that lie in one block, if they are on this node.
    fn at_hand(source: &Source, offset: u64, end: u64) -> Option<Bytes> {
        let is_one = offset / BLOCK == (end - 1) / BLOCK;
        is_one.then(|| source.at_hand(offset, (end - offset) as usize)).flatten()
    }
}

/// Bytes from anywhere.
async fn gather(source: &Arc<Source>, offset: u64, end: u64) -> Result<Bytes, Failure> {
    let mut all = BytesMut::new();
    let mut at = offset;
    while at < end {
        let block = (at / BLOCK) as u32;
        let to = end.min((u64::from(block) + 1) * BLOCK);
        let piece = match source.at_hand(at, (to - at) as usize) {
            Some(piece) => piece,
            None => {
                let whole = source.fetch(block).await?;
                let from = (at % BLOCK) as usize;
                whole.slice(from..from + (to - at) as usize)
            }
        };
        if at == offset && to == end {
            return Ok(piece);
        }
        all.extend_from_slice(&piece);
        at = to;
    }
    Ok(all.freeze())
}

impl Filesystem for Inputs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ] {
            // An older kernel does without.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_background(BACKGROUND);
        let passes = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACKED).is_ok();
        self.passes_through = AtomicBool::new(passes);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = name.to_str().and_then(|name| self.tree.find(parent.0, name));
        match found.and_then(|number| Some((number, self.tree.node(number)?))) {
            Some((number, node)) => {
                reply.entry(&FOREVER, &self.attributes(number, node), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree.node(ino.0) {
            Some(node) => reply.attr(&FOREVER, &self.attributes(ino.0, node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(entries) = self.entries(ino.0, offset) else { return reply.error(Errno::ENOTDIR) };
        for (next, number, name) in entries {
            let is_folder = |node: &Node| matches!(node.body, Body::Folder { .. });
            let kind = match self.tree.node(number).is_some_and(is_folder) {
                true => FileType::Directory,
                false => FileType::RegularFile,
            };
            if reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some(entries) = self.entries(ino.0, offset) else { return reply.error(Errno::ENOTDIR) };
        for (next, number, name) in entries {
            let Some(node) = self.tree.node(number) else { continue };
            let attributes = self.attributes(number, node);
            if reply.add(INodeNo(number), next, name, &FOREVER, &attributes, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(object) = self.tree.object(ino.0) else { return reply.error(Errno::EISDIR) };
        let source = self.engine.source(object);
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let mut ways = locked(&self.ways);
        let way = ways.entry(ino.0).or_default();
        if way.count == 0 {
            way.backing = self.backing(&source, &reply);
        }
        way.count += 1;
        let backing = way.backing.clone();
        let ahead = Arc::default();
        locked(&self.handles).insert(handle, Opened { source, ahead });
        match backing {
            Some(id) => reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &id),
            None => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let opened = locked(&self.handles).get(&fh.0).cloned();
        let Some(Opened { source, ahead }) = opened else { return reply.error(Errno::EBADF) };
        let end = source.object.size.min(offset.saturating_add(u64::from(size)));
        if offset >= end {
            return reply.data(&[]);
        }
        let wanted = locked(&ahead).read(offset, end, source.blocks());
        for block in wanted {
            if !source.has(block) {
                drop(source.fetch(block));
            }
        }
        if let Some(bytes) = Self::at_hand(&source, offset, end) {
            return reply.data(&bytes);
        }
        let failures = Arc::clone(&self.failures);
        self.engine.runtime().spawn(async move {
            match gather(&source, offset, end).await {
                Ok(bytes) => reply.data(&bytes),
                Err(failure) => {
                    failures.note(&failure);
                    reply.error(Errno::EIO);
                }
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let opened = locked(&self.handles).remove(&fh.0);
        let mut ways = locked(&self.ways);
        if let Some(way) = ways.get_mut(&ino.0) {
            way.count = way.count.saturating_sub(1);
            if way.count == 0 {
                ways.remove(&ino.0);
            }
        }
        drop(ways);
        drop(opened);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let size = 4096;
        let blocks = self.tree.bytes().div_ceil(u64::from(size));
        reply.statfs(blocks, 0, 0, self.tree.len(), 0, size, 255, size);
    }
}
