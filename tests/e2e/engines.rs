//! Jobs in containers of docker's program, which are an engine's and not below their supervisors. The engine is
//! podman's, which has docker's interface.

use atelier_proto::job::v1::JobStatus;
use rustix::process::{Signal, kill_process};

use crate::containers::{in_image, log};
use crate::harness::{Cluster, Engine, Registry, Settings, needs, supervisor, until};

/// It does not end when it is asked to.
const DEAF: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";

fn start(engine: &Engine) -> Cluster {
    let serve = ["--grace", "1"].map(str::to_owned).into();
    let cluster = Cluster::with(Settings { serve, ..Settings::default() });
    cluster.start_daemon();
    cluster.start_agent(&engine.agent("local"));
    cluster
}

/// A job that has begun.
fn begun(cluster: &Cluster, command: &str) -> String {
    let job = cluster.create(&in_image(Engine::IMAGE, command, Engine::RESOURCES));
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("up\n");
    job
}

#[test]
fn docker_runs_a_job_and_lets_in_beside_it() {
    needs("docker");
    let registry = Registry::start();
    let engine = registry.engine();
    let cluster = start(&engine);
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    let runtime = node["facts"]["container_runtime"].as_str().unwrap();
    assert!(runtime.starts_with("docker "), "{node}");
    let job = begun(&cluster, DEAF);
    let look = "test -e /etc/of-the-image && echo $ATELIER_JOB $OF_THE_IMAGE; pwd; cat";
    let exec = ["job", "exec", &job, "-i", "--", "sh", "-c", look];
    let told = cluster.atelier(exec).stdin("typed").ok().stdout();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!((lines[0], lines[2]), (format!("{job} yes").as_str(), "typed"), "{told}");
    assert!(lines[1].ends_with("/work"), "{told}");
    cluster.atelier(["job", "exec", &job, "--", "sh", "-c", "exit 7"]).run().code(7);
    let terminal = ["job", "exec", &job, "-t", "--", "sh", "-c", "test -t 0 && echo a terminal"];
    assert_eq!(cluster.atelier(terminal).ok().stdout().trim_end(), "a terminal");
    cluster.atelier(["job", "cancel", &job]).ok();
    assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);

    let command = "printf 'a\\000b\\n\\377 no end'; exit 7";
    let more = format!("keep_failed: 30m\n{}", Engine::RESOURCES);
    let job = cluster.create(&in_image(Engine::IMAGE, command, &more));
    let ended = cluster.ended(&job);
    assert_eq!((ended.exit_code, ended.sandboxes.len()), (Some(7), 0), "{ended:?}");
    assert!(cluster.log(&job).ends_with(b"a\0b\n\xff no end"), "{}", log(&cluster, &job));
    let shown = cluster.atelier(["job", "show", &job, "--usage", "-o", "json"]).ok().json();
    assert_eq!(shown["usage"]["peak_memory"], serde_json::Value::Null, "{shown}");
    let refused = cluster.atelier(["job", "debug", &job, "--", "true"]).fails(1);
    refused.says(&["nothing is kept of job", "docker's container"]);
    until("nothing is left of the containers", || registry.containers().is_empty().then_some(()));
}

#[test]
fn a_supervisor_ends_its_engines_container_without_an_agent() {
    needs("docker");
    let registry = Registry::start();
    let engine = registry.engine();
    let cluster = start(&engine);
    let job = begun(&cluster, DEAF);
    let supervisor = supervisor(&cluster.agent_data("local").join("attempts/1"));
    cluster.agent("local", |agent| agent.kill());
    assert!(registry.running().starts_with("atelier-"));
    kill_process(supervisor, Signal::TERM).unwrap();
    until("its container has ended", || registry.running().is_empty().then_some(()));
    cluster.start_agent(&engine.agent("local"));
    cluster.atelier(["job", "cancel", &job]).run();
    cluster.ended(&job);
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
}

#[test]
fn what_a_killed_supervisor_left_in_an_engine_is_gone_before_the_job_is_over() {
    needs("docker");
    let registry = Registry::start();
    let engine = registry.engine();
    let cluster = start(&engine);
    let began = cluster.files().join("began").display().to_string();
    // Whatever comes after it finds that this has run, and none of it beside itself.
    let command = format!("test -e {began} && exit 0; echo x > {began}; {DEAF}");
    let job = begun(&cluster, &command);
    let supervisor = supervisor(&cluster.agent_data("local").join("attempts/1"));
    cluster.agent("local", |agent| agent.kill());
    kill_process(supervisor, Signal::KILL).unwrap();
    let left = registry.running();
    assert!(left.starts_with("atelier-"), "{left}");
    cluster.start_agent(&engine.agent("local"));
    cluster.ended(&job);
    assert!(!registry.running().contains(&left), "{}", registry.running());
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
}
