use proptest::prelude::*;

use crate::track::limits::{batch, key, metric, param, tag};
use crate::track::{ArtifactPath, Metric, Param, RunId, Tag};

fn point(key: &str) -> Metric {
    Metric { key: key.to_owned(), value: 1.0, timestamp: 1, step: 0 }
}

fn says<T: std::fmt::Debug>(result: Result<T, crate::track::Error>, part: &str) {
    let text = result.expect_err("must be refused").to_string();
    assert!(text.contains(part), "{text}");
}

#[test]
fn keys_are_names_that_files_could_have() {
    for good in ["loss", "a/b.c-d_e: f", "système", "x..y", "a/.b"] {
        key(good, "key").expect(good);
    }
    says(key("a#b", "key"), "Names may only contain alphanumerics");
    says(key("a//b", "key"), "This name would resolve to 'a/b'");
    says(key("../b", "key"), "would resolve to '../b'");
    says(key("a/../b", "key"), "would resolve to 'b'");
    says(key("", "key"), "would resolve to '.'");
    says(key("/a", "key"), "would resolve to '/a'");
    says(key("//a", "key"), "would resolve to '//a'");
    says(key("///a", "key"), "would resolve to '/a'");
}

#[test]
fn limits_count_characters() {
    metric(&point(&"é".repeat(250)), "").expect("250 characters");
    says(
        metric(&point(&"é".repeat(251)), ""),
        "'Metric name' exceeds the maximum length of 250 characters",
    );
    let mut long = Param { key: "k".to_owned(), value: "é".repeat(6001) };
    param(&mut long, "").expect("cut");
    assert_eq!(long.value.chars().count(), 6000);
    let mut long = Tag { key: "k".to_owned(), value: "x".repeat(9000) };
    tag(&mut long, "").expect("cut");
    assert_eq!(long.value.len(), 8000);
    says(
        tag(&mut Tag { key: "k".repeat(251), value: String::new() }, "tags[0]"),
        "'tags[0].key' exceeds",
    );
    says(
        metric(&Metric { timestamp: -1, ..point("a") }, "metrics[7]"),
        "for parameter 'metrics[7].timestamp'",
    );
}

#[test]
fn batches_are_bounded_and_params_unique() {
    let points: Vec<_> = (0..1001).map(|i| point(&format!("m{i}"))).collect();
    batch(&points[..1000], &mut [], &mut []).expect("1000 points");
    says(
        batch(&points, &mut [], &mut []),
        "A batch logging request can contain at most 1000 metrics. Got 1001 metrics. Please split \
         up metrics across multiple requests and try again.",
    );
    let one = Param { key: "a".to_owned(), value: "1".to_owned() };
    says(
        batch(&points[..1000], &mut [one.clone()], &mut []),
        "at most 1000 metrics, params, and tags. Got 1001",
    );
    says(
        batch(&[], &mut [one.clone(), one], &mut []),
        "Duplicate parameter keys have been submitted: [\"a\"]",
    );
}

#[test]
fn run_ids() {
    for good in ["a", "clever_otter_7", "0123456789abcdef0123456789abcdef", "x.y-z"] {
        assert_eq!(RunId::new(good).expect(good).as_str(), good);
    }
    for bad in ["", "_a", ".a", "a/b", "a b", "é"] {
        says(RunId::new(bad), "for parameter 'run_id' supplied");
    }
    assert_eq!(RunId::generate(255).as_str(), "000000000000000000000000000000ff");
}

#[test]
fn artifact_paths_stay_in_their_run() {
    for good in ["a", "model/MLmodel", "a b/ü.png", "50% off", "x%20y", "..a/b..", "a+b=c.txt"] {
        assert_eq!(ArtifactPath::new(good).expect(good).as_str(), good);
    }
    for bad in [
        "",
        "/",
        "/etc/passwd",
        "..",
        "a/../b",
        "a/./b",
        "a//b",
        "a/",
        "%2e%2e/x",
        "a/%2E%2E/b",
        "%252e%252e%252fx",
        "a%2f..%2fb",
        "%2Fetc",
        "..%5cx",
        "a\\..\\b",
        "a\0b",
        "a%00b",
        "a\nb",
        "a#b",
        "a%23b",
        "%25252e%25252e/a",
    ] {
        assert!(ArtifactPath::new(bad).is_err(), "{bad:?}");
    }
    assert!(ArtifactPath::new(&"a".repeat(256)).is_err());
    assert!(ArtifactPath::new(&"abcdefg/".repeat(200)).is_err());
    assert!(ArtifactPath::new(&format!("%{}41", "25".repeat(20))).is_err());
}

proptest! {
    #[test]
    fn an_accepted_path_never_leaves(path in "([a-z.%/\\\\]|%2e|%2f|%25|%5c){0,12}") {
        let Ok(accepted) = ArtifactPath::new(&path) else { return Ok(()) };
        let mut text = accepted.as_str().to_owned();
        for _ in 0..10 {
            for part in text.split(['/', '\\']) {
                prop_assert!(!matches!(part, "" | "." | ".."), "{text}");
            }
            let mut next = text.clone();
            for (code, char) in [("%2e", "."), ("%2f", "/"), ("%5c", "\\"), ("%25", "%")] {
                next = next.replace(code, char);
            }
            text = next;
        }
    }

    #[test]
    fn a_key_that_passes_resolves_to_itself(name in "[a./ ]{0,8}") {
        if key(&name, "key").is_ok() {
            prop_assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")));
        }
    }
}
