//! What was done to other systems of this kind, done to this one: the list is in `docs/security.md`. Attackers have no
//! token, or the token of a job, which is always hostile code.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use atelier_proto::DESCRIPTORS;
use prost::Message;

use crate::harness::{Cluster, needs, until};

/// Paths that mean to lead out of where they begin.
const OUT: &[&str] = &[
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd",
    "%252e%252e%252f%252e%252e%252fetc%252fpasswd",
    "%25252e%25252e%25252fetc%25252fpasswd",
    "..%5c..%5cetc%5cpasswd",
    "..\\..\\etc\\passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "file:%2f%2f%2fetc%2fpasswd",
    "a/../../../../../../etc/passwd",
    "a%00/../../etc/passwd",
    "etc/passwd%00.txt",
    "....//....//etc/passwd",
    ".%2e/.%2e/etc/passwd",
    "a/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "http://127.0.0.1/etc/passwd",
];

/// One request as it is written, with these further header lines; the status, and all that was answered.
fn raw(server: &str, line: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let address = server.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut request = format!("{line} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request += &format!("Host: {address}\r\n");
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // Who is refused may be cut off before all was read.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, answer)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

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

/// The path of every method that there is.
fn methods() -> Vec<String> {
    let files = Descriptors::decode(DESCRIPTORS).unwrap().files;
    let services = files
        .iter()
        .flat_map(|file| file.services.iter().map(move |service| (&file.package, service)));
    // Where tokens come from: they ask for something else.
    const PUBLIC: [&str; 4] = ["/JoinNode", "/GetSignIn", "/SignIn", "/AskProvider"];
    let methods: Vec<String> = services
        .flat_map(|(package, service)| {
            let path =
                move |method: &Method| format!("/{package}.{}/{}", service.name, method.name);
            service.methods.iter().map(path)
        })
        .filter(|method| !PUBLIC.iter().any(|public| method.ends_with(public)))
        .collect();
    assert!(methods.len() > 50, "{methods:?}");
    methods
}

/// What gRPC answers to a method: its status, which stands in the headers of a refusal.
fn called(server: &str, path: &str, token: Option<&str>) -> Option<u32> {
    let mut headers = vec![("Content-Type", "application/grpc"), ("TE", "trailers")];
    let token = token.map(bearer);
    headers.extend(token.iter().map(|token| ("Authorization", token.as_str())));
    // One empty message.
    let (_, answer) = raw(server, &format!("POST {path}"), &headers, "\0\0\0\0\0");
    let status = answer.lines().find_map(|line| line.strip_prefix("grpc-status: "));
    status.and_then(|status| status.trim().parse().ok())
}

/// The address where jobs log and store.
fn jobs_port(cluster: &Cluster) -> String {
    let (_, answer) = raw(&cluster.server(), "GET /healthz", &[], "");
    let found = answer.lines().find_map(|line| line.split_once(": http://").map(|(_, at)| at));
    format!("http://{}", found.unwrap_or_else(|| panic!("{answer}")).trim())
}

/// ShadowRay (CVE-2023-48022), and CVE-2026-0545: an interface of jobs that asks nobody who they are.
#[test]
fn nobody_submits_or_sees_anything_without_a_token() {
    let cluster = Cluster::start();
    let (server, jobs) = (cluster.server(), jobs_port(&cluster));
    for method in methods() {
        for token in [None, Some("atl_guessed"), Some("ata_e30.AAAA"), Some("")] {
            assert_eq!(called(&server, &method, token), Some(16), "{method} {token:?}");
            let elsewhere = called(&jobs, &method, token);
            assert_eq!(elsewhere, Some(16), "{method} {token:?} at the jobs' port");
        }
    }
    for server in [&server, &jobs] {
        for line in [
            "GET /api/2.0/mlflow/experiments/search",
            "POST /api/2.0/mlflow/runs/create",
            "POST /ajax-api/2.0/mlflow/runs/create",
            "GET /data/v1/workspaceblobstore",
            "PUT /data/v1/workspaceblobstore/x",
            "DELETE /data/v1/workspaceblobstore/x",
            "GET /api/2.0/mlflow-artifacts/artifacts",
            "PUT /api/2.0/mlflow-artifacts/artifacts/x",
            "POST /api/jobs/",
            "GET /version",
            "GET /",
            "OPTIONS /api/2.0/mlflow/runs/create",
        ] {
            let (status, answer) = raw(server, line, &[], "{}");
            assert_eq!(status, 401, "{line}: {answer}");
            let basic = [("Authorization", "Basic YWRtaW46cGFzc3dvcmQ=")];
            assert_eq!(raw(server, line, &basic, "{}").0, 401, "{line} with MLflow's password");
        }
    }
    assert!(cluster.rpc().jobs().unwrap().is_empty());
}

/// MLflow's CVE-2023-1177, 2023-2780, 2024-1558, 2025-11201 and their like, with an admin's token: what is refused is
/// the path, not the caller.
#[test]
fn no_path_leads_out_of_the_storage() {
    let cluster = Cluster::start();
    let name = cluster.shell("echo mine > outputs/mine.txt");
    cluster.completed(&name);
    let (server, token) = (cluster.server(), bearer(&cluster.token()));
    let headers = [("Authorization", token.as_str()), ("Content-Type", "application/json")];
    let refused = |line: &str, body: &str| {
        let (status, answer) = raw(&server, line, &headers, body);
        assert!((400..500).contains(&status), "{line} {body}: {answer}");
        assert!(!answer.contains("root:"), "{line} {body}: {answer}");
    };
    // What is encoded twice is a name like any other, of which nothing is made here.
    let leads_nowhere = |line: &str| {
        let (status, answer) = raw(&server, line, &headers, "x");
        assert!(status < 500, "{line}: {answer}");
        assert!(!answer.contains("root:"), "{line}: {answer}");
    };
    let storage = cluster.data().join("storage");
    let outside = || -> Vec<String> {
        let inside = storage.display().to_string();
        listed(&cluster.data()).into_iter().filter(|path| !path.starts_with(&inside)).collect()
    };
    let before = outside();
    let passwd = fs::read("/etc/passwd").unwrap();
    for path in OUT {
        for store in ["workspaceblobstore", "workspaceartifactstore"] {
            refused(&format!("GET /data/v1/{store}/{path}"), "");
            for method in ["PUT", "DELETE", "HEAD"] {
                leads_nowhere(&format!("{method} /data/v1/{store}/{path}"));
            }
            leads_nowhere(&format!("GET /data/v1/{store}?prefix={path}"));
        }
        let below = format!("/api/2.0/mlflow-artifacts/artifacts/{name}/artifacts/{path}");
        for method in ["GET", "PUT", "DELETE"] {
            refused(&format!("{method} {below}"), "x");
        }
        leads_nowhere(&format!("GET /api/2.0/mlflow/artifacts/list?run_id={name}&path={path}"));
    }
    for place in ["file:///etc", "/etc", "http://169.254.169.254/", "s3://b/../..", "../../etc"] {
        let body = format!(r#"{{"name": "e", "artifact_location": "{place}"}}"#);
        refused("POST /api/2.0/mlflow/experiments/create", &body);
    }
    for (line, body) in [
        ("POST /api/2.0/mlflow/model-versions/create", r#"{"name": "m", "source": "file:///etc"}"#),
        ("GET /get-artifact?path=../../etc/passwd&run_uuid=x", ""),
        ("GET /model-versions/get-artifact?path=../../etc/passwd", ""),
    ] {
        refused(line, body);
    }
    assert_eq!(outside(), before);
    assert_eq!(fs::read("/etc/passwd").unwrap(), passwd);
}

/// Every file below a folder, but for what the database does for itself.
fn listed(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(path),
                false => found.push(path.display().to_string()),
            }
        }
    }
    found.retain(|path| !path.contains("atelier.db"));
    found.sort();
    found
}

/// Ray's CVE-2023-48022 by way of a browser, and CVE-2026-27482, whose list of what browsers may not do forgot DELETE.
#[test]
fn a_page_of_another_site_does_nothing_through_a_browser() {
    let cluster = Cluster::start();
    let (server, token) = (cluster.server(), bearer(&cluster.token()));
    let address = server.trim_start_matches("http://").to_owned();
    let object = "/data/v1/workspaceblobstore/kept";
    let own = ("Authorization", token.as_str());
    assert_eq!(raw(&server, &format!("PUT {object}"), &[own], "x").0, 201);
    let rebound = format!("evil.example:{}", address.rsplit_once(':').unwrap().1);
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in [object, "/api/2.0/mlflow/experiments/search", "/healthz", "/version"] {
            for foreign in [
                ("Origin", "https://evil.example"),
                ("Origin", "null"),
                ("Origin", "http://127.0.0.1:8888"),
                ("Origin", "file://"),
                ("Host", rebound.as_str()),
                ("Host", "169.254.169.254"),
            ] {
                let (status, answer) =
                    raw(&server, &format!("{method} {path}"), &[own, foreign], "");
                assert_eq!(status, 403, "{method} {path} {foreign:?}: {answer}");
                let allows = answer.to_ascii_lowercase().contains("access-control-allow");
                assert!(!allows, "{method} {path} {foreign:?}: {answer}");
            }
        }
    }
    let create = "/atelier.job.v1.JobService/CreateJob";
    let headers = [own, ("Content-Type", "application/grpc"), ("Origin", "null")];
    let (_, answer) = raw(&server, &format!("POST {create}"), &headers, "\0\0\0\0\0");
    assert!(answer.contains("grpc-status: 7"), "{answer}");
    assert_eq!(raw(&server, &format!("GET {object}"), &[own], "").0, 200, "it is still there");
}

