use std::sync::mpsc;

use atelier_core::live::Counters;
use futures::FutureExt as _;
use futures::future::join_all;

use super::*;
use crate::store::{Error, Recovered, Store as _};

/// Transactions that the database's log holds. Each ends with one frame that says so (see "WAL
/// file format" in SQLite's documentation).
fn transactions(folder: &Folder) -> usize {
    const HEADER: usize = 32;
    const FRAME: usize = 24;
    let log = std::fs::read(folder.at().join("atelier.db-wal")).unwrap();
    if log.len() < HEADER {
        return 0;
    }
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let (page, salt) = (number(8) as usize, number(16));
    (HEADER..log.len())
        .step_by(FRAME + page)
        .take_while(|&at| at + FRAME + page <= log.len() && number(at + 8) == salt)
        .filter(|&at| number(at + 4) != 0)
        .count()
}

/// Makes the writer wait until the sender says so; what is asked meanwhile gathers.
fn hold(store: &Arc<SqliteStore>) -> (mpsc::SyncSender<()>, tokio::task::JoinHandle<()>) {
    let (release, held) = mpsc::sync_channel(1);
    let (reached, here) = mpsc::sync_channel(1);
    let store = store.clone();
    let holding = tokio::spawn(async move {
        let wait = move |_: &rusqlite::Connection| {
            reached.send(()).unwrap();
            held.recv().unwrap();
            Ok(())
        };
        store.write(wait).await.unwrap();
    });
    tokio::task::block_in_place(|| here.recv().unwrap());
    (release, holding)
}

fn nothing(recovered: &Recovered) -> bool {
    let Counters { epoch, seq, event } = recovered.counters;
    recovered.jobs.is_empty()
        && recovered.nodes.is_empty()
        && (epoch.0, seq.0, event.0) == (0, 0, 0)
}

