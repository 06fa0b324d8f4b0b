//! Jobs on several nodes, with real processes that meet each other.

use atelier_proto::job::v1::JobStatus;

use crate::harness::{Agent, Cluster, History, PATIENCE, until};

/// So many nodes of one CPU each.
pub(crate) fn cluster(nodes: usize) -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for number in 0..nodes {
        cluster.start_agent(&Agent::new(&format!("n{number}")).cpus(1));
    }
    cluster
}

/// Checks what a member is told, meets the others at the address that all are given, and leaves a file
/// of its own and one that every member writes.
const MEET: &str = r#"
import os, pathlib, socket, time
var = os.environ
rank, size = int(var["RANK"]), int(var["WORLD_SIZE"])
assert size == int(var["AZUREML_NODE_COUNT"]) == 4, size
assert var["NODE_RANK"] == var["AZUREML_CR_NODE_RANK"] == str(rank)
assert var["LOCAL_RANK"] == "0"
hosts = var["AZ_BATCH_HOST_LIST"].split(",")
assert len(hosts) == size, hosts
master = (var["MASTER_ADDR"], int(var["MASTER_PORT"]))
assert var["MASTER_ADDR"] == var["AZ_BATCHAI_JOB_MASTER_NODE_IP"] == hosts[0]
assert var["AZ_BATCH_MASTER_NODE"] == "%s:%d" % master
assert 20000 <= master[1] < 32000, master
bound = time.monotonic() + 60
if rank == 0:
    server = socket.create_server(master)
    server.settimeout(60)
    seen = {0}
    while len(seen) < size:
        peer, _ = server.accept()
        with peer:
            seen.add(int(peer.makefile().readline()))
    assert seen == set(range(size)), seen
    print("met", sorted(seen))
else:
    while True:
        try:
            with socket.create_connection(master, timeout=5) as peer:
                peer.sendall(b"%d\n" % rank)
            break
        except OSError:
            assert time.monotonic() < bound, "rank 0 never listened"
            time.sleep(0.05)
out = pathlib.Path("outputs")
(out / ("rank%d.txt" % rank)).write_text(str(rank))
(out / "same.txt").write_text("of %d" % rank)
pathlib.Path(var["AZURE_ML_OUTPUT_parts"], "part%d.txt" % rank).write_text("x" * (rank + 1))
print("member", rank, "done")
"#;

/// A job on several nodes.
pub(crate) fn gang(members: u32, command: &str, more: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!("command: |\n{block}resources: {{instance_count: {members}}}\n{more}\n")
}

#[test]
fn members_meet_and_what_each_leaves_is_kept() {
    let cluster = cluster(4);
    cluster.write("code/meet.py", MEET);
    let yaml = gang(
        4,
        "python3 meet.py",
        "distribution: {type: pytorch}\ncode: code\noutputs: {parts: {type: uri_folder}}",
    );
    cluster.write("job.yml", yaml);
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    cluster.completed(&job);

    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    let members = shown["members"].as_array().unwrap();
    let mut nodes: Vec<&str> = members.iter().filter_map(|m| m["node"].as_str()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n0", "n1", "n2", "n3"]);
    for (rank, member) in members.iter().enumerate() {
        assert_eq!(member["rank"], rank);
        assert_eq!(member["exit_code"], 0);
    }
    let parts = &shown["outputs"]["parts"];
    assert_eq!((parts["files"].as_u64(), parts["bytes"].as_u64()), (Some(4), Some(10)), "{parts}");
    let listed = cluster.atelier(["job", "list"]).ok().stdout();
    assert!(listed.contains(" +3"), "{listed}");

    // Each member's log is its own.
    for rank in 0..4 {
        let number = rank.to_string();
        let log = cluster.atelier(["job", "stream", &job, "-q", "--rank", &number]).ok().stdout();
        let mine = format!("member {rank} done\n");
        let expected = if rank == 0 { format!("met [0, 1, 2, 3]\n{mine}") } else { mine };
        assert_eq!(log, expected);
    }
    assert_eq!(String::from_utf8_lossy(&cluster.log(&job)), "met [0, 1, 2, 3]\nmember 0 done\n");
    cluster
        .atelier(["job", "stream", &job, "-q", "--rank", "4"])
        .fails(1)
        .says(&["process 4", "it has 4, from 0 to 3"]);

    let to = cluster.files().join("got");
    let to = to.to_str().unwrap();
    cluster.atelier(["job", "download", &job, "--all", "--download-path", to]).ok();
    let found = |name: &str| {
        let mut folders = vec![std::path::PathBuf::from(to)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else if entry.file_name() == name {
                    return std::fs::read_to_string(entry.path()).unwrap();
                }
            }
        }
        panic!("{name} was not downloaded")
    };
    for rank in 0..4 {
        assert_eq!(found(&format!("rank{rank}.txt")), rank.to_string());
        assert_eq!(found(&format!("part{rank}.txt")).len(), rank + 1);
        let log = if rank == 0 { String::new() } else { format!("_process_{rank}") };
        assert!(found(&format!("std_log{log}.txt")).contains(&format!("member {rank} done")));
    }
    // All wrote it; the first member's counts, and is whole.
    assert_eq!(found("same.txt"), "of 0");
}

