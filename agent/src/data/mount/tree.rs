//! The names of all files that a server shows, in memory: a listing never changes while it is mounted.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use atelier_core::content::Digest;

use super::Mounted;
use crate::data::input::object_id;
use crate::data::path;

/// Number of the folder in which each input is a folder.
pub(in crate::data) const ROOT: u64 = 1;

/// What is where. **Invariant:** the children of a folder have numbers one after the other, in the order of
/// their names.
#[derive(Debug)]
pub(in crate::data) struct Tree {
    /// By number, less [`ROOT`].
    nodes: Vec<Node>,
    /// By name.
    inputs: BTreeMap<Box<str>, Place>,
}

/// Where an input lies.
#[derive(Debug)]
struct Place {
    datastore: Box<str>,
    key: Box<str>,
    /// The name by which the object at the key itself is shown in the input's folder, if there is one.
    itself: Option<Box<str>>,
}

#[derive(Debug)]
pub(in crate::data) struct Node {
    name: Box<str>,
    parent: u32,
    pub(in crate::data) body: Body,
}

#[derive(Debug)]
pub(in crate::data) enum Body {
    Folder { children: Range<u32> },
    File { size: u64, etag: Box<str> },
}

/// An object, as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::data) struct Object {
    pub(in crate::data) datastore: String,
    pub(in crate::data) key: String,
    /// In bytes.
    pub(in crate::data) size: u64,
    pub(in crate::data) etag: String,
}

impl Object {
    /// What names this content in the node's cache.
    pub(in crate::data) fn id(&self) -> Digest {
        object_id(&self.datastore, &self.key, self.size, &self.etag)
    }
}

/// A tree that is being put together.
enum Draft {
    Folder(BTreeMap<Box<str>, Draft>),
    File { size: u64, etag: Box<str> },
}

impl Tree {
    /// The tree of these inputs.
    ///
    /// # Errors
    /// A name that is both a file and a folder, as an object storage may have it, in words.
    pub(in crate::data) fn new(inputs: Vec<Mounted>) -> Result<Self, String> {
        let mut root = BTreeMap::new();
        let mut places = BTreeMap::new();
        for Mounted { name, datastore, key, found } in inputs {
            let mut files = BTreeMap::new();
            let mut itself = None;
            for object in found {
                let file = Draft::File { size: object.size, etag: object.etag.into() };
                let below = match object.below.as_str() {
                    "" => {
                        itself = Some(path::file_name(&key).into());
                        path::file_name(&key)
                    }
                    below => below,
                };
                insert(&mut files, below, file)
                    .ok_or_else(|| format!("input '{name}': '{below}' is a file and a folder"))?;
            }
            let place = Place { datastore: datastore.into(), key: key.into(), itself };
            places.insert(name.as_str().into(), place);
            root.insert(name.into(), Draft::Folder(files));
        }
        let mut tree = Self { nodes: Vec::new(), inputs: places };
        let body = Body::Folder { children: 0..0 };
        tree.nodes.push(Node { name: "".into(), parent: 0, body });
        // Level by level, so that a folder's children lie together.
        let mut waiting = VecDeque::from([(0_u32, root)]);
        while let Some((parent, children)) = waiting.pop_front() {
            let first = tree.nodes.len() as u32;
            for (name, draft) in children {
                let number = tree.nodes.len() as u32;
                let body = match draft {
                    Draft::File { size, etag } => Body::File { size, etag },
                    Draft::Folder(inner) => {
                        waiting.push_back((number, inner));
                        Body::Folder { children: 0..0 }
                    }
                };
                tree.nodes.push(Node { name, parent, body });
            }
            let children = first..tree.nodes.len() as u32;
            tree.nodes[parent as usize].body = Body::Folder { children };
        }
        Ok(tree)
    }

    /// How many files and folders there are.
    pub(in crate::data) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Bytes of all files.
    pub(in crate::data) fn bytes(&self) -> u64 {
        let size = |node: &Node| match node.body {
            Body::File { size, .. } => size,
            Body::Folder { .. } => 0,
        };
        self.nodes.iter().map(size).sum()
    }

