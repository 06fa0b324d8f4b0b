//! On a server of the tests' own, which is what the API's documents say.

#[path = "../../../../tests/e2e/harness/share.rs"]
mod share;

use atelier_core::datastore::{AzureStorage, Credentials, Secret, Source};
use bytes::Bytes;
use futures::TryStreamExt as _;

use self::share::{ACCOUNT, Server};
use crate::storage::cloud::Cloud;
use crate::storage::{Error, Expected, Meta, ObjectPath, Still};

const KEY: &str = "YXp1cmUtY2FuYXJ5LTRRbTJ2WHc5WnBMcjRLdEI=";

fn store(server: &Server, share: &str, credentials: Credentials) -> Cloud {
    let source = Source::AzureFile(AzureStorage {
        account_name: ACCOUNT.to_owned(),
        container: share.to_owned(),
        endpoint: server.url().to_owned(),
        protocol: "https".to_owned(),
    });
    let unlock = std::sync::Arc::new(move || Ok(credentials.clone()));
    Cloud::new("data".parse().unwrap(), source, unlock)
}

fn key(key: &str) -> Credentials {
    Credentials::AccountKey(Secret::new(key.to_owned()))
}

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

fn always() -> Still {
    std::sync::Arc::new(|| Ok(()))
}

async fn put(store: &Cloud, at: &str, pieces: Vec<Bytes>) -> Result<Meta, Error> {
    let whole = futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    store.put_stream(&path(at), whole, &always()).await
}

async fn read(store: &Cloud, at: &str) -> Result<Vec<u8>, Error> {
    let opened = store.open(&path(at)).await?;
    let size = opened.meta().size;
    let pieces: Vec<Bytes> = opened.stream(0..size).try_collect().await?;
    Ok(pieces.concat())
}

/// Bytes of which no two ranges are the same.
fn bytes(length: usize) -> Bytes {
    (0..length / 4).flat_map(|n| (n as u32).to_le_bytes()).collect::<Vec<u8>>().into()
}

