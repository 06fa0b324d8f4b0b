//! People whom an OpenID Connect provider vouches for.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::{Cli, Cluster, Outcome, Provider, Running, Session, Settings, http, until};

fn people(groups: &[&str]) -> Value {
    json!({
        "ana": { "email": "ana@example.com", "email_verified": true, "name": "Ana", "groups": groups },
        "eve": { "email": "eve@example.com", "email_verified": false, "name": "Eve", "groups": ["ml"] },
        "guest": { "email": "guest@example.com", "email_verified": true, "groups": [] },
    })
}

/// A workspace whose people are the provider's.
fn workspace(provider: &Provider) -> Cluster {
    workspace_of(provider, "atelier", &[])
}

/// The same, as a client of the provider's.
fn workspace_of(provider: &Provider, client: &str, more: &[&str]) -> Cluster {
    let issuer = provider.issuer();
    let serve = [
        "--oidc-issuer",
        &issuer,
        "--oidc-client-id",
        client,
        "--oidc-role",
        "platform=admin",
        "--oidc-role",
        "ml=data-scientist",
    ];
    let serve = serve.iter().chain(more).map(|word| (*word).to_owned()).collect();
    let cluster = Cluster::with(Settings { serve, ..Settings::default() });
    cluster.start_daemon();
    cluster
}

/// A command of somebody elsewhere, who has no token.
fn as_somebody(cluster: &Cluster, arguments: &[&str]) -> Cli {
    cluster
        .atelier(arguments)
        .env("ATELIER_SERVER", cluster.server())
        .env("XDG_CONFIG_HOME", settings(cluster))
        .env("BROWSER", "true")
        .env_remove("ATELIER_TOKEN")
}

fn settings(cluster: &Cluster) -> std::path::PathBuf {
    cluster.path().join("settings")
}

fn sessions(cluster: &Cluster) -> std::path::PathBuf {
    settings(cluster).join("atelier/sessions.json")
}

fn page_of(login: &Running, before: &str) -> String {
    until("a page is named", || {
        let said = login.stderr();
        let (_, rest) = said.split_once(before)?;
        let (page, _) = rest.split_once(char::is_whitespace)?;
        Some(page.to_owned())
    })
}

/// Signs in with a code.
#[track_caller]
fn signs_in(cluster: &Cluster, provider: &Provider, login: &str) -> Running {
    let command = as_somebody(cluster, &["login", "--device", "-o", "json"]).spawn();
    let page = page_of(&command, "or open ");
    provider.visit(&page, login);
    command
}

/// Makes the session end so soon.
fn ends_in(cluster: &Cluster, time: Duration) {
    let mut all: Value = serde_json::from_slice(&fs::read(sessions(cluster)).unwrap()).unwrap();
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + time;
    all[cluster.server()]["expires_at_ms"] = json!(u64::try_from(at.as_millis()).unwrap());
    fs::write(sessions(cluster), all.to_string()).unwrap();
}

fn kept(cluster: &Cluster) -> Value {
    let all: Value = serde_json::from_slice(&fs::read(sessions(cluster)).unwrap()).unwrap();
    all[cluster.server()].clone()
}

