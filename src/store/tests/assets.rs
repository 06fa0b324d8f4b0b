use atelier_core::asset::{
    Asset, Change, Draft, Kind, Refusal, Registration, Unresolved, Version, VersionEntry,
};
use atelier_core::id::{AssetName, DatastoreName, LabelName, PortName, VersionName};
use atelier_core::job::{EventKind, Outcome};
use atelier_core::spec::{AssetRef, AssetVersion, DataKind, DataUri, Input, InputMode, Output};

use proptest::prelude::*;

use super::*;
use crate::store::assets::{self, AssetQuery};
use crate::store::{Archived, Store as _, schema};

fn named(text: &str) -> AssetName {
    AssetName::new(text).unwrap()
}

fn version(text: &str) -> VersionName {
    VersionName::new(text).unwrap()
}

fn exact(text: &str) -> AssetVersion {
    AssetVersion::Exact(text.to_owned())
}

fn draft(form: DataKind, name: &str, path: &str) -> Draft {
    let datastore = DatastoreName::new("workspaceblobstore").unwrap();
    Draft {
        name: named(name),
        version: None,
        description: None,
        tags: [].into(),
        properties: [].into(),
        form,
        uri: DataUri::Datastore { datastore, path: path.to_owned() },
        flavors: [].into(),
        stage: None,
    }
}

fn data(name: &str, path: &str) -> Draft {
    draft(DataKind::UriFolder, name, path)
}

async fn register(store: &SqliteStore, draft: Draft) -> Result<Version, Refusal> {
    let at = Timestamp::from_millis(7);
    let by = who("ana");
    changed(store, move |conn| assets::register(conn, draft, None, by, at)).await
}

async fn delete(store: &SqliteStore, name: &str, which: &str) -> Result<Version, Refusal> {
    let (name, which) = (named(name), exact(which));
    changed(store, move |conn| assets::delete(conn, Kind::Data, &name, &which)).await
}

async fn label(store: &SqliteStore, which: &str, change: Change) -> Result<Version, Refusal> {
    let (name, which) = (named("iris"), exact(which));
    changed(store, move |conn| {
        assets::change(conn, Kind::Data, &name, &which, &change, Timestamp::from_millis(1))
    })
    .await
}

fn labels(names: &[&str]) -> Vec<LabelName> {
    names.iter().map(|name| LabelName::new(name).unwrap()).collect()
}

