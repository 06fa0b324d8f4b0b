//! That every method and route has a declared need, and that each role gets through where the
//! table says and nowhere else: asked of a whole daemon, over its port.

use std::collections::{BTreeMap, BTreeSet};

use atelier_proto::DESCRIPTORS;
use atelier_proto::identity::v1::Role;
use bytes::{Buf, BufMut as _, Bytes};
use futures::stream;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use super::*;
use crate::client::Client;
use crate::daemon::tests::{Node, Workspace, submission};

/// Each method, and who gets past the door to it: **A**dmin, data **S**cientist, **R**eader,
/// **N**ode, at**T**empt, **.** nobody in particular (no token).
const METHODS: &[(&str, &str)] = &[
    ("atelier.agent.v1.AgentService/JoinChannel", "N"),
    ("atelier.agent.v1.AgentService/OpenSecrets", "N"),
    ("atelier.agent.v1.AgentService/PushLog", "N"),
    ("atelier.agent.v1.AgentService/RecordMetrics", "N"),
    ("atelier.agent.v1.AgentService/Session", "N"),
    ("atelier.component.v1.ComponentService/ArchiveComponent", "AS"),
    ("atelier.component.v1.ComponentService/CreateComponent", "AS"),
    ("atelier.component.v1.ComponentService/DeleteComponent", "AS"),
    ("atelier.component.v1.ComponentService/GetComponent", "ASR"),
    ("atelier.component.v1.ComponentService/ListComponents", "ASR"),
    ("atelier.component.v1.ComponentService/UpdateComponent", "AS"),
    ("atelier.compute.v1.ComputeService/DeleteCompute", "A"),
    ("atelier.compute.v1.ComputeService/DeleteQuota", "A"),
    ("atelier.compute.v1.ComputeService/DrainCompute", "A"),
    ("atelier.compute.v1.ComputeService/DrainNode", "A"),
    ("atelier.compute.v1.ComputeService/GetCompute", "ASR"),
    ("atelier.compute.v1.ComputeService/GetNode", "ASR"),
    ("atelier.compute.v1.ComputeService/GetNodeCache", "ASR"),
    ("atelier.compute.v1.ComputeService/ListComputes", "ASR"),
    ("atelier.compute.v1.ComputeService/ListNodes", "ASR"),
    ("atelier.compute.v1.ComputeService/ListSizes", "ASR"),
    ("atelier.compute.v1.ComputeService/PruneNodeCache", "A"),
    ("atelier.compute.v1.ComputeService/PutCompute", "A"),
    ("atelier.compute.v1.ComputeService/ResumeCompute", "A"),
    ("atelier.compute.v1.ComputeService/ResumeNode", "A"),
    ("atelier.compute.v1.ComputeService/SetQuota", "A"),
    ("atelier.compute.v1.ComputeService/UpdateCompute", "A"),
    ("atelier.content.v1.ContentService/FindMissing", "AS"),
    ("atelier.content.v1.ContentService/Get", "ASRN"),
    ("atelier.content.v1.ContentService/Put", "AS"),
    ("atelier.asset.v1.AssetService/ArchiveAsset", "AS"),
    ("atelier.asset.v1.AssetService/CreateAsset", "AS"),
    ("atelier.asset.v1.AssetService/DeleteAsset", "AS"),
    ("atelier.asset.v1.AssetService/GetAsset", "ASR"),
    ("atelier.asset.v1.AssetService/ListAssetUses", "ASR"),
    ("atelier.asset.v1.AssetService/ListAssets", "ASR"),
    ("atelier.asset.v1.AssetService/ListAssetsAt", "ASR"),
    ("atelier.asset.v1.AssetService/UpdateAsset", "AS"),
    ("atelier.environment.v1.EnvironmentService/ArchiveEnvironment", "AS"),
    ("atelier.environment.v1.EnvironmentService/BuildEnvironment", "AS"),
    ("atelier.environment.v1.EnvironmentService/CreateEnvironment", "AS"),
    ("atelier.environment.v1.EnvironmentService/GetEnvironment", "ASR"),
    ("atelier.environment.v1.EnvironmentService/ListEnvironments", "ASR"),
    ("atelier.identity.v1.TokenService/CreateToken", "A"),
    ("atelier.job.v1.JobService/ArchiveJob", "AS"),
    ("atelier.job.v1.JobService/CancelJob", "AS"),
    ("atelier.job.v1.JobService/CreateJob", "AS"),
    ("atelier.job.v1.JobService/DeleteJob", "AS"),
    ("atelier.job.v1.JobService/EnterJob", "AS"),
    ("atelier.job.v1.JobService/ReleaseSandbox", "AS"),
    ("atelier.job.v1.JobService/ExplainJob", "ASR"),
    ("atelier.job.v1.JobService/GetJob", "ASR"),
    ("atelier.job.v1.JobService/ListArtifacts", "ASR"),
    ("atelier.job.v1.JobService/ListEvents", "ASR"),
    ("atelier.job.v1.JobService/ListJobs", "ASR"),
    ("atelier.job.v1.JobService/ListQueue", "ASR"),
    ("atelier.job.v1.JobService/PlanJob", "AS"),
    ("atelier.job.v1.JobService/StreamLog", "ASR"),
    ("atelier.job.v1.JobService/WatchEvents", "ASR"),
    ("atelier.vault.v1.VaultService/DeleteSecret", "AS"),
    ("atelier.vault.v1.VaultService/DeleteSecretVersion", "AS"),
    ("atelier.vault.v1.VaultService/GetSecret", "ASR"),
    ("atelier.vault.v1.VaultService/GetVault", "A"),
    ("atelier.vault.v1.VaultService/GrantSecret", "AS"),
    ("atelier.vault.v1.VaultService/ListSecrets", "ASR"),
    ("atelier.vault.v1.VaultService/RevokeSecret", "AS"),
    ("atelier.vault.v1.VaultService/RotateKeys", "A"),
    ("atelier.vault.v1.VaultService/SetSecret", "AS"),
    ("atelier.workspace.v1.WorkspaceService/ApplyRetention", "A"),
    ("atelier.workspace.v1.WorkspaceService/CreateDatastore", "A"),
    ("atelier.workspace.v1.WorkspaceService/DeleteDatastore", "A"),
    ("atelier.workspace.v1.WorkspaceService/GetDatastore", "ASR"),
    ("atelier.workspace.v1.WorkspaceService/GetRetention", "ASR"),
    ("atelier.workspace.v1.WorkspaceService/GetWorkspace", "ASR"),
    ("atelier.workspace.v1.WorkspaceService/ListDatastores", "ASR"),
    ("atelier.workspace.v1.WorkspaceService/ListExperiments", "ASR"),
    ("atelier.workspace.v1.WorkspaceService/PreviewRetention", "A"),
    ("atelier.workspace.v1.WorkspaceService/SetRetention", "A"),
    ("atelier.workspace.v1.WorkspaceService/TestDatastore", "AS"),
    ("atelier.workspace.v1.WorkspaceService/UpdateDatastore", "A"),
    ("grpc.health.v1.Health/Check", "ASRNT."),
    ("grpc.health.v1.Health/Watch", "ASRNT."),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "ASR"),
    ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "ASR"),
];

