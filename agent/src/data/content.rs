//! Content objects: from the node's cache, else from the daemon.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::content::{Digest, MAX_OBJECT};
use atelier_proto::content::v1::GetRequest;
use atelier_proto::content::v1::content_service_client::ContentServiceClient;
use bytes::Bytes;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::Error;
use super::cache::{Cache, Kind, Pin, write_draft};
use super::error::blocking;

/// Digests asked for in one call. The answer streams, so this bounds no memory.
const BATCH: usize = 2048;
/// Objects written to the cache in one go.
const WRITE: usize = 256;
/// Tries while the daemon cannot be reached.
const TRIES: u32 = 5;

/// Where objects come from. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Source {
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
    cache: Arc<Cache>,
}

impl Source {
    pub(super) fn new(
        channel: Channel,
        token: Option<&str>,
        cache: Arc<Cache>,
    ) -> Result<Self, Error> {
        let authorization = token.map(|token| format!("Bearer {token}").parse()).transpose();
        let authorization = authorization.map_err(|_| {
            Error::Content(Box::new(Status::unauthenticated("the node's token is not ASCII text")))
        })?;
        Ok(Self { channel, authorization, cache })
    }

    /// Makes sure that the cache has these objects; they stay while the pins are held.
    pub(super) async fn fetch(&self, digests: &[Digest]) -> Result<HashMap<Digest, Pin>, Error> {
        let mut wanted: Vec<Digest> = digests.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let cache = Arc::clone(&self.cache);
        let (mut pins, missing) = blocking(move || {
            let mut pins = HashMap::with_capacity(wanted.len());
            let mut missing = Vec::new();
            for digest in wanted {
                match cache.get(Kind::Objects, digest) {
                    Some((_, pin)) => {
                        pins.insert(digest, pin);
                    }
                    None => missing.push(digest),
                }
            }
            Ok((pins, missing))
        })
        .await?;
        for batch in missing.chunks(BATCH) {
            self.download(batch, &mut pins).await?;
        }
        Ok(pins)
    }

    async fn download(
        &self,
        batch: &[Digest],
        pins: &mut HashMap<Digest, Pin>,
    ) -> Result<(), Error> {
        let mut rest = batch;
        let mut tries = 0;
        let mut pause = Duration::from_millis(200);
        loop {
            let before = rest.len();
            match self.stream(&mut rest, pins).await {
                Ok(()) if rest.is_empty() => return Ok(()),
                Ok(()) => {
                    let status = Status::data_loss("the answer ended before its last object");
                    return Err(Error::Content(Box::new(status)));
                }
                Err(Error::Content(status)) if is_transient(&status) => {
                    // Only tries that bring nothing count.
                    tries = if rest.len() < before { 1 } else { tries + 1 };
                    if tries >= TRIES {
                        return Err(Error::Content(status));
                    }
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// Fetches what it can of `rest`, from its front.
    async fn stream(
        &self,
        rest: &mut &[Digest],
        pins: &mut HashMap<Digest, Pin>,
    ) -> Result<(), Error> {
        let status = |status| Error::Content(Box::new(status));
        let mut client = ContentServiceClient::new(self.channel.clone())
            .max_decoding_message_size(4 * MAX_OBJECT + (1 << 20));
        let digests = rest.iter().map(|digest| Bytes::copy_from_slice(digest.as_bytes())).collect();
        let mut request = Request::new(GetRequest { digests });
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        let mut messages = client.get(request).await.map_err(status)?.into_inner();
        while let Some(message) = messages.message().await.map_err(status)? {
            for group in message.objects.chunks(WRITE) {
                let Some((asked, after)) = rest.split_at_checked(group.len()) else {
                    return Err(status(Status::data_loss("more objects came than were asked for")));
                };
                let cache = Arc::clone(&self.cache);
                let objects: Vec<(Digest, Bytes)> = asked
                    .iter()
                    .copied()
                    .zip(group.iter().map(|object| object.data.clone()))
                    .collect();
                let kept = blocking(move || {
                    let keep = |(digest, bytes): (Digest, Bytes)| {
                        if Digest::of(&bytes) != digest {
                            let problem = "what came is something else".to_owned();
                            return Err(Error::Snapshot { digest, problem });
                        }
                        let draft = cache.draft();
                        write_draft(&draft, &bytes)?;
                        Ok((digest, cache.keep(draft, Kind::Objects, digest)?.1))
                    };
                    objects.into_iter().map(keep).collect::<Result<Vec<_>, _>>()
                })
                .await?;
                pins.extend(kept);
                *rest = after;
            }
        }
        Ok(())
    }

    /// An object that [`Source::fetch`] has put into the cache, checked. Waits for the disk.
    pub(super) fn read(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let Some((path, _pin)) = self.cache.get(Kind::Objects, digest) else {
            let problem = "it is gone from the node's cache".to_owned();
            return Err(Error::Snapshot { digest, problem });
        };
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        if Digest::of(&bytes) == digest {
            return Ok(bytes);
        }
        // The next try fetches it again.
        self.cache.discard(Kind::Objects, digest);
        Err(Error::Snapshot { digest, problem: "it was damaged in the node's cache".into() })
    }
}

fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
    )
}
