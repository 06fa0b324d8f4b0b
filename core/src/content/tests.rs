use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// Bytes that do not repeat, from a seed (xorshift).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// A file as content and objects, by object digest.
fn store_file(data: &[u8]) -> (FileContent, HashMap<Digest, Vec<u8>>) {
    let mut objects = HashMap::new();
    let mut chunks = Vec::new();
    let mut rest = data;
    while let Some(length) = cut(rest, true) {
        let length = if data.len() <= MAX_CHUNK { data.len() } else { length };
        let object = encode_chunk(&rest[..length]).unwrap();
        chunks.push(Chunk { digest: object.digest, length: length as u64 });
        objects.insert(object.digest, object.bytes);
        rest = &rest[length..];
    }
    let (content, lists) = content_of(&chunks);
    objects.extend(lists.into_iter().map(|object| (object.digest, object.bytes)));
    (content, objects)
}

fn load(digest: Digest, objects: &HashMap<Digest, Vec<u8>>, out: &mut Vec<u8>) {
    let bytes = &objects[&digest];
    assert_eq!(Digest::of(bytes), digest);
    match decode(bytes).unwrap() {
        Object::Chunk(data) => out.extend_from_slice(data),
        Object::List(list) => {
            let before = out.len();
            for item in &list.items {
                load(item.digest, objects, out);
            }
            assert_eq!((out.len() - before) as u64, list.length());
        }
        other => panic!("not of a file: {other:?}"),
    }
}

fn load_file(content: &FileContent, objects: &HashMap<Digest, Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::new();
    match content {
        FileContent::Inline(bytes) => out.extend_from_slice(bytes),
        FileContent::Chunk(digest) | FileContent::List(digest) => load(*digest, objects, &mut out),
    }
    out
}

#[test]
fn files_come_back() {
    for length in [0, 1, MAX_INLINE, MAX_CHUNK, MAX_CHUNK + 1, 5 * MAX_CHUNK + 17] {
        let data = noise(7, length);
        let (content, objects) = store_file(&data);
        assert_eq!(matches!(content, FileContent::List(_)), length > MAX_CHUNK, "{length}");
        assert_eq!(load_file(&content, &objects), data, "{length}");
    }
}

#[test]
fn cuts_do_not_depend_on_how_the_buffer_is_filled() {
    let data = noise(3, 4 * MAX_CHUNK);
    let whole: Vec<usize> = {
        let (mut rest, mut cuts) = (&data[..], Vec::new());
        while let Some(length) = cut(rest, true) {
            cuts.push(length);
            rest = &rest[length..];
        }
        cuts
    };
    let (mut start, mut end, mut cuts) = (0, 0, Vec::new());
    while start < data.len() {
        match cut(&data[start..end], end == data.len()) {
            Some(length) => {
                cuts.push(length);
                start += length;
            }
            None => end = (end + 77_777).min(data.len()),
        }
    }
    assert_eq!(cuts, whole);
    assert!(whole.len() > 8, "{whole:?}");
    assert!(whole[..whole.len() - 1].iter().all(|&n| (MIN_CHUNK..=MAX_CHUNK).contains(&n)));
}

/// The format is what stored data is written in: a change of it must be seen.
#[test]
fn the_encoding_is_pinned() {
    assert_eq!(
        encode_chunk(b"hello").unwrap().digest.to_string(),
        Digest::of(b"\x01hello").to_string()
    );
    let directory = Directory::new(vec![
        entry("run.sh", file(true, b"#!".to_vec())),
        entry("sub", EntryKind::Directory(Digest::of(b"x"))),
        entry("link", EntryKind::Symlink(LinkTarget::new(b"gone").unwrap())),
    ])
    .unwrap();
    let mut expected = b"\x03\x03\x04link\x08\x04gone\x06run.sh\x01\x02#!\x03sub\x06".to_vec();
    expected.extend_from_slice(Digest::of(b"x").as_bytes());
    assert_eq!(directory.encode().unwrap().objects[0].bytes, expected);
    let data = noise(1, 3 * MAX_CHUNK);
    let (content, _) = store_file(&data);
    let FileContent::List(digest) = content else { panic!("{content:?}") };
    assert_eq!(
        digest.to_string(),
        "b604dfd43e5a1120c1ef77d498680c09cd5ff94cd4b9fbca34b94e948e2d94da"
    );
}

