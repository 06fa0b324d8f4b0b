//! What the gateway does with files that an attempt has not committed.

use reqwest::StatusCode;

use super::{Failure, Gateway, Patience, accepted};
use crate::data::{Error, path};

/// What is copied within a datastore.
pub(in crate::data) struct Copied<'a> {
    pub(in crate::data) from: &'a str,
    pub(in crate::data) to: &'a str,
    /// In bytes.
    pub(in crate::data) size: u64,
    /// The datastore's tag of what is to lie at `from`; empty: that is not known.
    pub(in crate::data) tag: &'a str,
}

impl Gateway {
    /// Stores an object as a copy of another: its bytes do not pass this node. Tried once, since whoever asks can send
    /// the bytes.
    pub(in crate::data) async fn copy(
        &self,
        datastore: &str,
        Copied { from, to, size, tag }: &Copied<'_>,
        token: &str,
    ) -> Result<(), Failure> {
        let mut url =
            format!("{}?from={}&size={size}", self.url(datastore, to), path::in_url(from));
        if !tag.is_empty() {
            url.push_str("&tag=");
            url.push_str(&path::in_url(tag));
        }
        let answer = accepted(self.client.put(url).bearer_auth(token).send().await?).await?;
        match answer.status() {
            StatusCode::OK => Ok(()),
            // A daemon of before has stored what was sent: nothing.
            _ => Err(Failure::Broken("the daemon knows of no copies".to_owned())),
        }
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
