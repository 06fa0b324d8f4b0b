//! Makes a backup.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use atelier_core::datastore::{Source, StoragePlace};
use atelier_core::time::Timestamp;
use zeroize::Zeroizing;

use super::choice::{Choice, choose};
use super::open::check_against;
use super::seal::{Sealing, encrypt};
use super::{
    DATABASE, Elsewhere, Entry, Error, FORMAT, MANIFEST, MOST, MOST_FILES, Manifest, RECORD,
    Record, Scratch, VAULT_KEY, fail, hex, must_be_outside, must_be_own, name, private_file, told,
};
use crate::daemon::Workspace;
use crate::store::copy::{self, Contents};
use crate::vault::{KeySource, TextSource};

/// How often files are read again that changed meanwhile.
const TRIES: usize = 5;

/// What somebody asks for.
pub struct Create {
    /// The workspace's.
    pub data_dir: PathBuf,
    /// Where to; it must not be there.
    pub file: PathBuf,
    /// For whom.
    pub sealing: Sealing,
    /// The vault's key.
    pub vault_key: VaultKey,
}

/// What becomes of the key that secrets are sealed with.
#[derive(Clone, Debug)]
pub enum VaultKey {
    /// It is kept elsewhere.
    Leave,
    /// The backup has it too.
    Take(KeySource),
}

/// What was made.
#[derive(Debug)]
pub struct Created {
    /// What is in it.
    pub manifest: Manifest,
    /// Its length.
    pub bytes: u64,
    /// Where, absolute.
    pub file: PathBuf,
    /// Whether it has the vault's key.
    pub has_vault_key: bool,
    /// Why the data folder does not tell of it.
    pub unnoted: Option<Error>,
}

/// A small file as it was read.
struct Kept {
    entry: Entry,
    content: Zeroizing<Vec<u8>>,
}

/// Makes a backup, reads it back, and gives it its name last.
///
/// # Errors
/// [`Error`]: there is no file of that name then.
pub fn create(
    Create { data_dir, file, sealing, vault_key }: Create,
    now: Timestamp,
) -> Result<Created, Error> {
    let no_workspace = || Error::NoWorkspace(data_dir.display().to_string());
    let data_dir = data_dir.canonicalize().map_err(|_| no_workspace())?;
    if !data_dir.join("workspace.json").exists() {
        return Err(no_workspace());
    }
    must_be_own(&data_dir)?;
    let file = std::path::absolute(&file).map_err(fail("find", &file))?;
    if file.exists() {
        return Err(Error::Exists(file.display().to_string()));
    }
    must_be_outside(&file, &data_dir)?;
    let scratch = Scratch::of(&data_dir)?;
    let copied = scratch.path.join(DATABASE);
    let (kept, contents) = settled(&data_dir, &copied)?;
    let (schema, vault_keys) = told(&contents);
    let mut files: Vec<Kept> = kept;
    let key = taken_key(vault_key, &data_dir, &vault_keys)?;
    let has_vault_key = key.is_some();
    files.extend(key);
    let mut entries: Vec<Entry> = files.iter().map(|kept| kept.entry.clone()).collect();
    entries.push(database_entry(&copied)?);
    let manifest = Manifest {
        format: FORMAT,
        version: crate::VERSION.to_owned(),
        workspace: workspace(&files, &data_dir)?,
        created_at: now,
        schema,
        files: entries,
        elsewhere: elsewhere(&contents, &data_dir),
        vault_keys,
    };
    let name_of = file.file_name().unwrap_or_default().to_string_lossy();
    let written = Part { path: file.with_file_name(format!(".{name_of}.part")) };
    // Of one that was killed.
    let _ = fs::remove_file(&written.path);
    let (encryptor, opening) = sealing.begin()?;
    let to = private_file(&written.path, 0o600)?;
    let bytes =
        pack(encryptor, to, &manifest, &files, &copied).map_err(fail("write", &written.path))?;
    crate::failpoint::hit("backup-written");
    check_against(&opening, &written.path, &manifest)?;
    name(&written.path, &file)?;
    // It is whole, whatever becomes of the note.
    let unnoted = note(&data_dir, &Record { created_at: now, file: file.clone() }).err();
    Ok(Created { manifest, bytes, file, has_vault_key, unnoted })
}

