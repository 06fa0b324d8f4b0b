//! One table: a model that MLflow registers is what `atelier model` shows and what jobs are given.

use atelier_proto::asset::v1 as asset_pb;
use atelier_proto::audit::v1 as audit_pb;
use atelier_proto::job::v1 as job_pb;
use serde_json::{Value, json};
use tonic::Code;

use super::{Workspace, submission};

struct Mlflow {
    workspace: Workspace,
    token: String,
}

impl Mlflow {
    async fn new() -> Self {
        let workspace = Workspace::start().await;
        let token = workspace.token_of("admin.token");
        Self { workspace, token }
    }

    async fn send(&self, method: &str, path: &str, body: String) -> (u16, String) {
        let http = self.workspace.admin.http().unwrap();
        let url = format!("{}/api/2.0/{path}", self.workspace.url());
        let request = http.request(method.parse().unwrap(), url).bearer_auth(&self.token);
        let answer = request.body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.send(method, &format!("mlflow/{path}"), body.to_string()).await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// A model of this name with a version of what a run has logged; the run.
    async fn registered(&self, name: &str) -> String {
        let run = self.call("POST", "runs/create", json!({ "start_time": 5 })).await;
        let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
        let path = format!("mlflow-artifacts/artifacts/0/{run}/artifacts/model/MLmodel");
        let (status, said) = self.send("PUT", &path, "flavors: {}".to_owned()).await;
        assert_eq!(status, 200, "{said}");
        self.call("POST", "registered-models/create", json!({ "name": name })).await;
        let body = json!({ "name": name, "source": format!("runs:/{run}/model"), "run_id": run,
            "description": "the first" });
        self.call("POST", "model-versions/create", body).await;
        run
    }

    async fn asset(
        &self,
        which: job_pb::asset_ref::Which,
    ) -> Result<asset_pb::Asset, tonic::Status> {
        let asset = Some(named("digits", which));
        let request = asset_pb::GetAssetRequest { kind: asset_pb::AssetKind::Model.into(), asset };
        Ok(self.workspace.admin.assets().get_asset(request).await?.into_inner())
    }
}

fn named(name: &str, which: job_pb::asset_ref::Which) -> job_pb::AssetRef {
    job_pb::AssetRef { name: name.to_owned(), which: Some(which), ..job_pb::AssetRef::default() }
}

fn version(text: &str) -> job_pb::asset_ref::Which {
    job_pb::asset_ref::Which::Version(text.to_owned())
}

fn label(text: &str) -> job_pb::asset_ref::Which {
    job_pb::asset_ref::Which::Label(text.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_version_is_the_model_that_jobs_are_given() {
    let world = Mlflow::new().await;
    let run = world.registered("digits").await;
    let alias = json!({ "name": "digits", "alias": "champion", "version": "1" });
    world.call("POST", "registered-models/alias", alias).await;
    let stage = json!({ "name": "digits", "version": "1", "stage": "Production" });
    world.call("POST", "model-versions/transition-stage", stage).await;

    // As `atelier model show` has it.
    let shown = world.asset(label("champion")).await.unwrap();
    assert_eq!((shown.name.as_str(), shown.version.as_str()), ("digits", "1"));
    assert_eq!(shown.description, "the first");
    assert_eq!(shown.stage, "Production");
    assert_eq!(shown.labels, ["champion"]);

    // As a job is given it.
    let mut wanted = submission("scores");
    let Some(job_pb::job_spec::Kind::Command(command)) =
        wanted.spec.as_mut().and_then(|spec| spec.kind.as_mut())
    else {
        panic!("a command")
    };
    let asset = named("digits", label("champion"));
    let uri = job_pb::DataUri { form: Some(job_pb::data_uri::Form::Asset(asset)) };
    let data = job_pb::input::Data {
        kind: job_pb::DataKind::MlflowModel.into(),
        mode: job_pb::InputMode::Download.into(),
        uri: Some(uri),
        ..job_pb::input::Data::default()
    };
    let input = job_pb::Input { value: Some(job_pb::input::Value::Data(data)) };
    command.inputs.insert("model".to_owned(), input);
    world.workspace.admin.jobs().create_job(wanted).await.unwrap();
    let get = job_pb::GetJobRequest { name: "scores".to_owned(), ..Default::default() };
    let job = world.workspace.admin.jobs().get_job(get).await.unwrap().into_inner();
    let Some(job_pb::job_spec::Kind::Command(command)) = job.spec.and_then(|spec| spec.kind) else {
        panic!("a command")
    };
    let Some(job_pb::input::Value::Data(data)) = command.inputs["model"].value.clone() else {
        panic!("{:?}", command.inputs)
    };
    let place = job_pb::data_uri::Datastore {
        name: "workspaceartifactstore".to_owned(),
        path: format!("ExperimentRun/dcid.{run}/model"),
    };
    assert_eq!(data.uri.and_then(|uri| uri.form), Some(job_pb::data_uri::Form::Datastore(place)));
    assert_eq!(data.asset, Some(named("digits", version("1"))));

    // As long as the job is not over, it stays.
    let body = json!({ "name": "digits", "version": "1" }).to_string();
    let (status, said) = world.send("DELETE", "mlflow/model-versions/delete", body).await;
    assert_eq!(status, 400, "{said}");
    assert!(said.contains("INVALID_STATE") && said.contains("job scores is not over"), "{said}");
    let body = json!({ "name": "digits" }).to_string();
    let (status, said) = world.send("DELETE", "mlflow/registered-models/delete", body).await;
    assert!(status == 400 && said.contains("job scores is not over"), "{status} {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_model_is_told_on_both_sides_and_in_the_audit_log() {
    let world = Mlflow::new().await;
    world.registered("digits").await;
    // What `atelier model update` says is what MLflow reads.
    let change = asset_pb::UpdateAssetRequest {
        kind: asset_pb::AssetKind::Model.into(),
        asset: Some(named("digits", version("1"))),
        description: Some("changed".to_owned()),
        stage: Some("Staging".to_owned()),
        set_labels: vec!["challenger".to_owned()],
        ..asset_pb::UpdateAssetRequest::default()
    };
    world.workspace.admin.assets().update_asset(change).await.unwrap();
    let found = world.call("GET", "registered-models/get?name=digits", Value::Null).await;
    let found = &found["registered_model"];
    assert_eq!(found["aliases"], json!([{ "alias": "challenger", "version": "1" }]));
    assert_eq!(found["latest_versions"][0]["current_stage"], "Staging");
    assert_eq!(found["latest_versions"][0]["description"], "changed");
    // Of a longer tag than a YAML may have, nothing stands in the way of other changes.
    let tag =
        json!({ "name": "digits", "version": "1", "key": "long", "value": "x".repeat(90_000) });
    world.call("POST", "model-versions/set-tag", tag).await;
    let change = asset_pb::UpdateAssetRequest {
        kind: asset_pb::AssetKind::Model.into(),
        asset: Some(named("digits", version("1"))),
        description: Some("changed again".to_owned()),
        ..asset_pb::UpdateAssetRequest::default()
    };
    world.workspace.admin.assets().update_asset(change).await.unwrap();

    world.call("DELETE", "registered-models/delete", json!({ "name": "digits" })).await;
    assert_eq!(world.asset(version("1")).await.unwrap_err().code(), Code::NotFound);
    world.registered("digits").await;
    let found = world.call("GET", "model-versions/search", Value::Null).await;
    assert_eq!(found["model_versions"][0]["version"], "2", "its first name is not given again");

    let audit = audit_pb::ListAuditEntriesRequest::default();
    let entries =
        world.workspace.admin.audit().list_audit_entries(audit).await.unwrap().into_inner().entries;
    let told = |resource: &str| entries.iter().filter(|entry| entry.resource == resource).count();
    // Made, deleted, made again.
    assert_eq!(told("model/digits"), 3, "{entries:?}");
    // Made, changed, labelled, tagged, changed, deleted.
    assert_eq!(told("model/digits:1"), 6, "{entries:?}");
    assert_eq!(told("model/digits:2"), 1, "{entries:?}");
}
