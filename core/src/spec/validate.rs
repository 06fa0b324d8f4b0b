//! What holds for a job however it came: from a file, from the command line, or over the wire.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value as Json;

use super::command::{
    Code, CommandJob, DataKind, DataUri, Environment, InlineEnvironment, Input, InputMode, Output,
};
use super::diagnostic::{Diagnostic, Diagnostics, MAX_REPORTED};
use super::docker_args::docker_args;
use super::limits::{
    MAX_ATTEMPTS, MAX_BACKOFF, MAX_COMMAND, MAX_DEPTH, MAX_DESCRIPTION, MAX_DOCUMENT, MAX_ENTRIES,
    MAX_GPUS, MAX_INSTANCES, MAX_KEPT, MAX_LABEL, MAX_LABELS, MAX_MEMORY, MAX_MEMORY_PERCENT,
    MAX_MILLI_CPUS, MAX_MODELS, MAX_SECONDS, MAX_TAG_KEY, MAX_TAG_VALUE, MAX_VALUE,
};
use super::secret::{self, SECRETS, SecretRef};
use super::{distribution, reference};
use crate::datastore::Address;
use crate::environment::Recipe;
use crate::expr::{Reference, Template, Values};
use crate::id::{AssetName, DatastoreName, InvalidName, VersionName};
use crate::node::{LABEL_FORM, is_label};
use crate::resource::{Demand, plain};

/// A fault of a job, and which field it is in.
pub(super) struct Finding {
    pub(super) path: Vec<String>,
    /// The bytes at fault in the field's text.
    pub(super) span: Option<Range<usize>>,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// The faults of a job. A request can hold many thousands, so only as many are kept as are shown.
#[derive(Default)]
pub(super) struct Findings {
    /// The first [`MAX_REPORTED`].
    pub(super) first: Vec<Finding>,
    /// How many there are besides.
    pub(super) more: usize,
}

impl Findings {
    fn room(&self) -> usize {
        MAX_REPORTED.saturating_sub(self.first.len())
    }

    fn push(&mut self, finding: Finding) {
        if self.room() > 0 {
            self.first.push(finding);
        } else {
            self.more += 1;
        }
    }

