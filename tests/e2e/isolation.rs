//! What a job can see and change of its node.

use std::fs;
use std::time::{Duration, Instant};

use atelier_proto::job::v1::JobStatus;

use crate::harness::{Agent, Cluster, Hang, job_yaml, needs, processes_with, until};
use crate::homes::stored_at;

/// Tells what it finds, as `name=yes` or `name=no`.
const LOOK: &str = r#"
say() { if eval "$2" >/dev/null 2>&1; then echo "$1=yes"; else echo "$1=no"; fi; }
say writes_work 'echo x > here'
say writes_outputs 'echo x > outputs/kept.txt'
say writes_named_output 'echo x > "$AZURE_ML_OUTPUT_model/kept.txt"'
say writes_tmp 'echo x > /tmp/mine && echo x > /var/tmp/mine'
say writes_home 'mkdir -p ~/.cache/x && echo x > ~/.cache/x/y'
say writes_memory 'echo x > /dev/shm/mine'
say writes_allowed "echo x > $ALLOWED/mine"
say writes_etc 'echo x > /etc/atelier-was-here'
say writes_usr 'echo x > /usr/atelier-was-here'
say writes_kernel 'cat /proc/sys/vm/swappiness > /proc/sys/vm/swappiness'
say writes_groups 'mkdir /sys/fs/cgroup/atelier-was-here || mkdir /sys/fs/cgroup/memory/atelier-was-here'
say sees_tmp_of_others "test -e $OUTSIDE"
say sees_admin_token "cat $HOME_OF_DAEMON/admin.token"
say sees_daemons_database "test -e $HOME_OF_DAEMON/atelier.db"
say sees_records "cat $FOLDER_OF_AGENT/attempts/*/launch.json"
say sees_lease "test -e $FOLDER_OF_AGENT/lease"
say can_mount 'mount -t tmpfs none /mnt'
say can_uncover "umount $FOLDER_OF_AGENT"
say has_python 'python3 -c "import json, multiprocessing as m; m.Lock()"'
grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '\t'
"#;

fn yaml(cluster: &Cluster, outside: &std::path::Path) -> String {
    let block: String = LOOK.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "command: |\n{block}outputs: {{model: {{type: uri_folder}}}}\nenvironment_variables:\n  \
         ALLOWED: {}\n  OUTSIDE: {}\n  HOME_OF_DAEMON: {}\n  FOLDER_OF_AGENT: {}\n",
        cluster.files().display(),
        outside.display(),
        cluster.data().display(),
        cluster.agent_data("local").display()
    )
}

/// What can be done on a node that isolates nobody.
fn found(cluster: &Cluster, outside: &std::path::Path) -> Vec<String> {
    let job = cluster.create(&yaml(cluster, outside));
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    let artifacts = cluster.rpc().artifacts(&job);
    assert!(artifacts.iter().any(|path| path == "outputs/kept.txt"), "{artifacts:?}");
    log.lines().map(str::to_owned).collect()
}

#[test]
fn a_job_changes_its_own_folders_and_sees_no_secret_of_its_node() {
    needs("isolation");
    let cluster = Cluster::start();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let found = found(&cluster, outside.path());
    let yes: Vec<&str> = found.iter().filter_map(|line| line.strip_suffix("=yes")).collect();
    let wanted = [
        "writes_work",
        "writes_outputs",
        "writes_named_output",
        "writes_tmp",
        "writes_home",
        "writes_memory",
        "writes_allowed",
        "has_python",
    ];
    assert_eq!(yes, wanted, "{found:#?}");
    let none = "0".repeat(16);
    for line in [format!("CapEff:{none}"), format!("CapBnd:{none}"), "NoNewPrivs:1".to_owned()] {
        assert!(found.contains(&line), "{found:#?}");
    }
    assert!(fs::exists(cluster.files().join("mine")).unwrap());
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    assert_eq!(node["facts"]["isolation"], "private", "{node}");
}

