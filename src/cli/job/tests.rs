//! Job commands against a daemon in this process.

use std::fs;
use std::process::ExitCode;

use atelier_proto::job::v1::{self as pb, JobStatus};
use clap::Parser as _;
use serde_json::Value;
use tonic::{Code, Status};

use super::summary::{exit_code, length, size, text};
use crate::cli::testing::{Daemon, RealDaemon, job};
use crate::cli::{Cli, Command, Context, Error, Format, Kind};
use crate::client::Wanted;

/// Runs a command line of the noun `job`.
async fn atelier_job(line: &[&str], context: &Context) -> Result<ExitCode, Error> {
    let cli = Cli::try_parse_from(["atelier", "job"].iter().chain(line)).unwrap();
    let Command::Job(command) = cli.command else { panic!("not a job command") };
    super::run(command, context).await
}

fn chunk(attempt: u32, offset: u64, data: &'static str) -> Result<pb::LogChunk, Status> {
    Ok(pb::LogChunk { attempt, offset, data: data.as_bytes().into() })
}

fn event(seq: u64, status: JobStatus, message: &str) -> pb::Event {
    pb::Event {
        seq,
        job: "j".to_owned(),
        at_ms: 1_700_000_000_000,
        kind: status.word().to_owned(),
        message: message.to_owned(),
        status: status.into(),
        ..Default::default()
    }
}

fn completed(name: &str) -> pb::Job {
    pb::Job {
        started_at_ms: 2_000,
        ended_at_ms: 14_300,
        attempt: 1,
        exit_code: Some(0),
        ..job(name, JobStatus::Completed)
    }
}

#[tokio::test]
async fn create_sends_the_file_once_and_prints_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yml");
    fs::write(&file, "command: echo ${{inputs.n}}\ninputs:\n  n: 1\n").unwrap();
    let daemon = Daemon::default();
    let (context, captured) = daemon.context(None, None).await;
    let file = file.to_str().unwrap();
    atelier_job(&["create", "-f", file, "--set", "inputs.n=7", "--name", "mine"], &context)
        .await
        .unwrap();
    let view: Value = serde_json::from_str(&captured.data()).unwrap();
    assert_eq!(view["name"], "mine");
    assert_eq!(view["status"], "Queued");
    assert_eq!(view["inputs"]["n"], "7");
    assert_eq!(captured.notes(), "Follow it with `atelier job stream mine`.\n");
    let keys = daemon.world(|world| {
        world.created.iter().map(|request| request.idempotency_key.clone()).collect::<Vec<_>>()
    });
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].len(), 32);
}

#[tokio::test]
async fn create_tries_again_with_the_same_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yml");
    fs::write(&file, "command: 'true'\n").unwrap();
    let daemon = Daemon::default();
    daemon.world(|world| world.failures.push_back(Status::unavailable("stopping")));
    let (context, _) = daemon.context(None, None).await;
    atelier_job(&["create", "-f", file.to_str().unwrap()], &context).await.unwrap();
    daemon.world(|world| {
        assert_eq!(world.created.len(), 2);
        assert_eq!(world.created[0].idempotency_key, world.created[1].idempotency_key);
    });
}

#[tokio::test]
async fn a_refused_job_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yml");
    fs::write(&file, "command: 'true'\n").unwrap();
    let daemon = Daemon::default();
    daemon.world(|world| {
        world.failures.push_back(Status::failed_precondition("8 GPUs; the largest node has 2"));
    });
    let (context, captured) = daemon.context(None, None).await;
    let error = atelier_job(&["create", "-f", file.to_str().unwrap()], &context).await.unwrap_err();
    assert_eq!(
        (error.kind, error.cause.as_str()),
        (Kind::Refused, "8 GPUs; the largest node has 2")
    );
    assert_eq!(daemon.world(|world| world.created.len()), 1);
    assert_eq!(captured.data(), "");
}

