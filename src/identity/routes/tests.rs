//! That every method and route has a declared need, and that each role gets through where the
//! table says and nowhere else: asked of a whole daemon, over its port.

use std::collections::{BTreeMap, BTreeSet};

use atelier_core::access::{AttemptScope, Role};
use atelier_core::id::{AttemptNumber, Epoch, JobName, NodeName, Principal};
use atelier_proto::DESCRIPTORS;
use atelier_proto::identity::v1 as pb;
use bytes::Bytes;
use futures::stream;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::client::Grpc;
use tonic::{Code, Request, Status};

use super::*;
use crate::client::Client;
use crate::daemon::tests::raw::{Descriptors, Raw};
use crate::daemon::tests::{Node, Workspace, submission};

/// The patterns that the routers of HTTP are given, and a path of each.
const ROUTES: &[(&str, &str)] = &[
    ("/healthz", "/healthz"),
    ("/readyz", "/readyz"),
    ("/data/v1/{*object}", "/data/v1/workspaceblobstore/LocalUpload/x"),
    ("/.well-known/jwks.json", "/.well-known/jwks.json"),
    ("/health", "/health"),
    ("/version", "/version"),
    ("/get-artifact", "/get-artifact"),
    ("/model-versions/get-artifact", "/model-versions/get-artifact"),
    ("/graphql", "/graphql"),
    // What MLflow's router serves below: `mlflow::paths`.
    ("{root}{path}", "/api/2.0/mlflow/runs/get"),
    ("{root}/3.0/mlflow/server-info", "/api/3.0/mlflow/server-info"),
    ("{root}/{{*path}}", "/api/9.9/x"),
];

/// The columns of the table in `docs/access.md`: **A**dmin, compute **O**perator, data **S**cientist, **R**eader,
/// **N**ode, at**T**empt, **.** nobody in particular (no token).
const ROLES: &str = "AOSRNT.";
const TITLES: [&str; 7] =
    ["Admin", "Compute operator", "Data scientist", "Reader", "Node", "Attempt", "No token"];

fn role(letter: char) -> Option<Role> {
    let scope = AttemptScope {
        job: JobName::new("mine").unwrap(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
    };
    Some(match letter {
        'A' => Role::Admin,
        'O' => Role::ComputeOperator,
        'S' => Role::DataScientist,
        'R' => Role::Reader,
        'N' => Role::Node(NodeName::new("local").unwrap()),
        'T' => Role::Attempt(scope),
        _ => return None,
    })
}

/// Who gets past the door to a path, as letters.
fn who_may(path: &str) -> String {
    let need = need_of(path).unwrap_or_else(|| panic!("{path} has no declared need"));
    let may = |letter: &char| match role(*letter) {
        None => need == Need::Public,
        Some(role) => {
            let caller = Caller { principal: Principal::new("somebody").unwrap(), role };
            need.check(&caller).is_ok()
        }
    };
    ROLES.chars().filter(may).collect()
}

fn needed(path: &str) -> String {
    match need_of(path).unwrap_or(Need::Public) {
        Need::Public => "nothing".to_owned(),
        Need::Person => "a person's token".to_owned(),
        need => {
            let names = need.permissions().into_iter().map(|p| format!("`{p}`"));
            names.collect::<Vec<_>>().join(" or ")
        }
    }
}

fn row(first: &str, needs: &str, who: impl Fn(char) -> bool, letters: &str) -> String {
    let cells = letters.chars().map(|letter| if who(letter) { " yes |" } else { " |" });
    format!("| {first} | {needs} |{}\n", cells.collect::<String>())
}

/// The table of routes, as the code has it.
fn routes_table() -> String {
    let mut text = format!("\n| Route | Needs | {} |\n", TITLES.join(" | "));
    text += &format!("|{}\n", "-|".repeat(TITLES.len() + 2));
    for method in served() {
        let path = format!("/{method}");
        let who = who_may(&path);
        text += &row(&format!("`{method}`"), &needed(&path), |letter| who.contains(letter), ROLES);
    }
    for (pattern, path) in ROUTES {
        let shown = pattern.replace("{root}", "/api").replace("{{*path}}", "{*path}");
        let shown = shown.replace("{path}", "/2.0/mlflow/{*call}");
        let who = who_may(path);
        text += &row(&format!("`{shown}`"), &needed(path), |letter| who.contains(letter), ROLES);
    }
    for path in crate::http::mlflow::paths() {
        let path = format!("/api{path}");
        // All others are rows above.
        if need_of(&path) != Some(Need::Tracking) {
            let who = who_may(&path);
            let shown = format!("`{path}`");
            text += &row(&shown, &needed(&path), |letter| who.contains(letter), ROLES);
        }
    }
    text
}

/// The table of actions, as the code has it.
fn actions_table() -> String {
    let mut text = format!("\n| Action | Allows to | {} |\n", TITLES[..6].join(" | "));
    text += &format!("|{}\n", "-|".repeat(8));
    for permission in Permission::ALL {
        let has = |letter| role(letter).unwrap().permissions().has(*permission);
        text += &row(&format!("`{permission}`"), permission.action(), has, &ROLES[..6]);
    }
    text
}

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/access.md");

/// Where the page shows a table.
fn marked(text: &str, name: &str) -> std::ops::Range<usize> {
    let mark = format!("<!-- {name}: made from the code -->\n");
    let start = text.find(&mark).unwrap() + mark.len();
    let len = text[start..].find(&format!("\n<!-- end of {name} -->")).unwrap();
    start..start + len
}

/// The page is what people read and review: the tests below ask a whole daemon whether it is true.
#[test]
fn the_page_shows_every_route_and_action_as_the_code_has_them() {
    for (name, expected) in [("routes", routes_table()), ("actions", actions_table())] {
        let mut text = std::fs::read_to_string(PAGE).unwrap();
        let shown = marked(&text, name);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            text.replace_range(shown, &expected);
            std::fs::write(PAGE, text).unwrap();
            continue;
        }
        assert!(
            text[shown] == expected,
            "docs/access.md is out of date: run this test with UPDATE_DOCS=1\n{expected}"
        );
    }
}

