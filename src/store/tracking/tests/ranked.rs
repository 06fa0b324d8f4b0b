//! Searches by a metric among many runs.

use super::*;

pub(super) fn end(conn: &Connection, run: &str) {
    let status = Some(RunStatus::Finished);
    let update = RunChange::Update { status, ended: None, name: None };
    change(conn, ada(), run, update).expect("end");
}

pub(super) fn rank(conn: &Connection, quiet: bool) {
    while apply(conn, &TrackWrite::Rank { quiet }).expect("rank") != TrackReply::Ranked(0) {}
}

fn ranked(conn: &Connection) -> String {
    let mut statement =
        conn.prepare("SELECT id FROM runs WHERE ranked = 1 ORDER BY id").expect("sql");
    let ids = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
    ids.map(|id| id.expect("id")).collect()
}

#[test]
fn runs_are_ranked_when_they_end_or_are_quiet() {
    let conn = database();
    for run in ["a", "b", "c"] {
        create(&conn, ada(), run, 1);
        log(&conn, run, &[point("m", 0, 1.0)], &[], &[]).expect("log");
    }
    end(&conn, "a");
    rank(&conn, false);
    assert_eq!(ranked(&conn), "a");
    // The first patrol only notes who is at work.
    apply(&conn, &TrackWrite::MarkQuiet).expect("mark");
    log(&conn, "b", &[point("m", 1, 2.0)], &[], &[]).expect("log");
    rank(&conn, true);
    assert_eq!(ranked(&conn), "ac");
    // A metric that is new in a run is not in the index yet.
    log(&conn, "c", &[point("n", 0, 5.0)], &[], &[]).expect("log");
    assert_eq!(ranked(&conn), "a");
    log(&conn, "a", &[point("m", 0, 1.0)], &[], &[]).expect("a point that is there already");
    assert_eq!(ranked(&conn), "a");
    // A run of very many metrics takes several turns.
    let many: Vec<_> = (0..12_000).map(|key| point(&format!("k{key}"), 0, 1.0)).collect();
    log(&conn, "a", &many, &[], &[]).expect("log");
    rank(&conn, false);
    assert_eq!(ranked(&conn), "a");
    let left = "SELECT count(*) FROM latest_metrics WHERE run = 1 AND experiment IS NULL";
    assert_eq!(conn.query_row(left, [], |row| row.get::<_, i64>(0)), Ok(0));
}

/// Nothing but what is answered is looked at where runs are many.
#[test]
fn searches_by_a_metric_use_its_index() {
    let conn = database();
    let many = run_search::FEW_RUNS + 2;
    conn.execute_batch(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many})
         INSERT INTO runs (seq, id, experiment, owner, status, started, ranked)
             SELECT i, printf('r%d', i), 0, 'ada', 'FINISHED', i, 1 FROM n;
         INSERT INTO latest_metrics (run, key, step, timestamp, value, is_nan, experiment)
             SELECT seq, 'm', 0, 0, seq % 997, 0, 0 FROM runs;"
    ))
    .expect("runs");
    let cases: [(&str, &[&str], Plan); 6] = [
        ("", &[], Plan::Each),
        ("", &["metrics.m"], Plan::Order(None)),
        ("params.p = '1'", &["metrics.m DESC"], Plan::Order(None)),
        ("metrics.m < 3", &["start_time"], Plan::Filter(0)),
        ("metrics.m != 3 and metrics.m >= 990", &["metrics.m"], Plan::Filter(1)),
        ("metrics.none > 3", &["params.p"], Plan::Filter(0)),
    ];
    for (filter, order, plan) in cases {
        let search = query(filter, order);
        assert_eq!(Plan::of(&conn, &search).expect("plan"), plan, "{filter} {order:?}");
        for (rank, (text, values)) in
            plan.statements(&search).expect("statements").into_iter().enumerate()
        {
            let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {text}")).expect("sql");
            let rows = statement
                .query_map(rusqlite::params_from_iter(&values), |row| row.get::<_, String>(3))
                .expect("plan");
            let told = rows.map(|row| row.expect("row")).collect::<Vec<_>>().join("; ");
            assert!(!told.contains("SCAN r"), "{told}");
            let first = told.split("RIGHT;").next().unwrap_or_default();
            match plan {
                // Those that are NaN are few, and sorted.
                Plan::Order(_) => assert!(
                    rank == 1 || !first.contains("USE TEMP B-TREE FOR ORDER BY"),
                    "every run is sorted: {told}"
                ),
                Plan::Filter(_) => assert!(first.contains("latest_ranked"), "{told}"),
                Plan::Each => {}
            }
        }
    }
    let other = RunQuery { experiments: vec![ExperimentId(9)], ..query("", &["metrics.m"]) };
    assert_eq!(Plan::of(&conn, &other).expect("plan"), Plan::Each, "an experiment of few runs");
}

/// Where those who are first by one metric are the last by another, as the most accurate among the slow are, few are
/// looked at all the same.
#[test]
fn runs_that_pass_are_collected_where_the_first_do_not() {
    let conn = database();
    conn.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
         INSERT INTO runs (seq, id, experiment, owner, status, started, ranked)
             SELECT i, printf('r%d', i), 0, 'ada', 'FINISHED', i, 1 FROM n;
         INSERT INTO latest_metrics (run, key, step, timestamp, value, is_nan, experiment)
             SELECT seq, 'up', 0, 0, seq, 0, 0 FROM runs;
         INSERT INTO latest_metrics (run, key, step, timestamp, value, is_nan, experiment)
             SELECT seq, 'down', 0, 0, 30000 - seq, 0, 0 FROM runs;",
    )
    .expect("runs");
    let cases: [(&str, &str, Plan); 6] = [
        ("metrics.up > 8000", "metrics.down DESC", Plan::Order(Some(0))),
        ("metrics.up > 8000", "metrics.down", Plan::Order(None)),
        ("metrics.up < 25000", "metrics.down", Plan::Order(Some(0))),
        ("metrics.down >= 0 and metrics.up > 8000", "metrics.down DESC", Plan::Order(Some(1))),
        ("metrics.up > 8000", "metrics.up DESC", Plan::Order(None)),
        // Some 100 are looked at.
        ("metrics.up > 100", "metrics.down DESC", Plan::Order(None)),
    ];
    for (filter, order, plan) in cases {
        let search = RunQuery { limit: 100, ..query(filter, &[order]) };
        assert_eq!(Plan::of(&conn, &search).expect("plan"), plan, "{filter} {order}");
        let found = run_search::search_by(&conn, &search, plan).expect("page");
        let each = run_search::search_by(&conn, &search, Plan::Each).expect("page");
        assert_eq!(found.items, each.items, "{filter} {order}");
        // What follows starts among those that pass.
        let next = RunQuery { after: found.next, ..search };
        if filter == "metrics.up > 8000" {
            assert_eq!(Plan::of(&conn, &next).expect("plan"), Plan::Order(None), "{order}");
        }
    }
}
