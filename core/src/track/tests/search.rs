use proptest::prelude::*;

use crate::track::ExperimentId;
use crate::track::search::{
    DatasetField, ExperimentClause, ExperimentKey, NumberAttribute, NumberTest, OrderBy, RunClause,
    RunKey, TextAttribute, TextTest, experiment_filter, experiment_order, run_filter, run_order,
};

fn one(filter: &str) -> RunClause {
    let mut clauses = run_filter(filter).expect(filter);
    assert_eq!(clauses.len(), 1, "{filter}");
    clauses.remove(0)
}

fn refused(filter: &str, part: &str) {
    let text = run_filter(filter).expect_err(filter).to_string();
    assert!(text.contains(part), "{filter}: {text}");
}

fn metric(key: &str, test: NumberTest, value: f64) -> RunClause {
    RunClause::Metric { key: key.to_owned(), test, value }
}

fn param(key: &str, test: TextTest) -> RunClause {
    RunClause::Param { key: key.to_owned(), test }
}

fn tag(key: &str, test: TextTest) -> RunClause {
    RunClause::Tag { key: key.to_owned(), test }
}

#[test]
fn comparisons_of_each_kind() {
    assert_eq!(run_filter("  ").expect("empty"), []);
    assert_eq!(one("metrics.loss < 0.5"), metric("loss", NumberTest::Less, 0.5));
    assert_eq!(one("metric.`a b`>=-1e-3"), metric("a b", NumberTest::AtLeast, -0.001));
    assert_eq!(one("metrics.\"x/y\" != .5"), metric("x/y", NumberTest::NotEqual, 0.5));
    assert_eq!(one("metrics.a.b = 3"), metric("a.b", NumberTest::Equal, 3.0));
    assert_eq!(one("params.lr = '0.1'"), param("lr", TextTest::Equal("0.1".to_owned())));
    assert_eq!(one("param.lr != \"x\""), param("lr", TextTest::NotEqual("x".to_owned())));
    assert_eq!(one("parameters.m like 'a%'"), param("m", TextTest::Like("a%".to_owned())));
    assert_eq!(one("tags.m ILIKE '%A%'"), tag("m", TextTest::ILike("%A%".to_owned())));
    assert_eq!(one("tags.m is null"), tag("m", TextTest::IsNull));
    assert_eq!(one("params.m IS NOT NULL"), param("m", TextTest::IsNotNull));
    assert_eq!(
        one("tags.`mlflow.parentRunId` = 'it''s'"),
        tag("mlflow.parentRunId", TextTest::Equal("it's".to_owned()))
    );
    assert_eq!(
        one("attributes.run_id NOT IN ('a', \"b\",)"),
        RunClause::Text {
            attribute: TextAttribute::RunId,
            test: TextTest::NotIn(vec!["a".to_owned(), "b".to_owned()]),
        }
    );
    assert_eq!(
        one("status = 'FINISHED'"),
        RunClause::Text {
            attribute: TextAttribute::Status,
            test: TextTest::Equal("FINISHED".to_owned()),
        }
    );
    assert_eq!(
        one("run.`Run name` = 'x'"),
        RunClause::Text {
            attribute: TextAttribute::RunName,
            test: TextTest::Equal("x".to_owned()),
        }
    );
    assert_eq!(
        one("created > 1700000000000"),
        RunClause::Number {
            attribute: NumberAttribute::StartTime,
            test: NumberTest::Greater,
            value: 1.7e12,
        }
    );
    assert_eq!(
        one("dataset.context = 'train'"),
        RunClause::Dataset {
            field: DatasetField::Context,
            test: TextTest::Equal("train".to_owned()),
        }
    );
}

#[test]
fn and_joins() {
    let clauses =
        run_filter("metrics.a > 1 and params.and = 'AND'\n AND tags.b LIKE '_'").expect("three");
    assert_eq!(clauses.len(), 3);
    assert_eq!(clauses[1], param("and", TextTest::Equal("AND".to_owned())));
}

#[test]
fn refusals_name_the_place() {
    refused("metrics.a > 1 OR metrics.b > 1", "'OR metrics.b > 1': expected AND (at character 15)");
    refused("metrics.a > 'x'", "Expected numeric value type for metric. Found 'x'");
    refused("metrics.a > 1e400", "Found '1e400' (at character 13)");
    refused("metrics.a > nan", "Found 'nan'");
    refused("metrics.a LIKE 'x'", "Invalid comparator 'LIKE'");
    refused("metrics.a == 1", "Invalid comparator '=='");
    refused("metrics.a IS NULL", "is a number");
    refused("params.a = 1", "Expected a quoted string value for parameter");
    refused("params.a > 'x'", "Invalid comparator '>'");
    refused("params.a > 1", "Invalid comparator '>'");
    refused("params.a IN ('x')", "only run_id and datasets take lists");
    refused("status IS NULL", "only supported for tags and params");
    refused("foo.a = 'x'", "Invalid entity type 'foo'");
    refused("foo = 'x'", "Invalid attribute key 'foo'");
    refused("dataset.x = 'x'", "Invalid dataset key 'x'");
    refused("params.a = 'x", "never closed (at character 12)");
    refused("params.é = ", "(at character 12)");
    refused("params. = 'x'", "A key is missing after the '.' (at character 8)");
    refused("run_id IN ()", "ill-formed list");
    refused("run_id IN ('a' 'b')", "ill-formed list");
    refused("run_id = ('a')", "use IN");
    refused("tags.a NOT LIKE 'x'", "expected NOT IN");
    refused("tags.a IS x", "Expected NULL");
    refused("tags.a 'x'", "a comparator is missing");
    refused("AND", "a comparator is missing");
    refused("tags.a = 'x' AND", "expected a name");
    refused(&format!("tags.a LIKE '{}'", "%a".repeat(17)), "at most 16 wildcards");
    refused(&"tags.a = 'x' AND ".repeat(101), "at most 100 comparisons");
    refused(&" ".repeat(70_000), "at most 65536 bytes");
    one(&format!("tags.a LIKE '{}'", "%".repeat(100)));
}

