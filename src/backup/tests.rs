use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use atelier_core::audit::{Actor, Change};
use atelier_core::id::{Principal, WorkspaceName};
use atelier_core::time::Timestamp;

use super::choice::{Choice, STAGE, choose};
use super::open::may_be;
use super::*;
use crate::daemon::Folder;
use crate::store::audit::AuditQuery;
use crate::store::{SqliteStore, Store as _};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A workspace as a daemon leaves it, with what else may lie there, and a key.
struct Place {
    folder: tempfile::TempDir,
    recipient: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recipient = keygen(&folder.path().join("key")).unwrap();
        let place = Self { folder, recipient };
        let data = place.data();
        let mut opened = Folder::open(&data, &WorkspaceName::new("team").unwrap(), NOW).unwrap();
        drop(SqliteStore::open(&data.join("atelier.db"), false).unwrap());
        opened.settle().unwrap();
        for (name, mode) in [
            ("token.key", 0o600),
            ("tls/ca.key", 0o600),
            ("tls/ca.pem", 0o644),
            ("providers/burst", 0o700),
            ("nodes/n1/token", 0o600),
            ("nodes/n1/agent/attempts/1/log", 0o600),
            ("storage/workspaceblobstore/big", 0o600),
            ("endpoint", 0o600),
        ] {
            let path = data.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.at("data")
    }

    fn create(&self, name: &str) -> Result<Created, Error> {
        let sealing = Sealing::recipients(std::slice::from_ref(&self.recipient), &[])?;
        let vault_key = VaultKey::Leave;
        create(Create { data_dir: self.data(), file: self.at(name), sealing, vault_key }, NOW)
    }

    /// How many files of a backup that is made or looked at lie beside it.
    fn leftovers(&self) -> usize {
        let found = fs::read_dir(self.folder.path()).unwrap().flatten();
        found.filter(|entry| entry.file_name().to_string_lossy().starts_with('.')).count()
    }

    fn key(&self) -> Opening {
        Opening::identities(&self.at("key")).unwrap()
    }

