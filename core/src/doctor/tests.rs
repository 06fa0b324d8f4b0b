use super::*;

fn file(mode: u32, owner: u32, kind: FileKind) -> FileFact {
    FileFact { path: "/srv/atelier/token.key".to_owned(), mode, owner, kind }
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[test]
fn who_may_read_or_change_what() {
    for (mode, owner, kind, wanted) in [
        (0o600, 7, FileKind::Secret, &[Severity::Ok][..]),
        (0o640, 7, FileKind::Secret, &[Severity::Error]),
        (0o602, 7, FileKind::Secret, &[Severity::Error]),
        (0o600, 0, FileKind::Secret, &[Severity::Error]),
        (0o644, 8, FileKind::Secret, &[Severity::Error, Severity::Error]),
        (0o700, 7, FileKind::Folder, &[Severity::Ok]),
        (0o755, 7, FileKind::Folder, &[Severity::Warning]),
        (0o775, 7, FileKind::Folder, &[Severity::Error]),
        (0o644, 7, FileKind::Public, &[Severity::Ok]),
        (0o664, 7, FileKind::Public, &[Severity::Error]),
    ] {
        let found = files(&[file(mode, owner, kind)], 7);
        let severities: Vec<Severity> = found.iter().map(|one| one.severity).collect();
        assert_eq!(severities, wanted, "{mode:o} {owner} {kind:?}: {found:?}");
        let is_helpful = |one: &Finding| (one.severity == Severity::Ok) == one.remedy.is_empty();
        assert!(found.iter().all(is_helpful), "{found:?}");
    }
}

#[test]
fn the_database() {
    let read = |schema, log_bytes| DatabaseFact::Read { schema, latest: 9, log_bytes };
    assert_eq!(database(&read(9, 4 << 20)).severity, Severity::Ok);
    assert_eq!(database(&read(8, 0)).severity, Severity::Warning);
    assert_eq!(database(&read(9, 2 << 30)).severity, Severity::Warning);
    let unusable = database(&DatabaseFact::Unusable("it is damaged".to_owned()));
    assert_eq!(unusable.severity, Severity::Error);
    assert!(unusable.remedy.contains("atelier restore"), "{unusable:?}");
}

#[test]
fn room_backups_and_clocks() {
    assert_eq!(disk("/srv", 100 << 30, 500 << 30).severity, Severity::Ok);
    assert_eq!(disk("/srv", 10 << 30, 500 << 30).severity, Severity::Warning);
    assert_eq!(disk("/srv", 100 << 20, 1 << 30).severity, Severity::Error);
    assert_eq!(disk("/srv", 2 << 30, 0).severity, Severity::Ok, "a file system without a size");

    let now = at(CLOCK_MS + 100 * DAY_MS);
    assert_eq!(backup(None, now, 7).severity, Severity::Warning);
    assert_eq!(backup(Some(at(now.as_millis() - 6 * DAY_MS)), now, 7).severity, Severity::Ok);
    assert_eq!(backup(Some(at(now.as_millis() - 7 * DAY_MS)), now, 7).severity, Severity::Warning);

    assert_eq!(clock(at(0)).severity, Severity::Error);
    assert_eq!(clock(now).severity, Severity::Ok);
    assert_eq!(skew(at(4_000), at(0)).severity, Severity::Ok);
    assert_eq!(skew(at(0), at(60_000)).severity, Severity::Warning);
    assert_eq!(skew(at(0), at(3_600_000)).severity, Severity::Error);
    let node = node_skew("n1", -7_200_000);
    assert_eq!(node.severity, Severity::Error);
    assert!(node.found.contains("node n1 is -7200 s from the daemon's"), "{node:?}");
    assert_eq!(drawn(at(60_000), at(0)), None);
    assert_eq!(drawn(at(0), at(61_000)).unwrap().severity, Severity::Warning);

    let until = |days: i64| at(now.as_millis() + days * DAY_MS);
    assert_eq!(certificate("it", until(200), now, 180, "new").severity, Severity::Ok);
    assert_eq!(certificate("it", until(100), now, 180, "new").severity, Severity::Warning);
    assert_eq!(certificate("it", until(-1), now, 180, "new").severity, Severity::Error);
}

#[test]
fn keys_and_memory() {
    assert_eq!(authority(false, false), None);
    assert_eq!(authority(true, true).unwrap().severity, Severity::Ok);
    let lost = authority(true, false).unwrap();
    assert!(lost.severity == Severity::Error && lost.found.contains("ca.key"), "{lost:?}");
    let file = VaultFact::File("/home/a/vault/x.key".to_owned());
    assert_eq!(vault(&file).severity, Severity::Warning);
    assert_eq!(
        vault(&VaultFact::OtherFile("/home/a/vault/x.key".to_owned())).severity,
        Severity::Warning
    );
    for safe in [VaultFact::Unused, VaultFact::Transit, VaultFact::Unknown] {
        assert_eq!(vault(&safe).severity, Severity::Ok);
    }
    let devices = |of: &[&str]| of.iter().map(|&device| device.to_owned()).collect::<Vec<_>>();
    assert_eq!(swap(&devices(&["/dev/zram0", "/dev/dm-1"])).severity, Severity::Ok);
    assert_eq!(swap(&devices(&["/dev/zram0", "/swapfile"])).severity, Severity::Warning);
    let limits = |soft: &str| {
        CoreLimit::of(&format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max stack size            8388608              unlimited            bytes     \n\
             Max core file size        {soft}                    unlimited            bytes     \n"
        ))
    };
    for (pattern, limit, severity) in [
        ("core\n", limits("0"), Severity::Ok),
        ("core\n", limits("4096"), Severity::Warning),
        ("core\n", limits("unlimited"), Severity::Warning),
        ("core\n", CoreLimit::of(""), Severity::Warning),
        ("\n", CoreLimit::Unknown, Severity::Ok),
        ("|/usr/lib/systemd/systemd-coredump", limits("0"), Severity::Warning),
    ] {
        assert_eq!(core_dumps(pattern, limit).severity, severity, "{pattern} {limit:?}");
    }
    assert_eq!(user(0).severity, Severity::Warning);
    assert_eq!(user(1000).severity, Severity::Ok);
}