/// Trains a line in parallel: each member sees its own quarter of the points, and all agree on every
/// step over gloo.
const TRAIN: &str = r#"
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo", init_method="env://")
rank, size = dist.get_rank(), dist.get_world_size()
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
assert total.item() == size * (size + 1) / 2, total
torch.manual_seed(0)
x = torch.linspace(-1, 1, 64).unsqueeze(1)[rank::size]
y = 3 * x + 0.5
model = DistributedDataParallel(torch.nn.Linear(1, 1))
step = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(60):
    step.zero_grad()
    ((model(x) - y) ** 2).mean().backward()
    step.step()
found = torch.cat([p.detach().flatten() for p in model.parameters()])
others = [torch.zeros_like(found) for _ in range(size)]
dist.all_gather(others, found)
assert all(torch.equal(found, other) for other in others), others
print("agreed on %.2f x + %.2f" % tuple(found.tolist()))
dist.destroy_process_group()
"#;

#[test]
fn torch_members_train_together_over_gloo() {
    let Ok(python) = std::env::var("ATELIER_TEST_TORCH") else {
        panic!(
            "ATELIER_TEST_TORCH is to name a Python with PyTorch; leave this out with --skip torch_"
        )
    };
    let cluster = cluster(4);
    cluster.write("code/train.py", TRAIN);
    let more = "distribution: {type: pytorch, process_count_per_instance: 1}\ncode: code";
    cluster.write("job.yml", gang(4, &format!("{python} train.py"), more));
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    cluster.completed(&job);
    for rank in 0..4 {
        let number = rank.to_string();
        let log = cluster.atelier(["job", "stream", &job, "-q", "--rank", &number]).ok().stdout();
        assert!(log.contains("agreed on 3.00 x + 0.50\n"), "{log}");
    }
}

/// Two processes of a node meet where all are told, once those of the other job are there too.
const NEIGHBOURS: &str = r#"
import os, pathlib, socket, time
var, files = os.environ, pathlib.Path(os.environ["FILES"])
master = (var["MASTER_ADDR"], int(var["MASTER_PORT"]))
job = var["AZUREML_RUN_ID"]
bound = time.monotonic() + 60
def wait(name):
    while not (files / name).exists():
        assert time.monotonic() < bound, name
        time.sleep(0.05)
if var["RANK"] == "0":
    server = socket.create_server(master)
    server.settimeout(60)
    (files / ("listens-" + job)).touch()
    peer, _ = server.accept()
    assert peer.makefile().readline().strip() == job
else:
    wait("go")
    with socket.create_connection(master, timeout=60) as peer:
        peer.sendall(job.encode() + b"\n")
"#;

#[test]
fn jobs_of_one_node_that_run_beside_each_other_do_not_meet() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(2));
    cluster.write("code/meet.py", NEIGHBOURS);
    let more = format!(
        "distribution: {{type: pytorch, process_count_per_instance: 2}}\ncode: code\n\
         environment_variables: {{FILES: {}}}",
        cluster.files().display()
    );
    cluster.write("job.yml", gang(1, "python3 meet.py", &more));
    let create = ["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"];
    let jobs = [(); 2].map(|()| cluster.atelier(create).ok().word());
    for job in &jobs {
        let listens = cluster.files().join(format!("listens-{job}"));
        until("rank 0 listens", || listens.exists().then_some(()));
    }
    cluster.write("go", "");
    for job in &jobs {
        cluster.completed(job);
    }
}