#[test]
fn without_isolation_a_job_sees_its_node_and_the_node_says_so() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--isolation=none"));
    let outside = tempfile::NamedTempFile::new().unwrap();
    let found = found(&cluster, outside.path());
    // The test can tell the difference.
    for line in ["sees_tmp_of_others=yes", "sees_admin_token=yes", "sees_records=yes"] {
        assert!(found.iter().any(|found| found == line), "{found:#?}");
    }
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    assert_eq!(node["facts"]["isolation"], "none", "{node}");
    assert!(node["facts"]["not_isolated"].as_str().unwrap().contains("--isolation none"), "{node}");
}

#[test]
fn a_job_cannot_look_into_another_ones_processes() {
    needs("isolation");
    let cluster = Cluster::start();
    // By its length it is found.
    let mark = "sleep\x00600.04171";
    let victim = cluster.shell("exec sleep 600.04171");
    let pid = until("the other job runs", || processes_with(mark).first().copied());
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.contains("MLFLOW_TRACKING_TOKEN"));
    let look = format!(
        "cat /proc/*/environ | tr '\\0' '\\n' | grep ATELIER_JOB= | sort -u; kill -9 {pid} && echo killed; \
         kill -9 -1; echo closed"
    );
    let spy = cluster.shell(&look);
    cluster.completed(&spy);
    let log = String::from_utf8(cluster.log(&spy)).unwrap();
    assert_eq!(log.matches("ATELIER_JOB=").count(), 1, "{log}");
    assert!(log.ends_with("closed\n") && !log.contains("killed"), "{log}");
    assert_eq!(processes_with(mark), [pid]);
    cluster.atelier(["job", "cancel", &victim]).ok();
}

#[test]
fn a_job_cannot_change_what_it_is_given() {
    needs("isolation");
    let cluster = Cluster::start();
    // A second name of the stored file, whose owner the job is.
    cluster.write("given.txt", "as it was\n");
    let given = "inputs: {given: {type: uri_file, path: given.txt}}\n";
    let spoil = "chmod u+w ${{inputs.given}}; echo spoilt > ${{inputs.given}}; echo tried";
    cluster.write("spoil.yml", format!("command: {spoil}\n{given}"));
    cluster.write("read.yml", format!("command: cat ${{{{inputs.given}}}}\n{given}"));
    let run = |file: &str| {
        let made = cluster.atelier(["job", "create", "-f", file, "--query", "name", "-o", "tsv"]);
        let job = made.ok().word();
        cluster.completed(&job);
        String::from_utf8(cluster.log(&job)).unwrap()
    };
    let told = run("spoil.yml");
    assert!(told.contains("Read-only file system") && told.ends_with("tried\n"), "{told}");
    assert_eq!(run("read.yml"), "as it was\n");
}

/// The workspace's data in a folder of its own is as far away as the data folder; inputs that are linked from there are
/// not.
#[test]
fn a_job_does_not_see_the_workspaces_data_in_another_folder() {
    needs("isolation");
    let cluster = Cluster::empty();
    // Not in a folder for temporary files, of which a job sees nothing anyway.
    let elsewhere = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let own = fs::canonicalize(elsewhere.path()).unwrap();
    let file = cluster.write("storage.yml", format!("type: local\npath: {}\n", own.display()));
    stored_at(&cluster, Some(&file));
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    cluster.write("given/a.txt", "A\n");
    let yaml = format!(
        "command: cat ${{{{inputs.given}}}}/a.txt && ls -A {} 2>&- | wc -l\n\
         inputs: {{given: {{type: uri_folder, path: given}}}}\n",
        own.display()
    );
    cluster.write("job.yml", yaml);
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    cluster.completed(&job);
    assert!(own.join("workspaceblobstore").is_dir());
    assert_eq!(String::from_utf8(cluster.log(&job)).unwrap(), "A\n0\n");
}

#[test]
fn inputs_that_lie_on_another_file_system_are_reached() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    // In memory: what is linked there from the daemon's store is a symbolic link.
    let data = tempfile::tempdir_in("/dev/shm").unwrap();
    cluster.start_agent(&Agent::new("local").data(data.path()));
    cluster.write("given/deep/a.txt", "A\n");
    cluster.write("one.txt", "B\n");
    let yaml = "command: cat ${{inputs.folder}}/deep/a.txt ${{inputs.file}} && \
                ls -d $(dirname $(dirname ${{inputs.file}}))/../../../lease\n\
                inputs:\n  folder: {type: uri_folder, path: given}\n  \
                file: {type: uri_file, path: one.txt}\n";
    cluster.write("job.yml", yaml);
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    let ended = cluster.ended(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    // The last word is about the agent's own file, which is not there for a job.
    assert!(log.starts_with("A\nB\n") && log.contains("No such file"), "{log} {ended:?}");
}

