//! Runs, logged models and experiments that were deleted.

use atelier_core::track::{
    LifecycleStage, LoggedModelId, LoggedModelStatus, MeasuredOn, ModelPoint,
};

use super::super as tracking;
use super::*;

/// Rows of all tables that have a run's number.
fn rows_of_runs(conn: &Connection) -> Vec<(String, i64)> {
    let tables = "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
                  WHERE m.type = 'table' AND c.name = 'run' AND c.type = 'INTEGER'";
    let mut tables = conn.prepare(tables).expect("tables");
    let tables: Vec<String> =
        tables.query_map([], |row| row.get(0)).expect("names").map(|name| name.unwrap()).collect();
    assert!(tables.len() >= 8, "{tables:?}");
    let count = |table: String| {
        let count = format!("SELECT count(*) FROM {table}");
        let count = conn.query_row(&count, [], |row| row.get(0)).expect("count");
        (table, count)
    };
    tables.into_iter().map(count).filter(|(_, count)| *count > 0).collect()
}

#[test]
fn a_deleted_run_goes_with_all_that_was_logged_to_it_and_its_number_is_free_when_its_points_have_gone()
 {
    let conn = database();
    create(&conn, ada(), "r", 1);
    let points: Vec<_> = (0..9).map(|step| point("m", step, 1.0)).collect();
    log(&conn, "r", &points, &[("p", "1")], &[("a", "b")]).expect("log");
    assert!(tracking::deleted_run(&conn, &id("r")).expect("read").is_none());
    change(&conn, ada(), "r", RunChange::Delete(NOW)).expect("delete");
    // Again, later: it counts from the first time.
    change(&conn, ada(), "r", RunChange::Delete(NOW.plus_millis(5))).expect("delete");
    let due = |at| tracking::deleted_by(&conn, at, None, 10).expect("due");
    assert_eq!(due(NOW.plus_millis(-1)), []);
    let found = due(NOW);
    assert_eq!((found[0].id.as_str(), found[0].at, &found[0].live_job), ("r", NOW, &None));
    assert_eq!(tracking::deleted_by(&conn, NOW, Some(found[0].place()), 10).expect("next"), []);

    tracking::forget_deleted(&conn, &found[0]).expect("forget");
    refused(change(&conn, ada(), "r", RunChange::Restore), Code::ResourceDoesNotExist, "r");
    assert_eq!(rows_of_runs(&conn), [("metrics".to_owned(), 9)]);
    // The next run does not get what is still to go.
    create(&conn, ada(), "r", 1);
    assert!(tracking::latest(&conn, &id("r")).expect("latest").is_empty());
    assert!(tracking::hot_points(&conn, &id("r"), "m", &ALL).expect("points").is_empty());
    log(&conn, "r", &[point("m", 1, 2.0)], &[], &[]).expect("log");
    assert_eq!(apply(&conn, &TrackWrite::PurgeGone).expect("purge"), TrackReply::Purged(9));
    assert_eq!(apply(&conn, &TrackWrite::PurgeGone).expect("purge"), TrackReply::Purged(0));
    assert_eq!(tracking::hot_points(&conn, &id("r"), "m", &ALL).expect("points").len(), 1);
}

#[test]
fn a_deleted_experiment_goes_with_its_last_run_and_frees_its_name() {
    let conn = database();
    let made = || {
        let name = ExperimentName::new("digits").expect("name");
        apply(&conn, &TrackWrite::CreateExperiment { by: ada(), name, tags: vec![], at: NOW })
    };
    let TrackReply::Experiment(experiment) = made().expect("made") else { panic!() };
    let name = "in it".to_owned();
    let run = NewRun { id: id("r"), experiment, name, started: NOW, tags: Vec::new() };
    apply(&conn, &TrackWrite::CreateRun { by: ada(), run }).expect("run");
    let alter = |change| {
        let alter = TrackWrite::ChangeExperiment { by: ada(), id: experiment, change, at: NOW };
        apply(&conn, &alter).expect("change");
    };
    alter(ExperimentChange::Delete);
    alter(ExperimentChange::Restore);
    assert_eq!(tracking::deleted_by(&conn, NOW, None, 10).expect("none"), []);
    alter(ExperimentChange::Delete);
    assert_eq!(tracking::forget_experiments(&conn, NOW).expect("not yet"), [""; 0]);
    let run = tracking::deleted_run(&conn, &id("r")).expect("read").expect("with its experiment");
    tracking::forget_deleted(&conn, &run).expect("forget");
    assert_eq!(
        tracking::forget_experiments(&conn, NOW.plus_millis(-1)).expect("too early"),
        [""; 0]
    );
    refused(made(), Code::ResourceAlreadyExists, "digits");
    assert_eq!(tracking::forget_experiments(&conn, NOW).expect("gone"), ["digits"]);
    // Whoever still names the first does not find this one.
    assert_ne!(made().expect("again"), TrackReply::Experiment(experiment));
}

