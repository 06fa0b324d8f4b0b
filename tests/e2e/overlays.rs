//! Inputs that jobs may change on nodes which do not share the daemon's storage: merged of the node's cache and what a
//! job changes where the machine can do that, copies elsewhere. To a job it is all the same.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use atelier_proto::job::v1::JobStatus;
use serde_json::json;

use crate::harness::{Agent, Cluster, Registry, can, needs, until};

const MIB: usize = 1 << 20;

/// A cluster with a datastore `data`, whose folder `set` has some files.
fn cluster(agent: &Agent) -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let store = fs::canonicalize(cluster.path()).unwrap().join("data-store");
    fs::create_dir_all(store.join("set/more/deep")).unwrap();
    for (path, text) in [("a.txt", "a\n"), ("more/b.txt", "b\n"), ("more/deep/c.txt", "c\n")] {
        fs::write(store.join("set").join(path), text).unwrap();
    }
    fs::write(store.join("set/large.bin"), vec![7; 9 * MIB]).unwrap();
    let yaml = format!("name: data\ntype: local\npath: {}\n", store.display());
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
    cluster.start_agent(agent);
    cluster
}

fn agent() -> Agent {
    Agent::new("local").with("--no-shared-store")
}

/// A job that may change its input, the folder `set`.
fn job(command: &str, more: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "command: |\n{block}inputs: {{set: {{type: uri_folder, mode: download, path: \
         'azureml://datastores/data/paths/set'}}}}\n{more}"
    )
}

fn log(cluster: &Cluster, job: &str) -> String {
    String::from_utf8(cluster.log(job)).unwrap()
}

/// How the node gives inputs that may be changed: `overlay` or `copies`.
fn downloads(cluster: &Cluster) -> String {
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    node["facts"]["downloads"].as_str().unwrap().to_owned()
}

/// What is merged below the node's folder.
fn merged(cluster: &Cluster) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let folder = cluster.agent_data("local").canonicalize().unwrap();
    let at = |line: &str| PathBuf::from(line.split(' ').nth(1).unwrap());
    text.lines().map(at).filter(|at| at.starts_with(&folder)).collect()
}

/// The node's cached files, each with how many names it has.
fn cached(cluster: &Cluster) -> Vec<(u64, u64)> {
    let parts = fs::read_dir(cluster.agent_data("local").join("cache/files")).unwrap().flatten();
    let files = parts.flat_map(|part| fs::read_dir(part.path()).unwrap().flatten());
    let mut found: Vec<(u64, u64)> = files
        .map(|file| file.metadata().unwrap())
        .map(|found| (found.len(), found.nlink()))
        .collect();
    found.sort_unstable();
    found
}

const CHANGE: &str = "cd ${{inputs.set}}\n\
    stat -c '%n %A' . a.txt large.bin more more/deep\n\
    test \"$(stat -c %u:%g . a.txt more/b.txt more more/deep | sort -u)\" = \"$(id -u):$(id -g)\" && echo own\n\
    echo more >> a.txt && cat a.txt\n\
    rm more/b.txt && mv more other && ls -R other\n\
    chmod 600 large.bin && touch -d 2001-02-03 large.bin && stat -c '%a %s %y' large.bin | cut -d' ' -f1-3\n\
    printf '' > other/deep/c.txt && mkdir new && mv other/deep/c.txt new && wc -c < new/c.txt\n\
    ln a.txt again && rm a.txt && cat again\n";
const CHANGED: &str = ". drwxr-xr-x\na.txt -rw-r--r--\nlarge.bin -rw-r--r--\nmore drwxr-xr-x\nmore/deep drwxr-xr-x\n\
    own\na\nmore\nother:\ndeep\n\nother/deep:\nc.txt\n600 9437184 2001-02-03\n0\na\nmore\n";
const LOOK: &str = "cd ${{inputs.set}}\ncat a.txt more/b.txt more/deep/c.txt\nfind . -type f | sort\n\
    tr -d '\\007' < large.bin | wc -c; wc -c < large.bin\n";
const AS_IT_WAS: &str =
    "a\nb\nc\n./a.txt\n./large.bin\n./more/b.txt\n./more/deep/c.txt\n0\n9437184\n";

