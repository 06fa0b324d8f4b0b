mod compute;

use atelier_core::access::{AttemptScope, CustomRole, Held, Permissions, Role};
use atelier_core::asset::Kind;
use atelier_core::id::{AssetName, Epoch, GroupName, PortName, RoleName, VersionName};
use atelier_core::job::{
    Active, AttemptEnd, Cancel, Cause, Ended, Evict, Exit, Failed, Failure, Left, ManifestRef,
    Member, MemberLeft, Outcome, OutputCommit, Phase, Usage,
};
use atelier_core::join::{JoinToken, Joining, NodeIdentity, NotDeleted, Refusal};
use atelier_core::node::{Drain, GpuOut};
use atelier_core::resource::{ContainerNeed, Containers, Demand, GpuDevice, Reservation};
use atelier_core::spec::{
    AssetRef, AssetVersion, Code, DataKind, DataUri, Distribution, Identity, IdleGpu, Input,
    InputMode, JobResources, Limits, OnNodeLoss, Output, OutputMode, Ray, Retry,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use rusqlite::Connection;

use self::compute::{any_compute, any_instance};
use super::*;
use crate::store::audit::Asked;
use crate::store::people::{self as store_people, PeopleChange, UserRecord};
use crate::store::{TokenRecord, jobs, nodes, schema};

/// A job that is over, with everything that such a job may carry.
pub(super) fn over(seq: u64) -> Job {
    let mut job = waiting(seq);
    job.tries = Tries { made: AttemptNumber(2), failed: 1, ..Tries::default() };
    job.state = State::Ended(Ended {
        at: Timestamp::from_millis(9),
        outcome: Outcome::Completed,
        left: Left {
            started_at: Some(Timestamp::from_millis(3)),
            exit: Some(Exit::Code(0)),
            node: Some(NodeName::new("n1").unwrap()),
            manifest: Some(ManifestRef {
                key: "ExperimentRun/dcid.x/system_logs/manifest_2.json".to_owned(),
                digest: Digest::of(b"m"),
                files: 2,
                bytes: 20,
            }),
            outputs: vec![],
            log_bytes: 11,
            others: vec![],
            usage: used(6),
            decisive: 0,
        },
    });
    job
}

pub(super) fn token() -> TokenRecord {
    TokenRecord {
        hash: Digest::of(b"secret"),
        principal: who("ben"),
        role: Role::DataScientist,
        created_at: Timestamp::from_millis(77),
        created_by: None,
        expires_at: None,
        last_used_at: None,
    }
}

fn database() -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrate(&mut conn).unwrap();
    conn
}

/// Text of people's: any characters that YAML can hold.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,20}", "\\PC{0,12}", Just("'; DROP TABLE jobs; --\n\t\"\\".to_owned())]
}

fn stamp() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::from_millis)
}

fn nodes() -> impl Strategy<Value = NodeName> {
    "[a-z0-9][a-z0-9.-]{0,10}".prop_map(|text| NodeName::new(&text).unwrap())
}

fn people() -> impl Strategy<Value = Principal> {
    "[a-z0-9][a-z0-9@:/+.-]{0,10}".prop_map(|text| who(&text))
}

fn port() -> impl Strategy<Value = PortName> {
    "[a-z_][a-z0-9_]{0,6}".prop_map(|text| PortName::new(&text).unwrap())
}

/// What SQLite's integers hold, which is far more than there will ever be.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![0..100_u64, Just(i64::MAX as u64)]
}

fn exit() -> impl Strategy<Value = Exit> {
    prop_oneof![any::<i32>().prop_map(Exit::Code), any::<i32>().prop_map(Exit::Signal)]
}

fn failure() -> impl Strategy<Value = Failure> {
    let cause = prop::sample::select(vec![
        Cause::UserError,
        Cause::CommandNotFound,
        Cause::EnvironmentFailed,
        Cause::InputFailed,
        Cause::CodeFailed,
        Cause::OutputFailed,
        Cause::Timeout,
        Cause::Canceled,
        Cause::DiskFull,
        Cause::OutOfMemory,
        Cause::GpuOutOfMemory,
        Cause::GpuIdle,
        Cause::GpuLost,
        Cause::NodeLost,
        Cause::LeaseExpired,
        Cause::AgentError,
    ]);
    (cause, text()).prop_map(|(cause, message)| Failure { cause, message })
}

