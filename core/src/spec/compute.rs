//! The reader of compute clusters: from Azure ML's `amlcompute` YAML to a [`Cluster`], and from a
//! sizes file to rows of a [`SizeTable`].

use std::collections::BTreeMap;

use super::diagnostic::{Diagnostic, Diagnostics, Mark, Report};
use super::job::{Reader, chosen, count, document, failed, given, locate, text};
use super::limits::{
    MAX_ATTEMPTS, MAX_BACKOFF, MAX_DESCRIPTION, MAX_ENTRIES, MAX_GPUS, MAX_LABELS, MAX_MEMORY,
    MAX_MILLI_CPUS, MAX_SECONDS, MAX_TAG_VALUE, MAX_VALUE,
};
use super::origin::{Files, Origin};
use super::overrides::{self, Override};
use super::quantity;
use super::shape::{self, Shape, join, whole, word};
use super::shell::split;
use super::validate::{Check, Findings, report};
use super::yaml::{self, Node};
use crate::compute::{
    Cluster, CommandProvider, Containment, MAX_CLUSTER, NodeShape, Placement, Provider, SizeTable,
    Tier,
};
use crate::id::ComputeName;
use crate::node::{LABEL_FORM, is_label};
use crate::suggest;

mod fields;

pub(super) use fields::AMLCOMPUTE;
use fields::{COMPUTE_TYPES, CONTAINMENTS, OTHER_COMPUTES, PLACEMENTS, PROVIDERS, SIZES, TIERS};

/// Bytes of a size's name.
const MAX_SIZE_NAME: usize = 128;

