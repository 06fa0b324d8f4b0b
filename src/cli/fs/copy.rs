//! `atelier fs cp`

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use atelier_core::content::Digest;
use bytes::Bytes;
use clap::Args;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use serde_json::json;

use super::part::Part;
use super::place::{self, Look, Place};
use super::plan::{Item, Source, Target, Transfer, plan};
use super::{Entry, found};
use crate::cli::job::size;
use crate::cli::upload::{FoundFile, Stat, object};
use crate::cli::{Context, Error, Kind};
use crate::client::data::{self, Data, Depth, Object, Stored, again};
use crate::client::{Client, innermost};

/// Files copied at once.
const AT_ONCE: usize = 16;
/// Folders in one another that are gone through at most.
const MAX_DEPTH: usize = 256;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// What to copy, and where to: files and folders of this machine, or azureml:// URIs, in which patterns may be given
    #[arg(value_name = "SOURCE… TARGET", required = true)]
    paths: Vec<String>,
    /// Folders with all that lies below them
    #[arg(short, long)]
    recursive: bool,
}

/// What copying needs.
struct Copying<'a> {
    data: &'a Data,
    bar: ProgressBar,
}

/// Of a file of this machine that was to be copied on this machine: its target may be the file itself, which would
/// empty it.
fn both_here(source: &str) -> Error {
    let cause = format!("{source} and the target both lie on this machine");
    Error::usage(cause)
        .help("copy between folders of this machine with `cp`, and the others by themselves")
}

pub(super) async fn run(
    arguments: Arguments,
    client: &Client,
    data: &Data,
    context: &Context,
) -> Result<(), Error> {
    let Arguments { paths: mut sources, recursive } = arguments;
    let named = sources.pop().unwrap_or_default();
    if sources.is_empty() {
        return Err(Error::usage("there is no target").help("write atelier fs cp SOURCE… TARGET"));
    }
    if !place::is_remote(&named) && !sources.iter().any(|source| place::is_remote(source)) {
        let cause = "neither the sources nor the target lie in a datastore";
        return Err(Error::usage(cause).help("name one as azureml://datastores/NAME/paths/PATH"));
    }
    if !place::is_remote(&named)
        && let Some(source) = sources.iter().find(|source| !place::is_remote(source))
    {
        return Err(both_here(source));
    }
    let target = match place::is_remote(&named) {
        true => Target::Remote(Place::read(&named, client).await?),
        false => Target::Local(PathBuf::from(&named)),
    };
    let (mut items, mut lacking) = (Vec::new(), Vec::new());
    for source in &sources {
        match place::is_remote(source) {
            true => {
                let (found, lacks) = remote(source, recursive, client, data, context).await?;
                items.extend(found);
                lacking.extend(lacks);
            }
            false => items.push(local(Path::new(source), recursive)?),
        }
    }
    let into_folder = items.len() > 1 || is_folder(&target, &named, data).await?;
    let transfers = plan(items, &target, into_folder)?;
    let (files, bytes) =
        (transfers.len(), transfers.iter().map(|transfer| transfer.from.bytes()).sum());
    if files == 0 {
        context.output.warn("there are no files in it; empty folders are not kept in datastores");
    }
    if let Target::Local(root) = &target
        && (into_folder || files > 1)
    {
        fs::create_dir_all(root).map_err(|error| Error::file("create", root, &error))?;
    }
    let bar = context.output.bar(bytes, "Copying");
    let copying = Copying { data, bar: bar.clone() };
    let copied = futures::stream::iter(&transfers)
        .map(|transfer| copying.one(transfer, &target))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await;
    bar.finish_and_clear();
    copied?;
    let plural = if files == 1 { "" } else { "s" };
    context.output.note(&format!("Copied {files} file{plural}, {}, to {named}.", size(bytes)));
    context.output.show(&json!({ "target": named, "files": files, "bytes": bytes }))?;
    if lacking.is_empty() {
        return Ok(());
    }
    let cause = format!("not all of it was copied: {}", lacking.join("; "));
    Err(Error::new(Kind::Refused, cause).help("everything else was copied"))
}