fn cancel() -> impl Strategy<Value = Cancel> {
    (people(), text(), stamp()).prop_map(|(by, reason, at)| Cancel { by, reason, at })
}

fn evict() -> impl Strategy<Value = Evict> {
    (people(), text(), stamp()).prop_map(|(by, reason, at)| Evict { by, reason, at })
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Starting),
        text().prop_map(|step| Phase::Preparing { step }),
        Just(Phase::Running),
        option::of(exit()).prop_map(|exit| Phase::Finalizing { exit }),
    ]
}

fn lost() -> Failure {
    Failure { cause: Cause::NodeLost, message: String::new() }
}

/// Some usage or none, of any number.
fn used(number: u64) -> Option<Usage> {
    let usage = Usage {
        cpu_ms: number,
        peak_memory: number / 3,
        wall_ms: number / 5,
        gpu_ms: number / 7,
        peak_gpu_memory: number / 9,
        input_bytes: number / 3,
        input_fetched_bytes: number / 11,
    };
    number.is_multiple_of(2).then_some(usage)
}

fn active() -> impl Strategy<Value = State> {
    let held =
        (any::<u64>(), any::<u64>(), vec(any::<u16>(), 0..4)).prop_map(|(cpu, memory, gpus)| {
            let (gpu_share, disk) = ((cpu % 1000) as u16, memory);
            Reservation { cpu, memory, gpus, gpu_share, disk }
        });
    let end = (option::of(exit()), option::of(failure()), option::of(manifest()), any::<u64>());
    let end = end.prop_map(|(exit, problem, manifest, log_bytes)| {
        let (started_at, outputs) = (None, Vec::new());
        let usage = used(log_bytes);
        let rest = AttemptEnd { survivors: 3, ..AttemptEnd::lost(lost(), started_at) };
        Box::new(AttemptEnd { exit, problem, manifest, outputs, log_bytes, usage, ..rest })
    });
    let times = (option::of(stamp()), option::of(stamp()), any::<bool>());
    let member = (nodes(), held, phase(), times, option::of(end)).prop_map(
        |(node, reservation, phase, (started_at, idle_since, unreachable), end)| Member {
            node,
            reservation,
            phase,
            started_at,
            idle_since,
            unreachable,
            end,
        },
    );
    let ids = (1..9_u32, any::<u64>());
    let failed = (any::<u32>(), text()).prop_map(|(rank, reason)| Failed { rank, reason });
    let stops = (option::of(cancel()), option::of(evict()), option::of(failed), any::<bool>());
    let members = vec(member, 1..4);
    (ids, members, stamp(), stops, option::of(stamp())).prop_map(
        |((attempt, epoch), mut members, assigned_at, stops, yields_at)| {
            let (cancel, evict, failed, dismissed) = stops;
            let others = members.split_off(1);
            State::Active(Active {
                attempt: AttemptNumber(attempt),
                epoch: Epoch(epoch),
                first: members.remove(0),
                others,
                assigned_at,
                cancel,
                evict,
                failed,
                dismissed,
                yields_at,
            })
        },
    )
}

fn manifest() -> impl Strategy<Value = ManifestRef> {
    (text(), any::<[u8; 32]>(), any::<u64>(), any::<u64>()).prop_map(
        |(key, digest, files, bytes)| {
            let digest = Digest::from_bytes(digest);
            ManifestRef { key, digest, files, bytes }
        },
    )
}

