//! Outputs that are stored while a job writes them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atelier_core::content::Digest;
use axum::http::StatusCode;

use super::super::rw_mount::{Known, LOOKS, Ledger, Mirror, Mirrored, Mirroring, settle};
use super::world::{TOKEN, World};

const KEPT: &str = ".uncommitted/job_1/model/0";
const TO: &str = "azureml/job_1/model";

impl World {
    fn mirrored(&self, name: &str) -> Mirrored {
        Mirrored { name: name.to_owned(), at: self.at(&KEPT.replace("model", name)) }
    }

    fn outputs_folder(&self) -> PathBuf {
        let folder = self.folder.path().join("named");
        fs::create_dir_all(folder.join("model")).unwrap();
        folder
    }

    fn mirroring(&self) -> Mirroring {
        let plane = self.plane.clone();
        Mirroring {
            folder: self.outputs_folder(),
            outputs: vec![self.mirrored("model"), self.mirrored("file")],
            ledger: Arc::new(Ledger::open(self.folder.path().join("ledger"))),
            token: TOKEN.to_owned(),
            looks: LOOKS,
            plane: Arc::new(move || Some(plane.clone())),
        }
    }

    /// What lies uncommitted, below the job's folder.
    fn kept(&self) -> Vec<(String, String)> {
        let daemon = self.daemon.lock().unwrap();
        let below = |path: &String| path.strip_prefix(".uncommitted/job_1/").map(str::to_owned);
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).into_owned();
        let all = daemon.objects.iter();
        all.filter_map(|(path, (bytes, _))| Some((below(path)?, text(bytes)))).collect()
    }

    async fn keeps(&self, expected: &[(&str, &str)]) {
        let expected: Vec<(String, String)> =
            expected.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        let begun = Instant::now();
        while self.kept() != expected {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", self.kept());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn what_is_closed_is_stored_and_what_is_open_is_not() {
    let world = World::new(false).await;
    let folder = world.outputs_folder();
    fs::write(folder.join("model/before"), "before").unwrap();
    let mut open = File::create(folder.join("model/open")).unwrap();
    open.write_all(b"half").unwrap();
    let mirror = Mirror::start(world.mirroring());
    world.keeps(&[("model/0/before", "before")]).await;
    fs::create_dir_all(folder.join("model/a/b")).unwrap();
    fs::write(folder.join("model/a/b/c d#?%.txt"), "odd").unwrap();
    fs::write(folder.join("model/a/part"), "whole").unwrap();
    fs::rename(folder.join("model/a/part"), folder.join("model/a/final")).unwrap();
    fs::write(folder.join("file"), "single").unwrap();
    // Of nobody's.
    fs::create_dir(folder.join("other")).unwrap();
    fs::write(folder.join("other/x"), "x").unwrap();
    fs::write(world.folder.path().join("secret"), "secret").unwrap();
    symlink(world.folder.path().join("secret"), folder.join("model/link")).unwrap();
    symlink(world.folder.path(), folder.join("model/folder")).unwrap();
    let odd = ("model/0/a/b/c d#?%.txt", "odd");
    let kept =
        [("file/0", "single"), odd, ("model/0/a/final", "whole"), ("model/0/before", "before")];
    world.keeps(&kept).await;
    drop(open);
    fs::remove_file(folder.join("model/before")).unwrap();
    fs::rename(folder.join("model/a"), folder.join("model/z")).unwrap();
    fs::write(folder.join("model/z/final"), "changed").unwrap();
    world
        .keeps(&[
            ("file/0", "single"),
            ("model/0/open", "half"),
            ("model/0/z/b/c d#?%.txt", "odd"),
            ("model/0/z/final", "changed"),
        ])
        .await;
    // Out of sight, and back as what is no folder any more.
    fs::rename(folder.join("model/z"), world.folder.path().join("away")).unwrap();
    fs::write(world.folder.path().join("away/final"), "unseen").unwrap();
    fs::write(folder.join("model/z"), "a file").unwrap();
    world.keeps(&[("file/0", "single"), ("model/0/open", "half"), ("model/0/z", "a file")]).await;
    mirror.end().await;
    fs::write(folder.join("model/late"), "late").unwrap();
    settle(&world.mirroring()).await.unwrap();
    assert!(world.kept().contains(&("model/0/late".to_owned(), "late".to_owned())));
}

/// Nobody opens it under the name that it gets.
#[tokio::test]
async fn what_is_linked_to_its_place_is_stored() {
    let world = World::new(false).await;
    let folder = world.outputs_folder();
    let mirror = Mirror::start(world.mirroring());
    fs::write(folder.join("model/closed"), "closed").unwrap();
    world.keeps(&[("model/0/closed", "closed")]).await;
    let elsewhere = world.folder.path().join("elsewhere");
    fs::write(&elsewhere, "linked").unwrap();
    fs::hard_link(&elsewhere, folder.join("model/linked")).unwrap();
    world.keeps(&[("model/0/closed", "closed"), ("model/0/linked", "linked")]).await;
    mirror.end().await;
}

/// Of more folders than are watched all are looked at from time to time.
#[tokio::test]
async fn what_lies_in_a_folder_that_is_not_watched_is_found() {
    let world = World::new(false).await;
    let folder = world.outputs_folder();
    let looks = Duration::from_millis(200);
    let mirror = Mirror::start(Mirroring { looks, ..world.mirroring() });
    for number in 0..9000 {
        fs::create_dir(folder.join(format!("model/{number}"))).unwrap();
    }
    fs::write(folder.join("model/last"), "last").unwrap();
    world.keeps(&[("model/0/last", "last")]).await;
    fs::write(folder.join("model/8999/late"), "late").unwrap();
    world.keeps(&[("model/0/8999/late", "late"), ("model/0/last", "last")]).await;
    mirror.end().await;
}

#[tokio::test]
async fn a_file_that_changes_on_its_way_is_not_stored_torn() {
    let world = World::new(false).await;
    let path = world.outputs_folder().join("model/large");
    let size = 32 << 20;
    let mirror = Mirror::start(world.mirroring());
    for round in 0..4u8 {
        fs::write(&path, vec![b'0' + round; size]).unwrap();
        // Some of these come before it is sent, some meanwhile, some after.
        tokio::time::sleep(Duration::from_millis(450 + u64::from(round) * 60)).await;
        if let Some((bytes, _)) = world.daemon.lock().unwrap().objects.get(&format!("{KEPT}/large"))
        {
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "it is torn");
        }
    }
    world.keeps(&[("model/0/large", "33333333333333333333")]).await;
    mirror.end().await;
    let daemon = world.daemon.lock().unwrap();
    let (bytes, _) = &daemon.objects[&format!("{KEPT}/large")];
    assert!(bytes.len() == size && bytes.iter().all(|byte| *byte == b'3'));
}

