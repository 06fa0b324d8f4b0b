//! Secrets: set and never seen again, by whom, and under which keys.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Agent, Cluster, Process, Settings, needs, until};

/// A role of people who keep secrets of their own, which only admins do otherwise.
pub(crate) const SETS_SECRETS: [&str; 4] =
    ["*/read", "workspaces/metadata/secrets/*", "workspaces/jobs/write", "workspaces/codes/*"];

/// What no file, log or answer may hold.
const CANARY: &str = "canary-7Qm2vXw9ZpLr4KtB";

pub(crate) fn set(cluster: &Cluster, name: &str, value: &str) -> serde_json::Value {
    cluster.atelier(["secret", "set", name, "-o", "json"]).stdin(value).ok().json()
}

/// Files below a folder that hold these bytes.
pub(crate) fn with(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(with(&entry.path(), bytes));
        } else if kind.is_file() {
            let text = fs::read(entry.path()).unwrap();
            if text.windows(bytes.len()).any(|part| part == bytes) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// The one key that was made by itself.
fn own_key(cluster: &Cluster) -> PathBuf {
    let folder = cluster.path().join("user/.config/atelier/vault");
    let mut files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let key = files.next().unwrap();
    assert!(files.next().is_none());
    key
}

fn key_file(cluster: &Cluster, name: &str, byte: u8) -> PathBuf {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
    let path = cluster.write(name, text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Starts the daemon with these arguments; it must refuse. What it says.
#[track_caller]
fn refuses(cluster: &Cluster, arguments: &[&str]) -> String {
    cluster.settings.borrow_mut().serve = arguments.iter().map(|&word| word.to_owned()).collect();
    cluster.launch_daemon();
    until("the daemon refuses to start", || cluster.daemon(|daemon| daemon.ended()));
    cluster.daemon(|daemon| daemon.tail(5))
}

fn restart(cluster: &Cluster, arguments: &[&str]) {
    cluster.daemon(Process::stop);
    cluster.settings.borrow_mut().serve = arguments.iter().map(|&word| word.to_owned()).collect();
    cluster.start_daemon();
}

#[test]
fn a_value_is_found_nowhere_once_it_is_set() {
    let cluster = Cluster::empty();
    // However much the daemon is asked to log.
    cluster.settings.borrow_mut().variables = vec![("ATELIER_LOG".to_owned(), "trace".to_owned())];
    cluster.start_daemon();
    let file = cluster.path().join("value");
    fs::write(&file, CANARY).unwrap();
    let path = file.display().to_string();
    for format in ["json", "yaml", "tsv"] {
        let set = ["secret", "set", "canary", "--value-file", &path, "--debug", "-o", format];
        cluster.atelier(set).ok().never_says(&[CANARY]);
        cluster.atelier(["secret", "show", "canary", "-o", format]).ok().never_says(&[CANARY]);
        cluster.atelier(["secret", "list", "-o", format]).ok().never_says(&[CANARY]);
    }
    fs::remove_file(&file).unwrap();
    cluster.atelier(["vault", "status"]).ok().never_says(&[CANARY]);
    let pid = cluster.daemon(|daemon| daemon.pid().as_raw_nonzero());
    for name in ["environ", "cmdline"] {
        let text = fs::read(format!("/proc/{pid}/{name}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains(CANARY), "{name}");
    }
    assert!(cluster.daemon(|daemon| daemon.said("secret set")));
    // Data folder, database and its log, the daemon's own log.
    assert_eq!(with(cluster.path(), CANARY.as_bytes()), Vec::<PathBuf>::new());
    cluster.atelier(["vault", "rotate", "--data-keys"]).ok().never_says(&[CANARY]);
    cluster.atelier(["secret", "delete", "canary", "--yes"]).ok().never_says(&[CANARY]);
    cluster.daemon(Process::stop);
    assert_eq!(with(cluster.path(), CANARY.as_bytes()), Vec::<PathBuf>::new());
    // The search itself finds what is there.
    fs::write(cluster.data().join("storage/deep"), format!("x{CANARY}x")).unwrap();
    assert_eq!(with(cluster.path(), CANARY.as_bytes()).len(), 1);

    // The key is its owner's, and not in the data folder.
    let key = own_key(&cluster);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&key).unwrap();
    assert!(with(&cluster.data(), text.trim().as_bytes()).is_empty());
    assert!(with(&cluster.path().join("logs"), text.trim().as_bytes()).is_empty());
}

#[test]
fn secrets_are_set_listed_shown_and_deleted() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    assert_eq!(cluster.atelier(["secret", "list", "-o", "json"]).ok().json(), json!([]));
    assert_eq!(set(&cluster, "Db-Password", "one\n")["version"], 1);
    assert_eq!(set(&cluster, "db-password", "two\n")["version"], 2);
    set(&cluster, "api", "x");
    let listed = cluster.atelier(["secret", "list", "--query", "[].[name, version]"]).ok().json();
    assert_eq!(listed, json!([["api", 1], ["Db-Password", 2]]));
    cluster.restart_daemon_hard();
    let shown = cluster.atelier(["secret", "show", "-n", "DB-PASSWORD", "-o", "json"]).ok().json();
    assert_eq!((&shown["name"], &shown["version"]), (&json!("Db-Password"), &json!(2)));
    assert_eq!(shown["creation_context"]["created_by"], "admin");

    let scientist = cluster.token_for("sam", "data-scientist");
    cluster.role("keeper", &SETS_SECRETS);
    let ana = cluster.token_for("ana", "keeper");
    let ben = cluster.token_for("ben", "keeper");
    let rita = cluster.token_for("rita", "reader");
    let server = cluster.server();
    let by = |token: &str, words: &[&str]| {
        cluster.atelier_at(&server, words).env("ATELIER_TOKEN", token)
    };
    by(&scientist, &["secret", "set", "hers"]).stdin("x").fails(5).says(&["sam", "secrets"]);
    by(&ana, &["secret", "set", "hers"]).stdin("x").ok();
    by(&ben, &["secret", "set", "hers"]).stdin("y").fails(5).says(&["ben", "ana's", "hers"]);
    by(&ben, &["secret", "delete", "hers", "--yes"]).fails(5).says(&["ana's"]);
    by(&rita, &["secret", "set", "mine"]).stdin("x").fails(5).says(&["reader", "secrets"]);
    by(&rita, &["secret", "show", "hers"]).ok();
    by(&ana, &["vault", "status"]).fails(5).says(&["vault"]);
    by(&ana, &["vault", "rotate"]).fails(5);
    by(&ana, &["secret", "delete", "hers", "--yes"]).ok();
    cluster.atelier(["secret", "show", "hers"]).fails(3).says(&["hers", "secret list"]);
    cluster.atelier(["secret", "delete", "hers", "--yes"]).fails(3);
    cluster.atelier(["secret", "delete", "api"]).fails(2).says(&["--yes"]);
}

#[test]
fn a_value_that_cannot_be_is_refused_and_not_repeated() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for words in [
        vec!["secret", "set", "db", CANARY],
        vec!["secret", "set", "-n", "db", CANARY],
        vec!["secret", "set", "db", "--value", CANARY],
        vec!["secret", "set", "db", "a", CANARY, "b"],
    ] {
        let said = cluster.atelier(&words).fails(2);
        said.says(&["--value-file", "command line"]).never_says(&[CANARY]);
    }
    cluster.atelier(["secret", "set", "db"]).stdin("").fails(1).says(&["empty"]);
    cluster.atelier(["secret", "set", "db"]).stdin("\n").fails(1).says(&["empty"]);
    let long = format!("{CANARY}{}", "x".repeat(25 * 1024));
    cluster
        .atelier(["secret", "set", "db"])
        .stdin(long)
        .fails(1)
        .says(&["25600"])
        .never_says(&[CANARY]);
    let most = "x".repeat(25 * 1024) + "\n";
    cluster.write("most", most);
    cluster.atelier(["secret", "set", "db", "--value-file", "most"]).ok();
    cluster.atelier(["secret", "set", "a_b"]).stdin("x").fails(1).says(&["a_b", "letters, digits"]);
    cluster.atelier(["secret", "set", "db", "--value-file", "none"]).fails(3).says(&["none"]);
    cluster.atelier(["secret", "set"]).stdin("x").fails(2).says(&["name"]);
    let zeros = ["secret", "set", "db", "--value-file", "/dev/zero"];
    cluster.atelier(zeros).fails(1).says(&["25600"]);
}

#[test]
fn the_daemon_does_not_start_without_the_key_of_its_secrets() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    set(&cluster, "db", CANARY);
    let status = cluster.atelier(["vault", "status", "-o", "json"]).ok().json();
    let id = status["key"].as_str().unwrap().to_owned();
    let key = own_key(&cluster);
    assert_eq!(status["source"], format!("file:{}", key.display()));
    assert_eq!(status["keys"][0]["versions"], 1);
    cluster.daemon(Process::stop);

    let away = key.with_extension("away");
    fs::rename(&key, &away).unwrap();
    let said = refuses(&cluster, &[]);
    assert!(said.contains(&id) && said.contains(key.to_str().unwrap()), "{said}");
    assert!(!key.exists(), "a new key in its place would hide the loss");
    fs::rename(&away, &key).unwrap();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let said = refuses(&cluster, &[]);
    assert!(said.contains("640") && said.contains("chmod 600"), "{said}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let other = key_file(&cluster, "other", 1);
    let said = refuses(&cluster, &["--vault-key", &format!("file:{}", other.display())]);
    assert!(said.contains(&id) && said.contains("--vault-old-key"), "{said}");

    let inside = cluster.data().join("inside.key");
    fs::copy(&key, &inside).unwrap();
    let said = refuses(&cluster, &["--vault-key", &format!("file:{}", inside.display())]);
    assert!(said.contains("data folder"), "{said}");
    fs::remove_file(&inside).unwrap();

    let text = fs::read_to_string(&key).unwrap();
    let cut = cluster.write("cut", &text[..20]);
    fs::set_permissions(&cut, fs::Permissions::from_mode(0o600)).unwrap();
    let said = refuses(&cluster, &["--vault-key", &format!("file:{}", cut.display())]);
    assert!(said.contains("cut short") && !said.contains(&text[..20]), "{said}");

    cluster.settings.borrow_mut().serve.clear();
    cluster.start_daemon();
    assert_eq!(set(&cluster, "db", "again")["version"], 2);
}

#[test]
fn a_key_comes_from_a_variable_or_a_credential_and_goes_no_further() {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode([9; 32]);
    let cluster = Cluster::with(Settings {
        serve: vec!["--vault-key".to_owned(), "env:VAULT_KEY".to_owned()],
        variables: vec![("VAULT_KEY".to_owned(), text.clone())],
    });
    cluster.start_daemon();
    set(&cluster, "db", CANARY);
    let pid = cluster.daemon(|daemon| daemon.pid().as_raw_nonzero());
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains("ATELIER_HOME") && !environment.contains(&text));
    assert_eq!(with(cluster.path(), text.as_bytes()), Vec::<PathBuf>::new());
    assert!(!cluster.path().join("user/.config").exists());

    // The same key as systemd gives it.
    let credentials = cluster.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("atelier-vault"), &text).unwrap();
    cluster.settings.borrow_mut().variables =
        vec![("CREDENTIALS_DIRECTORY".to_owned(), credentials.display().to_string())];
    restart(&cluster, &["--vault-key", "credential:atelier-vault"]);
    assert_eq!(set(&cluster, "db", "two")["version"], 2);
    cluster.daemon(Process::stop);
    cluster.settings.borrow_mut().variables.clear();
    let said = refuses(&cluster, &["--vault-key", "credential:atelier-vault"]);
    assert!(said.contains("LoadCredential"), "{said}");
    let said = refuses(&cluster, &["--vault-key", "env:VAULT_KEY"]);
    assert!(said.contains("env:VAULT_KEY") && said.contains("there is none"), "{said}");
    // A key in the place of its source is not repeated.
    let help = cluster.atelier(["serve", "--help"]).env("ATELIER_VAULT_KEY", &text).ok();
    assert!(help.stdout().contains("ATELIER_VAULT_KEY"));
    help.never_says(&[&text]);
    let said = refuses(&cluster, &["--vault-key", &text]);
    assert!(said.contains("never the key itself") && !said.contains(&text), "{said}");
    cluster.settings.borrow_mut().serve.clear();
    cluster.settings.borrow_mut().variables = vec![("ATELIER_VAULT_KEY".to_owned(), text.clone())];
    cluster.launch_daemon();
    until("the daemon refuses to start", || cluster.daemon(|daemon| daemon.ended()));
    let said = cluster.daemon(|daemon| daemon.tail(5));
    assert!(said.contains("never the key itself") && !said.contains(&text), "{said}");
}