/// A file that has not got its name yet; what does not get it is removed.
struct Part {
    path: PathBuf,
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The files and a copy of the database, between which no file has changed.
fn settled(data_dir: &Path, copied: &Path) -> Result<(Vec<Kept>, Contents), Error> {
    let mut before = read_all(data_dir)?;
    for _ in 0..TRIES {
        match fs::remove_file(copied) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("remove", copied)(error));
            }
            _ => {}
        }
        drop(private_file(copied, 0o600)?);
        let contents = copy::copy(&data_dir.join(DATABASE), copied)?;
        let after = read_all(data_dir)?;
        let same = |one: &Kept, other: &Kept| one.entry == other.entry;
        if before.len() == after.len() && before.iter().zip(&after).all(|(a, b)| same(a, b)) {
            return Ok((after, contents));
        }
        before = after;
    }
    Err(Error::Unsettled(data_dir.display().to_string()))
}

fn read_all(data_dir: &Path) -> Result<Vec<Kept>, Error> {
    let mut kept = Vec::new();
    read_below(data_dir, &[], &mut kept)?;
    kept.sort_by(|one, other| one.entry.name.cmp(&other.entry.name));
    Ok(kept)
}

fn read_below(data_dir: &Path, below: &[&str], kept: &mut Vec<Kept>) -> Result<(), Error> {
    let folder = below.iter().fold(data_dir.to_owned(), |path, name| path.join(name));
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // Of a node that has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !below.is_empty() => return Ok(()),
        Err(error) => return Err(fail("list", &folder)(error)),
    };
    for found in entries {
        let found = found.map_err(fail("list", &folder))?;
        let (name, path) = (found.file_name(), found.path());
        let Some(name) = name.to_str() else {
            tracing::warn!(path = %path.display(), "not backed up: its name is not UTF-8");
            continue;
        };
        let within: Vec<&str> = below.iter().copied().chain([name]).collect();
        if choose(&within) == Choice::Leave {
            continue;
        }
        let kind = found.file_type().map_err(fail("look at", &path))?;
        if kind.is_dir() {
            read_below(data_dir, &within, kept)?;
        } else if kind.is_file() {
            kept.extend(read_one(&path, within.join("/"))?);
            if kept.len() > MOST_FILES {
                return Err(Error::TooMany);
            }
        } else {
            tracing::warn!(path = %path.display(), "not backed up: it is no file");
        }
    }
    Ok(())
}

fn read_one(path: &Path, name: String) -> Result<Option<Kept>, Error> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(fail("look at", path))?,
    };
    if found.len() > MOST {
        return Err(Error::TooLarge { path: path.display().to_string(), bytes: found.len() });
    }
    let content = Zeroizing::new(fs::read(path).map_err(fail("read", path))?);
    Ok(Some(keep(name, content, found.mode() & 0o777)))
}

fn keep(name: String, content: Zeroizing<Vec<u8>>, mode: u32) -> Kept {
    let (bytes, blake3) = (content.len() as u64, hex(&blake3::hash(&content)));
    Kept { entry: Entry { name, bytes, blake3, mode }, content }
}

fn database_entry(copied: &Path) -> Result<Entry, Error> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(copied).map_err(fail("read", copied))?;
    let bytes = io::copy(&mut file, &mut hasher).map_err(fail("read", copied))?;
    Ok(Entry { name: DATABASE.to_owned(), bytes, blake3: hex(&hasher.finalize()), mode: 0o600 })
}

