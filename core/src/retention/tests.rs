use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::id::{ComputeName, Principal, SubmitSeq};
use crate::job::{Ended, Left, Outcome, State, Tries};
use crate::resource::Demand;
use crate::testkit::command_job;

const DAY: i64 = 86_400_000;

fn ended(at: i64, tags: &[(&str, &str)]) -> Job {
    let mut spec = command_job(Demand::DEFAULT);
    spec.tags = tags.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let at = Timestamp::from_millis(at);
    Job {
        name: JobName::new("done").unwrap(),
        seq: SubmitSeq(1),
        spec: Arc::new(spec),
        compute: ComputeName::new("local").unwrap(),
        created_by: Principal::new("ana").unwrap(),
        created_at: at,
        tries: Tries::default(),
        state: State::Ended(Ended { at, outcome: Outcome::Completed, left: Left::default() }),
        archived: false,
    }
}

fn rules() -> Rules {
    Rules {
        logs_s: Some(30 * 86_400),
        outputs_s: Some(90 * 86_400),
        deleted_runs_s: None,
        keep_tagged: vec![Tag::parse("keep"), Tag::parse("paper=icml=26")],
    }
}

#[test]
fn each_part_goes_in_its_time_unless_somebody_needs_it() {
    let fate = |tags: &[(&str, &str)], what, gone, refers, days: i64| {
        let now = Timestamp::from_millis(days * DAY);
        match rules().fate(what, &ended(0, tags), gone, refers, now) {
            Fate::Goes => "goes".to_owned(),
            Fate::Gone => "gone".to_owned(),
            Fate::Stays(why) => why.to_string(),
        }
    };
    let plain = |what, days| fate(&[], what, false, None, days);
    assert_eq!(plain(What::Logs, 29), "kept until 1970-01-31T00:00:00.000Z");
    assert_eq!((plain(What::Logs, 30), plain(What::Outputs, 90)), ("goes".into(), "goes".into()));
    assert!(plain(What::Outputs, 30).starts_with("kept until 1970-04-01"));
    assert_eq!(fate(&[("keep", "")], What::Logs, false, None, 99), "the job is tagged keep");
    let paper = |value| fate(&[("paper", value)], What::Logs, false, None, 99);
    assert_eq!(
        (paper("icml=26"), paper("icml")),
        ("the job is tagged paper=icml=26".into(), "goes".into())
    );
    let asset = Referrer::Asset {
        kind: Kind::Model,
        name: AssetName::new("digits").unwrap(),
        version: VersionName::new("3").unwrap(),
    };
    let used = fate(&[], What::Outputs, false, Some(asset), 99);
    assert_eq!(used, "model 'digits:3' lies there");
    assert_eq!(fate(&[], What::Logs, true, None, 99), "gone");
    let none = Rules::default().fate(
        What::Logs,
        &ended(0, &[]),
        false,
        None,
        Timestamp::from_millis(99 * DAY),
    );
    assert_eq!(none, Fate::Stays(Stay::NoRule));
    assert_eq!(Rules::default().ended_before(Timestamp::from_millis(0)), None);
}

#[test]
fn rules_are_checked() {
    let with = |logs_s| Rules { logs_s: Some(logs_s), ..Rules::default() }.check();
    assert_eq!((with(SHORTEST_S), with(LONGEST_S)), (Ok(()), Ok(())));
    assert!(with(0).unwrap_err().to_string().starts_with("cannot keep logs for 0 s"));
    assert!(with(u64::MAX).is_err());
    let tagged = |count| Rules { keep_tagged: vec![Tag::parse("a"); count], ..Rules::default() };
    assert_eq!(tagged(MOST_TAGS).check(), Ok(()));
    assert_eq!(tagged(MOST_TAGS + 1).check(), Err(Refusal::Tags));
    let nameless = Rules { keep_tagged: vec![Tag::parse("=x")], ..Rules::default() };
    assert_eq!(nameless.check(), Err(Refusal::Tags));
}