#[tokio::test]
async fn a_faulty_file_needs_no_daemon_to_be_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yml");
    fs::write(&file, "comand: x\ninputs: {}\n").unwrap();
    let (output, _) = crate::cli::output::tests::captured(None, None);
    let context = Context { output, wanted: Wanted::default() };
    let error = atelier_job(&["create", "-f", file.to_str().unwrap()], &context).await.unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.cause.contains("job.yml:1:1: "), "{}", error.cause);
    assert!(error.cause.contains("command"), "{}", error.cause);
    let missing = atelier_job(&["create", "-f", "no/such.yml"], &context).await.unwrap_err();
    assert_eq!(missing.kind, Kind::NotFound);
    assert!(missing.cause.starts_with("cannot read no/such.yml: "), "{}", missing.cause);
}

#[tokio::test]
async fn a_job_too_large_for_a_message_is_told_before_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.yml");
    fs::write(&file, "command: 'true'\n").unwrap();
    let daemon = Daemon::default();
    let (context, _) = daemon.context(None, None).await;
    let client = context.client().await.unwrap();
    let mut job = super::read::file(&file, &[], &context.output).unwrap();
    for index in 0..90 {
        let name = atelier_core::id::PortName::new(&format!("i{index}")).unwrap();
        let value = "x".repeat(60_000);
        job.inputs.insert(name, atelier_core::spec::Input::Literal { value });
    }
    let error = super::submit::create(&context, &client, job).await.unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(
        error.cause.starts_with("the job is 5.2 MiB when sent, and at most 4 MiB"),
        "{error:?}"
    );
    assert!(error.help.unwrap().contains("input files"));
    assert_eq!(daemon.world(|world| world.created.len()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_and_inputs_travel_once_and_the_job_names_them_in_the_workspace() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("src")).unwrap();
    fs::write(at("src/a.py"), "print(1)").unwrap();
    fs::write(at("data.csv"), "1,2,3").unwrap();
    fs::write(
        at("job.yml"),
        "command: python a.py ${{inputs.d}}\ncode: src\n\
         inputs:\n  d:\n    type: uri_file\n    path: data.csv\n",
    )
    .unwrap();
    let daemon = RealDaemon::start().await;
    let file = at("job.yml");
    let create = async || {
        let (output, captured) = crate::cli::output::tests::captured(Some(Format::Json), None);
        let context = Context { output, wanted: daemon.wanted() };
        atelier_job(&["create", "-f", file.to_str().unwrap()], &context).await.unwrap();
        let view: Value = serde_json::from_str(&captured.data()).unwrap();
        (view, captured.notes())
    };
    let (first, notes) = create().await;
    assert!(first["code"].as_str().unwrap().starts_with("azureml:code:"), "{first}");
    let path = first["inputs"]["d"]["path"].as_str().unwrap();
    assert!(
        path.starts_with("azureml://datastores/workspaceblobstore/paths/LocalUpload/")
            && path.ends_with("/data.csv"),
        "{path}"
    );
    assert!(notes.contains("Sent code: 1 file, "), "{notes}");
    let (second, notes) = create().await;
    assert_eq!((&second["code"], &second["inputs"]), (&first["code"], &first["inputs"]));
    assert!(!notes.contains("Sent"), "{notes}");
    assert_ne!(second["name"], first["name"]);
}

#[tokio::test]
async fn list_turns_pages_until_it_has_enough() {
    let daemon = Daemon::default();
    daemon.world(|world| {
        world.jobs = (0..5).map(|n| job(&format!("job{n}"), JobStatus::Completed)).collect();
    });
    let (context, captured) = daemon.context(Some(Format::Tsv), Some("[].name")).await;
    atelier_job(&["list", "-r", "3", "--status", "Completed"], &context).await.unwrap();
    assert_eq!(captured.data(), "job0\njob1\njob2\n");
    assert_eq!(captured.notes(), "The newest 3 jobs; --all-results shows all.\n");
    daemon.world(|world| {
        let sizes: Vec<_> = world.list_requests.iter().map(|r| r.page_size).collect();
        assert_eq!(sizes, [3, 1]);
        assert_eq!(world.list_requests[0].statuses, [i32::from(JobStatus::Completed)]);
    });
    let (context, captured) = daemon.context(Some(Format::Tsv), Some("length(@)")).await;
    atelier_job(&["list", "--all-results"], &context).await.unwrap();
    assert_eq!((captured.data().as_str(), captured.notes().as_str()), ("5\n", ""));
}

