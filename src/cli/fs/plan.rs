//! Which file of a copy goes where.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::place::Place;
use crate::cli::upload::FoundFile;
use crate::cli::{Error, Kind};
use crate::client::data::Object;
use crate::storage::ObjectPath;

/// What is copied.
#[derive(Debug, Clone)]
pub(super) enum Source {
    File(FoundFile),
    Object(Place, Object),
}

impl Source {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.stat.size,
            Self::Object(_, object) => object.size,
        }
    }
}

/// Something that was named to be copied.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its last segment; empty for a whole datastore.
    pub(super) name: String,
    /// A folder's files by their paths below it; of a file itself alone, with nothing.
    pub(super) files: Vec<(String, Source)>,
}

/// Where copies go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Local(PathBuf),
    Remote(Place),
}

impl Target {
    fn join(&self, below: &str) -> Self {
        match self {
            _ if below.is_empty() => self.clone(),
            Self::Local(path) => Self::Local(path.join(below)),
            Self::Remote(place) => Self::Remote(place.join(below)),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Local(path) => path.display().to_string(),
            Self::Remote(place) => place.uri(),
        }
    }

    /// Whether something can be written there: paths of a datastore do not lead out of the folder, and the
    /// other way round.
    fn check(&self, below: &str) -> Result<(), Error> {
        let refused = |why: &str| {
            let cause = format!("'{}' cannot be copied to {}: {why}", below, self.shown());
            Error::new(Kind::Refused, cause).help("nothing was copied; rename it or leave it out")
        };
        match self {
            Self::Local(_) => {
                let inside =
                    Path::new(below).components().all(|part| matches!(part, Component::Normal(_)));
                let plain = !below.starts_with('/') && !below.contains('\0');
                if inside && plain {
                    Ok(())
                } else {
                    Err(refused("its path leads out of the folder"))
                }
            }
            Self::Remote(place) => {
                ObjectPath::new(&place.path).map(drop).map_err(|error| refused(&error.to_string()))
            }
        }
    }
}

/// One file's way.
#[derive(Debug, Clone)]
pub(super) struct Transfer {
    pub(super) from: Source,
    pub(super) to: Target,
}

/// Where each file goes: below the target if that is a folder, else in its place.
pub(super) fn plan(
    items: Vec<Item>,
    target: &Target,
    into_folder: bool,
) -> Result<Vec<Transfer>, Error> {
    let mut transfers: BTreeMap<String, Transfer> = BTreeMap::new();
    for item in items {
        let root = if into_folder { target.join(&item.name) } else { target.clone() };
        for (below, from) in item.files {
            let to = root.join(&below);
            let whole = match (into_folder, below.is_empty()) {
                (true, true) => item.name.clone(),
                (true, false) if !item.name.is_empty() => format!("{}/{below}", item.name),
                _ => below,
            };
            to.check(&whole)?;
            let shown = to.shown();
            if transfers.insert(shown.clone(), Transfer { from, to }).is_some() {
                let cause = format!("two of the sources would be {shown}");
                return Err(Error::new(Kind::Refused, cause).help("copy them one after the other"));
            }
        }
    }
    Ok(transfers.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str) -> Source {
        let place = Place { datastore: "d".into(), path: path.into(), folder: false };
        let object = Object { path: path.into(), size: 1, etag: String::new(), modified: 0 };
        Source::Object(place, object)
    }

    fn item(name: &str, files: &[&str]) -> Item {
        let files = files
            .iter()
            .map(|file| ((*file).to_owned(), object(&format!("{name}/{file}"))))
            .collect();
        Item { name: name.to_owned(), files }
    }

    fn paths(items: Vec<Item>, target: &Target, into: bool) -> Result<Vec<String>, Error> {
        Ok(plan(items, target, into)?.iter().map(|transfer| transfer.to.shown()).collect())
    }

    #[test]
    fn a_folder_goes_into_a_folder_or_becomes_the_target() {
        let target = Target::Local(PathBuf::from("/t"));
        let folder = || item("raw", &["a", "b/c"]);
        assert_eq!(paths(vec![folder()], &target, true).unwrap(), ["/t/raw/a", "/t/raw/b/c"]);
        assert_eq!(paths(vec![folder()], &target, false).unwrap(), ["/t/a", "/t/b/c"]);
        // A whole datastore has no name.
        assert_eq!(paths(vec![item("", &["a"])], &target, true).unwrap(), ["/t/a"]);
        let file = || item("x.csv", &[""]);
        assert_eq!(paths(vec![file()], &target, true).unwrap(), ["/t/x.csv"]);
        assert_eq!(paths(vec![file()], &target, false).unwrap(), ["/t"]);
        let remote =
            Target::Remote(Place { datastore: "e".into(), path: "p".into(), folder: true });
        let uris = paths(vec![folder(), file()], &remote, true).unwrap();
        let below = "azureml://datastores/e/paths/p";
        assert_eq!(
            uris,
            [format!("{below}/raw/a"), format!("{below}/raw/b/c"), format!("{below}/x.csv")]
        );
    }

    #[test]
    fn nothing_leads_out_and_nothing_is_written_twice() {
        let target = Target::Local(PathBuf::from("/t"));
        for bad in ["../x", "a/../../x", "/etc/passwd", "a/.."] {
            let error = paths(vec![item("f", &[bad])], &target, false).unwrap_err();
            assert!(error.cause.contains("leads out"), "{bad}: {}", error.cause);
        }
        let twice = vec![item("a", &[""]), item("a", &[""])];
        assert!(paths(twice, &target, true).unwrap_err().cause.contains("two of the sources"));
        let remote =
            Target::Remote(Place { datastore: "e".into(), path: String::new(), folder: true });
        for bad in ["a\\b", "x//y", &"n".repeat(256)] {
            let error = paths(vec![item("f", &[bad])], &remote, true).unwrap_err();
            assert!(error.cause.contains("not a valid path"), "{bad}: {}", error.cause);
        }
    }
}
