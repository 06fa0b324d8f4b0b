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
        source: Source::Folder(FolderSource { kind: FolderKind::Local, path: path.to_owned() }),
    }
}

fn made(draft: &Draft) -> DatastoreRecord {
    DatastoreRecord {
        datastore: draft.clone(),
        credentials: KeptCredentials::None,
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
fn a_share_lies_at_its_accounts_address_for_files() {
    let at = |endpoint: &str| {
        Source::AzureFile(AzureStorage {
            account_name: "a".to_owned(),
            container: "s".to_owned(),
            endpoint: endpoint.to_owned(),
            protocol: "https".to_owned(),
        })
    };
    assert_eq!(at("core.windows.net").location(), "https://a.file.core.windows.net/s");
    assert_eq!(at("http://127.0.0.1:1/a/").location(), "http://127.0.0.1:1/a/s");
    let key = Credentials::AccountKey(Secret::new("key".to_owned()));
    assert_eq!(key.misfit(&at("x")), None);
    assert!(Credentials::Anonymous.misfit(&at("x")).is_some());
}

#[test]
fn records_of_earlier_versions_are_read() {
    let early = r#"{"datastore":{"name":"data","folder":{"kind":"local","path":"/a"}},
        "created_by":"ana","created_at":7}"#;
    assert_eq!(serde_json::from_str::<DatastoreRecord>(early).unwrap(), made(&draft("data", "/a")));
    let (bucket, kind) = ("b".to_owned(), CredentialKind::AccessKey);
    let source =
        Source::S3 { bucket, endpoint: None, region: None, prefix: None, path_style: false };
    let credentials = KeptCredentials::Sealed { kind, version: crate::id::SecretVersion(3) };
    let record = DatastoreRecord {
        datastore: Draft { source, ..draft("data", "/a") },
        credentials,
        ..made(&draft("data", "/a"))
    };
    let written = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<DatastoreRecord>(&written).unwrap(), record);
}

#[test]
fn credentials_are_for_some_types() {
    let secret = || Secret::new("x".to_owned());
    let s3 = Source::S3 {
        bucket: "b".to_owned(),
        endpoint: None,
        region: None,
        prefix: None,
        path_style: false,
    };
    let lake = |lakehouse: &str| {
        Source::OneLake(OneLake {
            workspace: "w".to_owned(),
            lakehouse: lakehouse.to_owned(),
            endpoint: None,
        })
    };
    let certificate = Credentials::ServicePrincipal(ServicePrincipal {
        tenant_id: "t".to_owned(),
        client_id: "c".to_owned(),
        proof: Proof::Certificate { certificate: secret(), thumbprint: "x".to_owned() },
        authority_url: None,
        resource_url: None,
    });
    let id = "01234567-89ab-cdef-0123-456789ABCDEF";
    for (name, root) in [("lh", "lh.Lakehouse"), ("lh.Lakehouse", "lh.Lakehouse"), (id, id)] {
        let expected = format!("https://onelake.blob.fabric.microsoft.com/w/{root}");
        assert_eq!(lake(name).location(), expected);
    }
    let http = Source::Http { url: "https://x".to_owned() };
    for (credentials, source, fits) in [
        (Credentials::None, &http, true),
        (Credentials::Anonymous, &s3, true),
        (Credentials::Anonymous, &http, false),
        (Credentials::AccountKey(secret()), &s3, false),
        (Credentials::ServiceAccount(secret()), &s3, false),
        (Credentials::AccountKey(secret()), &lake("a"), false),
        (certificate.clone(), &lake("a"), true),
        (certificate, &s3, false),
    ] {
        assert_eq!(credentials.misfit(source).is_none(), fits, "{credentials:?} {source:?}");
    }
}

