//! What lies in a folder: names and stat, no file is opened.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use atelier_core::content::{EntryName, LinkTarget, MAX_DEPTH};
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::Error;

/// What tells whether a file is still the one that was read. Times in nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Stat {
    pub(in crate::cli) size: u64,
    pub(in crate::cli) modified: i64,
    pub(in crate::cli) changed: i64,
    pub(in crate::cli) inode: u64,
    pub(in crate::cli) device: u64,
    pub(in crate::cli) executable: bool,
}

impl Stat {
    pub(in crate::cli) fn of(metadata: &Metadata) -> Self {
        let nanoseconds = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            size: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
            executable: metadata.mode() & 0o100 != 0,
        }
    }
}

/// A regular file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct FoundFile {
    /// Where it is read, links resolved.
    pub(in crate::cli) path: PathBuf,
    /// Its place below the folder.
    pub(in crate::cli) relative: PathBuf,
    pub(in crate::cli) stat: Stat,
}

/// An entry of a folder.
#[derive(Debug)]
pub(super) enum Found {
    /// Index in [`Scan::files`].
    File(usize),
    Folder(Vec<(EntryName, Found)>),
    /// A link that leads to nothing or to a folder that it lies in.
    Link(LinkTarget),
}

/// A whole folder.
#[derive(Debug)]
pub(super) struct Scan {
    /// Its absolute path, links resolved.
    pub(super) root: PathBuf,
    /// Its entries, sorted by name.
    pub(super) tree: Vec<(EntryName, Found)>,
    pub(super) files: Vec<FoundFile>,
    pub(super) warnings: Vec<String>,
}

/// Scans the folder. Atelier's own `home` is left out if it lies inside.
///
/// The first of `.amlignore` and `.gitignore` in the folder itself says what is left out, and `.git`
/// always is. Links are followed as long as they stay inside.
pub(super) fn scan(folder: &Path, home: &Path) -> Result<Scan, Error> {
    let root = fs::canonicalize(folder).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing(folder.to_owned()),
        _ => Error::Io { operation: "open", path: folder.to_owned(), source },
    })?;
    let metadata = fs::metadata(&root).map_err(|source| Error::Io {
        operation: "open",
        path: folder.to_owned(),
        source,
    })?;
    if !metadata.is_dir() {
        return Err(Error::NotAFolder(folder.to_owned()));
    }
    let (ignore, ignore_file) = ignore_rules(&root);
    let mut scanner = Scanner {
        root: &root,
        home: fs::canonicalize(home).unwrap_or_else(|_| home.to_owned()),
        ignore: ignore.0,
        open: Vec::new(),
        ignored: false,
        files: Vec::new(),
        warnings: ignore.1,
    };
    let tree = scanner.folder(&root, Path::new(""))?;
    let Scanner { files, warnings, ignored, .. } = scanner;
    if files.is_empty() {
        let ignore_file = ignore_file.filter(|_| ignored).map(str::to_owned);
        return Err(Error::Empty { folder: folder.to_owned(), ignore_file });
    }
    Ok(Scan { root, tree, files, warnings })
}

/// The rules, what could not be understood in them, and the file they are from.
fn ignore_rules(root: &Path) -> ((Gitignore, Vec<String>), Option<&'static str>) {
    let file = [".amlignore", ".gitignore"].into_iter().find(|name| root.join(name).is_file());
    let Some(name) = file else { return ((Gitignore::empty(), Vec::new()), None) };
    let mut builder = GitignoreBuilder::new(root);
    let mut problems: Vec<String> =
        builder.add(root.join(name)).map(|error| error.to_string()).into_iter().collect();
    let rules = builder.build().unwrap_or_else(|error| {
        problems.push(format!("{name} is not applied: {error}"));
        Gitignore::empty()
    });
    ((rules, problems), Some(name))
}

struct Scanner<'a> {
    root: &'a Path,
    home: PathBuf,
    ignore: Gitignore,
    /// The real paths of the folders from the root to the one being read.
    open: Vec<PathBuf>,
    ignored: bool,
    files: Vec<FoundFile>,
    warnings: Vec<String>,
}

