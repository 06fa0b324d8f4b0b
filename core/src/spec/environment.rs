//! `environment:` read, with the files it names.

use serde_json::{Value as Json, json};

use super::command::{BuildContext, Code, Environment, InlineEnvironment};
use super::diagnostic::Mark;
use super::fields::ENVIRONMENT;
use super::job::{Reader, document, given, text};
use super::origin::{FileKind, parent, resolve, shown};
use super::reference;
use super::shape::{self, Shape, join};
use super::yaml::{Node, Value};
use crate::environment::{Recipe, needs_file};

pub(super) fn read(reader: &mut Reader<'_>, node: &Node) -> Environment {
    let folder = reader.origin.folder.clone();
    let Some(written) = node.as_text() else {
        return Environment::Inline(inline(reader, node, "environment", &folder));
    };
    let lower = written.to_ascii_lowercase();
    if lower.starts_with("azureml:") || lower.starts_with("/subscriptions/") {
        let read = reference::asset(written, &["environments"]);
        return reader
            .referred(node, "environment", read)
            .map_or(Environment::Host, Environment::Named);
    }
    let is_path =
        written.starts_with(['.', '/']) || [".yml", ".yaml"].iter().any(|end| lower.ends_with(end));
    let path = written.strip_prefix("file:").or(is_path.then_some(written));
    let Some(path) = path else {
        let short = super::yaml::shorten(written);
        let message = format!("'environment': '{short}' is not a reference to an environment");
        let help = if written.contains([':', '/']) {
            format!("for a container image write 'environment: {{image: {short}}}'")
        } else {
            format!("write azureml:{short}@latest, or azureml:{short}:VERSION")
        };
        reader.report.error(node.mark, "environment", message).help(help);
        return Environment::Host;
    };
    let Some((path, root)) = include(reader, node, "environment", path, &folder) else {
        return Environment::Host;
    };
    let before = reader.report.count();
    shape::check(&root, &Shape::Object(&ENVIRONMENT), "", &mut reader.report);
    if reader.report.count() > before {
        return Environment::Host;
    }
    Environment::Inline(inline(reader, &root, "", parent(&path)))
}

/// Reads the YAML file that `node` names; the file's absolute path and its tree.
fn include(
    reader: &mut Reader<'_>,
    node: &Node,
    field: &str,
    written: &str,
    folder: &str,
) -> Option<(String, Node)> {
    let written = written.strip_prefix("//").unwrap_or(written);
    let path = resolve(folder, written);
    let reason = match reader.files.kind(&path) {
        None => Some("there is no such file".to_owned()),
        Some(FileKind::Folder) => Some("it is a folder".to_owned()),
        Some(FileKind::File) => None,
    };
    let content = match reason {
        Some(reason) => Err(reason),
        None => reader.files.read(&path),
    };
    match content {
        Ok(content) => {
            let referrer = reader.report.source(node.mark.source).filter(|source| source.is_file);
            let referrer = referrer.map_or(&reader.origin.name, |source| &source.name);
            let name = shown(referrer, written);
            document(&content, &name, "image: python:3.12", &mut reader.report)
                .map(|root| (path, root))
        }
        Err(reason) => {
            reader
                .report
                .error(node.mark, field, format!("'{field}': cannot read '{written}': {reason}"))
                .help(format!(
                    "looked for {path}; relative paths start from the file that names it"
                ));
            None
        }
    }
}

/// What the mapping at `path` says an environment is made of; faults are reported.
pub(super) fn inline(
    reader: &mut Reader<'_>,
    node: &Node,
    path: &str,
    folder: &str,
) -> InlineEnvironment {
    let image = text(node, "image");
    let image_node = given(node, "image");
    let build_node = given(node, "build");
    let conda_node = given(node, "conda_file");
    if let (Some(image), Some(text)) = (image_node, &image)
        && (text.trim().is_empty() || text.chars().any(char::is_whitespace))
    {
        let at = join(path, "image");
        reader
            .report
            .error(image.mark, &at, format!("'{at}': '{text}' is not a container image's name"))
            .help("write for example 'image: python:3.12'");
    }
    match (image_node, build_node, conda_node) {
        (Some(_), Some(build), _) => {
            let at = join(path, "build");
            reader
                .report
                .error(build.mark, &at, "an environment has an image or a build, not both")
                .help("keep one of them");
        }
        (None, Some(_), Some(conda)) => {
            let at = join(path, "conda_file");
            reader
                .report
                .error(conda.mark, &at, "an environment with a build has no conda_file")
                .help("install the packages in the Dockerfile");
        }
        (None, None, None) => {
            reader
                .report
                .error(node.mark, path, "the environment names no image, conda_file or build")
                .help("add one of them, or remove 'environment' to use the node's own programs");
        }
        _ => {}
    }
    if let Some(os) = given(node, "os_type")
        && os.as_text().is_some_and(|os| os.eq_ignore_ascii_case("windows"))
    {
        let at = join(path, "os_type");
        reader
            .report
            .error(os.mark, &at, "Windows environments are not supported")
            .help("linux is");
    }
    InlineEnvironment {
        name: text(node, "name"),
        image,
        conda: conda_node.and_then(|node| {
            // What an image's own conda makes of the document is not known here.
            let is_built_here = image_node.is_none() && build_node.is_none();
            conda(reader, node, path, folder, is_built_here)
        }),
        build: build_node.and_then(|node| build(reader, node, path, folder)),
    }
}

