//! Jobs whose processes the environment's `mpirun` starts on all nodes.

use std::path::PathBuf;
use std::process::Command;

use atelier_proto::job::v1::{Job, JobStatus};

use crate::gangs::{cluster, gang};
use crate::harness::{Cluster, PATIENCE, Registry, needs};
use crate::secrets::set;

fn mpi(processes: u32) -> String {
    // Where there is one machine there may be no other network.
    format!(
        "distribution: {{type: mpi, process_count_per_instance: {processes}}}\n\
         environment_variables: {{OMPI_MCA_btl_tcp_if_include: lo, OMPI_MCA_oob_tcp_if_include: lo}}\n"
    )
}

/// The log of one of the job's processes.
fn log_of(cluster: &Cluster, job: &str, rank: u32) -> String {
    let rank = rank.to_string();
    cluster.atelier(["job", "stream", job, "-q", "--rank", &rank]).ok().stdout()
}

fn message(job: &Job) -> String {
    job.error.clone().unwrap_or_default().message
}

/// Adds up over all processes, by the library itself. Open MPI's constants have names, and MPICH's are numbers.
const SUM: &str = r#"
import ctypes, os
mpi = ctypes.CDLL(os.environ.get("MPI_LIBRARY", "libmpi.so.40"), mode=ctypes.RTLD_GLOBAL)
try:
    known = lambda name: ctypes.byref(ctypes.c_char.in_dll(mpi, name))
    world, number, add = known("ompi_mpi_comm_world"), known("ompi_mpi_int"), known("ompi_mpi_op_sum")
    names = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
except ValueError:
    world, number, add = 0x44000000, 0x4c000405, 0x58000003
    names = "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"
rank, size, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
mpi.MPI_Init(None, None)
mpi.MPI_Comm_rank(world, ctypes.byref(rank))
mpi.MPI_Comm_size(world, ctypes.byref(size))
own = ctypes.c_int(rank.value + 1)
mpi.MPI_Allreduce(ctypes.byref(own), ctypes.byref(total), 1, number, add, world)
told, local, locals = (os.environ[name] for name in names)
assert told == str(rank.value), told
assert os.getcwd() == os.environ["AZUREML_CR_EXECUTION_WORKING_DIR_PATH"], os.getcwd()
print("rank %d of %d, %s of %s in member %s: sum %d\n" % (
    rank.value, size.value, local, locals, os.environ["AZUREML_CR_NODE_RANK"], total.value), end="")
if "TOKEN" in os.environ:
    print("token " + os.environ["TOKEN"])
open("outputs/rank%d.txt" % rank.value, "w").write("x")
mpi.MPI_Finalize()
"#;

/// Has the processes add up on so many nodes, two on each.
fn adds_up(cluster: &Cluster, nodes: u32, distribution: &str) {
    cluster.write("code/sum.py", SUM);
    let more = format!("{distribution}code: code\n");
    cluster.write("job.yml", gang(nodes, "python3 sum.py", &more));
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    let ended = cluster.ended(&job);
    assert_eq!(ended.status(), JobStatus::Completed, "{ended:?}\n{}", log_of(cluster, &job, 0));
    let size = nodes * 2;
    // What each process wrote is kept, wherever it ran, and what it printed is in a log of its own.
    let listed = cluster.rpc().artifacts(&job);
    for rank in 0..size {
        let (local, member, sum) = (rank % 2, rank / 2, size * (size + 1) / 2);
        let said = format!("rank {rank} of {size}, {local} of 2 in member {member}: sum {sum}\n");
        let token = if distribution.contains("TOKEN") { "token ***\n" } else { "" };
        assert_eq!(log_of(cluster, &job, rank), said + token);
        let log = if rank == 0 { String::new() } else { format!("_process_{rank}") };
        for name in [format!("outputs/rank{rank}.txt"), format!("user_logs/std_log{log}.txt")] {
            assert!(listed.contains(&name), "{name}: {listed:?}");
        }
    }
}