    fn restore(&self, name: &str, to: &str, force: bool) -> Result<Restored, Error> {
        let (file, data_dir) = (self.at(name), self.at(to));
        restore(Restore { file, data_dir, force, vault_key_file: None }, &self.key(), NOW)
    }
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_backed_up_comes_back() {
    let place = Place::new();
    let made = place.create("b.age").unwrap();
    let names: Vec<&str> = made.manifest.files.iter().map(|entry| &*entry.name).collect();
    let wanted = [
        "nodes/n1/token",
        "providers/burst",
        "tls/ca.key",
        "tls/ca.pem",
        "token.key",
        "workspace.json",
        "atelier.db",
    ];
    assert_eq!(names, wanted);
    assert_eq!(mode(place.at("b.age")), 0o600);
    assert_eq!(made.bytes, fs::metadata(place.at("b.age")).unwrap().len());
    assert!(!place.data().join(TEMPORARY).exists());
    assert_eq!(Record::read(&place.data()).unwrap().created_at, NOW);
    let opened = verify(&place.at("b.age"), &place.key()).unwrap();
    assert_eq!(opened.manifest, made.manifest);
    assert_eq!(place.leftovers(), 0);

    let restored = place.restore("b.age", "new", false).unwrap();
    assert_eq!(restored.aside, None);
    let new = place.at("new");
    assert_eq!(text(new.join("token.key")), "token.key");
    assert_eq!(text(new.join("nodes/n1/token")), "nodes/n1/token");
    assert_eq!(text(new.join("workspace.json")), text(place.data().join("workspace.json")));
    assert!(!new.join("storage").exists() && !new.join("endpoint").exists());
    let modes =
        ["tls/ca.key", "tls/ca.pem", "tls", "providers/burst"].map(|name| mode(new.join(name)));
    assert_eq!(modes, [0o600, 0o644, 0o755, 0o700]);
    let left = [STAGE, MARKER].map(|name| new.join(name).exists());
    assert_eq!(left, [false, false]);
    // A daemon starts on it, and on numbers that nobody had.
    drop(Folder::open(&new, &WorkspaceName::new("x").unwrap(), NOW).unwrap());
    let store = SqliteStore::open(&new.join("atelier.db"), true).unwrap();
    let recovered = store.recover().unwrap();
    assert!(recovered.restored.holds);
    assert_eq!(recovered.counters.epoch.0, atelier_core::live::Restored::left_out(0, NOW));
    let over = crate::store::Batch { hold_over: true, ..crate::store::Batch::default() };
    assert!(!over.is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.commit(over.into())).unwrap();
    assert!(!store.recover().unwrap().restored.holds);
}

#[test]
fn a_backup_overwrites_nothing_and_needs_somebody_to_open_it() {
    let place = Place::new();
    place.create("b.age").unwrap();
    let before = fs::read(place.at("b.age")).unwrap();
    assert!(matches!(place.create("b.age"), Err(Error::Exists(_))));
    assert_eq!(fs::read(place.at("b.age")).unwrap(), before);
    let nobody = Sealing::recipients(&[], &[]).err().unwrap().to_string();
    assert!(nobody.contains("--recipient"), "{nobody}");
    let secret = Sealing::recipients(&["AGE-SECRET-KEY-1CANARY".to_owned()], &[]).err().unwrap();
    assert!(!secret.to_string().contains("CANARY"), "{secret}");
    assert_eq!(place.leftovers(), 0);
}

/// What the store of a restored folder goes on from.
fn recovered(data: &Path) -> crate::store::Recovered {
    SqliteStore::open(&data.join("atelier.db"), true).unwrap().recover().unwrap()
}

#[test]
fn a_backup_that_is_restored_again_gives_out_other_numbers() {
    let place = Place::new();
    place.create("b.age").unwrap();
    let counters = [1, 2].map(|later| {
        let (file, data_dir) = (place.at("b.age"), place.at(&format!("new-{later}")));
        let wanted = Restore { file, data_dir, force: false, vault_key_file: None };
        let restored = restore(wanted, &place.key(), NOW.plus_millis(later)).unwrap();
        recovered(&restored.data_dir).counters
    });
    assert!(counters[1].epoch.0 >= counters[0].epoch.0 + 1_000, "{counters:?}");
    assert!(counters[1].event.0 >= counters[0].event.0 + 1_000, "{counters:?}");
    assert_eq!(counters[1].seq, counters[0].seq);
}

#[test]
fn a_backup_from_before_jobs_start_again_keeps_the_older_fence() {
    let place = Place::new();
    place.create("b.age").unwrap();
    place.restore("b.age", "data", true).unwrap();
    place.create("held.age").unwrap();
    place.restore("held.age", "new", false).unwrap();
    let (first, second) = (recovered(&place.data()), recovered(&place.at("new")));
    assert_eq!((second.restored.fence, second.restored.holds), (first.restored.fence, true));
    assert!(second.counters.epoch > first.counters.epoch);
}

#[test]
fn what_a_disk_has_at_its_root_is_no_part_of_a_workspace() {
    let place = Place::new();
    let found = place.data().join("lost+found/#1");
    fs::create_dir_all(found.parent().unwrap()).unwrap();
    fs::write(&found, "the system's").unwrap();
    let made = place.create("b.age").unwrap();
    assert!(!made.manifest.files.iter().any(|entry| entry.name.starts_with("lost")));
    place.restore("b.age", "data", true).unwrap();
    assert_eq!(text(&found), "the system's", "it stays where it is");
}

#[test]
fn names_that_are_not_utf8_are_put_aside_too() {
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    fs::write(place.data().join(name), "old").unwrap();
    place.create("b.age").unwrap();
    let aside = place.restore("b.age", "data", true).unwrap().aside.unwrap();
    assert_eq!(text(aside.join(name)), "old");
    assert!(!place.data().join(name).exists());
}

#[test]
fn what_a_killed_restore_left_in_the_open_is_removed() {
    let place = Place::new();
    let left = place.data().join(STAGE).join("tls");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("ca.key"), "plain").unwrap();
    drop(Folder::open(&place.data(), &WorkspaceName::new("x").unwrap(), NOW).unwrap());
    assert!(!place.data().join(STAGE).exists());
}

