//! Opens backups, and sees whether they are whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};

use super::choice::{Choice, choose};
use super::seal::Opening;
use super::{
    DATABASE, Entry, Error, FORMAT, MANIFEST, MOST, MOST_FILES, Manifest, fail, hex, private_file,
};
use crate::store::copy::{self, Contents};
use crate::store::{self, SCHEMA_VERSION};

/// A backup that is whole.
#[derive(Debug)]
pub struct Opened {
    /// What is in it.
    pub manifest: Manifest,
    /// What its database holds.
    pub contents: Contents,
}

/// Takes what a backup has of a file.
pub(super) type Take<'a> = dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()> + 'a;

/// Opens a backup, compares all of it with its digests, and looks through its database, which lies beside the backup
/// meanwhile, as plain text that only its owner may read, without a name but for the instant in which it is opened.
///
/// # Errors
/// It does not open, or is not whole.
pub fn verify(file: &Path, opening: &Opening) -> Result<Opened, Error> {
    let file = std::path::absolute(file).map_err(fail("find", file))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let beside = file.parent().unwrap_or_else(|| Path::new("/"));
    // Its name is new, so that nobody else has made it; it is gone when this returns.
    let folder = tempfile::Builder::new()
        .prefix(&format!(".{name}.verify-"))
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(beside)
        .map_err(fail("make a folder in", beside))?;
    let mut database = Unnamed::new(folder.path())?;
    let manifest = unpack(&file, opening, &mut |entry, content| {
        if entry.name == DATABASE {
            io::copy(content, &mut database.file)?;
        }
        Ok(())
    })?;
    crate::failpoint::hit("verify-unpacked");
    let path = database.named()?;
    let contents = contents(&file, &manifest, || copy::check_and_forget(&path))?;
    Ok(Opened { manifest, contents })
}

/// A file that gets its name when it is needed: a program that is killed before leaves nothing.
struct Unnamed {
    file: File,
    path: PathBuf,
    has_name: bool,
}

impl Unnamed {
    fn new(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(DATABASE);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self { file: file.into(), path, has_name: false }),
            // Not every file system can.
            Err(_) => Ok(Self { file: private_file(&path, 0o600)?, path, has_name: true }),
        }
    }

    fn named(&mut self) -> Result<PathBuf, Error> {
        if !self.has_name {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, own, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)
                .map_err(|error| fail("make", &self.path)(error.into()))?;
            self.has_name = true;
        }
        Ok(self.path.clone())
    }
}

/// What the database of a backup holds, which must be whole.
pub(super) fn contents(
    file: &Path,
    manifest: &Manifest,
    check: impl FnOnce() -> Result<Contents, store::Error>,
) -> Result<Contents, Error> {
    let path = file.display().to_string();
    if manifest.schema > SCHEMA_VERSION {
        return Err(Error::Newer { path, version: manifest.version.clone() });
    }
    check().map_err(|error| Error::Damaged { path, problem: error.to_string() })
}

/// Reads back what was written just now.
pub(super) fn check_against(
    opening: &Opening,
    file: &Path,
    manifest: &Manifest,
) -> Result<(), Error> {
    let found = unpack(file, opening, &mut |_, _| Ok(()))?;
    if &found == manifest {
        return Ok(());
    }
    let path = file.display().to_string();
    Err(Error::Damaged { path, problem: "it is not what was written".to_owned() })
}

/// Reads a whole backup: each file goes to `take`, which may leave it, and is compared with its digest. Nothing that
/// was taken counts before this returns.
pub(super) fn unpack(
    file: &Path,
    opening: &Opening,
    take: &mut Take<'_>,
) -> Result<Manifest, Error> {
    let damaged = |problem: String| Error::Damaged { path: file.display().to_string(), problem };
    let cut =
        |error: io::Error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Taken>()) {
            Some(Taken(error)) => Error::File {
                operation: "write what is in",
                path: file.display().to_string(),
                source: io::Error::new(error.kind(), error.to_string()),
            },
            None => damaged(error.to_string()),
        };
    let plain = opening.open(file)?;
    let expanded = zstd::Decoder::new(plain).map_err(cut)?;
    let mut archive = tar::Archive::new(expanded);
    let manifest = {
        let mut entries = archive.entries().map_err(cut)?;
        let first =
            entries.next().ok_or_else(|| damaged("it is empty".to_owned()))?.map_err(cut)?;
        let manifest = read_manifest(first, file)?;
        for wanted in &manifest.files {
            let missing = || damaged(format!("{} is missing", wanted.name));
            let mut found = entries.next().ok_or_else(missing)?.map_err(cut)?;
            let is_it = found.path_bytes().as_ref() == wanted.name.as_bytes()
                && found.header().entry_type().is_file()
                && found.size() == wanted.bytes;
            if !is_it {
                return Err(missing());
            }
            let mut hashed = Hashed { from: &mut found, hasher: blake3::Hasher::new() };
            take(wanted, &mut hashed).map_err(|error| cut(io::Error::other(Taken(error))))?;
            io::copy(&mut hashed, &mut io::sink()).map_err(cut)?;
            if hex(&hashed.hasher.finalize()) != wanted.blake3 {
                return Err(damaged(format!("{} is not what was backed up", wanted.name)));
            }
        }
        if entries.next().is_some() {
            return Err(damaged("it has more than it should".to_owned()));
        }
        manifest
    };
    // To its end, where the encryption says that nothing was cut off.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(cut)?;
    Ok(manifest)
}

/// What was taken could not be written, which is no fault of the backup.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Taken(io::Error);

fn read_manifest(mut first: impl EntryRead, file: &Path) -> Result<Manifest, Error> {
    /// As far as any version can be read.
    #[derive(serde::Deserialize)]
    struct Written {
        format: u32,
        version: String,
    }
    let path = || file.display().to_string();
    let damaged = |problem: String| Error::Damaged { path: path(), problem };
    if !first.is_manifest() {
        return Err(damaged("it does not begin with a manifest".to_owned()));
    }
    let mut text = Vec::new();
    first.by_ref().take(MOST).read_to_end(&mut text).map_err(|error| damaged(error.to_string()))?;
    let unread =
        |error: serde_json::Error| damaged(format!("its manifest cannot be read ({error})"));
    let Written { format, version } = serde_json::from_slice(&text).map_err(unread)?;
    if format > FORMAT {
        return Err(Error::Newer { path: path(), version });
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(unread)?;
    if manifest.files.len() > MOST_FILES + 2 || !manifest.files.iter().all(|one| may_be(&one.name))
    {
        return Err(damaged("its manifest names what no backup has".to_owned()));
    }
    match manifest.files.last() {
        Some(last) if last.name == DATABASE => Ok(manifest),
        _ => Err(damaged("it has no database".to_owned())),
    }
}

trait EntryRead: Read {
    fn is_manifest(&self) -> bool;
}

impl<R: Read> EntryRead for tar::Entry<'_, R> {
    fn is_manifest(&self) -> bool {
        self.path_bytes().as_ref() == MANIFEST.as_bytes()
    }
}

/// Whether a backup may have a file of this name: who made it need not have been this program.
pub(super) fn may_be(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let is_plain = |part: &&str| !["", ".", ".."].contains(part) && !part.contains('\0');
    parts.iter().all(is_plain) && (name == DATABASE || choose(&parts) == Choice::Take)
}

struct Hashed<'a, R> {
    from: &'a mut R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        Ok(read)
    }
}

/// Writes a file of a backup.
pub(super) fn write(content: &mut dyn Read, to: &mut File) -> io::Result<()> {
    io::copy(content, to)?;
    to.flush()?;
    to.sync_all()
}
