//! `resources.docker_args`: the options of a container runtime that a job may choose for itself.
//!
//! **Invariant:** what is not known to be harmless is refused. A container keeps a job apart from its node and
//! from other jobs, and most options of a runtime open it.

/// How an option is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// A text.
    Value,
    /// `NAME=VALUE`; a name alone would take the agent's own.
    Pair,
}

/// Name, short name, value. Podman and docker agree on all of them.
const ALLOWED: [(&str, &str, Takes); 8] = [
    ("--add-host", "", Takes::Value),
    ("--env", "-e", Takes::Pair),
    ("--hostname", "-h", Takes::Value),
    ("--label", "-l", Takes::Pair),
    ("--read-only", "", Takes::Nothing),
    ("--shm-size", "", Takes::Value),
    ("--tmpfs", "", Takes::Value),
    ("--ulimit", "", Takes::Pair),
];

/// Options that users bring along, and what to write instead.
const INSTEAD: [(&[&str], &str); 7] = [
    (&["--volume", "-v", "--mount", "--volumes-from"], "name the data under 'inputs'"),
    (&["--gpus", "--runtime", "--device"], "write 'resources.gpus'"),
    (&["--memory", "-m", "--memory-swap"], "write 'resources.memory'"),
    (&["--cpus", "--cpu-shares", "-c", "--cpuset-cpus"], "write 'resources.cpus'"),
    (
        &["--ipc"],
        "leave it out: shared memory is the container's own, as much as 'resources.shm_size' says",
    ),
    (
        &["--network", "--net", "--publish", "-p"],
        "leave it out: a container has its node's network",
    ),
    (&["--env-file"], "write 'environment_variables'"),
];

/// An argument that a job may not give.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{argument}' {problem}")]
pub struct NotAllowed {
    /// As given.
    pub argument: String,
    problem: &'static str,
    /// What to do instead.
    pub help: String,
}

/// A job's arguments as a runtime takes them: `--name` or `--name=value`.
///
/// # Errors
/// One of them is none of those that a job may give.
pub fn docker_args(arguments: &[String]) -> Result<Vec<String>, NotAllowed> {
    let mut options = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let refuse = |problem, help: String| {
            let argument = super::yaml::shorten(argument).to_string();
            Err(NotAllowed { argument, problem, help })
        };
        let (given, mut value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (argument.as_str(), None),
        };
        let known = ALLOWED.iter().find(|(name, short, _)| given == *name || given == *short);
        let Some(&(name, _, takes)) = known.filter(|_| !given.is_empty()) else {
            return refuse("is not an option that a job may give its container", instead(given));
        };
        if takes == Takes::Nothing {
            if value.is_some() {
                return refuse("takes no value", format!("write '{name}'"));
            }
            options.push(name.to_owned());
            continue;
        }
        value = value.or_else(|| rest.next().map(String::as_str));
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return refuse("has no value", format!("write '{name}=VALUE'"));
        };
        if takes == Takes::Pair && value.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            return refuse("needs a name and a value", format!("write '{name} NAME=VALUE'"));
        }
        let is_nodes = match name {
            // The latter decide which GPUs a container has.
            "--env" => {
                ["ATELIER_", "NVIDIA_"].iter().any(|start| value.trim_start().starts_with(start))
            }
            "--label" => value.trim_start().starts_with("atelier."),
            _ => false,
        };
        if is_nodes {
            return refuse("sets what is the node's to say", "use another name".to_owned());
        }
        options.push(format!("{name}={value}"));
    }
    Ok(options)
}

fn instead(given: &str) -> String {
    // `-v/a:/b` is `-v` and its value.
    let short = given.get(..2).filter(|_| !given.starts_with("--")).unwrap_or_default();
    let is = |name: &&str| *name == given || *name == short;
    if let Some((_, help)) = INSTEAD.iter().find(|(names, _)| names.iter().any(is)) {
        return (*help).to_owned();
    }
    let names: Vec<&str> = ALLOWED.iter().map(|(name, ..)| *name).collect();
    format!("remove it; these may be given: {}", names.join(", "))
}
