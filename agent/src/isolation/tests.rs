#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::View;
use super::plan::outermost;

#[test]
fn of_folders_in_each_other_the_outermost_counts() {
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let found = outermost(&paths(&["/a/b", "/c", "/a", "/ab", "/a/b/c", "/c"]));
    assert_eq!(found, paths(&["/a", "/ab", "/c"]));
}

#[test]
fn what_cannot_be_there_is_no_view() {
    let view = View { temporary: "/no/such/folder".into(), ..View::default() };
    assert!(view.entry().is_err());
}