fn ended() -> impl Strategy<Value = State> {
    let outcome = prop_oneof![
        Just(Outcome::Completed),
        failure().prop_map(Outcome::Failed),
        cancel().prop_map(Outcome::Canceled),
    ];
    let other = (nodes(), option::of(exit()), option::of(manifest()), any::<u64>()).prop_map(
        |(node, exit, manifest, log_bytes)| {
            let started_at = None;
            MemberLeft { node, started_at, exit, manifest, log_bytes }
        },
    );
    let output = (port(), text(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(name, uri, files, bytes, partial)| OutputCommit { name, uri, files, bytes, partial },
    );
    let times = (stamp(), option::of(stamp()));
    let rest = (option::of(manifest()), vec(output, 0..3), any::<u64>(), vec(other, 0..3));
    (times, outcome, option::of(exit()), option::of(nodes()), rest).prop_map(
        |((at, started_at), outcome, exit, node, (manifest, outputs, log_bytes, others))| {
            let usage = used(log_bytes);
            let (decisive, left) = (1, Left::default());
            let left = Left {
                started_at,
                exit,
                node,
                manifest,
                outputs,
                log_bytes,
                others,
                usage,
                ..left
            };
            let left = Left { decisive, ..left };
            State::Ended(Ended { at, outcome, left })
        },
    )
}

/// Boxed: what makes a job would not fit on a test's stack otherwise.
fn state() -> BoxedStrategy<State> {
    let left = ended().prop_map(|state| match state {
        State::Ended(ended) => Some(Box::new(ended.left)),
        State::Queued(_) | State::Active(_) => None,
    });
    let queued = (stamp(), option::of(stamp()), option::of(text()), prop_oneof![Just(None), left])
        .prop_map(|(since, not_before, why, left)| {
            State::Queued(Queued { since, not_before, why, left })
        });
    prop_oneof![queued.boxed(), active().boxed(), ended().boxed()].boxed()
}

fn uri() -> impl Strategy<Value = DataUri> {
    use atelier_core::id::DatastoreName;
    let asset = (option::of(text()), text(), text()).prop_map(|(registry, name, version)| {
        DataUri::Asset(AssetRef { registry, name, version: AssetVersion::Label(version) })
    });
    prop_oneof![
        text().prop_map(DataUri::Http),
        text().prop_map(|path| DataUri::Datastore {
            datastore: DatastoreName::new("workspaceblobstore").unwrap(),
            path,
        }),
        (text(), text()).prop_map(|(output, path)| DataUri::JobOutput {
            job: name("other"),
            output,
            path,
        }),
        asset,
    ]
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        text().prop_map(|value| Input::Literal { value }),
        (uri(), option::of(text())).prop_map(|(uri, version)| Input::Data {
            kind: DataKind::MlTable,
            mode: InputMode::EvalMount,
            uri,
            asset: version.map(|version| AssetRef {
                registry: None,
                name: "iris".to_owned(),
                version: AssetVersion::Exact(version),
            }),
            address: Some("s3://bucket/iris".to_owned()),
        }),
        Just(Input::Unset),
    ]
}

