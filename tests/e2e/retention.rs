//! What jobs left is removed: by the workspace's rules, with the job, and with an asset.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Cluster, Process, http, until};

/// A job that leaves a log, artifacts and a named output.
const LEAVES: &str = "command: echo said && echo x > outputs/x && echo y > ${{outputs.out}}/y\n\
                      outputs: {out: {type: uri_folder}}\n";

fn storage(cluster: &Cluster, path: &str) -> PathBuf {
    cluster.data().join("storage").join(path)
}

fn artifacts(cluster: &Cluster, job: &str, below: &str) -> PathBuf {
    storage(cluster, &format!("workspaceartifactstore/ExperimentRun/dcid.{job}/{below}"))
}

fn output(cluster: &Cluster, job: &str) -> PathBuf {
    storage(cluster, &format!("workspaceblobstore/azureml/{job}/out/y"))
}

fn retention(cluster: &Cluster, words: &[&str]) -> Value {
    let words = ["workspace", "retention"].iter().chain(words).chain(&["-o", "json"]);
    cluster.atelier(words).ok().json()
}

/// What is said of a part of a job: whether it goes, and why it stays.
fn said<'a>(report: &'a Value, job: &str, what: &str) -> Option<&'a Value> {
    report.as_array().unwrap().iter().find(|part| part["name"] == job && part["what"] == what)
}

#[test]
fn what_finished_jobs_left_goes_by_the_rules_and_what_is_needed_stays() {
    let cluster = Cluster::start();
    let [plain, tagged, used] = ["", "tags: {keep: 'yes'}\n", ""].map(|more| {
        let job = cluster.create(&format!("{LEAVES}{more}"));
        cluster.completed(&job);
        job
    });
    let path = format!("azureml://jobs/{used}/outputs/out");
    cluster.atelier(["data", "create", "-n", "kept", "-p", &path]).ok();
    let rules = ["workspace", "retention"];
    assert_eq!(retention(&cluster, &["preview"]), json!([]), "nothing goes without rules");
    let server = cluster.server();
    let ana = cluster.token_for("ana", "data-scientist");
    let as_ana = |words: &[&str]| {
        cluster.atelier_at(&server, rules.iter().chain(words)).env("ATELIER_TOKEN", &ana)
    };
    as_ana(&["set", "--logs", "1s"]).fails(5).says(&["retention rules"]);
    let set =
        retention(&cluster, &["set", "--logs", "1s", "--outputs", "1s", "--keep-tagged", "keep"]);
    assert_eq!((&set["logs"], &set["keep_tagged"]), (&json!("1.0 s"), &json!(["keep"])));
    as_ana(&["show"]).ok();
    as_ana(&["apply"]).fails(5);

    let preview = until("all is old enough", || {
        let preview = retention(&cluster, &["preview"]);
        let goes = |job| said(&preview, job, "logs").is_some_and(|part| part["goes"] == true);
        (goes(&plain) && goes(&used)).then_some(preview)
    });
    let stays = |job, what| said(&preview, job, what).unwrap()["stays"].clone();
    assert_eq!(stays(&plain, "outputs"), Value::Null);
    assert_eq!(stays(&tagged, "logs"), "the job is tagged keep");
    assert_eq!(stays(&used, "outputs"), "data asset 'kept:1' lies there");
    assert!(artifacts(&cluster, &plain, "user_logs/std_log.txt").exists(), "nothing has gone");

    let applied = retention(&cluster, &["apply"]);
    assert_eq!(applied.as_array().unwrap().len(), 3, "{applied}");
    let gone = [
        artifacts(&cluster, &plain, "user_logs"),
        artifacts(&cluster, &used, "user_logs"),
        artifacts(&cluster, &plain, "outputs/x"),
        output(&cluster, &plain),
    ];
    until("the bytes have gone", || gone.iter().all(|path| !path.exists()).then_some(()));
    for stays in [
        artifacts(&cluster, &plain, "system_logs"),
        artifacts(&cluster, &used, "outputs/x"),
        output(&cluster, &used),
        output(&cluster, &tagged),
        artifacts(&cluster, &tagged, "user_logs/std_log.txt"),
    ] {
        assert!(stays.exists(), "{}", stays.display());
    }
    // The job is known, with what became of it; nobody can name what is not there.
    let shown = cluster.atelier(["job", "show", &plain, "-o", "json"]).ok().json();
    assert!(shown["removed"]["logs"].is_string() && shown["removed"]["outputs"].is_string());
    assert_eq!(cluster.rpc().artifacts(&plain), [""; 0], "what is gone is not told of");
    let reads = format!(
        "command: 'true'\ninputs: {{d: {{type: uri_folder, path: 'azureml://jobs/{plain}/outputs/out'}}}}\n"
    );
    let refused = cluster.atelier(["job", "create", "-f", "-"]).stdin(reads).fails(3);
    refused.says(&["the outputs of job", "were removed at", "retention rules"]);
    assert_eq!(retention(&cluster, &["apply"]), json!([]), "once is enough");
}