/// A cluster that was read, and what its author should know.
#[derive(Clone, PartialEq, Debug)]
pub struct ParsedCompute {
    /// The cluster, with its size looked up.
    pub cluster: Cluster,
    /// What is accepted and does nothing, or means something else than it seems to.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a compute cluster's YAML, with `changes` applied to it in order; `sizes` says what its
/// size stands for.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be told apart, each with its place.
pub fn parse_compute(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
    sizes: &SizeTable,
) -> Result<ParsedCompute, Diagnostics> {
    let mut report = Report::default();
    let Some(mut root) = document(text, &origin.name, EXAMPLE, &mut report) else {
        return Err(failed(report));
    };
    for change in changes {
        overrides::apply(&mut root, change, &mut report);
    }
    if !report.has_errors() && is_cluster(&root, &mut report) {
        shape::check(&root, &Shape::Object(&AMLCOMPUTE), "", &mut report);
    }
    if report.has_errors() {
        return Err(failed(report));
    }
    let mut reader = Reader { report, files, origin };
    let cluster = reader.cluster(&root, sizes);
    let mut report = reader.report;
    let Some(cluster) = cluster.filter(|_| !report.has_errors()) else {
        return Err(failed(report));
    };
    for finding in findings(&cluster).first {
        locate(&root, finding, &mut report);
    }
    report.finish().map(|warnings| ParsedCompute { cluster, warnings })
}

/// Reads a sizes file: what each size offers, by name, for [`SizeTable::with`].
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn parse_sizes(
    text: &[u8],
    origin: &Origin,
    files: &dyn Files,
) -> Result<BTreeMap<String, NodeShape>, Diagnostics> {
    let mut report = Report::default();
    let Some(root) = document(text, &origin.name, SIZES_EXAMPLE, &mut report) else {
        return Err(failed(report));
    };
    shape::check(&root, &Shape::Object(&SIZES), "", &mut report);
    if report.has_errors() {
        return Err(failed(report));
    }
    let mut reader = Reader { report, files, origin };
    let rows = reader.sizes(&root);
    reader.report.finish().map(|_| rows)
}

const EXAMPLE: &str = "name: my-cluster";
const SIZES_EXAMPLE: &str = "sizes: {my-box: {cpus: 8, memory: 32GiB}}";

/// Whether the document says, or leaves it open, that it is a cluster; reports it if not.
fn is_cluster(root: &Node, report: &mut Report) -> bool {
    let later = |report: &mut Report, mark: Mark, path: &str, name: &str| {
        report
            .error(mark, path, format!("{name} are not supported yet; compute clusters are"))
            .help("write a cluster with 'type: amlcompute', a 'size' and 'max_instances'");
        false
    };
    let kinds = || OTHER_COMPUTES.iter().map(|(kind, _)| *kind);
    if let Some(node) = given(root, "type") {
        let Some(text) = node.as_text() else { return true };
        if word(text, &COMPUTE_TYPES).is_some() {
            return true;
        }
        let known: Vec<&'static str> = kinds().collect();
        if let Some(kind) = word(text, &known) {
            let found = OTHER_COMPUTES.iter().find(|(other, _)| *other == kind);
            return later(report, node.mark, "type", found.map_or(kind, |(_, name)| name));
        }
        let near = suggest::closest(text, COMPUTE_TYPES.into_iter().chain(kinds()));
        report
            .error(node.mark, "type", format!("there is no compute type '{}'", yaml::shorten(text)))
            .help(match near {
                Some(near) if !COMPUTE_TYPES.contains(&near) => {
                    format!("'{near}' is known, but only 'amlcompute' is supported yet")
                }
                Some(near) => format!("did you mean '{near}'?"),
                None => "write 'type: amlcompute'".to_owned(),
            });
        return false;
    }
    // Azure requires a type; a file without one may still say by its schema what it is.
    let Some(node) = given(root, "$schema") else { return true };
    let file = node.as_text().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    match file.strip_suffix(".schema.json").map(str::to_ascii_lowercase).as_deref() {
        Some("computeinstance") => later(report, node.mark, "$schema", "compute instances"),
        Some("kubernetescompute") => later(report, node.mark, "$schema", "Kubernetes computes"),
        Some("vmcompute") => later(report, node.mark, "$schema", "attached virtual machines"),
        _ => true,
    }
}

impl Reader<'_> {
    /// The cluster, as far as it can be read; faults are reported.
    fn cluster(&mut self, root: &Node, sizes: &SizeTable) -> Option<Cluster> {
        let name = match given(root, "name") {
            Some(node) => self.name(node, "name", ComputeName::new),
            None => {
                self.report
                    .error(root.mark, "name", "the cluster has no 'name'")
                    .help(format!("write how jobs call it, for example '{EXAMPLE}'"));
                None
            }
        };
        let size = self.size(root, sizes);
        let provider = self.provider(root);
        if provider == Some(Provider::Joined) {
            self.warn_of_scaling(root);
        }
        let tags = self.pairs(root, "tags");
        let node_labels = self.pairs(root, "node_labels");
        let (size, node) = size?;
        let usual = Cluster::new(name?, &size, node);
        let idle = given(root, "idle_time_before_scale_down")
            .and_then(whole)
            .and_then(|seconds| seconds.to_i64())
            .and_then(|seconds| u64::try_from(seconds).ok());
        Some(Cluster {
            description: text(root, "description"),
            tags,
            min_instances: count(root, "min_instances").unwrap_or(usual.min_instances),
            max_instances: count(root, "max_instances").unwrap_or(usual.max_instances),
            idle_time_before_scale_down: idle.unwrap_or(usual.idle_time_before_scale_down),
            tier: match chosen(root, "tier", &TIERS) {
                Some("low_priority") => Tier::LowPriority,
                _ => Tier::Dedicated,
            },
            placement: match chosen(root, "placement", &PLACEMENTS) {
                Some("shared") => Placement::Shared,
                _ => Placement::Exclusive,
            },
            containment: match chosen(root, "containment", &CONTAINMENTS) {
                Some("strict") => Containment::Strict,
                _ => Containment::BestEffort,
            },
            provider: provider?,
            location: text(root, "location"),
            node_labels,
            ..usual
        })
    }

    /// The size's name as the table spells it, and what it stands for.
    fn size(&mut self, root: &Node, sizes: &SizeTable) -> Option<(String, NodeShape)> {
        let written = given(root, "size");
        let name = written.and_then(Node::as_text);
        if let Some(resources) = given(root, "resources") {
            let node = self.node(resources, "resources");
            let known = name.and_then(|name| sizes.get(name));
            if let (Some(written), Some((name, of_size))) = (written, known)
                && node.as_ref().is_some_and(|node| node != of_size)
            {
                self.report.warn(
                    written.mark,
                    "size",
                    format!("'{name}' is a name only: 'resources' says what the nodes offer"),
                );
            }
            let name = known.map(|(name, _)| name).or(name).unwrap_or(Cluster::CUSTOM_SIZE);
            return Some((name.to_owned(), node?));
        }
        let name = name.unwrap_or(Cluster::DEFAULT_SIZE);
        if let Some((name, node)) = sizes.get(name) {
            return Some((name.to_owned(), node.clone()));
        }
        let near = match sizes.closest(name).as_slice() {
            [] => String::new(),
            near => format!("did you mean {}? If not, ", near.join(" or ")),
        };
        self.report
            .error(
                written.map_or(root.mark, |node| node.mark),
                "size",
                format!("there is no size '{}'", yaml::shorten(name)),
            )
            .help(format!(
                "{near}add it to the sizes file, or say what a node offers: 'resources: {{cpus: 8, \
                 memory: 32GiB}}'"
            ));
        None
    }

