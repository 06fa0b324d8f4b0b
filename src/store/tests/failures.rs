use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::store::{Error, Store as _};

/// From now on the database may grow by this many pages and no more, as on a full disk.
pub(crate) async fn room_for(store: &SqliteStore, pages: i64) {
    let limit = move |conn: &Connection| {
        let set = || -> rusqlite::Result<()> {
            let now: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
            conn.pragma_update_and_check(None, "max_page_count", now + pages, |_| Ok(()))
        };
        set().map_err(|e| Error::sqlite("limit the database", e))
    };
    store.write(limit).await.unwrap();
}

fn bulky(seq: u64) -> Job {
    let mut job = waiting(seq);
    job.spec = Arc::new(CommandJob { description: Some("x".repeat(60_000)), ..spec("true") });
    job
}

#[tokio::test]
async fn a_full_disk_takes_nothing_and_heals() {
    let folder = Folder::new();
    let store = folder.open();
    store.commit(accepted([(waiting(1), Some(key("kept", "x")))]).into()).await.unwrap();
    room_for(&store, 4).await;
    for round in 0..3 {
        // The jobs before the bulky one find room; they go with it all the same.
        let batch = accepted([(waiting(2), Some(key("lost", "y"))), (bulky(3), None)]);
        let error = store.commit(batch.into()).await.unwrap_err();
        assert!(matches!(error, Error::Full { .. }), "{round}: {error:?}");
        assert!(!error.is_fatal());
        let said = error.to_string();
        assert!(said.contains("full") && said.contains("free some space"), "{said}");
        // Reading works, and finds what was acknowledged and nothing else.
        assert_eq!(store.recover().unwrap().jobs, [waiting(1)]);
        assert_eq!(store.recover().unwrap().counters.seq.0, 1);
        assert_eq!(store.events(None, 0, 10).unwrap().len(), 1);
        assert_eq!(first_of(&*store, "ana", "lost"), None);
    }
    room_for(&store, 1_000).await;
    store.commit(accepted([(waiting(2), None), (bulky(3), None)]).into()).await.unwrap();
    drop(store);
    assert_eq!(folder.open().recover().unwrap().jobs.len(), 3);
}

#[tokio::test]
async fn in_a_shared_transaction_a_full_disk_fails_every_batch() {
    let folder = Folder::new();
    let store = folder.open();
    room_for(&store, 4).await;
    let small = |seq| store.commit(accepted([(waiting(seq), None)]).into());
    let big = store.commit(accepted([(bulky(3), None)]).into());
    let (a, b, c, d) = futures::join!(small(1), small(2), big, small(4));
    // Whichever shared the bulky one's transaction went with it; none is half there.
    assert!(matches!(c, Err(Error::Full { .. })), "{c:?}");
    for (seq, answer) in [(1, a), (2, b), (4, d)] {
        let there = store.job(&name(&format!("job{seq}"))).unwrap().is_some();
        assert_eq!(there, answer.is_ok(), "{seq}: {answer:?}");
        assert!(
            matches!(answer, Ok(()) | Err(Error::Full { .. } | Error::Superseded)),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn a_database_locked_by_another_program_is_named_and_is_no_end() {
    let folder = Folder::new();
    let store = folder.open();
    let hurry = |conn: &Connection| {
        conn.busy_timeout(Duration::from_millis(20)).map_err(|e| Error::sqlite("hurry", e))
    };
    store.write(hurry).await.unwrap();
    let other = Connection::open(&folder.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.commit(accepted([(waiting(1), None)]).into()).await.unwrap_err();
    assert!(!error.is_fatal(), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("another program") && said.contains("close it"), "{said}");
    assert!(store.recover().unwrap().jobs.is_empty());
    other.execute_batch("ROLLBACK").unwrap();
    store.commit(accepted([(waiting(1), None)]).into()).await.unwrap();
    assert_eq!(store.recover().unwrap().jobs, [waiting(1)]);
}

#[tokio::test]
async fn a_page_damaged_under_a_running_store_is_named() {
    let folder = Folder::new();
    let store = folder.open();
    store.commit(accepted((1..=20).map(|seq| (waiting(seq), None))).into()).await.unwrap();
    store.checkpoint().unwrap();
    let mut bytes = std::fs::read(&folder.path).unwrap();
    for page in 1..bytes.len() / 4096 {
        bytes[page * 4096..page * 4096 + 64].fill(0xAA);
    }
    std::fs::write(&folder.path, &bytes).unwrap();
    // A reader that has cached nothing of it.
    let error = store.recover().unwrap_err();
    assert!(error.is_fatal(), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("damaged") && said.contains("backup"), "{said}");
}

#[tokio::test]
async fn a_record_that_makes_no_sense_is_named() {
    for (column, value) in [("state", "{\"asleep\":{}}"), ("spec", "{"), ("tries", "[]")] {
        let folder = Folder::new();
        let store = folder.open();
        store.commit(accepted([(waiting(1), None)]).into()).await.unwrap();
        let sql = format!("UPDATE jobs SET {column} = ?1");
        let scribble = move |conn: &Connection| {
            conn.execute(&sql, [value]).map_err(|e| Error::sqlite("scribble", e))
        };
        store.write(scribble).await.unwrap();
        let error = store.recover().unwrap_err();
        let said = error.to_string();
        assert!(said.contains("damaged") && said.contains("backup"), "{column}: {said}");
        store.job(&name("job1")).unwrap_err();
    }
}

#[tokio::test]
async fn after_a_failure_of_the_disk_nothing_more_is_written() {
    let folder = Folder::new();
    let store = folder.open();
    let broken = |_: &Connection| -> Result<(), Error> {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
        Err(Error::sqlite("write", rusqlite::Error::SqliteFailure(code, None)))
    };
    assert!(store.write(broken).await.unwrap_err().is_fatal());
    let error = store.commit(accepted([(waiting(1), None)]).into()).await.unwrap_err();
    assert!(matches!(error, Error::Closed) && error.is_fatal(), "{error:?}");
    assert!(error.to_string().contains("restart the daemon"));
    assert!(store.recover().unwrap().jobs.is_empty());
}
