//! Another key for an object that is there, made by the store itself.

use object_store::ObjectStoreExt as _;

use super::Cloud;
use crate::storage::{Error, Meta, ObjectPath, Still};

impl Cloud {
    /// Makes `to` a copy of the object at `from`, which has `size` bytes.
    pub(in crate::storage) async fn copy(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        size: u64,
        still: &Still,
    ) -> Result<Meta, Error> {
        self.check_writable()?;
        if self.look(from).await?.size != size {
            return Err(Error::Changed(from.to_string()));
        }
        still().map_err(|why| Error::Interrupted(why.into()))?;
        let (store, source, target) = (self.store().await?, self.key(from)?, self.key(to)?);
        let copied = store.copy(&source, &target).await;
        copied.map_err(|error| self.problem("write", to.as_str(), error))?;
        // Azure may answer before it has copied all, and what is there is empty until then.
        let meta = self.head(to).await?;
        match meta.size == size {
            true => Ok(meta),
            false => Err(Error::Changed(to.to_string())),
        }
    }
}
