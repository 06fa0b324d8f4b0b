//! `atelier run download`

use std::path::{Path, PathBuf};

use atelier_core::url::encoded;
use clap::Args;
use serde_json::json;

use super::failed;
use crate::cli::fetch::{self, Wanted, beneath};
use crate::cli::job::size;
use crate::cli::{Context, Error, Kind};
use crate::client::tracking::{Artifact, Tracking};

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier run download calm_apple_x1                      all artifacts, to ./calm_apple_x1/…
  atelier run download calm_apple_x1 plots -p figures")]
pub(in crate::cli) struct Arguments {
    /// The run
    #[arg(value_name = "NAME")]
    name: String,
    /// A file or a folder of its artifacts [default: all]
    #[arg(value_name = "PATH", default_value = "")]
    path: String,
    /// Where to [default: ./NAME]
    #[arg(short = 'p', long, value_name = "FOLDER")]
    download_path: Option<PathBuf>,
}

pub(super) async fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let name = arguments.name.as_str();
    let client = context.client().await?;
    let tracking = Tracking::of(&client)?;
    let looking = failed(&format!("look at the run {name}"));
    let info = tracking.run(name).await.map_err(&looking)?.info;
    let files = below(&tracking, name, arguments.path.trim_matches('/')).await?;
    if files.is_empty() {
        let what = match arguments.path.as_str() {
            "" => format!("the run {name} has no artifacts"),
            path => format!("the run {name} has no artifact '{path}'"),
        };
        return Err(Error::new(Kind::NotFound, what));
    }
    let folder = arguments.download_path.clone().unwrap_or_else(|| PathBuf::from(name));
    let root = info.artifact_uri.trim_start_matches("mlflow-artifacts:/");
    let wanted: Vec<Wanted> = files
        .iter()
        .map(|file| Wanted {
            name: file.path.clone(),
            place: beneath(Path::new(&file.path)),
            path: format!(
                "api/2.0/mlflow-artifacts/artifacts/{}/{}",
                encoded(root),
                encoded(&file.path)
            ),
            digest: String::new(),
        })
        .collect();
    let bytes = files.iter().map(|file| file.file_size).sum();
    let bar = context.output.bar(bytes, "Downloading");
    let fetched = fetch::all(&client, &wanted, &folder, &|bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    fetched?;
    let (count, plural) = (files.len(), if files.len() == 1 { "" } else { "s" });
    let note =
        format!("Downloaded {count} file{plural}, {}, to {}.", size(bytes), folder.display());
    context.output.note(&note);
    context.output.show(&json!({
        "name": name,
        "download_path": folder.display().to_string(),
        "files": count,
        "bytes": bytes,
    }))
}

/// The file of this path, or all below a folder of it.
async fn below(tracking: &Tracking, run: &str, path: &str) -> Result<Vec<Artifact>, Error> {
    let listing = failed(&format!("list the artifacts of the run {run}"));
    let mut files = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for artifact in tracking.artifacts(run, &folder).await.map_err(&listing)? {
            match artifact.is_dir {
                true => folders.push(artifact.path),
                false => files.push(artifact),
            }
        }
    }
    if files.is_empty() && !path.is_empty() {
        // A file has nothing below it; its folder tells whether it is there.
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        files = tracking.artifacts(run, folder).await.map_err(&listing)?;
        files.retain(|artifact| artifact.path == path && !artifact.is_dir);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
