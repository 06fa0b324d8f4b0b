//! What holds for every object store, shown on moto's S3.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use atelier_core::datastore::Secret;
use futures::TryStreamExt as _;

use super::read::WINDOW;
use super::*;
use crate::storage::{Expected, Page, Part};

/// A server with a bucket. Dropping it ends it.
pub(crate) struct Server {
    process: Child,
    address: String,
}

impl Server {
    pub(crate) fn start() -> Self {
        let Ok(program) = std::env::var("ATELIER_TEST_MOTO") else {
            panic!("ATELIER_TEST_MOTO is to name a program; see tests/scripts/prepare")
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { process, address: format!("127.0.0.1:{port}") };
        let begun = Instant::now();
        while !server.put("/bucket", "").is_ok_and(|answer| answer.contains(" 200 ")) {
            assert!(begun.elapsed() < Duration::from_secs(60), "moto does not answer");
            std::thread::sleep(Duration::from_millis(15));
        }
        server
    }

    fn put(&self, path: &str, body: &str) -> std::io::Result<String> {
        let (address, length) = (&self.address, body.len());
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "PUT {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn store(&self, prefix: Option<&str>) -> Cloud {
        let (source, unlock) = self.place(prefix);
        Cloud::new("data".parse().unwrap(), source, unlock)
    }

    /// A place there, and what opens it.
    pub(crate) fn place(&self, prefix: Option<&str>) -> (Source, Unlock) {
        place_at(&self.address, prefix)
    }
}

fn place_at(address: &str, prefix: Option<&str>) -> (Source, Unlock) {
    let source = Source::S3 {
        bucket: "bucket".to_owned(),
        endpoint: Some(format!("http://{address}")),
        region: None,
        prefix: prefix.map(str::to_owned),
        path_style: true,
    };
    let unlock: Unlock = Arc::new(|| {
        Ok(Credentials::S3Keys {
            access_key_id: "id".to_owned(),
            secret_access_key: Secret::new("key".to_owned()),
            session_token: None,
        })
    });
    (source, unlock)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

fn always() -> Still {
    Arc::new(|| Ok(()))
}

async fn put(store: &Cloud, at: &str, bytes: &'static [u8]) -> Meta {
    let whole = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(bytes))]);
    store.put_stream(&path(at), whole, &always()).await.unwrap()
}

async fn read(store: &Cloud, at: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = store.open(&path(at)).await?.stream(range).try_collect().await?;
    Ok(pieces.concat())
}

