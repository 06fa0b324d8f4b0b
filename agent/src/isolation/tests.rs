#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::plan::outermost;
use super::{View, withheld};

#[test]
fn of_folders_in_each_other_the_outermost_counts() {
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let found = outermost(&paths(&["/a/b", "/c", "/a", "/ab", "/a/b/c", "/c"]));
    assert_eq!(found, paths(&["/a", "/ab", "/c"]));
}

#[test]
fn only_who_holds_gpus_sees_other_ways_to_them() {
    assert_eq!(withheld(false), ["dri", "kfd"]);
    assert!(withheld(true).is_empty());
}

#[test]
fn what_cannot_be_there_is_no_view() {
    let view = View { temporary: "/no/such/folder".into(), ..View::default() };
    assert!(view.entry().steps().is_err());
}
