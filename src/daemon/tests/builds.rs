use atelier_proto::environment::v1 as env_pb;
use env_pb::build_environment_response::Message;
use tonic::Code;

use super::*;

impl Node {
    /// The next message, which must ask for an environment.
    async fn is_asked_to_build(&mut self) -> pb::BuildEnvironment {
        match self.hears().await {
            Some(pb::daemon_message::Message::BuildEnvironment(ask)) => ask,
            other => panic!("{other:?}"),
        }
    }

    async fn tells_of(&self, request_id: u64, line: &str, result: Option<env_pb::BuildResult>) {
        let lines = vec![line.to_owned()];
        let report = pb::BuildReport { request_id, lines, result };
        let message = Some(pb::agent_message::Message::Build(report));
        self.up.send(pb::AgentMessage { message }).await.unwrap();
    }
}

type Told = Streaming<env_pb::BuildEnvironmentResponse>;

async fn build(workspace: &Workspace, name: &str, compute: &str) -> Result<Told, tonic::Status> {
    let environment = atelier_core::spec::AssetRef::latest(name);
    let (environment, compute) = (Some((&environment).into()), compute.to_owned());
    let request = env_pb::BuildEnvironmentRequest { environment, compute };
    let told = workspace.admin.environments().build_environment(request).await;
    told.map(tonic::Response::into_inner)
}

async fn next(told: &mut Told) -> Option<Message> {
    let message = tokio::time::timeout(PATIENCE, told.message()).await.expect("nothing is told");
    message.unwrap().map(|response| response.message.unwrap())
}

fn of_node(message: Option<Message>) -> env_pb::NodeBuild {
    match message {
        Some(Message::Node(told)) if told.node == "local" => told,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_tells_of_a_build_reaches_who_asked() {
    let workspace = Workspace::start().await;
    let none = build(&workspace, "sklearn-1.5", "").await.unwrap_err();
    assert_eq!(none.code(), Code::FailedPrecondition, "{none:?}");
    assert!(none.message().contains("no node that is ready"), "{none:?}");
    let mut node = workspace.node(vec![]).await;
    for (name, compute) in [("sklearn-9x", ""), ("sklearn-1.5", "nowhere")] {
        let missing = build(&workspace, name, compute).await.unwrap_err();
        assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    }
    let mut told = build(&workspace, "sklearn-1.5", "").await.unwrap();
    match next(&mut told).await {
        Some(Message::Asked(asked)) => {
            assert_eq!((asked.compute.as_str(), asked.nodes), ("local", vec!["local".to_owned()]));
            assert_eq!(asked.environment.unwrap().name, "sklearn-1.5");
        }
        other => panic!("{other:?}"),
    }
    let ask = node.is_asked_to_build().await;
    assert_eq!(ask.image_policy(), pb::ImagePolicy::HostPython);
    assert!(ask.environment.unwrap().conda_json.is_some());
    // What nobody asked for reaches nobody.
    node.tells_of(ask.request_id + 7, "another", None).await;
    node.tells_of(ask.request_id, "begun", None).await;
    let result = env_pb::BuildResult { took_ms: 7, ..env_pb::BuildResult::default() };
    node.tells_of(ask.request_id, "done", Some(result)).await;
    let begun = of_node(next(&mut told).await);
    assert_eq!((begun.lines, begun.result), (vec!["begun".to_owned()], None));
    let done = of_node(next(&mut told).await);
    assert_eq!((done.lines, done.result.unwrap().took_ms), (vec!["done".to_owned()], 7));
    assert_eq!(next(&mut told).await, None);

    // A node that goes away ends its part.
    let mut told = build(&workspace, "sklearn-1.5", "local").await.unwrap();
    next(&mut told).await;
    node.is_asked_to_build().await;
    drop(node);
    let lost = of_node(next(&mut told).await).result.unwrap();
    assert!(lost.error.contains("no session"), "{lost:?}");
    assert_eq!(next(&mut told).await, None);
    workspace.daemon.stop().await.unwrap();
}
