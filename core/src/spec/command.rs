//! A validated command job: what the rest of the house works with.
//!
//! The written form (YAML with its positions) is turned into this by [`super`]; a daemon receives
//! this over the wire and validates it again. Serialised as JSON in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::distribution::Distribution;
use crate::asset;
use crate::datastore::Address;
use crate::id::{
    AssetName, ComputeName, DatastoreName, ExperimentName, JobName, PortName, VersionName,
};
use crate::resource::{ContainerNeed, Containers, Demand};

/// A `command` job, checked field by field, its references parsed but not resolved.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CommandJob {
    /// The name asked for; the daemon makes one if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<JobName>,
    /// For people; need not be unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// For people, longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The experiment that groups this run.
    pub experiment_name: ExperimentName,
    /// Free key-value pairs that users may change later.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Free key-value pairs, fixed at submission.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// The shell command with its `${{…}}` and `$[[…]]` expressions, known to parse and to name
    /// only declared inputs and outputs.
    pub command: String,
    /// The code folder, if any. Without one the job starts in an empty folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What the command runs in.
    pub environment: Environment,
    /// Where it runs; `None` means the workspace's default (also written `azureml:serverless`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<ComputeName>,
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<PortName, Input>,
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<PortName, Output>,
    /// Added to the job's environment; may hold `${{…}}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_variables: BTreeMap<String, String>,
    /// What each member takes of its node, and how many members there are.
    pub resources: JobResources,
    /// How several processes are launched, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// Bounds on the run.
    #[serde(default)]
    pub limits: Limits,
    /// The priority decides the job's place among the waiting; the job tier is recorded.
    #[serde(default)]
    pub queue: QueueSettings,
    /// Interactive services asked for, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, Service>,
    /// Recorded. Managed identities are Azure's alone; the CLI warns of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// When and how often a failed attempt is tried again.
    #[serde(default)]
    pub retry: Retry,
    /// What becomes of the job when its node is lost.
    #[serde(default)]
    pub on_node_loss: OnNodeLoss,
    /// What becomes of the job when its GPUs do nothing; `None`: nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_gpu: Option<IdleGpu>,
    /// For how many seconds a node keeps what an attempt leaves whose command failed; `None`: as long as
    /// the node does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_failed: Option<u64>,
}

impl CommandJob {
    /// How often the command is run at once on each node; at least once.
    pub fn commands_per_node(&self) -> u32 {
        self.distribution.as_ref().map_or(1, Distribution::commands_per_node).max(1)
    }

    /// How many processes of the job's own there are on each node, each with a log of its own; at least one.
    pub fn processes_per_node(&self) -> u32 {
        self.distribution.as_ref().map_or(1, Distribution::processes_per_node).max(1)
    }

    /// Whether the command runs in the member of rank 0 alone: it decides how an attempt ends.
    pub fn has_head(&self) -> bool {
        self.distribution.as_ref().is_some_and(Distribution::has_head)
    }
}

/// Where a job's code comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A folder (or one file) on the submitter's machine, already resolved against the YAML file.
    /// The CLI replaces it by a snapshot; a daemon refuses it.
    Local(String),
    /// The root of a stored tree (see [`crate::content`]).
    Snapshot(crate::content::Digest),
}

/// What a command runs in.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// The node's own programs and Python.
    Host,
    /// A curated or registered environment, as `azureml:NAME[:VERSION|@LABEL]` or
    /// `azureml://registries/R/environments/NAME/…`.
    Named(AssetRef),
    /// Written out in the job.
    Inline(InlineEnvironment),
}

/// An environment written out in the job, self-contained: files were read by the CLI.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct InlineEnvironment {
    /// Recorded only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Container image, as written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The conda document as JSON (`name`, `channels`, `dependencies`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conda: Option<serde_json::Value>,
    /// A container build context; needs a container runtime on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildContext>,
}

impl InlineEnvironment {
    /// What it asks of a node's container runtime. `required`: no image may be left out, which is what happens on
    /// nodes without one otherwise.
    pub fn container_need(&self, required: bool) -> ContainerNeed {
        match (&self.build, &self.image, &self.conda) {
            (Some(_), ..) => ContainerNeed::Needs(Containers::Build),
            (None, None, _) => ContainerNeed::Nothing,
            (None, Some(_), conda) => {
                let does = if conda.is_some() { Containers::Build } else { Containers::Run };
                if required { ContainerNeed::Needs(does) } else { ContainerNeed::Prefers(does) }
            }
        }
    }
}

/// A folder with a Dockerfile.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BuildContext {
    /// The folder; uploaded like code.
    pub path: Code,
    /// Within the folder.
    pub dockerfile_path: String,
}

