//! The table of fields, the reader, the JSON Schema and the documentation agree.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::*;
use crate::spec::fields::JOB;
use crate::spec::shape::{Field, Object, Shape, Support};
use crate::spec::yaml::{Node, Value, compose};

fn table() -> BTreeMap<String, Vec<&'static Field>> {
    table_of(&JOB)
}

/// Every key of a table by its path; `*` stands for a free key, `[]` for an item.
pub(super) fn table_of(root: &'static Object) -> BTreeMap<String, Vec<&'static Field>> {
    fn walk(shape: &'static Shape, path: &str, out: &mut BTreeMap<String, Vec<&'static Field>>) {
        match shape {
            Shape::Object(object) => fields(object.fields, path, out),
            Shape::Tagged(_, variants) => {
                variants.iter().for_each(|(_, object)| fields(object.fields, path, out));
            }
            Shape::Map(inner) => walk(inner, &format!("{path}.*"), out),
            Shape::List(inner) => walk(inner, &format!("{path}.[]"), out),
            Shape::OneOf(shapes) => shapes.iter().for_each(|shape| walk(shape, path, out)),
            _ => {}
        }
    }
    fn fields(all: &'static [Field], path: &str, out: &mut BTreeMap<String, Vec<&'static Field>>) {
        for field in all {
            let path = format!("{path}.{}", field.key);
            out.entry(path.clone()).or_default().push(field);
            walk(&field.shape, &path, out);
        }
    }
    let mut out = BTreeMap::new();
    fields(root.fields, "", &mut out);
    out
}

/// Every key of the schema, in the same notation.
fn schema_keys(schema: &Json, path: &str, out: &mut Vec<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        schema_keys(inner, &path, out);
        out.push(path);
    }
    for list in ["anyOf", "oneOf"] {
        schema[list].as_array().into_iter().flatten().for_each(|s| schema_keys(s, path, out));
    }
    if schema["additionalProperties"].is_object() {
        schema_keys(&schema["additionalProperties"], &format!("{path}.*"), out);
    }
    if schema["items"].is_object() {
        schema_keys(&schema["items"], &format!("{path}.[]"), out);
    }
}

fn is_refused(fields: &[&Field]) -> bool {
    fields.iter().all(|field| matches!(field.support, Support::Refused(_)))
}

#[test]
fn the_schema_has_the_keys_of_the_table() {
    compare(&schema(), &JOB);
}

#[track_caller]
pub(super) fn compare(schema: &Json, root: &'static Object) {
    let mut found = Vec::new();
    schema_keys(schema, "", &mut found);
    found.sort();
    found.dedup();
    let expected: Vec<String> = table_of(root)
        .into_iter()
        .filter(|(_, fields)| !is_refused(fields))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn the_schema_says_what_it_is() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["required"], serde_json::json!(["command"]));
    assert_eq!(schema["additionalProperties"], false);
    let gpus = &schema["properties"]["resources"]["properties"]["gpus"];
    assert_eq!(gpus["type"], serde_json::json!(["string", "number"]));
    let count = &schema["properties"]["resources"]["properties"]["instance_count"];
    assert_eq!(count["type"], "integer");
    assert_eq!((&count["minimum"], &count["maximum"]), (&1.into(), &10_000.into()));
    let undocumented =
        table().into_iter().find(|(_, fields)| fields.iter().any(|f| f.doc.is_empty()));
    assert!(undocumented.is_none());
}

