//! Who may use which compute: said by an admin, kept, looked at when a job is submitted and again when it starts.

use super::super::*;
use crate::access::{Caller, People, Permission, Person, Role};
use crate::compute::{AccessChange, Whom};
use crate::id::GroupName;
use crate::resource::Demand;
use crate::sched::{Limits, QuotaOf, explain};
use crate::testkit::{
    LEASE, Script, World, capacity, command_job, compute_name, demand, job_name, node_record,
    principal,
};
use crate::time::Timestamp;

const NOW: Now = Now { wall: Timestamp::from_millis(1_700_000_000_000), mono: Mono(0) };

fn live() -> Live {
    let local = compute_name("local");
    let names = [local.clone(), compute_name("gpu-cluster")];
    Live::new(names, local, principal("daemon"), LEASE, Counters::default())
}

fn group(name: &str) -> GroupName {
    GroupName::new(name).unwrap()
}

fn people(all: &[(&str, &[&str])]) -> People {
    let person = |groups: &[&str]| {
        let groups = groups.iter().map(|name| group(name)).collect();
        Person { groups, manages: false }
    };
    all.iter().map(|(user, groups)| (principal(user), person(groups))).collect()
}

fn whom(users: &[&str], groups: &[&str]) -> Whom {
    Whom {
        users: users.iter().map(|user| principal(user)).collect(),
        groups: groups.iter().map(|name| group(name)).collect(),
    }
}

fn change(live: &mut Live, change: AccessChange) -> Result<Decisions, String> {
    let mut out = Decisions::default();
    live.change_access(&compute_name("gpu-cluster"), change, &mut out)
        .map(|()| out)
        .map_err(|refusal| refusal.to_string())
}

fn submit(live: &mut Live, user: &str, manages: bool, asks: Demand) -> Result<(), String> {
    let mut spec = command_job(asks);
    spec.compute = Some(compute_name("gpu-cluster"));
    let name = job_name(&format!("job{}", live.jobs().count()));
    let (spec, principal) = (Arc::new(spec), principal(user));
    let submission = Submission { name, spec, principal, manages };
    live.submit(submission, NOW, &mut Decisions::default()).map_err(|refusal| refusal.to_string())
}

#[test]
fn a_compute_is_everybodys_until_it_is_given_to_somebody() {
    let mut live = live();
    live.set_people(people(&[("ana", &["vision"]), ("bob", &["nlp", "web"])]));
    let small = || demand(1, 0, 0);
    submit(&mut live, "eve", false, small()).unwrap();
    change(&mut live, AccessChange::Grant(whom(&[], &["vision"]))).unwrap();
    submit(&mut live, "ana", false, small()).unwrap();
    assert_eq!(
        submit(&mut live, "bob", false, small()).unwrap_err(),
        "compute 'gpu-cluster' is for group 'vision', and bob, who is in groups 'nlp', 'web', may not use it; ask an \
         admin to be let in ('atelier compute access grant gpu-cluster --user bob'), or use another"
    );
    let refused = submit(&mut live, "eve", false, small()).unwrap_err();
    assert!(refused.contains("eve, who is in no group, may not use it"), "{refused}");
    // Whoever may change computes may use any: it is the role that they come in with that says so.
    submit(&mut live, "eve", true, small()).unwrap();
    // A dry run is told the same.
    let spec = CommandJob { compute: Some(compute_name("gpu-cluster")), ..command_job(small()) };
    let asker = Asker { user: &principal("eve"), manages: false };
    let asked = live.as_asked(job_name("dry"), &spec, asker, NOW);
    assert!(matches!(asked, Err(Refusal::NoAccess { .. })), "{asked:?}");

    change(&mut live, AccessChange::Grant(whom(&["eve"], &[]))).unwrap();
    submit(&mut live, "eve", false, small()).unwrap();
    change(&mut live, AccessChange::Revoke(whom(&["eve"], &["vision"]))).unwrap();
    // What was given to some is not everybody's when it was taken from the last of them.
    let refused = submit(&mut live, "ana", false, small()).unwrap_err();
    assert!(refused.contains("is for those alone who manage computes"), "{refused}");
    change(&mut live, AccessChange::Open).unwrap();
    submit(&mut live, "bob", false, small()).unwrap();
}

