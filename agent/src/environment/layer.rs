//! An attempt's own layer over a shared environment.
//!
//! Commands such as `pip install x && python train.py` are common, and an environment is shared by
//! jobs and named by what is in it. So each attempt runs in a virtual environment of its own, which
//! holds nothing and sees the shared one's packages: what the job installs lands in the layer, goes
//! before what is shared, and is gone with the attempt.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{Error, Realised};

/// No script is as long, in bytes.
const LARGE: u64 = 64 * 1024;

impl Realised {
    /// The same environment with a layer in `folder`, which is made anew. The node's own programs
    /// have no layer and stay as they are. The shared environment is in use as long as the folder around
    /// `folder` is there.
    ///
    /// # Errors
    /// The node's file system fails.
    pub async fn layered(mut self, folder: PathBuf) -> Result<Self, Error> {
        let Some(shared) = self.shared.clone() else { return Ok(self) };
        let at = folder.clone();
        let made = tokio::task::spawn_blocking(move || {
            // The attempt's folder, which the job cannot remove: while it is there the shared environment
            // is in use.
            let attempt = at.parent().unwrap_or(&at);
            let noted = shared.pin.note_use(attempt).and_then(|()| make(&shared.folder, &at));
            noted.map_err(|error| Error::io("layer the environment in", &at, &error))
        });
        match made.await {
            Ok(result) => result?,
            Err(_) => return Err(Error::Stopped),
        }
        self.path = vec![folder.join("bin")];
        let text = folder.to_string_lossy().into_owned();
        for name in ["VIRTUAL_ENV", "AZUREML_CONDA_ENVIRONMENT_PATH"] {
            self.variables.insert(name.to_owned(), text.clone());
        }
        Ok(self)
    }
}

fn make(shared: &Path, folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(folder.join("bin"))?;
    fs::copy(shared.join("pyvenv.cfg"), folder.join("pyvenv.cfg"))?;
    for entry in fs::read_dir(shared.join("bin"))? {
        let entry = entry?;
        program(shared, folder, &entry.path(), &folder.join("bin").join(entry.file_name()))?;
    }
    // Kernels, manual pages and headers, where programs look for them below the prefix.
    for name in ["share", "etc", "include"] {
        if shared.join(name).exists() {
            std::os::unix::fs::symlink(shared.join(name), folder.join(name))?;
        }
    }
    std::os::unix::fs::symlink("lib", folder.join("lib64"))?;
    for entry in fs::read_dir(shared.join("lib"))? {
        let name = entry?.file_name();
        let packages = Path::new("lib").join(name).join("site-packages");
        let (of_shared, own) = (shared.join(&packages), folder.join(&packages));
        if !of_shared.is_dir() {
            continue;
        }
        fs::create_dir_all(&own)?;
        // As a folder of packages with its own `.pth` files, which a bare path would not be. JSON
        // writes a text as Python does.
        let path = serde_json::to_string(&of_shared.to_string_lossy())?;
        fs::write(
            own.join("_atelier_shared.pth"),
            format!("import site; site.addsitedir({path})\n"),
        )?;
    }
    Ok(())
}

/// One name in `bin`. Scripts find their Python beside themselves, so a copy of a script is a
/// script of the layer; those that name the shared environment are written anew.
fn program(shared: &Path, folder: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    if meta.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    if !meta.is_file() {
        return Ok(());
    }
    let mut head = Vec::with_capacity(512);
    File::open(from)?.take(512).read_to_end(&mut head)?;
    let old = shared.as_os_str().as_bytes();
    let names_shared = head.starts_with(b"#!") && head.windows(old.len()).any(|part| part == old);
    if names_shared && meta.len() < 1 << 20 {
        let text = fs::read_to_string(from)?;
        fs::write(to, text.replace(&*shared.to_string_lossy(), &folder.to_string_lossy()))?;
        return fs::set_permissions(to, meta.permissions());
    }
    // Scripts are copied, so that nothing written over one reaches the shared one. A second name of a large
    // program's file would let the job write the file.
    if meta.len() > LARGE {
        return std::os::unix::fs::symlink(from, to);
    }
    fs::copy(from, to).map(|_| ())
}