fn build(reader: &mut Reader<'_>, node: &Node, path: &str, folder: &str) -> Option<BuildContext> {
    let path = join(path, "build");
    let Some(place) = given(node, "path") else {
        reader
            .report
            .error(node.mark, &path, format!("'{path}' has no path"))
            .help("add 'path:' with the folder to build in");
        return None;
    };
    let at = join(&path, "path");
    let written = place.as_text().unwrap_or_default();
    if written.contains("://") {
        reader
            .report
            .error(place.mark, &at, format!("'{at}': a build context is a local folder"))
            .help("download it, and give the folder");
        return None;
    }
    let absolute = resolve(folder, written.strip_prefix("file:").unwrap_or(written));
    if reader.files.kind(&absolute) != Some(FileKind::Folder) {
        reader
            .report
            .error(place.mark, &at, format!("'{at}': there is no folder '{written}'"))
            .help(format!("looked for {absolute}"));
        return None;
    }
    let dockerfile = text(node, "dockerfile_path").unwrap_or_else(|| "Dockerfile".to_owned());
    let dockerfile_node = given(node, "dockerfile_path").unwrap_or(node);
    let read = reference::inner_path(&dockerfile);
    let read = read.map(|value| reference::Read { value, remark: None });
    let dockerfile_path =
        reader.referred(dockerfile_node, &join(&path, "dockerfile_path"), read)?;
    Some(BuildContext { path: Code::Local(absolute), dockerfile_path })
}

/// A conda document, inline or in a file, with the parts checked that environments are made from.
fn conda(
    reader: &mut Reader<'_>,
    node: &Node,
    path: &str,
    folder: &str,
    is_built_here: bool,
) -> Option<Json> {
    let path = join(path, "conda_file");
    let included;
    let (document, path) = match node.as_text() {
        Some(written) => {
            let file = written.strip_prefix("file:").unwrap_or(written);
            included = include(reader, node, &path, file, folder)?.1;
            (&included, String::new())
        }
        None => (node, path),
    };
    let Some(dependencies) = given(document, "dependencies") else {
        reader
            .report
            .error(document.mark, &path, "the conda file has no 'dependencies'")
            .help("write 'dependencies:' with a list such as '- python=3.12'");
        return None;
    };
    let at = join(&path, "dependencies");
    let wrong = |reader: &mut Reader<'_>, node: &Node, at: &str, expected: &str| {
        let message = format!("'{at}': expected {expected}, found {}", node.describe());
        let diagnostic = reader.report.error(node.mark, at, message);
        if let Some(spelled) = &node.spelled {
            diagnostic.help(format!("quote it if it is meant as text: '{spelled}'"));
        }
    };
    let Value::List(items) = &dependencies.value else {
        wrong(reader, dependencies, &at, "a list of packages");
        return None;
    };
    let before = reader.report.count();
    for item in items {
        match &item.value {
            Value::Text(text) if is_built_here => {
                dependency(reader, json!(text), item.mark, &at);
            }
            Value::Text(_) => {}
            Value::Map(entries) => {
                for entry in entries {
                    if entry.key.text != "pip" {
                        let message = format!("'{at}': only 'pip:' may hold packages of its own");
                        reader
                            .report
                            .error(entry.key.mark, &at, message)
                            .help("a version is written as '- name=1.2'");
                        continue;
                    }
                    if !matches!(entry.value.value, Value::List(_) | Value::Null) {
                        wrong(reader, &entry.value, &join(&at, "pip"), "a list of packages");
                    }
                    for package in entry.value.items() {
                        match package.as_text() {
                            Some(text) if is_built_here => {
                                dependency(reader, json!({ "pip": [text] }), package.mark, &at);
                            }
                            Some(text) => without_files(reader, text, package.mark, &at),
                            None => wrong(reader, package, &at, "a package"),
                        }
                    }
                }
            }
            _ => wrong(reader, item, &at, "a package or 'pip:'"),
        }
    }
    if let Some(channels) = given(document, "channels") {
        let channels_at = join(&path, "channels");
        let good = matches!(channels.value, Value::List(_))
            && channels.items().iter().all(|channel| channel.as_text().is_some());
        if !good {
            wrong(reader, channels, &channels_at, "a list of channels");
        }
    }
    (reader.report.count() == before).then(|| document.to_json())
}

/// Refuses at its own line, and in the same words, what a node would refuse.
fn dependency(reader: &mut Reader<'_>, dependency: Json, mark: Mark, at: &str) {
    if let Err(error) = Recipe::from_conda(&json!({ "dependencies": [dependency] })) {
        reader.report.error(mark, at, error.to_string());
    }
}

/// Refuses what a pip entry takes from files, which do not travel with the job.
fn without_files(reader: &mut Reader<'_>, text: &str, mark: Mark, at: &str) {
    if let Some(problem) = needs_file(text.trim()) {
        let short = super::yaml::shorten(text);
        reader.report.error(mark, at, format!("'{at}': pip: '{short}': {problem}"));
    }
}