fn entry(name: &str, kind: EntryKind) -> Entry {
    Entry { name: EntryName::new(name.as_bytes()).unwrap(), kind }
}

fn file(executable: bool, bytes: Vec<u8>) -> EntryKind {
    EntryKind::File { executable, size: bytes.len() as u64, content: FileContent::Inline(bytes) }
}

fn chunks(seed: u64, count: usize) -> Vec<Chunk> {
    (0..count as u64)
        .map(|i| Chunk { digest: Digest::of(&noise(seed << 32 | (i * 2), 16)), length: 256 * 1024 })
        .collect()
}

/// As in a file of 5 GB: one chunk differs.
#[test]
fn one_chunk_of_a_huge_file_changes_few_small_lists() {
    let before = chunks(1, 20_000);
    let (_, old) = content_of(&before);
    let old: HashSet<Digest> = old.iter().map(|object| object.digest).collect();
    for at in [0, 1, 7_777, 19_999] {
        let mut after = before.clone();
        after[at].digest = Digest::of(b"edited");
        let (_, new) = content_of(&after);
        let sent: usize =
            new.iter().filter(|o| !old.contains(&o.digest)).map(|o| o.bytes.len()).sum();
        assert!(sent < 64 * 1024, "{sent} bytes of lists for an edit in chunk {at}");
        assert!(new.iter().all(|object| object.bytes.len() <= MAX_OBJECT));
    }
}

/// A hole of gigabytes: every chunk is the same, no digest ends a group.
#[test]
fn equal_chunks_are_grouped_too() {
    let zero = Chunk { digest: Digest::from_bytes([0xff; 32]), length: MAX_CHUNK as u64 };
    let (content, objects) = content_of(&vec![zero; 5000]);
    let FileContent::List(root) = content else { panic!("{content:?}") };
    let by_digest: HashMap<_, _> = objects.iter().map(|o| (o.digest, &o.bytes)).collect();
    let Object::List(list) = decode(by_digest[&root]).unwrap() else { panic!() };
    assert_eq!(list.length(), 5000 * MAX_CHUNK as u64);
    assert!(list.level >= 1);
    // And where each digest would end a group, lists still get shorter from level to level.
    let zero = Chunk { digest: Digest::from_bytes([0; 32]), length: MAX_CHUNK as u64 };
    let (_, objects) = content_of(&vec![zero; 5000]);
    assert!(decode(&objects.last().unwrap().bytes).is_ok());
}

#[test]
fn an_edit_in_a_large_directory_changes_one_part() {
    let entries: Vec<Entry> = (0..50_000)
        .map(|i| entry(&format!("image-{i:06}.png"), file(false, vec![1; 40])))
        .collect();
    let before = Directory::new(entries.clone()).unwrap().encode().unwrap();
    let old: HashSet<Digest> = before.objects.iter().map(|object| object.digest).collect();
    let Object::Parts(parts) = decode(&before.objects.last().unwrap().bytes).unwrap() else {
        panic!("not cut")
    };
    assert_eq!(parts.len() + 1, before.objects.len());
    let whole =
        join(before.objects[..parts.len()].iter().map(
            |object| match decode(&object.bytes).unwrap() {
                Object::Directory(part) => part,
                other => panic!("{other:?}"),
            },
        ))
        .unwrap();
    assert_eq!(whole.entries(), entries);

    let mut edited = entries.clone();
    edited[33_333].kind = file(false, vec![2; 40]);
    let mut longer = entries.clone();
    longer.insert(4, entry("image-000003b.png", file(false, vec![3; 40])));
    let shorter = entries[1..].to_vec();
    for changed in [edited, longer, shorter] {
        let after = Directory::new(changed).unwrap().encode().unwrap();
        assert_eq!(after.digest, after.objects.last().unwrap().digest);
        let new: Vec<_> = after.objects.iter().filter(|o| !old.contains(&o.digest)).collect();
        assert!(new.len() <= 3, "{} objects", new.len());
        let sent: usize = new.iter().map(|object| object.bytes.len()).sum();
        assert!(sent < 128 * 1024, "{sent} bytes");
    }
}