fn paths(page: &Page) -> Vec<&str> {
    page.objects.iter().map(|object| object.path.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_objects_are_whole_and_of_one_version() {
    let server = Server::start();
    let store = server.store(None);
    let first = put(&store, "a/b", b"first").await;
    assert_eq!(store.head(&path("a/b")).await.unwrap().etag, first.etag);
    assert_eq!(read(&store, "a/b", 1..4).await.unwrap(), b"irs");
    assert_eq!(read(&store, "a/b", 2..2).await.unwrap(), b"");
    let opened = store.open(&path("a/b")).await.unwrap();
    let second = put(&store, "a/b", b"other").await;
    assert_ne!(first.etag, second.etag);
    // What was opened is not there any more.
    let mixed: Result<Vec<Bytes>, Error> = opened.stream(0..5).try_collect().await;
    assert!(matches!(mixed, Err(Error::Changed(_))), "{mixed:?}");
    put(&store, "empty", b"").await;
    assert_eq!(store.head(&path("empty")).await.unwrap().size, 0);
    assert!(matches!(store.head(&path("a")).await, Err(Error::NotFound(_))));

    let piece = Bytes::from(vec![7; 5 << 20]);
    let broken = futures::stream::iter([
        Ok(piece.clone()),
        Ok(piece.clone()),
        Err(std::io::Error::other("the line is dead")),
    ]);
    let error = store.put_stream(&path("large"), broken, &always()).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert!(matches!(store.head(&path("large")).await, Err(Error::NotFound(_))));
    let whole = || futures::stream::iter((0..8).map(|_| Ok::<_, std::io::Error>(piece.clone())));
    // Its writer is over by the time all is there.
    let over: Still = Arc::new(|| Err("the attempt is over".to_owned()));
    let error = store.put_stream(&path("large"), whole(), &over).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert!(matches!(store.head(&path("large")).await, Err(Error::NotFound(_))));
    let stored = store.put_stream(&path("large"), whole(), &always()).await.unwrap();
    assert_eq!(stored.size, 40 << 20);
    // Across the window of a request.
    let around = WINDOW - 2..WINDOW + 2;
    assert_eq!(read(&store, "large", around).await.unwrap(), [7; 4]);

    let odd = store
        .put_stream(&path("a\u{1}b"), futures::stream::empty::<Result<_, Error>>(), &always())
        .await;
    assert!(matches!(odd, Err(Error::Unsupported { .. })), "{odd:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_listings_are_pages_in_order_and_folders_are_deleted() {
    let server = Server::start();
    let store = server.store(Some("team/a"));
    // Another's, whose key begins alike, and the marks of folders.
    for (key, body) in [("team/ab/x", "x"), ("team/a/", ""), ("team/a/f/", ""), ("team/a/f/g/", "")]
    {
        assert!(server.put(&format!("/bucket/{key}"), body).unwrap().contains(" 200 "));
    }
    for at in ["f", "f-1", "f/1", "f/2", "f/g/1", "f0"] {
        put(&store, at, b"x").await;
    }
    put(&store, "f/none", b"").await;
    let all = ["f", "f-1", "f/1", "f/2", "f/g/1", "f/none", "f0"];
    let page = store.list(None, "", 100).await.unwrap();
    assert_eq!((paths(&page), page.next.is_none()), (all.to_vec(), true));
    for limit in 1..8 {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = store.list(None, &after, limit).await.unwrap();
            assert!(page.objects.len() <= limit);
            found.extend(paths(&page).into_iter().map(str::to_owned));
            match page.next {
                Some(next) => after = next.to_string(),
                None => break,
            }
        }
        assert_eq!(found, all, "by {limit}");
    }
    let below = store.list(Some(&path("f")), "", 100).await.unwrap();
    assert_eq!(paths(&below), ["f", "f/1", "f/2", "f/g/1", "f/none"]);
    let later = store.list(Some(&path("f")), "f/2", 100).await.unwrap();
    assert_eq!(paths(&later), ["f/g/1", "f/none"]);

    // Alone, and with what lies below.
    store.delete_object(&path("f")).await.unwrap();
    assert!(matches!(store.delete_object(&path("f")).await, Err(Error::NotFound(_))));
    let below = store.list(Some(&path("f")), "", 100).await.unwrap();
    assert_eq!(paths(&below), ["f/1", "f/2", "f/g/1", "f/none"]);
    assert!(store.delete(&path("f")).await.unwrap().is_empty());
    assert!(store.delete(&path("f")).await.unwrap().is_empty());
    assert_eq!(paths(&store.list(None, "", 100).await.unwrap()), ["f-1", "f0"]);
    let others = server.store(Some("team/ab"));
    assert_eq!(paths(&others.list(None, "", 100).await.unwrap()), ["x"]);
}

/// As stores that have an order of their own are listed; a request has three names here.
#[tokio::test(flavor = "multi_thread")]
async fn s3_walked_folder_by_folder_lists_the_same() {
    let server = Server::start();
    let store = server.store(Some("team/a"));
    let last = format!("d/{}", char::MAX);
    let mut all = vec!["a", "a-b", "a.b/x", "b/c/d/e", "b/c/d/f", "b/c/g", "b/c.d", "b0", &*last];
    let many: Vec<String> = (0..12).map(|n| format!("c/{:02}/{}", n / 2, n % 2)).collect();
    all.extend(many.iter().map(String::as_str));
    for at in &all {
        put(&store, at, b"x").await;
    }
    for mark in ["b/", "e/", "e/f/", "c/03/"] {
        assert!(server.put(&format!("/bucket/team/a/{mark}"), "").unwrap().contains(" 200 "));
    }
    all.sort_unstable();
    for (folder, limit) in [None, Some("b"), Some("c"), Some("a"), Some("none")]
        .into_iter()
        .flat_map(|folder| (2..6).map(move |limit| (folder, limit)))
    {
        let folder = folder.map(path);
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = store.first_walked(folder.as_ref(), &after, limit).await.unwrap();
            let page = page.page(limit);
            let Some(end) = page.objects.last() else { break };
            after = end.path.to_string();
            found.extend(paths(&page).into_iter().map(str::to_owned));
        }
        let below = folder.map_or_else(String::new, |folder| format!("{folder}/"));
        let expected = all.iter().copied().filter(|path| path.starts_with(&below));
        assert_eq!(found, expected.collect::<Vec<_>>(), "{below} by {limit}");
    }
}

/// Everything, as one who takes parts at once is told it.
async fn in_parts(
    store: &Cloud,
    folder: Option<&str>,
    limit: usize,
    is_ordered: bool,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![(folder.map(path), String::new())];
    while let Some((folder, after)) = waiting.pop() {
        let begins = folder.as_ref().map_or("", ObjectPath::as_str) == after || after.is_empty();
        let part = match (begins, is_ordered) {
            (true, true) => store.part_ordered(folder.as_ref(), &after, limit).await.unwrap(),
            (true, false) => store.part_walked(folder.as_ref(), &after, limit).await.unwrap(),
            (false, _) => Part::Page(store.list(folder.as_ref(), &after, limit).await.unwrap()),
        };
        match part {
            Part::Page(page) => {
                assert!(page.objects.len() <= limit);
                found.extend(paths(&page).into_iter().map(str::to_owned));
                waiting.extend(page.next.map(|next| (folder, next.to_string())));
            }
            Part::Folders(level) => {
                assert_eq!((level.next, level.unnamed.is_empty()), (None, true));
                assert!(!level.folders.is_empty());
                found.extend(level.objects.iter().map(|listed| listed.path.to_string()));
                let below = |folder: ObjectPath| (Some(folder.clone()), folder.to_string());
                waiting.extend(level.folders.into_iter().map(below));
            }
        }
    }
    found.sort_unstable();
    found
}

/// Of a store with an order, and of one without; a folder is large with two objects here, and six entries are many.
#[tokio::test(flavor = "multi_thread")]
async fn s3_in_parts_lists_the_same() {
    let server = Server::start();
    let store = server.store(Some("team/a"));
    let last = format!("d/{}", char::MAX);
    let mut all = vec!["a", "a-b", "a/x", "a/y", "a/z/1", "a/z/2", "a/z/3", "b0", &*last];
    let deep: Vec<String> = (0..12).map(|n| format!("c/only/this/{}/{}", n / 4, n % 4)).collect();
    let few: Vec<String> = (0..9).map(|n| format!("few/{n}/x")).collect();
    let flat: Vec<String> = (0..9).map(|n| format!("flat/{n}")).collect();
    all.extend(deep.iter().chain(&few).chain(&flat).map(String::as_str));
    for at in &all {
        put(&store, at, b"x").await;
    }
    for mark in ["c/", "c/only/", "e/", "e/f/"] {
        assert!(server.put(&format!("/bucket/team/a/{mark}"), "").unwrap().contains(" 200 "));
    }
    all.sort_unstable();
    let first = async |folder, after, limit, is_ordered| {
        let folder = path(folder);
        match is_ordered {
            true => store.part_ordered(Some(&folder), after, limit).await.unwrap(),
            false => store.part_walked(Some(&folder), after, limit).await.unwrap(),
        }
    };
    for is_ordered in [true, false] {
        for folder in [None, Some("a"), Some("c"), Some("few"), Some("flat"), Some("none")] {
            let below = folder.map_or_else(String::new, |folder| format!("{folder}/"));
            let is_wanted = |path: &&&str| path.starts_with(&below) || Some(**path) == folder;
            let expected: Vec<_> = all.iter().filter(is_wanted).copied().collect();
            for limit in [2, 3, 4, 7, 100] {
                let found = in_parts(&store, folder, limit, is_ordered).await;
                assert_eq!(found, expected, "{folder:?} by {limit}, {is_ordered}");
            }
        }
        // The folders below the only one that leads there are told at once.
        let part = first("c", "", 4, is_ordered).await;
        let Part::Folders(level) = part else { panic!("{part:?}") };
        let told: Vec<_> = level.folders.iter().map(ObjectPath::as_str).collect();
        assert_eq!(told, ["c/only/this/0", "c/only/this/1", "c/only/this/2"]);
        // The object that has the path of a folder is not part of what is below it.
        for (after, limit, objects) in [("", 5, 3), ("a", 4, 2)] {
            let part = first("a", after, limit, is_ordered).await;
            let Part::Folders(level) = part else { panic!("{part:?}") };
            assert_eq!(level.objects.len(), objects, "{level:?}");
        }
        // Where there are no folders, or many entries, or small ones that are told in order.
        let part = first("flat", "", 4, is_ordered).await;
        assert!(matches!(part, Part::Page(_)), "{part:?}");
        let part = first("few", "", 4, is_ordered).await;
        assert!(matches!(part, Part::Page(_)), "{part:?}");
    }
    // What has no name is counted key by key.
    assert!(server.put("/bucket/team/a/c//x", "x").unwrap().contains(" 200 "));
    let part = first("c", "", 4, true).await;
    let Part::Page(page) = part else { panic!("{part:?}") };
    assert_eq!(page.unnamed.count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_a_level_is_one_folder_and_its_page_is_bounded() {
    let server = Server::start();
    let store = server.store(None);
    for at in ["a.b/x", "a/no", "b-c", "b/1", "b/many/1/2", "b0", "c/d/e", "c/h", "f"] {
        put(&store, at, b"x").await;
    }
    for number in 0..8 {
        put(&store, &format!("b/many/{number}"), b"x").await;
    }
    let whole = async |folder: Option<&str>, limit, is_ordered| {
        let folder = folder.map(path);
        let (mut names, mut after) = (Vec::new(), String::new());
        loop {
            let level = match is_ordered {
                true => store.level_ordered(folder.as_ref(), &after, limit).await.unwrap(),
                false => store.level(folder.as_ref(), &after, limit).await.unwrap(),
            };
            let count = level.folders.len() + level.objects.len();
            assert!(is_ordered || count <= limit + 1);
            names.extend(level.folders.iter().map(|folder| format!("{folder}/")));
            names.extend(level.objects.iter().map(|object| object.path.to_string()));
            match level.next {
                Some(next) => after = next,
                None => break,
            }
        }
        names.sort_unstable();
        names
    };
    for (limit, is_ordered) in (1..5).flat_map(|limit| [(limit, true), (limit, false)]) {
        let top = ["a.b/", "a/", "b-c", "b/", "b0", "c/", "f"];
        assert_eq!(whole(None, limit, is_ordered).await, top, "by {limit}");
        assert_eq!(whole(Some("b"), limit, is_ordered).await, ["b/1", "b/many/"]);
        assert_eq!(whole(Some("b/many"), limit, is_ordered).await.len(), 9);
        assert_eq!(whole(Some("f"), limit, is_ordered).await, ["f"]);
        assert_eq!(whole(Some("none"), limit, is_ordered).await, [""; 0]);
    }
    // Each folder after what is in it.
    assert!(store.delete_tree(&Path::parse("b").unwrap()).await.unwrap().is_empty());
    assert_eq!(whole(None, 9, true).await, ["a.b/", "a/", "b-c", "b0", "c/", "f"]);
}

/// Keys that no path names, as they are written in addresses. The last two can be deleted all the same.
const ODD: [&str; 10] = [
    "x//a",
    "x/b//",
    "x/c%01",
    "x/d%7F",
    "x/e/../f",
    "x/g/.",
    "x/full/",
    "x//",
    "x/h%5Ci",
    "x/%252e%252E/j",
];

/// A server with the keys above and others in the folder `x`, at and below this prefix.
fn odd_server(prefix: &str) -> (Server, Vec<String>) {
    let server = Server::start();
    let mut odd: Vec<String> = ODD.iter().map(|&key| key.to_owned()).collect();
    odd.push(format!("x/{}", "l".repeat(256)));
    odd.push("/x/lead".to_owned());
    let good = ["x/lead", "x/a", "x/b", "x/z/c", "y", "x%2B%20%25", "x/%20t%20"];
    for key in good.into_iter().chain(odd.iter().map(String::as_str)) {
        let answer = server.put(&format!("/bucket/{prefix}{key}"), "x").unwrap();
        assert!(answer.contains(" 200 "), "{key}: {answer}");
    }
    for mark in ["x/", "x/b/", "x/empty/"] {
        assert!(server.put(&format!("/bucket/{prefix}{mark}"), "").unwrap().contains(" 200 "));
    }
    (server, odd)
}

/// One by one and all at once, in order and folder by folder.
#[tokio::test(flavor = "multi_thread")]
async fn s3_keys_without_a_name_are_counted_once() {
    for prefix in [None, Some("team/a")] {
        let (server, odd) = odd_server(&prefix.map_or_else(String::new, |p| format!("{p}/")));
        let store = server.store(prefix);
        let all = ["x+ %", "x/ t ", "x/a", "x/b", "x/lead", "x/z/c", "y"];
        for limit in 1..10 {
            for is_ordered in [true, false] {
                let (mut found, mut unnamed) = (Vec::new(), Unnamed::default());
                let mut after = String::new();
                loop {
                    let page = match is_ordered {
                        true => store.list(None, &after, limit).await.unwrap(),
                        false => {
                            let run = store.first_walked(None, &after, limit + 1).await.unwrap();
                            run.page(limit)
                        }
                    };
                    found.extend(paths(&page).into_iter().map(str::to_owned));
                    unnamed.merge(page.unnamed);
                    match page.next {
                        Some(next) => after = next.to_string(),
                        None => break,
                    }
                }
                assert_eq!(found, all, "by {limit}");
                assert_eq!(unnamed.examples.len(), 3);
                // Both keys of the folder 'x//' count as one where it is not looked into.
                let expected = odd.len() as u64 - u64::from(!is_ordered);
                assert_eq!(unnamed.count, expected, "by {limit}, {is_ordered}: {unnamed}");
            }
        }
        // What is read is what was named.
        assert_eq!(read(&store, "x+ %", 0..1).await.unwrap(), b"x");
        assert_eq!(read(&store, "x/ t ", 0..1).await.unwrap(), b"x");
        for is_ordered in [true, false] {
            let level = async |folder: Option<&str>| {
                let folder = folder.map(path);
                let level = match is_ordered {
                    true => store.level_ordered(folder.as_ref(), "", 100).await.unwrap(),
                    false => store.level(folder.as_ref(), "", 100).await.unwrap(),
                };
                let folders: Vec<String> = level.folders.iter().map(ToString::to_string).collect();
                (folders, level.objects.len(), level.unnamed.count)
            };
            assert_eq!(level(None).await, (vec!["x".to_owned()], 2, 1));
            let (folders, objects, unnamed) = level(Some("x")).await;
            assert!(objects == 4 && unnamed > 5, "{folders:?} {objects} {unnamed}");
            let folder = |name: &str| folders.iter().any(|folder| folder == name);
            assert!(
                folder("x/e") && folder("x/g") && folder("x/z") && !folder("x/.."),
                "{folders:?}"
            );
            assert_eq!(level(Some("x/e")).await, (vec![], 0, 1));
        }
    }
}

/// What stays is told, and nothing else goes in its place.
#[tokio::test(flavor = "multi_thread")]
async fn s3_keys_without_a_name_stay_when_their_folder_goes() {
    for is_tree in [false, true] {
        let (server, odd) = odd_server("");
        let store = server.store(None);
        let key = Path::parse("x").unwrap();
        let stays = match is_tree {
            true => store.delete_tree(&key).await.unwrap(),
            false => store.delete(&path("x")).await.unwrap(),
        };
        // All but the one at the root, and those that can be deleted.
        let expected = odd.len() as u64 - 4;
        match is_tree {
            true => assert!((5..=expected).contains(&stays.count), "{stays}"),
            false => assert_eq!(stays.count, expected, "{stays}"),
        }
        let left = store.list(None, "", 100).await.unwrap();
        assert_eq!(paths(&left), ["x+ %", "y"]);
        assert_eq!(left.unnamed.count, expected + 1, "{}", left.unnamed);
        // It is no other's.
        store.delete_object(&path("y")).await.unwrap();
        let lead = store.delete(&path("lead")).await.unwrap();
        assert!(lead.is_empty());
        assert_eq!(store.list(None, "", 100).await.unwrap().unnamed.count, expected + 1);
    }
}

/// Answers requests for listings by their first lines, and gives those.
fn lists(answer: impl Fn(&str) -> String + Send + 'static) -> (Cloud, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let lines = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head, mut bytes) = (stream.unwrap(), Vec::new(), [0; 4096]);
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut bytes) {
                    Ok(count @ 1..) => head.extend_from_slice(&bytes[..count]),
                    _ => break,
                }
            }
            let head = String::from_utf8(head).unwrap();
            let line = head.lines().next().unwrap_or_default().to_owned();
            let body = answer(&line);
            lines.lock().unwrap().push(line);
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
        }
    });
    let (source, unlock) = place_at(&address, None);
    (Cloud::new("data".parse().unwrap(), source, unlock), asked)
}

