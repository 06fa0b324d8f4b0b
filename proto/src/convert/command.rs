//! The command job.

use std::collections::BTreeMap;
use std::sync::Arc;

use atelier_core::id::{ComputeName, ExperimentName, JobName, PortName};
use atelier_core::resource::{ContainerNeed, Demand, MilliGpu, WHOLE_GPU};
use atelier_core::spec::{self, limits};

use super::data::number;
use super::{
    Error, OfField as _, Problem, UnderField as _, json_map, text, to_json_map, within, within_u32,
};
use crate::job::v1 as pb;

impl From<&spec::CommandJob> for pb::JobSpec {
    fn from(job: &spec::CommandJob) -> Self {
        Self { kind: Some(pb::job_spec::Kind::Command(job.into())) }
    }
}

impl TryFrom<pb::JobSpec> for spec::CommandJob {
    type Error = Error;
    fn try_from(job: pb::JobSpec) -> Result<Self, Error> {
        match job.kind.of("kind")? {
            pb::job_spec::Kind::Command(command) => command.try_into().under("command"),
        }
    }
}

impl From<&spec::CommandJob> for pb::CommandJob {
    fn from(job: &spec::CommandJob) -> Self {
        Self {
            name: job.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            display_name: job.display_name.clone(),
            description: job.description.clone(),
            experiment_name: job.experiment_name.as_str().to_owned(),
            tags: job.tags.clone(),
            properties: job.properties.clone(),
            command: job.command.clone(),
            code: job.code.as_ref().map(Into::into),
            environment: Some((&job.environment).into()),
            compute: job.compute.as_ref().map(ToString::to_string).unwrap_or_default(),
            inputs: ports(&job.inputs),
            outputs: ports(&job.outputs),
            environment_variables: job.environment_variables.clone(),
            resources: Some((&job.resources).into()),
            distribution: job.distribution.as_ref().map(Into::into),
            limits: Some(pb::Limits { timeout_s: job.limits.timeout }),
            queue_settings: Some(pb::QueueSettings {
                job_tier: job.queue.job_tier.clone(),
                priority: pb::Priority::from(job.queue.priority).into(),
            }),
            services: job
                .services
                .iter()
                .map(|(name, service)| (name.clone(), service.into()))
                .collect(),
            identity: job.identity.as_ref().map(Into::into),
            retry: Some(pb::Retry {
                max_attempts: job.retry.max_attempts,
                backoff_s: job.retry.backoff,
                memory_percent: job.retry.memory_percent,
            }),
            on_node_loss: pb::OnNodeLoss::from(job.on_node_loss).into(),
            idle_gpu: job.idle_gpu.map(|idle| pb::IdleGpu {
                action: pb::IdleAction::from(idle.action).into(),
                after_s: idle.after,
            }),
            keep_failed_s: job.keep_failed,
        }
    }
}

pub(super) fn ports<C, W>(ports: &BTreeMap<PortName, C>) -> BTreeMap<String, W>
where
    for<'a> W: From<&'a C>,
{
    ports.iter().map(|(name, port)| (name.to_string(), port.into())).collect()
}

impl TryFrom<pb::CommandJob> for spec::CommandJob {
    type Error = Error;
    fn try_from(job: pb::CommandJob) -> Result<Self, Error> {
        if job.command.trim().is_empty() {
            return Err(Error::new("command", Problem::Missing));
        }
        let resources = job.resources.map(resources).transpose().under("resources")?;
        let resources = resources.unwrap_or_default();
        let members = resources.instance_count;
        Ok(Self {
            name: named(&job.name, JobName::new, "name")?,
            display_name: job.display_name,
            description: job.description,
            experiment_name: ExperimentName::new(&job.experiment_name).of("experiment_name")?,
            tags: texts(job.tags, "tags")?,
            properties: texts(job.properties, "properties")?,
            command: text(job.command, limits::MAX_COMMAND).of("command")?,
            code: job.code.map(TryInto::try_into).transpose().under("code")?,
            environment: job.environment.of("environment")?.try_into().under("environment")?,
            compute: named(&job.compute, ComputeName::new, "compute")?,
            inputs: checked_ports(job.inputs, "inputs")?,
            outputs: checked_ports(job.outputs, "outputs")?,
            environment_variables: variables(job.environment_variables)?,
            resources,
            distribution: job
                .distribution
                .map(|distribution| self::distribution(distribution, members))
                .transpose()
                .under("distribution")?,
            limits: run_limits(job.limits.unwrap_or_default()).under("limits")?,
            queue: queue(job.queue_settings.unwrap_or_default()).under("queue_settings")?,
            services: services(job.services)?,
            identity: job.identity.map(identity).transpose().under("identity")?,
            retry: job.retry.map(retry).transpose().under("retry")?.unwrap_or_default(),
            on_node_loss: number::<pb::OnNodeLoss, _>(job.on_node_loss).of("on_node_loss")?,
            idle_gpu: job.idle_gpu.map(idle_gpu).transpose().under("idle_gpu")?,
            keep_failed: job
                .keep_failed_s
                .map(|seconds| within(seconds, 0, limits::MAX_KEPT))
                .transpose()
                .of("keep_failed_s")?,
        })
    }
}

