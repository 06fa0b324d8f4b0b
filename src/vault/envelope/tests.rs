use super::*;

fn key(byte: u8) -> Key {
    Key::new(Zeroizing::new([byte; KEY_LEN]))
}

fn named(text: &str) -> SealedName {
    text.parse().unwrap()
}

fn place<'a>(workspace: &'a str, name: &'a SealedName, version: u32) -> Place<'a> {
    Place { workspace, name, version: SecretVersion(version) }
}

/// Sealed with a new data key.
fn seal_by(at: Place<'_>, value: &[u8], by: &Key) -> Sealed {
    seal(at, value, &wrap(at, new_data_key().unwrap(), by).unwrap()).unwrap()
}

fn open_by(at: Place<'_>, sealed: &Sealed, by: &Key) -> Result<Zeroizing<Vec<u8>>, Error> {
    open(at, sealed, &unwrap(at, sealed, by)?)
}

#[test]
fn what_is_sealed_is_opened_and_never_looks_the_same() {
    let name = named("db");
    let at = place("w", &name, 1);
    for value in [&b"x"[..], &[7; 25 << 10]] {
        let one = seal_by(at, value, &key(1));
        let two = seal_by(at, value, &key(1));
        assert_eq!(open_by(at, &one, &key(1)).unwrap().as_slice(), value);
        assert!(one.value != two.value && one.data_key != two.data_key);
        assert_eq!(one.value.len(), 1 + NONCE_LEN + value.len() + 16);
        assert!(!one.value.windows(value.len().max(8)).any(|part| part == value));
    }
}

#[test]
fn it_opens_nowhere_but_in_its_place() {
    let (db, other) = (named("db"), named("db2"));
    let at = place("w", &db, 1);
    let sealed = seal_by(at, b"value", &key(1));
    let upper = named("DB");
    assert!(open_by(place("w", &upper, 1), &sealed, &key(1)).is_ok(), "names have no case");
    for wrong in [place("v", &db, 1), place("w", &other, 1), place("w", &db, 2)] {
        assert!(matches!(open_by(wrong, &sealed, &key(1)), Err(Error::Damaged { .. })));
    }
    assert!(matches!(open_by(at, &sealed, &key(2)), Err(Error::Damaged { .. })));
    // A data key from elsewhere opens nothing, nor does one that is said to be under another key.
    let next = seal_by(place("w", &db, 2), b"value", &key(1));
    let mixed = Sealed { data_key: next.data_key, ..sealed.clone() };
    assert!(open_by(at, &mixed, &key(1)).is_err());
    let renamed = Sealed { key: key(2).id().clone(), ..sealed.clone() };
    assert!(open_by(at, &renamed, &key(1)).is_err());
}

#[test]
fn a_change_of_any_byte_is_noticed() {
    let name = named("db");
    let at = place("w", &name, 1);
    let sealed = seal_by(at, b"value", &key(1));
    for index in 0..sealed.value.len() {
        let mut changed = sealed.clone();
        changed.value[index] ^= 1;
        assert!(open_by(at, &changed, &key(1)).is_err(), "byte {index} of the value");
        changed = sealed.clone();
        changed.value.truncate(index);
        assert!(open_by(at, &changed, &key(1)).is_err(), "cut at {index}");
    }
    for index in 0..sealed.data_key.len() {
        let mut changed = sealed.clone();
        changed.data_key[index] ^= 1;
        assert!(open_by(at, &changed, &key(1)).is_err(), "byte {index} of the data key");
        changed = sealed.clone();
        changed.data_key.truncate(index);
        assert!(open_by(at, &changed, &key(1)).is_err(), "data key cut at {index}");
    }
}

#[test]
fn another_key_takes_the_place_of_the_first() {
    let name = named("db");
    let at = place("w", &name, 1);
    let sealed = seal_by(at, b"value", &key(1));
    let plain = unwrap(at, &sealed, &key(1)).unwrap();
    let DataKey { kept, key: id, .. } = wrap(at, plain, &key(2)).unwrap();
    let moved = Sealed { value: sealed.value.clone(), data_key: kept, key: id };
    assert_eq!(open_by(at, &moved, &key(2)).unwrap().as_slice(), b"value");
    assert!(open_by(at, &moved, &key(1)).is_err());
    assert!(unwrap(at, &sealed, &key(3)).is_err());
}

#[test]
fn no_two_places_are_bound_alike() {
    let (ab, a, b) = (named("ab"), named("a"), named("b"));
    let all = [place("", &ab, 1), place("a", &b, 1), place("ab", &a, 1), place("a", &b, 256)];
    let bound: std::collections::BTreeSet<Vec<u8>> =
        all.iter().flat_map(|p| [p.of_value(), p.of_key(key(1).id()), p.of_transit()]).collect();
    assert_eq!(bound.len(), 3 * all.len());
}
