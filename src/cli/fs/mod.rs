//! `atelier fs`: files in datastores.

mod copy;
mod part;
mod place;
mod plan;

use std::collections::BTreeMap;

use atelier_core::layout;
use atelier_proto::asset::v1::{AssetKind, ListAssetsAtRequest};
use atelier_proto::workspace::v1::ListDatastoresRequest;
use clap::{Args, Subcommand};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use super::job::{size, time};
use super::{Column, Context, Error, Kind};
use crate::client::Client;
use crate::client::data::{Data, Depth, Object};
pub(super) use copy::into_folder;
pub(super) use part::{Part, is_part};
use place::Look;
pub(super) use place::Place;

/// Objects removed at once.
const AT_ONCE: usize = 16;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List what lies in a folder of a datastore
    #[command(after_help = "\
Examples:
  atelier fs ls                                                the datastores
  atelier fs ls azureml://datastores/workspaceblobstore/paths/
  atelier fs ls 'azureml://datastores/datasets/paths/**/*.csv'
  atelier fs ls -r azureml://jobs/calm_apple_x1/outputs/model")]
    Ls(Ls),
    /// Copy files to, from and between datastores
    ///
    /// A folder becomes a folder in the target if that ends with '/' or is one, else the target itself. What was
    /// broken off goes on where it was when the command is run again.
    #[command(after_help = "\
Examples:
  atelier fs cp train.csv azureml://datastores/datasets/paths/raw/
  atelier fs cp -r images azureml://datastores/datasets/paths/images
  atelier fs cp 'azureml://datastores/datasets/paths/raw/*.csv' .
  atelier fs cp -r azureml://jobs/calm_apple_x1/outputs/model ./model")]
    Cp(copy::Arguments),
    /// Print files of datastores
    #[command(
        after_help = "Example:\n  atelier fs cat azureml://datastores/datasets/paths/README.md"
    )]
    Cat {
        /// What to print, one after the other; patterns may be given
        #[arg(value_name = "URI", required = true)]
        uris: Vec<String>,
    },
    /// Remove files from datastores
    #[command(after_help = "\
Examples:
  atelier fs rm azureml://datastores/datasets/paths/raw/train.csv
  atelier fs rm -r --yes azureml://datastores/datasets/paths/raw")]
    Rm(Rm),
}

#[derive(Args)]
pub(super) struct Ls {
    /// What to list; patterns (*, ?, [a-z], {a,b}, **) may be given [default: the datastores]
    #[arg(value_name = "URI")]
    uris: Vec<String>,
    /// Everything below, rather than the folder's own
    #[arg(short, long)]
    recursive: bool,
}

#[derive(Args)]
pub(super) struct Rm {
    /// What to remove; patterns may be given
    #[arg(value_name = "URI", required = true)]
    uris: Vec<String>,
    /// Folders with all that lies below them
    #[arg(short, long)]
    recursive: bool,
    /// Ask nothing, whatever data assets and models are made of it
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let data = Data::of(&client)?;
    match command {
        Command::Ls(arguments) => ls(&arguments, &client, &data, context).await,
        Command::Cp(arguments) => copy::run(arguments, &client, &data, context).await,
        Command::Cat { uris } => cat(&uris, &client, &data, context).await,
        Command::Rm(arguments) => rm(&arguments, &client, &data, context).await,
    }
}

/// What is found: an object, or a folder by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Object(Object),
    Folder(String),
}

impl Entry {
    fn path(&self) -> &str {
        match self {
            Self::Object(object) => &object.path,
            Self::Folder(path) => path,
        }
    }
}

/// What a pattern matches, or the one thing that is at the path; and in words, what lies where a pattern was looked
/// for and cannot be named.
async fn found(
    place: &Place,
    data: &Data,
    context: &Context,
) -> Result<(Vec<Entry>, Option<String>), Error> {
    let Some((base, glob)) = place.pattern()? else {
        return match place.look(data).await? {
            Look::Object(object) => Ok((vec![Entry::Object(object)], None)),
            Look::Folder => Ok((vec![Entry::Folder(place.path.clone())], None)),
            Look::Nothing => Err(place.missing()),
        };
    };
    let page = base.list(data, place.depth(&base)).await?;
    let lacks = base.lacks(&page.unnamed);
    let folders = page.folders.into_iter().map(Entry::Folder);
    let objects = page.objects.into_iter().map(Entry::Object);
    let mut found: Vec<Entry> =
        folders.chain(objects).filter(|entry| glob.is_match(entry.path())).collect();
    if found.is_empty() {
        // A name may have such signs itself.
        match place.look(data).await? {
            Look::Object(object) => found.push(Entry::Object(object)),
            Look::Folder => found.push(Entry::Folder(place.path.clone())),
            Look::Nothing => {
                warn(lacks.as_deref(), context);
                let cause = format!("nothing matches {}", place.uri());
                let help = format!("see what there is: atelier fs ls {}", base.uri());
                return Err(Error::new(Kind::NotFound, cause).help(help));
            }
        }
    }
    found.sort_by(|a, b| a.path().cmp(b.path()));
    Ok((found, lacks))
}