/// A named asset at a version or label.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AssetRef {
    /// The registry, for `azureml://registries/…`; `None` means this workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// The asset's name.
    pub name: String,
    /// Which of its versions.
    pub version: AssetVersion,
}

impl AssetRef {
    /// This version of the workspace's own asset.
    pub fn exact(name: &AssetName, version: &VersionName) -> Self {
        let version = AssetVersion::Exact(version.to_string());
        Self { registry: None, name: name.to_string(), version }
    }

    /// The latest version of the workspace's own asset.
    pub fn latest(name: &str) -> Self {
        Self { registry: None, name: name.to_owned(), version: AssetVersion::Default }
    }
}

/// Which version of an asset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssetVersion {
    /// `azureml:name`
    Default,
    /// `azureml:name:3`
    Exact(String),
    /// `azureml:name@latest`
    Label(String),
}

impl AssetVersion {
    /// The version's name, if it is told by that.
    pub fn exact(&self) -> Option<&str> {
        match self {
            Self::Exact(version) => Some(version),
            Self::Default | Self::Label(_) => None,
        }
    }
}

/// A reference to data, parsed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataUri {
    /// On the submitter's machine, absolute. The CLI uploads it; a daemon refuses it.
    Local(String),
    /// `azureml://datastores/D/paths/P`
    Datastore {
        /// The datastore.
        datastore: DatastoreName,
        /// Within it, without a leading `/`.
        path: String,
    },
    /// `azureml://jobs/J/outputs/O/paths/P`
    JobOutput {
        /// The job that wrote it.
        job: JobName,
        /// The output's name there; `artifacts` is the run's artifact root.
        output: String,
        /// Within the output; empty for all of it.
        path: String,
    },
    /// `runs:/ID/P`
    RunArtifact {
        /// The run.
        run: String,
        /// Within its artifacts.
        path: String,
    },
    /// A registered data or model asset.
    Asset(AssetRef),
    /// `http://` or `https://`
    Http(String),
    /// `wasbs://`, `abfss://`, `s3://`, `gs://` and the like. Once the daemon has found no datastore that has it, it
    /// is read without credentials.
    Cloud(String),
}

impl DataUri {
    /// From where the data gateway gives what lies there, once the daemon has found that: a datastore, or the name
    /// that stands for a bucket of public storage, and the path within. `None`: from nowhere.
    pub fn read_from(&self) -> Option<(DatastoreName, String)> {
        match self {
            Self::Datastore { datastore, path } => Some((datastore.clone(), path.clone())),
            Self::Cloud(text) => {
                let address = Address::parse(text).ok()?;
                Some((address.public_bucket()?.name()?, address.path().to_owned()))
            }
            _ => None,
        }
    }
}

/// What a job reads.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A value, as Python's `str()` prints it.
    Literal {
        /// The text that replaces `${{inputs.NAME}}`.
        value: String,
    },
    /// Data.
    Data {
        /// What it is.
        kind: DataKind,
        /// How it is given to the job.
        mode: InputMode,
        /// Where it lies.
        uri: DataUri,
        /// The version of the asset that it was named by, once the daemon has found where that lies.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asset: Option<AssetRef>,
        /// The address of cloud storage that it was named by, once the daemon has found the datastore that has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
    },
    /// Declared `optional: true` and given no value.
    Unset,
}

/// What a data input or output is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// One file.
    UriFile,
    /// A folder.
    UriFolder,
    /// A folder with an `MLTable` file.
    #[serde(rename = "mltable")]
    MlTable,
    /// A folder in MLflow's model format.
    MlflowModel,
    /// A model of any other form.
    CustomModel,
    /// A Triton model repository.
    TritonModel,
}

impl DataKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::UriFile,
        Self::UriFolder,
        Self::MlTable,
        Self::MlflowModel,
        Self::CustomModel,
        Self::TritonModel,
    ];

    /// As the YAML says it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::UriFile => "uri_file",
            Self::UriFolder => "uri_folder",
            Self::MlTable => "mltable",
            Self::MlflowModel => "mlflow_model",
            Self::CustomModel => "custom_model",
            Self::TritonModel => "triton_model",
        }
    }

    /// What an asset of this kind is: references of inputs are looked up among those.
    pub const fn asset_kind(self) -> asset::Kind {
        match self {
            Self::UriFile | Self::UriFolder | Self::MlTable => asset::Kind::Data,
            Self::MlflowModel | Self::CustomModel | Self::TritonModel => asset::Kind::Model,
        }
    }
}

/// How a job gets an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputMode {
    /// Read only, where possible without copying.
    #[default]
    RoMount,
    /// Copied before the job starts; the job may change its copy.
    Download,
    /// The job is given the URI itself.
    Direct,
    /// `mltable` only: its paths evaluated and mounted.
    EvalMount,
    /// `mltable` only: its paths evaluated and copied.
    EvalDownload,
}