/// What a process is told of its place.
const PLACE: &str = "echo I am $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE on $NODE_RANK of $AZUREML_NODE_COUNT";

#[test]
fn processes_of_a_node_have_ranks_and_logs_of_their_own() {
    let cluster = cluster(2);
    let more = "distribution: {type: pytorch, process_count_per_instance: 3}";
    // Each stays until its log has been read while it runs.
    let go = cluster.files().join("go");
    let command = format!("{PLACE}; while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let job = cluster.create(&gang(2, &command, more));
    let line = |rank: usize| format!("I am {rank} of 6, {} of 3 on {} of 2\n", rank % 3, rank / 3);
    for rank in [0, 4] {
        let number = rank.to_string();
        let stream = cluster.atelier(["job", "stream", &job, "-q", "--rank", &number]);
        stream.spawn().prints(&line(rank));
    }
    cluster.write("go", "");
    cluster.completed(&job);
    for rank in 0..6 {
        let number = rank.to_string();
        let log = cluster.atelier(["job", "stream", &job, "-q", "--rank", &number]).ok().stdout();
        assert_eq!(log, line(rank));
    }
    let artifacts = cluster.rpc().artifacts(&job);
    for log in ["std_log", "std_log_process_1", "std_log_process_5"] {
        let path = format!("user_logs/{log}.txt");
        assert!(artifacts.contains(&path), "{artifacts:?}");
    }
    let one_more = ["job", "stream", &job, "-q", "--rank", "6"];
    cluster.atelier(one_more).fails(1).says(&["process 6", "it has 6, from 0 to 5"]);
}

#[test]
fn the_process_that_fails_is_named_and_ends_the_others() {
    let cluster = cluster(2);
    let more = "distribution: {type: pytorch, process_count_per_instance: 2}";
    let started = cluster.files().join("started");
    let started = started.display();
    let command = format!(
        "mkdir -p {started}; touch {started}/$RANK; echo rank $RANK; \
         while [ $RANK != 3 ] || [ $(ls {started} | wc -l) != 4 ]; do sleep 0.05; done; exit 3"
    );
    let job = cluster.create(&gang(2, &command, more));
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    let message = ended.error.clone().unwrap_or_default().message;
    let node = &ended.members[1].node;
    let expected = format!(
        "member 1 on node {node} failed: the process of rank 3 ended with exit code 3; see what it wrote: \
         atelier job stream {job} --rank 3"
    );
    assert_eq!(message, expected);
}

#[test]
fn a_member_that_fails_ends_the_others() {
    let cluster = cluster(3);
    let started = cluster.files().join("started");
    let started = started.display();
    // The last one fails once all have started; the others would go on for ever.
    let command = format!(
        "mkdir -p {started}; touch {started}/$AZUREML_CR_NODE_RANK; \
         while [ $AZUREML_CR_NODE_RANK != 2 ] || [ $(ls {started} | wc -l) != 3 ]; do sleep 0.05; \
         done; exit 3"
    );
    let job = cluster.create(&gang(3, &command, ""));
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    let node = &ended.members[2].node;
    let error = ended.error.clone().unwrap_or_default();
    assert_eq!(
        error.message,
        format!("member 2 on node {node} failed: the command ended with exit code 3")
    );
    assert_eq!(ended.members[2].exit_code, Some(3));
    let events = cluster.rpc().events(&job).unwrap();
    let said = events.iter().find(|event| event.kind == "MemberEnded").unwrap();
    assert!(said.message.contains("the others are asked to stop"), "{events:?}");
    // Their nodes are free again.
    cluster.completed(&cluster.create(&gang(3, "true", "")));
}

#[test]
fn a_gang_waits_for_all_of_its_nodes_and_too_large_a_one_is_refused() {
    let cluster = cluster(4);
    cluster.atelier(["job", "create", "-f", "-"]).stdin(gang(5, "true", "")).fails(1).says(&[
        "5 nodes",
        "'local'",
        "4 such nodes at most",
        "resources.instance_count",
    ]);

    let go = cluster.files().join("go");
    let one = cluster.shell(&format!("while [ ! -e {} ]; do sleep 0.05; done", go.display()));
    let busy = cluster.running(&one).node;
    let marks = cluster.shared_folder("marks");
    let all =
        cluster.create(&gang(4, &format!("touch {}/$AZUREML_CR_NODE_RANK", marks.display()), ""));
    // A later and smaller job runs on what is free, which shows that rounds of placement went by.
    let small = cluster.create("command: 'true'\nlimits: {timeout: 1}\n");
    until("the small job is decided on", || {
        let job = cluster.rpc().job(&small).ok()?;
        (job.status().is_final() || !job.wait_reason.is_empty()).then_some(())
    });
    let waits = cluster.rpc().job(&all).unwrap();
    assert_eq!((waits.status(), waits.attempt), (JobStatus::Queued, 0), "{waits:?}");
    assert!(!waits.wait_reason.is_empty());
    assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 0, "a part of it was started");
    std::fs::write(&go, "").unwrap();
    let ended = cluster.completed(&all);
    assert!(ended.members.iter().any(|member| member.node == busy));
    assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 4);
}

