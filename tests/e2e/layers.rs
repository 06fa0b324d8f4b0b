//! Packages of a conda file on top of an image.

use std::io::Read as _;
use std::net::TcpListener;

use atelier_proto::job::v1::JobStatus;
use serde_json::{Value, json};

use crate::containers::{error, in_image, log, start};
use crate::harness::{Cluster, PATIENCE, Registry, needs, until};

/// A job in this image with a package of the index on top.
fn with_packages(image: &str, command: &str, packages: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "command: |\n{block}resources: {{cpus: 0.1}}\nenvironment:\n  image: {image}\n  conda_file:\n    \
         variables: {{TOLD: \"it's $HOME\"}}\n    dependencies: [python, {{pip: [{packages}]}}]\n"
    )
}

/// The names of the images that have packages on top.
fn layers(registry: &Registry) -> Vec<String> {
    let all = registry.podman(&["images", "--format={{.Repository}}:{{.Tag}}"]);
    all.lines().filter(|name| name.contains("/atelier-layer:")).map(str::to_owned).collect()
}

const LOOK: &str = "\
python -c 'import six, sys; print(\"six of\", sys.prefix)'
test -e /etc/of-the-image && echo \"$CONDA_DEFAULT_ENV in $VIRTUAL_ENV: $TOLD\"
test ! -e $VIRTUAL_ENV/mine && echo x > $VIRTUAL_ENV/mine && echo has its own
python -m pip --version
test -z \"$(ls -A /azureml-envs/.installer)\" && echo nothing is left";

#[test]
fn a_conda_file_is_installed_in_an_image_once() {
    needs("containers");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    // A setting with a password in it.
    let agent = registry.agent("local").variable("UV_INDEX_CORP_PASSWORD", "sec-ret-word");
    cluster.start_agent(&agent);
    let image = registry.python();
    let job = with_packages(&image, LOOK, "six");
    let together = [cluster.create(&job), cluster.create(&job)];
    for name in &together {
        cluster.completed(name);
    }
    let later = cluster.create(&job);
    cluster.completed(&later);
    let digest = |log: &str| {
        let line = "the image with the conda_file's packages is ";
        let told = log.lines().find_map(|said| said.strip_prefix(line));
        told.unwrap_or_else(|| panic!("no digest in {log}")).to_owned()
    };
    let logs = together.iter().chain([&later]).map(|name| log(&cluster, name)).collect::<Vec<_>>();
    for log in &logs {
        for line in [
            "six of /azureml-envs/environment",
            "project_environment in /azureml-envs/environment: it's $HOME",
            "has its own",
            "nothing is left",
        ] {
            assert!(log.lines().any(|said| said == line), "no {line} in {log}");
        }
        assert!(log.contains("from /azureml-envs/environment/lib/python3."), "{log}");
        assert_eq!(digest(log), digest(&logs[0]));
    }
    assert!(logs[0].contains(&format!("installing the conda_file's packages in image '{image}'")));
    assert!(logs[0].contains("Python 3."), "{}", logs[0]);
    assert!(!logs[2].contains("installing"), "{}", logs[2]);
    assert!(logs[2].contains("were installed in this image before"), "{}", logs[2]);
    let made = layers(&registry);
    assert_eq!(made.len(), 1, "{made:?}");
    for words in [["history", "--no-trunc", &made[0]], ["image", "inspect", &made[0]]] {
        assert!(!registry.podman(&words).contains("sec-ret-word"));
    }
    // Another file is another layer.
    let other = cluster.create(&with_packages(&image, "python -c 'import iniconfig'", "iniconfig"));
    cluster.completed(&other);
    assert_eq!(layers(&registry).len(), 2);

    // They are kept as environments are: one that a job is in stays.
    let going = cluster.create(&with_packages(&image, "echo up; sleep 600", "six"));
    cluster.atelier(["job", "stream", &going]).spawn().prints("up\n");
    let images = |verb: &str, list: &str| {
        let query = format!("{list}[?kind=='image'].[description, in_use]");
        let words = ["node", "cache", verb, "local", "--query", &query];
        let found = cluster.atelier(words).ok().json();
        let mut found: Vec<Value> = found.as_array().unwrap().clone();
        found.sort_by_key(|entry| entry[1].as_u64());
        found
    };
    let told = |in_use: u64| json!([format!("conda_file on {image}"), in_use]);
    assert_eq!(images("show", "entries"), [told(0), told(1)]);
    assert_eq!(images("prune", "removed"), [told(0)]);
    assert_eq!(layers(&registry), made);
    cluster.atelier(["job", "cancel", &going]).ok();
    until("it is not in use", || (images("show", "entries") == [told(0)]).then_some(()));
    assert_eq!(images("prune", "removed"), [told(0)]);
    assert_eq!(layers(&registry), [""; 0]);
}

#[test]
fn packages_that_cannot_be_had_fail_their_job_alone() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let python = registry.python();
    for (image, packages, expected) in [
        (&python, "six==99.9", "six==99.9"),
        // It has neither a Python nor what the node's uv needs.
        (&registry.shell(), "six", "neither a conda nor a Python"),
    ] {
        let ended = cluster.ended(&cluster.create(&with_packages(image, "echo x", packages)));
        assert_eq!(error(&ended).code, "EnvironmentFailed", "{ended:?}");
        let said = error(&ended).message;
        assert!(said.contains(expected) && said.contains(image.as_str()), "{said}");
        assert!(!said.contains("STEP"), "{said}");
    }
    // Programs are the image's to have.
    let yaml = format!(
        "command: echo x\nenvironment: {{image: {python}, conda_file: {{dependencies: [python, git]}}}}\n"
    );
    let ended = cluster.ended(&cluster.create(&yaml));
    assert!(error(&ended).message.contains("the image lacks: git"), "{ended:?}");
    assert_eq!(layers(&registry), [""; 0]);
    cluster.completed(&cluster.create(&in_image(&registry.shell(), "echo x", "")));
    until("nothing is left of the containers", || registry.containers().is_empty().then_some(()));
}

#[test]
fn an_installation_that_nobody_waits_for_is_ended_and_leaves_no_image() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let image = registry.python();
    // An index that never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let index = format!("--index-url http://{}/simple", silent.local_addr().unwrap());
    let job = cluster.create(&with_packages(&image, "echo x", &format!("'{index}', six")));
    silent.set_nonblocking(true).unwrap();
    let (mut caller, _) = until("the step asks the index", || silent.accept().ok());
    caller.set_nonblocking(false).unwrap();
    cluster.atelier(["job", "cancel", &job]).ok();
    assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);
    // Its connection ends with the step.
    caller.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = String::new();
    caller.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("GET /simple/"), "{said}");
    assert_eq!(layers(&registry), [""; 0]);
    cluster.completed(&cluster.create(&with_packages(&image, "python -c 'import six'", "six")));
}
