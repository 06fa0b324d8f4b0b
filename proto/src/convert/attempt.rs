//! Attempts and nodes: what agents say, from the wire.

use std::collections::BTreeMap;

use atelier_core::content::Digest;
use atelier_core::id::{
    AttemptNumber, ComputeName, DatastoreName, Epoch, JobName, NodeName, PortName,
};
use atelier_core::job::{
    AttemptEnd, AttemptKey, Cause, Exit, Failure, ManifestRef, Progress, Report, Usage,
};
use atelier_core::layout;
use atelier_core::live::Sandbox;
use atelier_core::node::{GpuOut, NodeChange, NodeRecord, is_address, is_label};
use atelier_core::resource::{Capacity, GpuDevice, GpuIndex};
use atelier_core::sched::{DataPlace, HELD_INPUTS};
use atelier_core::spec::limits::MAX_LABELS;
use atelier_core::time::Timestamp;

use super::environment::MAX_REFERENCE;
use super::{Error, OfField as _, Problem, text};
use crate::agent::v1 as pb;

fn at<E: Into<Problem>>(field: &str) -> impl Fn(E) -> Error + '_ {
    move |problem| Error { field: field.to_owned(), problem: problem.into() }
}

fn missing(field: &str) -> Error {
    Error { field: field.to_owned(), problem: Problem::Missing }
}

impl From<&AttemptKey> for pb::AttemptKey {
    fn from(key: &AttemptKey) -> Self {
        Self { job: key.job.to_string(), attempt: key.attempt.0, epoch: key.epoch.0 }
    }
}

impl TryFrom<pb::AttemptKey> for AttemptKey {
    type Error = Error;
    fn try_from(key: pb::AttemptKey) -> Result<Self, Error> {
        Ok(Self {
            job: JobName::new(&key.job).map_err(at("key.job"))?,
            attempt: AttemptNumber(key.attempt),
            epoch: Epoch(key.epoch),
        })
    }
}

impl TryFrom<pb::AttemptReport> for Report {
    type Error = Error;
    fn try_from(report: pb::AttemptReport) -> Result<Self, Error> {
        use pb::attempt_report::Phase;
        let key: AttemptKey = report.key.ok_or_else(|| missing("key"))?.try_into()?;
        let progress = match report.phase.ok_or_else(|| missing("phase"))? {
            Phase::Preparing(preparing) => Progress::Preparing { step: cut(preparing.step, 500) },
            Phase::Running(running) => Progress::Running {
                since: Timestamp::from_millis(running.at_ms),
                idle_since: running.idle_since_ms.map(Timestamp::from_millis),
            },
            Phase::Finalizing(finalizing) => {
                Progress::Finalizing { exit: finalizing.exit.and_then(exit) }
            }
            Phase::Ended(ended) => Progress::Ended(Box::new(end(&key, ended)?)),
        };
        Ok(Self { key, progress })
    }
}

fn exit(exit: pb::Exit) -> Option<Exit> {
    Some(match exit.how? {
        pb::exit::How::Code(code) => Exit::Code(code),
        pb::exit::How::Signal(signal) => Exit::Signal(signal),
    })
}

fn end(key: &AttemptKey, ended: pb::Ended) -> Result<AttemptEnd, Error> {
    let manifest = match ended.manifest {
        None => None,
        Some(manifest) => Some(ManifestRef {
            key: format!("{}/{}", layout::artifact_root(key.job.as_str()), manifest.path),
            digest: Digest::try_from(manifest.digest.as_ref()).map_err(at("manifest.digest"))?,
            files: manifest.files,
            bytes: manifest.bytes,
        }),
    };
    let outputs = ended
        .outputs
        .into_iter()
        .map(|output| {
            let name = PortName::new(&output.name).map_err(at("outputs.name"))?;
            Ok((name, output.files, output.bytes))
        })
        .collect::<Result<_, Error>>()?;
    Ok(AttemptEnd {
        exit: ended.exit.and_then(exit),
        problem: ended.problem.map(failure),
        started_at: (ended.started_at_ms > 0).then(|| Timestamp::from_millis(ended.started_at_ms)),
        manifest,
        outputs,
        log_bytes: ended.log_bytes,
        usage: usage(&ended.usage),
        survivors: ended.survivors,
    })
}

/// What a node measured, of which an older one sends less.
fn usage(told: &BTreeMap<String, f64>) -> Option<Usage> {
    // What is no number of this kind is none: zero.
    let of = |name: &str, factor: f64| told.get(name).map_or(0, |value| (value * factor) as u64);
    told.contains_key("cpu_seconds").then(|| Usage {
        cpu_ms: of("cpu_seconds", 1e3),
        peak_memory: of("peak_memory_mib", 1.0),
        wall_ms: of("wall_seconds", 1e3),
        gpu_ms: of("gpu_seconds", 1e3),
        peak_gpu_memory: of("peak_gpu_memory_mib", 1.0),
        input_bytes: of("input_bytes", 1.0),
        input_fetched_bytes: of("input_fetched_bytes", 1.0),
    })
}

