//! How long `job create` takes when one byte of a large code folder has changed, and how much it sends.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::figures;

const SIZE: u64 = 5_000_000_000;
const SMALL_FILES: u64 = 200_000;
const ROUNDS: usize = 5;

/// Five gigabytes: one file, then 200,000.
pub(crate) fn snapshot() {
    edited("one file of 5 GB", |folder| {
        let path = folder.join("weights");
        write(&path, SIZE, 1);
        path
    });
    edited("200,000 files of 25 kB", |folder| {
        for number in 0..SMALL_FILES {
            let inner = folder.join(format!("{:03}", number / 1000));
            if number % 1000 == 0 {
                fs::create_dir(&inner).unwrap();
            }
            write(&inner.join(format!("{number}.txt")), SIZE / SMALL_FILES, number);
        }
        folder.join("123/123456.txt")
    });
}

fn edited(what: &str, make: impl Fn(&Path) -> PathBuf) {
    let cluster = Cluster::start(None);
    let code = tempfile::tempdir().unwrap();
    let file = make(code.path());
    let job = cluster.file("job.yml", &format!("command: ls\ncode: {}\n", code.path().display()));
    let submit = || {
        let begin = Instant::now();
        let done = cluster.cli().args(["job", "create", "-f"]).arg(&job).status().unwrap();
        assert!(done.success());
        begin.elapsed()
    };
    let first = submit();
    println!("snapshot, {what}: {:.1} s the first time", first.as_secs_f64());
    let content = cluster.data().join("storage/workspaceblobstore/azureml/content");
    let (mut times, mut unchanged, mut sent) = (Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        let before = size_of(&content);
        let edit = File::options().write(true).open(&file).unwrap();
        edit.write_all_at(b"!", (round as u64 + 1) * 3_000).unwrap();
        drop(edit);
        // What was just written is read again the next time: its stat would not tell of another change.
        std::thread::sleep(Duration::from_millis(50));
        times.push(submit());
        sent = sent.max(size_of(&content) - before);
        unchanged.push(submit());
    }
    figures::millis("  after one byte has changed", times);
    figures::millis("  with nothing changed", unchanged);
    println!("  at most {:.3} MiB were stored for it", sent as f64 / f64::from(1 << 20));
}

/// Bytes that repeat nowhere.
fn write(path: &Path, size: u64, seed: u64) {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for _ in 0..size / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_le_bytes()).unwrap();
    }
    out.flush().unwrap();
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.metadata().unwrap() {
            meta if meta.is_dir() => size_of(&entry.path()),
            meta => meta.size(),
        })
        .sum()
}
