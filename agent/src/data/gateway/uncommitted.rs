//! What the gateway does with files that an attempt has not committed.

use reqwest::StatusCode;

use super::{Failure, Gateway, Patience, accepted};
use crate::data::{Error, path};

impl Gateway {
    /// Stores at `to` a copy of the object at `from`, which has `size` bytes: they do not pass this node. Tried
    /// once, since whoever asks can send the bytes.
    pub(in crate::data) async fn copy(
        &self,
        datastore: &str,
        from: &str,
        to: &str,
        size: u64,
        token: &str,
    ) -> Result<(), Failure> {
        let url = format!("{}?from={}&size={size}", self.url(datastore, to), path::in_url(from));
        accepted(self.client.put(url).bearer_auth(token).send().await?).await?;
        Ok(())
    }

    /// Removes an object of the attempt's own. One that is not there is removed.
    pub(in crate::data) async fn remove(
        &self,
        datastore: &str,
        key: &str,
        token: &str,
    ) -> Result<(), Error> {
        path::check(key)?;
        let url = self.url(datastore, key);
        let mut patience = Patience::new();
        loop {
            let sent = self.client.delete(&url).bearer_auth(token).send();
            let removed = async { accepted(sent.await?).await };
            match removed.await {
                Ok(_) | Err(Failure::Status(StatusCode::NOT_FOUND, _)) => return Ok(()),
                Err(failure) => patience
                    .after(failure)
                    .await
                    .map_err(|failure| Self::error("remove", datastore, key, failure))?,
            }
        }
    }
}