#[test]
fn daemons_nodes_and_datastores() {
    assert_eq!(address("https://gate:7420", false).severity, Severity::Ok);
    assert_eq!(address("http://127.0.0.1:7420", true).severity, Severity::Ok);
    assert_eq!(address("http://gate:7420", false).severity, Severity::Error);
    assert_eq!(versions("1", "1").severity, Severity::Ok);
    assert_eq!(versions("1", "2").severity, Severity::Warning);

    let facts = |of: &[(&str, &str)]| {
        of.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let one = |facts| NodeFact {
        name: "gpu-1".to_owned(),
        trouble: None,
        version: "1".to_owned(),
        facts,
    };
    let well = one(facts(&[(CONTAINER_RUNTIME, "podman 5")]));
    assert_eq!(node(&well, "1")[0].severity, Severity::Ok);
    assert_eq!(node(&well, "1 (f94cb8f3e)")[0].severity, Severity::Ok);
    let found = node(&one(facts(&[("not_isolated", "no root"), ("not_limited", "gpus")])), "2");
    let severities: Vec<Severity> = found.iter().map(|one| one.severity).collect();
    assert_eq!(severities, [Severity::Warning; 4], "{found:?}");
    let found =
        node(&one(facts(&[(CONTAINER_RUNTIME, "none"), ("no_containers", "no podman")])), "1");
    assert!(found.len() == 1 && found[0].found.contains("no podman"), "{found:?}");
    let silent = NodeFact { trouble: Some("it is silent".to_owned()), ..one(facts(&[])) };
    let found = node(&silent, "1");
    assert!(found.len() == 1 && found[0].found.contains("silent"), "{found:?}");

    assert_eq!(datastore("blobs", &[]).severity, Severity::Ok);
    let denied = datastore("blobs", &[("write".to_owned(), "denied".to_owned())]);
    assert!(denied.severity == Severity::Error && denied.found.contains("cannot write"));
}