#[test]
fn what_a_job_changes_of_its_input_is_its_own() {
    let cluster = cluster(&agent());
    let means = downloads(&cluster);
    // Where it can be done by hand, it is done.
    assert!(means == "overlay" || !can("overlays"));
    // One begins while the other has changed its own.
    let wait = "pwd > \"$OLDPWD/place\"\nuntil test -e go; do sleep 0.05; done\n";
    let first = cluster.create(&job(&format!("{CHANGE}{wait}"), ""));
    cluster.atelier(["job", "stream", &first, "-q"]).spawn().prints(CHANGED);
    let second = cluster.create(&job(LOOK, ""));
    cluster.completed(&second);
    assert_eq!(log(&cluster, &second), AS_IT_WAS);

    let names = cached(&cluster);
    let sizes: Vec<u64> = names.iter().map(|(size, _)| *size).collect();
    assert_eq!(sizes, [2, 2, 2, 9 * MIB as u64]);
    match means.as_str() {
        // Nothing of it is there twice.
        "overlay" => {
            assert!(names.iter().all(|(_, links)| *links > 1), "{names:?}");
            assert_eq!(merged(&cluster).len(), 1);
        }
        "copies" => assert!(names.iter().all(|(_, links)| *links == 1), "{names:?}"),
        other => panic!("{other}"),
    }
    let go = ["job", "exec", &first, "--", "sh", "-c", "touch $(cat place)/go"];
    cluster.atelier(go).ok();
    cluster.completed(&first);
    assert_eq!(log(&cluster, &first), CHANGED);
    until("nothing of them is left", || {
        let links: u64 = cached(&cluster).iter().map(|(_, links)| links).sum();
        (merged(&cluster).is_empty() && links == 4).then_some(())
    });
}

#[test]
fn processes_of_a_job_share_what_they_change() {
    let cluster = cluster(&agent());
    let command = "cd ${{inputs.set}}; echo $RANK > by-$RANK\n\
                   until test -e by-0 && test -e by-1; do sleep 0.05; done; cat a.txt\n";
    let name = cluster
        .create(&job(command, "distribution: {type: pytorch, process_count_per_instance: 2}\n"));
    cluster.completed(&name);
}

#[test]
fn what_a_failed_job_has_changed_of_its_input_is_kept_with_it() {
    let cluster = cluster(&agent());
    let command = format!("{CHANGE}pwd > \"$OLDPWD/place\"; exit 3");
    let name = cluster.create(&job(&command, "keep_failed: 30m\n"));
    assert_eq!(cluster.ended(&name).status(), JobStatus::Failed);
    let look = [
        "job",
        "debug",
        &name,
        "--",
        "sh",
        "-c",
        "cd $(cat place) && cat again; ls; echo >> again",
    ];
    let told = cluster.atelier(look).ok().stdout();
    assert_eq!(told, "a\nmore\nagain\nlarge.bin\nnew\nother\n");

    // Mounts do not outlive the machine, or a service that has some for itself.
    let is_merged = downloads(&cluster) == "overlay";
    cluster.agent("local", |agent| agent.kill());
    let left = merged(&cluster);
    assert_eq!(left.len(), usize::from(is_merged));
    for at in left {
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    cluster.start_agent(&agent());
    let told = cluster.atelier(look).ok().stdout();
    assert_eq!(told, "a\nmore\n\nagain\nlarge.bin\nnew\nother\n");
    cluster.atelier(["job", "debug", &name, "--release"]).ok();
    until("nothing of it is left", || merged(&cluster).is_empty().then_some(()));
}

#[test]
fn a_job_goes_on_with_what_it_has_changed_while_its_agent_is_dead() {
    let cluster = cluster(&agent());
    let wait = "pwd > \"$OLDPWD/place\"\nuntil test -e go; do sleep 0.05; done\ncat new/c.txt go\n";
    let name = cluster.create(&job(&format!("{CHANGE}{wait}"), ""));
    cluster.atelier(["job", "stream", &name, "-q"]).spawn().prints(CHANGED);
    cluster.agent("local", |agent| agent.kill());
    cluster.start_agent(&agent());
    let go = "echo went > $(cat place)/go";
    cluster.atelier(["job", "exec", &name, "--", "sh", "-c", go]).ok();
    cluster.completed(&name);
    assert_eq!(log(&cluster, &name), format!("{CHANGED}went\n"));
    until("nothing of it is left", || merged(&cluster).is_empty().then_some(()));
}

#[test]
fn a_node_that_may_not_mount_copies_and_says_why() {
    let cluster = cluster(&agent().with("--mounts=none"));
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    let told = (&node["facts"]["downloads"], &node["facts"]["no_overlays"]);
    assert_eq!(told, (&json!("copies"), &json!("the agent runs with --mounts none")));
    for (command, expected) in [(CHANGE, CHANGED), (LOOK, AS_IT_WAS)] {
        let name = cluster.create(&job(command, ""));
        cluster.completed(&name);
        assert_eq!(log(&cluster, &name), expected);
    }
}

#[test]
fn containers_may_change_their_inputs() {
    needs("containers");
    let registry = Registry::start();
    let cluster = cluster(&registry.agent("local").with("--no-shared-store"));
    let image = format!("environment: {{image: {}}}\n", registry.shell());
    for (command, expected) in [(CHANGE, CHANGED), (LOOK, AS_IT_WAS)] {
        let name = cluster.create(&job(command, &image));
        cluster.completed(&name);
        let told = log(&cluster, &name);
        assert!(told.ends_with(expected), "{told}");
    }
}
