mod deleted;
mod ranked;

use atelier_core::access::{AttemptScope, Caller, Role};
use atelier_core::id::{AttemptNumber, Epoch, ExperimentName, JobName, Principal};
use atelier_core::time::Timestamp;
use atelier_core::track::search::{experiment_filter, experiment_order, run_filter, run_order};
use atelier_core::track::{
    ArtifactPath, Code, Dataset, DatasetInput, ExperimentId, Metric, PageToken, Param, RunId,
    RunStatus, StoredMetric, Tag, ViewType,
};
use proptest::prelude::*;
use rusqlite::Connection;

use self::ranked::{end, rank};
use super::super::Error;
use super::run_search::{self, Plan};
use super::{
    DELETED_MIGRATION, DELETED_MODELS_MIGRATION, Entry, ExperimentChange, ExperimentQuery, JobRun,
    MIGRATION, MODELS_MIGRATION, ModelChange, NewModel, NewRun, RANKED_MIGRATION, RunChange,
    RunQuery, SEAL_AT_LEAST, TrackReply, TrackWrite,
};

fn database() -> Connection {
    let conn = Connection::open_in_memory().expect("sqlite");
    conn.execute_batch(MIGRATION).expect("migration");
    conn.execute_batch(MODELS_MIGRATION).expect("migration");
    conn.execute_batch(DELETED_MIGRATION).expect("migration");
    conn.execute_batch(DELETED_MODELS_MIGRATION).expect("migration");
    conn.execute_batch("CREATE TABLE jobs (name TEXT, live INTEGER)").expect("jobs");
    conn.execute_batch(RANKED_MIGRATION).expect("migration");
    conn
}

/// Applies a write as the store's writer does: undone if it fails.
fn apply(conn: &Connection, write: &TrackWrite) -> Result<TrackReply, Error> {
    conn.execute_batch("SAVEPOINT work").expect("savepoint");
    let reply = write.apply(conn);
    let end = if reply.is_ok() { "RELEASE work" } else { "ROLLBACK TO work; RELEASE work" };
    conn.execute_batch(end).expect("savepoint");
    reply
}

