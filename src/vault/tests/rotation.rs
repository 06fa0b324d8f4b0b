//! Rotations of both keys, and what they go past.

use super::super::rotate::BATCH;
use super::*;

#[tokio::test]
async fn a_new_key_takes_over_from_an_old_one() {
    let world = World::new();
    let vault = world.open("one", &[]);
    assert_eq!(rotated(&vault, true, 1).await.versions, 0);
    let mut expected: Vec<String> = Vec::new();
    for n in 0..BATCH + 7 {
        set(&vault, &format!("s{n:02}"), &format!("value {n}"), 1).await.unwrap();
        expected.push(format!("s{n:02}/1=value {n}"));
    }
    drop(vault);
    world.text("two").make(world.folder.at()).unwrap();
    let vault = world.open("two", &["one"]);
    assert_eq!(opened(&vault).await, expected, "both keys open");
    set(&vault, "new", "x", 2).await.unwrap();
    assert_eq!(vault.status().await.unwrap().keys.len(), 2);
    let sealed = |vault: &Vault| {
        let all = KeyId::stored("");
        let mut rows = vault.store.read(|c| secrets::older(c, &all, None, i64::MIN, 1000)).unwrap();
        rows.sort_by_key(|row| row.seq);
        rows
    };
    let before = sealed(&vault);
    assert_eq!(rotated(&vault, false, 3).await.versions, (BATCH + 7) as u64);
    assert_eq!(rotated(&vault, false, 3).await.versions, 0);
    // Of the rest nothing is touched.
    for (old, new) in before.iter().zip(sealed(&vault)) {
        assert_eq!(old.sealed.value, new.sealed.value);
        let is_new = old.name.key() == "new";
        assert_eq!(old.sealed.data_key == new.sealed.data_key, is_new);
    }
    let status = vault.status().await.unwrap();
    assert_eq!(status.keys.len(), 1);
    assert_eq!(Some(&status.keys[0].key), status.key.as_ref());
    drop(vault);
    let vault = world.open("two", &[]);
    expected.insert(0, "new/1=x".to_owned());
    assert_eq!(opened(&vault).await, expected);

    // Data keys too: nothing sealed stays the same.
    let before = sealed(&vault);
    assert_eq!(rotated(&vault, true, 9).await.versions, (BATCH + 8) as u64);
    for (old, new) in before.iter().zip(sealed(&vault)) {
        assert_ne!(old.sealed.value, new.sealed.value);
        assert_ne!(old.sealed.data_key, new.sealed.data_key);
    }
    assert_eq!(opened(&vault).await, expected);
}

/// What does not open, as `name/version`.
fn named(damaged: &[Damage]) -> Vec<String> {
    damaged.iter().map(|one| format!("{}/{}", one.name.key(), one.version)).collect()
}

#[tokio::test]
async fn a_rotation_goes_past_what_does_not_open_and_names_it() {
    let world = World::new();
    let vault = world.open("old", &[]);
    for n in 0..BATCH {
        set(&vault, &format!("s{n:02}"), "x", 1).await.unwrap();
    }
    set(&vault, "b", "y", 1).await.unwrap();
    keep(&vault, "data", b"key").await;
    set(&vault, "c", "z", 1).await.unwrap();
    swap(&vault, "c", "b").await;
    swap(&vault, "c", "datastore/data").await;
    drop(vault);
    world.text("new").make(world.folder.at()).unwrap();
    let vault = world.open("new", &["old"]);
    let kept = |name: &str| {
        let name: SealedName = name.parse().unwrap();
        vault.store.read(|conn| secrets::sealed(conn, &name, SecretVersion(1))).unwrap().unwrap()
    };
    let before = (kept("b"), kept("datastore/data"));
    let done = rotated(&vault, false, 2).await;
    assert_eq!(named(&done.damaged), ["b/1", "datastore/data/1"]);
    assert!(done.damaged[0].problem.contains("version 1 of secret 'b'"), "{:?}", done.damaged);
    assert_eq!((done.versions, done.done, done.total), (33, 33, 35));
    // It says so each time, and touches nothing of it.
    for data_keys in [false, true] {
        let again = rotated(&vault, data_keys, 9).await;
        assert_eq!(named(&again.damaged), ["b/1", "datastore/data/1"]);
        assert_eq!(again.versions, if data_keys { 33 } else { 0 });
    }
    assert_eq!((kept("b"), kept("datastore/data")), before);
    assert_eq!(vault.status().await.unwrap().keys.len(), 2);

    // It is set anew, and then the version may go, and with it the old key.
    let one = SecretVersion(1);
    let latest = vault.delete_version("b", one, vec![], ana()).await.unwrap_err().to_string();
    assert!(latest.contains("is its latest") && latest.contains("secret set b"), "{latest}");
    set(&vault, "b", "anew", 10).await.unwrap();
    let ben = caller("ben", Role::DataScientist);
    assert!(vault.delete_version("b", one, vec![], ben).await.is_err());
    assert!(vault.delete_version("none", one, vec![], ana()).await.is_err());
    let users = ["x", "y", "z", "w"].map(|name| JobName::new(name).unwrap()).to_vec();
    let used = vault.delete_version("b", one, users, ana()).await.unwrap_err().to_string();
    assert!(used.contains("jobs 'x', 'y', 'z' and 1 more"), "{used}");
    vault.delete_version("b", one, vec![], ana()).await.unwrap();
    let gone = vault.delete_version("b", one, vec![], ana()).await.unwrap_err().to_string();
    assert!(gone.contains("no version 1"), "{gone}");
    keep(&vault, "data", b"anew").await;
    assert_eq!(rotated(&vault, false, 13).await.damaged, []);
    drop(vault);
    let vault = world.open("new", &[]);
    assert!(opened(&vault).await.contains(&"b/2=anew".to_owned()));
    assert_eq!(set(&vault, "b", "next", 14).await.unwrap().version.0, 3);
}