/// A URL is in histories, logs of proxies and the address line.
#[test]
fn a_token_in_a_url_opens_nothing_and_no_token_is_written_down() {
    let cluster = Cluster::start();
    let (server, admin) = (cluster.server(), cluster.token());
    let user = cluster.token_for("ana", "data-scientist");
    for token in [&admin, &user] {
        for name in ["token", "access_token", "api_key", "authorization", "bearer"] {
            for path in
                ["/version", "/api/2.0/mlflow/experiments/search", "/data/v1/workspaceblobstore"]
            {
                let line = format!("GET {path}?{name}={token}");
                assert_eq!(raw(&server, &line, &[], "").0, 401, "{name} {path}");
            }
        }
        assert_eq!(raw(&server, &format!("GET /{token}"), &[], "").0, 401);
        let cookie = format!("token={token}");
        assert_eq!(raw(&server, "GET /version", &[("Cookie", &cookie)], "").0, 401);
        // What opens, and what is refused with it.
        let own = bearer(token);
        assert_eq!(raw(&server, "GET /version", &[("Authorization", &own)], "").0, 200);
        let cut = bearer(&token[..token.len() - 1]);
        assert_eq!(raw(&server, "GET /version", &[("Authorization", &cut)], "").0, 401);
        let bad = raw(&server, "GET /data/v1/none/..", &[("Authorization", &own)], "");
        assert!((400..500).contains(&bad.0) && !bad.1.contains(token.as_str()), "{}", bad.1);
    }
    let given = cluster.shared_file("token");
    let name = cluster.shell(&format!("printenv MLFLOW_TRACKING_TOKEN > {}", given.display()));
    cluster.completed(&name);
    let attempt = fs::read_to_string(&given).unwrap().trim().to_owned();
    assert!(attempt.len() > 20, "{attempt}");
    let agent = fs::read_to_string(cluster.data().join("agent.token")).unwrap().trim().to_owned();

    let database = fs::read_dir(cluster.data()).unwrap().flatten().map(|entry| entry.path());
    let database = database.filter(|path| path.display().to_string().contains("atelier.db"));
    let logs = fs::read_dir(cluster.path().join("logs")).unwrap().flatten().map(|e| e.path());
    let mut looked_at = 0;
    for file in database.chain(logs) {
        let bytes = fs::read(&file).unwrap();
        looked_at += 1;
        for (whose, token) in
            [("admin", &admin), ("ana", &user), ("job", &attempt), ("agent", &agent)]
        {
            // The secret part, however it is written around it.
            let secret = &token.as_bytes()[token.len() - 24..];
            let found = bytes.windows(secret.len()).any(|part| part == secret);
            assert!(!found, "the {whose}'s token is in {}", file.display());
        }
    }
    assert!(looked_at >= 3, "a database and two logs");
}

