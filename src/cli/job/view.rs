//! A job as JSON, with the names that `az ml job show` prints.

use std::collections::BTreeMap;

use atelier_core::resource::Memory;
use atelier_core::time::Timestamp;
use atelier_proto::job::v1 as pb;
use serde_json::{Map, Value, json};

use super::debug;
use super::summary::size;
use crate::cli::compute::cpus;

/// RFC 3339, or null for "not yet".
pub(in crate::cli) fn time(millis: i64) -> Value {
    match millis {
        0 => Value::Null,
        millis => Timestamp::from_millis(millis).to_string().into(),
    }
}

/// The whole job.
pub(in crate::cli) fn job(job: &pb::Job) -> Value {
    let mut view = Map::new();
    let mut put = |key: &str, value: Value| {
        view.insert(key.to_owned(), value);
    };
    put("name", job.name.clone().into());
    put("status", job.status().word().into());
    put("type", "command".into());
    let command = job.spec.as_ref().and_then(|spec| spec.kind.as_ref()).map(|kind| {
        let pb::job_spec::Kind::Command(command) = kind;
        command
    });
    if let Some(command) = command {
        put("display_name", command.display_name.as_deref().unwrap_or(&job.name).into());
        put("description", command.description.clone().into());
        put("experiment_name", command.experiment_name.clone().into());
    }
    put("compute", azureml(&job.compute));
    put("attempt", job.attempt.into());
    if job.memory_mib > 0 {
        put("attempt_memory", Memory(job.memory_mib).to_string().into());
    }
    put("node", Some(&job.node).filter(|node| !node.is_empty()).cloned().into());
    if !job.members.is_empty() {
        put("members", job.members.iter().map(member).collect());
    }
    if !job.gpu_indices.is_empty() {
        put("gpu_indices", job.gpu_indices.clone().into());
    }
    if !job.input_holders.is_empty() {
        put("input_holders", job.input_holders.iter().map(holder).collect());
    }
    if !job.wait_reason.is_empty() {
        put("wait_reason", job.wait_reason.clone().into());
    }
    let error = job.error.as_ref();
    put("error", error.map_or(Value::Null, |e| json!({ "code": e.code, "message": e.message })));
    put("exit_code", job.exit_code.into());
    if !job.sandboxes.is_empty() {
        put("sandboxes", debug::kept(&job.sandboxes));
    }
    if !job.removed_ms.is_empty() {
        put("removed", each(&job.removed_ms, |at| time(*at)));
    }
    put(
        "creation_context",
        json!({
            "created_at": time(job.created_at_ms),
            "created_by": job.created_by,
            "created_by_type": "User",
        }),
    );
    put("start_time", time(job.started_at_ms));
    put("end_time", time(job.ended_at_ms));
    put("duration", duration(job).map_or(Value::Null, |millis| json!(millis as f64 / 1000.0)));
    if let Some(command) = command {
        put("command", command.command.clone().into());
        put("code", command.code.as_ref().map_or(Value::Null, code));
        put("environment", command.environment.as_ref().map_or(Value::Null, environment));
        put("environment_variables", json!(command.environment_variables));
        put("inputs", each(&command.inputs, input));
        put("outputs", outputs(&command.outputs, job));
        put("resources", command.resources.as_ref().map_or(Value::Null, resources));
        put("distribution", command.distribution.as_ref().map_or(Value::Null, distribution));
        let timeout = command.limits.as_ref().and_then(|limits| limits.timeout_s);
        put("limits", timeout.map_or(Value::Null, |seconds| json!({ "timeout": seconds })));
        put("queue_settings", command.queue_settings.as_ref().map_or(Value::Null, queue));
        put("services", each(&command.services, service));
        put("identity", command.identity.as_ref().map_or(Value::Null, identity));
        put("retry", command.retry.as_ref().map_or(Value::Null, retry));
        put("on_node_loss", on_node_loss(command.on_node_loss()).into());
        put("idle_gpu", command.idle_gpu.as_ref().map_or(Value::Null, idle_gpu));
        put("keep_failed", command.keep_failed_s.into());
        put("tags", json!(command.tags));
        put("properties", json!(command.properties));
    }
    put("metrics", json!(job.metrics));
    put("usage", job.usage.as_ref().map_or(Value::Null, used));
    put("memory_advice", job.memory_advice.as_ref().map_or(Value::Null, advice));
    put("archived", job.archived.into());
    Value::Object(view)
}