#[tokio::test]
async fn at_the_end_only_what_was_changed_is_sent() {
    let world = World::new(false).await;
    let folder = world.outputs_folder();
    for name in ["same", "changed", "lost"] {
        fs::write(folder.join("model").join(name), name).unwrap();
    }
    let mirroring = world.mirroring();
    settle(&mirroring).await.unwrap();
    assert_eq!(world.kept().len(), 3);
    fs::write(folder.join("model/changed"), "CHANGED").unwrap();
    world.daemon.lock().unwrap().objects.remove(&format!("{KEPT}/lost"));
    let before = world.requests("PUT ");
    // As a new agent finds it.
    let ledger = Ledger::open(world.folder.path().join("ledger"));
    let output = world.mirrored("model");
    let known = Some(Known { ledger: &ledger, output: &output });
    let from = folder.join("model");
    let to = world.at(TO);
    let committed = world.plane.commit(&from, &to, "named-outputs/model", TOKEN, known);
    let entries = committed.await.unwrap();
    let (sent, copied) = (world.requests("PUT ") - before, world.requests("COPY "));
    // A copy is asked for by a PUT.
    assert_eq!((sent - copied, copied), (2, 2), "'lost' is asked for, and sent");
    for (entry, text) in entries.iter().zip(["CHANGED", "lost", "same"]) {
        assert_eq!(entry.digest, Digest::of(text.as_bytes()));
        assert_eq!(
            (entry.bytes, world.stored(&entry.key).unwrap()),
            (text.len() as u64, text.into())
        );
    }
}

#[tokio::test]
async fn what_was_not_committed_is_put_back() {
    let world = World::new(false).await;
    for (path, text) in
        [("model/0/a/b", "b"), ("model/0/c", ""), ("model/1/d", "d"), ("file/0", "f")]
    {
        world.store(&format!(".uncommitted/job_1/{path}"), text.as_bytes());
    }
    let folder = world.outputs_folder();
    let mirroring = world.mirroring();
    world.break_next(1);
    for (output, count) in mirroring.outputs.iter().zip([2, 1]) {
        let restored = world.plane.restore(output, &folder, &mirroring.ledger, TOKEN);
        assert_eq!(restored.await.unwrap(), count);
    }
    let found = super::tree(&folder);
    let expected = [("file", "f"), ("model/a/b", "b"), ("model/c", "")];
    assert_eq!(found, expected.map(|(path, text)| (path.to_owned(), text.into())).into());
    // It need not be sent again.
    settle(&mirroring).await.unwrap();
    assert_eq!(world.requests("PUT "), 0);
    fs::remove_file(folder.join("model/c")).unwrap();
    settle(&mirroring).await.unwrap();
    let kept: Vec<String> = world.kept().into_iter().map(|(path, _)| path).collect();
    assert_eq!(kept, ["file/0", "model/0/a/b", "model/1/d"]);
}

