use proptest::prelude::*;

use super::*;
use crate::id::{DatastoreName, Principal};
use crate::spec::{DataKind, DataUri};
use crate::time::Timestamp;

fn name(text: &str) -> AssetName {
    AssetName::new(text).unwrap()
}

fn version(text: &str) -> VersionName {
    VersionName::new(text).unwrap()
}

fn label(text: &str) -> LabelName {
    LabelName::new(text).unwrap()
}

fn asset_of(kind: Kind, versions: &[&str]) -> Asset {
    let entry = |text: &&str| VersionEntry { version: version(text), archived: false };
    Asset { versions: versions.iter().map(entry).collect(), ..Asset::new(kind, name("train")) }
}

fn asset(versions: &[&str]) -> Asset {
    asset_of(Kind::Environment, versions)
}

fn draft(form: DataKind, path: &str) -> Draft {
    let datastore = DatastoreName::new("datasets").unwrap();
    Draft {
        name: name("iris"),
        version: None,
        description: None,
        tags: BTreeMap::new(),
        properties: BTreeMap::new(),
        form,
        uri: DataUri::Datastore { datastore, path: path.to_owned() },
        flavors: BTreeMap::new(),
        stage: None,
    }
}

fn made(draft: Draft, as_version: &str) -> Version {
    let by = Principal::new("ana").unwrap();
    draft.made(version(as_version), None, by, Timestamp::from_millis(1))
}

#[test]
fn the_next_number_follows_the_highest() {
    for (versions, next) in [
        (&[][..], Some("1")),
        (&["1"], Some("2")),
        (&["7", "12", "2"], Some("13")),
        (&["blue", "1.5", "2024-05-01"], Some("1")),
        (&["007"], Some("8")),
        (&["18446744073709551614"], Some("18446744073709551615")),
        (&["18446744073709551615"], None),
        // Too large to count with: no number.
        (&["99999999999999999999", "3"], Some("4")),
    ] {
        assert_eq!(asset(versions).next_version(), next.map(version), "{versions:?}");
    }
}

#[test]
fn a_version_that_is_there_stays_what_it_is() {
    let mut asset = asset(&["1"]);
    let one = version("1");
    assert_eq!(asset.register(Some(&one), Some(true)), Ok(Registration::Known(one.clone())));
    let said = asset.register(Some(&one), Some(false)).unwrap_err().to_string();
    assert!(said.contains("never changes") && said.contains("leave the version out"), "{said}");
    assert_eq!(asset.register(None, None), Ok(Registration::New(version("2"))));
    assert_eq!(asset.register(Some(&version("x")), None), Ok(Registration::New(version("x"))));
    asset.versions[0].version = version("18446744073709551615");
    let said = asset.register(None, None).unwrap_err().to_string();
    assert!(said.contains("--version"), "{said}");
}

#[test]
fn the_name_of_a_deleted_version_is_not_given_again() {
    let mut asset = asset_of(Kind::Model, &["1"]);
    asset.deleted = vec![version("2"), version("blue")];
    assert_eq!(asset.register(None, None), Ok(Registration::New(version("3"))));
    for gone in ["2", "blue"] {
        let said = asset.register(Some(&version(gone)), None).unwrap_err().to_string();
        assert!(said.contains(&format!("version {gone} of model 'train'")), "{said}");
        assert!(said.contains("was deleted"), "{said}");
        let said = asset.resolve(&AssetVersion::Exact(gone.to_owned())).unwrap_err().to_string();
        assert!(said.contains(&format!("no version '{gone}'")), "{said}");
    }
    asset.versions.clear();
    let said = asset.resolve(&AssetVersion::Default).unwrap_err().to_string();
    assert!(said.contains("all were deleted") && said.contains("atelier model create"), "{said}");
}

#[test]
fn references_mean_what_azure_means() {
    let mut asset = asset(&["blue", "2", "1"]);
    let exact = |text: &str| AssetVersion::Exact(text.to_owned());
    let label = |text: &str| AssetVersion::Label(text.to_owned());
    assert_eq!(asset.resolve(&exact("2")), Ok(&version("2")));
    // The newest made, not the highest.
    assert_eq!(asset.resolve(&label("latest")), Ok(&version("blue")));
    assert_eq!(asset.resolve(&AssetVersion::Default), Ok(&version("blue")));
    let missing = asset.resolve(&exact("3")).unwrap_err().to_string();
    assert!(missing.contains("no version '3'") && missing.contains("blue, 2, 1"), "{missing}");
    let wrong = asset.resolve(&label("stable")).unwrap_err().to_string();
    assert!(wrong.contains("'stable'") && wrong.contains("train@latest"), "{wrong}");

    // No label points to an archived version; its name still does.
    asset.versions[0].archived = true;
    assert_eq!(asset.resolve(&label("latest")), Ok(&version("2")));
    assert_eq!(asset.resolve(&exact("blue")), Ok(&version("blue")));
    asset.archived = true;
    let archived = asset.resolve(&AssetVersion::Default).unwrap_err().to_string();
    assert!(archived.contains("restore train") && archived.contains("train:blue"), "{archived}");
    assert_eq!(asset.resolve(&exact("2")), Ok(&version("2")));
    let refusal = asset.register(None, None).unwrap_err();
    assert!(refusal.to_string().contains("restore train"), "{refusal}");
}