/// What a job reads, each input with its name.
pub(in crate::cli) fn inputs(job: &pb::Job) -> Vec<Value> {
    let command = job.spec.as_ref().and_then(|spec| spec.kind.as_ref()).map(|kind| {
        let pb::job_spec::Kind::Command(command) = kind;
        command
    });
    let named = |(name, given): (&String, &pb::Input)| match input(given) {
        Value::Object(data) => {
            let name = ("name".to_owned(), json!(name));
            Value::Object(std::iter::once(name).chain(data).collect())
        }
        value => json!({ "name": name, "value": value }),
    };
    command.into_iter().flat_map(|command| &command.inputs).map(named).collect()
}

/// What a job uses or used, beside what was asked for.
pub(in crate::cli) fn usage(job: &pb::Job) -> Value {
    let command = job.spec.as_ref().and_then(|spec| spec.kind.as_ref()).map(|kind| {
        let pb::job_spec::Kind::Command(command) = kind;
        command
    });
    let resources = command.and_then(|command| command.resources.as_ref()).map(resources);
    let system = job.metrics.iter().filter(|(name, _)| name.starts_with("system/"));
    json!({
        "name": job.name,
        "status": job.status().word(),
        "resources": resources,
        "usage": job.usage.as_ref().map(used),
        "memory_advice": job.memory_advice.as_ref().map(advice),
        "last_samples": system.collect::<BTreeMap<_, _>>(),
    })
}

/// What an attempt used; of GPUs nothing is said where it had none.
fn used(usage: &pb::Usage) -> Value {
    let seconds = |millis: u64| millis as f64 / 1000.0;
    let on_gpus = usage.gpu_ms > 0 || usage.peak_gpu_memory_mib > 0;
    let has_inputs = usage.input_bytes > 0;
    json!({
        "cpu_seconds": seconds(usage.cpu_ms),
        "wall_seconds": seconds(usage.wall_ms),
        "peak_memory": (usage.peak_memory_mib > 0).then(|| Memory(usage.peak_memory_mib).to_string()),
        "gpu_seconds": on_gpus.then(|| seconds(usage.gpu_ms)),
        "input_bytes": has_inputs.then_some(usage.input_bytes),
        "input_fetched_bytes": has_inputs.then_some(usage.input_fetched_bytes),
        "peak_gpu_memory": on_gpus.then(|| Memory(usage.peak_gpu_memory_mib).to_string()),
    })
}

/// What to ask for, in words.
fn advice(advice: &pb::MemoryAdvice) -> Value {
    let runs = match advice.runs {
        1 => "one completed run".to_owned(),
        runs => format!("{runs} completed runs"),
    };
    let (peak, memory) = (Memory(advice.peak_memory_mib), Memory(advice.memory_mib));
    format!(
        "{runs} of this command used {peak} at most; resources.memory={}MiB ({memory}) would do",
        advice.memory_mib
    )
    .into()
}

/// A member of a job on several nodes.
fn member(member: &pb::Member) -> Value {
    json!({
        "rank": member.rank,
        "node": member.node,
        "status": member.status().word(),
        "exit_code": member.exit_code,
        "start_time": time(member.started_at_ms),
    })
}

/// The same in words.
pub(super) fn holds(holder: &pb::InputHolder) -> String {
    format!("{} holds {} of the job's inputs", holder.node, size(holder.bytes))
}

/// A node that holds some of a job's inputs.
fn holder(holder: &pb::InputHolder) -> Value {
    json!({ "node": holder.node, "bytes": holder.bytes })
}

/// How long it ran, in milliseconds; of a job that never ran, how long it lived.
pub(in crate::cli) fn duration(job: &pb::Job) -> Option<i64> {
    let from = if job.started_at_ms > 0 { job.started_at_ms } else { job.created_at_ms };
    (job.ended_at_ms > 0).then(|| job.ended_at_ms.saturating_sub(from).max(0))
}

