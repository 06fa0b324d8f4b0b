//! What runs have logged, in the terminal: lists, comparisons, curves, files, and points as they come.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Cluster, Outcome, until};

/// Logs a parameter, a curve of so many points and a file; then waits for a word where there is one to wait for.
const TRAIN: &str = r#"
import json, os, sys, time, urllib.request
lr, count, wait = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
def post(call, **body):
    request = urllib.request.Request(
        os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/" + call,
        json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], **body}).encode(),
        {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"], "Content-Type": "application/json"})
    urllib.request.urlopen(request).read()
def points(steps):
    return [{"key": key, "value": value(step), "timestamp": 1000 + step, "step": step}
            for step in steps for key, value in {"loss": lambda s: 100 * lr / (s + 1), "a b": float}.items()]
post("log-batch", params=[{"key": "lr", "value": str(lr)}], metrics=points(range(count)))
post("log-metric", key="odd", value="NaN", timestamp=5, step=0)
os.makedirs("outputs/plots", exist_ok=True)
open("outputs/plots/a b.txt", "w").write("a curve")
if wait:
    open(wait[0] + "/first", "w").close()
    while not os.path.exists(wait[0] + "/go"):
        time.sleep(0.05)
    post("log-batch", metrics=points(range(count, count + 3)))
    # As after a start anew: later, with steps that were there.
    post("log-metric", key="loss", value=7, timestamp=9999, step=0)
"#;

fn train(words: &str) -> String {
    format!("command: python3 train.py {words}\ncode: code\nexperiment_name: curves\n")
}

/// Standard output holds each of these.
#[track_caller]
fn prints(outcome: &Outcome, parts: &[&str]) {
    for part in parts {
        assert!(outcome.stdout().contains(part), "no {part:?} in {outcome:?}");
    }
}

#[test]
fn runs_are_listed_compared_drawn_and_brought_here() {
    let cluster = Cluster::start();
    cluster.write("code/train.py", TRAIN);
    let one = cluster.create(&train("0.01 200"));
    cluster.completed(&one);
    let two = cluster.create(&train("0.02 200"));
    cluster.completed(&two);

    let words = ["run", "list", "-e", "curves", "--filter", "metrics.loss < 1"];
    let best = ["--order-by", "metrics.loss ASC", "--query", "[].name"];
    let listed = cluster.atelier(words.iter().chain(&best)).ok().json();
    assert_eq!(listed, json!([one, two]));
    let table = cluster.atelier(words).ok();
    prints(&table, &["NAME", "FINISHED", "a b=199", "loss=0.005", "odd=NaN"]);
    let params = ["run", "list", "--filter", "params.lr = '0.02'", "--query", "[].name"];
    assert_eq!(cluster.atelier(params).ok().json(), json!([two]));
    cluster.atelier(["run", "list", "-e", "nothing"]).fails(3).says(&["no experiment 'nothing'"]);
    cluster
        .atelier(["run", "list", "--filter", "metrics.loss <"])
        .fails(1)
        .says(&["cannot list runs", "character 15"]);

    let shown = cluster.atelier(["run", "show", &one, "-o", "json"]).ok().json();
    assert_eq!(
        (&shown["params"]["lr"], &shown["metrics"]["loss"]),
        (&json!("0.01"), &json!(0.005))
    );
    assert_eq!(
        (&shown["experiment_name"], &shown["metrics"]["odd"]),
        (&json!("curves"), &json!("NaN"))
    );
    cluster.atelier(["run", "show", "nobody"]).fails(3).says(&["nobody", "atelier run list"]);

    let differing = cluster.atelier(["run", "compare", &one, &two]).ok();
    prints(&differing, &["params.lr", "0.01", "0.02", "metrics.loss", &one]);
    differing.never_says(&["metrics.a b"]);
    let rows = cluster.atelier(["run", "compare", &one, &two, "--all", "-o", "json"]).ok().json();
    let same = rows.as_array().unwrap().iter().find(|row| row["field"] == "metrics.a b").unwrap();
    assert_eq!((&same["differs"], &same["values"][&two]), (&json!(false), &json!(199.0)));
    cluster.atelier(["run", "compare", &one]).fails(2);

    let curves = cluster.atelier(["run", "metrics", &one]).ok();
    prints(&curves, &["CURVE", "loss", "█", "NaN"]);
    let chart = cluster.atelier(["run", "metrics", &one, "loss", "--plot"]).ok();
    prints(&chart, &["1│", "└───", "199"]);
    let nothing = cluster.atelier(["run", "metrics", &one, "odd", "--plot"]).ok();
    prints(&nothing, &["no finite value"]);
    cluster.atelier(["run", "metrics", &one, "los"]).fails(3).says(&["no metric 'los'"]);
    let points = cluster.atelier(["run", "metrics", &one, "loss", "-o", "json"]).ok().json();
    assert_eq!(points.as_array().unwrap().len(), 200);
    assert_eq!(points[1]["value"], json!(0.5));

    for name in ["all.csv", "all.json", "all.parquet"] {
        let file = cluster.files().join(name);
        let asked =
            ["run", "metrics", &one, "--export", file.to_str().unwrap(), "--query", "points"];
        assert_eq!(cluster.atelier(asked).ok().json(), json!(401));
    }
    let csv = fs::read_to_string(cluster.files().join("all.csv")).unwrap();
    assert!(csv.starts_with("key,step,timestamp,value\na b,0,1000,0\n"), "{csv}");
    assert!(csv.ends_with("\nodd,0,5,NaN\n"), "{csv}");
    let whole: Value =
        serde_json::from_slice(&fs::read(cluster.files().join("all.json")).unwrap()).unwrap();
    let last = json!({ "key": "odd", "step": 0, "timestamp": 5, "value": "NaN" });
    assert_eq!(whole.as_array().unwrap().last(), Some(&last));
    let parquet = fs::read(cluster.files().join("all.parquet")).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    let wrong = cluster.files().join("all.xls");
    cluster
        .atelier(["run", "metrics", &one, "--export", wrong.to_str().unwrap()])
        .fails(2)
        .says(&[".csv, .json or .parquet"]);

    let to = cluster.files().join("brought");
    let folder = to.to_str().unwrap();
    let brought = ["run", "download", &one, "outputs/plots", "-p", folder, "--query", "files"];
    assert_eq!(cluster.atelier(brought).ok().json(), json!(1));
    let file = "outputs/plots/a b.txt";
    assert_eq!(fs::read_to_string(to.join(file)).unwrap(), "a curve");
    fs::remove_dir_all(&to).unwrap();
    cluster.atelier(["run", "download", &one, file, "-p", folder]).ok();
    assert_eq!(fs::read_to_string(to.join(file)).unwrap(), "a curve");
    cluster.atelier(["run", "download", &one, "nothing"]).fails(3).says(&["no artifact 'nothing'"]);
}

#[test]
fn points_are_followed_until_their_run_has_ended() {
    let cluster = Cluster::start();
    cluster.write("code/train.py", TRAIN);
    let signals = cluster.shared_folder("signals");
    let job = cluster.create(&train(&format!("0.5 2 {}", signals.display())));
    until("the first points are logged", || signals.join("first").exists().then_some(()));
    let tail = cluster.atelier(["run", "metrics", "tail", &job, "loss", "-o", "json"]).spawn();
    tail.prints("\"step\":1");
    fs::write(signals.join("go"), "").unwrap();
    let said = tail.wait().ok().stdout();
    let steps: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].clone())
        .collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 0]);
    cluster.completed(&job);
}
