//! The readers of data assets' and models' files: from Azure ML's YAML to a [`Draft`].

use super::asset::{asset_name, asset_version, references};
use super::command::{AssetRef, DataKind, DataUri};
use super::diagnostic::{Diagnostic, Diagnostics, Report};
use super::fields::{DATA_TYPES, SCHEMA, field};
use super::job::{Reader, chosen, document, failed, given, locate, text};
use super::limits::{MAX_DESCRIPTION, MAX_DOCUMENT, MAX_TAG_VALUE, MAX_VALUE};
use super::origin::{FileKind, Files, Origin};
use super::overrides::{self, Override};
use super::ports::{data_kind, located};
use super::reference;
use super::shape::{self, Object, Shape, Support};
use super::validate::{Check, report};
use super::yaml::Node;
use crate::asset::{Draft, Kind};
use Shape::{Any, Literal, LiteralOrNull, Map, Text, Word};
use Support::{Dropped, Ignored, Recorded, Runs};

/// Of [`DATA_TYPES`], those of data.
const OF_DATA: [&str; 3] = [DATA_TYPES[0], DATA_TYPES[1], DATA_TYPES[2]];
/// Of [`DATA_TYPES`], those of models; the usual one first.
const OF_MODELS: [&str; 3] = [DATA_TYPES[4], DATA_TYPES[3], DATA_TYPES[5]];

const UPLOADS: &str = "what is uploaded lies in workspaceblobstore";
const AZURES: &str = "Written by Azure's tools.";

/// A data asset's document.
pub(super) static DATA_FILE: Object = Object {
    what: "a data asset",
    fields: &[
        SCHEMA,
        field("name", Text, Runs, "required", "The asset's name, by which jobs call it."),
        field(
            "version",
            Literal,
            Runs,
            "the next number",
            "The version to make. Where a version lies never changes.",
        ),
        field("type", Word(&OF_DATA), Runs, "uri_folder", "What it is."),
        field(
            "path",
            Text,
            Runs,
            "required",
            "Where it lies: a local path, which is uploaded, azureml://datastores/D/paths/P, \
             azureml://jobs/J/outputs/O/paths/P, runs:/ID/P, https://…",
        ),
        field("description", Text, Recorded, "", "What it is for."),
        field("tags", Map(&LiteralOrNull), Recorded, "", "Key-value pairs, which may change."),
        field("properties", Map(&LiteralOrNull), Recorded, "", "Key-value pairs that stay."),
        field("datastore", Text, Ignored(UPLOADS), "", "Where to upload to."),
        field("id", Any, Dropped, "", AZURES),
        field("creation_context", Any, Dropped, "", AZURES),
        field("latest_version", Any, Dropped, "", AZURES),
        field("referenced_uris", Any, Dropped, "", AZURES),
        field("skip_validation", Any, Dropped, "", AZURES),
        field("auto_delete_setting", Any, Dropped, "", AZURES),
        field("resourceGroup", Any, Dropped, "", AZURES),
    ],
};

/// A model's document.
pub(super) static MODEL_FILE: Object = Object {
    what: "a model",
    fields: &[
        SCHEMA,
        field("name", Text, Runs, "required", "The model's name, by which jobs call it."),
        field(
            "version",
            Literal,
            Runs,
            "the next number",
            "The version to make. Where a version lies never changes.",
        ),
        field("type", Word(&OF_MODELS), Runs, "custom_model", "What it is."),
        field(
            "path",
            Text,
            Runs,
            "required",
            "Where it lies: a local path, which is uploaded, azureml://datastores/D/paths/P, \
             azureml://jobs/J/outputs/O/paths/P, runs:/ID/P",
        ),
        field("description", Text, Recorded, "", "What it is for."),
        field("tags", Map(&LiteralOrNull), Recorded, "", "Key-value pairs, which may change."),
        field("properties", Map(&LiteralOrNull), Recorded, "", "Key-value pairs that stay."),
        field(
            "flavors",
            Map(&Any),
            Recorded,
            "",
            "By which libraries the model can be loaded, as MLflow writes it.",
        ),
        field("stage", Text, Recorded, "", "How far the model is: Production, for example."),
        field("datastore", Text, Ignored(UPLOADS), "", "Where to upload to."),
        field("id", Any, Dropped, "", AZURES),
        field("job_name", Any, Dropped, "", AZURES),
        field("creation_context", Any, Dropped, "", AZURES),
        field("latest_version", Any, Dropped, "", AZURES),
        field("default_deployment_template", Any, Dropped, "", AZURES),
        field("resourceGroup", Any, Dropped, "", AZURES),
    ],
};