/// An event of a job.
pub(in crate::cli) fn event(event: &pb::Event) -> Value {
    json!({
        "seq": event.seq,
        "time": time(event.at_ms),
        "job": event.job,
        "attempt": event.attempt,
        "kind": event.kind,
        "status": event.status().word(),
        "message": event.message,
        "principal": event.principal,
    })
}

fn azureml(name: &str) -> Value {
    if name.is_empty() { Value::Null } else { format!("azureml:{name}").into() }
}

fn each<T>(items: &BTreeMap<String, T>, view: impl Fn(&T) -> Value) -> Value {
    Value::Object(items.iter().map(|(name, item)| (name.clone(), view(item))).collect())
}

pub(in crate::cli) fn code(code: &pb::Code) -> Value {
    match &code.source {
        Some(pb::code::Source::Local(path)) => path.clone().into(),
        Some(pb::code::Source::Snapshot(digest)) => {
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("azureml:code:{hex}").into()
        }
        None => Value::Null,
    }
}

fn asset(asset: &pb::AssetRef) -> String {
    use pb::asset_ref::Which;
    match (&asset.which, asset.registry.as_str()) {
        (None, "") => format!("azureml:{}", asset.name),
        (Some(Which::Version(version)), "") => format!("azureml:{}:{version}", asset.name),
        (Some(Which::Label(label)), "") => format!("azureml:{}@{label}", asset.name),
        (which, registry) => {
            let which = match which {
                None => String::new(),
                Some(Which::Version(version)) => format!("/versions/{version}"),
                Some(Which::Label(label)) => format!("/labels/{label}"),
            };
            format!("azureml://registries/{registry}/environments/{}{which}", asset.name)
        }
    }
}

pub(in crate::cli) fn environment(environment: &pb::Environment) -> Value {
    use pb::environment::Source;
    match &environment.source {
        Some(Source::Host(_)) => "host".into(),
        Some(Source::Named(named)) => asset(named).into(),
        Some(Source::Inline(inline)) => Value::Object(made_of(inline)),
        None => Value::Null,
    }
}

/// What an environment is made of, by the keys of its file.
pub(in crate::cli) fn made_of(inline: &pb::InlineEnvironment) -> Map<String, Value> {
    let mut view = Map::new();
    if let Some(name) = &inline.name {
        view.insert("name".to_owned(), name.clone().into());
    }
    if let Some(image) = &inline.image {
        view.insert("image".to_owned(), image.clone().into());
    }
    if let Some(conda) = &inline.conda_json {
        let conda = serde_json::from_str(conda).unwrap_or_else(|_| conda.clone().into());
        view.insert("conda_file".to_owned(), conda);
    }
    if let Some(build) = &inline.build {
        let build = json!({
            "path": build.path.as_ref().map_or(Value::Null, code),
            "dockerfile_path": build.dockerfile_path,
        });
        view.insert("build".to_owned(), build);
    }
    view
}

pub(in crate::cli) fn uri(uri: &pb::DataUri) -> Value {
    use pb::data_uri::Form;
    match &uri.form {
        Some(Form::Local(path) | Form::Http(path) | Form::Cloud(path)) => path.clone().into(),
        Some(Form::Datastore(at)) => {
            format!("azureml://datastores/{}/paths/{}", at.name, at.path).into()
        }
        Some(Form::JobOutput(at)) if at.path.is_empty() => {
            format!("azureml://jobs/{}/outputs/{}", at.job, at.output).into()
        }
        Some(Form::JobOutput(at)) => {
            format!("azureml://jobs/{}/outputs/{}/paths/{}", at.job, at.output, at.path).into()
        }
        Some(Form::RunArtifact(at)) => format!("runs:/{}/{}", at.run, at.path).into(),
        Some(Form::Asset(named)) => asset(named).into(),
        None => Value::Null,
    }
}

pub(in crate::cli) const fn kind(kind: pb::DataKind) -> &'static str {
    match kind {
        pb::DataKind::Unspecified | pb::DataKind::UriFolder => "uri_folder",
        pb::DataKind::UriFile => "uri_file",
        pb::DataKind::Mltable => "mltable",
        pb::DataKind::MlflowModel => "mlflow_model",
        pb::DataKind::CustomModel => "custom_model",
        pb::DataKind::TritonModel => "triton_model",
    }
}

