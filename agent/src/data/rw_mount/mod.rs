//! Outputs of mode `rw_mount`: what a job has closed is stored while it runs, where nobody but the job's own
//! attempts sees it ([`layout::uncommitted_path`]).
//!
//! Nothing depends on it: what is not stored, or was changed since, is stored when the job ends. But what is there
//! need not be moved then, and is where the job's next attempt finds it, whatever became of this node.
//!
//! ```text
//! watch --(closed, renamed, removed)--> mirror --(whole files)--> datastore
//!                                         |                          |
//!                                       ledger --(at the end)--> copied to its place
//! ```
//! **Invariant:** a file lies there as it was at some moment, whole, or not at all. **Invariant:** no symbolic link
//! is followed: a job that runs could lead the agent, which may read more, to others' files. **Invariant:** what is
//! committed has the bytes that the file has then: neither its times nor the ledger are taken for that, but its digest,
//! and the tag by which the datastore knows what was stored of it.

mod below;
mod ledger;
mod mirror;
mod send;
mod watch;

use std::collections::HashSet;
use std::path::Path;

use atelier_proto::agent::v1 as pb;
use futures::{StreamExt as _, TryStreamExt as _};

use super::direct::Wanted;
use super::error::blocking;
use super::gateway::Copied;
use super::store::Found;
use super::{Error, Inner, path};
pub(crate) use ledger::Ledger;
pub(crate) use mirror::{LOOKS, Mirror, Mirroring, settle};

use below::Version;
use ledger::Stored;

/// Objects read at once while files are put back.
const READERS: usize = 8;

/// An output that is mirrored.
#[derive(Clone, Debug)]
pub(crate) struct Mirrored {
    /// Its name, and that of its file or folder below the attempt's outputs.
    pub(crate) name: String,
    /// Where its files lie until they are committed.
    pub(crate) at: pb::StorePath,
}

/// What is known of an output when it is committed.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) output: &'a Mirrored,
}

impl Known<'_> {
    /// Puts a file that lies there as it is now at its place; its length and digest. `None`: it has to be sent.
    pub(super) async fn commit(
        &self,
        inner: &Inner,
        file: &Path,
        below: &str,
        to: &str,
        token: &str,
    ) -> Option<(u64, atelier_core::content::Digest)> {
        let stored = self.ledger.get(&self.output.name, below)?;
        let version = Version::of(&std::fs::symlink_metadata(file).ok()?);
        if version != stored.version {
            return None;
        }
        // A file's times may have been set back, and what was written through memory need not show in them.
        let (local, tag) = (file.to_owned(), stored.tag.clone());
        if blocking(move || Stored::of(&local, tag)).await.ok()? != stored {
            return None;
        }
        let at = &self.output.at;
        let from = path::join(&at.path, below);
        let copied = Copied { from: &from, to, size: version.bytes, tag: &stored.tag };
        match inner.gateway.copy(&at.datastore, &copied, token).await {
            Ok(()) => Some((version.bytes, stored.digest)),
            Err(failure) => {
                let why = failure.text();
                tracing::debug!(from, why, "a file is not copied within its datastore, but sent");
                None
            }
        }
    }
}

/// Puts back what earlier attempts have not committed, into the folder of outputs; how many files.
pub(super) async fn restore(
    inner: &Inner,
    output: &Mirrored,
    outputs: &Path,
    ledger: &Ledger,
    token: &str,
) -> Result<usize, Error> {
    let Mirrored { name, at } = output;
    path::check(name)?;
    let key = path::checked(&at.path)?;
    let found = match inner.gateway.list(&at.datastore, key, token).await {
        // Nothing that a job writes has no name.
        Ok((found, _)) => found,
        // A daemon of before keeps nothing.
        Err(Error::Gateway { transient: false, .. }) => return Ok(0),
        Err(error) => return Err(error),
    };
    let found = files(found);
    let count = found.len();
    futures::stream::iter(found)
        .map(|object| async move {
            let below = path::join(name, &object.below);
            path::check(&below)?;
            let to = outputs.join(&below);
            let folder = to.parent().unwrap_or(outputs).to_owned();
            blocking(move || {
                std::fs::create_dir_all(&folder)
                    .map_err(|error| Error::io("create the folder", &folder, error))
            })
            .await?;
            let from = path::join(key, &object.below);
            let wanted = Wanted { datastore: &at.datastore, key: &from, etag: &object.etag, token };
            inner.gateway.get(&wanted, object.size, &to).await?;
            let stored = blocking(move || Stored::of(&to, object.etag)).await?;
            ledger.put(name, &object.below, stored);
            Ok::<_, Error>(())
        })
        .buffer_unordered(READERS)
        .try_collect::<()>()
        .await?;
    Ok(count)
}

/// Those that can be files beside each other. Object stores also have something at `a` if there is something at `a/b`:
/// as a file was removed and a folder took its name, of which only the second was stored yet.
fn files(mut found: Vec<Found>) -> Vec<Found> {
    let above: HashSet<String> = found
        .iter()
        .filter(|object| !object.below.is_empty())
        .flat_map(|object| {
            let ends =
                object.below.match_indices('/').map(|(end, _)| object.below[..end].to_owned());
            ends.chain([String::new()])
        })
        .collect();
    found.retain(|object| !above.contains(&object.below));
    found
}
