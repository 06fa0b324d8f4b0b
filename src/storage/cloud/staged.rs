//! Uploads in parts to a store whose addresses cannot be for one part alone.
//!
//! Azure signs an address for all that may be done to a blob: who may write a block of it may as well replace it, for
//! as long as the address is good. So nobody is given one of the object's own key. The blocks are written beside it
//! ([`super::beside`]), and when all are there the daemon has the store copy them, of that very version, to blocks of
//! the object, which it then commits: nothing of it is seen before, and what is done to the other key afterwards
//! changes nothing. A source is signed apart, so that no address for writing lets its holder copy what it may not read.
//!
//! See "Put Block", "Put Block From URL" and "Put Block List" of the Blob service's REST API.

use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::TryStreamExt as _;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};
use object_store::azure::MicrosoftAzure;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{ObjectStoreExt as _, PutPayload};
use reqwest::Url;

use super::Cloud;
use super::beside::{beside, new_id};
use super::client::{CONNECT, STILL, USER_AGENT};
use super::problem::Told;
use crate::storage::{Error, ObjectPath, Signed, Still};

/// Bytes that are copied with one request, at least, and requests for one object at most.
const RANGE: u64 = 64 << 20;
const RANGES: u64 = 10_000;
/// Requests for one object that are under way at once, and those for which addresses are signed together.
const AT_ONCE: usize = 8;
const TOGETHER: usize = 64;
/// For how long such an address is good. Nobody but the daemon has it.
const COPYING: Duration = Duration::from_secs(3600);

/// The name of a block of an upload. Those of one blob are all of one length, and those of two uploads of one object
/// are others: what one of them copies late must not become a part of the other's.
fn block(id: &str, number: u64) -> PartId {
    PartId { content_id: format!("{id}{number:016x}") }
}

/// Has an address be for that block.
fn query(url: &mut Url, block: &PartId) {
    url.query_pairs_mut()
        .append_pair("comp", "block")
        .append_pair("blockid", &BASE64_STANDARD.encode(&block.content_id));
}

/// Which bytes of an object of that size each request copies.
fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    let each = size.div_ceil(RANGES).max(RANGE);
    (0..size.div_ceil(each)).map(move |number| number * each..size.min((number + 1) * each))
}

/// One version of what was written, and where its bytes go.
struct Copying<'a> {
    http: reqwest::Client,
    path: &'a ObjectPath,
    from: Url,
    tag: &'a str,
    to: Url,
}

impl Cloud {
    fn staged(&self, path: &ObjectPath, id: &str) -> Result<(Path, Path), Error> {
        let key = self.key(path)?;
        let written = Path::parse(beside(&key, id)).map_err(|_| {
            self.unsupported(format!("'{path}' has no place beside it for what is written"))
        })?;
        Ok((key, written))
    }

