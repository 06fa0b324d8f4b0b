use atelier_proto::compute::v1::{GetNodeCacheRequest, NodeCache, PruneNodeCacheRequest};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::*;

impl Node {
    /// The next message, which must ask what it keeps.
    async fn is_asked(&mut self) -> pb::AskCache {
        match self.hears().await {
            Some(pb::daemon_message::Message::AskCache(ask)) => ask,
            other => panic!("{other:?}"),
        }
    }

    /// Answers; the limit tells answers apart.
    async fn tells(&self, request_id: u64, data_limit: u64) {
        let cache = Some(NodeCache { data_limit, ..NodeCache::default() });
        let report = pb::agent_message::Message::Cache(pb::CacheReport { request_id, cache });
        self.up.send(pb::AgentMessage { message: Some(report) }).await.unwrap();
    }
}

type Answer = JoinHandle<Result<NodeCache, Status>>;

fn show(workspace: &Workspace, name: &str) -> Answer {
    let (mut computes, name) = (workspace.admin.computes(), name.to_owned());
    tokio::spawn(async move {
        computes.get_node_cache(GetNodeCacheRequest { name }).await.map(tonic::Response::into_inner)
    })
}

async fn told(answer: Answer) -> Result<NodeCache, Status> {
    tokio::time::timeout(PATIENCE, answer).await.expect("no answer").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_of_a_node_reaches_who_asked() {
    let workspace = Workspace::start().await;
    let mut node = workspace.node(vec![]).await;
    let first = show(&workspace, "local");
    let first_id = node.is_asked().await;
    assert_eq!(first_id.prune, None);
    let request = PruneNodeCacheRequest { name: "local".into(), all: true, unused_for_s: 60 };
    let mut computes = workspace.admin.computes();
    let wanted = request.clone();
    let second = tokio::spawn(async move {
        computes.prune_node_cache(wanted).await.map(tonic::Response::into_inner)
    });
    let second_id = node.is_asked().await;
    assert_eq!(second_id.prune, Some(request));
    // What nobody asked for reaches nobody, and the order is the node's.
    node.tells(second_id.request_id + 7, 1).await;
    node.tells(second_id.request_id, 2).await;
    assert_eq!(told(second).await.unwrap().data_limit, 2);
    node.tells(second_id.request_id, 3).await;
    node.tells(first_id.request_id, 4).await;
    assert_eq!(told(first).await.unwrap().data_limit, 4);
    workspace.daemon.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_is_not_waited_for() {
    let workspace = Workspace::start().await;
    let missing = told(show(&workspace, "nowhere")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    let mut node = workspace.node(vec![]).await;
    let mut asked = Vec::new();
    for _ in 0..8 {
        asked.push(show(&workspace, "local"));
        node.is_asked().await;
    }
    let many = told(show(&workspace, "local")).await.unwrap_err();
    assert_eq!(many.code(), Code::ResourceExhausted, "{many:?}");
    drop(node);
    // Those who wait are told, and who comes later, too.
    for answer in asked {
        let away = told(answer).await.unwrap_err();
        assert_eq!(away.code(), Code::FailedPrecondition, "{away:?}");
    }
    let away = told(show(&workspace, "local")).await.unwrap_err();
    assert_eq!(away.code(), Code::FailedPrecondition, "{away:?}");
    assert!(away.message().contains("'local' cannot be asked"), "{away:?}");
    workspace.daemon.stop().await.unwrap();
}
