//! Who may do what, as the command line meets it.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Cli, Cluster, Outcome, job_yaml, processes_with, until};

#[test]
fn a_reader_looks_and_does_not_submit() {
    let cluster = Cluster::start();
    let name = cluster.shell("echo seen");
    cluster.completed(&name);
    let reader = cluster.token_for("rita", "reader");
    let as_reader = |arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", &reader)
    };
    assert_eq!(as_reader(&["job", "list", "--query", "[].name", "-o", "tsv"]).ok().word(), name);
    let log = as_reader(&["job", "stream", &name, "-q"]).ok();
    assert_eq!(log.word(), "seen");
    as_reader(&["job", "create", "-f", "-"])
        .stdin(job_yaml("true"))
        .fails(5)
        .says(&["reader", "submit"])
        .never_says(&[&reader]);
    as_reader(&["job", "cancel", &name]).fails(5).says(&["rita"]);
    as_reader(&["job", "delete", &name, "--yes"]).fails(5);
    as_reader(&["token", "create", "--user", "eve", "--role", "admin"]).fails(5);
    assert_eq!(cluster.rpc().jobs().unwrap().len(), 1);
}

#[test]
fn a_data_scientist_cancels_own_jobs_only() {
    let cluster = Cluster::start();
    let (ana, ben) =
        (cluster.token_for("ana", "data-scientist"), cluster.token_for("ben", "data-scientist"));
    let with = |token: &str, arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", token)
    };
    let name = with(&ana, &["job", "create", "-f", "-", "--query", "name", "-o", "tsv"])
        .stdin(job_yaml("sleep 600"))
        .ok()
        .word();
    cluster.running(&name);
    with(&ben, &["job", "cancel", &name]).fails(5).says(&["ben", "ana"]);
    assert_eq!(cluster.rpc().job(&name).unwrap().created_by, "ana");
    with(&ana, &["job", "cancel", &name, "--reason", "my own"]).ok();
    let ended = cluster.ended(&name);
    assert_eq!(ended.status().word(), "Canceled");
    let events = cluster.rpc().events(&name).unwrap();
    assert!(
        events.iter().any(|event| event.principal == "ana" && event.message.contains("my own")),
        "{events:?}"
    );
}

