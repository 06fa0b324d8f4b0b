use std::collections::BTreeMap;

use atelier_core::id::DatastoreName;
use atelier_core::retention::What;

use super::*;
use crate::store::retention::{self as rows, Removal};

fn removal(path: &str, except: &[&str]) -> Removal {
    let datastore = DatastoreName::new("workspaceblobstore").unwrap();
    let except = except.iter().map(|path| (*path).to_owned()).collect();
    Removal { seq: 0, datastore, path: path.to_owned(), except, why: format!("{path} goes") }
}

#[tokio::test]
async fn what_is_to_be_removed_outlives_a_daemon_and_cannot_be_named() {
    let folder = Folder::new();
    let store = folder.open();
    let all = vec![removal("a/b", &[]), removal("root", &["root/kept"])];
    store.write(move |conn| rows::enqueue(conn, &all)).await.unwrap();
    drop(store);
    let store = folder.open();
    let being = |path: &str| {
        store.read(|conn| rows::being_removed(conn, "workspaceblobstore", path)).unwrap()
    };
    for (path, why) in [
        ("a/b", Some("a/b goes")),
        ("a/b/c", Some("a/b goes")),
        ("a", Some("a/b goes")),
        ("a/bc", None),
        ("root/other", Some("root goes")),
        ("root/kept", None),
        ("root/kept/x", None),
    ] {
        assert_eq!(being(path).as_deref(), why, "{path}");
    }
    let elsewhere = store.read(|conn| rows::being_removed(conn, "other", "a/b")).unwrap();
    assert_eq!(elsewhere, None);
    let due = store.read(|conn| rows::removals(conn, 0, 10)).unwrap();
    let seqs: Vec<i64> = due.iter().map(|due| due.seq).collect();
    assert_eq!(store.read(rows::pending).unwrap(), (2, seqs[1]));
    assert_eq!(due[1], Removal { seq: seqs[1], ..removal("root", &["root/kept"]) });
    let first = seqs[0];
    store.write(move |conn| rows::done(conn, first)).await.unwrap();
    assert_eq!(store.read(|conn| rows::pending_up_to(conn, first)).unwrap(), 0);
    assert_eq!(being("a/b"), None);
    let none: BTreeMap<What, Timestamp> = BTreeMap::new();
    let unknown = JobName::new("nobody").unwrap();
    assert_eq!(store.read(|conn| rows::removed(conn, &unknown)).unwrap(), none);
}
