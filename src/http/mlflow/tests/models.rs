//! Logged models: what is kept, who may do what, and their files.

use http::StatusCode;
use serde_json::{Value, json};

use super::World;
use crate::storage::ObjectPath;

const INVALID: &str = "INVALID_PARAMETER_VALUE";
const MISSING: &str = "RESOURCE_DOES_NOT_EXIST";
const DENIED: &str = "PERMISSION_DENIED";
const API: &str = "/api/2.0/mlflow/logged-models";
const PROXY: &str = "/api/2.0/mlflow-artifacts/artifacts";

impl World {
    async fn model(&self, token: &str, body: Value) -> Value {
        self.call(token, "logged-models", body).await["model"].clone()
    }

    async fn sent(&self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.send(token, method, &format!("{API}/{path}"), body).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        (status.as_u16(), serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}")))
    }

    async fn names(&self, token: &str, body: Value) -> Vec<String> {
        let found = self.call(token, "logged-models/search", body).await;
        let models = found["models"].as_array().cloned().unwrap_or_default();
        models.iter().map(|m| m["info"]["name"].as_str().expect("name").to_owned()).collect()
    }
}

fn id(model: &Value) -> String {
    model["info"]["model_id"].as_str().expect("id").to_owned()
}

#[tokio::test]
async fn a_model_as_json() {
    let world = World::new();
    let run = world.run("ada").await;
    let made = world
        .model(
            "ada",
            json!({
                "experiment_id": "0", "name": "first", "model_type": "agent", "source_run_id": run,
                "params": [{ "key": "p", "value": "1" }], "tags": [{ "key": "t", "value": "x" }],
            }),
        )
        .await;
    let id = id(&made);
    let time = made["info"]["creation_timestamp_ms"].clone();
    assert_eq!(
        made,
        json!({
            "info": {
                "model_id": id, "experiment_id": "0", "name": "first", "creation_timestamp_ms": time,
                "last_updated_timestamp_ms": time, "status": "LOGGED_MODEL_PENDING",
                "artifact_uri": format!("mlflow-artifacts:/0/models/{id}/artifacts"),
                "model_type": "agent", "source_run_id": run,
                "tags": [{ "key": "t", "value": "x" }],
            },
            "data": { "params": [{ "key": "p", "value": "1" }] },
        })
    );
    // Points of models are points of the run, too. The same twice is one.
    let point = json!({
        "run_id": run, "key": "m", "value": 0.5, "timestamp": 7, "step": 1, "model_id": id,
        "dataset_name": "d", "dataset_digest": "1",
    });
    world.call("ada", "runs/log-metric", point.clone()).await;
    let other = json!({ "key": "m", "value": "NaN", "timestamp": 8, "model_id": id });
    let batch = json!({ "run_id": run, "metrics": [point, other, { "key": "n", "value": 1, "timestamp": 1 }] });
    world.call("ada", "runs/log-batch", batch).await;
    let (_, got) = world.sent("reader", "GET", &id, Value::Null).await;
    assert_eq!(
        got["model"]["data"]["metrics"],
        json!([
            {
                "key": "m", "value": 0.5, "timestamp": 7, "step": 1, "model_id": id, "run_id": run,
                "dataset_name": "d", "dataset_digest": "1",
            },
            { "key": "m", "value": "NaN", "timestamp": 8, "step": 0, "model_id": id, "run_id": run },
        ])
    );
    let named = json!({ "run_id": run, "models": [{ "model_id": id, "step": "4" }] });
    for _ in 0..2 {
        world.call("ada", "runs/outputs", named.clone()).await;
        let read = json!({ "run_id": run, "models": [{ "model_id": id }] });
        world.call("ada", "runs/log-inputs", read).await;
    }
    let got = world.call("ada", &format!("runs/get?run_id={run}"), Value::Null).await;
    assert_eq!(got["run"]["outputs"], json!({ "model_outputs": [{ "model_id": id, "step": 4 }] }));
    assert_eq!(got["run"]["inputs"], json!({ "model_inputs": [{ "model_id": id }] }));
    assert_eq!(got["run"]["data"]["metrics"].as_array().map(Vec::len), Some(2));

    // By name, as clients write enums, and by number.
    for (status, shown) in [
        (json!("LOGGED_MODEL_UPLOAD_FAILED"), "LOGGED_MODEL_UPLOAD_FAILED"),
        (json!(2), "LOGGED_MODEL_READY"),
    ] {
        let (code, got) =
            world.sent("ada", "PATCH", &id, json!({ "model_id": id, "status": status })).await;
        assert_eq!((code, &got["model"]["info"]["status"]), (200, &json!(shown)));
    }
    for (path, body) in [
        (
            "params",
            json!({ "params": [{ "key": "p", "value": "1" }, { "key": "q", "value": "2" }] }),
        ),
        ("params", json!({ "params": [{ "key": "q", "value": "2" }] })),
    ] {
        world.call("ada", &format!("logged-models/{id}/{path}"), body).await;
    }
    let (code, _) = world
        .sent(
            "ada",
            "PATCH",
            &format!("{id}/tags"),
            json!({ "tags": [{ "key": "t/u", "value": "y" }] }),
        )
        .await;
    assert_eq!(code, 200);
    let (code, _) = world.sent("ada", "DELETE", &format!("{id}/tags/t"), Value::Null).await;
    assert_eq!(code, 200);
    let (code, got) = world.sent("ada", "DELETE", &format!("{id}/tags/t"), Value::Null).await;
    assert_eq!((code, &got["error_code"]), (404, &json!(MISSING)));
    let (_, got) = world.sent("ada", "GET", &id, Value::Null).await;
    assert_eq!(got["model"]["info"]["tags"], json!([{ "key": "t/u", "value": "y" }]));
    assert_eq!(got["model"]["data"]["params"].as_array().map(Vec::len), Some(2));

    // Twice, as a client repeats what was not answered.
    for _ in 0..2 {
        let (code, _) = world.sent("ada", "DELETE", &id, json!({ "model_id": id })).await;
        assert_eq!(code, 200);
    }
    let (code, got) = world.sent("ada", "GET", &id, Value::Null).await;
    assert_eq!((code, &got["error_code"]), (404, &json!(MISSING)));
    let (code, _) =
        world.sent("ada", "GET", &format!("{id}?allow_deleted=true"), Value::Null).await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn models_that_are_refused() {
    let world = World::new();
    let run = world.run("ada").await;
    let no_such = format!("m-{}", "0".repeat(32));
    let of_run = |model: &str| json!({ "run_id": run, "models": [{ "model_id": model }] });
    let measured = |model: &str| json!({ "run_id": run, "key": "m", "value": 1, "timestamp": 1, "model_id": model });
    let search = |more: Value| {
        let mut body = json!({ "experiment_ids": ["0"] });
        body.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        body
    };
    for (path, body, refusal) in [
        ("logged-models", json!({}), (400, INVALID, "'experiment_id'")),
        ("logged-models", json!({ "experiment_id": "9" }), (404, MISSING, "No Experiment")),
        (
            "logged-models",
            json!({ "experiment_id": "0", "name": "a/b" }),
            (400, INVALID, "Invalid model name"),
        ),
        (
            "logged-models",
            json!({ "experiment_id": "0", "source_run_id": "no" }),
            (404, MISSING, "Run with id=no"),
        ),
        (
            "logged-models",
            json!({ "experiment_id": "0", "tags": [{ "key": "k".repeat(251), "value": "" }] }),
            (400, INVALID, "'tags[0].key' exceeds"),
        ),
        ("runs/outputs", of_run(&no_such), (404, MISSING, "Logged model with ID")),
        ("runs/outputs", of_run("x"), (404, MISSING, "Logged model with ID 'x'")),
        ("runs/outputs", json!({ "run_id": run }), (400, INVALID, "'models'")),
        ("runs/log-inputs", of_run(&no_such), (404, MISSING, "Logged model with ID")),
        ("runs/log-metric", measured(&no_such), (404, MISSING, "Logged model with ID")),
        (
            "runs/log-model",
            json!({ "run_id": run, "model_json": "{" }),
            (400, INVALID, "Malformed model info"),
        ),
        (
            "runs/log-model",
            json!({ "run_id": run, "model_json": "{}" }),
            (400, INVALID, "artifact_path, flavors"),
        ),
        ("logged-models/search", json!({}), (400, INVALID, "'experiment_ids'")),
        (
            "logged-models/search",
            search(json!({ "filter": "metrics.a > 'x'" })),
            (400, INVALID, "numeric value"),
        ),
        (
            "logged-models/search",
            search(json!({ "filter": "name > 'x'" })),
            (400, INVALID, "Invalid comparator '>'"),
        ),
        (
            "logged-models/search",
            search(json!({ "filter": "bogus = 'x'" })),
            (400, INVALID, "Invalid attribute key"),
        ),
        (
            "logged-models/search",
            search(json!({ "order_by": [{ "field_name": "bogus" }] })),
            (400, INVALID, "Invalid order by"),
        ),
        (
            "logged-models/search",
            search(json!({ "order_by": [{ "field_name": "params.x" }] })),
            (400, INVALID, "Only metrics"),
        ),
        (
            "logged-models/search",
            search(json!({ "datasets": [{}] })),
            (400, INVALID, "`dataset_name`"),
        ),
        (
            "logged-models/search",
            search(json!({ "page_token": "00" })),
            (400, INVALID, "Invalid page token"),
        ),
        (
            "logged-models/search",
            search(json!({ "max_results": -1 })),
            (400, INVALID, "'max_results'"),
        ),
    ] {
        world.refused("ada", path, body, refusal).await;
    }
    // A refused batch logs nothing at all.
    let got = world.call("ada", &format!("runs/get?run_id={run}"), Value::Null).await;
    assert_eq!(got["run"]["data"].get("metrics"), None);
    let model = id(&world.model("ada", json!({ "experiment_id": "0" })).await);
    let (code, got) = world.sent("ada", "PATCH", &model, json!({ "status": "DONE" })).await;
    assert_eq!((code, &got["error_code"]), (400, &json!(INVALID)));
    let again = |value: &str| json!({ "params": [{ "key": "p", "value": value }] });
    let path = format!("logged-models/{model}/params");
    world.call("ada", &path, again("1")).await;
    world.refused("ada", &path, again("2"), (400, INVALID, "Changing param values")).await;
}

#[tokio::test]
async fn who_may_do_what_with_a_model() {
    let world = World::new();
    world.job("job_a", "exp").await;
    world.job("job_b", "exp").await;
    world.job("job_c", "other").await;
    let run = world.run("ada").await;
    // `runs:/RUN/NAME` leads to whatever model names the run.
    let of =
        |experiment: &str, run: &str| json!({ "experiment_id": experiment, "source_run_id": run });
    for who in ["grace", "admin"] {
        let refusal = (403, DENIED, "may not write results to run");
        world.refused(who, "logged-models", of("0", &run), refusal).await;
    }
    world.refused("reader", "logged-models", of("0", ""), (403, DENIED, "may not write")).await;
    world.refused("job:job_a", "logged-models", of("0", ""), (403, DENIED, "own experiment")).await;
    world.refused("job:job_a", "logged-models", of("1", "job_b"), (403, DENIED, "own run")).await;
    let ada = id(&world.model("ada", of("0", &run)).await);
    let job_a = id(&world.model("job:job_a", of("1", "job_a")).await);

    let params = json!({ "params": [{ "key": "p", "value": "1" }] });
    let tags = json!({ "tags": [{ "key": "t", "value": "1" }] });
    for (who, model, writes, changes) in [
        ("ada", &ada, true, true),
        ("admin", &ada, false, true),
        ("grace", &ada, false, false),
        ("reader", &ada, false, false),
        ("job:job_a", &ada, false, false),
        ("job:job_a", &job_a, true, true),
        ("job:job_b", &job_a, false, false),
        ("job:job_c", &job_a, false, false),
        // Whoever submitted the job.
        ("ada", &job_a, true, true),
    ] {
        let file = match model == &ada {
            true => format!("{PROXY}/0/models/{model}/artifacts/x"),
            false => format!("{PROXY}/1/models/{model}/artifacts/x"),
        };
        let wrote = [
            world.sent(who, "POST", &format!("{model}/params"), params.clone()).await.0,
            world.send(who, "PUT", &file, "x").await.0.as_u16(),
        ];
        assert_eq!(wrote, [if writes { 200 } else { 403 }; 2], "{who} {model}");
        let status = json!({ "status": 2 });
        let changed = [
            world.sent(who, "PATCH", &format!("{model}/tags"), tags.clone()).await.0,
            world.sent(who, "PATCH", model, status).await.0,
            world.sent(who, "DELETE", &format!("{model}/tags/t"), Value::Null).await.0,
        ];
        assert_eq!(changed, [if changes { 200 } else { 403 }; 3], "{who} {model}");
        let reads = !who.starts_with("job:") || (model == &job_a && who != "job:job_c");
        let read = [
            world.sent(who, "GET", model, Value::Null).await.0,
            world.send(who, "GET", &file, "").await.0.as_u16(),
        ];
        assert_eq!(read, [if reads { 200 } else { 403 }; 2], "{who} {model}");
    }
    // What a job measures of another's model is its own run's.
    let measured = |run: &str, model: &str| json!({ "run_id": run, "key": "m", "value": 1, "timestamp": 1, "model_id": model });
    world.call("job:job_b", "runs/log-metric", measured("job_b", &job_a)).await;
    let refusal = (403, DENIED, "own experiment");
    world.refused("job:job_c", "runs/log-metric", measured("job_c", &job_a), refusal).await;
    let both = json!({ "experiment_ids": ["0", "1"] });
    world.refused("job:job_a", "logged-models/search", both, (403, DENIED, "own experiment")).await;

    // A later job of the same name has nothing to do with the model, which stays.
    use crate::store::tracking::TrackWrite;
    let gone = TrackWrite::ForgetJob(atelier_core::id::JobName::new("job_a").expect("name"));
    world.tracking.write(gone).await.expect("forget");
    world.job("job_a", "exp").await;
    let (code, _) = world.sent("job:job_a", "POST", &format!("{job_a}/params"), params).await;
    assert_eq!(code, 403);
    let (_, got) = world.sent("ada", "GET", &job_a, Value::Null).await;
    assert_eq!(got["model"]["info"]["source_run_id"], "");
}

#[tokio::test]
async fn models_are_found() {
    let world = World::new();
    let run = world.run("ada").await;
    for (name, rmse, on) in [("a", 3.0, "x"), ("b", 1.0, "x"), ("c", 2.0, "y")] {
        let body = json!({
            "experiment_id": "0", "name": name, "params": [{ "key": "p", "value": name }],
            "tags": [{ "key": "t", "value": format!("t{name}") }],
        });
        let model = id(&world.model("ada", body).await);
        let point = |value: f64, at: i64| {
            json!({
                "key": "rmse", "value": value, "timestamp": at, "model_id": model, "dataset_name": on, "dataset_digest": "1",
            })
        };
        let batch = json!({ "run_id": run, "metrics": [point(9.0, 1), point(rmse, 2)] });
        world.call("ada", "runs/log-batch", batch).await;
    }
    world.model("ada", json!({ "experiment_id": "0", "name": "d" })).await;
    let search = |more: Value| {
        let mut body = json!({ "experiment_ids": ["0"] });
        body.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        body
    };
    let order =
        |field: &str, ascending: bool| json!([{ "field_name": field, "ascending": ascending }]);
    for (more, names) in [
        (
            json!({ "filter": "params.p IN ('a', 'b')", "order_by": order("name", true) }),
            vec!["a", "b"],
        ),
        (
            json!({ "filter": "tags.t ILIKE 'T%' AND name != 'b'", "order_by": order("name", false) }),
            vec!["c", "a"],
        ),
        // Any point counts in a filter; the latest in an order.
        (
            json!({ "filter": "metrics.rmse = 9", "order_by": order("metrics.rmse", true) }),
            vec!["b", "c", "a"],
        ),
        (
            json!({ "filter": "metrics.rmse < 2.5", "datasets": [{ "dataset_name": "x" }] }),
            vec!["b"],
        ),
        (json!({ "datasets": [{ "dataset_name": "y", "dataset_digest": "1" }] }), vec!["c"]),
        (json!({ "datasets": [{ "dataset_name": "y", "dataset_digest": "2" }] }), vec![]),
        (json!({ "order_by": order("metrics.rmse", false) }), vec!["a", "c", "b", "d"]),
        (
            json!({ "order_by": [{ "field_name": "metrics.rmse", "dataset_name": "y" }, { "field_name": "name" }] }),
            vec!["c", "a", "b", "d"],
        ),
        (
            json!({ "filter": "creation_timestamp > 0 AND status = 'PENDING'", "order_by": order("name", true), "max_results": 2 }),
            vec!["a", "b"],
        ),
    ] {
        assert_eq!(world.names("ada", search(more.clone())).await, names, "{more}");
    }
    assert_eq!(world.names("ada", json!({ "experiment_ids": [] })).await, Vec::<String>::new());
    let mut found = Vec::new();
    let mut token = json!("");
    loop {
        let body = search(
            json!({ "max_results": 1, "order_by": order("metrics.rmse", true), "page_token": token }),
        );
        let page = world.call("ada", "logged-models/search", body).await;
        for model in page["models"].as_array().expect("models") {
            found.push(model["info"]["name"].as_str().expect("name").to_owned());
        }
        match page.get("next_page_token") {
            Some(next) => token = next.clone(),
            None => break,
        }
    }
    assert_eq!(found, ["b", "c", "a", "d"]);
}

#[tokio::test]
async fn files_of_models() {
    let world = World::new();
    let model = id(&world.model("ada", json!({ "experiment_id": "0" })).await);
    let root = format!("{PROXY}/0/models/{model}/artifacts");
    for name in ["MLmodel", "data/weights%20%C3%BC.bin"] {
        assert_eq!(
            world.send("ada", "PUT", &format!("{root}/{name}"), "bytes").await.0,
            StatusCode::OK
        );
        let (status, bytes) = world.send("reader", "GET", &format!("{root}/{name}"), "").await;
        assert_eq!((status, bytes.as_slice()), (StatusCode::OK, b"bytes".as_slice()));
    }
    let place =
        ObjectPath::new(&format!("models/{model}/artifacts/data/weights ü.bin")).expect("path");
    world.tracking.artifacts().head(&place).await.expect("where MLflow has it");
    let (_, list) =
        world.sent("ada", "GET", &format!("{model}/artifacts/directories"), Value::Null).await;
    assert_eq!(
        list,
        json!({
            "root_uri": format!("mlflow-artifacts:/0/models/{model}/artifacts"),
            "files": [
                { "path": "MLmodel", "is_dir": false, "file_size": 5 },
                { "path": "data", "is_dir": true },
            ],
        })
    );
    let below = format!("{model}/artifacts/directories?artifact_directory_path=data");
    let (_, list) = world.sent("ada", "GET", &below, Value::Null).await;
    assert_eq!(
        list["files"],
        json!([{ "path": "data/weights ü.bin", "is_dir": false, "file_size": 5 }])
    );
    let (_, list) = world
        .send("ada", "GET", &format!("{PROXY}?path=0/models/{model}/artifacts/data"), "")
        .await;
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(
        list["files"],
        json!([{ "path": "weights ü.bin", "is_dir": false, "file_size": 5 }])
    );
    let shown = format!("{API}/{model}/artifacts/files?artifact_file_path=MLmodel");
    assert_eq!(world.send("ada", "GET", &shown, "").await, (StatusCode::OK, b"bytes".to_vec()));

    // No way out, and not into another experiment.
    for path in ["..%2F..%2Fx", "%252e%252e%252fx", "a/../../x", "a%5cb"] {
        let (status, answer) = world.send("ada", "PUT", &format!("{root}/{path}"), "x").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert!(String::from_utf8_lossy(&answer).contains("Invalid path"), "{path}");
    }
    for address in [
        format!("{PROXY}/1/models/{model}/artifacts/x"),
        format!("{PROXY}/0/models/m-{}/artifacts/x", "1".repeat(32)),
    ] {
        assert_eq!(
            world.send("ada", "PUT", &address, "x").await.0,
            StatusCode::NOT_FOUND,
            "{address}"
        );
    }
    for address in
        [format!("{PROXY}/0/models/m-1/artifacts/x"), format!("{PROXY}/0/models/{model}/x")]
    {
        assert_eq!(
            world.send("ada", "PUT", &address, "x").await.0,
            StatusCode::BAD_REQUEST,
            "{address}"
        );
    }
    // A run that is called like the folder of models is a run.
    world.job("models", "exp").await;
    let own = format!("{PROXY}/1/models/artifacts/x");
    assert_eq!(world.send("job:models", "PUT", &own, "x").await.0, StatusCode::OK);

    // A deleted model takes no files; its files can be removed.
    assert_eq!(world.sent("ada", "DELETE", &model, Value::Null).await.0, 200);
    assert_eq!(
        world.send("ada", "PUT", &format!("{root}/x"), "x").await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(world.send("grace", "DELETE", &root, "").await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.send("ada", "DELETE", &root, "").await.0, StatusCode::OK);
    assert!(world.tracking.artifacts().head(&place).await.is_err());
}

#[tokio::test]
async fn models_as_clients_of_mlflow_2_tell_of_them() {
    let world = World::new();
    let run = world.run("ada").await;
    let log = |path: &str| {
        let model = json!({
            "artifact_path": path, "utc_time_created": "now", "run_id": run, "model_uuid": "u", "signature": "dropped",
            "flavors": { "python_function": { "loader_module": "m", "config": { "secret": 1 } } },
        });
        json!({ "run_id": run, "model_json": model.to_string() })
    };
    for path in ["a", "b", "b", "a"] {
        world.call("ada", "runs/log-model", log(path)).await;
    }
    let got = world.call("ada", &format!("runs/get?run_id={run}"), Value::Null).await;
    let tags = got["run"]["data"]["tags"].as_array().expect("tags").clone();
    let held = tags.iter().find(|tag| tag["key"] == "mlflow.log-model.history").expect("tag");
    let held: Value = serde_json::from_str(held["value"].as_str().expect("text")).expect("JSON");
    let entry = |path: &str| {
        json!({
            "artifact_path": path, "utc_time_created": "now", "run_id": run, "model_uuid": "u",
            "flavors": { "python_function": { "loader_module": "m" } },
        })
    };
    assert_eq!(held, json!([entry("a"), entry("b")]));
    world.refused("grace", "runs/log-model", log("c"), (403, DENIED, "only its owner")).await;
}