/// What is there of a datastore's that is to be copied, and in words what of it cannot be.
async fn remote(
    source: &str,
    recursive: bool,
    client: &Client,
    data: &Data,
    context: &Context,
) -> Result<(Vec<Item>, Vec<String>), Error> {
    let place = Place::read(source, client).await?;
    let (entries, lacks) = found(&place, data, context).await?;
    let (mut items, mut lacking): (_, Vec<String>) = (Vec::new(), lacks.into_iter().collect());
    for entry in entries {
        let at = Place { path: entry.path().to_owned(), folder: false, ..place.clone() };
        let name = at.name().to_owned();
        let files = match entry {
            Entry::Object(object) => vec![(String::new(), Source::Object(at, object))],
            Entry::Folder(_) if !recursive => return Err(folder_refused(&at.uri())),
            Entry::Folder(_) => {
                let (files, lacks) = below(&at, data).await?;
                lacking.extend(lacks);
                files
            }
        };
        items.push(Item { name, files });
    }
    Ok((items, lacking))
}

fn folder_refused(what: &str) -> Error {
    Error::new(Kind::Refused, format!("{what} is a folder"))
        .help("add -r to copy it with all that lies below it")
}

async fn below(
    folder: &Place,
    data: &Data,
) -> Result<(Vec<(String, Source)>, Option<String>), Error> {
    let page = folder.list(data, Depth::All).await?;
    let lacks = folder.lacks(&page.unnamed);
    let with_place = |object: Object| {
        let below = object.path.strip_prefix(folder.path.as_str()).unwrap_or(&object.path);
        let below = below.trim_start_matches('/').to_owned();
        let at = Place { path: object.path.clone(), ..folder.clone() };
        (below, Source::Object(at, object))
    };
    Ok((page.objects.into_iter().map(with_place).collect(), lacks))
}

/// A file of this machine, or a folder's files.
fn local(path: &Path, recursive: bool) -> Result<Item, Error> {
    let failed = |error: io::Error| Error::file("read", path, &error);
    let real = fs::canonicalize(path).map_err(failed)?;
    let meta = fs::metadata(&real).map_err(failed)?;
    let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if meta.is_file() {
        let stat = Stat::of(&meta);
        let file = FoundFile { path: real, relative: path.to_owned(), stat };
        return Ok(Item { name, files: vec![(String::new(), Source::File(file))] });
    }
    if !meta.is_dir() {
        return Err(Error::new(Kind::Refused, format!("{} is no file", path.display())));
    }
    if !recursive {
        return Err(folder_refused(&path.display().to_string()));
    }
    let mut files = Vec::new();
    walk(&real, &real, "", 0, &mut files)?;
    Ok(Item { name, files })
}

/// Adds the files below a folder. Links to files within it are followed, others are refused.
fn walk(
    root: &Path,
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<(String, Source)>,
) -> Result<(), Error> {
    let refused = |path: &Path, why: &str| {
        let cause = format!("{} cannot be copied: {why}", path.display());
        Error::new(Kind::Refused, cause).help("nothing was copied; copy the rest by itself")
    };
    if depth > MAX_DEPTH {
        return Err(refused(folder, &format!("it lies more than {MAX_DEPTH} folders deep")));
    }
    let failed = |error: io::Error| Error::file("read", folder, &error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(refused(&path, "its name is not UTF-8"));
        };
        let below = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let failed = |error: io::Error| Error::file("read", &path, &error);
        let real = fs::canonicalize(&path).map_err(failed)?;
        let meta = fs::metadata(&real).map_err(failed)?;
        let is_link = real != path;
        if is_link && (meta.is_dir() || !real.starts_with(root)) {
            return Err(refused(
                &path,
                "it is a link to a folder, or out of the folder that is copied",
            ));
        }
        if meta.is_dir() {
            walk(root, &path, &below, depth + 1, files)?;
        } else if meta.is_file() {
            let (relative, stat) = (PathBuf::from(&below), Stat::of(&meta));
            files.push((below, Source::File(FoundFile { path: real, relative, stat })));
        } else {
            return Err(refused(&path, "it is neither a file nor a folder"));
        }
    }
    Ok(())
}