#[test]
fn a_backup_is_not_kept_in_what_it_is_of() {
    let place = Place::new();
    for name in ["data/b.age", "data/storage/b.age", "data/nodes/../b.age"] {
        assert!(matches!(place.create(name), Err(Error::Within { .. })), "{name}");
    }
    place.create("b.age").unwrap();
    fs::copy(place.at("b.age"), place.at("data/b.age")).unwrap();
    std::os::unix::fs::symlink(place.at("data/b.age"), place.at("link.age")).unwrap();
    for name in ["data/b.age", "link.age"] {
        let refused = place.restore(name, "data", true).unwrap_err();
        assert!(matches!(refused, Error::Within { .. }), "{name}: {refused}");
    }
    assert_eq!(text(place.data().join("token.key")), "token.key");
    place.restore("data/b.age", "new", false).unwrap();
}

#[test]
fn a_backup_that_is_whole_counts_though_nothing_tells_of_it() {
    let place = Place::new();
    fs::create_dir(place.data().join(RECORD)).unwrap();
    let made = place.create("b.age").unwrap();
    assert!(made.unnoted.unwrap().to_string().contains(RECORD));
    verify(&place.at("b.age"), &place.key()).unwrap();
}

#[test]
fn a_backup_is_verified_by_several_at_once_and_nothing_is_left() {
    let place = Place::new();
    place.create("b.age").unwrap();
    // Of somebody else, who may read there.
    let theirs = place.at("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::symlink(&theirs, place.at(".b.age.verify")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| verify(&place.at("b.age"), &place.key()).unwrap());
        }
    });
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
    fs::remove_file(place.at(".b.age.verify")).unwrap();
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn a_restore_that_was_cut_short_goes_on_with_its_own_backup_only() {
    let place = Place::new();
    place.create("b.age").unwrap();
    let data = place.data();
    let other = r#"{"created_at":1700000000000,"file":"/backups/sunday.age","manifest":"00"}"#;
    let begun = format!(r#"{{"aside":"before-restore-x","backup":{other}}}"#);
    fs::write(data.join(MARKER), &begun).unwrap();
    let refused = place.restore("b.age", "data", true).unwrap_err();
    assert!(matches!(refused, Error::OtherBackup { .. }), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("/backups/sunday.age") && said.contains("before-restore-x"), "{said}");
    assert_eq!((text(data.join(MARKER)), data.join(STAGE).exists()), (begun, false));
    assert_eq!(text(data.join("endpoint")), "endpoint", "nothing was touched");
}

#[test]
fn a_passphrase_will_do() {
    let place = Place::new();
    let pass = place.at("pass");
    fs::write(&pass, "a long enough passphrase\n").unwrap();
    let open = Sealing::passphrase(&pass).err().unwrap().to_string();
    assert!(open.contains("chmod 600"), "{open}");
    fs::set_permissions(&pass, fs::Permissions::from_mode(0o600)).unwrap();
    let sealing = Sealing::passphrase(&pass).unwrap();
    let vault_key = VaultKey::Leave;
    let wanted = Create { data_dir: place.data(), file: place.at("p.age"), sealing, vault_key };
    create(wanted, NOW).unwrap();
    verify(&place.at("p.age"), &Opening::passphrase(&pass).unwrap()).unwrap();
    let other = verify(&place.at("p.age"), &place.key()).unwrap_err().to_string();
    assert!(other.contains("passphrase"), "{other}");
    fs::write(&pass, "short\n").unwrap();
    assert!(Sealing::passphrase(&pass).err().unwrap().to_string().contains("too short"));
}

#[test]
fn the_vaults_key_comes_along_when_somebody_says_so() {
    let place = Place::new();
    let key = place.at("vault-key");
    fs::write(&key, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let with = |vault_key: VaultKey, name: &str| {
        let sealing = Sealing::recipients(std::slice::from_ref(&place.recipient), &[]).unwrap();
        let (data_dir, file) = (place.data(), place.at(name));
        create(Create { data_dir, file, sealing, vault_key }, NOW)
    };
    let transit = "transit:transit/atelier".parse().unwrap();
    let refused = with(VaultKey::Take(transit), "t.age").unwrap_err().to_string();
    assert!(refused.contains("leaves its server for nobody"), "{refused}");
    let source = format!("file:{}", key.display()).parse().unwrap();
    assert!(with(VaultKey::Take(source), "k.age").unwrap().has_vault_key);

    let to = place.at("keys/vault.key");
    let put = |data_dir: PathBuf| {
        let (file, vault_key_file) = (place.at("k.age"), Some(to.clone()));
        restore(Restore { file, data_dir, force: false, vault_key_file }, &place.key(), NOW)
    };
    assert_eq!(put(place.at("new")).unwrap().vault_key, Some(to.clone()));
    assert_eq!((text(&to), mode(&to)), (text(&key), 0o600));
    assert!(!place.at("new/vault.key").exists(), "never beside what it opens");
    // One that was killed while it wrote the key.
    fs::remove_file(&to).unwrap();
    let half = place.at("keys/.vault.key.new");
    fs::write(&half, "AAEC").unwrap();
    put(place.at("again")).unwrap();
    assert_eq!((text(&to), mode(&to), half.exists()), (text(&key), 0o600, false));
    put(place.at("same")).unwrap();
    fs::write(&to, "another").unwrap();
    assert!(matches!(put(place.at("other")), Err(Error::OtherKey(_))));
    assert_eq!(text(&to), "another");
}

#[test]
fn what_was_changed_or_cut_off_is_refused_and_nothing_is_touched() {
    let place = Place::new();
    place.create("b.age").unwrap();
    let whole = fs::read(place.at("b.age")).unwrap();
    let length = whole.len();
    let changed = [0, 30, length / 3, length / 2, length - 20, length - 1].map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    });
    let cut = [0, 10, length / 2, length - 16, length - 1].map(|at| whole[..at].to_vec());
    for bytes in changed.into_iter().chain(cut) {
        fs::write(place.at("bad.age"), &bytes).unwrap();
        let error = verify(&place.at("bad.age"), &place.key()).unwrap_err();
        assert!(matches!(error, Error::Open { .. } | Error::Damaged { .. }), "{error}");
        place.restore("bad.age", "new", false).unwrap_err();
        let left: Vec<_> = fs::read_dir(place.at("new")).unwrap().flatten().collect();
        let names: Vec<_> = left.iter().map(fs::DirEntry::file_name).collect();
        assert_eq!(names, ["lock"]);
    }
    keygen(&place.at("other")).unwrap();
    let other = Opening::identities(&place.at("other")).unwrap();
    let refused = verify(&place.at("b.age"), &other).unwrap_err().to_string();
    assert!(refused.contains("encrypted for others"), "{refused}");
}