/// Starts the daemon and makes a cluster that takes only nodes that keep jobs apart.
pub(crate) fn make_strict(cluster: &Cluster) {
    cluster.start_daemon();
    cluster.write(
        "strict.yml",
        "name: strict\ntype: amlcompute\nprovider: joined\nplacement: shared\ncontainment: strict\n",
    );
    let made = cluster.atelier(["compute", "create", "-f", "strict.yml", "-o", "json"]).ok().json();
    assert_eq!(made["containment"], "strict", "{made}");
}

#[test]
fn a_strict_cluster_refuses_a_node_that_isolates_nobody() {
    let cluster = Cluster::empty();
    make_strict(&cluster);
    let agent = Agent::new("open").compute("strict").with("--isolation=none");
    cluster.launch_agent(&agent);
    // It tries again, in case the machine or the cluster changes.
    until("the agent is told why it may not join", || {
        let said = cluster.agent("open", |process| process.printed());
        (said.contains("containment is strict") && said.contains("--isolation none")).then_some(())
    });
    let nodes = cluster.atelier(["node", "list", "-o", "json"]).ok().json();
    assert_eq!(nodes, serde_json::json!([]), "{nodes}");
}

#[test]
fn contained_jobs_come_to_no_node_that_has_lost_what_a_strict_cluster_asks_for() {
    for ability in ["cgroup", "isolation", "addresses"] {
        needs(ability);
    }
    let cluster = Cluster::empty();
    make_strict(&cluster);
    cluster.start_agent(&Agent::new("a").compute("strict"));
    let marks = cluster.shared_folder("marks");
    let on = |command: &str| cluster.create(&format!("{}compute: strict\n", job_yaml(command)));
    let wait = "touch begun; until [ -e go ]; do sleep 0.05; done";
    let first = on(&format!("cd {} && {wait}", marks.display()));
    until("it runs", || marks.join("begun").exists().then_some(()));
    cluster.agent("a", |agent| agent.kill());
    // Heard for the sake of the job, and given no other.
    cluster.launch_agent(&Agent::new("a").compute("strict").with("--isolation=none"));
    let node = || cluster.atelier(["node", "show", "a", "-o", "json"]).ok().json();
    let shown = until("the node is not fit", || {
        let shown = node();
        (shown["reason"].as_str()?.starts_with("it gets no jobs")).then_some(shown)
    });
    assert_eq!(shown["state"], "unusable", "{shown}");
    assert!(shown["reason"].as_str().unwrap().contains("--isolation none"), "{shown}");
    let second = on("true");
    let told = cluster.atelier(["job", "explain", &second]).ok();
    assert!(told.stdout().contains("a, which has that, gets no jobs"), "{told:?}");
    std::fs::write(marks.join("go"), "").unwrap();
    cluster.completed(&first);
    cluster.agent("a", |agent| agent.kill());
    cluster.start_agent(&Agent::new("a").compute("strict"));
    cluster.completed(&second);
}

#[test]
fn a_job_whose_node_has_a_folder_that_does_not_answer_can_be_cancelled() {
    needs("isolation");
    needs("fuse");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let share = tempfile::tempdir().unwrap();
    let data = share.path().join("data");
    fs::create_dir(&data).unwrap();
    let writable = format!("--writable={}", data.display());
    cluster.start_agent(&Agent::new("local").with(&writable));
    // Its server goes while the agent runs.
    let _hang = Hang::at(share.path());
    let job = cluster.create(&job_yaml("true"));
    let attempts = cluster.agent_data("local").join("attempts");
    until("its supervisor is there", || {
        let mut all = fs::read_dir(&attempts).unwrap();
        all.any(|one| one.unwrap().path().join("started.json").exists()).then_some(())
    });
    let asked = Instant::now();
    cluster.atelier(["job", "cancel", &job]).ok();
    assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);
    // Of itself it would give up after a minute.
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}
