//! Components' files in, drafts or messages out.

use super::schema::{compare, compare_page, table_of};
use super::*;
use crate::component::{Change, Draft, InputKind};
use crate::id::{PortName, Principal, VersionName};
use crate::spec::component::COMPONENT_FILE;
use crate::time::Timestamp;

/// As in Azure's documents.
const TRAIN: &str = "\
$schema: https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json
name: train_model
display_name: Train
version: 7
type: command
description: Trains
tags: {team: vision}
is_deterministic: false
inputs:
  data:
    type: uri_folder
    description: What to learn from
  epochs: {type: integer, default: 10, min: 1, max: 100}
  rate: {type: number, optional: true}
  optimizer: {type: string, default: adam, enum: [adam, sgd]}
  verbose: {type: boolean, default: true}
outputs:
  model: {type: mlflow_model}
  report:
code: ./src
environment: azureml:train:3
command: >-
  python train.py --data ${{inputs.data}} --epochs ${{inputs.epochs}} $[[--rate ${{inputs.rate}}]]
  --optimizer ${{inputs.optimizer}} --out ${{outputs.model}}
resources: {instance_count: 2}
distribution: {type: pytorch, process_count_per_instance: 4}
";

fn read(yaml: &str, sets: &[&str]) -> Result<ParsedComponent, Diagnostics> {
    let changes: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
    parse_component(yaml.as_bytes(), &origin(), &changes, &disk())
}

