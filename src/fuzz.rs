//! What reads bytes of strangers, as plain functions: for the programs in `fuzz/`, and for the replay of their corpus
//! among the tests. Each panics where a promise does not hold, and has nothing to say otherwise.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::OnceLock;

use atelier_core::access::{Caller, Role};
use atelier_core::compute::{Cluster, SizeTable};
use atelier_core::datastore::{Address, Credentials};
use atelier_core::expr::{Known, Lookup, Reference, Scope, Template};
use atelier_core::id::{AttemptNumber, Epoch, JobName, Principal};
use atelier_core::job::AttemptKey;
use atelier_core::spec::{self, CommandJob, FileKind, Files, Origin};
use atelier_core::track::registry::Source;
use atelier_core::track::search::{
    experiment_filter, experiment_order, model_filter, model_order, registered_filter, run_filter,
    run_order, version_filter,
};
use atelier_core::track::{ArtifactPath, LoggedModelId, MeasuredOn, PageToken, RunId};
use atelier_proto::convert::{held_inputs, node_change, sandboxes};
use atelier_proto::{agent, asset, component, compute, environment, job, workspace};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;

use crate::http::mlflow;
use crate::identity::Door;
use crate::storage::ObjectPath;
use crate::store::SqliteStore;

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of the folders of their corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("yaml", yaml),
    ("expressions", expressions),
    ("mlflow_json", mlflow_json),
    ("mlflow_filters", mlflow_filters),
    ("artifact_paths", artifact_paths),
    ("tokens", tokens),
    ("protobuf", protobuf),
];

/// A machine that has one file and one folder.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        match path {
            "/w/conda.yml" => Ok(b"dependencies: [python=3.12, pip, {pip: [numpy]}]\n".to_vec()),
            _ => Err("no such file".to_owned()),
        }
    }

    fn kind(&self, path: &str) -> Option<FileKind> {
        match path {
            "/w/conda.yml" => Some(FileKind::File),
            "/w" | "/w/src" => Some(FileKind::Folder),
            _ => None,
        }
    }
}

fn origin() -> Origin {
    Origin { name: "job.yml".to_owned(), folder: "/w".to_owned(), experiment: "fuzz".to_owned() }
}

/// A document of each kind. What is read holds by itself, and comes back from where it is kept.
pub fn yaml(bytes: &[u8]) {
    let origin = origin();
    if let Ok(parsed) = spec::parse_job(bytes, &origin, &[], &Disk) {
        assert!(spec::validate(&parsed.job).is_ok(), "what was read is not what a job may be");
        let kept = serde_json::to_string(&parsed.job).unwrap_or_default();
        let back = serde_json::from_str::<CommandJob>(&kept).ok();
        assert_eq!(back.as_ref(), Some(&parsed.job), "a job does not come back as it was");
    }
    let _ = spec::parse_component(bytes, &origin, &[], &Disk);
    let _ = spec::parse_environment(bytes, &origin, &[], &Disk);
    let _ = spec::parse_data(bytes, &origin, &[], &Disk);
    let _ = spec::parse_model(bytes, &origin, &[], &Disk);
    let _ = spec::parse_datastore(bytes, &origin, &[], &Disk);
    let sizes = SizeTable::builtin();
    let _ = spec::parse_compute(bytes, &origin, &[], &Disk, &sizes);
    let _ = spec::parse_sizes(bytes, &origin, &Disk);
}

/// Inputs and outputs that have values, one that has none, and nothing else.
struct Values;

impl Scope for Values {
    fn lookup(&self, reference: &Reference) -> Lookup {
        match reference {
            Reference::Input(name) if name == "unset" => Lookup::Unset,
            Reference::Input(_) | Reference::Output(_) => Lookup::Value("v".to_owned()),
            _ => Lookup::Unknown,
        }
    }

    fn known(&self, _: &Reference) -> Known {
        Known::default()
    }
}

/// A command with `${{ }}` and `$[[ ]]`. What is read is read again from how it is written.
pub fn expressions(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = Template::parse(text) else { return };
    let _ = template.check(&Values, 20);
    let rendered = template.render(&Values);
    let again = Template::parse(&template.to_string());
    let again = again.and_then(|again| again.render(&Values));
    assert_eq!(rendered.ok(), again.ok(), "written and read again it means something else");
}

/// The body of any of MLflow's calls.
pub fn mlflow_json(bytes: &[u8]) {
    mlflow::read_any(bytes);
}

/// Filters, orders and page tokens of MLflow's searches.
pub fn mlflow_filters(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = run_filter(text);
    let _ = experiment_filter(text);
    let _ = model_filter(text);
    let _ = model_order(text, true, MeasuredOn::default());
    let _ = LoggedModelId::new(text);
    let list = [text.to_owned()];
    let _ = run_order(&list);
    let _ = experiment_order(&list);
    let _ = registered_filter(text);
    let _ = version_filter(text);
    let _ = Source::parse(text);
    let _ = PageToken::parse(text, 7);
    let _ = RunId::new(text);
}