fn named<N, E: Into<Problem>>(
    value: &str,
    make: impl Fn(&str) -> Result<N, E>,
    field: &str,
) -> Result<Option<N>, Error> {
    if value.is_empty() { Ok(None) } else { make(value).map(Some).of(field) }
}

pub(super) fn checked_ports<W, C>(
    ports: BTreeMap<String, W>,
    field: &str,
) -> Result<BTreeMap<PortName, C>, Error>
where
    C: TryFrom<W, Error = Error>,
{
    ports
        .into_iter()
        .map(|(name, port)| {
            let port = port.try_into().under(format_args!("{field}.{name}"))?;
            let name = PortName::new(&name).of(field)?;
            Ok((name, port))
        })
        .collect()
}

fn texts(values: BTreeMap<String, String>, field: &str) -> Result<BTreeMap<String, String>, Error> {
    values
        .into_iter()
        .map(|(key, value)| {
            let value = text(value, limits::MAX_VALUE).of(format_args!("{field}.{key}"))?;
            Ok((key, value))
        })
        .collect()
}

fn variables(values: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    for name in values.keys() {
        if !spec::is_variable_name(name) {
            let field = format!("environment_variables.{name}");
            return Err(Error::new(field, Problem::VariableName));
        }
    }
    texts(values, "environment_variables")
}

impl From<&spec::JobResources> for pb::Resources {
    fn from(resources: &spec::JobResources) -> Self {
        Self {
            instance_count: resources.instance_count,
            cpu_milli: resources.demand.cpu,
            memory_mib: resources.demand.memory,
            gpus: resources.demand.gpus,
            instance_type: resources.instance_type.clone(),
            shm_size_bytes: resources.shm_size,
            docker_args: resources.docker_args.clone(),
            properties_json: to_json_map(&resources.properties),
            gpu_share_milli: resources.demand.gpu_share.into(),
            gpu_models: resources
                .demand
                .gpu_models
                .iter()
                .flat_map(|m| m.iter())
                .cloned()
                .collect(),
            gpu_memory_mib: resources.demand.gpu_memory,
            disk_mib: resources.demand.disk,
            node_labels: resources.demand.node_labels.as_deref().cloned().unwrap_or_default(),
        }
    }
}

/// Zero instances or CPU means that the sender did not say: Azure's one instance, and one CPU.
pub(super) fn resources(wire: pb::Resources) -> Result<spec::JobResources, Error> {
    let cpu = if wire.cpu_milli == 0 { Demand::DEFAULT.cpu } else { wire.cpu_milli };
    let gpus = within_u32(wire.gpus, 0, limits::MAX_GPUS).of("gpus")?;
    Ok(spec::JobResources {
        instance_count: within_u32(wire.instance_count.max(1), 1, limits::MAX_INSTANCES)
            .of("instance_count")?,
        demand: Demand {
            cpu: within(cpu, 1, limits::MAX_MILLI_CPUS).of("cpu_milli")?,
            memory: within(wire.memory_mib, 0, limits::MAX_MEMORY).of("memory_mib")?,
            gpus,
            gpu_share: share(wire.gpu_share_milli, gpus)?,
            gpu_models: models(wire.gpu_models)?,
            gpu_memory: within(wire.gpu_memory_mib, 0, limits::MAX_MEMORY).of("gpu_memory_mib")?,
            disk: within(wire.disk_mib, 0, limits::MAX_MEMORY).of("disk_mib")?,
            node_labels: labels(wire.node_labels)?,
            // Follows from the environment, and is the daemon's to say.
            containers: ContainerNeed::Nothing,
        },
        instance_type: wire.instance_type,
        shm_size: wire.shm_size_bytes,
        docker_args: wire.docker_args,
        properties: json_map(wire.properties_json, "properties_json")?,
    })
}

