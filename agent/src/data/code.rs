//! A code snapshot as fresh files.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use atelier_core::content::{
    self, Digest, Directory, EntryKind, FileContent, LinkTarget, List, MAX_DEPTH, Object, decode,
};

use super::Error;
use super::cache::Pin;
use super::content::Source;
use super::error::blocking;

/// Threads that write files.
const WRITERS: usize = 4;

/// What a snapshot holds, relative to its root.
#[derive(Default)]
struct Tree {
    /// Parents before children.
    folders: Vec<PathBuf>,
    files: Vec<TreeFile>,
    links: Vec<(PathBuf, LinkTarget)>,
}

struct TreeFile {
    path: PathBuf,
    executable: bool,
    size: u64,
    content: FileContent,
}

/// Puts the snapshot into an existing folder. May be done again over what an earlier try left.
pub(super) async fn materialise(source: &Source, root: Digest, into: &Path) -> Result<(), Error> {
    let mut pins = HashMap::new();
    let tree = read_tree(source, root, &mut pins).await?;
    fetch_files(source, &tree.files, &mut pins).await?;

    let base = into.to_owned();
    let (folders, files, links) = (tree.folders, tree.files, tree.links);
    let at = base.clone();
    blocking(move || folders.iter().try_for_each(|folder| make_folder(&at.join(folder)))).await?;
    let per_writer = files.len().div_ceil(WRITERS).max(1);
    let mut groups: Vec<Vec<TreeFile>> = Vec::new();
    for (number, file) in files.into_iter().enumerate() {
        if number % per_writer == 0 {
            groups.push(Vec::with_capacity(per_writer));
        }
        if let Some(group) = groups.last_mut() {
            group.push(file);
        }
    }
    let writers = groups.into_iter().map(|group| {
        let (source, base) = (source.clone(), base.clone());
        blocking(move || group.iter().try_for_each(|file| write_file(&source, &base, file)))
    });
    futures::future::try_join_all(writers).await?;
    // Last, so that no file was written through one.
    blocking(move || make_links(&base, &links)).await
}

/// Reads directories level by level, each level with one request.
async fn read_tree(
    source: &Source,
    root: Digest,
    pins: &mut HashMap<Digest, Pin>,
) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    let mut level = vec![(PathBuf::new(), root)];
    for _ in 0..=MAX_DEPTH {
        if level.is_empty() {
            return Ok(tree);
        }
        let digests: Vec<Digest> = level.iter().map(|(_, digest)| *digest).collect();
        pins.extend(source.fetch(&digests).await?);
        // Large directories come in parts, all of a level with one more request.
        let objects = read_all(source, digests.clone()).await?;
        let mut parts: Vec<Digest> = Vec::new();
        for (digest, bytes) in digests.iter().zip(&objects) {
            let object = decode(bytes).map_err(|error| Error::snapshot(*digest, &error))?;
            if let Object::Parts(of_this) = object {
                parts.extend(of_this);
            }
        }
        pins.extend(source.fetch(&parts).await?);
        let part_bytes = read_all(source, parts.clone()).await?;
        let by_digest: HashMap<Digest, &Vec<u8>> = parts.iter().copied().zip(&part_bytes).collect();

        let mut next = Vec::new();
        for ((path, digest), bytes) in level.iter().zip(&objects) {
            let directory = directory(*digest, bytes, &by_digest)?;
            for entry in directory.into_entries() {
                let path = path.join(std::ffi::OsStr::from_bytes(entry.name.as_bytes()));
                match entry.kind {
                    EntryKind::Directory(digest) => {
                        tree.folders.push(path.clone());
                        next.push((path, digest));
                    }
                    EntryKind::File { executable, size, content } => {
                        tree.files.push(TreeFile { path, executable, size, content });
                    }
                    EntryKind::Symlink(target) => tree.links.push((path, target)),
                }
            }
        }
        level = next;
    }
    let problem = format!("directories are nested more than {MAX_DEPTH} deep");
    Err(Error::Snapshot { digest: root, problem })
}

async fn read_all(source: &Source, digests: Vec<Digest>) -> Result<Vec<Vec<u8>>, Error> {
    let source = source.clone();
    blocking(move || digests.into_iter().map(|digest| source.read(digest)).collect()).await
}

fn directory(
    digest: Digest,
    bytes: &[u8],
    parts: &HashMap<Digest, &Vec<u8>>,
) -> Result<Directory, Error> {
    let wrong = |digest: Digest, error: &content::Error| Error::snapshot(digest, error);
    let unexpected = content::Error::Unexpected { expected: "a directory" };
    match decode(bytes).map_err(|error| wrong(digest, &error))? {
        Object::Directory(directory) => Ok(directory),
        Object::Parts(of_this) => {
            let mut directories = Vec::with_capacity(of_this.len());
            for part in of_this {
                let Some(bytes) = parts.get(&part) else { return Err(wrong(part, &unexpected)) };
                match decode(bytes).map_err(|error| wrong(part, &error))? {
                    Object::Directory(directory) => directories.push(directory),
                    _ => return Err(wrong(part, &unexpected)),
                }
            }
            content::join(directories).map_err(|error| wrong(digest, &error))
        }
        _ => Err(wrong(digest, &unexpected)),
    }
}