/// The daemon dies while the data of a deleted job goes: the next one goes on.
#[test]
fn a_removal_goes_on_where_the_daemon_was_killed() {
    let cluster = Cluster::start();
    let job = cluster.create(
        "name: many\ncommand: for i in 1 2 3 4 5 6; do echo $i > ${{outputs.out}}/$i; done\n\
         outputs: {out: {type: uri_folder}}\n",
    );
    cluster.completed(&job);
    cluster.daemon(Process::kill);
    cluster.settings.borrow_mut().variables =
        vec![("ATELIER_FAILPOINT".to_owned(), "object-removed:6".to_owned())];
    cluster.start_daemon();
    cluster.atelier(["job", "delete", "many", "--yes"]).run();
    until("the daemon dies", || cluster.daemon(Process::ended));
    let left = || {
        let folder = storage(&cluster, "workspaceblobstore/azureml/many/out");
        fs::read_dir(folder).map_or(0, Iterator::count)
            + usize::from(artifacts(&cluster, "many", "").exists())
    };
    assert!(left() > 0, "it died on the way");
    cluster.settings.borrow_mut().variables.clear();
    cluster.start_daemon();
    until("all of it has gone", || (left() == 0).then_some(()));
    // It may have died before the record was gone.
    cluster.atelier(["job", "delete", "many", "--yes"]).run();
    cluster.node_is_ready("local");
    until("its name is free", || {
        let again = cluster.atelier(["job", "create", "-f", "-"]);
        again.stdin("name: many\ncommand: 'true'\n").run().status.success().then_some(())
    });
    cluster.completed("many");
}

#[test]
fn what_a_job_wrote_elsewhere_goes_with_it_unless_another_wrote_there_too() {
    let cluster = Cluster::start();
    let store = fs::canonicalize(cluster.path()).unwrap().join("data-store");
    fs::create_dir_all(store.join("results")).unwrap();
    fs::write(store.join("results/own.txt"), "somebody's").unwrap();
    let yaml = format!("name: data\ntype: local\npath: {}\n", store.display());
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
    let [first, second] = ["a", "b"].map(|name| {
        let job = cluster.create(&format!(
            "command: echo {name} > ${{{{outputs.out}}}}/{name}\noutputs: {{out: {{type: uri_folder, \
             path: 'azureml://datastores/data/paths/results'}}}}\n"
        ));
        cluster.completed(&job);
        job
    });
    let there = |name: &str| store.join("results").join(name).exists();
    assert!(there("a") && there("b"));
    let kept = format!("output 'out': job '{second}' wrote there too");
    let delete = |job: &str| cluster.atelier(["job", "delete", job, "--yes", "--with-data"]).ok();
    delete(&first).says(&[&kept]);
    delete(&second).never_says(&["Kept"]);
    assert!(there("a") && there("own.txt") && !there("b"), "the first one's file is nobody's now");
}

#[test]
fn what_an_asset_is_made_of_goes_with_it_unless_another_is_made_of_it() {
    let cluster = Cluster::start();
    cluster.write("set/a.txt", "one");
    for name in ["one", "two"] {
        cluster.atelier(["data", "create", "-n", name, "-p", "set"]).ok();
    }
    let shown = cluster.atelier(["data", "show", "one", "-o", "json"]).ok().json();
    let path = shown["path"].as_str().unwrap().split_once("/paths/").unwrap().1.to_owned();
    let file = storage(&cluster, &format!("workspaceblobstore/{path}a.txt"));
    assert!(file.exists());
    let delete = |which: &str| cluster.atelier(["data", "delete", which, "--with-data"]).ok();
    delete("one:1").says(&["stays at", "data asset 'two:1' lies there"]);
    assert!(file.exists());
    delete("two:1").says(&["is gone from"]);
    assert!(!file.exists());
    // What a job wrote is the job's.
    let job = cluster.create(LEAVES);
    cluster.completed(&job);
    let made_of = format!("azureml://jobs/{job}/outputs/out");
    cluster.atelier(["data", "create", "-n", "made", "-p", &made_of]).ok();
    delete("made:1").says(&["stays at", "atelier job delete"]);
    assert!(output(&cluster, &job).exists());
}

