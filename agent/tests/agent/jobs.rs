//! Jobs from assignment to end.

use std::collections::BTreeSet;

use pb::daemon_message::Message as Down;

use crate::daemon::*;
use atelier_proto::agent::v1 as pb;

fn code(ended: &pb::Ended) -> Option<i32> {
    match ended.exit?.how? {
        pb::exit::How::Code(code) => Some(code),
        pb::exit::How::Signal(_) => None,
    }
}

fn cause(ended: &pb::Ended) -> Option<pb::Cause> {
    Some(ended.problem.as_ref()?.cause())
}

fn message(ended: &pb::Ended) -> &str {
    &ended.problem.as_ref().expect("a problem").message
}

#[tokio::test]
async fn hello_tells_what_the_node_is() {
    let mut daemon = Daemon::start().await;
    let offered = ["--cpus", "2.5", "--memory", "3GiB", "--gpus", "0", "--disk", "5GiB"];
    let labels = ["--label", "zone=b", "--label", "rack=7"];
    let _agent = Agent::start_with(&daemon, &[&offered[..], &labels[..]].concat());
    let session = daemon.session().await;
    let hello = &session.hello;
    assert_eq!((hello.node.as_str(), hello.compute.as_str()), ("node-1", "local"));
    assert_eq!((hello.cpu_milli, hello.memory_mib), (2500, 3072));
    assert_eq!(hello.disk_mib, Some(5120));
    assert_eq!((hello.labels["zone"].as_str(), hello.labels["rack"].as_str()), ("b", "7"));
    assert!(hello.gpus.is_empty() && hello.attempts.is_empty());
    assert!(!hello.hostname.is_empty() && !hello.instance_id.is_empty());
    for fact in ["container_runtime", "cgroup", "kernel", "python"] {
        assert!(hello.facts.contains_key(fact), "{fact}: {:?}", hello.facts);
    }
}

#[tokio::test]
async fn a_job_runs_and_its_folder_goes_when_its_end_is_acknowledged() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "exit 3")));
    let ended = session.ended(&key(1)).await;
    assert_eq!(code(&ended), Some(3));
    assert_eq!(ended.problem, None);
    assert!(ended.started_at_ms > 0 && ended.exited_at_ms >= ended.started_at_ms);
    assert!(ended.usage.contains_key("cpu_seconds"));
    assert!(agent.attempt(1).exists());
    session.send(Down::Acknowledge(key(1)));
    agent.wait_until_gone(1).await;
    let ended = session.run(assignment(2, "true")).await;
    assert_eq!(code(&ended), Some(0));
}

#[tokio::test]
async fn the_job_finds_its_surroundings_and_no_secret_but_its_own() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let mut given = assignment(
        5,
        "env >vars; ls -d outputs logs >folders; pwd >>folders; touch ready; echo >done",
    );
    let spec = given.spec.as_mut().unwrap();
    spec.environment_variables.insert("OWN".to_owned(), "of the job".to_owned());
    spec.environment_variables.insert("CUDA_VISIBLE_DEVICES".to_owned(), "0,1,2".to_owned());
    let resources = spec.resources.get_or_insert_default();
    (resources.gpus, resources.gpu_share_milli) = (1, 250);
    session.send(Down::Assign(given));
    session.ended(&key(5)).await;
    let variables = agent.wait_for_file(5, "vars").await;
    for line in [
        "AZUREML_RUN_ID=job-5",
        "AZUREML_RUN_TOKEN=attempt-token-5",
        "AZUREML_RUN_TOKEN_EXPIRY=7258118399",
        "AZUREML_RUN_TOKEN_RAND=job-5-1",
        "AZUREML_ARM_WORKSPACE_NAME=test-workspace",
        "AZUREML_ARM_PROJECT_NAME=experiment of the test",
        &format!("AZUREML_SERVICE_ENDPOINT={}", daemon.url),
        "MLFLOW_TRACKING_TOKEN=attempt-token-5",
        "MLFLOW_RUN_ID=job-5",
        "MLFLOW_EXPERIMENT_ID=7",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=true",
        "CUDA_VISIBLE_DEVICES=",
        "NVIDIA_VISIBLE_DEVICES=void",
        "ATELIER_GPU_SHARE=0.25",
        "OWN=of the job",
    ] {
        assert!(variables.lines().any(|found| found == line), "{line} is not in\n{variables}");
    }
    let of = |name: &str| variables.lines().find_map(|line| line.strip_prefix(name));
    let tracking = of("MLFLOW_TRACKING_URI=").unwrap();
    assert!(tracking.starts_with("http://127.0.0.1:") && tracking != daemon.url, "{tracking}");
    assert!(!variables.contains(TOKEN) && !variables.contains("hush"), "{variables}");
    let work = agent.attempt(5).join("work");
    let expected = format!("logs\noutputs\n{}\n", work.display());
    assert_eq!(agent.wait_for_file(5, "folders").await, expected);
}

