//! Daemons and agents that die and come back.

use atelier_proto::agent::v1 as pb;
use pb::attempt_report::Phase;
use pb::daemon_message::Message as Down;

use crate::daemon::*;

fn ended_in(hello: &pb::Hello, epoch: u64) -> Option<pb::Ended> {
    hello.attempts.iter().find(|report| report.key == Some(key(epoch))).and_then(|report| {
        match report.phase.clone() {
            Some(Phase::Ended(ended)) => Some(ended),
            _ => None,
        }
    })
}

#[tokio::test]
async fn a_job_outlives_its_agent_and_is_neither_lost_nor_doubled() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    let session = daemon.session().await;
    let command =
        "echo run >>runs; echo $$ >up; while [ ! -e go ]; do sleep 0.01; done; echo over; exit 4";
    session.send(Down::Assign(assignment(1, command)));
    let pid = agent.process(1, "up").await;
    agent.kill();
    assert!(alive(&pid));
    agent.restart();
    let mut session = daemon.session().await;
    assert!(matches!(session.hello.attempts[0].phase, Some(Phase::Running(_))));
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    let ended = session.ended(&key(1)).await;
    assert_eq!(ended.exit.unwrap().how, Some(pb::exit::How::Code(4)));
    assert_eq!(agent.wait_for_file(1, "runs").await, "run\n");
    assert_eq!(ended.log_bytes, 5);
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_prepares_asks_for_the_secrets_again() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    let session = daemon.session().await;
    let command = "printf %s \"$TOKEN\" | wc -c >length; echo \"it is $TOKEN\"; exit 6";
    let mut assignment = assignment(1, command);
    let variables = &mut assignment.spec.as_mut().unwrap().environment_variables;
    variables.insert("TOKEN".to_owned(), "azureml:secrets/token:1".to_owned());
    session.send(Down::Assign(assignment));
    let asked = || *daemon.secrets.asked.lock().unwrap();
    wait_for("the agent to ask", || (asked() > 0).then_some(())).await;
    agent.kill();
    let before = asked();
    agent.restart();
    let mut session = daemon.session().await;
    wait_for("the agent to ask again", || {
        (*daemon.secrets.asked.lock().unwrap() > before).then_some(())
    })
    .await;
    let value = "value-of-the-token".into();
    let secret = pb::OpenedSecret { variable: "TOKEN".to_owned(), value };
    let given = pb::OpenSecretsResponse { secrets: vec![secret] };
    *daemon.secrets.given.lock().unwrap() = Some(given);
    let ended = session.ended(&key(1)).await;
    assert_eq!(ended.exit.unwrap().how, Some(pb::exit::How::Code(6)), "{ended:?}");
    assert_eq!(agent.wait_for_file(1, "length").await.trim(), "18");
    let log = std::fs::read_to_string(agent.attempt(1).join("std_log.txt")).unwrap();
    // Above it stands why it waited, if it was told.
    assert_eq!(log.lines().last(), Some("it is ***"), "{log}");
    assert!(!log.contains("value-of-the-token"), "{log}");
}

#[tokio::test]
async fn what_ends_while_the_agent_is_away_is_reported() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    let session = daemon.session().await;
    session.send(Down::Assign(assignment(
        1,
        "echo up >up; while [ ! -e go ]; do sleep 0.01; done; exit 5",
    )));
    agent.wait_for_file(1, "up").await;
    agent.stop();
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    wait_for("the end", || agent.record(1, "exited.json")).await;
    agent.restart();
    let mut session = daemon.session().await;
    let ended = session.ended(&key(1)).await;
    assert_eq!(ended.exit.unwrap().how, Some(pb::exit::How::Code(5)));
}

#[tokio::test]
async fn a_cancelled_job_can_still_be_cancelled_by_the_next_agent() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    let session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "echo up >up; sleep 1000")));
    agent.wait_for_file(1, "up").await;
    agent.kill();
    agent.restart();
    let mut session = daemon.session().await;
    session.cancel(&key(1), "after all");
    let ended = session.ended(&key(1)).await;
    assert_eq!(ended.problem.unwrap().message, "after all");
}

#[tokio::test]
async fn a_killed_leader_is_the_platforms_failure() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "echo up >up; sleep 1000")));
    agent.wait_for_file(1, "up").await;
    let supervisor = agent.record(1, "started.json").unwrap()["pid"].clone();
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    let leader: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    assert_eq!(unsafe { libc::kill(leader, libc::SIGKILL) }, 0);
    let ended = session.ended(&key(1)).await;
    assert_eq!(ended.exit, None);
    assert_eq!(ended.problem.unwrap().cause(), pb::Cause::Platform);
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn an_attempt_whose_task_panics_ends_all_the_same() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start_failing(&daemon, &[], Some("cancel"));
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "trap '' TERM; echo $$ >up; sleep 1000; sleep 1000")));
    let pid = agent.process(1, "up").await;
    session.cancel(&key(1), "to see it panic");
    let ended = session.ended(&key(1)).await;
    let problem = ended.problem.unwrap();
    assert_eq!(problem.cause(), pb::Cause::Platform);
    assert!(problem.message.contains("failpoint.rs:"), "{}", problem.message);
    assert!(!alive(&pid));
    // The others go on.
    session.send(Down::Assign(assignment(2, "exit 3")));
    assert_eq!(session.ended(&key(2)).await.exit.unwrap().how, Some(pb::exit::How::Code(3)));
}