    /// The id of an upload. `None`: this server does not copy blocks, or not of such a name.
    pub(super) async fn begin_staged(
        &self,
        store: &MicrosoftAzure,
        path: &ObjectPath,
    ) -> Result<Option<String>, Error> {
        let key = self.key(path)?;
        // The library signs a name as the address spells it, with `%20` for a space, and Azure as the blob is called.
        if !key
            .as_ref()
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte))
        {
            return Ok(None);
        }
        let copies = self.inner.keeps_to_parts.get_or_try_init(|| self.copies_blocks(store)).await;
        match copies {
            Ok(true) => Ok(new_id()),
            Ok(false) => Ok(None),
            Err(problem) => {
                tracing::debug!(datastore = %self.inner.name, %problem, "whether it copies blocks is tried again");
                Ok(None)
            }
        }
    }

    /// Tries what is to be done with each upload.
    async fn copies_blocks(&self, store: &MicrosoftAzure) -> Result<bool, Error> {
        let path = &ObjectPath::new("tried")?;
        let failed = |error| self.problem("write", path.as_str(), error);
        let Some(id) = new_id() else { return Ok(false) };
        let other = id.chars().rev().collect::<String>();
        let ((_, from), (_, to)) = (self.staged(path, &id)?, self.staged(path, &other)?);
        let put = store.put(&from, PutPayload::from_static(b"?")).await.map_err(failed)?;
        let tag = put.e_tag.unwrap_or_default();
        let copied = async {
            let copying = self.copying(store, path, &from, &tag, &to).await?;
            self.copy_range(&copying, 0..1, &block(&id, 0)).await
        };
        let copied = copied.await;
        for key in [&from, &to] {
            self.forget(store, path, key).await?;
        }
        match copied {
            Ok(()) => Ok(true),
            Err(problem @ Error::Unsupported { .. }) => {
                tracing::warn!(
                    datastore = %self.inner.name,
                    %problem,
                    "the store does not copy blocks: what nodes write goes through the daemon"
                );
                Ok(false)
            }
            Err(problem) => Err(problem),
        }
    }

    /// Addresses by which blocks are written beside an object; the first is number 1.
    pub(super) async fn sign_staged(
        &self,
        store: &MicrosoftAzure,
        path: &ObjectPath,
        id: &str,
        parts: Range<u32>,
        lasting: Duration,
    ) -> Result<Vec<Signed>, Error> {
        let (_, written) = self.staged(path, id)?;
        let signed = store.signed_url(Method::PUT, &written, lasting).await;
        let signed = signed.map_err(|error| self.problem("write", path.as_str(), error))?;
        let of_part = |number: u32| {
            let mut url = signed.clone();
            query(&mut url, &block(id, number.into()));
            Signed { url: url.into() }
        };
        Ok(parts.map(of_part).collect())
    }

    /// Makes the first `count` blocks the object, if `still` finds no reason against it; its tag, and whether nothing
    /// is left beside it.
    pub(super) async fn complete_staged(
        &self,
        store: &MicrosoftAzure,
        path: &ObjectPath,
        id: &str,
        count: usize,
        still: &Still,
    ) -> Result<(Option<String>, bool), Error> {
        let failed = |error| self.problem("write", path.as_str(), error);
        still().map_err(|why| Error::Interrupted(why.into()))?;
        let (key, written) = self.staged(path, id)?;
        let blocks = (1..=count as u64).map(|number| block(id, number)).collect();
        match store.complete_multipart(&written, &id.to_owned(), blocks).await {
            Ok(_) => {}
            // They are its content since a try of before, whose answer was lost or which came no further; or lost.
            Err(error) if Told::is_misunderstood(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        let lost = || Error::NotFound(path.to_string());
        let whole = match store.head(&written).await {
            Ok(whole) => whole,
            Err(object_store::Error::NotFound { .. }) => return Err(lost()),
            Err(error) => return Err(failed(error)),
        };
        // It is being given up, or was.
        if whole.size == 0 {
            return Err(lost());
        }
        let tag = whole.e_tag.unwrap_or_default();
        let all: Vec<_> = (0..).map(|number| block(id, number)).zip(ranges(whole.size)).collect();
        for some in all.chunks(TOGETHER) {
            let copying = &self.copying(store, path, &written, &tag, &key).await?;
            let each = some.iter().cloned().map(Ok);
            futures::stream::iter(each)
                .try_for_each_concurrent(AT_ONCE, async |(block, range)| {
                    self.copy_range(copying, range, &block).await
                })
                .await?;
        }
        let blocks: Vec<_> = all.into_iter().map(|(block, _)| block).collect();
        let stored = self.complete(path, id, &blocks, still).await?;
        // Of what is whole no block is left over.
        let forgotten = match store.delete(&written).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        };
        if let Err(problem) = &forgotten {
            tracing::debug!(datastore = %self.inner.name, %problem, "what an upload left is removed later");
        }
        Ok((stored, forgotten.is_ok()))
    }

    /// Removes what was written of an upload.
    pub(super) async fn abort_staged(
        &self,
        store: &MicrosoftAzure,
        path: &ObjectPath,
        id: &str,
    ) -> Result<(), Error> {
        let (_, written) = self.staged(path, id)?;
        self.forget(store, path, &written).await
    }

    /// Blocks that are of no blob yet cannot be deleted, and Azure keeps them for a week: an empty one has none.
    async fn forget(
        &self,
        store: &MicrosoftAzure,
        path: &ObjectPath,
        key: &Path,
    ) -> Result<(), Error> {
        let forgotten = async {
            store.put(key, PutPayload::new()).await?;
            store.delete(key).await
        };
        match forgotten.await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.problem("write", path.as_str(), error)),
        }
    }

    async fn copying<'a>(
        &self,
        store: &MicrosoftAzure,
        path: &'a ObjectPath,
        from: &Path,
        tag: &'a str,
        to: &Path,
    ) -> Result<Copying<'a>, Error> {
        let failed = |error| self.problem("write", path.as_str(), error);
        let from = store.signed_url(Method::GET, from, COPYING).await.map_err(failed)?;
        let to = store.signed_url(Method::PUT, to, COPYING).await.map_err(failed)?;
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(STILL)
            .user_agent(USER_AGENT)
            .build();
        let http = http.map_err(|error| self.unsupported(format!("no client: {error}")))?;
        Ok(Copying { http, path, from, tag, to })
    }

    /// Has the store make some of the bytes a block.
    async fn copy_range(
        &self,
        copying: &Copying<'_>,
        range: Range<u64>,
        block: &PartId,
    ) -> Result<(), Error> {
        let Copying { http, path, from, tag, to } = copying;
        let mut url = to.clone();
        query(&mut url, block);
        let mut pauses = self.inner.retries.pauses();
        loop {
            let asked = http
                .put(url.clone())
                .header(CONTENT_LENGTH, 0)
                .header("x-ms-copy-source", from.as_str())
                .header("x-ms-source-range", format!("bytes={}-{}", range.start, range.end - 1))
                .header("x-ms-source-if-match", *tag)
                .send()
                .await;
            let (problem, is_passing) = match asked {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => match answer.status() {
                    StatusCode::PRECONDITION_FAILED => {
                        return Err(Error::Changed(path.to_string()));
                    }
                    status @ StatusCode::FORBIDDEN => {
                        let datastore = self.inner.name.clone();
                        let problem =
                            format!("the store does not let a block be copied ({status})");
                        return Err(Error::Denied { datastore, operation: "write", problem });
                    }
                    status => {
                        let code = answer.headers().get("x-ms-error-code");
                        let code = code.and_then(|code| code.to_str().ok()).unwrap_or_default();
                        let passes =
                            status.is_server_error() || matches!(status.as_u16(), 408 | 429);
                        (format!("the store does not copy a block: HTTP {status} {code}"), passes)
                    }
                },
                Err(error) => (error.without_url().to_string(), true),
            };
            match pauses.next().filter(|_| is_passing) {
                Some(pause) => tokio::time::sleep(pause).await,
                None if is_passing => {
                    let datastore = self.inner.name.clone();
                    return Err(Error::Away { datastore, problem });
                }
                None => return Err(self.unsupported(problem)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_of_one_upload() {
        let [one, another] = [new_id().unwrap(), new_id().unwrap()];
        let names = [(&one, 0), (&one, 1), (&one, u64::MAX), (&another, 0), (&another, 1)];
        let names: Vec<_> = names.map(|(id, number)| block(id, number).content_id).into();
        assert!(names.iter().all(|name| name.len() == names[0].len()), "{names:?}");
        assert!(names.iter().enumerate().all(|(n, name)| !names[..n].contains(name)), "{names:?}");
    }

    #[test]
    fn ranges_cover_an_object_and_are_few() {
        const TIB: u64 = 1 << 40;
        for size in [0, 1, RANGE - 1, RANGE, RANGE + 1, 5 * TIB - 1, 5 * TIB] {
            let all: Vec<_> = ranges(size).collect();
            assert!(all.len() as u64 <= RANGES, "{size}");
            let mut end = 0;
            for range in all {
                assert_eq!(range.start, end);
                assert!(range.end > range.start);
                end = range.end;
            }
            assert_eq!(end, size);
        }
    }
}