const EXAMPLE: &str = "path: ./data";

/// A data asset or a model that was read, and what its author should know.
#[derive(Clone, PartialEq, Debug)]
pub struct ParsedAsset {
    /// The asset. A path of this machine is absolute, and was there when the document was read.
    pub draft: Draft,
    /// What is accepted and does nothing, or means something else than it seems to.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a data asset's YAML, with `changes` applied to it in order.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be told apart, each with its place.
pub fn parse_data(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
) -> Result<ParsedAsset, Diagnostics> {
    parse(text, origin, changes, files, Kind::Data, &DATA_FILE)
}

/// Reads a model's YAML, with `changes` applied to it in order.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be told apart, each with its place.
pub fn parse_model(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
) -> Result<ParsedAsset, Diagnostics> {
    parse(text, origin, changes, files, Kind::Model, &MODEL_FILE)
}

fn parse(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
    kind: Kind,
    of: &'static Object,
) -> Result<ParsedAsset, Diagnostics> {
    let mut report = Report::default();
    let Some(mut root) = document(text, &origin.name, EXAMPLE, &mut report) else {
        return Err(failed(report));
    };
    for change in changes {
        overrides::apply(&mut root, change, &mut report);
    }
    if !report.has_errors() {
        shape::check(&root, &Shape::Object(of), "", &mut report);
    }
    if report.has_errors() {
        return Err(failed(report));
    }
    let mut reader = Reader { report, files, origin };
    let form = match kind {
        Kind::Model => data_kind(chosen(&root, "type", &OF_MODELS).or(Some(OF_MODELS[0]))),
        Kind::Data | Kind::Environment | Kind::Component => {
            data_kind(chosen(&root, "type", &OF_DATA))
        }
    };
    let draft = reader.asset(&root, form);
    let mut report = reader.report;
    let Some(draft) = draft.filter(|_| !report.has_errors()) else {
        return Err(failed(report));
    };
    for finding in faults(&draft).found.first {
        locate(&root, finding, &mut report);
    }
    report.finish().map(|warnings| ParsedAsset { draft, warnings })
}

impl Reader<'_> {
    /// The asset, as far as it can be read; faults are reported.
    fn asset(&mut self, root: &Node, form: DataKind) -> Option<Draft> {
        let kind = form.asset_kind();
        let name = asset_name(self, root, kind, "name: my-asset");
        let version = asset_version(self, root);
        let uri = match given(root, "path") {
            Some(node) => self.place(node, form),
            None => {
                let message = format!("the {kind} has no 'path'");
                let help = format!("write where it lies, for example '{EXAMPLE}', or give --path");
                self.report.error(root.mark, "path", message).help(help);
                None
            }
        };
        let flavors = given(root, "flavors").map(Node::entries).unwrap_or_default();
        Some(Draft {
            version,
            description: text(root, "description"),
            tags: self.pairs(root, "tags"),
            properties: self.pairs(root, "properties"),
            form,
            flavors: flavors
                .iter()
                .map(|entry| (entry.key.text.clone(), entry.value.to_json()))
                .collect(),
            stage: text(root, "stage"),
            // Last, so that the faults of all other fields are found, too.
            name: name?,
            uri: uri?,
        })
    }

    fn place(&mut self, node: &Node, form: DataKind) -> Option<DataUri> {
        let uri = located(self, node, form, "path")?;
        if form == DataKind::MlTable
            && let DataUri::Local(folder) = &uri
            && self.files.kind(&join_path(folder, "MLTable")) != Some(FileKind::File)
        {
            self.report
                .error(node.mark, "path", format!("'path': '{folder}' has no file 'MLTable'"))
                .help("write one, or 'type: uri_folder'");
            return None;
        }
        Some(uri)
    }
}

fn join_path(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}