#[tokio::test]
async fn an_attempt_whose_records_cannot_be_read_is_lost_and_the_others_go_on() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    let session = daemon.session().await;
    let command = "echo $$ >up; while [ ! -e go ]; do sleep 0.01; done; exit 4";
    let mut pids = Vec::new();
    for epoch in 1..=3 {
        session.send(Down::Assign(assignment(epoch, command)));
        pids.push(agent.process(epoch, "up").await);
    }
    agent.kill();
    // What no read gets at, also as root.
    for (epoch, name) in [(1, "started.json"), (2, "assignment.pb")] {
        let record = agent.attempt(epoch).join(name);
        std::fs::remove_file(&record).unwrap();
        std::fs::create_dir(&record).unwrap();
    }
    agent.restart();
    let mut session = daemon.session().await;
    let known: Vec<u64> =
        session.hello.attempts.iter().map(|report| report.key.as_ref().unwrap().epoch).collect();
    assert_eq!(known, [1, 3]);
    let problem = session.ended(&key(1)).await.problem.unwrap();
    assert_eq!(problem.cause(), pb::Cause::Platform);
    assert!(problem.message.contains("started.json: Is a directory"), "{}", problem.message);
    assert!(!alive(&pids[0]));
    wait_for("the end of what has no record", || (!alive(&pids[1])).then_some(())).await;
    assert!(agent.data().join("unreadable/2/work").exists());
    std::fs::write(agent.attempt(3).join("work/go"), "").unwrap();
    let ended = session.ended(&key(3)).await;
    assert_eq!(ended.exit.unwrap().how, Some(pb::exit::How::Code(4)));
}

#[tokio::test]
async fn an_end_is_told_again_until_it_is_acknowledged() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "exit 6")));
    let ended = session.ended(&key(1)).await;
    // A new session of the same agent, then a new agent.
    drop(session);
    drop(daemon);
    let mut daemon = Daemon::start().await;
    agent.point_at(&daemon);
    let session = daemon.session().await;
    assert_eq!(ended_in(&session.hello, 1), Some(ended.clone()));
    agent.kill();
    agent.restart();
    let mut session = daemon.session().await;
    let again = match ended_in(&session.hello, 1) {
        Some(again) => again,
        None => session.ended(&key(1)).await,
    };
    assert_eq!((again.exit, again.started_at_ms), (ended.exit, ended.started_at_ms));
    session.send(Down::Acknowledge(key(1)));
    agent.wait_until_gone(1).await;
    agent.kill();
    agent.restart();
    assert!(daemon.session().await.hello.attempts.is_empty());
}

#[tokio::test]
async fn a_job_goes_on_while_the_daemon_moves() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let session = daemon.session().await;
    session
        .send(Down::Assign(assignment(1, "echo $$ >up; while [ ! -e go ]; do sleep 0.01; done")));
    let pid = agent.process(1, "up").await;
    drop(session);
    drop(daemon);
    // Ends while there is no daemon.
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    wait_for("the end", || (!alive(&pid)).then_some(())).await;
    let mut daemon = Daemon::start().await;
    agent.point_at(&daemon);
    let mut session = daemon.session().await;
    let ended = match ended_in(&session.hello, 1) {
        Some(ended) => ended,
        None => session.ended(&key(1)).await,
    };
    assert_eq!(ended.exit.unwrap().how, Some(pb::exit::How::Code(0)));
    assert!(ended.problem.is_none());
}

#[tokio::test]
async fn a_daemon_that_falls_silent_is_left_and_found_again() {
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let session = daemon.session().await;
    session.stop_answering_heartbeats();
    let first = session.hello.instance_id.clone();
    let second = daemon.session().await;
    assert_eq!(second.hello.instance_id, first);
}