#[tokio::test]
async fn literals_and_optional_inputs_are_put_into_the_command() {
    use atelier_proto::job::v1 as job;
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let command = "echo ${{inputs.rate}} $[[--limit ${{inputs.limit}}]] ${{outputs.model}} >got";
    let mut given = assignment(1, command);
    let spec = given.spec.as_mut().unwrap();
    let literal = job::input::Value::Literal("0.5".to_owned());
    spec.inputs.insert("rate".to_owned(), job::Input { value: Some(literal) });
    let unset = job::input::Value::Unset(job::input::Unset {});
    spec.inputs.insert("limit".to_owned(), job::Input { value: Some(unset) });
    spec.outputs.insert(
        "model".to_owned(),
        job::Output {
            kind: job::DataKind::UriFolder.into(),
            mode: job::OutputMode::RwMount.into(),
            ..job::Output::default()
        },
    );
    session.send(Down::Assign(given));
    session.ended(&key(1)).await;
    let model = agent.attempt(1).join("outputs/model");
    assert!(model.is_dir());
    assert_eq!(agent.wait_for_file(1, "got").await, format!("0.5 {}\n", model.display()));
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named() {
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let ended = session.run(assignment(1, "echo fine; pyhton train.py")).await;
    assert_eq!(code(&ended), Some(127));
    assert_eq!(cause(&ended), Some(pb::Cause::CommandNotFound));
    assert!(message(&ended).contains("'pyhton'"), "{ended:?}");
    let ended = session.run(assignment(2, "/etc/passwd")).await;
    assert_eq!(cause(&ended), Some(pb::Cause::CommandNotFound));
    assert!(message(&ended).contains("'/etc/passwd' cannot be executed"), "{ended:?}");
}

#[tokio::test]
async fn a_cancel_ends_the_job_and_says_why() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "echo $$ >up; sleep 1000")));
    let pid = agent.process(1, "up").await;
    session.cancel(&key(1), "no longer needed");
    session.cancel(&key(1), "said twice");
    let ended = session.ended(&key(1)).await;
    assert_eq!(cause(&ended), Some(pb::Cause::Canceled));
    assert_eq!(message(&ended), "no longer needed");
    assert!(!alive(&pid));
}

#[tokio::test]
async fn a_cancel_right_behind_the_assignment_is_not_lost() {
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    for epoch in 1..20 {
        session.send(Down::Assign(assignment(epoch, "sleep 1000")));
        session.cancel(&key(epoch), "at once");
    }
    for epoch in 1..20 {
        let ended = match session.seen.iter().find_map(|report| match &report.phase {
            Some(pb::attempt_report::Phase::Ended(ended)) if report.key == Some(key(epoch)) => {
                Some(ended.clone())
            }
            _ => None,
        }) {
            Some(ended) => ended,
            None => session.ended(&key(epoch)).await,
        };
        assert_eq!(cause(&ended), Some(pb::Cause::Canceled), "{epoch}: {ended:?}");
    }
}

