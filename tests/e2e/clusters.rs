//! Clusters that an admin makes: they grow as jobs come, shrink when there are none, and say why
//! they cannot.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use atelier_proto::job::v1::JobStatus;
use serde_json::Value;

use crate::harness::{Cluster, PROGRAM, Settings, processes_with, until};

/// Small nodes on the daemon's machine.
fn small(name: &str, more: &str) -> String {
    format!(
        "$schema: https://azuremlschemas.azureedge.net/latest/amlCompute.schema.json\n\
         name: {name}\ntype: amlcompute\nmin_instances: 0\nmax_instances: 4\n\
         idle_time_before_scale_down: 1\nresources: {{cpus: 1, memory: 256MiB}}\n{more}"
    )
}

fn create(cluster: &Cluster, yaml: &str) -> Value {
    cluster.atelier(["compute", "create", "-f", "-", "-o", "json"]).stdin(yaml).ok().json()
}

fn show(cluster: &Cluster, name: &str) -> Value {
    cluster.atelier(["compute", "show", name, "-o", "json"]).ok().json()
}

fn states(cluster: &Cluster, name: &str) -> Value {
    show(cluster, name)["node_states"].clone()
}

#[test]
fn a_cluster_grows_from_nothing_to_four_and_goes_back_to_nothing() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let made = create(&cluster, &small("burst", ""));
    assert_eq!(made["size"], "custom", "{made}");
    assert_eq!(made["placement"], "exclusive");
    assert_eq!(made["node_states"], serde_json::json!({}));
    let go = cluster.files().join("go");
    let jobs: Vec<String> = (0..5)
        .map(|_| {
            cluster.create(&format!(
                "compute: burst\ncommand: while [ ! -e {} ]; do sleep 0.05; done\n",
                go.display()
            ))
        })
        .collect();
    for job in &jobs[..4] {
        cluster.running(job);
    }
    assert_eq!(states(&cluster, "burst"), serde_json::json!({"running": 4}));
    let last = cluster.atelier(["job", "explain", &jobs[4], "-o", "json"]).ok().json();
    let reason = last["reason"].as_str().unwrap();
    assert!(reason.contains("maximum of 4 nodes"), "{reason}");
    let listed = cluster.atelier(["compute", "list-nodes", "burst", "-o", "json"]).ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 4);
    // A cluster with jobs is not deleted.
    cluster.atelier(["compute", "delete", "burst"]).fails(1).says(&["5 of its jobs are not over"]);
    fs::write(&go, "").unwrap();
    for job in &jobs {
        cluster.completed(job);
    }
    until("the nodes are gone", || {
        (states(&cluster, "burst") == serde_json::json!({})).then_some(())
    });
    let folders = fs::read_dir(cluster.data().join("nodes")).unwrap().count();
    assert_eq!(folders, 0, "what a node had is gone with it");
    let line = cluster.atelier(["compute", "list"]).ok().stdout().to_owned();
    assert!(line.contains("burst") && line.contains("none (0 to 4)"), "{line}");
    cluster.atelier(["compute", "delete", "burst"]).ok();
    cluster.atelier(["compute", "show", "burst"]).fails(3).says(&["there is no compute 'burst'"]);
}

/// What a node keeps of a job that failed does not keep the node.
#[test]
fn a_cluster_shrinks_although_something_is_kept() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &small("brief", ""));
    let job = cluster.create("compute: brief\ncommand: exit 3\nkeep_failed: 30m\n");
    assert_eq!(cluster.ended(&job).sandboxes.len(), 1);
    until("the node is gone", || {
        (states(&cluster, "brief") == serde_json::json!({})).then_some(())
    });
    let refused = cluster.atelier(["job", "debug", &job, "--", "true"]).fails(1);
    refused.says(&["nothing is kept of job"]);
}

