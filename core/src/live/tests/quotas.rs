//! What a user may hold of a compute: said by an admin, kept, and looked at when a job is submitted.

use super::super::*;
use crate::compute::{Cluster, NodeShape, Placement, Provider};
use crate::resource::Demand;
use crate::sched::{Limits, QuotaOf};
use crate::spec::JobResources;
use crate::testkit::{LEASE, command_job, compute_name, demand, job_name, principal};
use crate::time::Timestamp;

const NOW: Now = Now { wall: Timestamp::from_millis(1_700_000_000_000), mono: Mono(0) };

fn live() -> Live {
    let local = compute_name("local");
    Live::new([local.clone()], local, principal("daemon"), LEASE, Counters::default())
}

fn gpus(count: u64) -> Limits {
    Limits { milli_gpus: Some(count * 1000), ..Limits::default() }
}

fn set(live: &mut Live, user: Option<&str>, limits: Option<Limits>) -> Result<Decisions, String> {
    let mut out = Decisions::default();
    let of = user.map_or(QuotaOf::Each, |user| QuotaOf::User(principal(user)));
    live.set_quota(&compute_name("local"), of, limits, &mut out)
        .map(|()| out)
        .map_err(|refusal| refusal.to_string())
}

fn submit(live: &mut Live, user: &str, compute: &str, asks: Demand) -> Result<(), String> {
    let mut spec = command_job(asks);
    spec.compute = Some(compute_name(compute));
    let name = job_name(&format!("job{}", live.jobs().count()));
    let submission =
        Submission { name, spec: Arc::new(spec), principal: principal(user), manages: false };
    live.submit(submission, NOW, &mut Decisions::default()).map_err(|refusal| refusal.to_string())
}

#[test]
fn a_job_that_its_users_quota_can_never_allow_is_refused() {
    let mut live = live();
    set(&mut live, None, Some(gpus(4))).unwrap();
    set(&mut live, Some("ada"), Some(Limits { cpu: Some(2_500), ..Limits::default() })).unwrap();
    submit(&mut live, "bob", "local", demand(1, 0, 4)).unwrap();
    assert_eq!(
        submit(&mut live, "bob", "local", demand(1, 0, 8)).unwrap_err(),
        "cannot create the job: on compute 'local' it would hold 8 GPU, and the quota is 4 GPU, for \
         user 'bob'; ask for less, or an admin for a larger quota ('atelier compute quota set local')"
    );
    // One's own takes the place of everybody's: it says nothing of GPUs.
    submit(&mut live, "ada", "local", demand(2, 0, 8)).unwrap();
    let refused = submit(&mut live, "ada", "local", demand(3, 0, 0)).unwrap_err();
    assert!(refused.contains("3 CPU, and the quota is 2.5 CPU"), "{refused}");
    // A dry run is told the same.
    let asker = Asker { user: &principal("ada"), manages: false };
    let asked = live.as_asked(job_name("dry"), &command_job(demand(3, 0, 0)), asker, NOW);
    assert!(matches!(asked, Err(Refusal::OverQuota { .. })), "{asked:?}");
    set(&mut live, Some("ada"), None).unwrap();
    submit(&mut live, "ada", "local", demand(3, 0, 4)).unwrap();
}

#[test]
fn where_jobs_take_whole_nodes_a_node_is_what_a_job_holds() {
    let shape =
        NodeShape { cpu: 8_000, memory: 1_024, disk: 0, gpus: 2, gpu_model: None, gpu_memory: 0 };
    for (placement, allowed) in [(Placement::Exclusive, false), (Placement::Shared, true)] {
        let mut live = live();
        let cluster = Cluster {
            placement,
            provider: Provider::Local,
            ..Cluster::new(compute_name("whole"), "custom", shape.clone())
        };
        let mut out = Decisions::default();
        live.put_cluster(cluster, principal("root"), NOW, &mut out).unwrap();
        let limits = Some(Limits { cpu: Some(4_000), ..Limits::default() });
        live.set_quota(&compute_name("whole"), QuotaOf::Each, limits, &mut out).unwrap();
        let told = submit(&mut live, "ada", "whole", demand(1, 0, 0));
        assert_eq!(told.is_ok(), allowed, "{told:?}");
        if let Err(refused) = told {
            assert!(refused.contains("8 CPU, and the quota is 4 CPU"), "{refused}");
        }
    }
}

#[test]
fn a_limit_is_of_all_of_a_gangs_nodes() {
    let gang = |members| {
        let resources =
            JobResources { instance_count: members, ..command_job(demand(2, 8, 1)).resources };
        Request::from(&resources)
    };
    let limits = Limits { nodes: Some(2), ..gpus(3) };
    assert_eq!(limits.never_allows(&gang(2)), None);
    assert_eq!(limits.never_allows(&gang(4)).unwrap(), "4 GPU, and the quota is 3 GPU");
    assert_eq!(limits.never_allows(&gang(3)).unwrap(), "3 nodes, and the quota is 2 nodes");
    let memory = Limits { memory: Some(16), ..Limits::default() };
    assert_eq!(
        memory.never_allows(&gang(3)).unwrap(),
        "24 MiB memory, and the quota is 16 MiB memory"
    );
}

#[test]
fn a_quota_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut live = live();
    let refused = |told: Result<Decisions, String>, says: &str| {
        let told = told.unwrap_err();
        assert!(told.contains(says), "{told}");
    };
    refused(set(&mut live, None, Some(Limits::default())), "it limits nothing");
    refused(set(&mut live, None, Some(gpus(0))), "gpus must be more than 0");
    let none = Limits { jobs: Some(0), ..gpus(1) };
    refused(set(&mut live, Some("ada"), Some(none)), "jobs must be more than 0");
    refused(set(&mut live, None, None), "has no quota of everybody");
    refused(set(&mut live, Some("ada"), None), "has no quota of user 'ada'");
    assert!(live.compute(&compute_name("local")).unwrap().quotas.is_empty());
    let (name, limits) = (compute_name("nowhere"), Some(gpus(1)));
    let nowhere = live.set_quota(&name, QuotaOf::Each, limits, &mut Decisions::default());
    assert_eq!(nowhere, Err(Refusal::NoSuchCompute(compute_name("nowhere"))));
}

#[test]
fn quotas_outlive_the_daemon_also_where_machines_join_by_themselves() {
    let mut before = live();
    let out = set(&mut before, Some("ada"), Some(gpus(1))).unwrap();
    let records: Vec<ComputeRecord> = out.computes.into_values().collect();
    let text = serde_json::to_string(&records).unwrap();
    let mut after = live();
    after.recover_computes(serde_json::from_str(&text).unwrap(), Vec::new());
    assert_eq!(after.compute(&compute_name("local")), before.compute(&compute_name("local")));
    assert!(submit(&mut after, "ada", "local", demand(1, 0, 2)).is_err());
    submit(&mut after, "bob", "local", demand(1, 0, 2)).unwrap();
}