#[tokio::test]
async fn the_time_limit_is_reported_as_such() {
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let mut given = assignment(1, "sleep 1000");
    given.spec.as_mut().unwrap().limits =
        Some(atelier_proto::job::v1::Limits { timeout_s: Some(1) });
    let ended = session.run(given).await;
    assert_eq!(cause(&ended), Some(pb::Cause::Timeout));
    assert!(message(&ended).contains("1 s"), "{ended:?}");
}

#[tokio::test]
async fn an_assignment_sent_twice_runs_once() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let given = assignment(1, "echo run >>runs; while [ ! -e go ]; do sleep 0.01; done");
    session.send(Down::Assign(given.clone()));
    agent.wait_for_file(1, "runs").await;
    session.send(Down::Assign(given));
    session.heartbeat().await;
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    session.ended(&key(1)).await;
    assert_eq!(agent.wait_for_file(1, "runs").await, "run\n");
}

#[tokio::test]
async fn a_stale_assignment_is_ignored_and_a_newer_one_ends_the_older() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let of = |epoch: u64| {
        let mut given = assignment(epoch, "echo $$ >up; sleep 1000");
        given.key.as_mut().unwrap().job = "one-job".to_owned();
        given
    };
    session.send(Down::Assign(of(7)));
    let older = agent.process(7, "up").await;
    session.send(Down::Assign(of(3)));
    session.send(Down::Assign(of(9)));
    let newer = agent.process(9, "up").await;
    assert!(!alive(&older), "two attempts of one job live");
    assert!(alive(&newer));
    assert!(!agent.attempt(3).exists());
    agent.wait_until_gone(7).await;
    session.cancel(&of(9).key.unwrap(), "");
    session.ended(&of(9).key.unwrap()).await;
}

#[tokio::test]
async fn a_discarded_attempt_is_killed_and_forgotten() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let session = daemon.session().await;
    session.send(Down::Assign(assignment(
        1,
        "trap '' TERM; echo $$ >up; while :; do sleep 0.01; done",
    )));
    let pid = agent.process(1, "up").await;
    session.send(Down::Discard(key(1)));
    agent.wait_until_gone(1).await;
    assert!(!alive(&pid));
    assert!(
        session
            .seen
            .iter()
            .all(|report| !matches!(report.phase, Some(pb::attempt_report::Phase::Ended(_))))
    );
}

#[tokio::test]
async fn a_killed_supervisor_is_the_platforms_fault_and_leaves_nothing_behind() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(
        1,
        "setsid sh -c 'echo $$ >child; sleep 1000' & echo $$ >up; sleep 1000",
    )));
    let (pid, child) = (agent.process(1, "up").await, agent.process(1, "child").await);
    let supervisor = agent.record(1, "started.json").unwrap()["pid"].as_i64().unwrap();
    assert_eq!(unsafe { libc::kill(i32::try_from(supervisor).unwrap(), libc::SIGKILL) }, 0);
    let ended = session.ended(&key(1)).await;
    assert_eq!(cause(&ended), Some(pb::Cause::Platform));
    assert!(ended.exit.is_none() && ended.started_at_ms > 0);
    assert!(!alive(&pid) && !alive(&child), "processes survived their supervisor");
}