/// The log has this number already, so the batch fails after its jobs and keys were written.
fn doomed() -> Batch {
    let mut batch = accepted([(waiting(1), Some(key("k", "x"))), (waiting(2), None)]);
    let again = batch.events[0].clone();
    batch.events.push(again);
    batch.nodes.push(node("n1"));
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_whole_or_not_at_all() {
    let folder = Folder::new();
    let store = folder.open();
    let untouched = |store: &SqliteStore| {
        assert!(nothing(&store.recover().unwrap()));
        assert_eq!(store.job(&name("job1")).unwrap(), None);
        assert_eq!(first_of(store, "ana", "k"), None);
        assert!(store.events(None, 0, 10).unwrap().is_empty());
    };
    store.commit(doomed().into()).await.unwrap_err();
    untouched(&store);

    // The same among others of one transaction: they are written, it is not.
    let (release, holding) = hold(&store);
    let nodes = Batch { nodes: vec![node("n2")], ..Batch::default() };
    let token = store.write(|conn| {
        conn.execute("CREATE TABLE other (x)", []).map_err(|e| Error::sqlite("test", e))
    });
    let joined = store.commit(nodes.into());
    let failed = store.commit(doomed().into());
    // Decided on what the one before it says.
    let late = store.commit(accepted([(waiting(3), None)]).into());
    let mut all = Box::pin(futures::future::join4(joined, failed, late, token));
    assert!((&mut all).now_or_never().is_none());
    release.send(()).unwrap();
    let (joined, failed, late, table) = all.await;
    holding.await.unwrap();
    joined.unwrap();
    assert!(!failed.unwrap_err().is_fatal());
    assert!(matches!(late, Err(Error::Superseded)), "{late:?}");
    table.unwrap();
    let refused = store.commit(accepted([(waiting(4), None)]).into()).await;
    assert!(matches!(refused, Err(Error::Superseded)), "until what is there is read: {refused:?}");
    let recovered = store.recover().unwrap();
    assert_eq!(recovered.nodes, [node("n2")]);
    assert!(recovered.jobs.is_empty() && recovered.counters.seq.0 == 0);
    assert!(store.events(None, 0, 10).unwrap().is_empty());

    // The store goes on, and the good part alone is taken.
    store.commit(accepted([(waiting(1), Some(key("k", "x")))]).into()).await.unwrap();
    assert_eq!(store.job(&name("job1")).unwrap(), Some(waiting(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_gather_share_a_transaction_and_each_is_answered() {
    let folder = Folder::new();
    let store = folder.open();
    let before = transactions(&folder);
    let (release, holding) = hold(&store);
    // One has another's name.
    let batches: Vec<Batch> = (1..=200)
        .map(|seq| {
            let mut job = waiting(seq);
            if seq == 150 {
                job.name = name("job1");
            }
            accepted([(job, None)])
        })
        .collect();
    let mut all = Box::pin(join_all(batches.into_iter().map(|batch| store.commit(batch.into()))));
    assert!((&mut all).now_or_never().is_none());
    release.send(()).unwrap();
    let answers = all.await;
    holding.await.unwrap();
    for (seq, answer) in (1..=200).zip(&answers) {
        assert_eq!(answer.is_ok(), seq < 150, "{seq}: {answer:?}");
        let superseded = matches!(answer, Err(Error::Superseded));
        assert_eq!(superseded, seq > 150, "{seq}: {answer:?}");
    }
    assert_eq!(store.recover().unwrap().jobs.len(), 149);
    let shared = transactions(&folder) - before;
    assert!(shared <= 2, "200 batches took {shared} transactions");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_queue_holds_waits_and_is_answered() {
    let folder = Folder::new();
    let store = folder.open();
    let (release, holding) = hold(&store);
    let all = join_all((0..5_000_u64).map(|number| store.write(move |_| Ok(number))));
    let mut all = Box::pin(all);
    assert!((&mut all).now_or_never().is_none());
    release.send(()).unwrap();
    let answers: Vec<u64> = all.await.into_iter().map(Result::unwrap).collect();
    holding.await.unwrap();
    assert_eq!(answers, (0..5_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_key_belongs_to_its_principal_and_is_written_once() {
    let folder = Folder::new();
    let store = folder.open();
    store.commit(accepted([(waiting(1), Some(key("k", "x")))]).into()).await.unwrap();
    let found = first_of(&*store, "ana", "k");
    assert_eq!(found, Some((name("job1"), Digest::of(b"x"))));
    assert_eq!(first_of(&*store, "ben", "k"), None);
    assert_eq!(first_of(&*store, "ana", "K"), None);
    // Even a reactor that forgot to ask cannot use it twice.
    for content in ["x", "y"] {
        store.commit(accepted([(waiting(2), Some(key("k", content)))]).into()).await.unwrap_err();
        assert_eq!(store.job(&name("job2")).unwrap(), None);
        store.recover().unwrap();
    }
    let mut other = waiting(2);
    other.created_by = who("ben");
    store.commit(accepted([(other, Some(key("k", "y")))]).into()).await.unwrap();
    drop(store);
    let store = folder.open();
    assert_eq!(first_of(&*store, "ben", "k").unwrap().0, name("job2"));
    assert_eq!(first_of(&*store, "ana", "k").unwrap().0, name("job1"));
}

#[tokio::test]
async fn a_forgotten_job_leaves_nothing_and_a_live_one_stays() {
    let folder = Folder::new();
    let store = folder.open();
    let over = records::over(1);
    store.commit(accepted([(over, Some(key("k", "x"))), (waiting(2), None)]).into()).await.unwrap();
    let deleted = vec![name("job1"), name("job2")];
    store.commit(Batch { deleted, ..Batch::default() }.into()).await.unwrap();
    assert_eq!(store.job(&name("job1")).unwrap(), None);
    assert!(store.events(Some(&name("job1")), 0, 10).unwrap().is_empty());
    assert_eq!(first_of(&*store, "ana", "k"), None);
    assert_eq!(store.job(&name("job2")).unwrap(), Some(waiting(2)));
}