#[test]
fn labels_point_to_one_version() {
    let mut asset = asset_of(Kind::Data, &["2", "1"]);
    asset.labels.insert(label("stable"), version("1"));
    let stable = AssetVersion::Label("stable".to_owned());
    assert_eq!(asset.resolve(&stable), Ok(&version("1")));
    let said = asset.resolve(&AssetVersion::Label("x".to_owned())).unwrap_err().to_string();
    assert!(said.contains("data asset 'train'") && said.contains("train@latest"), "{said}");
    assert!(asset.may_label(&label("stable")).is_ok());
    let said = asset.may_label(&label("latest")).unwrap_err().to_string();
    assert!(said.contains("always points to the newest"), "{said}");
    asset.versions[1].archived = true;
    let said = asset.resolve(&stable).unwrap_err().to_string();
    assert!(said.contains("version 1, which is archived") && said.contains("train:1"), "{said}");
    asset.versions[1].archived = false;
    asset.archived = true;
    assert!(matches!(asset.resolve(&stable), Err(Unresolved::ArchivedLabel { .. })));
}

#[test]
fn near_names_are_suggested() {
    let no_such = |name: &str, known: &[&str]| {
        Unresolved::no_such(Kind::Environment, name, known.iter().copied()).to_string()
    };
    let said = no_such("tarin", &["train", "test", "sklearn-1.5"]);
    assert!(said.contains("did you mean train?"), "{said}");
    let said = no_such("zebra", &["train"]);
    assert!(!said.contains("did you mean") && said.contains("environment list"), "{said}");
}

#[test]
fn kinds_are_told_by_their_words() {
    for kind in Kind::ALL {
        assert_eq!(kind.word().parse(), Ok(kind));
    }
    assert!("models".parse::<Kind>().is_err());
    let kinds: Vec<Kind> = DataKind::ALL.iter().map(|form| form.asset_kind()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == Kind::Data).count(), 3);
    assert_eq!(kinds.iter().filter(|kind| **kind == Kind::Model).count(), 3);
}

