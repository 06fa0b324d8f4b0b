//! Images: pulled, built, and what is said of those that cannot be had.

use std::fs;

use atelier_proto::job::v1::JobStatus;

use crate::containers::{error, in_image, log, start};
use crate::harness::{Agent, Cluster, Registry, needs, processes_with, until};

/// Submits a job with a build context beside its YAML; its name.
fn create_built(cluster: &Cluster, folder: &str, command: &str) -> String {
    let yaml = format!("command: {command}\nenvironment: {{build: {{path: ./{folder}}}}}\n");
    let file = cluster.write(&format!("{folder}.yml"), yaml);
    let file = file.to_str().unwrap();
    cluster.atelier(["job", "create", "-f", file, "--query", "name", "-o", "tsv"]).ok().word()
}

#[test]
fn images_that_cannot_be_had_fail_their_job_alone() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let absent = registry.name("team/absent:1");
    let ended = cluster.ended(&cluster.create(&in_image(&absent, "echo x", "")));
    assert_eq!(error(&ended).code, "EnvironmentFailed", "{ended:?}");
    let said = error(&ended).message;
    assert!(said.contains(&absent) && said.contains("cannot be pulled"), "{said}");
    assert_eq!(ended.attempt, 1, "it is not tried again: {ended:?}");
    // An image in which nothing can be started.
    let empty = cluster.path().join("empty");
    fs::create_dir_all(empty.join("etc")).unwrap();
    fs::write(empty.join("etc/of-the-image"), "").unwrap();
    let empty_image = registry.name("team/empty:1");
    registry.push(&empty_image, &empty);
    let ended = cluster.ended(&cluster.create(&in_image(&empty_image, "echo x", "")));
    assert_eq!(error(&ended).code, "EnvironmentFailed", "{ended:?}");
    assert!(error(&ended).message.contains("has no /bin/sh"), "{ended:?}");
    // The node is none the worse.
    cluster.completed(&cluster.create(&in_image(&registry.shell(), "echo x", "")));
    until("nothing is left of the containers", || registry.containers().is_empty().then_some(()));
}

#[test]
fn a_registry_that_is_away_is_asked_again_until_it_is_back() {
    needs("containers");
    let mut registry = Registry::start();
    let cluster = start(&registry);
    registry.go_away();
    let job = cluster.create(&in_image(&registry.shell(), "echo went on", ""));
    // It is nobody's fault here, and the node is free for others meanwhile.
    let told = until("the third try is announced", || {
        let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
        let reason = shown["wait_reason"].as_str()?.to_owned();
        (shown["attempt"].as_u64() >= Some(2) && reason.contains("the next may start at"))
            .then_some(reason)
    });
    assert!(told.contains(&registry.shell()) && told.contains("cannot be reached"), "{told}");
    cluster.completed(&cluster.shell("echo x"));
    registry.come_back();
    cluster.completed(&job);
    assert!(log(&cluster, &job).contains("went on"));
}

#[test]
fn jobs_that_start_together_share_a_pull_and_the_name_is_looked_up_anew() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let jobs: Vec<String> = (0..3)
        .map(|_| cluster.create(&in_image(&registry.shell(), "echo x", "resources: {cpus: 0.1}\n")))
        .collect();
    for job in &jobs {
        cluster.completed(job);
    }
    let before = log(&cluster, &jobs[0]);
    // The same name, another image.
    let root = registry.shell_root();
    fs::write(root.join("etc/of-the-image"), "changed").unwrap();
    let digest = registry.push(&registry.shell(), &root);
    let job = cluster.create(&in_image(&registry.shell(), "cat /etc/of-the-image", ""));
    cluster.completed(&job);
    let after = log(&cluster, &job);
    assert!(!before.contains(&digest), "{before}");
    assert!(after.contains(&digest) && after.ends_with("changed"), "{after}");
}

#[test]
fn without_a_runtime_the_policy_decides() {
    let cluster = Cluster::start();
    let image = in_image("example.com/team/shell:1", "echo went on", "");
    let job = cluster.create(&image);
    cluster.completed(&job);
    let told = log(&cluster, &job);
    assert!(told.contains("is not used") && told.contains("went on"), "{told}");
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    assert_eq!(node["facts"]["container_runtime"], "none", "{node}");

    let strict = Cluster::start_with(&["--require-containers"]);
    let ended = strict.ended(&strict.create(&image));
    assert_eq!(error(&ended).code, "EnvironmentFailed", "{ended:?}");
    let said = error(&ended).message;
    assert!(
        said.contains("example.com/team/shell:1") && said.contains("--containers none"),
        "{said}"
    );
    // A build has no other way.
    strict.write("context/Dockerfile", "FROM scratch\n");
    let ended = strict.ended(&create_built(&strict, "context", "echo x"));
    assert_eq!(error(&ended).code, "EnvironmentFailed", "{ended:?}");
    assert!(error(&ended).message.contains("needs a container runtime"), "{ended:?}");
    strict.completed(&strict.shell("echo x"));
    // What is asked for by name and does not work is told, not replaced.
    let asked = Agent::new("asked").with("--containers=apptainer").variable("PATH", "/nowhere");
    strict.start_agent(&asked);
    let node = strict.atelier(["node", "show", "asked", "-o", "json"]).ok().json();
    assert_eq!(node["facts"]["no_containers"], "apptainer is not installed", "{node}");
}

