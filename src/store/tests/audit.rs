//! The audit log: in the same transaction as what it tells of, each entry after the one before it.

use std::sync::mpsc;

use atelier_core::audit::{Actor, Chain, Change, Fault};
use atelier_core::datastore::DatastoreRecord;
use futures::future::join_all;
use serde_json::json;

use super::*;
use crate::store::audit::AuditQuery;
use crate::store::{TokenRecord, datastores};

fn all(store: &SqliteStore) -> Vec<atelier_core::audit::Entry> {
    let query = AuditQuery { oldest_first: true, limit: 1000, ..AuditQuery::default() };
    store.audited(&query).unwrap()
}

fn checked(store: &SqliteStore) -> Result<u64, Fault> {
    let mut chain = Chain::whole();
    for entry in all(store) {
        chain.follow(&entry)?;
    }
    Ok(chain.end()?.map_or(0, |(_, last, _)| last))
}

fn token(number: u8) -> TokenRecord {
    TokenRecord {
        hash: Digest::of(&[number]),
        principal: who("ana"),
        role: atelier_core::access::Role::Admin,
        created_at: Timestamp::from_millis(7),
        created_by: None,
        expires_at: None,
        last_used_at: None,
    }
}

#[tokio::test]
async fn a_change_and_its_entry_are_there_together_or_not_at_all() {
    let folder = Folder::new();
    let store = folder.open();
    store.put_token(token(1), who("root").into()).await.unwrap();
    // One that fails among others of the same transaction: its entry goes with it, and leaves no gap.
    let (release, wait) = mpsc::channel::<()>();
    let held = store.write(move |_| {
        let _ = wait.recv();
        Ok(())
    });
    let fails = store.change(who("ben"), |conn| {
        conn.done("test/fails", &json!({}));
        conn.execute("CREATE TABLE half (x)", []).unwrap();
        Err::<(), _>(Error::Superseded)
    });
    let after = store.put_token(token(2), who("root").into());
    let batch = Batch {
        audit: vec![Actor::from(who("ana")).changes(Change::done("job/a", &json!({ "x": 1 })))],
        ..Batch::default()
    };
    let all_of_it = async {
        tokio::join!(held, fails, after, store.commit(batch.into()), async {
            release.send(()).unwrap();
        })
    };
    let (held, failed, after, committed, ()) = all_of_it.await;
    held.unwrap();
    assert!(matches!(failed, Err(Error::Superseded)), "{failed:?}");
    after.unwrap();
    committed.unwrap();
    // Batches are queued at once, others when they have room.
    let told: Vec<_> = all(&store).into_iter().map(|e| (e.seq, e.principal, e.resource)).collect();
    let is = |seq, who: &str, what: &str| (seq, who.to_owned(), what.to_owned());
    assert_eq!(
        told,
        [is(1, "root", "token/ana"), is(2, "ana", "job/a"), is(3, "root", "token/ana")]
    );
    assert_eq!(checked(&store), Ok(3));
    assert_eq!(store.audit_head().unwrap().0, 3);
    drop(store);
    assert_eq!(checked(&folder.open()), Ok(3));
}

#[tokio::test]
async fn what_is_written_without_an_entry_is_refused() {
    let folder = Folder::new();
    let store = folder.open();
    store.put_token(token(1), who("root").into()).await.unwrap();
    for statement in [
        "INSERT INTO datastores VALUES ('a', '{}')",
        "DELETE FROM tokens",
        "INSERT INTO users VALUES ('eve', '{}')",
        "INSERT INTO roles VALUES ('all', '{}')",
        "INSERT INTO join_tokens VALUES (x'00', NULL, 9, '{}')",
        "INSERT INTO node_identities VALUES ('eve', '{}')",
        "UPDATE tokens SET principal = 'eve'",
        "INSERT INTO retention VALUES (1, '{}')",
        "INSERT INTO assets (kind, name, archived) VALUES ('data', 'a', 0); UPDATE assets SET archived = 1",
    ] {
        // Alone in its transaction, and among others.
        for others in [0, 3] {
            let write = store.write(move |conn| {
                conn.execute_batch(statement).map_err(|e| Error::sqlite("test", e))
            });
            let others = join_all((0..others).map(|_| store.write(|_| Ok(()))));
            let (written, others) = tokio::join!(write, others);
            assert!(matches!(written, Err(Error::Unaudited { .. })), "{statement}: {written:?}");
            assert!(others.into_iter().all(|other| other.is_ok()));
            // With somebody to name, but nothing said of it.
            let asked = store.change(who("ana"), move |conn| {
                conn.execute_batch(statement).map_err(|e| Error::sqlite("test", e))
            });
            assert!(matches!(asked.await, Err(Error::Unaudited { .. })), "{statement}");
        }
    }
    assert_eq!(store.tokens().unwrap(), [token(1)]);
    assert_eq!(store.read(datastores::all).unwrap(), Vec::<DatastoreRecord>::new());
    // When a token was last used nobody has asked for.
    let uses = vec![(token(1).hash, Timestamp::from_millis(9))];
    store.note_uses(uses).await.unwrap();
    assert_eq!(store.tokens().unwrap()[0].last_used_at, Some(Timestamp::from_millis(9)));
    // The next is none the worse.
    store.put_token(token(2), who("root").into()).await.unwrap();
    assert_eq!(checked(&store), Ok(2));
}

