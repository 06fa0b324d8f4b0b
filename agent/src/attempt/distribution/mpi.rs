//! Jobs that the environment's `mpirun` starts, in the member of rank 0. It reaches the other members by this
//! program in place of ssh ([`crate::mpi`]).

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use atelier_core::spec::quote;

use super::{Members, secret};
use crate::attempt::folder::LAUNCHER;
use crate::attempt::variables::MARK;
use crate::mpi::{KEY, MEMBER, MEMBERS, SHELL, host_of};
use crate::supervisor::VERB;

/// What the scheduler has decided already: who may run it, how many processes there are, and that they share the
/// job's processors. To Open MPI's `mpirun`, of version 4 and 5, and to Intel's; others ignore it.
const DECIDED: [(&str, &str); 7] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
    ("PRTE_MCA_hwloc_default_binding_policy", "none"),
    ("I_MPI_PIN", "0"),
];

/// Of several nodes: the first starts what runs on each of the others.
const FLAT: [&str; 2] = ["OMPI_MCA_plm_rsh_no_tree_spawn", "PRTE_MCA_plm_ssh_no_tree_spawn"];
/// How many there may be at once, of connections or, of Intel's, below the first.
const AT_ONCE: [&str; 3] = [
    "OMPI_MCA_plm_rsh_num_concurrent",
    "PRTE_MCA_plm_ssh_num_concurrent",
    "I_MPI_HYDRA_BRANCH_COUNT",
];
/// What stands in place of ssh. Open MPI looks for it on the other nodes, too; Hydra takes no arguments with it.
const REACH: [&str; 2] = ["OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent"];
const HYDRA_REACH: [&str; 2] = ["HYDRA_LAUNCHER_EXEC", "I_MPI_HYDRA_BOOTSTRAP_EXEC"];
/// Says to Hydra that something does, whatever else it finds on the node.
const AS_SSH: [&str; 2] = ["HYDRA_LAUNCHER", "I_MPI_HYDRA_BOOTSTRAP"];
/// By what MPICH before version 4 knows a process's node; Hydra would say the name that we gave it.
const OWN: &str = "MPIR_CVAR_CH3_INTERFACE_HOSTNAME";
const HYDRA_SAYS_IT: &str = "HYDRA_HOSTNAME_PROPAGATION";
/// A program of this name, beside the pipes.
const SCRIPT: &str = "shell";
/// The variables with a process's rank, of which each launcher sets one: Open MPI, Hydra, and what starts by PMIx.
/// A process of another's has its output in the first one's log.
const RANKS: &str = "OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-0}}";
/// The variable with a member's working directory.
const WORK: &str = "AZUREML_CR_EXECUTION_WORKING_DIR_PATH";
/// What the members' common secret is made for.
const PURPOSE: &str = "atelier 2026-11-28 mpirun reaches the other members of its attempt";

/// What `mpirun` is told besides its arguments, and what the members need to reach each other.
pub(in crate::attempt) fn variables(
    members: &Members<'_>,
    token: &str,
    set: &mut impl FnMut(&str, &str),
) {
    for (name, value) in DECIDED {
        set(name, value);
    }
    if members.count() < 2 {
        return;
    }
    for name in FLAT {
        set(name, "1");
    }
    for name in AT_ONCE {
        set(name, &members.count().to_string());
    }
    set(HYDRA_SAYS_IT, "0");
    set(OWN, members.own().unwrap_or_default());
    set(MEMBERS, &members.servers().join(","));
    set(KEY, &secret(PURPOSE, token));
}

/// Makes the program that stands in place of ssh for Hydra. If what is to be run there cannot be, MPICH before
/// version 5 would wait for it for ever.
pub(super) fn write_script(folder: &Path, program: &Path) -> io::Result<()> {
    let program = quote(&program.to_string_lossy());
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o755).open(folder.join(SCRIPT))?;
    writeln!(
        file,
        "#!/bin/sh\n\
         {program} {VERB} {SHELL} \"$@\"\n\
         code=$?\n\
         case $code in 126 | 127) kill -TERM $PPID ;; esac\n\
         exit $code"
    )
}

