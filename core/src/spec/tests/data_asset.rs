//! Data assets' and models' files in, drafts or messages out.

use super::schema::{compare, compare_page, table_of};
use super::*;
use crate::asset::{Draft, Kind};
use crate::spec::data_asset::{DATA_FILE, MODEL_FILE};

fn read(kind: Kind, yaml: &str, sets: &[&str]) -> Result<ParsedAsset, Diagnostics> {
    let changes: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
    let origin = Origin {
        name: "asset.yml".to_owned(),
        folder: "/w/proj".to_owned(),
        experiment: String::new(),
    };
    let parse = if kind == Kind::Model { parse_model } else { parse_data };
    parse(yaml.as_bytes(), &origin, &changes, &disk())
}

#[track_caller]
fn draft(kind: Kind, yaml: &str) -> Draft {
    match read(kind, yaml, &[]) {
        Ok(parsed) => parsed.draft,
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

#[test]
fn azures_data_files_are_read_as_they_are() {
    let read = draft(
        Kind::Data,
        "$schema: https://azuremlschemas.azureedge.net/latest/data.schema.json\nname: cloud-file-example\n\
         description: Data asset created from file in cloud.\ntype: uri_file\n\
         path: https://example.org/titanic.csv\nversion: 3\ntags: {nightly: yes}\nproperties: {a: 1}\n",
    );
    assert_eq!((read.name.as_str(), read.kind()), ("cloud-file-example", Kind::Data));
    assert_eq!(read.version.as_ref().map(|version| version.as_str()), Some("3"));
    assert_eq!(read.form, DataKind::UriFile);
    assert_eq!(read.uri, DataUri::Http("https://example.org/titanic.csv".to_owned()));
    assert_eq!((&*read.tags["nightly"], &*read.properties["a"]), ("True", "1"));
    assert!(read.check().is_ok());

    let read = draft(Kind::Data, "name: local\npath: data\n");
    assert_eq!((read.form, read.version.is_none()), (DataKind::UriFolder, true));
    assert_eq!(read.uri, DataUri::Local("/w/proj/data".to_owned()));
    // The daemon takes it once it was uploaded.
    let said = read.check().unwrap_err().to_string();
    assert!(said.contains("path") && said.contains("upload"), "{said}");
}

#[test]
fn azures_model_files_are_read_as_they_are() {
    let read = draft(
        Kind::Model,
        "$schema: https://azuremlschemas.azureedge.net/latest/model.schema.json\nname: run-model\n\
         path: azureml://jobs/calm_apple/outputs/artifacts/paths/model\ntype: mlflow_model\nstage: Production\n\
         flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n    python_version: 3.8.5\n\
         job_name: calm_apple\n",
    );
    assert_eq!((read.form, read.kind()), (DataKind::MlflowModel, Kind::Model));
    assert_eq!(read.stage.as_deref(), Some("Production"));
    assert_eq!(read.flavors["python_function"]["loader_module"], "mlflow.sklearn");
    assert!(matches!(read.uri, DataUri::JobOutput { .. }), "{:?}", read.uri);
    assert!(read.check().is_ok());
    assert_eq!(draft(Kind::Model, "name: m\npath: data/iris.csv\n").form, DataKind::CustomModel);
}

#[test]
fn arguments_change_what_the_file_says() {
    let sets = ["name=other", "version=7", "tags.team=nlp", "type=uri_file", "path=data/iris.csv"];
    let read = read(Kind::Data, "name: d\npath: data\n", &sets).unwrap().draft;
    assert_eq!((read.name.as_str(), read.version.unwrap().as_str()), ("other", "7"));
    assert_eq!(read.uri, DataUri::Local("/w/proj/data/iris.csv".to_owned()));
    assert_eq!((read.form, &*read.tags["team"]), (DataKind::UriFile, "nlp"));
}

#[test]
fn faults_are_told_with_their_place() {
    use Kind::{Data, Model};
    for (kind, yaml, parts) in [
        (Data, "path: data\n", &["the data asset has no 'name'", "--name"][..]),
        (Model, "name: m\n", &["the model has no 'path'", "--path"]),
        (Data, "name: a b\npath: data\n", &["'a b' is not a valid asset name"]),
        (Data, "name: d\nversion: 1/2\npath: data\n", &["asset.yml:2", "not a valid version"]),
        (Data, "name: d\npath: nowhere\n", &["no file or folder 'nowhere'"]),
        (Data, "name: d\ntype: uri_file\npath: data\n", &["is a folder, not a file"]),
        (Data, "name: d\npath: data/iris.csv\n", &["is a file, not a folder"]),
        (Data, "name: d\ntype: mltable\npath: data\n", &["no file 'MLTable'"]),
        (Data, "name: d\ntype: custom_model\npath: data\n", &["type"]),
        (Model, "name: m\ntype: uri_file\npath: data\n", &["type"]),
        (Data, "name: d\npath: azureml:other:1\n", &["not made of another"]),
        (Model, "name: m\npath: https://example.org/m\n", &["not on the web"]),
        (Data, "name: d\npath: azureml://datastores/d/paths/../x\n", &["'..'"]),
        (Data, "name: d\nflavors: {}\npath: data\n", &["asset.yml:2"]),
        (Data, "name: d\npaht: data\n", &["did you mean 'path'"]),
        (Data, "- name\n", &["expected a mapping"]),
    ] {
        let said = match read(kind, yaml, &[]) {
            Ok(parsed) => panic!("accepted: {:?}\nin\n{yaml}", parsed.draft),
            Err(errors) => errors.to_string(),
        };
        for part in parts {
            assert!(said.contains(part), "nothing about {part:?} in\n{said}");
        }
    }
}

#[test]
fn the_daemon_checks_again() {
    let good = draft(Kind::Data, "name: d\npath: azureml://datastores/d/paths/x\n");
    assert!(good.check().is_ok());
    let faulty = |change: &dyn Fn(&mut Draft)| {
        let mut draft = good.clone();
        change(&mut draft);
        draft.check().unwrap_err().to_string()
    };
    let outside = DataUri::JobOutput {
        job: crate::id::JobName::new("j").unwrap(),
        output: "o".to_owned(),
        path: "../x".to_owned(),
    };
    for (said, part) in [
        (faulty(&|d| d.description = Some("x".repeat(100_000))), "description"),
        (faulty(&|d| d.stage = Some("a\0b".to_owned())), "NUL"),
        (faulty(&|d| d.tags = (0..2000).map(|n| (n.to_string(), String::new())).collect()), "tags"),
        (faulty(&|d| d.stage = Some("Production".to_owned())), "only models"),
        (faulty(&|d| d.uri = outside.clone()), "'..'"),
        (faulty(&|d| d.flavors = [("a".to_owned(), serde_json::json!(1))].into()), "only models"),
    ] {
        assert!(said.contains(part), "nothing about {part:?} in\n{said}");
    }
    let mut model = draft(Kind::Model, "name: m\npath: azureml://datastores/d/paths/x\n");
    model.flavors = [("a".to_owned(), serde_json::json!("x".repeat(2 << 20)))].into();
    assert!(model.check().unwrap_err().to_string().contains("flavors"));
}

#[test]
fn people_name_assets_in_every_way() {
    let named = |text: &str| asset_reference(Kind::Data, text).unwrap();
    let exact = AssetVersion::Exact("3".to_owned());
    assert_eq!(named("d").version, AssetVersion::Default);
    assert_eq!((named("d:3").name, named("d:3").version), ("d".to_owned(), exact.clone()));
    assert_eq!(named("azureml:d:3").version, exact);
    assert_eq!(named("d@stable").version, AssetVersion::Label("stable".to_owned()));
    for wrong in ["", "a b", "d:", "d@a/b", "azureml://registries/azureml/data/x/versions/1"] {
        assert!(asset_reference(Kind::Data, wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_output_that_becomes_an_asset_has_a_name_and_perhaps_a_version() {
    let of = |output: &str| format!("command: x\noutputs:\n  out: {output}\n");
    let job = job(&of("{type: custom_model, name: m, version: 3}"));
    let output = job.outputs.values().next().unwrap();
    assert_eq!(output.asset_name.as_deref(), Some("m"));
    assert_eq!(output.asset_version.as_deref(), Some("3"));
    assert!(errors(&of("{name: a b}")).contains("'a b' is not a valid asset name"));
    assert!(errors(&of("{name: m, version: 1/2}")).contains("'1/2' is not a valid version"));
    assert!(errors(&of("{version: 3}")).contains("a version and no name"));
}

#[test]
fn the_tables_the_schemas_and_the_page_agree() {
    for (schema, table, shown) in [
        (data_schema(), &DATA_FILE, "data_asset.rs (data)"),
        (model_schema(), &MODEL_FILE, "data_asset.rs (model)"),
    ] {
        compare(&schema, table);
        assert_eq!(schema["required"], serde_json::json!(["name"]));
        let undocumented = table_of(table)
            .into_iter()
            .find(|(_, fields)| fields.iter().any(|field| field.doc.is_empty()));
        assert!(undocumented.is_none());
        compare_page("asset-yaml.md", shown, table);
    }
}
