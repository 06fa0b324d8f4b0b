mod rotation;

use std::fs;

use atelier_core::access::Role;
use atelier_core::id::Principal;
use atelier_core::secret;

use super::transit::tests::{Toy, until};
use super::*;
use crate::store::secrets::SealedRow;
use crate::store::tests::{Folder, changed};

/// A store, and keys beside it.
struct World {
    folder: Folder,
    keys: tempfile::TempDir,
}

fn caller(who: &str, role: Role) -> Caller {
    Caller { principal: Principal::new(who).unwrap(), role }
}

fn ana() -> Caller {
    caller("ana", Role::DataScientist)
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

impl World {
    fn new() -> Self {
        Self { folder: Folder::new(), keys: tempfile::tempdir().unwrap() }
    }

    fn text(&self, name: &str) -> TextSource {
        TextSource::File(self.keys.path().join(name))
    }

    fn source(&self, name: &str) -> KeySource {
        KeySource::Text(self.text(name))
    }

    fn try_open(&self, key: &str, old: &[&str]) -> Result<Vault, Error> {
        let old = old.iter().map(|name| self.source(name)).collect();
        let keys = Keys {
            source: self.source(key),
            is_given: true,
            old,
            transit: None,
            limits: Limits::default(),
        };
        Vault::open(self.folder.open(), keys, "workspace", self.folder.at())
    }

    fn open(&self, key: &str, old: &[&str]) -> Vault {
        self.try_open(key, old).unwrap()
    }
}

async fn set(vault: &Vault, name: &str, value: &str, ms: i64) -> Result<Secret, Error> {
    let value = Zeroizing::new(value.as_bytes().to_vec());
    vault.set(SecretName::new(name).unwrap(), value, ana(), at(ms)).await
}

/// A rotation that takes as long as it needs.
async fn rotated(vault: &Vault, data_keys: bool, ms: i64) -> Rotation {
    let rotated = vault.rotate(data_keys, None, at(ms), Duration::from_secs(600)).await.unwrap();
    assert!(rotated.next.is_none(), "{rotated:?}");
    rotated
}

fn texts(values: &[Zeroizing<Vec<u8>>]) -> Vec<String> {
    values.iter().map(|value| String::from_utf8(value.to_vec()).unwrap()).collect()
}

fn job() -> JobName {
    JobName::new("job").unwrap()
}

/// The latest versions of these, or those that they name.
fn refs(names: &[&str]) -> Vec<SecretRef> {
    names.iter().map(|of| SecretRef::of(&format!("azureml:secrets/{of}")).unwrap()).collect()
}

/// Every version as `name/version=value`, opened with the keys that the vault has.
async fn opened(vault: &Vault) -> Vec<String> {
    let everything = KeyId::stored("");
    let rows =
        vault.store.read(|conn| secrets::older(conn, &everything, None, i64::MIN, 1000)).unwrap();
    let mut shown = Vec::new();
    for row in &rows {
        let value = vault.open_version(&row.name, row.version).await.unwrap();
        shown.push(format!(
            "{}/{}={}",
            row.name.key(),
            row.version,
            str::from_utf8(&value).unwrap()
        ));
    }
    shown.sort();
    shown
}

#[tokio::test]
async fn versions_count_up_across_restarts_and_deletions() {
    let world = World::new();
    let vault = world.open("key", &[]);
    assert!(!world.keys.path().join("key").exists(), "the key is made with the first secret");
    let first = set(&vault, "Db", "one", 1).await.unwrap();
    assert_eq!((first.name.as_str(), first.version.0), ("Db", 1));
    drop(vault);
    let vault = world.open("key", &[]);
    let second = set(&vault, "DB", "two", 2).await.unwrap();
    assert_eq!((second.name.as_str(), second.version.0), ("Db", 2));
    assert_eq!((second.created_at, second.updated_at), (at(1), at(2)));
    assert_eq!(opened(&vault).await, ["Db/1=one", "Db/2=two"]);
    assert_eq!(vault.get("db").unwrap(), second);

    let ben = caller("ben", Role::DataScientist);
    let other = vault.delete("db", ben.clone(), at(3)).await.unwrap_err();
    assert!(matches!(other, Error::Refused(Refusal::NotOwner { .. })), "{other:?}");
    let value = || Zeroizing::new(b"x".to_vec());
    let taken = vault.set("db".parse().unwrap(), value(), ben.clone(), at(3)).await.unwrap_err();
    assert!(matches!(taken, Error::Refused(Refusal::NotOwner { .. })), "{taken:?}");
    vault.delete("db", caller("root", Role::Admin), at(4)).await.unwrap();
    assert!(vault.get("db").is_err() && vault.list("", 10).unwrap().is_empty());
    assert!(vault.delete("db", ana(), at(5)).await.is_err());
    assert!(opened(&vault).await.is_empty());
    // Whoever sets it next has it, under a number that nothing was sealed for.
    let third = vault.set("db".parse().unwrap(), value(), ben, at(6)).await.unwrap();
    assert_eq!((third.version.0, third.owner.as_str(), third.created_at), (3, "ben", at(6)));
}

#[tokio::test]
async fn what_breaks_a_rule_is_not_kept() {
    let world = World::new();
    let vault = world.open("key", &[]);
    for (value, reason) in [(String::new(), "empty"), ("x".repeat(25 * 1024 + 1), "25600")] {
        let said = set(&vault, "a", &value, 1).await.unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
    }
    assert!(!world.keys.path().join("key").exists());
    set(&vault, "a", &"x".repeat(25 * 1024), 1).await.unwrap();
    for name in ["", "a_b", "nobody"] {
        let said = vault.get(name).unwrap_err().to_string();
        assert!(said.contains("there is no secret"), "{said}");
    }
}

#[tokio::test]
async fn lists_go_by_name_in_pages() {
    let world = World::new();
    let vault = world.open("key", &[]);
    for name in ["c", "B", "a", "d"] {
        set(&vault, name, "x", 1).await.unwrap();
    }
    vault.delete("c", ana(), at(2)).await.unwrap();
    let names = |after: &str, limit| -> Vec<String> {
        vault.list(after, limit).unwrap().iter().map(|s| s.name.to_string()).collect()
    };
    assert_eq!(names("", 10), ["a", "B", "d"]);
    assert_eq!(names("", 2), ["a", "B"]);
    assert_eq!(names("B", 2), ["d"]);
}

#[tokio::test]
async fn a_vault_with_secrets_does_not_open_without_their_key() {
    let world = World::new();
    let vault = world.open("key", &[]);
    set(&vault, "a", "x", 1).await.unwrap();
    let wanted = vault.status().await.unwrap().key.unwrap();
    drop(vault);
    // Another key in its place.
    world.text("other").make(world.folder.at()).unwrap();
    let said = world.try_open("other", &[]).err().unwrap().to_string();
    for word in [wanted.as_str(), "file:", "/other", "--vault-key", "--vault-old-key"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    // None, which is not made anew.
    let path = world.keys.path().join("key");
    fs::rename(&path, world.keys.path().join("away")).unwrap();
    let said = world.try_open("key", &[]).err().unwrap().to_string();
    assert!(said.contains(wanted.as_str()) && said.contains("backup"), "{said}");
    assert!(!path.exists());
    world.open("away", &[]);
    // A key that is wrong is refused also where there is no secret.
    let world = World::new();
    fs::write(world.keys.path().join("key"), "short").unwrap();
    assert!(matches!(world.try_open("key", &[]), Err(Error::Key(_))));
}

/// Puts what is kept of one secret in the place of another's.
async fn swap(vault: &Vault, from: &'static str, to: &'static str) {
    let swap = move |conn: &rusqlite::Connection| {
        let swap = "UPDATE secret_versions SET (value, data_key) =
                    (SELECT value, data_key FROM secret_versions WHERE name = ?1) WHERE name = ?2";
        conn.execute(swap, [from, to]).map_err(|e| store::Error::sqlite("swap", e))
    };
    assert_eq!(vault.store.write(swap).await.unwrap(), 1);
}

#[tokio::test]
async fn secrets_are_revealed_together_as_they_are_at_one_moment() {
    let world = World::new();
    let vault = world.open("key", &[]);
    set(&vault, "a", "0", 1).await.unwrap();
    set(&vault, "b", "0", 1).await.unwrap();
    let writing = tokio::spawn({
        let vault = vault.clone();
        async move {
            // Whoever looks at one moment sees both alike, or `a` one ahead.
            for n in 1..60 {
                set(&vault, "a", &n.to_string(), 2).await.unwrap();
                set(&vault, "b", &n.to_string(), 2).await.unwrap();
            }
        }
    });
    let (mut seen, job) = (0, job());
    while !writing.is_finished() {
        let values = vault.reveal_all(&job, refs(&["a", "b"]), &ana(), at(3)).await.unwrap();
        let numbers: Vec<u32> = texts(&values).iter().map(|text| text.parse().unwrap()).collect();
        assert!([numbers[1], numbers[1] + 1].contains(&numbers[0]), "{numbers:?}");
        seen += 1;
    }
    writing.await.unwrap();
    assert!(seen > 0);

    // One that is not to be had is named, and none is given.
    set(&vault, "c", "x", 4).await.unwrap();
    let ben = JobName::new("another").unwrap();
    let refused = vault.reveal_all(&ben, refs(&["c", "none", "a"]), &ana(), at(5)).await;
    assert!(matches!(refused, Err(NotRevealed::One { index: 1, .. })), "{refused:?}");
    assert_eq!(vault.uses(&SecretName::new("c").unwrap(), 10).unwrap(), []);
    set(&vault, "d", "y", 5).await.unwrap();
    swap(&vault, "c", "d").await;
    let refused = vault.reveal_all(&job, refs(&["c", "d"]), &ana(), at(6)).await.unwrap_err();
    assert!(matches!(refused, NotRevealed::One { index: 1, .. }), "{refused:?}");
    assert!(refused.to_string().contains("of secret 'd'"), "{refused}");
    assert_eq!(vault.reveal_all(&job, vec![], &ana(), at(7)).await.unwrap().len(), 0);
}

/// A vault whose key is in transit of that server; what was sealed with a file's key before still opens.
fn open_at(world: &World, toy: &Toy) -> Vault {
    open_within(world, toy, Limits::default())
}

/// The same, which does not wait long.
fn open_in_haste(world: &World, toy: &Toy) -> Vault {
    open_within(world, toy, SHORT)
}

const SHORT: Limits = Limits { answer: Duration::from_secs(1), all: Duration::from_secs(2) };

fn open_within(world: &World, toy: &Toy, limits: Limits) -> Vault {
    let source = "transit:transit/toy".parse().unwrap();
    world.text("key").make(world.folder.at()).unwrap();
    let old = vec![world.source("key"), "transit:transit/old".parse().unwrap()];
    let keys = Keys { source, is_given: true, old, transit: Some(toy.settings()), limits };
    Vault::open(world.folder.open(), keys, "workspace", world.folder.at()).unwrap()
}

/// More than anything takes that waits for no other.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_attempt_whose_secret_hangs_in_transit_delays_no_other() {
    let (world, toy) = (World::new(), Toy::start().await);
    let vault = world.open("key", &[]);
    set(&vault, "local", "here", 1).await.unwrap();
    drop(vault);
    let vault = open_at(&world, &toy);
    for name in ["stuck", "api"] {
        set(&vault, name, name, 1).await.unwrap();
    }
    toy.hang("stuck");
    let hanging = tokio::spawn({
        let vault = vault.clone();
        async move { vault.reveal_all(&job(), refs(&["api", "stuck"]), &ana(), at(2)).await }
    });
    until("the server has the request", async || toy.asked("stuck") > 1).await;
    let (job, who) = (job(), ana());
    for names in [&["local"][..], &["api"], &["api", "local", "api"]] {
        let values = vault.reveal_all(&job, refs(names), &who, at(3));
        let values = tokio::time::timeout(SOON, values).await.unwrap().unwrap();
        let expected = names.iter().map(|&name| if name == "local" { "here" } else { name });
        assert_eq!(texts(&values), expected.collect::<Vec<_>>());
    }
    tokio::time::timeout(SOON, set(&vault, "api", "two", 4)).await.unwrap().unwrap();
    assert!(!hanging.is_finished());
    hanging.abort();
    assert!(hanging.await.unwrap_err().is_cancelled());
    drop(vault);
    // It says in the end which secret it is, where the server is, and what to do.
    let vault = open_in_haste(&world, &toy);
    let refused = vault.reveal_all(&job, refs(&["api", "stuck"]), &who, at(4)).await.unwrap_err();
    assert!(matches!(refused, NotRevealed::One { index: 1, .. }), "{refused:?}");
    let said = refused.to_string();
    for words in ["version 1 of secret 'stuck'", toy.address(), "see that it runs"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    toy.recover();
    let values = vault.reveal_all(&job, refs(&["stuck"]), &who, at(5)).await.unwrap();
    assert_eq!(texts(&values), ["stuck"]);
}

#[tokio::test]
async fn the_secrets_of_an_attempt_are_opened_some_at_a_time() {
    let (world, toy) = (World::new(), Toy::start().await);
    let vault = open_at(&world, &toy);
    let names: Vec<String> = (0..3 * AT_ONCE).map(|n| format!("s{n}")).collect();
    for name in &names {
        set(&vault, name, name, 1).await.unwrap();
    }
    toy.take(Duration::from_millis(50));
    toy.most_at_once();
    let wanted = names.iter().map(String::as_str).collect::<Vec<_>>();
    let values = vault.reveal_all(&job(), refs(&wanted), &ana(), at(2)).await.unwrap();
    assert_eq!(texts(&values), names);
    assert_eq!(toy.most_at_once(), AT_ONCE);
}

#[tokio::test]
async fn secrets_that_are_too_long_together_are_not_opened() {
    let (world, toy) = (World::new(), Toy::start().await);
    let vault = open_at(&world, &toy);
    let value = "x".repeat(25 * 1024);
    set(&vault, "big", &value, 1).await.unwrap();
    set(&vault, "rest", &value[..MOST - 40 * value.len()], 1).await.unwrap();
    let named = |more: &'static str| [&["big"; 40][..], &[more]].concat();
    let refused = vault.reveal_all(&job(), refs(&named("big")), &ana(), at(2)).await.unwrap_err();
    assert!(matches!(refused, NotRevealed::TooMuch), "{refused:?}");
    assert!(refused.to_string().contains("1024 KiB"), "{refused}");
    assert_eq!(toy.asked("decrypt"), 0);
    assert_eq!(vault.uses(&SecretName::new("big").unwrap(), 10).unwrap(), []);
    // A mebibyte is not too much.
    let values = vault.reveal_all(&job(), refs(&named("rest")), &ana(), at(3)).await.unwrap();
    assert_eq!(values.iter().map(|value| value.len()).sum::<usize>(), MOST);
}

#[tokio::test]
async fn credentials_that_somebody_else_was_faster_with_are_not_kept() {
    let world = World::new();
    let vault = world.open("key", &[]);
    let name = of_datastore("data");
    let late = vault.sealer(name.clone()).await.unwrap();
    assert_eq!(keep(&vault, "data", b"first").await.0, 1);
    let by = Principal::new("root").unwrap();
    let kept = changed(&vault.store, move |c| Ok(late.keep(c, b"late", &by, at(6)).unwrap()));
    assert_eq!(kept.await, None);
    assert_eq!(vault.open_version(&name, SecretVersion(1)).await.unwrap().as_slice(), b"first");
}

#[tokio::test]
async fn what_is_deleted_or_sealed_anew_leaves_nothing_in_the_file() {
    let world = World::new();
    let vault = world.open("key", &[]);
    for name in ["a", "b"] {
        set(&vault, name, &"x".repeat(9000), 1).await.unwrap();
    }
    let all = KeyId::stored("");
    let rows = vault.store.read(|c| secrets::older(c, &all, None, i64::MIN, 10)).unwrap();
    let file = || {
        vault.store.checkpoint().unwrap();
        let mut bytes = fs::read(&world.folder.path).unwrap();
        bytes.extend(fs::read(world.folder.at().join("atelier.db-wal")).unwrap_or_default());
        bytes
    };
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|found| found == part);
    let parts =
        |row: &SealedRow| [row.sealed.data_key.clone(), row.sealed.value[8000..8032].to_vec()];
    let before = file();
    assert!(rows.iter().flat_map(parts).all(|part| holds(&before, &part)));
    vault.delete("a", ana(), at(2)).await.unwrap();
    rotated(&vault, true, 3).await;
    let after = file();
    for part in rows.iter().flat_map(parts) {
        assert!(!holds(&after, &part));
    }
}

async fn keep(vault: &Vault, datastore: &str, value: &'static [u8]) -> SecretVersion {
    let sealer = vault.sealer(of_datastore(datastore)).await.unwrap();
    let by = Principal::new("root").unwrap();
    let kept = changed(&vault.store, move |c| Ok(sealer.keep(c, value, &by, at(5)).unwrap()));
    kept.await.unwrap()
}

fn of_datastore(name: &str) -> SealedName {
    SealedName::Datastore(name.parse().unwrap())
}

#[tokio::test]
async fn credentials_are_kept_beside_secrets_and_are_none() {
    let world = World::new();
    let vault = world.open("key", &[]);
    set(&vault, "Db", "one", 1).await.unwrap();
    let name = of_datastore("data");
    assert_eq!(keep(&vault, "data", b"key-1").await.0, 1);
    assert_eq!(vault.open_version(&name, SecretVersion(1)).await.unwrap().as_slice(), b"key-1");
    // Each takes the place of the one before.
    assert_eq!(keep(&vault, "data", b"key-2").await.0, 2);
    assert!(vault.open_version(&name, SecretVersion(1)).await.is_err());
    assert_eq!(opened(&vault).await, ["Db/1=one", "datastore/data/2=key-2"]);
    // Nobody's secret: neither listed, nor shown, nor deleted.
    assert_eq!(vault.list("", 10).unwrap().len(), 1);
    assert!(vault.get("datastore/data").is_err());
    assert!(vault.delete("datastore/data", caller("root", Role::Admin), at(6)).await.is_err());
    drop(vault);

    // They move to a new key as all do, and open under the old one until then.
    world.text("new").make(world.folder.at()).unwrap();
    let vault = world.open("new", &["key"]);
    assert_eq!(vault.open_version(&name, SecretVersion(2)).await.unwrap().as_slice(), b"key-2");
    assert_eq!(rotated(&vault, true, 10).await.versions, 2);
    drop(vault);
    let vault = world.open("new", &[]);
    assert_eq!(vault.open_version(&name, SecretVersion(2)).await.unwrap().as_slice(), b"key-2");
    let (gone, by) = (name.clone(), Principal::new("root").unwrap());
    changed(&vault.store, move |c| secrets::forget(c, &gone, None, &by, at(11))).await;
    assert_eq!(opened(&vault).await, ["Db/1=one"]);
    // A version is never given twice.
    assert_eq!(keep(&vault, "data", b"key-3").await.0, 3);
}

#[tokio::test]
async fn a_value_is_given_to_whom_it_was_granted_and_that_is_noted() {
    let world = World::new();
    let vault = world.open("old", &[]);
    set(&vault, "Db", "one", 1).await.unwrap();
    set(&vault, "Db", "two", 2).await.unwrap();
    drop(vault);
    // Sealed with a key that is not the newest any more.
    world.text("new").make(world.folder.at()).unwrap();
    let vault = world.open("new", &["old"]);
    let (ben, job) = (caller("ben", Role::DataScientist), JobName::new("job").unwrap());
    let of = |text: &str| SecretRef::of(&format!("azureml:secrets/{text}")).unwrap();
    let value = async |what: &str, who: &Caller, ms: i64| {
        let values = vault.reveal_all(&job, vec![of(what)], who, at(ms)).await;
        values.map(|values| texts(&values).remove(0)).map_err(|e| e.to_string())
    };
    let to_ben = || Some(Principal::new("ben").unwrap());
    let pinned = vault.pin(&of("db?as=file"), &ana()).unwrap();
    assert_eq!(pinned.to_string(), "azureml:secrets/Db:2?as=file");
    assert!(vault.pin(&of("db"), &ben).unwrap_err().to_string().contains("it is ana's"));
    assert!(value("db:1", &ben, 3).await.is_err());
    let by_ben = vault.grant("db", None, ben.clone(), at(3)).await;
    assert!(by_ben.unwrap_err().to_string().contains("it is ana's"));
    for _ in 0..2 {
        vault.grant("db", to_ben(), ana(), at(4)).await.unwrap();
    }
    assert_eq!(value("db:1", &ben, 5).await.unwrap(), "one");
    assert_eq!(value("db", &ana(), 6).await.unwrap(), "two");
    assert_eq!(value("db:1", &ben, 7).await.unwrap(), "one");
    assert!(value("db:9", &ben, 8).await.unwrap_err().contains("no version 9"));

    let name = SecretName::new("DB").unwrap();
    let grants = vault.grants(&name).unwrap();
    assert_eq!(grants, [secret::Grant { to: to_ben(), by: ana().principal, at: at(4) }]);
    let uses = vault.uses(&name, 10).unwrap();
    let uses: Vec<_> = uses.iter().map(|one| (one.version.0, one.by.as_str(), one.at)).collect();
    assert_eq!(uses, [(1, "ben", at(7)), (2, "ana", at(6))]);

    vault.revoke("db", to_ben(), ana()).await.unwrap();
    assert!(value("db:1", &ben, 9).await.is_err());
    let again = vault.revoke("db", to_ben(), ana()).await.unwrap_err().to_string();
    assert!(again.contains("not granted to ben"), "{again}");
    vault.grant("db", None, ana(), at(9)).await.unwrap();
    assert_eq!(value("db:2", &ben, 10).await.unwrap(), "two");
    // What was granted of one is not granted of the next of the name.
    vault.delete("db", ana(), at(11)).await.unwrap();
    assert!(value("db:2", &ana(), 12).await.unwrap_err().contains("no secret 'db'"));
    set(&vault, "db", "three", 13).await.unwrap();
    assert!(value("db", &ben, 14).await.is_err());
    assert!(vault.grants(&name).unwrap().is_empty());
}

#[tokio::test]
async fn bao_takes_over_from_a_file_and_hands_back() {
    let (world, bao) = (World::new(), transit::tests::Bao::start());
    bao.ask("POST", "transit/keys/atelier", serde_json::json!({}));
    let there: KeySource = "transit:transit/atelier".parse().unwrap();
    let open = |source: &KeySource, old: &[&KeySource], transit: bool| {
        let old = old.iter().map(|&old| old.clone()).collect();
        let transit = transit.then(|| bao.settings());
        let keys = Keys {
            source: source.clone(),
            is_given: true,
            old,
            transit,
            limits: Limits::default(),
        };
        Vault::open(world.folder.open(), keys, "workspace", world.folder.at())
    };
    let here = world.source("key");
    let vault = open(&here, &[], false).unwrap();
    set(&vault, "Db", "one", 1).await.unwrap();
    keep(&vault, "data", b"key-1").await;
    drop(vault);
    // Whoever has not the old key does not get in.
    let said = open(&there, &[], true).err().unwrap().to_string();
    assert!(said.contains("--vault-old-key") && said.contains("transit:transit/atelier"), "{said}");
    let said = open(&there, &[], false).err().unwrap().to_string();
    assert!(said.contains("--vault-transit-address"), "{said}");

    let vault = open(&there, &[&here], true).unwrap();
    let expected = |of: &[&str]| of.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
    assert_eq!(opened(&vault).await, expected(&["Db/1=one", "datastore/data/1=key-1"]));
    set(&vault, "Db", "two", 2).await.unwrap();
    let done = rotated(&vault, false, 3).await;
    assert_eq!((done.key.unwrap().as_str(), done.versions), ("transit:transit/atelier:v1", 2));
    let status = vault.status().await.unwrap();
    assert_eq!((status.keys.len(), status.keys[0].versions, &status.problem), (1, 3, &None));
    drop(vault);

    // A new version of the key takes over, and the old one may go.
    let vault = open(&there, &[], true).unwrap();
    bao.ask("POST", "transit/keys/atelier/rotate", serde_json::json!({}));
    set(&vault, "Db", "three", 4).await.unwrap();
    assert_eq!(vault.status().await.unwrap().keys.len(), 2);
    assert_eq!(rotated(&vault, false, 5).await.versions, 3);
    assert_eq!(rotated(&vault, false, 5).await.versions, 0);
    let least = serde_json::json!({"min_decryption_version": 2});
    bao.ask("POST", "transit/keys/atelier/config", least);
    let all = ["Db/1=one", "Db/2=two", "Db/3=three", "datastore/data/1=key-1"];
    assert_eq!(opened(&vault).await, expected(&all));
    assert_eq!(rotated(&vault, true, 6).await.versions, 4);
    // What was put in another's place does not open.
    let swap = |conn: &rusqlite::Connection| {
        let swap = "UPDATE secret_versions SET (value, data_key) =
                    (SELECT value, data_key FROM secret_versions WHERE version = 1 AND name = 'db')
                    WHERE version = 2";
        conn.execute_batch(swap).map_err(|e| store::Error::sqlite("swap", e))
    };
    let name = SealedName::Secret("db".parse().unwrap());
    let was = vault.store.read(|conn| secrets::sealed(conn, &name, SecretVersion(2))).unwrap();
    vault.store.write(swap).await.unwrap();
    let said = vault.open_version(&name, SecretVersion(2)).await.unwrap_err().to_string();
    assert!(said.contains("version 2 of secret 'db'") && said.contains("authentication"), "{said}");
    let Sealed { value, data_key, .. } = was.unwrap();
    let back = move |conn: &rusqlite::Connection| {
        conn.execute(
            "UPDATE secret_versions SET value = ?1, data_key = ?2 WHERE version = 2",
            rusqlite::params![value, data_key],
        )
        .map_err(|e| store::Error::sqlite("put back", e))
    };
    vault.store.write(back).await.unwrap();
    drop(vault);

    // Back to a file.
    let last = world.source("last");
    world.text("last").make(world.folder.at()).unwrap();
    let vault = open(&last, &[&there], true).unwrap();
    assert_eq!(opened(&vault).await, expected(&all));
    assert_eq!(rotated(&vault, false, 7).await.versions, 4);
    drop(vault);
    let vault = open(&last, &[], false).unwrap();
    assert_eq!(opened(&vault).await, expected(&all));
}
