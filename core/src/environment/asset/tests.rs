use proptest::prelude::*;
use serde_json::json;

use super::*;

fn name(text: &str) -> AssetName {
    AssetName::new(text).unwrap()
}

fn version(text: &str) -> VersionName {
    VersionName::new(text).unwrap()
}

fn asset(versions: &[&str]) -> Asset {
    let entry = |text: &&str| VersionEntry { version: version(text), archived: false };
    Asset { name: name("train"), archived: false, versions: versions.iter().map(entry).collect() }
}

fn image(text: &str) -> InlineEnvironment {
    InlineEnvironment { image: Some(text.to_owned()), ..InlineEnvironment::default() }
}

fn draft(asked: Option<&str>, made_of: InlineEnvironment) -> Draft {
    Draft {
        name: name("train"),
        version: asked.map(version),
        description: None,
        tags: BTreeMap::new(),
        environment: made_of,
    }
}

fn made(draft: Draft, as_version: &str) -> EnvironmentVersion {
    let by = Principal::new("ana").unwrap();
    draft.made(version(as_version), by, Timestamp::from_millis(1))
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
    let same = made(draft(None, image("a")), "1");
    let asset = asset(&["1"]);
    let register = |asked: Option<&str>, of: &str, same: Option<&EnvironmentVersion>| {
        draft(asked, image(of)).register(Some(&asset), same)
    };
    assert_eq!(register(Some("1"), "a", Some(&same)), Ok(Registration::Known(version("1"))));
    let refusal = register(Some("1"), "b", Some(&same)).unwrap_err();
    let said = refusal.to_string();
    assert!(said.contains("never changes") && said.contains("leave the version out"), "{said}");
    assert_eq!(register(None, "a", None), Ok(Registration::New(version("2"))));
    assert_eq!(register(Some("x"), "a", None), Ok(Registration::New(version("x"))));
    let last = Asset {
        versions: vec![VersionEntry { version: version("18446744073709551615"), archived: false }],
        ..asset.clone()
    };
    let refusal = draft(None, image("a")).register(Some(&last), None).unwrap_err();
    assert!(refusal.to_string().contains("--version"), "{refusal}");
}

#[test]
fn what_an_environment_is_called_is_no_part_of_what_it_is_made_of() {
    let mut named = image("a");
    named.name = Some("other".to_owned());
    let kept = made(draft(None, named.clone()), "1");
    assert_eq!(kept.environment.name, None);
    assert!(kept.is_made_of(&named));
    let conda = |json| InlineEnvironment { conda: Some(json), ..InlineEnvironment::default() };
    let kept = made(draft(None, conda(json!({ "dependencies": ["a"], "name": "x" }))), "1");
    assert!(kept.is_made_of(&conda(json!({ "name": "x", "dependencies": ["a"] }))));
    assert!(!kept.is_made_of(&conda(json!({ "name": "x", "dependencies": ["b"] }))));
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
    let refusal = draft(None, image("a")).register(Some(&asset), None).unwrap_err();
    assert!(refusal.to_string().contains("restore train"), "{refusal}");
}

#[test]
fn near_names_are_suggested() {
    let said = Unresolved::no_such("tarin", ["train", "test", "sklearn-1.5"]).to_string();
    assert!(said.contains("did you mean train?"), "{said}");
    let said = Unresolved::no_such("zebra", ["train"]).to_string();
    assert!(!said.contains("did you mean") && said.contains("environment list"), "{said}");
}

/// What somebody does to an environment.
#[derive(Clone, Debug)]
enum Step {
    Register { asked: Option<&'static str>, of: u8 },
    Archive { at: usize, archived: bool },
    ArchiveAll(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let asked = prop::option::of(prop::sample::select(vec!["1", "2", "3", "9", "blue"]));
    prop::collection::vec(
        prop_oneof![
            4 => (asked, 0u8..3).prop_map(|(asked, of)| Step::Register { asked, of }),
            2 => (any::<usize>(), any::<bool>())
                .prop_map(|(at, archived)| Step::Archive { at, archived }),
            1 => any::<bool>().prop_map(Step::ArchiveAll),
        ],
        0..40,
    )
}

proptest! {
    #[test]
    fn versions_never_change_and_the_label_follows_the_newest(steps in steps()) {
        let mut asset = asset(&[]);
        let mut all: Vec<EnvironmentVersion> = Vec::new();
        for step in steps {
            match step {
                Step::Register { asked, of } => {
                    let draft = draft(asked, image(&of.to_string()));
                    let known = |asked: &str| all.iter().find(|v| v.version.as_str() == asked);
                    let same = asked.and_then(known);
                    match draft.register(Some(&asset), same) {
                        Ok(Registration::New(version)) => {
                            prop_assert!(all.iter().all(|other| other.version != version));
                            prop_assert!(asked.is_none_or(|asked| asked == version.as_str()));
                            prop_assert!(!asset.archived);
                            if asked.is_none() {
                                let number = |v: &VersionName| v.as_str().parse::<u64>().ok();
                                let highest = all.iter().filter_map(|v| number(&v.version)).max();
                                prop_assert!(number(&version) > highest);
                            }
                            asset.versions.insert(0, VersionEntry {
                                version: version.clone(),
                                archived: false,
                            });
                            all.insert(0, made(draft, version.as_str()));
                        }
                        Ok(Registration::Known(version)) => {
                            prop_assert_eq!(same.map(|same| &same.version), Some(&version));
                            prop_assert!(same.is_some_and(|s| s.is_made_of(&image(&of.to_string()))));
                        }
                        Err(Refusal::Fixed { .. }) => {
                            prop_assert!(same.is_some_and(|s| !s.is_made_of(&image(&of.to_string()))));
                        }
                        Err(Refusal::Archived(_)) => prop_assert!(asset.archived && same.is_none()),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Archive { at, archived } => {
                    let count = asset.versions.len().max(1);
                    if let Some(entry) = asset.versions.get_mut(at % count) {
                        entry.archived = archived;
                    }
                }
                Step::ArchiveAll(archived) => asset.archived = archived,
            }
            let newest = asset.versions.iter().find(|entry| !entry.archived && !asset.archived);
            prop_assert_eq!(asset.latest(), newest.map(|entry| &entry.version));
            let latest = asset.resolve(&AssetVersion::Label("latest".to_owned()));
            prop_assert_eq!(latest.ok(), asset.latest());
            for version in &all {
                let exact = AssetVersion::Exact(version.version.to_string());
                prop_assert_eq!(asset.resolve(&exact), Ok(&version.version));
            }
        }
    }
}
