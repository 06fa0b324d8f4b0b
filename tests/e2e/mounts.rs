//! Inputs that are mounted on nodes which do not share the daemon's storage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atelier_proto::job::v1::JobStatus;
use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::harness::{Agent, Cluster, Process, needs, until};

const MIB: usize = 1 << 20;

fn agent() -> Agent {
    Agent::new("local").with("--no-shared-store")
}

/// A cluster with a datastore `data`, whose folder is given.
fn cluster(agent: &Agent) -> (Cluster, PathBuf) {
    needs("fuse");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let store = fs::canonicalize(cluster.path()).unwrap().join("data-store");
    fs::create_dir_all(store.join("set/more")).unwrap();
    let yaml = format!("name: data\ntype: local\npath: {}\n", store.display());
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
    cluster.start_agent(agent);
    (cluster, store)
}

/// Bytes that are nowhere the same.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..length.div_ceil(4)).map(next).flat_map(u32::to_le_bytes).take(length).collect()
}

/// A job with the folder `set` as its input.
fn job(command: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "command: |\n{block}inputs: {{set: {{type: uri_folder, path: \
         'azureml://datastores/data/paths/set'}}}}\n"
    )
}

fn log(cluster: &Cluster, job: &str) -> String {
    String::from_utf8(cluster.log(job)).unwrap()
}

/// What is mounted below the node's folder, as the agent sees it.
fn mounts(cluster: &Cluster) -> Vec<String> {
    let pid = cluster.agent("local", |agent| agent.pid());
    let text = fs::read_to_string(format!("/proc/{}/mounts", pid.as_raw_nonzero())).unwrap();
    let folder = cluster.agent_data("local").canonicalize().unwrap();
    let ours =
        |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at).starts_with(&folder));
    text.lines().filter(ours).map(str::to_owned).collect()
}

/// The server of a job's inputs.
fn server(cluster: &Cluster) -> Pid {
    let attempts = cluster.agent_data("local").join("attempts");
    until("somebody serves the job's inputs", || {
        let attempt = fs::read_dir(&attempts)
            .ok()?
            .find_map(|entry| fs::read(entry.ok()?.path().join("mounts.json")).ok())?;
        let record: serde_json::Value = serde_json::from_slice(&attempt).ok()?;
        Pid::from_raw(record["pid"].as_i64()? as i32)
    })
}

#[track_caller]
fn nothing_is_left(cluster: &Cluster) {
    until("nothing is mounted", || mounts(cluster).is_empty().then_some(()));
}

fn whole_files(cluster: &Cluster) -> Vec<u64> {
    let parts = fs::read_dir(cluster.agent_data("local").join("cache/files")).unwrap().flatten();
    let files = parts.flat_map(|part| fs::read_dir(part.path()).unwrap().flatten());
    let mut sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
    sizes.sort_unstable();
    sizes
}

#[test]
fn inputs_are_mounted_and_kept_once_they_are_read() {
    let (cluster, store) = cluster(&agent());
    let large = bytes(21 * MIB + 17);
    fs::write(store.join("set/large.bin"), &large).unwrap();
    fs::write(store.join("set/more/small.txt"), "small\n").unwrap();
    fs::write(store.join("set/empty"), "").unwrap();
    fs::write(store.join("set/unread.bin"), bytes(9 * MIB)).unwrap();
    fs::write(cluster.path().join("large"), &large).unwrap();
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    assert_eq!(node["facts"]["mounts"], "fuse", "{node}");

    let name = cluster.create(&job(
        "cd ${{inputs.set}}\nstat -f -c %T .\nfind . | sort\nstat -c '%n %s %A' large.bin empty\n\
         sha256sum large.bin | cut -d' ' -f1\ncat more/small.txt empty\n\
         tail -c 5 large.bin | od -An -tx1\ntouch new 2>/dev/null || echo 'read only'\n\
         rm -f large.bin 2>/dev/null || echo kept\ntest -e nothing || echo nothing",
    ));
    cluster.completed(&name);
    let sum = sha256(&cluster, "large");
    let end: String = large[large.len() - 5..].iter().map(|byte| format!(" {byte:02x}")).collect();
    let expected = format!(
        "fuseblk\n.\n./empty\n./large.bin\n./more\n./more/small.txt\n./unread.bin\n\
         large.bin {} -r--r--r--\nempty 0 -r--r--r--\n{sum}\nsmall\n{end}\nread only\nkept\nnothing\n",
        large.len()
    );
    assert_eq!(log(&cluster, &name).replace("fuse\n", "fuseblk\n"), expected);
    nothing_is_left(&cluster);

    // A single file has its own name; and a copy is made of what is kept.
    let single = "inputs: {f: {type: uri_file, path: 'azureml://datastores/data/paths/set/large.bin', \
                  mode: MODE}}\ncommand: 'sha256sum ${{inputs.f}}; basename ${{inputs.f}}'\n";
    for mode in ["ro_mount", "download"] {
        let name = cluster.create(&single.replace("MODE", mode));
        cluster.completed(&name);
        let log = log(&cluster, &name);
        assert!(log.starts_with(&sum) && log.ends_with("\nlarge.bin\n"), "{mode}: {log}");
    }
    nothing_is_left(&cluster);
    // What was read whole is a file like any other, and what was not read was not fetched.
    assert_eq!(whole_files(&cluster), [6, large.len() as u64]);
    let blocks = fs::read_dir(cluster.agent_data("local").join("cache/blocks")).unwrap().flatten();
    let blocks = blocks.flat_map(|part| fs::read_dir(part.path()).unwrap().flatten());
    assert_eq!(blocks.count(), 0);
}