fn warn(lacks: Option<&str>, context: &Context) {
    if let Some(lacks) = lacks {
        context.output.warn(lacks);
    }
}

async fn ls(arguments: &Ls, client: &Client, data: &Data, context: &Context) -> Result<(), Error> {
    let mut rows = Vec::new();
    if arguments.uris.is_empty() {
        let request = ListDatastoresRequest {};
        let answer = client.call(client.workspace().list_datastores(request)).await?;
        rows.extend(answer.datastores.iter().map(|datastore| {
            let uri = layout::datastore_uri(&datastore.name, "");
            json!({ "name": uri, "type": "datastore", "uri": uri })
        }));
    }
    let depth = if arguments.recursive { Depth::All } else { Depth::Level };
    for uri in &arguments.uris {
        let place = Place::read(uri, client).await?;
        let is_pattern = place.pattern()?.is_some();
        let (entries, lacks) = found(&place, data, context).await?;
        warn(lacks.as_deref(), context);
        for entry in entries {
            match entry {
                Entry::Folder(path) if arguments.recursive || !is_pattern => {
                    let folder = Place { path, folder: true, ..place.clone() };
                    let page = folder.list(data, depth).await?;
                    warn(folder.lacks(&page.unnamed).as_deref(), context);
                    let folders = page.folders.into_iter().map(Entry::Folder);
                    let mut inner: Vec<Entry> =
                        folders.chain(page.objects.into_iter().map(Entry::Object)).collect();
                    inner.sort_by(|a, b| a.path().cmp(b.path()));
                    rows.extend(inner.iter().map(|entry| row(&folder, entry)));
                }
                entry => {
                    let (base, _) = place.path.rsplit_once('/').unwrap_or_default();
                    let base = place.pattern()?.map_or(base.to_owned(), |(base, _)| base.path);
                    rows.push(row(&Place { path: base, folder: true, ..place.clone() }, &entry));
                }
            }
        }
    }
    context.output.list(rows, COLUMNS)
}

/// An entry with its name below a folder.
fn row(folder: &Place, entry: &Entry) -> Value {
    let below = entry.path().strip_prefix(folder.path.as_str()).unwrap_or(entry.path());
    let name = below.trim_start_matches('/');
    match entry {
        Entry::Folder(path) => json!({
            "name": format!("{name}/"),
            "type": "folder",
            "uri": format!("{}/", folder.uri_of(path)),
        }),
        Entry::Object(object) => json!({
            "name": name,
            "type": "file",
            "bytes": object.size,
            "modified": time(object.modified),
            "etag": object.etag,
            "uri": folder.uri_of(&object.path),
        }),
    }
}

const COLUMNS: &[Column] = &[
    Column { title: "SIZE", cell: |entry| Some(size(entry["bytes"].as_u64()?)) },
    Column { title: "MODIFIED", cell: |entry| super::output::moment(&entry["modified"]) },
    Column { title: "NAME", cell: |entry| Some(entry["name"].as_str()?.to_owned()) },
];

async fn cat(
    uris: &[String],
    client: &Client,
    data: &Data,
    context: &Context,
) -> Result<(), Error> {
    for uri in uris {
        let place = Place::read(uri, client).await?;
        let (entries, lacks) = found(&place, data, context).await?;
        warn(lacks.as_deref(), context);
        for entry in entries {
            let Entry::Object(object) = entry else {
                let cause = format!("{} is a folder", place.uri_of(entry.path()));
                return Err(
                    Error::new(Kind::Refused, cause).help("name a file; see `atelier fs ls`")
                );
            };
            let at = Place { path: object.path.clone(), folder: false, ..place.clone() };
            print(&at, &object, data, context).await?;
        }
    }
    Ok(())
}

