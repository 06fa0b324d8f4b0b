use super::*;

/// What is wrong with one sample is told with its attempt, and keeps no other attempt's from being stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_sample_that_is_refused_leaves_other_attempts_alone() {
    let workspace = Workspace::start().await;
    let mut node = workspace.node(vec![]).await;
    let mut keys = Vec::new();
    for job in ["first", "second"] {
        workspace.admin.jobs().create_job(submission(job)).await.unwrap();
        keys.push(node.is_given().await.key);
    }
    let sample = |key: &Option<pb::AttemptKey>, metric: &str| pb::RunSample {
        key: key.clone(),
        at_ms: 1_700_000_000_000,
        step: 1,
        metrics: [(metric.to_owned(), 7.0)].into(),
    };
    let samples =
        vec![sample(&None, "system/a"), sample(&keys[0], "../b"), sample(&keys[1], "system/c")];
    let client = workspace.as_holder_of(&workspace.token_of("agent.token")).await;
    let mut stub = AgentServiceClient::new(client.authorized());
    let mut record =
        async |samples| stub.record_metrics(pb::RecordMetricsRequest { samples }).await;
    let refused = record(samples.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    let refused = record(samples[1..].to_vec()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().starts_with("samples of attempt 1 of job first:"), "{refused:?}");
    let get = job_pb::GetJobRequest { name: "second".to_owned(), advise: false };
    let stored = workspace.admin.jobs().get_job(get).await.unwrap().into_inner();
    assert_eq!(stored.metrics["system/c"], 7.0);
    workspace.daemon.stop().await.unwrap();
}
