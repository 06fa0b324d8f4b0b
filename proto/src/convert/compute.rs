//! Clusters.

use atelier_core::compute as core;
use atelier_core::id::{ComputeName, GroupName, Principal};
use atelier_core::resource::{Capacity, GpuDevice};
use atelier_core::sched::{Limits, Quotas};
use atelier_core::spec::limits::{MAX_ENTRIES, MAX_VALUE};

use super::{Error, OfField as _, UnderField as _, text, within};
use crate::compute::v1 as pb;

impl From<&core::NodeShape> for pb::NodeShape {
    fn from(shape: &core::NodeShape) -> Self {
        Self {
            cpu_milli: shape.cpu,
            memory_mib: shape.memory,
            disk_mib: shape.disk,
            gpus: shape.gpus,
            gpu_model: shape.gpu_model.clone().unwrap_or_default(),
            gpu_memory_mib: shape.gpu_memory,
        }
    }
}

impl TryFrom<pb::NodeShape> for core::NodeShape {
    type Error = Error;
    fn try_from(shape: pb::NodeShape) -> Result<Self, Error> {
        let model = text(shape.gpu_model, MAX_VALUE).of("gpu_model")?;
        Ok(Self {
            cpu: shape.cpu_milli,
            memory: shape.memory_mib,
            disk: shape.disk_mib,
            gpus: shape.gpus,
            gpu_model: Some(model).filter(|model| !model.is_empty()),
            gpu_memory: shape.gpu_memory_mib,
        })
    }
}

impl From<&Limits> for pb::Limits {
    fn from(limits: &Limits) -> Self {
        Self {
            cpu_milli: limits.cpu,
            memory_mib: limits.memory,
            milli_gpus: limits.milli_gpus,
            nodes: limits.nodes,
            jobs: limits.jobs,
        }
    }
}

/// What they may be is [`Live::set_quota`](atelier_core::live::Live::set_quota)'s to say.
impl From<pb::Limits> for Limits {
    fn from(limits: pb::Limits) -> Self {
        Self {
            cpu: limits.cpu_milli,
            memory: limits.memory_mib,
            milli_gpus: limits.milli_gpus,
            nodes: limits.nodes,
            jobs: limits.jobs,
        }
    }
}

impl pb::Quota {
    /// All quotas of a compute: that of everybody first, then by user, then by group.
    pub fn all(quotas: &Quotas) -> Vec<Self> {
        let one = |limits: &Limits| Self { limits: Some(limits.into()), ..Self::default() };
        let each = (!quotas.each.is_empty()).then(|| one(&quotas.each));
        let of_user =
            |(user, limits): (&Principal, _)| Self { user: user.to_string(), ..one(limits) };
        let of_group =
            |(group, limits): (&GroupName, _)| Self { group: group.to_string(), ..one(limits) };
        let users = quotas.users.iter().map(of_user);
        each.into_iter().chain(users).chain(quotas.groups.iter().map(of_group)).collect()
    }
}

impl From<&core::Access> for pb::Access {
    fn from(access: &core::Access) -> Self {
        match access {
            core::Access::Everybody => Self { everybody: true, ..Self::default() },
            core::Access::Given(whom) => Self {
                everybody: false,
                users: whom.users.iter().map(ToString::to_string).collect(),
                groups: whom.groups.iter().map(ToString::to_string).collect(),
            },
        }
    }
}

impl From<&core::Cluster> for pb::Cluster {
    fn from(cluster: &core::Cluster) -> Self {
        use pb::cluster::Provider;
        Self {
            name: cluster.name.to_string(),
            description: cluster.description.clone().unwrap_or_default(),
            tags: cluster.tags.clone().into_iter().collect(),
            size: cluster.size.clone(),
            node: Some((&cluster.node).into()),
            min_instances: cluster.min_instances,
            max_instances: cluster.max_instances,
            idle_time_before_scale_down_s: cluster.idle_time_before_scale_down,
            tier: match cluster.tier {
                core::Tier::Dedicated => pb::Tier::Dedicated,
                core::Tier::LowPriority => pb::Tier::LowPriority,
            }
            .into(),
            placement: match cluster.placement {
                core::Placement::Exclusive => pb::Placement::Exclusive,
                core::Placement::Shared => pb::Placement::Shared,
            }
            .into(),
            strict_containment: cluster.containment == core::Containment::Strict,
            location: cluster.location.clone().unwrap_or_default(),
            node_labels: cluster.node_labels.clone().into_iter().collect(),
            provider: Some(match &cluster.provider {
                core::Provider::Local => Provider::Local(pb::LocalProvider {}),
                core::Provider::Joined => Provider::Joined(pb::JoinedProvider {}),
                core::Provider::Command(command) => Provider::Command(pb::CommandProvider {
                    create: command.create.clone(),
                    delete: command.delete.clone(),
                    list: command.list.clone().unwrap_or_default(),
                    timeout_s: command.timeout,
                    retries: command.retries,
                }),
            }),
        }
    }
}