fn failure(problem: pb::Problem) -> Failure {
    let cause = match problem.cause() {
        pb::Cause::CommandNotFound => Cause::CommandNotFound,
        pb::Cause::Environment => Cause::EnvironmentFailed,
        pb::Cause::Input => Cause::InputFailed,
        pb::Cause::Output => Cause::OutputFailed,
        pb::Cause::Code => Cause::CodeFailed,
        pb::Cause::Timeout => Cause::Timeout,
        pb::Cause::Canceled => Cause::Canceled,
        pb::Cause::DiskFull => Cause::DiskFull,
        pb::Cause::LeaseExpired => Cause::LeaseExpired,
        pb::Cause::OutOfMemory => Cause::OutOfMemory,
        pb::Cause::Process => Cause::UserError,
        pb::Cause::GpuLost => Cause::GpuLost,
        pb::Cause::GpuOutOfMemory => Cause::GpuOutOfMemory,
        pb::Cause::GpuIdle => Cause::GpuIdle,
        // A cause that this version does not know is not held against the user.
        pb::Cause::Platform | pb::Cause::Unspecified => Cause::AgentError,
    };
    Failure { cause, message: cut(problem.message, 4000) }
}

/// Keeps what nodes say within bounds.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What a node says has changed since it joined.
pub fn node_change(changed: &pb::Changed) -> Result<NodeChange, Error> {
    let (gpus, gpus_out) = gpus(&changed.gpus)?;
    Ok(NodeChange { gpus, gpus_out, facts: facts(&changed.facts) })
}

/// What a node says it keeps of attempts that failed.
pub fn sandboxes(told: pb::KeptSandboxes) -> Result<Vec<Sandbox>, Error> {
    let of = |kept: pb::KeptSandbox| -> Result<Sandbox, Error> {
        let key = kept.key.ok_or_else(|| missing("key"))?.try_into()?;
        Ok(Sandbox { key, rank: kept.rank, until: Timestamp::from_millis(kept.until_ms) })
    };
    told.sandboxes.into_iter().take(MAX_SANDBOXES).map(of).collect()
}

/// What a node says that its cache holds of inputs, in bytes.
pub fn held_inputs(told: pb::HeldInputs) -> Result<Vec<(DataPlace, u64)>, Error> {
    let of = |held: pb::HeldInput| -> Result<(DataPlace, u64), Error> {
        let datastore = DatastoreName::new(&held.datastore).map_err(at("inputs.datastore"))?;
        let path = text(held.path, MAX_REFERENCE).of("inputs.path")?;
        Ok((DataPlace::new(datastore, &path), held.bytes))
    };
    told.inputs.into_iter().take(HELD_INPUTS).map(of).collect()
}

/// More are never kept by a node.
const MAX_SANDBOXES: usize = 1000;

/// The devices that a node offers, and those that it does not.
type Gpus = (BTreeMap<GpuIndex, GpuDevice>, BTreeMap<GpuIndex, GpuOut>);

fn gpus(told: &[pb::Gpu]) -> Result<Gpus, Error> {
    let (mut offered, mut out) = Gpus::default();
    for gpu in told {
        let index = u16::try_from(gpu.index).map_err(|_| Error {
            field: "gpus.index".to_owned(),
            problem: Problem::TooLarge { value: gpu.index.into(), max: u16::MAX.into() },
        })?;
        let device = GpuDevice {
            uuid: cut(gpu.uuid.clone(), 100),
            model: cut(gpu.model.clone(), 100),
            memory: gpu.memory_mib,
        };
        if gpu.out.is_empty() {
            offered.insert(index, device);
        } else {
            out.insert(index, GpuOut { device, reason: cut(gpu.out.clone(), 500) });
        }
    }
    Ok((offered, out))
}

fn facts(told: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let told = told.iter().take(100);
    told.map(|(key, value)| (cut(key.clone(), 100), cut(value.clone(), 500))).collect()
}

/// What a node says of itself when it joins. `node` is the one that its token belongs to.
pub fn node_record(
    node: &NodeName,
    hello: &pb::Hello,
    now: Timestamp,
) -> Result<NodeRecord, Error> {
    let (gpus, gpus_out) = gpus(&hello.gpus)?;
    let address = Some(&hello.address).filter(|address| !address.is_empty());
    if let Some(address) = address.filter(|address| !is_address(address)) {
        let value = cut(address.clone(), 80);
        return Err(Error {
            field: "address".to_owned(),
            problem: Problem::NotAnAddress { value },
        });
    }
    Ok(NodeRecord {
        name: node.clone(),
        address: address.cloned(),
        compute: ComputeName::new(&hello.compute).map_err(at("compute"))?,
        capacity: Capacity {
            cpu: hello.cpu_milli,
            memory: hello.memory_mib,
            gpus,
            disk: hello.disk_mib,
            // A newer agent may know labels of another form; nobody could ask for them.
            labels: hello
                .labels
                .iter()
                .filter(|(key, value)| is_label(key, value))
                .take(MAX_LABELS)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            ..Capacity::default()
        },
        version: cut(hello.version.clone(), 100),
        hostname: cut(hello.hostname.clone(), 255),
        os: cut(hello.os.clone(), 255),
        gpus_out,
        facts: facts(&hello.facts),
        joined_at: now,
        drain: None,
    })
}