#[test]
fn what_stays_of_a_job_lies_outside_of_what_goes() {
    let mut job = ended(0, &[]);
    Arc::make_mut(&mut job.spec).resources.instance_count = 3;
    let goes = |path: &str| {
        let all = What::ALL.into_iter().flat_map(|what| what.places(&job));
        let below = |folder: &String| path.starts_with(&format!("{folder}/"));
        all.filter(|place| below(&place.path) && !place.except.iter().any(below)).count()
    };
    let root = layout::artifact_root("done");
    for (path, times) in [
        ("user_logs/std_log.txt", 1),
        ("logs/x", 1),
        ("outputs/model.pt", 1),
        ("model/MLmodel", 1),
        ("members/1/outputs/x", 1),
        ("members/2/logs/x", 1),
        ("metrics/metrics.parquet", 0),
        ("system_logs/manifest_1.json", 0),
    ] {
        assert_eq!(goes(&format!("{root}/{path}")), times, "{path}");
    }
    let of = |what: What, path| what.holds(&job, layout::ARTIFACT_STORE, &format!("{root}/{path}"));
    for path in ["logs/x", "members/1/logs/x", "members/2/logs/x"] {
        assert_eq!((of(What::Logs, path), of(What::Outputs, path)), (true, false), "{path}");
    }
    assert_eq!((goes("azureml/done/out/x"), goes("azureml/done2/out/x")), (1, 0));
    assert_eq!(goes("ExperimentRun/dcid.done2/outputs/x"), 0);
}

#[test]
fn paths_overlap_by_whole_names() {
    for (one, other, yes) in [
        ("a/b", "a/b/", true),
        ("a/b", "a/b/c", true),
        ("a", "a/b", true),
        ("", "a", true),
        ("a/b", "a/bc", false),
        ("a/b", "a/c", false),
    ] {
        assert_eq!((overlap(one, other), overlap(other, one)), (yes, yes), "{one} {other}");
    }
}

proptest! {
    /// Time only ever takes more, and what goes is older than its rule says, without a tag and without anybody who
    /// refers to it.
    #[test]
    fn what_goes_is_old_and_nobodys(
        logs in proptest::option::of(60..1_000_u64), outputs in proptest::option::of(60..1_000_u64),
        ended_at in 0..2_000_000_i64, now in 0..4_000_000_i64, later in 0..2_000_000_i64,
        tagged: bool, keeps: bool, used: bool,
    ) {
        let keep_tagged = if keeps { vec![Tag::parse("keep")] } else { Vec::new() };
        let rules = Rules { logs_s: logs, outputs_s: outputs, deleted_runs_s: None, keep_tagged };
        let job = ended(ended_at, if tagged { &[("keep", "x")] } else { &[] });
        let refers = || used.then(|| Referrer::LiveJob(JobName::new("other").unwrap()));
        for what in What::ALL {
            let at = |now| rules.fate(what, &job, false, refers(), Timestamp::from_millis(now));
            let old = rules.kept_s(what).is_some_and(|kept| now - ended_at >= kept as i64 * 1000);
            prop_assert_eq!(at(now) == Fate::Goes, old && !used && !(tagged && keeps));
            prop_assert!(at(now) != Fate::Goes || at(now + later) == Fate::Goes);
            if at(now) == Fate::Goes {
                let before = rules.ended_before(Timestamp::from_millis(now));
                prop_assert!(before.is_some_and(|before| before >= Timestamp::from_millis(ended_at)));
            }
        }
    }
}

#[test]
fn a_deleted_run_can_be_restored_for_as_long_as_is_said() {
    let (default, week) = (Rules::default(), Rules { deleted_runs_s: Some(7 * 86_400), ..rules() });
    let at = Timestamp::from_millis(1_700_000_000_000);
    for (rules, days) in [(&default, 30), (&week, 7)] {
        let over = at.plus_millis(days * DAY);
        let early = over.plus_millis(-1);
        assert_eq!(rules.fate_of_deleted(at, None, early), Fate::Stays(Stay::Until(over)));
        assert_eq!(rules.fate_of_deleted(at, None, over), Fate::Goes);
        assert_eq!((rules.deleted_before(over), rules.deleted_before(early) < at), (at, true));
        let job = Referrer::LiveJob(JobName::new("reads").unwrap());
        let stays = Fate::Stays(Stay::Used(job.clone()));
        assert_eq!(rules.fate_of_deleted(at, Some(job), over), stays);
    }
    let never = Rules { deleted_runs_s: Some(0), ..Rules::default() };
    assert!(never.check().unwrap_err().to_string().contains("deleted runs for 0 s"));
}