#[tokio::test]
async fn a_rotation_goes_on_where_the_last_call_was() {
    let (world, toy) = (World::new(), Toy::start().await);
    let vault = open_at(&world, &toy);
    for n in 0..40 {
        set(&vault, &format!("s{n:02}"), &n.to_string(), 1).await.unwrap();
    }
    // Calls that end before all is done.
    toy.take(Duration::from_millis(30));
    let (mut versions, mut calls, mut done, mut cursor) = (0, 0, 0, None);
    loop {
        calls += 1;
        let slice = Duration::from_millis(150);
        let rotated = vault.rotate(true, cursor, at(10 * calls), slice).await.unwrap();
        assert_eq!((rotated.begun_at, rotated.was_begun), (Some(at(10)), calls > 1));
        versions += rotated.versions;
        assert_eq!((rotated.total, rotated.done), (40, versions), "{rotated:?}");
        // One that ends as the last is sealed has not seen yet that it was the last.
        assert!(rotated.done > done || rotated.next.is_none(), "{rotated:?}");
        done = rotated.done;
        // As it is sent and comes back.
        cursor = rotated.next.map(|next| next.to_string().parse::<Cursor>().unwrap());
        if cursor.is_none() {
            break;
        }
    }
    assert!(calls > 1, "{calls}");
    assert_eq!(versions, 40, "none twice");
    // The next is a new one.
    toy.take(Duration::ZERO);
    assert_eq!(rotated(&vault, true, 1000).await.versions, 40);

    // A call that is cut short has written what it had.
    toy.hang("s39");
    let begun = vault.store.write(|conn| secrets::begin_rotation(conn, at(2000))).await.unwrap();
    let (key, number) = (KeyId::stored("transit:transit/toy:v1"), Some(begun.number));
    let left = || vault.store.read(|conn| secrets::left(conn, &key, number));
    {
        let mut rotating =
            std::pin::pin!(vault.rotate(true, None, at(2000), Duration::from_secs(600)));
        let written = until("all others are on the disk", async || left().unwrap() == (40, 1));
        tokio::select! {
            rotated = &mut rotating => panic!("{rotated:?}"),
            () = written => {}
        }
    }
    // One that the server stops says how far it came.
    drop(vault);
    let vault = open_in_haste(&world, &toy);
    let stopped = vault.rotate(true, None, at(2001), Duration::from_secs(600)).await.unwrap_err();
    let said = stopped.to_string();
    for words in ["39 of 40", "s39", toy.address(), "goes on there"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    toy.recover();
    // What is left of it is done first, and it says that this was begun before. What was set since is done with it:
    // its data key may have been made right before.
    set(&vault, "new", "x", 2500).await.unwrap();
    let last = rotated(&vault, true, 3000).await;
    assert_eq!((last.versions, last.done), (2, 41));
    assert_eq!((last.begun_at, last.was_begun), (Some(at(2000)), true));
    let next = rotated(&vault, true, 3001).await;
    assert_eq!((next.versions, next.begun_at, next.was_begun), (41, Some(at(3001)), false));
    let mut expected: Vec<String> = (0..40).map(|n| format!("s{n:02}/1={n}")).collect();
    expected.push("new/1=x".to_owned());
    expected.sort();
    assert_eq!(opened(&vault).await, expected);
    // One that is cut short, and has nothing left as all is deleted, is not gone on with either.
    let begin = |conn: &Connection| secrets::begin_rotation(conn, at(3500));
    assert!(!vault.store.write(begin).await.unwrap().was_begun);
    for secret in vault.list("", 100).unwrap() {
        vault.delete(secret.name.as_str(), ana(), at(3600)).await.unwrap();
    }
    assert_eq!(rotated(&vault, true, 3700).await, Rotation::default());
    set(&vault, "again", "x", 3800).await.unwrap();
    let anew = rotated(&vault, true, 3900).await;
    assert_eq!((anew.versions, anew.was_begun), (1, false));
}

#[tokio::test]
async fn every_data_key_is_made_anew_whatever_the_clock_says() {
    let world = World::new();
    let vault = world.open("key", &[]);
    set(&vault, "early", "x", 1000).await.unwrap();
    set(&vault, "late", "y", 9000).await.unwrap();
    // As soon as it was set, earlier, and twice at the same time.
    for now in [9000, 500, 500] {
        assert_eq!(rotated(&vault, true, now).await.versions, 2, "{now}");
    }
    assert_eq!(opened(&vault).await, ["early/1=x", "late/1=y"]);
}

#[tokio::test]
async fn calls_of_a_rotation_do_not_meet_again_with_what_does_not_open() {
    let (world, toy) = (World::new(), Toy::start().await);
    let vault = open_at(&world, &toy);
    const DAMAGED: usize = 2 * AT_ONCE;
    for n in 0..DAMAGED {
        set(&vault, &format!("a{n:02}"), "x", 1).await.unwrap();
    }
    for n in 0..AT_ONCE {
        set(&vault, &format!("b{n:02}"), "y", 1).await.unwrap();
    }
    let damage = |conn: &Connection| {
        let damage = "UPDATE secret_versions SET (value, data_key) =
                      (SELECT value, data_key FROM secret_versions WHERE name = 'b00') WHERE name LIKE 'a%'";
        conn.execute(damage, []).map_err(|error| store::Error::sqlite("damage", error))
    };
    assert_eq!(vault.store.write(damage).await.unwrap(), DAMAGED);
    // What does not open uses up the time of the first calls.
    toy.take(Duration::from_millis(100));
    let (mut cursor, mut versions, mut met) = (None, 0, Vec::new());
    for call in 0.. {
        assert!(call < 500, "it does not get past what does not open");
        let slice = Duration::from_millis(40);
        let rotated = vault.rotate(true, cursor, at(10), slice).await.unwrap();
        versions += rotated.versions;
        met.extend(named(&rotated.damaged));
        cursor = rotated.next;
        if cursor.is_none() {
            assert_eq!((rotated.damaged_total, rotated.total), (16, 24));
            break;
        }
    }
    assert_eq!(versions, AT_ONCE as u64);
    met.sort();
    let expected: Vec<String> = (0..DAMAGED).map(|n| format!("a{n:02}/1")).collect();
    assert_eq!(met, expected, "each once");
}

#[tokio::test]
async fn a_rotation_goes_past_an_old_key_that_transit_has_no_more() {
    let (world, toy) = (World::new(), Toy::start().await);
    world.text("key").make(world.folder.at()).unwrap();
    let keys = Keys {
        source: "transit:transit/old".parse().unwrap(),
        is_given: true,
        old: vec![world.source("key")],
        transit: Some(toy.settings()),
        limits: Limits::default(),
    };
    let vault = Vault::open(world.folder.open(), keys, "workspace", world.folder.at()).unwrap();
    set(&vault, "lost", "x", 1).await.unwrap();
    drop(vault);
    let vault = open_at(&world, &toy);
    set(&vault, "kept", "y", 1).await.unwrap();
    toy.forget("/old");
    let done = rotated(&vault, true, 2).await;
    assert_eq!((named(&done.damaged), done.versions), (vec!["lost/1".to_owned()], 1));
    assert!(done.damaged[0].problem.contains("no such key"), "{:?}", done.damaged);
    // The key that all is to be sealed with is another matter.
    toy.forget("/toy");
    let error = vault.rotate(true, None, at(3), SOON).await.unwrap_err();
    assert!(matches!(error, Error::Transit(_)), "{error:?}");
}

#[tokio::test]
async fn a_rotation_goes_past_what_transit_does_not_open() {
    let (world, toy) = (World::new(), Toy::start().await);
    let vault = open_at(&world, &toy);
    for name in ["a", "b", "c"] {
        set(&vault, name, name, 1).await.unwrap();
    }
    swap(&vault, "c", "b").await;
    let done = rotated(&vault, true, 2).await;
    assert_eq!((named(&done.damaged), done.versions), (vec!["b/1".to_owned()], 2));
    assert!(done.damaged[0].problem.contains("authentication failed"), "{:?}", done.damaged);
}