/// Documents that together hold every key that is not refused, each with another effect than its
/// default.
const EVERY_KEY: &[&str] = &[
    "
$schema: https://azuremlschemas.azureedge.net/latest/commandJob.schema.json
type: command
name: brave_fox_1
display_name: fox
description: runs
experiment_name: foxes
tags: {a: b}
properties: {c: d}
command: echo ${{inputs.d}}
code: ./src
environment:
  $schema: https://azuremlschemas.azureedge.net/latest/environment.schema.json
  name: e
  version: 1
  image: python:3.12
  conda_file: {dependencies: [numpy]}
  description: x
  tags: {a: b}
  properties: {a: b}
  os_type: linux
  inference_config: {liveness_route: {port: 1}}
  datastore: blob
  id: x
  creation_context: {}
  latest_version: 2
  resourceGroup: g
compute: azureml:c
inputs:
  d: {type: mltable, path: 'azureml:t:1', mode: eval_mount, description: x, datastore: b, path_on_compute: /x}
  v: {type: number, value: 5, min: 1, max: 9, enum: [5, 6]}
  w: {type: string, default: 5}
  o: {type: string, optional: true}
outputs:
  o: {type: uri_file, path: 'azureml://datastores/b/paths/x', mode: upload, name: n, version: 2, description: x, path_on_compute: /x}
environment_variables: {A: b}
resources:
  cpus: 2
  memory: 1GiB
  gpus: 1
  gpu_model: A100
  gpu_memory: 40GiB
  disk: 100GiB
  node_labels: {zone: b}
  instance_count: 2
  instance_type: t
  shm_size: 1g
  docker_args: --read-only
  locations: [a]
  max_instance_count: 4
  properties: {a: b}
distribution: {type: pytorch, process_count_per_instance: 2}
limits: {timeout: 5}
queue_settings: {job_tier: spot, priority: high}
services:
  s: {type: ssh, nodes: all, port: 22, log_dir: x, ssh_public_keys: y, properties: {a: b}, endpoint: e, status: s, error_message: m}
  t: {job_service_type: vs_code}
identity: {type: managed, client_id: c, object_id: o, msi_resource_id: m}
retry: {max_attempts: 2, backoff: 20, memory: 2x}
on_node_loss: keep
idle_gpu: {action: stop, after: 1h}
keep_failed: 30m
parent_job_name: p
id: x
status: s
creation_context: {}
log_files: {}
parameters: {}
",
    "
command: x
environment: {build: {path: ./env, dockerfile_path: a/Dockerfile}}
resources: {instance_count: 4}
distribution: {type: tensorflow, worker_count: 3, parameter_server_count: 1}
",
    "
command: x
distribution: {type: ray, port: 1, address: a, include_dashboard: true, dashboard_port: 2, head_node_additional_args: h, worker_node_additional_args: w}
",
];

/// Keys that only check others, or whose value in the documents is their default.
const WITHOUT_TRACE: &[&str] = &[
    ".type",
    ".environment.os_type",
    ".inputs.*.min",
    ".inputs.*.max",
    ".inputs.*.enum",
    ".distribution.worker_count",
];

/// Every key of a document: its path, and the document without it.
fn keys(root: &Node) -> Vec<(String, Vec<String>)> {
    fn walk(
        node: &Node,
        shape: &'static Shape,
        general: &str,
        path: &[String],
        out: &mut Vec<(String, Vec<String>)>,
    ) {
        let shapes = match shape {
            Shape::OneOf(shapes) => *shapes,
            other => std::slice::from_ref(other),
        };
        for shape in shapes {
            let objects: Vec<_> = match shape {
                Shape::Object(object) => vec![*object],
                Shape::Tagged(_, variants) => variants.iter().map(|(_, object)| *object).collect(),
                _ => Vec::new(),
            };
            for entry in node.entries() {
                let path: Vec<String> =
                    path.iter().cloned().chain([entry.key.text.clone()]).collect();
                if let Shape::Map(inner) = shape {
                    walk(&entry.value, inner, &format!("{general}.*"), &path, out);
                }
                if let Some(field) = objects.iter().find_map(|o| o.field(&entry.key.text)) {
                    let general = format!("{general}.{}", field.key);
                    walk(&entry.value, &field.shape, &general, &path, out);
                    out.push((general, path));
                }
            }
        }
    }
    static WHOLE: Shape = Shape::Object(&JOB);
    let mut out = Vec::new();
    walk(root, &WHOLE, "", &[], &mut out);
    out
}

fn remove(node: &mut Node, path: &[String]) {
    let Value::Map(entries) = &mut node.value else { panic!("not a mapping") };
    if let [key] = path {
        entries.retain(|entry| entry.key.text != *key);
    } else if let Some(entry) = entries.iter_mut().find(|entry| entry.key.text == path[0]) {
        remove(&mut entry.value, &path[1..]);
    }
}

