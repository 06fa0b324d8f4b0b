use atelier_core::asset::{Kind, Refusal};
use atelier_core::environment::{Draft, EnvironmentVersion};
use atelier_core::id::{AssetName, VersionName};
use atelier_core::spec::InlineEnvironment;

use super::*;
use crate::store::Archived;
use crate::store::assets::AssetQuery;
use crate::store::environments;

fn named(text: &str) -> AssetName {
    AssetName::new(text).unwrap()
}

fn draft(name: &str, version: Option<&str>, image: &str) -> Draft {
    Draft {
        name: named(name),
        version: version.map(|text| VersionName::new(text).unwrap()),
        description: None,
        tags: [].into(),
        environment: InlineEnvironment {
            image: Some(image.to_owned()),
            ..InlineEnvironment::default()
        },
    }
}

async fn register(store: &SqliteStore, draft: Draft) -> Result<EnvironmentVersion, Refusal> {
    let at = Timestamp::from_millis(7);
    changed(store, move |conn| environments::register(conn, draft, who("ana"), at)).await
}

async fn made(store: &SqliteStore, name: &str, version: Option<&str>, image: &str) -> String {
    register(store, draft(name, version, image)).await.unwrap().version.to_string()
}

async fn archive(store: &SqliteStore, name: &str, version: Option<&str>, archived: bool) {
    let name = named(name);
    let version = version.map(|text| VersionName::new(text).unwrap());
    let archive =
        move |conn: &Connection| environments::archive(conn, &name, version.as_ref(), archived);
    changed(store, archive).await.unwrap();
}

/// `name:version` of each, with `*` for the latest and `-` for what is archived.
#[track_caller]
fn listed(store: &SqliteStore, name: Option<&str>, archived: Archived) -> String {
    let mut query = AssetQuery { name: name.map(named), archived, limit: 2, ..Default::default() };
    let mut shown = Vec::new();
    loop {
        let (page, more) = store.read(|conn| environments::list(conn, &query)).unwrap();
        assert!(page.len() <= 2);
        query.after = page.last().map(|last| last.after.clone());
        shown.extend(page.iter().map(|item| {
            let latest = if item.latest { "*" } else { "" };
            let archived = if item.archived { "-" } else { "" };
            format!("{}:{}{latest}{archived}", item.version.name, item.version.version)
        }));
        if !more {
            return shown.join(" ");
        }
    }
}

#[tokio::test]
async fn versions_are_counted_kept_and_found_again() {
    let folder = Folder::new();
    let store = folder.open();
    assert_eq!(made(&store, "train", None, "a").await, "1");
    assert_eq!(made(&store, "train", None, "a").await, "2");
    assert_eq!(made(&store, "train", Some("9"), "b").await, "9");
    assert_eq!(made(&store, "train", None, "c").await, "10");
    assert_eq!(made(&store, "train", Some("blue"), "d").await, "blue");
    assert_eq!(made(&store, "serve", None, "a").await, "1");
    // The same again, under another purpose.
    let mut again = draft("train", Some("9"), "b");
    again.description = Some("what it is for".to_owned());
    let again = register(&store, again).await.unwrap();
    let other = register(&store, draft("train", Some("9"), "x")).await;
    assert!(matches!(other, Err(Refusal::Fixed { .. })), "{other:?}");
    drop(store);

    let store = folder.open();
    let (train, nine) = (named("train"), VersionName::new("9").unwrap());
    let kept = store.read(|conn| environments::version(conn, &train, &nine)).unwrap();
    assert_eq!(kept.as_ref(), Some(&again));
    assert_eq!(kept.unwrap().created_by, who("ana"));
    assert_eq!(listed(&store, None, Archived::Without), "serve:1* train:blue*");
    assert_eq!(
        listed(&store, Some("train"), Archived::Without),
        "train:blue* train:10 train:9 train:2 train:1"
    );
    assert_eq!(listed(&store, Some("none"), Archived::With), "");
    assert_eq!(store.read(environments::names).unwrap(), ["serve", "train"]);
    let asset = store.read(|conn| environments::asset(conn, &train, None)).unwrap().unwrap();
    assert_eq!(asset.latest().unwrap().as_str(), "blue");
    assert_eq!(asset.next_version().unwrap().as_str(), "11");
}

#[tokio::test]
async fn what_is_archived_is_hidden_and_comes_back() {
    let folder = Folder::new();
    let store = folder.open();
    for image in ["a", "b", "c"] {
        made(&store, "train", None, image).await;
    }
    made(&store, "old", None, "a").await;
    archive(&store, "train", Some("3"), true).await;
    archive(&store, "old", Some("1"), true).await;
    drop(store);

    let store = folder.open();
    assert_eq!(listed(&store, None, Archived::Without), "train:2*");
    assert_eq!(listed(&store, None, Archived::With), "old:1- train:2*");
    assert_eq!(listed(&store, None, Archived::Only), "old:1-");
    assert_eq!(listed(&store, Some("train"), Archived::Without), "train:2* train:1");
    assert_eq!(listed(&store, Some("train"), Archived::With), "train:3- train:2* train:1");
    assert_eq!(listed(&store, Some("train"), Archived::Only), "train:3-");

    archive(&store, "train", None, true).await;
    assert_eq!(listed(&store, None, Archived::Without), "");
    assert_eq!(listed(&store, Some("train"), Archived::Without), "");
    let refused = register(&store, draft("train", None, "d")).await;
    assert_eq!(refused, Err(Refusal::Archived { kind: Kind::Environment, name: named("train") }));
    // What is there is no new version.
    assert_eq!(made(&store, "train", Some("1"), "a").await, "1");
    let (train, three) = (named("train"), VersionName::new("3").unwrap());
    let alone =
        changed(&store, move |conn| environments::archive(conn, &train, Some(&three), false)).await;
    assert!(matches!(alone, Err(Refusal::WholeArchived { .. })), "{alone:?}");
    archive(&store, "train", None, false).await;
    archive(&store, "train", Some("3"), false).await;
    assert_eq!(listed(&store, None, Archived::With), "old:1- train:3*");
}

#[tokio::test]
async fn two_that_ask_for_the_next_number_get_two() {
    let folder = Folder::new();
    let store = folder.open();
    let many = (0..20).map(|n| {
        let store = store.clone();
        async move { made(&store, "train", None, &n.to_string()).await }
    });
    let mut versions: Vec<u32> =
        futures::future::join_all(many).await.iter().map(|text| text.parse().unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_page_of_large_environments_ends_early() {
    let folder = Folder::new();
    let store = folder.open();
    for n in 0..12 {
        made(&store, &format!("e{n:02}"), None, &"x".repeat(1 << 20)).await;
    }
    let mut query = AssetQuery { limit: 1000, ..AssetQuery::default() };
    let (page, more) = store.read(|conn| environments::list(conn, &query)).unwrap();
    assert!(more && page.len() < 12, "{}", page.len());
    query.after = page.last().map(|last| last.after.clone());
    let (rest, more) = store.read(|conn| environments::list(conn, &query)).unwrap();
    assert!(!more);
    assert_eq!(page.len() + rest.len(), 12);
}