/// Jobs choose nodes by labels; the nodes that a cluster adds have those of its file.
#[test]
fn a_cluster_with_labels_grows_for_a_job_that_asks_for_them() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let made = create(&cluster, &small("zoned", "node_labels: {zone: b, team/gpu: 7}\n"));
    assert_eq!(made["node_labels"], serde_json::json!({"zone": "b", "team/gpu": "7"}));
    let asks = |labels: &str| {
        format!("compute: zoned\ncommand: echo\nresources: {{node_labels: {{{labels}}}}}\n")
    };
    let job = cluster.completed(&cluster.create(&asks("zone: b, team/gpu: '7'")));
    assert_eq!(job.node, "zoned-1");
    cluster
        .atelier(["job", "create", "-f", "-"])
        .stdin(asks("rack: c"))
        .fails(1)
        .says(&["rack", "zoned"]);
    let refused = |yaml: &str, says: &[&str]| {
        cluster.atelier(["compute", "create", "-f", "-"]).stdin(yaml).fails(1).says(says);
    };
    refused(&small("zoned", "node_labels: {zone: c}\n"), &["cannot change node_labels"]);
    refused(&small("odd", "node_labels: {a b: c}\n"), &["'a b: c'", "is not a label"]);
    refused("name: mine\nprovider: joined\nnode_labels: {a: b}\n", &["joined cluster", "--label"]);
}

#[test]
fn a_clusters_jobs_do_not_notice_that_the_daemon_is_killed() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &small("steady", ""));
    let go = cluster.files().join("go");
    let job = cluster.create(&format!(
        "compute: steady\ncommand: while [ ! -e {} ]; do sleep 0.05; done\n",
        go.display()
    ));
    cluster.running(&job);
    cluster.restart_daemon_hard();
    let again = cluster.running(&job);
    assert_eq!(again.attempt, 1);
    // A node whose agent is killed gets another, of the same name; the job goes on.
    let record = cluster.data().join("nodes").join(&again.node).join("agent.json");
    let pid = |text: String| {
        let record: Value = serde_json::from_str(&text).ok()?;
        i32::try_from(record["pid"].as_i64()?).ok()
    };
    let first = pid(fs::read_to_string(&record).unwrap()).unwrap();
    let agent = rustix::process::Pid::from_raw(first).unwrap();
    rustix::process::kill_process(agent, rustix::process::Signal::KILL).unwrap();
    until("another agent is there", || {
        pid(fs::read_to_string(&record).ok()?).filter(|&pid| pid != first)
    });
    fs::write(&go, "").unwrap();
    let ended = cluster.completed(&job);
    assert_eq!((ended.attempt, &ended.node), (1, &again.node));
    until("the node is gone", || {
        (states(&cluster, "steady") == serde_json::json!({})).then_some(())
    });
}

/// A program in the daemon's folder of providers.
fn provider(cluster: &Cluster, name: &str, text: &str) {
    let folder = cluster.data().join("providers");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join(name);
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn commands(more: &str) -> String {
    format!("provider: {{type: command, create: ./add --fast, delete: remove{more}}}\n")
}

#[test]
fn an_admins_own_programs_add_and_remove_nodes() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let notes = cluster.files().join("notes");
    let notes = notes.display();
    // The first try fails, as clouds do.
    provider(
        &cluster,
        "add",
        &format!(
            "echo $ATELIER_ACTION $1 $ATELIER_NODE $ATELIER_TRY $ATELIER_CPUS \
               $ATELIER_NODE_LABELS >> {notes}\n\
             [ $ATELIER_TRY -gt 1 ] || {{ echo 'no machine is free' >&2; exit 1; }}\n\
             setsid {PROGRAM} agent --server $ATELIER_SERVER --token-file $ATELIER_TOKEN_FILE \\\n\
               --node $ATELIER_NODE --compute $ATELIER_CLUSTER --cpus $ATELIER_CPUS \\\n\
               --memory ${{ATELIER_MEMORY_MIB}}MiB --label zone=b --data-dir {notes}.$ATELIER_NODE \\\n\
               > /dev/null 2>&1 < /dev/null &\n\
             echo $! > {notes}.pid"
        ),
    );
    provider(
        &cluster,
        "remove",
        &format!("echo $ATELIER_ACTION $ATELIER_NODE >> {notes}; kill $(cat {notes}.pid) || true"),
    );
    create(&cluster, &small("cloud", &(commands("") + "node_labels: {zone: b}\n")));
    let job = cluster.create("compute: cloud\ncommand: echo there\n");
    let job = cluster.completed(&job);
    assert_eq!(job.node, "cloud-1");
    until("the node is gone", || {
        (states(&cluster, "cloud") == serde_json::json!({})).then_some(())
    });
    let said = fs::read_to_string(cluster.files().join("notes")).unwrap();
    assert_eq!(
        said,
        "create --fast cloud-1 1 1 {\"zone\":\"b\"}\n\
         create --fast cloud-1 2 1 {\"zone\":\"b\"}\n\
         delete cloud-1\n"
    );
}

