//! What clients that are not the command line may send, row by row of the table in `docs/security.md`.

use atelier_proto::agent::v1 as agent;
use atelier_proto::agent::v1::agent_service_client::AgentServiceClient;
use atelier_proto::job::v1 as pb;
use bytes::Bytes;
use futures::stream;
use tonic::client::Grpc;
use tonic::{Code, Request, Status};

use super::raw::Raw;
use super::{Workspace, submission};
use crate::client::Client;

const CREATE: &str = "/atelier.job.v1.JobService/CreateJob";

/// Sends one message of these bytes to a method; what is wrong with it.
async fn refused(client: &Client, method: &str, message: impl Into<Bytes>) -> Status {
    let mut grpc = Grpc::new(client.authorized());
    grpc.ready().await.unwrap();
    let request = Request::new(stream::iter([message.into()]));
    grpc.streaming(request, method.parse().unwrap(), Raw).await.map(drop).unwrap_err()
}

/// The job's first line of a submission: what of its specification may be changed.
fn command(request: &mut pb::CreateJobRequest) -> &mut pb::CommandJob {
    match request.spec.as_mut().and_then(|spec| spec.kind.as_mut()) {
        Some(pb::job_spec::Kind::Command(job)) => job,
        _ => panic!("a command"),
    }
}

/// The same connection serves on.
async fn still_serves(client: &Client) {
    client.jobs().list_jobs(pb::ListJobsRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn row_01_what_is_too_long_or_compressed_is_refused_unread() {
    let world = Workspace::start().await;
    let long = refused(&world.admin, CREATE, vec![b'x'; 5 << 20]).await;
    assert_eq!(long.code(), Code::OutOfRange, "{long:?}");
    assert!(long.message().contains("4194304"), "{long:?}");
    // Nothing is ever decompressed, so that a few bytes stay few.
    let mut jobs = world.admin.jobs();
    let mut packed = Request::new(submission("packed"));
    packed.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let packed = jobs.create_job(packed).await.unwrap_err();
    assert_eq!(packed.code(), Code::Unimplemented, "{packed:?}");
    assert!(packed.message().contains("gzip"), "{packed:?}");
    still_serves(&world.admin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_02_and_03_bytes_that_are_no_message_leave_the_connection_alone() {
    let world = Workspace::start().await;
    // Groups within groups, and a field of a message that holds itself to no end.
    let groups = vec![0x7b; 200_000];
    for bytes in
        [vec![0xff; 64], b"\x0a\xff\xff\xff\xff\x0f".to_vec(), b"\x0a\x02\x0a\x7f".to_vec(), groups]
    {
        let length = bytes.len();
        let broken = refused(&world.admin, CREATE, bytes).await;
        assert_eq!(broken.code(), Code::Internal, "{length}: {broken:?}");
        assert!(broken.message().len() < 500, "{broken:?}");
        still_serves(&world.admin).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_06_what_a_jobs_token_may_not_do_is_told_with_the_role() {
    let world = Workspace::start().await;
    let mut node = world.node(vec![]).await;
    world.admin.jobs().create_job(submission("mine")).await.unwrap();
    let token = node.is_given().await.token;
    let job = world.as_holder_of(&token).await;
    let denied = job.jobs().create_job(submission("other")).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("attempt mine/1") && denied.message().contains("submit"));
    assert!(!denied.message().contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn row_07_what_is_of_another_workspace_is_not_there() {
    let (own, other) = (Workspace::start().await, Workspace::start().await);
    other.admin.jobs().create_job(submission("theirs")).await.unwrap();
    let ask = async |name: &str| {
        let request = pb::GetJobRequest { name: name.to_owned(), advise: false };
        own.admin.jobs().get_job(request).await.unwrap_err()
    };
    let (theirs, nobodys) = (ask("theirs").await, ask("nobodys").await);
    assert_eq!((theirs.code(), nobodys.code()), (Code::NotFound, Code::NotFound));
    assert_eq!(theirs.message().replace("theirs", "nobodys"), nobodys.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn row_08_a_stale_attempt_is_told_which_one_counts() {
    let world = Workspace::start().await;
    let mut node = world.node(vec![]).await;
    world.admin.jobs().create_job(submission("mine")).await.unwrap();
    let given = node.is_given().await.key.unwrap();
    let client = world.as_holder_of(&world.token_of("agent.token")).await;
    let mut agents = AgentServiceClient::new(client.authorized());
    let stale = agent::AttemptKey { attempt: 7, ..given.clone() };
    let stale = agents.open_secrets(agent::OpenSecretsRequest { key: Some(stale) }).await;
    let stale = stale.unwrap_err();
    assert_eq!(stale.code(), Code::FailedPrecondition);
    assert!(stale.message().contains("attempt 7"), "{stale:?}");
    assert!(stale.message().contains("current attempt is 1"), "{stale:?}");
    agents.open_secrets(agent::OpenSecretsRequest { key: Some(given) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn row_09_a_key_that_was_used_names_the_job_it_made() {
    let world = Workspace::start().await;
    let mut first = submission("first");
    first.idempotency_key = "k".to_owned();
    world.admin.jobs().create_job(first.clone()).await.unwrap();
    let again = world.admin.jobs().create_job(first.clone()).await.unwrap().into_inner();
    assert_eq!(again.job.unwrap().name, "first");
    command(&mut first).command = "false".to_owned();
    let reused = world.admin.jobs().create_job(first).await.unwrap_err();
    assert_eq!(reused.code(), Code::AlreadyExists);
    assert!(reused.message().contains("'first'"), "{reused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_amounts_out_of_range_are_refused_with_the_range() {
    let world = Workspace::start().await;
    for gpus in [1025, u32::MAX] {
        let mut many = submission("many");
        command(&mut many).resources = Some(pb::Resources { gpus, ..pb::Resources::default() });
        let refused = world.admin.jobs().create_job(many).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{gpus}: {refused:?}");
        let told = refused.message();
        assert!(told.contains("gpus") && told.contains("1024"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_24_what_leads_inside_is_refused_before_anything_is_fetched() {
    let world = Workspace::start().await;
    let create = async |name: &str, url: &str| {
        let mut request = submission(name);
        let form = Some(pb::data_uri::Form::Http(url.to_owned()));
        let data = pb::input::Data {
            kind: pb::DataKind::UriFile.into(),
            mode: pb::InputMode::Download.into(),
            uri: Some(pb::DataUri { form }),
            asset: None,
            address: None,
        };
        let input = pb::Input { value: Some(pb::input::Value::Data(data)) };
        command(&mut request).inputs.insert("x".to_owned(), input);
        world.admin.jobs().create_job(request).await.map(drop)
    };
    for url in [
        "file:///etc/passwd",
        "gopher://example.com/x",
        "http://169.254.169.254/latest/meta-data",
        "http://2852039166/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://127.0.0.1:7420/x",
        "https://localhost/x",
        "http://a.localhost./x",
        "http://10.0.0.1/x",
        "http://[fd00::1]/x",
        "http://0x7f.1/x",
    ] {
        let refused = create("inside", url).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{url}: {refused:?}");
        let told = refused.message();
        assert!(told.contains("inputs.x"), "{url}: {told}");
        assert!(told.contains("--allow-egress") || !url.starts_with("http"), "{url}: {told}");
    }
    create("outside", "https://example.com/iris.csv").await.unwrap();
}