#[test]
fn inputs_take_what_is_of_their_kind() {
    use DataKind::{CustomModel, MlTable, MlflowModel, TritonModel, UriFile, UriFolder};
    let fits = |form, wanted| made(draft(form, "a"), "1").fits(wanted);
    for form in DataKind::ALL {
        assert_eq!(fits(form, form), Ok(()));
    }
    assert_eq!(fits(MlflowModel, CustomModel), Ok(()));
    assert_eq!(fits(TritonModel, CustomModel), Ok(()));
    for (form, wanted) in [
        (UriFile, UriFolder),
        (UriFolder, UriFile),
        (MlTable, UriFolder),
        (UriFolder, MlTable),
        (CustomModel, MlflowModel),
        (UriFolder, CustomModel),
    ] {
        let said = fits(form, wanted).unwrap_err().to_string();
        let parts =
            ["'iris:1'", &format!("type {}", form.word()), &format!("takes {}", wanted.word())];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
}

#[test]
fn a_version_is_where_it_lies_and_the_rest_may_change() {
    let one = made(draft(DataKind::UriFile, "a"), "1");
    assert!(one.is_made_of(&draft(DataKind::UriFile, "a")));
    assert!(one.is_made_of(&draft(DataKind::UriFile, "a/")));
    assert!(!one.is_made_of(&draft(DataKind::UriFile, "b")));
    assert!(!one.is_made_of(&draft(DataKind::UriFolder, "a")));
    let described = Draft { description: Some("x".to_owned()), ..draft(DataKind::UriFile, "a") };
    assert!(one.is_made_of(&described));
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let change = Change {
        description: Some("what it is".to_owned()),
        tags: [pair("team", "vision"), pair("b", "2")].into(),
        ..Change::default()
    };
    let changed = one.clone().changed(&change);
    assert_eq!(changed.description.as_deref(), Some("what it is"));
    assert_eq!(changed.tags["team"], "vision");
    assert!(changed.is_made_of(&draft(DataKind::UriFile, "a")));
    let back = Change {
        description: Some(String::new()),
        untag: vec!["team".to_owned(), "b".to_owned()],
        ..Change::default()
    };
    assert_eq!(changed.changed(&back), one);
}

/// What somebody does to an asset.
#[derive(Clone, Debug)]
enum Step {
    Register { asked: Option<&'static str>, is_same: bool },
    Archive { at: usize, archived: bool },
    ArchiveAll(bool),
    Delete { at: usize },
    Label { at: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let asked = prop::option::of(prop::sample::select(vec!["1", "2", "3", "9", "blue"]));
    prop::collection::vec(
        prop_oneof![
            4 => (asked, any::<bool>())
                .prop_map(|(asked, is_same)| Step::Register { asked, is_same }),
            2 => (any::<usize>(), any::<bool>())
                .prop_map(|(at, archived)| Step::Archive { at, archived }),
            1 => any::<bool>().prop_map(Step::ArchiveAll),
            1 => any::<usize>().prop_map(|at| Step::Delete { at }),
            1 => any::<usize>().prop_map(|at| Step::Label { at }),
        ],
        0..40,
    )
}

proptest! {
    #[test]
    fn versions_never_change_and_labels_follow(steps in steps()) {
        let mut asset = asset_of(Kind::Data, &[]);
        let mut ever: Vec<VersionName> = Vec::new();
        for step in steps {
            let count = asset.versions.len().max(1);
            match step {
                Step::Register { asked, is_same } => {
                    let asked = asked.map(version);
                    let there = asked.as_ref()
                        .is_some_and(|asked| asset.versions.iter().any(|v| &v.version == asked));
                    match asset.register(asked.as_ref(), there.then_some(is_same)) {
                        Ok(Registration::New(version)) => {
                            prop_assert!(!ever.contains(&version));
                            prop_assert!(asked.is_none_or(|asked| asked == version));
                            prop_assert!(!asset.archived);
                            asset.versions.insert(0, VersionEntry {
                                version: version.clone(),
                                archived: false,
                            });
                            ever.push(version);
                        }
                        Ok(Registration::Known(version)) => {
                            prop_assert!(there && is_same);
                            prop_assert_eq!(asked, Some(version));
                        }
                        Err(Refusal::Fixed { .. }) => prop_assert!(there && !is_same),
                        Err(Refusal::Archived { .. }) => prop_assert!(asset.archived && !there),
                        Err(Refusal::Deleted { version, .. }) => {
                            prop_assert!(ever.contains(&version) && !there);
                        }
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Archive { at, archived } => {
                    if let Some(entry) = asset.versions.get_mut(at % count) {
                        entry.archived = archived;
                    }
                }
                Step::ArchiveAll(archived) => asset.archived = archived,
                Step::Delete { at } => {
                    if !asset.versions.is_empty() {
                        let gone = asset.versions.remove(at % count).version;
                        asset.labels.retain(|_, version| *version != gone);
                        asset.deleted.push(gone);
                    }
                }
                Step::Label { at } => {
                    if let Some(entry) = asset.versions.get(at % count) {
                        asset.labels.insert(label("mine"), entry.version.clone());
                    }
                }
            }
            // The next number is above every number that there ever was.
            let number = |v: &VersionName| v.as_str().parse::<u64>().ok();
            let next = asset.next_version().unwrap();
            prop_assert!(number(&next) > ever.iter().filter_map(number).max());
            let shown = |entry: &&VersionEntry| !entry.archived && !asset.archived;
            let newest = asset.versions.iter().find(shown);
            prop_assert_eq!(asset.latest(), newest.map(|entry| &entry.version));
            let latest = asset.resolve(&AssetVersion::Label("latest".to_owned()));
            prop_assert_eq!(latest.ok(), asset.latest());
            let mine = asset.resolve(&AssetVersion::Label("mine".to_owned()));
            let labelled = asset.labels.get(&label("mine")).and_then(|version| {
                asset.versions.iter().filter(shown).find(|entry| &entry.version == version)
            });
            prop_assert_eq!(mine.ok(), labelled.map(|entry| &entry.version));
            for version in &ever {
                let exact = AssetVersion::Exact(version.to_string());
                let gone = asset.deleted.contains(version);
                prop_assert_eq!(asset.resolve(&exact).is_err(), gone);
            }
        }
    }
}
