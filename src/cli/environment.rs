//! `atelier environment`

use std::path::PathBuf;

use atelier_core::environment::Draft;
use atelier_core::spec::{Code, Origin, Override, environment_reference, parse_environment};
use atelier_proto::environment::v1::{
    self as pb, ArchiveEnvironmentRequest, CreateEnvironmentRequest, GetEnvironmentRequest,
    ListEnvironmentsRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::asset::{Listing, Which, absolute, description, state, tag, whole_or_version};
use super::job::{materials, read, time, view};
use super::output::moment;
use super::pages::pages;
use super::{Column, Context, Error};
use crate::config::Here;

mod build;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a version of an environment from its file
    ///
    /// Azure's environment files are read as they are. A version never changes: the same again is no
    /// change, and something else needs another version.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier environment create -f env.yml
  atelier environment create -f env.yml --name train --version 3
  atelier environment create -n train --conda-file conda.yml"
    )]
    Create(Create),
    /// List the environments, each by its latest version, or the versions of one
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  atelier environment list
  atelier environment list --name train --include-archived
  atelier environment list --query \"[?!curated].name\" -o tsv"
    )]
    List(Listing),
    /// Show one version: what it is made of
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier environment show train@latest
  atelier environment show --name train --version 3
  atelier environment show azureml://registries/azureml/environments/sklearn-1.5/labels/latest"
    )]
    Show(Which),
    /// Hide an environment, or one of its versions, from lists
    ///
    /// Jobs may still name an archived version; no label points to it.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier environment archive train
  atelier environment archive train --version 2"
    )]
    Archive(Which),
    /// Show an archived environment, or one of its versions, in lists again
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier environment restore train
  atelier environment restore train --version 2"
    )]
    Restore(Which),
    /// Make an environment ready on nodes before a job needs it
    ///
    /// Each node of the compute that is ready does what it would do for a job: it pulls or builds the image,
    /// installs the packages, and keeps what comes out. Its progress is shown, and the exit code is 1 if it
    /// fails on a node. Ctrl-C leaves the nodes building.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier environment build train@latest
  atelier environment build --name train --version 3 --compute gpu-cluster
  atelier environment build train --no-wait"
    )]
    Build(build::Build),
}

#[derive(Args)]
pub(super) struct Create {
    /// The environment's file; - reads standard input
    #[arg(short, long, value_name = "FILE", required_unless_present = "name")]
    file: Option<PathBuf>,
    /// Change a field before the file is checked, for example image=python:3.12
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = read::change)]
    set: Vec<Override>,
    /// Its name [default: the file's]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// The version to make [default: the file's, else the next number]
    #[arg(short, long, value_name = "VERSION")]
    version: Option<String>,
    /// The container image
    #[arg(short, long, value_name = "IMAGE")]
    image: Option<String>,
    /// A conda file
    #[arg(short, long, value_name = "FILE")]
    conda_file: Option<PathBuf>,
    /// A folder with a Dockerfile
    #[arg(short, long, value_name = "DIR")]
    build_context: Option<PathBuf>,
    /// The Dockerfile within the folder
    #[arg(short, long, value_name = "PATH")]
    dockerfile_path: Option<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Key-value pairs
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = tag)]
    tags: Vec<(String, String)>,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Create(arguments) => create(arguments, context).await,
        Command::List(arguments) => list(arguments, context).await,
        Command::Show(which) => {
            let environment = Some((&which.reference(environment_reference)?).into());
            let client = context.client().await?;
            let request = GetEnvironmentRequest { environment };
            let found = client.call(client.environments().get_environment(request)).await?;
            context.output.show(&shown(&found))
        }
        Command::Archive(which) => archive(&which, true, context).await,
        Command::Restore(which) => archive(&which, false, context).await,
        Command::Build(arguments) => build::run(arguments, context).await,
    }
}

async fn create(arguments: Create, context: &Context) -> Result<(), Error> {
    let mut draft = draft(arguments, context)?;
    let client = context.client().await?;
    if let Some(build) = &mut draft.environment.build
        && let Code::Local(folder) = &build.path
    {
        let folder = PathBuf::from(folder);
        let root = materials::snapshot(context, &client, &folder, "build context").await?;
        build.path = Code::Snapshot(root);
    }
    let request = CreateEnvironmentRequest::from(&draft);
    let made = client.call(client.environments().create_environment(request)).await?;
    context.output.show(&shown(&made))?;
    let (name, version) = (&made.name, &made.version);
    context.output.note(&format!("Jobs name it with `environment: azureml:{name}:{version}`."));
    Ok(())
}

