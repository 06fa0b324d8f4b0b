use super::*;

/// What could not be written was not decided: the node is asked to come again, is given what the
/// store says, and its old session tells it nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_a_batch_could_not_be_written() {
    let workspace = Workspace::start().await;
    let mut node = workspace.node(vec![]).await;
    let jobs = || workspace.admin.jobs();
    jobs().create_job(submission("before")).await.unwrap();
    let before = node.is_given().await;

    let other = rusqlite::Connection::open(workspace.folder.path().join("atelier.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = jobs().create_job(submission("meanwhile")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("another program"), "{refused:?}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(node.hears().await, None, "the session goes on without its daemon");

    let get = |name: &str| job_pb::GetJobRequest { name: name.to_owned(), advise: false };
    let gone = jobs().get_job(get("meanwhile")).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    // The same assignment again, and then what comes after.
    let mut node = workspace.node(vec![]).await;
    assert_eq!(node.is_given().await.key, before.key);
    jobs().create_job(submission("meanwhile")).await.unwrap();
    let after = node.is_given().await.key.unwrap();
    assert_eq!((after.job.as_str(), after.attempt), ("meanwhile", 1));
    workspace.daemon.stop().await.unwrap();
}