    fn count(&self) -> usize {
        self.first.len() + self.more
    }
}

/// Checks a job: expressions, ranges, sizes, and which modes go with which data.
///
/// # Errors
/// The faults, each with its field: the first twenty, and how many more there are.
pub fn validate(job: &CommandJob) -> Result<(), Diagnostics> {
    report(findings(job))
}

/// Checks a job that was sent to the daemon: what [`validate`] checks, and that nothing in it lies
/// on the submitter's machine any more.
///
/// # Errors
/// The faults, each with its field: the first twenty, and how many more there are.
pub fn validate_submitted(job: &CommandJob) -> Result<(), Diagnostics> {
    let mut check = Check::of(findings(job));
    local_faults(&mut check, job.code.as_ref(), &job.environment);
    for (name, input) in &job.inputs {
        if let Input::Data { uri: DataUri::Local(path), .. } = input {
            local_fault(check.at(&["inputs", name.as_str()]), path);
        }
    }
    report(check.found)
}

/// What of the code and the environment lies on the submitter's machine.
pub(super) fn local_faults(check: &mut Check, code: Option<&Code>, environment: &Environment) {
    if let Some(Code::Local(path)) = code {
        local_fault(check.at(&["code"]), path);
    }
    if let Environment::Inline(inline) = environment
        && let Some(build) = &inline.build
        && let Code::Local(path) = &build.path
    {
        local_fault(check.at(&["environment", "build", "path"]), path);
    }
}

fn local_fault(check: &mut Check, path: &str) {
    let local = "it lies on the submitter's machine, where the daemon cannot read it";
    let help = "upload it first, as the atelier command does, and name what was uploaded";
    check.fault(format!("'{}': {local}", cut(path)), help);
}

/// Whether a job may set an environment variable of this name: ASCII letters, digits and `_`, not
/// starting with a digit, at most [`MAX_TAG_KEY`] of them. Shells drop all others.
pub fn is_variable_name(name: &str) -> bool {
    name.len() <= MAX_TAG_KEY
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

pub(super) fn report(found: Findings) -> Result<(), Diagnostics> {
    let all = found
        .first
        .into_iter()
        .map(|finding| Diagnostic {
            help: finding.help,
            ..Diagnostic::at_field(&finding.path.join("."), finding.message)
        })
        .collect();
    Diagnostics::of(all, found.more).map_or(Ok(()), Err)
}

fn cut(text: &str) -> String {
    super::yaml::shorten(text)
}

/// Collects faults of one field after the other.
#[derive(Default)]
pub(super) struct Check {
    pub(super) found: Findings,
    path: Vec<String>,
}

impl Check {
    /// One that goes on with what was found.
    pub(super) fn of(found: Findings) -> Self {
        Self { found, path: Vec::new() }
    }

    pub(super) fn at(&mut self, path: &[&str]) -> &mut Self {
        self.path = path.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    pub(super) fn fault(&mut self, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Finding {
            path: self.path.clone(),
            span: None,
            message: message.into(),
            help: Some(help.into()),
        });
    }

    pub(super) fn range(&mut self, value: u64, least: u64, most: u64) {
        if !(least..=most).contains(&value) {
            let field = self.path.join(".");
            self.fault(
                format!("'{field}' is out of range: found {value}"),
                format!("from {least} to {most}"),
            );
        }
    }

    pub(super) fn size(&mut self, text: &str, most: usize, help: &str) {
        if text.len() > most {
            let field = self.path.join(".");
            let message = format!("'{field}' has {} bytes; at most {most} are allowed", text.len());
            self.fault(message, help);
        } else if text.contains('\0') {
            let field = self.path.join(".");
            self.fault(format!("'{field}' holds a NUL character"), "remove it");
        }
    }

    /// How many faults were found.
    pub(super) fn count(&self) -> usize {
        self.found.count()
    }

    /// Refuses a reference to a secret where it would stay what it is written as.
    fn no_secret(&mut self, text: &str) {
        if text.contains(SECRETS) {
            let field = self.path.join(".");
            self.fault(
                format!("'{field}' names a secret, which has no meaning there"),
                secret::PLACE,
            );
        }
    }

    fn entries(&mut self, key: &str, count: usize) {
        if count > MAX_ENTRIES {
            self.at(&[key]).fault(
                format!("'{key}' has {count} entries; at most {MAX_ENTRIES} are allowed"),
                "put the values into a file that is an input",
            );
        }
    }

    /// Refuses JSON that the store could write and not read back.
    pub(super) fn depth(&mut self, value: &Json) {
        if is_deeper(value, MAX_DEPTH) {
            let field = self.path.join(".");
            self.fault(
                format!(
                    "'{field}' holds more than {MAX_DEPTH} lists and mappings within each other"
                ),
                "write it flatter, or put it into a file that is an input",
            );
        }
    }

    pub(super) fn pairs(&mut self, key: &str, pairs: &BTreeMap<String, String>, help: &str) {
        self.entries(key, pairs.len());
        for (name, value) in pairs {
            self.at(&[key, name]);
            if name.is_empty() || name.len() > MAX_TAG_KEY || name.chars().any(char::is_control) {
                self.fault(
                    format!("'{}' is not a key of '{key}'", cut(name)),
                    format!("use 1 to {MAX_TAG_KEY} bytes without control characters"),
                );
            }
            self.size(value, MAX_TAG_VALUE, help);
        }
    }

    /// Parses a template and checks its references.
    fn template(&mut self, text: &str, scope: &Values) -> Option<Template> {
        let (template, (errors, more)) = match Template::parse(text) {
            Ok(template) => {
                let faults = template.check(scope, self.found.room());
                (Some(template), faults)
            }
            Err(error) => (None, (vec![error], 0)),
        };
        let good = errors.is_empty() && more == 0;
        self.found.more += more;
        for error in errors {
            self.found.push(Finding {
                path: self.path.clone(),
                message: format!("in '{}': {error}", self.path.join(".")),
                span: Some(error.span),
                help: None,
            });
        }
        template.filter(|_| good)
    }
}

/// Whether more than `most` lists and mappings lie within each other.
fn is_deeper(value: &Json, most: usize) -> bool {
    let mut inner: Box<dyn Iterator<Item = &Json>> = match value {
        Json::Array(items) => Box::new(items.iter()),
        Json::Object(fields) => Box::new(fields.values()),
        _ => return false,
    };
    // Goes no deeper than `most` itself, whatever it is given.
    most.checked_sub(1).is_none_or(|most| inner.any(|value| is_deeper(value, most)))
}

/// The faults of a job.
pub(super) fn findings(job: &CommandJob) -> Findings {
    let mut check = Check::default();
    texts(&mut check, job);
    let scope = Values {
        inputs: job
            .inputs
            .iter()
            .map(|(name, input)| {
                let value = (!matches!(input, Input::Unset)).then(String::new);
                (name.as_str().to_owned(), value)
            })
            .collect(),
        outputs: job.outputs.keys().map(|k| (k.as_str().to_owned(), String::new())).collect(),
        ..Values::default()
    };
    let before = check.count();
    check.at(&["command"]).size(
        &job.command,
        MAX_COMMAND,
        "put the command into a script in the code folder",
    );
    if check.count() == before {
        if job.command.trim().is_empty() {
            check.fault("'command' is empty", "write what the job runs");
        }
        check.template(&job.command, &scope);
        check.no_secret(&job.command);
    }
    for (name, value) in &job.environment_variables {
        check.at(&["environment_variables", name]);
        if !is_variable_name(name) {
            check.fault(
                format!("'{}' is not an environment variable's name", cut(name)),
                format!(
                    "use letters, digits and '_', not starting with a digit, at most {MAX_TAG_KEY}"
                ),
            );
        }
        check.size(value, MAX_VALUE, "put it into a file that is an input");
        check.template(value, &scope);
        secret_faults(&mut check, name, value);
    }
    for (name, input) in &job.inputs {
        check.at(&["inputs", name.as_str()]);
        input_faults(&mut check, name.as_str(), input);
    }
    for (name, output) in &job.outputs {
        output_faults(&mut check, name.as_str(), output);
    }
    numbers(&mut check, job);
    distribution::faults(&mut check, job);
    choices(&mut check, job);
    if let Err(refused) = docker_args(&job.resources.docker_args) {
        let message = format!("'resources.docker_args': {refused}");
        check.at(&["resources", "docker_args"]).fault(message, refused.help);
    }
    for argument in &job.resources.docker_args {
        check.at(&["resources", "docker_args"]).no_secret(argument);
    }
    for (key, value) in &job.resources.properties {
        check.at(&["resources", "properties", key]).depth(value);
    }
    if let Environment::Inline(inline) = &job.environment {
        environment_faults(&mut check, &["environment"], inline);
    }
    check.found
}

/// The faults of a variable whose value may name a secret.
fn secret_faults(check: &mut Check, name: &str, value: &str) {
    match SecretRef::read(value) {
        None => check.no_secret(value),
        Some(Err(wrong)) => check.fault(wrong.message, wrong.help),
        Some(Ok(_)) if secret::is_nodes(name) => check.fault(
            format!("'{name}' cannot be a secret: it is the node's to say"),
            "use another name",
        ),
        Some(Ok(_)) => {}
    }
}

/// The faults of what an environment at `path` is made of.
pub(super) fn environment_faults(check: &mut Check, path: &[&str], inline: &InlineEnvironment) {
    let Some(conda) = &inline.conda else { return };
    check.at(&[path, &["conda_file"]].concat()).depth(conda);
    let text = conda.to_string();
    check.no_secret(&text);
    let size = text.len();
    if size > MAX_DOCUMENT {
        check.fault(
            format!("the conda file has {size} bytes; at most {MAX_DOCUMENT} are allowed"),
            "name fewer packages",
        );
    }
    if inline.image.is_none()
        && inline.build.is_none()
        && let Err(error) = Recipe::from_conda(conda)
    {
        check.found.push(Finding {
            path: check.path.clone(),
            span: None,
            message: error.to_string(),
            help: None,
        });
    }
}

fn texts(check: &mut Check, job: &CommandJob) {
    let long = "put it into a file of the code folder";
    if let Some(text) = &job.display_name {
        check.at(&["display_name"]).size(text, MAX_TAG_VALUE, long);
    }
    if let Some(text) = &job.description {
        check.at(&["description"]).size(text, MAX_DESCRIPTION, long);
    }
    check.pairs("tags", &job.tags, long);
    check.pairs("properties", &job.properties, long);
    check.entries("inputs", job.inputs.len());
    check.entries("outputs", job.outputs.len());
    check.entries("environment_variables", job.environment_variables.len());
    check.entries("services", job.services.len());
}

fn input_faults(check: &mut Check, name: &str, input: &Input) {
    let (kind, mode, uri) = match input {
        Input::Unset => return,
        Input::Literal { value } => {
            check.size(value, MAX_VALUE, "put it into a file, and give that as input");
            return check.no_secret(value);
        }
        Input::Data { kind, mode, uri, .. } => (*kind, *mode, uri),
    };
    let evaluates = matches!(mode, InputMode::EvalMount | InputMode::EvalDownload);
    if evaluates && kind != DataKind::MlTable {
        check.at(&["inputs", name, "mode"]).fault(
            format!("input '{name}': eval_mount and eval_download are for inputs of type mltable"),
            "write 'mode: ro_mount' or 'mode: download'",
        );
    }
    check.at(&["inputs", name, "path"]);
    let inner = match uri {
        DataUri::Datastore { path, .. }
        | DataUri::JobOutput { path, .. }
        | DataUri::RunArtifact { path, .. } => path,
        DataUri::Local(text) | DataUri::Http(text) | DataUri::Cloud(text) => {
            return check.size(text, MAX_VALUE, "write a shorter path");
        }
        DataUri::Asset(_) => return,
    };
    check.size(inner, MAX_VALUE, "write a shorter path");
    if let Err(wrong) = reference::inner_path(inner) {
        check.fault(format!("input '{name}': {}", wrong.message), wrong.help);
    }
}

fn output_faults(check: &mut Check, name: &str, output: &Output) {
    const FORM: &str = "write azureml://datastores/NAME/paths/PATH; it may hold ${{name}}, \
                        ${{output_name}} and ${{default_datastore}}";
    asset_of_output(check, name, output);
    let Some(path) = &output.path else { return };
    check.at(&["outputs", name, "path"]);
    let before = check.count();
    check.size(path, MAX_VALUE, "write a shorter path");
    if check.count() > before {
        return;
    }
    let scope = Values {
        name: Some("job".to_owned()),
        output_name: Some(name.to_owned()),
        default_datastore: Some("workspaceblobstore".to_owned()),
        ..Values::default()
    };
    for expression in Template::parse(path).iter().flat_map(Template::references) {
        let reference = &expression.reference;
        if matches!(reference, Reference::Input(_) | Reference::Output(_)) {
            check.found.push(Finding {
                path: check.path.clone(),
                span: Some(expression.span.clone()),
                message: format!(
                    "output '{name}': '${{{{{reference}}}}}' has no meaning in a path"
                ),
                help: Some(FORM.to_owned()),
            });
            return;
        }
    }
    let Some(template) = check.template(path, &scope) else { return };
    let Ok(rendered) = template.render(&scope) else { return };
    if Address::is_one(&rendered) {
        // Which datastore has it the daemon knows.
        if let Err(error) = Address::parse(&rendered) {
            check.fault(format!("output '{name}': {error}"), FORM);
        }
        return;
    }
    let Some((datastore, inner, _)) = reference::datastore_parts(&rendered) else {
        return check.fault(format!("output '{name}' cannot go to '{}'", cut(path)), FORM);
    };
    if let Err(error) = DatastoreName::new(datastore) {
        check.fault(format!("output '{name}': {error}"), FORM);
    }
    if let Err(wrong) = reference::inner_path(inner) {
        check.fault(format!("output '{name}': {}", wrong.message), wrong.help);
    }
}

/// What the output is to be registered as.
fn asset_of_output(check: &mut Check, name: &str, output: &Output) {
    let mut wrong = |key: &str, wrong: Option<InvalidName>| {
        if let Some(InvalidName { kind, value, rule }) = wrong {
            let message = format!("output '{name}': '{value}' is not a valid {kind}");
            check.at(&["outputs", name, key]).fault(message, rule);
        }
    };
    wrong("name", output.asset_name.as_deref().and_then(|text| AssetName::new(text).err()));
    wrong("version", output.asset_version.as_deref().and_then(|text| VersionName::new(text).err()));
    if output.asset_version.is_some() && output.asset_name.is_none() {
        check.at(&["outputs", name, "version"]).fault(
            format!("output '{name}' has a version and no name"),
            "add 'name:' to register it as an asset, or remove 'version:'",
        );
    }
}

/// Which devices and nodes will do.
fn choices(check: &mut Check, job: &CommandJob) {
    let Demand { gpus, gpu_models, gpu_memory, node_labels, .. } = &job.resources.demand;
    let given = [("gpu_model", gpu_models.is_some()), ("gpu_memory", *gpu_memory > 0)];
    for (key, _) in given.into_iter().filter(|(_, given)| *given && *gpus == 0) {
        check.at(&["resources", key]).fault(
            format!("'resources.{key}' is given, and no GPU is asked for"),
            format!("write how many: 'gpus: 1', or remove '{key}'"),
        );
    }
    if job.idle_gpu.is_some() && *gpus == 0 {
        check.at(&["idle_gpu"]).fault(
            "'idle_gpu' is given, and no GPU is asked for".to_owned(),
            "write how many: 'resources: {gpus: 1}', or remove 'idle_gpu'".to_owned(),
        );
    }
    let models = gpu_models.iter().flat_map(|models| models.iter());
    if models.clone().count() > MAX_MODELS {
        check.at(&["resources", "gpu_model"]).fault(
            format!("'resources.gpu_model' names more than {MAX_MODELS} models"),
            "name fewer",
        );
    }
    for model in models.filter(|model| plain(model).is_empty() || model.len() > MAX_LABEL) {
        check.at(&["resources", "gpu_model"]).fault(
            format!("'{}' in 'resources.gpu_model' is not the name of a GPU model", cut(model)),
            "write what its name contains, such as A100 (atelier node show tells the names)",
        );
    }
    let labels = node_labels.iter().flat_map(|labels| labels.iter());
    if labels.clone().count() > MAX_LABELS {
        check.at(&["resources", "node_labels"]).fault(
            format!("'resources.node_labels' has more than {MAX_LABELS} labels"),
            "name fewer",
        );
    }
    for (key, value) in labels.filter(|(key, value)| !is_label(key, value)) {
        check.at(&["resources", "node_labels", key]).fault(
            format!("'{}: {}' in 'resources.node_labels' is not a label", cut(key), cut(value)),
            LABEL_FORM,
        );
    }
}

fn numbers(check: &mut Check, job: &CommandJob) {
    let resources = &job.resources;
    let mut range = |path: &[&str], value: u64, least: u64, most: u64| {
        check.at(path).range(value, least, most);
    };
    range(
        &["resources", "instance_count"],
        resources.instance_count.into(),
        1,
        MAX_INSTANCES.into(),
    );
    if resources.demand.cpu == 0 || resources.demand.cpu > MAX_MILLI_CPUS {
        // In thousandths: only a client of its own sends this.
        range(&["resources", "cpus"], resources.demand.cpu, 1, MAX_MILLI_CPUS);
    }
    range(&["resources", "memory"], resources.demand.memory, 0, MAX_MEMORY);
    range(&["resources", "gpus"], resources.demand.gpus.into(), 0, MAX_GPUS.into());
    if resources.demand.gpu_share > 0 {
        // Only a client of its own sends a share of several, or of more than one is.
        range(&["resources", "gpus"], resources.demand.gpus.into(), 1, 1);
        range(&["resources", "gpus"], resources.demand.gpu_share.into(), 1, 999);
    }
    range(&["resources", "gpu_memory"], resources.demand.gpu_memory, 0, MAX_MEMORY);
    range(&["resources", "disk"], resources.demand.disk, 0, MAX_MEMORY);
    if let Some(size) = resources.shm_size {
        range(&["resources", "shm_size"], size, 1, MAX_MEMORY << 20);
    }
    if let Some(timeout) = job.limits.timeout {
        range(&["limits", "timeout"], timeout, 1, MAX_SECONDS);
    }
    range(&["retry", "max_attempts"], job.retry.max_attempts.into(), 1, MAX_ATTEMPTS.into());
    range(&["retry", "backoff"], job.retry.backoff, 0, MAX_BACKOFF);
    if let Some(percent) = job.retry.memory_percent {
        range(&["retry", "memory"], percent.into(), 100, MAX_MEMORY_PERCENT.into());
    }
    if let Some(idle) = job.idle_gpu {
        range(&["idle_gpu", "after"], idle.after, 1, MAX_SECONDS);
    }
    if let Some(seconds) = job.keep_failed {
        range(&["keep_failed"], seconds, 0, MAX_KEPT);
    }
}
