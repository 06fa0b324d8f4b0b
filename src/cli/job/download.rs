//! `atelier job download`

use std::path::{Path, PathBuf};

use atelier_core::url::encoded;
use atelier_proto::job::v1::{Artifact, ListArtifactsRequest};
use clap::Args;
use serde_json::json;

use super::summary::size;
use crate::cli::fetch::{self, Wanted, beneath};
use crate::cli::{Context, Error, Kind, Name};

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job download calm_apple_x1                       ./calm_apple_x1/artifacts/…
  atelier job download calm_apple_x1 --output-name model   …/named-outputs/model/…
  atelier job download calm_apple_x1 --all --download-path results")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    name: Name,
    /// Artifacts, logs and every named output
    #[arg(long, conflicts_with = "output_name")]
    all: bool,
    /// Only this output
    #[arg(long, value_name = "OUTPUT")]
    output_name: Option<String>,
    /// Where to [default: ./NAME]
    #[arg(short = 'p', long, value_name = "FOLDER")]
    download_path: Option<PathBuf>,
}

pub(super) async fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let name = arguments.name.get();
    let client = context.client().await?;
    let prefix = match arguments.output_name.as_deref() {
        Some("artifacts" | "default") | None => String::new(),
        Some(output) => format!("named-outputs/{output}"),
    };
    let request = ListArtifactsRequest { job: name.to_owned(), prefix: prefix.clone() };
    let mut artifacts = client.call(client.jobs().list_artifacts(request)).await?.artifacts;
    // An output is a folder or one file; another's name may begin with its.
    artifacts.retain(|artifact| {
        let rest = artifact.path.strip_prefix(&prefix);
        prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    let of_the_run = !arguments.all
        && matches!(arguments.output_name.as_deref(), None | Some("artifacts" | "default"));
    if of_the_run {
        artifacts.retain(|artifact| !artifact.path.starts_with("named-outputs/"));
    }
    if artifacts.is_empty() {
        let what = match &arguments.output_name {
            Some(output) => format!("{name} has nothing under the output '{output}'"),
            None => format!("{name} has written nothing yet"),
        };
        return Err(Error::new(Kind::NotFound, what)
            .help(format!("see its outputs with `atelier job show {name} --query outputs`")));
    }
    let folder = match &arguments.download_path {
        Some(folder) => folder.clone(),
        None => PathBuf::from(name),
    };
    let bytes = artifacts.iter().map(|artifact| artifact.bytes).sum();
    let files = artifacts.len();
    let bar = context.output.bar(bytes, "Downloading");
    let wanted: Vec<Wanted> = artifacts.iter().map(wanted).collect();
    let fetched = fetch::all(&client, &wanted, &folder, &|bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    fetched?;
    let plural = if files == 1 { "" } else { "s" };
    context.output.note(&format!(
        "Downloaded {files} file{plural}, {}, to {}.",
        size(bytes),
        folder.display()
    ));
    context.output.show(&json!({
        "name": name,
        "download_path": folder.display().to_string(),
        "files": files,
        "bytes": bytes,
    }))
}

/// What is asked for an artifact with.
fn wanted(artifact: &Artifact) -> Wanted {
    Wanted {
        name: artifact.path.clone(),
        place: place(&artifact.path),
        path: format!("data/v1/{}/{}", encoded(&artifact.datastore), encoded(&artifact.key)),
        digest: artifact.digest.clone(),
    }
}

/// Where an artifact goes beneath the folder; `None` for a path that leads out of it.
fn place(path: &str) -> Option<PathBuf> {
    if path.starts_with("named-outputs/") {
        return beneath(Path::new(path));
    }
    Some(Path::new("artifacts").join(beneath(Path::new(path.trim_start_matches("./")))?))
}

#[cfg(test)]
mod tests;