fn new_model(id: &LoggedModelId, experiment: ExperimentId) -> NewModel {
    NewModel {
        id: id.clone(),
        experiment,
        name: "model".to_owned(),
        source_run: None,
        model_type: String::new(),
        params: vec![Param { key: "p".to_owned(), value: "1".to_owned() }],
        tags: vec![tag("a", "b")],
    }
}

/// Rows of what belongs to logged models: points, parameters, tags, files.
fn rows_of_models(conn: &Connection) -> [i64; 4] {
    ["metrics", "params", "tags", "artifacts"].map(|table| {
        let count = format!("SELECT count(*) FROM logged_model_{table}");
        conn.query_row(&count, [], |row| row.get(0)).expect("count")
    })
}

/// An experiment of ada's with a logged model of which more points were measured than go at once.
fn measured(conn: &Connection) -> (ExperimentId, LoggedModelId) {
    let name = ExperimentName::new("digits").expect("name");
    let made = TrackWrite::CreateExperiment { by: ada(), name, tags: vec![], at: NOW };
    let TrackReply::Experiment(experiment) = apply(conn, &made).expect("made") else { panic!() };
    let id = LoggedModelId::generate(1);
    let model = new_model(&id, experiment);
    apply(conn, &TrackWrite::CreateModel { by: ada(), model, at: NOW }).expect("model");
    create(conn, ada(), "r", 1);
    for steps in [0..4000, 4000..6000] {
        let of_models = steps.map(|step| ModelPoint {
            model: id.clone(),
            metric: point("m", step, 1.0),
            on: MeasuredOn::default(),
        });
        let of_models = of_models.collect();
        let log = RunChange::Log { metrics: vec![], params: vec![], tags: vec![], of_models };
        change(conn, ada(), "r", log).expect("log");
    }
    assert_eq!(rows_of_models(conn), [6000, 1, 1, 0]);
    (experiment, id)
}

fn change_model(
    conn: &Connection,
    by: Caller,
    id: &LoggedModelId,
    change: ModelChange,
    at: Timestamp,
) -> Result<TrackReply, Error> {
    apply(conn, &TrackWrite::ChangeModel { by, id: id.clone(), change, at })
}

/// Since when models are deleted that were deleted by then.
fn due(conn: &Connection, by: Timestamp) -> Vec<Timestamp> {
    let due = tracking::models_deleted_by(conn, by, None, 10).expect("due");
    due.iter()
        .map(|model| {
            assert_eq!(
                tracking::deleted_model(conn, &model.id).expect("read").as_ref(),
                Some(model)
            );
            assert_eq!(tracking::models_deleted_by(conn, by, Some(model.place()), 10).unwrap(), []);
            model.at
        })
        .collect()
}

/// Forgets some of it; whether that was the last.
fn forget(conn: &Connection, id: &LoggedModelId) -> bool {
    let model = tracking::deleted_model(conn, id).expect("read").expect("deleted");
    tracking::forget_deleted_model(conn, &model).expect("forget")
}

const LATER: Timestamp = Timestamp::from_millis(NOW.as_millis() + 5);
const READY: ModelChange = ModelChange::Finalize(LoggedModelStatus::Ready);

#[test]
fn a_deleted_logged_model_goes_with_all_that_was_measured_of_it() {
    let conn = database();
    let (_, id) = measured(&conn);
    assert_eq!(due(&conn, LATER), []);
    assert!(tracking::deleted_model(&conn, &id).expect("read").is_none());
    change_model(&conn, ada(), &id, ModelChange::Delete, NOW).expect("delete");
    // It counts from its deletion, whatever comes after it.
    change_model(&conn, ada(), &id, READY, LATER).expect("as MLflow has it");
    change_model(&conn, ada(), &id, ModelChange::Delete, LATER).expect("again");
    assert_eq!(due(&conn, NOW.plus_millis(-1)), []);
    assert_eq!(due(&conn, NOW), [NOW]);
    assert!(!forget(&conn, &id), "points are left");
    assert_eq!(due(&conn, NOW), [NOW]);
    assert!(forget(&conn, &id));
    assert!(tracking::model(&conn, &id).is_err());
    assert_eq!(rows_of_models(&conn), [0; 4]);
}