#[test]
fn oidc_somebody_signs_in_with_a_code_and_the_session_renews_itself() {
    let provider = Provider::start(&people(&["ml", "chess"]));
    let cluster = workspace(&provider);
    as_somebody(&cluster, &["job", "list"]).fails(5).says(&["no token", "atelier login"]);

    let told = signs_in(&cluster, &provider, "ana").wait().ok().json();
    assert_eq!(
        (&told["user"], &told["role"]),
        (&json!("ana@example.com"), &json!("data-scientist"))
    );
    let of_ana = ["audit", "list", "--principal", "ana@example.com", "-o", "json"];
    let entries = cluster.atelier(of_ana).ok().json();
    let user = entries
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["resource"] == "user/ana@example.com");
    let user = user.unwrap_or_else(|| panic!("{entries}"));
    assert_eq!(user["action"], "SignInService/SignIn");
    assert_eq!(
        (&user["after"]["role"], &user["from"]),
        (&json!("data_scientist"), &json!("127.0.0.1"))
    );
    let mode = fs::metadata(sessions(&cluster)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    as_somebody(&cluster, &["job", "list"]).ok();
    as_somebody(&cluster, &["token", "create", "--user", "x", "--role", "admin"]).fails(5);

    // About to end, it is renewed: another token, another refresh token, nobody asked.
    let before = kept(&cluster);
    ends_in(&cluster, Duration::from_secs(5));
    as_somebody(&cluster, &["job", "list"]).ok();
    let after = kept(&cluster);
    assert_ne!(before["token"], after["token"]);
    assert_ne!(before["refresh_token"], after["refresh_token"]);
    assert_eq!(before["user"], after["user"]);

    // Who joins a group has its role with the next session; who leaves all has none.
    provider.says(&people(&["platform"]));
    ends_in(&cluster, Duration::ZERO);
    as_somebody(&cluster, &["token", "create", "--user", "x", "--role", "reader"]).ok();
    provider.says(&people(&["chess"]));
    ends_in(&cluster, Duration::ZERO);
    as_somebody(&cluster, &["job", "list"])
        .fails(5)
        .says(&["no group of ana@example.com gives a role"]);

    provider.says(&people(&["ml"]));
    signs_in(&cluster, &provider, "ana").wait().ok();
    as_somebody(&cluster, &["logout"]).ok();
    as_somebody(&cluster, &["job", "list"]).fails(5).says(&["no token"]);
    as_somebody(&cluster, &["logout"]).fails(3).says(&["nobody is signed in"]);
}

#[test]
fn oidc_the_groups_that_the_provider_tells_count_for_a_compute() {
    let provider = Provider::start(&people(&["ml", "/research/vision lab"]));
    let cluster = workspace(&provider);
    signs_in(&cluster, &provider, "ana").wait().ok();
    let given = ["compute", "access", "grant", "local", "--group", "/research/vision lab"];
    cluster.atelier(given).ok();
    let can = ["auth", "can-i", "workspaces/jobs/write", "--compute", "local", "-o", "json"];
    let told = as_somebody(&cluster, &can).ok().json();
    assert!(told["reason"].as_str().unwrap().contains("'/research/vision lab'"), "{told}");
    let show = ["user", "show", "ana@example.com", "--query", "groups", "-o", "json"];
    assert_eq!(cluster.atelier(show).ok().json(), json!(["/research/vision lab", "ml"]));
    cluster
        .atelier(["user", "update", "ana@example.com", "--add-group", "web"])
        .fails(1)
        .says(&["signs in at the provider", "change the groups there"]);
    // With the next session they are what the provider says then.
    provider.says(&people(&["ml"]));
    ends_in(&cluster, Duration::ZERO);
    let told = as_somebody(&cluster, &can).fails(1).json();
    assert!(told["reason"].as_str().unwrap().contains("who is in group 'ml'"), "{told}");
    assert_eq!(cluster.atelier(show).ok().json(), json!(["ml"]));
}

#[test]
fn oidc_somebody_signs_in_with_a_browser() {
    let provider = Provider::start(&people(&["ml"]));
    let cluster = workspace(&provider);
    let login = as_somebody(&cluster, &["login", "--browser", "-o", "json"]).spawn();
    let page = page_of(&login, "o to ");
    // A page that only knows the port gets nothing, and ends nothing.
    let back = page.split_once("redirect_uri=").unwrap().1.split('&').next().unwrap();
    let back = back.replace("%3A", ":").replace("%2F", "/");
    let address = back.trim_start_matches("http://").trim_end_matches("/callback");
    let answer = http(&format!("http://{address}"), "GET /callback?state=x&code=y", "", "");
    assert!(answer.unwrap().1.contains("not the sign-in"));
    provider.visit(&page, "ana");
    let told = login.wait().ok().json();
    assert_eq!(told["user"], "ana@example.com");
    as_somebody(&cluster, &["job", "list"]).ok();
}

