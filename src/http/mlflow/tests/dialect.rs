//! The dialect, the limits and who may do what, request by request.

use atelier_core::track::RunStatus;
use http::StatusCode;
use serde_json::{Value, json};

use super::World;

const INVALID: &str = "INVALID_PARAMETER_VALUE";
const MISSING: &str = "RESOURCE_DOES_NOT_EXIST";
const DENIED: &str = "PERMISSION_DENIED";

#[tokio::test]
async fn a_run_as_json() {
    let world = World::new();
    let made = world
        .call(
            "ada",
            "runs/create",
            json!({
                "experiment_id": "0", "start_time": 1234, "run_name": "first", "user_id": "x",
                "tags": [{ "key": "k", "value": "v" }], "unknown": { "ignored": [1] },
            }),
        )
        .await;
    let id = made["run"]["info"]["run_id"].as_str().expect("id").to_owned();
    assert_eq!(
        made["run"],
        json!({
            "info": {
                "run_uuid": id, "experiment_id": "0", "run_name": "first", "user_id": "ada",
                "status": "RUNNING", "start_time": 1234,
                "artifact_uri": format!("mlflow-artifacts:/0/{id}/artifacts"),
                "lifecycle_stage": "active", "run_id": id,
            },
            "data": {
                "tags": [
                    { "key": "mlflow.runName", "value": "first" }, { "key": "k", "value": "v" },
                ],
            },
            "inputs": {},
        })
    );
    let point = |value: Value, step: Value| json!({ "run_id": id, "run_uuid": id, "key": "m", "value": value, "timestamp": "77", "step": step });
    world.call("ada", "runs/log-metric", point(json!(0.1), json!(1))).await;
    world.call("ada", "runs/log-metric", point(json!("NaN"), json!("2"))).await;
    world.call("ada", "runs/log-metric", point(json!("-Infinity"), json!(-3.0))).await;
    let run = world.call("ada", &format!("runs/get?run_uuid={id}"), Value::Null).await;
    assert_eq!(
        run["run"]["data"]["metrics"],
        json!([{ "key": "m", "value": "NaN", "timestamp": 77, "step": 2 }])
    );
    let path = format!("metrics/get-history?run_id={id}&metric_key=m");
    let history = world.call("ada", &path, Value::Null).await;
    let values: Vec<_> =
        history["metrics"].as_array().expect("list").iter().map(|m| &m["value"]).collect();
    assert_eq!(values, [&json!(f64::MIN), &json!(0.1), &json!("NaN")]);
    let ended = json!({ "run_id": id, "status": "FINISHED", "end_time": 99 });
    let updated = world.call("ada", "runs/update", ended).await;
    assert_eq!(updated["run_info"]["status"], "FINISHED");
    assert_eq!(updated["run_info"]["end_time"], 99);
    // By number, as some clients write enums.
    world.call("ada", "runs/update", json!({ "run_id": id, "status": 1 })).await;
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() {
    let world = World::new();
    let id = world.run("ada").await;
    let path = "/api/2.0/mlflow/runs/log-metric";
    for (body, part) in [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object, got 'list'"),
        (&*format!(r#"{{"run_id":"{id}","key":"m","value":NaN,"timestamp":1}}"#), "\\\"NaN\\\""),
        (&*format!(r#"{{"run_id":"{id}","key":"m","value":1e400,"timestamp":1}}"#), "out of range"),
        (&*format!(r#"{{"run_id":"{id}","key":"m","value":"1e400","timestamp":1}}"#), "'value'"),
        (&*format!(r#"{{"run_id":"{id}","key":"m","value":true,"timestamp":1}}"#), "'bool'"),
        (&*format!(r#"{{"run_id":"{id}","key":"m","value":1,"timestamp":1.5}}"#), "'timestamp'"),
        (&*format!(r#"{{"run_id":"{id}","key":5,"value":1,"timestamp":1}}"#), "'key'"),
        (
            &*format!(r#"{{"run_id":"{id}","key":"m","timestamp":1}}"#),
            "Missing value for required parameter 'value'",
        ),
        (&*format!(r#"{{"run_id":"{id}","key":"","value":1,"timestamp":1}}"#), "'key'"),
        (
            &*format!(r#"{{"run_id":"{id}","key":"m","value":1,"timestamp":-1}}"#),
            "nonnegative long",
        ),
        ("", "Missing value for required parameter 'run_id'"),
        ("null", "'run_id'"),
        (&*format!("{}1{}", "[".repeat(9999), "]".repeat(9999)), "recursion"),
    ] {
        let (status, answer) = world.send("ada", "POST", path, body.to_owned()).await;
        let text = String::from_utf8(answer).expect("text");
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {text}");
        assert!(text.contains(part) && text.contains(INVALID), "{body}: {text}");
    }
    // A JSON text that holds JSON, as old clients send it.
    let nested = json!(json!({ "run_id": id, "key": "a", "value": 1, "timestamp": 1 }).to_string());
    let (status, _) = world.send("ada", "POST", path, nested.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let huge = vec![b' '; 17 * 1024 * 1024];
    let (status, answer) = world.send("ada", "POST", path, huge).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&answer).contains("at most 16777216 bytes"));
}

#[tokio::test]
async fn limits_are_mlflows() {
    let world = World::new();
    let id = world.run("ada").await;
    let metrics = |n: usize| -> Value {
        (0..n).map(|i| json!({ "key": format!("m{i}"), "value": i, "timestamp": 1 })).collect()
    };
    let batch = |metrics: Value, params: Value, tags: Value| json!({ "run_id": id, "metrics": metrics, "params": params, "tags": tags });
    world.call("ada", "runs/log-batch", batch(metrics(1000), json!([]), json!([]))).await;
    let no = json!([]);
    for (body, part) in [
        (batch(metrics(1001), no.clone(), no.clone()), "at most 1000 metrics. Got 1001 metrics"),
        (batch(json!([{ "key": "a" }]), no.clone(), no.clone()), "'metrics[0].value'"),
        (batch(json!(["x"]), no.clone(), no.clone()), "'metrics'"),
        (
            batch(json!([{ "key": "a//b", "value": 1, "timestamp": 1 }]), no.clone(), no.clone()),
            "for parameter 'metrics[0].name' supplied: Names may be treated as files",
        ),
        (
            batch(
                no.clone(),
                json!([{ "key": "p", "value": "1" }, { "key": "p", "value": "1" }]),
                no.clone(),
            ),
            "Duplicate parameter keys",
        ),
        (
            batch(no.clone(), no.clone(), json!([{ "key": "k".repeat(251), "value": "" }])),
            "exceeds the maximum length of 250 characters",
        ),
    ] {
        world.refused("ada", "runs/log-batch", body, (400, INVALID, part)).await;
    }
    let param = |value: &str| json!({ "run_id": id, "key": "lr", "value": value });
    world.call("ada", "runs/log-parameter", param(&"é".repeat(7000))).await;
    let same = param(&"é".repeat(6000));
    world.call("ada", "runs/log-parameter", same).await;
    let refusal = (400, INVALID, "Changing param values is not allowed. Param with key='lr'");
    world.refused("ada", "runs/log-parameter", param("x"), refusal).await;
    let body = json!({ "run_id": id, "key": "m".repeat(251), "value": 1, "timestamp": 1 });
    world.refused("ada", "runs/log-metric", body, (400, INVALID, "'Metric name' exceeds")).await;
    for n in [json!(0), json!(-1), json!(50_001), json!("x")] {
        let body = json!({ "experiment_ids": ["0"], "max_results": n });
        world.refused("ada", "runs/search", body, (400, INVALID, "'max_results'")).await;
    }
    let body = json!({ "experiment_ids": ["0"], "filter": "metrics.a >" });
    world.refused("ada", "runs/search", body, (400, INVALID, "(at character 12)")).await;
    let body = json!({ "experiment_ids": ["0"], "page_token": "00" });
    world.refused("ada", "runs/search", body, (400, INVALID, "Invalid page token")).await;
    let body = json!({ "name": "x".repeat(501) });
    world.refused("ada", "experiments/create", body, (400, INVALID, "maximum length of 500")).await;
    let body = json!({ "name": "x", "artifact_location": "s3://b" });
    world.refused("ada", "experiments/create", body, (400, INVALID, "Leave it out")).await;
    let body = json!({ "run_id": id, "status": "DONE" });
    world.refused("ada", "runs/update", body, (400, INVALID, "'status'")).await;
}

#[tokio::test]
async fn what_is_not_there() {
    let world = World::new();
    for (path, body, refusal) in [
        ("runs/get?run_id=nope", Value::Null, (404, MISSING, "Run with id=nope not found")),
        ("runs/get?run_id=a/../b", Value::Null, (404, MISSING, "not found")),
        ("runs/get", Value::Null, (400, INVALID, "'run_id'")),
        (
            "experiments/get?experiment_id=77",
            Value::Null,
            (404, MISSING, "No Experiment with id=77"),
        ),
        ("experiments/get?experiment_id=x", Value::Null, (400, INVALID, "valid integer")),
        (
            "experiments/get-by-name?experiment_name=no%20such",
            Value::Null,
            (404, MISSING, "Could not find experiment with name 'no such'"),
        ),
        ("registered-models/none", json!({}), (404, "ENDPOINT_NOT_FOUND", "No API found")),
    ] {
        world.refused("ada", path, body, refusal).await;
    }
    for path in ["/api/3.0/mlflow/traces", "/ajax-api/2.0/mlflow/gateway", "/api/x"] {
        let (status, answer) = world.send("ada", "POST", path, "{}").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(answer["error_code"], "ENDPOINT_NOT_FOUND");
    }
    let (status, answer) = world.send("ada", "GET", "/api/2.0/mlflow/runs/create", "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(String::from_utf8_lossy(&answer).contains("does not take GET"));
    let (status, answer) = world.send("", "GET", "/api/2.0/mlflow/runs/get?run_id=x", "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(String::from_utf8_lossy(&answer).contains("MLFLOW_TRACKING_TOKEN"));
    for (path, text) in [("/health", "OK"), ("/version", super::super::MLFLOW_VERSION)] {
        let (status, answer) = world.send("ada", "GET", path, "").await;
        assert_eq!((status, answer.as_slice()), (StatusCode::OK, text.as_bytes()));
    }
    let (_, info) = world.send("ada", "GET", "/ajax-api/3.0/mlflow/server-info", "").await;
    let info: Value = serde_json::from_slice(&info).expect("JSON");
    assert_eq!(info["multipart_uploads_enabled"], false);
}

#[tokio::test]
async fn who_may_do_what() {
    let world = World::new();
    world.job("job_a", "exp").await;
    world.job("job_b", "other").await;
    let id = world.run("ada").await;
    let tag = |run: &str| json!({ "run_id": run, "key": "k", "value": "v" });
    world.refused("grace", "runs/set-tag", tag(&id), (403, DENIED, "only its owner")).await;
    world.refused("reader", "runs/set-tag", tag(&id), (403, DENIED, "may not write")).await;
    world.call("reader", &format!("runs/get?run_id={id}"), Value::Null).await;
    world.call("admin", "runs/set-tag", tag(&id)).await;
    let get = format!("runs/get?run_id={id}");
    world.refused("node", &get, Value::Null, (403, DENIED, "may not read")).await;

    // An attempt: its own run, its own experiment, nothing else.
    world.call("job:job_a", "runs/set-tag", tag("job_a")).await;
    world.call("job:job_a", "runs/get?run_id=job_a", Value::Null).await;
    world.call("job:job_a", "experiments/get?experiment_id=1", Value::Null).await;
    for run in ["job_b", &id] {
        world.refused("job:job_a", "runs/set-tag", tag(run), (403, DENIED, "own run")).await;
        let get = format!("runs/get?run_id={run}");
        world.refused("job:job_a", &get, Value::Null, (403, DENIED, "own experiment")).await;
        let get = format!("metrics/get-history?run_id={run}&metric_key=m");
        world.refused("job:job_a", &get, Value::Null, (403, DENIED, "own experiment")).await;
        let get = format!("artifacts/list?run_id={run}");
        world.refused("job:job_a", &get, Value::Null, (403, DENIED, "own experiment")).await;
    }
    let get = "experiments/get-by-name?experiment_name=other";
    world.refused("job:job_a", get, Value::Null, (403, DENIED, "leave out set_experiment")).await;
    let make = json!({ "name": "new" });
    world.refused("job:job_a", "experiments/create", make, (403, DENIED, "set_experiment")).await;
    let rename = json!({ "experiment_id": "1", "new_name": "mine" });
    world.refused("job:job_a", "experiments/update", rename, (403, DENIED, "owner")).await;
    let search = |ids: Value| json!({ "experiment_ids": ids });
    let found = world.call("job:job_a", "runs/search", search(json!(["1"]))).await;
    assert_eq!(found["runs"].as_array().map(Vec::len), Some(1));
    let both = search(json!(["1", "2"]));
    world.refused("job:job_a", "runs/search", both, (403, DENIED, "own experiment")).await;
    let seen = world.call("job:job_a", "experiments/search", json!({})).await;
    assert_eq!(seen["experiments"].as_array().map(Vec::len), Some(1));
    assert_eq!(seen["experiments"][0]["name"], "exp");

    // Its run follows the job, not the client; its own children it may end.
    let end = |run: &str| json!({ "run_id": run, "status": "FINISHED", "end_time": 5 });
    let info = world.call("job:job_a", "runs/update", end("job_a")).await;
    assert_eq!(info["run_info"]["status"], "RUNNING");
    let child = world.call("job:job_a", "runs/create", json!({ "experiment_id": "1" })).await;
    let child = child["run"]["info"]["run_id"].as_str().expect("id");
    let info = world.call("job:job_a", "runs/update", end(child)).await;
    assert_eq!(info["run_info"]["status"], "FINISHED");
    world.follow("job_a", RunStatus::Killed).await;
    let run = world.call("ada", "runs/get?run_id=job_a", Value::Null).await;
    assert_eq!(run["run"]["info"]["status"], "KILLED");
}

#[tokio::test]
async fn pages_of_searches() {
    let world = World::new();
    for i in 0..5 {
        world
            .call("ada", "runs/create", json!({ "start_time": i, "run_name": format!("r{i}") }))
            .await;
        world.call("ada", "experiments/create", json!({ "name": format!("e{i}") })).await;
    }
    let mut names = Vec::new();
    let mut token = json!("");
    loop {
        let body = json!({
            "experiment_ids": ["0"], "max_results": 2, "order_by": ["start_time ASC"],
            "page_token": token,
        });
        let page = world.call("ada", "runs/search", body).await;
        for run in page["runs"].as_array().expect("runs") {
            names.push(run["info"]["run_name"].as_str().expect("name").to_owned());
        }
        match page.get("next_page_token") {
            Some(next) => token = next.clone(),
            None => break,
        }
    }
    assert_eq!(names, ["r0", "r1", "r2", "r3", "r4"]);
    // GET with repeated parameters, as the web page searches.
    let mut names = Vec::new();
    let mut next = String::new();
    loop {
        let path = format!(
            "experiments/search?max_results=4&order_by=name%20DESC&view_type=ACTIVE_ONLY\
             &filter=name%20LIKE%20%27e%25%27&page_token={next}"
        );
        let page = world.call("ada", &path, Value::Null).await;
        for experiment in page["experiments"].as_array().expect("experiments") {
            names.push(experiment["name"].as_str().expect("name").to_owned());
        }
        match page.get("next_page_token").and_then(Value::as_str) {
            Some(token) => next = token.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, ["e4", "e3", "e2", "e1", "e0"]);
    let none = world.call("ada", "runs/search", json!({})).await;
    assert_eq!(none, json!({}));
}
