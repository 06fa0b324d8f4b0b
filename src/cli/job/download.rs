//! `atelier job download`

use std::path::{Component, Path, PathBuf};

use atelier_core::url::encoded;
use atelier_proto::job::v1::{Artifact, ListArtifactsRequest};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use tokio::fs;
use tokio::io::AsyncWriteExt as _;

use super::summary::size;
use crate::cli::{Context, Error, Kind, Name};
use crate::client::Client;

/// Files fetched at once.
const PARALLEL: usize = 8;
/// Tries for one file when the connection breaks.
const TRIES: u32 = 3;

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
    let fetched = fetch_all(&client, &artifacts, &folder, &|bytes| bar.inc(bytes)).await;
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

/// Fetches several files at a time.
async fn fetch_all(
    client: &Client,
    artifacts: &[Artifact],
    folder: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let http = client.http()?;
    fs::create_dir_all(folder).await.map_err(|error| Error::file("create", folder, &error))?;
    let root =
        fs::canonicalize(folder).await.map_err(|error| Error::file("find", folder, &error))?;
    let (http, root) = (&http, root.as_path());
    futures::stream::iter(artifacts)
        .map(|artifact| async move { fetch(client, http, artifact, root, progress).await })
        .buffer_unordered(PARALLEL)
        .try_collect::<()>()
        .await
}

/// Where an artifact goes beneath the folder; `None` for a path that leads out of it.
fn place(path: &str) -> Option<PathBuf> {
    let relative = match path.starts_with("named-outputs/") {
        true => PathBuf::from(path),
        false => Path::new("artifacts").join(path.trim_start_matches("./")),
    };
    let inside = !path.is_empty()
        && !path.contains(['\0', '\\'])
        && !path.starts_with('/')
        && relative.components().all(|part| matches!(part, Component::Normal(_)));
    inside.then_some(relative)
}

async fn fetch(
    client: &Client,
    http: &reqwest::Client,
    artifact: &Artifact,
    root: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let outside = || {
        Error::new(
            Kind::Failed,
            format!("the artifact '{}' lies outside of the download folder", artifact.path),
        )
        .help("nothing of it was written; choose another --download-path if a link leads out")
    };
    let to = root.join(place(&artifact.path).ok_or_else(outside)?);
    let parent = to.parent().unwrap_or(root);
    fs::create_dir_all(parent).await.map_err(|error| Error::file("create", parent, &error))?;
    // A link that was in the folder before must not lead the write out of it.
    let real =
        fs::canonicalize(parent).await.map_err(|error| Error::file("find", parent, &error))?;
    if !real.starts_with(root) {
        return Err(outside());
    }
    let mut tries = 1;
    loop {
        let part = part_of(&to);
        match fetch_once(client, http, artifact, &part, progress).await {
            Ok(()) => {
                return fs::rename(&part, &to)
                    .await
                    .map_err(|error| Error::file("write", &to, &error));
            }
            Err(error) => {
                // Nothing half-done stays; whether removing works changes nothing about the error.
                let _ = fs::remove_file(&part).await;
                if error.kind != Kind::Unreachable || tries == TRIES {
                    return Err(error);
                }
                tries += 1;
            }
        }
    }
}

/// Where a file lies until it is whole.
fn part_of(to: &Path) -> PathBuf {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    to.with_file_name(format!(".{name}.part"))
}

async fn fetch_once(
    client: &Client,
    http: &reqwest::Client,
    artifact: &Artifact,
    part: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let target = client.target();
    let url = format!(
        "{}/data/v1/{}/{}",
        target.server,
        encoded(&artifact.datastore),
        encoded(&artifact.key),
    );
    let lost = |error: reqwest::Error| {
        let cause = crate::client::innermost(&error);
        Error::new(Kind::Unreachable, format!("downloading '{}': {cause}", artifact.path))
            .help("run the command again")
    };
    let response = http.get(&url).bearer_auth(target.token.secret()).send().await.map_err(lost)?;
    if !response.status().is_success() {
        return Err(refused(artifact, response).await);
    }
    let file = fs::File::create(part).await.map_err(|error| Error::file("write", part, &error))?;
    let mut file = tokio::io::BufWriter::with_capacity(1 << 20, file);
    let mut body = response.bytes_stream();
    let mut hasher = blake3::Hasher::new();
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(lost)?;
        hasher.update(&bytes);
        file.write_all(&bytes).await.map_err(|error| Error::file("write", part, &error))?;
        progress(bytes.len() as u64);
    }
    file.flush().await.map_err(|error| Error::file("write", part, &error))?;
    if !artifact.digest.is_empty() && hasher.finalize().to_hex().as_str() != artifact.digest {
        let what = format!("'{}' is no longer what the job has written", artifact.path);
        let help = "its object was overwritten since, perhaps by a job with the same output path; \
                    see its versions in your backups, or run the job again";
        return Err(Error::new(Kind::Failed, what).help(help));
    }
    Ok(())
}

/// The gateway's error, as the user sees it.
async fn refused(artifact: &Artifact, response: reqwest::Response) -> Error {
    let status = response.status();
    let kind = match status.as_u16() {
        401 | 403 => Kind::NotAllowed,
        404 | 410 => Kind::NotFound,
        502..=504 => Kind::Unreachable,
        _ => Kind::Failed,
    };
    let body = response.bytes().await.unwrap_or_default();
    let told: Option<String> = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|body| Some(body["error"]["message"].as_str()?.to_owned()));
    let cause = told.unwrap_or_else(|| format!("the daemon answered {status}"));
    Error::new(kind, format!("downloading '{}': {cause}", artifact.path))
}

#[cfg(test)]
mod tests;