fn sha256(cluster: &Cluster, file: &str) -> String {
    let output = std::process::Command::new("sha256sum").arg(cluster.path().join(file)).output();
    String::from_utf8(output.unwrap().stdout).unwrap()[..64].to_owned()
}

/// A job that has read its input's beginning, and reads on once the file is there.
fn waits_for(go: &Path, then: &str) -> String {
    job(&format!(
        "f=${{{{inputs.set}}}}/large.bin\nhead -c 1000 $f | wc -c\necho begun\n\
         while [ ! -e {} ]; do sleep 0.05; done\n{then}",
        go.display()
    ))
}

#[track_caller]
fn has_begun(cluster: &Cluster, job: &str) {
    cluster.atelier(["job", "stream", job, "-q"]).spawn().prints("begun");
}

fn is_over(cluster: &Cluster) -> bool {
    let attempts = fs::read_dir(cluster.agent_data("local").join("attempts")).unwrap().flatten();
    attempts.into_iter().any(|attempt| attempt.path().join("exited.json").exists())
}

#[test]
fn a_job_reads_on_while_its_agent_is_dead() {
    let agent = agent();
    let (cluster, store) = cluster(&agent);
    fs::write(store.join("set/large.bin"), bytes(40 * MIB)).unwrap();
    let go = cluster.files().join("go");
    let name = cluster.create(&waits_for(&go, "sha256sum $f"));
    has_begun(&cluster, &name);
    cluster.agent("local", Process::kill);
    fs::write(&go, "").unwrap();
    until("the job has ended by itself", || is_over(&cluster).then_some(()));
    cluster.start_agent(&agent);
    assert_eq!(cluster.completed(&name).attempt, 1);
    let sum = sha256(&cluster, "data-store/set/large.bin");
    assert!(log(&cluster, &name).contains(&sum));
    nothing_is_left(&cluster);
}

#[test]
fn a_job_whose_server_was_killed_runs_again() {
    let agent = agent();
    let (cluster, store) = cluster(&agent);
    fs::write(store.join("set/large.bin"), bytes(40 * MIB)).unwrap();
    let go = cluster.files().join("go");
    let name = cluster.create(&waits_for(&go, "sha256sum $f || exit 7"));
    has_begun(&cluster, &name);
    rustix::process::kill_process(server(&cluster), Signal::KILL).unwrap();
    // The agent is gone too: its next one takes away what nobody serves.
    cluster.agent("local", Process::kill);
    cluster.start_agent(&agent);
    nothing_is_left(&cluster);
    fs::write(&go, "").unwrap();
    assert_eq!(cluster.completed(&name).attempt, 2);
    let events = cluster.rpc().events(&name).unwrap();
    let why = "served the job's mounted inputs was killed";
    assert!(events.iter().any(|event| event.message.contains(why)), "{events:#?}");
    nothing_is_left(&cluster);
}