/// A share is of exactly one device.
fn share(milli: u32, gpus: u32) -> Result<MilliGpu, Error> {
    let share = within_u32(milli, 0, u32::from(WHOLE_GPU) - 1).of("gpu_share_milli")?;
    if share > 0 {
        within_u32(gpus, 1, 1).of("gpus")?;
    }
    Ok(MilliGpu::try_from(share).unwrap_or_default())
}

fn models(models: Vec<String>) -> Result<Option<Arc<[String]>>, Error> {
    within(models.len() as u64, 0, limits::MAX_MODELS as u64).of("gpu_models")?;
    let models: Arc<[String]> = models
        .into_iter()
        .map(|model| text(model, limits::MAX_LABEL).of("gpu_models"))
        .collect::<Result<_, _>>()?;
    Ok((!models.is_empty()).then_some(models))
}

fn labels(
    labels: BTreeMap<String, String>,
) -> Result<Option<Arc<BTreeMap<String, String>>>, Error> {
    within(labels.len() as u64, 0, limits::MAX_LABELS as u64).of("node_labels")?;
    let labels = texts(labels, "node_labels")?;
    Ok((!labels.is_empty()).then(|| Arc::new(labels)))
}

impl From<&spec::Distribution> for pb::Distribution {
    fn from(distribution: &spec::Distribution) -> Self {
        use pb::distribution::{self as wire, Kind};
        let kind = match distribution {
            spec::Distribution::PyTorch { process_count_per_instance } => {
                Kind::Pytorch(wire::PyTorch {
                    process_count_per_instance: *process_count_per_instance,
                })
            }
            spec::Distribution::TensorFlow { worker_count, parameter_server_count } => {
                Kind::Tensorflow(wire::TensorFlow {
                    worker_count: *worker_count,
                    parameter_server_count: *parameter_server_count,
                })
            }
            spec::Distribution::Mpi { process_count_per_instance } => {
                Kind::Mpi(wire::Mpi { process_count_per_instance: *process_count_per_instance })
            }
            spec::Distribution::Ray(ray) => Kind::Ray(wire::Ray {
                port: ray.port.map(Into::into),
                address: ray.address.clone(),
                include_dashboard: ray.include_dashboard,
                dashboard_port: ray.dashboard_port.map(Into::into),
                head_node_additional_args: ray.head_node_additional_args.clone(),
                worker_node_additional_args: ray.worker_node_additional_args.clone(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

/// Zero processes means one on each instance; zero workers means one on each instance that is no parameter
/// server.
pub(super) fn distribution(
    wire: pb::Distribution,
    members: u32,
) -> Result<spec::Distribution, Error> {
    use pb::distribution::Kind;
    Ok(match wire.kind.of("kind")? {
        Kind::Pytorch(kind) => spec::Distribution::PyTorch {
            process_count_per_instance: processes(
                kind.process_count_per_instance,
                "pytorch.process_count_per_instance",
            )?,
        },
        Kind::Tensorflow(kind) => spec::Distribution::TensorFlow {
            worker_count: if kind.worker_count == 0 {
                members.saturating_sub(kind.parameter_server_count)
            } else {
                processes(kind.worker_count, "tensorflow.worker_count")?
            },
            parameter_server_count: within_u32(
                kind.parameter_server_count,
                0,
                limits::MAX_PROCESSES,
            )
            .of("tensorflow.parameter_server_count")?,
        },
        Kind::Mpi(kind) => spec::Distribution::Mpi {
            process_count_per_instance: processes(
                kind.process_count_per_instance,
                "mpi.process_count_per_instance",
            )?,
        },
        Kind::Ray(kind) => spec::Distribution::Ray(spec::Ray {
            port: port(kind.port, "ray.port")?,
            address: kind.address,
            include_dashboard: kind.include_dashboard,
            dashboard_port: port(kind.dashboard_port, "ray.dashboard_port")?,
            head_node_additional_args: kind.head_node_additional_args,
            worker_node_additional_args: kind.worker_node_additional_args,
        }),
    })
}

fn port(port: Option<u32>, field: &str) -> Result<Option<u16>, Error> {
    let port = port.map(|port| within_u32(port, 1, u16::MAX.into())).transpose().of(field)?;
    Ok(port.and_then(|port| u16::try_from(port).ok()))
}

fn processes(count: u32, field: &str) -> Result<u32, Error> {
    within_u32(count.max(1), 1, limits::MAX_PROCESSES).of(field)
}

fn run_limits(wire: pb::Limits) -> Result<spec::Limits, Error> {
    let timeout = wire.timeout_s.map(|seconds| within(seconds, 1, limits::MAX_SECONDS));
    Ok(spec::Limits { timeout: timeout.transpose().of("timeout_s")? })
}

fn queue(wire: pb::QueueSettings) -> Result<spec::QueueSettings, Error> {
    Ok(spec::QueueSettings {
        job_tier: wire.job_tier,
        priority: number::<pb::Priority, _>(wire.priority).of("priority")?,
    })
}

impl From<&spec::Service> for pb::Service {
    fn from(service: &spec::Service) -> Self {
        Self {
            r#type: service.kind.clone(),
            all_nodes: service.all_nodes,
            port: service.port.map(u32::from),
            properties: service.properties.clone(),
        }
    }
}

fn services(wire: BTreeMap<String, pb::Service>) -> Result<BTreeMap<String, spec::Service>, Error> {
    wire.into_iter()
        .map(|(name, service)| {
            let port = service
                .port
                .map(|port| {
                    u16::try_from(port)
                        .map_err(|_| Problem::TooLarge { value: port.into(), max: 65_535 })
                })
                .transpose()
                .of(format_args!("services.{name}.port"))?;
            let service = spec::Service {
                kind: service.r#type,
                all_nodes: service.all_nodes,
                port,
                properties: service.properties,
            };
            Ok((name, service))
        })
        .collect()
}

impl From<&spec::Identity> for pb::Identity {
    fn from(identity: &spec::Identity) -> Self {
        use pb::identity::{self as wire, Kind};
        let kind = match identity {
            spec::Identity::Managed { client_id } => {
                Kind::Managed(wire::Managed { client_id: client_id.clone() })
            }
            spec::Identity::UserIdentity => Kind::User(wire::User {}),
            spec::Identity::AmlToken => Kind::AmlToken(wire::AmlToken {}),
        };
        Self { kind: Some(kind) }
    }
}

fn identity(wire: pb::Identity) -> Result<spec::Identity, Error> {
    use pb::identity::Kind;
    Ok(match wire.kind.of("kind")? {
        Kind::Managed(kind) => spec::Identity::Managed { client_id: kind.client_id },
        Kind::User(_) => spec::Identity::UserIdentity,
        Kind::AmlToken(_) => spec::Identity::AmlToken,
    })
}

/// Zero attempts means that the sender did not say: one.
fn idle_gpu(wire: pb::IdleGpu) -> Result<spec::IdleGpu, Error> {
    Ok(spec::IdleGpu {
        action: number::<pb::IdleAction, _>(wire.action).of("action")?,
        after: within(wire.after_s, 1, limits::MAX_SECONDS).of("after_s")?,
    })
}

fn retry(wire: pb::Retry) -> Result<spec::Retry, Error> {
    let memory =
        wire.memory_percent.map(|percent| within_u32(percent, 100, limits::MAX_MEMORY_PERCENT));
    Ok(spec::Retry {
        max_attempts: within_u32(wire.max_attempts.max(1), 1, limits::MAX_ATTEMPTS)
            .of("max_attempts")?,
        backoff: within(wire.backoff_s, 0, limits::MAX_BACKOFF).of("backoff_s")?,
        memory_percent: memory.transpose().of("memory_percent")?,
    })
}
