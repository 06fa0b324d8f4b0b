use super::*;

#[test]
fn every_row_is_sane() {
    let table = SizeTable::builtin();
    assert_eq!(table.iter().count(), CPU_SIZES.len() + GPU_SIZES.len(), "a name comes twice");
    for (name, node) in table.iter() {
        assert!(name.starts_with("STANDARD_"), "{name}");
        assert!((1_000..=96_000).contains(&node.cpu) && node.cpu % 1000 == 0, "{name}: {node}");
        let per_cpu = node.memory * 1000 / node.cpu;
        assert!((G..=24 * G).contains(&per_cpu), "{name}: {node}");
        assert!(node.disk <= 6400 * G, "{name}: {node}");
        assert_eq!(node.gpus > 0, name.starts_with("STANDARD_N"), "{name}: {node}");
        assert_eq!(node.gpus > 0, node.gpu_model.is_some(), "{name}: {node}");
        assert_eq!(node.gpus > 0, (8 * G..=94 * G).contains(&node.gpu_memory), "{name}: {node}");
        // The number in a name is that of its vCPUs, except in the Dv2 series.
        let number: String = name.chars().filter(char::is_ascii_digit).collect();
        let cpus = (node.cpu / 1000).to_string();
        let is_dv2 = ["STANDARD_D", "STANDARD_DS"].iter().any(|start| {
            name.strip_prefix(start).is_some_and(|rest| {
                rest.strip_suffix("_v2").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
            })
        });
        assert!(is_dv2 || number.starts_with(&cpus), "{name}: {node}");
    }
}

#[test]
fn known_sizes() {
    let table = SizeTable::builtin();
    for (name, spelled, expected) in [
        ("STANDARD_DS3_v2", "STANDARD_DS3_v2", "4 CPU, 14 GiB memory, 28 GiB disk"),
        ("standard_d1_V2", "STANDARD_D1_v2", "1 CPU, 3584 MiB memory, 50 GiB disk"),
        ("Standard_D8s_v5", "STANDARD_D8s_v5", "8 CPU, 32 GiB memory"),
        (
            "Standard_NC6s_v3",
            "STANDARD_NC6s_v3",
            "6 CPU, 112 GiB memory, 736 GiB disk, 1 × NVIDIA V100 (16 GiB)",
        ),
        (
            "Standard_ND96asr_v4",
            "STANDARD_ND96asr_v4",
            "96 CPU, 900 GiB memory, 6000 GiB disk, 8 × NVIDIA A100 (40 GiB)",
        ),
        (
            "STANDARD_NC40ADS_H100_V5",
            "STANDARD_NC40ads_H100_v5",
            "40 CPU, 320 GiB memory, 128 GiB disk, 1 × NVIDIA H100 (94 GiB)",
        ),
    ] {
        let (found, node) = table.get(name).unwrap();
        assert_eq!((found, node.to_string().as_str()), (spelled, expected));
    }
    assert_eq!(table.get("STANDARD_DS3"), None);
    assert_eq!(table.get(""), None);
}

#[test]
fn near_names() {
    let table = SizeTable::builtin();
    let first = |name| table.closest(name).into_iter().next();
    assert_eq!(first("DS3_v2"), Some("STANDARD_DS3_v2"));
    assert_eq!(first("Standard_NC6s_v33"), Some("STANDARD_NC6s_v3"));
    assert_eq!(first("STANDARD_ND96amsr_v4"), Some("STANDARD_ND96asr_v4"));
    assert!(table.closest("Standard_D4as_v6").len() <= MAX_SHOWN);
    assert_eq!(first("STANDARD_"), None);
    assert_eq!(first("n1-standard-4"), None);
    assert_eq!(first(&"x".repeat(1000)), None);
}

#[test]
fn an_admins_rows_extend_and_replace() {
    let table = SizeTable::builtin();
    let node = table.get("STANDARD_F2s_v2").unwrap().1.clone();
    let rows = ["my-box", "standard_ds3_v2"].map(|name| (name.to_owned(), node.clone()));
    let more = table.clone().with(rows);
    assert_eq!(more.iter().count(), table.iter().count() + 1);
    assert_eq!(more.get("MY-BOX"), Some(("my-box", &node)));
    assert_eq!(more.get("STANDARD_DS3_V2"), Some(("standard_ds3_v2", &node)));
    assert_eq!(more.closest("mybox"), ["my-box"]);
}
