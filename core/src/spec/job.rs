//! The reader: from a document to a [`CommandJob`].

use std::collections::BTreeMap;

use super::command::{
    Code, CommandJob, Environment, Identity, IdleAction, IdleGpu, Limits, OnNodeLoss, Priority,
    QueueSettings, Retry, Service,
};
use super::diagnostic::{Diagnostic, Diagnostics, Mark, Report, Source};
use super::fields::{
    IDLE_ACTIONS, JOB, NODE_LOSS, OTHER_KINDS, PRIORITIES, SERVICES, TELLING_KEYS, TIERS,
};
use super::limits::MAX_DOCUMENT;
use super::origin::{FileKind, Files, Origin, resolve};
use super::overrides::{self, Override};
use super::shape::{self, join, whole, word};
use super::validate::{Finding, findings};
use super::yaml::{self, Failure, Node, Value};
use super::{distribution, environment, ports, quantity, reference, resources};
use crate::id::{ExperimentName, InvalidName, JobName};
use crate::suggest;

/// A job that was read, and what its author should know.
#[derive(Clone, PartialEq, Debug)]
pub struct Parsed {
    /// The job. Its [`Code::Local`] and [`DataUri::Local`](super::DataUri::Local) paths are
    /// absolute and lay there when the document was read.
    pub job: CommandJob,
    /// What is accepted and does nothing, or means something else than it seems to.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a command job's YAML, with `changes` applied to it in order.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be told apart, each with its place.
pub fn parse_job(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
) -> Result<Parsed, Diagnostics> {
    let mut report = Report::default();
    let Some(mut root) = document(text, &origin.name, "command: python train.py", &mut report)
    else {
        return Err(failed(report));
    };
    for change in changes {
        overrides::apply(&mut root, change, &mut report);
    }
    if !report.has_errors() && is_command_job(&root, &mut report) {
        shape::check(&root, &super::shape::Shape::Object(&JOB), "", &mut report);
    }
    if report.has_errors() {
        return Err(failed(report));
    }
    let mut reader = Reader { report, files, origin };
    let job = reader.job(&root);
    let mut report = reader.report;
    let Some(job) = job.filter(|_| !report.has_errors()) else {
        return Err(failed(report));
    };
    let found = findings(&job);
    report.more_errors(found.more);
    for finding in found.first {
        locate(&root, finding, &mut report);
    }
    report.finish().map(|warnings| Parsed { job, warnings })
}

/// The errors of a report that has some.
pub(super) fn failed(report: Report) -> Diagnostics {
    report.finish().err().unwrap_or_else(|| Diagnostic::new("the document cannot be read").into())
}

/// The tree of a document that has to be a mapping; `example` is a line of one.
pub(super) fn document(
    text: &[u8],
    name: &str,
    example: &str,
    report: &mut Report,
) -> Option<Node> {
    if text.len() > MAX_DOCUMENT {
        report.error_elsewhere(
            Diagnostic::new(format!(
                "{name}: the file has {} bytes; at most {} MiB are read",
                text.len(),
                MAX_DOCUMENT >> 20
            ))
            .with_help("is this the right file? Data belongs into an input, code into 'code'"),
        );
        return None;
    }
    let decoded = yaml::decode(text);
    // What cannot be decoded is shown as well as it can be.
    let shown = decoded.as_ref().map_or_else(|_| String::new(), |text| (*text).to_owned());
    let source = report.add(Source { name: name.to_owned(), text: shown, is_file: true });
    let root = match decoded.and_then(|text| yaml::compose(text, source)) {
        Ok(root) => root,
        Err(Failure { line, column, width, message, help }) => {
            let mark = Mark { source, line, column, offset: 0, width };
            report.error(mark, "", message).help(help);
            return None;
        }
    };
    if matches!(root.value, Value::Map(_)) {
        return Some(root);
    }
    report
        .error(root.mark, "", format!("expected a mapping, found {}", root.describe()))
        .help(format!("write 'key: value' lines, for example '{example}'"));
    None
}

/// Whether the document says, or looks as if, it is a command job; reports it if not.
fn is_command_job(root: &Node, report: &mut Report) -> bool {
    let later = |report: &mut Report, mark: Mark, kind: &str| {
        let name = OTHER_KINDS.iter().find(|(other, _)| *other == kind).map_or(kind, |(_, n)| n);
        report
            .error(mark, "type", format!("{name} are not supported yet; command jobs are"))
            .help("write a job with 'type: command' and a 'command:'");
    };
    if let Some(node) = root.get("type").filter(|node| !node.is_null()) {
        let Some(text) = node.as_text() else { return true };
        if word(text, &["command"]).is_some() {
            return true;
        }
        let kinds: Vec<&'static str> = OTHER_KINDS.iter().map(|(kind, _)| *kind).collect();
        if let Some(kind) = word(text, &kinds) {
            later(report, node.mark, kind);
            return false;
        }
        let near = suggest::closest(text, kinds.iter().copied().chain(["command"]));
        report
            .error(node.mark, "type", format!("there is no job type '{}'", yaml::shorten(text)))
            .help(match near {
                Some("command") | None => "write 'type: command'".to_owned(),
                Some(near) => format!("'{near}' is known, but only 'command' is supported yet"),
            });
        return false;
    }
    for entry in root.entries() {
        let telling = TELLING_KEYS.iter().find(|(key, _)| *key == entry.key.text);
        if let Some((_, kind)) = telling {
            later(report, entry.key.mark, kind);
            return false;
        }
    }
    let schema = root.get("$schema").and_then(Node::as_text).unwrap_or_default();
    let file = schema.rsplit('/').next().unwrap_or_default();
    if let Some(kind) = file.strip_suffix(".schema.json") {
        let ours = matches!(kind.to_ascii_lowercase().as_str(), "commandjob" | "commandcomponent");
        if !ours && root.get("command").is_none() {
            let mark = root.get("$schema").map_or(root.mark, |node| node.mark);
            report
                .error(
                    mark,
                    "$schema",
                    format!("this is not a command job, but by its schema '{kind}'"),
                )
                .help("a job has a 'command:'");
            return false;
        }
    }
    true
}

/// Reports a fault of the job at its place in the document.
pub(super) fn locate(root: &Node, finding: Finding, report: &mut Report) {
    let mut node = root;
    let mut mark = root.mark;
    for part in &finding.path {
        let next = match &node.value {
            Value::List(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
            _ => node.get(part),
        };
        let Some(next) = next else { break };
        node = next;
        mark = node.mark;
    }
    if let (Some(span), Some(text)) = (&finding.span, node.as_text()) {
        mark = within(text, span.clone(), mark, report).unwrap_or(mark);
    }
    let diagnostic = report.error(mark, &finding.path.join("."), finding.message);
    diagnostic.help = finding.help;
}

/// The place of a part of a scalar's text. The text may be folded, escaped or indented in the
/// file, so it is found as the occurrence of the same number.
fn within(text: &str, span: std::ops::Range<usize>, mark: Mark, report: &Report) -> Option<Mark> {
    let part = text.get(span.clone()).filter(|part| !part.is_empty())?;
    let nth = text.get(..span.start)?.matches(part).count();
    let source = report.source(mark.source).filter(|source| source.is_file)?;
    let rest = source.text.get(mark.offset as usize..)?;
    let (offset, _) = rest.match_indices(part).nth(nth)?;
    let before = &source.text[..mark.offset as usize + offset];
    Some(Mark {
        line: before.matches('\n').count() as u32 + 1,
        column: before.rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1,
        offset: before.len() as u32,
        width: part.chars().count() as u32,
        ..mark
    })
}

/// What reading needs besides the document. Kinds and keys are known to be right by now.
pub(super) struct Reader<'a> {
    pub(super) report: Report,
    pub(super) files: &'a dyn Files,
    pub(super) origin: &'a Origin,
}

/// The value under `key` if it is there and not null.
pub(super) fn given<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    node.get(key).filter(|node| !node.is_null())
}

