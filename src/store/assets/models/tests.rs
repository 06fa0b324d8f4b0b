use atelier_core::access::{AttemptScope, Caller, Role};
use atelier_core::asset::Draft;
use atelier_core::id::{AttemptNumber, DatastoreName, Epoch};
use atelier_core::spec::{DataKind, DataUri};
use atelier_core::track::Tag;
use atelier_core::track::search::{
    registered_filter, registered_order, version_filter, version_order,
};

use super::*;
use crate::store::assets::{archive, put, register};
use crate::store::audit::Asked;
use crate::store::schema;

fn name(text: &str) -> AssetName {
    AssetName::new(text).unwrap()
}

fn word(text: &str) -> VersionName {
    VersionName::new(text).unwrap()
}

fn label(text: &str) -> LabelName {
    LabelName::new(text).unwrap()
}

fn who(text: &str) -> Principal {
    Principal::new(text).unwrap()
}

fn caller(text: &str) -> Caller {
    let role = if text == "admin" { Role::Admin } else { Role::DataScientist };
    Caller { principal: who(text), role }
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn draft(of: &str, path: &str) -> Draft {
    Draft {
        name: name(of),
        version: None,
        description: None,
        tags: [].into(),
        properties: [].into(),
        form: DataKind::MlflowModel,
        uri: DataUri::Datastore {
            datastore: DatastoreName::new("workspaceartifactstore").unwrap(),
            path: path.to_owned(),
        },
        flavors: [].into(),
        stage: None,
    }
}

fn database() -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrate_to(&mut conn, schema::LATEST).unwrap();
    conn
}

fn make(conn: &Connection, of: &str, run: &str, ms: i64) -> ModelVersion {
    let lineage = Lineage {
        source: format!("runs:/{run}/model"),
        run: Some(RunId::new(run).unwrap()),
        ..Lineage::default()
    };
    let new = NewVersion {
        draft: draft(of, &format!("ExperimentRun/dcid.{run}/model")),
        made_by: None,
        lineage,
        key: None,
    };
    create_version(&Asked::on(conn), &who("ana"), new, at(ms)).unwrap()
}