#[test]
fn what_other_jobs_read_or_wrote_stays() {
    let cluster = Cluster::start();
    let job = cluster.create(LEAVES);
    cluster.completed(&job);
    let reader = cluster.create(&format!(
        "command: echo begun && sleep 600\n\
         inputs: {{d: {{type: uri_folder, path: 'azureml://jobs/{job}/outputs/out'}}}}\n"
    ));
    cluster.atelier(["job", "stream", &reader, "-q"]).spawn().prints("begun");
    let delete = || cluster.atelier(["job", "delete", &job, "--yes"]);
    delete().fails(1).says(&["is in use", &format!("job '{reader}' is not over and uses it")]);
    assert!(output(&cluster, &job).exists());
    cluster.atelier(["job", "cancel", &reader]).ok();
    cluster.ended(&reader);

    // What lies in jobs' folders is theirs, whoever made an asset of it and however it was named.
    let datastores = "azureml://datastores";
    for (name, path) in [
        (
            "logged",
            format!("{datastores}/workspaceartifactstore/paths/ExperimentRun/dcid.{job}/outputs/"),
        ),
        ("named", format!("{datastores}/workspaceblobstore/paths/azureml/{job}/out/")),
    ] {
        cluster.atelier(["data", "create", "-n", name, "-p", &path]).ok();
        let version = format!("{name}:1");
        let deleted = cluster.atelier(["data", "delete", &version, "--with-data"]).ok();
        deleted.says(&["stays at", &format!("job '{job}' wrote")]);
    }
    assert!(output(&cluster, &job).exists() && artifacts(&cluster, &job, "outputs/x").exists());
    delete().ok();
}

/// The manifest is gone and the record is not: the job can be deleted again, also with its data.
#[test]
fn a_job_whose_manifest_has_gone_can_be_deleted() {
    let cluster = Cluster::start();
    let store = fs::canonicalize(cluster.path()).unwrap().join("data-store");
    fs::create_dir_all(&store).unwrap();
    let yaml = format!("name: data\ntype: local\npath: {}\n", store.display());
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
    let job = cluster.create(
        "command: echo x > ${{outputs.out}}/x\noutputs: {out: {type: uri_folder, \
         path: 'azureml://datastores/data/paths/results'}}\n",
    );
    cluster.completed(&job);
    cluster.daemon(Process::kill);
    cluster.settings.borrow_mut().variables =
        vec![("ATELIER_FAILPOINT".to_owned(), "removal-written".to_owned())];
    cluster.start_daemon();
    let delete = || cluster.atelier(["job", "delete", &job, "--yes", "--with-data"]);
    delete().run();
    until("the daemon dies", || cluster.daemon(Process::ended));
    cluster.settings.borrow_mut().variables.clear();
    cluster.start_daemon();
    let gone = [artifacts(&cluster, &job, ""), store.join("results/x")];
    until("its data has gone", || gone.iter().all(|path| !path.exists()).then_some(()));
    delete().ok();
    cluster.atelier(["job", "show", &job]).fails(3);
}