/// Where artifacts and objects lie, and addresses of cloud storage. No path that is taken leads out of its folder.
pub fn artifact_paths(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let leads_out = |path: &str| {
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
        [path, &*decoded].iter().any(|path| {
            path.starts_with('/')
                || path.contains(['\0', '\\'])
                || path.split('/').any(|segment| matches!(segment, "" | "." | ".."))
        })
    };
    if let Ok(path) = ArtifactPath::new(text) {
        assert!(!leads_out(path.as_str()), "{text:?} leads out of its run");
    }
    if let Ok(path) = ObjectPath::new(text) {
        assert!(!path.segments().any(|s| matches!(s, "" | "." | "..")), "{text:?} leads out");
        assert!(!text.starts_with('/') && !text.contains(['\0', '\\']), "{text:?} leads out");
    }
    let _ = Address::parse(text);
    let _ = JobName::new(text);
}

/// A door with a job's token that opens it.
struct Fitted {
    door: Door,
    token: String,
}

fn fitted() -> Option<&'static Fitted> {
    static DOOR: OnceLock<Option<Fitted>> = OnceLock::new();
    let fit = || {
        let folder: PathBuf =
            std::env::temp_dir().join(format!("atelier-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).ok()?;
        let store = std::sync::Arc::new(SqliteStore::open(&folder.join("atelier.db"), false).ok()?);
        let door = Door::open(store, &folder.join("token.key"), "fuzz").ok()?;
        let _ = std::fs::remove_dir_all(&folder);
        let key = AttemptKey {
            job: JobName::new("fuzz").ok()?,
            attempt: AttemptNumber(1),
            epoch: Epoch(1),
        };
        let job = spec::parse_job(b"command: 'true'\n", &origin(), &[], &Disk).ok()?.job;
        let token = door.admit_attempt(&key, &job);
        Some(Fitted { door, token })
    };
    DOOR.get_or_init(fit).as_ref()
}

/// An `authorization` header. The only one that opens is the one that was given out.
pub fn tokens(bytes: &[u8]) {
    let Some(Fitted { door, token }) = fitted() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // As claims, as a head and as a seal in the place of the right ones: each is read by another part of the door.
    let parts: Vec<&str> = token.split('.').collect();
    let coded = URL_SAFE_NO_PAD.encode(bytes);
    let with = |at: usize| {
        let mut parts = parts.clone();
        parts[at] = &coded;
        format!("Bearer {}", parts.join("."))
    };
    let whole = [text.to_owned(), format!("Bearer {text}"), format!("Bearer {token}{text}")];
    for header in whole.into_iter().chain((0..parts.len()).map(with)) {
        let Ok(Caller { role, .. }) = door.authenticate(Some(&header)) else { continue };
        let given = header.split_once(' ').map_or("", |(_, given)| given.trim());
        assert_eq!(given, token, "a token opens that was given to nobody");
        assert!(matches!(role, Role::Attempt(_)), "a job's token makes somebody else of it");
    }
    let _ = Principal::new(text);
}

/// A message of each kind, decoded and converted.
pub fn protobuf(bytes: &[u8]) {
    if let Ok(sent) = job::v1::CreateJobRequest::decode(bytes)
        && let Some(Ok(job)) = sent.spec.map(CommandJob::try_from)
    {
        let _ = spec::validate_submitted(&job);
    }
    if let Ok(sent) = agent::v1::AgentMessage::decode(bytes) {
        use agent::v1::agent_message::Message as M;
        match sent.message {
            Some(M::Report(report)) => drop(atelier_core::job::Report::try_from(report)),
            Some(M::Changed(changed)) => drop(node_change(&changed)),
            Some(M::Kept(kept)) => drop(sandboxes(kept)),
            Some(M::Held(held)) => drop(held_inputs(held)),
            _ => {}
        }
    }
    let _ = agent::v1::DaemonMessage::decode(bytes);
    if let Ok(sent) = component::v1::CreateComponentRequest::decode(bytes) {
        let _ = atelier_core::component::Draft::try_from(sent);
    }
    if let Ok(sent) = asset::v1::CreateAssetRequest::decode(bytes) {
        let _ = atelier_core::asset::Draft::try_from(sent);
    }
    if let Ok(sent) = environment::v1::CreateEnvironmentRequest::decode(bytes) {
        let _ = atelier_core::environment::Draft::try_from(sent);
    }
    if let Ok(sent) = workspace::v1::DatastoreDraft::decode(bytes)
        && let Ok(draft) = atelier_core::datastore::Draft::try_from(sent)
    {
        let _ = spec::validate_datastore(&draft);
    }
    if let Ok(sent) = workspace::v1::DatastoreCredentials::decode(bytes) {
        let _ = Credentials::try_from(sent);
    }
    if let Ok(sent) = compute::v1::Cluster::decode(bytes) {
        let _ = Cluster::try_from(sent).map(|cluster| spec::validate_cluster(&cluster));
    }
}