    pub(in crate::data) fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(usize::try_from(number.checked_sub(ROOT)?).ok()?)
    }

    /// The number of the folder that a node is in; the root's own of the root.
    pub(in crate::data) fn parent(&self, number: u64) -> u64 {
        self.node(number).map_or(ROOT, |node| u64::from(node.parent) + ROOT)
    }

    /// What is in a folder from a place on, each with its number and name; `None`: it is none.
    pub(in crate::data) fn children(
        &self,
        number: u64,
        from: u64,
    ) -> Option<impl Iterator<Item = (u64, &str)>> {
        let Body::Folder { children } = &self.node(number)?.body else { return None };
        // A large folder is read in many pieces, each of which begins at once.
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        let left = children.start.saturating_add(from).min(children.end)..children.end;
        Some(left.filter_map(|index| {
            let node = self.nodes.get(index as usize)?;
            Some((u64::from(index) + ROOT, &*node.name))
        }))
    }

    /// The number of what has this name in a folder.
    pub(in crate::data) fn find(&self, folder: u64, name: &str) -> Option<u64> {
        let Body::Folder { children } = &self.node(folder)?.body else { return None };
        let among = self.nodes.get(children.start as usize..children.end as usize)?;
        let at = among.binary_search_by(|node| (*node.name).cmp(name)).ok()?;
        Some(u64::from(children.start) + at as u64 + ROOT)
    }

    /// The object that a file shows.
    pub(in crate::data) fn object(&self, number: u64) -> Option<Object> {
        let mut node = self.node(number)?;
        let Body::File { size, etag } = &node.body else { return None };
        let mut names = Vec::new();
        // The inputs' own folders are the root's children.
        while node.parent != 0 {
            names.push(&*node.name);
            node = self.nodes.get(node.parent as usize)?;
        }
        names.reverse();
        let place = self.inputs.get(&node.name)?;
        let key = match (names.as_slice(), place.itself.as_deref()) {
            ([name], Some(itself)) if *name == itself => place.key.to_string(),
            _ => path::join(&place.key, &names.join("/")),
        };
        let datastore = place.datastore.to_string();
        Some(Object { datastore, key, size: *size, etag: etag.to_string() })
    }
}

/// Puts a file at a path below a folder; `None`: something else is in its way.
fn insert(folder: &mut BTreeMap<Box<str>, Draft>, below: &str, file: Draft) -> Option<()> {
    let Some((first, rest)) = below.split_once('/') else {
        return folder.insert(below.into(), file).is_none().then_some(());
    };
    let inner = folder.entry(first.into()).or_insert_with(|| Draft::Folder(BTreeMap::new()));
    match inner {
        Draft::Folder(inner) => insert(inner, rest, file),
        Draft::File { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::store::Found;

    fn input(name: &str, key: &str, below: &[&str]) -> Mounted {
        let found = below.iter().zip(1..).map(|(below, size)| Found {
            below: (*below).into(),
            size,
            etag: format!("\"{size}\""),
        });
        let (name, datastore, key) = (name.into(), "store".into(), key.into());
        Mounted { name, datastore, key, found: found.collect() }
    }

    fn names(tree: &Tree, folder: u64) -> Vec<&str> {
        tree.children(folder, 0).unwrap().map(|(_, name)| name).collect()
    }

    #[test]
    fn files_are_found_by_name_and_know_their_objects() {
        let inputs =
            vec![input("z", "d", &["b/c", "a", "b/a", "B"]), input("one", "d/one.csv", &[""])];
        let tree = Tree::new(inputs).unwrap();
        assert_eq!(names(&tree, ROOT), ["one", "z"]);
        let z = tree.find(ROOT, "z").unwrap();
        assert_eq!(names(&tree, z), ["B", "a", "b"]);
        assert_eq!(tree.children(z, 2).unwrap().next().unwrap().1, "b");
        assert!(tree.children(z, 3).unwrap().next().is_none());
        let b = tree.find(z, "b").unwrap();
        assert_eq!((names(&tree, b), tree.parent(b)), (vec!["a", "c"], z));
        let object = tree.object(tree.find(b, "c").unwrap()).unwrap();
        assert_eq!((object.key.as_str(), object.size, object.etag.as_str()), ("d/b/c", 1, "\"1\""));
        let one = tree.find(ROOT, "one").unwrap();
        assert_eq!(names(&tree, one), ["one.csv"]);
        assert_eq!(tree.object(tree.find(one, "one.csv").unwrap()).unwrap().key, "d/one.csv");
        assert_eq!((tree.len(), tree.bytes()), (9, 11));
        // Object stores may have both.
        let both = Tree::new(vec![input("both", "in/d", &["", "a"])]).unwrap();
        let folder = both.find(ROOT, "both").unwrap();
        let key = |name| both.object(both.find(folder, name).unwrap()).unwrap().key;
        assert_eq!((key("d"), key("a")), ("in/d".to_owned(), "in/d/a".to_owned()));
        assert!(tree.find(z, "c").is_none() && tree.find(b + 40, "a").is_none());
        assert!(tree.object(z).is_none() && tree.children(one + 40, 0).is_none());
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_named() {
        for below in [["a", "a/b"], ["a/b", "a"]] {
            let error = Tree::new(vec![input("x", "d", &below)]).unwrap_err();
            assert!(error.contains("input 'x': 'a") && error.contains("a file and a folder"));
        }
    }
}