    /// What a node offers, written out.
    fn node(&mut self, node: &Node, path: &str) -> Option<NodeShape> {
        for key in ["cpus", "memory"] {
            if given(node, key).is_none() {
                self.report
                    .error(node.mark, path, format!("'{path}' has no '{key}'"))
                    .help("write for example 'cpus: 8' and 'memory: 32GiB'");
            }
        }
        let cpu = self.quantity(node, path, "cpus", quantity::cpus);
        let memory = self.quantity(node, path, "memory", quantity::memory);
        let disk = self.quantity(node, path, "disk", quantity::memory);
        let gpu_memory = self.quantity(node, path, "gpu_memory", quantity::memory);
        let gpus = count(node, "gpus").unwrap_or(0);
        for key in ["gpu_model", "gpu_memory"] {
            if let Some(value) = given(node, key).filter(|_| gpus == 0) {
                let path = join(path, key);
                self.report
                    .error(value.mark, &path, format!("'{path}' is given, but there are no GPUs"))
                    .help(format!("write how many: 'gpus: 1', or remove '{key}'"));
            }
        }
        Some(NodeShape {
            cpu: cpu?,
            memory: memory?,
            disk: disk.unwrap_or(0),
            gpus,
            gpu_model: text(node, "gpu_model"),
            gpu_memory: gpu_memory.unwrap_or(0),
        })
    }

    fn provider(&mut self, root: &Node) -> Option<Provider> {
        let Some(node) = given(root, "provider") else { return Some(Provider::default()) };
        let kind = node.as_text().or_else(|| node.get("type").and_then(Node::as_text));
        match kind.and_then(|kind| word(kind, &PROVIDERS)) {
            Some("local") => return Some(Provider::Local),
            Some("joined") => return Some(Provider::Joined),
            _ => {}
        }
        let create = self.command(node, "create");
        let delete = self.command(node, "delete");
        let list = given(node, "list").map(|_| self.command(node, "list"));
        let timeout = self.quantity(node, "provider", "timeout", quantity::seconds);
        Some(Provider::Command(CommandProvider {
            create: create?,
            delete: delete?,
            list: list.map_or(Some(None), |list| list.map(Some))?,
            timeout: timeout.unwrap_or(CommandProvider::default_timeout()),
            retries: count(node, "retries").unwrap_or(CommandProvider::default_retries()),
        }))
    }

    /// The words of one of a provider's commands.
    fn command(&mut self, provider: &Node, key: &str) -> Option<Vec<String>> {
        let path = join("provider", key);
        let Some(node) = given(provider, key) else {
            self.report
                .error(provider.mark, &path, format!("the provider has no '{key}' command"))
                .help(
                    "write 'provider: {type: command, create: \"./add-node\", delete: \
                     \"./remove-node\"}'",
                );
            return None;
        };
        let Some(line) = node.as_text() else {
            return Some(
                node.items().iter().filter_map(Node::as_text).map(str::to_owned).collect(),
            );
        };
        let words = split(line);
        if words.is_none() {
            self.report
                .error(node.mark, &path, format!("'{path}': a quote is not closed"))
                .help("close it, or write the words as a list");
        }
        words
    }

    /// Machines that join by themselves are neither added nor removed.
    fn warn_of_scaling(&mut self, root: &Node) {
        for key in ["min_instances", "max_instances", "idle_time_before_scale_down"] {
            if let Some(node) = given(root, key) {
                self.report.warn(
                    node.mark,
                    key,
                    format!(
                        "'{key}' is recorded only: machines of a joined cluster come by themselves"
                    ),
                );
            }
        }
    }

    fn sizes(&mut self, root: &Node) -> BTreeMap<String, NodeShape> {
        if given(root, "sizes").is_none() {
            self.report
                .error(root.mark, "sizes", "the file has no 'sizes'")
                .help(format!("write for example '{SIZES_EXAMPLE}'"));
        }
        let mut rows = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for entry in given(root, "sizes").map(Node::entries).unwrap_or_default() {
            let (name, mark) = (&entry.key.text, entry.key.mark);
            let path = join("sizes", name);
            if !is_size_name(name) {
                let shown = yaml::shorten(name);
                self.report
                    .error(mark, &path, format!("'{shown}' is not a size's name"))
                    .help(SIZE_RULE);
            }
            if let Some(other) = seen.insert(name.to_ascii_lowercase(), name) {
                self.report
                    .error(mark, &path, format!("'{name}' is the same size as '{other}'"))
                    .help("case does not count in a size's name: remove one of them");
            }
            if let Some(node) = self.node(&entry.value, &path) {
                rows.insert(name.clone(), node);
            }
        }
        rows
    }
}

const SIZE_RULE: &str =
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 128 characters";