#[test]
fn a_workspace_that_is_there_is_put_aside_when_somebody_says_so() {
    let place = Place::new();
    place.create("b.age").unwrap();
    fs::write(place.data().join("token.key"), "newer").unwrap();
    let refused = place.restore("b.age", "data", false).unwrap_err().to_string();
    assert!(refused.contains("'team'") && refused.contains("--force"), "{refused}");
    assert_eq!(text(place.data().join("token.key")), "newer");
    let in_use = lock_of(&place.data());
    assert!(matches!(
        place.restore("b.age", "data", true),
        Err(Error::Folder(FolderError::InUse(_)))
    ));
    drop(in_use);

    let restored = place.restore("b.age", "data", true).unwrap();
    let aside = restored.aside.unwrap();
    assert_eq!(text(aside.join("token.key")), "newer");
    assert!(aside.join("atelier.db").exists());
    assert_eq!(text(place.data().join("token.key")), "token.key");
    // The data and what nodes have of their own stay.
    assert!(place.data().join("storage/workspaceblobstore/big").exists());
    assert!(place.data().join("nodes/n1/agent/attempts/1/log").exists());
    // What was put aside is not backed up again.
    let names = place.create("again.age").unwrap().manifest.files;
    assert_eq!(names.len(), 7, "{names:?}");
}

fn lock_of(data: &Path) -> fs::File {
    crate::daemon::lock_folder(data).unwrap().1
}

#[test]
fn a_restore_that_was_cut_short_goes_on_and_no_daemon_starts_before() {
    let place = Place::new();
    place.create("b.age").unwrap();
    let data = place.data();
    // As it is after the old key was put aside and the new one came.
    let aside = data.join("before-restore-x");
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("token.key"), "old").unwrap();
    fs::write(data.join(MARKER), "{\"aside\":\"before-restore-x\"}").unwrap();
    let refused = Folder::open(&data, &WorkspaceName::new("x").unwrap(), NOW).unwrap_err();
    assert!(refused.to_string().contains("atelier restore"), "{refused}");
    let restored = place.restore("b.age", "data", false).unwrap();
    assert_eq!(restored.aside, Some(aside.canonicalize().unwrap()));
    assert_eq!(text(aside.join("token.key")), "old");
    assert_eq!(text(data.join("token.key")), "token.key");
    Folder::open(&data, &WorkspaceName::new("x").unwrap(), NOW).unwrap();
}

