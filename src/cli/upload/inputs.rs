//! Local inputs: files and folders of this machine, stored as objects below
//! the caller's own folder of uploads in the blob store ([`layout::uploads_root`]), under the hash
//! of their content: unchanged inputs are sent once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atelier_core::content::EntryName;
use atelier_core::id::Principal;
use atelier_core::layout::{self, BLOB_STORE};
use futures::{StreamExt as _, TryStreamExt as _};

use super::cache::StatCache;
use super::plan::Plan;
use super::scan::{self, Found, FoundFile, Scan, Stat};
use super::{Error, Progress, Report, blocking, hash, object};
use crate::client::data::{Data, Depth, Stored};
use crate::storage::ObjectPath;

/// Files that travel at once.
const AT_ONCE: usize = 16;

/// The workspace's data gateway, as a client sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gateway {
    data: Data,
    principal: Principal,
    home: PathBuf,
}

/// A local file or folder that the workspace has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalInput {
    /// What replaces the local path: `azureml://datastores/workspaceblobstore/paths/LocalUpload/…`;
    /// a folder's ends with `/`.
    pub uri: String,
    /// Files in it.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Files that the workspace lacked.
    pub files_sent: u64,
    /// Bytes of these files.
    pub bytes_sent: u64,
    /// What was left out though it is not ignored, and why; one line each, for the user.
    pub warnings: Vec<String>,
}

impl Gateway {
    /// Of the daemon of this, whose token is that of `principal`; `home` is Atelier's home folder, where the stat cache
    /// lies.
    pub fn new(data: Data, principal: Principal, home: &Path) -> Self {
        Self { data, principal, home: home.to_owned() }
    }

    /// Makes the workspace have the file or folder at `path`. Ignore files apply as they do to code.
    ///
    /// # Errors
    /// [`Error`] names the file or folder and what to do.
    pub async fn local_input(&self, path: &Path, report: Report) -> Result<LocalInput, Error> {
        match self.attempt(path, &report).await {
            Err(Error::Changed(_)) => self.attempt(path, &report).await,
            other => other,
        }
    }