/// Copies objects of a place into a folder of this machine, each by its path there; `done` hears of each that is there.
pub(in crate::cli) async fn into_folder(
    place: &Place,
    objects: Vec<(String, Object)>,
    folder: &Path,
    data: &Data,
    bar: &ProgressBar,
    done: &dyn Fn(&Object),
) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|error| Error::file("create", folder, &error))?;
    let sources =
        objects.into_iter().map(|(below, object)| (below, Source::Object(place.clone(), object)));
    let item = Item { name: String::new(), files: sources.collect() };
    let target = Target::Local(folder.to_owned());
    let transfers = plan(vec![item], &target, false)?;
    let copying = &Copying { data, bar: bar.clone() };
    futures::stream::iter(&transfers)
        .map(|transfer| async {
            copying.one(transfer, &target).await?;
            if let Source::Object(_, object) = &transfer.from {
                done(object);
            }
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
}

/// Whether what is copied goes into the target rather than in its place.
async fn is_folder(target: &Target, named: &str, data: &Data) -> Result<bool, Error> {
    match target {
        Target::Local(path) => Ok(named.ends_with('/') || path.is_dir()),
        Target::Remote(place) if place.folder => Ok(true),
        Target::Remote(place) => Ok(place.look(data).await? == Look::Folder),
    }
}

impl Copying<'_> {
    async fn one(&self, transfer: &Transfer, target: &Target) -> Result<(), Error> {
        match (&transfer.from, &transfer.to) {
            (Source::File(file), Target::Remote(to)) => self.upload(file, to).await,
            (Source::Object(from, object), Target::Local(to)) => {
                let root = match target {
                    Target::Local(root) if root != to => Some(root.as_path()),
                    _ => None,
                };
                self.download(from, object, to, root).await
            }
            (Source::Object(from, object), Target::Remote(to)) => {
                self.across(from, object, to).await
            }
            // Refused before anything was copied.
            (Source::File(file), Target::Local(_)) => Err(both_here(&file.path.to_string_lossy())),
        }
    }

    async fn upload(&self, file: &FoundFile, to: &Place) -> Result<(), Error> {
        fs::File::open(&file.path).map_err(|error| Error::file("read", &file.path, &error))?;
        let bar = self.bar.clone();
        let (sent, back) = (move |bytes| bar.inc(bytes), |bytes| self.bar.dec(bytes));
        let sent = object::store(self.data, file, &to.datastore, &to.path, sent, back).await;
        let changed = || data::Error::Refused { status: 409, message: CHANGED.to_owned() };
        let sent = sent.and_then(|stored| stored.ok_or_else(changed));
        stored(&file.relative.display().to_string(), to, sent)
    }

    /// Reads an object into a new file, which gets its name when it is whole. What was read before a connection broke,
    /// by this command or an earlier one, is not read again; what another command is reading it reads too.
    async fn download(
        &self,
        from: &Place,
        object: &Object,
        to: &Path,
        root: Option<&Path>,
    ) -> Result<(), Error> {
        let parent = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let failed = |doing: &'static str, path: PathBuf| {
            move |error: io::Error| Error::file(doing, &path, &error)
        };
        fs::create_dir_all(parent).map_err(failed("create", parent.to_owned()))?;
        // A link that was in the folder before must not lead the write out of it.
        let real = |path: &Path| fs::canonicalize(path).map_err(failed("find", path.to_owned()));
        if let Some(root) = root
            && !real(parent)?.starts_with(real(root)?)
        {
            let cause = format!("{} leads out of {}", to.display(), root.display());
            return Err(Error::new(Kind::Refused, cause)
                .help("it was not written; choose another target, without links that lead out"));
        }
        if to.is_dir() {
            let cause = format!("{} is a folder, and {} is a file", to.display(), from.uri());
            return Err(Error::new(Kind::Refused, cause).help("choose another target"));
        }
        let unwritten = failed("write", to.to_owned());
        let mut part = Part::open(part_of(parent, from, object)).map_err(&unwritten)?;
        let already = part.length().await.map_err(&unwritten)?;
        self.bar.inc(already.min(object.size));
        let read = again(async || self.rest(from, object, &mut part).await).await;
        read.map_err(|error| from.failed("copying", &error))?;
        part.become_file(to).map_err(unwritten)
    }

    /// Reads on where the part ends.
    async fn rest(
        &self,
        from: &Place,
        object: &Object,
        part: &mut Part,
    ) -> Result<(), data::Error> {
        let mut have = part.length().await.map_err(unwritten)?;
        if have > object.size {
            part.empty().await.map_err(unwritten)?;
            have = 0;
        }
        if have < object.size {
            let read =
                self.data.read(&from.datastore, &object.path, have, Some(&object.etag)).await;
            let body = match read {
                Ok(answer) => answer.bytes_stream(),
                Err(data::Error::Refused { status: 412, .. }) => {
                    part.forget();
                    let message = CHANGED.to_owned();
                    return Err(data::Error::Refused { status: 412, message });
                }
                Err(error) => return Err(error),
            };
            let poured = self.pour(body, part).await;
            // Where the next try goes on is known once what came is in the file.
            part.flush().await.map_err(unwritten)?;
            poured?;
        }
        match part.length().await.map_err(unwritten)? {
            length if length == object.size => Ok(()),
            length => {
                let came = format!("{length} bytes of the object came instead of {}", object.size);
                Err(data::Error::Lost(came))
            }
        }
    }

    async fn pour(
        &self,
        mut body: impl Stream<Item = reqwest::Result<Bytes>> + Unpin,
        part: &mut Part,
    ) -> Result<(), data::Error> {
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| data::Error::Lost(innermost(&error)))?;
            part.write(&bytes).await.map_err(unwritten)?;
            self.bar.inc(bytes.len() as u64);
        }
        Ok(())
    }

    /// From a datastore to another, or to another place of it.
    async fn across(&self, from: &Place, object: &Object, to: &Place) -> Result<(), Error> {
        let copied = again(async || {
            let read = self.data.read(&from.datastore, &object.path, 0, Some(&object.etag)).await?;
            let bytes = read.bytes_stream();
            let stored = self.data.write(&to.datastore, &to.path, object.size, bytes).await?;
            self.bar.inc(object.size);
            Ok(stored)
        });
        stored(&from.uri(), to, copied.await)
    }
}

