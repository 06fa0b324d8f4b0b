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

/// `path` as seen from `folder`, with `.` and `..` worked out on the text alone.
pub(super) fn resolve(folder: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The folder that holds the absolute `path`.
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}
