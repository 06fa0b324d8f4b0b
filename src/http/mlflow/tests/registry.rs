//! The model registry: its wire, who may what, and that its models are the workspace's.

use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use atelier_core::asset::{Draft, Kind};
use atelier_core::audit::Actor;
use atelier_core::id::{AssetName, Principal, VersionName};
use atelier_core::spec::{DataKind, DataUri};
use http::StatusCode;
use serde_json::{Value, json};

use super::World;
use crate::store::assets;

const PROXY: &str = "/api/2.0/mlflow-artifacts/artifacts";

impl World {
    /// A call of any method.
    async fn by(&self, token: &str, method: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let path = format!("/api/2.0/mlflow/{path}");
        let (status, answer) = self.send(token, method, &path, body.to_string()).await;
        let answer = serde_json::from_slice(&answer)
            .unwrap_or_else(|_| panic!("{path}: {}", String::from_utf8_lossy(&answer)));
        (status, answer)
    }

    async fn done(&self, token: &str, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.by(token, method, path, &body).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {answer}");
        answer
    }

    async fn denied(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
        (status, code, part): (u16, &str, &str),
    ) {
        let (got, answer) = self.by(token, method, path, &body).await;
        let message = answer["message"].as_str().unwrap_or_default();
        let is_so =
            got.as_u16() == status && answer["error_code"] == code && message.contains(part);
        assert!(is_so, "{method} {path}: {got} {answer}");
    }

    async fn put(&self, token: &str, path: &str, bytes: &str) -> (StatusCode, String) {
        let path = format!("{PROXY}/{path}");
        let (status, answer) = self.send(token, "PUT", &path, bytes.to_owned()).await;
        (status, String::from_utf8_lossy(&answer).into_owned())
    }

    /// A run with a model's folder; its id.
    async fn run_with_model(&self, token: &str) -> String {
        let run = self.run(token).await;
        for (file, bytes) in [("MLmodel", "flavors: {}"), ("data/weights.bin", "0123")] {
            let path = format!("0/{run}/artifacts/model/{file}");
            let (status, said) = self.put(token, &path, bytes).await;
            assert_eq!(status, StatusCode::OK, "{said}");
        }
        run
    }

    async fn registered(&self, name: &str) {
        self.done("ada", "POST", "registered-models/create", json!({ "name": name })).await;
    }

    async fn version_of(&self, token: &str, name: &str, run: &str) -> Value {
        let body = json!({ "name": name, "source": format!("runs:/{run}/model"), "run_id": run });
        self.done(token, "POST", "model-versions/create", body).await["model_version"].clone()
    }
}

const GONE: (u16, &str) = (404, "RESOURCE_DOES_NOT_EXIST");
const BAD: (u16, &str) = (400, "INVALID_PARAMETER_VALUE");
const DENIED: (u16, &str) = (403, "PERMISSION_DENIED");