/// Checks texts and names; what numbers may be is [`core::Cluster::check`]'s to say.
impl TryFrom<pb::Cluster> for core::Cluster {
    type Error = Error;
    fn try_from(cluster: pb::Cluster) -> Result<Self, Error> {
        use pb::cluster::Provider;
        let name = ComputeName::new(&cluster.name).of("name")?;
        let size = text(cluster.size.clone(), MAX_VALUE).of("size")?;
        let (tier, placement) = (cluster.tier(), cluster.placement());
        let node = cluster.node.of("node")?.try_into().under("node")?;
        let optional = |value: String, field: &str| {
            let value = text(value, MAX_VALUE).of(field)?;
            Ok::<_, Error>(Some(value).filter(|value| !value.is_empty()))
        };
        let words = |words: Vec<String>, field: &str| {
            within(words.len() as u64, 0, MAX_ENTRIES as u64).of(field)?;
            let words = words.into_iter().map(|word| text(word, MAX_VALUE).of(field));
            words.collect::<Result<Vec<String>, Error>>()
        };
        within(cluster.tags.len() as u64, 0, MAX_ENTRIES as u64).of("tags")?;
        within(cluster.node_labels.len() as u64, 0, MAX_ENTRIES as u64).of("node_labels")?;
        Ok(Self {
            description: optional(cluster.description, "description")?,
            tags: cluster.tags.into_iter().collect(),
            min_instances: cluster.min_instances,
            max_instances: cluster.max_instances,
            idle_time_before_scale_down: cluster.idle_time_before_scale_down_s,
            tier: match tier {
                pb::Tier::Unspecified | pb::Tier::Dedicated => core::Tier::Dedicated,
                pb::Tier::LowPriority => core::Tier::LowPriority,
            },
            placement: match placement {
                pb::Placement::Unspecified | pb::Placement::Exclusive => core::Placement::Exclusive,
                pb::Placement::Shared => core::Placement::Shared,
            },
            containment: match cluster.strict_containment {
                true => core::Containment::Strict,
                false => core::Containment::BestEffort,
            },
            provider: match cluster.provider {
                None | Some(Provider::Local(_)) => core::Provider::Local,
                Some(Provider::Joined(_)) => core::Provider::Joined,
                Some(Provider::Command(command)) => {
                    let list: Vec<String> = words(command.list, "command.list")?;
                    core::Provider::Command(core::CommandProvider {
                        create: words(command.create, "command.create")?,
                        delete: words(command.delete, "command.delete")?,
                        list: Some(list).filter(|list| !list.is_empty()),
                        timeout: command.timeout_s,
                        retries: command.retries,
                    })
                }
            },
            location: optional(cluster.location, "location")?,
            node_labels: cluster.node_labels.into_iter().collect(),
            ..Self::new(name, &size, node)
        })
    }
}

/// What a node offers in all. Of its devices only what they are: which they are is of no account.
impl From<&pb::Node> for Capacity {
    fn from(node: &pb::Node) -> Self {
        let resources = node.capacity.unwrap_or_default();
        let gpus = (0..).zip(&node.gpus).map(|(index, gpu)| {
            let (model, memory) = (gpu.model.clone(), gpu.memory_mib);
            (index, GpuDevice { uuid: String::new(), model, memory })
        });
        Self {
            cpu: resources.cpu_milli,
            memory: resources.memory_mib,
            gpus: gpus.collect(),
            disk: resources.disk_mib,
            labels: node.labels.clone().into_iter().collect(),
            ..Self::default()
        }
    }
}
