//! What MLflow's web page asks for beside what its client does.

use axum::body::{Body, to_bytes};
use http::{Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::World;
use crate::storage::{Home, S3};

const INVALID: &str = "INVALID_PARAMETER_VALUE";
const DENIED: &str = "PERMISSION_DENIED";

impl World {
    /// A run with `points` points of a metric, whose steps count from 0.
    async fn with_points(&self, key: &str, points: usize) -> String {
        let run = self.run("ada").await;
        for from in (0..points).step_by(1000) {
            let to = points.min(from + 1000);
            let metrics: Vec<Value> = (from..to)
                .map(|i| json!({ "key": key, "value": i, "timestamp": 2 * i, "step": i }))
                .collect();
            self.call("ada", "runs/log-batch", json!({ "run_id": run, "metrics": metrics })).await;
        }
        run
    }

    async fn asks(&self, token: &str, name: &str, variables: Value) -> Value {
        let field = match name {
            "MlflowGetExperimentQuery" => "mlflowGetExperiment".to_owned(),
            name => format!("mlflow{name}"),
        };
        let query = format!(
            "query {name}($data: X!) {{ {field}(input: $data) {{ apiError {{ code }} }} }}"
        );
        let body = json!({ "operationName": name, "query": query, "variables": variables });
        let (status, answer) = self.send(token, "POST", "/graphql", body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).expect("JSON")
    }
}

#[tokio::test]
async fn histories_of_several_runs() {
    let world = World::new();
    let mut ids = [world.with_points("m", 3).await, world.with_points("m", 2).await];
    ids.sort();
    let path = |more: &str| {
        let runs: String = ids.iter().rev().map(|id| format!("&run_id={id}")).collect();
        format!("metrics/get-history-bulk?metric_key=m{runs}{more}")
    };
    let steps = |answer: &Value| -> Vec<(String, i64)> {
        let points = answer["metrics"].as_array().cloned().unwrap_or_default();
        points
            .iter()
            .map(|p| {
                (p["run_id"].as_str().expect("run").to_owned(), p["step"].as_i64().expect("step"))
            })
            .collect()
    };
    let all = world.call("ada", &path("&run_id=none&run_id=a/b"), Value::Null).await;
    let found = steps(&all);
    assert_eq!(found.len(), 5);
    assert!(found.is_sorted(), "by run, then time: {found:?}");
    assert_eq!(steps(&world.call("ada", &path("&max_results=4"), Value::Null).await), found[..4]);
    let none = world.call("ada", &path("&max_results=0"), Value::Null).await;
    assert_eq!(none, json!({ "metrics": [] }));
    let of_many = format!("metrics/get-history-bulk?metric_key=m{}", "&run_id=x".repeat(101));
    for (path, part) in [
        ("metrics/get-history-bulk?metric_key=m", "at least one run_id"),
        (&*of_many, "more than 100 run_ids. Received 101"),
        ("metrics/get-history-bulk?run_id=x", "must specify a metric_key"),
        ("metrics/get-history-bulk?run_id=x&metric_key=m&max_results=x", "'max_results'"),
        ("metrics/get-history-bulk-interval?metric_key=m", "required parameter 'run_ids'"),
        (
            "metrics/get-history-bulk-interval?metric_key=m&run_ids=x&max_results=0",
            "between 1 and 2500",
        ),
        (
            "metrics/get-history-bulk-interval?metric_key=m&run_ids=x&max_results=2501",
            "between 1 and 2500",
        ),
        ("metrics/get-history-bulk-interval?metric_key=m&run_ids=x&start_step=1", "both must be"),
        (
            "metrics/get-history-bulk-interval?metric_key=m&run_ids=x&start_step=2&end_step=1",
            "end_step must be",
        ),
    ] {
        world.refused("ada", path, Value::Null, (400, INVALID, part)).await;
    }
}

#[tokio::test]
async fn samples_of_histories() {
    let world = World::new();
    let (long, short) = (world.with_points("m", 3000).await, world.with_points("m", 5).await);
    let steps = async |more: &str| {
        let path = format!(
            "metrics/get-history-bulk-interval?metric_key=m&run_ids={long}&run_ids={short}&run_ids=none{more}"
        );
        let answer = world.call("ada", &path, Value::Null).await;
        let points = answer["metrics"].as_array().cloned().unwrap_or_default();
        let of = |run: &str| -> Vec<i64> {
            let own = points.iter().filter(|point| point["run_id"] == run);
            own.map(|point| point["step"].as_i64().expect("step")).collect()
        };
        (of(&long), of(&short))
    };
    // As MLflow 3.17.2 chooses: the first of each of so many parts, and the last of all.
    assert_eq!(steps("&max_results=4").await, (vec![0, 750, 1500, 2999], vec![0, 2, 3, 4]));
    assert_eq!(steps("&max_results=1").await, (vec![2999], vec![4]));
    let (some, all) = steps("&max_results=7").await;
    assert_eq!(some, [0, 429, 858, 1287, 1716, 2144, 2999]);
    assert_eq!(all, [0, 1, 2, 3, 4]);
    let (some, _) = steps("").await;
    assert!(some.len() == 2500 && some.first() == Some(&0) && some.last() == Some(&2999));
    assert_eq!(steps("&start_step=2&end_step=3").await, (vec![2, 3], vec![2, 3]));
}

#[tokio::test]
async fn datasets_of_experiments() {
    let world = World::new();
    let dataset = |name: &str, context: Option<&str>| {
        let tags: Vec<Value> = context
            .map(|context| json!({ "key": "mlflow.data.context", "value": context }))
            .into_iter()
            .collect();
        json!({ "dataset": { "name": name, "digest": "1", "source_type": "local", "source": "x" }, "tags": tags })
    };
    for list in [
        json!([dataset("a", Some("training")), dataset("b", None)]),
        json!([dataset("a", Some("training"))]),
    ] {
        let run = world.run("ada").await;
        world.call("ada", "runs/log-inputs", json!({ "run_id": run, "datasets": list })).await;
    }
    let found =
        world.call("ada", "experiments/search-datasets", json!({ "experiment_ids": ["0"] })).await;
    assert_eq!(
        found["dataset_summaries"],
        json!([
            { "experiment_id": "0", "name": "a", "digest": "1", "context": "training" },
            { "experiment_id": "0", "name": "b", "digest": "1" },
        ])
    );
    for (ids, part) in
        [(vec![], "at least one"), (vec!["0"; 21], "more than 20 experiment_ids. Received 21")]
    {
        let body = json!({ "experiment_ids": ids });
        world.refused("ada", "experiments/search-datasets", body, (400, INVALID, part)).await;
    }
}

#[tokio::test]
async fn a_file_says_what_it_is_and_never_runs() {
    let world = World::new();
    let run = world.run("ada").await;
    for (name, kind, named) in [
        ("MLmodel", "text/plain", "filename=MLmodel"),
        ("a/plot.png", "image/png", "filename=plot.png"),
        ("data.json", "text/plain", "filename=data.json"),
        ("page.html", "application/octet-stream", "filename=page.html"),
        ("drawing.svg", "application/octet-stream", "filename=drawing.svg"),
        ("ü;\"x\".pdf", "application/pdf", "filename*=UTF-8''%C3%BC%3B%22x%22.pdf"),
    ] {
        let path = atelier_core::url::encoded(name);
        let put = format!("/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/{path}");
        assert_eq!(world.send("ada", "PUT", &put, "x").await.0, StatusCode::OK, "{name}");
        for path in [put, format!("/get-artifact?run_id={run}&path={path}")] {
            let request = Request::builder().uri(path).header(header::AUTHORIZATION, "Bearer ada");
            let request = request.body(Body::empty()).expect("request");
            let response = world.routes.clone().oneshot(request).await.expect("infallible");
            let said = |name| response.headers().get(name).and_then(|said| said.to_str().ok());
            assert_eq!(said(header::CONTENT_TYPE), Some(kind), "{name}");
            let disposition = format!("attachment; {named}");
            assert_eq!(said(header::CONTENT_DISPOSITION), Some(&*disposition), "{name}");
            assert_eq!(said(header::X_CONTENT_TYPE_OPTIONS), Some("nosniff"), "{name}");
        }
    }
}

#[tokio::test]
async fn artifacts_as_the_page_moves_them() {
    let world = World::new();
    let run = world.run("ada").await;
    let up =
        |path: &str| format!("/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path={path}");
    for (token, path, body, status, part) in [
        ("ada", up("a/b%20c.json"), "{\"k\":1}", 200, ""),
        ("grace", up("x"), "x", 403, "only its owner"),
        ("ada", up("x"), "", 400, "must specify data"),
        ("ada", up(""), "x", 400, "must specify path"),
        ("ada", up("..%2Fx"), "x", 400, "Invalid path"),
        (
            "ada",
            "/ajax-api/2.0/mlflow/upload-artifact?path=x".to_owned(),
            "x",
            400,
            "must specify run_uuid",
        ),
        (
            "ada",
            "/ajax-api/2.0/mlflow/upload-artifact?path=x&run_uuid=no".to_owned(),
            "x",
            404,
            "Run with id=no",
        ),
    ] {
        let (got, answer) = world.send(token, "POST", &path, body).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(got.as_u16() == status && answer.contains(part), "{path}: {got} {answer}");
    }
    let (status, answer) =
        world.send("ada", "POST", &up("big"), vec![0; 10 * 1024 * 1024 + 1]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&answer).contains("Max size is 10MB"));
    for root in ["", "/ajax-api/2.0/mlflow", "/api/2.0/mlflow"] {
        let path = format!("{root}/get-artifact?path=a/b%20c.json&run_uuid={run}");
        assert_eq!(
            world.send("reader", "GET", &path, "").await,
            (StatusCode::OK, b"{\"k\":1}".to_vec())
        );
    }
    world.job("job_a", "exp").await;
    let path = format!("get-artifact?path=a/b%20c.json&run_uuid={run}");
    world.refused("job:job_a", &path, Value::Null, (403, DENIED, "own experiment")).await;
}

