//! Where things lie in datastores. The paths are Azure ML's, so that tools which know them work.

use crate::content::Digest;
use crate::id::{AttemptNumber, DatastoreName, JobName, PortName, Principal};

/// Holds outputs, local inputs and content objects.
pub const BLOB_STORE: &str = "workspaceblobstore";
/// Holds notebooks and files of people.
pub const FILE_STORE: &str = "workspacefilestore";
/// Holds runs' logs, metrics and artifacts.
pub const ARTIFACT_STORE: &str = "workspaceartifactstore";
/// The datastores that exist from the start.
pub const DEFAULT_STORES: [&str; 3] = [BLOB_STORE, FILE_STORE, ARTIFACT_STORE];

/// Named outputs lie below it, one folder for each job.
pub const OUTPUTS: &str = "azureml";
/// Content objects lie in this folder below [`OUTPUTS`], so that no job may have its name.
pub const CONTENT: &str = "content";
/// What people upload lies below it.
pub const UPLOADS: &str = "LocalUpload";
/// Runs' artifacts lie below it.
pub const RUNS: &str = "ExperimentRun";
/// Files of logged models lie below it, where MLflow has them.
pub const MODELS: &str = "models";
/// What jobs have written and not committed lies below it, in the datastores that their outputs go to; one folder
/// for each job. Nobody but the job's own attempts sees it.
pub const UNCOMMITTED: &str = ".uncommitted";
/// The longest job name whose folders' names storage allows (255 bytes with `dcid.` before it).
pub const MAX_JOB_NAME: usize = 250;

/// Where named outputs of a job go that say nothing themselves.
pub fn outputs_root(job: &JobName) -> String {
    format!("{OUTPUTS}/{job}")
}

/// The job below whose [`outputs_root`] a path lies.
pub fn job_of_output(path: &str) -> Option<JobName> {
    let (job, _) = path.strip_prefix(OUTPUTS)?.strip_prefix('/')?.split_once('/')?;
    JobName::new(job).ok()
}

/// Where what a job has written and not committed lies, in each datastore that an output of it goes to.
pub fn uncommitted_root(job: &JobName) -> String {
    format!("{UNCOMMITTED}/{job}")
}

/// The same of one output, as the member of this rank has written it since `failed` attempts have failed by the job's
/// own fault: what those wrote is in no output.
pub fn uncommitted_path(job: &JobName, output: &PortName, failed: u32, rank: u32) -> String {
    format!("{}/{output}/{failed}/{rank}", uncommitted_root(job))
}

/// Whether a segment of a path is the name of this folder to any store there is: Azure Files and
/// file systems of that kind tell no cases apart and drop dots and blanks at a name's end.
pub fn is_named(segment: &str, folder: &str) -> bool {
    let plain = segment.trim_end_matches(['.', ' ']);
    plain.chars().flat_map(char::to_uppercase).eq(folder.chars().flat_map(char::to_uppercase))
}

/// Whether what lies there is of a job that is not over, in whatever spelling. Only what the datastore has at its top: where one is a part of
/// another, the outer one shows what lies so in the inner.
pub fn is_uncommitted(path: &str) -> bool {
    path.split('/').next().is_some_and(|first| is_named(first, UNCOMMITTED))
}

/// The one folder that a person uploads to. Its name holds no character that a path could not.
pub fn uploads_root(principal: &Principal) -> String {
    let digest = Digest::of(principal.as_str().as_bytes()).to_string();
    format!("{UPLOADS}/{}", &digest[..16])
}

/// Whether only the workspace, jobs and their own principal write at this path: what others have submitted and
/// made must stay as it was. Datastores that people made are theirs.
pub fn is_kept(datastore: &DatastoreName, path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    match datastore.as_str() {
        ARTIFACT_STORE => true,
        BLOB_STORE | FILE_STORE => {
            path.is_empty() || [OUTPUTS, UPLOADS, RUNS].iter().any(|kept| is_named(first, kept))
        }
        _ => false,
    }
}

/// Why a job may not have this name, although it is one.
pub fn unfit_job_name(name: &JobName) -> Option<String> {
    if name.as_str() == CONTENT {
        return Some(format!("'{CONTENT}' is kept for the workspace; choose another name"));
    }
    let length = name.as_str().len();
    (length > MAX_JOB_NAME).then(|| {
        format!("has {length} characters, and storage allows {MAX_JOB_NAME}; choose a shorter one")
    })
}

/// Prefix of a run's artifacts within [`ARTIFACT_STORE`].
pub fn artifact_root(job: &str) -> String {
    format!("{RUNS}/dcid.{job}")
}

/// Prefix of a logged model's files within [`ARTIFACT_STORE`].
pub fn model_root(model: &str) -> String {
    format!("{MODELS}/{model}/artifacts")
}

/// Where what a member left in a folder of its own goes, below the artifact root: members may write files of the same
/// name, so that each has a place of its own, and the first one's is where it is for a job on one node.
pub fn member_path(rank: u32, folder: &str) -> String {
    match rank {
        0 => folder.to_owned(),
        rank => format!("members/{rank}/{folder}"),
    }
}

/// The job whose [`artifact_root`] a path is, or lies below; it may be a run that is no job's.
pub fn job_of_artifact(path: &str) -> Option<JobName> {
    let run = path.strip_prefix(RUNS)?.strip_prefix("/dcid.")?;
    JobName::new(run.split('/').next()?).ok()
}

/// Where the standard output of an attempt's process goes, below the artifact root. Processes are counted
/// over all members. That of the first attempt's first one lies where Azure's tools look for it.
pub fn log_path(attempt: AttemptNumber, rank: u32) -> String {
    let process = if rank == 0 { String::new() } else { format!("_process_{rank}") };
    if attempt.0 <= 1 {
        format!("user_logs/std_log{process}.txt")
    } else {
        format!("user_logs/std_log{process}_attempt_{attempt}.txt")
    }
}

/// Where the manifest of an attempt's member goes, below the artifact root.
pub fn manifest_path(attempt: AttemptNumber, rank: u32) -> String {
    let member = if rank == 0 { String::new() } else { format!("_{rank}") };
    format!("system_logs/manifest_{attempt}{member}.json")
}

/// Where a named output goes that says nothing itself: a folder, or one object.
pub fn output_uri(datastore: &str, job: &JobName, output: &PortName, is_folder: bool) -> String {
    let end = if is_folder { "/" } else { "" };
    datastore_uri(datastore, &format!("{}/{output}{end}", outputs_root(job)))
}

/// `azureml://datastores/D/paths/P`
pub fn datastore_uri(datastore: &str, path: &str) -> String {
    format!("azureml://datastores/{datastore}/paths/{path}")
}

/// Takes `azureml://datastores/D/paths/P` apart; the long form with a subscription too.
pub fn parse_datastore_uri(uri: &str) -> Option<(DatastoreName, String)> {
    let rest = uri.strip_prefix("azureml://")?;
    let (_, rest) = rest.split_once("datastores/").filter(|(before, _)| {
        before.is_empty() || before.starts_with("subscriptions/") && before.ends_with('/')
    })?;
    let (datastore, path) = rest.split_once("/paths/")?;
    Some((DatastoreName::new(datastore).ok()?, path.to_owned()))
}