#[test]
fn orderings() {
    let order = |text: &str| run_order(&[text.to_owned()]).expect(text).remove(0);
    assert_eq!(
        order("metrics.`val loss` DESC"),
        OrderBy { key: RunKey::Metric("val loss".to_owned()), ascending: false }
    );
    assert_eq!(
        order("attributes.start_time asc"),
        OrderBy { key: RunKey::Number(NumberAttribute::StartTime), ascending: true }
    );
    assert_eq!(
        order(" params.x "),
        OrderBy { key: RunKey::Param("x".to_owned()), ascending: true }
    );
    let bad = |texts: &[&str], part: &str| {
        let texts: Vec<_> = texts.iter().map(|t| (*t).to_owned()).collect();
        let text = run_order(&texts).expect_err("refused").to_string();
        assert!(text.contains(part), "{text}");
    };
    bad(&["metrics.x DOWN"], "Expected ASC or DESC");
    bad(&["metrics.x ASC ASC"], "Expected ASC or DESC");
    bad(&[""], "Could not be parsed");
    bad(&["dataset.name"], "cannot be ordered by a dataset");
    bad(&["start_time", "created DESC"], "contains duplicate fields");
    bad(&vec!["metrics.x"; 30], "at most 20 fields");
}

#[test]
fn experiments() {
    let one = |filter: &str| experiment_filter(filter).expect(filter).remove(0);
    assert_eq!(one("name = 'a'"), ExperimentClause::Name(TextTest::Equal("a".to_owned())));
    assert_eq!(
        one("attribute.name ILIKE '%x'"),
        ExperimentClause::Name(TextTest::ILike("%x".to_owned()))
    );
    assert_eq!(
        one("experiment_id IN ('1','2')"),
        ExperimentClause::Id { within: true, ids: vec![ExperimentId(1), ExperimentId(2)] }
    );
    assert_eq!(
        one("creation_time >= 5"),
        ExperimentClause::Time { key: ExperimentKey::Created, test: NumberTest::AtLeast, value: 5 }
    );
    assert_eq!(
        one("tags.a IS NULL"),
        ExperimentClause::Tag { key: "a".to_owned(), test: TextTest::IsNull }
    );
    for bad in [
        "name > 'a'",
        "name = 1",
        "name IN ('a')",
        "experiment_id LIKE '1'",
        "experiment_id = 'x'",
        "creation_time = 'x'",
        "creation_time > 1.5",
        "metrics.a > 1",
        "nope = 'x'",
        "tags.a = 1",
        "tags.a IN ('x')",
        "name IS NULL",
    ] {
        assert!(experiment_filter(bad).is_err(), "{bad}");
    }
    assert_eq!(
        experiment_order(&["last_update_time DESC".to_owned()]).expect("order"),
        [OrderBy { key: ExperimentKey::Updated, ascending: false }]
    );
    assert!(experiment_order(&["tags.a".to_owned()]).is_err());
}

fn quote(text: &str, quote: char) -> String {
    let doubled = text.replace(quote, &format!("{quote}{quote}"));
    format!("{quote}{doubled}{quote}")
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in ".*") {
        let _ = run_filter(&text);
        let _ = experiment_filter(&text);
        let _ = run_order(std::slice::from_ref(&text));
        let _ = experiment_order(&[text]);
    }

    #[test]
    fn near_misses_are_read_without_panic(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "metrics", "params", ".", "`", "\"", "'", "a", "é", " ", "=", "!", "<", ">", "1",
                "-", "e", "(", ")", ",", "AND", "NOT", "IN", "IS", "NULL", "LIKE", "ILIKE", "%",
                "run_id", "tags.x", "\u{301}",
            ]),
            0..14,
        ),
    ) {
        let text = parts.concat();
        let _ = run_filter(&text);
        let _ = experiment_filter(&text);
        let _ = run_order(&[text]);
    }

    #[test]
    fn keys_and_values_come_back(key in "[^\0]{1,20}", value in ".{0,20}", number in -1e300f64..1e300) {
        for mark in ['`', '"'] {
            for value_mark in ['\'', '"'] {
                let filter =
                    format!("params.{} = {}", quote(&key, mark), quote(&value, value_mark));
                prop_assert_eq!(one(&filter), param(&key, TextTest::Equal(value.clone())));
            }
        }
        let filter = format!("metrics.{} >= {number:e}", quote(&key, '`'));
        prop_assert_eq!(one(&filter), metric(&key, NumberTest::AtLeast, number));
        let filter = format!("run_id IN ({}, {})", quote(&value, '\''), quote(&key, '"'));
        prop_assert_eq!(
            one(&filter),
            RunClause::Text {
                attribute: TextAttribute::RunId,
                test: TextTest::In(vec![value.clone(), key.clone()]),
            }
        );
    }
}