async fn listed(store: &Cloud, folder: Option<&str>) -> Vec<String> {
    let page = store.list_page(folder.map(path).as_ref(), "", 100).await.unwrap();
    page.objects.into_iter().map(|object| object.path.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_whole_and_of_one_version() {
    let server = Server::start(KEY);
    let store = store(&server, "made", key(KEY));
    // Some ranges of one part, and more than one part.
    for length in [0, 12, 6 << 20, 20 << 20] {
        let given = bytes(length);
        let stored = put(&store, "a/b/c d%#ä.", vec![given.clone()]).await.unwrap();
        assert_eq!(stored.size, length as u64);
        assert_eq!(store.head(&path("a/b/c d%#ä.")).await.unwrap().etag, stored.etag);
        assert!(server.read("a/b/c d%#ä.").unwrap() == given, "{length}");
        assert!(read(&store, "a/b/c d%#ä.").await.unwrap() == given, "{length}");
    }
    assert_eq!(server.files(), ["a/b/c d%#ä."]);
    // What breaks off goes on, and what passes is tried again.
    {
        let mut share = server.share.lock().unwrap();
        (share.cut, share.busy) = (3, 2);
    }
    assert!(read(&store, "a/b/c d%#ä.").await.unwrap() == bytes(20 << 20));
    let opened = store.open(&path("a/b/c d%#ä.")).await.unwrap();
    put(&store, "a/b/c d%#ä.", vec![bytes(20 << 20)]).await.unwrap();
    let mixed: Result<Vec<Bytes>, Error> = opened.stream(0..20 << 20).try_collect().await;
    assert!(matches!(mixed, Err(Error::Changed(_))));
    assert!(matches!(store.head(&path("a/b")).await, Err(Error::NotFound(_))));
    assert!(matches!(store.head(&path("a/x")).await, Err(Error::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_leaves_nothing() {
    let server = Server::start(KEY);
    let store = store(&server, "made", key(KEY));
    let broken = futures::stream::iter([
        Ok(bytes(20 << 20)),
        Err(std::io::Error::other("the line is dead")),
    ]);
    let error = store.put_stream(&path("a/large"), broken, &always()).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    let begun = std::time::Instant::now();
    while !server.files().is_empty() {
        assert!(begun.elapsed().as_secs() < 20, "{:?}", server.files());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_are_in_order_and_without_what_is_written() {
    let server = Server::start(KEY);
    let store = store(&server, "made", key(KEY));
    let names = ["a-b", "a/1", "a/2", "a/3", "a/4", "a/5", "a/b/c", "b & c", "d", "e", "f"];
    for name in names {
        server.write(name, b"x");
    }
    server.write("a/.atelier-upload-1", b"x");
    server.write("a/.atelier-upload-2", b"x");
    server.age("a/.atelier-upload-2");
    assert_eq!(listed(&store, None).await, names);
    assert_eq!(listed(&store, Some("a")).await, names[1..7]);
    assert_eq!(listed(&store, Some("nowhere")).await, Vec::<String>::new());
    let page = store.list_page(None, "a/4", 3).await.unwrap();
    let found: Vec<&str> = page.objects.iter().map(|object| object.path.as_str()).collect();
    assert_eq!((found, page.next), (vec!["a/5", "a/b/c", "b & c"], Some(path("b & c"))));
    let level = store.level(Some(&path("a")), "", 10).await.unwrap();
    assert_eq!((level.objects.len(), level.folders), (5, vec![path("a/b")]));
    // What nobody writes to any more is gone, and what somebody may write to is there.
    let files = server.files();
    assert!(files.contains(&"a/.atelier-upload-1".to_owned()), "{files:?}");
    assert!(!files.contains(&"a/.atelier-upload-2".to_owned()), "{files:?}");
    server.age("a/.atelier-upload-1");
    assert!(store.delete(&path("a")).await.unwrap().is_empty());
    store.delete_object(&path("d")).await.unwrap();
    assert_eq!(server.files(), ["a-b", "b & c", "e", "f"]);
    assert!(matches!(store.delete_object(&path("d")).await, Err(Error::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_seen_once_all_is_there() {
    let server = Server::start(KEY);
    let store = store(&server, "made", key(KEY));
    let stored = put(&store, "a/x", vec![bytes(400)]).await.unwrap();
    let expected = Expected { size: 400, tag: Some(stored.etag) };
    store.copy(&path("a/x"), &path("b/y"), &expected, &always()).await.unwrap();
    assert_eq!(server.read("b/y").unwrap(), bytes(400));
    assert_eq!(server.files(), ["a/x", "b/y"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_why() {
    let server = Server::start(KEY);
    let said = async |share: &str, credentials: Credentials| {
        let store = store(&server, share, credentials).hasty();
        let error = put(&store, "x", vec![]).await.unwrap_err().to_string();
        let read = store.head(&path("x")).await.unwrap_err().to_string();
        assert!(!(error.contains("sig=") || read.contains("sig=")), "{error} {read}");
        (error, read)
    };
    let sas = |until| Credentials::SasToken(Secret::new(Server::sas(KEY, until)));
    let wrong = key("YXp1cmUtd3JvbmdmdWwta2V5LTAwMDA=");
    for (share, credentials, words) in [
        ("made", wrong, "does not accept the credentials"),
        ("made", sas(2020), "does not accept the credentials"),
        ("gone", key(KEY), "has no share 'gone'"),
        ("made", key("no key"), "not of the form"),
    ] {
        let (error, read) = said(share, credentials).await;
        assert!(error.contains(words) && read.contains(words), "{error} {read}");
    }
    let signed = store(&server, "made", sas(2099));
    put(&signed, "a/b", vec![bytes(8)]).await.unwrap();
    assert_eq!(read(&signed, "a/b").await.unwrap(), bytes(8));
    for (at, words) in [
        ("a", "a file and a folder would have the same path"),
        ("a/b/c", "a file and a folder would have the same path"),
        ("a/x?", "no names with '?'"),
    ] {
        let error = put(&signed, at, vec![bytes(8)]).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(server.files(), ["a/b"]);
}
