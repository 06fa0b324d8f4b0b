//! Where things lie in datastores. The paths are Azure ML's, so that tools which know them work.

use crate::id::{AttemptNumber, DatastoreName, JobName, PortName};

/// Holds outputs, local inputs and content objects.
pub const BLOB_STORE: &str = "workspaceblobstore";
/// Holds notebooks and files of people.
pub const FILE_STORE: &str = "workspacefilestore";
/// Holds runs' logs, metrics and artifacts.
pub const ARTIFACT_STORE: &str = "workspaceartifactstore";
/// The datastores that exist from the start.
pub const DEFAULT_STORES: [&str; 3] = [BLOB_STORE, FILE_STORE, ARTIFACT_STORE];

/// Prefix of a run's artifacts within [`ARTIFACT_STORE`].
pub fn artifact_root(job: &str) -> String {
    format!("ExperimentRun/dcid.{job}")
}

/// Where an attempt's standard output goes, below the artifact root. The first attempt's lies
/// where Azure's tools look for it.
pub fn log_path(attempt: AttemptNumber) -> String {
    if attempt.0 <= 1 {
        "user_logs/std_log.txt".to_owned()
    } else {
        format!("user_logs/std_log_attempt_{attempt}.txt")
    }
}

/// Where an attempt's manifest goes, below the artifact root.
pub fn manifest_path(attempt: AttemptNumber) -> String {
    format!("system_logs/manifest_{attempt}.json")
}

/// Where a named output goes that says nothing itself.
pub fn output_uri(datastore: &str, job: &JobName, output: &PortName) -> String {
    datastore_uri(datastore, &format!("azureml/{job}/{output}/"))
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