#[tokio::test]
async fn what_was_tampered_with_is_named() {
    let folder = Folder::new();
    let store = folder.open();
    for number in 1..=6 {
        store.put_token(token(number), who("root").into()).await.unwrap();
    }
    let entries = all(&store);
    drop(store);
    let tampered = |sql: &str| {
        let conn = Connection::open(&folder.path).unwrap();
        conn.execute_batch(sql).unwrap();
        drop(conn);
        let store = folder.open();
        let found = checked(&store);
        let (given, last, head) = store.audit_head().unwrap();
        drop(store);
        let conn = Connection::open(&folder.path).unwrap();
        conn.execute_batch("DELETE FROM audit").unwrap();
        let mut insert = conn
            .prepare("INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")
            .unwrap();
        for e in &entries {
            let (previous, hash) = (e.previous.as_bytes(), e.hash.as_bytes());
            insert
                .execute(rusqlite::params![
                    e.seq,
                    e.at.as_millis(),
                    e.principal,
                    e.role,
                    e.from,
                    e.action,
                    e.resource,
                    e.refused,
                    e.before,
                    e.after,
                    previous,
                    hash
                ])
                .unwrap();
        }
        (found, given, last, head)
    };
    let found = |sql| tampered(sql).0;
    assert_eq!(found(""), Ok(6));
    assert_eq!(found("UPDATE audit SET principal = 'eve' WHERE seq = 3"), Err(Fault::Changed(3)));
    assert_eq!(found("UPDATE audit SET after = '{' WHERE seq = 3"), Err(Fault::Changed(3)));
    assert_eq!(found("UPDATE audit SET hash = x'00' WHERE seq = 3"), Err(Fault::Changed(3)));
    assert_eq!(
        found("DELETE FROM audit WHERE seq IN (3, 4)"),
        Err(Fault::Missing { first: 3, last: 4 })
    );
    // At the end the database remembers how many there were.
    let (found, given, last, _) = tampered("DELETE FROM audit WHERE seq > 4");
    assert_eq!((found, given, last), (Ok(4), 6, 4));
}

#[tokio::test]
async fn the_log_is_listed_by_what_is_asked() {
    let folder = Folder::new();
    let store = folder.open();
    for (who_asks, action, resource) in [
        ("ana", "JobService/CreateJob", "job/a"),
        ("ben", "JobService/DeleteJob", "job/ab"),
        ("ana", "ComputeService/SetQuota", "compute/gpu"),
    ] {
        let actor = Actor { action: action.to_owned(), ..Actor::from(who(who_asks)) };
        store.audit(vec![actor.changes(Change::done(resource, &json!({})))]).await.unwrap();
    }
    let listed = |query: AuditQuery| -> Vec<u64> {
        let query = AuditQuery { limit: 10, ..query };
        store.audited(&query).unwrap().into_iter().map(|entry| entry.seq).collect()
    };
    let any = AuditQuery::default;
    assert_eq!(listed(any()), [3, 2, 1]);
    assert_eq!(listed(AuditQuery { oldest_first: true, after: Some(1), ..any() }), [2, 3]);
    assert_eq!(listed(AuditQuery { after: Some(3), ..any() }), [2, 1]);
    assert_eq!(listed(AuditQuery { principal: "ana".to_owned(), ..any() }), [3, 1]);
    assert_eq!(listed(AuditQuery { action: "jobservice/".to_owned(), ..any() }), [2, 1]);
    assert_eq!(listed(AuditQuery { resource: "job".to_owned(), ..any() }), [2, 1]);
    assert_eq!(listed(AuditQuery { resource: "job/a".to_owned(), ..any() }), [1]);
    assert_eq!(
        listed(AuditQuery { since: Some(Timestamp::from_millis(i64::MAX)), ..any() }),
        Vec::<u64>::new()
    );
}

/// What is old goes, an entry tells of it, and what is left is whole; whoever takes more than that is found.
#[tokio::test]
async fn a_pruned_log_still_follows() {
    let folder = Folder::new();
    let store = folder.open();
    for number in 1..=6 {
        store.put_token(token(number), who("root").into()).await.unwrap();
    }
    let conn = rusqlite::Connection::open(folder.at().join("atelier.db")).unwrap();
    conn.execute("UPDATE audit SET at = 1000 * seq", []).unwrap();
    // As they would be: the hashes are of these times.
    let entries = all(&store);
    let mut last = (0, atelier_core::audit::START);
    for mut entry in entries {
        entry.previous = last.1;
        let hash = entry.digest();
        conn.execute(
            "UPDATE audit SET previous = ?2, hash = ?3 WHERE seq = ?1",
            rusqlite::params![entry.seq, last.1.as_bytes(), hash.as_bytes()],
        )
        .unwrap();
        last = (entry.seq, hash);
    }
    assert_eq!(checked(&store), Ok(6));
    let by = || Actor::daemon(who("root"), atelier_core::audit::Checkpoint::ACTION);
    let at = Timestamp::from_millis;
    assert_eq!(store.prune_audit(by(), at(1000)).await.unwrap(), None);
    let (gone, cut) = store.prune_audit(by(), at(3500)).await.unwrap().unwrap();
    assert_eq!((gone, cut.through), (3, 3));
    assert_eq!(checked(&store), Ok(7));
    assert_eq!(all(&store)[0].seq, 4);
    // Once more, the entry that told of the first time included.
    let (gone, cut) = store.prune_audit(by(), at(i64::MAX)).await.unwrap().unwrap();
    assert_eq!((gone, cut.through), (4, 7));
    assert_eq!(checked(&store), Ok(8));
    store.put_token(token(7), who("root").into()).await.unwrap();
    assert_eq!(checked(&store), Ok(9));
    conn.execute("DELETE FROM audit WHERE seq = 8", []).unwrap();
    assert_eq!(checked(&store), Err(Fault::Missing { first: 1, last: 8 }));
}