#[test]
fn a_program_that_fails_or_hangs_is_told_to_those_who_wait() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    provider(&cluster, "add", "echo 'quota of 0 vCPUs exceeded' >&2; exit 3");
    provider(&cluster, "remove", "exit 0");
    create(&cluster, &small("poor", &commands(", retries: 0")));
    let job = cluster.create("compute: poor\ncommand: echo\n");
    let reason = |job: &str| cluster.rpc().job(job).unwrap().wait_reason;
    until("the reason is told", || {
        let told = reason(&job);
        let whole =
            told.contains("no node can be had") && told.contains("quota of 0 vCPUs exceeded");
        whole.then_some(())
    });
    let shown = show(&cluster, "poor");
    let trouble = shown["trouble"]["message"].as_str().unwrap();
    assert!(trouble.contains("exit status: 3"), "{trouble}");
    // One that hangs is stopped with all that it started.
    let pid = cluster.files().join("pid");
    provider(&cluster, "add", &format!("sleep 600 & echo $! > {}; sleep 601", pid.display()));
    create(&cluster, &small("stuck", &commands(", retries: 0, timeout: 1s")));
    let stuck = cluster.create("compute: stuck\ncommand: echo\n");
    until("the reason is told", || reason(&stuck).contains("did not end within 1 s").then_some(()));
    let pid = fs::read_to_string(pid).unwrap();
    until("what it started is gone", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    });
    // Only what the daemon's owner put there is run.
    let outside = "provider: {type: command, create: /bin/true, delete: ../remove, retries: 0}\n";
    create(&cluster, &small("outside", outside));
    let job = cluster.create("compute: outside\ncommand: echo\n");
    until("the reason is told", || {
        let told = reason(&job);
        told.contains("'/bin/true' is not run: write the name of a program in").then_some(())
    });
}

#[test]
fn a_drained_compute_starts_nothing_until_it_is_resumed() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &small("calm", ""));
    let drain = ["compute", "drain", "calm", "--reason", "the room is too warm"];
    let drained = cluster.atelier(drain.iter().chain(&["-o", "json"])).ok().json();
    assert_eq!(drained["drain"]["by"], "admin");
    cluster.atelier(drain).fails(1).says(&["drained already, by admin: the room is too warm"]);
    let job = cluster.create("compute: calm\ncommand: echo\n");
    let waiting = cluster.rpc().job(&job).unwrap();
    assert_eq!(waiting.status(), JobStatus::Queued);
    assert!(waiting.wait_reason.contains("the room is too warm"), "{}", waiting.wait_reason);
    assert_eq!(states(&cluster, "calm"), serde_json::json!({}), "no node is asked for");
    // As after a restart.
    cluster.restart_daemon_hard();
    assert_eq!(cluster.rpc().job(&job).unwrap().status(), JobStatus::Queued);
    cluster.atelier(["compute", "resume", "calm"]).ok();
    cluster.completed(&job);
    cluster.atelier(["compute", "resume", "calm"]).fails(1).says(&["is not drained"]);
}