/// What a file and the arguments describe.
fn draft(arguments: Create, context: &Context) -> Result<Draft, Error> {
    let mut changes = arguments.set;
    let mut text = |flag: &str, path: &[&str], value: Option<String>| {
        changes.extend(value.map(|value| Override::text(flag, path, &value)));
    };
    text("--name", &["name"], arguments.name);
    text("--version", &["version"], arguments.version);
    text("--image", &["image"], arguments.image);
    text("--conda-file", &["conda_file"], absolute(arguments.conda_file)?);
    text("--build-context", &["build", "path"], absolute(arguments.build_context)?);
    text("--dockerfile-path", &["build", "dockerfile_path"], arguments.dockerfile_path);
    text("--description", &["description"], arguments.description);
    for (key, value) in arguments.tags {
        text("--tags", &["tags", &key], Some(value));
    }
    let (text, name, folder) = match &arguments.file {
        Some(file) => {
            let document = read::document(file, "environment")?;
            (document.text, document.name, read::utf8(&document.folder)?.to_owned())
        }
        None => (b"{}".to_vec(), "<command line>".to_owned(), String::new()),
    };
    let origin = Origin { name, folder, experiment: String::new() };
    let parsed = parse_environment(&text, &origin, &changes, &Here).map_err(read::faults)?;
    for warning in &parsed.warnings {
        context.output.warn(&warning.to_string());
    }
    Ok(parsed.draft)
}

async fn list(arguments: Listing, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut request = ListEnvironmentsRequest {
        name: arguments.name.unwrap_or_default(),
        include_archived: arguments.include_archived,
        archived_only: arguments.archived_only,
        ..ListEnvironmentsRequest::default()
    };
    let items = pages(arguments.max_results, async |size, token| {
        (request.page_size, request.page_token) = (size, token);
        let page = client.call(client.environments().list_environments(request.clone())).await?;
        Ok((page.environments.iter().map(shown).collect(), page.next_page_token))
    });
    let items = items.await?;
    context.output.list(items, COLUMNS)
}

async fn archive(which: &Which, archived: bool, context: &Context) -> Result<(), Error> {
    let asset = which.reference(environment_reference)?;
    let version = whole_or_version(&asset, "environment")?;
    let client = context.client().await?;
    let request = ArchiveEnvironmentRequest { name: asset.name, version, archived };
    let found = client.call(client.environments().archive_environment(request)).await?;
    context.output.show(&shown(&found))
}

fn shown(environment: &pb::Environment) -> Value {
    let curated = environment.version.is_empty();
    let name = &environment.name;
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| {
        shown.insert(key.to_owned(), value);
    };
    put("name", json!(name));
    put("version", if curated { Value::Null } else { json!(environment.version) });
    put(
        "id",
        json!(match curated {
            true => format!("azureml://registries/azureml/environments/{name}/labels/latest"),
            false => format!("azureml:{name}:{}", environment.version),
        }),
    );
    let description = &environment.description;
    put("description", json!((!description.is_empty()).then_some(description)));
    put("tags", json!(environment.tags));
    for (key, value) in environment.content.as_ref().map(view::made_of).unwrap_or_default() {
        if key != "name" {
            put(&key, value);
        }
    }
    put("os_type", json!("linux"));
    put("curated", json!(curated));
    put("latest", json!(environment.latest));
    put("archived", json!(environment.archived));
    if !curated {
        put(
            "creation_context",
            json!({
                "created_at": time(environment.created_at_ms),
                "created_by": environment.created_by,
            }),
        );
    }
    Value::Object(shown)
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |e| Some(e["name"].as_str()?.to_owned()) },
    Column {
        title: "VERSION",
        cell: |e| Some(e["version"].as_str().unwrap_or("curated").to_owned()),
    },
    Column {
        title: "MADE OF",
        cell: |e| {
            let packages = e["conda_file"]["dependencies"].as_array().map(Vec::len);
            let parts = [
                e["image"].as_str().map(str::to_owned),
                packages.map(|_| "conda file".to_owned()),
                e["build"]["dockerfile_path"].as_str().map(str::to_owned),
            ];
            Some(parts.into_iter().flatten().collect::<Vec<_>>().join(" + "))
        },
    },
    Column { title: "CREATED", cell: |e| moment(&e["creation_context"]["created_at"]) },
    Column { title: "STATE", cell: state },
    Column { title: "DESCRIPTION", cell: description },
];
