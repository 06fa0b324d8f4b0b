//! Where an object lies in a datastore.

use std::fmt;
use std::sync::Arc;

/// The longest path, in bytes. Prefixes that Atelier puts before a user's own path fit well.
pub(super) const MAX_PATH: usize = 2048;
/// The longest segment, in bytes: what Linux file systems take.
const MAX_SEGMENT: usize = 255;

/// The path of an object, or of the folder of objects below it, within a datastore:
/// `azureml/brave_owl_1/model/weights.bin`.
///
/// **Invariant:** one or more segments joined by `/`; no segment is empty, longer than 255 bytes,
/// `.` or `..` (nor a percent-encoded form of these, so that no later decoding makes one), and there
/// is no NUL and no backslash. Joined to a folder it can only lead below that folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectPath(Arc<str>);

/// Text that is no object path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{shown}' is not a valid path in a datastore: {rule}")]
pub struct InvalidObjectPath {
    shown: String,
    rule: &'static str,
}

impl ObjectPath {
    /// Checks the rule and makes the path. The text is taken as it is, already decoded.
    ///
    /// # Errors
    /// [`InvalidObjectPath`] with the rule that is broken.
    pub fn new(text: &str) -> Result<Self, InvalidObjectPath> {
        match broken_rule(text) {
            None => Ok(Self(text.into())),
            Some(rule) => {
                let cut: String = text.chars().take(120).collect();
                Err(InvalidObjectPath { shown: cut.escape_debug().to_string(), rule })
            }
        }
    }

    /// A path below this one.
    ///
    /// # Errors
    /// As [`ObjectPath::new`].
    pub fn join(&self, below: &str) -> Result<Self, InvalidObjectPath> {
        Self::new(&format!("{self}/{below}"))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its segments, at least one.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether the path is `folder` or lies below it.
    pub fn is_within(&self, folder: &str) -> bool {
        self.0.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn broken_rule(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > MAX_PATH {
        return Some("it is longer than 2048 bytes");
    }
    if text.starts_with('/') {
        return Some("it must not start with '/'");
    }
    if text.contains(['\0', '\\']) {
        return Some("it must not contain NUL or '\\'");
    }
    text.split('/').find_map(|segment| match segment {
        "" => Some("it has an empty segment ('//' or a '/' at the end)"),
        long if long.len() > MAX_SEGMENT => Some("a segment is longer than 255 bytes"),
        dots if is_dots(dots) => Some("'.' and '..' are not allowed"),
        _ => None,
    })
}

/// Whether a segment is `.` or `..`, each dot perhaps written `%2e`.
fn is_dots(segment: &str) -> bool {
    let mut dots = 0;
    let mut rest = segment;
    while !rest.is_empty() {
        let after = rest.strip_prefix('.').or_else(|| {
            let head = rest.get(..3)?;
            head.eq_ignore_ascii_case("%2e").then(|| &rest[3..])
        });
        match after {
            Some(after) => (rest, dots) = (after, dots + 1),
            None => return false,
        }
    }
    dots <= 2
}

impl AsRef<str> for ObjectPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