#[test]
fn a_cluster_that_cannot_be_is_refused_with_the_reason() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let refused = |yaml: &str, says: &[&str]| {
        cluster.atelier(["compute", "create", "-f", "-"]).stdin(yaml).fails(1).says(says);
    };
    refused("name: x1\nsize: STANDARD_DS3_v3\n", &["STANDARD_DS3_v2", "1", "size"]);
    refused("name: x1\nmin_instances: 5\nmax_instances: 2\n", &["5", "2", "min_instances"]);
    refused("name: x1\nmax_instances: .nan\n", &["max_instances"]);
    refused("name: x1\nresources: {cpus: -1, memory: 1Gi}\n", &["cpus"]);
    refused("name: x1\ntype: kubernetes\n", &["not supported yet"]);
    refused("name: local\nsize: STANDARD_DS3_v2\n", &["'local' is no cluster"]);
    create(&cluster, "name: fine\nsize: standard_ds3_V2\nmax_instances: 2\n");
    let shown = show(&cluster, "fine");
    assert_eq!(shown["size"], "STANDARD_DS3_v2");
    assert_eq!(shown["node"]["cpus"], 4);
    // What may change changes; what is fixed is named.
    create(&cluster, "name: fine\nsize: STANDARD_DS3_v2\nmax_instances: 3\n");
    assert_eq!(show(&cluster, "fine")["max_instances"], 3);
    refused("name: fine\nsize: STANDARD_D2_v2\n", &["cannot change size"]);
    let fails = |code: i32, arguments: &[&str], says: &[&str]| {
        cluster.atelier(arguments).fails(code).says(says);
    };
    fails(1, &["compute", "scale", "fine", "--min", "9"], &["9", "3"]);
    fails(2, &["compute", "scale", "fine"], &["--min"]);
    fails(3, &["compute", "scale", "none", "--max", "9"], &["there is no compute 'none'"]);
    fails(1, &["compute", "delete", "local"], &["'local' is no cluster"]);
    fails(3, &["compute", "list-nodes", "none"], &["there is no compute 'none'"]);
    cluster.atelier(["compute", "scale", "fine", "--max", "1"]).ok();
    // A job that no node of it could ever hold.
    cluster
        .atelier(["job", "create", "-f", "-"])
        .stdin("compute: fine\ncommand: x\nresources: {cpus: 5}\n")
        .fails(1)
        .says(&["asks for 5 CPU", "4 CPU"]);
    // Only admins manage compute.
    let scientist = cluster.token_for("ada", "data-scientist");
    let server = cluster.server();
    cluster
        .atelier_at(&server, ["compute", "delete", "fine"])
        .env("ATELIER_TOKEN", &scientist)
        .fails(5)
        .says(&["delete computes", "workspaces/computes/delete"]);
    let sizes = cluster.atelier(["compute", "list-sizes"]).ok().stdout().to_owned();
    assert!(sizes.contains("STANDARD_NC6s_v3") && sizes.contains("V100"), "{sizes}");
}

/// Found in review: a program ends when it ends, not when what it left running closes its output.
#[test]
fn what_a_program_leaves_running_is_left_alone() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let pid = cluster.files().join("pid");
    // In the program's own group, with its output open.
    provider(&cluster, "add", &agent_line(&format!("& echo $! > {}", pid.display())));
    provider(&cluster, "remove", &format!("kill $(cat {}) || true", pid.display()));
    create(&cluster, &small("loose", &commands(", timeout: 2s, retries: 0")));
    let job = cluster.create("compute: loose\ncommand: sleep 4\n");
    let job = cluster.completed(&job);
    assert_eq!((job.attempt, &*job.node), (1, "loose-1"), "its agent outlived the time-out");
}

/// Found in review: what was ordered while the daemon was down, or came up, is done once it is up.
#[test]
fn an_order_of_a_killed_daemon_is_carried_out_by_the_next() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let notes = cluster.files().join("notes");
    let slow = format!("echo try $ATELIER_SERVER >> {}; sleep 600", notes.display());
    provider(&cluster, "add", &slow);
    provider(&cluster, "remove", "exit 0");
    create(&cluster, &small("late", &commands(", retries: 0")));
    let job = cluster.create("compute: late\ncommand: echo\n");
    let lines = || fs::read_to_string(&notes).unwrap_or_default();
    until("the program runs", || (lines().lines().count() == 1).then_some(()));
    provider(&cluster, "add", "echo 'out of stock' >&2; exit 1");
    cluster.restart_daemon_hard();
    until("the failure is told", || {
        cluster.rpc().job(&job).unwrap().wait_reason.contains("out of stock").then_some(())
    });
    assert!(lines().contains("try http://127.0.0.1:"), "{}", lines());
    let program = cluster.data().join("providers/add");
    until("the program of the killed daemon is gone", || {
        let left = processes_with(program.to_str().unwrap());
        left.is_empty().then_some(())
    });
}