#[tokio::test]
async fn the_four_documents() {
    let world = World::new();
    let run = world.with_points("m", 2).await;
    let nan = json!({ "run_id": run, "key": "nan", "value": "NaN", "timestamp": 1 });
    world.call("ada", "runs/log-metric", nan).await;
    let answer = world.asks("reader", "GetRun", json!({ "data": { "runId": run } })).await;
    assert_eq!(answer["errors"], Value::Null);
    let found = &answer["data"]["mlflowGetRun"];
    assert_eq!(
        (&found["__typename"], &found["apiError"]),
        (&json!("MlflowGetRunResponse"), &Value::Null)
    );
    let found = &found["run"];
    assert_eq!(found["__typename"], "MlflowRunExtension");
    assert_eq!(
        found["info"],
        json!({
            "__typename": "MlflowRunInfo", "runName": found["info"]["runName"], "status": "RUNNING",
            "runUuid": run, "runId": run, "experimentId": "0", "startTime": "5", "endTime": "0",
            "artifactUri": format!("mlflow-artifacts:/0/{run}/artifacts"), "lifecycleStage": "active",
            "userId": "ada",
        })
    );
    assert_eq!(
        found["data"]["metrics"],
        json!([
            { "__typename": "MlflowMetricExtension", "key": "m", "value": 1.0, "step": "1", "timestamp": "2" },
            { "__typename": "MlflowMetricExtension", "key": "nan", "value": null, "step": "0", "timestamp": "1" },
        ])
    );
    assert_eq!(found["experiment"]["name"], "Default");
    assert_eq!(found["outputs"], json!({ "__typename": "MlflowRunOutputs", "modelOutputs": [] }));

    let data =
        json!({ "data": { "filter": "metrics.m = 1", "experimentIds": ["0"], "maxResults": 1 } });
    let answer = world.asks("ada", "SearchRuns", data).await;
    assert_eq!(answer["data"]["mlflowSearchRuns"]["runs"][0]["info"]["runUuid"], json!(run));
    let data = json!({ "data": { "runIds": [run], "metricKey": "m", "startStep": null, "endStep": null, "maxResults": 320 } });
    let answer = world.asks("ada", "GetMetricHistoryBulkInterval", data).await;
    let points = &answer["data"]["mlflowGetMetricHistoryBulkInterval"]["metrics"];
    assert_eq!(
        points[1],
        json!({
            "__typename": "MlflowMetricWithRunId", "key": "m", "value": 1.0, "step": "1", "timestamp": "2", "runId": run,
        })
    );
    let answer = world
        .asks("ada", "MlflowGetExperimentQuery", json!({ "input": { "experimentId": "0" } }))
        .await;
    assert_eq!(
        answer["data"]["mlflowGetExperiment"]["experiment"]["artifactLocation"],
        "mlflow-artifacts:/0"
    );

    // What goes wrong is told as the page shows it.
    let answer = world.asks("ada", "GetRun", json!({ "data": { "runId": "none" } })).await;
    let error = &answer["data"]["mlflowGetRun"]["apiError"];
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("RESOURCE_DOES_NOT_EXIST"), &json!("Run with id=none not found"))
    );
    world.job("job_a", "exp").await;
    let answer = world.asks("job:job_a", "GetRun", json!({ "data": { "runId": run } })).await;
    assert_eq!(answer["data"]["mlflowGetRun"]["apiError"]["code"], DENIED);
    assert_eq!(answer["data"]["mlflowGetRun"]["run"], Value::Null);

    for body in [
        json!({ "operationName": "Other", "query": "query Other { mlflowGetRun { run { info { runId } } } }" }),
        json!({ "operationName": "GetRun", "query": "query GetRun { test(inputString: \"x\") { output } }", "variables": {} }),
        json!({ "query": "{ __schema { types { name } } }" }),
    ] {
        let (status, answer) = world.send("ada", "POST", "/graphql", body.to_string()).await;
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!((status, &answer["data"]), (StatusCode::OK, &Value::Null), "{body}");
        let said = answer["errors"][0]["message"].as_str().expect("message");
        assert!(said.contains("MlflowGetExperimentQuery"), "{said}");
    }
    let (status, _) = world.send("", "POST", "/graphql", "{}").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn workspaces_are_one() {
    let world = World::new();
    let ask = async |path: &str, named: Option<&str>| {
        let mut request = Request::builder().uri(path).header(header::AUTHORIZATION, "Bearer ada");
        if let Some(named) = named {
            request = request.header("X-MLFLOW-WORKSPACE", named);
        }
        let request = request.body(Body::empty()).expect("request");
        let response = world.routes.clone().oneshot(request).await.expect("infallible");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("body");
        (status, serde_json::from_slice::<Value>(&body).unwrap_or_default())
    };
    let get = "/api/2.0/mlflow/experiments/get?experiment_id=0";
    for named in [None, Some(""), Some("team")] {
        assert_eq!(ask(get, named).await.0, 200, "{named:?}");
    }
    let (status, answer) = ask(get, Some("other")).await;
    assert_eq!((status, &answer["error_code"]), (404, &json!("RESOURCE_DOES_NOT_EXIST")));
    let said = answer["message"].as_str().expect("message");
    assert!(said.starts_with("Workspace 'other' not found") && said.contains("'team'"), "{said}");
    let (status, info) = ask("/api/3.0/mlflow/server-info", Some("other")).await;
    assert_eq!((status, &info["workspaces_enabled"]), (200, &json!(true)));
    // The pages would ask people to choose one first.
    let (_, info) = ask("/ajax-api/3.0/mlflow/server-info", None).await;
    assert_eq!(info["workspaces_enabled"], json!(false));
    let (_, all) = ask("/ajax-api/3.0/mlflow/workspaces", Some("")).await;
    assert_eq!(all, json!({ "workspaces": [{ "name": "team" }] }));
    let (_, own) = ask("/api/3.0/mlflow/workspaces/team", None).await;
    assert_eq!(own, json!({ "workspace": { "name": "team" } }));
    assert_eq!(ask("/api/3.0/mlflow/workspaces/other", None).await.0, 404);
}

