//! Where tokens are kept: in the keyring of a user's session, or else in files.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::harness::{Cli, Cluster, PATIENCE, Session};

const WHO: [&str; 6] = ["auth", "whoami", "--query", "principal", "-o", "tsv"];

fn started() -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster
}

fn add(cluster: &Cluster, name: &str, token: &str) -> Cli {
    let server = cluster.server();
    let words = ["context", "add", name, "--server", &server, "--replace", "--use"];
    cluster.atelier(words).stdin(format!("{token}\n"))
}

/// All that lies below a folder.
fn written(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all += &written(&path),
            false => all += &String::from_utf8_lossy(&fs::read(path).unwrap()),
        }
    }
    all
}

#[test]
fn the_token_of_a_context_lies_in_the_keyring() {
    let (cluster, session) = (started(), Session::start());
    let (rita, sam) = (cluster.token_for("rita", "reader"), cluster.token_for("sam", "reader"));
    let settings = cluster.path().join("user/.config/atelier");
    // One of before, in a file: it stays there, whatever else is done.
    add(&cluster, "old", &rita).ok();
    let told = session.of(add(&cluster, "team", &sam)).ok();
    told.never_says(&["warning", &sam]);
    let all = written(&settings);
    assert!(all.contains(&rita) && !all.contains(&sam));
    assert!(session.shows().contains(&format!("secret = {sam}")), "{}", session.shows());
    assert_eq!(session.of(cluster.atelier(WHO)).ok().word(), "sam");
    let old = WHO.iter().chain(&["--context", "old"]);
    assert_eq!(session.of(cluster.atelier(old)).ok().word(), "rita");

    let list = ["context", "list", "--query", "[].[name, token_in]", "-o", "json"];
    let expected = json!([["local", "file"], ["old", "file"], ["team", "keyring"]]);
    assert_eq!(session.of(cluster.atelier(list)).ok().json(), expected);
    // To list needs no keyring, to use one does.
    assert_eq!(cluster.atelier(list).ok().json(), expected);
    cluster.atelier(WHO).fails(5).says(&["this session has no keyring", "context add --replace"]);
    let off = session.of(cluster.atelier(WHO)).env("ATELIER_KEYRING", "off");
    off.fails(5).says(&["turned off", "unset ATELIER_KEYRING"]);
    let job = session.of(cluster.atelier(WHO)).env("ATELIER_ATTEMPT_FOLDER", "/x");
    job.fails(5).says(&["turned off"]);

    // Replaced, moved into a file, and gone: nothing of it is left.
    session.of(add(&cluster, "team", &rita)).ok();
    assert!(!session.shows().contains(&sam));
    session.of(add(&cluster, "old", &sam)).ok();
    assert!(!written(&settings).contains(&rita) && !settings.join("tokens/old").exists());
    session.of(cluster.atelier(["context", "remove", "team"])).ok().never_says(&["warning"]);
    assert!(!session.shows().contains(&rita));
    session.of(cluster.atelier(["context", "remove", "old"])).ok();
    assert_eq!(session.shows(), "");
}

#[test]
fn a_keyring_that_is_locked_silent_or_missing_is_done_without() {
    let (cluster, session) = (started(), Session::start());
    let token = cluster.token_for("rita", "reader");
    let is_in = |name: &str| {
        let show = ["context", "show", name, "--query", "token_in", "-o", "tsv"];
        cluster.atelier(show).ok().word()
    };
    session.of(add(&cluster, "kept", &token)).ok();
    session.of(add(&cluster, "moved", &token)).ok();

    session.lock();
    let told = session.of(add(&cluster, "moved", &token)).ok();
    told.says(&["still has the former token (the keyring is locked): remove it there"]);
    assert_eq!(is_in("moved"), "file");
    let told = session.of(add(&cluster, "locked", &token)).ok();
    told.says(&["warning: the keyring is locked: the token is kept in a file"]);
    assert_eq!(session.of(cluster.atelier(WHO)).ok().word(), "rita");
    let other = session.of(cluster.atelier(WHO)).env("ATELIER_TOKEN", "atl_other").ok();
    other.says(&["ATELIER_TOKEN is set and not used: the context 'locked'"]);
    assert_eq!((is_in("locked").as_str(), is_in("kept").as_str()), ("file", "keyring"));
    let kept = || session.of(cluster.atelier(WHO.iter().chain(&["--context", "kept"])));
    kept()
        .fails(5)
        .says(&["for the context 'kept' from the keyring: the keyring is locked", "unlock it"]);

    session.freeze();
    let begun = Instant::now();
    let told = session.of(add(&cluster, "silent", &token)).ok();
    told.says(&["the keyring does not answer within 3 s: the token is kept in a file"]);
    assert!(begun.elapsed() < PATIENCE);
    kept().fails(5).says(&["does not answer"]);
    let gone = session.of(cluster.atelier(["context", "remove", "kept"])).ok();
    gone.says(&["does not answer within 3 s: it still has the token of 'kept'", "token revoke"]);

    // That there is none is nothing to tell; nor is what was asked for.
    let bare = Session::without_keyring();
    bare.of(add(&cluster, "bare", &token)).ok().never_says(&["warning", "keyring"]);
    let off = session.of(add(&cluster, "off", &token)).env("ATELIER_KEYRING", "off");
    off.ok().never_says(&["warning", "keyring"]);
    assert_eq!((is_in("bare").as_str(), is_in("off").as_str()), ("file", "file"));
    let odd = cluster.atelier(["context", "list"]).env("ATELIER_KEYRING", "no");
    odd.fails(2).says(&["ATELIER_KEYRING is 'no'", "'auto' or 'off'"]);
}
