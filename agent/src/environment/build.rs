//! One environment, made beside its place and moved there when it is whole.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use atelier_core::environment::{Installed, PythonVersion, Recipe};
use serde::{Deserialize, Serialize};

use super::confine::Confinement;
use super::install::{Contents, Installation, Place};
use super::lock;
use super::shared::Reporter;
use super::uv::Home;
use super::{Error, Fault};
use crate::attempt;

/// Lies in every complete environment and says what it is made of.
pub(super) const MARKER: &str = "atelier-environment.json";
/// Folder of what is being built.
const BUILDING: &str = ".building";

/// A complete environment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Built {
    /// Of this file.
    pub(super) version: u32,
    pub(super) python: PythonVersion,
    pub(super) python_path: String,
    /// What was asked for.
    pub(super) requirements: Vec<String>,
    /// What was installed, `name==version`.
    pub(super) packages: Vec<String>,
    pub(super) seconds: f64,
    /// On the disk; what earlier builds left out is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    /// Where it lies; not written down.
    #[serde(skip)]
    pub(super) folder: PathBuf,
}

/// The complete environment of that key, if it is there and its Python still is.
pub(super) fn existing(root: &Path, key: &str) -> Option<Built> {
    let built = read(&root.join(key))?;
    // Follows the link to the Python it was made from.
    fs::metadata(built.folder.join("bin").join("python")).ok()?;
    Some(built)
}

/// What the environment in this folder says of itself.
pub(super) fn read(folder: &Path) -> Option<Built> {
    let text = fs::read(folder.join(MARKER)).ok()?;
    let mut built: Built = serde_json::from_slice(&text).ok()?;
    built.folder = folder.to_owned();
    (built.version == 1).then_some(built)
}

/// Bytes on the disk of the files in a folder that count.
pub(super) fn size(folder: &Path, counts: impl Fn(&fs::Metadata) -> bool + Copy) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path(), counts),
            // In units of 512 bytes, whatever the file system's own are.
            Ok(meta) if counts(&meta) => meta.blocks() * 512,
            Ok(_) | Err(_) => 0,
        })
        .sum()
}

/// Removes what killed builds left, except where another process is building at this moment.
pub(super) fn clean(root: &Path) {
    let Ok(entries) = fs::read_dir(root.join(BUILDING)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(key) = name.to_str().and_then(|name| name.split('.').next()) else { continue };
        if let Ok(Some(_lock)) = lock::try_acquire(root, key) {
            let _ = attempt::remove_tree(&entry.path());
        }
    }
}

/// A folder that is removed unless it was moved away.
#[derive(Debug)]
pub(super) struct Temporary(PathBuf);

impl Temporary {
    /// A name that no other has, for what belongs to `key`.
    fn of(root: &Path, key: &str) -> std::io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let building = root.join(BUILDING);
        fs::create_dir_all(&building)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // What a name begins with up to the first dot is its key's lock.
        let key = key.trim_start_matches('.');
        Ok(Self(building.join(format!("{key}.{}.{number}", std::process::id()))))
    }

    /// Takes what is in the place of `key` away, in one step; it is removed in its own time.
    pub(super) fn taking(root: &Path, key: &str) -> std::io::Result<Self> {
        let temporary = Self::of(root, key)?;
        fs::rename(root.join(key), &temporary.0)?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Code of packages may have nested folders without end, or closed them.
        let _ = attempt::remove_tree(&self.0);
    }
}

