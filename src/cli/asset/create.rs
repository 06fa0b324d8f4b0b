//! Making versions from files and arguments.

use std::path::{Path, PathBuf};

use atelier_core::asset::{Draft, Kind};
use atelier_core::spec::{DataUri, Origin, Override, parse_data, parse_model};
use atelier_proto::asset::v1::CreateAssetRequest;
use clap::Args;

use super::shown;
use crate::cli::job::{materials, read, submit};
use crate::cli::{Context, Error};
use crate::client::Client;
use crate::config::Here;

#[derive(Args)]
pub(in crate::cli) struct Create {
    /// The asset's file; - reads standard input
    #[arg(short, long, value_name = "FILE", required_unless_present = "name")]
    file: Option<PathBuf>,
    /// Change a field before the file is checked, for example tags.team=vision
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = read::change)]
    set: Vec<Override>,
    /// Its name [default: the file's]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// The version to make [default: the file's, else the next number]
    #[arg(short, long, value_name = "VERSION")]
    version: Option<String>,
    /// Where it lies: a file or folder of this machine, which is sent, or azureml://…
    #[arg(short, long, value_name = "PATH")]
    path: Option<String>,
    /// What it is: uri_file, uri_folder or mltable for data; custom_model, mlflow_model or triton_model for models
    #[arg(short, long, value_name = "TYPE")]
    r#type: Option<String>,
    /// What it is for
    #[arg(short, long, value_name = "TEXT")]
    description: Option<String>,
    /// Key-value pairs
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = tag)]
    tags: Vec<(String, String)>,
}

pub(in crate::cli) fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write for example team=vision")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(in crate::cli) async fn create(
    kind: Kind,
    arguments: Create,
    context: &Context,
) -> Result<(), Error> {
    let mut draft = draft(kind, arguments, context)?;
    let client = context.client().await?;
    if let DataUri::Local(path) = &draft.uri {
        draft.uri = materials::upload(context, &client, Path::new(path)).await?;
    }
    let request = CreateAssetRequest {
        idempotency_key: submit::random_key()?,
        ..CreateAssetRequest::from(&draft)
    };
    let made = submit::keyed(context, &client, async |client: &Client| {
        client.call(client.assets().create_asset(request.clone())).await
    });
    let made = made.await?;
    context.output.show(&shown(&made))?;
    let (name, version) = (&made.name, &made.version);
    context.output.note(&format!("Jobs name it with `path: azureml:{name}:{version}`."));
    Ok(())
}

/// What a file and the arguments describe.
fn draft(kind: Kind, arguments: Create, context: &Context) -> Result<Draft, Error> {
    let mut changes = arguments.set;
    let mut text = |flag: &str, path: &[&str], value: Option<String>| {
        changes.extend(value.map(|value| Override::text(flag, path, &value)));
    };
    text("--name", &["name"], arguments.name);
    text("--version", &["version"], arguments.version);
    text("--path", &["path"], arguments.path.map(place).transpose()?);
    text("--type", &["type"], arguments.r#type);
    text("--description", &["description"], arguments.description);
    for (key, value) in arguments.tags {
        text("--tags", &["tags", &key], Some(value));
    }
    let (text, name, folder) = match &arguments.file {
        Some(file) => {
            let document = read::document(file, kind.word())?;
            (document.text, document.name, read::utf8(&document.folder)?.to_owned())
        }
        None => (b"{}".to_vec(), "<command line>".to_owned(), String::new()),
    };
    let origin = Origin { name, folder, experiment: String::new() };
    let parse = if kind == Kind::Model { parse_model } else { parse_data };
    let parsed = parse(&text, &origin, &changes, &Here).map_err(read::faults)?;
    for warning in &parsed.warnings {
        context.output.warn(&warning.to_string());
    }
    Ok(parsed.draft)
}

/// A path of this machine starts from the current folder, not from the file's; what has a scheme stays.
fn place(path: String) -> Result<String, Error> {
    let is_reference = path.contains("://")
        || ["azureml:", "runs:/", "file:"].iter().any(|scheme| path.starts_with(scheme));
    match is_reference {
        true => Ok(path),
        false => Ok(absolute(Some(PathBuf::from(&path)))?.unwrap_or(path)),
    }
}

/// Paths on a command line start from the current folder, those in a file from the file's.
pub(in crate::cli) fn absolute(path: Option<PathBuf>) -> Result<Option<String>, Error> {
    let Some(path) = path else { return Ok(None) };
    let absolute =
        std::path::absolute(&path).map_err(|error| Error::file("find", &path, &error))?;
    Ok(Some(read::utf8(&absolute)?.to_owned()))
}