#[test]
fn objects_of_names_each_child_once() {
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    let big = MAX_CHUNK as u64 + 1;
    let directory = Directory::new(vec![
        entry("a", EntryKind::Directory(a)),
        entry("b", EntryKind::File { executable: false, size: 5, content: FileContent::Chunk(b) }),
        entry("c", EntryKind::File { executable: true, size: big, content: FileContent::List(a) }),
        entry("d", file(false, vec![])),
    ])
    .unwrap();
    let mut expected = vec![a, b];
    expected.sort();
    assert_eq!(objects_of(&directory.encode().unwrap().objects[0].bytes).unwrap(), expected);
    assert_eq!(objects_of(&encode_chunk(b"\x03\x01").unwrap().bytes).unwrap(), []);
}

#[test]
fn bad_objects_are_refused() {
    let name = |bytes: &[u8]| {
        let mut object = vec![3, 1, bytes.len() as u8];
        object.extend_from_slice(bytes);
        object.extend_from_slice(&[0, 0]);
        decode(&object).map(|_| ())
    };
    assert_eq!(name(b"ok"), Ok(()));
    assert!(name(b"").is_err());
    for bad in [&b"."[..], b"..", b"a/b", b"/", b"a\0b"] {
        assert!(matches!(name(bad), Err(Error::Name(_))), "{bad:?}");
    }
    let two = |a: u8, b: u8| decode(&[3, 2, 1, a, 0, 0, 1, b, 0, 0]).map(|_| ());
    assert_eq!(two(b'a', b'b'), Ok(()));
    assert_eq!(two(b'b', b'a'), Err(Error::Order("a".into())));
    assert_eq!(two(b'a', b'a'), Err(Error::Order("a".into())));
    assert_eq!(decode(&[]), Err(Error::Truncated));
    assert_eq!(decode(&[9]), Err(Error::Kind(9)));
    assert_eq!(decode(&[3, 0, 0]), Err(Error::Trailing(1)));
    // A count in two bytes that fits one; and one that nothing could hold.
    assert_eq!(decode(&[3, 0x80, 0x00]), Err(Error::Number));
    assert_eq!(decode(&[3, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Error::Truncated));
    assert_eq!(decode(&[2, 0, 0]), Err(Error::Size));
    assert_eq!(decode(&[4, 0]), Err(Error::Size));
    assert_eq!(decode(&vec![1; MAX_OBJECT + 1]), Err(Error::TooLarge(MAX_OBJECT + 1)));
    assert!(matches!(decode(b"\x03\x01\x01l\x08\x04/etc"), Err(Error::Target(_))));
    assert_eq!(encode_chunk(&vec![0; MAX_CHUNK + 1]), Err(Error::TooLarge(MAX_CHUNK + 1)));
    let sizes = [(0, FileContent::Inline(vec![1])), (0, FileContent::Chunk(Digest::of(b"")))];
    for (size, content) in sizes {
        let kind = EntryKind::File { executable: false, size, content };
        assert_eq!(Directory::new(vec![entry("f", kind)]), Err(Error::Size));
    }
}

#[test]
fn manifests_read_back_and_newer_ones_are_refused() {
    let json = r#"{"version":1,"job":"brave_owl_1","attempt":2,"epoch":7,"partial":true,"entries":[
        {"datastore":"workspaceartifactstore","key":"ExperimentRun/dcid.brave_owl_1/outputs/m.pkl",
         "path":"outputs/m.pkl","bytes":3,
         "digest":"d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"}]}"#;
    let manifest = manifest::Manifest::from_json(json.as_bytes()).unwrap();
    assert!(manifest.partial);
    let again = manifest::Manifest::from_json(&manifest.to_json().unwrap()).unwrap();
    assert_eq!(again, manifest);
    let newer = manifest::Manifest::from_json(br#"{"version":2,"things":[]}"#);
    assert!(matches!(newer, Err(manifest::Error::Version(2))));
    assert!(manifest::Manifest::from_json(b"{}").is_err());
}

fn any_name() -> impl Strategy<Value = EntryName> {
    prop::collection::vec(any::<u8>(), 1..20)
        .prop_filter_map("a name", |bytes| EntryName::new(&bytes).ok())
}