#[test]
fn a_key_is_replaced_and_a_rotation_that_was_cut_short_goes_on() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let rpc = cluster.rpc();
    for n in 0..70 {
        let request = atelier_proto::vault::v1::SetSecretRequest {
            name: format!("s{n}"),
            value: format!("{CANARY} {n}").into_bytes().into(),
        };
        rpc.wait(rpc.client.call(rpc.client.vault().set_secret(request))).unwrap();
    }
    drop(rpc);
    let old = format!("file:{}", own_key(&cluster).display());
    let new = format!("file:{}", key_file(&cluster, "new", 3).display());
    let both = ["--vault-key", new.as_str(), "--vault-old-key", old.as_str()];
    let status = |query: &str| cluster.atelier(["vault", "status", "--query", query]).ok().json();
    if cfg!(feature = "failpoints") {
        cluster.settings.borrow_mut().variables =
            vec![("ATELIER_FAILPOINT".to_owned(), "rotate:2".to_owned())];
        restart(&cluster, &both);
        cluster.atelier(["vault", "rotate"]).fails(4);
        until("the daemon died", || cluster.daemon(|daemon| daemon.ended()));
        cluster.settings.borrow_mut().variables.clear();
        cluster.start_daemon();
        let mut left = status("keys[].versions").as_array().unwrap().clone();
        left.sort_by_key(|n| n.as_u64());
        assert_eq!(left, [json!(32), json!(38)], "the first batch is done, the second is not");
    } else {
        restart(&cluster, &both);
    }
    let done = cluster.atelier(["vault", "rotate", "-o", "json"]).ok().json();
    let left = if cfg!(feature = "failpoints") { 38 } else { 70 };
    assert_eq!(done["versions"], left);
    assert_eq!(status("keys[].[versions, is_newest]"), json!([[70, true]]));
    assert_eq!(cluster.atelier(["vault", "rotate", "-o", "json"]).ok().json()["versions"], 0);
    // The old key has done its duty.
    restart(&cluster, &["--vault-key", &new]);
    let data_keys = ["vault", "rotate", "--data-keys", "-o", "json"];
    if cfg!(feature = "failpoints") {
        cluster.settings.borrow_mut().variables =
            vec![("ATELIER_FAILPOINT".to_owned(), "rotate:2".to_owned())];
        restart(&cluster, &["--vault-key", &new]);
        cluster.atelier(data_keys).fails(4);
        until("the daemon died", || cluster.daemon(|daemon| daemon.ended()));
        cluster.settings.borrow_mut().variables.clear();
        cluster.start_daemon();
        // What is left of it is done, and then all.
        let all = cluster.atelier(data_keys).ok().says(&["was cut short"]).json();
        assert_eq!(all["versions"], 70);
    }
    let all = cluster.atelier(data_keys).ok().never_says(&["was cut short"]).json();
    assert_eq!(all["versions"], 70);
    cluster.daemon(Process::stop);
    assert!(refuses(&cluster, &["--vault-key", &old]).contains("--vault-old-key"));
}