/// What a shell runs in each process, `$0` being a shell and `$1` the command. `mpirun` would carry all output to
/// the head and mix it there: the process writes to its own log instead, by its member's pipe. It begins in its
/// own member's working directory: the head's is not on the others.
pub(super) fn inside(on_each: usize) -> String {
    format!(
        "rank=${{{RANKS}}}\n\
         pipe=\"${MARK}/{LAUNCHER}/$((rank % {on_each}))\"\n\
         exec 3>&2\n\
         [ ! -p \"$pipe\" ] || exec >\"$pipe\" 2>&1\n\
         cd \"${WORK}\" || exit\n\
         [ -n \"$PMI_RANK\" ] || exec \"$0\" -c \"$1\" 3>&-\n\
         {OF_HYDRA}"
    )
}

/// Hydra lets the others wait for a process that has failed, for ever in MPI_Init. It ends them if a process of its own or
/// its proxy on the node is ended by a signal, MPICH's by the one and Intel's by the other.
const OF_HYDRA: &str = "\"$0\" -c \"$1\" 3>&-\n\
    code=$?\n\
    [ $code = 0 ] || {\n\
    echo \"atelier: the process of rank $rank ended with exit code $code\" >&3\n\
    kill -TERM $PPID $$\n\
    }\n\
    exit $code";

/// What a shell runs: `mpirun` for rank 0, and for the others what waits for it.
pub(super) fn start(members: &Members<'_>, count: u32, command: &str, program: &Path) -> String {
    let on_each = count as usize;
    let inside = quote(&inside(on_each));
    let inside = format!("\"$0\" -c {inside} \"$0\" {command}");
    match (members.count(), members.rank) {
        // What it prints is the job's log.
        (0 | 1, _) if on_each == 1 => format!("exec mpirun -n 1 \"$0\" -c {command}"),
        (0 | 1, _) => format!("exec mpirun -n {on_each} {inside}"),
        (several, 0) => {
            let reach = quote(&format!("{} {VERB} {SHELL}", program.to_string_lossy()));
            let script = format!("\"${MARK}/{LAUNCHER}/{SCRIPT}\"");
            let exports = [
                REACH.map(|name| format!("{name}={reach}")).join(" "),
                HYDRA_REACH.map(|name| format!("{name}={script}")).join(" "),
                AS_SSH.map(|name| format!("{name}=ssh")).join(" "),
            ]
            .join(" ");
            let hydra = hydra(members, on_each);
            let open_mpi = open_mpi(several, on_each);
            format!(
                "export {exports}\n\
                 case $(mpirun --version 2>&1) in\n\
                 {IS_HYDRA}) exec mpirun {hydra} {inside} ;;\n\
                 *) exec mpirun {open_mpi} {inside} ;;\n\
                 esac"
            )
        }
        (_, rank) => format!("exec {} {VERB} {MEMBER} {rank}", quote(&program.to_string_lossy())),
    }
}

/// What MPICH says of its version, and what is made of it, Intel's among them.
const IS_HYDRA: &str = "*HYDRA* | *'Intel(R) MPI'*";

/// The arguments of Hydra's `mpirun`. Each node's processes have the variables of their own member: it would give
/// them the head's.
fn hydra(members: &Members<'_>, on_each: usize) -> String {
    let several = members.count();
    let hosts: Vec<String> = (0..several).map(host_of).collect();
    let (first, hosts, all) = (quote(members.first()), hosts.join(","), several * on_each);
    format!("-genvnone -wdir / -localhost {first} -hosts {hosts} -ppn {on_each} -n {all}")
}

/// The arguments of Open MPI's.
fn open_mpi(several: usize, on_each: usize) -> String {
    let host = |rank| format!("{}:{on_each}", host_of(rank));
    let (hosts, all) = ((0..several).map(host).collect::<Vec<_>>().join(","), several * on_each);
    // What is started there stays a child of what the platform waits for.
    let attached = "--leave-session-attached";
    let mapped = format!("--map-by ppr:{on_each}:node:oversubscribe");
    format!("{attached} {mapped} --wdir / --host {hosts} -n {all}")
}
