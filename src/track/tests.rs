use std::sync::Arc;

use atelier_core::access::{Caller, Role};
use atelier_core::id::Principal;
use atelier_core::layout::ARTIFACT_STORE;
use atelier_core::time::Timestamp;
use atelier_core::track::{
    ExperimentId, Metric, PageToken, RunId, RunStatus, StoredMetric, sampled,
};
use proptest::prelude::*;

use super::seal::object;
use super::{Error, Tracking};
use crate::storage::{Datastores, ObjectPath};
use crate::store::SqliteStore;
use crate::store::tracking::{self, NewRun, RunChange, TrackReply, TrackWrite};

struct World {
    tracking: Tracking,
    run: RunId,
    _folder: tempfile::TempDir,
}

fn admin() -> Caller {
    Caller { principal: Principal::new("root").expect("principal"), role: Role::Admin }
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let store = SqliteStore::open(&folder.path().join("atelier.db"), false).expect("store");
        let datastores = Datastores::open_folders(&folder.path().join("storage")).expect("stores");
        let artifacts = datastores.get(ARTIFACT_STORE).expect("artifacts").clone();
        let clock = Arc::new(|| Timestamp::from_millis(1_700_000_000_000));
        let tracking = Tracking::new(Arc::new(store), artifacts, clock);
        let run = RunId::new("r").expect("run");
        let world = Self { tracking, run: run.clone(), _folder: folder };
        let new = NewRun {
            id: run,
            experiment: ExperimentId(0),
            name: "r".to_owned(),
            started: Timestamp::from_millis(1),
            tags: vec![],
        };
        world.write(TrackWrite::CreateRun { by: admin(), run: new }).await;
        world
    }

    async fn write(&self, write: TrackWrite) -> TrackReply {
        self.tracking.write(write).await.expect("write")
    }

    async fn change(&self, change: RunChange) -> TrackReply {
        self.write(TrackWrite::ChangeRun { by: admin(), id: self.run.clone(), change }).await
    }

    async fn log(&self, points: &[Metric]) {
        for chunk in points.chunks(1000) {
            let metrics = chunk.to_vec();
            self.change(RunChange::Log {
                metrics,
                params: vec![],
                tags: vec![],
                of_models: vec![],
            })
            .await;
        }
    }

    async fn end(&self) {
        let status = Some(RunStatus::Finished);
        self.change(RunChange::Update { status, ended: None, name: None }).await;
    }

    async fn history(&self, key: &str) -> Vec<StoredMetric> {
        let history = self.tracking.history(&self.run, key, usize::MAX, None).await;
        history.expect("history").points
    }

    /// The history in pages.
    async fn paged(&self, key: &str, limit: usize) -> Vec<StoredMetric> {
        let (mut parts, mut token) = (Vec::new(), None::<String>);
        loop {
            let part = self.tracking.history(&self.run, key, limit, token.as_deref()).await;
            let part = part.expect("part");
            assert!(part.points.len() <= limit);
            parts.extend(part.points);
            token = part.next.as_ref().map(PageToken::to_string);
            if token.is_none() {
                return parts;
            }
        }
    }

    async fn hot(&self) -> i64 {
        let count = |conn: &rusqlite::Connection| {
            conn.query_row("SELECT count(*) FROM metrics", [], |row| row.get(0))
                .map_err(|e| crate::store::Error::sqlite("count", e))
        };
        self.tracking.read(count).await.expect("count")
    }

    async fn sealed(&self) -> Option<u64> {
        let run = self.run.clone();
        let pointer = self.tracking.read(move |conn| tracking::sealed(conn, &run)).await;
        pointer.expect("pointer").map(|pointer| pointer.points)
    }
}

fn points(key: &str, steps: std::ops::Range<i64>) -> Vec<Metric> {
    let value = |step: i64| if step % 10 == 3 { f64::NAN } else { step as f64 / 3.0 };
    let point = |step| Metric {
        key: key.to_owned(),
        value: value(step),
        timestamp: 1_700_000_000_000 + step / 2,
        step,
    };
    steps.map(point).collect()
}

#[tokio::test]
async fn sealed_points_read_back_as_they_were() {
    let world = World::new().await;
    world.log(&points("loss", 0..500)).await;
    world.log(&points("val/loss é", 0..3)).await;
    let before = (world.history("loss").await, world.history("val/loss é").await);
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 0, "the run is at work");
    world.end().await;
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 1);
    assert_eq!(world.hot().await, 0);
    assert_eq!(world.sealed().await, Some(503));
    for _ in 0..2 {
        assert_eq!((world.history("loss").await, world.history("val/loss é").await), before);
    }
    assert_eq!(world.history("nope").await, []);
    assert_eq!(world.tracking.seal_due().await.expect("again"), 0);
}