#[test]
fn mpirun_starts_the_processes_of_a_job_for_mpi_on_all_of_its_nodes() {
    let cluster = cluster(3);
    set(&cluster, "hf", "the value of hf");
    // Its processes have a secret on all nodes, and no log has it.
    let with_secret = mpi(2).replace("lo}", "lo, TOKEN: 'azureml:secrets/hf'}");
    for (nodes, distribution) in [(1, mpi(2)), (3, with_secret)] {
        adds_up(&cluster, nodes, &distribution);
    }
}

/// Copies programs to `$1/bin`, and what they need, as well as this program does, to where they have it.
const COPY_PROGRAMS: &str = r#"
set -eu
root=$1 own=$2 && shift 2
cp "$@" "$root/bin/"
for file in $(ldd "$own" "$@" | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
  mkdir -p "$root${file%/*}"
  cp -L "$file" "$root$file"
done
"#;

/// An image's MPI is as good as a node's.
#[test]
fn mpich_starts_the_processes_of_a_job_in_containers_on_all_of_its_nodes() {
    needs("containers");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for name in ["n0", "n1"] {
        cluster.start_agent(&registry.agent(name).cpus(1));
    }
    let programs = mpi_folder("ATELIER_TEST_MPICH").join("bin");
    let programs = ["mpirun", "hydra_pmi_proxy"].map(|name| programs.join(name));
    let mut copy = Command::new("sh");
    copy.args(["-c", COPY_PROGRAMS, "sh"]).arg(registry.shell_root());
    copy.arg(env!("CARGO_BIN_EXE_atelier")).args(programs);
    assert!(copy.status().unwrap().success());
    let image = registry.name("team/mpich:5");
    registry.push(&image, &registry.shell_root());
    let more = format!(
        "environment: {{image: {image}}}\ndistribution: {{type: mpi, process_count_per_instance: 2}}\n"
    );
    let command = "echo rank $PMI_RANK of $PMI_SIZE in $AZUREML_CR_NODE_RANK";
    let job = cluster.create(&gang(2, command, &more));
    cluster.completed(&job);
    for rank in 0..4 {
        let (log, said) =
            (log_of(&cluster, &job, rank), format!("rank {rank} of 4 in {}\n", rank / 2));
        assert!(log.ends_with(&said) && log.matches("rank").count() == 1, "{log}");
    }
}

/// Where tests have been told that an MPI is.
fn mpi_folder(variable: &str) -> PathBuf {
    let Ok(folder) = std::env::var(variable) else {
        panic!("{variable} is to name a folder with bin/mpirun and lib/libmpi.so")
    };
    folder.into()
}

/// What a job says that has the MPI of the folder which this variable of the tests names.
fn mpi_of(variable: &str, library: &str, processes: u32) -> String {
    let folder = mpi_folder(variable);
    let (bin, library) = (folder.join("bin"), folder.join("lib").join(library));
    format!(
        "distribution: {{type: mpi, process_count_per_instance: {processes}}}\n\
         environment_variables: {{PATH: '{}:/usr/bin:/bin', MPI_LIBRARY: '{}'}}\n",
        bin.display(),
        library.display()
    )
}

/// Its processes do not reach those of another node that has the same name, as here.
#[test]
fn open_mpi_5_starts_the_processes_of_a_job_on_all_of_its_nodes() {
    let cluster = cluster(2);
    let more = mpi_of("ATELIER_TEST_OPEN_MPI_5", "libmpi.so.40", 2);
    let command =
        "echo rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE in $AZUREML_CR_NODE_RANK";
    let job = cluster.create(&gang(2, command, &more));
    cluster.completed(&job);
    for rank in 0..4 {
        let said = format!("rank {rank} of 4 in {}\n", rank / 2);
        // Its starter may have a word before: it warns if a child has begun its program before it has a group
        // (`plm:ssh: Warning: setpgid failed in parent`).
        let log = log_of(&cluster, &job, rank);
        assert!(log.ends_with(&said) && log.matches("rank").count() == 1, "{log}");
    }
}

/// Intel's has the same library.
fn mpich(processes: u32) -> String {
    mpi_of("ATELIER_TEST_MPICH", "libmpi.so.12", processes)
}

#[test]
fn mpich_starts_the_processes_of_a_job_on_all_of_its_nodes() {
    let cluster = cluster(3);
    for nodes in [1, 3] {
        adds_up(&cluster, nodes, &mpich(2));
    }
    // Each has its own member's variables, and not the head's.
    let command = "echo in $AZUREML_CR_NODE_RANK at $MPIR_CVAR_CH3_INTERFACE_HOSTNAME";
    let job = cluster.create(&gang(3, command, &mpich(1)));
    cluster.completed(&job);
    for rank in 0..3 {
        assert_eq!(log_of(&cluster, &job, rank), format!("in {rank} at 127.0.0.1\n"));
    }
}

/// Also before it has begun to be one of MPI's, for which the others wait.
#[test]
fn mpich_ends_the_processes_of_a_job_of_which_one_fails_on_another_node() {
    let cluster = cluster(2);
    let more = mpich(1);
    let early = "[ $PMI_RANK != 1 ] || exit 5; ";
    let waits = "python3 -c 'import ctypes, os; ctypes.CDLL(os.environ[\"MPI_LIBRARY\"]).MPI_Init(None, None)'";
    let job = cluster.create(&gang(2, &format!("{early}{waits}"), &more));
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    let said = message(&ended);
    assert!(said.starts_with("member 0") && said.contains("mpirun ended with exit code"), "{said}");
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    assert!(log.contains("atelier: the process of rank 1 ended with exit code 5\n"), "{log}");
    // One that is canceled ends on both.
    let job = cluster.create(&gang(2, "echo ready; sleep 600", &more));
    for rank in ["0", "1"] {
        cluster.atelier(["job", "stream", &job, "-q", "--rank", rank]).spawn().prints("ready");
    }
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.rpc().reaches(&job, &[JobStatus::Canceled], PATIENCE);
    // The nodes are free again.
    cluster.completed(&cluster.create(&gang(2, "true", &more)));
}

#[test]
fn a_process_of_mpi_that_fails_on_another_node_ends_the_job_with_its_exit_code() {
    let cluster = cluster(2);
    let command = "[ $OMPI_COMM_WORLD_RANK != 1 ] || exit 5; sleep 600";
    let job = cluster.create(&gang(2, command, &mpi(1)));
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    assert_eq!(ended.members[0].exit_code, Some(5), "{ended:?}");
    let node = &ended.members[0].node;
    let expected = format!(
        "member 0 on node {node} failed: mpirun ended with exit code 5; see what a process wrote: atelier job \
         stream {job} --rank N, N from 0 to 1"
    );
    assert_eq!(message(&ended), expected);
    // The nodes are free again.
    cluster.completed(&cluster.create(&gang(2, "true", &mpi(1))));
}

/// Members whose command never comes end with the head.
#[test]
fn an_mpirun_that_is_missing_is_told() {
    let cluster = cluster(2);
    let none = "environment_variables: {PATH: /nowhere}\n";
    let more = format!("distribution: {{type: mpi}}\n{none}");
    let job = cluster.create(&gang(2, "true", &more));
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    let said = message(&ended);
    assert!(said.contains("'mpirun' was not found") && said.contains("environment"), "{said}");
}

#[test]
fn a_job_for_mpi_that_is_cancelled_ends_on_all_of_its_nodes() {
    let cluster = cluster(2);
    let command = "echo process $OMPI_COMM_WORLD_RANK; sleep 600";
    let job = cluster.create(&gang(2, command, &mpi(2)));
    // Each is seen while it runs.
    for rank in ["0", "1", "2", "3"] {
        let stream = cluster.atelier(["job", "stream", &job, "-q", "--rank", rank]).spawn();
        stream.prints(&format!("process {rank}"));
    }
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.rpc().reaches(&job, &[JobStatus::Canceled], PATIENCE);
}