#[test]
fn a_rotation_names_what_does_not_open_and_does_the_rest() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for name in ["db", "api", "web"] {
        set(&cluster, name, CANARY);
    }
    cluster.daemon(Process::stop);
    let database = rusqlite::Connection::open(cluster.data().join("atelier.db")).unwrap();
    let damage = "UPDATE secret_versions SET data_key = zeroblob(8) WHERE name = 'api'";
    assert_eq!(database.execute(damage, []).unwrap(), 1);
    drop(database);
    cluster.start_daemon();
    let rotate = ["vault", "rotate", "--data-keys", "-o", "json"];
    let rotated = cluster.atelier(rotate).fails(1).says(&[
        "version 1 of secret 'api' does not open",
        "atelier secret set api",
        "atelier secret delete api --version 1",
    ]);
    let rotated = rotated.json();
    assert_eq!((&rotated["versions"], &rotated["total"]), (&json!(2), &json!(3)));
    assert_eq!(rotated["damaged"].as_array().unwrap().len(), 1);
    assert_eq!(rotated["damaged"][0]["secret"], "api");
    let delete = ["secret", "delete", "api", "--version", "1", "--yes"];
    cluster.atelier(delete).fails(1).says(&["latest", "secret set api"]);
    assert_eq!(set(&cluster, "api", CANARY)["version"], 2);
    cluster.atelier(delete).ok();
    cluster.atelier(delete).fails(3).says(&["no version 1"]);
    assert_eq!(cluster.atelier(rotate).ok().json()["versions"], 3);
}

