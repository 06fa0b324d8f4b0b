use atelier_core::datastore::{
    DatastoreRecord, Draft, FolderKind, FolderSource, KeptCredentials, Source,
};
use atelier_core::id::DatastoreName;

use super::*;
use crate::store::datastores;

fn record(text: &str, description: Option<&str>) -> DatastoreRecord {
    DatastoreRecord {
        datastore: Draft {
            name: DatastoreName::new(text).unwrap(),
            description: description.map(str::to_owned),
            tags: [("team".to_owned(), "vision".to_owned())].into(),
            properties: [("a".to_owned(), "b".to_owned())].into(),
            source: Source::Folder(FolderSource {
                kind: FolderKind::Nfs,
                path: "/mnt/share".to_owned(),
            }),
        },
        credentials: KeptCredentials::None,
        created_by: who("ana"),
        created_at: Timestamp::from_millis(7),
    }
}

async fn put(store: &SqliteStore, record: DatastoreRecord) {
    changed(store, move |conn| datastores::put(conn, &record)).await;
}

#[tokio::test]
async fn datastores_come_back_as_they_were() {
    let folder = Folder::new();
    let store = folder.open();
    put(&store, record("two", None)).await;
    put(&store, record("one", Some("ours"))).await;
    drop(store);
    let store = folder.open();
    let all = || store.read(datastores::all).unwrap();
    assert_eq!(all(), [record("one", Some("ours")), record("two", None)]);
    // Said anew it is still one.
    put(&store, record("two", Some("theirs"))).await;
    assert_eq!(all(), [record("one", Some("ours")), record("two", Some("theirs"))]);
    let gone = DatastoreName::new("one").unwrap();
    changed(&store, move |conn| datastores::delete(conn, &gone)).await;
    assert_eq!(all(), [record("two", Some("theirs"))]);
}