impl Scanner<'_> {
    /// The entries of the folder at `real`, whose place in the snapshot is `relative`.
    fn folder(&mut self, real: &Path, relative: &Path) -> Result<Vec<(EntryName, Found)>, Error> {
        if self.open.len() > MAX_DEPTH {
            return Err(Error::TooDeep(relative.to_owned()));
        }
        let failed =
            |source| Error::Io { operation: "read the folder", path: real.to_owned(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(real).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort_unstable();
        self.open.push(real.to_owned());
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let place = relative.join(&name);
            if let Some(found) = self.entry(&real.join(&name), &place, &name)? {
                let name = EntryName::new(name.as_bytes())
                    .map_err(|error| Error::Name { path: place, why: error.to_string() })?;
                entries.push((name, found));
            }
        }
        self.open.pop();
        Ok(entries)
    }

    fn entry(
        &mut self,
        path: &Path,
        relative: &Path,
        name: &OsStr,
    ) -> Result<Option<Found>, Error> {
        let failed = |source| Error::Io { operation: "look at", path: path.to_owned(), source };
        if name == ".git" {
            return Ok(None);
        }
        let mut metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            // Gone since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut real = path.to_owned();
        if metadata.is_symlink() {
            // A rule for folders applies to a link to one, as it would once it is followed.
            if self.is_ignored(relative, fs::metadata(path).is_ok_and(|target| target.is_dir())) {
                return Ok(None);
            }
            match self.follow(path, relative)? {
                Followed::To(target) => {
                    metadata = fs::metadata(&target).map_err(failed)?;
                    real = target;
                }
                Followed::Kept(target) => return Ok(Some(Found::Link(target))),
            }
        } else if self.is_ignored(relative, metadata.is_dir()) {
            return Ok(None);
        }
        if metadata.is_dir() {
            if real == self.home {
                return Ok(None);
            }
            return self.folder(&real, relative).map(|entries| Some(Found::Folder(entries)));
        }
        if !metadata.is_file() {
            let shown = relative.display();
            self.warnings.push(format!("'{shown}' is left out: it is neither a file nor a folder"));
            return Ok(None);
        }
        let stat = Stat::of(&metadata);
        self.files.push(FoundFile { path: real, relative: relative.to_owned(), stat });
        Ok(Some(Found::File(self.files.len() - 1)))
    }

    fn is_ignored(&mut self, relative: &Path, is_folder: bool) -> bool {
        let ignored =
            !self.ignore.is_empty() && self.ignore.matched(relative, is_folder).is_ignore();
        self.ignored |= ignored;
        ignored
    }

    fn follow(&self, path: &Path, relative: &Path) -> Result<Followed, Error> {
        let failed = |source| Error::Io { operation: "follow", path: path.to_owned(), source };
        let written = fs::read_link(path).map_err(failed)?;
        let leaves = || Error::LeavesFolder { link: relative.to_owned(), target: written.clone() };
        match fs::canonicalize(path) {
            Ok(target) if !target.starts_with(self.root) => Err(leaves()),
            Ok(target) => match self.open.iter().position(|open| *open == target) {
                None => Ok(Followed::To(target)),
                // Following would never end: the link stays one, to the same folder of the snapshot.
                Some(depth) => {
                    let up = self.open.len() - 1 - depth;
                    let target = if up == 0 { ".".to_owned() } else { vec![".."; up].join("/") };
                    LinkTarget::new(target.as_bytes()).map(Followed::Kept).ok_or_else(leaves)
                }
            },
            // To nothing, or to itself. Editors leave such links; they are kept as they are.
            Err(error) if is_dangling(&error) => {
                if !stays_inside(&written, self.open.len() - 1) {
                    return Err(leaves());
                }
                let target = LinkTarget::new(written.as_os_str().as_bytes());
                target.map(Followed::Kept).ok_or_else(leaves)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

enum Followed {
    To(PathBuf),
    Kept(LinkTarget),
}

fn is_dangling(error: &io::Error) -> bool {
    // ELOOP has no stable kind.
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Whether a target, read from a folder `depth` folders below the root, never rises above the root.
fn stays_inside(target: &Path, depth: usize) -> bool {
    let mut depth = depth;
    target.components().all(|part| match part {
        Component::Normal(_) => {
            depth += 1;
            true
        }
        Component::CurDir => true,
        Component::ParentDir => match depth.checked_sub(1) {
            Some(above) => {
                depth = above;
                true
            }
            None => false,
        },
        Component::RootDir | Component::Prefix(_) => false,
    })
}
