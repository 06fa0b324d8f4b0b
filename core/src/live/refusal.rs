//! Why a request cannot be met, in words that say what to do instead.

use crate::compute::{Access, Unchanged};
use crate::id::{ComputeName, ExperimentName, JobName, NodeName, Principal};
use crate::sched::QuotaOf;

/// A request that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is taken.
    #[error("cannot create job '{0}': the name is taken; choose another or leave it out")]
    NameTaken(JobName),
    /// The name is the id of a run that is no job's.
    #[error(
        "cannot create job '{0}': an MLflow run has this name as its id; choose another or leave it out"
    )]
    NameOfRun(JobName),
    /// Its run would go into a deleted experiment.
    #[error(
        "cannot create the job: experiment '{0}' is deleted; restore it, or name another in experiment_name"
    )]
    ExperimentDeleted(ExperimentName),
    /// There is no such compute.
    #[error(
        "cannot create the job: there is no compute '{name}' (known: {known}); see 'atelier compute list'"
    )]
    UnknownCompute {
        /// What was asked for.
        name: ComputeName,
        /// What there is.
        known: String,
    },
    /// No node of the compute could ever hold it.
    #[error(
        "cannot create the job: it asks for {demand}, but the largest node of compute '{compute}' has {largest}; ask for less"
    )]
    NeverFits {
        /// What was asked for.
        demand: String,
        /// Where.
        compute: ComputeName,
        /// The most that a node has.
        largest: String,
    },
    /// The compute can never have as many nodes.
    #[error(
        "cannot create the job: it asks for {request}, all at once, and compute '{compute}' can have \
         {most} such nodes at most; set resources.instance_count to {most} or less"
    )]
    GangTooLarge {
        /// What was asked for.
        request: String,
        /// Where.
        compute: ComputeName,
        /// So many are possible.
        most: u32,
    },
    /// It alone is more than its user may hold of the compute.
    #[error(
        "cannot create the job: on compute '{compute}' it would hold {excess}, for {of}; ask \
         for less, or an admin for a larger quota ('atelier compute quota set {compute}')"
    )]
    OverQuota {
        /// Where.
        compute: ComputeName,
        /// Whose quota.
        of: QuotaOf,
        /// What it would hold and what is allowed, in words.
        excess: String,
    },
    /// The quota allows nothing, or says nothing.
    #[error("cannot set a quota on compute '{compute}': {why}")]
    BadQuota {
        /// Of which compute.
        compute: ComputeName,
        /// What is wrong and what to do.
        why: String,
    },
    /// There is no quota to take away.
    #[error("compute '{compute}' has no quota of {of}; see 'atelier compute quota list {compute}'")]
    NoSuchQuota {
        /// Of which compute.
        compute: ComputeName,
        /// Of whom.
        of: QuotaOf,
    },
    /// It is for others.
    #[error(
        "compute '{compute}' is for {access}, and {user}, who is in {groups}, may not use it; ask an admin to be let in \
         ('atelier compute access grant {compute} --user {user}'), or use another"
    )]
    NoAccess {
        /// Which compute.
        compute: ComputeName,
        /// Who may use it.
        access: Access,
        /// Who asked.
        user: Principal,
        /// What they are in, in words.
        groups: String,
    },
    /// Who may use a compute stays as it is.
    #[error(
        "cannot change who may use compute '{compute}': {why}; see 'atelier compute access list {compute}'"
    )]
    AccessUnchanged {
        /// Which.
        compute: ComputeName,
        /// Why.
        why: Unchanged,
    },
    /// There is no such node.
    #[error("there is no node '{0}'; see 'atelier node list'")]
    NoSuchNode(NodeName),
    /// It is drained already.
    #[error(
        "node '{node}' is drained already, by {by}: {reason}; add --update to change that, or take \
         it back with 'atelier node resume {node}'"
    )]
    AlreadyDrained {
        /// Which.
        node: NodeName,
        /// Who drained it.
        by: Principal,
        /// Why.
        reason: String,
    },
    /// It is not drained.
    #[error("node '{0}' is not drained; there is nothing to resume")]
    NotDrained(NodeName),
    /// There is no such compute.
    #[error("there is no compute '{0}'; see 'atelier compute list'")]
    NoSuchCompute(ComputeName),
    /// It is none that an admin made.
    #[error(
        "compute '{0}' is no cluster: machines join it by themselves, and the daemon was started \
         with it (--compute)"
    )]
    NotACluster(ComputeName),
    /// Jobs go there that name no compute.
    #[error(
        "compute '{0}' is where jobs go that name none; restart the daemon with another as its first \
         --compute, then delete it"
    )]
    DefaultCompute(ComputeName),
    /// It goes with the last of its nodes.
    #[error(
        "compute '{0}' is being deleted; wait until 'atelier compute list' shows it no more, or use \
         another name"
    )]
    ComputeDeleted(ComputeName),
    /// What is fixed when a cluster is made.
    #[error(
        "cannot change {field} of compute '{compute}': it is fixed when the compute is made; delete \
         it and make it anew, or make another"
    )]
    FixedField {
        /// Whose.
        compute: ComputeName,
        /// Which, by its key.
        field: &'static str,
    },
    /// The change would break a rule.
    #[error("cannot change the compute: {0}")]
    BadCluster(String),
    /// Jobs are on it.
    #[error(
        "cannot delete compute '{compute}': {count} of its jobs are not over ({}); cancel them or \
         wait, and keep others away with 'atelier compute drain {compute}'",
        names(.shown, *.count)
    )]
    ComputeBusy {
        /// Which.
        compute: ComputeName,
        /// How many jobs.
        count: usize,
        /// The first of them.
        shown: Vec<JobName>,
    },
    /// It is drained already.
    #[error(
        "compute '{compute}' is drained already, by {by}: {reason}; add --update to change that, or \
         take it back with 'atelier compute resume {compute}'"
    )]
    ComputeDrained {
        /// Which.
        compute: ComputeName,
        /// Who drained it.
        by: Principal,
        /// Why.
        reason: String,
    },
    /// It is not drained.
    #[error("compute '{0}' is not drained; there is nothing to resume")]
    ComputeNotDrained(ComputeName),
    /// A cluster knows its nodes.
    #[error(
        "node '{node}' is none of those that cluster '{compute}' has asked for; for machines that \
         join by themselves make a cluster with 'provider: joined'"
    )]
    NotOfCluster {
        /// Which.
        node: NodeName,
        /// Which cluster.
        compute: ComputeName,
    },
    /// No node that could hold it has the labels that it asks for.
    #[error(
        "cannot create the job: no node of compute '{compute}' that could hold it has the labels \
         {labels}; look at 'atelier node show', or give a node's agent '--label KEY=VALUE'"
    )]
    NoSuchLabels {
        /// What it asks for.
        labels: String,
        /// Where.
        compute: ComputeName,
    },
    /// It does not keep jobs apart, and its cluster wants that.
    #[error(
        "node '{node}' may not join compute '{compute}', whose containment is strict: it has {lacks}; see to \
         that on the machine, or make the cluster with 'containment: best_effort'"
    )]
    NotContained {
        /// Which.
        node: NodeName,
        /// Which cluster.
        compute: ComputeName,
        /// What it has not, and why.
        lacks: String,
    },
    /// Nobody can be let into it now.
    #[error("cannot enter job '{job}': {why}")]
    NotRunning {
        /// Which.
        job: JobName,
        /// Where it stands, and what to wait for.
        why: String,
    },
    /// Nothing is kept of it that somebody could be let into.
    #[error("nothing is kept of job '{job}': {why}")]
    NotKept {
        /// Which.
        job: JobName,
        /// Where it stands, and what to do.
        why: String,
    },
    /// What is kept of it is on a node that does not answer.
    #[error(
        "cannot reach what is kept of job '{job}': its node '{node}' does not answer; look at 'atelier \
         node show {node}'"
    )]
    KeeperAway {
        /// Which job.
        job: JobName,
        /// Which node.
        node: NodeName,
    },
    /// It has no such member.
    #[error(
        "cannot enter member {rank} of job '{job}': it has {count}, from 0 to {}",
        .count.saturating_sub(1)
    )]
    NoSuchMember {
        /// Whose.
        job: JobName,
        /// Which.
        rank: u32,
        /// How many there are.
        count: u32,
    },
    /// There is no such live job.
    #[error("there is no live job '{0}'")]
    NoSuchJob(JobName),
}

fn names(jobs: &[JobName], count: usize) -> String {
    let names: Vec<&str> = jobs.iter().map(JobName::as_str).collect();
    let more = if count > names.len() { ", …" } else { "" };
    names.join(", ") + more
}