/// A data input that a node fetches or mounts; `None` for literals and for what the job is given the
/// address of.
pub(super) fn fetched(given: &pb::Input) -> Option<Value> {
    let Some(pb::input::Value::Data(data)) = &given.value else { return None };
    (data.mode() != pb::InputMode::Direct).then(|| input(given))
}

/// Literals stand as they are, as in the job's file.
fn input(input: &pb::Input) -> Value {
    use pb::input::Value as V;
    match &input.value {
        Some(V::Literal(value)) => value.clone().into(),
        Some(V::Data(data)) => data_input(data),
        Some(V::Unset(_)) | None => Value::Null,
    }
}

fn data_input(data: &pb::input::Data) -> Value {
    let mut view = json!({
            "type": kind(data.kind()),
            "mode": match data.mode() {
                pb::InputMode::Unspecified | pb::InputMode::RoMount => "ro_mount",
                pb::InputMode::Download => "download",
                pb::InputMode::Direct => "direct",
                pb::InputMode::EvalMount => "eval_mount",
                pb::InputMode::EvalDownload => "eval_download",
            },
            "path": data.uri.as_ref().map_or(Value::Null, uri),
    });
    if let Some(named) = &data.asset {
        view["asset"] = asset(named).into();
    }
    if let Some(address) = &data.address {
        view["address"] = address.clone().into();
    }
    view
}

/// What was asked for, and where it lies once it is there; what the job has beyond its declared
/// outputs (`artifacts`) too.
fn outputs(declared: &BTreeMap<String, pb::Output>, job: &pb::Job) -> Value {
    let mut view: Map<String, Value> = declared
        .iter()
        .map(|(name, output)| {
            let mode = match output.mode() {
                pb::OutputMode::Unspecified | pb::OutputMode::RwMount => "rw_mount",
                pb::OutputMode::Upload => "upload",
                pb::OutputMode::Direct => "direct",
            };
            let mut view = json!({
                "type": kind(output.kind()),
                "mode": mode,
                "path": output.path,
            });
            if let Some(asset) = &output.asset_name {
                view["name"] = asset.clone().into();
            }
            if let Some(version) = &output.asset_version {
                view["version"] = version.clone().into();
            }
            (name.clone(), view)
        })
        .collect();
    for commit in &job.outputs {
        let output = view
            .entry(commit.name.clone())
            .or_insert_with(|| json!({ "type": "uri_folder", "mode": "rw_mount" }));
        output["path"] = commit.uri.clone().into();
        output["files"] = commit.files.into();
        output["bytes"] = commit.bytes.into();
        output["partial"] = commit.partial.into();
    }
    for (name, asset) in &job.output_assets {
        if let Some(output) = view.get_mut(name) {
            output["asset"] = asset.clone().into();
        }
    }
    Value::Object(view)
}

fn from_json(values: &BTreeMap<String, String>) -> Value {
    each(values, |text| serde_json::from_str(text).unwrap_or_else(|_| text.clone().into()))
}

pub(in crate::cli) fn resources(resources: &pb::Resources) -> Value {
    let mut view = json!({
        "instance_count": resources.instance_count,
        "cpus": cpus(resources.cpu_milli),
        "memory": match resources.memory_mib {
            0 => Value::Null,
            mib => Memory(mib).to_string().replace(' ', "").into(),
        },
        "gpus": match resources.gpu_share_milli {
            0 => resources.gpus.into(),
            share => json!(f64::from(share) / 1000.0),
        },
    });
    let amount = |mib: u64| Value::from(Memory(mib).to_string().replace(' ', ""));
    match resources.gpu_models.as_slice() {
        [] => {}
        [model] => view["gpu_model"] = model.clone().into(),
        models => view["gpu_model"] = json!(models),
    }
    if resources.gpu_memory_mib > 0 {
        view["gpu_memory"] = amount(resources.gpu_memory_mib);
    }
    if resources.disk_mib > 0 {
        view["disk"] = amount(resources.disk_mib);
    }
    if !resources.node_labels.is_empty() {
        view["node_labels"] = json!(resources.node_labels);
    }
    if let Some(instance) = &resources.instance_type {
        view["instance_type"] = instance.clone().into();
    }
    if let Some(bytes) = resources.shm_size_bytes {
        view["shm_size"] = format!("{bytes}b").into();
    }
    if !resources.docker_args.is_empty() {
        view["docker_args"] = resources.docker_args.join(" ").into();
    }
    if !resources.properties_json.is_empty() {
        view["properties"] = from_json(&resources.properties_json);
    }
    view
}

