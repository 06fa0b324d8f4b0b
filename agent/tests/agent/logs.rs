//! Logs as they grow.

use std::time::Instant;

use atelier_proto::agent::v1 as pb;
use pb::daemon_message::Message as Down;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::daemon::*;

fn request(request_id: u64, offset: u64, follow: bool) -> pb::FollowLog {
    pb::FollowLog { request_id, key: Some(key(1)), offset, follow, process: 0 }
}

/// Collects chunks until `enough` says so; checks that they follow each other without a gap.
async fn collect(
    chunks: &mut UnboundedReceiver<pb::PushLogRequest>,
    from: u64,
    mut enough: impl FnMut(&str, bool) -> bool,
) -> String {
    let (mut text, mut offset) = (String::new(), from);
    loop {
        let chunk = within(chunks.recv()).await.expect("the log's stream ended");
        assert_eq!(chunk.offset, offset);
        assert!(chunk.data.len() <= 64 * 1024);
        offset += chunk.data.len() as u64;
        text.push_str(std::str::from_utf8(&chunk.data).unwrap());
        if enough(&text, chunk.end) {
            return text;
        }
    }
}

#[tokio::test]
async fn a_log_is_followed_by_several_from_any_offset_to_its_end() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(
        1,
        "echo one; touch up; while [ ! -e go ]; do sleep 0.01; done; echo two; seq 100000",
    )));
    session.running(&key(1)).await;
    let mut first = daemon.follow(&session, request(1, 0, true));
    collect(&mut first, 0, |text, _| text == "one\n").await;
    let mut second = daemon.follow(&session, request(2, 2, true));
    collect(&mut second, 2, |text, _| text == "e\n").await;
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    let rest = collect(&mut first, 4, |_, end| end).await;
    assert!(rest.starts_with("two\n1\n2\n") && rest.ends_with("\n100000\n"));
    assert_eq!(collect(&mut second, 4, |_, end| end).await, rest);
    // And once more from its middle, now that it is over.
    let ended = session.ended(&key(1)).await;
    let mut third = daemon.follow(&session, request(3, ended.log_bytes - 7, true));
    assert_eq!(collect(&mut third, ended.log_bytes - 7, |_, end| end).await, "100000\n");
}

#[tokio::test]
async fn without_following_what_is_there_is_sent_and_the_end_is_not_claimed() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "echo so far; echo >up; sleep 1000")));
    agent.wait_for_file(1, "up").await;
    wait_for("the line", || {
        std::fs::read(agent.attempt(1).join("std_log.txt")).ok().filter(|log| !log.is_empty())
    })
    .await;
    let mut chunks = daemon.follow(&session, request(1, 0, false));
    let first = within(chunks.recv()).await.unwrap();
    assert_eq!((&first.data[..], first.end), (&b"so far\n"[..], false));
    let last = within(chunks.recv()).await.unwrap();
    assert_eq!((last.offset, last.data.len(), last.end), (7, 0, false));
    session.cancel(&key(1), "");
    session.ended(&key(1)).await;
}

#[tokio::test]
async fn a_line_is_seen_soon_after_it_is_printed() {
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(
        1,
        "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.05; date +%s%N; done",
    )));
    session.running(&key(1)).await;
    let mut chunks = daemon.follow(&session, request(1, 0, true));
    let mut delays = Vec::new();
    loop {
        let chunk = within(chunks.recv()).await.unwrap();
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        if chunk.end {
            break;
        }
        let text = std::str::from_utf8(&chunk.data).unwrap();
        let printed: u128 = text.lines().last().unwrap().parse().unwrap();
        delays.push((now - printed) / 1000);
    }
    delays.sort_unstable();
    println!("microseconds from print to arrival: {delays:?}");
    assert!(delays[delays.len() / 2] < 50_000, "{delays:?}");
}

#[tokio::test]
async fn a_flood_is_bounded_and_every_kept_byte_arrives() {
    const LIMIT: u64 = 3_000_000;
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let mut given = assignment(1, "yes 0123456789 | head -c 300000000");
    given.log_limit_bytes = LIMIT;
    let start = Instant::now();
    session.send(Down::Assign(given));
    session.running(&key(1)).await;
    let mut chunks = daemon.follow(&session, request(1, 0, true));
    let text = collect(&mut chunks, 0, |_, end| end).await;
    let ended = session.ended(&key(1)).await;
    println!("300 MB printed and bounded in {:?}", start.elapsed());
    assert!(ended.log_truncated);
    assert_eq!(ended.log_bytes, text.len() as u64);
    assert!(
        text.ends_with("[atelier] 297000000 bytes of output were dropped\n"),
        "{}",
        &text[text.len() - 300..]
    );
}

/// Whoever asks for what is not here is told so, and asks again: without an answer it would wait for
/// the attempt's end.
#[tokio::test]
async fn a_log_that_is_not_here_is_refused_at_once() {
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let session = daemon.session().await;
    let mut chunks = daemon.follow(&session, request(7, 0, true));
    let refusal = within(chunks.recv()).await.unwrap();
    assert_eq!((refusal.request_id, refusal.data.len(), refusal.end), (7, 0, false));
}