/// To delete who signs in is undone by their next sign-in, which the answer says; to block them is not.
#[test]
fn oidc_who_is_blocked_stays_out() {
    let provider = Provider::start(&people(&["ml"]));
    let cluster = workspace(&provider);
    signs_in(&cluster, &provider, "ana").wait().ok();
    let name = "ana@example.com";
    let gone = cluster.atelier(["user", "delete", name, "--yes"]).ok();
    gone.says(&["come back with their next sign-in", "atelier user block ana@example.com"]);
    as_somebody(&cluster, &["job", "list"]).fails(5);
    signs_in(&cluster, &provider, "ana").wait().ok();
    as_somebody(&cluster, &["job", "list"]).ok();

    cluster.atelier(["user", "block", name, "--reason", "has left the team"]).ok();
    as_somebody(&cluster, &["job", "list"]).fails(5);
    cluster.atelier(["user", "delete", name, "--yes"]).ok();
    let why = ["has left the team", "atelier user unblock"];
    signs_in(&cluster, &provider, "ana").wait().code(5).says(&why);
    let blocked = ["user", "list", "--query", "[?blocked].name", "-o", "tsv"];
    assert_eq!(cluster.atelier(blocked).ok().word(), name);
    cluster.atelier(["user", "unblock", name]).ok();
    signs_in(&cluster, &provider, "ana").wait().ok();
    as_somebody(&cluster, &["job", "list"]).ok();
}

#[test]
fn oidc_whoever_should_not_come_in_is_told_why() {
    let mut provider = Provider::start(&people(&["ml"]));
    let cluster = workspace(&provider);
    signs_in(&cluster, &provider, "guest")
        .wait()
        .code(5)
        .says(&["no group of guest@example.com gives a role"]);
    signs_in(&cluster, &provider, "eve")
        .wait()
        .code(5)
        .says(&["has not verified the address eve@example.com"]);
    assert!(!sessions(&cluster).exists());

    // The provider has other keys from now on, and knows nobody's refresh token any more.
    signs_in(&cluster, &provider, "ana").wait().ok();
    provider.restart();
    as_somebody(&cluster, &["job", "list"]).ok();
    ends_in(&cluster, Duration::ZERO);
    as_somebody(&cluster, &["job", "list"]).fails(5).says(&["sign in again", "atelier login"]);
    until("keys are asked for again", || {
        signs_in(&cluster, &provider, "ana").wait().status.success().then_some(())
    });
    provider.stop();
    as_somebody(&cluster, &["job", "list"]).ok();
    as_somebody(&cluster, &["login", "--device"])
        .fails(4)
        .says(&["cannot read the metadata of the provider"]);
}

/// What the provider knows its clients with a secret by.
const SECRET: &str = "of the daemon: 100%+&=";