fn any_kind() -> impl Strategy<Value = EntryKind> {
    let digest = any::<[u8; 32]>().prop_map(Digest::from_bytes);
    prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(x, b)| file(x, b)),
        (any::<bool>(), 1..=MAX_CHUNK as u64, digest.clone()).prop_map(|(executable, size, d)| {
            EntryKind::File { executable, size, content: FileContent::Chunk(d) }
        }),
        (any::<bool>(), MAX_CHUNK as u64 + 1.., digest.clone()).prop_map(
            |(executable, size, d)| {
                EntryKind::File { executable, size, content: FileContent::List(d) }
            }
        ),
        digest.prop_map(EntryKind::Directory),
        prop::collection::vec(1..=255_u8, 1..30).prop_filter_map("a target", |bytes| {
            LinkTarget::new(&bytes).map(EntryKind::Symlink)
        }),
    ]
}

fn any_directory() -> impl Strategy<Value = Directory> {
    prop::collection::btree_map(any_name(), any_kind(), 0..40).prop_map(|entries| {
        let entries = entries.into_iter().map(|(name, kind)| Entry { name, kind }).collect();
        Directory::new(entries).unwrap()
    })
}

proptest! {
    #[test]
    fn directories_come_back(directory in any_directory()) {
        let encoded = directory.encode().unwrap();
        let last = encoded.objects.last().unwrap();
        prop_assert_eq!(last.digest, encoded.digest);
        prop_assert_eq!(Digest::of(&last.bytes), encoded.digest);
        prop_assert_eq!(decode(&last.bytes).unwrap(), Object::Directory(directory));
    }

    #[test]
    fn lists_come_back(lengths in prop::collection::vec(1..=MAX_CHUNK as u64, 2..2000)) {
        let chunks: Vec<Chunk> = lengths
            .iter()
            .enumerate()
            .map(|(i, &length)| Chunk { digest: Digest::of(&i.to_le_bytes()), length })
            .collect();
        let (content, objects) = content_of(&chunks);
        let FileContent::List(root) = content else { panic!("{content:?}") };
        let by_digest: HashMap<_, _> = objects.iter().map(|o| (o.digest, &o.bytes)).collect();
        let mut found = Vec::new();
        let mut open = vec![(root, None)];
        while let Some((digest, expected)) = open.pop() {
            let Object::List(list) = decode(by_digest[&digest]).unwrap() else { panic!() };
            prop_assert!(expected.is_none_or(|length| length == list.length()));
            if list.level == 0 {
                found.extend(list.items);
            } else {
                open.extend(list.items.iter().rev().map(|i| (i.digest, Some(i.length))));
            }
        }
        prop_assert_eq!(found, chunks);
    }

    /// Any bytes decode to an error or to something that encodes to the same bytes.
    #[test]
    fn arbitrary_bytes_never_panic(kind in 0..6_u8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut object = vec![kind];
        object.extend(bytes);
        if let Ok(Object::Directory(directory)) = decode(&object) {
            prop_assert_eq!(&directory.encode().unwrap().objects[0].bytes, &object);
        }
        let _ = objects_of(&object);
        let _ = manifest::Manifest::from_json(&object);
    }

    /// Valid objects with one byte changed, cut or lengthened: nearer to the edge than noise.
    #[test]
    fn damaged_objects_never_panic(directory in any_directory(), at: prop::sample::Index, to: u8, cut_at: prop::sample::Index) {
        let good = directory.encode().unwrap().objects.remove(0).bytes;
        let mut damaged = good.clone();
        let i = at.index(damaged.len());
        damaged[i] = to;
        if let Ok(Object::Directory(other)) = decode(&damaged) {
            prop_assert_eq!(&other.encode().unwrap().objects[0].bytes, &damaged);
        }
        let length = cut_at.index(good.len());
        prop_assert!(decode(&good[..length]).is_err());
        let mut longer = good;
        longer.push(to);
        prop_assert!(decode(&longer).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn an_edit_is_local(seed: u64, length in 3_000_000..6_000_000_usize, at: prop::sample::Index, insert: bool) {
        let before = noise(seed, length);
        let (_, old) = store_file(&before);
        let mut after = before;
        let i = at.index(length);
        if insert {
            after.insert(i, 0x5a);
        } else {
            after[i] ^= 0x80;
        }
        let (content, new) = store_file(&after);
        prop_assert_eq!(load_file(&content, &new), after);
        let sent = new.keys().filter(|digest| !old.contains_key(*digest)).count();
        // The chunk, perhaps its neighbours until the cuts agree again, and the list.
        prop_assert!(sent <= 6, "{} new objects", sent);
    }
}
