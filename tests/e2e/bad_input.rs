//! Each bad input gets one clear error naming place and remedy, and nothing acknowledged is lost.

use crate::harness::{Cluster, http, job_yaml};

/// The exit code for what the user can mend.
const REFUSED: i32 = 1;

#[test]
fn bad_yaml_is_refused_with_its_place() {
    let cluster = Cluster::start();
    let before = cluster.shell("true");
    cluster.completed(&before);
    let bomb = format!(
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n{}command: ls\n",
        (1..12)
            .map(|n| {
                let (this, last) = ((b'a' + n) as char, (b'a' + n - 1) as char);
                let list = vec![format!("*{last}"); 10].join(", ");
                format!("{this}: &{this} [{list}]\n")
            })
            .collect::<String>()
    );
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("broken", b"command: [", &["broken.yml:"]),
        ("tabs", b"command: ls\ninputs:\n\tx: 1\n", &["tab", ":3:"]),
        ("utf16", b"\xff\xfec\0o\0m\0", &["utf-16", "utf-8"]),
        ("twice", b"command: a\ncommand: b\n", &["command", "2"]),
        ("bomb", bomb.as_bytes(), &["bomb.yml:", "too large", "aliases"]),
        ("unknown", b"comand: x\n", &["1:1", "unknown field 'comand'", "did you mean 'command'"]),
        ("type", b"command: ls\nresources: {gpus: yes}\n", &["gpus", "2:"]),
        ("unset", b"command: echo ${{inputs.x}}\ninputs: {y: 1}\n", &["inputs.x", "y"]),
        ("empty", b"", &["empty"]),
        ("sweep", b"type: sweep\ntrial: {}\n", &["sweep"]),
        ("gpus", b"command: ls\nresources: {gpus: 3}\n", &["3 gpu", "largest node"]),
        ("dots", b"command: ls\noutputs: {o: {path: 'azureml://datastores/workspaceblobstore/paths/a/../b'}}\n", &["'o'", "'..'"]),
        ("others", b"command: ls\noutputs: {o: {path: 'azureml://datastores/workspaceblobstore/paths/azureml/another_job/o'}}\n", &["outputs.o.path", "other jobs", "choose"]),
        ("code", b"command: ls\ncode: nowhere\n", &["nowhere"]),
        ("input", b"command: ls\ninputs: {f: {type: uri_file, path: nothing.txt}}\n", &["nothing.txt"]),
        ("store", b"command: ls\ninputs: {f: {type: uri_file, path: 'azureml://datastores/nostore/paths/x'}}\n", &["nostore"]),
        ("jobref", b"command: ls\ninputs: {f: {type: uri_folder, path: 'azureml://jobs/nojob/outputs/o/paths/'}}\n", &["nojob"]),
        ("env", b"command: ls\nenvironment: azureml:no-such-environment@latest\n", &["no-such-environment"]),
        ("compute", b"command: ls\ncompute: azureml:elsewhere\n", &["elsewhere", "local"]),
    ];
    for (name, text, parts) in cases {
        let file = cluster.write(&format!("{name}.yml"), text);
        let out = cluster
            .atelier(["job".as_ref(), "create".as_ref(), "-f".as_ref(), file.as_os_str()])
            .run();
        // What does not exist has a code of its own.
        let absent = ["input", "store", "jobref", "env", "compute"].contains(name);
        let code = out.status.code();
        assert!(code == Some(REFUSED) || absent && code == Some(3), "{name}: {out:?}");
        out.says(parts).never_says(&["panicked"]);
    }
    assert_eq!(cluster.rpc().jobs().unwrap().len(), 1);
}

#[test]
fn a_link_out_of_the_code_folder_is_refused_by_name() {
    let cluster = Cluster::start();
    cluster.write("code/main.sh", "true");
    std::os::unix::fs::symlink("/etc/passwd", cluster.files().join("code/sneaky")).unwrap();
    let job = cluster.write("job.yml", "command: sh main.sh\ncode: code\n");
    cluster
        .atelier(["job".as_ref(), "create".as_ref(), "-f".as_ref(), job.as_os_str()])
        .fails(REFUSED)
        .says(&["sneaky"]);
}