/// SAPwned, and Slurm's CVE-2022-29500: what a job was given opened more than the job's own.
#[test]
fn a_jobs_token_opens_its_own_attempt_and_dies_with_it() {
    let cluster = Cluster::start();
    let other = cluster.shell("echo theirs > outputs/theirs.txt");
    cluster.completed(&other);
    let given = cluster.shared_file("token");
    let name = cluster.shell(&format!(
        "echo $MLFLOW_TRACKING_TOKEN > {}; echo own > outputs/own.txt; exec sleep 600",
        given.display()
    ));
    let token = until("the job gives its token away", || {
        let text = fs::read_to_string(&given).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    });
    let (server, jobs) = (cluster.server(), jobs_port(&cluster));
    // No method is a job's.
    for method in methods() {
        assert_eq!(called(&server, &method, Some(&token)), Some(7), "{method}");
    }
    let own = bearer(&token);
    let headers = [("Authorization", own.as_str()), ("Content-Type", "application/json")];
    let ask = |line: &str, body: &str| raw(&jobs, line, &headers, body);
    let metric =
        |run: &str| format!(r#"{{"run_id": "{run}", "key": "m", "value": 1, "timestamp": 1}}"#);
    let log = "POST /api/2.0/mlflow/runs/log-metric";
    let get = |run: &str| format!("GET /api/2.0/mlflow/runs/get?run_id={run}");
    assert_eq!(ask(log, &metric(&name)).0, 200);
    assert_eq!(ask(&get(&name), "").0, 200);
    let artifacts = "/data/v1/workspaceartifactstore/ExperimentRun";
    let theirs = [
        (log.to_owned(), metric(&other)),
        ("POST /api/2.0/mlflow/runs/delete".to_owned(), format!(r#"{{"run_id": "{other}"}}"#)),
        (
            "POST /api/2.0/mlflow/experiments/delete".to_owned(),
            r#"{"experiment_id": "0"}"#.to_owned(),
        ),
        (format!("GET {artifacts}/dcid.{other}/outputs/theirs.txt"), String::new()),
        (format!("PUT {artifacts}/dcid.{other}/outputs/theirs.txt"), "x".to_owned()),
        (format!("DELETE {artifacts}/dcid.{other}/outputs/theirs.txt"), String::new()),
        (
            format!("GET /data/v1/workspaceartifactstore?prefix=ExperimentRun/dcid.{other}"),
            String::new(),
        ),
        ("GET /data/v1/workspaceartifactstore".to_owned(), String::new()),
        ("GET /data/v1/workspaceblobstore".to_owned(), String::new()),
        (
            format!("PUT /api/2.0/mlflow-artifacts/artifacts/{other}/artifacts/theirs.txt"),
            "x".to_owned(),
        ),
    ];
    for (line, body) in &theirs {
        let (status, answer) = ask(line, body);
        assert!(matches!(status, 400 | 403 | 404), "{line}: {answer}");
        assert!(!answer.contains("theirs\n"), "{line}: {answer}");
    }
    // Its epoch, its number and its job are what was signed.
    let (body, mac) = token.split_once('.').unwrap();
    for forged in
        [format!("{body}A.{mac}"), format!("{body}.{mac}A"), format!("{body}."), body.to_owned()]
    {
        let forged = bearer(&forged);
        let (status, answer) = raw(&jobs, &get(&name), &[("Authorization", &forged)], "");
        assert_eq!(status, 401, "{answer}");
    }

    // Whoever has stolen it has nothing once the attempt is over.
    cluster.atelier(["job", "cancel", &name]).ok();
    cluster.ended(&name);
    for line in [get(&name), format!("GET {artifacts}/dcid.{name}/outputs/own.txt")] {
        let (status, answer) = ask(&line, "");
        assert_eq!(status, 401, "{line}: {answer}");
        assert!(answer.contains("over"), "{answer}");
    }
    let late = ask(log, &metric(&name));
    assert_eq!(late.0, 401, "{}", late.1);
    let put = ask(&format!("PUT {artifacts}/dcid.{name}/outputs/late.txt"), "x");
    assert_eq!(put.0, 401, "{}", put.1);
    for method in methods() {
        assert_eq!(called(&server, &method, Some(&token)), Some(16), "{method}");
    }
}

/// The job's own machine: what another job has in its folder.
#[test]
fn a_job_does_not_read_another_jobs_folder() {
    needs("isolation");
    let cluster = Cluster::start();
    let place = cluster.shared_file("place");
    let first = cluster.shell(&format!(
        "echo canary-of-the-first > secret.txt; pwd > {}; exec sleep 600",
        place.display()
    ));
    let folder = until("the first job says where it is", || {
        let text = fs::read_to_string(&place).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    });
    let look = format!(
        "cat {folder}/secret.txt && echo found; ls -d {folder} && echo seen; \
         echo x > {folder}/planted && echo planted; \
         cat /proc/[0-9]*/cwd/secret.txt && echo around; echo done"
    );
    let second = cluster.shell(&look);
    cluster.completed(&second);
    let log = String::from_utf8(cluster.log(&second)).unwrap();
    assert!(log.ends_with("done\n"), "{log}");
    assert!(!log.contains("canary"), "{log}");
    for word in ["found", "seen", "planted", "around"] {
        assert!(!log.lines().any(|line| line == word), "{word}: {log}");
    }
    cluster.atelier(["job", "cancel", &first]).ok();
    cluster.ended(&first);
}