/// The same for HTTP, by the patterns that the routers are given.
const ROUTES: &[(&str, &str)] = &[
    ("/healthz", "ASRNT."),
    ("/readyz", "ASRNT."),
    ("/data/v1/{*object}", "ASRT"),
    ("/health", "ASRT"),
    ("/version", "ASRT"),
    // Also what MLflow's router serves below: `mlflow::paths`.
    ("{root}{path}", "ASRT"),
    ("{root}/3.0/mlflow/server-info", "ASRT"),
    ("{root}/{{*path}}", "ASRT"),
];

const ROLES: &str = "ASRNT.";

#[derive(Clone, PartialEq, Message)]
struct Descriptors {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    methods: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
}

/// Every method of every service that the daemon serves, as descriptors name them.
fn served() -> BTreeSet<String> {
    let sets = [
        DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut found = BTreeSet::new();
    for set in sets {
        for file in Descriptors::decode(set).unwrap().files {
            for service in file.services {
                let methods = service.methods.iter();
                found.extend(
                    methods.map(|m| format!("{}.{}/{}", file.package, service.name, m.name)),
                );
            }
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

#[test]
fn every_method_has_a_declared_need_and_a_row() {
    let rows: BTreeSet<String> = METHODS.iter().map(|(method, _)| (*method).to_owned()).collect();
    assert_eq!(rows, served());
    for method in served() {
        assert!(need_of(&format!("/{method}")).is_some(), "{method} has no declared need");
    }
}

/// What stands between quotes after `.route(` in a router's source.
fn patterns(source: &str) -> BTreeSet<String> {
    let routes = source.split(".route(").skip(1);
    routes
        .filter_map(|rest| {
            let rest = rest.trim_start().trim_start_matches("&format!(");
            rest.strip_prefix('"')?.split('"').next().map(str::to_owned)
        })
        .collect()
}

#[test]
fn every_route_has_a_declared_need_and_a_row() {
    let sources = [
        include_str!("../../http/mod.rs"),
        include_str!("../../http/data.rs"),
        include_str!("../../http/mlflow/mod.rs"),
    ];
    let found: BTreeSet<String> = sources.into_iter().flat_map(patterns).collect();
    let rows: BTreeSet<String> = ROUTES.iter().map(|(route, _)| (*route).to_owned()).collect();
    assert_eq!(rows, found);
    let calls: usize = sources.iter().map(|source| source.matches(".route(").count()).sum();
    assert_eq!(calls, found.len(), "a route's pattern is not written where it is added");
    for (route, who) in ROUTES {
        let path = route.replace("{root}", "/api").replace("{path}", "/2.0/mlflow/runs/get");
        let public = need_of(&path) == Some(Need::Public);
        assert_eq!(public, who.contains('.'), "{route}");
        assert!(need_of(&path).is_some(), "{route} has no declared need");
    }
}

#[test]
fn what_is_not_listed_has_no_need() {
    for path in [
        "",
        "/",
        "//",
        "//healthz",
        "/healthz/",
        "/Healthz",
        "/metrics",
        "/api",
        "/apis/2.0/mlflow/runs/get",
        "/data/v1",
        "/data/v2/x",
        "/data",
        "/admin",
        "/.well-known/x",
        "/atelier.job.v1.JobService",
        "/atelier.job.v1.JobService/",
        "/atelier.job.v1.JobService/createjob",
        "/atelier.job.v1.JobService/CreateJob/",
        "/atelier.job.v1.JobService/CreateJob/x",
        "/atelier.job.v1.JobService/DropJobs",
        "//atelier.job.v1.JobService/GetJob",
        "/atelier.job.v2.JobService/GetJob",
        "/atelier.agent.v1.AgentService/GetJob",
        "/grpc.health.v1.Health/Check/x",
        "/grpc.channelz.v1.Channelz/GetServers",
    ] {
        assert_eq!(need_of(path), None, "{path}");
    }
}

/// Sends bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Calls a method with one empty message.
async fn call(client: &Client, method: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(client.authorized());
    grpc.ready().await.unwrap();
    let path = format!("/{method}").parse().unwrap();
    let request = Request::new(stream::iter([Bytes::new()]));
    grpc.streaming(request, path, Raw).await.map(drop)
}

/// A workspace with a running attempt, and a token of each role.
struct World {
    workspace: Workspace,
    tokens: BTreeMap<char, String>,
    _node: Node,
}

impl World {
    async fn new() -> Self {
        let workspace = Workspace::start().await;
        let mut node = workspace.node(vec![]).await;
        workspace.admin.jobs().create_job(submission("mine")).await.unwrap();
        let attempt = node.is_given().await.token;
        let tokens = BTreeMap::from([
            ('A', workspace.token_of("admin.token")),
            ('S', workspace.token_for("sam", Role::DataScientist).await),
            ('R', workspace.token_for("rita", Role::Reader).await),
            ('N', workspace.token_of("agent.token")),
            ('T', attempt),
            ('.', String::new()),
        ]);
        Self { workspace, tokens, _node: node }
    }

    async fn client(&self, role: char) -> Client {
        self.workspace.as_holder_of(&self.tokens[&role]).await
    }

    /// Sends a request line as it is written; the answer's status and all of it.
    async fn raw(&self, role: char, method: &str, target: &str) -> (u16, String) {
        let address = self.workspace.daemon.address;
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let token = &self.tokens[&role];
        let bearer = if token.is_empty() {
            String::new()
        } else {
            format!("authorization: Bearer {token}\r\n")
        };
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: {address}\r\n{bearer}content-length: 0\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_calls_every_method() {
    let world = World::new().await;
    for role in ROLES.chars() {
        let client = world.client(role).await;
        for (method, who) in METHODS {
            let answer = call(&client, method).await;
            let code = answer.as_ref().err().map(Status::code);
            let refused = match role {
                '.' => code == Some(Code::Unauthenticated),
                _ => code == Some(Code::PermissionDenied),
            };
            assert_eq!(!refused, who.contains(role), "{role} {method}: {answer:?}");
            // Past the door there is a handler, and an empty message is no reason to break.
            let broken = matches!(
                code,
                Some(Code::Unimplemented | Code::Internal | Code::Unknown | Code::Unavailable)
            );
            assert!(!broken, "{role} {method}: {answer:?}");
        }
        let unlisted = call(&client, "atelier.job.v1.JobService/DropJobs").await.unwrap_err();
        let expected = if role == '.' { Code::Unauthenticated } else { Code::Unimplemented };
        assert_eq!(unlisted.code(), expected, "{role}");
    }
    // A job is its owner's, and an admin's.
    let sam = world.client('S').await;
    let name = || "mine".to_owned();
    let cancel = atelier_proto::job::v1::CancelJobRequest { name: name(), reason: String::new() };
    let refused = sam.jobs().cancel_job(cancel).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("admin's"), "{refused:?}");
    let archive = atelier_proto::job::v1::ArchiveJobRequest { name: name(), archived: true };
    assert_eq!(sam.jobs().archive_job(archive).await.unwrap_err().code(), Code::PermissionDenied);
    let delete = atelier_proto::job::v1::DeleteJobRequest { name: name(), with_data: false };
    assert_eq!(sam.jobs().delete_job(delete).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_asks_every_route() {
    let world = World::new().await;
    let mut paths: Vec<(String, &str)> = Vec::new();
    for (route, who) in ROUTES.iter().filter(|(route, _)| !route.contains("{path}")) {
        let route = route.replace("{*object}", "workspaceblobstore/LocalUpload/x");
        paths.push((route.replace("{root}", "/api").replace("/{{*path}}", "/9.9/x"), who));
    }
    for path in crate::http::mlflow::paths() {
        let path = path.replace("{*path}", "x");
        paths.extend(["/api", "/ajax-api"].map(|root| (format!("{root}{path}"), "ASRT")));
    }
    for (path, who) in &paths {
        for method in ["GET", "POST"] {
            for role in ROLES.chars() {
                let (status, said) = world.raw(role, method, path).await;
                let kept_out = match role {
                    '.' => status == 401,
                    // The door's own word; a handler's refusal names the thing.
                    _ => status == 403 && said.contains("which may not read or write"),
                };
                assert_eq!(!kept_out, who.contains(role), "{role} {method} {path}: {said}");
                assert!(status < 500 || status == 501, "{role} {method} {path}: {said}");
            }
        }
    }
    for path in ["/", "/metrics", "/data/v2/x", "//healthz", "/healthz/", "/api", "/admin"] {
        for role in ROLES.chars() {
            let (status, said) = world.raw(role, "GET", path).await;
            assert_eq!(status, if role == '.' { 401 } else { 404 }, "{role} {path}: {said}");
        }
    }
}

/// An attempt's token at the gateway: its own prefixes, in no writing another's.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_reaches_its_own_objects_alone() {
    let world = World::new().await;
    let artifacts = "/data/v1/workspaceartifactstore";
    let own = format!("{artifacts}/ExperimentRun/dcid.mine");
    let other = format!("{artifacts}/ExperimentRun/dcid.other/outputs/secret");
    assert_eq!(world.raw('T', "PUT", &format!("{own}/outputs/x")).await.0, 201);
    assert_eq!(world.raw('A', "PUT", &other).await.0, 201);
    assert_eq!(world.raw('T', "GET", &format!("{own}/outputs/x")).await.0, 200);
    assert_eq!(world.raw('A', "GET", &other).await.0, 200);
    for target in [
        other.clone(),
        format!("{own}/../dcid.other/outputs/secret"),
        format!("{own}/%2e%2e/dcid.other/outputs/secret"),
        format!("{own}/..%2fdcid.other%2foutputs%2fsecret"),
        format!("{own}%2f..%2fdcid.other/outputs/secret"),
        format!("{own}/%252e%252e/dcid.other/outputs/secret"),
        format!("{own}//../dcid.other/outputs/secret"),
        format!("{own}/./../dcid.other/outputs/secret"),
        format!("{own}\\..\\dcid.other\\outputs\\secret"),
        format!("{artifacts}/ExperimentRun%2fdcid.other%2foutputs%2fsecret"),
        format!("{artifacts}/ExperimentRun/dcid.mine2/outputs/x"),
        format!("{artifacts}/ExperimentRun/dcid.MINE/outputs/x"),
        format!("{artifacts}?prefix=ExperimentRun/dcid.other"),
        format!("{artifacts}?prefix=ExperimentRun/dcid.mine/../dcid.other"),
        format!("{artifacts}?prefix=ExperimentRun"),
        format!("{artifacts}?prefix="),
        artifacts.to_owned(),
        "/data/v1/workspaceblobstore/LocalUpload/x".to_owned(),
        "/data/v1/workspaceblobstore/azureml/content/ab/x".to_owned(),
        "/data/v1/../v1/workspaceartifactstore/ExperimentRun/dcid.other/outputs/secret".to_owned(),
    ] {
        for method in ["GET", "PUT"] {
            let (status, said) = world.raw('T', method, &target).await;
            let refused = matches!(status, 400 | 403 | 404 | 405);
            assert!(refused, "{method} {target}: {said}");
            assert!(status != 404 || target.contains("/data/v1/.."), "{method} {target}: {said}");
        }
    }
    // Once the job is over, its token is worth nothing, though the job's data is still there.
    let reason = String::new();
    let name = "mine".to_owned();
    let cancel = atelier_proto::job::v1::CancelJobRequest { name, reason };
    world.workspace.admin.jobs().cancel_job(cancel).await.unwrap();
    assert_eq!(world.raw('T', "GET", &format!("{own}/outputs/x")).await.0, 200, "not over yet");
    let mut node = world._node;
    while !matches!(
        node.hears().await,
        Some(atelier_proto::agent::v1::daemon_message::Message::Cancel(_))
    ) {}
    node.says_ended("mine").await;
    while !matches!(
        node.hears().await,
        Some(atelier_proto::agent::v1::daemon_message::Message::Acknowledge(_))
    ) {}
    let address = world.workspace.url();
    let again = world.workspace.as_holder_of(&world.tokens[&'T']).await;
    for method in ["GET", "PUT"] {
        let http = again.http().unwrap();
        let method = method.parse().unwrap();
        let request = http.request(method, format!("{address}{own}/outputs/x"));
        let answer = request.bearer_auth(&world.tokens[&'T']).send().await.unwrap();
        assert_eq!(answer.status(), 401);
        assert!(answer.text().await.unwrap().contains("over"));
    }
}