#[tokio::test]
async fn show_has_azures_field_names() {
    let daemon = Daemon::default();
    daemon.world(|world| {
        let mut job = completed("j");
        job.created_by = "ana".to_owned();
        job.compute = "local".to_owned();
        job.node = "n1".to_owned();
        job.outputs.push(pb::OutputCommit {
            name: "model".to_owned(),
            uri: "azureml://datastores/workspaceblobstore/paths/azureml/j/model/".to_owned(),
            files: 2,
            bytes: 3_000,
            partial: false,
        });
        job.metrics.insert("loss".to_owned(), 0.25);
        world.jobs.push(job);
    });
    let (context, captured) = daemon.context(Some(Format::Json), None).await;
    atelier_job(&["show", "j"], &context).await.unwrap();
    let view: Value = serde_json::from_str(&captured.data()).unwrap();
    assert_eq!(view["type"], "command");
    assert_eq!(view["display_name"], "j");
    assert_eq!(view["experiment_name"], "tests");
    assert_eq!(view["compute"], "azureml:local");
    assert_eq!(view["creation_context"]["created_at"], "1970-01-01T00:00:01.000Z");
    assert_eq!(view["creation_context"]["created_by"], "ana");
    assert_eq!(view["start_time"], "1970-01-01T00:00:02.000Z");
    assert_eq!(view["duration"], 12.3);
    assert_eq!(view["error"], Value::Null);
    assert_eq!(
        view["outputs"]["model"]["path"],
        "azureml://datastores/workspaceblobstore/paths/azureml/j/model/"
    );
    assert_eq!(view["metrics"]["loss"], 0.25);
    let error = atelier_job(&["show", "nobody"], &context).await.unwrap_err();
    assert_eq!((error.kind, error.cause.as_str()), (Kind::NotFound, "there is no job 'nobody'"));
}

#[tokio::test]
async fn a_wrong_token_is_told_apart_from_no_daemon() {
    let daemon = Daemon::default();
    let (mut context, _) = daemon.context(None, None).await;
    context.wanted.token = Some("wrong".to_owned());
    let error = atelier_job(&["show", "j"], &context).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotAllowed);
    assert_eq!(error.cause, "this token is unknown here");
    // Port 1 has no listener on any machine that tests run on.
    context.wanted.server = Some("127.0.0.1:1".to_owned());
    let error = atelier_job(&["show", "j"], &context).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert!(
        error.cause.starts_with("cannot reach the daemon at http://127.0.0.1:1: "),
        "{error:?}"
    );
    assert!(error.cause.contains("refused"), "{error:?}");
}

#[tokio::test]
async fn stream_prints_the_log_and_ends_as_the_job_did() {
    let daemon = Daemon::default();
    daemon.world(|world| {
        let mut job = completed("j");
        job.metrics.insert("accuracy".to_owned(), 0.971_234_56);
        world.jobs.push(job);
        world.events = vec![
            event(1, JobStatus::Queued, "waits for 1 CPU"),
            event(2, JobStatus::Preparing, "preparing: code, inputs"),
            event(3, JobStatus::Running, "on local"),
            event(4, JobStatus::Completed, ""),
        ];
        world.logs.push_back(vec![chunk(1, 0, "hello\n"), chunk(1, 6, "world\n")]);
    });
    let (context, captured) = daemon.context(None, None).await;
    let code = atelier_job(&["stream", "j"], &context).await.unwrap();
    assert_eq!(code, ExitCode::from(0));
    assert_eq!(captured.data(), "hello\nworld\n");
    assert_eq!(
        captured.notes(),
        "Queued: waits for 1 CPU\nPreparing: code, inputs\nRunning: on local\nj: Completed after 12.3 s\n  \
         metrics  accuracy = 0.971235\n  next     atelier job download j --all\n           \
         atelier job show j\n"
    );
}

