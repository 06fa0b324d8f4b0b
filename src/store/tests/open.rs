use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::store::people::UserRecord;
use crate::store::{Error, SCHEMA_VERSION, Store as _, schema};

/// Why this database is not opened, as the operator reads it.
#[track_caller]
fn refused(folder: &Folder, must_exist: bool) -> String {
    match SqliteStore::open(&folder.path, must_exist) {
        Err(error @ Error::Open { .. }) => {
            let said = error.to_string();
            assert!(said.contains(folder.path.to_str().unwrap()), "{said}");
            said
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

/// Bytes of the database, to see whether a refusal left it alone.
fn bytes(folder: &Folder) -> Vec<u8> {
    fs::read(&folder.path).unwrap()
}

#[test]
fn a_missing_or_emptied_database_is_no_new_beginning() {
    let folder = Folder::new();
    let said = refused(&folder, true);
    assert!(said.contains("missing") && said.contains("backup"), "{said}");
    assert!(!folder.path.exists());
    fs::write(&folder.path, "").unwrap();
    let said = refused(&folder, true);
    assert!(said.contains("empty") && said.contains("backup"), "{said}");
    // Where none was, an empty file is the trace of a first start that was cut short.
    SqliteStore::open(&folder.path, false).unwrap();
}

#[test]
fn a_newer_database_is_refused_and_left_alone() {
    let folder = Folder::new();
    drop(folder.open());
    let conn = Connection::open(&folder.path).unwrap();
    conn.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    drop(conn);
    // The store's own threads close theirs by and by; the last one tidies up.
    let log = folder.path.with_extension("db-wal");
    let bound = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while log.exists() {
        assert!(std::time::Instant::now() < bound, "the store was never closed");
        std::thread::yield_now();
    }
    let before = bytes(&folder);
    let said = refused(&folder, true);
    let newer = format!("version {}", SCHEMA_VERSION + 1);
    assert!(said.contains(&newer) && said.contains("newer atelier"), "{said}");
    assert_eq!(bytes(&folder), before);
}

#[test]
fn the_database_of_another_program_is_refused_and_left_alone() {
    for sql in [
        // One that says so.
        "PRAGMA application_id = 7; CREATE TABLE theirs (x)",
        // Most do not.
        "CREATE TABLE theirs (x); INSERT INTO theirs VALUES ('precious')",
        "CREATE TABLE theirs (x); PRAGMA user_version = 1",
    ] {
        let folder = Folder::new();
        Connection::open(&folder.path).unwrap().execute_batch(sql).unwrap();
        let before = bytes(&folder);
        for must_exist in [false, true] {
            let said = refused(&folder, must_exist);
            let named = said.contains("another program") && said.contains("another data folder");
            assert!(named, "{sql}: {said}");
        }
        assert!(bytes(&folder) == before, "{sql}: it was changed");
    }
}

#[test]
fn what_is_no_database_is_refused() {
    let folder = Folder::new();
    fs::write(&folder.path, "not a database, however long it may be".repeat(200)).unwrap();
    let said = refused(&folder, true);
    assert!(said.contains("damaged") && said.contains("backup"), "{said}");
    fs::remove_file(&folder.path).unwrap();
    fs::create_dir(&folder.path).unwrap();
    refused(&folder, true);
}

#[tokio::test]
async fn a_damaged_page_is_refused() {
    let folder = Folder::new();
    let store = folder.open();
    store.commit(accepted((1..=100).map(|seq| (waiting(seq), None))).into()).await.unwrap();
    store.checkpoint().unwrap();
    drop(store);
    let whole = bytes(&folder);
    let pages = whole.len() / 4096;
    let (mut found, mut tried) = (0, 0);
    for page in 0..pages {
        // The header of a page of a tree: its kind, its cells' number and places.
        let at = if page == 0 { 100 } else { page * 4096 };
        let mut damaged = whole.clone();
        damaged[at..at + 12].fill(0xAA);
        fs::write(&folder.path, &damaged).unwrap();
        let _ = fs::remove_file(folder.at().join("atelier.db-wal"));
        tried += 1;
        let said = refused(&folder, true);
        assert!(said.contains("damaged") && said.contains("backup"), "page {page}: {said}");
        found += 1;
    }
    assert_eq!(found, tried);
    fs::write(&folder.path, &whole).unwrap();
    assert_eq!(folder.open().recover().unwrap().jobs.len(), 100);
}

#[test]
fn a_database_that_another_program_holds_is_refused() {
    let folder = Folder::new();
    drop(folder.open());
    let other = Connection::open(&folder.path).unwrap();
    other.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    other.execute_batch("BEGIN EXCLUSIVE; CREATE TABLE theirs (x); COMMIT").unwrap();
    let said = refused(&folder, true);
    assert!(said.contains("another program") && said.contains("close it"), "{said}");
    drop(other);
    folder.open();
}

#[tokio::test]
async fn what_was_acknowledged_is_in_the_files_at_once() {
    let folder = Folder::new();
    let store = folder.open();
    for seq in 1..=5 {
        store.commit(accepted([(waiting(seq), None)]).into()).await.unwrap();
        // As a crash would leave them: nobody has closed anything.
        let crashed = Folder::new();
        for file in ["atelier.db", "atelier.db-wal"] {
            fs::copy(folder.at().join(file), crashed.at().join(file)).unwrap();
        }
        assert_eq!(crashed.open().recover().unwrap().jobs.len() as u64, seq);
    }
}

#[tokio::test]
async fn the_writer_syncs_every_commit() {
    let folder = Folder::new();
    let store = folder.open();
    let ask = |conn: &Connection| {
        let pragma =
            |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, String>(0));
        let number = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let both = || Ok((pragma("journal_mode")?, number("synchronous")?));
        both().map_err(|e| Error::sqlite("ask", e))
    };
    // 2 is FULL.
    assert_eq!(store.write(ask).await.unwrap(), ("wal".to_owned(), 2));
}

/// A database as the build of this version left it, with something of everything in it.
fn made_by(version: usize, folder: &Folder) -> Connection {
    let mut conn = Connection::open(&folder.path).unwrap();
    schema::migrate_to(&mut conn, version).unwrap();
    assert_eq!(
        conn.pragma_query_value(None, "user_version", |row| row.get::<_, usize>(0)).unwrap(),
        version
    );
    conn
}

#[tokio::test]
async fn every_earlier_version_keeps_its_data() {
    for version in 1..SCHEMA_VERSION {
        let folder = Folder::new();
        let mut batch = accepted([(waiting(1), Some(key("k", "x"))), (records::over(2), None)]);
        batch.nodes.push(node("n1"));
        let is_upgraded;
        {
            let conn = made_by(version, &folder);
            crate::store::jobs::write(&conn, &batch).unwrap();
            if version < 3 {
                // Events knew their job by its name then.
                let names = "UPDATE events SET job = (SELECT name FROM jobs WHERE seq = job)";
                conn.execute_batch(names).unwrap();
            }
            let token = records::token();
            let knows_users = conn.prepare("SELECT 1 FROM users").is_ok();
            is_upgraded = !knows_users;
            if knows_users {
                crate::store::jobs::put_token(&conn, &token).unwrap();
            } else {
                conn.execute(
                    "INSERT INTO tokens (hash, principal, role, created_at) VALUES (?1, ?2, ?3, ?4)",
                    rusqlite::params![
                        token.hash.as_bytes(),
                        token.principal.as_str(),
                        serde_json::to_string(&token.role).unwrap(),
                        token.created_at.as_millis()
                    ],
                )
                .unwrap();
            }
        }
        let store = folder.open();
        let recovered = store.recover().unwrap();
        assert_eq!(recovered.jobs, [waiting(1)], "version {version}");
        assert_eq!(recovered.nodes, [node("n1")]);
        assert_eq!((recovered.counters.seq.0, recovered.counters.event.0), (2, 2));
        assert_eq!(store.job(&name("job2")).unwrap(), Some(records::over(2)));
        assert_eq!(store.events(None, 0, 10).unwrap(), batch.events);
        assert_eq!(store.tokens().unwrap(), [records::token()]);
        if is_upgraded {
            let (name, role) = (records::token().principal, records::token().role);
            let created_at = records::token().created_at;
            let user = UserRecord {
                name,
                role,
                created_by: None,
                created_at,
                signs_in: false,
                groups: Default::default(),
            };
            assert_eq!(store.users().unwrap(), [user], "version {version}");
        }
        assert!(first_of(&*store, "ana", "k").is_some());
        // The same tables as those of a new one.
        let tables = |store: &SqliteStore| {
            store
                .read(|conn| {
                    let read = || -> rusqlite::Result<Vec<String>> {
                        conn.prepare(
                            "SELECT sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY name",
                        )?
                        .query_map([], |row| row.get(0))?
                        .collect()
                    };
                    read().map_err(|e| Error::sqlite("read the schema", e))
                })
                .unwrap()
        };
        let new = Folder::new();
        assert_eq!(tables(&store), tables(&new.open()));
    }
}

#[test]
fn opening_again_changes_nothing() {
    let folder = Folder::new();
    let store = folder.open();
    store.checkpoint().unwrap();
    drop(store);
    // The writer's thread closes its connection when the last handle is gone.
    let closed = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(2));
        !folder.at().join("atelier.db-wal").exists()
    });
    assert!(closed);
    let before = bytes(&folder);
    drop(folder.open());
    assert!(bytes(&folder) == before);
}

#[test]
fn nobody_else_can_read_the_database() {
    let folder = Folder::new();
    fs::set_permissions(folder.at(), fs::Permissions::from_mode(0o755)).unwrap();
    let modes = || {
        let files = fs::read_dir(folder.at()).unwrap().map(|entry| entry.unwrap());
        let databases = files.filter(|f| f.file_name().to_string_lossy().starts_with("atelier.db"));
        databases.map(|f| f.metadata().unwrap().permissions().mode() & 0o777).collect::<Vec<_>>()
    };
    let store = folder.open();
    let found = modes();
    assert!(found.len() > 1 && found.iter().all(|mode| *mode == 0o600), "{found:?}");
    drop(store);
    fs::set_permissions(&folder.path, fs::Permissions::from_mode(0o644)).unwrap();
    let _store = folder.open();
    assert!(modes().iter().all(|mode| *mode == 0o600), "an older one is closed");
}
