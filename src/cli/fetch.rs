//! Files that the daemon gives, brought beneath a folder here.

use std::path::{Component, Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::fs;

use super::fs::Part;
use super::{Error, Kind};
use crate::client::Client;

/// Files fetched at once.
const PARALLEL: usize = 16;
/// Tries for one file when the connection breaks.
const TRIES: u32 = 3;

/// A file that is wanted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its name in errors.
    pub(super) name: String,
    /// Where it goes beneath the folder; see [`beneath`]. `None`: it would lead out of it.
    pub(super) place: Option<PathBuf>,
    /// Its path on the daemon, with all that is not as it is in a path encoded.
    pub(super) path: String,
    /// BLAKE3 of its bytes, in hex. Empty: nobody knows.
    pub(super) digest: String,
}

/// A path that stays beneath a folder, whatever the folder.
pub(super) fn beneath(path: &Path) -> Option<PathBuf> {
    let inside = !path.as_os_str().is_empty()
        && !path.to_string_lossy().contains(['\0', '\\'])
        && path.components().all(|part| matches!(part, Component::Normal(_)));
    inside.then(|| path.to_owned())
}

/// Fetches several files at a time; `progress` is told of bytes.
pub(super) async fn all(
    client: &Client,
    files: &[Wanted],
    folder: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let http = client.http()?;
    fs::create_dir_all(folder).await.map_err(|error| Error::file("create", folder, &error))?;
    let root =
        fs::canonicalize(folder).await.map_err(|error| Error::file("find", folder, &error))?;
    let (http, root) = (&http, root.as_path());
    futures::stream::iter(files)
        .map(|file| async move { fetch(client, http, file, root, progress).await })
        .buffer_unordered(PARALLEL)
        .try_collect::<()>()
        .await
}

async fn fetch(
    client: &Client,
    http: &reqwest::Client,
    file: &Wanted,
    root: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let outside = || {
        let what = format!("the artifact '{}' lies outside of the download folder", file.name);
        Error::new(Kind::Failed, what)
            .help("nothing of it was written; choose another --download-path if a link leads out")
    };
    let to = root.join(file.place.as_ref().ok_or_else(outside)?);
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
        match fetch_once(client, http, file, &to, progress).await {
            Err(error) if error.kind == Kind::Unreachable && tries < TRIES => tries += 1,
            fetched => return fetched,
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
    wanted: &Wanted,
    to: &Path,
    progress: &dyn Fn(u64),
) -> Result<(), Error> {
    let target = client.target();
    let url = format!("{}/{}", target.server.trim_end_matches('/'), wanted.path);
    let lost = |error: reqwest::Error| {
        let cause = crate::client::innermost(&error);
        Error::new(Kind::Unreachable, format!("downloading '{}': {cause}", wanted.name))
            .help("run the command again")
    };
    let unwritten = |error| Error::file("write", to, &error);
    let response = http.get(&url).bearer_auth(target.token.secret()).send().await.map_err(lost)?;
    if !response.status().is_success() {
        return Err(refused(wanted, response).await);
    }
    let mut part = Part::open(part_of(to)).map_err(unwritten)?;
    // Nothing half-done stays, and what a command that was killed has left is not gone on with.
    part.forget();
    part.empty().await.map_err(unwritten)?;
    let mut body = response.bytes_stream();
    let mut hasher = blake3::Hasher::new();
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(lost)?;
        hasher.update(&bytes);
        part.write(&bytes).await.map_err(unwritten)?;
        progress(bytes.len() as u64);
    }
    part.flush().await.map_err(unwritten)?;
    if !wanted.digest.is_empty() && hasher.finalize().to_hex().as_str() != wanted.digest {
        let what = format!("'{}' is no longer what the job has written", wanted.name);
        let help = "its object was overwritten since, perhaps by a job with the same output path; \
                    see its versions in your backups, or run the job again";
        return Err(Error::new(Kind::Failed, what).help(help));
    }
    part.become_file(to).map_err(unwritten)
}

/// The daemon's refusal, as the user sees it: the gateway's, or that of MLflow's API.
async fn refused(file: &Wanted, response: reqwest::Response) -> Error {
    let status = response.status();
    let kind = match status.as_u16() {
        401 | 403 => Kind::NotAllowed,
        404 | 410 => Kind::NotFound,
        502..=504 => Kind::Unreachable,
        _ => Kind::Failed,
    };
    let body = response.bytes().await.unwrap_or_default();
    let told = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
    let message = told["error"]["message"].as_str().or(told["message"].as_str());
    let cause = message.map_or_else(|| format!("the daemon answered {status}"), str::to_owned);
    Error::new(kind, format!("downloading '{}': {cause}", file.name))
}
