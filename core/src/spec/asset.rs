//! The reader of assets' files: from Azure ML's environment YAML to a [`Draft`].

use super::command::{AssetRef, Code, InlineEnvironment};
use super::diagnostic::{Diagnostic, Diagnostics, Report};
use super::environment::inline;
use super::fields::{BUILD, OS_TYPES, SCHEMA, field};
use super::job::{Reader, document, failed, given, literal, locate, text};
use super::limits::{MAX_DESCRIPTION, MAX_VALUE};
use super::origin::{Files, Origin};
use super::overrides::{self, Override};
use super::reference;
use super::shape::{self, Object, Shape, Support};
use super::validate::{Check, environment_faults, report};
use super::yaml::Node;
use crate::asset::Kind;
use crate::environment::Draft;
use crate::id::{AssetName, VersionName};
use Shape::{Any, Literal, LiteralOrNull, Map, OneOf, Text, Word};
use Support::{Dropped, Ignored, Recorded, Refused, Runs, Unused};

/// The whole document.
pub(super) static ENVIRONMENT_FILE: Object = Object {
    what: "an environment",
    fields: &[
        SCHEMA,
        field("name", Text, Runs, "required", "The environment's name, by which jobs call it."),
        field(
            "version",
            Literal,
            Runs,
            "the next number",
            "The version to make. What a version is made of never changes.",
        ),
        field("description", Text, Recorded, "", "What it is for."),
        field("tags", Map(&LiteralOrNull), Recorded, "", "Key-value pairs."),
        field("properties", Map(&LiteralOrNull), Unused, "", "Key-value pairs."),
        field("image", Text, Runs, "the node's own system", "The container image."),
        field(
            "conda_file",
            OneOf(&[Text, Map(&Any)]),
            Runs,
            "",
            "The conda file's path, relative to this file, or its content. May stand without an image.",
        ),
        field(
            "build",
            Shape::Object(&BUILD),
            Runs,
            "",
            "A container build context; the folder is uploaded as code is, and built by the node that needs it.",
        ),
        field("os_type", Word(&OS_TYPES), Runs, "linux", "Only linux."),
        field(
            "inference_config",
            Map(&Any),
            Ignored("it matters to deployments only"),
            "",
            "Routes of a deployment.",
        ),
        field(
            "datastore",
            Text,
            Ignored("build contexts lie with the code, in workspaceblobstore"),
            "",
            "Where to upload to.",
        ),
        field("dependencies", Any, Refused(CONDA_KEY), "", "A conda file's key."),
        field("channels", Any, Refused(CONDA_KEY), "", "A conda file's key."),
        field("id", Any, Dropped, "", "Written by Azure's tools."),
        field("creation_context", Any, Dropped, "", "Written by Azure's tools."),
        field("latest_version", Any, Dropped, "", "Written by Azure's tools."),
        field("resourceGroup", Any, Dropped, "", "Written by Azure's tools."),
    ],
};

const CONDA_KEY: &str = "it belongs into a conda file: write 'conda_file: ./conda.yml' or the content under \
                         'conda_file:'";

const EXAMPLE: &str = "name: my-environment";

/// An environment that was read, and what its author should know.
#[derive(Clone, PartialEq, Debug)]
pub struct ParsedEnvironment {
    /// The environment. The folder of its build context is absolute, and lay there when the document
    /// was read.
    pub draft: Draft,
    /// What is accepted and does nothing, or means something else than it seems to.
    pub warnings: Vec<Diagnostic>,
}

/// Reads an environment's YAML, with `changes` applied to it in order.
///
/// # Errors
/// Everything that is wrong with it, as far as it can be told apart, each with its place.
pub fn parse_environment(
    text: &[u8],
    origin: &Origin,
    changes: &[Override],
    files: &dyn Files,
) -> Result<ParsedEnvironment, Diagnostics> {
    let mut report = Report::default();
    let Some(mut root) = document(text, &origin.name, EXAMPLE, &mut report) else {
        return Err(failed(report));
    };
    for change in changes {
        overrides::apply(&mut root, change, &mut report);
    }
    if !report.has_errors() {
        shape::check(&root, &Shape::Object(&ENVIRONMENT_FILE), "", &mut report);
    }
    if report.has_errors() {
        return Err(failed(report));
    }
    let mut reader = Reader { report, files, origin };
    let draft = reader.environment(&root);
    let mut report = reader.report;
    let Some(draft) = draft.filter(|_| !report.has_errors()) else {
        return Err(failed(report));
    };
    for finding in faults(&draft).found.first {
        locate(&root, finding, &mut report);
    }
    report.finish().map(|warnings| ParsedEnvironment { draft, warnings })
}