/// `name:version` of each, with its labels.
fn listed(store: &SqliteStore, kind: Kind, name: Option<&str>) -> String {
    let query = AssetQuery {
        name: name.map(named),
        archived: Archived::With,
        limit: 100,
        ..AssetQuery::default()
    };
    let (page, more) = store.read(|conn| assets::list::<Version>(conn, kind, &query)).unwrap();
    assert!(!more);
    let shown = page.iter().map(|item| {
        let latest = if item.latest { "*" } else { "" };
        let labels: String = item.labels.iter().map(|label| format!("@{label}")).collect();
        format!("{}:{}{latest}{labels}", item.version.name, item.version.version)
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn each_kind_has_names_of_its_own() {
    let folder = Folder::new();
    let store = folder.open();
    register(&store, data("iris", "a")).await.unwrap();
    register(&store, data("iris", "b")).await.unwrap();
    register(&store, draft(DataKind::MlflowModel, "iris", "m")).await.unwrap();
    assert_eq!(listed(&store, Kind::Data, None), "iris:2*");
    assert_eq!(listed(&store, Kind::Model, Some("iris")), "iris:1*");
    assert_eq!(listed(&store, Kind::Data, Some("iris")), "iris:2* iris:1");
    // The same again is no change; something else is none either.
    let mut again = data("iris", "a");
    again.version = Some(version("1"));
    again.description = Some("what it is for".to_owned());
    let again = register(&store, again).await.unwrap();
    let mut other = data("iris", "c");
    other.version = Some(version("1"));
    assert!(matches!(register(&store, other).await, Err(Refusal::Fixed { .. })));
    drop(store);
    let kept = folder
        .open()
        .read(|conn| assets::version::<Version>(conn, Kind::Data, &named("iris"), &version("1")));
    assert_eq!(kept.unwrap(), Some(again));
}

#[tokio::test]
async fn a_request_that_comes_again_gets_what_it_made() {
    let folder = Folder::new();
    let ask = async |store: &SqliteStore, by: &str, asked: &str, path: &str| {
        let (draft, by, key) = (data("iris", path), who(by), key(asked, path));
        let at = Timestamp::from_millis(7);
        let made =
            changed(store, move |conn| assets::register_once(conn, draft, None, (by, &key), at));
        made.await.map(|made| made.version.to_string())
    };
    let store = folder.open();
    assert_eq!(ask(&store, "ana", "k", "a").await.unwrap(), "1");
    assert_eq!(ask(&store, "ana", "l", "a").await.unwrap(), "2");
    drop(store);
    let store = folder.open();
    assert_eq!(ask(&store, "ana", "k", "a").await.unwrap(), "1");
    assert_eq!(ask(&store, "ben", "k", "a").await.unwrap(), "3", "keys are one's own");
    let reused = ask(&store, "ana", "k", "b").await;
    assert!(matches!(reused, Err(Refusal::KeyReused { .. })), "{reused:?}");
    // What was deleted meanwhile is said to have been made all the same.
    delete(&store, "iris", "1").await.unwrap();
    assert_eq!(ask(&store, "ana", "k", "a").await.unwrap(), "1");
    assert_eq!(listed(&store, Kind::Data, Some("iris")), "iris:3* iris:2");
}

#[tokio::test]
async fn labels_move_and_go_with_their_version() {
    let folder = Folder::new();
    let store = folder.open();
    for path in ["a", "b", "c"] {
        register(&store, data("iris", path)).await.unwrap();
    }
    let set = |names: &[&str]| Change { labels: labels(names), ..Change::default() };
    label(&store, "1", set(&["stable", "old"])).await.unwrap();
    assert_eq!(listed(&store, Kind::Data, Some("iris")), "iris:3* iris:2 iris:1@old@stable");
    label(&store, "2", set(&["stable"])).await.unwrap();
    // Of another version it is not taken away.
    let unset = Change { unlabel: labels(&["stable", "old"]), ..Change::default() };
    label(&store, "1", unset).await.unwrap();
    assert_eq!(listed(&store, Kind::Data, Some("iris")), "iris:3* iris:2@stable iris:1");
    let refused = label(&store, "1", set(&["latest"])).await;
    assert!(matches!(refused, Err(Refusal::FixedLabel { .. })), "{refused:?}");
    drop(store);
    let store = folder.open();
    let asset =
        store.read(|conn| assets::asset(conn, Kind::Data, &named("iris"), None)).unwrap().unwrap();
    let stable = asset.resolve(&AssetVersion::Label("stable".to_owned()));
    assert_eq!(stable, Ok(&version("2")));
    delete(&store, "iris", "2").await.unwrap();
    assert_eq!(listed(&store, Kind::Data, Some("iris")), "iris:3* iris:1");
}

#[tokio::test]
async fn a_deleted_version_leaves_its_name_behind() {
    let folder = Folder::new();
    let store = folder.open();
    for path in ["a", "b"] {
        register(&store, data("iris", path)).await.unwrap();
    }
    assert_eq!(delete(&store, "iris", "2").await.unwrap().version, version("2"));
    assert_eq!(listed(&store, Kind::Data, None), "iris:1*");
    let again = delete(&store, "iris", "2").await;
    assert!(
        matches!(again, Err(Refusal::Unresolved(Unresolved::NoSuchVersion { .. }))),
        "{again:?}"
    );
    delete(&store, "iris", "1").await.unwrap();
    assert_eq!(listed(&store, Kind::Data, None), "");
    drop(store);
    let store = folder.open();
    assert_eq!(register(&store, data("iris", "c")).await.unwrap().version, version("3"));
    let mut same = data("iris", "a");
    same.version = Some(version("1"));
    let refused = register(&store, same).await;
    assert!(matches!(refused, Err(Refusal::Deleted { .. })), "{refused:?}");
}

fn uses_iris(seq: u64, which: &str) -> Job {
    let mut job = waiting(seq);
    let mut spec = (*job.spec).clone();
    let asset = AssetRef { registry: None, name: "iris".to_owned(), version: exact(which) };
    let uri = data("iris", "a").uri;
    for input in ["a", "b"] {
        spec.inputs.insert(
            PortName::new(input).unwrap(),
            Input::Data {
                kind: DataKind::UriFolder,
                mode: InputMode::RoMount,
                uri: uri.clone(),
                asset: Some(asset.clone()),
                address: None,
            },
        );
    }
    job.spec = std::sync::Arc::new(spec);
    job
}

fn uses(store: &SqliteStore, which: &str, before: Option<u64>) -> Vec<String> {
    let found = store
        .read(|conn| assets::uses(conn, Kind::Data, &named("iris"), &version(which), before, 10));
    let shown = found.unwrap().into_iter();
    shown.map(|used| format!("{} {}", used.job, used.inputs.join("+"))).collect()
}

#[tokio::test]
async fn what_jobs_use_is_known_until_they_are_deleted() {
    let folder = Folder::new();
    let store = folder.open();
    register(&store, data("iris", "a")).await.unwrap();
    let jobs = [uses_iris(1, "1"), uses_iris(2, "1"), waiting(3)];
    store.commit(accepted(jobs.into_iter().map(|job| (job, None))).into()).await.unwrap();
    assert_eq!(uses(&store, "1", None), ["job2 a+b", "job1 a+b"]);
    assert_eq!(uses(&store, "1", Some(2)), ["job1 a+b"]);
    let refused = delete(&store, "iris", "1").await.unwrap_err().to_string();
    assert!(refused.contains("jobs job1, job2 are not over"), "{refused}");

    let ended = |seq: u64| {
        let mut job = uses_iris(seq, "1");
        job.state = records::over(seq).state;
        (job.name.clone(), job)
    };
    let over = Batch { changed: [ended(1), ended(2)].into(), ..Batch::default() };
    store.commit(over.into()).await.unwrap();
    let gone = Batch { deleted: vec![name("job1")], ..Batch::default() };
    store.commit(gone.into()).await.unwrap();
    assert_eq!(uses(&store, "1", None), ["job2 a+b"]);
    delete(&store, "iris", "1").await.unwrap();
}

/// A job that is completed next, with an output for each of these names and versions.
fn completed(seq: u64, outputs: &[(&str, &str, Option<&str>)]) -> Batch {
    let mut job = records::over(seq);
    let mut spec = (*job.spec).clone();
    for (output, asset, version) in outputs {
        let path =
            format!("azureml://datastores/workspaceblobstore/paths/azureml/job{seq}/{output}/");
        spec.outputs.insert(
            PortName::new(output).unwrap(),
            Output {
                kind: DataKind::CustomModel,
                mode: atelier_core::spec::OutputMode::Upload,
                path: Some(path),
                asset_name: Some((*asset).to_owned()),
                asset_version: version.map(str::to_owned),
            },
        );
    }
    job.spec = std::sync::Arc::new(spec);
    assert_eq!(job.ended().unwrap().outcome, Outcome::Completed);
    let mut batch = accepted([(job, None)]);
    let first = batch.events.pop().unwrap();
    for (at, (output, ..)) in outputs.iter().enumerate() {
        let output = PortName::new(output).unwrap();
        let seq = atelier_core::id::EventSeq(first.seq.0 * 100 + at as u64);
        let kind = EventKind::AssetRegistering { output };
        batch.events.push(atelier_core::job::Event { seq, kind, ..first.clone() });
    }
    batch
}

fn told(store: &SqliteStore, job: &str) -> Vec<String> {
    let events = store.events(Some(&name(job)), 0, 100).unwrap();
    events.iter().map(|event| event.kind.message()).collect()
}

#[tokio::test]
async fn outputs_become_assets_with_the_end_of_their_job() {
    let folder = Folder::new();
    let store = folder.open();
    let outputs =
        [("a", "m", None), ("b", "m", None), ("c", "m", Some("blue")), ("d", "a b", None)];
    store.commit(completed(1, &outputs).into()).await.unwrap();
    assert_eq!(
        told(&store, "job1"),
        [
            "output 'a' is version 1 of model 'm'",
            "output 'b' is version 2 of model 'm'",
            "output 'c' is version blue of model 'm'",
            "output 'd' is not registered: asset name 'a b' is not valid: use letters, digits, '-', '_' and \
             '.', start with a letter or digit, at most 255 characters",
        ]
    );
    let made = store.read(|conn| assets::of_job(conn, &name("job1"))).unwrap();
    let made_by: Vec<_> = made.iter().map(|v| v.made_by.clone().unwrap().output).collect();
    assert_eq!(made_by, ["a", "b", "c"]);
    assert_eq!(made[0].created_by, records::over(1).created_by);
    let below = |folder: &str| {
        let found = store.read(|conn| assets::below(conn, "workspaceblobstore", folder, 9));
        found.unwrap().len()
    };
    assert_eq!((below("azureml/job1"), below("azureml/job1/a"), below("azureml/job")), (3, 1, 0));

    // A version that is there stays what it is, and the job is completed all the same.
    store.commit(completed(2, &[("a", "m", Some("blue"))]).into()).await.unwrap();
    let said = told(&store, "job2").join("\n");
    assert!(said.contains("not registered: cannot make version blue of model 'm'"), "{said}");
    assert!(store.job(&name("job2")).unwrap().unwrap().ended().is_some());
    drop(store);
    assert_eq!(told(&folder.open(), "job1").len(), 4);
}

#[tokio::test]
async fn what_cannot_be_written_registers_nothing() {
    let folder = Folder::new();
    let store = folder.open();
    store.commit(completed(1, &[("a", "m", None)]).into()).await.unwrap();
    // The event's number is taken: nothing of the batch is written.
    let mut again = completed(2, &[("a", "m", None)]);
    again.events[0].seq = atelier_core::id::EventSeq(100);
    store.commit(again.into()).await.unwrap_err();
    store.recover().unwrap();
    assert_eq!(listed(&store, Kind::Model, Some("m")), "m:1*");
}

/// What somebody does to an asset.
#[derive(Clone, Debug)]
enum Step {
    Register(Option<&'static str>),
    Archive(usize, bool),
    ArchiveAll(bool),
    Delete(usize),
    Label(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let names = vec!["1", "007", "8", "blue", "18446744073709551614", "99999999999999999999"];
    let asked = prop::option::weighted(0.3, prop::sample::select(names));
    prop::collection::vec(
        prop_oneof![
            6 => asked.prop_map(Step::Register),
            3 => (any::<usize>(), any::<bool>()).prop_map(|(at, off)| Step::Archive(at, off)),
            1 => any::<bool>().prop_map(Step::ArchiveAll),
            2 => any::<usize>().prop_map(Step::Delete),
            1 => any::<usize>().prop_map(Step::Label),
        ],
        0..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The few versions that are read give the answers that all of them give.
    #[test]
    fn what_is_read_of_an_asset_tells_what_all_of_it_would(steps in steps()) {
        let mut conn = rusqlite::Connection::open_in_memory().unwrap();
        schema::migrate_to(&mut conn, schema::LATEST).unwrap();
        let mut all = Asset::new(Kind::Data, named("iris"));
        for (at, step) in steps.into_iter().enumerate() {
            let pick = |n: usize| all.versions.get(n % all.versions.len().max(1)).cloned();
            match step {
                Step::Register(asked) => {
                    let mut draft = data("iris", &at.to_string());
                    draft.version = asked.map(version);
                    let there = asked.is_some_and(|asked| all.entry(asked).is_ok());
                    let expected = all.register(draft.version.as_ref(), there.then_some(false));
                    let by = who("ana");
                    let made = assets::register(&conn, draft, None, by, Timestamp::from_millis(1));
                    let made = made.unwrap().map(|made| Registration::New(made.version));
                    prop_assert_eq!(&made, &expected);
                    if let Ok(Registration::New(version)) = made {
                        all.versions.insert(0, VersionEntry { version, archived: false });
                    }
                }
                Step::Archive(n, archived) => {
                    let Some(entry) = pick(n) else { continue };
                    let expected = all.may_archive(Some(&entry.version), archived);
                    let kind = Kind::Data;
                    let done =
                        assets::archive(&conn, kind, &all.name, Some(&entry.version), archived);
                    prop_assert_eq!(done.unwrap(), expected.clone());
                    if expected.is_ok() {
                        let of = |known: &&mut VersionEntry| known.version == entry.version;
                        all.versions.iter_mut().find(of).unwrap().archived = archived;
                    }
                }
                Step::ArchiveAll(archived) => {
                    if !all.versions.is_empty() || !all.deleted.is_empty() {
                        assets::archive(&conn, Kind::Data, &all.name, None, archived)
                            .unwrap()
                            .unwrap();
                        all.archived = archived;
                    }
                }
                Step::Delete(n) => {
                    let Some(entry) = pick(n) else { continue };
                    let which = exact(entry.version.as_str());
                    assets::delete::<Version>(&conn, Kind::Data, &all.name, &which).unwrap().unwrap();
                    all.versions.retain(|known| known.version != entry.version);
                    all.labels.retain(|_, to| *to != entry.version);
                    all.deleted.insert(0, entry.version);
                }
                Step::Label(n) => {
                    let Some(entry) = pick(n) else { continue };
                    let (which, label) = (exact(entry.version.as_str()), labels(&["mine"]));
                    let change = Change { labels: label.clone(), ..Change::default() };
                    assets::change(&conn, Kind::Data, &all.name, &which, &change, Timestamp::from_millis(1)).unwrap().unwrap();
                    all.labels.insert(label[0].clone(), entry.version);
                }
            }
            let read = |version: Option<&str>| {
                let read = assets::asset(&conn, Kind::Data, &all.name, version).unwrap();
                read.unwrap_or_else(|| Asset::new(Kind::Data, all.name.clone()))
            };
            prop_assert_eq!(read(None).next_version(), all.next_version());
            for which in [AssetVersion::Default, AssetVersion::Label("mine".to_owned())] {
                let read = read(None);
                prop_assert_eq!(read.resolve(&which), all.resolve(&which));
            }
            for known in ["1", "2", "9", "blue"] {
                let which = exact(known);
                let read = read(Some(known));
                prop_assert_eq!(read.resolve(&which), all.resolve(&which));
            }
        }
    }
}

#[tokio::test]
async fn environments_of_an_earlier_build_are_taken_over() {
    let folder = Folder::new();
    {
        let mut conn = rusqlite::Connection::open(&folder.path).unwrap();
        schema::migrate_to(&mut conn, 8).unwrap();
        let record = |version: &str| {
            format!(
                "{{\"name\":\"train\",\"version\":\"{version}\",\"environment\":{{\"image\":\"x{version}\"}},\
                 \"created_by\":\"ana\",\"created_at\":7}}"
            )
        };
        conn.execute_batch(&format!(
            "INSERT INTO environments VALUES ('train', 0), ('old', 1), ('odd', 0);
             INSERT INTO environment_versions VALUES
                 (1, 'train', '1', 1, '{}'), (4, 'train', '2', 0, '{}'), (6, 'train', '3', 0, '{}'),
                 (7, 'odd', '0012', 0, '{}'), (8, 'odd', '9', 0, '{}'), (9, 'odd', 'v2', 0, '{}'),
                 (10, 'odd', '99999999999999999999', 0, '{}'), (11, 'odd', '1.5', 0, '{}');",
            record("1"),
            record("2"),
            record("3"),
            record("0012"),
            record("9"),
            record("v2"),
            record("99999999999999999999"),
            record("1.5"),
        ))
        .unwrap();
    }
    let store = folder.open();
    let known =
        store.read(|conn| crate::store::environments::asset(conn, &named("train"), Some("1")));
    let known = known.unwrap().unwrap();
    let shown = known.versions.iter().map(|entry| (entry.version.as_str(), entry.archived));
    assert_eq!(shown.collect::<Vec<_>>(), [("3", false), ("2", false), ("1", true)]);
    assert_eq!(known.next_version(), Some(version("4")));
    let odd = store.read(|conn| crate::store::environments::asset(conn, &named("odd"), None));
    assert_eq!(odd.unwrap().unwrap().next_version(), Some(version("13")));
    let two = store
        .read(|conn| crate::store::environments::version(conn, &named("train"), &version("2")))
        .unwrap()
        .unwrap();
    assert_eq!(two.environment.image.as_deref(), Some("x2"));
    let old = store.read(|conn| crate::store::environments::asset(conn, &named("old"), None));
    assert!(old.unwrap().unwrap().archived);
}
