use super::*;
use crate::store::{Archived, JobQuery, Store as _};

/// Twenty-five jobs: every third is over, every fifth of those archived; two experiments.
async fn filled(folder: &Folder) -> Arc<SqliteStore> {
    let store = folder.open();
    let jobs = (1..=25).map(|seq| {
        let mut job = if seq % 3 == 0 { records::over(seq) } else { waiting(seq) };
        job.archived = seq % 15 == 0;
        if seq % 2 == 0 {
            let experiment_name = ExperimentName::new("even's \"own\" %").unwrap();
            job.spec = Arc::new(CommandJob { experiment_name, ..spec("true") });
        }
        (job, None)
    });
    store.commit(accepted(jobs).into()).await.unwrap();
    store
}

fn seqs(jobs: &[Job]) -> Vec<u64> {
    jobs.iter().map(|job| job.seq.0).collect()
}

#[tokio::test]
async fn job_lists_come_newest_first_in_pages() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let list = |query: JobQuery| seqs(&store.jobs(&query).unwrap());
    let all = |archived| JobQuery { limit: 100, archived, ..JobQuery::default() };
    let (mut paged, mut before) = (Vec::new(), None);
    // Marks that lead nowhere must not lead round for ever.
    for _ in 0..100 {
        let page = list(JobQuery { before, limit: 4, ..JobQuery::default() });
        assert!(page.len() <= 4);
        let Some(last) = page.last() else { break };
        before = Some(*last);
        paged.extend(page);
    }
    let expected: Vec<u64> = (1..=25).rev().filter(|seq| seq % 15 != 0).collect();
    assert_eq!(paged, expected);
    assert_eq!(list(all(Archived::Without)), expected);
    assert_eq!(list(all(Archived::With)), (1..=25).rev().collect::<Vec<_>>());
    assert_eq!(list(all(Archived::Only)), [15]);

    let completed = JobQuery { statuses: vec![JobStatus::Completed], ..all(Archived::With) };
    assert_eq!(list(completed.clone()), [24, 21, 18, 15, 12, 9, 6, 3]);
    let both = JobQuery {
        statuses: vec![JobStatus::Completed, JobStatus::Queued],
        before: Some(5),
        ..all(Archived::With)
    };
    assert_eq!(list(both), [4, 3, 2, 1]);
    let experiment = Some(ExperimentName::new("even's \"own\" %").unwrap());
    let even = JobQuery { experiment, limit: 3, ..completed };
    assert_eq!(list(even), [24, 18, 12]);
    let experiment = Some(ExperimentName::new("even").unwrap());
    assert!(list(JobQuery { experiment, ..all(Archived::With) }).is_empty());
    assert!(list(JobQuery { limit: 0, ..all(Archived::With) }).is_empty());
    assert!(list(JobQuery { before: Some(0), ..all(Archived::With) }).is_empty());
}

#[tokio::test]
async fn a_page_mark_of_any_size_is_no_error() {
    let folder = Folder::new();
    let store = filled(&folder).await;
    let far = JobQuery { before: Some(u64::MAX), limit: 2, ..JobQuery::default() };
    assert_eq!(seqs(&store.jobs(&far).unwrap()), [25, 24]);
    assert!(store.events(None, u64::MAX, 10).unwrap().is_empty());
}

#[tokio::test]
async fn events_come_oldest_first_in_pages_of_one_job_or_all() {
    let folder = Folder::new();
    let store = folder.open();
    let jobs = [waiting(1), waiting(2)];
    let mut batch = accepted(jobs.clone().map(|job| (job, None)));
    batch.events = (1..=40).map(|seq| event(seq, &jobs[(seq % 2) as usize].name)).collect();
    store.commit(batch.into()).await.unwrap();
    for (job, step) in [(None, 1), (Some(&jobs[0].name), 2)] {
        let (mut seen, mut after) = (Vec::new(), 0);
        for _ in 0..100 {
            let page = store.events(job, after, 7).unwrap();
            assert!(page.len() <= 7);
            assert!(job.is_none_or(|job| page.iter().all(|event| &event.job == job)));
            let Some(last) = page.last() else { break };
            after = last.seq.0;
            seen.extend(page.iter().map(|event| event.seq.0));
        }
        let expected: Vec<u64> = (1..=40).filter(|seq| seq % step == 0).collect();
        assert_eq!(seen, expected);
    }
    assert!(store.events(Some(&name("job3")), 0, 7).unwrap().is_empty());
}

#[tokio::test]
async fn how_long_jobs_took_is_told_of_the_last_of_a_compute() {
    let folder = Folder::new();
    let store = folder.open();
    let jobs = (1..=9).map(|seq| {
        let mut job = if seq % 2 == 0 { records::over(seq) } else { waiting(seq) };
        if seq == 8 {
            job.compute = ComputeName::new("other").unwrap();
        }
        (job, None)
    });
    let mut batch = accepted(jobs);
    // 6 was placed before its command started, and before that on a node that was lost.
    for (seq, at) in [(21, 1), (22, 2)] {
        let at = Timestamp::from_millis(at);
        batch.events.push(Event { at, status: JobStatus::Starting, ..event(seq, &name("job6")) });
    }
    batch.counters = Some(Counters { event: EventSeq(22), ..batch.counters.unwrap() });
    store.commit(batch.into()).await.unwrap();
    let past = |compute: &str, limit| -> Vec<u64> {
        let past = store.past(&ComputeName::new(compute).unwrap(), limit).unwrap();
        assert!(past.iter().all(|past| past.command == "true"));
        past.iter().map(|past| past.ms).collect()
    };
    assert_eq!(past("local", 9), [7, 6, 6]);
    assert_eq!(past("local", 1), [7]);
    assert_eq!(past("other", 9), [6]);
    assert_eq!(past("none", 9), [0; 0]);
}
