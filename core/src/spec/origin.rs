//! Where a document came from, and the files around it.

/// Where a document came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// How messages name the document: the path as the user typed it, or `<stdin>`.
    pub name: String,
    /// The absolute folder that relative paths in it start from: that of the file.
    pub folder: String,
    /// The experiment of a job that names none: the current folder's last name.
    pub experiment: String,
}

/// The submitter's files, as far as a document may name them. Paths are absolute.
pub trait Files {
    /// The content of the file at `path`, at most [`MAX_DOCUMENT`](super::limits::MAX_DOCUMENT)
    /// bytes and one more (which tells that it is too long), or why it cannot be read.
    fn read(&self, path: &str) -> Result<Vec<u8>, String>;

    /// What lies at `path`, links followed; `None` if nothing does or it cannot be seen.
    fn kind(&self, path: &str) -> Option<FileKind>;
}

/// What lies at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A file, or anything else that is no folder.
    File,
    /// A folder.
    Folder,
}

/// `path` as seen from the absolute `folder`, with `.` and `..` worked out on the text alone.
pub(super) fn resolve(folder: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{folder}/{path}")) }
}

/// How messages name the file that `referrer` names `path`.
pub(super) fn shown(referrer: &str, path: &str) -> String {
    match referrer.rfind('/') {
        Some(end) if !path.starts_with('/') => clean(&format!("{}/{path}", &referrer[..end])),
        _ => clean(path),
    }
}

/// `path` without `.`, and without `..` where there is something to leave.
fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if is_absolute { format!("/{joined}") } else { joined }
}

/// The folder that holds the absolute `path`.
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}
