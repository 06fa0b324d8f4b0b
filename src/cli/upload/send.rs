//! Asking what the workspace lacks, and sending it.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use atelier_core::content::{Digest, encode_chunk, objects_of};
use atelier_proto::content::v1::content_service_client::ContentServiceClient;
use atelier_proto::content::v1::{FindMissingRequest, Object, PutRequest};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::plan::{Plan, Planned, Source};
use super::{Error, Progress, Report, blocking};
use crate::client::Authorized;

/// The most digests of one question; the service's limit.
const ASK: usize = 20_000;
/// Up to this many objects, one question about all of them costs less than two.
const ASK_ALL: usize = 2_000;
/// Bytes of objects in one message, at most; the service takes 3 MiB.
const MESSAGE: usize = 3 * 1024 * 1024;
/// Objects in one message, at most.
const MESSAGE_OBJECTS: usize = 2048;

type Client = ContentServiceClient<Authorized>;

/// What was sent.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Sent {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

/// Makes the workspace have the plan's objects. `known`: a snapshot that a workspace once had.
pub(super) async fn send(
    mut client: Client,
    plan: &Arc<Plan>,
    known: Option<Digest>,
    report: &Report,
) -> Result<Sent, Error> {
    let missing = missing(&mut client, plan, known).await?;
    if missing.is_empty() {
        return Ok(Sent::default());
    }
    let total =
        missing.iter().filter_map(|digest| plan.get(digest)).map(Planned::length).sum::<u64>();
    let objects = missing.len() as u64;
    (report)(Progress::Sending { done: 0, total });
    let (messages, receiver) = mpsc::channel(1);
    let (read, reporting) = (plan.clone(), report.clone());
    let reader = blocking(move || read_objects(&read, &missing, total, &messages, &reporting));
    let put = async move { client.put(ReceiverStream::new(receiver)).await };
    // When the workspace refuses, the reader ends too: nobody receives. When the reader fails, the
    // stream ends early and what came of it is kept: children, which the next attempt need not send.
    let (read, put) = tokio::join!(reader, put);
    read?;
    put?;
    Ok(Sent { objects, bytes: total })
}

async fn missing(
    client: &mut Client,
    plan: &Plan,
    known: Option<Digest>,
) -> Result<HashSet<Digest>, Error> {
    let all = plan.objects.len() <= ASK_ALL;
    if (known == Some(plan.root) || !all) && ask(client, &[plan.root]).await?.is_empty() {
        return Ok(HashSet::new());
    }
    let every = |wanted: fn(&Source) -> bool| -> Vec<Digest> {
        plan.objects.iter().filter(|o| wanted(&o.source)).map(|o| o.digest).collect()
    };
    if all {
        return ask(client, &every(|_| true)).await;
    }
    // A list or directory that is there has all its chunks; only those of the others are in doubt.
    let mut missing = ask(client, &every(|source| matches!(source, Source::Here(_)))).await?;
    let mut doubtful = HashSet::new();
    for digest in &missing {
        if let Some(Planned { source: Source::Here(bytes), .. }) = plan.get(digest) {
            doubtful.extend(objects_of(bytes)?.into_iter().filter(|child| {
                plan.get(child).is_some_and(|o| matches!(o.source, Source::File { .. }))
            }));
        }
    }
    let doubtful: Vec<Digest> = doubtful.into_iter().collect();
    missing.extend(ask(client, &doubtful).await?);
    Ok(missing)
}

async fn ask(client: &mut Client, digests: &[Digest]) -> Result<HashSet<Digest>, Error> {
    let mut missing = HashSet::new();
    for some in digests.chunks(ASK) {
        let digests = some.iter().map(|d| Bytes::copy_from_slice(d.as_bytes())).collect();
        let answer = client.find_missing(FindMissingRequest { digests }).await?.into_inner();
        for digest in answer.missing {
            let digest = Digest::try_from(&*digest)
                .map_err(|_| Error::Internal("the workspace named no digest".to_owned()))?;
            missing.insert(digest);
        }
    }
    Ok(missing)
}

/// Reads what is missing, in the plan's order, and hands it over message by message.
fn read_objects(
    plan: &Plan,
    missing: &HashSet<Digest>,
    total: u64,
    messages: &mpsc::Sender<PutRequest>,
    report: &Report,
) -> Result<(), Error> {
    let mut reader = Reader { plan, open: None };
    let (mut objects, mut length, mut done) = (Vec::new(), 0, 0_u64);
    for planned in plan.objects.iter().filter(|object| missing.contains(&object.digest)) {
        let data = reader.read(planned)?;
        if length + data.len() > MESSAGE || objects.len() >= MESSAGE_OBJECTS {
            let full = std::mem::take(&mut objects);
            if messages.blocking_send(PutRequest { objects: full }).is_err() {
                return Ok(());
            }
            done += length as u64;
            length = 0;
            (report)(Progress::Sending { done, total });
        }
        length += data.len();
        objects.push(Object { digest: Bytes::copy_from_slice(planned.digest.as_bytes()), data });
    }
    if messages.blocking_send(PutRequest { objects }).is_ok() {
        (report)(Progress::Sending { done: total, total });
    }
    Ok(())
}

struct Reader<'a> {
    plan: &'a Plan,
    /// The file last read: its chunks come one after the other.
    open: Option<(usize, File)>,
}

impl Reader<'_> {
    fn read(&mut self, planned: &Planned) -> Result<Bytes, Error> {
        let (index, offset, length) = match &planned.source {
            Source::Here(bytes) => return Ok(bytes.clone()),
            Source::File { index, offset, length } => (*index, *offset, *length),
        };
        let path: &Path = &self.plan.files[index].path;
        let failed = |source| Error::Io { operation: "read", path: path.to_owned(), source };
        let file = match self.open.take() {
            Some((open, file)) if open == index => file,
            _ => File::open(path).map_err(failed)?,
        };
        let length = usize::try_from(length).map_err(|_| Error::Changed(path.to_owned()))?;
        let mut data = vec![0; length];
        match file.read_exact_at(&mut data, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::Changed(path.to_owned()));
            }
            other => other.map_err(failed)?,
        }
        self.open = Some((index, file));
        let object = encode_chunk(&data)?;
        if object.digest != planned.digest {
            return Err(Error::Changed(path.to_owned()));
        }
        Ok(object.bytes.into())
    }
}