pub(super) fn text(node: &Node, key: &str) -> Option<String> {
    given(node, key).and_then(Node::as_text).map(str::to_owned)
}

pub(super) fn literal(node: &Node, key: &str) -> Option<String> {
    given(node, key).and_then(Node::python_str)
}

pub(super) fn count(node: &Node, key: &str) -> Option<u32> {
    given(node, key).and_then(whole).and_then(|n| n.to_i64()).and_then(|n| u32::try_from(n).ok())
}

pub(super) fn chosen(node: &Node, key: &str, words: &[&'static str]) -> Option<&'static str> {
    given(node, key).and_then(Node::as_text).and_then(|text| word(text, words))
}

impl Reader<'_> {
    /// The job, as far as it can be read; faults are reported.
    fn job(&mut self, root: &Node) -> Option<CommandJob> {
        let experiment = ExperimentName::new(&self.origin.experiment)
            .or_else(|_| ExperimentName::new("Default"));
        let experiment_name = match given(root, "experiment_name") {
            Some(node) => self.name(node, "experiment_name", ExperimentName::new),
            None => experiment.ok(),
        };
        let command = text(root, "command");
        if command.is_none() {
            self.report
                .error(root.mark, "command", "the job has no 'command'")
                .help("write what it runs, for example 'command: python train.py'");
        }
        if experiment_name.is_none() && !self.report.has_errors() {
            self.report.error(root.mark, "experiment_name", "the job has no experiment");
        }
        Some(CommandJob {
            name: given(root, "name").and_then(|node| self.name(node, "name", JobName::new)),
            display_name: text(root, "display_name"),
            description: text(root, "description"),
            tags: self.pairs(root, "tags"),
            properties: self.pairs(root, "properties"),
            code: given(root, "code").and_then(|node| self.code(node)),
            environment: given(root, "environment")
                .map_or(Environment::Host, |node| environment::read(self, node)),
            compute: given(root, "compute").and_then(|node| {
                let read = reference::compute(node.as_text().unwrap_or_default());
                self.referred(node, "compute", read).flatten()
            }),
            inputs: ports::inputs(self, root),
            outputs: ports::outputs(self, root),
            environment_variables: self.pairs(root, "environment_variables"),
            resources: resources::read(self, root),
            distribution: given(root, "distribution")
                .map(|node| distribution::read(node, count_of_instances(root))),
            limits: Limits {
                timeout: given(root, "limits")
                    .and_then(|limits| given(limits, "timeout"))
                    .and_then(whole)
                    .and_then(|seconds| seconds.to_i64())
                    .and_then(|seconds| u64::try_from(seconds).ok()),
            },
            queue: given(root, "queue_settings").map(queue).unwrap_or_default(),
            services: self.services(root),
            identity: given(root, "identity").map(|node| self.identity(node)),
            retry: given(root, "retry").map(|node| self.retry(node)).unwrap_or_default(),
            on_node_loss: match chosen(root, "on_node_loss", &NODE_LOSS) {
                Some("keep") => OnNodeLoss::Keep,
                _ => OnNodeLoss::Requeue,
            },
            idle_gpu: given(root, "idle_gpu").map(|node| self.idle_gpu(node)),
            keep_failed: self.quantity(root, "", "keep_failed", quantity::seconds),
            // Last, so that the faults of all other fields are found, too.
            experiment_name: experiment_name?,
            command: command?,
        })
    }

    /// A checked name.
    pub(super) fn name<T>(
        &mut self,
        node: &Node,
        path: &str,
        new: impl Fn(&str) -> Result<T, InvalidName>,
    ) -> Option<T> {
        match new(node.as_text().unwrap_or_default()) {
            Ok(name) => Some(name),
            Err(error) => {
                self.wrong_name(node.mark, path, &error);
                None
            }
        }
    }

    pub(super) fn wrong_name(&mut self, mark: Mark, path: &str, error: &InvalidName) {
        let InvalidName { kind, value, rule } = error;
        self.report.error(mark, path, format!("'{value}' is not a valid {kind}")).help(*rule);
    }

    /// The outcome of reading a reference, with its fault or remark reported.
    pub(super) fn referred<T>(
        &mut self,
        node: &Node,
        path: &str,
        read: Result<reference::Read<T>, reference::Wrong>,
    ) -> Option<T> {
        match read {
            Ok(reference::Read { value, remark }) => {
                if let Some(remark) = remark {
                    self.report.warn(node.mark, path, format!("'{path}': {remark}"));
                }
                Some(value)
            }
            Err(reference::Wrong { message, help }) => {
                self.report.error(node.mark, path, format!("'{path}': {message}")).help(help);
                None
            }
        }
    }

    /// A mapping of literals, each as Python prints it.
    pub(super) fn pairs(&mut self, root: &Node, key: &str) -> BTreeMap<String, String> {
        let entries = given(root, key).map(Node::entries).unwrap_or_default();
        let mut pairs = BTreeMap::new();
        for entry in entries {
            self.warn_of_respelling(&entry.value, &join(key, &entry.key.text));
            let value = entry.value.python_str().unwrap_or_default();
            pairs.insert(entry.key.text.clone(), value);
        }
        pairs
    }

    /// Warns of a scalar that becomes a text that few would expect: `yes` is `True`, `010` is `8`.
    pub(super) fn warn_of_respelling(&mut self, node: &Node, path: &str) {
        let (Some(spelled), Some(text)) = (&node.spelled, node.python_str()) else { return };
        let surprising = match &node.value {
            Value::Bool(_) => !spelled.eq_ignore_ascii_case(&text),
            Value::Integer(_) => spelled.trim_start_matches('+') != text,
            Value::Float(_) => spelled.contains(':'),
            Value::Timestamp(_) => **spelled != text,
            _ => false,
        };
        if surprising {
            self.report
                .warn(node.mark, path, format!("'{path}': YAML 1.1 reads {spelled} as {text}"))
                .help(format!("quote it to keep it as written: '{spelled}'"));
        }
    }

    pub(super) fn code(&mut self, node: &Node) -> Option<Code> {
        let written = node.as_text().unwrap_or_default();
        let refuse = |reader: &mut Self, message: String, help: &str| {
            reader.report.error(node.mark, "code", message).help(help);
            None
        };
        let lower = written.to_ascii_lowercase();
        if lower.starts_with("git+") || lower.starts_with("git://") || lower.starts_with("git@") {
            let message = format!("'code': code from git is not supported yet: '{written}'");
            return refuse(self, message, "clone it, and give the folder");
        }
        if lower.starts_with("azureml:") || lower.starts_with("/subscriptions/") {
            let message = "'code': registered code is not supported yet".to_owned();
            return refuse(self, message, "give the folder with the code");
        }
        if let Some((scheme, _)) = lower.split_once("://").filter(|(scheme, _)| *scheme != "file") {
            let message = format!("'code': code from {scheme}:// is not supported");
            return refuse(self, message, "give a local folder with the code");
        }
        if written.trim().is_empty() {
            return refuse(self, "'code' is empty".to_owned(), "remove it, or give a folder");
        }
        let path = written.strip_prefix("file:").unwrap_or(written);
        let path = path.strip_prefix("//").unwrap_or(path);
        let path = self.local(node, "code", path)?;
        Some(Code::Local(path.0))
    }

    /// An existing path of the submitter's machine, made absolute.
    pub(super) fn local(
        &mut self,
        node: &Node,
        field: &str,
        written: &str,
    ) -> Option<(String, FileKind)> {
        let path = resolve(&self.origin.folder, written);
        if let Some(kind) = self.files.kind(&path) {
            return Some((path, kind));
        }
        let diagnostic = self.report.error(
            node.mark,
            field,
            format!("'{field}': there is no file or folder '{written}'"),
        );
        diagnostic.help(if written.starts_with('~') {
            "'~' is not expanded in YAML: write the whole path".to_owned()
        } else {
            format!("looked for {path}; relative paths start from the YAML file's folder")
        });
        None
    }

    fn services(&mut self, root: &Node) -> BTreeMap<String, Service> {
        let entries = given(root, "services").map(Node::entries).unwrap_or_default();
        let mut services = BTreeMap::new();
        for entry in entries {
            let node = &entry.value;
            let path = join("services", &entry.key.text);
            let kind = chosen(node, "type", &SERVICES)
                .or_else(|| chosen(node, "job_service_type", &SERVICES));
            let kind = match kind {
                // Links of Azure's own pages, in a job that its tools printed.
                Some("studio" | "tracking") => continue,
                Some(kind) => kind,
                None => {
                    let words = SERVICES[..4].join(", ");
                    self.report
                        .error(entry.key.mark, &path, format!("'{path}' has no 'type'"))
                        .help(format!("add 'type:' with one of {words}"));
                    continue;
                }
            };
            let mut properties: BTreeMap<String, String> = BTreeMap::new();
            for key in ["log_dir", "ssh_public_keys"] {
                properties.extend(text(node, key).map(|value| (key.to_owned(), value)));
            }
            for entry in given(node, "properties").map(Node::entries).unwrap_or_default() {
                let value = entry.value.python_str().unwrap_or_default();
                properties.insert(entry.key.text.clone(), value);
            }
            let service = Service {
                kind: kind.to_owned(),
                all_nodes: given(node, "nodes").is_some(),
                port: count(node, "port").and_then(|port| u16::try_from(port).ok()),
                properties,
            };
            services.insert(entry.key.text.clone(), service);
        }
        services
    }

    fn identity(&mut self, node: &Node) -> Identity {
        match node.get("type").and_then(Node::as_text).map(str::to_ascii_lowercase).as_deref() {
            Some(kind) if kind.starts_with("managed") => {
                self.report
                    .warn(
                        node.mark,
                        "identity",
                        "'identity' is recorded only: managed identities are Azure's alone",
                    )
                    .help("the job reaches the workspace as itself, with a token of its own");
                Identity::Managed { client_id: text(node, "client_id") }
            }
            Some(kind) if kind.starts_with("user") => Identity::UserIdentity,
            _ => Identity::AmlToken,
        }
    }

    fn retry(&mut self, node: &Node) -> Retry {
        let usual = Retry::default();
        let backoff = self.quantity(node, "retry", "backoff", quantity::seconds);
        Retry {
            max_attempts: count(node, "max_attempts").unwrap_or(usual.max_attempts),
            backoff: backoff.unwrap_or(usual.backoff),
            memory_percent: self.quantity(node, "retry", "memory", quantity::percent),
        }
    }

    fn idle_gpu(&mut self, node: &Node) -> IdleGpu {
        let usual = IdleGpu::default();
        let action = match chosen(node, "action", &IDLE_ACTIONS) {
            Some("stop") => IdleAction::Stop,
            _ => usual.action,
        };
        let after = self.quantity(node, "idle_gpu", "after", quantity::seconds);
        IdleGpu { action, after: after.unwrap_or(usual.after) }
    }

    /// An amount, read by `read` from the text or number under `key`.
    pub(super) fn quantity<T>(
        &mut self,
        node: &Node,
        path: &str,
        key: &str,
        read: impl Fn(&str) -> Result<T, quantity::Wrong>,
    ) -> Option<T> {
        let node = given(node, key)?;
        let path = join(path, key);
        if matches!(node.value, Value::Bool(_) | Value::Timestamp(_)) {
            let message = format!("'{path}': expected an amount, found {}", node.describe());
            self.report.error(node.mark, &path, message);
            return None;
        }
        match read(&node.python_str()?) {
            Ok(value) => {
                self.warn_of_respelling(node, &path);
                Some(value)
            }
            Err(wrong) => {
                let colon = if wrong.starts_with("expected") { ":" } else { "" };
                self.report.error(node.mark, &path, format!("'{path}'{colon} {wrong}"));
                None
            }
        }
    }
}

fn count_of_instances(root: &Node) -> u32 {
    given(root, "resources").and_then(|node| count(node, "instance_count")).unwrap_or(1)
}

fn queue(node: &Node) -> QueueSettings {
    QueueSettings {
        job_tier: chosen(node, "job_tier", &TIERS).map(str::to_owned),
        priority: match chosen(node, "priority", &PRIORITIES) {
            Some("low") => Priority::Low,
            Some("high") => Priority::High,
            _ => Priority::Medium,
        },
    }
}
