//! How fast a mounted input is read: against the same file fetched through the same gateway, and against a local
//! file.

use std::fs;
use std::process::Stdio;

use atelier_proto::job::v1 as pb;

use crate::cluster::{Cluster, runtime};
use crate::figures::{rate, share};

const MIB: usize = 1 << 20;
/// Of one file.
const SIZE: usize = 512 * MIB;
const ROUNDS: usize = 5;

/// Reads its input once from the gateway, once more, and then here and there; the same of a local copy.
const READS: &str = r#"exec python3 -c '
import os, random, sys, time
def sequential(path):
    file, begun, size = os.open(path, os.O_RDONLY), time.monotonic(), 0
    buffer = bytearray(1 << 20)
    while (read := os.readv(file, [buffer])) > 0:
        size += read
    os.close(file)
    return size / (time.monotonic() - begun)
path = sys.argv[1]
print("cold", sequential(path))
print("warm", max(sequential(path) for _ in range(5)))
copy = "copy"
with open(path, "rb") as source, open(copy, "wb") as target:
    while piece := source.read(1 << 20):
        target.write(piece)
print("local", max(sequential(copy) for _ in range(5)))
file = os.open(path, os.O_RDONLY)
size, count, end = os.fstat(file).st_size, 0, time.monotonic() + 2
places = [random.randrange(size >> 12) << 12 for _ in range(100_000)]
while time.monotonic() < end:
    for _ in range(1000):
        count += 1
        os.pread(file, 4096, places[count % len(places)])
print("random", count / 2)
os.remove(copy)
' ${{inputs.file}}"#;

/// A large file over a mount: cold, against its download through the same gateway; warm, against a local file's; and
/// how often a second a piece of it is read, anywhere in it.
pub(crate) fn mounts() {
    let cluster = Cluster::start_with(2, &["--no-shared-store"]);
    let why = cluster.fact("no_mounts");
    if !why.is_empty() {
        println!("mounts: no figure, this machine mounts nothing: {why}");
        return;
    }
    let store = cluster.file("unused", "").with_file_name("store");
    fs::create_dir(&store).unwrap();
    let datastore = format!("name: data\ntype: local\npath: {}\n", store.display());
    let datastore = cluster.file("store.yml", &datastore);
    assert!(
        cluster
            .cli()
            .args(["datastore", "create", "-f"])
            .arg(datastore)
            .status()
            .unwrap()
            .success()
    );
    let bytes: Vec<u8> =
        (0..SIZE as u32 / 4).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let (mut cold, mut warm, mut again, mut random) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        // Each under a name of its own, so that neither finds it in the node's cache.
        let name = |mode: &str| format!("{mode}-{round}");
        for mode in ["download", "mount"] {
            fs::write(store.join(name(mode)), &bytes).unwrap();
        }
        let fetched = job(&cluster, &name("download"), "download", "true");
        let download = SIZE as f64 / preparing(&cluster, &fetched);
        let mounted = job(&cluster, &name("mount"), "ro_mount", READS);
        let figures = log(&cluster, &mounted);
        let figure = |name: &str| of(&figures, name);
        cold.push(figure("cold") / download);
        warm.push(figure("warm") / figure("local"));
        random.push(figure("random"));
        println!(
            "  round {round}: download {:.0} MB/s, cold {:.0} MB/s, warm {:.0} MB/s, local {:.0} MB/s",
            download / 1e6,
            figure("cold") / 1e6,
            figure("warm") / 1e6,
            figure("local") / 1e6
        );
        let next = log(&cluster, &job(&cluster, &name("mount"), "ro_mount", READS));
        again.push(of(&next, "warm") / of(&next, "local"));
        for mode in ["download", "mount"] {
            fs::remove_file(store.join(name(mode))).unwrap();
        }
    }
    share("a mounted file read for the first time, of its download (bar 0.7)", cold);
    share("a mounted file read again, of a local one (bar 0.9)", warm);
    share("the same in the node's next job", again);
    rate("reads of 4 KiB anywhere in a mounted file (bar 50000)", random);
}

fn of(figures: &str, name: &str) -> f64 {
    let found = figures.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no figure '{name}': {figures}"))
}

/// Runs a job with a file as its input.
fn job(cluster: &Cluster, file: &str, mode: &str, command: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    let yaml = format!(
        "command: |\n{block}inputs: {{file: {{type: uri_file, mode: {mode}, path: \
         'azureml://datastores/data/paths/{file}'}}}}\n"
    );
    let yaml = cluster.file("job.yml", &yaml);
    let mut create = cluster.cli();
    create.args(["job", "create", "--query", "name", "-o", "json", "-f"]).arg(yaml);
    let name = create.stdout(Stdio::piped()).output().unwrap().stdout;
    let name = String::from_utf8(name).unwrap().trim().trim_matches('"').to_owned();
    let ended = cluster.cli().args(["job", "stream", "-q", &name]).status().unwrap();
    assert!(ended.success(), "{mode} {name}: {}", log(cluster, &name));
    name
}

fn log(cluster: &Cluster, job: &str) -> String {
    let mut stream = cluster.cli();
    let log = stream.args(["job", "stream", "-q", job]).stdout(Stdio::piped()).output().unwrap();
    String::from_utf8_lossy(&log.stdout).into_owned()
}

/// Seconds between the first word of a job's preparation and its command's start.
fn preparing(cluster: &Cluster, job: &str) -> f64 {
    runtime().block_on(async {
        let request = pb::ListEventsRequest { job: job.to_owned(), after_seq: 0, limit: 1000 };
        let events = cluster.jobs().await.list_events(request).await.unwrap().into_inner().events;
        let at = |status: pb::JobStatus| {
            events.iter().find(|event| event.status() == status).unwrap().at_ms
        };
        (at(pb::JobStatus::Running) - at(pb::JobStatus::Preparing)) as f64 / 1e3
    })
}