/// A deleted run can be restored for a while; then all of it goes, but for what somebody needs.
#[test]
fn deleted_runs_are_restored_or_go() {
    let cluster = Cluster::start();
    let (server, token) = (cluster.server(), cluster.token());
    let ask = |what: &str, body: Value| -> Value {
        let (status, answer) = http(&server, what, &token, &body.to_string()).unwrap();
        assert_eq!(status, 200, "{what}: {answer}");
        serde_json::from_str(&answer).unwrap_or_default()
    };
    let api = |call: &str, body| ask(&format!("POST /api/2.0/mlflow/{call}"), body);
    let new = |name: &str| {
        let made = api("runs/create", json!({ "experiment_id": "0", "run_name": name }));
        let id = made["run"]["info"]["run_id"].as_str().unwrap().to_owned();
        let points: Vec<Value> = (0..40)
            .map(|step| json!({ "key": "m", "value": step, "timestamp": step, "step": step }))
            .collect();
        api("runs/log-batch", json!({ "run_id": id, "metrics": points }));
        let at = format!("PUT /api/2.0/mlflow-artifacts/artifacts/0/{id}/artifacts/a.txt");
        ask(&at, json!("a file"));
        api("runs/update", json!({ "run_id": id, "status": "FINISHED" }));
        id
    };
    let [plain, back, used] = ["plain", "back", "used"].map(new);
    let job = cluster.create(LEAVES);
    cluster.completed(&job);
    let path = format!(
        "azureml://datastores/workspaceartifactstore/paths/ExperimentRun/dcid.{used}/a.txt"
    );
    cluster.atelier(["data", "create", "-n", "kept", "-t", "uri_file", "-p", &path]).ok();

    cluster.atelier(["run", "delete", &plain, &back, &used, &job]).ok().says(&["run restore"]);
    let listed = |more: &[&str]| {
        let words = ["run", "list", "--query", "[].name", "-o", "json"];
        cluster.atelier(words.iter().chain(more)).ok().json()
    };
    assert_eq!(listed(&[]), json!([]));
    assert_eq!(listed(&["--deleted"]).as_array().unwrap().len(), 4);
    assert_eq!(retention(&cluster, &["preview"]), json!([]), "thirty days");
    let show = cluster.atelier(["workspace", "retention", "show", "--query", "deleted_runs"]);
    assert_eq!(show.ok().json(), "30 d 0 h");
    cluster.atelier(["run", "restore", &back]).ok();
    assert_eq!(listed(&[]), json!([back]));
    cluster.atelier(["run", "delete", "nobody"]).fails(3).says(&["cannot delete the run nobody"]);

    retention(&cluster, &["set", "--deleted-runs", "1s"]);
    let preview = until("they are old enough", || {
        let preview = retention(&cluster, &["preview"]);
        (preview.as_array().unwrap().len() == 3).then_some(preview)
    });
    assert_eq!(said(&preview, &plain, "run").unwrap()["goes"], true);
    let stays = &said(&preview, &used, "run").unwrap()["stays"];
    assert_eq!(stays, "data asset 'kept:1' lies there");
    assert!(artifacts(&cluster, &plain, "a.txt").exists(), "nothing has gone");
    assert_eq!(retention(&cluster, &["apply"]).as_array().unwrap().len(), 2);
    cluster.atelier(["run", "show", &plain]).fails(3);
    cluster.atelier(["run", "restore", &plain]).fails(3);
    assert_eq!(listed(&["--deleted"]), json!([used]));
    until("its files have gone", || (!artifacts(&cluster, &plain, "").exists()).then_some(()));
    assert!(artifacts(&cluster, &used, "a.txt").exists());
    // The job is not its run.
    cluster.atelier(["run", "show", &job]).fails(3);
    cluster.atelier(["job", "show", &job]).ok();
    assert!(artifacts(&cluster, &job, "outputs/x").exists());
    let entries = [
        "audit",
        "list",
        "--query",
        "[?action=='WorkspaceService/ApplyRetention'].resource",
        "-o",
        "json",
    ];
    let told = cluster.atelier(entries).ok().json();
    assert!(told.as_array().unwrap().contains(&json!(format!("run/{plain}"))), "{told}");
}