/// An artifact store that signs: what is read by an address is read from the store.
#[tokio::test(flavor = "multi_thread")]
async fn s3_downloads_go_past_the_daemon() {
    let server = S3::start();
    let (source, unlock) = server.place(Some("team"));
    let world = World::with(&Home::Cloud(source, unlock));
    let run = world.run("ada").await;
    let large: Vec<u8> = (0..9_000_000u32).map(|i| i as u8).collect();
    let root = |area: &str| format!("/api/2.0/mlflow-artifacts/{area}/0/{run}/artifacts");
    for (name, body) in [("small", vec![1; 10]), ("a/large%20one", large.clone())] {
        let (status, _) =
            world.send("ada", "PUT", &format!("{}/{name}", root("artifacts")), body).await;
        assert_eq!(status, StatusCode::OK);
    }
    let (_, info) = world.send("ada", "GET", "/api/3.0/mlflow/server-info", "").await;
    let info: Value = serde_json::from_slice(&info).expect("JSON");
    assert_eq!(info["multipart_downloads_enabled"], true);
    let signed = async |token: &str, name: &str| {
        let (status, answer) =
            world.send(token, "GET", &format!("{}/{name}", root("presigned")), "").await;
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        (status.as_u16(), answer)
    };
    let (status, answer) = signed("reader", "a/large%20one").await;
    assert_eq!((status, &answer["file_size"]), (200, &json!(9_000_000)));
    let got = reqwest::get(answer["url"].as_str().expect("url")).await.expect("store");
    assert_eq!(got.bytes().await.expect("bytes"), large);
    // The client reads what it is not told the size of through the daemon.
    let (status, answer) = signed("reader", "small").await;
    assert!(status == 200 && answer.get("file_size").is_none(), "{answer}");
    assert!(!answer.to_string().contains("\"key\""), "{answer}");
    world.job("job_a", "exp").await;
    for (token, name, status) in
        [("ada", "none", 404), ("ada", "..%2Fx", 400), ("job:job_a", "small", 403)]
    {
        assert_eq!(signed(token, name).await.0, status, "{name}");
    }
}