#[test]
fn a_link_out_of_the_outputs_is_refused_by_name_and_the_rest_is_kept() {
    let cluster = Cluster::start();
    let name = cluster.shell("echo kept > outputs/kept.txt; ln -s /etc/passwd outputs/sneaky");
    let job = cluster.ended(&name);
    let error = job.error.unwrap();
    assert_eq!(error.code, "OutputFailed", "{error:?}");
    assert!(error.message.contains("'sneaky'") && error.message.contains("leaves"), "{error:?}");
    let artifacts = cluster.rpc().artifacts(&name);
    assert!(artifacts.contains(&"outputs/kept.txt".to_owned()), "{artifacts:?}");
    assert!(!artifacts.iter().any(|path| path.contains("sneaky")), "{artifacts:?}");
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_the_remedy() {
    let cluster = Cluster::empty();
    cluster.atelier(["job", "list"]).fails(4).says(&["no local workspace", "atelier"]);
    cluster
        .atelier(["job", "list", "--server", "http://127.0.0.1:1"])
        .env("ATELIER_TOKEN", "x")
        .fails(4)
        .says(&["127.0.0.1:1"]);
}

/// The file is refused by the client, and the message by the daemon if another client sends it.
#[test]
fn a_message_that_is_too_long_is_refused() {
    let cluster = Cluster::start();
    let tags: String = (0..5000).map(|n| format!("  t{n}: {}\n", "x".repeat(1000))).collect();
    let yaml = format!("command: ls\ntags:\n{tags}");
    let create = cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml);
    create.fails(REFUSED).says(&["at most 1 MiB", "input"]).never_says(&["panicked"]);
    let rpc = cluster.rpc();
    let refused = rpc.create("long", &"x".repeat(5 << 20)).unwrap_err().to_string();
    assert!(refused.contains("too large") || refused.contains("limit"), "{refused}");
    let name = cluster.create(&job_yaml("true"));
    cluster.completed(&name);
    assert_eq!(rpc.jobs().unwrap().len(), 1);
}

#[test]
fn a_package_that_does_not_exist_fails_the_job_with_its_name() {
    let cluster = Cluster::start();
    let name = cluster.create(
        "command: python -c 1\nenvironment:\n  conda_file:\n    dependencies:\n      - pip:\n        \
         - no-such-package-of-atelier==99\n",
    );
    let job = cluster.ended(&name);
    let error = job.error.unwrap();
    assert_eq!(error.code, "EnvironmentFailed", "{error:?}");
    assert!(error.message.contains("no-such-package-of-atelier"), "{error:?}");
    let next = cluster.shell("true");
    cluster.completed(&next);
}

/// A job's run has the job's name as its id and lies in the job's experiment.
#[test]
fn a_name_of_a_run_and_a_deleted_experiment_are_refused() {
    let cluster = Cluster::start();
    let (server, token) = (cluster.server(), cluster.token());
    let mlflow = |what: &str, body: &str| -> serde_json::Value {
        let path = format!("POST /api/2.0/mlflow/{what}");
        let (status, answer) = http(&server, &path, &token, body).unwrap();
        assert_eq!(status, 200, "{what}: {answer}");
        serde_json::from_str(&answer).unwrap()
    };
    let run = mlflow("runs/create", r#"{"experiment_id": "0", "start_time": 1}"#);
    let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let create = |arguments: &[&str]| {
        let arguments = ["job", "create", "-f", "-"].iter().chain(arguments).copied();
        cluster.atelier(arguments).stdin(job_yaml("true"))
    };
    create(&["--name", &run]).fails(REFUSED).says(&[&run, "MLflow run", "another"]);

    let gone = mlflow("experiments/create", r#"{"name": "gone"}"#);
    let id = format!(r#"{{"experiment_id": {}}}"#, gone["experiment_id"]);
    mlflow("experiments/delete", &id);
    create(&["--set", "experiment_name=gone"]).fails(REFUSED).says(&["gone", "deleted", "restore"]);
    mlflow("experiments/restore", &id);
    create(&["--set", "experiment_name=gone"]).ok();
    let jobs = cluster.rpc().jobs().unwrap();
    assert_eq!(jobs.len(), 1);
    cluster.completed(&jobs[0].name);
}