fn model_of(conn: &Connection, of: &str, ms: i64) -> RegisteredModel {
    let nothing = (None, BTreeMap::new());
    create_model(&Asked::on(conn), &name(of), &who("ana"), nothing, at(ms)).unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Track(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

/// `version@alias(stage)` of each.
fn shown<'a>(versions: impl IntoIterator<Item = &'a ModelVersion>) -> String {
    let shown = versions.into_iter().map(|found| {
        let aliases: String = found.aliases.iter().map(|alias| format!("@{alias}")).collect();
        let own = &found.version;
        format!("{}:{}{aliases}({})", own.name, own.version, found.stage())
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[test]
fn models_that_there_were_are_taken_over() {
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrate_to(&mut conn, schema::before(MIGRATION)).unwrap();
    for (version, by, ms, form) in [
        ("1", "ana", 5, DataKind::MlflowModel),
        ("beta", "ben", 9, DataKind::CustomModel),
        ("1", "cy", 7, DataKind::UriFolder),
    ] {
        let draft = Draft { form, ..draft("digits", "models/digits") };
        put(&conn, &draft.made(word(version), None, who(by), at(ms))).unwrap();
    }
    schema::migrate(&mut conn).unwrap();
    let found = model(&conn, &name("digits")).unwrap();
    assert_eq!(
        (found.owner, found.created, found.updated),
        (who("ana"), at(5), at(9)),
        "of the model, not of the data of this name"
    );
    assert_eq!(shown(&found.latest), "digits:1(None)");
    let beta = version(&conn, &name("digits"), &word("beta")).unwrap();
    assert_eq!(beta.source, "azureml://datastores/workspaceartifactstore/paths/models/digits");
    assert_eq!((beta.updated, beta.run), (at(9), None));
}

/// Whoever makes a model, it is in the registry.
#[test]
fn what_is_made_elsewhere_is_in_the_registry() {
    let conn = database();
    let made = register(&conn, draft("digits", "a"), None, who("ben"), at(3)).unwrap().unwrap();
    let found = version(&conn, &made.name, &made.version).unwrap();
    assert_eq!(found.version, made);
    assert_eq!(model(&conn, &made.name).unwrap().owner, who("ben"));
    assert_eq!(
        refused(create_model(&Asked::on(&conn), &made.name, &who("ana"), (None, [].into()), at(4))),
        Refusal::RegisteredModelExists("digits".to_owned())
    );
    // Data is not.
    let data = Draft { form: DataKind::UriFolder, ..draft("iris", "b") };
    register(&conn, data, None, who("ben"), at(3)).unwrap().unwrap();
    assert_eq!(refused(model(&conn, &name("iris"))), Refusal::NoRegisteredModel("iris".to_owned()));
    assert!(model_of(&conn, "iris", 5).latest.is_empty(), "the names of each kind are its own");
}

#[test]
fn versions_are_counted_on_and_their_numbers_not_given_again() {
    let conn = database();
    let asked = Asked::on(&conn);
    let new = NewVersion {
        draft: draft("digits", "a"),
        made_by: None,
        lineage: Lineage::default(),
        key: None,
    };
    assert_eq!(
        refused(create_version(&asked, &who("ana"), new, at(1))),
        Refusal::NoRegisteredModel("digits".to_owned())
    );
    model_of(&conn, "digits", 1);
    for (n, run) in ["r1", "r2", "r3"].iter().enumerate() {
        assert_eq!(make(&conn, "digits", run, 2).version.version, word(&(n + 1).to_string()));
    }
    let (digits, three) = (name("digits"), word("3"));
    delete_version(&asked, &caller("ana"), (&digits, &three), at(9)).unwrap();
    let gone = refused(delete_version(&asked, &caller("ana"), (&digits, &three), at(9)));
    assert_eq!(gone.code(), atelier_core::track::Code::ResourceDoesNotExist, "{gone}");
    assert_eq!(model(&conn, &digits).unwrap().updated, at(9));
    assert_eq!(make(&conn, "digits", "r4", 10).version.version, word("4"));
    // Only whoever made it, or an admin.
    let said = refused(delete_version(&asked, &caller("ben"), (&digits, &word("1")), at(9)));
    assert!(said.to_string().contains("it is ana's"), "{said}");
    delete_version(&asked, &caller("admin"), (&digits, &word("1")), at(9)).unwrap();
    // The whole model, and made anew.
    assert!(refused(delete_model(&asked, &caller("ben"), &digits)).to_string().contains("ana's"));
    delete_model(&asked, &caller("ana"), &digits).unwrap();
    refused(delete_model(&asked, &caller("ana"), &digits));
    refused(version(&conn, &digits, &word("2")));
    assert!(model_of(&conn, "digits", 20).latest.is_empty());
    assert_eq!(make(&conn, "digits", "r5", 21).version.version, word("5"));
}

#[test]
fn what_jobs_use_is_not_deleted() {
    let conn = database();
    let asked = Asked::on(&conn);
    model_of(&conn, "digits", 1);
    make(&conn, "digits", "r1", 2);
    make(&conn, "digits", "r2", 2);
    conn.execute_batch(
        "INSERT INTO jobs VALUES (7, 'train', 'e', 'running', 1, 0, 'c', 'ana', 0, '{}', '{}', '{}');
         INSERT INTO asset_uses SELECT seq, 7, 'model' FROM asset_versions WHERE version = '1';",
    )
    .unwrap();
    let digits = name("digits");
    let said = refused(delete_version(&asked, &caller("ana"), (&digits, &word("1")), at(3)));
    assert!(said.to_string().contains("job train is not over"), "{said}");
    assert_eq!(said.code(), atelier_core::track::Code::InvalidState);
    let said = refused(delete_model(&asked, &caller("ana"), &digits));
    assert!(said.to_string().contains("job train is not over"), "{said}");
    // It may read what it is given.
    let job = JobName::new("train").unwrap();
    let [one, two] = ["1", "2"].map(|which| version(&conn, &digits, &word(which)).unwrap());
    assert!(is_of_job(&conn, &one, &job).unwrap() && !is_of_job(&conn, &two, &job).unwrap());
    assert!(!is_of_run_of(&conn, &one, &job).unwrap());
}

#[test]
fn stages_and_aliases_are_those_of_the_asset() {
    let conn = database();
    let asked = Asked::on(&conn);
    let (digits, ana) = (name("digits"), caller("ana"));
    model_of(&conn, "digits", 1);
    for run in ["r1", "r2", "r3", "r4"] {
        make(&conn, "digits", run, 2);
    }
    // A version that is a word, and one that MLflow would write otherwise.
    for which in ["beta", "007"] {
        let draft = Draft { version: Some(word(which)), ..draft("digits", which) };
        register(&conn, draft, None, who("ana"), at(2)).unwrap().unwrap();
    }
    let stage = |which: &str, to: Stage, alone: bool, ms: i64| {
        let change = VersionChange::Stage { to, alone };
        change_version(&asked, &ana, (&digits, &word(which)), change, at(ms)).unwrap()
    };
    let latest = || shown(&model(&conn, &digits).unwrap().latest);
    assert_eq!(latest(), "digits:4(None)");
    stage("1", Stage::Production, false, 5);
    stage("2", Stage::Production, true, 6);
    stage("3", Stage::Staging, true, 7);
    assert_eq!(
        latest(),
        "digits:4(None) digits:3(Staging) digits:2(Production) digits:1(Archived)"
    );
    assert_eq!(version(&conn, &digits, &word("1")).unwrap().updated, at(6));
    stage("3", Stage::None, false, 8);
    assert_eq!(version(&conn, &digits, &word("3")).unwrap().version.stage, None);
    // An alias is a label: it points to one version.
    for which in ["1", "beta", "2"] {
        set_alias(&asked, &ana, (&digits, &word(which)), &label("champion")).unwrap();
    }
    let champion = by_alias(&conn, &digits, &label("champion")).unwrap();
    assert_eq!(shown([&champion]), "digits:2@champion(Production)");
    let asset = crate::store::assets::asset(&conn, Kind::Model, &digits, None).unwrap().unwrap();
    assert_eq!(asset.labels, [(label("champion"), word("2"))].into());
    assert_eq!(
        refused(by_alias(&conn, &digits, &label("none"))),
        Refusal::NoAlias("none".to_owned())
    );
    for _ in 0..2 {
        unset_alias(&asked, &ana, &digits, &label("champion")).unwrap();
    }
    refused(by_alias(&conn, &digits, &label("champion")));
    refused(set_alias(&asked, &ana, (&digits, &word("9")), &label("champion")));
    // What is archived is found by its name alone.
    set_alias(&asked, &ana, (&digits, &word("4")), &label("newest")).unwrap();
    archive(&conn, Kind::Model, &digits, Some(&word("4")), true).unwrap().unwrap();
    assert_eq!(latest(), "digits:3(None) digits:2(Production) digits:1(Archived)");
    version(&conn, &digits, &word("4")).unwrap();
    let said = refused(by_alias(&conn, &digits, &label("newest")));
    assert!(said.to_string().contains("archived"), "{said}");
    archive(&conn, Kind::Model, &digits, None, true).unwrap().unwrap();
    assert_eq!(latest(), "");
    let new = NewVersion {
        draft: draft("digits", "x"),
        made_by: None,
        lineage: Lineage::default(),
        key: None,
    };
    let said = refused(create_version(&asked, &who("ana"), new, at(9)));
    assert!(said.to_string().contains("it is archived; restore it first"), "{said}");
}

#[test]
fn tags_and_descriptions_change_and_the_same_again_is_no_fault() {
    let conn = database();
    let asked = Asked::on(&conn);
    let (digits, ben) = (name("digits"), caller("ben"));
    model_of(&conn, "digits", 1);
    make(&conn, "digits", "r1", 2);
    let tag = |value: &str| Tag { key: "team".to_owned(), value: value.to_owned() };
    let model_is = |change: ModelChange, ms| change_model(&asked, &ben, &digits, change, at(ms));
    for _ in 0..2 {
        let found = model_is(ModelChange::SetTag(tag("vision")), 5).unwrap();
        assert_eq!(found.tags, [("team".to_owned(), "vision".to_owned())].into());
        assert_eq!(found.updated, at(2), "a tag is no change of the model");
    }
    for _ in 0..2 {
        assert!(model_is(ModelChange::DeleteTag("team".to_owned()), 6).unwrap().tags.is_empty());
    }
    let found = model_is(ModelChange::Describe(Some("of digits".to_owned())), 7).unwrap();
    assert_eq!((found.description.as_deref(), found.updated), (Some("of digits"), at(7)));
    let one = word("1");
    let version_is = |change: VersionChange, ms| {
        change_version(&asked, &ben, (&digits, &one), change, at(ms)).unwrap()
    };
    for _ in 0..2 {
        let found = version_is(VersionChange::SetTag(tag(&"x".repeat(100_000))), 8);
        assert_eq!((found.version.tags.len(), found.updated), (1, at(2)));
    }
    assert!(version_is(VersionChange::DeleteTag("team".to_owned()), 8).version.tags.is_empty());
    let found = version_is(VersionChange::Describe(Some("first".to_owned())), 9);
    assert_eq!((found.version.description.as_deref(), found.updated), (Some("first"), at(9)));
    assert_eq!(version_is(VersionChange::Describe(None), 10).version.description, None);
    // So many bytes of tags, and no more.
    for i in 0..10 {
        let key = format!("long{i}");
        let tag = Tag { key, value: "x".repeat(100_000) };
        version_is(VersionChange::SetTag(tag), 11);
    }
    let change = VersionChange::SetTag(Tag { key: "last".to_owned(), value: "x".repeat(100_000) });
    let said = refused(change_version(&asked, &ben, (&digits, &one), change, at(11)));
    assert!(said.to_string().contains("1048576 bytes together"), "{said}");
}

#[test]
fn a_job_changes_only_what_it_made() {
    let conn = database();
    let asked = Asked::on(&conn);
    let scope = AttemptScope {
        job: JobName::new("train").unwrap(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
    };
    let attempt = Caller { principal: who("ana"), role: Role::Attempt(scope) };
    conn.execute_batch(
        "INSERT INTO runs (id, experiment, owner, job, status, started)
         VALUES ('inner', 0, 'ana', 'train', 'RUNNING', 0), ('other', 0, 'ana', NULL, 'RUNNING', 0);",
    )
    .unwrap();
    let digits = name("digits");
    model_of(&conn, "digits", 1);
    make(&conn, "digits", "inner", 2);
    make(&conn, "digits", "other", 2);
    let (own, other) = (word("1"), word("2"));
    set_alias(&asked, &attempt, (&digits, &own), &label("mine")).unwrap();
    refused(set_alias(&asked, &attempt, (&digits, &other), &label("mine")));
    let alone = || VersionChange::Stage { to: Stage::Staging, alone: true };
    change_version(&asked, &caller("ana"), (&digits, &other), alone(), at(3)).unwrap();
    // It would archive another's.
    let said = refused(change_version(&asked, &attempt, (&digits, &own), alone(), at(3)));
    assert!(said.to_string().contains("only versions that the job made"), "{said}");
    let tag = || ModelChange::SetTag(Tag { key: "a".to_owned(), value: String::new() });
    change_model(&asked, &attempt, &digits, tag(), at(3)).unwrap();
    create_model(&asked, &name("bens"), &who("ben"), (None, [].into()), at(3)).unwrap();
    refused(change_model(&asked, &attempt, &name("bens"), tag(), at(3)));
}

#[test]
fn a_model_gets_another_name_and_nobody_finds_another_under_its_old() {
    let conn = database();
    let asked = Asked::on(&conn);
    let (old, new, ana) = (name("digits"), name("numbers"), caller("ana"));
    model_of(&conn, "digits", 1);
    make(&conn, "digits", "r1", 2);
    set_alias(&asked, &ana, (&old, &word("1")), &label("champion")).unwrap();
    model_of(&conn, "taken", 1);
    assert_eq!(
        refused(rename_model(&asked, &ana, &old, &name("taken"), at(3))),
        Refusal::RegisteredModelExists("taken".to_owned())
    );
    refused(rename_model(&asked, &caller("ben"), &old, &new, at(3)));
    let renamed = rename_model(&asked, &ana, &old, &new, at(3)).unwrap();
    assert_eq!((renamed.created, renamed.updated), (at(1), at(3)));
    assert_eq!(shown(&renamed.latest), "numbers:1@champion(None)");
    assert_eq!(renamed.latest[0].version.name, new);
    refused(model(&conn, &old));
    refused(rename_model(&asked, &ana, &old, &new, at(3)));
    // The old name is free, its versions' names are not.
    refused(rename_model(&asked, &ana, &new, &old, at(4)));
    model_of(&conn, "digits", 5);
    assert_eq!(make(&conn, "digits", "r2", 6).version.version, word("2"));
    assert_eq!(shown(&model(&conn, &new).unwrap().latest), "numbers:1@champion(None)");
}

#[test]
fn searches_go_through_pages_in_order() {
    let conn = database();
    for i in 0..7 {
        let of = format!("m{i}");
        model_of(&conn, &of, 100 - i);
        for run in 0..3 {
            make(&conn, &of, &format!("r{run}"), 200 + i * 10 + run);
        }
    }
    let asked = Asked::on(&conn);
    let ana = caller("ana");
    for which in ["m1", "m4"] {
        let tag = Tag { key: "team".to_owned(), value: "vision".to_owned() };
        change_model(&asked, &ana, &name(which), ModelChange::SetTag(tag.clone()), at(1)).unwrap();
        let change = VersionChange::SetTag(tag);
        change_version(&asked, &ana, (&name(which), &word("2")), change, at(1)).unwrap();
    }
    archive(&conn, Kind::Model, &name("m6"), None, true).unwrap().unwrap();
    let texts = |order: &[&str]| order.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let models = |filter: &str, order: &[&str], limit: usize| {
        let mut query = ModelQuery {
            filter: registered_filter(filter).unwrap(),
            order: registered_order(&texts(order)).unwrap(),
            limit,
            after: None,
            fingerprint: 3,
        };
        let mut found = Vec::new();
        loop {
            let page = search_models(&conn, &query).unwrap();
            assert!(page.items.len() <= limit);
            found.extend(page.items.iter().map(|model| model.name.to_string()));
            match page.next {
                Some(next) => query.after = Some(next),
                None => return found.join(" "),
            }
        }
    };
    for limit in [1, 2, 6, 100] {
        assert_eq!(models("", &[], limit), "m0 m1 m2 m3 m4 m5");
        assert_eq!(models("", &["timestamp DESC"], limit), "m5 m4 m3 m2 m1 m0");
        assert_eq!(models("", &["creation_timestamp"], limit), "m5 m4 m3 m2 m1 m0");
        assert_eq!(models("name LIKE 'm%' AND tags.team = 'vision'", &[], limit), "m1 m4");
        assert_eq!(models("tags.team != 'vision'", &[], limit), "", "those without have none");
        assert_eq!(models("name NOT IN ('m1', 'm2')", &["name DESC"], limit), "m5 m4 m3 m0");
        assert_eq!(models("tags.`mlflow.prompt.is_prompt` = 'true'", &[], limit), "");
    }
    let versions = |filter: &str, order: &[&str], limit: usize| {
        let mut query = VersionQuery {
            filter: version_filter(filter).unwrap(),
            order: version_order(&texts(order)).unwrap(),
            limit,
            after: None,
            fingerprint: 4,
        };
        let mut found = Vec::new();
        loop {
            let page = search_versions(&conn, &query).unwrap();
            assert!(page.items.len() <= limit);
            let shown =
                |found: &ModelVersion| format!("{}:{}", found.version.name, found.version.version);
            found.extend(page.items.iter().map(shown));
            match page.next {
                Some(next) => query.after = Some(next),
                None => return found.join(" "),
            }
        }
    };
    let beta = Draft { version: Some(word("beta")), ..draft("m0", "models/m0") };
    register(&conn, beta, None, who("ana"), at(1)).unwrap().unwrap();
    for limit in [1, 4, 100] {
        assert_eq!(versions("name = 'm5'", &[], limit), "m5:3 m5:2 m5:1");
        assert_eq!(versions("name = 'm0'", &["version_number"], limit), "m0:1 m0:2 m0:3 m0:beta");
        assert_eq!(versions("name = 'm0'", &[], limit), "m0:3 m0:2 m0:1 m0:beta");
        assert_eq!(versions("run_id = 'r1' AND version_number > 1", &["name"], limit).len(), 29);
        assert_eq!(
            versions("version_number > 2 AND name IN ('m0', 'm1')", &["name"], limit),
            "m0:3 m1:3"
        );
        assert_eq!(versions("tags.team = 'vision'", &["name DESC"], limit), "m4:2 m1:2");
        assert_eq!(versions("source_path = 'runs:/r0/model'", &["name"], limit).len(), 29);
        assert_eq!(versions("source_path LIKE 'azureml:%'", &[], limit), "m0:beta");
    }
}
