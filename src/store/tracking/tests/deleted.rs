//! Runs, logged models and experiments that were deleted.

use atelier_core::track::{LoggedModelId, LoggedModelStatus, MeasuredOn, ModelPoint};

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

#[test]
fn a_deleted_logged_model_goes_with_all_that_was_measured_of_it_and_so_do_those_of_an_experiment() {
    let conn = database();
    let made = |name: &str| {
        let name = ExperimentName::new(name).expect("name");
        apply(&conn, &TrackWrite::CreateExperiment { by: ada(), name, tags: vec![], at: NOW })
    };
    let TrackReply::Experiment(experiment) = made("digits").expect("made") else { panic!() };
    create(&conn, ada(), "r", 1);
    let create_model = |number: u128| {
        let id = LoggedModelId::generate(number);
        let model = new_model(&id, experiment);
        apply(&conn, &TrackWrite::CreateModel { by: ada(), model, at: NOW }).expect("model");
        id
    };
    let [one, other] = [1, 2].map(create_model);
    // More than go at once.
    for steps in [0..4000, 4000..6000] {
        let of_models = steps.map(|step| ModelPoint {
            model: one.clone(),
            metric: point("m", step, 1.0),
            on: MeasuredOn::default(),
        });
        let change = RunChange::Log {
            metrics: vec![],
            params: vec![],
            tags: vec![],
            of_models: of_models.collect(),
        };
        super::change(&conn, ada(), "r", change).expect("log");
    }
    let due = |at| {
        let due = tracking::models_deleted_by(&conn, at, None, 10).expect("due");
        due.into_iter().map(|model| model.id).collect::<Vec<_>>()
    };
    assert_eq!(due(NOW), []);
    let change = ModelChange::Delete;
    let later = NOW.plus_millis(5);
    apply(&conn, &TrackWrite::ChangeModel { by: ada(), id: one.clone(), change, at: later })
        .expect("delete");
    assert_eq!((due(NOW), due(later)), (vec![], vec![one.clone()]));

    let model = tracking::deleted_model(&conn, &one).expect("read").expect("deleted");
    assert_eq!(tracking::models_deleted_by(&conn, later, Some(model.place()), 10).unwrap(), []);
    assert!(tracking::deleted_model(&conn, &other).expect("read").is_none());
    assert!(!tracking::forget_deleted_model(&conn, &model).expect("forget"), "points are left");
    assert!(tracking::forget_deleted_model(&conn, &model).expect("forget"));
    assert!(tracking::model(&conn, &one).is_err());
    let left = |table: &str| -> i64 {
        let count = format!("SELECT count(*) FROM logged_model_{table}");
        conn.query_row(&count, [], |row| row.get(0)).expect("count")
    };
    assert_eq!(["metrics", "params", "tags", "artifacts"].map(left), [0, 1, 1, 0]);

    // It counts from the time of its deletion.
    let change = ModelChange::Finalize(LoggedModelStatus::Ready);
    let finalize = |by| {
        let (id, change) = (other.clone(), change.clone());
        apply(&conn, &TrackWrite::ChangeModel { by, id, change, at: later })
    };
    finalize(ada()).expect("finalize");

    // The other goes with its experiment, which is not forgotten as long as it is there.
    let alter = |change, at| {
        let alter = TrackWrite::ChangeExperiment { by: ada(), id: experiment, change, at };
        apply(&conn, &alter).expect("change");
    };
    alter(ExperimentChange::Delete, NOW);
    assert_eq!(due(NOW), std::slice::from_ref(&other));
    alter(ExperimentChange::Restore, NOW);
    assert_eq!(due(later), []);
    alter(ExperimentChange::Delete, later);
    assert_eq!((due(NOW), due(later)), (vec![], vec![other.clone()]));
    assert_eq!(tracking::forget_experiments(&conn, later).expect("not yet"), [""; 0]);
    let model = tracking::deleted_model(&conn, &other).expect("read").expect("with its experiment");
    refused(finalize(user("bob", Role::DataScientist)), Code::PermissionDenied, "ada");
    let job = JobName::new("trains").expect("name");
    conn.execute_batch(
        "UPDATE logged_models SET job = 'trains'; INSERT INTO jobs (name, live) VALUES ('trains', 1)",
    )
    .expect("job");
    assert_eq!(tracking::deleted_model(&conn, &other).unwrap().unwrap().live_job, Some(job));
    assert!(tracking::forget_deleted_model(&conn, &model).expect("forget"));
    assert_eq!(tracking::forget_experiments(&conn, later).expect("gone"), ["digits"]);
    assert_eq!(["metrics", "params", "tags", "artifacts"].map(left), [0; 4]);
}

#[test]
fn an_experiment_with_models_of_others_is_an_admins_to_delete() {
    let conn = database();
    let name = ExperimentName::new("digits").expect("name");
    let made = TrackWrite::CreateExperiment { by: ada(), name, tags: vec![], at: NOW };
    let TrackReply::Experiment(experiment) = apply(&conn, &made).expect("made") else { panic!() };
    let bob = || user("bob", Role::DataScientist);
    let id = LoggedModelId::generate(1);
    let model = new_model(&id, experiment);
    apply(&conn, &TrackWrite::CreateModel { by: bob(), model, at: NOW }).expect("model");
    let delete = |by| {
        let change = ExperimentChange::Delete;
        apply(&conn, &TrackWrite::ChangeExperiment { by, id: experiment, change, at: NOW })
    };
    refused(delete(ada()), Code::PermissionDenied, "models of others");
    let change =
        |change, by| apply(&conn, &TrackWrite::ChangeModel { by, id: id.clone(), change, at: NOW });
    change(ModelChange::Delete, bob()).expect("delete");
    let finalize = ModelChange::Finalize(LoggedModelStatus::Ready);
    refused(change(finalize, bob()), Code::InvalidParameterValue, "deleted");
    delete(ada()).expect("nothing of others is in use");
}
