//! Listing and removing in object stores: what it costs, and where the daemon does not go for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::{Answering, Azure, Cluster, FaultyWay, Process, http, memory};

/// An account's key: Base64 of `listings`.
const KEY: &str = "bGlzdGluZ3M=";

fn create(cluster: &Cluster, yaml: &str) {
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
}

/// The datastore of a bucket that is answered for.
fn create_bucket(cluster: &Cluster, store: &Answering) {
    create(
        cluster,
        &format!(
            "name: store\ntype: s3\nbucket: bucket\nendpoint: {}\n\
             credentials: {{access_key_id: i, secret_access_key: k}}\n",
            store.url()
        ),
    );
}

fn ask(cluster: &Cluster, what: &str, path: &str) -> (u16, String) {
    let what = format!("{what} /data/v1/store{path}");
    http(&cluster.server(), &what, &cluster.token(), "").unwrap()
}

#[track_caller]
fn listed(cluster: &Cluster, query: &str) -> Value {
    let (status, page) = ask(cluster, "GET", query);
    assert_eq!(status, 200, "{page}");
    serde_json::from_str(&page).unwrap()
}

/// Ten million objects of ten megabytes: page by page, from any place on, in memory that does not grow with them.
#[test]
fn a_hundred_terabytes_are_listed_in_little_memory() {
    const OBJECTS: usize = 10_000_000;
    /// Pages that are read one after the other.
    const PAGES: usize = 40;
    /// Bytes that pages may take, however many there are.
    const MOST: u64 = 48 << 20;
    let store = Answering::bucket(OBJECTS);
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create_bucket(&cluster, &store);
    let held = || memory(cluster.daemon(|daemon| daemon.pid()));
    listed(&cluster, "?prefix=");
    let before = (held(), store.asked());
    let mut after = String::new();
    for number in 1..=PAGES {
        let page = listed(&cluster, &format!("?prefix=&after={after}"));
        assert_eq!(page["objects"].as_array().unwrap().len(), 1000);
        after = page["next"].as_str().unwrap().to_owned();
        assert_eq!(after, format!("many/{:07}", number * 1000 - 1));
    }
    // One for a page.
    let (grown, asked) = (held().saturating_sub(before.0), store.asked() - before.1);
    assert!(grown < MOST, "{grown} bytes more");
    assert!(asked <= PAGES + 2, "{asked} requests");
    // From a place far away, to the end.
    let last = format!("many/{:07}", OBJECTS - 3);
    let page = listed(&cluster, &format!("?prefix=many&after={last}"));
    assert_eq!(page["objects"].as_array().unwrap().len(), 2);
    assert_eq!(page["next"], Value::Null);
    // What lies deeper is stepped over.
    let asked = store.asked();
    let level = listed(&cluster, "?prefix=&delimiter=/");
    assert_eq!(level["folders"], serde_json::json!(["many"]), "{level}");
    assert!(store.asked() - asked <= 6, "{} requests", store.asked() - asked);
    assert_eq!(cluster.daemon(Process::ended), None);
}

/// Parts are told only by a store that tells all of its folders, and each once.
#[test]
fn a_store_that_repeats_its_folders_or_leaves_some_out_is_listed_whole() {
    let leaves_out = Arc::new(AtomicBool::new(false));
    let lacking = leaves_out.clone();
    let store = Answering::with(move |line| {
        let told = match line.contains("delimiter=") {
            true => {
                let names: &[&str] =
                    if lacking.load(Ordering::SeqCst) { &["b/"] } else { &["a/", "a/", "b/"] };
                let folder =
                    |name| format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>");
                names
                    .iter()
                    .map(folder)
                    .chain(["<IsTruncated>false</IsTruncated>".into()])
                    .collect()
            }
            false => {
                let object = |number| {
                    format!(
                        "<Contents><Key>a/{number:04}</Key><LastModified>2025-01-01T00:00:00.000Z\
                         </LastModified><ETag>\"t\"</ETag><Size>1</Size></Contents>"
                    )
                };
                let more = "<IsTruncated>true</IsTruncated>\
                            <NextContinuationToken>t</NextContinuationToken>";
                (0..1000).map(object).chain([more.into()]).collect::<String>()
            }
        };
        (200, String::new(), format!("<ListBucketResult>{told}</ListBucketResult>"))
    });
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create_bucket(&cluster, &store);
    let parts = listed(&cluster, "?prefix=&parts=true");
    assert_eq!(parts["folders"], serde_json::json!(["a", "b"]), "{parts}");
    assert_eq!((&parts["objects"], &parts["next"]), (&serde_json::json!([]), &Value::Null));
    leaves_out.store(true, Ordering::SeqCst);
    let page = listed(&cluster, "?prefix=&parts=true");
    assert_eq!(page["objects"].as_array().unwrap().len(), 1000);
    assert_eq!((&page["folders"], &page["next"]), (&Value::Null, &"a/0999".into()));
}