#[test]
fn jobs_with_an_image_go_where_a_runtime_is() {
    needs("containers");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    // Without the image everything would go to the smaller node.
    cluster.start_agent(&Agent::new("bare").cpus(1).with("--containers=none"));
    cluster.start_agent(&registry.agent("runs").cpus(2));
    let image = in_image(&registry.shell(), "cat /etc/of-the-image", "");
    let node = |job: &str| {
        let job = cluster.atelier(["job", "show", job, "-o", "json"]).ok().json();
        job["node"].as_str().unwrap().to_owned()
    };
    let plain = cluster.shell("echo x");
    cluster.completed(&plain);
    let job = cluster.create(&image);
    cluster.completed(&job);
    assert_eq!((node(&plain), node(&job)), ("bare".to_owned(), "runs".to_owned()));
    cluster.write("context/Dockerfile", format!("FROM {}\n", registry.shell()));
    let built = create_built(&cluster, "context", "echo x");
    cluster.completed(&built);
    assert_eq!(node(&built), "runs");
    // An image can be left out, a build cannot.
    cluster.atelier(["node", "drain", "runs", "--reason", "test"]).ok();
    let left_out = cluster.create(&in_image(&registry.shell(), "echo went on", ""));
    cluster.completed(&left_out);
    assert_eq!(node(&left_out), "bare");
    assert!(log(&cluster, &left_out).contains("is not used"));
    let waits = create_built(&cluster, "context", "echo x");
    let told = cluster.atelier(["job", "explain", &waits]).ok().stdout();
    assert!(
        told.contains("podman or docker") && told.contains("runs, which has that, is drained"),
        "{told}"
    );
    cluster.atelier(["node", "resume", "runs"]).ok();
    cluster.completed(&waits);
    assert_eq!(node(&waits), "runs");
}

#[test]
fn a_build_context_is_built_once_for_what_is_in_it() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let dockerfile = format!(
        "FROM {}\nCOPY told /etc/told\nRUN cat /proc/sys/kernel/random/uuid > /etc/built\nENV BUILT=yes\n",
        registry.shell()
    );
    cluster.write("context/Dockerfile", dockerfile);
    cluster.write("context/told", "first");
    let look = "test \"$BUILT\" = yes && cat /etc/told && echo && cat /etc/built";
    let built = |cluster: &Cluster| create_built(cluster, "context", look);
    let together = [built(&cluster), built(&cluster)];
    for job in &together {
        cluster.completed(job);
    }
    let later = built(&cluster);
    cluster.completed(&later);
    let last =
        |job: &str| log(&cluster, job).lines().rev().take(2).map(str::to_owned).collect::<Vec<_>>();
    let first = last(&together[0]);
    assert_eq!(first[1], "first");
    assert_eq!(last(&together[1]), first);
    assert_eq!(last(&later), first);
    assert!(!log(&cluster, &later).contains("building"));
    cluster.write("context/told", "second");
    let other = built(&cluster);
    cluster.completed(&other);
    assert_eq!(last(&other)[1], "second");
}

#[test]
fn a_dockerfile_that_fails_is_the_users() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let from = format!("FROM {}\n", registry.shell());
    for (folder, dockerfile, expected) in [
        ("fails", format!("{from}RUN echo so it goes && exit 9\n"), "exit status 9"),
        ("wrong", "NONSENSE\n".to_owned(), "FROM"),
        ("absent", format!("FROM {}\n", registry.name("team/absent:1")), "manifest unknown"),
        ("nothing", format!("{from}COPY not-there /etc\n"), "not-there"),
    ] {
        cluster.write(&format!("{folder}/Dockerfile"), dockerfile);
        let job = create_built(&cluster, folder, "echo x");
        let ended = cluster.ended(&job);
        assert_eq!(error(&ended).code, "EnvironmentFailed", "{ended:?}");
        let said = error(&ended).message;
        assert!(said.contains("'Dockerfile'") && said.contains(expected), "{said}");
        assert_eq!(log(&cluster, &job).contains("so it goes"), folder == "fails");
    }
    cluster.write("missing/other", "");
    let ended = cluster.ended(&create_built(&cluster, "missing", "echo x"));
    assert!(error(&ended).message.contains("no such file in the build context"), "{ended:?}");
    cluster.completed(&cluster.create(&in_image(&registry.shell(), "echo x", "")));
}

#[test]
fn a_build_that_nobody_waits_for_is_ended_with_its_steps() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let mark = format!("1{}", std::process::id());
    cluster.write("context/Dockerfile", format!("FROM {}\nRUN sleep {mark}\n", registry.shell()));
    let job = create_built(&cluster, "context", "echo x");
    let steps = || processes_with(&format!("sleep\0{mark}"));
    until("the step runs", || (!steps().is_empty()).then_some(()));
    cluster.atelier(["job", "cancel", &job]).ok();
    assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);
    until("the step is gone", || steps().is_empty().then_some(()));
    // The next one begins anew.
    cluster.write("context/Dockerfile", format!("FROM {}\nRUN echo {mark}\n", registry.shell()));
    cluster.completed(&create_built(&cluster, "context", "echo x"));
}