/// Checks a data asset or a model that was sent to the daemon; see [`Draft::check`].
///
/// # Errors
/// Every fault, each with its field.
pub fn validate_asset(draft: &Draft) -> Result<(), Diagnostics> {
    let mut check = faults(draft);
    if let DataUri::Local(path) = &draft.uri {
        check.at(&["path"]).fault(
            format!(
                "'{}': it lies on the submitter's machine, where the daemon cannot read it",
                super::yaml::shorten(path)
            ),
            "upload it first, as the atelier command does, and name what was uploaded",
        );
    }
    report(check.found)
}

/// Every fault that a reader may leave.
fn faults(draft: &Draft) -> Check {
    let mut check = Check::default();
    let shorter = "write less";
    if let Some(text) = &draft.description {
        check.at(&["description"]).size(text, MAX_DESCRIPTION, shorter);
    }
    if let Some(text) = &draft.stage {
        check.at(&["stage"]).size(text, MAX_TAG_VALUE, shorter);
        if draft.kind() != Kind::Model {
            check.fault("only models have a stage", "remove 'stage'");
        }
    }
    check.pairs("tags", &draft.tags, shorter);
    check.pairs("properties", &draft.properties, shorter);
    flavors(&mut check, draft);
    place(&mut check, draft);
    check
}

fn flavors(check: &mut Check, draft: &Draft) {
    check.at(&["flavors"]);
    if draft.kind() != Kind::Model && !draft.flavors.is_empty() {
        check.fault("only models have flavors", "remove 'flavors'");
    }
    for (name, flavor) in &draft.flavors {
        check.at(&["flavors", name]).depth(flavor);
    }
    let size: usize = draft.flavors.values().map(|flavor| flavor.to_string().len()).sum();
    if size > MAX_DOCUMENT {
        check.at(&["flavors"]).fault(
            format!("the flavors have {size} bytes; at most {MAX_DOCUMENT} are allowed"),
            "write less",
        );
    }
}

fn place(check: &mut Check, draft: &Draft) {
    check.at(&["path"]);
    let inner = match &draft.uri {
        DataUri::Datastore { path, .. }
        | DataUri::JobOutput { path, .. }
        | DataUri::RunArtifact { path, .. } => path,
        DataUri::Http(_) if draft.kind() == Kind::Model => {
            return check.fault(
                "a model lies in a datastore, not on the web",
                "download it, and give the file or folder",
            );
        }
        DataUri::Local(text) | DataUri::Http(text) | DataUri::Cloud(text) => {
            return check.size(text, MAX_VALUE, "write a shorter path");
        }
        DataUri::Asset(_) => {
            return check.fault(
                "an asset is not made of another one",
                "give the path that the other one has ('atelier data show')",
            );
        }
    };
    check.size(inner, MAX_VALUE, "write a shorter path");
    if let Err(wrong) = reference::inner_path(inner) {
        check.fault(wrong.message, wrong.help);
    }
}

/// Reads where something lies, as YAML names it.
///
/// # Errors
/// What it is instead, and how to write it.
pub fn data_uri(text: &str) -> Result<DataUri, String> {
    let read = reference::data(text);
    read.map(|read| read.value).map_err(|wrong| format!("{}; {}", wrong.message, wrong.help))
}

/// Reads how people name a data asset or a model on a command line: `NAME`, `NAME:VERSION`, `NAME@LABEL`, with
/// `azureml:` before it or not.
///
/// # Errors
/// What it is instead, and how to write it.
pub fn asset_reference(kind: Kind, text: &str) -> Result<AssetRef, Diagnostics> {
    let asset = references(text, &[kind_of_id(kind)])?;
    match &asset.registry {
        None => Ok(asset),
        Some(registry) => Err(Diagnostic::new(format!("'{text}' is of the registry '{registry}'"))
            .with_help(format!(
                "registries hold no {} here: name the workspace's own",
                kind.plural()
            ))
            .into()),
    }
}

/// As Azure's ids have it.
const fn kind_of_id(kind: Kind) -> &'static str {
    match kind {
        Kind::Environment => "environments",
        Kind::Data => "data",
        Kind::Model => "models",
        Kind::Component => "components",
    }
}
