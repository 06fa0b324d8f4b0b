//! The file that says where the workspace's own datastores lie: a datastore's, whose name does not matter.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use atelier_core::datastore::{Credentials, Source};
use atelier_core::spec::{Origin, Override, parse_datastore};
use zeroize::Zeroizing;

use super::{Here, bounded};

/// Why a file cannot say where the workspace's own datastores lie.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path} as the place of the workspace's data: {problem}")]
pub struct Error {
    path: String,
    problem: String,
}

/// What such a file says.
#[derive(Debug)]
pub struct StorageFile {
    /// The file, absolute and without links.
    pub path: PathBuf,
    /// Where the data lies.
    pub source: Source,
    /// With what it is reached.
    pub credentials: Credentials,
}

impl StorageFile {
    /// Reads it. `data_dir` is the daemon's own folder, in which no keys may lie: who copies that would have
    /// them by the way.
    ///
    /// # Errors
    /// [`Error`], without anything of the credentials.
    pub fn read(path: &Path, data_dir: &Path) -> Result<Self, Error> {
        let fail = |problem: String| Error { path: path.display().to_string(), problem };
        let io = |error: std::io::Error| fail(error.to_string());
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode();
        let text = Zeroizing::new(bounded(file).map_err(io)?);
        let (source, credentials) = parse(&text, path).map_err(fail)?;
        let path = fs::canonicalize(path).map_err(io)?;
        if credentials.sealed_kind().is_some() {
            let own = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
            if path.starts_with(&own) {
                return Err(fail(
                    "it holds keys, and lies in the data folder, from where a backup would take them along; keep it \
                     elsewhere"
                        .to_owned(),
                ));
            }
            // systemd sees to it that nobody else reads a credential, by means that the mode does not show.
            if mode & 0o077 != 0 && !is_credential(&path) {
                return Err(fail(format!(
                    "it holds keys, and others may read it (mode {:o}); run 'chmod 600' on it",
                    mode & 0o7777
                )));
            }
        }
        Ok(Self { path, source, credentials })
    }
}

/// Whether systemd gave the service this file.
fn is_credential(path: &Path) -> bool {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").map(fs::canonicalize);
    folder.and_then(Result::ok).is_some_and(|folder| path.starts_with(folder))
}

fn parse(text: &[u8], path: &Path) -> Result<(Source, Credentials), String> {
    let origin = Origin {
        name: path.display().to_string(),
        folder: String::new(),
        experiment: String::new(),
    };
    let named = [Override::text("--storage", &["name"], "storage")];
    let parsed =
        parse_datastore(text, &origin, &named, &Here).map_err(|faults| faults.to_string())?;
    let (draft, credentials) = parsed.definition.draft();
    let (source, credentials) = (draft.source, credentials.unwrap_or(Credentials::None));
    if source.is_read_only() {
        return Err(format!("nothing can be stored in data of type {}", source.kind()));
    }
    if let Source::AzureFile(_) = source {
        return Err(format!(
            "the workspace's own data cannot be served from data of type {}; mount the share on the daemon's machine, \
             and write 'type: nfs' with the mount's path",
            source.kind()
        ));
    }
    match credentials.misfit(&source) {
        Some(why) => Err(format!("credentials: {why}")),
        None => Ok((source, credentials)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn read(text: &str, mode: u32, below: &str) -> Result<StorageFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let (data, place) = (folder.path().join("data"), folder.path().join(below));
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(&place).unwrap();
        let file = place.join("storage.yml");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        StorageFile::read(&file, &data).map_err(|error| error.to_string())
    }

    const KEYS: &str = "type: s3\nbucket: b\nprefix: /team/\n\
                        credentials: {access_key_id: i, secret_access_key: canary}\n";

    #[test]
    fn a_datastores_file_says_where_data_lies() {
        let read_ok = read(KEYS, 0o600, ".").unwrap();
        assert_eq!(read_ok.source.location(), "s3://b/team");
        assert!(matches!(read_ok.credentials, Credentials::S3Keys { .. }));
        // Without keys everybody may see it, and it may lie anywhere.
        let open = read("type: gcs\nbucket: b\nname: any\n", 0o644, "data").unwrap();
        assert_eq!(open.credentials, Credentials::None);
        assert!(read("type: local\npath: /srv/atelier\n", 0o644, ".").is_ok());
    }

    #[test]
    fn keys_are_kept_from_others_and_never_told() {
        for (text, mode, below, expected) in [
            (KEYS, 0o640, ".", "chmod 600"),
            (KEYS, 0o600, "data", "keep it elsewhere"),
            (&KEYS.replace("bucket: b", "bucket: b/c"), 0o600, ".", "bucket"),
            (&KEYS.replace("s3", "gcs"), 0o600, ".", "service account"),
            ("type: http\nurl: https://x.example\n", 0o600, ".", "nothing can be stored"),
            ("type: azure_file\naccount_name: a\nfile_share_name: b\n", 0o600, ".", "served"),
        ] {
            let said = read(text, mode, below).unwrap_err();
            assert!(said.contains(expected) && said.contains("storage.yml"), "{said}");
            assert!(!said.contains("canary"), "{said}");
        }
    }
}