impl Reader<'_> {
    /// The environment, as far as it can be read; faults are reported.
    fn environment(&mut self, root: &Node) -> Option<Draft> {
        let name = asset_name(self, root, Kind::Environment, EXAMPLE);
        let version = asset_version(self, root);
        let folder = self.origin.folder.clone();
        let environment = inline(self, root, "", &folder);
        let tags = self.pairs(root, "tags");
        Some(Draft {
            name: name?,
            version,
            description: text(root, "description"),
            tags,
            environment: InlineEnvironment { name: None, ..environment },
        })
    }
}

/// The name of an asset of this kind; its lack is reported, with `example` as the remedy.
pub(super) fn asset_name(
    reader: &mut Reader<'_>,
    root: &Node,
    kind: Kind,
    example: &str,
) -> Option<AssetName> {
    let Some(node) = given(root, "name") else {
        reader
            .report
            .error(root.mark, "name", format!("the {kind} has no 'name'"))
            .help(format!("write how jobs call it, for example '{example}', or give --name"));
        return None;
    };
    reader.name(node, "name", AssetName::new)
}

/// The version to make, if the document names one.
pub(super) fn asset_version(reader: &mut Reader<'_>, root: &Node) -> Option<VersionName> {
    let node = given(root, "version")?;
    let written = literal(root, "version").unwrap_or_default();
    VersionName::new(&written).map_err(|error| reader.wrong_name(node.mark, "version", &error)).ok()
}

/// Checks an environment that was sent to the daemon; see [`Draft::check`].
///
/// # Errors
/// Every fault, each with its field.
pub fn validate_environment(draft: &Draft) -> Result<(), Diagnostics> {
    let mut check = faults(draft);
    let inline = &draft.environment;
    if let Some(build) = &inline.build
        && let Code::Local(path) = &build.path
    {
        check.at(&["build", "path"]).fault(
            format!(
                "'{}': it lies on the submitter's machine, where the daemon cannot read it",
                super::yaml::shorten(path)
            ),
            "upload it first, as the atelier command does, and name what was uploaded",
        );
    }
    // The reader has told these with their places.
    let is_whole = match (&inline.image, &inline.conda, &inline.build) {
        (Some(_), _, Some(_)) | (None, Some(_), Some(_)) | (None, None, None) => false,
        (Some(_), _, None) | (None, Some(_), None) | (None, None, Some(_)) => true,
    };
    if !is_whole {
        check.at(&["image"]).fault(
            "an environment has an image with or without a conda_file, a conda_file, or a build",
            "write one of them",
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
    check.pairs("tags", &draft.tags, shorter);
    if let Some(image) = &draft.environment.image {
        check.at(&["image"]).size(image, MAX_VALUE, shorter);
    }
    environment_faults(&mut check, &[], &draft.environment);
    check
}

/// Reads how people name an environment on a command line: `NAME`, `NAME:VERSION`, `NAME@LABEL`, with
/// `azureml:` before it or not, or `azureml://registries/R/environments/NAME/…`.
///
/// # Errors
/// What it is instead, and how to write it.
pub fn environment_reference(text: &str) -> Result<AssetRef, Diagnostics> {
    references(text, &["environments"])
}

/// An asset of one of these kinds, as Azure's ids have them.
pub(super) fn references(text: &str, kinds: &[&str]) -> Result<AssetRef, Diagnostics> {
    let lower = text.to_ascii_lowercase();
    let is_whole = lower.starts_with("azureml:") || lower.starts_with("/subscriptions/");
    let whole = if is_whole { text.to_owned() } else { format!("azureml:{text}") };
    reference::asset(&whole, kinds)
        .map(|read| read.value)
        .map_err(|wrong| Diagnostic::new(wrong.message).with_help(wrong.help).into())
}