/// That what was sent to a place is there.
fn stored(what: &str, to: &Place, sent: Result<Stored, data::Error>) -> Result<(), Error> {
    let what = format!("{what} to {}", to.uri());
    match sent.map_err(|error| place::failed("copying", &what, &error))? {
        Stored::AsSent => Ok(()),
        Stored::Otherwise => {
            let cause = format!("copying {what}: the daemon has stored other bytes than were sent");
            Err(Error::new(Kind::Failed, cause).help(
                "what lies there now is spoiled: run the command again, which stores it anew; if it ends so again, \
                 check the memory of this machine and of the daemon's, and what lies between them",
            ))
        }
    }
}

const CHANGED: &str =
    "it has changed while it was copied; stop what writes to it, then run the command again";

/// Where a file lies until it is whole: found again by another try to read the same object.
fn part_of(folder: &Path, from: &Place, object: &Object) -> PathBuf {
    let whole = format!("{} {}", from.uri_of(&object.path), object.etag);
    let digest = Digest::of(whole.as_bytes()).to_string();
    folder.join(format!(".{}.part", &digest[..16]))
}

/// A file of this machine that cannot be written is no fault of the connection.
fn unwritten(error: io::Error) -> data::Error {
    data::Error::Refused { status: 400, message: format!("it cannot be written: {error}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsString;
    use std::os::unix::fs::symlink;

    use atelier_proto::STORED;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::put;
    use tokio::net::TcpListener;

    use super::*;
    use crate::cli::testing::RealDaemon;
    use crate::client::Wanted;

    const STORE: &str = "workspacefilestore";

    fn place(path: &str) -> Place {
        Place { datastore: STORE.into(), path: path.into(), folder: false }
    }

    /// Stores the object `large`.
    async fn store(data: &Data, bytes: Vec<u8>) -> Object {
        let length = bytes.len() as u64;
        let bytes = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(bytes))]);
        let stored = data.write(STORE, "large", length, bytes).await.unwrap();
        assert_eq!(stored, Stored::AsSent);
        let page = data.page(STORE, "large", None, Depth::All).await.unwrap();
        page.objects.into_iter().next().unwrap()
    }

    async fn copy(data: &Data, to: &Path) -> Result<(), Error> {
        let place = place("large");
        let Look::Object(object) = place.look(data).await? else { panic!("it is not there") };
        let copying = Copying { data, bar: ProgressBar::hidden() };
        copying.download(&place, &object, to, None).await
    }

    fn names(folder: &Path) -> BTreeSet<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_read_before_is_not_read_again() {
        let daemon = RealDaemon::start().await;
        let data = Data::of(&daemon.client().await).unwrap();
        let place = place("large");
        let object = store(&data, vec![7; 1000]).await;
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("large");
        // Other bytes than the object's, to be told from those that are read now.
        fs::write(part_of(folder.path(), &place, &object), [1; 400]).unwrap();
        copy(&data, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), [vec![1; 400], vec![7; 600]].concat());
        // All of it, and more than there is.
        fs::write(part_of(folder.path(), &place, &object), [2; 1000]).unwrap();
        copy(&data, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), [2; 1000]);
        fs::write(part_of(folder.path(), &place, &object), [3; 1001]).unwrap();
        copy(&data, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), [7; 1000]);
        // Of another object that had the path nothing is taken, also if it was as long.
        let stale = part_of(folder.path(), &place, &object);
        fs::write(&stale, [4; 400]).unwrap();
        for now in [vec![8; 1000], vec![9; 900]] {
            store(&data, now.clone()).await;
            copy(&data, &to).await.unwrap();
            assert_eq!(fs::read(&to).unwrap(), now);
        }
        // Two objects may have the same tag: it is of their bytes in some stores.
        let other = Object { path: "other".into(), ..object.clone() };
        let parts = [&object, &other].map(|object| part_of(folder.path(), &place, object));
        assert_ne!(parts[0], parts[1]);
        // One that changes between the look and the read.
        let copying = Copying { data: &data, bar: ProgressBar::hidden() };
        let error = copying.download(&place, &object, &to, None).await.unwrap_err();
        assert!(error.cause.contains("has changed while it was copied"), "{error:?}");
        assert!(!stale.exists() && fs::read(&to).unwrap() == [9; 900]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_copies_do_not_write_one_part() {
        let daemon = RealDaemon::start().await;
        let data = Data::of(&daemon.client().await).unwrap();
        let place = place("large");
        let object = store(&data, vec![7; 1000]).await;
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("large");
        let part = part_of(folder.path(), &place, &object);
        fs::write(&part, [1; 400]).unwrap();
        let held = fs::File::options().append(true).open(&part).unwrap();
        held.lock().unwrap();
        copy(&data, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), [7; 1000]);
        assert_eq!(fs::read(&part).unwrap(), [1; 400]);
        let left = [&part, &to].map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(names(folder.path()), left.into());
        // Nor does anything of it stay when it fails.
        let copying = Copying { data: &data, bar: ProgressBar::hidden() };
        let changed = Object { etag: "\"another\"".to_owned(), ..object.clone() };
        let of_changed = part_of(folder.path(), &place, &changed);
        let other = fs::File::create(&of_changed).unwrap();
        other.lock().unwrap();
        let before = names(folder.path());
        let error = copying.download(&place, &changed, &to, None).await.unwrap_err();
        assert!(error.cause.contains("has changed while it was copied"), "{error:?}");
        assert_eq!(names(folder.path()), before);
        fs::remove_file(&of_changed).unwrap();
        // Once the other has ended, what it has left is gone on with.
        drop(held);
        copy(&data, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), [vec![1; 400], vec![7; 600]].concat());

        let all: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        store(&data, all.clone()).await;
        let copies = (0..8).map(|_| copy(&data, &to));
        futures::future::try_join_all(copies).await.unwrap();
        assert!(fs::read(&to).unwrap() == all);
        assert_eq!(names(folder.path()), ["large".into()].into());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_lies_in_place_of_a_part_is_not_written_through() {
        let daemon = RealDaemon::start().await;
        let data = Data::of(&daemon.client().await).unwrap();
        let place = place("large");
        let object = store(&data, vec![7; 1000]).await;
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (to, other) = (folder.path().join("large"), elsewhere.path().join("other"));
        let part = part_of(folder.path(), &place, &object);
        fs::write(&other, [1; 400]).unwrap();
        let links: [fn(&Path, &Path) -> io::Result<()>; 2] =
            [|other, part| symlink(other, part), |other, part| fs::hard_link(other, part)];
        for link in links {
            link(&other, &part).unwrap();
            copy(&data, &to).await.unwrap();
            assert!(fs::symlink_metadata(&to).unwrap().is_file());
            assert_eq!(fs::read(&to).unwrap(), [7; 1000]);
            assert_eq!(fs::read(&other).unwrap(), [1; 400]);
            fs::remove_file(&part).unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_stored_otherwise_than_it_was_sent_is_not_copied() {
        // A daemon that has one object, and spoils what it stores.
        let spoil = |body: Bytes| async move {
            let digest = Digest::of(&[&body[..], b"x"].concat()).to_string();
            (StatusCode::CREATED, [(STORED, digest)])
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Some(format!("http://{}", listener.local_addr().unwrap()));
        let routes = Router::new().fallback(put(spoil).get(|| async { "mine" }));
        tokio::spawn(axum::serve(listener, routes).into_future());
        let wanted = Wanted { server, token: Some("right".to_owned()), ..Wanted::default() };
        let client = Client::connect(wanted.resolve().unwrap()).await.unwrap();
        let data = Data::of(&client).unwrap();
        let copying = Copying { data: &data, bar: ProgressBar::hidden() };
        let (from, to) = (place("from"), place("to"));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here");
        fs::write(&path, "mine").unwrap();
        let stat = Stat::of(&fs::metadata(&path).unwrap());
        let file = FoundFile { path, relative: "here".into(), stat };
        let etag = "\"1\"".to_owned();
        let object = Object { path: "from".into(), size: 4, etag, modified: 0 };
        let copies = [
            ("here".to_owned(), copying.upload(&file, &to).await),
            (from.uri(), copying.across(&from, &object, &to).await),
        ];
        for (what, copied) in copies {
            let error = copied.unwrap_err();
            let told = format!("copying {what} to {}: the daemon has stored other", to.uri());
            assert!(error.kind == Kind::Failed && error.cause.starts_with(&told), "{error:?}");
            assert!(error.help.as_deref().unwrap().contains("stores it anew"), "{error:?}");
        }
    }
}