/// Found in review: a node's token died with neither its node nor its cluster.
#[test]
fn a_nodes_token_is_worthless_once_the_node_is_gone() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &small("brief", "min_instances: 1\n").replacen("min_instances: 0\n", "", 1));
    let file = cluster.data().join("nodes/brief-1/token");
    let token = until("the node has a token", || fs::read_to_string(&file).ok());
    until("the node is up", || {
        (states(&cluster, "brief") == serde_json::json!({"idle": 1})).then_some(())
    });
    cluster.atelier(["compute", "delete", "brief"]).ok();
    until("the cluster is gone", || {
        let listed = cluster.atelier(["compute", "list", "-o", "json"]).ok().json();
        (listed.as_array().unwrap().len() == 1).then_some(())
    });
    let stolen = cluster.write("stolen", token);
    let server = cluster.server();
    let data = cluster.files().join("thief");
    let arguments = [
        "agent",
        "--server",
        &server,
        "--token-file",
        stolen.to_str().unwrap(),
        "--node",
        "brief-1",
        "--compute",
        "local",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let thief = cluster.atelier(arguments).run();
    assert!(!thief.status.success(), "{thief:?}");
    assert!(cluster.rpc().jobs().unwrap().is_empty());
}

#[test]
fn a_program_s_machine_joins_with_the_token_of_a_file_and_nothing_else() {
    let serve = ["--tls", "on"].map(str::to_owned).to_vec();
    let cluster = Cluster::with(Settings { serve, ..Settings::default() });
    cluster.start_daemon();
    let notes = cluster.files().join("notes");
    let notes = notes.display();
    // As one that copies the file to the machine: it has neither the lasting token nor the authority.
    provider(
        &cluster,
        "add",
        &format!(
            "cp $ATELIER_JOIN_TOKEN_FILE {notes}.token\n\
             stat -c %a $ATELIER_JOIN_TOKEN_FILE > {notes}.mode\n\
             unset ATELIER_CA_FILE ATELIER_TOKEN_FILE\n\
             setsid {PROGRAM} agent --server $ATELIER_SERVER --token-file {notes}.token \\\n\
               --node $ATELIER_NODE --compute $ATELIER_CLUSTER --cpus $ATELIER_CPUS \\\n\
               --memory ${{ATELIER_MEMORY_MIB}}MiB --data-dir {notes}.$ATELIER_NODE \\\n\
               > {notes}.log 2>&1 < /dev/null &\n\
             echo $! > {notes}.pid"
        ),
    );
    provider(&cluster, "remove", &format!("kill $(cat {notes}.pid) || true"));
    create(&cluster, &small("cloud", &commands("")));
    let job = cluster.completed(&cluster.create("compute: cloud\ncommand: echo there\n"));
    assert_eq!(job.node, "cloud-1");
    let read = |what: &str| fs::read_to_string(format!("{notes}.{what}")).unwrap();
    assert_eq!(read("mode").trim(), "600");
    assert!(read("token").starts_with("atj_"), "no join token");
    let identity: Value = serde_json::from_str(&read("cloud-1/identity.json")).unwrap();
    assert!(identity["proof"]["certificate"]["key"].is_string(), "no certificate");
    // It was used, and opens for nobody else.
    let listed = cluster.atelier(["node", "token", "list", "-o", "json"]).ok().json();
    assert_eq!(listed, serde_json::json!([]));
}

/// A line of a program that starts the node's agent.
fn agent_line(end: &str) -> String {
    format!(
        "{PROGRAM} agent --server $ATELIER_SERVER --token-file $ATELIER_TOKEN_FILE \\\n  \
         --node $ATELIER_NODE --compute $ATELIER_CLUSTER --cpus $ATELIER_CPUS \\\n  \
         --memory ${{ATELIER_MEMORY_MIB}}MiB --data-dir $HOME/$ATELIER_NODE {end}"
    )
}