#[tokio::test]
async fn stream_goes_on_where_it_was_after_the_daemon_came_back() {
    let daemon = Daemon::default();
    daemon.world(|world| {
        world.jobs.push(completed("j"));
        world.events = vec![event(1, JobStatus::Running, ""), event(2, JobStatus::Completed, "")];
        world.logs.push_back(vec![
            chunk(1, 0, "one "),
            chunk(2, 0, "two "),
            Err(Status::unavailable("stopping")),
        ]);
        // What was seen comes again in part: only the rest is new.
        world.logs.push_back(vec![
            chunk(2, 2, "o three "),
            chunk(2, 4, "three "),
            chunk(1, 0, "x"),
        ]);
    });
    let (context, captured) = daemon.context(None, None).await;
    atelier_job(&["stream", "j"], &context).await.unwrap();
    assert_eq!(captured.data(), "one two three ");
    daemon.world(|world| {
        let asked: Vec<_> = world.log_requests.iter().map(|r| (r.attempt, r.offset)).collect();
        assert_eq!(asked, [(0, 0), (2, 4)]);
        assert!(world.log_requests.iter().all(|request| request.follow));
    });
    assert!(captured.notes().contains("Attempt 2 of j.\n"));
}

#[tokio::test]
async fn a_stream_that_is_refused_is_not_tried_again() {
    let daemon = Daemon::default();
    daemon.world(|world| {
        world.jobs.push(job("j", JobStatus::Running));
        world.logs.push_back(vec![Err(Status::new(Code::DataLoss, "the log is damaged"))]);
    });
    let (context, _) = daemon.context(None, None).await;
    let error = atelier_job(&["stream", "j"], &context).await.unwrap_err();
    assert_eq!(error.kind, Kind::Failed);
    assert_eq!(daemon.world(|world| world.log_requests.len()), 1);
}

#[tokio::test]
async fn events_are_listed_and_followed() {
    let daemon = Daemon::default();
    daemon.world(|world| {
        world.jobs.push(completed("j"));
        // The first stream ends while the job still runs, as when a daemon shuts down.
        world.answers.push_back(job("j", JobStatus::Running));
        world.events =
            vec![event(1, JobStatus::Queued, "submitted by ana"), event(2, JobStatus::Running, "")];
    });
    let (context, captured) = daemon.context(None, None).await;
    atelier_job(&["events", "j"], &context).await.unwrap();
    assert!(
        captured.data().starts_with("SEQ  TIME                 ATTEMPT  EVENT    BY  MESSAGE\n")
    );
    let (context, captured) = daemon.context(Some(Format::Json), None).await;
    atelier_job(&["events", "j", "--follow", "--after", "1"], &context).await.unwrap();
    let line: Value = serde_json::from_str(captured.data().trim_end()).unwrap();
    assert_eq!((&line["seq"], &line["status"]), (&2.into(), &"Running".into()));
    assert!(daemon.world(|world| world.answers.is_empty()), "the job's end was not asked for");
}

#[tokio::test]
async fn deleting_needs_a_yes() {
    let daemon = Daemon::default();
    daemon.world(|world| world.jobs.push(completed("j")));
    let (context, captured) = daemon.context(None, None).await;
    let error = atelier_job(&["delete", "j"], &context).await.unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.help.unwrap().contains("atelier job delete j --yes"));
    assert!(daemon.world(|world| world.deleted.is_empty()));
    atelier_job(&["delete", "j", "-y"], &context).await.unwrap();
    assert_eq!(daemon.world(|world| world.deleted.clone()), ["j"]);
    assert_eq!(captured.notes(), "Deleted j.\n");
}

