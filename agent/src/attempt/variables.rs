//! The environment of a job's command: Azure ML's run variables, MLflow's, and the few of the
//! agent's own that programs need to work at all.

use std::collections::BTreeMap;
use std::path::Path;

use atelier_core::resource::Gpus;
use atelier_core::spec::{CommandJob, Distribution};

use super::distribution::{Members, mpi, ray};
use crate::container::{Kind, Runtime};
use crate::trust::CA_FILE;

/// Marks every process of an attempt, so that they are found if their supervisor was killed.
pub const MARK: &str = "ATELIER_ATTEMPT_FOLDER";

/// Seconds since the epoch: the end of the year 2199.
const TOKEN_EXPIRY: &str = "7258118399";

/// What the command's environment is made of.
pub(crate) struct Facts<'a> {
    pub(crate) spec: &'a CommandJob,
    pub(crate) job: &'a str,
    pub(crate) attempt: u32,
    pub(crate) epoch: u64,
    /// The rank of this node's member.
    pub(crate) rank: u32,
    /// Where the members' nodes are reached, by rank.
    pub(crate) addresses: &'a [String],
    pub(crate) experiment_id: &'a str,
    pub(crate) workspace: &'a str,
    pub(crate) workspace_id: &'a str,
    /// Base URL of the daemon's HTTP side.
    pub(crate) http_url: &'a str,
    /// Where the command logs: on its own node, or at the daemon.
    pub(crate) tracking_url: &'a str,
    /// A file of those who vouch for it, unless every program of the system knows them.
    pub(crate) authorities: Option<&'a Path>,
    /// The attempt's own token.
    pub(crate) token: &'a str,
    pub(crate) gpus: &'a [u32],
    /// The attempt's folder.
    pub(crate) folder: &'a Path,
    pub(crate) work: &'a Path,
    /// Rendered inputs by name.
    pub(crate) inputs: &'a BTreeMap<String, Option<String>>,
    /// Rendered outputs by name.
    pub(crate) outputs: &'a BTreeMap<String, String>,
    /// What the agent itself runs with; see [`inherited`].
    pub(crate) inherited: &'a BTreeMap<String, String>,
    /// Folders of the realised environment, before the inherited `PATH`.
    pub(crate) path: &'a [String],
    /// Variables of the realised environment.
    pub(crate) environment: &'a BTreeMap<String, String>,
    /// The job's own variables, rendered.
    pub(crate) own: &'a BTreeMap<String, String>,
}

impl Facts<'_> {
    fn members(&self) -> Members<'_> {
        Members::new(self.addresses, self.rank, self.workspace_id, self.epoch)
    }
}

/// Whether the command finds what listens on its node's loopback. `members`: how many the job has; `engine`: what runs
/// the command's container.
pub(crate) fn logs_here(spec: &CommandJob, members: usize, engine: Option<&Runtime>) -> bool {
    // An engine that is no root's has a network of its own, which its containers take for the host's.
    let is_apart = engine.is_some_and(|engine| engine.kind == Kind::Docker && engine.rootless);
    // What starts MPI's processes, or Ray's, may give those of other nodes the variables of the first.
    let spreads =
        matches!(spec.distribution, Some(Distribution::Mpi { .. } | Distribution::Ray(_)));
    let is_spread = spreads && members > 1;
    !is_apart && !is_spread
}

/// Of the agent's variables those that a job may see. Proxies are among them, with a password if somebody put
/// one there: without them a job may reach nothing.
pub(crate) fn inherited(
    variables: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    const NAMES: [&str; 24] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "XDG_CACHE_HOME",
    ];
    let mut kept: BTreeMap<String, String> = variables
        .filter(|(name, _)| NAMES.contains(&name.as_str()) || name.starts_with("LC_"))
        .collect();
    kept.entry("PATH".to_owned()).or_insert_with(|| "/usr/local/bin:/usr/bin:/bin".to_owned());
    kept.entry("HOME".to_owned()).or_insert_with(|| "/".to_owned());
    kept.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
    kept.entry("TMPDIR".to_owned()).or_insert_with(|| "/tmp".to_owned());
    kept
}