#[test]
fn only_the_right_token_opens_the_door() {
    let cluster = Cluster::start();
    let server = cluster.server();
    cluster
        .atelier_at(&server, ["job", "list"])
        .env("ATELIER_TOKEN", "not-a-token")
        .fails(5)
        .says(&["token", "--token-file"])
        .never_says(&["not-a-token"]);
    cluster
        .atelier_at(&server, ["job", "list"])
        .env_remove("ATELIER_TOKEN")
        .fails(5)
        .says(&["no token", "atelier token create"]);
    // The tokens' files are their owner's alone.
    use std::os::unix::fs::PermissionsExt as _;
    for file in ["admin.token", "agent.token", "token.key"] {
        let mode = std::fs::metadata(cluster.data().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_job_sees_one_token_and_it_dies_with_the_attempt() {
    let cluster = Cluster::start();
    let name = cluster.shell("printenv MLFLOW_TRACKING_TOKEN > outputs/token; env > outputs/env");
    cluster.completed(&name);
    cluster.atelier(["job", "download", &name, "--download-path", "got"]).ok();
    let outputs = cluster.files().join("got/artifacts/outputs");
    let token = std::fs::read_to_string(outputs.join("token")).unwrap().trim().to_owned();
    let variables = std::fs::read_to_string(outputs.join("env")).unwrap();
    assert!(!variables.contains(&cluster.token()), "the admin's token is in a job's environment");
    let node = std::fs::read_to_string(cluster.data().join("agent.token")).unwrap();
    assert!(!variables.contains(node.trim()), "the node's token is in a job's environment");
    cluster
        .atelier_at(&cluster.server(), ["job", "show", &name])
        .env("ATELIER_TOKEN", token)
        .fails(5);
}

fn with(cluster: &Cluster, token: &str, words: &[&str]) -> Cli {
    cluster.atelier_at(&cluster.server(), words).env("ATELIER_TOKEN", token)
}

#[test]
fn users_and_their_tokens_are_made_listed_and_taken_back() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let made = cluster.atelier(["user", "create", "ana", "--role", "AzureML Data Scientist"]).ok();
    assert_eq!(made.json()["role"], "data-scientist");
    cluster.atelier(["user", "create", "ana", "--role", "reader"]).fails(1).says(&["user update"]);
    cluster
        .atelier(["user", "create", "eve", "--role", "data-scientst"])
        .fails(3)
        .says(&["did you mean 'data-scientist'"]);
    let create = ["token", "create", "--user", "ana", "--expires", "30d", "-o", "json"];
    let made = cluster.atelier(create).ok().json();
    let (token, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(made["expires_at"].is_string() && made["role"] == "data-scientist", "{made}");
    let listed = cluster.atelier(["token", "list", "-o", "json"]).ok();
    assert!(!listed.stdout().contains(token));
    let users = |listed: &Outcome| {
        let tokens = listed.json();
        let users = tokens.as_array().unwrap().iter();
        users.map(|token| token["user"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut all = users(&listed);
    all.sort();
    assert_eq!(all, ["admin", "ana", "node:local"]);
    // One's own are one's own to see, and to revoke.
    let who = with(&cluster, token, &["auth", "whoami", "-o", "json"]).ok().json();
    assert_eq!((&who["principal"], &who["role"]), (&json!("ana"), &json!("data-scientist")));
    let own = with(&cluster, token, &["token", "list", "-o", "json"]).ok();
    assert_eq!(users(&own), ["ana"]);
    assert!(own.json()[0]["last_used_at"].is_string());
    with(&cluster, token, &["user", "list"]).fails(5).says(&["workspaces/roleAssignments/write"]);
    let more = ["token", "create", "--user", "ana"];
    with(&cluster, token, &more).fails(5).says(&["ana", "manage users"]);
    cluster.restart_daemon_hard();
    let shown = cluster.atelier(["user", "show", "ana", "-o", "json"]).ok().json();
    assert_eq!(shown["tokens"][0]["id"], id);
    with(&cluster, token, &["token", "revoke", id]).ok().never_says(&[token]);
    with(&cluster, token, &["job", "list"]).fails(5).says(&["not valid here"]);

    // A short life is over by itself.
    let short =
        ["token", "create", "--user", "ana", "--expires", "1s", "--query", "token", "-o", "tsv"];
    let short = cluster.atelier(short).ok().word();
    until("the token is over", || {
        let tried = with(&cluster, &short, &["job", "list"]).run();
        tried.stderr.contains("expired").then_some(tried)
    })
    .code(5)
    .says(&["the token expired at", "ask an admin"]);
    cluster.atelier(["token", "create", "--user", "ana", "--expires", "soon"]).fails(2);
    cluster.atelier(["user", "delete", "admin", "--yes"]).fails(1).says(&["last admin"]);
    cluster.atelier(["user", "delete", "ana"]).fails(2).says(&["--yes"]);
    cluster.atelier(["user", "delete", "ana", "--yes"]).ok();
    cluster.atelier(["user", "show", "ana"]).fails(3).says(&["user list"]);
}

#[test]
fn whoever_asks_hears_whether_they_may() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let olga = cluster.token_for("olga", "compute-operator");
    let can = |action: &str| with(&cluster, &olga, &["auth", "can-i", action]);
    let yes = can("workspaces/computes/drain/action").ok();
    assert_eq!(yes.word(), "yes");
    yes.says(&["olga has the role compute-operator, which may drain computes"]);
    let no = can("Microsoft.MachineLearningServices/workspaces/computes/write").fails(1);
    assert_eq!(no.word(), "no");
    no.says(&["may not manage computes"]);
    can("workspaces/computes/drian/action").fails(1).says(&["did you mean"]);
    let told = with(&cluster, &olga, &["auth", "can-i", "workspaces/jobs/write", "-o", "json"]);
    assert_eq!(told.fails(1).json()["allowed"], false);
    // What it says is so.
    with(&cluster, &olga, &["node", "list"]).ok();
    with(&cluster, &olga, &["token", "create", "--user", "gpu-1", "--role", "node"]).ok();
    with(&cluster, &olga, &["token", "create", "--user", "eve", "--role", "reader"]).fails(5);
    with(&cluster, &olga, &["job", "create", "-f", "-"]).stdin(job_yaml("true")).fails(5);
    with(&cluster, &olga, &["datastore", "list"]).fails(5);
}

#[test]
fn a_role_of_one_s_own_allows_what_it_lists() {
    let cluster = Cluster::start();
    let file = "name: keeper\ndescription: Sees to jobs\n\
        actions: ['*/read', 'workspaces/jobs/*']\nnot_actions: [workspaces/jobs/write]\n";
    cluster.atelier(["role", "create", "-f", "-"]).stdin(file).ok();
    let kim = cluster.token_for("kim", "keeper");
    let name = cluster.shell("sleep 600");
    cluster.running(&name);
    with(&cluster, &kim, &["job", "create", "-f", "-"]).stdin(job_yaml("true")).fails(5);
    with(&cluster, &kim, &["job", "delete", &name, "--yes"]).fails(5).says(&["admin's"]);
    with(&cluster, &kim, &["job", "cancel", &name]).ok();
    cluster.ended(&name);
    // Changed, it holds at once.
    let less =
        "{\"Name\": \"keeper\", \"Actions\": [\"workspaces/computes/read\"], \"NotActions\": []}";
    cluster.atelier(["role", "update", "-f", "-"]).stdin(less).ok();
    with(&cluster, &kim, &["job", "list"]).fails(5).says(&[
        "kim",
        "keeper",
        "workspaces/jobs/read",
    ]);
    with(&cluster, &kim, &["compute", "list"]).ok();
    cluster.atelier(["role", "delete", "keeper", "--yes"]).fails(1).says(&["kim"]);
    cluster.atelier(["role", "create", "-f", "-"]).stdin("name: x\nactons: []\n").fails(1);
    let wrong = "name: x\nactions: [workspaces/job/write]\n";
    cluster
        .atelier(["role", "create", "-f", "-"])
        .stdin(wrong)
        .fails(1)
        .says(&["actions:", "did you mean 'workspaces/jobs/write'"]);
    let names = cluster.atelier(["role", "list", "--query", "[].name"]).ok().json();
    assert_eq!(names, json!(["admin", "compute-operator", "data-scientist", "reader", "keeper"]));
    cluster.atelier(["user", "delete", "kim", "--yes"]).ok();
    cluster.atelier(["role", "delete", "keeper", "--yes"]).ok();
}

/// Nomad's CVE-2022-3867 was a stream that outlived its token.
#[test]
fn what_is_followed_ends_within_a_minute_of_its_token_s_end() {
    let cluster = Cluster::start();
    let create = ["token", "create", "--user", "ana", "--role", "data-scientist", "-o", "json"];
    let made = cluster.atelier(create).ok().json();
    let (token, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    let name = with(&cluster, token, &["job", "create", "-f", "-", "--query", "name", "-o", "tsv"])
        .stdin(job_yaml("echo ready; sleep 600"))
        .ok()
        .word();
    let log = with(&cluster, token, &["job", "stream", &name, "-q"]).spawn();
    log.prints("ready");
    let inside = with(
        &cluster,
        token,
        &["job", "exec", &name, "--", "sh", "-c", "OF=anas-entry sleep 600 & echo in; wait"],
    );
    let inside = inside.spawn();
    inside.prints("in");
    cluster.atelier(["token", "revoke", id]).ok();
    let minute = Duration::from_secs(75);
    for ended in [log.wait_within(minute), inside.wait_within(minute)] {
        ended.code(5).says(&["revoked", "atelier token create"]).never_says(&[token]);
    }
    // The job goes on, and nothing of what was entered does.
    assert_eq!(cluster.rpc().job(&name).unwrap().status().word(), "Running");
    until("the command that ana ran in the job is over", || {
        processes_with("OF=anas-entry").is_empty().then_some(())
    });
    cluster.atelier(["job", "cancel", &name]).ok();
}

#[test]
fn daemons_have_names_and_one_is_in_use() {
    use std::os::unix::fs::PermissionsExt as _;
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let (rita, sam) = (cluster.token_for("rita", "reader"), cluster.token_for("sam", "reader"));
    let server = cluster.server();
    cluster.write("rita.token", format!("{rita}\n"));
    let who = |words: &[&str], environment: &[(&str, &str)]| {
        let words = words.iter().chain(&["auth", "whoami", "--query", "principal", "-o", "tsv"]);
        let asked = cluster.atelier(words);
        environment.iter().fold(asked, |asked, (name, value)| asked.env(name, value)).ok().word()
    };
    assert_eq!(who(&[], &[]), "admin");
    let add = ["context", "add", "team", "--server", &server, "--token-file", "rita.token"];
    cluster.atelier(add).ok().says(&["context use team"]).never_says(&[&rita]);
    cluster.atelier(add).fails(1).says(&["already", "--replace"]);
    assert_eq!(who(&[], &[]), "admin");
    assert_eq!(who(&["--context", "team"], &[]), "rita");
    assert_eq!(who(&[], &[("ATELIER_CONTEXT", "team")]), "rita");
    // Its token is its own: that of the environment goes with the server of the environment.
    assert_eq!(who(&["--context", "team"], &[("ATELIER_TOKEN", &sam)]), "rita");
    cluster.atelier(["context", "use", "team"]).ok();
    assert_eq!(who(&[], &[]), "rita");
    assert_eq!(who(&[], &[("ATELIER_SERVER", &server), ("ATELIER_TOKEN", &sam)]), "sam");
    assert_eq!(
        who(&["--context", "team"], &[("ATELIER_SERVER", &server), ("ATELIER_TOKEN", &sam)]),
        "rita"
    );
    assert_eq!(who(&["--context", "local"], &[]), "admin");
    assert_eq!(who(&["--server", &server], &[("ATELIER_TOKEN", &sam)]), "sam");
    let both = ["job", "list", "--server", &server, "--context", "team"];
    cluster.atelier(both).fails(2).says(&["--server or --context"]);
    cluster.atelier(["job", "list", "--context", "tem"]).fails(3).says(&["local, team"]);

    let second = ["context", "add", "-n", "second", "--server", &server, "--use"];
    cluster.atelier(second).stdin(format!("{sam}\n")).ok();
    assert_eq!(who(&[], &[]), "sam");
    let list = ["context", "list", "--query", "[?current].name", "-o", "tsv"];
    assert_eq!(cluster.atelier(list).ok().word(), "second");
    let shown = cluster.atelier(["context", "show", "-o", "json"]).ok();
    assert_eq!(shown.json()["server"], json!(server));
    assert!(!shown.stdout().contains(&sam));
    let folder = cluster.path().join("user/.config/atelier");
    for file in ["contexts.json", "tokens/team", "tokens/second"] {
        let mode = std::fs::metadata(folder.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let known = std::fs::read_to_string(folder.join("contexts.json")).unwrap();
    assert!(!known.contains(&rita) && !known.contains(&sam));

    cluster.atelier(["context", "remove", "second"]).ok();
    assert!(!folder.join("tokens/second").exists());
    assert_eq!(who(&[], &[]), "admin");
    cluster.atelier(["context", "remove", "second"]).fails(3);
    for name in ["local", "../x", "", "a/b", ".hidden"] {
        cluster.atelier(["context", "add", "--server", &server, "-n", name]).stdin("t").fails(2);
    }
    let bad = ["context", "add", "x", "--server", "http://gate.example.com:1"];
    cluster.atelier(bad).stdin("t").fails(2);
    cluster.atelier(["context", "add", "x", "--server", &server]).stdin("\n").fails(5);
    std::fs::write(folder.join("contexts.json"), "{").unwrap();
    cluster.atelier(["job", "list"]).fails(1).says(&["contexts.json", "correct the file"]);
    cluster.atelier(["local", "status"]).run().never_says(&["contexts.json"]);
}
