//! Jobs that the environment's `mpirun` starts, in the member of rank 0. It reaches the other members by this
//! program in place of ssh ([`crate::mpi`]).

use std::path::Path;

use atelier_core::spec::quote;

use super::{Members, secret};
use crate::attempt::folder::LAUNCHER;
use crate::attempt::variables::MARK;
use crate::mpi::{KEY, MEMBER, MEMBERS, SHELL, host_of};
use crate::supervisor::VERB;

/// Says to Open MPI's `mpirun`, of version 4 and 5, what the scheduler has decided already: who may run it,
/// how many processes there are, and that they share the job's processors. Others ignore it.
const DECIDED: [(&str, &str); 6] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
    ("OMPI_MCA_hwloc_base_binding_policy", "none"),
    ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
    ("PRTE_MCA_hwloc_default_binding_policy", "none"),
];

/// Of several nodes: the first starts what runs on each of the others.
const FLAT: [&str; 2] = ["OMPI_MCA_plm_rsh_no_tree_spawn", "PRTE_MCA_plm_ssh_no_tree_spawn"];
/// How many connections there may be at once.
const AT_ONCE: [&str; 2] = ["OMPI_MCA_plm_rsh_num_concurrent", "PRTE_MCA_plm_ssh_num_concurrent"];
/// What stands in place of ssh.
const REACH: [&str; 2] = ["OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent"];
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
    set(MEMBERS, &members.servers().join(","));
    set(KEY, &secret(PURPOSE, token));
}

/// What a shell runs in each process, `$0` being a shell and `$1` the command. `mpirun` would carry all output to
/// the head and mix it there: the process writes to its own log instead, by its member's pipe. It begins in its
/// own member's working directory: the head's is not on the others.
pub(super) fn inside(on_each: usize) -> String {
    format!(
        "pipe=\"${MARK}/{LAUNCHER}/$((${{{RANKS}}} % {on_each}))\"; \
         [ ! -p \"$pipe\" ] || exec >\"$pipe\" 2>&1; \
         cd \"${WORK}\" && exec \"$0\" -c \"$1\""
    )
}

/// What a shell runs: `mpirun` for rank 0, and for the others what waits for it.
pub(super) fn start(members: &Members<'_>, count: u32, command: &str, program: &Path) -> String {
    let program = program.to_string_lossy();
    let on_each = count as usize;
    let inside = quote(&inside(on_each));
    match (members.count(), members.rank) {
        // What it prints is the job's log.
        (0 | 1, _) if on_each == 1 => format!("exec mpirun -n 1 \"$0\" -c {command}"),
        (0 | 1, _) => format!("exec mpirun -n {on_each} \"$0\" -c {inside} \"$0\" {command}"),
        (several, 0) => {
            let reach = quote(&format!("{program} {VERB} {SHELL}"));
            let exports = REACH.map(|name| format!("export {name}={reach}; ")).concat();
            let hosts: Vec<String> =
                (0..several).map(|rank| format!("{}:{on_each}", host_of(rank))).collect();
            let (hosts, all) = (hosts.join(","), several * on_each);
            // What is started there stays a child of what the platform waits for.
            let attached = "--leave-session-attached";
            let mapped = format!("--map-by ppr:{on_each}:node:oversubscribe");
            format!(
                "{exports}exec mpirun {attached} {mapped} --wdir / --host {hosts} -n {all} \
                 \"$0\" -c {inside} \"$0\" {command}"
            )
        }
        (_, rank) => format!("exec {} {VERB} {MEMBER} {rank}", quote(&program)),
    }
}