#[test]
fn a_logged_model_of_a_deleted_experiment_goes_with_it_or_comes_back_with_it() {
    let conn = database();
    let (experiment, id) = measured(&conn);
    change_model(&conn, ada(), &id, READY, LATER).expect("finalize");
    let alter = |change, at| {
        let alter = TrackWrite::ChangeExperiment { by: ada(), id: experiment, change, at };
        apply(&conn, &alter).expect("change");
    };
    alter(ExperimentChange::Delete, NOW);
    assert_eq!(due(&conn, NOW), [NOW]);
    let error = tracking::model_writable(&conn, &ada(), &id).expect_err("its files may go");
    assert!(error.to_string().contains("deleted"), "{error}");
    alter(ExperimentChange::Restore, NOW);
    assert_eq!(due(&conn, LATER), []);
    tracking::model_writable(&conn, &ada(), &id).expect("as before");

    alter(ExperimentChange::Delete, NOW);
    let job = JobName::new("trains").expect("name");
    conn.execute_batch(
        "UPDATE logged_models SET job = 'trains'; INSERT INTO jobs (name, live) VALUES ('trains', 1)",
    )
    .expect("job");
    assert_eq!(tracking::deleted_model(&conn, &id).unwrap().unwrap().live_job, Some(job));
    assert!(!forget(&conn, &id), "points are left");
    // Nobody finds half a model.
    alter(ExperimentChange::Restore, LATER);
    assert_eq!(tracking::model_info(&conn, &id).expect("info").stage, LifecycleStage::Deleted);
    assert_eq!(due(&conn, NOW), [NOW]);
    alter(ExperimentChange::Delete, LATER);
    assert_eq!(tracking::forget_experiments(&conn, LATER).expect("not yet"), [""; 0]);
    assert!(forget(&conn, &id));
    assert_eq!(rows_of_models(&conn), [0; 4]);
    assert_eq!(tracking::forget_experiments(&conn, LATER).expect("gone"), ["digits"]);
}

#[test]
fn an_experiment_with_models_of_others_is_an_admins_to_delete_and_to_restore() {
    let conn = database();
    let name = ExperimentName::new("digits").expect("name");
    let made = TrackWrite::CreateExperiment { by: ada(), name, tags: vec![], at: NOW };
    let TrackReply::Experiment(id) = apply(&conn, &made).expect("made") else { panic!() };
    let bob = || user("bob", Role::DataScientist);
    let [one, other] = [1, 2].map(LoggedModelId::generate);
    for model in [&one, &other] {
        let model = new_model(model, id);
        apply(&conn, &TrackWrite::CreateModel { by: bob(), model, at: NOW }).expect("model");
    }
    let alter =
        |by, change| apply(&conn, &TrackWrite::ChangeExperiment { by, id, change, at: NOW });
    let delete =
        |model| change_model(&conn, bob(), model, ModelChange::Delete, NOW).expect("bob's");
    delete(&one);
    refused(alter(ada(), ExperimentChange::Delete), Code::PermissionDenied, "models of others");
    alter(admin(), ExperimentChange::Delete).expect("an admin");
    refused(alter(ada(), ExperimentChange::Restore), Code::PermissionDenied, "models of others");
    delete(&other);
    alter(ada(), ExperimentChange::Restore).expect("nothing of others is in use");
}

/// Until then nothing went.
#[test]
fn the_time_of_models_that_were_deleted_before_begins_with_the_upgrade() {
    let conn = database();
    let (experiment, id) = measured(&conn);
    let other = LoggedModelId::generate(2);
    let model = new_model(&other, experiment);
    apply(&conn, &TrackWrite::CreateModel { by: ada(), model, at: NOW }).expect("model");
    change_model(&conn, ada(), &id, ModelChange::Delete, NOW).expect("delete");
    let change = ExperimentChange::Delete;
    apply(&conn, &TrackWrite::ChangeExperiment { by: ada(), id: experiment, change, at: NOW })
        .expect("delete");
    assert_eq!(tracking::models_deleted_by(&conn, NOW, None, 10).expect("due").len(), 2);
    conn.execute_batch("DROP INDEX logged_models_deleted").expect("as before");
    conn.execute_batch(DELETED_MODELS_MIGRATION).expect("migration");
    let day = 24 * 3600 * 1000;
    let by = Timestamp::from_millis(NOW.as_millis() + day);
    assert_eq!(tracking::models_deleted_by(&conn, by, None, 10).expect("due"), []);
    let all = tracking::models_deleted_by(&conn, Timestamp::from_millis(i64::MAX), None, 10);
    assert_eq!(all.expect("later").len(), 2);
}