#[test]
fn a_job_that_waits_for_a_daemon_is_ended_in_time() {
    let (cluster, store) = cluster(&agent());
    fs::write(store.join("set/large.bin"), bytes(40 * MIB)).unwrap();
    let go = cluster.files().join("go");
    // Past the page cache, where not even SIGKILL ends a read that waits.
    let hangs =
        "trap '' TERM\ndd if=$f of=/dev/null iflag=direct bs=1M skip=30 count=1 || true\necho read";
    let yaml = format!("{}limits: {{timeout: 4}}\n", waits_for(&go, hangs));
    let name = cluster.create(&yaml);
    has_begun(&cluster, &name);
    cluster.daemon(|daemon| daemon.freeze());
    fs::write(&go, "").unwrap();
    let begun = Instant::now();
    until("the job is ended", || is_over(&cluster).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    cluster.daemon(|daemon| daemon.signal(Signal::CONT));
    assert_eq!(cluster.ended(&name).status(), JobStatus::Canceled);
    let log = log(&cluster, &name);
    assert!(!log.contains("read\n"), "{log}");
    nothing_is_left(&cluster);
}

#[test]
fn a_read_waits_for_the_daemon_and_then_fails_with_the_reason() {
    let (cluster, store) = cluster(&agent().with("--mount-patience=3s"));
    fs::write(store.join("set/large.bin"), bytes(40 * MIB)).unwrap();
    let go = cluster.files().join("go");
    let patient = cluster.create(&waits_for(&go, "sha256sum $f || exit 7"));
    has_begun(&cluster, &patient);
    cluster.daemon(Process::kill);
    fs::write(&go, "").unwrap();
    until("the job has failed", || is_over(&cluster).then_some(()));
    cluster.start_daemon();
    // It is not the job's fault.
    assert_eq!(cluster.completed(&patient).attempt, 2);
    let events = cluster.rpc().events(&patient).unwrap();
    let why = "'data/set/large.bin' could not be read for";
    assert!(events.iter().any(|event| event.message.contains(why)), "{events:#?}");
    nothing_is_left(&cluster);
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_an_error() {
    let (cluster, store) = cluster(&agent());
    fs::write(store.join("set/large.bin"), bytes(40 * MIB)).unwrap();
    let go = cluster.files().join("go");
    let name = cluster.create(&waits_for(&go, "sha256sum $f || exit 7"));
    has_begun(&cluster, &name);
    fs::remove_file(store.join("set/large.bin")).unwrap();
    fs::write(store.join("set/large.bin"), vec![1; 40 * MIB]).unwrap();
    fs::write(&go, "").unwrap();
    let job = cluster.ended(&name);
    assert_eq!((job.status(), job.attempt), (JobStatus::Failed, 1));
    let error = job.error.unwrap();
    assert!(error.message.contains("'data/set/large.bin' was changed or removed"), "{error:?}");
}

#[test]
fn what_jobs_read_may_be_larger_than_the_nodes_cache() {
    let (cluster, store) = cluster(&agent().with("--data-cache=24MiB"));
    fs::write(store.join("set/large.bin"), bytes(100 * MIB)).unwrap();
    let name = cluster.create(&job(
        "for n in 1 2; do dd if=${{inputs.set}}/large.bin bs=1M status=none | sha256sum | cut -d' ' -f1; done",
    ));
    cluster.completed(&name);
    let sum = sha256(&cluster, "data-store/set/large.bin");
    assert_eq!(log(&cluster, &name), format!("{sum}\n{sum}\n"));
    let cache = cluster.atelier(["node", "cache", "show", "local", "-o", "json"]).ok().json();
    let inputs =
        cache["entries"].as_array().unwrap().iter().find(|entry| entry["kind"] == "inputs");
    let bytes = inputs.map_or(0, |inputs| inputs["bytes"].as_u64().unwrap());
    assert!(bytes <= 40 * MIB as u64, "{cache}");
}

#[test]
fn a_node_that_cannot_mount_fetches_and_says_why() {
    let (cluster, store) = cluster(&agent().with("--mounts=none"));
    fs::write(store.join("set/a.txt"), "a\n").unwrap();
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    let why = "the agent runs with --mounts none";
    assert_eq!(
        (&node["facts"]["mounts"], &node["facts"]["no_mounts"]),
        (&json!("none"), &json!(why))
    );
    let name = cluster.create(&job("cat ${{inputs.set}}/a.txt"));
    cluster.completed(&name);
    let notice = "inputs are fetched before the job starts, and not mounted: ";
    assert_eq!(log(&cluster, &name), format!("{notice}{why}\na\n"));
}

#[test]
fn containers_see_what_is_mounted() {
    needs("containers");
    let registry = crate::harness::Registry::start();
    let (cluster, store) = cluster(&registry.agent("local").with("--no-shared-store"));
    fs::write(store.join("set/large.bin"), bytes(21 * MIB)).unwrap();
    let name = cluster.create(&format!(
        "{}environment: {{image: {}}}\n",
        job("wc -c < ${{inputs.set}}/large.bin\ngrep -c ' fuse ' /proc/self/mounts"),
        registry.shell()
    ));
    cluster.completed(&name);
    let log = log(&cluster, &name);
    assert!(log.ends_with(&format!("\n{}\n1\n", 21 * MIB)), "{log}");
    nothing_is_left(&cluster);
}
