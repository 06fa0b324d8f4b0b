//! Tracking with many runs and many points: searches by a metric, a curve and pages of a very long history, memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atelier::storage::Datastores;
use atelier::store::SqliteStore;
use atelier::store::tracking::{NewRun, RunChange, TrackWrite};
use atelier::track::Tracking;
use atelier_core::access::{Caller, Role};
use atelier_core::id::Principal;
use atelier_core::layout::ARTIFACT_STORE;
use atelier_core::time::Timestamp;
use atelier_core::track::{ExperimentId, Metric, Param, RunId, RunStatus};
use serde_json::{Value, json};

use crate::cluster::{Cluster, runtime};
use crate::figures::millis;
use crate::idle::pss;

/// When the first point was measured.
const BEGAN: i64 = 1_700_000_000_000;
/// Metrics of each of the many runs, and points of each metric: too few to be sealed.
const KEYS: usize = 10;
const POINTS_OF_KEY: i64 = 3;
/// Points and runs of one transaction.
const BATCH: i64 = 20_000;
const TOGETHER: usize = 500;

fn asked(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// `RUNS` runs (100,000) of ten metrics in one experiment, and `LONG` (1) more with `POINTS` points (10 million) of one
/// metric, written through the store; then asked of a daemon.
pub(crate) fn points() {
    let (runs, long, points) =
        (asked("RUNS", 100_000), asked("LONG", 1), asked("POINTS", 10_000_000));
    let begin = Instant::now();
    let cluster = Cluster::prepared(|data| fill(data, runs, long, points));
    let all = runs * KEYS * POINTS_OF_KEY as usize + long * points;
    println!("points: {runs} runs, {all} points, made in {:.0} s", begin.elapsed().as_secs_f64());
    // What it does at a start is over.
    std::thread::sleep(Duration::from_secs(3));
    let daemon = cluster.daemon.id();
    println!("  daemon after its start: {:.1} MiB PSS", pss(daemon).unwrap());
    let client = reqwest::Client::builder().no_proxy().tls_certs_only(std::iter::empty()).build();
    let asker =
        Asker { client: client.unwrap(), url: cluster.url.clone(), token: cluster.token.clone() };
    let runtime = runtime();
    if long > 0 {
        let curve = |range: String| {
            let path = format!(
                "metrics/get-history-bulk-interval?run_ids=long0&metric_key=m&max_results=1000{range}"
            );
            let (took, said) = runtime.block_on(asker.get(&path));
            assert!(said["metrics"].as_array().unwrap().len() > 500);
            took
        };
        millis("  curve of 1,000 points", (0..50).map(|_| curve(String::new())).collect());
        let part = |n: usize| {
            let from = points / 200 * (n % 100);
            curve(format!("&start_step={from}&end_step={}", from + points / 5))
        };
        millis("  the same of a fifth of the steps", (0..50).map(part).collect());
        let mut token = String::new();
        let page = |_| {
            let path =
                format!("metrics/get-history?run_id=long0&metric_key=m&max_results=1000{token}");
            let (took, said) = runtime.block_on(asker.get(&path));
            assert_eq!(said["metrics"].as_array().unwrap().len(), 1000);
            token = format!("&page_token={}", said["next_page_token"].as_str().unwrap());
            took
        };
        millis("  page of 1,000 points of the history", (0..100).map(page).collect());
    }
    for most in [100, 1000] {
        let search = |n: usize| {
            let (by, of) = (n * 7 % KEYS, n * 3 % KEYS);
            let bound = (n * 37 % 100) as f64 / 100.0;
            let (test, way) = (["<", ">"][n % 2], ["ASC", "DESC"][n / 2 % 2]);
            let (took, said) = runtime.block_on(asker.post(
                "runs/search",
                &json!({
                    "experiment_ids": ["0"],
                    "filter": format!("metrics.m{of} {test} {bound}"),
                    "order_by": [format!("metrics.m{by} {way}")],
                    "max_results": most,
                }),
            ));
            assert!(said["runs"].as_array().map_or(0, Vec::len) <= most);
            took
        };
        let name = format!("  search with a metric filter and order, {most} a page");
        millis(&name, (0..200).map(search).collect());
    }
    println!("  daemon after that: {:.1} MiB PSS", pss(daemon).unwrap());
}

struct Asker {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Asker {
    async fn get(&self, path: &str) -> (Duration, Value) {
        self.ask(self.client.get(self.at(path))).await
    }

    async fn post(&self, path: &str, body: &Value) -> (Duration, Value) {
        let request = self.client.post(self.at(path)).header("content-type", "application/json");
        self.ask(request.body(body.to_string())).await
    }

    fn at(&self, path: &str) -> String {
        format!("{}/api/2.0/mlflow/{path}", self.url)
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> (Duration, Value) {
        let begin = Instant::now();
        let answer = request.bearer_auth(&self.token).send().await.unwrap();
        let status = answer.status();
        let bytes = answer.bytes().await.unwrap();
        let took = begin.elapsed();
        assert!(status.is_success(), "{status} {}", String::from_utf8_lossy(&bytes));
        (took, serde_json::from_slice(&bytes).unwrap())
    }
}

fn fill(data: &Path, runs: usize, long: usize, points: usize) {
    let store = Arc::new(SqliteStore::open(&data.join("atelier.db"), true).unwrap());
    let stores = Datastores::open_folders(&data.join("storage")).unwrap();
    let artifacts = stores.get(ARTIFACT_STORE).unwrap();
    let clock = Arc::new(|| Timestamp::from_millis(BEGAN));
    let tracking = Tracking::new(store.clone(), artifacts, clock);
    runtime().block_on(async {
        for first in (0..runs).step_by(TOGETHER) {
            let numbers = first..runs.min(first + TOGETHER);
            let made = store.write(move |conn| {
                for number in numbers {
                    for write in run(&format!("run{number}"), number as i64, some(number)) {
                        write.apply(conn)?;
                    }
                }
                Ok(())
            });
            made.await.unwrap();
        }
        for number in 0..long {
            let name = format!("long{number}");
            for write in run(&name, number as i64, Vec::new()).into_iter().take(1) {
                tracking.write(write).await.unwrap();
            }
            for first in (0..points as i64).step_by(BATCH as usize) {
                let steps = first..(first + BATCH).min(points as i64);
                let metrics = steps.map(|step| point("m".to_owned(), step)).collect();
                tracking.write(log(&name, metrics, Vec::new())).await.unwrap();
                // As the daemon does beside it.
                if first % (25 * BATCH) == 0 {
                    tracking.seal_due().await.unwrap();
                }
            }
            tracking.write(end(&name)).await.unwrap();
        }
        tracking.seal_due().await.unwrap();
        tracking.rank_due(false).await.unwrap();
    });
    store.checkpoint().unwrap();
}

/// As a run's loss goes: down, with noise.
fn point(key: String, step: i64) -> Metric {
    let noise = (step.wrapping_mul(0x9E37_79B9) >> 7 & 0xFFFF) as f64 / 65_536.0;
    let value = 1e4 / (step as f64 + 1e4) + noise / 10.0;
    Metric { key, value, timestamp: BEGAN + step * 20, step }
}

fn some(number: usize) -> Vec<Metric> {
    let value = |key: usize, step: i64| {
        let mixed = (number * KEYS + key).wrapping_mul(2_654_435_761) % 1_000_003;
        mixed as f64 / 1_000_003.0 + (POINTS_OF_KEY - 1 - step) as f64
    };
    let keys = (0..KEYS).flat_map(|key| (0..POINTS_OF_KEY).map(move |step| (key, step)));
    keys.map(|(key, step)| Metric {
        key: format!("m{key}"),
        value: value(key, step),
        timestamp: BEGAN + step,
        step,
    })
    .collect()
}

fn root() -> Caller {
    Caller { principal: Principal::new("root").unwrap(), role: Role::Admin }
}

/// A run that is made, logs and ends.
fn run(name: &str, number: i64, metrics: Vec<Metric>) -> Vec<TrackWrite> {
    let new = NewRun {
        id: RunId::new(name).unwrap(),
        experiment: ExperimentId(0),
        name: name.to_owned(),
        started: Timestamp::from_millis(BEGAN + number),
        tags: Vec::new(),
    };
    let param = |key: &str, value: i64| Param { key: key.to_owned(), value: value.to_string() };
    let params = vec![param("lr", number % 10), param("seed", number)];
    vec![TrackWrite::CreateRun { by: root(), run: new }, log(name, metrics, params), end(name)]
}

fn log(name: &str, metrics: Vec<Metric>, params: Vec<Param>) -> TrackWrite {
    let change = RunChange::Log { metrics, params, tags: Vec::new(), of_models: Vec::new() };
    TrackWrite::ChangeRun { by: root(), id: RunId::new(name).unwrap(), change }
}

fn end(name: &str) -> TrackWrite {
    let (status, ended) = (Some(RunStatus::Finished), Some(Timestamp::from_millis(BEGAN)));
    let change = RunChange::Update { status, ended, name: None };
    TrackWrite::ChangeRun { by: root(), id: RunId::new(name).unwrap(), change }
}
