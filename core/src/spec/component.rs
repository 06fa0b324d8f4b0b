//! The reader of components' files: from Azure ML's command component YAML to a [`Draft`].

use std::collections::BTreeMap;

use super::asset::{asset_name, asset_version, references};
use super::command::{
    AssetRef, CommandJob, DataUri, Environment, Input, InputMode, Limits, OnNodeLoss, Output,
    OutputMode, QueueSettings, Retry,
};
use super::diagnostic::{Diagnostic, Diagnostics, Report};
use super::fields::{
    DATA_TYPES, DISTRIBUTIONS, ENVIRONMENT, INPUT_TYPES, RESOURCES, SCHEMA, field,
};
use super::job::{Reader, chosen, document, failed, given, literal, locate, text};
use super::limits::{MAX_DESCRIPTION, MAX_ENTRIES, MAX_VALUE};
use super::origin::{Files, Origin};
use super::overrides::{self, Override};
use super::ports::{data_kind, read_all};
use super::shape::{self, Object, Shape, Support, boolean, join};
use super::validate::{Check, findings, local_faults, report};
use super::yaml::{Node, shorten};
use super::{distribution, environment, resources};
use crate::asset::Kind;
use crate::component::{Content, Draft, InputKind, InputPort, OutputPort};
use crate::id::ExperimentName;
use Shape::{Any, Bool, List, Literal, LiteralOrNull, Map, Null, OneOf, Tagged, Text, Word};
use Support::{Dropped, Recorded, Runs, Unused};

const COMPONENT_TYPES: [&str; 1] = ["command"];
const EXAMPLE: &str = "name: train";
const SHORTER: &str = "write less";

/// The whole document.
pub(super) static COMPONENT_FILE: Object = Object {
    what: "a command component",
    fields: &[
        SCHEMA,
        field("name", Text, Runs, "required", "The component's name."),
        field(
            "version",
            Literal,
            Runs,
            "the next number",
            "The version to make. What a version is made of never changes.",
        ),
        field("type", Word(&COMPONENT_TYPES), Runs, "command", "Only a command."),
        field("display_name", Text, Recorded, "", "A name for people."),
        field("description", Text, Recorded, "", "What it is for."),
        field("tags", Map(&LiteralOrNull), Recorded, "", "Key-value pairs that may change later."),
        field("properties", Map(&LiteralOrNull), Unused, "", "Key-value pairs."),
        field("command", Text, Runs, "required", "The shell command, with expressions."),
        field(
            "code",
            Text,
            Runs,
            "an empty folder",
            "The folder with the code, relative to this file; it is sent, and kept as it is.",
        ),
        field(
            "environment",
            OneOf(&[Text, Shape::Object(&ENVIRONMENT)]),
            Runs,
            "the node's own programs",
            "What the command runs in, as of a job. A name means one version from then on.",
        ),
        field(
            "inputs",
            Map(&OneOf(&[Shape::Object(&INPUT), Null])),
            Runs,
            "",
            "What it takes, by name.",
        ),
        field(
            "outputs",
            Map(&OneOf(&[Shape::Object(&OUTPUT), Null])),
            Runs,
            "",
            "What it gives, by name; a name alone makes a folder.",
        ),
        field(
            "resources",
            Shape::Object(&RESOURCES),
            Runs,
            "",
            "What a job of it takes, as of a job.",
        ),
        field(
            "distribution",
            Tagged("a distribution", &DISTRIBUTIONS),
            Runs,
            "one process",
            "How processes are launched, as of a job.",
        ),
        field(
            "is_deterministic",
            Bool,
            Recorded,
            "true",
            "Whether the same inputs give the same outputs.",
        ),
        field("id", Any, Dropped, "", "Written by Azure's tools."),
        field("creation_context", Any, Dropped, "", "Written by Azure's tools."),
        field("resourceGroup", Any, Dropped, "", "Written by Azure's tools."),
    ],
};

static INPUT: Object = Object {
    what: "an input",
    fields: &[
        field("type", Word(&INPUT_TYPES), Runs, "uri_folder", "What it takes."),
        field("description", Text, Recorded, "", "What it is for."),
        field("optional", Bool, Runs, "false", "Whether it may be left without a value."),
        field("default", Literal, Runs, "", "The value of a literal where none is given."),
        field("min", Literal, Runs, "", "The least that a number may be."),
        field("max", Literal, Runs, "", "The most that a number may be."),
        field("enum", List(&Literal), Runs, "", "The only values that a literal may have."),
    ],
};

static OUTPUT: Object = Object {
    what: "an output",
    fields: &[
        field("type", Word(&DATA_TYPES), Runs, "uri_folder", "What it is."),
        field("description", Text, Recorded, "", "What it is for."),
    ],
};