/// Also where the job's user is the key's: in a folder of keys, and among other files.
#[test]
fn a_version_is_not_deleted_while_a_job_has_it() {
    let cluster = Cluster::start();
    set(&cluster, "Db", "one");
    // It names no version, and means the first from now on.
    let job = "command: sleep 600\nenvironment_variables: {DB: 'azureml:secrets/db'}\n";
    let job = cluster.create(job);
    set(&cluster, "db", "two");
    let delete = ["secret", "delete", "db", "--version", "1", "--yes"];
    cluster.atelier(delete).fails(1).says(&["version 1 of secret 'Db'", &format!("'{job}'")]);
    cluster.atelier(["job", "cancel", &job]).ok();
    until("the job is over", || {
        let status = ["job", "show", &job, "--query", "status", "-o", "tsv"];
        (cluster.atelier(status).ok().stdout().trim() == "Canceled").then_some(())
    });
    cluster.atelier(delete).ok();
    cluster.atelier(delete).fails(3).says(&["no version 1"]);
}

#[test]
fn a_job_does_not_see_the_key_of_the_vault() {
    use base64::Engine as _;
    needs("isolation");
    for prefix in ["atelier-keys-", "other-"] {
        // Not below /tmp, which jobs do not see at all.
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        let key = folder.path().join("vault.key");
        fs::write(&key, base64::engine::general_purpose::STANDARD.encode([7; 32])).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(folder.path().join("beside"), "seen").unwrap();
        let cluster = Cluster::empty();
        cluster.settings.borrow_mut().serve =
            ["--vault-key".to_owned(), format!("file:{}", key.display())].to_vec();
        cluster.start_daemon();
        cluster.start_agent(&Agent::new("local").with("--job-users=none"));
        let look =
            format!("cat {0}/vault.key {0}/beside 2>/dev/null; true", folder.path().display());
        let job = cluster.shell(&look);
        cluster.completed(&job);
        let log = String::from_utf8(cluster.log(&job)).unwrap();
        assert_eq!(log, if prefix == "other-" { "seen" } else { "" }, "{prefix}");
    }
}
