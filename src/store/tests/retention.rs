use std::collections::BTreeMap;

use atelier_core::id::DatastoreName;
use atelier_core::job::{Ended, Left, Outcome};
use atelier_core::retention::{Rules, What};

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
    assert_eq!(being("").as_deref(), Some("a/b goes"), "all of it");
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

#[tokio::test]
async fn what_is_to_go_is_forgotten_with_its_datastore() {
    let folder = Folder::new();
    let store = folder.open();
    let other = DatastoreName::new("other").unwrap();
    let all = [removal("a", &[]), Removal { datastore: other.clone(), ..removal("a", &[]) }];
    store.write(move |conn| rows::enqueue(conn, &all)).await.unwrap();
    store.write(move |conn| rows::forget(conn, &other)).await.unwrap();
    let due = store.read(|conn| rows::removals(conn, 0, 10)).unwrap();
    assert_eq!(
        due.iter().map(|due| due.datastore.as_str()).collect::<Vec<_>>(),
        ["workspaceblobstore"]
    );
}

/// The rules look every hour at all jobs of which something may go.
#[tokio::test]
async fn a_job_of_which_all_that_is_ruled_went_is_looked_at_no_more() {
    let folder = Folder::new();
    let store = folder.open();
    let at = Timestamp::from_millis(1000);
    let state = State::Ended(Ended { at, outcome: Outcome::Completed, left: Left::default() });
    let job = Job { state, ..waiting(1) };
    let name = job.name.clone();
    store.commit(accepted([(job, None)]).into()).await.unwrap();
    let looked_at = |outputs_s| {
        let rules = Rules { logs_s: Some(1), outputs_s, ..Rules::default() };
        store.read(|conn| rows::ended_by(conn, &rules, at, 0, 10)).unwrap().len()
    };
    assert_eq!((looked_at(None), looked_at(Some(1))), (1, 1));
    store.write(move |conn| rows::mark(conn, &name, What::Logs, at)).await.unwrap();
    assert_eq!((looked_at(None), looked_at(Some(1))), (0, 1));
}