#[tokio::test]
async fn nothing_to_download_is_told() {
    let daemon = Daemon::default();
    daemon.world(|world| world.jobs.push(completed("j")));
    let (context, _) = daemon.context(None, None).await;
    let error =
        atelier_job(&["download", "j", "--output-name", "model"], &context).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert_eq!(error.cause, "j has nothing under the output 'model'");
}

#[test]
fn a_followed_job_gives_its_own_exit_code() {
    let ended = |status, exit_code: Option<i32>| {
        self::exit_code(&pb::Job { exit_code, ..job("j", status) })
    };
    assert_eq!(ended(JobStatus::Completed, Some(0)), 0);
    assert_eq!(ended(JobStatus::Failed, Some(3)), 3);
    assert_eq!(ended(JobStatus::Failed, Some(137)), 137);
    assert_eq!(ended(JobStatus::Failed, Some(-9)), 137);
    assert_eq!(ended(JobStatus::Failed, None), 1);
    assert_eq!(ended(JobStatus::Failed, Some(0)), 1);
    assert_eq!(ended(JobStatus::Failed, Some(1000)), 1);
    assert_eq!(ended(JobStatus::Failed, Some(i32::MIN)), 1);
    assert_eq!(ended(JobStatus::Canceled, Some(-15)), 130);
    assert_eq!(ended(JobStatus::Canceled, None), 130);
}

#[test]
fn the_summary_tells_why_a_job_failed_and_what_next() {
    let failed = pb::Job {
        exit_code: Some(2),
        attempt: 2,
        started_at_ms: 2_000,
        ended_at_ms: 252_000,
        error: Some(pb::JobError {
            code: "UserError".to_owned(),
            message: "the command ended with exit code 2".to_owned(),
        }),
        outputs: vec![pb::OutputCommit {
            name: "model".to_owned(),
            uri: "azureml://datastores/d/paths/p".to_owned(),
            files: 1,
            bytes: 1536,
            partial: true,
        }],
        ..job("j", JobStatus::Failed)
    };
    assert_eq!(
        text(&failed),
        "\
j: Failed after 4 min 10 s, exit code 2, attempt 2
  error    UserError: the command ended with exit code 2
  outputs  model: azureml://datastores/d/paths/p (1 file, 1.5 KiB, partial)
  next     atelier job events j
           atelier job download j --all"
    );
}

#[test]
fn the_summary_keeps_to_the_jobs_own_metrics() {
    let mut job = completed("j");
    job.metrics.insert("system/cpu_utilization".to_owned(), 12.0);
    for (key, value) in [
        ("a", 100.0),
        ("b", 1e-9),
        ("c", 0.1 + 0.2),
        ("d", f64::NAN),
        ("e", 1_234_567.5),
        ("f", 0.0),
    ] {
        job.metrics.insert(key.to_owned(), value);
    }
    let text = text(&job);
    let metrics: Vec<&str> =
        text.lines().filter(|line| line.contains(" = ")).map(str::trim).collect();
    assert_eq!(
        metrics,
        ["metrics  a = 100", "b = 1.00000e-9", "c = 0.3", "d = NaN", "e = 1234568", "f = 0"]
    );
}

#[test]
fn lengths_and_sizes_are_for_people() {
    assert_eq!(length(340), "340 ms");
    assert_eq!(length(12_345), "12.3 s");
    assert_eq!(length(250_000), "4 min 10 s");
    assert_eq!(length(7_500_000), "2 h 5 min");
    assert_eq!(length(273_600_000), "3 d 4 h");
    assert_eq!(size(999), "999 B");
    assert_eq!(size(1536), "1.5 KiB");
    assert_eq!(size(u64::MAX), "16384.0 PiB");
}
