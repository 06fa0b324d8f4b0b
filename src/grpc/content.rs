//! `ContentService`: code snapshots travel as content objects.

use std::vec;

use atelier_core::access::{Caller, Permission};
use atelier_core::content::Digest;
use atelier_proto::content::v1::content_service_server::{ContentService, ContentServiceServer};
use atelier_proto::content::v1::{
    FindMissingRequest, FindMissingResponse, GetRequest, GetResponse, Object, PutRequest,
    PutResponse,
};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::storage::{ContentStore, Error};

/// The most digests of one request.
const MAX_DIGESTS: usize = 20_000;
/// The most bytes of objects in one message of `Put`.
const MAX_PUT_BYTES: usize = 3 * 1024 * 1024;
/// A message of `Get` has at least this many bytes (unless it is the last) and at most an object
/// more.
const GET_BYTES: usize = 1024 * 1024;
/// The most objects of one message of `Get`.
const GET_OBJECTS: usize = 512;

/// The service over a store.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    store: ContentStore,
}

impl Content {
    /// The service over this store.
    pub(crate) fn new(store: ContentStore) -> Self {
        Self { store }
    }

    /// As a tonic service, with the limit on messages that it needs.
    pub(crate) fn into_service(self) -> ContentServiceServer<Self> {
        ContentServiceServer::new(self).max_decoding_message_size(MAX_PUT_BYTES + 512 * 1024)
    }
}

/// The door has put the caller there; without one, nobody was authenticated.
fn authorize<T>(request: &Request<T>, permission: Permission) -> Result<(), Status> {
    let Some(caller) = request.extensions().get::<Caller>() else {
        return Err(Status::unauthenticated("the call carries no valid token"));
    };
    if caller.may(permission) {
        Ok(())
    } else {
        Err(Status::permission_denied(format!(
            "{} ({}) may not {}",
            caller.principal,
            caller.role,
            match permission {
                Permission::ReadContent => "read code snapshots",
                _ => "upload code snapshots",
            }
        )))
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn wire(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

fn digests(asked: &[Bytes]) -> Result<Vec<Digest>, Status> {
    if asked.len() > MAX_DIGESTS {
        let message =
            format!("{} digests in one request, at most {MAX_DIGESTS} are allowed", asked.len());
        return Err(Status::invalid_argument(message));
    }
    asked.iter().map(|bytes| digest(bytes)).collect()
}

fn status(error: Error) -> Status {
    let message = error.to_string();
    match error {
        Error::NotFound(_) | Error::UnknownDatastore(_) => Status::not_found(message),
        Error::Content { .. } | Error::Path(_) | Error::TooLarge { .. } | Error::Unfit(_) => {
            Status::invalid_argument(message)
        }
        Error::Full => Status::resource_exhausted(message),
        Error::Conflict(_)
        | Error::Link(_)
        | Error::Away { .. }
        | Error::Denied { .. }
        | Error::Public { .. }
        | Error::Unsupported { .. } => Status::failed_precondition(message),
        Error::Interrupted(_) | Error::Changed(_) => Status::aborted(message),
        Error::Io { .. } => {
            tracing::error!(error = &error as &dyn std::error::Error, "content store failed");
            Status::internal(message)
        }
    }
}

#[tonic::async_trait]
impl ContentService for Content {
    async fn find_missing(
        &self,
        request: Request<FindMissingRequest>,
    ) -> Result<Response<FindMissingResponse>, Status> {
        authorize(&request, Permission::WriteContent)?;
        let digests = digests(&request.into_inner().digests)?;
        let missing = self.store.missing(digests).await.map_err(status)?;
        let missing = missing.iter().map(wire).collect();
        Ok(Response::new(FindMissingResponse { missing }))
    }

    async fn put(
        &self,
        request: Request<Streaming<PutRequest>>,
    ) -> Result<Response<PutResponse>, Status> {
        authorize(&request, Permission::WriteContent)?;
        let mut messages = request.into_inner();
        let mut upload = self.store.upload();
        while let Some(message) = messages.message().await? {
            let bytes: usize = message.objects.iter().map(|object| object.data.len()).sum();
            if bytes > MAX_PUT_BYTES {
                let message =
                    format!("{bytes} bytes in one message, at most {MAX_PUT_BYTES} are allowed");
                return Err(Status::invalid_argument(message));
            }
            let objects = message
                .objects
                .into_iter()
                .map(|object| Ok((digest(&object.digest)?, object.data)))
                .collect::<Result<Vec<_>, Status>>()?;
            upload = upload.add(objects).await.map_err(status)?;
        }
        let stored = upload.finish().await.map_err(status)?;
        Ok(Response::new(PutResponse { stored }))
    }

    type GetStream = BoxStream<'static, Result<GetResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        authorize(&request, Permission::ReadContent)?;
        let digests = digests(&request.into_inner().digests)?;
        let state = (self.store.clone(), digests.into_iter());
        // Objects are read as the receiver takes messages, one message ahead at most.
        let messages = futures::stream::try_unfold(state, |(store, mut rest)| async move {
            let Some(response) = next_response(&store, &mut rest).await? else { return Ok(None) };
            Ok(Some((response, (store, rest))))
        });
        Ok(Response::new(messages.boxed()))
    }
}

async fn next_response(
    store: &ContentStore,
    rest: &mut vec::IntoIter<Digest>,
) -> Result<Option<GetResponse>, Status> {
    let next: Vec<Digest> = rest.as_slice().iter().take(GET_OBJECTS).copied().collect();
    if next.is_empty() {
        return Ok(None);
    }
    let read = store.read(next, GET_BYTES).await.map_err(status)?;
    // How many were read is known only now.
    rest.by_ref().take(read.len()).for_each(drop);
    let objects =
        read.into_iter().map(|(digest, data)| Object { digest: wire(&digest), data }).collect();
    Ok(Some(GetResponse { objects }))
}

#[cfg(test)]
pub(crate) mod tests;