#[tokio::test]
async fn without_the_daemons_answers_the_lease_runs_out_and_jobs_end() {
    let mut daemon = Daemon::start_with(|welcome| welcome.lease_ms = 1500).await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "echo $$ >up; sleep 1000")));
    let pid = agent.process(1, "up").await;
    // Answered heartbeats keep it alive for longer than one lease.
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 2500 {
        session.heartbeat().await;
    }
    assert!(alive(&pid));
    drop(daemon);
    wait_for("the job's end", || (!alive(&pid)).then_some(())).await;
    let exited = wait_for("the record", || agent.record(1, "exited.json")).await;
    assert_eq!(exited["ended_by"], "lease");
    let mut daemon = Daemon::start().await;
    agent.point_at(&daemon);
    let mut session = daemon.session().await;
    let ended = match session.hello.attempts[0].phase.clone() {
        Some(pb::attempt_report::Phase::Ended(ended)) => ended,
        _ => session.ended(&key(1)).await,
    };
    assert_eq!(cause(&ended), Some(pb::Cause::LeaseExpired));
}

#[tokio::test]
async fn a_job_that_is_kept_outlives_the_lease() {
    use atelier_proto::job::v1::OnNodeLoss;
    let mut daemon = Daemon::start_with(|welcome| welcome.lease_ms = 1000).await;
    let agent = Agent::start(&daemon);
    let session = daemon.session().await;
    let mut kept = assignment(1, "echo $$ >up; while [ ! -e go ]; do sleep 0.05; done");
    kept.spec.as_mut().unwrap().on_node_loss = OnNodeLoss::Keep.into();
    session.send(Down::Assign(kept));
    session.send(Down::Assign(assignment(2, "echo $$ >up; sleep 1000")));
    let kept = agent.process(1, "up").await;
    let other = agent.process(2, "up").await;
    drop(daemon);
    wait_for("the other job's end", || (!alive(&other)).then_some(())).await;
    wait_for("its record", || agent.record(2, "exited.json")).await;
    assert!(alive(&kept) && agent.record(1, "exited.json").is_none());
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    let exited = wait_for("the record", || agent.record(1, "exited.json")).await;
    assert_eq!(exited["outcome"]["code"], 0, "{exited}");
}

#[tokio::test]
async fn jobs_and_the_node_are_measured() {
    let mut daemon = Daemon::start().await;
    let _agent = Agent::start_with(&daemon, &["--monitor-interval", "0.2"]);
    let mut session = daemon.session().await;
    let usage = session.heartbeat().await.usage;
    for name in ["cpu_utilization", "memory_used_mib", "disk_free_mib"] {
        assert!(usage.contains_key(name), "{usage:?}");
    }
    let busy = "end=$(($(date +%s%N)+1600000000)); while [ $(date +%s%N) -lt $end ]; do :; done";
    let ended = session.run(assignment(1, busy)).await;
    assert_eq!(code(&ended), Some(0));
    let mut samples = Vec::new();
    while let Ok(sample) = daemon.samples.try_recv() {
        samples.push(sample);
    }
    assert!(samples.len() >= 3, "{samples:?}");
    assert!(samples.windows(2).all(|pair| pair[0].step < pair[1].step), "{samples:?}");
    assert!(samples.iter().all(|sample| sample.key == Some(key(1))));
    let cpu = |sample: &pb::RunSample| sample.metrics["system/cpu_utilization_percentage"];
    assert!(samples.iter().map(cpu).fold(0.0, f64::max) > 5.0, "{samples:?}");
    assert!(samples.iter().map(cpu).all(|cpu| cpu < 400.0), "{samples:?}");
    assert!(samples[0].metrics["system/system_memory_usage_megabytes"] > 0.1, "{samples:?}");
}

