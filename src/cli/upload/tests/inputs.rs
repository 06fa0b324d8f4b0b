use std::sync::atomic::AtomicBool;

use atelier_core::access::Caller;
use atelier_core::id::{DatastoreName, Principal};
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use http::{Method, StatusCode};

use super::*;
use crate::client::data::Data;
use crate::daemon::Uploads;
use crate::http::data::{Authorize, State, router};
use crate::storage::{Datastores, ObjectPath};
use atelier_core::layout::BLOB_STORE;

struct Open;

impl Authorize for Open {
    fn authorize_data(
        &self,
        _: &Caller,
        _: &DatastoreName,
        _: &str,
        _: bool,
    ) -> Result<(), String> {
        Ok(())
    }

    fn still_open(&self, _: &Caller) -> Result<(), String> {
        Ok(())
    }
}

/// How long nothing may come of an object that is read.
const SILENCE: Duration = Duration::from_millis(200);

struct Inputs {
    stores: Datastores,
    gateway: Gateway,
    files: tempfile::TempDir,
    _folders: [tempfile::TempDir; 2],
}

impl Inputs {
    async fn with(role: Role) -> Self {
        Self::behind(role, |request: Request, next: Next| next.run(request)).await
    }

    /// Where requests go another way than straight to the daemon.
    async fn behind<A>(
        role: Role,
        way: impl Fn(Request, Next) -> A + Clone + Send + Sync + 'static,
    ) -> Self
    where
        A: Future<Output = Response> + Send + 'static,
    {
        let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let stores = Datastores::open_folders(folder.path()).unwrap();
        let caller = Caller { principal: Principal::new("tester").unwrap(), role };
        let uploads = Uploads::for_test(folder.path());
        let app = router(State { datastores: stores.clone(), door: Arc::new(Open), uploads })
            .layer(middleware::from_fn(way))
            .layer(axum::Extension(caller));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let target = target(server);
        let data = Data::with(&target, SILENCE).unwrap();
        let gateway = Gateway::new(data, Principal::new("tester").unwrap(), home.path());
        Self { stores, gateway, files: tempfile::tempdir().unwrap(), _folders: [folder, home] }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.files.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn send(&self, name: &str) -> Result<LocalInput, Error> {
        self.gateway.local_input(&self.files.path().join(name), silent()).await
    }

    /// The bytes at a URI and a path below it.
    async fn read(&self, uri: &str, below: &str) -> Vec<u8> {
        let prefix = "azureml://datastores/workspaceblobstore/paths/";
        let path = format!("{}{below}", uri.strip_prefix(prefix).unwrap());
        let store = self.stores.get(BLOB_STORE).unwrap();
        store.get(&ObjectPath::new(&path).unwrap(), u64::MAX).await.unwrap().to_vec()
    }
}

#[tokio::test]
async fn a_file_is_stored_under_its_content() {
    let inputs = Inputs::with(Role::DataScientist).await;
    let data = noise(3, 1_500_000);
    inputs.write("a b#1.csv", &data);
    let sent = inputs.send("a b#1.csv").await.unwrap();
    assert!(sent.uri.ends_with("/a b#1.csv"), "{}", sent.uri);
    assert!(sent.uri.contains("/paths/LocalUpload/"));
    assert_eq!((sent.files, sent.files_sent, sent.bytes_sent), (1, 1, 1_500_000));
    assert!(inputs.read(&sent.uri, "").await == data);
    let again = inputs.send("a b#1.csv").await.unwrap();
    assert_eq!((&again.uri, again.files_sent), (&sent.uri, 0));
    inputs.write("a b#1.csv", b"other");
    assert_ne!(inputs.send("a b#1.csv").await.unwrap().uri, sent.uri);
    assert!(inputs.read(&sent.uri, "").await == data, "what an older job named stays");
}

#[tokio::test]
async fn a_folder_is_stored_whole_and_what_is_there_is_not_sent_again() {
    let inputs = Inputs::with(Role::DataScientist).await;
    for i in 0..1_200_u32 {
        inputs.write(&format!("set/{}/{i} ü.txt", i % 7), &i.to_le_bytes());
    }
    inputs.write("set/empty", b"");
    inputs.write("set/big", &noise(1, 2_000_000));
    let sent = inputs.send("set").await.unwrap();
    assert!(sent.uri.ends_with("/set/"), "{}", sent.uri);
    assert_eq!((sent.files, sent.files_sent), (1_202, 1_202));
    assert_eq!(inputs.read(&sent.uri, "3/10 ü.txt").await, 10_u32.to_le_bytes());
    assert_eq!(inputs.read(&sent.uri, "empty").await, b"");
    assert!(inputs.read(&sent.uri, "big").await == noise(1, 2_000_000));
    // As after an upload that broke off: only what lacks is sent.
    let store = inputs.stores.get(BLOB_STORE).unwrap();
    let prefix = "azureml://datastores/workspaceblobstore/paths/";
    let big = format!("{}big", sent.uri.strip_prefix(prefix).unwrap());
    assert!(store.delete(&ObjectPath::new(&big).unwrap()).await.unwrap().is_empty());
    let again = inputs.send("set").await.unwrap();
    assert_eq!((&again.uri, again.files_sent, again.bytes_sent), (&sent.uri, 1, 2_000_000));
    assert!(inputs.read(&sent.uri, "big").await == noise(1, 2_000_000));
}

#[tokio::test]
async fn what_cannot_be_stored_is_named() {
    let inputs = Inputs::with(Role::DataScientist).await;
    let missing = inputs.send("absent").await.unwrap_err().to_string();
    assert!(missing.contains("absent") && missing.contains("does not exist"), "{missing}");
    fs::create_dir(inputs.files.path().join("empty")).unwrap();
    assert!(inputs.send("empty").await.unwrap_err().to_string().contains("no files"));
    inputs.write("odd/back\\slash", b"x");
    let odd = inputs.send("odd").await.unwrap_err().to_string();
    assert!(odd.contains("back\\slash"), "{odd}");
    fs::create_dir(inputs.files.path().join("raw")).unwrap();
    let name = OsStr::from_bytes(b"raw/\xff");
    fs::write(inputs.files.path().join(name), "x").unwrap();
    let raw = inputs.send("raw").await.unwrap_err().to_string();
    assert!(raw.contains("UTF-8"), "{raw}");
    inputs.write("linked/file", b"x");
    symlink("nothing", inputs.files.path().join("linked/gone")).unwrap();
    let linked = inputs.send("linked").await.unwrap();
    assert_eq!(linked.warnings.len(), 1);
    assert!(linked.warnings[0].contains("'gone'"), "{:?}", linked.warnings);

    let reader = Inputs::with(Role::Reader).await;
    reader.write("f", b"x");
    let refused = reader.send("f").await.unwrap_err().to_string();
    assert!(refused.contains("may read, not write"), "{refused}");
}

#[tokio::test]
async fn a_file_that_changes_on_the_way_is_not_stored_under_the_old_hash() {
    let inputs = Inputs::with(Role::DataScientist).await;
    let path = inputs.write("f", &noise(1, 1_000_000));
    let before = inputs.send("f").await.unwrap();
    inputs.write("f", &noise(2, 1_000_000));
    let changes = Arc::new(Mutex::new(1));
    let (changing, left) = (path.clone(), changes.clone());
    let report: Report = Arc::new(move |progress| {
        if let Progress::Sending { .. } = progress {
            let mut left = left.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                fs::write(&changing, noise(3, 1_000_000)).unwrap();
            }
        }
    });
    let sent = inputs.gateway.local_input(&path, report).await.unwrap();
    assert_eq!(*changes.lock().unwrap(), 0);
    assert!(inputs.read(&sent.uri, "").await == noise(3, 1_000_000));
    // The first hash and the last have their objects; the one in between has none.
    let store = inputs.stores.get(BLOB_STORE).unwrap();
    let page = store.list(None, None, 10).await.unwrap();
    assert_eq!(page.objects.len(), 2);
    assert_ne!(before.uri, sent.uri);
}