/// Builds the environment of `key`, unless another process has done so meanwhile.
pub(super) async fn build(
    home: Home,
    confinement: Option<Confinement>,
    key: String,
    python: Installed,
    recipe: Recipe,
    reporter: Reporter,
) -> Result<Built, Error> {
    let root = home.root.clone();
    let _lock = lock::acquire(&root, &key, || {
        reporter.line("another process on this node builds this environment: waiting for it");
    })
    .await?;
    if let Some(built) = existing(&root, &key) {
        return Ok(built);
    }
    let started = Instant::now();
    let builder = home.builder(&python, &reporter).await?;
    let count = recipe.requirements.len();
    reporter.line(format!(
        "building the environment: Python {}, {count} {} asked for",
        python.version,
        if count == 1 { "package" } else { "packages" },
    ));

    let building = root.join(BUILDING);
    let temporary =
        Temporary::of(&root, &key).map_err(|error| Error::io("create", &building, &error))?;
    // The lock is held: whatever has this key was left by a build that was killed.
    for entry in fs::read_dir(&building).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().split('.').next() == Some(&key) {
            let _ = attempt::remove_tree(&entry.path());
        }
    }
    let place = enter(&home, confinement, &key, &temporary.0).await?;
    let installation = Installation {
        home: &home,
        builder: &builder,
        python: &python,
        recipe: &recipe,
        into: &temporary.0,
        place: &place,
        reporter: &reporter,
    };
    let Contents { packages, built: code_ran } = match installation.run().await {
        Ok(contents) => contents,
        Err(error) => {
            // What it left may be large.
            let _ = tokio::task::spawn_blocking(move || drop((place, temporary))).await;
            return Err(disk_full(error, &root));
        }
    };
    let built = Built {
        version: 1,
        python: python.version,
        python_path: python.path.clone(),
        requirements: recipe.requirements.clone(),
        packages,
        seconds: started.elapsed().as_secs_f64(),
        bytes: None,
        folder: root.join(&key),
    };
    let moved = {
        let from = temporary.0.clone();
        let built = built.clone();
        tokio::task::spawn_blocking(move || {
            if let Place::Confined(place) = place {
                let secured = place.secure(code_ran);
                secured.map_err(|error| Error::io("finish", &from, &error))?;
            }
            publish(&from, &built)
        })
        .await
    };
    match moved {
        Ok(result) => result?,
        Err(_) => return Err(Error::Stopped),
    }
    reporter.line(format!(
        "environment built in {:.1} s: Python {}, {} packages",
        built.seconds,
        built.python,
        built.packages.len()
    ));
    Ok(built)
}

/// Where the build's steps run.
async fn enter(
    home: &Home,
    confinement: Option<Confinement>,
    key: &str,
    draft: &Path,
) -> Result<Place, Error> {
    let Some(confinement) = confinement else { return Ok(Place::Free) };
    let (home, key, draft) = (home.clone(), key.to_owned(), draft.to_owned());
    let entered = tokio::task::spawn_blocking(move || {
        let entered = confinement.enter(&home, &key, &draft);
        entered.map_err(|error| Error::io("make a place to build", &draft, &error))
    });
    entered.await.unwrap_or(Err(Error::Stopped)).map(|place| Place::Confined(Box::new(place)))
}

/// An installer that fails in a file system without room fails for that, whatever it says.
fn disk_full(error: Error, root: &Path) -> Error {
    let full = rustix::fs::statvfs(root).is_ok_and(|stat| stat.f_bavail * stat.f_frsize < 1 << 20);
    if full && error.fault() != Fault::DiskFull {
        return Error::DiskFull { path: root.display().to_string() };
    }
    error
}

/// Moves a finished build to its place, durably: a marker never names what a crash took away.
fn publish(from: &Path, built: &Built) -> Result<(), Error> {
    let to = &built.folder;
    rewrite_scripts(from, to).map_err(|error| Error::io("finish", from, &error))?;
    let marker = from.join(MARKER);
    let measured = Built { bytes: Some(size(from, |_| true)), ..built.clone() };
    let write = || -> std::io::Result<()> {
        // What was built may have put something of this name there.
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(&marker)?;
        file.write_all(&serde_json::to_vec_pretty(&measured)?)?;
        // Everything on the file system, once, is cheaper than thousands of files one by one.
        rustix::fs::syncfs(&file)?;
        Ok(())
    };
    write().map_err(|error| Error::io("write", &marker, &error))?;
    // Something incomplete may be in the way: an environment whose Python was removed.
    attempt::remove_tree(to).map_err(|error| Error::io("remove", to, &error))?;
    fs::rename(from, to).map_err(|error| Error::io("move", to, &error))?;
    let parent = to.parent().unwrap_or(to);
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("sync", parent, &error))
}

/// Scripts name the folder they were made in; uv's do not, pip's and the activation scripts do.
pub(super) fn rewrite_scripts(from: &Path, to: &Path) -> std::io::Result<()> {
    let (Some(old), Some(new)) = (from.to_str(), to.to_str()) else { return Ok(()) };
    for entry in fs::read_dir(from.join("bin"))? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if !meta.is_file() || meta.len() > 1 << 20 {
            continue;
        }
        let Ok(text) = String::from_utf8(fs::read(&path)?) else { continue };
        if text.contains(old) {
            // A new file: the old one may be a link into the installer's cache.
            fs::remove_file(&path)?;
            fs::write(&path, text.replace(old, new))?;
            fs::set_permissions(&path, meta.permissions())?;
        }
    }
    Ok(())
}