pub(in crate::cli) fn distribution(distribution: &pb::Distribution) -> Value {
    use pb::distribution::Kind;
    match &distribution.kind {
        Some(Kind::Pytorch(kind)) => json!({
            "type": "pytorch",
            "process_count_per_instance": kind.process_count_per_instance,
        }),
        Some(Kind::Tensorflow(kind)) => json!({
            "type": "tensorflow",
            "worker_count": kind.worker_count,
            "parameter_server_count": kind.parameter_server_count,
        }),
        Some(Kind::Mpi(kind)) => json!({
            "type": "mpi",
            "process_count_per_instance": kind.process_count_per_instance,
        }),
        Some(Kind::Ray(kind)) => {
            let mut view = json!({ "type": "ray" });
            let mut set = |key: &str, value: Option<Value>| {
                if let Some(value) = value {
                    view[key] = value;
                }
            };
            set("port", kind.port.map(Into::into));
            set("address", kind.address.clone().map(Into::into));
            set("include_dashboard", kind.include_dashboard.map(Into::into));
            set("dashboard_port", kind.dashboard_port.map(Into::into));
            for (key, line) in [
                ("head_node_additional_args", &kind.head_node_additional_args),
                ("worker_node_additional_args", &kind.worker_node_additional_args),
            ] {
                set(key, line.clone().map(Into::into));
            }
            view
        }
        None => Value::Null,
    }
}

fn queue(queue: &pb::QueueSettings) -> Value {
    let priority = match queue.priority() {
        pb::Priority::Low => "low",
        pb::Priority::Unspecified | pb::Priority::Medium => "medium",
        pb::Priority::High => "high",
    };
    json!({ "job_tier": queue.job_tier, "priority": priority })
}

fn service(service: &pb::Service) -> Value {
    let mut view = json!({ "type": service.r#type });
    if service.all_nodes {
        view["nodes"] = "all".into();
    }
    if let Some(port) = service.port {
        view["port"] = port.into();
    }
    if !service.properties.is_empty() {
        view["properties"] = json!(service.properties);
    }
    view
}

fn identity(identity: &pb::Identity) -> Value {
    use pb::identity::Kind;
    match &identity.kind {
        Some(Kind::Managed(kind)) => json!({ "type": "managed", "client_id": kind.client_id }),
        Some(Kind::User(_)) => json!({ "type": "user_identity" }),
        Some(Kind::AmlToken(_)) => json!({ "type": "aml_token" }),
        None => Value::Null,
    }
}

fn retry(retry: &pb::Retry) -> Value {
    let mut view = json!({ "max_attempts": retry.max_attempts, "backoff": retry.backoff_s });
    if let Some(percent) = retry.memory_percent {
        view["memory"] = format!("{}x", f64::from(percent) / 100.0).into();
    }
    view
}

fn idle_gpu(idle: &pb::IdleGpu) -> Value {
    let action = match idle.action() {
        pb::IdleAction::Unspecified | pb::IdleAction::Notify => "notify",
        pb::IdleAction::Stop => "stop",
    };
    json!({ "action": action, "after": idle.after_s })
}

const fn on_node_loss(choice: pb::OnNodeLoss) -> &'static str {
    match choice {
        pb::OnNodeLoss::Unspecified | pb::OnNodeLoss::Requeue => "requeue",
        pb::OnNodeLoss::Keep => "keep",
    }
}

/// A change that would start a job now.
/// When a job is expected to start.
pub(super) fn expected(p50_ms: i64, p90_ms: i64) -> Value {
    json!({"p50": time(p50_ms), "p90": time(p90_ms)})
}

pub(super) fn change(change: &pb::Change) -> Value {
    json!({ "change": change.text, "set": change.settings })
}