/// What a job writes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Output {
    /// What it is.
    pub kind: DataKind,
    /// How it gets from the job to storage.
    pub mode: OutputMode,
    /// Where it goes; `None` means `azureml/<job>/<output>/` on the default datastore. May hold
    /// `${{name}}`, `${{output_name}}` and `${{default_datastore}}` until it is submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Registers the output as an asset of this name when the job completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset_name: Option<String>,
    /// The version to register.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset_version: Option<String>,
}

/// How an output gets from the job to storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// Written as if the storage were a folder.
    #[default]
    RwMount,
    /// Uploaded when the process has ended.
    Upload,
    /// The job is given the URI and writes it itself.
    Direct,
}

/// What a job takes of nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobResources {
    /// How many members, each on a node.
    pub instance_count: u32,
    /// What each member asks of its node.
    pub demand: Demand,
    /// Azure's VM size; recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Shared memory for containers, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Extra arguments for the container runtime.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub docker_args: Vec<String>,
    /// Everything else of Azure's `resources`, recorded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, serde_json::Value>,
}

impl Default for JobResources {
    fn default() -> Self {
        Self {
            instance_count: 1,
            demand: Demand::DEFAULT,
            instance_type: None,
            shm_size: None,
            docker_args: Vec::new(),
            properties: BTreeMap::new(),
        }
    }
}

/// Bounds on the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Seconds of running after which the job is cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// Azure's `queue_settings`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct QueueSettings {
    /// `spot`, `basic`, `standard` or `premium`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_tier: Option<String>,
    /// Among the waiting.
    #[serde(default)]
    pub priority: Priority,
}

impl QueueSettings {
    /// The tier that it names; [`JobTier::Standard`] if it names none.
    pub fn tier(&self) -> JobTier {
        let named = self.job_tier.as_deref().unwrap_or_default();
        JobTier::ALL.into_iter().find(|tier| tier.word() == named).unwrap_or_default()
    }
}

/// Which jobs make way for which: one of a higher tier goes before all of a lower, and takes their
/// nodes if it must.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum JobTier {
    /// Takes what is left, and makes way for every other.
    Spot,
    /// Makes way for the usual.
    Basic,
    /// The usual.
    #[default]
    Standard,
    /// Never makes way.
    Premium,
}

impl JobTier {
    /// The lowest first.
    pub const ALL: [Self; 4] = [Self::Spot, Self::Basic, Self::Standard, Self::Premium];

    /// As the YAML says it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::Basic => "basic",
            Self::Standard => "standard",
            Self::Premium => "premium",
        }
    }
}

/// A job's rank among the waiting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After the others.
    Low,
    /// The usual.
    #[default]
    Medium,
    /// Before the others.
    High,
}

impl Priority {
    /// As the YAML says it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// An interactive service asked for with the job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// `ssh`, `jupyter_lab`, `tensor_board` or `vs_code`.
    #[serde(rename = "type")]
    pub kind: String,
    /// On every node rather than the first.
    #[serde(default)]
    pub all_nodes: bool,
    /// The port asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The rest (`log_dir`, `ssh_public_keys`, properties), as text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// As whom the job reaches Azure's services.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Identity {
    /// A managed identity.
    Managed {
        /// Its client id, if given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_id: Option<String>,
    },
    /// The submitting user.
    UserIdentity,
    /// The workspace's own token.
    AmlToken,
}

/// When and how often a failed attempt is tried again. This project's extension.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts in all that may fail by the job's own fault; at least 1.
    pub max_attempts: u32,
    /// Seconds before the second attempt; doubles with each further one.
    pub backoff: u64,
    /// Multiplies the memory asked for after the kernel killed the job for memory, in percent:
    /// `2x` is 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 1, backoff: 10, memory_percent: None }
    }
}

/// What becomes of a job whose GPUs do nothing. This project's extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IdleGpu {
    /// What follows.
    pub action: IdleAction,
    /// For how many seconds all GPUs that the job has on a node must have done nothing.
    pub after: u64,
}

impl Default for IdleGpu {
    fn default() -> Self {
        Self { action: IdleAction::Notify, after: 1800 }
    }
}

/// What follows when a job's GPUs do nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleAction {
    /// An event of the job says so.
    #[default]
    Notify,
    /// The job is stopped.
    Stop,
}

/// What becomes of a job when its node is lost. This project's extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNodeLoss {
    /// A new attempt, once the old one is known to be dead.
    #[default]
    Requeue,
    /// Wait for the node or an admin's word.
    Keep,
}
