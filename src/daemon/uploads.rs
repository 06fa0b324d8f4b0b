//! Uploads that go to a store itself, part by part: which are under way, and what becomes of those whose attempt is
//! over, or that somebody has left lying.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::access::AttemptScope;
use atelier_core::time::Timestamp;

use crate::config::SignedUrls;
use crate::identity::Door;
use crate::storage::{self, Datastore, Datastores, ObjectPath};
use crate::store::parts::{self, PartUpload, Uploader};
use crate::store::{self, SqliteStore};

/// Between two looks at what is left.
const PATROL: Duration = Duration::from_secs(15);
/// How many are looked at together.
const PAGE: u32 = 256;
/// After so long one that cannot be given up is forgotten: the store's own rules remove it.
const GIVEN_UP: Duration = Duration::from_secs(7 * 24 * 3600);

/// After so long what a person has not completed is removed.
const LEFT: Duration = Duration::from_secs(24 * 3600);

/// For how long a part can be written by an address at most, and what is too short for one.
const WRITE: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(10);

/// Uploads in parts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Uploads {
    store: Arc<SqliteStore>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    signs: SignedUrls,
    /// For how long a part can be written by an address; `None`: nothing is.
    pub(crate) writes: Option<Duration>,
}

impl Uploads {
    /// `lease`: for how long an attempt's node may be silent; what may be written is over before that.
    pub(crate) fn new(
        store: Arc<SqliteStore>,
        now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
        signs: SignedUrls,
        lease: Duration,
    ) -> Self {
        let writes = (lease / 2).min(WRITE);
        let is_long = signs != SignedUrls::None && writes >= SHORTEST;
        Self { store, now, signs, writes: is_long.then_some(writes) }
    }

    /// Whether stores are asked to sign addresses at all.
    pub(crate) fn signs(&self) -> bool {
        self.signs != SignedUrls::None
    }

    /// Whether a node writes to the store itself. Past a daemon on its own machine nothing is gained but the work of
    /// that; and the store's is doubled where it copies what was written.
    pub(crate) fn pays(&self, datastore: &Datastore, from: Option<IpAddr>) -> bool {
        let is_near = from.is_none_or(|from| from.is_loopback());
        !is_near || !datastore.copies_parts() || self.signs == SignedUrls::Always
    }

    pub(crate) async fn begin(
        &self,
        id: String,
        by: Uploader,
        datastore: &Datastore,
        path: &ObjectPath,
        upload: String,
    ) -> Result<(), store::Error> {
        let begun = PartUpload {
            id,
            by,
            datastore: datastore.name().clone(),
            path: path.to_string(),
            upload,
            begun_at: (self.now)(),
        };
        self.store.write(move |conn| parts::begin(conn, &begun)).await
    }

    pub(crate) async fn find(&self, id: String) -> Result<Option<PartUpload>, store::Error> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.read(|conn| parts::find(conn, &id)))
            .await
            .unwrap_or(Ok(None))
    }

    pub(crate) async fn end(&self, id: String) -> Result<(), store::Error> {
        self.store.write(move |conn| parts::end(conn, &id)).await
    }

    /// Removes what attempts that are over have left, and what people have, for as long as the daemon runs.
    pub(crate) async fn collect(self, datastores: Datastores, door: Arc<Door>) {
        loop {
            tokio::time::sleep(PATROL).await;
            if let Err(error) = self.collect_once(&datastores, &door).await {
                tracing::warn!(%error, "uploads that were given up are not looked at");
            }
        }
    }

    async fn collect_once(&self, datastores: &Datastores, door: &Door) -> Result<(), store::Error> {
        let mut after = String::new();
        loop {
            let page = self.store.read(|conn| parts::page(conn, &after, PAGE))?;
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(&last.id);
            for upload in page {
                let age = (self.now)().as_millis().saturating_sub(upload.begun_at.as_millis());
                let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
                if !is_left(&upload.by, age, |attempt| door.is_live(attempt)) {
                    continue;
                }
                let is_old = age > GIVEN_UP;
                match give_up(datastores, &upload).await {
                    Ok(()) => {
                        tracing::info!(datastore = %upload.datastore, "an upload was given up")
                    }
                    Err(error) if is_old => {
                        tracing::warn!(%error, "an upload is left to the store's own rules");
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an upload is given up later");
                        continue;
                    }
                }
                self.end(upload.id).await?;
            }
        }
    }
}

/// Whether nobody completes an upload any more.
fn is_left(by: &Uploader, age: Duration, is_live: impl Fn(&AttemptScope) -> bool) -> bool {
    match by {
        Uploader::Attempt(attempt) => !is_live(attempt),
        Uploader::Person { .. } => age > LEFT,
    }
}

#[cfg(test)]
impl Uploads {
    /// With a database of its own below `folder`.
    pub(crate) fn for_test(folder: &std::path::Path) -> Self {
        let store = SqliteStore::open(&folder.join("uploads.db"), false).unwrap();
        let now = Arc::new(|| Timestamp::from_millis(0));
        Self::new(Arc::new(store), now, SignedUrls::Auto, Duration::from_secs(60))
    }
}

/// Removes an upload's parts from the store.
pub(super) async fn give_up(
    datastores: &Datastores,
    upload: &PartUpload,
) -> Result<(), storage::Error> {
    // Who forgot the datastore has forgotten what lies there.
    let Ok(datastore) = datastores.get(upload.datastore.as_str()) else { return Ok(()) };
    let path = ObjectPath::new(&upload.path)?;
    datastore.hasty().abort_parts(&path, &upload.upload).await
}

#[cfg(test)]
mod tests {
    use atelier_core::id::{AttemptNumber, Epoch, JobName, Principal};

    use super::*;

    #[test]
    fn what_is_left_lying_goes() {
        let attempt = AttemptScope {
            job: JobName::new("job").unwrap(),
            attempt: AttemptNumber(1),
            epoch: Epoch(2),
        };
        let person = Uploader::Person { principal: Principal::new("ada").unwrap() };
        // Rows of before there were people's are attempts'.
        let row = serde_json::to_string(&attempt).unwrap();
        let attempt = Uploader::Attempt(attempt);
        assert_eq!(serde_json::from_str::<Uploader>(&row).unwrap(), attempt);
        let row = serde_json::to_string(&person).unwrap();
        assert_eq!(serde_json::from_str::<Uploader>(&row).unwrap(), person);

        let day = Duration::from_secs(24 * 3600);
        for (by, age, is_live, left) in [
            (&attempt, Duration::ZERO, true, false),
            (&attempt, 2 * day, true, false),
            (&attempt, Duration::ZERO, false, true),
            (&person, day, false, false),
            (&person, day + Duration::from_secs(1), true, true),
        ] {
            assert_eq!(is_left(by, age, |_| is_live), left, "{by:?} {age:?}");
        }
    }
}
