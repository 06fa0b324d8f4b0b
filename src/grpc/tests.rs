//! What the services refuse, asked of a real daemon.

use atelier_proto::identity::v1 as identity;
use atelier_proto::job::v1 as pb;
use atelier_proto::workspace::v1 as workspace;
use tonic::Code;

use crate::daemon::tests::{Workspace, submission};

#[tokio::test(flavor = "multi_thread")]
async fn names_that_storage_needs_itself_or_cannot_hold_are_refused() {
    let workspace = Workspace::start().await;
    let create =
        async |name: &str| workspace.admin.jobs().create_job(submission(name)).await.map(drop);
    let refused = create("content").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("kept for the workspace"), "{refused}");
    let refused = create(&"n".repeat(251)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("has 251 characters"), "{refused}");
    create(&"n".repeat(250)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_status_is_refused_and_a_repeated_one_counts_once() {
    let workspace = Workspace::start().await;
    workspace.admin.jobs().create_job(submission("waits")).await.unwrap();
    let list = async |statuses| {
        let request = pb::ListJobsRequest { statuses, ..pb::ListJobsRequest::default() };
        workspace.admin.jobs().list_jobs(request).await.map(|page| page.into_inner().jobs.len())
    };
    let refused = list(vec![999]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "statuses: 999 is no job status");
    let (queued, completed) = (pb::JobStatus::Queued.into(), pb::JobStatus::Completed.into());
    assert_eq!(list(vec![completed; 40_000]).await.unwrap(), 0);
    assert_eq!(list(vec![completed, queued]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_something_huge_can_be_read() {
    let workspace = Workspace::start().await;
    let mut huge = submission("huge");
    let Some(pb::job_spec::Kind::Command(job)) = huge.spec.as_mut().and_then(|s| s.kind.as_mut())
    else {
        panic!("a command")
    };
    job.tags.insert("ü".repeat(100_000), "x".to_owned());
    let refused = workspace.admin.jobs().create_job(huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message().len());
    assert!(refused.message().len() < 5_000 && refused.message().ends_with('…'));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_submission_is_found_again_when_what_it_refers_to_has_gone() {
    let workspace = Workspace::start().await;
    let mut node = workspace.node(vec![]).await;
    let jobs = || workspace.admin.jobs();
    jobs().create_job(submission("first")).await.unwrap();
    node.is_given().await;
    node.says_ended("first").await;
    let mut second = submission("second");
    second.idempotency_key = "key".to_owned();
    if let Some(pb::job_spec::Kind::Command(job)) =
        second.spec.as_mut().and_then(|s| s.kind.as_mut())
    {
        let artifact = pb::data_uri::RunArtifact { run: "first".to_owned(), path: "x".to_owned() };
        let uri = pb::DataUri { form: Some(pb::data_uri::Form::RunArtifact(artifact)) };
        let data = pb::input::Data {
            kind: pb::DataKind::UriFile.into(),
            mode: pb::InputMode::Download.into(),
            uri: Some(uri),
            asset: None,
            address: None,
        };
        let value = Some(pb::input::Value::Data(data));
        job.inputs.insert("x".to_owned(), pb::Input { value });
    }
    // Its end is on disk once it can be referred to.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while let Err(refused) = jobs().create_job(second.clone()).await {
        assert!(tokio::time::Instant::now() < until, "{refused}");
        tokio::task::yield_now().await;
    }
    let gone = || pb::DeleteJobRequest { name: "first".to_owned(), with_data: false };
    // While the second may read what the first wrote, that stays.
    let refused = jobs().delete_job(gone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // That the end of the first is known.
    node.hears().await;
    node.is_given().await;
    node.says_ended("second").await;
    while let Err(refused) = jobs().delete_job(gone()).await {
        assert!(tokio::time::Instant::now() < until, "{refused}");
        tokio::task::yield_now().await;
    }
    let again = jobs().create_job(second.clone()).await.unwrap().into_inner();
    assert_eq!(again.job.unwrap().name, "second");
    second.idempotency_key = "other".to_owned();
    assert_eq!(jobs().create_job(second).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_called_what_the_daemon_calls_itself() {
    let workspace = Workspace::start().await;
    for user in ["daemon", "atelier", "node:n1", "attempt:j/1"] {
        let role = identity::Role::DataScientist.into();
        let user = user.to_owned();
        let request = identity::CreateTokenRequest { user, role, ..Default::default() };
        let refused = workspace.admin.tokens().create_token(request).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_that_is_made_again_while_it_is_changed_is_not_told_to_be_damaged() {
    let world = Workspace::start().await;
    let draft = || workspace::DatastoreDraft {
        name: "data".to_owned(),
        source: Some(workspace::datastore_draft::Source::S3(workspace::S3Bucket {
            bucket: "data".to_owned(),
            endpoint: "http://127.0.0.1:9".to_owned(),
            region: "us-east-1".to_owned(),
            path_style: true,
            ..workspace::S3Bucket::default()
        })),
        ..workspace::DatastoreDraft::default()
    };
    let keys = |n: u32| workspace::DatastoreCredentials {
        kind: Some(workspace::datastore_credentials::Kind::S3Keys(workspace::S3Keys {
            access_key_id: "AKIATEST".to_owned(),
            secret_access_key: format!("key-{n}"),
            session_token: String::new(),
        })),
    };
    let create = async || {
        let (datastore, credentials) = (Some(draft()), Some(keys(0)));
        let request = workspace::CreateDatastoreRequest { datastore, credentials };
        world.admin.workspace().create_datastore(request).await.map(drop)
    };
    create().await.unwrap();
    let admin = world.admin.clone();
    let changing = tokio::spawn(async move {
        for n in 1..150 {
            let (datastore, credentials) = (Some(draft()), Some(keys(n)));
            let request = workspace::UpdateDatastoreRequest { datastore, credentials };
            admin.workspace().update_datastore(request).await.unwrap();
        }
    });
    let mut tries = 0;
    while !changing.is_finished() {
        // It is there with other credentials; or it is what it was at first.
        if let Err(refused) = create().await {
            assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        }
        tries += 1;
    }
    changing.await.unwrap();
    assert!(tries > 0);
}

/// One call as a browser makes it, by HTTP/1.1: the HTTP status, the content's type, `grpc-status` of the headers, the
/// body.
async fn from_a_browser(
    workspace: &Workspace,
    token: &str,
    origin: Option<&str>,
) -> (u16, String, Option<String>, Vec<u8>) {
    let server = &workspace.admin.target().server;
    let client = reqwest::Client::builder().no_proxy().http1_only().build().unwrap();
    let mut request = client
        .post(format!("{server}/atelier.workspace.v1.WorkspaceService/GetWorkspace"))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .bearer_auth(token)
        // One message of no bytes.
        .body(vec![0_u8; 5]);
    if let Some(origin) = origin {
        request = request.header("origin", origin);
    }
    let answer = request.send().await.unwrap();
    let header =
        |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, kind, grpc) =
        (answer.status().as_u16(), header("content-type"), header("grpc-status"));
    (status, kind.unwrap_or_default(), grpc, answer.bytes().await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_call_by_grpc_web() {
    let workspace = Workspace::start().await;
    let target = workspace.admin.target().clone();
    let (status, kind, _, body) = from_a_browser(&workspace, target.token.secret(), None).await;
    assert_eq!((status, kind.as_str()), (200, "application/grpc-web+proto"));
    // A message, then what would be trailers, each after its length.
    let length = |at: usize| u32::from_be_bytes(body[at + 1..at + 5].try_into().unwrap()) as usize;
    assert_eq!(body[0], 0);
    let trailers = 5 + length(0);
    let message: workspace::Workspace = prost::Message::decode(&body[5..trailers]).unwrap();
    assert_eq!(message.name, "test");
    assert_eq!(body[trailers], 0x80);
    let said = String::from_utf8_lossy(&body[trailers + 5..]).replace(' ', "");
    assert_eq!(said.len(), length(trailers), "{said}");
    assert!(said.contains("grpc-status:0"), "{said}");

    // Whoever may not come in is told so in a way that its client understands.
    let refused = from_a_browser(&workspace, "atl_wrong", None).await;
    assert_eq!(
        (refused.1.as_str(), refused.2.as_deref()),
        ("application/grpc-web+proto", Some("16"))
    );
    let foreign =
        from_a_browser(&workspace, target.token.secret(), Some("https://evil.example")).await;
    assert_eq!(foreign.2.as_deref(), Some("7"));
    let own = from_a_browser(&workspace, target.token.secret(), Some(&target.server)).await;
    assert_eq!((own.0, own.2), (200, None));
}
