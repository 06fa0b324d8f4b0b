//! Whom containers of an agent that is root run as: root for themselves, the job's user on the node.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use atelier_proto::job::v1::JobStatus;
use serde_json::Value;

use crate::containers::{in_image, log, start};
use crate::harness::{Agent, Cluster, Engine, Registry, needs, processes_with, until};
use crate::isolation::make_strict;

/// The users, by the node's numbers, of all processes that have this variable.
fn users_of(mark: &str) -> Vec<u32> {
    let user = |pid: &rustix::process::Pid| {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        // Real, effective, saved and that of files.
        let all: Vec<u32> = line?.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert!(all.iter().all(|id| *id == all[0]), "{all:?}");
        Some(all[0])
    };
    processes_with(mark).iter().filter_map(user).collect()
}

/// The one user of these processes, of which there are some.
#[track_caller]
fn user_of(mark: &str) -> u32 {
    let mut users = until("it runs", || Some(users_of(mark)).filter(|all| !all.is_empty()));
    users.dedup();
    assert_eq!(users.len(), 1, "{users:?}");
    users[0]
}

fn facts(cluster: &Cluster, node: &str) -> Value {
    cluster.atelier(["node", "show", node, "-o", "json"]).ok().json()["facts"].clone()
}

/// A folder of the node that all jobs may write.
fn shared(cluster: &Cluster) -> PathBuf {
    let folder = cluster.path().join("shared");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

#[test]
fn a_containers_root_is_the_jobs_user_on_the_node() {
    needs("container-users");
    let registry = Registry::start();
    let (name, root) = (registry.name("team/owned:1"), registry.shell_root());
    for (path, text) in [("etc/of-another", "another's\n"), ("etc/of-root", "root's\n")] {
        fs::write(root.join(path), text).unwrap();
    }
    std::os::unix::fs::chown(root.join("etc/of-another"), Some(1000), Some(1_000_660_001)).unwrap();
    // Whom the image makes a member of its groups.
    fs::write(root.join("etc/group"), "root:x:0:root\nwheel:x:10:root\n").unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    registry.push(&name, &root);
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let shared = shared(&cluster);
    cluster.start_agent(&registry.agent("local").with(&format!("--writable={}", shared.display())));
    let found = facts(&cluster, "local");
    assert_eq!(found["container_users"], found["job_users"], "{found}");
    assert!(!found["not_isolated"].to_string().contains("containers"), "{found}");

    cluster.write("code/train.sh", "echo first\n");
    cluster.write("given.txt", "given\n");
    let look = format!(
        "echo user=$(id -u):$(id -g) groups=$(id -G)\n\
         echo image $(stat -c %u:%g /etc/of-another /etc/of-root)\n\
         echo more >> /etc/of-root && cat /etc/of-root\n\
         echo more 2>/dev/null >> /etc/of-another || echo refused\n\
         echo work $(stat -c %u:%g . train.sh outputs)\n\
         echo more >> train.sh && sh train.sh 2>/dev/null\n\
         echo more >> ${{{{inputs.copied}}}} && cat ${{{{inputs.copied}}}}\n\
         cat ${{{{inputs.linked}}}}\n\
         echo to-the-terminal > /dev/stdout; echo to-the-error > /dev/stderr\n\
         (umask 077; echo mine > {0}/secret; echo kept > outputs/kept.txt)\n\
         echo kept > ${{{{outputs.model}}}}/kept.txt\n\
         echo ready\n\
         until test -e {0}/go; do sleep 0.1; done\n",
        shared.display()
    );
    let more = "code: code\nenvironment_variables: {MARK: of-the-first}\ninputs:\n  copied: {type: \
                uri_file, path: given.txt, mode: download}\n  linked: {type: uri_file, path: \
                given.txt}\noutputs: {model: {type: uri_folder}}\n";
    cluster.write("job.yml", in_image(&name, &look, more));
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("ready\n");
    let first = user_of("MARK=of-the-first");
    assert!((0x7000_0000..0x7100_0000).contains(&first), "{first}");
    assert_eq!(fs::metadata(shared.join("secret")).unwrap().uid(), first);

    // Another job's root is another user.
    let look = format!(
        "cat {0}/secret || echo closed; stat -c %u {0}/secret; sleep 600",
        shared.display()
    );
    let more = "environment_variables: {MARK: of-the-second}\n";
    let second = cluster.create(&in_image(&name, &look, more));
    cluster.atelier(["job", "stream", &second, "-q"]).spawn().prints("closed\n");
    assert_ne!(user_of("MARK=of-the-second"), first);
    cluster.atelier(["job", "cancel", &second]).ok();
    cluster.ended(&second);
    assert!(!log(&cluster, &second).contains("mine"));

    fs::write(shared.join("go"), "").unwrap();
    cluster.completed(&job);
    let told = log(&cluster, &job);
    let from = told.find("user=").unwrap();
    assert_eq!(
        told[from..],
        *"user=0:0 groups=0\nimage 1000:1000660001 0:0\nroot's\nmore\nrefused\nwork 0:0 0:0 0:0\nfirst\ngiven\nmore\n\
          given\nto-the-terminal\nto-the-error\nready\n"
    );
    let folder = cluster.path().join("artifacts");
    cluster
        .atelier(["job", "download", &job, "--all", "--download-path", folder.to_str().unwrap()])
        .ok();
    for path in ["artifacts/outputs/kept.txt", "named-outputs/model/kept.txt"] {
        assert_eq!(fs::read_to_string(folder.join(path)).unwrap(), "kept\n", "{path}");
    }
    let attempts = cluster.agent_data("local").join("attempts");
    until("the attempts' folders are gone", || {
        (fs::read_dir(&attempts).unwrap().count() == 0).then_some(())
    });
    // The image is there once, whoever ran it.
    let layers = registry.images().join("overlay");
    let of_root = fs::read_dir(layers).unwrap().filter_map(Result::ok);
    let copies = of_root.filter(|layer| layer.path().join("diff/etc/of-another").exists());
    assert_eq!(copies.count(), 1);
}

#[test]
fn whoever_enters_a_container_is_its_user() {
    needs("container-users");
    let registry = Registry::start();
    let cluster = start(&registry);
    let command = "echo up; until test -e go; do sleep 0.1; done; mkdir -m 700 left; exit 3";
    let more = "keep_failed: 30m\nenvironment_variables: {MARK: of-the-job}\n";
    let job = cluster.create(&in_image(&registry.shell(), command, more));
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("up\n");
    let user = user_of("MARK=of-the-job");
    assert_ne!(user, 0);
    // It prints by the names of its files too, and has no group of the node's. The client's command line is to have
    // another word.
    let look = "export MARK=of-the-one-be$(echo side); id -u; id -G; echo out > /dev/stdout; echo mine > here; sleep 600";
    for verb in ["exec", "debug"] {
        for terminal in [false, true] {
            let mut words = vec!["job", verb, &job];
            words.extend(terminal.then_some("-t"));
            words.extend(["--", "/bin/sh", "-c", look]);
            let beside = cluster.atelier(words).spawn();
            beside.prints(if terminal { "0\r\n0\r\nout\r\n" } else { "0\n0\nout\n" });
            let beside_user = user_of("MARK=of-the-one-beside");
            assert_eq!(beside_user, user, "{verb} {terminal}");
            drop(beside);
            until("it has ended", || users_of("MARK=of-the-one-beside").is_empty().then_some(()));
        }
        if verb == "exec" {
            cluster.atelier(["job", "exec", &job, "--", "touch", "go"]).ok();
            assert_eq!(cluster.ended(&job).status(), JobStatus::Failed);
        }
    }
    let work = cluster.agent_data("local").join("attempts/1/work");
    for path in ["here", "left"] {
        assert_eq!(fs::metadata(work.join(path)).unwrap().uid(), user, "{path}");
    }
    cluster.atelier(["job", "debug", &job, "--release"]).ok();
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
}

#[test]
fn a_node_whose_containers_have_no_users_says_why() {
    needs("containers");
    needs("job-users");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    make_strict(&cluster);
    let high = "--job-users=4294900000-4294967294";
    cluster.start_agent(&registry.agent("high").with(high));
    let found = facts(&cluster, "high");
    assert_eq!(found["container_users"], "none", "{found}");
    let why = found["not_isolated"].as_str().unwrap();
    assert!(why.contains("containers run as root") && why.contains("65536 numbers"), "{why}");
    cluster.launch_agent(&registry.agent("strict").with(high).compute("strict"));
    until("the agent is told why it may not join", || {
        let said = cluster.agent("strict", |process| process.printed());
        (said.contains("containment is strict") && said.contains("containers run as root"))
            .then_some(())
    });
    // They run as before, of which nobody but the node's root is the user.
    let more = "environment_variables: {MARK: of-no-user}\n";
    let job = cluster.create(&in_image(&registry.shell(), "id -u; sleep 600", more));
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("0\n");
    assert_eq!(user_of("MARK=of-no-user"), 0);
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);

    // A storage that copies.
    let storage = cluster.path().join("storage");
    let file = cluster.path().join("storage.conf");
    let text = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/images\"\nrunroot = \"{0}/running\"\n",
        storage.display()
    );
    fs::write(&file, text).unwrap();
    let agent = Agent::new("copies").with("--containers=podman");
    cluster.start_agent(&agent.variable("CONTAINERS_STORAGE_CONF", &file.display().to_string()));
    let found = facts(&cluster, "copies");
    let why = found["not_isolated"].as_str().unwrap();
    assert!(why.contains("storage 'vfs' would copy images"), "{why}");

    let needless = registry.agent("none").with("--job-users=none");
    cluster.start_agent(&needless);
    let found = facts(&cluster, "none");
    let why = found["not_isolated"].as_str().unwrap();
    assert!(why.contains("jobs run as root") && !why.contains("containers"), "{why}");
}

#[test]
fn an_engine_gives_containers_no_users() {
    needs("docker");
    needs("job-users");
    let registry = Registry::start();
    let engine: Engine = registry.engine();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&engine.agent("local"));
    let found = facts(&cluster, "local");
    let why = found["not_isolated"].as_str().unwrap();
    assert!(why.contains("docker cannot give each a user of its own"), "{why}");
}