/// An agent that is killed at moments all over an attempt's life.
#[tokio::test]
async fn killed_at_any_moment_the_agent_runs_each_job_once() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    let journal = agent.shared();
    for epoch in 1..=25_u64 {
        let session = daemon.session().await;
        let file = journal.join(epoch.to_string());
        let command = format!("echo begin >>{0}; sleep 0.01; echo end >>{0}", file.display());
        session.send(Down::Assign(assignment(epoch, &command)));
        tokio::time::sleep(std::time::Duration::from_micros(epoch * 1500)).await;
        agent.kill();
        agent.restart();
        let mut session = daemon.session().await;
        if !session.hello.attempts.iter().any(|report| report.key == Some(key(epoch))) {
            // It died before it took the assignment; a daemon gives it again.
            session.send(Down::Assign(assignment(epoch, &command)));
        }
        let ended = match ended_in(&session.hello, epoch) {
            Some(ended) => ended,
            None => session.ended(&key(epoch)).await,
        };
        assert_eq!(ended.exit.and_then(|exit| exit.how), Some(pb::exit::How::Code(0)), "{ended:?}");
        session.send(Down::Acknowledge(key(epoch)));
        agent.wait_until_gone(epoch).await;
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "begin\nend\n", "job {epoch}");
        agent.kill();
        agent.restart();
    }
}

#[tokio::test]
async fn a_node_whose_jobs_would_not_reach_the_daemon_takes_none_until_they_do() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let jobs = free.local_addr().unwrap();
    drop(free);
    let mut daemon = Daemon::start_with(|welcome| {
        welcome.control_url = std::mem::replace(&mut welcome.http_url, format!("http://{jobs}"));
    })
    .await;
    let agent = Agent::start(&daemon);
    for _ in 0..2 {
        let mut session = daemon.session().await;
        session.send(Down::Assign(assignment(1, "echo up >up")));
        assert!(within(session.next()).await.is_none(), "it stays");
    }
    assert!(!agent.attempt(1).exists());
    // The way is there now.
    let listener = tokio::net::TcpListener::bind(jobs).await.unwrap();
    let healthy = axum::Router::new().route("/healthz", axum::routing::get(|| async { "ok" }));
    tokio::spawn(async move { axum::serve(listener, healthy).await });
    loop {
        let mut session = daemon.session().await;
        session.send(Down::Assign(assignment(1, "echo up >up")));
        if within(session.next()).await.is_some() {
            break;
        }
    }
    agent.wait_for_file(1, "up").await;
}

#[tokio::test]
async fn jobs_that_need_the_control_port_are_told_after_the_welcome() {
    // One port for both, which the agent knows only then.
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let facts = match session.hello.facts.get("not_closed") {
        // It was told before, since this machine closes nothing.
        Some(_) => session.hello.facts.clone(),
        None => session.changed().await.facts,
    };
    assert_eq!(facts["closed"], "none");
    assert!(!facts["not_closed"].is_empty());
}

#[tokio::test]
async fn a_node_with_jobs_that_would_not_reach_the_daemon_says_so_until_they_do() {
    let mut before = Daemon::start().await;
    let mut agent = Agent::start(&before);
    let session = before.session().await;
    session
        .send(Down::Assign(assignment(1, "echo up >up; while [ ! -e go ]; do sleep 0.01; done")));
    agent.wait_for_file(1, "up").await;
    agent.kill();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let jobs = free.local_addr().unwrap();
    drop(free);
    let mut daemon = Daemon::start_with(|welcome| {
        welcome.control_url = std::mem::replace(&mut welcome.http_url, format!("http://{jobs}"));
    })
    .await;
    agent.point_at(&daemon);
    agent.restart();
    // What runs is heard of.
    let mut session = daemon.session().await;
    assert_eq!(session.hello.attempts.len(), 1);
    let why = loop {
        if let Some(why) = session.changed().await.facts.remove("not_reached") {
            break why;
        }
    };
    assert!(
        why.contains(&format!("port for jobs at http://{jobs}; let this machine reach port")),
        "{why}"
    );
    // The way is there now, and the session is the same.
    let listener = tokio::net::TcpListener::bind(jobs).await.unwrap();
    let healthy = axum::Router::new().route("/healthz", axum::routing::get(|| async { "ok" }));
    tokio::spawn(async move { axum::serve(listener, healthy).await });
    while session.changed().await.facts.contains_key("not_reached") {}
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    session.ended(&key(1)).await;
}

#[tokio::test]
async fn f47_an_agent_that_waits_for_a_dead_file_system_ends_when_it_is_asked_to() {
    let mut daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    drop(daemon.session().await);
    agent.kill();
    // As a file on a server that is gone, this cannot be opened: nobody reads at the other end.
    let lock = agent.data().join("lock");
    std::fs::remove_file(&lock).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    agent.restart();
    let status = format!("/proc/{}/status", agent.pid());
    wait_for("the agent listens to signals", || {
        let status = std::fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        (caught & 1 << (libc::SIGTERM - 1) != 0).then_some(())
    })
    .await;
    let ended = tokio::task::spawn_blocking(move || agent.end());
    assert_eq!(within(ended).await.unwrap().code(), Some(1));
}