#[test]
fn a_node_that_dies_takes_its_gang_with_it_and_the_next_attempt_goes_elsewhere() {
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().serve =
        ["--lease", "4", "--grace", "1"].map(str::to_owned).into();
    cluster.start_daemon();
    for number in 0..3 {
        cluster.start_agent(&Agent::new(&format!("n{number}")).cpus(1));
    }
    let flag = cluster.files().join("second");
    let job = cluster.create(&gang(
        2,
        &format!("while [ ! -e {} ]; do sleep 0.05; done", flag.display()),
        "",
    ));
    let first = cluster.running(&job);
    let lost = first.members[1].node.clone();
    cluster.agent(&lost, |agent| agent.kill());
    let again = until("the job is on other nodes", || {
        let job = cluster.rpc().job(&job).ok()?;
        (job.attempt == 2 && job.status() == JobStatus::Running).then_some(job)
    });
    assert!(again.members.iter().all(|member| member.node != lost), "{again:?}");
    std::fs::write(&flag, "").unwrap();
    cluster.completed(&job);
}

/// The daemon is killed while a gang runs; it goes on, and its end is known.
#[test]
fn a_gang_outlives_the_daemon_and_may_be_cancelled_whole() {
    let cluster = cluster(3);
    let history = History::of(&cluster);
    let job = cluster.create(&gang(3, &history.command(2.0), ""));
    cluster.running(&job);
    cluster.restart_daemon_hard();
    let ended = cluster.completed(&job);
    assert_eq!((ended.attempt, ended.members.len()), (1, 3));

    let endless = cluster.create(&gang(3, "sleep 600", ""));
    cluster.running(&endless);
    cluster.atelier(["job", "cancel", &endless]).ok();
    cluster.rpc().reaches(&endless, &[JobStatus::Canceled], PATIENCE);
    until("all nodes are free", || {
        let nodes = cluster.atelier(["node", "list", "-o", "json"]).ok().json();
        nodes.as_array()?.iter().all(|node| node["state"] == "idle").then_some(())
    });
}

/// Two members that write the same file of a named output leave one of the two, and it is whole.
#[test]
fn of_one_path_of_a_named_output_the_file_that_lies_there_is_told() {
    let cluster = cluster(2);
    let command =
        "head -c $((1000 * (AZUREML_CR_NODE_RANK + 1))) /dev/zero > ${{outputs.out}}/same";
    let job = cluster.create(&gang(2, command, "outputs: {out: {type: uri_folder}}"));
    cluster.completed(&job);
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    let told = shown["outputs"]["out"]["bytes"].as_u64().unwrap();
    cluster.atelier(["job", "download", &job, "--all", "--download-path", "got"]).ok();
    let found = std::process::Command::new("find")
        .arg(cluster.files().join("got"))
        .args(["-name", "same", "-printf", "%s\n"])
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    // Whoever was last: the download compared it with what the manifest says.
    assert!(found == "1000\n" || found == "2000\n", "{found}");
    assert!(told >= found.trim().parse().unwrap(), "{told} are told, {found}");
}