/// Signs in by a client with a secret, in both ways, and has the session renewed; nothing here knows the secret.
fn signs_in_by_the_daemon(client: &str, how: &[&str]) {
    let provider = Provider::start(&people(&["ml"]));
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("secret");
    let write = |secret: &str| {
        fs::write(&file, secret).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(&format!("{SECRET}\n"));
    let source = format!("file:{}", file.display());
    let more = [&["--oidc-client-secret", &source], how].concat();
    let cluster = workspace_of(&provider, client, &more);
    let log = || cluster.daemon(|daemon| daemon.printed());
    let unseen = |outcome: Outcome| {
        let outcome = outcome.never_says(&[SECRET]);
        assert!(!fs::read_to_string(sessions(&cluster)).unwrap_or_default().contains("100%"));
        assert!(!log().contains("100%"), "{}", log());
        outcome
    };

    let told = unseen(signs_in(&cluster, &provider, "ana").wait().ok()).json();
    assert_eq!(told["user"], "ana@example.com");
    let before = kept(&cluster);
    ends_in(&cluster, Duration::from_secs(5));
    unseen(as_somebody(&cluster, &["job", "list"]).ok());
    assert_ne!(before["refresh_token"], kept(&cluster)["refresh_token"]);
    unseen(as_somebody(&cluster, &["logout"]).ok()).never_says(&["warning"]);
    let login = as_somebody(&cluster, &["--debug", "login", "--browser", "-o", "json"]).spawn();
    provider.visit(&page_of(&login, "o to "), "ana");
    unseen(login.wait().ok());
    as_somebody(&cluster, &["job", "list"]).ok();

    // Another secret, which the provider has not been told of: the admin sees why, people see whom to ask. With the
    // right one it goes on, and nothing is started anew.
    write("another secret");
    let refused = as_somebody(&cluster, &["login", "--device"]).fails(5);
    let refused = refused.says(&["does not accept this workspace's client", "daemon's log"]);
    refused.never_says(&["another secret", "oidc-client-secret"]);
    let told = log();
    assert!(told.contains("invalid_client") && told.contains("--oidc-client-secret"), "{told}");
    assert!(!told.contains("another secret"), "{told}");
    fs::remove_file(&file).unwrap();
    let refused = as_somebody(&cluster, &["login", "--device"]).fails(4);
    refused.says(&["cannot read the secret"]).never_says(&[&source]);
    assert!(log().contains(&source));
    write(SECRET);
    unseen(signs_in(&cluster, &provider, "ana").wait().ok());
}

#[test]
fn oidc_a_client_with_a_secret_is_the_daemons_by_basic() {
    signs_in_by_the_daemon("basic", &[]);
}

#[test]
fn oidc_a_client_with_a_secret_is_the_daemons_by_post() {
    signs_in_by_the_daemon("post", &["--oidc-client-auth", "post"]);
}

/// A session of before stays in its file until somebody signs in anew; then the keyring has it, also once it is renewed.
#[test]
fn oidc_sessions_lie_in_the_keyring() {
    let provider = Provider::start(&people(&["ml"]));
    let cluster = workspace(&provider);
    let session = Session::start();
    let server = cluster.server();
    let add = ["context", "add", "team", "--server", &server, "--sign-in"];
    as_somebody(&cluster, &add).ok();
    let place = || {
        let show = ["context", "show", "team", "--query", "token_in", "-o", "json"];
        as_somebody(&cluster, &show).ok().json()
    };
    assert_eq!(place(), Value::Null);
    signs_in(&cluster, &provider, "ana").wait().ok();
    assert_eq!(place(), "file");
    ends_in(&cluster, Duration::ZERO);
    session.of(as_somebody(&cluster, &["job", "list"])).ok();
    assert_eq!((place(), session.shows()), (json!("file"), String::new()));
    let of_file = kept(&cluster);

    let login = session.of(as_somebody(&cluster, &["login", "--device", "-o", "json"])).spawn();
    provider.visit(&page_of(&login, "or open "), "ana");
    login.wait().ok().never_says(&["warning"]);
    assert_eq!(place(), "keyring");
    let text = fs::read_to_string(sessions(&cluster)).unwrap();
    assert!(!text.contains("\"token\"") && !text.contains("refresh_token"), "{text}");
    assert!(!text.contains(of_file["token"].as_str().unwrap()));
    session.of(as_somebody(&cluster, &["job", "list"])).ok();
    let before = session.shows();
    assert!(before.contains("refresh_token"), "{before}");
    ends_in(&cluster, Duration::ZERO);
    session.of(as_somebody(&cluster, &["job", "list"])).ok();
    assert_eq!(place(), "keyring");
    assert_ne!(before, session.shows());
    as_somebody(&cluster, &["job", "list"]).fails(5).says(&["from the keyring", "atelier login"]);

    session.of(as_somebody(&cluster, &["logout"])).ok().never_says(&["warning"]);
    assert_eq!((place(), session.shows()), (Value::Null, String::new()));
    session.of(as_somebody(&cluster, &["job", "list"])).fails(5).says(&["no token"]);

    // What a locked keyring has cannot be withdrawn, which is told.
    let login = session.of(as_somebody(&cluster, &["login", "--device"])).spawn();
    provider.visit(&page_of(&login, "or open "), "ana");
    login.wait().ok();
    session.lock();
    let told = session.of(as_somebody(&cluster, &["logout"])).ok();
    told.says(&["the keyring is locked: the session is forgotten here", "atelier token revoke"]);
    assert_eq!(place(), Value::Null);
}

#[test]
fn a_workspace_without_a_provider_says_who_makes_tokens() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    as_somebody(&cluster, &["login"])
        .fails(3)
        .says(&["no OpenID Connect provider", "atelier token create"]);
    cluster.atelier(["login"]).env_remove("ATELIER_SERVER").fails(2).says(&["which workspace?"]);
}