#[track_caller]
fn draft(yaml: &str) -> Draft {
    match read(yaml, &[]) {
        Ok(parsed) => parsed.draft,
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

#[track_caller]
fn refused(yaml: &str, expected: &[&str]) {
    let said = match read(yaml, &[]) {
        Ok(parsed) => panic!("accepted: {:?}", parsed.draft),
        Err(errors) => errors.to_string(),
    };
    for words in expected {
        assert!(said.contains(words), "{words}\n{said}");
    }
}

fn port(name: &str) -> PortName {
    PortName::new(name).unwrap()
}

#[test]
fn azures_file_is_read_as_it_is() {
    let parsed = read(TRAIN, &[]).unwrap();
    assert_eq!(parsed.warnings.iter().map(short).collect::<Vec<_>>(), Vec::<String>::new());
    let Draft { name, version, display_name, description, tags, content } = parsed.draft;
    assert_eq!((name.as_str(), version.unwrap().as_str()), ("train_model", "7"));
    assert_eq!((display_name.as_deref(), description.as_deref()), (Some("Train"), Some("Trains")));
    assert_eq!(tags["team"], "vision");
    assert!(!content.is_deterministic);
    let kind = |name: &str| content.inputs[&port(name)].kind;
    assert_eq!(kind("data"), InputKind::Data(DataKind::UriFolder));
    assert_eq!(kind("rate"), InputKind::Number);
    assert_eq!(kind("verbose"), InputKind::Boolean);
    let epochs = &content.inputs[&port("epochs")];
    assert_eq!((epochs.kind, epochs.default.as_deref()), (InputKind::Integer, Some("10")));
    assert_eq!((epochs.min.as_deref(), epochs.max.as_deref()), (Some("1"), Some("100")));
    assert!(content.inputs[&port("rate")].optional);
    assert_eq!(content.inputs[&port("optimizer")].choices, ["adam", "sgd"]);
    assert_eq!(content.outputs[&port("model")].kind, DataKind::MlflowModel);
    assert_eq!(content.outputs[&port("report")].kind, DataKind::UriFolder);
    assert_eq!(content.code, Some(Code::Local("/w/proj/src".to_owned())));
    assert!(matches!(content.environment, Environment::Named(_)));
    assert_eq!(content.resources.instance_count, 2);
    assert_eq!(content.distribution.unwrap().processes_per_node(), 4);
    let minimal = draft("name: a\ncommand: ls\n");
    assert_eq!((minimal.version, minimal.content.is_deterministic), (None, true));
    let changed = read(TRAIN, &["version=8", "tags.team=audio"]).unwrap().draft;
    assert_eq!((changed.version.unwrap().as_str(), &*changed.tags["team"]), ("8", "audio"));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let with = |more: &str| format!("name: a\ncommand: ls\n{more}");
    refused("name: a\n", &["no 'command'", "command: python train.py"]);
    refused("command: ls\n", &["the component has no 'name'"]);
    refused(&with("type: pipeline\n"), &["type"]);
    refused(&with("compute: local\n"), &["compute"]);
    refused("name: a\ncommand: 'ls ${{inputs.x}}'\n", &["2:", "inputs.x"]);
    refused(
        "name: a\ncommand: 'ls ${{inputs.x}}'\ninputs: {x: {type: string, optional: true}}\n",
        &["inputs.x"],
    );
    for (input, words) in [
        ("{type: integer, default: 1.5}", "'1.5' is no value of type integer"),
        ("{type: boolean, default: maybe}", "'maybe' is no value of type boolean"),
        ("{type: integer, default: 11, max: 10}", "the default '11' is none of its values"),
        ("{type: integer, min: 3, max: 2}", "at least 3 and at most 2"),
        ("{type: string, min: 3}", "type string has no 'min'"),
        ("{type: string, default: c, enum: [a, b]}", "the default 'c' is none of its values"),
        ("{type: number, enum: [1, b]}", "'b' is no value of type number"),
        ("{type: uri_file, default: x}", "type uri_file has no 'default'"),
        ("{type: int}", "int"),
        ("{type: string, path: x}", "path"),
    ] {
        refused(&with(&format!("inputs:\n  x: {input}\n")), &["4:", words]);
    }
    refused(&with("resources: {instance_count: 0}\n"), &["instance_count"]);
    refused(&with("code: none\n"), &["none"]);
}

#[test]
fn a_daemon_takes_nothing_of_a_users_machine() {
    let mut draft = draft(TRAIN);
    let said = draft.check().unwrap_err().to_string();
    assert!(said.contains("code") && said.contains("submitter's machine"), "{said}");
    draft.content.code = None;
    draft.check().unwrap();
    draft.content.command = "ls ${{inputs.none}}".to_owned();
    let said = draft.check().unwrap_err().to_string();
    assert!(said.contains("command") && said.contains("none"), "{said}");
}

#[test]
fn what_is_said_of_a_version_may_change_and_the_rest_not() {
    let version = VersionName::new("1").unwrap();
    let by = Principal::new("ana").unwrap();
    let made = draft(TRAIN).made(version, by, Timestamp::from_millis(1));
    let change = Change {
        display_name: Some("Fit".to_owned()),
        description: Some(String::new()),
        tags: [("a".to_owned(), "b".to_owned())].into(),
        untag: vec!["team".to_owned()],
        ..Change::default()
    };
    let changed = made.clone().changed(&change);
    assert_eq!((changed.display_name.as_deref(), &changed.description), (Some("Fit"), &None));
    assert_eq!(changed.tags.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(changed.content, made.content);
    let written = serde_json::to_string(&made).unwrap();
    assert_eq!(serde_json::from_str::<crate::component::ComponentVersion>(&written).unwrap(), made);
}

#[test]
fn references_are_read_as_azure_writes_them() {
    let read = |text: &str| component_reference(text).unwrap();
    assert_eq!(read("train:3"), read("azureml:train:3"));
    assert_eq!(read("train@latest").version, AssetVersion::Label("latest".to_owned()));
    assert_eq!(read("train").version, AssetVersion::Default);
    assert!(component_reference("azureml://registries/r/models/m/versions/1").is_err());
}

#[test]
fn the_schema_and_the_documentation_have_every_key() {
    compare(&component_schema(), &COMPONENT_FILE);
    let undocumented = table_of(&COMPONENT_FILE)
        .into_iter()
        .filter(|(_, fields)| fields.iter().any(|field| field.doc.is_empty()))
        .map(|(path, _)| path);
    assert_eq!(undocumented.collect::<Vec<_>>(), Vec::<String>::new());
    compare_page("component-yaml.md", "component.rs", &COMPONENT_FILE);
}