#[tokio::test]
async fn what_takes_longer_to_send_than_the_daemon_may_be_silent_is_sent() {
    let slow = |request: Request, next: Next| async move {
        if request.method() == Method::PUT {
            tokio::time::sleep(4 * SILENCE).await;
        }
        next.run(request).await
    };
    let inputs = Inputs::behind(Role::DataScientist, slow).await;
    inputs.write("f", &noise(1, 1_000_000));
    let sent = inputs.send("f").await.unwrap();
    assert!(inputs.read(&sent.uri, "").await == noise(1, 1_000_000));
}

#[tokio::test]
async fn what_broke_off_on_its_way_is_sent_again() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let breaks = move |request: Request, next: Next| {
        let tries = counted.clone();
        async move {
            if request.method() == Method::PUT && tries.fetch_add(1, Ordering::Relaxed) < 2 {
                // The rest of it is not read.
                request.into_body().into_data_stream().next().await.unwrap().unwrap();
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            next.run(request).await
        }
    };
    let inputs = Inputs::behind(Role::DataScientist, breaks).await;
    let path = inputs.write("f", &noise(1, 3_000_000));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_by = seen.clone();
    let report: Report = Arc::new(move |progress| {
        if let Progress::Sending { done, total } = progress {
            seen_by.lock().unwrap().push((done, total));
        }
    });
    let sent = inputs.gateway.local_input(&path, report).await.unwrap();
    assert_eq!((tries.load(Ordering::Relaxed), sent.bytes_sent), (3, 3_000_000));
    assert!(inputs.read(&sent.uri, "").await == noise(1, 3_000_000));
    // What was sent for nothing is not counted.
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|(done, total)| done <= total), "{seen:?}");
    assert_eq!(seen.last(), Some(&(3_000_000, 3_000_000)));
}

