//! What jobs read and write of a node's disk.

use crate::harness::{Agent, Cluster, Disk, needs};

const MIB: f64 = (1 << 20) as f64;

/// Writes six MiB past the cache, reads them so, and prints in how many seconds each was done.
const WORK: &str = r#"
import mmap, os, time
def timed(name, act):
    began = time.monotonic()
    act()
    print(name, time.monotonic() - began)
block = mmap.mmap(-1, 1 << 20)
def write():
    file = os.open("file", os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600)
    for _ in range(6):
        os.write(file, block)
def read():
    file = os.open("file", os.O_RDONLY | os.O_DIRECT)
    while os.readv(file, [block]):
        pass
timed("write", write)
timed("read", read)
"#;

/// Bytes a second: written, read.
fn rates(cluster: &Cluster, compute: &str) -> (f64, f64) {
    cluster.write("code/work.py", WORK);
    let job = format!("command: python3 work.py\ncode: code\ncompute: {compute}\n");
    let job = cluster.create(&job);
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    let rate = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        6.0 * MIB / line.trim().parse::<f64>().unwrap()
    };
    (rate("write"), rate("read"))
}

#[test]
fn a_job_reads_and_writes_no_faster_than_it_may() {
    needs("disk-rate");
    let disk = Disk::create("64M");
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().serve =
        ["--compute", "local", "--compute", "open"].map(str::to_owned).to_vec();
    cluster.start_daemon();
    let at = |name: &str| Agent::new(name).data(&disk.path().join(name)).with("--disk-reserve=0");
    cluster.start_agent(&at("held").with("--job-io=2MiB"));
    cluster.start_agent(&at("free").compute("open"));
    let facts = cluster.atelier(["node", "show", "held", "-o", "json"]).ok().json();
    assert!(facts["facts"]["limited"].as_str().unwrap().contains("io"), "{facts}");
    let (write, read) = rates(&cluster, "local");
    assert!(write < 1.5 * 2.0 * MIB && read < 1.5 * 2.0 * MIB, "{write} {read}");
    // The disk itself is faster.
    let (free_write, free_read) = rates(&cluster, "open");
    assert!(free_write > 1.5 * write && free_read > 1.5 * read, "{free_write} {free_read}");
}

#[test]
fn an_agent_that_cannot_hold_jobs_to_a_rate_does_not_start() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let token = cluster.data().join("agent.token");
    let arguments =
        ["agent", "--node", "local", "--job-io", "1MiB", "--data-dir"].map(AsRef::as_ref);
    let server = cluster.server();
    let more = [memory.path().as_os_str(), "--token-file".as_ref(), token.as_os_str()];
    let more = more.into_iter().chain(["--server".as_ref(), server.as_ref()]);
    cluster.atelier(arguments.into_iter().chain(more)).fails(1).says(&[
        "cannot hold jobs to a rate",
        "on no one disk",
        "--job-io",
    ]);
}
