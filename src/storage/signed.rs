//! Objects read and written past the daemon: by addresses that it signs.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use super::{Backend, Datastore, Error, ObjectPath, Served, Still};

/// An address by which whoever has it does one thing to one object, for a while. Its text opens what it is for, so
/// it is shown to nobody but whom it is given to.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    /// With its signature.
    pub url: String,
}

/// An upload that has become an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completed {
    /// The object's tag.
    pub tag: String,
    /// Whether nothing else is left of the upload. What is goes when the upload is given up.
    pub is_clean: bool,
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.url.split('?').next().unwrap_or_default();
        write!(f, "Signed({shown}?…)")
    }
}

impl Datastore {
    /// Addresses by which the objects can be read from the store itself, whether they are there or not. `None`: this
    /// one gives none, since it is a folder or its credentials cannot sign.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: a path is no name there; [`Error::Away`].
    pub async fn sign_reads(
        &self,
        paths: &[ObjectPath],
        lasting: Duration,
    ) -> Result<Option<Vec<Signed>>, Error> {
        match self.served().await? {
            Served::Folder(_) => Ok(None),
            Served::Cloud(cloud) => cloud.sign_reads(paths, lasting).await,
        }
    }

    /// Whether the store copies the parts of an upload that is completed.
    pub fn copies_parts(&self) -> bool {
        match &self.backend {
            Backend::Cloud(cloud, _) | Backend::OwnCloud(cloud, _) => cloud.copies_parts(),
            Backend::Own(_) | Backend::Placed(..) | Backend::Public(..) => false,
        }
    }

    /// Begins an upload whose parts are written to the store itself; its id there. `None`: this one takes none.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::Away`] and others.
    pub async fn begin_parts(&self, path: &ObjectPath) -> Result<Option<String>, Error> {
        match self.served().await? {
            Served::Folder(_) => Ok(None),
            Served::Cloud(cloud) => cloud.begin_parts(path).await,
        }
    }

    /// Addresses by which parts of an upload are written. The first part is number 1.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Away`].
    pub async fn sign_parts(
        &self,
        path: &ObjectPath,
        upload: &str,
        parts: Range<u32>,
        lasting: Duration,
    ) -> Result<Vec<Signed>, Error> {
        self.cloud().await?.sign_parts(path, upload, parts, lasting).await
    }

    /// Makes the parts of an upload the object at `path`, if `still` finds no reason against it. `tags` are what the
    /// store has said of the parts, in their order.
    ///
    /// # Errors
    /// [`Error::Interrupted`] with the reason of `still`; that the store does not know the upload or a part.
    pub async fn complete_parts(
        &self,
        path: &ObjectPath,
        upload: &str,
        tags: Vec<String>,
        still: &Still,
    ) -> Result<Completed, Error> {
        self.cloud().await?.complete_parts(path, upload, tags, still).await
    }

    /// Gives up an upload, whose parts are removed. One that is over already is no error.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::Away`].
    pub async fn abort_parts(&self, path: &ObjectPath, upload: &str) -> Result<(), Error> {
        self.cloud().await?.abort_parts(path, upload).await
    }

    async fn cloud(&self) -> Result<super::Cloud, Error> {
        match self.served().await? {
            Served::Cloud(cloud) => Ok(cloud),
            Served::Folder(_) => Err(Error::Unsupported {
                datastore: self.name.clone(),
                problem: "a folder takes no uploads in parts".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
impl Datastore {
    /// As of a store that takes nothing at a part's address but the part.
    pub(crate) fn keeping_to_parts(&self) {
        if let Backend::OwnCloud(cloud, _) | Backend::Cloud(cloud, _) = &self.backend {
            cloud.keeping_to_parts();
        }
    }
}
