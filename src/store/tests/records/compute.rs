//! Computes and their nodes' instances, of any shape.

use atelier_core::compute::{
    Access, Cluster, CommandProvider, ComputeRecord, Containment, Instance, InstanceState,
    NodeShape, Placement, Provider, Tier, Trouble, Whom,
};
use atelier_core::id::{ComputeName, GroupName};
use atelier_core::node::Drain;
use atelier_core::sched::{self, Quotas};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{nodes, people, stamp, text};

fn any_trouble() -> impl Strategy<Value = Trouble> {
    (any::<u32>(), text(), stamp(), stamp()).prop_map(|(failures, message, at, until)| Trouble {
        failures,
        message,
        at,
        until,
    })
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let shape = (any::<u64>(), any::<u64>(), any::<u32>(), option::of(text())).prop_map(
        |(cpu, memory, gpus, gpu_model)| NodeShape {
            cpu,
            memory,
            disk: memory,
            gpus,
            gpu_model,
            gpu_memory: cpu,
        },
    );
    let words = || vec(text(), 0..3);
    let command = (words(), words(), option::of(words()), any::<u64>(), any::<u32>()).prop_map(
        |(create, delete, list, timeout, retries)| {
            Provider::Command(CommandProvider { create, delete, list, timeout, retries })
        },
    );
    let provider = prop_oneof![Just(Provider::Local), Just(Provider::Joined), command];
    let numbers = (any::<u32>(), any::<u32>(), any::<u64>());
    let kinds = (any::<bool>(), any::<bool>(), option::of(text()));
    (text(), shape, provider, numbers, kinds).prop_map(
        |(size, node, provider, (min, max, idle), (low, shared, location))| Cluster {
            min_instances: min,
            max_instances: max,
            idle_time_before_scale_down: idle,
            tier: if low { Tier::LowPriority } else { Tier::Dedicated },
            placement: if shared { Placement::Shared } else { Placement::Exclusive },
            containment: if low { Containment::Strict } else { Containment::BestEffort },
            provider,
            description: location.clone(),
            location,
            tags: [("k".to_owned(), "v".to_owned())].into(),
            node_labels: [("zone".to_owned(), size.clone())].into(),
            ..Cluster::new(ComputeName::new("burst").unwrap(), &size, node)
        },
    )
}

pub(super) fn any_compute() -> impl Strategy<Value = ComputeRecord> {
    let drain = (people(), text(), stamp(), option::of(stamp()))
        .prop_map(|(by, reason, since, deadline)| Drain { by, reason, since, deadline });
    let more = (any::<u64>(), any::<bool>(), people(), stamp());
    (option::of(any_cluster()), option::of(drain), option::of(any_trouble()), more).prop_map(
        |(cluster, drain, trouble, (next_node, deleted, created_by, created_at))| ComputeRecord {
            name: ComputeName::new("burst").unwrap(),
            cluster,
            created_by: created_by.clone(),
            created_at,
            next_node,
            drain,
            deleted,
            least_memory: Some(next_node).filter(|_| deleted),
            least_disk: Some(next_node).filter(|_| !deleted),
            quotas: Quotas {
                each: sched::Limits {
                    cpu: Some(next_node).filter(|_| deleted),
                    ..Default::default()
                },
                users: [(
                    created_by.clone(),
                    sched::Limits { jobs: Some(3), ..Default::default() },
                )]
                .into(),
                groups: [(
                    GroupName::new("vision").unwrap(),
                    sched::Limits { nodes: Some(4), ..Default::default() },
                )]
                .into(),
            },
            access: match deleted {
                true => Access::Everybody,
                false => Access::Given(Whom {
                    users: [created_by].into(),
                    groups: [GroupName::new("vision").unwrap()].into(),
                }),
            },
            trouble,
        },
    )
}

pub(super) fn any_instance() -> impl Strategy<Value = Instance> {
    let leaving = (text(), option::of(any_trouble()), any::<bool>()).prop_map(
        |(reason, trouble, preempted)| InstanceState::Leaving { reason, trouble, preempted },
    );
    let state = prop_oneof![
        stamp().prop_map(|since| InstanceState::Creating { since }),
        stamp().prop_map(|since| InstanceState::Joining { since }),
        Just(InstanceState::Up),
        (text(), any::<bool>())
            .prop_map(|(reason, preempted)| InstanceState::Retiring { reason, preempted }),
        leaving,
    ];
    (nodes(), state).prop_map(|(node, state)| Instance {
        node,
        compute: ComputeName::new("burst").unwrap(),
        state,
    })
}