/// A component that was read, and what its author should know.
#[derive(Clone, PartialEq, Debug)]
pub struct ParsedComponent {
    /// The component. The folder of its code is absolute, and lay there when the document was read.
    pub draft: Draft,
    /// What is accepted and does nothing, or means something else than it seems to.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a component's YAML, with `changes` applied to it in order.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be told apart, each with its place.
pub fn parse_component(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
) -> Result<ParsedComponent, Diagnostics> {
    let mut report = Report::default();
    let Some(mut root) = document(text, &origin.name, EXAMPLE, &mut report) else {
        return Err(failed(report));
    };
    for change in changes {
        overrides::apply(&mut root, change, &mut report);
    }
    if !report.has_errors() {
        shape::check(&root, &Shape::Object(&COMPONENT_FILE), "", &mut report);
    }
    if report.has_errors() {
        return Err(failed(report));
    }
    let mut reader = Reader { report, files, origin };
    let draft = reader.component(&root);
    let mut report = reader.report;
    let Some(draft) = draft.filter(|_| !report.has_errors()) else {
        return Err(failed(report));
    };
    for finding in faults(&draft).found.first {
        locate(&root, finding, &mut report);
    }
    report.finish().map(|warnings| ParsedComponent { draft, warnings })
}

impl Reader<'_> {
    /// The component, as far as it can be read; faults are reported.
    fn component(&mut self, root: &Node) -> Option<Draft> {
        let name = asset_name(self, root, Kind::Component, EXAMPLE);
        let version = asset_version(self, root);
        let command = text(root, "command");
        if command.is_none() {
            self.report
                .error(root.mark, "command", "the component has no 'command'")
                .help("write what it runs, for example 'command: python train.py'");
        }
        let resources = resources::read(self, root);
        let members = resources.instance_count;
        let content = Content {
            code: given(root, "code").and_then(|node| self.code(node)),
            environment: given(root, "environment")
                .map_or(Environment::Host, |node| environment::read(self, node)),
            inputs: read_all(self, root, "inputs", |reader, node, path| {
                Some(input(reader, node, path))
            }),
            outputs: read_all(self, root, "outputs", |_, node, _| {
                let kind = data_kind(chosen(node, "type", &DATA_TYPES));
                Some(OutputPort { kind, description: text(node, "description") })
            }),
            distribution: given(root, "distribution").map(|node| distribution::read(node, members)),
            resources,
            is_deterministic: given(root, "is_deterministic").and_then(boolean).unwrap_or(true),
            command: command?,
        };
        Some(Draft {
            name: name?,
            version,
            display_name: text(root, "display_name"),
            description: text(root, "description"),
            tags: self.pairs(root, "tags"),
            content,
        })
    }
}

fn input(reader: &mut Reader<'_>, node: &Node, path: &str) -> InputPort {
    for key in ["default", "min", "max"] {
        if let Some(value) = given(node, key) {
            reader.warn_of_respelling(value, &join(path, key));
        }
    }
    let choices = given(node, "enum").map(Node::items).unwrap_or_default();
    InputPort {
        kind: match chosen(node, "type", &INPUT_TYPES) {
            Some("string") => InputKind::String,
            Some("integer") => InputKind::Integer,
            Some("number") => InputKind::Number,
            Some("boolean") => InputKind::Boolean,
            kind => InputKind::Data(data_kind(kind)),
        },
        description: text(node, "description"),
        optional: given(node, "optional").and_then(boolean).unwrap_or(false),
        default: literal(node, "default"),
        min: literal(node, "min"),
        max: literal(node, "max"),
        choices: choices.iter().filter_map(Node::python_str).collect(),
    }
}

/// Checks a component that was sent to the daemon; see [`Draft::check`].
///
/// # Errors
/// Every fault, each with its field.
pub fn validate_component(draft: &Draft) -> Result<(), Diagnostics> {
    let mut check = faults(draft);
    local_faults(&mut check, draft.content.code.as_ref(), &draft.content.environment);
    report(check.found)
}

/// Every fault that a reader may leave.
fn faults(draft: &Draft) -> Check {
    let Draft { display_name, description, tags, content, .. } = draft;
    // What holds for a job with all of its inputs and outputs holds for it.
    let found = job_of(content).map(|job| findings(&job)).unwrap_or_default();
    let mut check = Check::of(found);
    for (key, said) in [("display_name", display_name), ("description", description)] {
        if let Some(said) = said {
            check.at(&[key]).size(said, MAX_DESCRIPTION, SHORTER);
        }
    }
    check.pairs("tags", tags, SHORTER);
    for (name, port) in &content.inputs {
        input_faults(&mut check, name.as_str(), port);
    }
    for (name, port) in &content.outputs {
        if let Some(said) = &port.description {
            check.at(&["outputs", name.as_str(), "description"]).size(
                said,
                MAX_DESCRIPTION,
                SHORTER,
            );
        }
    }
    check
}