fn listing(keys: &[&str], more: &str) -> String {
    let objects: String = keys
        .iter()
        .map(|key| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05Z</LastModified>\
                 <Size>1</Size></Contents>"
            )
        })
        .collect();
    format!("<ListBucketResult>{objects}{more}</ListBucketResult>")
}

/// Some servers say that keys are encoded since that was asked for, and encode none.
#[tokio::test(flavor = "multi_thread")]
async fn s3_keys_are_what_they_are_where_none_is_encoded() {
    let (store, asked) = lists(|query| {
        let is_asked = query.contains("encoding-type");
        let echo = if is_asked { "<EncodingType>url</EncodingType>" } else { "" };
        listing(&["a b", "a%20b", "a+b"], echo)
    });
    for _ in 0..2 {
        let page = store.list(None, "", 9).await.unwrap();
        assert_eq!(paths(&page), ["a b", "a%20b", "a+b"]);
    }
    let asked = asked.lock().unwrap();
    let encoded: Vec<bool> = asked.iter().map(|query| query.contains("encoding-type")).collect();
    assert_eq!(encoded, [true, false, false]);
}

/// One that does encode is asked twice once.
#[tokio::test(flavor = "multi_thread")]
async fn s3_keys_are_decoded_where_they_are_encoded() {
    let (store, asked) = lists(|query| match query.contains("encoding-type") {
        true => {
            let keys = ["a%0Ab", "a+b", "a%2520b", "a%2Bb"];
            listing(&keys, "<EncodingType>url</EncodingType>")
        }
        false => listing(&["a?b", "a b", "a%20b", "a+b"], ""),
    });
    for _ in 0..2 {
        let page = store.list(None, "", 9).await.unwrap();
        assert_eq!(paths(&page), ["a b", "a%20b", "a+b"]);
        assert_eq!(page.unnamed.examples, ["a\\nb"]);
    }
    let asked = asked.lock().unwrap();
    let encoded: Vec<bool> = asked.iter().map(|query| query.contains("encoding-type")).collect();
    assert_eq!(encoded, [true, false, true]);
}

