//! Replays the corpus of `fuzz/`, and changes of it that follow from a seed: two thousand of each target, or for as many
//! seconds as `ATELIER_FUZZ_SECONDS` says.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::TARGETS;

/// Changed inputs of a target without `ATELIER_FUZZ_SECONDS`.
const CHANGED: u64 = 2_000;
/// The longest input that changes make.
const LONGEST: usize = 8 << 10;
/// No input of that length takes longer, on a busy machine.
const EACH: Duration = Duration::from_secs(10);
/// What the process may have in memory in the end.
const MEMORY_KIB: u64 = 1 << 20;

/// Pieces that the readers' languages are made of.
const PIECES: &[&str] = &[
    "command: ",
    "inputs:\n  ",
    "  a: ",
    "{",
    "}",
    "[",
    "]",
    "${{inputs.a}}",
    "${{",
    "}}",
    "$[[",
    "]]",
    "\n",
    "\t",
    "- ",
    "|\n",
    ">-\n",
    "&x ",
    "*x",
    "<<: ",
    "!!int ",
    "'",
    "\"",
    "#",
    ": ",
    "---\n",
    "0x",
    "1e400",
    ".nan",
    "-1",
    "null",
    "type: ",
    "path: ",
    "azureml:",
    "azureml://datastores/",
    "resources: ",
    "\u{FEFF}",
    "\r\n",
    "?",
    "é",
    "..",
    "/",
    "%2e",
    "%25",
    "%00",
    "\\",
    "\0",
    "file://",
    "s3://",
    "metrics.",
    "params.",
    "tags.`",
    " AND ",
    " OR ",
    " LIKE ",
    " IN (",
    ")",
    "'; DROP TABLE runs; --",
    "run_id",
    "\"metrics\":",
    "\"NaN\"",
    "18446744073709551616",
    "Bearer ",
    "ata_",
    "atl_",
    ".",
    "=",
    "\u{1F600}",
    "\x0a\x0b",
    "\x12\x7f",
    "\x08\x01",
    "\u{202E}",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most.max(1) as u64).unwrap()
    }
}

/// One input of the corpus, changed in a few places.
fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            2 if at < end => drop(bytes.drain(at..end)),
            3 if at < end => {
                let again = bytes[at..end].repeat(1 + random.below(64));
                bytes.splice(at..at, again).for_each(drop);
            }
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            5 => bytes.truncate(at),
            _ => {
                let piece = PIECES[random.below(PIECES.len())].bytes();
                bytes.splice(at..at, piece).for_each(drop);
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{} has too little", folder.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let corpus = corpus(name);
    let run = |input: &[u8]| {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| target(input)));
        let shown = input.escape_ascii();
        assert!(result.is_ok(), "{name} breaks its promise for b\"{shown}\"");
        assert!(begun.elapsed() < EACH, "{name} took {:?} for b\"{shown}\"", begun.elapsed());
    };
    corpus.iter().for_each(|input| run(input));
    let seconds = std::env::var("ATELIER_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let seed = std::env::var("ATELIER_FUZZ_SEED").map_or(7, |text| text.parse().unwrap());
    let (begun, mut random, mut inputs) = (Instant::now(), Random(seed), 0_u64);
    let goes_on = |inputs: u64| match seconds {
        Some(seconds) => begun.elapsed() < Duration::from_secs(seconds),
        None => inputs < CHANGED,
    };
    while goes_on(inputs) {
        run(&changed(&corpus, &mut random));
        inputs += 1;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most: u64 = most.trim().trim_end_matches(" kB").parse().unwrap();
    eprintln!("{name}: {inputs} inputs in {:?}, at most {most} KiB", begun.elapsed());
    assert!(most < MEMORY_KIB, "{name}: the process had {most} KiB");
}

// Each target by itself, so that each has a process of its own under nextest.

#[test]
fn replay_yaml() {
    replay("yaml");
}

#[test]
fn replay_expressions() {
    replay("expressions");
}

#[test]
fn replay_mlflow_json() {
    replay("mlflow_json");
}

#[test]
fn replay_mlflow_filters() {
    replay("mlflow_filters");
}

#[test]
fn replay_artifact_paths() {
    replay("artifact_paths");
}

#[test]
fn replay_tokens() {
    replay("tokens");
}

#[test]
fn replay_protobuf() {
    replay("protobuf");
}

#[test]
fn every_target_is_replayed_and_has_a_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let replayed = include_str!("tests.rs");
    for (name, _) in TARGETS {
        assert!(replayed.contains(&format!("replay(\"{name}\")")), "{name} is not replayed");
        let file = format!("fuzz_targets/{name}.rs");
        let text = std::fs::read_to_string(folder.join(&file)).unwrap();
        assert!(text.contains(&format!("atelier::fuzz::{name}(")), "{file}");
        assert!(manifest.contains(&file), "{file} is not in fuzz/Cargo.toml");
    }
}