fn workspace(files: &[Kept], data_dir: &Path) -> Result<Workspace, Error> {
    let marker = files.iter().find(|kept| kept.entry.name == "workspace.json");
    marker
        .and_then(|kept| serde_json::from_slice(&kept.content).ok())
        .ok_or_else(|| Error::NoWorkspace(data_dir.display().to_string()))
}

/// The vault's key, if it is wanted, and is one that secrets are sealed with.
fn taken_key(wanted: VaultKey, data_dir: &Path, used: &[String]) -> Result<Option<Kept>, Error> {
    let VaultKey::Take(source) = wanted else { return Ok(None) };
    let path = match &source {
        KeySource::Text(TextSource::File(path)) => path,
        KeySource::Text(_) => {
            return Err(Error::NoKey(format!("{source} is no file; keep a copy of it elsewhere")));
        }
        KeySource::Transit(_) => {
            return Err(Error::NoKey(format!(
                "the key of {source} leaves its server for nobody; back that server up"
            )));
        }
        KeySource::Nowhere => {
            return Err(Error::NoKey(
                "no place is known for it; name it with --vault-key".to_owned(),
            ));
        }
    };
    let source = TextSource::File(path.clone());
    let id = source.key_id(data_dir)?.to_string();
    if !used.is_empty() && !used.contains(&id) {
        return Err(Error::NoKey(format!(
            "secrets are sealed with the key {}, and {source} has {id}; name the right one with --vault-key",
            used.join(", ")
        )));
    }
    let content = Zeroizing::new(fs::read(path).map_err(fail("read", path))?);
    Ok(Some(keep(VAULT_KEY.to_owned(), content, 0o600)))
}

/// Where the data lies, which is not in a backup.
fn elsewhere(contents: &Contents, data_dir: &Path) -> Vec<Elsewhere> {
    let own = match contents.storage.as_ref().map(|record| &record.place) {
        None | Some(StoragePlace::DataFolder) => data_dir.join("storage").display().to_string(),
        Some(place @ StoragePlace::Elsewhere(_)) => place.location(),
    };
    let own = Elsewhere { what: "the workspace's own datastores".to_owned(), location: own };
    let made = contents.datastores.iter().map(|record| {
        let (name, source) = (&record.datastore.name, &record.datastore.source);
        let kind = if matches!(source, Source::Folder(_)) { "folder" } else { "object store" };
        Elsewhere { what: format!("datastore {name} ({kind})"), location: source.location() }
    });
    std::iter::once(own).chain(made).collect()
}

/// Counts what goes by.
struct Counting<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn pack(
    encryptor: age::Encryptor,
    to: File,
    manifest: &Manifest,
    files: &[Kept],
    database: &Path,
) -> io::Result<u64> {
    let counted = Counting { to: io::BufWriter::new(to), bytes: 0 };
    let compressed = zstd::Encoder::new(encrypt(encryptor, counted)?, 3)?;
    let mut archive = tar::Builder::new(compressed);
    let seconds = u64::try_from(manifest.created_at.as_millis() / 1000).unwrap_or_default();
    let mut append = |name: &str, bytes: u64, mode: u32, content: &mut dyn io::Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(mode);
        header.set_mtime(seconds);
        archive.append_data(&mut header, name, content)
    };
    let text = serde_json::to_vec_pretty(manifest)?;
    append(MANIFEST, text.len() as u64, 0o600, &mut &*text)?;
    for Kept { entry, content } in files {
        append(&entry.name, entry.bytes, entry.mode, &mut &***content)?;
    }
    if let Some(entry) = manifest.files.last() {
        let mut content = BufReader::new(File::open(database)?);
        append(&entry.name, entry.bytes, entry.mode, &mut content)?;
    }
    let Counting { to, bytes } = archive.into_inner()?.finish()?.finish()?;
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(bytes)
}

fn note(data_dir: &Path, record: &Record) -> Result<(), Error> {
    let path = data_dir.join(RECORD);
    let staged = path.with_extension("json.new");
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&staged);
        fs::write(&staged, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&staged, &path)
    };
    write().map_err(fail("write", &path))
}