/// Another than the ledger says, a file that was written to without its times telling, and one whose answer was lost.
#[tokio::test]
async fn what_is_committed_is_what_the_files_are() {
    let world = World::new(false).await;
    let folder = world.outputs_folder().join("model");
    for name in ["other", "times", "same"] {
        fs::write(folder.join(name), "first").unwrap();
    }
    let mirroring = world.mirroring();
    settle(&mirroring).await.unwrap();
    // As what was sent before its agent died.
    world.store(&format!("{KEPT}/other"), b"later");
    let path = folder.join("times");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut open = File::options().write(true).open(&path).unwrap();
    open.write_all(b"THIRD").unwrap();
    open.set_modified(modified).unwrap();
    drop(open);
    world.daemon.lock().unwrap().loses_answers = true;
    fs::write(folder.join("lost"), "first").unwrap();
    settle(&mirroring).await.unwrap_err();
    world.daemon.lock().unwrap().loses_answers = false;
    fs::write(folder.join("lost"), "third").unwrap();
    let (output, to) = (world.mirrored("model"), world.at(TO));
    let known = Some(Known { ledger: &mirroring.ledger, output: &output });
    let before = world.requests("COPY ");
    let committed = world.plane.commit(&folder, &to, "named-outputs/model", TOKEN, known);
    for entry in committed.await.unwrap() {
        let stored = world.stored(&entry.key).unwrap();
        assert_eq!(entry.digest, Digest::of(&stored), "{}", entry.key);
        assert_eq!(stored, fs::read(folder.join(entry.path.rsplit('/').next().unwrap())).unwrap());
    }
    assert_eq!(world.requests("COPY ") - before, 2, "'same', and 'other' in vain");
}

#[tokio::test]
async fn what_was_stored_without_an_answer_is_removed_with_its_file() {
    let world = World::new(false).await;
    let path = world.outputs_folder().join("model/x");
    fs::write(&path, "x").unwrap();
    world.daemon.lock().unwrap().loses_answers = true;
    settle(&world.mirroring()).await.unwrap_err();
    assert_eq!(world.kept().len(), 1);
    fs::remove_file(path).unwrap();
    // As a new agent finds it.
    settle(&world.mirroring()).await.unwrap();
    assert_eq!(world.kept(), []);
}

#[tokio::test]
async fn what_is_wrong_with_one_file_or_output_is_in_no_others_way() {
    let world = World::new(false).await;
    let folder = world.outputs_folder();
    world.daemon.lock().unwrap().refused = vec![
        ("odd", StatusCode::BAD_REQUEST, "Unsupported"),
        ("both", StatusCode::CONFLICT, "Conflict"),
        ("file/0", StatusCode::FORBIDDEN, "StoreDenied"),
    ];
    let mirror = Mirror::start(world.mirroring());
    fs::write(folder.join("file"), "file").unwrap();
    for name in ["odd", "both"] {
        fs::write(folder.join("model").join(name), name).unwrap();
    }
    let begun = Instant::now();
    while world.requests("PUT ") < 3 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fs::write(folder.join("model/good"), "good").unwrap();
    world.keeps(&[("model/0/good", "good")]).await;
    mirror.end().await;
    fs::write(folder.join("model/more"), "more").unwrap();
    settle(&world.mirroring()).await.unwrap_err();
    world.keeps(&[("model/0/good", "good"), ("model/0/more", "more")]).await;
}

#[tokio::test]
async fn nobody_waits_for_the_files_of_other_jobs() {
    let (other, world) = (World::new(false).await, World::new(false).await);
    other.daemon.lock().unwrap().stalls = true;
    for name in ["a", "b"] {
        fs::write(other.outputs_folder().join("model").join(name), name).unwrap();
    }
    let _others = Mirror::start(other.mirroring());
    let begun = Instant::now();
    while other.requests("PUT ") < 2 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mirror = Mirror::start(world.mirroring());
    fs::write(world.outputs_folder().join("model/mine"), "mine").unwrap();
    // By now it waits for its turn.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.kept(), []);
    let soon = Duration::from_secs(20);
    tokio::time::timeout(soon, mirror.end()).await.unwrap();
    assert_eq!(world.kept(), []);
    tokio::time::timeout(soon, settle(&world.mirroring())).await.unwrap().unwrap();
    assert_eq!(world.kept().len(), 1);
}

#[tokio::test]
async fn a_name_that_became_a_folder_is_put_back_as_one() {
    let world = World::new(false).await;
    for path in ["model/0/a", "model/0/a/b/c", "model/0/a/b", "model/0/ab"] {
        world.store(&format!(".uncommitted/job_1/{path}"), path.as_bytes());
    }
    let (folder, mirroring) = (world.outputs_folder(), world.mirroring());
    let output = &mirroring.outputs[0];
    let restored = world.plane.restore(output, &folder, &mirroring.ledger, TOKEN).await.unwrap();
    let found: Vec<String> = super::tree(&folder).into_keys().collect();
    assert_eq!((restored, found), (2, vec!["model/a/b/c".to_owned(), "model/ab".to_owned()]));
}

#[tokio::test]
async fn what_was_written_is_stored_although_no_time_tells() {
    let world = World::new(false).await;
    let path = world.outputs_folder().join("model/x");
    let mirror = Mirror::start(world.mirroring());
    fs::write(&path, "first").unwrap();
    world.keeps(&[("model/0/x", "first")]).await;
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut open = File::options().write(true).open(&path).unwrap();
    open.write_all(b"THIRD").unwrap();
    open.set_modified(modified).unwrap();
    drop(open);
    world.keeps(&[("model/0/x", "THIRD")]).await;
    mirror.end().await;
}
