//! Documents in, jobs or messages out.

use std::collections::BTreeMap;

use super::*;

mod asset;
mod bounds;
mod component;
mod compute;
mod data;
mod data_asset;
mod datastore;
mod diagnostics;
mod docker_args;
mod documents;
mod properties;
mod schema;
mod secrets;
mod yaml_1_1;

/// A machine with a few files.
pub(super) struct Disk(BTreeMap<&'static str, Option<Vec<u8>>>);

impl Files for Disk {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        match self.0.get(path) {
            Some(Some(content)) => Ok(content.clone()),
            _ => Err("no such file".to_owned()),
        }
    }

    fn kind(&self, path: &str) -> Option<FileKind> {
        self.0.get(path).map(|content| match content {
            Some(_) => FileKind::File,
            None => FileKind::Folder,
        })
    }
}

const CONDA: &str = "name: train\nchannels: [conda-forge]\ndependencies:\n  - python=3.12\n  \
                     - pip\n  - pip:\n    - scikit-learn==1.5.2\n    - mlflow\n";

pub(super) fn disk() -> Disk {
    let file = |text: &str| Some(text.as_bytes().to_vec());
    Disk(
        [
            ("/w/proj", None),
            ("/w/proj/src", None),
            ("/w/proj/data", None),
            ("/w/proj/data/iris.csv", file("a,b\n")),
            ("/w/shared", None),
            ("/w/shared/conda.yml", file(CONDA)),
            ("/w/proj/env", None),
            ("/w/proj/env/env.yml", file("image: python:3.12\nconda_file: ../conda.yml\n")),
            ("/w/proj/env/typo.yml", file("# ours\nimagee: python:3.12\n")),
            ("/w/proj/env/list.yml", file("- a\n")),
            ("/w/proj/env/empty.yml", file("")),
            ("/w/proj/conda.yml", file(CONDA)),
            ("/w/proj/bad-conda.yml", file("dependencies:\n  - python: 3.12\n")),
            ("/w/proj/requirements.yml", file("dependencies:\n  - pip:\n    - -r req.txt\n")),
        ]
        .into(),
    )
}

pub(super) fn origin() -> Origin {
    Origin {
        name: "job.yml".to_owned(),
        folder: "/w/proj".to_owned(),
        experiment: "proj".to_owned(),
    }
}

pub(super) fn parse_with(yaml: &str, sets: &[&str]) -> Result<Parsed, Diagnostics> {
    let changes: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
    parse_job(yaml.as_bytes(), &origin(), &changes, &disk())
}

pub(super) fn parse(yaml: &str) -> Result<Parsed, Diagnostics> {
    parse_with(yaml, &[])
}

/// The job of a document that has to be good.
#[track_caller]
pub(super) fn job(yaml: &str) -> CommandJob {
    match parse(yaml) {
        Ok(parsed) => parsed.job,
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

/// The messages of a document that has to be refused, as shown to people.
#[track_caller]
pub(super) fn errors(yaml: &str) -> String {
    match parse(yaml) {
        Ok(parsed) => panic!("accepted: {:?}\nin\n{yaml}", parsed.job),
        Err(errors) => errors.to_string(),
    }
}

/// Warnings, one per line, without snippets.
#[track_caller]
pub(super) fn warnings(yaml: &str) -> String {
    match parse(yaml) {
        Ok(parsed) => parsed.warnings.iter().map(short).collect::<Vec<_>>().join("\n"),
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

/// `line:column: message | help`, with the source's name if it is not the job's own file.
pub(super) fn short(diagnostic: &Diagnostic) -> String {
    let Diagnostic { message, place, help, .. } = diagnostic;
    let place = place.as_ref().map_or_else(String::new, |place| match place.position {
        Some((line, column)) if place.source == "job.yml" => format!("{line}:{column}: "),
        Some((line, column)) => format!("{}:{line}:{column}: ", place.source),
        None => format!("{}: ", place.source),
    });
    let help = help.as_ref().map_or_else(String::new, |help| format!(" | {help}"));
    format!("{place}{message}{help}")
}

/// `yaml` is refused with exactly these messages, each as [`short`] shows it.
#[track_caller]
fn check(yaml: &str, expected: &str) {
    let found = match parse(yaml) {
        Ok(parsed) => format!("accepted: {:?}", parsed.job),
        Err(errors) => errors.iter().map(short).collect::<Vec<_>>().join("\n"),
    };
    assert_eq!(found, expected, "for\n{yaml}");
}