fn specification() -> impl Strategy<Value = CommandJob> {
    let people = (option::of(text()), option::of(text()), btree_map(text(), text(), 0..3));
    let code = any::<[u8; 32]>().prop_map(|bytes| Code::Snapshot(Digest::from_bytes(bytes)));
    let output = option::of(text()).prop_map(|path| Output {
        kind: DataKind::UriFolder,
        mode: OutputMode::Upload,
        path,
        asset_name: None,
        asset_version: None,
    });
    let ports = (btree_map(port(), input(), 0..3), btree_map(port(), output, 0..3));
    let resources = (any::<u64>(), any::<u64>(), any::<u32>(), option::of(any::<u64>())).prop_map(
        |(cpu, memory, gpus, shm_size)| JobResources {
            demand: Demand {
                cpu,
                memory,
                gpus,
                gpu_share: (cpu % 1000) as u16,
                gpu_models: (gpus % 2 == 0).then(|| ["A100".to_owned(), "T4".to_owned()].into()),
                gpu_memory: memory,
                disk: cpu,
                node_labels: (gpus % 3 == 0)
                    .then(|| Arc::new([("zone".to_owned(), "b".to_owned())].into())),
                containers: match gpus % 4 {
                    0 => ContainerNeed::Nothing,
                    1 => ContainerNeed::Prefers(Containers::Run),
                    _ => ContainerNeed::Needs(Containers::Build),
                },
            },
            shm_size,
            properties: [("k".to_owned(), serde_json::json!({"deep": [1, 2.5, null]}))].into(),
            ..JobResources::default()
        },
    );
    let distribution = prop_oneof![
        any::<u32>().prop_map(|n| Distribution::PyTorch { process_count_per_instance: n }),
        (option::of(any::<u16>()), option::of(text())).prop_map(|(port, address)| {
            Distribution::Ray(Ray { port, address, ..Ray::default() })
        }),
    ];
    let environment = prop_oneof![
        Just(Environment::Host),
        text().prop_map(|name| Environment::Named(AssetRef {
            registry: None,
            name,
            version: AssetVersion::Default,
        })),
    ];
    let ends = (option::of(any::<u64>()), 1..9_u32, any::<u64>(), any::<bool>());
    (people, option::of(code), ports, resources, option::of(distribution), environment, ends)
        .prop_map(
            |(
                (display_name, description, tags),
                code,
                ports,
                resources,
                distribution,
                env,
                ends,
            )| {
                let (timeout, max_attempts, backoff, keep) = ends;
                CommandJob {
                    display_name,
                    description,
                    properties: tags.clone(),
                    environment_variables: tags.clone(),
                    tags,
                    code,
                    inputs: ports.0,
                    outputs: ports.1,
                    resources,
                    distribution,
                    environment: env,
                    limits: Limits { timeout },
                    identity: Some(Identity::AmlToken),
                    retry: Retry { max_attempts, backoff, memory_percent: Some(200) },
                    on_node_loss: if keep { OnNodeLoss::Keep } else { OnNodeLoss::Requeue },
                    idle_gpu: keep.then(IdleGpu::default),
                    keep_failed: keep.then_some(1_800),
                    ..spec("python train.py")
                }
            },
        )
}

fn any_job() -> impl Strategy<Value = Job> {
    let counts = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>());
    let tries = counts.prop_map(|(made, failed, lost, evicted, lost_ms)| Tries {
        made: AttemptNumber(made),
        failed,
        lost,
        unstarted: lost.rotate_left(3),
        evicted,
        lost_ms,
        after: Epoch(lost_ms.rotate_left(7)),
        memory: (lost_ms > 7).then_some(lost_ms / 2),
    });
    let who = (people(), stamp(), any::<bool>());
    (1..=i64::MAX as u64, specification(), state(), tries, who).prop_map(
        |(seq, spec, state, tries, (created_by, created_at, archived))| Job {
            spec: Arc::new(spec),
            state,
            tries,
            created_by,
            created_at,
            archived,
            ..waiting(seq)
        },
    )
}