#[test]
fn a_change_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut live = live();
    let refused = |told: Result<Decisions, String>, says: &str| {
        let told = told.unwrap_err();
        assert!(told.contains(says), "{told}");
    };
    refused(change(&mut live, AccessChange::Grant(whom(&[], &[]))), "it names nobody");
    refused(change(&mut live, AccessChange::Revoke(whom(&["ana"], &[]))), "everybody may use it");
    change(&mut live, AccessChange::Grant(whom(&["ana"], &["vision"]))).unwrap();
    refused(
        change(&mut live, AccessChange::Revoke(whom(&["ana", "bob"], &["nlp"]))),
        "it was not given to group 'nlp' and user 'bob'",
    );
    let many: Vec<String> = (0..1_000).map(|n| format!("user{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(change(&mut live, AccessChange::Grant(whom(&many, &[]))), "1000 users have it");
    let kept = live.compute(&compute_name("gpu-cluster")).unwrap();
    assert_eq!(kept.access.to_string(), "group 'vision' and user 'ana'");
    let nowhere =
        live.change_access(&compute_name("nowhere"), AccessChange::Open, &mut Decisions::default());
    assert_eq!(nowhere, Err(Refusal::NoSuchCompute(compute_name("nowhere"))));
}

#[test]
fn can_i_tells_of_a_compute_whether_and_why() {
    let mut live = live();
    live.set_people(people(&[("ana", &["vision"])]));
    change(&mut live, AccessChange::Grant(whom(&[], &["vision"]))).unwrap();
    let can = |user: &str, role: Role, permission, compute: &str| {
        let caller = Caller { principal: principal(user), role };
        let verdict = live.can_on(&caller, permission, &compute_name(compute)).unwrap();
        (verdict.allowed, verdict.reason.to_string())
    };
    let (scientist, submits) = (Role::DataScientist, Permission::Submit);
    let (may, why) = can("ana", scientist.clone(), submits, "gpu-cluster");
    assert!(may && why.contains("is for group 'vision', and ana is in group 'vision'"), "{why}");
    let (may, why) = can("bob", scientist.clone(), submits, "gpu-cluster");
    assert!(!may && why.contains("bob, who is in no group, may not use it"), "{why}");
    let (may, why) = can("bob", scientist.clone(), Permission::BuildEnvironments, "gpu-cluster");
    assert!(!may, "{why}");
    let (may, why) = can("bob", scientist.clone(), submits, "local");
    assert!(may && why.contains("compute 'local' is for everybody"), "{why}");
    let (may, why) = can("root", Role::Admin, submits, "gpu-cluster");
    assert!(may && why.contains("and manages computes"), "{why}");
    // What the role does not allow no compute allows, and what uses none is the same for all.
    let (may, why) = can("ana", Role::Reader, submits, "gpu-cluster");
    assert!(!may && why.contains("may not"), "{why}");
    let (may, why) = can("bob", scientist, Permission::ReadJobs, "gpu-cluster");
    assert!(may && why.contains("whichever compute it is"), "{why}");
    let caller = Caller { principal: principal("ana"), role: Role::Admin };
    let unknown = live.can_on(&caller, submits, &compute_name("nowhere"));
    assert_eq!(unknown, Err(Refusal::NoSuchCompute(compute_name("nowhere"))));
}

#[test]
fn whose_access_is_taken_away_waits_and_goes_on_running() {
    let local = compute_name("local");
    let mut world =
        World::new(LEASE, &["local"], &[node_record("a", "local", capacity(2, 1_000, 0))]);
    world.advance(3_000).unwrap();
    // By their names: of `a` the first user, of `b` the second.
    let users: Vec<Principal> = ["job-a", "job-d", "job-g"]
        .map(|name| {
            let spec = CommandJob { compute: Some(local.clone()), ..command_job(demand(1, 0, 0)) };
            world.submit(&job_name(name), Arc::new(spec), Script::succeeds(60_000));
            world.advance(500).unwrap();
            world.live().unwrap().job(&job_name(name)).unwrap().created_by.clone()
        })
        .to_vec();
    assert_eq!(users[0], users[1], "{users:?}");
    assert_eq!(users[0], users[2], "{users:?}");
    let reason = |world: &World| {
        let live = world.live().unwrap();
        let job = live.job(&job_name("job-g")).unwrap();
        live.wait_reason(job).map(|reason| reason.to_string()).unwrap_or_default()
    };
    let runs = |world: &World, name: &str| {
        world.live().unwrap().job(&job_name(name)).is_some_and(|job| job.active().is_some())
    };
    let user = users[0].as_str();
    world.set_people(people(&[(user, &["vision"])]));
    world.change_access(&local, AccessChange::Grant(whom(&[], &["vision"])));
    world.advance(1_000).unwrap();
    assert!(reason(&world).contains("too little CPU"), "{}", reason(&world));
    // Out of the group: what runs goes on, what waits is held, though there would be room.
    world.set_people(people(&[(user, &["nlp"])]));
    world.advance(1_000).unwrap();
    let told = reason(&world);
    assert!(
        told.contains("may not use the compute any more, which is for group 'vision'"),
        "{told}"
    );
    assert!(runs(&world, "job-a") && runs(&world, "job-d"));
    world.cancel(&job_name("job-a"));
    world.advance(3_000).unwrap();
    assert!(!runs(&world, "job-g"));
    // Nothing that could be changed about the job would help but another compute, and there is none.
    let live = world.live().unwrap();
    let asked = asked(live.job(&job_name("job-g")).unwrap());
    let explained = explain(live.sched(), &asked, NOW.wall).unwrap();
    assert_eq!(explained.changes, []);
    // So it is after a restart.
    world.kill_daemon(1_000);
    world.advance(4_000).unwrap();
    assert_eq!(reason(&world), told);
    // And back in by name.
    world.change_access(&local, AccessChange::Grant(whom(&[user], &[])));
    world.advance(2_000).unwrap();
    assert!(runs(&world, "job-g"), "{}", reason(&world));
}

#[test]
fn a_job_that_a_groups_quota_can_never_allow_is_refused() {
    let mut live = live();
    live.set_people(people(&[("ana", &["nlp", "vision"])]));
    let name = compute_name("gpu-cluster");
    let four = Some(Limits { milli_gpus: Some(4_000), ..Limits::default() });
    let of = QuotaOf::Group(group("vision"));
    live.set_quota(&name, of.clone(), four, &mut Decisions::default()).unwrap();
    submit(&mut live, "ana", false, demand(1, 0, 4)).unwrap();
    assert_eq!(
        submit(&mut live, "ana", false, demand(1, 0, 5)).unwrap_err(),
        "cannot create the job: on compute 'gpu-cluster' it would hold 5 GPU, and the quota is 4 GPU, for group \
         'vision'; ask for less, or an admin for a larger quota ('atelier compute quota set gpu-cluster')"
    );
    submit(&mut live, "bob", false, demand(1, 0, 5)).unwrap();
    // It survives the daemon as it is, and is taken back by the group's name.
    let records: Vec<ComputeRecord> = live.computes().cloned().collect();
    let text = serde_json::to_string(&records).unwrap();
    assert_eq!(serde_json::from_str::<Vec<ComputeRecord>>(&text).unwrap(), records);
    let unknown = QuotaOf::Group(group("nlp"));
    let refused = live.set_quota(&name, unknown, None, &mut Decisions::default()).unwrap_err();
    assert!(refused.to_string().contains("has no quota of group 'nlp'"), "{refused}");
    live.set_quota(&name, of, None, &mut Decisions::default()).unwrap();
    submit(&mut live, "ana", false, demand(1, 0, 5)).unwrap();
}