#[tokio::test]
async fn runs_with_few_points_cost_no_file() {
    let world = World::new().await;
    world.log(&points("loss", 0..31)).await;
    world.end().await;
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 0);
    assert_eq!(world.sealed().await, None);
    assert_eq!(world.history("loss").await.len(), 31);
}

#[tokio::test]
async fn a_run_at_work_with_very_many_points_is_sealed() {
    let world = World::new().await;
    world.log(&points("m", 0..200)).await;
    let many = |conn: &rusqlite::Connection| {
        conn.execute("UPDATE runs SET hot = ?1", [tracking::SEAL_AT_WORK - 1])
            .map_err(|e| crate::store::Error::sqlite("pretend", e))
    };
    world.tracking.inner.store.write(many).await.expect("pretend that there are many");
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 0);
    let metrics = points("m", 200..201);
    let (params, tags, of_models) = (vec![], vec![], vec![]);
    let reply = world.change(RunChange::Log { metrics, params, tags, of_models }).await;
    assert_eq!(reply, TrackReply::ToSeal);
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 1);
    assert_eq!((world.hot().await, world.sealed().await), (0, Some(201)));
    world.log(&points("m", 150..300)).await;
    let history = world.history("m").await;
    assert_eq!((history.len(), world.paged("m", 70).await), (300, history));
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 0, "few are left");
    world.end().await;
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 1);
    assert_eq!(world.sealed().await, Some(300));
}

#[tokio::test]
async fn later_points_are_merged_into_the_file() {
    let world = World::new().await;
    world.log(&points("b", 0..100)).await;
    world.end().await;
    world.tracking.seal_due().await.expect("seal");
    // Repeated and new points of the same metric, and metrics that sort before and after it.
    world.log(&points("b", 50..150)).await;
    world.log(&points("a", 0..10)).await;
    world.log(&points("c", 0..10)).await;
    assert_eq!(world.history("b").await.len(), 150, "each point once, wherever it lies");
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 1);
    assert_eq!((world.hot().await, world.sealed().await), (0, Some(170)));
    for (key, count) in [("a", 10), ("b", 150), ("c", 10)] {
        assert_eq!(world.history(key).await.len(), count, "{key}");
    }
}

#[tokio::test]
async fn a_crash_at_any_point_loses_and_doubles_nothing() {
    for crash in 0..4 {
        let world = World::new().await;
        world.log(&points("m", 0..200)).await;
        let before = world.history("m").await;
        world.end().await;
        // As the sealer does, up to the crash.
        if crash >= 1 {
            world.write(TrackWrite::BeginSeal(world.run.clone())).await;
        }
        if crash >= 2 {
            // A file that no pointer names yet; a half-written one never gets its place.
            let path = ObjectPath::new(&object(&world.run)).expect("path");
            let store = world.tracking.artifacts();
            store.put(&path, bytes::Bytes::from_static(b"left over")).await.expect("put");
        }
        if crash == 3 {
            // Some rows removed, others not.
            world.tracking.seal(&world.run).await.expect("seal");
            world.write(TrackWrite::Purge(world.run.clone())).await;
            world.log(&points("m", 0..20)).await;
        }
        assert_eq!(world.history("m").await, before, "after crash {crash}");
        world.log(&points("late", 0..2)).await;
        world.tracking.seal_due().await.expect("seal");
        assert_eq!(world.history("m").await, before, "healed after crash {crash}");
        assert_eq!(world.history("late").await.len(), 2);
        assert_eq!(world.sealed().await, Some(if crash == 3 { 200 } else { 202 }), "{crash}");
        let again = world.tracking.seal_due().await.expect("seal");
        assert_eq!(again, 0, "nothing is due after crash {crash}");
    }
}

#[tokio::test]
async fn more_points_than_a_row_group() {
    let world = World::new().await;
    let many = (super::parquet::GROUP_ROWS + 1000) as i64;
    world.log(&points("m", 0..many)).await;
    world.log(&points("n", 0..5)).await;
    world.end().await;
    world.tracking.seal_due().await.expect("seal");
    assert_eq!(world.hot().await, 0);
    let history = world.history("m").await;
    assert_eq!(history.len() as i64, many);
    assert!(history.windows(2).all(|pair| pair[0].in_history(&pair[1]).is_lt()));
    assert_eq!(world.history("n").await.len(), 5);
    assert_eq!(world.paged("m", 30).await, history, "a part at a time: the same points, once each");
}