fn kind() -> impl Strategy<Value = EventKind> {
    prop_oneof![
        Just(EventKind::Submitted),
        text().prop_map(|reason| EventKind::Queued { reason }),
        (nodes(), vec(any::<u16>(), 0..3), vec(nodes(), 0..3))
            .prop_map(|(node, gpus, others)| EventKind::Assigned { node, gpus, others }),
        (any::<u32>(), nodes(), option::of(text()))
            .prop_map(|(rank, node, problem)| EventKind::MemberEnded { rank, node, problem }),
        text().prop_map(|step| EventKind::Preparing { step }),
        Just(EventKind::Running),
        (nodes(), stamp()).prop_map(|(node, since)| EventKind::GpuIdle { node, since }),
        option::of(exit()).prop_map(|exit| EventKind::Finalizing { exit }),
        text().prop_map(|problem| EventKind::AssetRefused {
            output: PortName::new("out").unwrap(),
            problem
        }),
        any::<u32>().prop_map(|version| EventKind::AssetRegistered {
            output: PortName::new("out").unwrap(),
            asset: Kind::Model,
            name: AssetName::new("m").unwrap(),
            version: VersionName::new(&version.to_string()).unwrap(),
        }),
        Just(EventKind::Completed),
        failure().prop_map(|failure| EventKind::Failed { failure }),
        text().prop_map(|reason| EventKind::CancelRequested { reason }),
        text().prop_map(|reason| EventKind::Canceled { reason }),
        text().prop_map(|reason| EventKind::Requeued { reason }),
        nodes().prop_map(|node| EventKind::NodeUnreachable { node }),
        nodes().prop_map(|node| EventKind::NodeReturned { node }),
        (0_u32..4, text()).prop_map(|(rank, command)| EventKind::Entered { rank, command }),
        (0_u32..4, vec(any::<u16>(), 0..4))
            .prop_map(|(rank, ports)| EventKind::Forwarded { rank, ports }),
        (0_u32..4, text()).prop_map(|(rank, command)| EventKind::Debugged { rank, command }),
        Just(EventKind::Released),
        Just(EventKind::Archived),
        Just(EventKind::Restored),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let status = prop::sample::select(JobStatus::ALL.to_vec());
    (1..=i64::MAX as u64, stamp(), any::<u32>(), people(), status, kind()).prop_map(
        |(seq, at, attempt, principal, status, kind)| Event {
            seq: EventSeq(seq),
            job: name("job1"),
            at,
            attempt: AttemptNumber(attempt),
            principal,
            status,
            kind,
        },
    )
}

fn any_node() -> impl Strategy<Value = NodeRecord> {
    let gpu = || {
        let told = (text(), text(), any::<u64>());
        told.prop_map(|(uuid, model, memory)| GpuDevice { uuid, model, memory })
    };
    let out = (gpu(), text()).prop_map(|(device, reason)| GpuOut { device, reason });
    let labels = (option::of(any::<u64>()), btree_map(text(), text(), 0..3));
    let capacity = (any::<u64>(), any::<u64>(), btree_map(any::<u16>(), gpu(), 0..3), labels)
        .prop_map(|(cpu, memory, gpus, (disk, labels))| Capacity {
            cpu,
            memory,
            gpus,
            disk,
            labels,
            ..Capacity::default()
        });
    let drain = (people(), text(), stamp(), option::of(stamp()))
        .prop_map(|(by, reason, since, deadline)| Drain { by, reason, since, deadline });
    let facts = btree_map(text(), text(), 0..3);
    let said = (text(), facts, option::of(drain), btree_map(any::<u16>(), out, 0..2));
    (nodes(), capacity, said, stamp()).prop_map(
        |(name, capacity, (version, facts, drain, gpus_out), joined_at)| NodeRecord {
            gpus_out,
            drain,
            name,
            capacity,
            version,
            facts,
            joined_at,
            ..node("n1")
        },
    )
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![
        Just(Role::Admin),
        Just(Role::ComputeOperator),
        Just(Role::DataScientist),
        Just(Role::Reader),
        Just(Role::Custom(Held {
            name: RoleName::new("ops").unwrap(),
            permissions: Permissions::NONE,
        })),
        nodes().prop_map(Role::Node),
        (any::<u32>(), any::<u64>()).prop_map(|(attempt, epoch)| Role::Attempt(AttemptScope {
            job: name("job1"),
            attempt: AttemptNumber(attempt),
            epoch: Epoch(epoch),
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// First as a new row, then as another state of the same one.
    #[test]
    fn a_job_comes_out_as_it_went_in(
        first in any_job(), state in state(), archived in any::<bool>(), number in count()
    ) {
        let conn = database();
        let counters = Counters { epoch: Epoch(number), seq: first.seq, event: EventSeq(number) };
        let batch = Batch { counters: Some(counters), ..accepted([(first.clone(), None)]) };
        jobs::write(&conn, &batch).unwrap();
        prop_assert_eq!(jobs::job(&conn, &first.name).unwrap(), Some(first.clone()));
        let tries = Tries { failed: 7, ..first.tries };
        let then = Job { state, archived, tries, ..first };
        let changed = [(then.name.clone(), then.clone())].into();
        jobs::write(&conn, &Batch { changed, ..Batch::default() }).unwrap();
        let recovered = jobs::recover(&conn).unwrap();
        let live = (then.ended().is_none()).then(|| then.clone());
        prop_assert_eq!(recovered.jobs, Vec::from_iter(live));
        let found = recovered.counters;
        prop_assert_eq!((found.epoch, found.seq, found.event), (counters.epoch, counters.seq, counters.event));
        prop_assert_eq!(jobs::job(&conn, &then.name).unwrap(), Some(then));
    }

    #[test]
    fn an_event_comes_out_as_it_went_in(event in any_event()) {
        let conn = database();
        let mut batch = accepted([(Job { name: event.job.clone(), ..waiting(1) }, None)]);
        batch.events = vec![event.clone()];
        jobs::write(&conn, &batch).unwrap();
        prop_assert_eq!(jobs::events(&conn, Some(&event.job), 0, 9).unwrap(), vec![event]);
    }

    #[test]
    fn a_node_comes_out_as_it_went_in(first in any_node(), then in any_node()) {
        let conn = database();
        let then = NodeRecord { name: first.name.clone(), ..then };
        for record in [first, then] {
            jobs::write(&conn, &Batch { nodes: vec![record.clone()], ..Batch::default() }).unwrap();
            prop_assert_eq!(jobs::recover(&conn).unwrap().nodes, vec![record]);
        }
    }

    #[test]
    fn a_compute_comes_out_as_it_went_in(record in any_compute(), instance in any_instance()) {
        let conn = database();
        let mut batch = Batch::default();
        batch.computes.insert(record.name.clone(), record.clone());
        batch.instances.insert(instance.node.clone(), instance.clone());
        jobs::write(&conn, &batch).unwrap();
        let recovered = jobs::recover(&conn).unwrap();
        prop_assert_eq!(recovered.computes, vec![record.clone()]);
        prop_assert_eq!(recovered.instances, vec![instance.clone()]);
        let gone = Batch {
            computes_gone: vec![record.name],
            instances_gone: vec![instance.node],
            ..Batch::default()
        };
        jobs::write(&conn, &gone).unwrap();
        let recovered = jobs::recover(&conn).unwrap();
        prop_assert!(recovered.computes.is_empty() && recovered.instances.is_empty());
    }

    #[test]
    fn a_token_comes_out_as_it_went_in(
        role in any_role(), hash in any::<[u8; 32]>(), principal in people(), created_at in stamp(),
        created_by in option::of(people()), expires_at in option::of(stamp()),
        last_used_at in option::of(stamp()),
    ) {
        let conn = database();
        let hash = Digest::from_bytes(hash);
        let mut record = TokenRecord {
            hash, principal, role, created_at, created_by, expires_at, last_used_at,
        };
        jobs::put_token(&conn, &record).unwrap();
        prop_assert_eq!(jobs::tokens(&conn).unwrap(), vec![record.clone()]);
        store_people::note_uses(&conn, &[(hash, created_at)]).unwrap();
        record.last_used_at = Some(created_at);
        prop_assert_eq!(jobs::tokens(&conn).unwrap(), vec![record]);
    }

    #[test]
    fn a_user_and_a_role_come_out_as_they_went_in(
        role in any_role(), name in people(), created_at in stamp(), by in people(),
        description in text(),
    ) {
        let conn = database();
        let groups = [GroupName::new("/research/vision lab").unwrap()].into();
        let created_by = Some(by.clone());
        let user = UserRecord { name: name.clone(), role, created_by, created_at, signs_in: false, groups };
        PeopleChange::PutUser(user.clone()).apply(&Asked::on(&conn)).unwrap();
        prop_assert_eq!(store_people::users(&conn).unwrap(), vec![user.clone()]);
        let token = TokenRecord { principal: name.clone(), ..token() };
        jobs::put_token(&conn, &token).unwrap();
        PeopleChange::DeleteUser(name).apply(&Asked::on(&conn)).unwrap();
        prop_assert!(store_people::users(&conn).unwrap().is_empty());
        prop_assert!(jobs::tokens(&conn).unwrap().is_empty());
        let made = CustomRole {
            name: RoleName::new("ops").unwrap(),
            description,
            actions: vec!["workspaces/jobs/*".to_owned()],
            not_actions: vec![],
            created_by: by,
            created_at,
        };
        PeopleChange::PutRole(made.clone()).apply(&Asked::on(&conn)).unwrap();
        prop_assert_eq!(store_people::roles(&conn).unwrap(), vec![made.clone()]);
        PeopleChange::DeleteRole(made.name).apply(&Asked::on(&conn)).unwrap();
        prop_assert!(store_people::roles(&conn).unwrap().is_empty());
    }

    #[test]
    fn a_join_token_and_what_it_made_come_out_as_they_went_in(
        hash in any::<[u8; 32]>(), key in any::<[u8; 32]>(), by in people(), ms in 0..1_i64 << 42,
        bound in any::<bool>(), answer in text()
    ) {
        let (conn, created_at) = (database(), Timestamp::from_millis(ms));
        let node = NodeName::new("one").unwrap();
        let compute = ComputeName::new("gpu").unwrap();
        let token = JoinToken {
            hash: Digest::from_bytes(hash),
            compute: bound.then(|| compute.clone()),
            node: bound.then(|| node.clone()),
            created_by: by,
            created_at,
            expires_at: created_at.plus_millis(1000),
            used: None,
        };
        nodes::put_join_token(&Asked::on(&conn), &token).unwrap();
        prop_assert_eq!(nodes::join_token(&conn, &token.hash).unwrap(), Some(token.clone()));
        let asks = Joining { node: node.clone(), compute, key: Digest::from_bytes(key) };
        let made = NodeIdentity {
            node: node.clone(),
            id: "id".to_owned(),
            compute: token.compute.clone(),
            since: created_at,
            revoked_at: None,
        };
        let join = |asks: &Joining| nodes::join(&Asked::on(&conn), &token.hash, asks, &made, &answer, None);
        prop_assert_eq!(join(&asks).unwrap(), Ok(None));
        prop_assert_eq!(nodes::identities(&conn).unwrap(), vec![made.clone()]);
        // Asked again, the first answer; another gets none.
        prop_assert_eq!(join(&asks).unwrap(), Ok(Some(answer.clone())));
        let other = Joining { key: Digest::of(b"another"), ..asks.clone() };
        let used = Refusal::Used { at: created_at, by: node.clone() };
        prop_assert_eq!(join(&other).unwrap(), Err(used.clone()));
        // Revoked, it stays so, and what was answered is answered no more.
        let unused = JoinToken { hash: Digest::of(&hash), node: Some(node.clone()), ..token.clone() };
        nodes::put_join_token(&Asked::on(&conn), &unused).unwrap();
        let used_too = nodes::join_tokens(&conn).unwrap();
        prop_assert_eq!(used_too.len(), 2);
        let delete = |id: &str| nodes::delete_join_token(&Asked::on(&conn), id).unwrap();
        prop_assert_eq!(delete("x"), Err(NotDeleted::Unknown("x".to_owned())));
        let (id, at, by) = (token.id(), created_at, node.clone());
        prop_assert_eq!(delete(&id), Err(NotDeleted::Used { id: id.clone(), at, by }));
        prop_assert_eq!(delete(&unused.id()), Ok(unused.clone()));
        prop_assert_eq!(nodes::join_tokens(&conn).unwrap().len(), 1);
        nodes::put_join_token(&Asked::on(&conn), &unused).unwrap();
        let (revoked, dropped) = nodes::revoke(&Asked::on(&conn), &node, created_at).unwrap();
        prop_assert_eq!(dropped, vec![unused]);
        prop_assert_eq!(nodes::join_tokens(&conn).unwrap().len(), 1);
        prop_assert_eq!(revoked.revoked_at, Some(created_at));
        prop_assert_eq!(nodes::identity(&conn, &node).unwrap(), Some(revoked));
        prop_assert_eq!(join(&asks).unwrap(), Err(used));
        nodes::forget(&Asked::on(&conn), &node).unwrap();
        prop_assert_eq!(nodes::identities(&conn).unwrap(), vec![]);
    }
}