#[test]
fn every_key_of_the_table_is_read_and_does_what_the_table_says() {
    let table = table();
    // Whether leaving the key out changes the job, somewhere.
    let mut effects: BTreeMap<String, bool> = BTreeMap::new();
    for yaml in EVERY_KEY {
        let root = compose(yaml, 0).unwrap();
        let whole = job(yaml);
        for (general, path) in keys(&root) {
            let mut without = root.clone();
            remove(&mut without, &path);
            // JSON is YAML here: no text in these documents would be read differently.
            let read = parse(&without.to_json().to_string());
            let changed = read.map_or(true, |parsed| parsed.job != whole);
            *effects.entry(general).or_default() |= changed;
        }
    }
    for (path, fields) in &table {
        let effect = effects.get(path).copied();
        let expected = match fields[0].support {
            Support::Refused(_) => None,
            Support::Runs | Support::Extends | Support::Recorded | Support::Later(_) => {
                Some(!WITHOUT_TRACE.contains(&path.as_str()))
            }
            Support::Unused | Support::Dropped => Some(false),
            // Recorded or not, as its text says; it only has to be there.
            Support::Ignored(_) => {
                Some(effect.unwrap_or_else(|| panic!("{path} is in no document")))
            }
        };
        assert_eq!(effect, expected, "for {path} (None: in no document)");
    }
}

/// The table of a page of `docs/`.
fn documentation(root: &'static Object) -> String {
    let mut out = "| Key | Support | Default | Meaning |\n|---|---|---|---|\n".to_owned();
    let mut rows: Vec<(String, &'static Field)> = Vec::new();
    fn walk(shape: &'static Shape, path: &str, rows: &mut Vec<(String, &'static Field)>) {
        let mut of = |fields: &'static [Field]| {
            for field in fields {
                let path = if path.is_empty() {
                    field.key.to_owned()
                } else {
                    format!("{path}.{}", field.key)
                };
                if rows.iter().any(|(have, _)| *have == path) {
                    continue;
                }
                rows.push((path.clone(), field));
                walk(&field.shape, &path, rows);
            }
        };
        match shape {
            Shape::Object(object) => of(object.fields),
            Shape::Tagged(_, variants) => {
                variants.iter().for_each(|(_, object)| of(object.fields));
            }
            Shape::Map(inner) => walk(inner, &format!("{path}.NAME"), rows),
            Shape::OneOf(shapes) => shapes.iter().for_each(|shape| walk(shape, path, rows)),
            _ => {}
        }
    }
    for field in root.fields {
        rows.push((field.key.to_owned(), field));
        walk(&field.shape, field.key, &mut rows);
    }
    for (path, field) in rows {
        let support = match field.support {
            Support::Runs => "runs".to_owned(),
            Support::Extends => "runs, **Atelier's own**".to_owned(),
            Support::Recorded => "recorded".to_owned(),
            Support::Later(instead) => format!("recorded, with a warning: {instead}"),
            Support::Unused => "accepted, no effect".to_owned(),
            Support::Ignored(why) => format!("accepted, with a warning: {why}"),
            Support::Dropped => "accepted, dropped".to_owned(),
            Support::Refused(why) => format!("refused: {why}"),
        };
        let mut doc = field.doc.to_owned();
        if let Shape::Word(words) = field.shape
            && words.len() > 1
        {
            doc.push_str(&format!(" One of `{}`.", words.join("`, `")));
        }
        if let Shape::Whole(least, most) = field.shape {
            doc.push_str(&format!(" A whole number from {least} to {most}."));
        }
        let doc = doc.replace('|', "\\|");
        out.push_str(&format!("| `{path}` | {support} | {} | {doc} |\n", field.default));
    }
    out
}

#[test]
fn the_documentation_shows_the_table() {
    compare_page("yaml.md", "fields.rs", &JOB);
}

/// Compares the table of `docs/PAGE` with the one of `core/src/spec/SOURCE`.
#[allow(clippy::disallowed_methods, reason = "the test compares with a file of docs/")]
#[track_caller]
pub(super) fn compare_page(page: &str, source: &str, root: &'static Object) {
    const END: &str = "<!-- end of table -->";
    let start = format!("<!-- table: made from core/src/spec/{source} -->\n");
    let file = format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(&start).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    let expected = documentation(root);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(file, format!("{before}{start}{expected}{END}{after}")).unwrap();
        return;
    }
    assert!(
        shown == expected,
        "docs/{page} is out of date: run this test with UPDATE_DOCS=1\n{expected}"
    );
}