/// All variables of the command. Of two that set the same, the later wins: inherited, realised
/// environment, run variables, the job's own, and last what isolates jobs from each other.
pub(crate) fn variables(facts: &Facts<'_>) -> BTreeMap<String, String> {
    let mut all = facts.inherited.clone();
    all.extend(facts.environment.clone());
    if !facts.path.is_empty() {
        let mut path = facts.path.join(":");
        if let Some(rest) = all.get("PATH") {
            path.push(':');
            path.push_str(rest);
        }
        all.insert("PATH".to_owned(), path);
    }
    let mut set = |name: &str, value: &str| {
        all.insert(name.to_owned(), value.to_owned());
    };
    run_variables(facts, &mut set);
    distribution_variables(facts, &mut set);
    for (name, value) in facts.inputs {
        if let Some(value) = value {
            set(&format!("AZURE_ML_INPUT_{name}"), value);
        }
    }
    for (name, value) in facts.outputs {
        set(&format!("AZURE_ML_OUTPUT_{name}"), value);
    }
    for (name, value) in facts.own {
        set(name, value);
    }
    let gpus = facts.gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    set("CUDA_VISIBLE_DEVICES", &gpus);
    let share = facts.spec.resources.demand.gpu_share;
    if share > 0 {
        set("ATELIER_GPU_SHARE", &Gpus(share.into()).to_string());
    }
    // Indices count as NVML does, not fastest device first.
    set("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    set("NVIDIA_VISIBLE_DEVICES", if gpus.is_empty() { "void" } else { &gpus });
    set(MARK, &facts.folder.to_string_lossy());
    if facts.tracking_url != facts.http_url {
        past_proxies(&mut all);
    }
    all
}

/// What leads to the network by a proxy leads to this node's own address past it: there it would be another's, and
/// the token is in each request.
fn past_proxies(all: &mut BTreeMap<String, String>) {
    const OWN: &str = "127.0.0.1";
    let goes_by = |name: &str| all.get(name).is_some_and(|value| !value.is_empty());
    if !["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].into_iter().any(goes_by) {
        return;
    }
    let names = ["no_proxy", "NO_PROXY"];
    let said = names.map(|name| all.get(name).filter(|said| !said.is_empty()).cloned());
    for (name, other) in names.into_iter().zip([&said[1], &said[0]]) {
        let own = all.get(name).filter(|said| !said.is_empty()).or(other.as_ref());
        let text = match own.map(String::as_str) {
            None => OWN.to_owned(),
            Some(said) if said.split(',').any(|host| matches!(host.trim(), OWN | "*")) => {
                said.to_owned()
            }
            Some(said) => format!("{said},{OWN}"),
        };
        all.insert(name.to_owned(), text);
    }
}

fn run_variables(facts: &Facts<'_>, set: &mut impl FnMut(&str, &str)) {
    let experiment = facts.spec.experiment_name.as_str();
    let work = facts.work.to_string_lossy();
    let scope = format!(
        "/subscriptions/atelier/resourceGroups/atelier/providers/\
         Microsoft.MachineLearningServices/workspaces/{}",
        facts.workspace
    );
    set("AZUREML_RUN_ID", facts.job);
    set("AZUREML_ARM_SUBSCRIPTION", "atelier");
    set("AZUREML_ARM_RESOURCEGROUP", "atelier");
    set("AZUREML_ARM_WORKSPACE_NAME", facts.workspace);
    set("AZUREML_ARM_PROJECT_NAME", experiment);
    set("AZUREML_EXPERIMENT_ID", facts.experiment_id);
    set("AZUREML_WORKSPACE_ID", facts.workspace_id);
    set("AZUREML_WORKSPACE_SCOPE", &scope);
    set("AZUREML_EXPERIMENT_SCOPE", &format!("{scope}/experiments/{experiment}"));
    set("AZUREML_SERVICE_ENDPOINT", facts.http_url);
    set("AZUREML_DISCOVERY_SERVICE_ENDPOINT", facts.http_url);
    set("AZUREML_RUN_HISTORY_SERVICE_ENDPOINT", facts.http_url);
    set("AZUREML_RUN_TOKEN", facts.token);
    // The token dies with its attempt and needs no renewal; Azure's clients want a date and a salt.
    set("AZUREML_RUN_TOKEN_EXPIRY", TOKEN_EXPIRY);
    set("AZUREML_RUN_TOKEN_RAND", &format!("{}-{}", facts.job, facts.attempt));
    let members = facts.members();
    set("AZUREML_NODE_COUNT", &members.count().to_string());
    set("AZUREML_CR_NODE_RANK", &members.rank.to_string());
    set("AZUREML_CR_EXECUTION_WORKING_DIR_PATH", &work);
    set("AZUREML_CR_COMPUTE_CONTEXT", "{\"cluster_name\":\"local\"}");
    set("AZUREML_CR_HT_CAP_user_logs_PATH", &facts.folder.to_string_lossy());
    set("AZ_BATCHAI_JOB_MASTER_NODE_IP", members.first());
    set("AZ_BATCHAI_GPU_COUNT", &facts.gpus.len().to_string());
    set("AZ_BATCH_HOST_LIST", &members.addresses.join(","));
    set("AZ_BATCH_MASTER_NODE", &members.master());
    set("MLFLOW_TRACKING_URI", facts.tracking_url);
    set("MLFLOW_TRACKING_TOKEN", facts.token);
    if let Some(authorities) = facts.authorities {
        let authorities = authorities.to_string_lossy();
        set("MLFLOW_TRACKING_SERVER_CERT_PATH", &authorities);
        set(CA_FILE, &authorities);
    }
    set("MLFLOW_RUN_ID", facts.job);
    set("MLFLOW_EXPERIMENT_ID", facts.experiment_id);
    set("MLFLOW_EXPERIMENT_NAME", experiment);
    // They would lead to a port of this node that has no pages, and to people who are elsewhere.
    set("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true");
    set("ATELIER_JOB", facts.job);
    set("ATELIER_ATTEMPT", &facts.attempt.to_string());
    // Lines are seen when they are printed.
    set("PYTHONUNBUFFERED", "1");
}

/// What tells one of several processes on a node from the others.
pub(crate) fn of_process(spec: &CommandJob, member: u32, process: u32) -> BTreeMap<String, String> {
    let rank = member * spec.commands_per_node() + process;
    let set = [("RANK", rank), ("LOCAL_RANK", process)];
    set.into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect()
}

/// What launchers set; of several processes on a node, for the first.
fn distribution_variables(facts: &Facts<'_>, set: &mut impl FnMut(&str, &str)) {
    let members = facts.members();
    let rank = members.rank.to_string();
    let per_node = facts.spec.commands_per_node();
    match &facts.spec.distribution {
        Some(Distribution::PyTorch { .. }) => {
            set("MASTER_ADDR", members.first());
            set("MASTER_PORT", &members.master_port().to_string());
            set("WORLD_SIZE", &(members.count() * per_node as usize).to_string());
            set("LOCAL_WORLD_SIZE", &per_node.to_string());
            set("NODE_RANK", &rank);
            for (name, value) in of_process(facts.spec, facts.rank, 0) {
                set(&name, &value);
            }
        }
        Some(Distribution::TensorFlow { parameter_server_count, .. }) => {
            set("TF_CONFIG", &members.tf_config(*parameter_server_count));
        }
        Some(Distribution::Mpi { .. }) => mpi::variables(&members, facts.token, set),
        Some(Distribution::Ray(given)) => ray::variables(&members, given, facts.token, set),
        None => {}
    }
}

#[cfg(test)]
mod tests;
