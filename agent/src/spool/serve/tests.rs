//! Who is served, and with what.

use atelier_core::track::{Metric, RunId};
use tokio::sync::watch;

use super::*;
use crate::spool;

#[test]
fn a_program_of_this_machine_is_told_from_a_page_in_a_browser() {
    let of = |pairs: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        is_own(&headers, 7000)
    };
    assert!(of(&[("host", "127.0.0.1:7000")]) && of(&[("host", "localhost:7000")]));
    for refused in [
        &[][..],
        &[("host", "127.0.0.1")],
        &[("host", "127.0.0.1:7001")],
        &[("host", "evil.example:7000")],
        &[("host", "127.0.0.1:7000"), ("host", "evil.example")],
        &[("host", "127.0.0.1:7000"), ("origin", "http://evil.example")],
        &[("host", "127.0.0.1:7000"), ("origin", "null")],
        &[("host", "127.0.0.1:7000"), ("sec-fetch-site", "cross-site")],
    ] {
        assert!(!of(refused), "{refused:?}");
    }
}

#[test]
fn mlflows_paths_go_on_and_no_others() {
    assert_eq!(asked("/api/2.0/mlflow/runs/log-metric"), Asked::Metric);
    assert_eq!(asked("/ajax-api/2.0/mlflow/runs/log-batch"), Asked::Batch);
    assert_eq!(asked("/api/2.0/mlflow/runs/delete"), Asked::Deletion);
    for path in
        ["/api/2.0/mlflow/runs/get", "/health", "/api/2.0/mlflow-artifacts/artifacts/a/b%2e"]
    {
        assert_eq!(asked(path), Asked::Other, "{path}");
    }
    for path in [
        "/",
        "/data/v1/store/key",
        "/atelier.v1.JobService/List",
        "/api/../data/v1/store/key",
        "/api/%2e%2e/data/v1/store/key",
        "/api/..%5cdata",
        "/api",
        "//api/2.0/mlflow/runs/get",
    ] {
        assert_eq!(asked(path), Asked::Nothing, "{path}");
    }
}

#[tokio::test]
async fn what_an_attempt_logs_is_bounded_and_taken_up_by_the_next_agent_at_the_same_port() {
    let root = tempfile::TempDir::new().unwrap();
    let (_services, services) = watch::channel(None);
    let (_connected, connected) = watch::channel(false);
    let listen = async |limit, has_jobs| {
        let (services, connected) = (services.clone(), connected.clone());
        spool::listen(root.path(), limit, has_jobs, services, connected).await.unwrap()
    };
    let point = |step: i32| {
        [Metric { key: "k".to_owned(), value: f64::from(step), timestamp: 1, step: step.into() }]
    };
    let [own, other] = ["job", "other"].map(|run| RunId::new(run).unwrap());

    let (spools, threads) = listen(1000, false).await;
    let held = spools.hold("job", 1, "secret", root.path());
    let spool = spools.of("secret").unwrap();
    assert!(["", "secre", "secrets", "SECRET"].iter().all(|token| spools.of(token).is_none()));
    assert!(!spools.take(&spool, &other, &point(0)));
    let taken = (0..100).take_while(|&step| spools.take(&spool, &own, &point(step))).count();
    assert!((5..20).contains(&taken), "{taken}");
    let port = spools.port();
    drop(held);
    assert!(spools.of("secret").is_none());
    drop((spools, spool, threads));

    let (spools, _threads) = listen(1 << 20, true).await;
    assert_eq!(spools.port(), port);
    let held = spools.hold("job", 1, "secret", root.path());
    let spool = spools.of("secret").unwrap();
    assert_eq!((held.has_unsent(), spool.next()), (true, taken as u64));
    assert!(spools.take(&spool, &own, &point(100)));
    // While the daemon does not know the token the job is to hear it.
    spool.is_known(false);
    assert!(!spools.take(&spool, &own, &point(101)));
    spool.is_known(true);
    spool.forget_runs();
    assert!(!spools.take(&spool, &own, &point(101)));
    spool.know(own.clone());
    assert!(spools.take(&spool, &own, &point(101)));
    held.give_up();
    assert!(!held.has_unsent() && !spools.take(&spool, &own, &point(102)));
}
