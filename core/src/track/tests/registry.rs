use crate::id::VersionName;
use crate::spec::DataUri;
use crate::track::registry::{
    Source, Stage, Which, alias, model_name, new_alias, tag, tags, version_name,
};
use crate::track::search::{
    NumberTest, RegisteredClause, RegisteredKey, TextTest, VersionClause, VersionKey,
    registered_filter, registered_order, version_filter, version_order,
};
use crate::track::{Code, ExperimentId, Tag};

#[test]
fn sources_are_taken_apart() {
    let artifacts = |text: &str| match Source::parse(text).unwrap() {
        Source::Artifacts { experiment, run, path } => {
            (experiment.map(|id| id.0), run.to_string(), path.to_string())
        }
        other => panic!("{text}: {other:?}"),
    };
    let own = |experiment| (experiment, "r1".to_owned(), "model/sub".to_owned());
    assert_eq!(artifacts("runs:/r1/model/sub"), own(None));
    assert_eq!(artifacts("runs:/r1/model/sub/"), own(None));
    assert_eq!(artifacts("mlflow-artifacts:/7/r1/artifacts/model/sub"), own(Some(7)));
    assert_eq!(artifacts("mlflow-artifacts:///7/r1/artifacts/model/sub"), own(Some(7)));

    let logged = |text: &str| match Source::parse(text).unwrap() {
        Source::LoggedModel { id, experiment } => (id, experiment),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(logged("models:/m-00ff"), ("m-00ff".to_owned(), None));
    let place = "mlflow-artifacts:/3/models/m-00ff/artifacts";
    assert_eq!(logged(place), ("m-00ff".to_owned(), Some(ExperimentId(3))));

    let which = |text: &str| match Source::parse(text).unwrap() {
        Source::Registered { name, which } if name.as_str() == "digits" => which,
        other => panic!("{text}: {other:?}"),
    };
    let version = |text: &str| Which::Version(VersionName::new(text).unwrap());
    assert_eq!(which("models:/digits/3"), version("3"));
    assert_eq!(which("models:/digits/beta"), version("beta"));
    assert_eq!(which("models:/digits/staging"), Which::Stage(Stage::Staging));
    assert_eq!(which("models:/digits/Latest"), Which::Latest);
    assert_eq!(which("models:/digits@latest"), Which::Latest);
    assert_eq!(which("models:/digits@champion"), Which::Alias("champion".parse().unwrap()));

    for text in [
        "azureml://datastores/lake/paths/models/digits",
        "azureml://jobs/job_a/outputs/model/paths/x",
        "wasbs://c@account.blob.core.windows.net/models/digits",
        "s3://bucket/models/digits",
    ] {
        assert!(matches!(Source::parse(text).unwrap(), Source::Place(_)), "{text}");
    }
    assert!(matches!(
        Source::parse("azureml://datastores/lake/paths/models/digits").unwrap(),
        Source::Place(DataUri::Datastore { path, .. }) if path == "models/digits"
    ));
}

#[test]
fn no_source_leads_out_of_what_it_names() {
    for text in [
        "runs:/r1/../r2/model",
        "runs:/r1/model/..",
        "runs:/r1/./model",
        "runs:/r1/%2e%2e/r2/model",
        "runs:/r1/%252e%252e/r2/model",
        "runs:/r1/..%2f..%2fr2",
        "runs:/r1/..%5c..%5cr2",
        "runs:/../model",
        "runs:/r1%00/model",
        "runs:/r1/model\0",
        "runs:/r1//model",
        "runs://host/r1/model",
        "mlflow-artifacts://host:5000/7/r1/artifacts/model",
        "mlflow-artifacts://host:5000/../../../../",
        "mlflow-artifacts:/7/r1/artifacts/../../r2/artifacts/model",
        "mlflow-artifacts:/7/r1/artifacts/..%2f..%2f..%2f..%2f",
        "mlflow-artifacts:/../../../../etc/passwd",
        "mlflow-artifacts:/7/models/m-1/artifacts/../../../r1/artifacts/x",
        "models://host/digits/3",
        "models:/digits/../other",
        "models:/digits/3/deep",
        "models:/digits%2f..%2fother/3",
        "models:/..",
        "models:/",
        "azureml://datastores/lake/paths/../secret",
        "azureml://datastores/lake/paths/a/%2e%2e/secret",
        "s3://bucket/a/../../other",
        "file:///etc/passwd",
        "/etc/passwd",
        "./model",
        "C:\\models\\digits",
        "http://host/api/2.0/mlflow-artifacts/artifacts/../../../../",
        "https://example.com/model",
        "azureml:digits:3",
        "runs:/r1",
        "runs:/r1/",
        "mlflow-artifacts:/7/r1/artifacts",
        "mlflow-artifacts:/7/r1/other/model",
        "dbfs:/model",
        "",
    ] {
        let refused = Source::parse(text).expect_err(text);
        assert_eq!(refused.code(), Code::InvalidParameterValue, "{text}: {refused}");
    }
    let over_and_over = format!("runs:/r1/%{}41", "25".repeat(20));
    Source::parse(&over_and_over).unwrap_err();
    Source::parse(&"x".repeat(2 << 20)).unwrap_err();
}

#[test]
fn stages_are_mlflows_and_words_of_people_are_shown() {
    for (text, stage) in [
        ("none", Stage::None),
        ("STAGING", Stage::Staging),
        ("Production", Stage::Production),
        ("archived", Stage::Archived),
    ] {
        assert_eq!(Stage::parse(text).unwrap(), stage);
        assert_eq!(Stage::shown(Some(text)), stage.as_str());
    }
    assert_eq!(Stage::shown(None), "None");
    assert_eq!(Stage::shown(Some("Development")), "Development");
    assert_eq!(Stage::None.said(), None);
    assert_eq!(Stage::Staging.said().as_deref(), Some("Staging"));
    assert!(Stage::Staging.is_active() && !Stage::Archived.is_active() && !Stage::None.is_active());
    let said = Stage::parse("beta").unwrap_err().to_string();
    assert_eq!(
        said,
        "Invalid Model Version stage: beta. Value must be one of None, Staging, Production, Archived."
    );
}

#[test]
fn names_aliases_and_tags_have_limits() {
    assert_eq!(model_name("digits-2.0_b").unwrap().as_str(), "digits-2.0_b");
    for name in ["", " ", "a b", "a/b", "a:b", "../x", "_x", &"x".repeat(256)] {
        let said = model_name(name).unwrap_err().to_string();
        assert!(said.starts_with("Invalid model name '"), "{said}");
    }
    version_name("12").unwrap();
    version_name("beta").unwrap();
    assert_eq!(
        version_name("1/2").unwrap_err().to_string(),
        "Parameter 'version' must be an integer, got '1/2'."
    );
    for good in ["champion", "a-b_c", "v1a", "version1", "V"] {
        new_alias(good).unwrap();
    }
    for bad in ["", "a b", "a/b", "LATEST", "latest", "v1", "V22", &"a".repeat(256)] {
        assert_eq!(new_alias(bad).unwrap_err().code(), Code::InvalidParameterValue, "{bad}");
    }
    // What is reserved can be asked for, and taken away.
    alias("v1").unwrap();
    let one = |key: &str, value: &str| tag(&Tag { key: key.to_owned(), value: value.to_owned() });
    one("team/a:b c.d-e_f", &"x".repeat(100_000)).unwrap();
    one("k", &"x".repeat(100_001)).unwrap_err();
    one(&"k".repeat(251), "").unwrap_err();
    one("a//b", "").unwrap_err();
    one("a\nb", "").unwrap_err();
    let many = |n: usize| (0..n).map(|i| (i.to_string(), String::new())).collect();
    tags(&many(1000)).unwrap();
    tags(&many(1001)).unwrap_err();
    tags(&(0..11).map(|i| (i.to_string(), "x".repeat(100_000))).collect()).unwrap_err();
}

#[test]
fn searches_of_models_are_read() {
    let text = |text: &str| text.to_owned();
    assert_eq!(registered_filter("").unwrap(), []);
    assert_eq!(
        registered_filter(
            "name ILIKE '%dig%' AND tags.`team` != 'a' and attribute.name IN ('x', 'y')"
        )
        .unwrap(),
        [
            RegisteredClause::Name(TextTest::ILike(text("%dig%"))),
            RegisteredClause::Tag { key: text("team"), test: TextTest::NotEqual(text("a")) },
            RegisteredClause::Name(TextTest::In(vec![text("x"), text("y")])),
        ]
    );
    // What the web page asks: models that are no prompts.
    for filter in
        ["tags.`mlflow.prompt.is_prompt` != 'true'", "tags.`mlflow.prompt.is_prompt` = 'false'"]
    {
        assert_eq!(registered_filter(filter).unwrap(), []);
        assert_eq!(version_filter(filter).unwrap(), []);
    }
    let prompts = "tags.`mlflow.prompt.is_prompt` = 'true'";
    assert_eq!(registered_filter(prompts).unwrap(), [RegisteredClause::Prompts]);
    assert_eq!(version_filter(prompts).unwrap(), [VersionClause::Prompts]);
    for (filter, part) in [
        ("run_id = 'x'", "Invalid attribute key 'run_id'"),
        ("name > 'x'", "Invalid comparator for attribute: >"),
        ("name = 3", "Expected a quoted string value"),
        ("name IS NULL", "Invalid comparator for attribute: IS NULL"),
        ("tags.a IN ('x')", "Invalid comparator for tag: IN"),
        ("tags.a IS NOT NULL", "Invalid comparator for tag"),
        ("metrics.a = 'x'", "Invalid entity type 'metrics'"),
        ("name = 'x' OR name = 'y'", "expected AND"),
        ("name = 'x", "never closed"),
    ] {
        let said = registered_filter(filter).unwrap_err().to_string();
        assert!(said.contains(part), "{filter}: {said}");
    }
    let order = |texts: &[&str]| {
        registered_order(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    };
    let found = order(&["timestamp DESC", "name"]).unwrap();
    assert_eq!(
        found.iter().map(|by| (by.key, by.ascending)).collect::<Vec<_>>(),
        [(RegisteredKey::Updated, false), (RegisteredKey::Name, true)]
    );
    order(&["timestamp", "last_updated_timestamp"]).unwrap_err();
    order(&["tags.a"]).unwrap_err();
    order(&["version"]).unwrap_err();
}

#[test]
fn searches_of_versions_are_read() {
    let text = |text: &str| text.to_owned();
    assert_eq!(
        version_filter(
            "name='digits' AND run_id IN ('r1') AND source_path LIKE 'runs:%' AND version_number >= 2 \
             AND tags.a ILIKE '%b'"
        )
        .unwrap(),
        [
            VersionClause::Name(TextTest::Equal(text("digits"))),
            VersionClause::Run(TextTest::In(vec![text("r1")])),
            VersionClause::Source(TextTest::Like(text("runs:%"))),
            VersionClause::Number { test: NumberTest::AtLeast, value: 2 },
            VersionClause::Tag { key: text("a"), test: TextTest::ILike(text("%b")) },
        ]
    );
    for (filter, part) in [
        ("stage = 'x'", "Invalid attribute key 'stage'"),
        ("source_path IN ('x')", "Invalid comparator for attribute: IN"),
        ("version_number = 1.5", "not an integer"),
        ("version_number LIKE '1%'", "Invalid comparator for attribute version_number: LIKE"),
        ("run_id = 1", "Expected a quoted string value"),
    ] {
        let said = version_filter(filter).unwrap_err().to_string();
        assert!(said.contains(part), "{filter}: {said}");
    }
    let found = version_order(&[text("version_number DESC"), text("creation_timestamp")]).unwrap();
    assert_eq!(
        found.iter().map(|by| (by.key, by.ascending)).collect::<Vec<_>>(),
        [(VersionKey::Number, false), (VersionKey::Created, true)]
    );
    version_order(&[text("run_id")]).unwrap_err();
}
