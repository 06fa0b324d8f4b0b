//! Another key for an object that is there, made by the store itself.

use std::time::{Duration, Instant};

use atelier_core::datastore::Source;
use futures::FutureExt as _;
use object_store::ObjectStoreExt as _;

use super::Cloud;
use crate::storage::{Error, Expected, Meta, ObjectPath, Still};

/// The longest that S3 copies with one request, in bytes.
const LARGEST_OF_S3: u64 = 5 << 30;
/// How long a store may go on copying after it has answered.
const PENDING: Duration = Duration::from_secs(60);
/// Between two looks at whether it has.
const PAUSE: Duration = Duration::from_millis(500);

impl Cloud {
    /// Makes `to` a copy of the object at `from`, if it is the expected one.
    pub(in crate::storage) async fn copy(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        expected: &Expected,
        still: &Still,
    ) -> Result<Meta, Error> {
        self.check_writable()?;
        if expected.size > LARGEST_OF_S3 && matches!(self.inner.source, Source::S3 { .. }) {
            return Err(self.unsupported("S3 copies no objects of more than 5 GiB"));
        }
        expected.check(from, &self.head(from).await?)?;
        let (source, target) = (self.key(from)?, self.key(to)?);
        self.last(to, still, |client| {
            let (source, target) = (source.clone(), target.clone());
            async move { client.store().copy(&source, &target).await }.boxed()
        })
        .await?;
        self.copied(to, expected.size).await
    }

    /// What is known of a copy once it is all there: Azure may answer before, and what is there is empty until then.
    async fn copied(&self, to: &ObjectPath, size: u64) -> Result<Meta, Error> {
        let asked = Instant::now();
        loop {
            let meta = self.head(to).await?;
            if meta.size == size {
                return Ok(meta);
            }
            if asked.elapsed() >= PENDING {
                return Err(Error::Changed(to.to_string()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
