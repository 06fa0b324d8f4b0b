//! Stands where the data plane will be.

use std::path::{Path, PathBuf};

use atelier_core::content::Digest;
use atelier_core::content::manifest::ManifestEntry;
use atelier_core::spec::Input;
use atelier_proto::agent::v1 as pb;
use bytes::Bytes;

use crate::data::Fault;

#[derive(Debug, thiserror::Error)]
#[error("data plane: {0}")]
pub(crate) struct Error(#[from] std::io::Error);

impl Error {
    pub(crate) fn fault(&self) -> Fault {
        Fault::Platform
    }
}

pub(crate) struct Options {
    pub(crate) http_url: String,
    pub(crate) shared: bool,
    pub(crate) cache_dir: PathBuf,
}

#[derive(Clone, Debug)]
pub(crate) struct DataPlane;

impl DataPlane {
    pub(crate) fn new(options: Options) -> Result<Self, Error> {
        let _ = (options.http_url, options.shared, options.cache_dir);
        Ok(Self)
    }
    pub(crate) async fn code(&self, _snapshot: Digest, _into: &Path) -> Result<(), Error> {
        Ok(())
    }
    pub(crate) async fn input(
        &self,
        _name: &str,
        _input: &Input,
        _grant: Option<&pb::InputGrant>,
        _token: &str,
        into: &Path,
    ) -> Result<String, Error> {
        Ok(into.display().to_string())
    }
    pub(crate) async fn upload(
        &self,
        _from: &Path,
        _to: &pb::StorePath,
        _artifact_prefix: &str,
        _token: &str,
    ) -> Result<Vec<ManifestEntry>, Error> {
        Ok(Vec::new())
    }
    pub(crate) async fn put(
        &self,
        _to: &pb::StorePath,
        _bytes: Bytes,
        _token: &str,
    ) -> Result<(), Error> {
        Ok(())
    }
}