const fn so(code: (u16, &'static str), part: &'static str) -> (u16, &'static str, &'static str) {
    (code.0, code.1, part)
}

#[tokio::test]
async fn a_model_is_registered_and_read_back() {
    let world = World::new();
    let run = world.run_with_model("ada").await;
    let tags = json!([{ "key": "team", "value": "a" }, { "key": "team", "value": "vision" }]);
    let body = json!({ "name": "digits", "tags": tags, "description": "of digits" });
    let made = world.done("ada", "POST", "registered-models/create", body).await;
    let time = made["registered_model"]["creation_timestamp"].as_i64().expect("a number");
    assert_eq!(
        made["registered_model"],
        json!({
            "name": "digits", "creation_timestamp": time, "last_updated_timestamp": time,
            "user_id": "ada", "description": "of digits",
            "tags": [{ "key": "team", "value": "vision" }],
        })
    );
    let source = format!("mlflow-artifacts:/0/{run}/artifacts/model");
    let body = json!({ "name": "digits", "source": source, "run_id": run, "description": "first",
        "run_link": "https://example.com/r", "tags": [{ "key": "a", "value": "b" }] });
    let made = world.done("ada", "POST", "model-versions/create", body).await;
    let version = &made["model_version"];
    let time = version["creation_timestamp"].as_i64().expect("a number");
    assert_eq!(
        *version,
        json!({
            "name": "digits", "version": "1", "creation_timestamp": time,
            "last_updated_timestamp": time, "user_id": "ada", "current_stage": "None",
            "description": "first", "source": source, "run_id": run, "status": "READY",
            "tags": [{ "key": "a", "value": "b" }], "run_link": "https://example.com/r",
        })
    );
    // A version of the same is another version.
    assert_eq!(world.version_of("ada", "digits", &run).await["version"], "2");
    let alias = json!({ "name": "digits", "alias": "champion", "version": "1" });
    world.done("ada", "POST", "registered-models/alias", alias).await;
    let found = world.call("reader", "registered-models/get?name=digits", Value::Null).await;
    let found = &found["registered_model"];
    assert_eq!(found["aliases"], json!([{ "alias": "champion", "version": "1" }]));
    assert_eq!(found["latest_versions"].as_array().map(Vec::len), Some(1));
    assert_eq!(found["latest_versions"][0]["version"], "2");
    for path in [
        "registered-models/alias?name=digits&alias=champion",
        "model-versions/get?name=digits&version=1",
    ] {
        let found = world.call("reader", path, Value::Null).await;
        assert_eq!(found["model_version"]["aliases"], json!(["champion"]), "{path}");
    }
    let newest = "registered-models/alias?name=digits&alias=Latest";
    let newest = world.call("reader", newest, Value::Null).await;
    assert_eq!(newest["model_version"]["version"], "2");

    // Its files, through the proxy.
    let path = "model-versions/get-download-uri?name=digits&version=1";
    let uri = world.call("reader", path, Value::Null).await;
    assert_eq!(uri, json!({ "artifact_uri": "mlflow-artifacts:/models/digits/1" }));
    let list = async |folder: &str| {
        let (status, answer) =
            world.send("reader", "GET", &format!("{PROXY}?path=models/digits/1{folder}"), "").await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice::<Value>(&answer).expect("JSON")
    };
    assert_eq!(
        list("").await["files"],
        json!([
            { "path": "MLmodel", "is_dir": false, "file_size": 11 },
            { "path": "data", "is_dir": true },
        ])
    );
    let weights = json!([{ "path": "weights.bin", "is_dir": false, "file_size": 4 }]);
    assert_eq!(list("/data").await["files"], weights);
    assert_eq!(list("/MLmodel").await, json!({}));
    let file = format!("{PROXY}/models/digits/1/data/weights.bin");
    let (status, answer) = world.send("reader", "GET", &file, "").await;
    assert_eq!((status, answer.as_slice()), (StatusCode::OK, b"0123".as_slice()));

    // It is the workspace's model of this name.
    let kept = world.tracking.read(|conn| {
        let (name, version) = (AssetName::new("digits").unwrap(), VersionName::new("1").unwrap());
        assets::version::<atelier_core::asset::Version>(conn, Kind::Model, &name, &version)
    });
    let kept = kept.await.expect("read").expect("there");
    assert_eq!(kept.form, DataKind::MlflowModel);
    let DataUri::Datastore { datastore, path } = kept.uri else { panic!("{:?}", kept.uri) };
    assert_eq!(datastore.as_str(), "workspaceartifactstore");
    assert_eq!(path, format!("ExperimentRun/dcid.{run}/model"));
}

#[tokio::test]
async fn the_web_page_is_told_of_a_runs_versions_and_reads_their_files() {
    let world = World::new();
    let (run, other) = (world.run_with_model("ada").await, world.run_with_model("ada").await);
    world.registered("digits").await;
    for run in [&run, &run, &other] {
        world.version_of("ada", "digits", run).await;
    }
    let asks = async |name: &str, data: Value| {
        let query = format!("query {name}($data: X!) {{ mlflow{name}(input: $data) }}");
        let body = json!({ "operationName": name, "query": query, "variables": { "data": data } });
        let (status, answer) = world.send("reader", "POST", "/graphql", body.to_string()).await;
        assert_eq!(status, StatusCode::OK);
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        answer["data"][format!("mlflow{name}")].clone()
    };
    let versions = |run: &Value| -> Vec<String> {
        let list = run["modelVersions"].as_array().cloned().unwrap_or_default();
        list.iter().map(|each| format!("{} {}", each["name"], each["version"])).collect()
    };
    let found = asks("GetRun", json!({ "runId": run })).await["run"].clone();
    assert_eq!(versions(&found), [r#""digits" "2""#, r#""digits" "1""#]);
    assert_eq!(found["modelVersions"][0]["source"], format!("runs:/{run}/model"));
    let found = asks("SearchRuns", json!({ "experimentIds": ["0"] })).await["runs"].clone();
    let found = found.as_array().cloned().unwrap_or_default();
    let of = |id: &str| found.iter().find(|run| run["info"]["runId"] == id).map(versions);
    assert_eq!(of(&run).map(|list| list.len()), Some(2));
    assert_eq!(of(&other), Some(vec![r#""digits" "3""#.to_owned()]));

    for root in ["", "/ajax-api/2.0/mlflow"] {
        let file = |query: &str| format!("{root}/model-versions/get-artifact?{query}");
        let path = file("name=digits&version=1&path=data/weights.bin");
        let read = world.send("reader", "GET", &path, "").await;
        assert_eq!(read, (StatusCode::OK, b"0123".to_vec()));
        for (query, status, part) in [
            ("name=digits&version=1&path=none", 404, "none"),
            ("name=digits&version=9&path=MLmodel", 404, "digits"),
            ("name=digits&version=1&path=../MLmodel", 400, "Invalid path"),
            ("name=digits&version=1", 400, "'path'"),
            ("version=1&path=MLmodel", 400, "'name'"),
        ] {
            let (got, said) = world.send("reader", "GET", &file(query), "").await;
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(got.as_u16() == status && said.contains(part), "{query}: {got} {said}");
        }
    }
    // A job reads what it made, or is given.
    world.job("job_a", "exp").await;
    let path = "model-versions/get-artifact?name=digits&version=1&path=MLmodel";
    world.denied("job:job_a", "GET", path, Value::Null, so(DENIED, "the job made")).await;
}

#[tokio::test]
async fn versions_move_through_stages_and_are_found() {
    let world = World::new();
    let run = world.run_with_model("ada").await;
    world.registered("digits").await;
    for _ in 0..3 {
        world.version_of("ada", "digits", &run).await;
    }
    let stage = async |version: &str, stage: &str, alone: bool| {
        let body = json!({ "name": "digits", "version": version, "stage": stage,
            "archive_existing_versions": alone });
        let moved = world.done("ben", "POST", "model-versions/transition-stage", body).await;
        moved["model_version"]["current_stage"].as_str().expect("a stage").to_owned()
    };
    assert_eq!(stage("1", "production", false).await, "Production");
    assert_eq!(stage("2", "Production", true).await, "Production");
    let latest = async |query: &str| {
        let path = format!("registered-models/get-latest-versions?name=digits{query}");
        let found = world.call("reader", &path, Value::Null).await;
        let shown = |version: &Value| {
            format!("{}={}", version["version"], version["current_stage"]).replace('"', "")
        };
        let found = found["model_versions"].as_array().cloned().unwrap_or_default();
        found.iter().map(shown).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(latest("").await, "3=None 2=Production 1=Archived");
    assert_eq!(latest("&stages=production&stages=none").await, "3=None 2=Production");
    assert_eq!(latest("&stages=Staging").await, "");
    let body = json!({ "name": "digits", "stages": ["Archived"] });
    let found = world.done("reader", "POST", "registered-models/get-latest-versions", body).await;
    assert_eq!(found["model_versions"][0]["version"], "1");
    let body = json!({ "name": "digits", "version": "1", "description": "new" });
    let changed = world.done("ben", "PATCH", "model-versions/update", body).await;
    assert_eq!(changed["model_version"]["description"], "new");
    let body = json!({ "name": "digits", "description": "all" });
    let changed = world.done("ben", "PATCH", "registered-models/update", body).await;
    assert_eq!(changed["registered_model"]["description"], "all");

    let found = async |query: &str| {
        let path = format!("model-versions/search?{query}");
        world.call("reader", &path, Value::Null).await
    };
    let filter = "filter=name%3D'digits'&max_results=2&order_by=version_number%20ASC";
    let page = found(filter).await;
    assert_eq!(page["model_versions"][1]["version"], "2");
    let token = page["next_page_token"].as_str().expect("there is more");
    let rest = found(&format!("{filter}&page_token={token}")).await;
    assert_eq!(rest["model_versions"].as_array().map(Vec::len), Some(1));
    assert_eq!(rest.get("next_page_token"), None);
    let other = format!("model-versions/search?page_token={token}");
    world.denied("reader", "GET", &other, Value::Null, so(BAD, "Invalid page token")).await;
    let models = world.call("reader", "registered-models/search", Value::Null).await;
    assert_eq!(models["registered_models"][0]["name"], "digits");
}

#[tokio::test]
async fn what_is_wrong_is_refused_in_mlflows_words() {
    let world = World::new();
    let run = world.run_with_model("ada").await;
    world.registered("digits").await;
    let exists = (400, "RESOURCE_ALREADY_EXISTS", "Registered Model (name=digits) already exists.");
    let name = |name: &str| json!({ "name": name });
    world.denied("ada", "POST", "registered-models/create", name("digits"), exists).await;
    let version =
        |source: &str, run: &str| json!({ "name": "digits", "source": source, "run_id": run });
    let own = format!("runs:/{run}/model");
    for (method, path, body, refusal) in [
        (
            "POST",
            "registered-models/create",
            json!({}),
            so(BAD, "Missing value for required parameter 'name'"),
        ),
        ("POST", "registered-models/create", name("a b"), so(BAD, "Invalid model name 'a b'")),
        ("POST", "registered-models/create", name("a/b"), so(BAD, "Invalid model name 'a/b'")),
        (
            "GET",
            "registered-models/get?name=none",
            Value::Null,
            so(GONE, "Registered Model with name=none not found"),
        ),
        (
            "POST",
            "model-versions/create",
            json!({ "name": "none", "source": own, "run_id": run }),
            so(GONE, "Registered Model with name=none not found"),
        ),
        (
            "GET",
            "model-versions/get?name=digits&version=9",
            Value::Null,
            so(GONE, "Model Version (name=digits, version=9) not found"),
        ),
        (
            "GET",
            "registered-models/alias?name=digits&alias=none",
            Value::Null,
            so(BAD, "Registered model alias none not found."),
        ),
        (
            "POST",
            "registered-models/alias",
            json!({ "name": "digits", "alias": "v1", "version": "1" }),
            so(BAD, "Version alias name 'v1' is reserved."),
        ),
        (
            "POST",
            "registered-models/alias",
            json!({ "name": "digits", "alias": "latest", "version": "1" }),
            so(BAD, "is reserved"),
        ),
        (
            "POST",
            "registered-models/set-tag",
            json!({ "name": "digits", "key": "a//b", "value": "" }),
            so(BAD, "resolve to other names"),
        ),
        (
            "POST",
            "registered-models/set-tag",
            json!({ "name": "digits", "key": "mlflow.prompt.is_prompt", "value": "true" }),
            so(BAD, "Prompts are not kept here"),
        ),
        (
            "POST",
            "model-versions/transition-stage",
            json!({ "name": "digits", "version": "1", "stage": "x" }),
            so(BAD, "Invalid Model Version stage: x"),
        ),
        (
            "POST",
            "model-versions/transition-stage",
            json!({ "name": "digits", "version": "1", "stage": "Archived", "archive_existing_versions": true }),
            so(BAD, "is not an Active stage"),
        ),
        ("GET", "registered-models/search?max_results=1001", Value::Null, so(BAD, "at most 1000")),
        ("GET", "model-versions/search?max_results=200001", Value::Null, so(BAD, "at most 200000")),
        (
            "GET",
            "model-versions/search?filter=stage%3D'x'",
            Value::Null,
            so(BAD, "Invalid attribute key 'stage'"),
        ),
        // Sources.
        (
            "POST",
            "model-versions/create",
            version(&own, ""),
            so(BAD, "The run_id request parameter"),
        ),
        (
            "POST",
            "model-versions/create",
            version(&own, "other"),
            so(BAD, "The run_id request parameter"),
        ),
        (
            "POST",
            "model-versions/create",
            version("runs:/none/model", "none"),
            so(BAD, "The run_id request parameter"),
        ),
        (
            "POST",
            "model-versions/create",
            version(&format!("mlflow-artifacts:/7/{run}/artifacts/model"), &run),
            so(BAD, "The run_id request parameter"),
        ),
        (
            "POST",
            "model-versions/create",
            version(&format!("runs:/{run}/nothing"), &run),
            so(BAD, "has logged nothing at 'nothing'"),
        ),
        (
            "POST",
            "model-versions/create",
            version(&format!("runs:/{run}/model/../../x"), &run),
            so(BAD, "Invalid model version source"),
        ),
        (
            "POST",
            "model-versions/create",
            version(&format!("runs:/{run}/%252e%252e/x"), &run),
            so(BAD, "Invalid model version source"),
        ),
        (
            "POST",
            "model-versions/create",
            version("/etc/passwd", &run),
            so(BAD, "It lies on your machine"),
        ),
        (
            "POST",
            "model-versions/create",
            version("models:/m-00ff", ""),
            so(BAD, "The model_id request parameter"),
        ),
        (
            "POST",
            "model-versions/create",
            version("models:/digits/9", &run),
            so(GONE, "Model Version"),
        ),
        (
            "POST",
            "model-versions/create",
            version("azureml://datastores/workspaceblobstore/paths/none", ""),
            so(BAD, "Nothing lies there"),
        ),
    ] {
        world.denied("ada", method, path, body, refusal).await;
    }
    // Nothing came of any of it.
    let found = world.call("ada", "model-versions/search", Value::Null).await;
    assert_eq!(found, json!({}));
    // What is not there is deleted already; a tag or alias that is not there is no fault.
    let gone = so(GONE, "not found");
    world.denied("ada", "DELETE", "registered-models/delete", name("none"), gone).await;
    let body = json!({ "name": "digits", "key": "none" });
    world.done("ada", "DELETE", "registered-models/delete-tag", body).await;
    let body = json!({ "name": "digits", "alias": "none" });
    world.done("ada", "DELETE", "registered-models/alias", body).await;
}

#[tokio::test]
async fn who_reads_does_not_write_and_one_deletes_ones_own() {
    let world = World::new();
    let run = world.run_with_model("ada").await;
    world.registered("digits").await;
    world.version_of("ada", "digits", &run).await;
    let version = || json!({ "name": "digits", "version": "1" });
    let tag = json!({ "name": "digits", "version": "1", "key": "a", "value": "b" });
    let writes = [
        ("POST", "registered-models/create", json!({ "name": "other" })),
        ("POST", "registered-models/set-tag", tag.clone()),
        ("POST", "model-versions/set-tag", tag.clone()),
        ("PATCH", "model-versions/update", version()),
        ("DELETE", "model-versions/delete", version()),
        ("DELETE", "registered-models/delete", json!({ "name": "digits" })),
    ];
    for (method, path, body) in writes {
        for token in ["reader", "node"] {
            world.denied(token, method, path, body.clone(), so(DENIED, "may not")).await;
        }
    }
    let get = "registered-models/get?name=digits";
    world.denied("node", "GET", get, Value::Null, so(DENIED, "may not read")).await;
    world.done("ben", "POST", "model-versions/set-tag", tag).await;
    let others = so(DENIED, "it is ada's; only its owner or an admin may");
    world.denied("ben", "DELETE", "model-versions/delete", version(), others).await;
    let new = json!({ "name": "digits", "new_name": "numbers" });
    world.denied("ben", "POST", "registered-models/rename", new.clone(), others).await;
    let renamed = world.done("ada", "POST", "registered-models/rename", new).await;
    assert_eq!(renamed["registered_model"]["latest_versions"][0]["name"], "numbers");
    let version = json!({ "name": "numbers", "version": "1" });
    world.done("admin", "DELETE", "model-versions/delete", version.clone()).await;
    world.denied("admin", "DELETE", "model-versions/delete", version, so(GONE, "not found")).await;
    let name = json!({ "name": "numbers" });
    world.done("ada", "DELETE", "registered-models/delete", name.clone()).await;
    world.denied("ada", "DELETE", "registered-models/delete", name, so(GONE, "not found")).await;
}

#[tokio::test]
async fn a_job_registers_what_its_runs_have_logged() {
    let world = World::new();
    world.job("job_a", "jobs").await;
    let others = world.run_with_model("ada").await;
    world.registered("digits").await;
    world.version_of("ada", "digits", &others).await;
    let token = "job:job_a";
    let root = "1/job_a/artifacts/model";
    let (status, said) = world.put(token, &format!("{root}/MLmodel"), "flavors: {}").await;
    assert_eq!(status, StatusCode::OK, "{said}");
    let own = world.version_of(token, "digits", "job_a").await;
    assert_eq!((&own["version"], &own["run_id"]), (&json!("2"), &json!("job_a")));
    // A run within the job, and a model of its own.
    let run = json!({ "experiment_id": "1", "start_time": 5 });
    let run = world.call(token, "runs/create", run).await;
    let inner = run["run"]["info"]["run_id"].as_str().expect("id");
    let (status, said) =
        world.put(token, &format!("1/{inner}/artifacts/model/MLmodel"), "flavors: {}").await;
    assert_eq!(status, StatusCode::OK, "{said}");
    world.done(token, "POST", "registered-models/create", json!({ "name": "inner" })).await;
    world.version_of(token, "inner", inner).await;
    let alias = |version: &str| json!({ "name": "digits", "alias": "best", "version": version });
    world.done(token, "POST", "registered-models/alias", alias("2")).await;
    let refusal = so(DENIED, "only versions that the job made");
    world.denied(token, "POST", "registered-models/alias", alias("1"), refusal).await;
    let body =
        json!({ "name": "digits", "source": format!("runs:/{others}/model"), "run_id": others });
    let refusal = so(DENIED, "A job's token reads only its own experiment");
    world.denied(token, "POST", "model-versions/create", body, refusal).await;
    let body = json!({ "name": "digits", "source": "models:/digits/1" });
    let refusal = so(DENIED, "of its inputs");
    world.denied(token, "POST", "model-versions/create", body, refusal).await;
    let body =
        json!({ "name": "digits", "source": "azureml://datastores/workspaceblobstore/paths/x" });
    let refusal = so(DENIED, "only of what its runs have logged");
    world.denied(token, "POST", "model-versions/create", body, refusal).await;
    let body = json!({ "name": "digits", "version": "2" });
    world
        .denied(token, "DELETE", "model-versions/delete", body, so(DENIED, "may not delete"))
        .await;
    // It reads what there is, and the files of its own.
    let found = world.call(token, "model-versions/get?name=digits&version=1", Value::Null).await;
    assert_eq!(found["model_version"]["version"], "1");
    let path =
        |version: &str| format!("model-versions/get-download-uri?name=digits&version={version}");
    world.call(token, &path("2"), Value::Null).await;
    let refusal = so(DENIED, "'path: azureml:digits:1'");
    world.denied(token, "GET", &path("1"), Value::Null, refusal).await;
    let file = |version: &str| format!("{PROXY}/models/digits/{version}/MLmodel");
    assert_eq!(world.send(token, "GET", &file("2"), "").await.0, StatusCode::OK);
    assert_eq!(world.send(token, "GET", &file("1"), "").await.0, StatusCode::FORBIDDEN);
    // Once the attempt is over, its token makes nothing.
    world.over.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let body = json!({ "name": "late" });
    world.denied(token, "POST", "registered-models/create", body, so(DENIED, "over")).await;
}

/// A version never changes: neither do the files that it is made of.
#[tokio::test]
async fn files_of_a_version_stay_as_they_are() {
    let world = World::new();
    let run = world.run_with_model("ada").await;
    let root = format!("0/{run}/artifacts");
    let (status, _) = world.put("ada", &format!("{root}/model/MLmodel"), "flavors: {a: {}}").await;
    assert_eq!(status, StatusCode::OK, "nothing is made of it yet");
    world.registered("digits").await;
    world.version_of("ada", "digits", &run).await;
    for (method, path) in [
        ("PUT", format!("{root}/model/MLmodel")),
        ("PUT", format!("{root}/model/more")),
        ("DELETE", format!("{root}/model/data/weights.bin")),
        ("DELETE", format!("{root}/model")),
        ("DELETE", root.clone()),
    ] {
        let (status, said) = world.send("ada", method, &format!("{PROXY}/{path}"), "x").await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {said}");
        assert!(said.contains("version 1 of model 'digits', which never changes"), "{said}");
    }
    let (status, _) = world.put("ada", &format!("{root}/model2/x"), "x").await;
    assert_eq!(status, StatusCode::OK, "another folder");
    let body = json!({ "name": "digits", "version": "1" });
    world.done("ada", "DELETE", "model-versions/delete", body).await;
    let (status, _) = world.send("ada", "DELETE", &format!("{PROXY}/{root}/model"), "").await;
    assert_eq!(status, StatusCode::OK, "nothing is made of it any more");
}

#[tokio::test]
async fn no_path_leads_out_of_a_version() {
    let world = World::new();
    let run = world.run_with_model("ada").await;
    let (status, _) = world.put("ada", &format!("0/{run}/artifacts/secret"), "x").await;
    assert_eq!(status, StatusCode::OK);
    world.registered("digits").await;
    world.version_of("ada", "digits", &run).await;
    for path in [
        "models/digits/1/../secret",
        "models/digits/1/..%2Fsecret",
        "models/digits/1/%2e%2e/secret",
        "models/digits/1/%252e%252e%252fsecret",
        "models/digits/1/data/..%2f..%2f..%2fsecret",
        "models/digits/1//secret",
        "models/digits/1/%2Fsecret",
        "models/digits/1/..%5csecret",
        "models/digits/1/x%00",
        "models/digits/../1/secret",
        "models/..%2f..%2fx/1/secret",
    ] {
        let (status, said) = world.send("admin", "GET", &format!("{PROXY}/{path}"), "").await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(matches!(status.as_u16(), 400 | 404), "{path}: {status} {said}");
    }
    for (method, path) in [("PUT", "models/digits/1/x"), ("DELETE", "models/digits/1")] {
        let (status, _) = world.send("admin", method, &format!("{PROXY}/{path}"), "x").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method}: it is read, never written");
    }
    let missing = format!("{PROXY}/models/digits/7/MLmodel");
    assert_eq!(world.send("admin", "GET", &missing, "").await.0, StatusCode::NOT_FOUND);
    let missing = format!("{PROXY}/models/digits/1/none");
    assert_eq!(world.send("admin", "GET", &missing, "").await.0, StatusCode::NOT_FOUND);
}

/// Models that people have made with `atelier model create` are MLflow's, too: of one file, with words as versions.
#[tokio::test]
async fn models_of_the_command_line_are_read_as_mlflows() {
    let world = World::new();
    let blobs = world.datastores.get("workspaceblobstore").expect("store").clone();
    let place = crate::storage::ObjectPath::new("models/digits.pkl").expect("path");
    blobs.put(&place, bytes::Bytes::from_static(b"pickle")).await.expect("put");
    let draft = Draft {
        name: AssetName::new("digits").expect("name"),
        version: Some(VersionName::new("beta").expect("version")),
        description: Some("by hand".to_owned()),
        tags: [("team".to_owned(), "vision".to_owned())].into(),
        properties: [].into(),
        form: DataKind::CustomModel,
        uri: DataUri::Datastore {
            datastore: blobs.name().clone(),
            path: "models/digits.pkl".to_owned(),
        },
        flavors: [].into(),
        stage: Some("Development".to_owned()),
    };
    let (by, at) = (Principal::new("ben").expect("who"), world.tracking.now());
    let made = world.tracking.change(Actor::from(by.clone()), move |asked| {
        let made = assets::register(asked, draft, None, by, at)?.expect("made");
        asked.changed(assets::resource(&made), None, Some(&made));
        Ok(made)
    });
    made.await.expect("made");
    let found = world.call("ada", "model-versions/get?name=digits&version=beta", Value::Null).await;
    let found = &found["model_version"];
    assert_eq!(found["current_stage"], "Development");
    assert_eq!(found["source"], "azureml://datastores/workspaceblobstore/paths/models/digits.pkl");
    assert_eq!(found["tags"], json!([{ "key": "team", "value": "vision" }]));
    let model = world.call("ada", "registered-models/get?name=digits", Value::Null).await;
    assert_eq!(model["registered_model"].get("latest_versions"), None, "clients count with these");
    // An alias leads to it all the same.
    let body = json!({ "name": "digits", "alias": "champion", "version": "beta" });
    world.done("ada", "POST", "registered-models/alias", body).await;
    let path = "registered-models/alias?name=digits&alias=champion";
    assert_eq!(world.call("ada", path, Value::Null).await["model_version"]["version"], "beta");
    let (_, list) = world.send("ada", "GET", &format!("{PROXY}?path=models/digits/beta"), "").await;
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list["files"], json!([{ "path": "digits.pkl", "is_dir": false, "file_size": 6 }]));
    let file = format!("{PROXY}/models/digits/beta/digits.pkl");
    assert_eq!(world.send("ada", "GET", &file, "").await.1, b"pickle");
    // Promoted, it is a version that MLflow counts, of the same files.
    world.registered("numbers").await;
    let body = json!({ "name": "numbers", "source": "models:/digits@champion" });
    let copy = world.done("ada", "POST", "model-versions/create", body).await;
    assert_eq!(copy["model_version"]["source"], "models:/digits/beta");
    let file = format!("{PROXY}/models/numbers/1/digits.pkl");
    assert_eq!(world.send("ada", "GET", &file, "").await.1, b"pickle");
    // By its place.
    let source = "azureml://datastores/workspaceblobstore/paths/models/digits.pkl";
    let body = json!({ "name": "numbers", "source": source });
    let made = world.done("ada", "POST", "model-versions/create", body).await;
    assert_eq!(made["model_version"]["version"], "2");
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A client whose connection breaks before it is answered asks again, and one that asks twice means two.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_heard_the_answer_of_makes_one_version() {
    let world = World::new();
    let run = world.run_with_model("ada").await;
    world.registered("digits").await;
    let versions = async || {
        let found = world.call("ada", "model-versions/search", Value::Null).await;
        found["model_versions"].as_array().map_or(0, Vec::len)
    };
    let body = json!({ "name": "digits", "source": format!("runs:/{run}/model"), "run_id": run });
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(woken.clone());
    let mut request = Box::pin(world.by("ada", "POST", "model-versions/create", &body));
    // Once it is written, the answer takes one more look, which nobody takes.
    let bound = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        assert!(std::time::Instant::now() < bound, "it was never written");
        if !woken.0.swap(false, Ordering::SeqCst) {
            tokio::task::yield_now().await;
            continue;
        }
        if versions().await == 1 {
            break;
        }
        let polled = request.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending(), "{polled:?}");
    }
    drop(request);
    let again = world.done("ada", "POST", "model-versions/create", body.clone()).await;
    assert_eq!(again["model_version"]["version"], "1");
    assert_eq!(versions().await, 1);
    let next = world.done("ada", "POST", "model-versions/create", body).await;
    assert_eq!(next["model_version"]["version"], "2", "that one was answered");
}