#[test]
fn plain_text_that_a_killed_backup_left_is_removed() {
    let place = Place::new();
    let left = place.data().join(TEMPORARY);
    fs::create_dir(&left).unwrap();
    fs::write(left.join("atelier.db"), "plain").unwrap();
    let busy = scratch_lock(&place.data()).unwrap();
    sweep(&place.data());
    assert!(left.exists(), "one that is being made is left alone");
    assert!(matches!(place.create("b.age"), Err(Error::Busy(_))));
    drop(busy);
    drop(Folder::open(&place.data(), &WorkspaceName::new("x").unwrap(), NOW).unwrap());
    assert!(!left.exists());
}

#[test]
fn which_files_and_which_names() {
    for taken in ["token.key", "tls/ca.key", "nodes/n/token", "something/new", "workspace.json"] {
        assert_eq!(choose(&taken.split('/').collect::<Vec<_>>()), Choice::Take, "{taken}");
    }
    for left in [
        "storage/x",
        "lock",
        "endpoint",
        "atelier.db-wal",
        "nodes/n/agent/x",
        "nodes/n/agent.log",
        "backup.tmp/atelier.db",
        "before-restore-1/token.key",
        "tls/ca.pem.new",
    ] {
        assert_eq!(choose(&left.split('/').collect::<Vec<_>>()), Choice::Leave, "{left}");
    }
    let bad = ["", "/etc/passwd", "../x", "a/../../x", ".", "a/\0", "a//b", "storage/x", "lock"];
    assert!(!bad.iter().any(|name| may_be(name)));
    assert!(["tls/ca.pem", "atelier.db", "vault.key"].iter().all(|name| may_be(name)));
}

/// The log that a backup has is followed from entry to entry, and that a backup was restored is in it from then on.
#[test]
fn the_audit_log_is_looked_through_and_tells_of_a_restore() {
    let place = Place::new();
    let database = place.data().join("atelier.db");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let entries = |database: &Path| {
        let store = SqliteStore::open(database, true).unwrap();
        let query = AuditQuery { oldest_first: true, limit: 100, ..AuditQuery::default() };
        store.audited(&query).unwrap()
    };
    let store = SqliteStore::open(&database, true).unwrap();
    for number in 0..3 {
        let by = Actor::daemon(Principal::new("root").unwrap(), "test");
        let done = Change::done("job/a", &serde_json::json!({ "number": number }));
        runtime.block_on(store.audit(vec![by.changes(done)])).unwrap();
    }
    drop(store);
    place.create("whole.age").unwrap();
    let opened = verify(&place.at("whole.age"), &place.key()).unwrap();
    let (last, head) = opened.contents.audit.unwrap();
    assert_eq!(last, 3);

    place.restore("whole.age", "new", false).unwrap();
    let after = entries(&place.at("new/atelier.db"));
    assert_eq!((after.len(), &*after[3].action), (4, "backup/restore"));
    assert_eq!(after[3].previous, head);
    let what: serde_json::Value = serde_json::from_str(after[3].after.as_ref().unwrap()).unwrap();
    assert_eq!(what, serde_json::json!({ "after_entry": 3, "head": head.to_string() }));

    for (name, tampered, says) in [
        (
            "edited.age",
            "UPDATE audit SET principal = 'kim' WHERE seq = 2",
            "entry 2 is not as it was",
        ),
        ("cut.age", "DELETE FROM audit WHERE seq = 3", "entries 3 to 3 are missing"),
    ] {
        rusqlite::Connection::open(&database).unwrap().execute(tampered, []).unwrap();
        place.create(name).unwrap();
        let refused = verify(&place.at(name), &place.key()).unwrap_err().to_string();
        let both = ["its audit log is not as it was written", says];
        assert!(both.iter().all(|part| refused.contains(part)), "{refused}");
        rusqlite::Connection::open(&database)
            .unwrap()
            .execute("UPDATE audit SET principal = 'root' WHERE seq = 2", [])
            .unwrap();
    }
}
