use super::*;

fn name(text: &str) -> DatastoreName {
    DatastoreName::new(text).unwrap()
}

fn draft(text: &str, path: &str) -> Draft {
    Draft {
        name: name(text),
        description: None,
        tags: [].into(),
        properties: [].into(),
        folder: FolderSource { kind: FolderKind::Local, path: path.to_owned() },
    }
}

fn made(draft: &Draft) -> DatastoreRecord {
    DatastoreRecord {
        datastore: draft.clone(),
        created_by: Principal::new("ana").unwrap(),
        created_at: Timestamp::from_millis(7),
    }
}

#[test]
fn a_name_stands_for_one_datastore() {
    let (first, own) = (made(&draft("data", "/a")), name("workspaceblobstore"));
    let known = || [Existing::Default(&own), Existing::Made(&first)];
    for (asked, path, expected) in [
        ("other", "/a", Ok(Registration::New)),
        // The same again is no change.
        ("data", "/a", Ok(Registration::Known)),
        ("data", "/b", Err(Refusal::Taken(name("data")))),
        ("Data", "/a", Err(Refusal::SameButForCase { name: name("Data"), known: name("data") })),
        ("workspaceblobstore", "/a", Err(Refusal::Default(own.clone()))),
        (
            "WorkspaceBlobStore",
            "/a",
            Err(Refusal::SameButForCase { name: name("WorkspaceBlobStore"), known: own.clone() }),
        ),
    ] {
        assert_eq!(draft(asked, path).register(known()), expected, "{asked} at {path}");
    }
}

#[test]
fn what_a_datastore_points_to_stays() {
    let first = made(&draft("data", "/a"));
    let said = Draft { description: Some("ours".to_owned()), ..draft("data", "/a") };
    let changed = said.clone().update(&first).unwrap();
    assert_eq!((changed.datastore, changed.created_at), (said, first.created_at));
    let refused = draft("data", "/b").update(&first).unwrap_err().to_string();
    assert!(refused.contains("local /a") && refused.contains("another datastore"), "{refused}");
}

#[test]
fn refusals_name_names() {
    let known = [name("datasets"), name("workspaceblobstore")];
    let said = Refusal::no_such("dataset", &known).to_string();
    assert!(said.contains("did you mean 'datasets'?") && said.contains("datastore list"), "{said}");
    assert!(!Refusal::no_such("zebra", &known).to_string().contains("mean"));
    let jobs = (1..=7).map(|n| JobName::new(&format!("job{n}")).unwrap()).collect();
    let said = Refusal::InUse { name: name("datasets"), jobs }.to_string();
    assert!(said.contains("(job1, job2, job3, job4, job5, 2 more)"), "{said}");
}

#[test]
fn what_cannot_be_served_says_what_to_do() {
    let of = |source| Definition {
        name: name("data"),
        description: None,
        tags: [].into(),
        properties: [].into(),
        source,
        credentials: Credentials::None,
    };
    let gcs = of(Source::Gcs { bucket: "b".to_owned(), prefix: None }).draft().unwrap_err();
    assert!(gcs.to_string().contains("type gcs cannot be served yet"), "{gcs}");
    assert!(gcs.remedy().contains("type nfs"));
    let http = of(Source::Http { url: "https://x".to_owned() }).draft().unwrap_err();
    assert!(http.remedy().contains("as an input"));
    let folder = FolderSource { kind: FolderKind::Nfs, path: "/a".to_owned() };
    assert_eq!(of(Source::Folder(folder.clone())).draft().unwrap().folder, folder);
}