/// Fetches the chunks of all files, and the lists that name them, level by level.
async fn fetch_files(
    source: &Source,
    files: &[TreeFile],
    pins: &mut HashMap<Digest, Pin>,
) -> Result<(), Error> {
    let mut chunks: Vec<Digest> = Vec::new();
    let mut lists: Vec<Digest> = Vec::new();
    for file in files {
        match &file.content {
            FileContent::Inline(_) => {}
            FileContent::Chunk(digest) => chunks.push(*digest),
            FileContent::List(digest) => lists.push(*digest),
        }
    }
    let mut seen: HashSet<Digest> = HashSet::new();
    while !lists.is_empty() {
        lists.sort_unstable();
        lists.dedup();
        pins.extend(source.fetch(&lists).await?);
        let objects = read_all(source, lists.clone()).await?;
        let mut next = Vec::new();
        for (digest, bytes) in lists.iter().zip(&objects) {
            let list = list(*digest, bytes)?;
            let items = list.items.iter().map(|item| item.digest).filter(|item| seen.insert(*item));
            if list.level == 0 { chunks.extend(items) } else { next.extend(items) }
        }
        lists = next;
    }
    pins.extend(source.fetch(&chunks).await?);
    Ok(())
}

fn list(digest: Digest, bytes: &[u8]) -> Result<List, Error> {
    match decode(bytes).map_err(|error| Error::snapshot(digest, &error))? {
        Object::List(list) => Ok(list),
        _ => {
            let error = content::Error::Unexpected { expected: "a list of chunks" };
            Err(Error::snapshot(digest, &error))
        }
    }
}

fn make_folder(path: &Path) -> Result<(), Error> {
    let make = || DirBuilder::new().mode(0o755).create(path);
    let made = match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::symlink_metadata(path) {
                Ok(meta) if meta.is_dir() => Ok(()),
                Ok(_) => fs::remove_file(path).and_then(|()| make()),
                Err(error) => Err(error),
            }
        }
        other => other,
    };
    made.map_err(|error| Error::io("create the folder", path, error))
}

fn write_file(source: &Source, base: &Path, file: &TreeFile) -> Result<(), Error> {
    let path = base.join(&file.path);
    let mode = if file.executable { 0o755 } else { 0o644 };
    let create = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
    };
    let opened = match create() {
        // What an earlier try left.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&path).and_then(|()| create())
        }
        other => other,
    };
    let mut out = opened.map_err(|error| Error::io("create", &path, error))?;
    match &file.content {
        FileContent::Inline(bytes) => {
            out.write_all(bytes).map_err(|error| Error::io("write", &path, error))?;
        }
        FileContent::Chunk(digest) => write_chunk(source, *digest, file.size, &mut out, &path)?,
        FileContent::List(digest) => write_list(source, *digest, file.size, &mut out, &path)?,
    }
    if file.executable {
        // The agent's mask must not take the bit away.
        out.set_permissions(Permissions::from_mode(mode))
            .map_err(|error| Error::io("make executable", &path, error))?;
    }
    Ok(())
}

fn size_error(digest: Digest) -> Error {
    Error::snapshot(digest, &content::Error::Size)
}

fn write_chunk(
    source: &Source,
    digest: Digest,
    length: u64,
    out: &mut File,
    path: &Path,
) -> Result<(), Error> {
    let bytes = source.read(digest)?;
    match decode(&bytes).map_err(|error| Error::snapshot(digest, &error))? {
        Object::Chunk(data) if data.len() as u64 == length => {
            out.write_all(data).map_err(|error| Error::io("write", path, error))
        }
        Object::Chunk(_) => Err(size_error(digest)),
        _ => Err(Error::snapshot(digest, &content::Error::Unexpected { expected: "a chunk" })),
    }
}

/// Writes a list's chunks in order, list below list.
fn write_list(
    source: &Source,
    root: Digest,
    size: u64,
    out: &mut File,
    path: &Path,
) -> Result<(), Error> {
    // Levels go down by one each time, so this ends.
    let mut stack = vec![(root, size, None)];
    while let Some((digest, length, level)) = stack.pop() {
        let list = list(digest, &source.read(digest)?)?;
        if list.length() != length || level.is_some_and(|level: u8| list.level != level) {
            return Err(size_error(digest));
        }
        if list.level == 0 {
            for item in &list.items {
                write_chunk(source, item.digest, item.length, out, path)?;
            }
        } else {
            let below = list.level - 1;
            stack.extend(
                list.items.iter().rev().map(|item| (item.digest, item.length, Some(below))),
            );
        }
    }
    Ok(())
}

/// Makes the links and sees that none leads out of the folder.
fn make_links(base: &Path, links: &[(PathBuf, LinkTarget)]) -> Result<(), Error> {
    let outside = |link: &Path, target: &LinkTarget| Error::Path {
        path: format!("{} -> {target:?}", link.display()),
        rule: "the link leads out of the code folder",
    };
    for (link, target) in links {
        let to = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes()));
        if !stays_inside(link, to) {
            return Err(outside(link, target));
        }
        let path = base.join(link);
        let make = || std::os::unix::fs::symlink(to, &path);
        let made = match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path).and_then(|()| make())
            }
            other => other,
        };
        made.map_err(|error| Error::io("create the link", &path, error))?;
    }
    if links.is_empty() {
        return Ok(());
    }
    // Through other links, `..` may climb higher than the text says.
    let real = fs::canonicalize(base).map_err(|error| Error::io("open", base, error))?;
    for (link, target) in links {
        match fs::canonicalize(base.join(link)) {
            Ok(end) if !end.starts_with(&real) => {
                let _ = fs::remove_file(base.join(link));
                return Err(outside(link, target));
            }
            // It leads to nothing, as when the snapshot was taken, or in a circle.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// Whether a link's target, read as text from the link's folder, stays below the root.
fn stays_inside(link: &Path, target: &Path) -> bool {
    let mut depth = link.components().count().saturating_sub(1);
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir if depth == 0 => return false,
            Component::ParentDir => depth -= 1,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}
