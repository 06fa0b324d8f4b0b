//! Bringing a version's files here.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use atelier_core::asset::Kind;
use atelier_proto::asset::v1::Asset;
use atelier_proto::job::v1::data_uri;
use clap::Args;
use serde_json::json;

use super::{Which, get, reference};
use crate::cli::fs::{Place, into_folder, is_part};
use crate::cli::job::size;
use crate::cli::{Context, Error, Kind as Problem};
use crate::client::data::{Data, Depth, Object, Page};

#[derive(Args)]
pub(in crate::cli) struct Download {
    #[command(flatten)]
    which: Which,
    /// The folder in which a folder of its name is made
    #[arg(short = 'p', long, value_name = "FOLDER", default_value = ".")]
    download_path: PathBuf,
}

pub(in crate::cli) async fn download(
    kind: Kind,
    arguments: &Download,
    context: &Context,
) -> Result<(), Error> {
    let client = context.client().await?;
    let asset = get(kind, &reference(kind, &arguments.which)?, &client).await?;
    let id = format!("azureml:{}:{}", asset.name, asset.version);
    let (data, place) = (Data::of(&client)?, place(&asset, &id)?);
    let all = stored(&place, &id, &data).await?;
    let files = all.len();
    let folder = arguments.download_path.join(&asset.name);
    fs::create_dir_all(&folder).map_err(|error| Error::file("create", &folder, &error))?;
    has_no_others(&folder, &all, &id)?;
    let progress = Progress::open(&arguments.download_path, &asset.name, &id)?;
    let lacking = all.into_iter().filter(|(below, object)| !progress.has(&folder, below, object));
    let lacking: Vec<(String, Object)> = lacking.collect();
    let (fetched, bytes) = (lacking.len(), lacking.iter().map(|(_, object)| object.size).sum());
    let bar = context.output.bar(bytes, "Downloading");
    let done = |object: &Object| progress.note(object);
    let copied = into_folder(&place, lacking, &folder, &data, &bar, &done).await;
    bar.finish_and_clear();
    copied?;
    progress.close()?;
    let plural = if fetched == 1 { "" } else { "s" };
    context.output.note(&format!(
        "Downloaded {fetched} file{plural}, {}, to {}.",
        size(bytes),
        folder.display()
    ));
    context.output.show(&json!({
        "id": id,
        "download_path": folder.display().to_string(),
        "files": files,
        "downloaded_files": fetched,
        "downloaded_bytes": bytes,
    }))
}

/// Where a version lies.
fn place(asset: &Asset, id: &str) -> Result<Place, Error> {
    match asset.uri.as_ref().and_then(|uri| uri.form.as_ref()) {
        Some(data_uri::Form::Datastore(place)) => Ok(Place::new(&place.name, &place.path)),
        Some(data_uri::Form::Http(url)) => {
            Err(Error::new(Problem::Refused, format!("{id} lies on the web, at {url}"))
                .help("fetch it from there"))
        }
        Some(data_uri::Form::Cloud(address)) => {
            Err(Error::new(Problem::Refused, format!("{id} lies in public storage, at {address}"))
                .help(
                    "fetch it with the cloud's own tools, or have an admin make a datastore of it \
                     (anonymous: true) and use 'atelier fs cp'",
                ))
        }
        _ => Err(Error::new(Problem::Failed, format!("{id} lies nowhere that is known"))),
    }
}

/// A version's files, by their paths within it.
async fn stored(place: &Place, id: &str, data: &Data) -> Result<Vec<(String, Object)>, Error> {
    let Page { objects, unnamed, .. } = place.list(data, Depth::All).await?;
    if let Some(lacks) = place.lacks(&unnamed) {
        return Err(Error::new(
            Problem::Refused,
            format!("{id} cannot be downloaded whole: {lacks}"),
        )
        .help(format!("atelier fs cp -r {} . copies everything else", place.uri())));
    }
    let below = |object: Object| match object.path.strip_prefix(&place.path)? {
        // It is a file itself.
        "" => Some((place.name().to_owned(), object)),
        below => Some((below.trim_start_matches('/').to_owned(), object)),
    };
    let files: Vec<(String, Object)> = objects.into_iter().filter_map(below).collect();
    if files.is_empty() {
        let cause = format!("{id}: there is nothing at {}", place.uri());
        return Err(Error::new(Problem::NotFound, cause).help("it was removed, or never written"));
    }
    Ok(files)
}

/// That nothing lies in the folder that the version lacks: of another version, or somebody's own. Files that it has are
/// written over, as az does; with others among them the folder would be no version at all.
fn has_no_others(folder: &Path, all: &[(String, Object)], id: &str) -> Result<(), Error> {
    const SHOWN: usize = 3;
    let mut left = vec![folder.to_owned()];
    let mut others = Vec::new();
    let known: HashSet<&str> = all.iter().map(|(below, _)| below.as_str()).collect();
    while let Some(at) = left.pop() {
        let failed = |error| Error::file("list", &at, &error);
        for entry in fs::read_dir(&at).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let below = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            match entry.file_type().map_err(failed)?.is_dir() {
                true => left.push(path),
                // What an earlier download has of a file.
                false if is_part(&entry.file_name()) || known.contains(below.as_str()) => {}
                false => others.push(below),
            }
        }
    }
    others.sort_unstable();
    let Some(more) = others.len().checked_sub(1) else { return Ok(()) };
    let shown = others.iter().take(SHOWN).map(|name| format!("'{name}'"));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let rest =
        if more >= SHOWN { format!(" and {} more", others.len() - SHOWN) } else { String::new() };
    let cause = format!("{} holds what {id} has not: {shown}{rest}", folder.display());
    let help = "remove the folder if it is of another version, or choose another place with --download-path";
    Err(Error::new(Problem::Refused, cause).help(help))
}

/// Which files of a download are there, for another one that goes on after it. A file beside the folder, gone once
/// all are there: in the folder it could be one of the asset's own.
struct Progress {
    path: PathBuf,
    /// What tells their contents from others, by the objects' paths.
    done: HashMap<String, String>,
}

impl Progress {
    /// Goes on with a download of the same version, or begins one.
    fn open(beside: &Path, name: &str, id: &str) -> Result<Self, Error> {
        let path = beside.join(format!(".{name}.atelier-download"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        if lines.next() == Some(id) {
            let noted = lines.filter_map(|line| line.split_once('\t'));
            let done = noted.map(|(etag, path)| (path.to_owned(), etag.to_owned())).collect();
            return Ok(Self { path, done });
        }
        fs::write(&path, format!("{id}\n")).map_err(|error| Error::file("write", &path, &error))?;
        Ok(Self { path, done: HashMap::new() })
    }

    /// Whether the file came here in a download before, as it is in the workspace now.
    fn has(&self, folder: &Path, below: &str, object: &Object) -> bool {
        self.done.get(&object.path) == Some(&object.etag)
            && fs::symlink_metadata(folder.join(below))
                .is_ok_and(|found| found.is_file() && found.len() == object.size)
    }

    /// A file is there. If that cannot be noted, it is fetched again next time.
    fn note(&self, object: &Object) {
        if let Ok(mut file) = OpenOptions::new().append(true).open(&self.path) {
            let _ = writeln!(file, "{}\t{}", object.etag, object.path);
        }
    }

    fn close(self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            // Another download of it, at the same time, has ended before.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::file("remove", &self.path, &error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_downloads_at_once_both_end_well() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Progress::open(folder.path(), "iris", "azureml:iris:1").unwrap();
        let both = [open(), open()];
        for progress in both {
            progress.close().unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
