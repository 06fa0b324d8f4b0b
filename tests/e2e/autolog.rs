//! Training code that calls `mlflow.autolog()` and nothing else of MLflow's is logged in the run of its job.

use std::path::Path;
use std::time::Duration;

use atelier_proto::job::v1::JobStatus;
use serde_json::Value;

use crate::harness::{Agent, Cluster, http};

/// Trains, as it would anywhere.
const TRAINS: &str = "
import mlflow
mlflow.autolog()
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
x, y = load_iris(return_X_y=True)
print('score', LogisticRegression(max_iter=200, C=0.5).fit(x, y).score(x, y))
";

/// What is given a model and knows nothing of the job that made it.
const PREDICTS: &str = "
import sys, mlflow.pyfunc, numpy
flowers = numpy.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]])
print('class', *mlflow.pyfunc.load_model(sys.argv[1]).predict(flowers))
";

/// It imports what the libraries of a whole notebook are.
const LONG: Duration = Duration::from_secs(150);

/// The values of a run's list of keys and values.
fn value<'a>(list: &'a Value, key: &str) -> &'a Value {
    let found = list.as_array().and_then(|list| list.iter().find(|one| one["key"] == key));
    found.map_or(&Value::Null, |one| &one["value"])
}

#[test]
fn mlflow_logs_a_model_of_scikit_learn_by_itself_and_the_next_job_is_given_it() {
    let Some(mlflow) = std::env::var_os("ATELIER_TEST_MLFLOW") else {
        panic!(
            "ATELIER_TEST_MLFLOW is to name MLflow's program; leave this out with --skip autolog::"
        )
    };
    let python = Path::new(&mlflow).with_file_name("python");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    // The Python may lie where only this user has a way.
    cluster.start_agent(&Agent::new("local").with("--job-users=none"));
    let command = |script: &str| format!("{} {script}", python.display());
    let ask = |path: &str, body: &str| {
        let (status, answer) = http(&cluster.server(), path, &cluster.token(), body).unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let completed = |job: &str| {
        let ended = cluster.rpc().reaches(job, &[JobStatus::Completed, JobStatus::Failed], LONG);
        let log = String::from_utf8(cluster.log(job)).unwrap();
        assert_eq!(ended.status(), JobStatus::Completed, "{log}");
        log
    };

    cluster.write("code/train.py", TRAINS);
    cluster.write("train.yml", format!("command: {}\ncode: code", command("train.py")));
    let create = ["job", "create", "--query", "name", "-o", "tsv", "-f"];
    let job = cluster.atelier(create.iter().chain(&["train.yml"])).ok().word();
    let log = completed(&job);
    let score: f64 =
        log.lines().find_map(|line| line.strip_prefix("score ")).unwrap().parse().unwrap();
    assert!(score > 0.9, "{log}");
    // It would lead to a port of the node.
    assert!(!log.contains("View run"), "{log}");

    let run = &ask(&format!("GET /api/2.0/mlflow/runs/get?run_id={job}"), "")["run"];
    assert_eq!(*value(&run["data"]["params"], "C"), "0.5", "{run}");
    assert_eq!(*value(&run["data"]["params"], "max_iter"), "200", "{run}");
    // Of what it was trained on, which is what it says of itself above.
    let logged = value(&run["data"]["metrics"], "training_accuracy_score");
    assert_eq!(logged.as_f64(), Some(score), "{run}");
    let after = value(&run["data"]["metrics"], "LogisticRegression_score_x");
    assert_eq!(after.as_f64(), Some(score), "{run}");
    assert_eq!(*value(&run["data"]["tags"], "estimator_name"), "LogisticRegression", "{run}");
    let datasets = &run["inputs"]["dataset_inputs"];
    assert_eq!(*value(&datasets[0]["tags"], "mlflow.data.context"), "train", "{run}");
    let model = run["outputs"]["model_outputs"][0]["model_id"].as_str().unwrap();

    let version =
        format!(r#"{{"name": "iris", "source": "models:/{model}", "model_id": "{model}"}}"#);
    ask("POST /api/2.0/mlflow/registered-models/create", r#"{"name": "iris"}"#);
    ask("POST /api/2.0/mlflow/model-versions/create", &version);
    cluster.write("code/predict.py", PREDICTS);
    let next = command("predict.py ${{inputs.model}}");
    let next = format!(
        "command: {next}\ncode: code\ninputs: {{model: {{type: mlflow_model, path: 'azureml:iris:1'}}}}"
    );
    cluster.write("predict.yml", &next);
    let job = cluster.atelier(create.iter().chain(&["predict.yml"])).ok().word();
    let log = completed(&job);
    assert!(log.contains("class 0 2\n"), "{log}");
}
