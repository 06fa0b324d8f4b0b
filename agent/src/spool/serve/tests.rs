//! Who is served, and with what.

use super::*;

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