/// Nothing of it is taken for something else, or removed.
#[tokio::test(flavor = "multi_thread")]
async fn s3_what_was_not_asked_for_is_an_error() {
    let (store, asked) = lists(|_| listing(&["a%20b/c", "a b/c"], ""));
    for error in [
        store.delete(&path("a%20b")).await.map(drop).unwrap_err(),
        store.delete_tree(&Path::parse("a%20b").unwrap()).await.map(drop).unwrap_err(),
        store.has_more(&path("a%20b")).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("not asked for: 'a b/c'"), "{error}");
    }
    assert!(asked.lock().unwrap().iter().all(|line| line.starts_with("GET ")));
}

/// An answer that is no listing is no empty folder, and is not asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn s3_what_is_no_listing_is_an_error() {
    for answer in [
        "",
        "{}",
        "<html/>",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    ] {
        let (store, asked) = lists(move |_| answer.to_owned());
        let error = store.list(None, "", 9).await.unwrap_err().to_string();
        assert!(error.contains("the listing has"), "{answer}: {error}");
        assert_eq!(asked.lock().unwrap().len(), 1, "{answer}");
    }
}

/// The library signs before it is asked to have keys encoded.
#[tokio::test(flavor = "multi_thread")]
async fn s3_listings_are_signed_as_they_are_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = std::thread::spawn(move || {
        let (mut stream, mut head) = (listener.accept().unwrap().0, Vec::new());
        let mut bytes = [0; 4096];
        while !head.ends_with(b"\r\n\r\n") {
            let count = stream.read(&mut bytes).unwrap();
            head.extend_from_slice(&bytes[..count]);
        }
        let body = "<ListBucketResult/>";
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        String::from_utf8(head).unwrap()
    });
    let (source, unlock) = place_at(&address, Some("a b"));
    let store = Cloud::new("data".parse().unwrap(), source, unlock);
    let page = store.list(None, "c+d", 9).await.unwrap();
    assert_eq!(page, Page::default());

    let head = serving.join().unwrap();
    let (line, rest) = head.split_once("\r\n").unwrap();
    let headers: std::collections::BTreeMap<String, &str> = rest
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    let (address, query) = line.split(' ').nth(1).unwrap().split_once('?').unwrap();
    let query = query.replace('+', "%20");
    let mut pairs: Vec<&str> = query.split('&').collect();
    pairs.sort_unstable();
    let expected = [
        "encoding-type=url",
        "list-type=2",
        "max-keys=100",
        "prefix=a%20b%2F",
        "start-after=a%20b%2Fc%2Bd",
    ];
    assert_eq!(pairs, expected);
    let authorization = headers["authorization"];
    let part = |name: &str| {
        let (_, rest) = authorization.split_once(&format!("{name}=")).unwrap();
        rest.split(',').next().unwrap().to_owned()
    };
    let signed = part("SignedHeaders");
    let canonical: String =
        signed.split(';').map(|name| format!("{name}:{}\n", headers[name])).collect();
    let hash = headers["x-amz-content-sha256"];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let request = format!("GET\n{address}\n{}\n{canonical}\n{signed}\n{hash}", pairs.join("&"));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, request.as_bytes());
    let (_, scope) =
        part("Credential").split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", headers["x-amz-date"], hex(digest.as_ref()));
    let sign = |key: &[u8], text: &str| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
        aws_lc_rs::hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
    };
    let key = scope.split('/').fold(b"AWS4key".to_vec(), |key, part| sign(&key, part));
    assert_eq!(part("Signature"), hex(&sign(&key, &to_sign)));
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_parts_and_copies_are_seen_only_while_their_writer_may() {
    let server = Server::start();
    let store = server.store(Some("team"));
    let over: Still = Arc::new(|| Err("the attempt is over".to_owned()));
    let at = path("large");
    // This server copies for whoever asks, and so nodes are given no addresses of its parts.
    assert_eq!(store.begin_parts(&at).await.unwrap(), None);
    let store = server.store(Some("team"));
    store.inner.keeps_to_parts.set(true).unwrap();
    let upload = store.begin_parts(&at).await.unwrap().unwrap();
    let signed = store.sign_parts(&at, &upload, 1..2, Duration::from_secs(60)).await.unwrap();
    let sent = reqwest::Client::new().put(&signed[0].url).body("text").send().await.unwrap();
    let tags = vec![sent.headers()["etag"].to_str().unwrap().to_owned()];
    let error = store.complete_parts(&at, &upload, tags.clone(), &over).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert!(matches!(store.head(&at).await, Err(Error::NotFound(_))));
    let tag = store.complete_parts(&at, &upload, tags, &always()).await.unwrap().tag;
    assert_eq!(store.head(&at).await.unwrap().etag, tag);

    let (to, size) = (path("copy"), 4);
    let expected = Expected { size, tag: Some(tag) };
    let error = store.copy(&at, &to, &expected, &over).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert!(matches!(store.head(&to).await, Err(Error::NotFound(_))));
    store.copy(&at, &to, &expected, &always()).await.unwrap();
    assert_eq!(read(&store, "copy", 0..4).await.unwrap(), b"text");
    // Another of the same length.
    put(&store, "large", b"TEXT").await;
    let error = store.copy(&at, &to, &expected, &always()).await.unwrap_err();
    assert!(matches!(error, Error::Changed(_)), "{error}");
    let too_large = Expected { size: (5 << 30) + 1, tag: None };
    let error = store.copy(&at, &to, &too_large, &always()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(read(&store, "copy", 0..4).await.unwrap(), b"text");
}

/// A store that is away, and is asked for an object that its writer may not store any more when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_over_is_asked_for_nothing_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) =
        (listener.local_addr().unwrap().to_string(), Arc::new(AtomicU32::new(0)));
    let counting = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 16 * 1024]);
            counting.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(
                b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    let (source, unlock) = place_at(&address, None);
    let store = Cloud::new("data".parse().unwrap(), source, unlock);
    let seen = asked.clone();
    let still: Still = Arc::new(move || match seen.load(Ordering::SeqCst) {
        0 | 1 => Ok(()),
        _ => Err("the attempt is over".to_owned()),
    });
    let whole = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"text"))]);
    let error = store.put_stream(&path("x"), whole, &still).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// Files of a web server that knows no ranges come as they are, however little of one is wanted.
#[tokio::test]
async fn a_web_server_need_not_know_ranges() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let whole: Vec<u8> = (0..WINDOW + 5000).map(|at| (at % 251) as u8).collect();
    let body = whole.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                head.extend(byte);
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n",
                body.len()
            );
            // Who has enough goes.
            let _ = stream.write_all(answer.as_bytes());
            if !head.starts_with(b"HEAD ") {
                let _ = stream.write_all(&body);
            }
        }
    });
    let unlock: Unlock = Arc::new(|| Ok(Credentials::None));
    let store = Cloud::new("web".parse().unwrap(), Source::Http { url }, unlock);
    let size = whole.len() as u64;
    assert_eq!(store.head(&path("x")).await.unwrap().size, size);
    for range in [0..size, 0..10, 4096..5000, WINDOW - 10..WINDOW + 10, size - 1..size] {
        let expected = &whole[range.start as usize..range.end as usize];
        let found = read(&store, "x", range.clone()).await.unwrap();
        assert!(found == expected, "{range:?}");
    }
}
