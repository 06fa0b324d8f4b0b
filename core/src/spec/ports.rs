//! `inputs:` and `outputs:` read.

use std::collections::BTreeMap;

use super::command::{DataKind, DataUri, Input, InputMode, Output, OutputMode};
use super::fields::{DATA_TYPES, INPUT_MODES, INPUT_TYPES, OUTPUT_MODES};
use super::job::{Reader, chosen, given, literal, text};
use super::origin::FileKind;
use super::reference;
use super::shape::{boolean, join};
use super::yaml::{Entry, Node, Value};
use crate::id::PortName;

pub(super) fn inputs(reader: &mut Reader<'_>, root: &Node) -> BTreeMap<PortName, Input> {
    read_all(reader, root, "inputs", input)
}

pub(super) fn outputs(reader: &mut Reader<'_>, root: &Node) -> BTreeMap<PortName, Output> {
    read_all(reader, root, "outputs", |reader, node, path| Some(output(reader, node, path)))
}

pub(super) fn read_all<T>(
    reader: &mut Reader<'_>,
    root: &Node,
    key: &str,
    mut read: impl FnMut(&mut Reader<'_>, &Node, &str) -> Option<T>,
) -> BTreeMap<PortName, T> {
    let mut all = BTreeMap::new();
    for Entry { key: name, value } in given(root, key).map(Node::entries).unwrap_or_default() {
        let path = join(key, &name.text);
        let port = match PortName::new(&name.text) {
            Ok(port) => port,
            Err(error) => {
                reader.wrong_name(name.mark, &path, &error);
                continue;
            }
        };
        if let Some(value) = read(reader, value, &path) {
            all.insert(port, value);
        }
    }
    all
}

fn input(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Input> {
    if !matches!(node.value, Value::Map(_)) {
        return bare(reader, node, path);
    }
    let kind = chosen(node, "type", &INPUT_TYPES);
    let value = given(node, "value").or_else(|| given(node, "default"));
    let location = given(node, "path");
    let optional = given(node, "optional").and_then(boolean).unwrap_or(false);
    let is_literal = match kind {
        Some("string" | "integer" | "number" | "boolean") => true,
        Some(_) => false,
        None => value.is_some(),
    };
    if let (true, Some(location)) = (is_literal, location) {
        reader
            .report
            .error(location.mark, path, format!("'{path}' has both a value and a path"))
            .help("a literal has 'value', data has 'path': keep one");
        return None;
    }
    if is_literal {
        return match value {
            Some(value) => literal_input(reader, node, value, kind, path),
            None if optional => Some(Input::Unset),
            None => {
                let message = format!("'{path}' has no value");
                reader
                    .report
                    .error(node.mark, path, message)
                    .help("add 'value:', or 'optional: true'");
                None
            }
        };
    }
    if let Some(value) = value {
        let kind = kind.unwrap_or_default();
        reader
            .report
            .error(value.mark, path, format!("'{path}': an input of type {kind} has no value"))
            .help("data is given by its 'path'");
        return None;
    }
    let Some(location) = location else {
        if optional {
            return Some(Input::Unset);
        }
        reader
            .report
            .error(node.mark, path, format!("'{path}' has no path"))
            .help("add 'path:' with where the data lies, or 'optional: true'");
        return None;
    };
    let kind = data_kind(kind);
    let mode = match chosen(node, "mode", &INPUT_MODES) {
        Some("download") => InputMode::Download,
        Some("direct") => InputMode::Direct,
        Some("eval_mount") => InputMode::EvalMount,
        Some("eval_download") => InputMode::EvalDownload,
        _ => InputMode::RoMount,
    };
    let uri = located(reader, location, kind, &join(path, "path"))?;
    Some(Input::Data { kind, mode, uri, asset: None, address: None })
}

/// An input that is a scalar: a literal, or nothing.
fn bare(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Input> {
    let Some(value) = node.python_str() else {
        reader.report.error(node.mark, path, format!("'{path}' has no value")).help(
            "give it one; an input that may be without is written as a mapping with its 'type' \
             and 'optional: true'",
        );
        return None;
    };
    reader.warn_of_respelling(node, path);
    if value.starts_with("azureml:") {
        reader
            .report
            .warn(node.mark, path, format!("'{path}' is a literal, so the job gets this very text"))
            .help("to get the data, write it as a mapping with 'path:'");
    }
    Some(Input::Literal { value })
}

fn literal_input(
    reader: &mut Reader<'_>,
    node: &Node,
    value: &Node,
    kind: Option<&str>,
    path: &str,
) -> Option<Input> {
    reader.warn_of_respelling(value, path);
    let shown = value.python_str()?;
    let number: Option<f64> = shown.parse().ok().filter(|number: &f64| !number.is_nan());
    let fits = match kind {
        Some("integer") => {
            let digits = shown.strip_prefix(['-', '+']).unwrap_or(&shown);
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        }
        Some("number") => number.is_some() && !matches!(value.value, Value::Bool(_)),
        Some("boolean") => boolean(value).is_some(),
        _ => true,
    };
    if !fits {
        let kind = kind.unwrap_or_default();
        let message =
            format!("'{path}': expected a value of type {kind}, found {}", value.describe());
        reader.report.error(value.mark, path, message);
        return None;
    }
    for (key, is_outside) in
        [("min", (|n, bound| n < bound) as fn(f64, f64) -> bool), ("max", |n, bound| n > bound)]
    {
        let bound = literal(node, key).and_then(|bound| bound.parse::<f64>().ok());
        if let (Some(number), Some(bound)) = (number, bound)
            && is_outside(number, bound)
        {
            let message = format!("'{path}' is out of range: {key} is {bound}, found {shown}");
            reader.report.error(value.mark, path, message);
            return None;
        }
    }
    let allowed: Vec<String> = given(node, "enum")
        .map(|list| list.items().iter().filter_map(Node::python_str).collect())
        .unwrap_or_default();
    if !allowed.is_empty() && !allowed.contains(&shown) {
        let message = format!("'{path}' cannot be '{shown}'");
        reader
            .report
            .error(value.mark, path, message)
            .help(format!("known: {}", allowed.join(", ")));
        return None;
    }
    Some(Input::Literal { value: shown })
}

pub(super) fn data_kind(word: Option<&str>) -> DataKind {
    match word {
        Some("uri_file") => DataKind::UriFile,
        Some("mltable") => DataKind::MlTable,
        Some("mlflow_model") => DataKind::MlflowModel,
        Some("custom_model") => DataKind::CustomModel,
        Some("triton_model") => DataKind::TritonModel,
        _ => DataKind::UriFolder,
    }
}

/// A data reference; a local one is checked to be there and of the right kind.
pub(super) fn located(
    reader: &mut Reader<'_>,
    node: &Node,
    kind: DataKind,
    path: &str,
) -> Option<DataUri> {
    let written = node.as_text().unwrap_or_default();
    if written.contains("${{") {
        reader
            .report
            .error(node.mark, path, format!("'{path}': an expression cannot stand here"))
            .help("bindings such as ${{parent.inputs.x}} belong to pipeline jobs");
        return None;
    }
    let uri = reader.referred(node, path, reference::data(written))?;
    let DataUri::Local(local) = uri else { return Some(uri) };
    let (absolute, found) = reader.local(node, path, &local)?;
    match (kind, found) {
        (DataKind::UriFile, FileKind::Folder) => {
            reader
                .report
                .error(node.mark, path, format!("'{path}': '{local}' is a folder, not a file"))
                .help("write 'type: uri_folder', or give a file");
            None
        }
        (DataKind::UriFolder | DataKind::MlTable, FileKind::File) => {
            reader
                .report
                .error(node.mark, path, format!("'{path}': '{local}' is a file, not a folder"))
                .help("write 'type: uri_file', or give a folder");
            None
        }
        _ => Some(DataUri::Local(absolute)),
    }
}

fn output(reader: &mut Reader<'_>, node: &Node, path: &str) -> Output {
    let written = given(node, "path").map(|place| {
        let text = place.as_text().unwrap_or_default();
        let path = join(path, "path");
        match reference::datastore_parts(text) {
            Some((datastore, inner, remark)) => {
                if let Some(remark) = remark {
                    reader.report.warn(place.mark, &path, format!("'{path}': {remark}"));
                }
                format!("azureml://datastores/{datastore}/paths/{inner}")
            }
            // Refused, with its place, when the whole job is checked.
            None => text.to_owned(),
        }
    });
    Output {
        kind: data_kind(chosen(node, "type", &DATA_TYPES)),
        mode: match chosen(node, "mode", &OUTPUT_MODES) {
            Some("upload") => OutputMode::Upload,
            Some("direct") => OutputMode::Direct,
            _ => OutputMode::RwMount,
        },
        path: written,
        asset_name: text(node, "name"),
        asset_version: literal(node, "version"),
    }
}