    async fn attempt(&self, path: &Path, report: &Report) -> Result<LocalInput, Error> {
        let (path, home, reading) = (path.to_owned(), self.home.clone(), report.clone());
        let uploads = layout::uploads_root(&self.principal);
        let prepared = blocking(move || Prepared::new(&path, &uploads, &home, &reading)).await?;
        let stored = self.stored(&prepared.below).await?;
        let missing: Vec<(FoundFile, ObjectPath)> = prepared
            .files
            .into_iter()
            .filter(|(file, key)| stored.get(key.as_str()) != Some(&file.stat.size))
            .collect();
        let total = missing.iter().map(|(file, _)| file.stat.size).sum();
        let files_sent = missing.len() as u64;
        let done = Arc::new(AtomicU64::new(0));
        futures::stream::iter(missing)
            .map(|(file, key)| {
                let (counted, report, done) = (done.clone(), report.clone(), done.clone());
                let sent = move |bytes| {
                    let done = counted.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    report(Progress::Sending { done, total });
                };
                let back = move |bytes| {
                    done.fetch_sub(bytes, Ordering::Relaxed);
                };
                self.put(file, key, sent, back)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(LocalInput {
            uri: uri(&prepared.uri_path),
            files: prepared.count,
            bytes: prepared.bytes,
            files_sent,
            bytes_sent: total,
            warnings: prepared.warnings,
        })
    }

    /// The sizes of the objects below a folder, by path.
    async fn stored(&self, below: &ObjectPath) -> Result<HashMap<String, u64>, Error> {
        let listed = self.data.list(BLOB_STORE, below.as_str(), Depth::All).await;
        let listed =
            listed.map_err(|problem| Error::Gateway { path: below.as_str().into(), problem })?;
        Ok(listed.objects.into_iter().map(|object| (object.path, object.size)).collect())
    }

    async fn put(
        &self,
        file: FoundFile,
        key: ObjectPath,
        sent: impl Fn(u64) + Clone + Send + Sync + 'static,
        back: impl Fn(u64),
    ) -> Result<(), Error> {
        let stored = object::store(&self.data, &file, BLOB_STORE, key.as_str(), sent, back).await;
        let path = file.relative;
        match stored.map_err(|problem| Error::Gateway { path: path.clone(), problem })? {
            None => Err(Error::Changed(file.path)),
            Some(Stored::AsSent) => Ok(()),
            Some(Stored::Otherwise) => {
                // By its path and length it would be taken for the file the next time.
                let removed = self.data.delete(BLOB_STORE, key.as_str(), false).await;
                let left = removed.err().map(|problem| (uri(key.as_str()), problem));
                Err(Error::Spoiled { path, left })
            }
        }
    }
}

/// What jobs name an object or a folder of uploads by.
fn uri(path: &str) -> String {
    format!("azureml://datastores/{BLOB_STORE}/paths/{path}")
}

/// An input, scanned and hashed.
struct Prepared {
    /// The folder of this content.
    below: ObjectPath,
    uri_path: String,
    files: Vec<(FoundFile, ObjectPath)>,
    count: u64,
    bytes: u64,
    warnings: Vec<String>,
}

impl Prepared {
    fn new(path: &Path, uploads: &str, home: &Path, report: &Report) -> Result<Self, Error> {
        let real = fs::canonicalize(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing(path.to_owned()),
            _ => Error::Io { operation: "open", path: path.to_owned(), source },
        })?;
        let metadata = fs::metadata(&real).map_err(|source| Error::Io {
            operation: "open",
            path: path.to_owned(),
            source,
        })?;
        let is_file = metadata.is_file();
        let scan = if is_file { single_file(&real, &metadata)? } else { scan::scan(path, home)? };
        let mut warnings = scan.warnings;
        warn_of_links(Path::new(""), &scan.tree, &mut warnings);
        let mut cache = StatCache::load(home, &scan.root);
        let (contents, _) = hash::contents(&scan.files, &cache, report)?;
        cache.update(&scan.files, &contents);
        let mut plan = Plan::new(scan.tree, scan.files, &contents)?;
        // What was hashed is what must be sent.
        for (file, hashed) in plan.files.iter_mut().zip(&contents) {
            file.stat = hashed.stat;
        }
        let named = |why: String| Error::Name { path: path.to_owned(), why };
        let digest = plan.root.to_string();
        let below = ObjectPath::new(&format!("{uploads}/{}", &digest[..32]))
            .map_err(|error| named(error.to_string()))?;
        // The root folder of the machine has no name of its own.
        let name = real.file_name().unwrap_or(OsStr::new("root"));
        let name = name.to_str().ok_or_else(|| named("it is not UTF-8".to_owned()))?;
        let uri_path = if is_file { format!("{below}/{name}") } else { format!("{below}/{name}/") };
        let folder = if is_file { below.to_string() } else { format!("{below}/{name}") };
        let (count, bytes) = (plan.files.len() as u64, plan.bytes);
        let files = plan
            .files
            .into_iter()
            .map(|file| {
                let named = |why| Error::Name { path: file.relative.clone(), why };
                let relative =
                    file.relative.to_str().ok_or_else(|| named("it is not UTF-8".to_owned()))?;
                let key = ObjectPath::new(&format!("{folder}/{relative}"))
                    .map_err(|error| named(error.to_string()))?;
                Ok((file, key))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { below, uri_path, files, count, bytes, warnings })
    }
}

fn single_file(real: &Path, metadata: &fs::Metadata) -> Result<Scan, Error> {
    let name = real.file_name().unwrap_or_default();
    let entry = EntryName::new(name.as_bytes())
        .map_err(|error| Error::Name { path: real.to_owned(), why: error.to_string() })?;
    let file = FoundFile { path: real.to_owned(), relative: name.into(), stat: Stat::of(metadata) };
    Ok(Scan {
        root: real.to_owned(),
        tree: vec![(entry, Found::File(0))],
        files: vec![file],
        warnings: Vec::new(),
    })
}

/// A datastore has no links: those that were not followed are left out.
fn warn_of_links(below: &Path, tree: &[(EntryName, Found)], warnings: &mut Vec<String>) {
    for (name, found) in tree {
        let place = below.join(OsStr::from_bytes(name.as_bytes()));
        match found {
            Found::File(_) => {}
            Found::Folder(entries) => warn_of_links(&place, entries, warnings),
            Found::Link(_) => warnings.push(format!(
                "'{}' is left out: it is a symbolic link that cannot be followed",
                place.display()
            )),
        }
    }
}