/// A job of the component, with a value for each of its inputs that needs one.
fn job_of(content: &Content) -> Option<CommandJob> {
    let Content { command, code, environment, inputs, outputs, resources, distribution, .. } =
        content.clone();
    let inputs = inputs.into_iter().map(|(name, port)| {
        let input = match (port.optional, port.kind) {
            // Expressions that name it must be such as may be left out.
            (true, _) => Input::Unset,
            (false, InputKind::Data(kind)) => {
                let uri = DataUri::Http("https://data.example/".to_owned());
                Input::Data { kind, mode: InputMode::default(), uri, asset: None, address: None }
            }
            (false, _) => Input::Literal { value: "1".to_owned() },
        };
        (name, input)
    });
    let outputs = outputs.into_iter().map(|(name, port)| {
        let (kind, mode) = (port.kind, OutputMode::default());
        (name, Output { kind, mode, path: None, asset_name: None, asset_version: None })
    });
    Some(CommandJob {
        name: None,
        display_name: None,
        description: None,
        experiment_name: ExperimentName::new("Default").ok()?,
        tags: BTreeMap::new(),
        properties: BTreeMap::new(),
        command,
        code,
        environment,
        compute: None,
        inputs: inputs.collect(),
        outputs: outputs.collect(),
        environment_variables: BTreeMap::new(),
        resources,
        distribution,
        limits: Limits::default(),
        queue: QueueSettings::default(),
        services: BTreeMap::new(),
        identity: None,
        retry: Retry::default(),
        on_node_loss: OnNodeLoss::default(),
        idle_gpu: None,
        keep_failed: None,
    })
}

fn input_faults(check: &mut Check, name: &str, port: &InputPort) {
    let InputPort { kind, description, optional: _, default, min, max, choices } = port;
    if let Some(said) = description {
        check.at(&["inputs", name, "description"]).size(said, MAX_DESCRIPTION, SHORTER);
    }
    let is_number = matches!(kind, InputKind::Integer | InputKind::Number);
    let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<f64>().ok());
    let word = kind.word();
    for (key, bound) in [("min", min), ("max", max)] {
        let Some(bound) = bound else { continue };
        if !is_number {
            check.at(&["inputs", name, key]).fault(
                format!("input '{name}': type {word} has no '{key}'"),
                "only integer and number have bounds: remove it",
            );
        } else if !kind.takes(bound) {
            misfit(check, &["inputs", name, key], (name, bound, word));
        }
    }
    if let (true, Some(min), Some(max)) = (is_number, number(min), number(max))
        && min > max
    {
        check.at(&["inputs", name, "min"]).fault(
            format!("input '{name}': no number is at least {min} and at most {max}"),
            "give a 'min' that is not above 'max'",
        );
    }
    if choices.len() > MAX_ENTRIES {
        let message = format!("input '{name}': more than {MAX_ENTRIES} values in 'enum'");
        check.at(&["inputs", name, "enum"]).fault(message, SHORTER);
    }
    let values = choices.iter().map(|choice| ("enum", choice));
    for (key, value) in values.chain(default.iter().map(|default| ("default", default))) {
        check.at(&["inputs", name, key]).size(value, MAX_VALUE, SHORTER);
        if let InputKind::Data(_) = kind {
            check.fault(
                format!("input '{name}': type {word} has no '{key}'"),
                "data is given by its path when the component is used: remove it",
            );
            break;
        }
        if !kind.takes(value) {
            misfit(check, &["inputs", name, key], (name, value, word));
        }
    }
    let Some(default) = default else { return };
    let value = default.parse::<f64>().ok().filter(|_| is_number);
    let is_outside = value.is_some_and(|value| {
        number(min).is_some_and(|min| value < min) || number(max).is_some_and(|max| value > max)
    });
    if is_outside || !(choices.is_empty() || choices.contains(default)) {
        check.at(&["inputs", name, "default"]).fault(
            format!("input '{name}': the default '{}' is none of its values", shorten(default)),
            "give one that 'min', 'max' and 'enum' allow",
        );
    }
}

fn misfit(check: &mut Check, path: &[&str], (name, value, word): (&str, &str, &str)) {
    check.at(path).fault(
        format!("input '{name}': '{}' is no value of type {word}", shorten(value)),
        "write one of the type, or choose another type",
    );
}

/// Reads how people name a component on a command line: `NAME`, `NAME:VERSION`, `NAME@LABEL`, with
/// `azureml:` before it or not.
///
/// # Errors
/// What it is instead, and how to write it.
pub fn component_reference(text: &str) -> Result<AssetRef, Diagnostics> {
    references(text, &["components"])
}
