use atelier_core::content::Digest;
use atelier_core::datastore::{Source, StoragePlace, StorageRecord};

use super::*;
use crate::store::storage::{Copied, Role, copies, forget_copy, get, note_copies, put, switch};

fn record(bucket: &str) -> StorageRecord {
    let (bucket, prefix) = (bucket.to_owned(), Some("team".to_owned()));
    StorageRecord {
        place: StoragePlace::Elsewhere(Source::Gcs { bucket, prefix }),
        id: "5eed".to_owned(),
        has_keys: true,
        is_settled: true,
    }
}

fn copied(path: &str, is_done: bool) -> Copied {
    let digest = is_done.then(|| Digest::of(path.as_bytes()));
    Copied { path: path.to_owned(), etag: "\"tag\"".to_owned(), digest }
}

#[tokio::test]
async fn where_the_storage_is_comes_back_as_it_was() {
    let folder = Folder::new();
    let store = folder.open();
    assert_eq!(store.read(|conn| get(conn, Role::Current)).unwrap(), None);
    for bucket in ["a", "b"] {
        store.write(move |conn| put(conn, Role::Current, &record(bucket))).await.unwrap();
    }
    drop(store);
    let store = folder.open();
    assert_eq!(store.read(|conn| get(conn, Role::Current)).unwrap(), Some(record("b")));
    assert_eq!(store.read(|conn| get(conn, Role::Next)).unwrap(), None);
}

#[tokio::test]
async fn what_was_copied_is_kept_until_the_switch() {
    let folder = Folder::new();
    let store = folder.open();
    let note = |name: &'static str, objects: Vec<Copied>| {
        store.write(move |conn| note_copies(conn, name, &objects))
    };
    store.write(|conn| put(conn, Role::Next, &record("next"))).await.unwrap();
    note("one", vec![copied("a", false), copied("a-b", true), copied("a/b", true)]).await.unwrap();
    note("two", vec![copied("a", true)]).await.unwrap();
    // Read back from where it is now.
    note("one", vec![copied("a", true)]).await.unwrap();
    let found = |after: &str, until: Option<&str>| {
        store.read(|conn| copies(conn, "one", after, until)).unwrap()
    };
    assert_eq!(found("", None), [copied("a", true), copied("a-b", true), copied("a/b", true)]);
    assert_eq!(found("a", Some("a-b")), [copied("a-b", true)]);
    store.write(|conn| forget_copy(conn, "one", "a-b")).await.unwrap();
    assert_eq!(found("a", None), [copied("a/b", true)]);
    store.write(|conn| switch(conn, &record("next"))).await.unwrap();
    assert_eq!(found("", None), []);
    assert_eq!(store.read(|conn| get(conn, Role::Current)).unwrap(), Some(record("next")));
    assert_eq!(store.read(|conn| get(conn, Role::Next)).unwrap(), None);
}
