use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use atelier_proto::agent::v1 as pb;

use super::{Spares, WORK};
use crate::attempt::Folder;
use crate::attempt::kept::RECORD as KEPT;
use crate::record;
use crate::supervisor::{EXITED, Exited, LAUNCH, Outcome, STARTED};

struct World {
    _root: tempfile::TempDir,
    attempts: std::path::PathBuf,
    spares: Spares,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let attempts = root.path().join("attempts");
        fs::create_dir(&attempts).unwrap();
        let spares = Spares::new(root.path().join("spares")).unwrap();
        Self { attempts, spares, _root: root }
    }

    /// An attempt as a job that did nothing leaves it.
    fn over(&self, epoch: u64) -> Folder {
        let folder = Folder::new(&self.attempts, epoch);
        let key = pb::AttemptKey { job: "secret".to_owned(), attempt: 1, epoch };
        let assignment = pb::Assignment { key: Some(key), ..Default::default() };
        folder.create(&assignment, &self.spares).unwrap();
        folder.make_work(true).unwrap();
        folder.make_artifact_folders().unwrap();
        record::write(folder.path(), LAUNCH, &"secret").unwrap();
        record::claim(folder.path(), STARTED, &"secret").unwrap();
        fs::write(folder.log(), "secret\n").unwrap();
        let what = Outcome::Code(0);
        record::write(folder.path(), EXITED, &Exited::without_start(1, 2, what)).unwrap();
        folder
    }

    fn kept(&self) -> usize {
        fs::read_dir(&self.spares.root).unwrap().count()
    }
}

fn files(folder: &Path) -> Vec<(String, u64)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let bytes = if meta.is_file() { meta.len() } else { 0 };
            (entry.file_name().into_string().unwrap(), bytes)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_folder_is_used_again_and_nothing_of_its_job_is_left() {
    let world = World::new();
    let first = world.over(1);
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let (folder, work) = (inode(first.path()), inode(&first.work()));
    // As where the daemon speaks TLS.
    fs::write(first.authorities(), "secret\n").unwrap();
    world.spares.put(&first).unwrap();
    assert!(!first.path().exists());
    let spare = fs::read_dir(&world.spares.root).unwrap().next().unwrap().unwrap().path();
    let empty = [".assignment.pb", ".exited.json", ".launch.json", ".started.json", WORK];
    assert_eq!(files(&spare), empty.map(|name| (name.to_owned(), 0)));

    let second = Folder::new(&world.attempts, 2);
    second.create(&pb::Assignment::default(), &world.spares).unwrap();
    assert_eq!(inode(second.path()), folder);
    assert!(second.ended().is_none() && second.assignment().is_some());
    second.make_work(true).unwrap();
    assert_eq!(inode(&second.work()), work);
    second.make_artifact_folders().unwrap();
    // Prepared anew, after an agent was killed: then it is a fresh one.
    fs::write(second.work().join("half"), "").unwrap();
    second.make_work(true).unwrap();
    assert_eq!(files(&second.work()), []);
    record::claim(second.path(), STARTED, &2).unwrap();
    let again = record::claim(second.path(), STARTED, &3).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn code_comes_into_a_folder_of_its_own() {
    let world = World::new();
    world.spares.put(&world.over(1)).unwrap();
    let folder = Folder::new(&world.attempts, 2);
    folder.create(&pb::Assignment::default(), &world.spares).unwrap();
    folder.make_work(false).unwrap();
    assert_eq!(files(&folder.work()), []);
    assert!(!folder.path().join(WORK).exists());
}

#[test]
fn what_a_job_has_touched_is_removed() {
    type Touch = fn(&Folder);
    let touches: [(&str, Touch); 13] = [
        ("a file", |f| fs::write(f.work().join("x"), "x").unwrap()),
        ("an output", |f| fs::write(f.work().join("outputs/x"), "x").unwrap()),
        ("a folder gone", |f| fs::remove_dir(f.work().join("logs")).unwrap()),
        ("a link for a folder", |f| {
            fs::remove_dir(f.work().join("logs")).unwrap();
            symlink("/tmp", f.work().join("logs")).unwrap();
        }),
        ("a mode", |f| fs::set_permissions(f.work(), Permissions::from_mode(0o1777)).unwrap()),
        ("an inner mode", |f| {
            fs::set_permissions(f.work().join("outputs"), Permissions::from_mode(0o777)).unwrap();
        }),
        ("a second name of a record", |f| {
            fs::hard_link(f.path().join(LAUNCH), f.path().parent().unwrap().join("x")).unwrap();
        }),
        ("a link for a record", |f| {
            fs::remove_file(f.path().join(LAUNCH)).unwrap();
            symlink(f.log(), f.path().join(LAUNCH)).unwrap();
        }),
        ("a record's mode", |f| {
            fs::set_permissions(f.path().join(LAUNCH), Permissions::from_mode(0o666)).unwrap();
        }),
        ("inputs", |f| fs::create_dir(f.inputs()).unwrap()),
        ("a session after its end", |f| {
            record::write(f.path(), KEPT, &"until").unwrap();
            record::withdraw(f.path(), KEPT).unwrap();
        }),
        ("no end", |f| fs::remove_file(f.path().join(EXITED)).unwrap()),
        ("survivors", |f| {
            let mut exited = Exited::without_start(1, 2, Outcome::Code(0));
            exited.survivors = 1;
            record::write(f.path(), EXITED, &exited).unwrap();
        }),
    ];
    for (what, touch) in touches {
        let world = World::new();
        let folder = world.over(1);
        touch(&folder);
        world.spares.put(&folder).unwrap();
        assert!(!folder.path().exists(), "{what}");
        assert_eq!(world.kept(), 0, "{what}: it was kept");
    }
}

#[test]
fn an_agent_begins_with_none() {
    let world = World::new();
    world.spares.put(&world.over(1)).unwrap();
    assert_eq!(world.kept(), 1);
    let anew = Spares::new(world.spares.root.clone()).unwrap();
    assert_eq!(world.kept(), 0);
    assert!(!anew.take(&world.attempts.join("2")));
}