fn is_size_name(name: &str) -> bool {
    name.len() <= MAX_SIZE_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Checks a cluster that was sent to the daemon; see [`Cluster::check`].
///
/// # Errors
/// Every fault, each with its field.
pub fn validate_cluster(cluster: &Cluster) -> Result<(), Diagnostics> {
    report(findings(cluster))
}

/// Every fault of a cluster.
fn findings(cluster: &Cluster) -> Findings {
    let mut check = Check::default();
    let shorter = "write less";
    if let Some(text) = &cluster.description {
        check.at(&["description"]).size(text, MAX_DESCRIPTION, shorter);
    }
    if let Some(text) = &cluster.location {
        check.at(&["location"]).size(text, MAX_TAG_VALUE, shorter);
    }
    check.pairs("tags", &cluster.tags, shorter);
    if !is_size_name(&cluster.size) {
        let message = format!("'{}' is not a size's name", yaml::shorten(&cluster.size));
        check.at(&["size"]).fault(message, SIZE_RULE);
    }
    label_faults(&mut check, cluster);
    node_faults(&mut check, &cluster.node);
    let (least, most) = (cluster.min_instances, cluster.max_instances);
    check.at(&["min_instances"]).range(least.into(), 0, MAX_CLUSTER.into());
    if least > most && (1..=MAX_CLUSTER).contains(&most) {
        check.fault(
            format!("'min_instances' is {least}, more than 'max_instances', which is {most}"),
            format!("write 'max_instances: {least}' or more, or 'min_instances: {most}' or less"),
        );
    }
    check.at(&["max_instances"]).range(most.into(), 1, MAX_CLUSTER.into());
    check.at(&["idle_time_before_scale_down"]).range(
        cluster.idle_time_before_scale_down,
        0,
        MAX_SECONDS,
    );
    if let Provider::Command(provider) = &cluster.provider {
        command_faults(&mut check, "create", &provider.create);
        command_faults(&mut check, "delete", &provider.delete);
        if let Some(list) = &provider.list {
            command_faults(&mut check, "list", list);
        }
        check.at(&["provider", "timeout"]).range(provider.timeout, 1, MAX_BACKOFF);
        check.at(&["provider", "retries"]).range(provider.retries.into(), 0, MAX_ATTEMPTS.into());
    }
    check.found
}

fn label_faults(check: &mut Check, cluster: &Cluster) {
    let labels = &cluster.node_labels;
    check.at(&["node_labels"]);
    if cluster.provider == Provider::Joined && !labels.is_empty() {
        check.fault(
            "'node_labels' cannot be said of a joined cluster: its machines say their own",
            "remove it, and start the agents with '--label KEY=VALUE'",
        );
    }
    if labels.len() > MAX_LABELS {
        check.fault(
            format!("'node_labels' has {} labels; at most {MAX_LABELS} are allowed", labels.len()),
            "write fewer",
        );
    }
    for (key, value) in labels.iter().filter(|(key, value)| !is_label(key, value)) {
        let (shown, value) = (yaml::shorten(key), yaml::shorten(value));
        check
            .at(&["node_labels", key])
            .fault(format!("'{shown}: {value}' in 'node_labels' is not a label"), LABEL_FORM);
    }
}

fn node_faults(check: &mut Check, node: &NodeShape) {
    if node.cpu == 0 || node.cpu > MAX_MILLI_CPUS {
        // In thousandths: only a client of its own sends this.
        check.at(&["resources", "cpus"]).range(node.cpu, 1, MAX_MILLI_CPUS);
    }
    check.at(&["resources", "memory"]).range(node.memory, 1, MAX_MEMORY);
    check.at(&["resources", "disk"]).range(node.disk, 0, MAX_MEMORY);
    check.at(&["resources", "gpus"]).range(node.gpus.into(), 0, MAX_GPUS.into());
    check.at(&["resources", "gpu_memory"]).range(node.gpu_memory, 0, MAX_MEMORY);
    if let Some(model) = &node.gpu_model {
        check.at(&["resources", "gpu_model"]).size(model, MAX_TAG_VALUE, "write less");
    }
}

fn command_faults(check: &mut Check, key: &str, words: &[String]) {
    check.at(&["provider", key]);
    if words.first().is_none_or(String::is_empty) {
        check.fault(
            format!("'provider.{key}' names no program"),
            "write the program and its arguments, for example './add-node --size big'",
        );
    }
    if words.len() > MAX_ENTRIES {
        check.fault(
            format!(
                "'provider.{key}' has {} words; at most {MAX_ENTRIES} are allowed",
                words.len()
            ),
            "write a script",
        );
    }
    for word in words {
        check.size(word, MAX_VALUE, "write a script");
    }
}