/// The rows of the page: a route, and the letters of who gets through.
fn rows() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(PAGE).unwrap();
    let shown = &text[marked(&text, "routes")];
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let who = ROLES.chars().zip(&cells[2..]).filter(|(_, cell)| **cell == "yes");
        (cells[0].trim_matches('`').to_owned(), who.map(|(letter, _)| letter).collect())
    };
    shown.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// Each method of the page, and who gets past the door to it.
fn methods() -> Vec<(String, String)> {
    rows().into_iter().filter(|(route, _)| !route.starts_with('/')).collect()
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
    let rows: BTreeSet<String> = methods().into_iter().map(|(method, _)| method).collect();
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
    for (route, path) in ROUTES {
        assert!(need_of(path).is_some(), "{route} has no declared need");
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
            ('O', workspace.token_for("olga", pb::Role::ComputeOperator).await),
            ('S', workspace.token_for("sam", pb::Role::DataScientist).await),
            ('R', workspace.token_for("rita", pb::Role::Reader).await),
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
    let methods = methods();
    println!("{} methods, each as {} callers", methods.len(), ROLES.len());
    for role in ROLES.chars() {
        let client = world.client(role).await;
        for (method, who) in &methods {
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

/// What a job is made of is not for who only sees to machines; cancelling it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_how_a_job_stands_and_cancels_it() {
    use atelier_proto::job::v1 as job_pb;
    let world = World::new().await;
    let (admin, olga) = (world.client('A').await, world.client('O').await);
    let get = || job_pb::GetJobRequest { name: "mine".to_owned(), ..Default::default() };
    let command = |job: &job_pb::Job| match job.spec.clone().and_then(|spec| spec.kind) {
        Some(job_pb::job_spec::Kind::Command(command)) => command,
        None => panic!("{job:?}"),
    };
    let whole = admin.jobs().get_job(get()).await.unwrap().into_inner();
    let seen = olga.jobs().get_job(get()).await.unwrap().into_inner();
    assert_eq!(command(&whole).command, "true");
    assert_eq!(command(&seen).command, "");
    assert_eq!(command(&seen).environment, None);
    assert_eq!(
        (&seen.name, seen.status, &seen.created_by),
        (&whole.name, whole.status, &whole.created_by)
    );
    assert_eq!(command(&seen).resources, command(&whole).resources);
    let list = job_pb::ListJobsRequest::default();
    let listed = olga.jobs().list_jobs(list).await.unwrap().into_inner();
    assert_eq!(command(&listed.jobs[0]).command, "");
    let cancel = job_pb::CancelJobRequest { name: "mine".to_owned(), reason: String::new() };
    olga.jobs().cancel_job(cancel).await.unwrap();
    let events = job_pb::ListEventsRequest { job: "mine".to_owned(), ..Default::default() };
    let events = admin.jobs().list_events(events).await.unwrap().into_inner().events;
    assert!(events.iter().any(|event| event.principal == "olga"), "{events:?}");
    // Of a cluster an operator says how many nodes, and nothing else.
    let update = |description: Option<String>| {
        let name = "none".to_owned();
        let max_instances = Some(1);
        atelier_proto::compute::v1::UpdateComputeRequest {
            name,
            max_instances,
            description,
            ..Default::default()
        }
    };
    let refused = olga.computes().update_compute(update(Some("x".to_owned()))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = olga.computes().update_compute(update(None)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_asks_every_route() {
    let world = World::new().await;
    let rows = rows();
    let of = |shown: &str| rows.get(shown).unwrap_or_else(|| panic!("{shown} has no row")).clone();
    let mut paths: Vec<(String, String)> = Vec::new();
    for (route, path) in ROUTES.iter().filter(|(route, _)| !route.contains("{path}")) {
        let shown = route.replace("{root}", "/api").replace("{{*path}}", "{*path}");
        paths.push(((*path).to_owned(), of(&shown)));
    }
    for path in crate::http::mlflow::paths() {
        let path = path.replace("{*path}", "x");
        let who = rows.get(&format!("/api{path}")).cloned();
        let who = who.unwrap_or_else(|| of("/api/2.0/mlflow/{*call}"));
        paths.extend(["/api", "/ajax-api"].map(|root| (format!("{root}{path}"), who.clone())));
    }
    println!("{} routes, each by two methods as {} callers", paths.len(), ROLES.len());
    for (path, who) in &paths {
        let is_registry = path.contains("registered-models/") || path.contains("model-versions/");
        let words = if is_registry { "which may not" } else { "which may not read or write" };
        for method in ["GET", "POST"] {
            for role in ROLES.chars() {
                let (status, said) = world.raw(role, method, path).await;
                let kept_out = match role {
                    '.' => status == 401,
                    // The door's own word; a handler's refusal names the thing.
                    _ => status == 403 && said.contains(words),
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
