//! Environments' files in, drafts or messages out.

use super::schema::{compare, compare_page, table_of};
use super::*;
use crate::environment::Draft;
use crate::spec::asset::ENVIRONMENT_FILE;

fn origin() -> Origin {
    Origin { name: "env.yml".to_owned(), folder: "/w/proj".to_owned(), experiment: String::new() }
}

fn parse_with(yaml: &str, sets: &[&str]) -> Result<ParsedEnvironment, Diagnostics> {
    let changes: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
    parse_environment(yaml.as_bytes(), &origin(), &changes, &disk())
}

#[track_caller]
fn draft(yaml: &str) -> Draft {
    match parse_with(yaml, &[]) {
        Ok(parsed) => parsed.draft,
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

#[track_caller]
fn errors(yaml: &str) -> String {
    match parse_with(yaml, &[]) {
        Ok(parsed) => panic!("accepted: {:?}\nin\n{yaml}", parsed.draft),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn azures_files_are_read_as_they_are() {
    let read = draft(
        "$schema: https://azuremlschemas.azureedge.net/latest/environment.schema.json\n\
         name: docker-image-plus-conda-example\nversion: 5\nimage: mcr.example/openmpi4.1.0-ubuntu20.04\n\
         conda_file: ./conda.yml\ndescription: Environment created from a Docker image plus Conda.\n\
         tags: {team: vision, nightly: yes}\n",
    );
    assert_eq!(read.name.as_str(), "docker-image-plus-conda-example");
    assert_eq!(read.version.as_ref().map(|v| v.as_str()), Some("5"));
    assert_eq!(read.tags["nightly"], "True");
    assert_eq!(read.environment.name, None);
    assert_eq!(read.environment.image.as_deref(), Some("mcr.example/openmpi4.1.0-ubuntu20.04"));
    let conda = read.environment.conda.as_ref().unwrap();
    assert_eq!(conda["dependencies"][0], "python=3.12");
    assert!(read.check().is_ok());

    let read = draft("name: docker-context\nbuild:\n  path: ./env\n");
    let build = read.environment.build.clone().unwrap();
    assert_eq!(
        (build.path, &*build.dockerfile_path),
        (Code::Local("/w/proj/env".to_owned()), "Dockerfile")
    );
    assert_eq!(read.version, None);
    // The daemon takes it once the folder was uploaded.
    let said = read.check().unwrap_err().to_string();
    assert!(said.contains("build.path") && said.contains("upload"), "{said}");
    let mut sent = read;
    sent.environment.build = Some(BuildContext {
        path: Code::Snapshot(crate::content::Digest::of(b"")),
        dockerfile_path: "Dockerfile".to_owned(),
    });
    assert!(sent.check().is_ok());
    // A version is text, however it is written.
    let read = draft("name: e\nversion: 2024-05-01\nimage: x\n");
    assert_eq!(read.version.unwrap().as_str(), "2024-05-01");
}

#[test]
fn arguments_change_what_the_file_says() {
    let sets = ["name=other", "version=7", "tags.team=nlp", "image=busybox"];
    let read = parse_with("name: e\nimage: python:3.12\n", &sets).unwrap().draft;
    assert_eq!((read.name.as_str(), read.version.unwrap().as_str()), ("other", "7"));
    assert_eq!(read.environment.image.as_deref(), Some("busybox"));
    assert_eq!(read.tags["team"], "nlp");
}

#[test]
fn faults_are_told_with_their_place() {
    for (yaml, parts) in [
        ("image: x\n", &["no 'name'", "--name"][..]),
        ("name: a b\nimage: x\n", &["'a b' is not a valid asset name", "letters"]),
        ("name: e\nversion: 1/2\nimage: x\n", &["env.yml:2", "'1/2' is not a valid version"]),
        ("name: e\n", &["no image, conda_file or build"]),
        ("name: e\nimage: x\nbuild: {path: env}\n", &["env.yml:3", "not both"]),
        ("name: e\nimagee: x\n", &["env.yml:2", "did you mean 'image'"]),
        ("name: e\ndependencies: [numpy]\n", &["conda_file: ./conda.yml"]),
        ("name: e\nconda_file: none.yml\n", &["none.yml", "relative paths"]),
        ("name: e\nconda_file: bad-conda.yml\n", &["bad-conda.yml:2"]),
        ("name: e\nbuild: {path: nowhere}\n", &["there is no folder 'nowhere'"]),
        ("name: e\nimage: x\nos_type: windows\n", &["Windows"]),
        ("name: e\nimage: ''\n", &["is not a container image's name"]),
        ("- name\n", &["expected a mapping"]),
    ] {
        let said = errors(yaml);
        for part in parts {
            assert!(said.contains(part), "nothing about {part:?} in\n{said}");
        }
    }
}

#[test]
fn the_daemon_checks_again() {
    let good = draft("name: e\nimage: x\n");
    let mut bad = good.clone();
    bad.environment.image = None;
    assert!(bad.check().unwrap_err().to_string().contains("image"));
    let mut bad = good.clone();
    bad.tags = (0..2000).map(|n| (format!("t{n}"), String::new())).collect();
    assert!(bad.check().unwrap_err().to_string().contains("tags"));
    let mut bad = good.clone();
    bad.environment.image = Some("a\0b".to_owned());
    assert!(bad.check().unwrap_err().to_string().contains("NUL"));
    let mut bad = good;
    bad.environment.image = None;
    bad.environment.conda = Some(serde_json::json!({ "dependencies": ["="] }));
    assert!(bad.check().unwrap_err().to_string().contains("conda_file"));
}

#[test]
fn people_name_environments_in_every_way() {
    let named = |text: &str| environment_reference(text).unwrap();
    let exact = AssetVersion::Exact("3".to_owned());
    assert_eq!(named("e").version, AssetVersion::Default);
    assert_eq!((named("e:3").name, named("e:3").version), ("e".to_owned(), exact.clone()));
    assert_eq!(named("azureml:e:3").version, exact);
    assert_eq!(named("e@latest").version, AssetVersion::Label("latest".to_owned()));
    let registry = named("azureml://registries/azureml/environments/sklearn-1.5/labels/latest");
    assert_eq!(registry.registry.as_deref(), Some("azureml"));
    for wrong in ["", "a b", "e:", "azureml://registries/azureml/models/x", "e@a/b"] {
        assert!(environment_reference(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_table_the_schema_and_the_page_agree() {
    let schema = environment_schema();
    compare(&schema, &ENVIRONMENT_FILE);
    assert_eq!(schema["required"], serde_json::json!(["name"]));
    let undocumented = table_of(&ENVIRONMENT_FILE)
        .into_iter()
        .find(|(_, fields)| fields.iter().any(|field| field.doc.is_empty()));
    assert!(undocumented.is_none());
    compare_page("environment-yaml.md", "asset.rs", &ENVIRONMENT_FILE);
}
