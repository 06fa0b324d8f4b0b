use std::io::Write as _;
use std::sync::Arc;

use super::*;
use crate::secrets::Patterns;

/// What is in the log once a job has written these pieces, each of which is looked at by itself.
fn logged(limit: Option<u64>, pieces: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (mut output, writer) = Output::open(&log, limit, None, None).unwrap();
    let patterns = Patterns::new([b"s3cr3t-value".as_slice()].into_iter()).unwrap().unwrap();
    output.redactor = Some(Redactor::new(Arc::new(patterns)));
    let mut writer = File::from(writer);
    for piece in pieces {
        writer.write_all(piece.as_bytes()).unwrap();
        while output.pump() == Found::Data {}
    }
    drop(writer);
    output.finish();
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(output.written, text.len() as u64);
    text
}

#[test]
fn secrets_do_not_get_into_the_log() {
    assert_eq!(logged(None, &["a s3cr3t-", "value b\n", "s3cr3t"]), "a *** b\n***");
    assert_eq!(logged(None, &["a s3c"]), "a s3c");
}

#[test]
fn a_log_that_is_full_ends_with_no_part_of_a_secret() {
    let told = logged(Some(20), &["0123456789", "s3cr3t-val", "ue more and more"]);
    assert!(told.starts_with("0123456789***\n[atelier] log limit of 20 bytes"), "{told}");
    let told = logged(Some(20), &["s3cr3t-value 0123456789 0123456789"]);
    assert!(told.starts_with("*** 0123456"), "{told}");
    assert!(told.contains("bytes of output were dropped"), "{told}");
}

#[test]
fn who_follows_a_log_is_told_of_what_is_moved_there() {
    use rustix::fs::inotify;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (mut output, writer) = Output::open(&log, None, None, None).unwrap();
    let events = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&events, &log, inotify::WatchFlags::MODIFY).unwrap();
    for _ in 0..2 {
        rustix::io::write(&writer, b"a line\n").unwrap();
        while output.pump() == Found::Data {}
        assert!(!output.cannot_splice);
        assert!(rustix::io::read(&events, &mut [0; 256]).unwrap() > 0);
    }
}