#[tokio::test]
async fn folders_give_no_addresses() {
    let world = World::new();
    let run = world.run("ada").await;
    world
        .send(
            "ada",
            "PUT",
            &format!("/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/x"),
            "x",
        )
        .await;
    let path = format!("/api/2.0/mlflow-artifacts/presigned/0/{run}/artifacts/x");
    let (status, answer) = world.send("ada", "GET", &path, "").await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(String::from_utf8_lossy(&answer).contains("Presigned downloads are not supported"));
    let (_, info) = world.send("ada", "GET", "/api/3.0/mlflow/server-info", "").await;
    let info: Value = serde_json::from_slice(&info).expect("JSON");
    assert_eq!(
        (&info["multipart_downloads_enabled"], &info["multipart_uploads_enabled"]),
        (&json!(false), &json!(false))
    );
}

/// An artifact store that signs parts: large files are written to it itself.
#[tokio::test(flavor = "multi_thread")]
async fn s3_uploads_in_parts_go_past_the_daemon() {
    let server = S3::start();
    let (source, unlock) = server.place(Some("team"));
    let world = World::with(&Home::Cloud(source, unlock));
    let run = world.run("ada").await;
    let ask = async |token: &str, step: &str, body: Value| {
        let path = format!("/api/2.0/mlflow-artifacts/mpu/{step}/0/{run}/artifacts/deep");
        let (status, answer) = world.send(token, "POST", &path, body.to_string()).await;
        (status.as_u16(), serde_json::from_slice::<Value>(&answer).expect("JSON"))
    };
    let create = json!({ "path": "/home/ada/model.bin", "num_parts": 2 });
    // This server does what nobody has signed: no addresses of it are given.
    assert_eq!(ask("ada", "create", create.clone()).await.0, 501);
    let server = S3::start();
    let (source, unlock) = server.place(Some("team"));
    let world = World::with(&Home::Cloud(source, unlock));
    world.tracking.artifacts().keeping_to_parts();
    let run = world.run("ada").await;
    let root = |area: &str| format!("/api/2.0/mlflow-artifacts/{area}/0/{run}/artifacts/deep");
    let ask = async |token: &str, step: &str, body: Value| {
        let path = root(&format!("mpu/{step}"));
        let (status, answer) = world.send(token, "POST", &path, body.to_string()).await;
        (status.as_u16(), serde_json::from_slice::<Value>(&answer).expect("JSON"))
    };
    let get = async |name: &str| {
        let (status, bytes) =
            world.send("ada", "GET", &format!("{}/{name}", root("artifacts")), "").await;
        (status.as_u16(), bytes)
    };
    let (_, info) = world.send("ada", "GET", "/api/3.0/mlflow/server-info", "").await;
    let info: Value = serde_json::from_slice(&info).expect("JSON");
    assert_eq!(info["multipart_uploads_enabled"], true);
    assert_eq!(ask("grace", "create", create.clone()).await.0, 403);
    world.job("job_a", "exp").await;
    assert_eq!(ask("job:job_a", "create", create.clone()).await.0, 501);
    for (body, part) in [
        (json!({ "path": "x", "num_parts": 0 }), "'num_parts'"),
        (json!({ "path": "x", "num_parts": 10_001 }), "'num_parts'"),
        (json!({ "num_parts": 1 }), "'path'"),
        (json!({ "path": "..", "num_parts": 1 }), "Invalid path"),
    ] {
        let (status, answer) = ask("ada", "create", body).await;
        assert!(
            status == 400 && answer["message"].as_str().expect("text").contains(part),
            "{answer}"
        );
    }

    let (status, begun) = ask("ada", "create", create).await;
    assert_eq!(status, 200, "{begun}");
    let body: Vec<u8> = (0..6_000_000u32).map(|i| i as u8).collect();
    let mut parts = Vec::new();
    for (bytes, credential) in
        body.chunks(5 << 20).zip(begun["credentials"].as_array().expect("parts"))
    {
        let url = credential["url"].as_str().expect("url");
        let sent =
            reqwest::Client::new().put(url).body(bytes.to_vec()).send().await.expect("store");
        let tag = sent.headers()["etag"].to_str().expect("tag").to_owned();
        parts.push(json!({ "part_number": credential["part_number"], "etag": tag, "url": url }));
    }
    assert_eq!(get("model.bin").await.0, 404);
    let upload = begun["upload_id"].clone();
    let named =
        |name: &str, parts: Value| json!({ "path": name, "upload_id": upload, "parts": parts });
    let all = json!(parts);
    for (token, body, status) in [
        ("grace", named("model.bin", all.clone()), 403),
        ("ada", named("other.bin", all.clone()), 404),
        ("ada", named("model.bin", json!([])), 400),
        ("ada", named("model.bin", json!([parts[1]])), 400),
    ] {
        assert_eq!(ask(token, "complete", body).await.0, status);
    }
    parts.reverse();
    // Twice, as a client repeats what was not answered.
    for _ in 0..2 {
        let (status, answer) = ask("ada", "complete", named("model.bin", json!(parts))).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(get("model.bin").await, (200, body.clone()));
    }
    let list =
        world.call("ada", &format!("artifacts/list?run_id={run}&path=deep"), Value::Null).await;
    assert_eq!(list["files"][0]["file_size"], 6_000_000);

    let (_, begun) = ask("ada", "create", json!({ "path": "given-up", "num_parts": 1 })).await;
    let body = json!({ "path": "given-up", "upload_id": begun["upload_id"] });
    for _ in 0..2 {
        assert_eq!(ask("ada", "abort", body.clone()).await.0, 200);
    }
    assert_eq!(get("given-up").await.0, 404);
}

/// A store on the daemon's own machine is reached from nowhere else.
#[test]
fn addresses_on_this_machine_are_for_those_who_are_here() {
    use super::super::leads_there;
    use crate::identity::Origin;
    use crate::storage::Signed;
    let from =
        |address: &str| Origin { from: Some(address.parse().unwrap()), action: String::new() };
    for (url, elsewhere) in [
        ("http://127.0.0.1:9000/bucket/x?sig=1", false),
        ("http://[::1]:9000/bucket/x?sig=1", false),
        ("http://localhost:9000/bucket/x?sig=1", false),
        ("https://bucket.s3.localhost/x", false),
        ("https://bucket.s3.amazonaws.com/x?sig=1", true),
        ("http://10.0.0.7:9000/bucket/x?sig=1", true),
    ] {
        let signed = Signed { url: url.to_owned() };
        assert_eq!(leads_there(&signed, &from("192.0.2.7")), elsewhere, "{url}");
        assert!(leads_there(&signed, &from("127.0.0.1")), "{url}");
    }
}
