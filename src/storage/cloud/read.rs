//! Reading objects: all of one version, and no more at once than a reader wants.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, GetRange, ObjectMeta};

use super::{Cloud, meta_of};
use crate::storage::{Error, Meta, ObjectPath};

/// What one request reads: retries begin anew with each, and none lasts for ever.
pub(super) const WINDOW: u64 = 32 << 20;
/// The pieces that readers are given.
const PIECE: usize = 256 << 10;
/// An object of a store, opened for reading.
pub(in crate::storage) struct OpenObject {
    pub(super) cloud: Cloud,
    pub(super) path: ObjectPath,
    pub(super) meta: ObjectMeta,
}

impl OpenObject {
    pub(in crate::storage) fn meta(&self) -> Meta {
        meta_of(&self.meta)
    }

    /// The bytes of `range`, all of one version: once another object has its place, an error.
    pub(in crate::storage) fn stream(
        self,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, Error>> {
        let object = Arc::new(self);
        let windows = futures::stream::try_unfold(range, move |left| {
            let object = object.clone();
            async move {
                if left.is_empty() {
                    return Ok(None);
                }
                let (bytes, until) = object.window(left.clone()).await?;
                Ok::<_, Error>(Some((bytes, until..left.end)))
            }
        });
        windows.try_flatten()
    }

    /// The first bytes of what is left, and until where they go.
    async fn window(
        &self,
        left: Range<u64>,
    ) -> Result<(impl Stream<Item = Result<Bytes, Error>> + use<>, u64), Error> {
        let (store, key) = (self.cloud.store().await?, self.cloud.key(&self.path)?);
        let (cloud, path) = (self.cloud.clone(), self.path.clone());
        let window = left.start..left.end.min(left.start + WINDOW);
        let failed = move |error| cloud.problem("read", path.as_str(), error);
        let mut options = self.same_version();
        options.range = Some(GetRange::Bounded(window.clone()));
        let (got, skip, until) = match store.get_opts(&key, options).await {
            // A web server need not know ranges. Then all that is wanted comes with one answer.
            Err(object_store::Error::NotSupported { .. }) => {
                let whole = store.get_opts(&key, self.same_version()).await;
                (whole.map_err(&failed)?, left.start, left.end)
            }
            got => (got.map_err(&failed)?, 0, window.end),
        };
        if got.meta.size != self.meta.size {
            return Err(Error::Changed(self.path.to_string()));
        }
        let bytes = got.into_stream().map_err(failed);
        Ok((cut(bytes, skip, until - left.start, self.path.clone()), until))
    }

    /// What only the version that was looked at fulfils.
    fn same_version(&self) -> GetOptions {
        let strong = self.meta.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
        let dated = strong.is_none().then_some(self.meta.last_modified);
        GetOptions { if_match: strong, if_unmodified_since: dated, ..GetOptions::default() }
    }
}

/// Exactly `wanted` bytes after the first `skip`, in pieces that are not too large.
fn cut(
    bytes: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
    skip: u64,
    wanted: u64,
    path: ObjectPath,
) -> impl Stream<Item = Result<Bytes, Error>> {
    let state = (bytes.boxed(), Bytes::new(), skip, wanted);
    futures::stream::try_unfold(state, move |(mut bytes, mut rest, mut skip, wanted)| {
        let path = path.clone();
        async move {
            if wanted == 0 {
                return Ok(None);
            }
            while rest.is_empty() {
                let Some(piece) = bytes.try_next().await? else {
                    return Err(Error::Changed(path.to_string()));
                };
                rest = piece;
                let passed = rest.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
                skip -= passed as u64;
                let _ = rest.split_to(passed);
            }
            let length = rest.len().min(PIECE).min(usize::try_from(wanted).unwrap_or(usize::MAX));
            let piece = rest.split_to(length);
            Ok(Some((piece, (bytes, rest, skip, wanted - length as u64))))
        }
    })
}