/// A page costs the row groups that it needs, not all.
#[tokio::test]
async fn a_page_reads_what_it_needs() {
    let world = World::new().await;
    world.log(&points("m", 0..2000)).await;
    world.end().await;
    world.tracking.seal_due().await.expect("seal");
    let whole = world.paged("m", 50).await;
    assert_eq!(whole.len(), 2000);
    // The file is remembered; its middle is damaged where only the later pages lie.
    let path = ObjectPath::new(&object(&world.run)).expect("path");
    let folder = world.tracking.artifacts().own_folder().expect("folder").join(path.as_str());
    let mut bytes = std::fs::read(&folder).expect("file");
    let size = bytes.len();
    bytes[size / 4..size / 2].fill(0);
    std::fs::write(&folder, &bytes).expect("damage");
    world.tracking.inner.files.forget(path.as_str());
    let first = world.tracking.history(&world.run, "m", 50, None).await.expect("first page");
    assert_eq!(first.points, whole[..50]);
    assert!(world.tracking.history(&world.run, "m", 2000, None).await.is_err());
}

/// What a curve of a long history promises, of sealed and hot points and whatever the steps.
#[tokio::test]
async fn a_sample_of_many_points_keeps_the_ends_and_the_extremes() {
    let world = World::new().await;
    let wave = |step: i64| ((step * 7919 % 1013) as f64).mul_add(0.1, step as f64);
    let point = |step: i64| Metric {
        key: "m".to_owned(),
        value: if step % 50 == 7 { f64::NAN } else { wave(step) },
        timestamp: step,
        step: step / 2,
    };
    world.log(&points("a", 0..100)).await;
    world.log(&points("z", 0..500)).await;
    world.log(&(0..3000).map(point).collect::<Vec<_>>()).await;
    world.end().await;
    world.tracking.seal_due().await.expect("seal");
    for late in [false, true] {
        if late {
            world
                .log(&[point(2999), point(3001), Metric { step: -5, value: 1e9, ..point(0) }])
                .await;
        }
        let mut all = world.history("m").await;
        all.sort_by(StoredMetric::later);
        for steps in [i64::MIN..=i64::MAX, 0..=1499, 100..=1399, 3..=700, -9..=600, 1100..=9999] {
            let mut within = all.clone();
            within.retain(|point| steps.contains(&point.step));
            for most in [1, 2, 3, 4, 17, 60] {
                let told = format!("{steps:?}, {most}, {late}");
                let sample = world.tracking.sample(&world.run, "m", steps.clone(), most).await;
                let sample = sample.expect("sample");
                let ranks: Vec<usize> = sample
                    .iter()
                    .map(|point| within.iter().position(|p| p == point).expect("one of them"))
                    .collect();
                assert!(
                    ranks.is_sorted_by(|a, b| a < b) && ranks.len() <= most,
                    "{told}: {ranks:?}"
                );
                assert_eq!(ranks.last(), Some(&(within.len() - 1)), "{told}");
                if most > 1 {
                    assert_eq!(ranks[0], 0, "{told}");
                    let even = 2 * (within.len() / most + 8) + 2 * within.len() / most;
                    assert!(
                        ranks.windows(2).all(|pair| pair[1] - pair[0] <= even),
                        "{told}: {ranks:?}"
                    );
                }
                if most > 3 && within.len() > 600 {
                    let numbers = || within.iter().filter(|point| !point.is_nan);
                    let low = numbers().min_by(|a, b| a.value.total_cmp(&b.value));
                    let high = numbers().map(|point| point.value).fold(f64::MIN, f64::max);
                    assert!(sample.contains(low.expect("low")), "{told}");
                    assert!(sample.iter().any(|point| point.value == high), "{told}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_full_or_damaged_store_keeps_the_rows() {
    let world = World::new().await;
    world.log(&points("m", 0..100)).await;
    world.end().await;
    // A folder where the file should be.
    let path = ObjectPath::new(&format!("{}/x", object(&world.run))).expect("path");
    world.tracking.artifacts().put(&path, bytes::Bytes::new()).await.expect("put");
    let failed = world.tracking.seal_due().await.expect_err("conflict");
    assert!(matches!(failed, Error::Storage(_)), "{failed}");
    assert_eq!((world.hot().await, world.history("m").await.len()), (100, 100));
    drop(world.tracking.artifacts().delete(&path).await.expect("delete"));
    let folder = ObjectPath::new(&object(&world.run)).expect("path");
    drop(world.tracking.artifacts().delete(&folder).await.expect("delete"));
    assert_eq!(world.tracking.seal_due().await.expect("seal"), 1);

    // A damaged file is an error, not an empty history.
    let world_files = world.tracking.artifacts();
    world_files.put(&folder, bytes::Bytes::from_static(b"PAR1 no")).await.expect("put");
    world.tracking.inner.files.forget(folder.as_str());
    let damaged = world.tracking.history(&world.run, "m", 10, None).await;
    assert!(matches!(damaged, Err(Error::Sealed { .. })), "{damaged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sealers_at_once_lose_nothing() {
    let world = World::new().await;
    world.end().await;
    for round in 0..2 {
        world.log(&points(&format!("m{round}"), 0..6000)).await;
        let (one, two) = tokio::join!(world.tracking.seal_due(), world.tracking.seal_due());
        assert_eq!(one.expect("one") + two.expect("two"), 1);
        assert_eq!((world.hot().await, world.sealed().await), (0, Some(6000 * (round + 1))));
    }
}

#[tokio::test]
async fn the_sealer_wakes_by_itself() {
    let world = World::new().await;
    world.log(&points("m", 0..100)).await;
    let tracking = world.tracking.clone();
    let sealer = tokio::spawn(async move { tracking.run_sealer().await });
    world.end().await;
    world.tracking.wake();
    let sealed = async {
        while world.sealed().await.is_none() || world.hot().await > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(30), sealed).await;
    sealer.abort();
    waited.expect("sealed within 30 s");
}

#[tokio::test]
async fn samples_of_the_monitor() {
    use atelier_core::access::AttemptScope;
    use atelier_core::id::{AttemptNumber, Epoch, ExperimentName, JobName};
    let world = World::new().await;
    let job = JobName::new("job_a").expect("job");
    let run = tracking::JobRun {
        job: job.clone(),
        experiment: ExperimentName::new("e").expect("name"),
        display_name: "a".to_owned(),
        owner: Principal::new("ada").expect("principal"),
        status: RunStatus::Running,
        at: Timestamp::from_millis(5),
        tags: vec![],
    };
    world.write(TrackWrite::CreateJobRun(run)).await;
    let scope = AttemptScope { job: job.clone(), attempt: AttemptNumber(1), epoch: Epoch(1) };
    let sample = |step| super::Sample {
        at: Timestamp::from_millis(1000 + step),
        step,
        values: vec![("system/cpu_utilization_percentage".to_owned(), 12.5)],
    };
    for _ in 0..2 {
        let samples = vec![sample(0), sample(1)];
        world.tracking.record_samples(&scope, samples).await.expect("samples");
    }
    let run = RunId::from(&job);
    let key = "system/cpu_utilization_percentage";
    let history = world.tracking.history(&run, key, 10, None).await.expect("history");
    assert_eq!(history.points.iter().map(|p| p.step).collect::<Vec<_>>(), [0, 1]);
    let bad = super::Sample { values: vec![("a//b".to_owned(), 1.0)], ..sample(2) };
    assert!(world.tracking.record_samples(&scope, vec![bad]).await.is_err());
    let gone = AttemptScope { job: JobName::new("gone").expect("job"), ..scope };
    world.tracking.record_samples(&gone, vec![sample(0)]).await.expect("no one's samples");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// However points arrive and whenever they are sealed, the history is the set of them.
    #[test]
    fn history_is_the_set_of_points(
        batches in prop::collection::vec(
            (prop::collection::vec((0usize..3, 0i64..30, 0i64..9, -2i32..3), 0..150), any::<bool>()),
            1..5,
        ),
        limit in 1usize..200,
        (from, to) in (0i64..20, 10i64..40),
        most in 1usize..50,
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let world = World::new().await;
            world.end().await;
            let mut model: Vec<StoredMetric> = Vec::new();
            for (batch, seal) in batches {
                let points: Vec<Metric> = batch.into_iter().map(|(key, step, at, value)| Metric {
                    key: ["a", "b/c", "z"][key].to_owned(),
                    step,
                    timestamp: at,
                    value: if value == 2 { f64::NAN } else { f64::from(value) },
                }).collect();
                world.log(&points).await;
                model.extend(points.into_iter().map(StoredMetric::from));
                if seal {
                    world.tracking.seal_due().await.expect("seal");
                }
                model.sort_by(StoredMetric::in_history);
                for key in ["a", "b/c", "z"] {
                    let mut expected: Vec<_> =
                        model.iter().filter(|p| p.key == key).cloned().collect();
                    expected.dedup();
                    prop_assert_eq!(world.history(key).await, expected.clone());
                    prop_assert_eq!(world.paged(key, limit).await, expected.clone());
                    expected.retain(|point| (from..=to).contains(&point.step));
                    expected.sort_by(StoredMetric::later);
                    let sample = world.tracking.sample(&world.run, key, from..=to, most).await;
                    prop_assert_eq!(sample.expect("sample"), sampled(expected, most));
                }
            }
            Ok(())
        })?;
    }
}