#[test]
fn what_cannot_be_a_credential_is_told_without_it() {
    const CANARY: &str = "c4nary%";
    let secret = |text: &str| Secret::new(text.to_owned());
    let pem = |label: &str| format!("-----BEGIN {label}-----\nMIIE\n-----END {label}-----\n");
    let by_certificate = |pem: &str, thumbprint: &str| {
        let (certificate, thumbprint) = (secret(pem), thumbprint.to_owned());
        Credentials::ServicePrincipal(ServicePrincipal {
            tenant_id: "t".to_owned(),
            client_id: "c".to_owned(),
            proof: Proof::Certificate { certificate, thumbprint },
            authority_url: None,
            resource_url: None,
        })
    };
    let keys = |id: &str, key: &str, token: Option<&str>| Credentials::S3Keys {
        access_key_id: id.to_owned(),
        secret_access_key: secret(key),
        session_token: token.map(secret),
    };
    let account = |key: &str| {
        let json =
            serde_json::json!({"client_email": "a@b", "private_key_id": "1", "private_key": key});
        Credentials::ServiceAccount(secret(&json.to_string()))
    };
    let digits = "9c".repeat(20);
    let both = [pem("CERTIFICATE"), pem("RSA PRIVATE KEY")].concat();
    for good in [
        Credentials::None,
        Credentials::Anonymous,
        Credentials::AccountKey(secret("YXp1cmU=")),
        Credentials::SasToken(secret("?sv=1&sig=a%2Fb%3D")),
        by_certificate(&both, &digits),
        keys("AKIATEST", "a/b+c", Some("x==")),
        account(&pem("PRIVATE KEY")),
    ] {
        assert_eq!(good.malformed(), None, "{good:?}");
    }
    // An address as Azure gives it out, with the signature in it.
    let signed = format!("https://acct.blob.core.windows.net/c?sv=1&sig={CANARY}");
    for (bad, field, words) in [
        (Credentials::AccountKey(secret(CANARY)), "account_key", "Base64"),
        (Credentials::AccountKey(secret("")), "account_key", "Base64"),
        (Credentials::SasToken(secret(CANARY)), "sas_token", "sig="),
        (Credentials::SasToken(secret("sv=1&sig=")), "sas_token", "sig="),
        (Credentials::SasToken(secret(&signed)), "sas_token", "what follows"),
        (Credentials::SasToken(secret(&signed["https://".len()..])), "sas_token", "what follows"),
        (Credentials::SasToken(secret("??sv=1&sig=x")), "sas_token", "what follows"),
        (by_certificate(CANARY, &digits), "certificate", "no certificate"),
        (by_certificate(&pem("CERTIFICATE"), &digits), "certificate", "no private key"),
        (
            by_certificate(&[pem("CERTIFICATE"), pem("ENCRYPTED PRIVATE KEY")].concat(), &digits),
            "certificate",
            "encrypted",
        ),
        (by_certificate(&both, CANARY), "thumbprint", "40 hexadecimal"),
        (keys("AKIATEST", "c4nary%\n", None), "secret_access_key", "line end"),
        (keys("", CANARY, None), "access_key_id", "empty"),
        (keys("AKIATEST", "x", Some("c4nary% ")), "session_token", "blank"),
        (Credentials::ServiceAccount(secret(CANARY)), "service_account", "JSON"),
        (Credentials::ServiceAccount(secret("{}")), "service_account", "client_email"),
        (account(CANARY), "service_account", "PEM"),
    ] {
        let found = bad.malformed().unwrap_or_else(|| panic!("{bad:?}"));
        let said = Refusal::Malformed { name: name("data"), fault: found }.to_string();
        assert_eq!(found.field, field, "{said}");
        assert!(said.contains(words) && said.contains(&format!("credentials.{field}")), "{said}");
        assert!(!said.contains("c4nary"), "{said}");
    }
}

#[test]
fn a_location_is_one_line_without_secrets() {
    let azure = |endpoint: &str| {
        Source::AzureBlob(AzureStorage {
            account_name: "acc".to_owned(),
            container: "c".to_owned(),
            endpoint: endpoint.to_owned(),
            protocol: "wasbs".to_owned(),
        })
    };
    assert_eq!(azure("core.windows.net").location(), "https://acc.blob.core.windows.net/c");
    assert_eq!(azure("http://127.0.0.1:1/acc/").location(), "http://127.0.0.1:1/acc/c");
    let gcs = Source::Gcs { bucket: "b".to_owned(), prefix: Some("p/q".to_owned()) };
    assert_eq!(gcs.location(), "gs://b/p/q");
}