/// Nothing brings a deleted logged model back; its files stay as long as a run's, and while a version is made of them.
#[test]
fn deleted_logged_models_go_with_their_files() {
    let cluster = Cluster::start();
    let (server, token) = (cluster.server(), cluster.token());
    let ask = |what: &str, body: Value| -> Value {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = http(&server, what, &token, &text).unwrap();
        assert_eq!(status, 200, "{what}: {answer}");
        serde_json::from_str(&answer).unwrap_or_default()
    };
    let api = |call: &str, body| ask(&format!("POST /api/2.0/mlflow/{call}"), body);
    let experiment = api("experiments/create", json!({ "name": "digits" }));
    let experiment = experiment["experiment_id"].as_str().unwrap();
    let new = |name: &str| {
        let made = api("logged-models", json!({ "experiment_id": experiment, "name": name }));
        let id = made["model"]["info"]["model_id"].as_str().unwrap().to_owned();
        let proxy = "PUT /api/2.0/mlflow-artifacts/artifacts";
        ask(&format!("{proxy}/{experiment}/models/{id}/artifacts/MLmodel"), json!("a file"));
        let ready = json!({ "model_id": id, "status": "LOGGED_MODEL_READY" });
        ask(&format!("PATCH /api/2.0/mlflow/logged-models/{id}"), ready);
        id
    };
    let [plain, used, with_it, other] = ["plain", "used", "with its experiment", "other"].map(new);
    // More than goes at once.
    let run = api("runs/create", json!({ "experiment_id": "0" }));
    for batch in 0..6 {
        let point = |step| json!({ "key": "m", "value": 1, "timestamp": 1, "step": step, "model_id": plain });
        let points: Vec<Value> = (batch * 1000..(batch + 1) * 1000).map(point).collect();
        api("runs/log-batch", json!({ "run_id": run["run"]["info"]["run_id"], "metrics": points }));
    }
    // A job's own, which is at work with it.
    let (made, go) = (cluster.shared_file("made"), cluster.shared_file("go"));
    let job = cluster.shell(&format!(
        "curl -sS -H \"Authorization: Bearer $MLFLOW_TRACKING_TOKEN\" -H 'Content-Type: application/json' \
         -d '{{\"experiment_id\":\"'$MLFLOW_EXPERIMENT_ID'\",\"name\":\"made\"}}' \
         $MLFLOW_TRACKING_URI/api/2.0/mlflow/logged-models > {made}; \
         until [ -s {go} ]; do sleep 0.05; done",
        made = made.display(),
        go = go.display()
    ));
    let made: Value =
        until("a model of the job's", || serde_json::from_slice(&fs::read(&made).unwrap()).ok());
    let of_job = made["model"]["info"]["model_id"].as_str().unwrap().to_owned();
    api("registered-models/create", json!({ "name": "digits" }));
    let version =
        json!({ "name": "digits", "source": format!("models:/{used}"), "model_id": used });
    api("model-versions/create", version);
    for model in [&plain, &used, &other, &of_job] {
        ask(&format!("DELETE /api/2.0/mlflow/logged-models/{model}"), Value::Null);
    }
    assert_eq!(retention(&cluster, &["preview"]), json!([]), "thirty days");
    retention(&cluster, &["set", "--deleted-runs", "1s"]);
    let preview = until("they are old enough", || {
        let preview = retention(&cluster, &["preview"]);
        (preview.as_array().unwrap().len() == 4).then_some(preview)
    });
    assert_eq!(said(&preview, &plain, "logged model").unwrap()["goes"], true);
    let stays = &said(&preview, &used, "logged model").unwrap()["stays"];
    assert_eq!(stays, "model 'digits:1' lies there");
    let stays = &said(&preview, &of_job, "logged model").unwrap()["stays"];
    assert_eq!(*stays, format!("job '{job}' is not over and uses it"));
    let files = |id: &str| {
        storage(&cluster, &format!("workspaceartifactstore/models/{id}/artifacts/MLmodel"))
    };
    assert!(files(&plain).exists(), "nothing has gone");
    let gone = retention(&cluster, &["apply"]);
    assert_eq!(gone.as_array().unwrap().len(), 2, "{gone}");
    until("their files have gone", || {
        (!files(&plain).exists() && !files(&other).exists()).then_some(())
    });
    fs::write(go, "now").unwrap();
    cluster.completed(&job);
    let gone = retention(&cluster, &["apply"]);
    assert_eq!(said(&gone, &of_job, "logged model").unwrap()["goes"], true, "{gone}");
    let (status, _) =
        http(&server, &format!("GET /api/2.0/mlflow/logged-models/{plain}"), &token, "").unwrap();
    assert_eq!(status, 404);

    api("experiments/delete", json!({ "experiment_id": experiment }));
    cluster.atelier(["model", "delete", "digits:1"]).ok();
    until("both go", || {
        retention(&cluster, &["apply"]);
        (!files(&used).exists() && !files(&with_it).exists()).then_some(())
    });
    // Its name is free again.
    api("experiments/create", json!({ "name": "digits" }));
}
