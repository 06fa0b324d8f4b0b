//! Empty objects that stand for folders, as some programs write them: at the folder's own path, without a `/` behind it.

use std::collections::HashSet;

use super::store::Found;

/// What was found without them: a file system cannot have both. An object with bytes in it stays, for who meets it to
/// say so.
pub(super) fn without(mut found: Vec<Found>) -> Vec<Found> {
    let is_empty = |object: &&Found| object.size == 0;
    if !found.iter().any(|object| is_empty(&object)) {
        return found;
    }
    let empty: HashSet<&str> =
        found.iter().filter(is_empty).map(|object| object.below.as_str()).collect();
    let mut marks: HashSet<String> = HashSet::new();
    for object in &found {
        let mut below = object.below.as_str();
        while !below.is_empty() {
            below = below.rsplit_once('/').map_or("", |(folder, _)| folder);
            if empty.contains(below) {
                marks.insert(below.to_owned());
            }
        }
    }
    found.retain(|object| object.size > 0 || !marks.contains(&object.below));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(all: &[(&str, u64)]) -> Vec<String> {
        let found = |(below, size): &(&str, u64)| Found {
            below: (*below).to_owned(),
            size: *size,
            etag: String::new(),
        };
        let left = without(all.iter().map(found).collect());
        left.into_iter().map(|object| object.below).collect()
    }

    #[test]
    fn empty_objects_with_others_below_are_folders() {
        let mixed =
            [("a", 0), ("a-b", 0), ("a/b", 0), ("a/b/c/d", 1), ("e", 0), ("f", 2), ("f/g", 1)];
        assert_eq!(left(&mixed), ["a-b", "a/b/c/d", "e", "f", "f/g"]);
        // That of the folder itself, and a file that is empty.
        assert_eq!(left(&[("", 0), ("x", 0)]), ["x"]);
        assert_eq!(left(&[("", 0)]), [""]);
        assert_eq!(left(&[("", 1), ("x", 0)]), ["", "x"]);
    }
}