#[tokio::test]
async fn a_daemon_that_does_not_take_samples_holds_up_no_look_and_gets_them_later() {
    use tonic::Code;
    let mut daemon = Daemon::start().await;
    let metrics = daemon.metrics.clone();
    // The last of them first: for good, and then what a daemon answers that was frozen for a while.
    *metrics.refusals.lock().unwrap() =
        vec![Code::Cancelled, Code::Internal, Code::InvalidArgument];
    let agent = Agent::start_with(&daemon, &["--monitor-interval", "0.1"]);
    let mut session = daemon.session().await;
    session.send(Down::Assign(assignment(1, "while [ ! -e go ]; do sleep 0.05; done")));
    session.running(&key(1)).await;
    let refused = |count| {
        let metrics = metrics.clone();
        wait_for("refusals", move || {
            let refused = metrics.refused.lock().unwrap();
            let left = metrics.refusals.lock().unwrap().len();
            (left == count).then(|| refused.clone())
        })
    };
    let lost = refused(2).await;
    let silence = metrics.silent.lock().await;
    let refused = refused(0).await;
    let silent_since = refused.iter().map(|sample| sample.step).max().unwrap();
    let mut beats = 0;
    // Some have come before.
    while beats < 16 {
        session.heartbeat().await;
        beats += 1;
    }
    drop(silence);
    std::fs::write(agent.attempt(1).join("work/go"), "").unwrap();
    session.ended(&key(1)).await;
    let mut steps = BTreeSet::new();
    let first_of_end = silent_since + 10;
    while steps.last().is_none_or(|step| *step < first_of_end) {
        steps.insert(within(daemon.samples.recv()).await.unwrap().step);
    }
    let kept: BTreeSet<u64> = refused.iter().map(|sample| sample.step).collect();
    let lost: BTreeSet<u64> = lost.iter().map(|sample| sample.step).collect();
    assert!(lost.is_disjoint(&steps), "{lost:?} {steps:?}");
    assert!(kept.difference(&lost).all(|step| steps.contains(step)), "{kept:?} {steps:?}");
    // Looks went on meanwhile.
    assert!(steps.range(silent_since..first_of_end).count() >= 5, "{silent_since} {steps:?}");
}

#[tokio::test]
async fn a_wrong_token_ends_the_agent_with_the_daemons_words() {
    let daemon = Daemon::start().await;
    let mut agent = Agent::start(&daemon);
    agent.kill();
    std::fs::write(agent.data().parent().unwrap().join("token"), "another").unwrap();
    let mut command = agent.command();
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("atelier token create"), "{words}");
    assert!(!words.contains("another"), "{words}");
}

#[tokio::test]
async fn two_agents_cannot_share_a_data_folder() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    daemon.session().await;
    let mut command = agent.command();
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("another agent uses the data folder"), "{words}");
}

#[tokio::test]
async fn a_job_that_stops_its_own_supervisor_is_watched_all_the_same() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start_with(&daemon, &["--isolation=none"]);
    let mut session = daemon.session().await;
    // The supervisor is the parent of the process that started the command.
    let stop = "read -r pid name state parent rest </proc/$PPID/stat; kill -STOP $parent; \
                until [ $state = T ]; do read -r pid name state rest </proc/$parent/stat; done; \
                echo $parent >up; exit 4";
    session.send(Down::Assign(assignment(1, stop)));
    let told = agent.wait_for_file(1, "up").await;
    let started = agent.record(1, "started.json").unwrap();
    assert_eq!(told, format!("{}\n", started["pid"]));
    let ended = session.ended(&key(1)).await;
    assert_eq!(ended.exit.and_then(|exit| exit.how), Some(pb::exit::How::Code(4)));
}

#[tokio::test]
async fn jobs_of_an_earlier_daemon_have_users_of_their_own_too() {
    let mut daemon = Daemon::start().await;
    let agent = Agent::start(&daemon);
    let mut session = daemon.session().await;
    let mut users = Vec::new();
    for epoch in [1, 2] {
        let command = "id -u >user; while [ ! -e go ]; do sleep 0.01; done";
        let given = assignment(epoch, command);
        assert_eq!(given.user_seed, 0);
        session.send(Down::Assign(given));
        users.push(agent.wait_for_file(epoch, "user").await);
    }
    assert_ne!(users[0], users[1]);
    for epoch in [1, 2] {
        std::fs::write(agent.attempt(epoch).join("work/go"), "").unwrap();
        session.ended(&key(epoch)).await;
    }
}
