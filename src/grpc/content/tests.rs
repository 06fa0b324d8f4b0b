use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use atelier_core::access::Role;
use atelier_core::content::encode_chunk;
use atelier_core::id::{NodeName, Principal};
use atelier_proto::content::v1::content_service_client::ContentServiceClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};

use super::*;
use crate::storage::Datastores;

/// The service on a real port, over a real folder; every caller has the role.
pub(crate) struct Service {
    _folder: tempfile::TempDir,
    pub(crate) store: ContentStore,
    pub(crate) address: SocketAddr,
    /// Calls so far.
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Service {
    pub(crate) async fn with(role: Option<Role>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ContentStore::new(&Datastores::open_folders(folder.path()).unwrap()).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let door = move |mut request: Request<()>| {
            counted.fetch_add(1, Ordering::Relaxed);
            if let Some(role) = role.clone() {
                assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer t0ken");
                let principal = Principal::new("tester").unwrap();
                request.extensions_mut().insert(Caller { principal, role });
            }
            Ok(request)
        };
        let service = InterceptedService::new(Content::new(store.clone()).into_service(), door);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { _folder: folder, store, address, calls }
    }

    pub(crate) async fn new() -> Self {
        Self::with(Some(Role::DataScientist)).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> Client {
        fn token(mut request: Request<()>) -> Result<Request<()>, Status> {
            request.metadata_mut().insert("authorization", "Bearer t0ken".parse().unwrap());
            Ok(request)
        }
        ContentServiceClient::with_interceptor(self.channel().await, token as Token)
    }
}

type Token = fn(Request<()>) -> Result<Request<()>, Status>;
type Client = ContentServiceClient<InterceptedService<Channel, Token>>;

fn object(data: &[u8]) -> Object {
    let object = encode_chunk(data).unwrap();
    Object { digest: wire(&object.digest), data: object.bytes.into() }
}

async fn put(client: &mut Client, messages: Vec<Vec<Object>>) -> Result<u64, Status> {
    let messages = messages.into_iter().map(|objects| PutRequest { objects });
    let answer = client.put(futures::stream::iter(messages.collect::<Vec<_>>())).await?;
    Ok(answer.into_inner().stored)
}

async fn get(client: &mut Client, digests: Vec<Bytes>) -> Result<Vec<Vec<Object>>, Status> {
    let mut stream = client.get(GetRequest { digests }).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message.objects);
    }
    Ok(messages)
}

#[tokio::test]
async fn objects_are_asked_for_sent_and_read_back_in_order() {
    let service = Service::new().await;
    let mut client = service.client().await;
    let objects: Vec<Object> =
        (0..40_u32).map(|i| object(&i.to_le_bytes().repeat(30_000))).collect();
    let digests: Vec<Bytes> = objects.iter().map(|object| object.digest.clone()).collect();
    let request = FindMissingRequest { digests: digests.clone() };
    let missing = client.find_missing(request.clone()).await.unwrap().into_inner().missing;
    assert_eq!(missing, digests);
    let messages = objects.chunks(20).map(<[Object]>::to_vec).collect();
    assert_eq!(put(&mut client, messages).await.unwrap(), 40);
    assert_eq!(put(&mut client, vec![objects.clone()[..2].to_vec()]).await.unwrap(), 0);
    assert!(client.find_missing(request).await.unwrap().into_inner().missing.is_empty());
    let mut backwards = digests.clone();
    backwards.reverse();
    let messages = get(&mut client, backwards).await.unwrap();
    assert!(messages.len() > 1 && messages[0].len() > 1, "{} messages", messages.len());
    let mut read: Vec<Object> = messages.into_iter().flatten().collect();
    read.reverse();
    assert_eq!(read, objects);
}

#[tokio::test]
async fn a_full_chunk_fits_a_message_each_way() {
    let service = Service::new().await;
    let mut client = service.client().await;
    let full = object(&vec![5; atelier_core::content::MAX_CHUNK]);
    let almost = object(&vec![6; atelier_core::content::MAX_CHUNK - 10]);
    put(&mut client, vec![vec![full.clone(), almost.clone()]]).await.unwrap();
    let digests = vec![almost.digest.clone(), full.digest.clone()];
    assert_eq!(get(&mut client, digests).await.unwrap().concat(), [almost, full]);
}

#[tokio::test]
async fn what_breaks_a_limit_is_refused() {
    let service = Service::new().await;
    let mut client = service.client().await;
    let too_many = vec![Bytes::from_static(&[0; 32]); MAX_DIGESTS + 1];
    let request = FindMissingRequest { digests: too_many.clone() };
    let refused = client.find_missing(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("20000"), "{refused}");
    assert_eq!(get(&mut client, too_many).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let request = FindMissingRequest { digests: vec![Bytes::from_static(b"short")] };
    let refused = client.find_missing(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);

    let third = atelier_core::content::MAX_CHUNK;
    let large: Vec<Object> = (0..3).map(|i| object(&vec![i; third])).collect();
    let refused = put(&mut client, vec![large]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "three full chunks and their bytes");
    // A 5 MiB message does not reach the handler.
    let monster = Object { digest: Bytes::from_static(&[0; 32]), data: vec![0; 5 << 20].into() };
    let refused = put(&mut client, vec![vec![monster]]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");

    let forged = Object { digest: object(b"a").digest, data: object(b"b").data };
    let refused = put(&mut client, vec![vec![object(b"c")], vec![forged]]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    let absent = get(&mut client, vec![object(b"c").digest]).await.unwrap_err();
    assert_eq!(absent.code(), tonic::Code::NotFound, "nothing of a refused upload is promised");
    assert!(absent.message().contains(&digest(&object(b"c").digest).unwrap().to_string()));
}

#[tokio::test]
async fn roles_decide() {
    use tonic::Code;
    let node = Role::Node(NodeName::new("n1").unwrap());
    for (role, may_put, may_get) in [
        (None, Code::Unauthenticated, Code::Unauthenticated),
        (Some(Role::Admin), Code::Ok, Code::NotFound),
        (Some(Role::DataScientist), Code::Ok, Code::NotFound),
        (Some(Role::Reader), Code::PermissionDenied, Code::NotFound),
        (Some(node), Code::PermissionDenied, Code::NotFound),
    ] {
        let service = Service::with(role.clone()).await;
        let mut client = service.client().await;
        let code = |result: Result<(), Status>| result.map_or_else(|s| s.code(), |()| Code::Ok);
        let stored = put(&mut client, vec![vec![object(b"x")]]).await.map(|_| ());
        assert_eq!(code(stored), may_put, "{role:?} puts");
        let asked = client.find_missing(FindMissingRequest { digests: vec![] }).await.map(|_| ());
        assert_eq!(code(asked), may_put, "{role:?} asks");
        let read = get(&mut client, vec![object(b"absent").digest]).await.map(|_| ());
        assert_eq!(code(read), may_get, "{role:?} reads");
    }
}
