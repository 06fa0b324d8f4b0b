//! The JSON Schemas of job, compute, environment, component, data, model and datastore files, for editors.

use serde_json::{Map, Value, json};

use super::asset::ENVIRONMENT_FILE;
use super::component::COMPONENT_FILE;
use super::compute::AMLCOMPUTE;
use super::data_asset::{DATA_FILE, MODEL_FILE};
use super::datastore::TYPES;
use super::fields::JOB;
use super::shape::{Object, Shape, Support};

/// The JSON Schema (draft 2020-12) of a command job's YAML: every key that is read, with its
/// values and its description.
///
/// Editors read YAML 1.2; where the reader is more lenient (the case of words, digits in quotes),
/// the schema keeps to the usual form.
pub fn schema() -> Value {
    document(&JOB, "command", "command job", "A command job")
}

/// The JSON Schema of a compute cluster's YAML, made like [`schema`].
pub fn compute_schema() -> Value {
    document(&AMLCOMPUTE, "name", "compute cluster", "A compute cluster")
}

/// The JSON Schema of an environment's YAML, made like [`schema`].
pub fn environment_schema() -> Value {
    document(&ENVIRONMENT_FILE, "name", "environment", "An environment")
}

/// The JSON Schema of a data asset's YAML, made like [`schema`].
pub fn data_schema() -> Value {
    document(&DATA_FILE, "name", "data asset", "A data asset")
}

/// The JSON Schema of a model's YAML, made like [`schema`].
pub fn model_schema() -> Value {
    document(&MODEL_FILE, "name", "model", "A model")
}

/// The JSON Schema of a component's YAML, made like [`schema`].
pub fn component_schema() -> Value {
    document(&COMPONENT_FILE, "name", "command component", "A command component")
}

/// The JSON Schema of a datastore's YAML, made like [`schema`]: one for each type.
pub fn datastore_schema() -> Value {
    let mut schema = heading("datastore", "A datastore");
    schema["required"] = json!(["name", "type"]);
    schema["oneOf"] = shape(&Shape::Tagged("a datastore", &TYPES))["oneOf"].take();
    schema
}

fn document(of: &Object, required: &str, title: &str, what: &str) -> Value {
    let mut root = object(of, &[]);
    root["required"] = json!([required]);
    let mut schema = heading(title, what);
    if let (Some(schema), Value::Object(root)) = (schema.as_object_mut(), root) {
        schema.extend(root);
    }
    schema
}

fn heading(title: &str, what: &str) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Atelier {title}"),
        "description": format!(
            "{what} as Azure Machine Learning (CLI v2) has it, with Atelier's own keys."
        ),
    })
}

/// `fixed` are words that a key must have, for mappings told apart by one.
fn object(object: &Object, fixed: &[(&str, &str)]) -> Value {
    let mut properties = Map::new();
    for field in object.fields {
        if matches!(field.support, Support::Refused(_)) {
            continue;
        }
        let mut of_field = match fixed.iter().find(|(key, _)| *key == field.key) {
            Some((_, word)) => json!({"const": word}),
            None => shape(&field.shape),
        };
        let mut doc = field.doc.to_owned();
        match field.support {
            Support::Extends => doc.push_str(" (Atelier's own key.)"),
            Support::Ignored(why) => doc.push_str(&format!(" (Ignored: {why}.)")),
            Support::Later(instead) => doc.push_str(&format!(" (Recorded only: {instead}.)")),
            _ => {}
        }
        if !field.default.is_empty() && field.default != "required" {
            doc.push_str(&format!(" Default: {}.", field.default));
        }
        of_field["description"] = Value::String(doc);
        if matches!(field.support, Support::Ignored(_) | Support::Dropped) {
            of_field["deprecated"] = Value::Bool(true);
        }
        properties.insert(field.key.to_owned(), of_field);
    }
    let required: Vec<&str> = fixed.iter().map(|(key, _)| *key).collect();
    let mut value = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        value["required"] = json!(required);
    }
    value
}

fn shape(of: &Shape) -> Value {
    match of {
        Shape::Text => json!({"type": "string"}),
        Shape::Literal => json!({"type": ["string", "number", "boolean"]}),
        Shape::LiteralOrNull => json!({"type": ["string", "number", "boolean", "null"]}),
        Shape::Whole(least, most) => {
            json!({"type": "integer", "minimum": least, "maximum": most})
        }
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Word(words) => json!({"enum": words}),
        Shape::Quantity(_) => json!({"type": ["string", "number"]}),
        Shape::Map(inner) => json!({"type": "object", "additionalProperties": shape(inner)}),
        Shape::List(inner) => json!({"type": "array", "items": shape(inner)}),
        Shape::Object(inner) => object(inner, &[]),
        Shape::Tagged(_, variants) => {
            let all: Vec<Value> =
                variants.iter().map(|(word, inner)| object(inner, &[("type", word)])).collect();
            json!({"oneOf": all})
        }
        Shape::OneOf(shapes) => json!({"anyOf": shapes.iter().map(shape).collect::<Vec<_>>()}),
        Shape::Null => json!({"type": "null"}),
        Shape::Any => json!({}),
    }
}