/// Prints an object; a connection that breaks is made again, and printing goes on.
async fn print(
    place: &Place,
    object: &Object,
    data: &Data,
    context: &Context,
) -> Result<(), Error> {
    let printed = std::cell::Cell::new(0_u64);
    while printed.get() < object.size {
        let before = printed.get();
        let read = crate::client::data::again(async || {
            data.read(&place.datastore, &object.path, printed.get(), Some(&object.etag)).await
        });
        let mut body = read.await.map_err(|error| place.failed("reading", &error))?.bytes_stream();
        loop {
            match body.next().await {
                Some(Ok(bytes)) => {
                    context.output.bytes(&bytes)?;
                    printed.set(printed.get() + bytes.len() as u64);
                }
                // What came counts; without anything the connection is not worth another try.
                Some(Err(error)) if printed.get() == before => {
                    let lost = crate::client::data::Error::Lost(crate::client::innermost(&error));
                    return Err(place.failed("reading", &lost));
                }
                Some(Err(_)) | None => break,
            }
        }
    }
    Ok(())
}

/// Some of the data and models that are made of what lies at these places, or below them.
async fn assets_at(all: &[(Place, Entry)], client: &Client) -> Result<Vec<String>, Error> {
    /// The daemon is asked of so many places at once.
    const PLACES: usize = 1000;
    let mut by_store: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (place, _) in all {
        let paths = by_store.entry(&place.datastore).or_default();
        paths.push(place.path.trim_end_matches('/').to_owned());
    }
    let mut named = Vec::new();
    for (datastore, paths) in by_store {
        for paths in paths.chunks(PLACES) {
            let (datastore, paths) = (datastore.to_owned(), paths.to_vec());
            let request = ListAssetsAtRequest { datastore, paths };
            let answer = client.call(client.assets().list_assets_at(request)).await?;
            named.extend(answer.assets.iter().map(|asset| {
                let kind = if asset.kind() == AssetKind::Model { "model" } else { "data asset" };
                format!("{kind} '{}:{}'", asset.name, asset.version)
            }));
            if !named.is_empty() {
                return Ok(named);
            }
        }
    }
    Ok(named)
}

async fn rm(arguments: &Rm, client: &Client, data: &Data, context: &Context) -> Result<(), Error> {
    let (mut all, mut stay): (Vec<(Place, Entry)>, Vec<String>) = Default::default();
    for uri in &arguments.uris {
        let place = Place::read(uri, client).await?;
        let (entries, lacks) = found(&place, data, context).await?;
        stay.extend(lacks);
        for entry in entries {
            let folder = matches!(entry, Entry::Folder(_));
            let at = Place { path: entry.path().to_owned(), folder, ..place.clone() };
            if folder && at.path.is_empty() {
                let cause = format!("{} is a whole datastore", at.uri());
                return Err(Error::new(Kind::Refused, cause)
                    .help(format!("name what is to go, for example {}", at.uri_of("*"))));
            }
            if folder && !arguments.recursive {
                return Err(Error::new(Kind::Refused, format!("{} is a folder", at.uri()))
                    .help("add -r to remove it with all that lies below it"));
            }
            all.push((at, entry));
        }
    }
    let folders = all.iter().filter(|(place, _)| place.folder).count();
    let assets = assets_at(&all, client).await?;
    if !assets.is_empty() {
        context.output.warn(&format!("what is to go is, or is part of, {}", assets.join(", ")));
    }
    if (folders > 0 || !assets.is_empty()) && !arguments.yes {
        let what = match all.as_slice() {
            [(one, _)] => one.uri(),
            more => format!("{} folders and {} files", folders, more.len() - folders),
        };
        context.confirmed(&format!("Remove {what}?"), "atelier fs rm -r --yes URI…")?;
    }
    let left: Vec<Option<String>> = futures::stream::iter(&all)
        .map(|(place, entry)| async move {
            let recursive = matches!(entry, Entry::Folder(_));
            let gone = data.delete(&place.datastore, &place.path, recursive).await;
            let stays = gone.map_err(|error| place.failed("removing", &error))?;
            Ok::<_, Error>(place.lacks(&stays))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    stay.extend(left.into_iter().flatten());
    if !stay.is_empty() {
        let cause = format!("not all of it was removed: {}", stay.join("; "));
        return Err(Error::new(Kind::Refused, cause)
            .help("everything else is gone; remove these with the store's own tools"));
    }
    let (one, many) = (all.first(), all.len());
    context.output.note(&match (one, many) {
        (Some((place, _)), 1) => format!("Removed {}.", place.uri()),
        _ => format!("Removed {} files and {folders} folders.", many - folders),
    });
    Ok(())
}