fn refused(result: Result<TrackReply, Error>, code: Code, part: &str) {
    match result {
        Err(Error::Track(refusal)) => {
            assert_eq!(refusal.code(), code, "{refusal}");
            assert!(refusal.to_string().contains(part), "{refusal}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

fn user(name: &str, role: Role) -> Caller {
    Caller { principal: Principal::new(name).expect("principal"), role }
}

fn admin() -> Caller {
    user("root", Role::Admin)
}

fn ada() -> Caller {
    user("ada", Role::DataScientist)
}

fn attempt(job: &str) -> Caller {
    let scope = AttemptScope {
        job: JobName::new(job).expect("job"),
        attempt: AttemptNumber(1),
        epoch: Epoch(7),
    };
    user("attempt:x/1", Role::Attempt(scope))
}

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const ALL: std::ops::RangeInclusive<i64> = i64::MIN..=i64::MAX;

fn id(text: &str) -> RunId {
    RunId::new(text).expect("run id")
}

fn tag(key: &str, value: &str) -> Tag {
    Tag { key: key.to_owned(), value: value.to_owned() }
}

fn point(key: &str, step: i64, value: f64) -> Metric {
    Metric { key: key.to_owned(), value, timestamp: 1000 + step, step }
}

fn create(conn: &Connection, by: Caller, run: &str, started: i64) {
    let run = NewRun {
        id: id(run),
        experiment: ExperimentId(0),
        name: format!("name of {run}"),
        started: Timestamp::from_millis(started),
        tags: Vec::new(),
    };
    apply(conn, &TrackWrite::CreateRun { by, run }).expect("create run");
}

fn change(
    conn: &Connection,
    by: Caller,
    run: &str,
    change: RunChange,
) -> Result<TrackReply, Error> {
    apply(conn, &TrackWrite::ChangeRun { by, id: id(run), change })
}

fn log(
    conn: &Connection,
    run: &str,
    metrics: &[Metric],
    params: &[(&str, &str)],
    tags: &[(&str, &str)],
) -> Result<TrackReply, Error> {
    let params = params.iter().map(|(k, v)| Param { key: (*k).to_owned(), value: (*v).to_owned() });
    let change = RunChange::Log {
        metrics: metrics.to_vec(),
        params: params.collect(),
        tags: tags.iter().map(|(k, v)| tag(k, v)).collect(),
        of_models: vec![],
    };
    super::tests::change(conn, ada(), run, change)
}

fn job_run(conn: &Connection, job: &str, experiment: &str) -> TrackReply {
    let run = JobRun {
        job: JobName::new(job).expect("job"),
        experiment: ExperimentName::new(experiment).expect("name"),
        display_name: "shown".to_owned(),
        owner: Principal::new("ada").expect("principal"),
        status: RunStatus::Scheduled,
        at: NOW,
        tags: vec![tag("team", "vision")],
    };
    apply(conn, &TrackWrite::CreateJobRun(run)).expect("job run")
}

fn follow(conn: &Connection, job: &str, status: RunStatus) {
    let job = JobName::new(job).expect("job");
    apply(conn, &TrackWrite::FollowJob { job, status, at: NOW }).expect("follow");
}

#[test]
fn the_same_batch_twice_adds_nothing() {
    let conn = database();
    create(&conn, ada(), "r", 1);
    let points: Vec<_> = (0..10)
        .map(|i| point("loss", i, if i == 3 { f64::NAN } else { i as f64 }))
        .chain([point("inf", 0, f64::INFINITY)])
        .collect();
    for _ in 0..2 {
        log(&conn, "r", &points, &[("lr", "0.1")], &[("t", "v")]).expect("log");
    }
    let run = super::run(&conn, &id("r")).expect("run");
    assert_eq!(super::hot_points(&conn, &id("r"), "loss", &ALL).expect("history").len(), 10);
    assert_eq!(run.params.len(), 1);
    let latest: Vec<_> = run.metrics.iter().map(|m| (m.key.as_str(), m.value)).collect();
    assert_eq!(latest, [("inf", f64::MAX), ("loss", 9.0)]);
    let hot: i64 = conn.query_row("SELECT hot FROM runs", [], |row| row.get(0)).expect("hot");
    assert_eq!(hot, 11);
}

#[test]
fn the_latest_does_not_depend_on_arrival() {
    let conn = database();
    create(&conn, ada(), "r", 1);
    for points in [[point("m", 5, 1.0)], [point("m", 9, 0.5)], [point("m", 2, 8.0)]] {
        log(&conn, "r", &points, &[], &[]).expect("log");
    }
    let run = super::run(&conn, &id("r")).expect("run");
    assert_eq!((run.metrics[0].step, run.metrics[0].value), (9, 0.5));
}

#[test]
fn a_batch_is_all_or_none_and_params_do_not_change() {
    let conn = database();
    create(&conn, ada(), "r", 1);
    log(&conn, "r", &[], &[("lr", "0.1")], &[]).expect("first");
    let again = log(&conn, "r", &[point("m", 0, 1.0)], &[("new", "x"), ("lr", "0.2")], &[]);
    refused(
        again,
        Code::InvalidParameterValue,
        "Param with key='lr' was already logged with value='0.1' for run ID='r'. Attempted \
         logging new value '0.2'.",
    );
    let run = super::run(&conn, &id("r")).expect("run");
    assert_eq!(run.params.len(), 1);
    assert!(run.metrics.is_empty());
}

#[test]
fn who_may_write() {
    let conn = database();
    create(&conn, ada(), "r", 1);
    job_run(&conn, "job_a", "exp");
    let set = || RunChange::Log {
        metrics: vec![],
        params: vec![],
        tags: vec![tag("a", "b")],
        of_models: vec![],
    };
    let grace = user("grace", Role::DataScientist);
    refused(change(&conn, grace, "r", set()), Code::PermissionDenied, "only its owner or an admin");
    refused(
        change(&conn, user("ada", Role::Reader), "r", set()),
        Code::PermissionDenied,
        "may not write to runs",
    );
    refused(
        change(&conn, attempt("job_a"), "r", set()),
        Code::PermissionDenied,
        "only to its own run 'job_a'",
    );
    change(&conn, attempt("job_a"), "job_a", set()).expect("own run");
    change(&conn, admin(), "r", set()).expect("admin");
    // What a run found out is its owner's to say.
    let metrics = vec![point("loss", 0, 1.0)];
    let found = RunChange::Log { metrics, params: vec![], tags: vec![], of_models: vec![] };
    refused(change(&conn, admin(), "r", found), Code::PermissionDenied, "only its owner may");
    change(&conn, ada(), "job_a", set()).expect("the submitter");
    refused(
        change(&conn, ada(), "nope", set()),
        Code::ResourceDoesNotExist,
        "Run with id=nope not found",
    );
    let made = TrackWrite::CreateExperiment {
        by: attempt("job_a"),
        name: ExperimentName::new("other").expect("name"),
        tags: vec![],
        at: NOW,
    };
    refused(apply(&conn, &made), Code::PermissionDenied, "leave out set_experiment('other')");
}

#[test]
fn a_jobs_run_follows_the_job() {
    let conn = database();
    assert_eq!(job_run(&conn, "job_a", "exp"), TrackReply::Experiment(ExperimentId(1)));
    assert_eq!(job_run(&conn, "job_b", "exp"), TrackReply::Experiment(ExperimentId(1)));
    follow(&conn, "job_a", RunStatus::Running);
    let end = RunChange::Update {
        status: Some(RunStatus::Finished),
        ended: Some(NOW),
        name: Some("renamed".to_owned()),
    };
    change(&conn, attempt("job_a"), "job_a", end).expect("update");
    let info = super::run_info(&conn, &id("job_a")).expect("info");
    assert_eq!((info.status, info.ended), (RunStatus::Running, None));
    assert_eq!(info.name.as_deref(), Some("renamed"));

    // A run made within the job is the job's to write, and ends with it.
    let child = NewRun {
        id: id("child"),
        experiment: ExperimentId(1),
        name: "trial".to_owned(),
        started: NOW,
        tags: vec![tag("mlflow.parentRunId", "job_a")],
    };
    apply(&conn, &TrackWrite::CreateRun { by: attempt("job_a"), run: child.clone() })
        .expect("child");
    let set = || RunChange::Log {
        metrics: vec![],
        params: vec![],
        tags: vec![tag("a", "b")],
        of_models: vec![],
    };
    change(&conn, attempt("job_a"), "child", set()).expect("own child");
    refused(change(&conn, attempt("job_b"), "child", set()), Code::PermissionDenied, "own run");
    let elsewhere = NewRun { id: id("x"), experiment: ExperimentId(0), ..child };
    refused(
        apply(&conn, &TrackWrite::CreateRun { by: attempt("job_a"), run: elsewhere }),
        Code::PermissionDenied,
        "only in its own experiment 1",
    );
    follow(&conn, "job_a", RunStatus::Failed);
    for run in ["job_a", "child"] {
        let info = super::run_info(&conn, &id(run)).expect("info");
        assert_eq!((info.status, info.ended), (RunStatus::Failed, Some(NOW)), "{run}");
    }
    let other = super::run_info(&conn, &id("job_b")).expect("info");
    assert_eq!(other.status, RunStatus::Scheduled);

    apply(&conn, &TrackWrite::ForgetJob(JobName::new("job_a").expect("job"))).expect("forget");
    assert!(super::run_info(&conn, &id("child")).is_err());
    assert!(super::run_info(&conn, &id("job_b")).is_ok());
}

#[test]
fn a_jobs_run_is_never_refused() {
    let conn = database();
    job_run(&conn, "job_a", "exp");
    let by = admin();
    let change = ExperimentChange::Delete;
    let delete = TrackWrite::ChangeExperiment { by, id: ExperimentId(1), change, at: NOW };
    apply(&conn, &delete).expect("delete");
    assert_eq!(job_run(&conn, "job_b", "exp"), TrackReply::Experiment(ExperimentId(1)));
    // A job that is called like someone's run does not get that run.
    create(&conn, user("grace", Role::DataScientist), "mine", 1);
    create(&conn, ada(), "newest", 1);
    job_run(&conn, "mine", "exp");
    follow(&conn, "mine", RunStatus::Failed);
    let mine = super::run_info(&conn, &id("mine")).expect("run");
    assert_eq!((mine.status, mine.owner.as_str()), (RunStatus::Running, "grace"));
    let newest = super::run(&conn, &id("newest")).expect("run");
    assert!(newest.tags.iter().all(|tag| tag.key != "team"), "the job's tags went astray");
    let set = RunChange::Log {
        metrics: vec![],
        params: vec![],
        tags: vec![tag("a", "b")],
        of_models: vec![],
    };
    refused(super::tests::change(&conn, attempt("mine"), "mine", set), Code::PermissionDenied, "");
    apply(&conn, &TrackWrite::ForgetJob(JobName::new("mine").expect("job"))).expect("forget");
    super::run_info(&conn, &id("mine")).expect("still there");
}

#[test]
fn deleted_runs_take_no_writes_until_restored() {
    let conn = database();
    create(&conn, ada(), "r", 1);
    change(&conn, ada(), "r", RunChange::Delete(NOW)).expect("delete");
    refused(
        log(&conn, "r", &[], &[("a", "b")], &[]),
        Code::InvalidParameterValue,
        "must be in the 'active' state",
    );
    change(&conn, ada(), "r", RunChange::Restore).expect("restore");
    log(&conn, "r", &[], &[("a", "b")], &[]).expect("log");
    refused(
        change(&conn, ada(), "r", RunChange::DeleteTag("nope".to_owned())),
        Code::ResourceDoesNotExist,
        "No tag with name: nope in run with id r",
    );
    change(&conn, ada(), "r", RunChange::DeleteTag("mlflow.runName".to_owned())).expect("name");
    assert!(super::run(&conn, &id("r")).expect("run").tags.is_empty());
}

#[test]
fn experiments_live_and_die() {
    let conn = database();
    let make = |by: Caller, name: &str| {
        let name = ExperimentName::new(name).expect("name");
        apply(&conn, &TrackWrite::CreateExperiment { by, name, tags: vec![tag("k", "v")], at: NOW })
    };
    let alter = |by: Caller, id: i64, change: ExperimentChange| {
        apply(&conn, &TrackWrite::ChangeExperiment { by, id: ExperimentId(id), change, at: NOW })
    };
    assert_eq!(make(ada(), "one").expect("one"), TrackReply::Experiment(ExperimentId(1)));
    refused(make(ada(), "one"), Code::ResourceAlreadyExists, "Experiment(name=one) already exists");
    make(ada(), "two").expect("two");
    let name = |name: &str| ExperimentName::new(name).expect("name");
    refused(
        alter(ada(), 1, ExperimentChange::Rename(name("two"))),
        Code::ResourceAlreadyExists,
        "already exists",
    );
    alter(ada(), 1, ExperimentChange::Rename(name("uno"))).expect("rename");
    refused(
        alter(user("grace", Role::DataScientist), 1, ExperimentChange::Delete),
        Code::PermissionDenied,
        "of ada",
    );
    job_run(&conn, "job_a", "uno");
    alter(ada(), 1, ExperimentChange::Delete).expect("delete");
    let run = super::run_info(&conn, &id("job_a")).expect("run");
    assert_eq!(run.stage, atelier_core::track::LifecycleStage::Deleted);
    refused(alter(ada(), 1, ExperimentChange::Delete), Code::ResourceDoesNotExist, "id=1");
    refused(alter(ada(), 1, ExperimentChange::Rename(name("x"))), Code::InvalidState, "non-active");
    refused(
        alter(ada(), 1, ExperimentChange::SetTag(tag("a", "b"))),
        Code::InvalidParameterValue,
        "experiment 1 must be in the 'active' state",
    );
    alter(ada(), 1, ExperimentChange::Restore).expect("restore");
    alter(ada(), 1, ExperimentChange::SetTag(tag("a", "b"))).expect("tag");
    alter(ada(), 1, ExperimentChange::DeleteTag("k".to_owned())).expect("untag");
    let found = super::experiment_by_name(&conn, "uno").expect("read").expect("uno");
    assert_eq!(found.tags, [tag("a", "b")]);
    refused(alter(ada(), 9, ExperimentChange::Restore), Code::ResourceDoesNotExist, "id=9 exists");

    let search = |filter: &str, order: &[&str], view| {
        let order: Vec<_> = order.iter().map(|o| (*o).to_owned()).collect();
        let query = ExperimentQuery {
            filter: experiment_filter(filter).expect(filter),
            only: None,
            order: experiment_order(&order).expect("order"),
            view,
            limit: 10,
            after: None,
            fingerprint: 1,
        };
        let page = super::search_experiments(&conn, &query).expect("search");
        page.items.iter().map(|e| e.name.as_str().to_owned()).collect::<Vec<_>>()
    };
    let all = ViewType::ActiveOnly;
    assert_eq!(search("", &["name"], all), ["Default", "two", "uno"]);
    assert_eq!(search("name LIKE 'U%'", &[], all), [""; 0]);
    assert_eq!(search("name ILIKE 'U%'", &[], all), ["uno"]);
    assert_eq!(search("tags.a = 'b'", &[], all), ["uno"]);
    assert_eq!(search("tags.a IS NULL", &["experiment_id DESC"], all), ["two", "Default"]);
    assert_eq!(search("experiment_id IN ('0', '2')", &["name DESC"], all), ["two", "Default"]);
    assert_eq!(search("creation_time < 5", &[], all), [""; 0]);
    assert_eq!(search("", &[], ViewType::DeletedOnly), [""; 0]);
}

fn searchable() -> Connection {
    let conn = database();
    for (i, run) in ["a", "b", "c", "d"].iter().enumerate() {
        create(&conn, ada(), run, 100 + i as i64);
    }
    log(&conn, "a", &[point("m", 0, 1.0), point("odd key", 0, 5.0)], &[("p", "Xy")], &[("t", "1")])
        .expect("a");
    log(&conn, "b", &[point("m", 0, 2.0)], &[("p", "x*y")], &[("t", "2")]).expect("b");
    log(&conn, "c", &[point("m", 0, f64::NAN)], &[("p", "[xy]")], &[]).expect("c");
    let train = DatasetInput {
        dataset: Dataset {
            name: "digits".to_owned(),
            digest: "abc".to_owned(),
            source_type: "local".to_owned(),
            source: "{}".to_owned(),
            schema: None,
            profile: None,
        },
        tags: vec![tag("mlflow.data.context", "training")],
    };
    change(
        &conn,
        ada(),
        "d",
        RunChange::Inputs { datasets: vec![train.clone(), train], models: vec![] },
    )
    .expect("inputs");
    let end = RunChange::Update { status: Some(RunStatus::Finished), ended: Some(NOW), name: None };
    change(&conn, ada(), "a", end).expect("end");
    conn
}

fn query(filter: &str, order: &[&str]) -> RunQuery {
    let order: Vec<_> = order.iter().map(|o| (*o).to_owned()).collect();
    RunQuery {
        experiments: vec![ExperimentId(0)],
        filter: run_filter(filter).expect(filter),
        order: run_order(&order).expect("order"),
        view: ViewType::ActiveOnly,
        limit: 100,
        after: None,
        fingerprint: 1,
    }
}

fn found(conn: &Connection, query: &RunQuery) -> String {
    let page = super::search_runs(conn, query).expect("search");
    assert_eq!(page.next, None);
    page.items.iter().map(|run| run.info.id.as_str()).collect()
}

#[test]
fn runs_are_found_by_what_they_have() {
    let conn = searchable();
    for (filter, expected) in [
        ("", "dcba"),
        ("metrics.m > 1", "b"),
        ("metrics.m >= 1", "ba"),
        ("metrics.m = 0", ""),
        ("metrics.m != 1", "cb"),
        ("metrics.`odd key` = 5", "a"),
        ("params.p LIKE 'X%'", "a"),
        ("params.p LIKE '_y'", "a"),
        ("params.p ILIKE 'x%'", "ba"),
        ("params.p LIKE '%*%'", "b"),
        ("params.p LIKE '[xy]'", "c"),
        ("params.p LIKE '%]'", "c"),
        ("params.p != 'Xy'", "cb"),
        ("params.p IS NULL", "d"),
        ("tags.t IS NOT NULL", "ba"),
        ("tags.`mlflow.runName` = 'name of c'", "c"),
        ("attributes.run_name LIKE 'name%' AND tags.t = '2'", "b"),
        ("run_id IN ('a', 'c', 'zz')", "ca"),
        ("run_id NOT IN ('a', 'c')", "db"),
        ("status = 'FINISHED'", "a"),
        ("status != 'FINISHED'", "dcb"),
        ("end_time > 5", "a"),
        ("start_time <= 101", "ba"),
        ("user_id = 'ada'", "dcba"),
        ("artifact_uri = 'mlflow-artifacts:/0/b/artifacts'", "b"),
        ("dataset.name = 'digits' AND dataset.context LIKE 'train%'", "d"),
        ("dataset.digest IN ('abc')", "d"),
        ("dataset.context = 'test'", ""),
    ] {
        assert_eq!(found(&conn, &query(filter, &[])), expected, "{filter}");
    }
    let d = super::run(&conn, &id("d")).expect("d");
    assert_eq!(d.inputs.len(), 1);
}

#[test]
fn orders_put_what_is_missing_last() {
    let conn = searchable();
    for (order, expected) in [
        (&["metrics.m"][..], "abcd"),
        (&["metrics.m DESC"], "bacd"),
        (&["params.p"], "acbd"),
        (&["params.p DESC"], "bcad"),
        (&["tags.t DESC", "start_time"], "bacd"),
        (&["start_time ASC"], "abcd"),
        (&["end_time"], "adcb"),
        (&["run_name DESC"], "dcba"),
        (&["status", "run_id DESC"], "adcb"),
    ] {
        assert_eq!(found(&conn, &query("", order)), expected, "{order:?}");
    }
    let none = RunQuery { experiments: vec![], ..query("", &[]) };
    assert_eq!(found(&conn, &none), "");
    let two = RunQuery { experiments: vec![ExperimentId(0), ExperimentId(5)], ..query("", &[]) };
    assert_eq!(found(&conn, &two), "dcba");
}

#[test]
fn values_are_bound_never_spliced() {
    let conn = searchable();
    let hostile = "x' OR 1=1 --";
    let filter = format!("params.`{hostile}` = \"{hostile}\"");
    assert_eq!(found(&conn, &query(&filter, &[&format!("tags.`{hostile}` DESC")])), "");
    assert_eq!(found(&conn, &query(&format!("run_id IN (\"{hostile}\")"), &[])), "");
}

#[test]
fn artifacts_are_listed_by_folder() {
    let conn = database();
    create(&conn, ada(), "r", 1);
    let path = |p: &str| ArtifactPath::new(p).expect(p);
    for p in ["b.txt", "a/x", "a/y/z", "a-b", "a.txt", "a0", "ü/ß"] {
        let artifact = RunChange::Artifact { path: path(p), bytes: 3, at: NOW };
        change(&conn, ada(), "r", artifact).expect("artifact");
    }
    let names = |folder: Option<&str>| {
        let folder = folder.map(path);
        let entries = super::entries(&conn, &id("r"), folder.as_ref()).expect("entries");
        let show = |e: Entry| if e.bytes.is_none() { format!("{}/", e.name) } else { e.name };
        entries.into_iter().map(show).collect::<Vec<_>>()
    };
    assert_eq!(names(None), ["a/", "a-b", "a.txt", "a0", "b.txt", "ü/"]);
    assert_eq!(names(Some("a")), ["x", "y/"]);
    assert_eq!(names(Some("a/y")), ["z"]);
    assert_eq!(names(Some("b.txt")), [""; 0]);
    assert_eq!(super::artifact(&conn, &id("r"), &path("a/x")).expect("read"), Some(3));
    let gone = change(&conn, ada(), "r", RunChange::DeleteArtifacts(Some(path("a")))).expect("rm");
    let TrackReply::Paths(mut gone) = gone else { panic!("{gone:?}") };
    gone.sort();
    assert_eq!(gone, ["a/x", "a/y/z"]);
    assert_eq!(names(None), ["a-b", "a.txt", "a0", "b.txt", "ü/"]);
    change(&conn, ada(), "r", RunChange::DeleteArtifacts(None)).expect("rm all");
    assert_eq!(names(None), [""; 0]);
}

#[test]
fn sealing_keeps_what_comes_in_between() {
    let conn = database();
    create(&conn, ada(), "r", 1);
    let points: Vec<_> = (0..40).map(|i| point("m", i, i as f64)).collect();
    let open = log(&conn, "r", &points[..31], &[], &[]).expect("log");
    assert_eq!(open, TrackReply::Done);
    assert!(super::to_seal(&conn, 10).expect("to seal").is_empty());
    let end = RunChange::Update { status: Some(RunStatus::Finished), ended: Some(NOW), name: None };
    change(&conn, ada(), "r", end).expect("end");
    assert!(super::to_seal(&conn, 10).expect("to seal").is_empty());
    let last = log(&conn, "r", &points[31..], &[], &[]).expect("log");
    assert_eq!(last, TrackReply::ToSeal);
    assert_eq!(super::to_seal(&conn, 10).expect("to seal"), [id("r")]);
    assert_eq!(SEAL_AT_LEAST, 32);

    let begun = apply(&conn, &TrackWrite::BeginSeal(id("r"))).expect("begin");
    let TrackReply::Generation { of, generation: 0 } = begun else { panic!("{begun:?}") };
    // A late point, and a repeated one.
    log(&conn, "r", &[point("m", 99, 1.0), points[0].clone()], &[], &[]).expect("late");
    let mut read: Vec<StoredMetric> = Vec::new();
    loop {
        let page = super::hot_page(&conn, &id("r"), &(-1..0), read.last(), 7).expect("page");
        if page.is_empty() {
            break;
        }
        read.extend(page);
    }
    assert_eq!(read.len(), 40);
    assert!(read.iter().all(|p| p.step != 99));
    let sealed = |of| TrackWrite::Sealed {
        run: id("r"),
        of,
        object: "o".to_owned(),
        points: 40,
        hot: 40,
        bytes: 9,
        generation: 0,
        at: NOW,
    };
    // Of a run that has gone, whose id another has.
    assert_eq!(apply(&conn, &sealed(of + 1)).expect("gone"), TrackReply::Gone);
    assert!(super::to_purge(&conn, 10).expect("to purge").is_empty());
    apply(&conn, &sealed(of)).expect("sealed");
    assert_eq!(super::to_purge(&conn, 10).expect("to purge"), [id("r")]);
    let purge = || apply(&conn, &TrackWrite::Purge(id("r"))).expect("purge");
    assert_eq!(purge(), TrackReply::Purged(40));
    assert_eq!(purge(), TrackReply::Purged(0));
    assert!(super::to_purge(&conn, 10).expect("to purge").is_empty());
    let left = super::hot_points(&conn, &id("r"), "m", &ALL).expect("history");
    assert_eq!(left.iter().map(|p| p.step).collect::<Vec<_>>(), [99]);
    assert_eq!(super::sealed(&conn, &id("r")).expect("sealed").expect("pointer").points, 40);
}

#[test]
fn the_indexes_are_used() {
    let conn = database();
    let plan = |sql: &str| -> String {
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("plan");
        let rows = statement.query_map([], |row| row.get::<_, String>(3)).expect("rows");
        rows.map(|row| row.expect("row")).collect::<Vec<_>>().join("; ")
    };
    let children = plan(
        "UPDATE runs SET status = 'x' WHERE job = 'j' AND job IS NOT NULL AND job <> id
         AND status IN ('RUNNING')",
    );
    assert!(children.contains("runs_children"), "{children}");
    let page = plan(
        "SELECT id FROM runs r WHERE r.experiment = 1 AND r.deleted = 0
         ORDER BY r.started DESC, r.id ASC LIMIT 10",
    );
    assert!(page.contains("runs_experiment") && !page.contains("TEMP B-TREE"), "{page}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However runs are come by, the pages are the same.
    #[test]
    fn all_plans_find_the_same(
        runs in prop::collection::vec(
            (0i64..3, prop::option::of(-2i64..4), prop::option::of(0i64..2), 0u8..4), 1..14),
        filter in prop::sample::subsequence(
            vec!["metrics.m > -1", "metrics.m != 1", "metrics.n <= 0", "metrics.m <= 3"], 0..3),
        up in any::<bool>(),
        second in prop::sample::select(vec!["start_time", "metrics.n DESC", "metrics.n"]),
        limit in 1usize..6,
        several in any::<bool>(),
    ) {
        let conn = database();
        for (i, (started, m, n, state)) in runs.iter().enumerate() {
            let name = format!("r{i}");
            create(&conn, ada(), &name, *started);
            let value = |m: i64| if m == 3 { f64::NAN } else { m as f64 };
            let metrics = [("m", m), ("n", n)].into_iter();
            let metrics = metrics.filter_map(|(key, m)| Some(point(key, 0, value((*m)?))));
            log(&conn, &name, &metrics.collect::<Vec<_>>(), &[], &[]).expect("log");
            if *state > 0 { end(&conn, &name); }
        }
        rank(&conn, false);
        for (i, (.., state)) in runs.iter().enumerate() {
            let name = format!("r{i}");
            match state {
                2 => drop(log(&conn, &name, &[point("m", 1, 2.0), point("n", 1, 1.0)], &[], &[])),
                3 if i % 2 == 0 => drop(change(&conn, ada(), &name, RunChange::Delete(NOW))),
                _ => {}
            }
        }
        let first = if up { "metrics.m" } else { "metrics.m DESC" };
        let mut search = query(&filter.join(" and "), &[first, second]);
        if several { search.experiments.push(ExperimentId(7)); }
        let pages = |plan: Plan, limit: usize| {
            let (mut joined, mut after) = (Vec::new(), None::<PageToken>);
            loop {
                let token = after.map(|t| PageToken::parse(&t.to_string(), 1).expect("token"));
                let page = RunQuery { limit, after: token, ..search.clone() };
                let page = run_search::search_by(&conn, &page, plan).expect("page");
                joined.extend(page.items);
                after = page.next;
                if after.is_none() { return joined; }
            }
        };
        let whole = pages(Plan::Each, 100);
        prop_assert_eq!(&pages(Plan::Each, limit), &whole);
        prop_assert_eq!(&pages(Plan::Order(None), limit), &whole);
        for (index, clause) in filter.iter().enumerate() {
            if !clause.contains("!=") {
                prop_assert_eq!(&pages(Plan::Filter(index), limit), &whole);
            }
            prop_assert_eq!(&pages(Plan::Order(Some(index)), limit), &whole);
        }
    }

    /// Pages joined are the whole, in the same order, whatever the order is by.
    #[test]
    fn pages_join_to_the_whole(
        runs in prop::collection::vec((0i64..3, prop::option::of(-2i64..3), prop::option::of("[ab]{1,2}")), 1..12),
        order in prop::sample::subsequence(
            vec!["metrics.m", "params.p DESC", "start_time", "tags.t", "end_time DESC"], 0..4),
        limit in 1usize..5,
    ) {
        let conn = database();
        for (i, (started, metric, param)) in runs.iter().enumerate() {
            let name = format!("r{i}");
            create(&conn, ada(), &name, *started);
            let value = |m: i64| if m == 2 { f64::NAN } else { m as f64 };
            let metrics: Vec<_> = metric.map(|m| point("m", 0, value(m))).into_iter().collect();
            let params: Vec<_> = param.iter().map(|p| ("p", p.as_str())).collect();
            log(&conn, &name, &metrics, &params, &params).expect("log");
        }
        let whole = super::search_runs(&conn, &query("", &order)).expect("whole");
        prop_assert_eq!(whole.items.len(), runs.len());
        let mut joined = Vec::new();
        let mut after: Option<PageToken> = None;
        loop {
            let token = after.map(|t| PageToken::parse(&t.to_string(), 1).expect("token"));
            let page = super::search_runs(&conn, &RunQuery { limit, after: token, ..query("", &order) }).expect("page");
            prop_assert!(page.items.len() <= limit);
            joined.extend(page.items.into_iter().map(|run| run.info.id));
            after = page.next;
            if after.is_none() { break; }
        }
        let whole: Vec<_> = whole.items.into_iter().map(|run| run.info.id).collect();
        prop_assert_eq!(joined, whole);
    }

    /// The latest point in the table is the one the rule names.
    #[test]
    fn the_table_agrees_with_the_rule(
        points in prop::collection::vec((-1i64..2, 0i64..2, 0u8..4), 1..10),
    ) {
        let conn = database();
        create(&conn, ada(), "r", 1);
        let all: Vec<Metric> = points.iter().map(|(step, timestamp, value)| Metric {
            key: "m".to_owned(),
            step: *step,
            timestamp: *timestamp,
            value: if *value == 3 { f64::NAN } else { f64::from(*value) },
        }).collect();
        for chunk in all.chunks(3) {
            log(&conn, "r", chunk, &[], &[]).expect("log");
        }
        let stored: Vec<StoredMetric> = all.into_iter().map(Into::into).collect();
        let expected = stored.iter().max_by(|a, b| a.later(b)).expect("some");
        prop_assert_eq!(&super::run(&conn, &id("r")).expect("run").metrics[0], expected);
    }
}