/// A web server leads a client where it likes: the daemon reaches what others may not.
#[test]
fn a_web_server_that_leads_elsewhere_is_not_followed() {
    let other = Answering::with(|_| (200, String::new(), "of the inside".to_owned()));
    let elsewhere = format!("{}/secret", other.url());
    let store = Answering::with(move |line| {
        let to = |url: &str| (302, format!("Location: {url}\r\n"), String::new());
        match line.split(' ').nth(1).unwrap_or_default() {
            "/here" => to("/there"),
            "/there" => (
                200,
                "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n".to_owned(),
                "own".to_owned(),
            ),
            "/round" => to("/round"),
            _ => to(&elsewhere),
        }
    });
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &format!("name: store\ntype: http\nurl: {}\n", store.url()));
    assert_eq!(ask(&cluster, "GET", "/here"), (200, "own".to_owned()));
    for path in ["/out", "/round"] {
        let (status, said) = ask(&cluster, "GET", path);
        assert!(status == 400 && said.contains("another server"), "{path}: {status} {said}");
    }
    assert_eq!(other.asked(), 0);
}

/// A folder of a hierarchical account is an object that goes once it is empty; and one of its levels is asked for as such.
#[test]
fn azure_folders_of_a_data_lake_go_after_what_is_in_them() {
    let store = Azure::start(KEY);
    let way = FaultyWay::to(store.url().trim_end_matches(&format!("/{}", Azure::ACCOUNT)));
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(
        &cluster,
        &format!(
            "name: store\ntype: azure_data_lake_gen2\naccount_name: {}\nfilesystem: made\nendpoint: {}/{}\n\
             credentials: {{account_key: {KEY}}}\n",
            Azure::ACCOUNT,
            way.url(),
            Azure::ACCOUNT
        ),
    );
    // As a hierarchical account answers for its folders.
    for (path, body) in [
        ("d", ""),
        ("d/a", "1"),
        ("d/e", ""),
        ("d/e/b", "1"),
        ("d/e/c/f", "1"),
        ("x", "1"),
        ("d-1", "1"),
    ] {
        assert_eq!(store.ask(KEY, "PUT", &format!("/made/{path}"), "", body).0, 201);
    }
    let level = listed(&cluster, "?prefix=&delimiter=/");
    assert_eq!(level["folders"], serde_json::json!(["d"]), "{level}");
    let level = listed(&cluster, "?prefix=d/e&delimiter=/");
    assert_eq!(level["folders"], serde_json::json!(["d/e/c"]), "{level}");
    assert_eq!(level["objects"].as_array().unwrap().len(), 1, "{level}");
    assert!(way.saw(&["GET", "comp=list", "delimiter=%2F", "d%2Fe%2F"]), "a level is asked for");
    assert_eq!(ask(&cluster, "DELETE", "/d?recursive=true").0, 204);
    let gone: Vec<String> = way.seen(&["DELETE"]);
    let place = |path: &str| {
        let word = format!("/made/{path} ");
        gone.iter()
            .position(|line| line.contains(&word))
            .unwrap_or_else(|| panic!("{word} in {gone:?}"))
    };
    for (inner, outer) in [("d/a", "d"), ("d/e", "d"), ("d/e/b", "d/e"), ("d/e/c/f", "d/e")] {
        assert!(place(inner) < place(outer), "{outer} before {inner}: {gone:?}");
    }
    let left = listed(&cluster, "?prefix=");
    let left: Vec<_> =
        left["objects"].as_array().unwrap().iter().map(|o| o["path"].clone()).collect();
    assert_eq!(left, ["d-1", "x"]);
}