#[tokio::test]
async fn what_is_stored_otherwise_than_it_was_sent_does_not_stay() {
    let (spoils, keeps) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (spoiling, keeping) = (spoils.clone(), keeps.clone());
    let spoil = move |request: Request, next: Next| {
        let (spoils, keeps) = (spoiling.clone(), keeping.clone());
        async move {
            if request.method() == Method::DELETE && keeps.load(Ordering::Relaxed) {
                return StatusCode::FORBIDDEN.into_response();
            }
            if request.method() != Method::PUT || !spoils.load(Ordering::Relaxed) {
                return next.run(request).await;
            }
            let (head, body) = request.into_parts();
            let mut bytes = to_bytes(body, usize::MAX).await.unwrap().to_vec();
            bytes[0] ^= 1;
            next.run(Request::from_parts(head, Body::from(bytes))).await
        }
    };
    let inputs = Inputs::behind(Role::DataScientist, spoil).await;
    inputs.write("set/a", b"mine");
    let refused = inputs.send("set").await.unwrap_err().to_string();
    assert!(refused.contains("other bytes of 'a' than were sent"), "{refused}");
    assert!(refused.contains("removed"), "{refused}");
    // What lies there with its length would be taken for it.
    spoils.store(false, Ordering::Relaxed);
    let sent = inputs.send("set").await.unwrap();
    assert_eq!(sent.files_sent, 1);
    assert_eq!(inputs.read(&sent.uri, "a").await, b"mine");

    spoils.store(true, Ordering::Relaxed);
    keeps.store(true, Ordering::Relaxed);
    inputs.write("set/a", b"more");
    let refused = inputs.send("set").await.unwrap_err().to_string();
    let remedy = "atelier fs rm 'azureml://datastores/workspaceblobstore/paths/LocalUpload/";
    assert!(refused.contains(remedy) && refused.contains("/set/a'"), "{refused}");
}
