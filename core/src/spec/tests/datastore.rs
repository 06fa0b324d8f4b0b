//! Datastores' files in, definitions or messages out.

use super::schema::{compare, compare_page, table_of};
use super::*;
use crate::datastore::{
    AzureStorage, Credentials, Definition, FolderKind, FolderSource, OneLake, Proof, Secret, Source,
};
use crate::spec::datastore::TYPES;

/// What a file of the submitter's has.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIB
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIIE
-----END PRIVATE KEY-----
";
const THUMBPRINT: &str = "9C:73:52:45:A9:DA:90:18:FF:00:80:D6:5F:1D:6C:F9:46:6C:C6:5C";

fn parse_with(yaml: &str, sets: &[&str]) -> Result<ParsedDatastore, Diagnostics> {
    let changes: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
    let mut disk = disk();
    disk.0.insert("/w/proj/cert.pem", Some(CERTIFICATE.as_bytes().to_vec()));
    parse_datastore(yaml.as_bytes(), &origin(), &changes, &disk)
}

#[track_caller]
fn read(yaml: &str) -> Definition {
    match parse_with(yaml, &[]) {
        Ok(parsed) => {
            assert_eq!(parsed.warnings, [], "in\n{yaml}");
            parsed.definition
        }
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

#[track_caller]
fn check(yaml: &str, expected: &str) {
    let found = match parse_with(yaml, &[]) {
        Ok(parsed) => format!("accepted: {:?}", parsed.definition),
        Err(errors) => errors.iter().map(short).collect::<Vec<_>>().join("\n"),
    };
    assert_eq!(found, expected, "for\n{yaml}");
}

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

fn azure(container: &str, endpoint: &str, protocol: &str) -> AzureStorage {
    AzureStorage {
        account_name: "mytestblobstore".to_owned(),
        container: container.to_owned(),
        endpoint: endpoint.to_owned(),
        protocol: protocol.to_owned(),
    }
}

#[test]
fn azures_files_are_read_as_they_are() {
    let of = |file: &str, more: &str| {
        read(&format!(
            "$schema: https://azuremlschemas.azureedge.net/latest/{file}.schema.json\n\
             name: example\ndescription: Points to something.\naccount_name: mytestblobstore\n{more}"
        ))
    };
    let blob = of(
        "azureBlob",
        "type: azure_blob\ncontainer_name: data-container\ncredentials:\n  account_key: XXXX/XXXXQ==\n",
    );
    assert_eq!(blob.name.as_str(), "example");
    assert_eq!(blob.description.as_deref(), Some("Points to something."));
    assert_eq!(
        blob.source,
        Source::AzureBlob(azure("data-container", "core.windows.net", "https"))
    );
    assert_eq!(blob.credentials, Some(Credentials::AccountKey(secret("XXXX/XXXXQ=="))));

    let wasbs = of(
        "azureBlob",
        "type: azure_blob\ncontainer_name: c\nprotocol: wasbs\nendpoint: core.chinacloudapi.cn\n\
         credentials:\n  sas_token: '?sv=1&sig=2'\ntags: {team: vision}\nproperties: {a: 1}\n",
    );
    assert_eq!(wasbs.source, Source::AzureBlob(azure("c", "core.chinacloudapi.cn", "wasbs")));
    assert_eq!(wasbs.credentials, Some(Credentials::SasToken(secret("?sv=1&sig=2"))));
    assert_eq!((&*wasbs.tags["team"], &*wasbs.properties["a"]), ("vision", "1"));

    let file = of("azureFile", "type: azure_file\nfile_share_name: share\n");
    assert_eq!(file.source, Source::AzureFile(azure("share", "core.windows.net", "https")));
    assert_eq!(file.credentials, None);

    let lake = of(
        "azureDataLakeGen2",
        "type: azure_data_lake_gen2\nfilesystem: fs\ncredentials:\n  tenant_id: t\n  client_id: c\n  \
         client_secret: XXXX\n",
    );
    assert_eq!(lake.source, Source::AzureDataLakeGen2(azure("fs", "core.windows.net", "https")));
    let Some(Credentials::ServicePrincipal(principal)) = lake.credentials else {
        panic!("{lake:?}")
    };
    assert_eq!((&*principal.tenant_id, &*principal.client_id), ("t", "c"));
    assert_eq!(principal.proof, Proof::ClientSecret(secret("XXXX")));
    assert_eq!((principal.authority_url, principal.resource_url), (None, None));

    let fabric = read(&format!(
        "name: onelake\ntype: one_lake\none_lake_workspace_name: \"AzureML_Sample_OneLakeWS\"\n\
         endpoint: \"msit-onelake.dfs.fabric.microsoft.com\"\nartifact:\n  type: lake_house\n  \
         name: \"AzureML_Sample_LH\"\ncredentials:\n  tenant_id: t\n  client_id: c\n  certificate: cert.pem\n  \
         thumbprint: '{THUMBPRINT}'\n  authority_url: https://login.example\n",
    ));
    assert_eq!(
        fabric.source,
        Source::OneLake(OneLake {
            workspace: "AzureML_Sample_OneLakeWS".to_owned(),
            lakehouse: "AzureML_Sample_LH".to_owned(),
            endpoint: Some("msit-onelake.dfs.fabric.microsoft.com".to_owned()),
        })
    );
    assert_eq!(
        fabric.source.location(),
        "https://msit-onelake.blob.fabric.microsoft.com/AzureML_Sample_OneLakeWS/AzureML_Sample_LH.Lakehouse"
    );
    let Some(Credentials::ServicePrincipal(principal)) = fabric.credentials else {
        panic!("{fabric:?}")
    };
    let (certificate, thumbprint) = (secret(CERTIFICATE), THUMBPRINT.to_owned());
    assert_eq!(principal.proof, Proof::Certificate { certificate, thumbprint });
    assert_eq!(principal.authority_url.as_deref(), Some("https://login.example"));
}

#[test]
fn the_projects_own_types() {
    let folder = |kind, path: &str| Source::Folder(FolderSource { kind, path: path.to_owned() });
    for (yaml, source) in [
        ("type: local\npath: /srv/data", folder(FolderKind::Local, "/srv/data")),
        ("type: nfs\npath: /mnt/share/", folder(FolderKind::Nfs, "/mnt/share/")),
        (
            "type: http\nurl: https://data.example/x",
            Source::Http { url: "https://data.example/x".to_owned() },
        ),
    ] {
        let found = read(&format!("name: n\n{yaml}\n"));
        assert_eq!((found.source, found.credentials), (source, None), "{yaml}");
    }
    let s3 = read(
        "name: n\ntype: s3\nbucket: b\nendpoint: http://minio.example:9000\nregion: eu\nprefix: a/b\n\
         path_style: true\ncredentials: {access_key_id: id, secret_access_key: key, session_token: end}\n",
    );
    assert_eq!(
        s3.source,
        Source::S3 {
            bucket: "b".to_owned(),
            endpoint: Some("http://minio.example:9000".to_owned()),
            region: Some("eu".to_owned()),
            prefix: Some("a/b".to_owned()),
            path_style: true,
        }
    );
    assert_eq!(
        s3.credentials,
        Some(Credentials::S3Keys {
            access_key_id: "id".to_owned(),
            secret_access_key: secret("key"),
            session_token: Some(secret("end")),
        })
    );
    let gcs = |key: &str| {
        let yaml =
            format!("name: n\ntype: gcs\nbucket: b\ncredentials: {{service_account: {key}}}\n");
        read(&yaml).credentials
    };
    // As the file's text, or as the mapping that JSON is in YAML.
    let json = r#"{"type":"service_account","client_email":"a@b","private_key_id":"1","private_key":"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n"}"#;
    let expected = Some(Credentials::ServiceAccount(secret(json)));
    assert_eq!((gcs(&format!("'{json}'")), gcs(json)), (expected.clone(), expected));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let types = "azure_blob, azure_file, azure_data_lake_gen2, one_lake, s3, gcs, local, nfs, http";
    check(
        "name: n\n",
        &format!("1:1: the datastore has no 'type' | write 'type:' with one of {types}"),
    );
    check(
        "name: n\ntype: azure_blop\n",
        &format!(
            "2:7: there is no datastore type 'azure_blop' | did you mean 'azure_blob'? (known: {types})"
        ),
    );
    check(
        "name: n\ntype: azure_data_lake_gen1\nstore_name: s\n",
        "2:7: Azure has retired Data Lake Storage Gen1, and with it its datastores | move the data to Gen2, \
         and write 'type: azure_data_lake_gen2'",
    );
    check(
        "type: local\nname: a b\npth: /x\n",
        "3:1: unknown field 'pth' in a datastore of type local | did you mean 'path'?",
    );
    check(
        "type: local\nname: a b\n",
        "1:1: the datastore has no 'path' | add 'path:'\n\
         2:7: 'a b' is not a valid datastore name | use letters, digits, '-', '_' and '.', start with a letter \
         or digit, at most 255 characters",
    );
    check(
        "type: azure_blob\nprotocol: ftp\n",
        "2:11: 'protocol' cannot be 'ftp' | known: https, wasbs",
    );
    check(
        "type: azure_blob\ncontainer_name: ''\n",
        "1:1: the datastore has no 'name' | write how jobs call it, for example 'name: datasets', or give --name\n\
         1:1: the datastore has no 'account_name' | add 'account_name:'\n\
         2:17: the datastore has no 'container_name' | add 'container_name:'",
    );
    check(
        "type: one_lake\nname: n\none_lake_workspace_name: w\nartifact: {type: lake_house}\n",
        "4:11: artifact has no 'name' | add 'name:'",
    );
    check(
        "type: s3\nname: Public-storage.s3.abc\nbucket: b\n",
        "2:7: 'Public-storage.s3.abc' stands for storage that is no datastore's | choose a name that does not \
         begin with 'public-storage.'",
    );
    check(
        "type: http\nname: n\nurl: data.example/x\n",
        "3:6: 'url': 'data.example/x' is not the address of a server | start it with https:// or http://",
    );
}

#[test]
fn what_becomes_part_of_an_address_is_one() {
    let s3 = |more: &str| format!("type: s3\nname: n\nbucket: b\n{more}\n");
    for (yaml, expected) in [
        (
            "type: s3\nname: n\nbucket: a/b\n".to_owned(),
            "3:9: 'bucket': 'a/b' cannot be a name there | use letters, digits, '-', '_' and '.'",
        ),
        (
            s3("prefix: a//b"),
            "4:9: 'prefix': 'a//b' is no path of a bucket | write it as a/b, without '//', '.', '..' and '\\'",
        ),
        (
            s3("endpoint: https://user:pass@x.example"),
            "4:11: 'endpoint': an address without '?', '#', '@' and blanks is needed | give keys and tokens \
             under 'credentials'",
        ),
        (
            "type: azure_blob\nname: n\naccount_name: a\ncontainer_name: c\nendpoint: x.example/?sig=1\n"
                .to_owned(),
            "5:11: 'endpoint': 'x.example/?sig=1' cannot be a name there | use letters, digits, '-', '_' and '.'",
        ),
    ] {
        check(&yaml, expected);
    }
    let trimmed = read(&s3("prefix: /a/b/")).source;
    assert!(matches!(&trimmed, Source::S3 { prefix: Some(prefix), .. } if prefix == "a/b"));
}

#[test]
fn a_folder_is_named_by_the_one_path_that_means_it() {
    let rule = "write an absolute path of the daemon's machine without '.' and '..', for example /srv/datasets";
    for (path, expected) in [
        ("data", format!("'data' is not an absolute path | {rule}")),
        ("./data", format!("'./data' is not an absolute path | {rule}")),
        ("/srv/../etc", format!("'/srv/../etc' has '.' or '..' in it | {rule}")),
        ("/srv/.", format!("'/srv/.' has '.' or '..' in it | {rule}")),
        (
            "//",
            "a datastore cannot be the whole of the machine's files | name a folder below '/'"
                .to_owned(),
        ),
    ] {
        check(&format!("type: nfs\nname: n\npath: {path}\n"), &format!("3:7: 'path': {expected}"));
        // The daemon, which is asked by others too, says the same.
        let (draft, _) = read("type: nfs\nname: n\npath: /x\n").draft();
        let folder = FolderSource { kind: FolderKind::Nfs, path: path.to_owned() };
        let source = Source::Folder(folder);
        let said = crate::datastore::Draft { source, ..draft }.check().unwrap_err().to_string();
        assert!(said.contains(expected.split(" | ").next().unwrap()), "{said}");
    }
    let long = format!("/{}", "x".repeat(4095));
    let said = parse_with(&format!("type: local\nname: n\npath: {long}\n"), &[]).unwrap_err();
    assert!(said.to_string().contains("4096 bytes; at most 4095"), "{said}");
}

#[test]
fn credentials_are_whole_and_of_one_kind() {
    let azure = |credentials: &str| {
        format!(
            "type: azure_blob\nname: n\naccount_name: a\ncontainer_name: c\ncredentials: {credentials}\n"
        )
    };
    let one = "5:14: there are credentials of more than one kind | keep one: account_key; sas_token; \
               tenant_id, client_id and client_secret; or tenant_id, client_id, certificate and thumbprint";
    check(&azure("{account_key: a, sas_token: b}"), one);
    check(&azure("{account_key: a, tenant_id: b}"), one);
    check(&azure("{tenant_id: a, client_id: b, client_secret: c, thumbprint: d}"), one);
    check(
        &azure("{client_id: b}"),
        "5:14: credentials has no 'tenant_id' | add 'tenant_id:'\n\
        5:14: credentials has no 'client_secret' | add 'client_secret:'",
    );
    check(
        &azure("{tenant_id: a, client_id: b, certificate: cert.pem}"),
        "5:14: credentials has no 'thumbprint' | add 'thumbprint:'",
    );
    check(
        &azure("{tenant_id: a, client_id: b, certificate: none.pem, thumbprint: c}"),
        "5:56: the certificate's file cannot be read: no such file | write the path of a PEM file with the \
         certificate and its private key, or their text",
    );
    assert_eq!(read(&azure("{}")).credentials, Some(Credentials::None));
    let open = "type: s3\nname: n\nbucket: b\nanonymous: true\n";
    assert_eq!(read(open).credentials, Some(Credentials::Anonymous));
    check(
        &format!("{open}credentials: {{access_key_id: a, secret_access_key: b}}\n"),
        "5:14: there are credentials, and 'anonymous' says that there are none | keep one of the two",
    );
    check(
        "type: s3\nname: n\nbucket: b\ncredentials: {access_key_id: a}\n",
        "4:14: credentials has no 'secret_access_key' | add 'secret_access_key:'",
    );
}

#[test]
fn what_cannot_be_a_credential_is_refused_where_it_stands() {
    let azure = |credentials: &str| {
        format!(
            "type: azure_blob\nname: n\naccount_name: a\ncontainer_name: c\ncredentials:\n  {credentials}\n"
        )
    };
    for key in ["n0t base64!", "YWJj", "YWJjZA", "YWJjZA==\\n"] {
        let yaml = azure(&format!("account_key: \"{key}\""));
        match key {
            "YWJj" => assert!(read(&yaml).credentials.is_some()),
            _ => check(
                &yaml,
                "6:16: 'account_key': it is not Base64, as the key of a storage account is | copy the key whole, \
                 without blanks (az storage account keys list)",
            ),
        }
    }
    check(
        &azure("sas_token: https://a.example/c?sv=1"),
        "6:14: 'sas_token': it is no shared access signature | copy what follows the '?' of the signed address, \
         as sv=…&sig=…",
    );
    check(
        &azure("{tenant_id: t, client_id: c, certificate: cert.pem, thumbprint: AB}"),
        "6:67: 'thumbprint': it does not have the 40 hexadecimal digits of a SHA-1 digest | copy it from the \
         certificate's page, or from openssl x509 -noout -fingerprint -sha1",
    );
    check(
        "type: gcs\nname: n\nbucket: b\ncredentials: {service_account: '{\"type\": \"service_account\"}'}\n",
        "4:32: 'service_account': it has no client_email, or no private_key_id | copy the file that Google gave \
         out for the account whole",
    );
}

#[test]
fn no_message_shows_what_credentials_hold() {
    const HIDDEN: &str = "12345678";
    let blob = "type: azure_blob\nname: n\naccount_name: a\ncontainer_name: c\n";
    for yaml in [
        // A number where text is due; an unknown key; text where a mapping is due.
        format!("{blob}credentials:\n  account_key: {HIDDEN}\n"),
        format!("{blob}credentials: {{account_kye: '{HIDDEN}'}}\n"),
        format!("{blob}credentials: a{HIDDEN}\n"),
        format!("{blob}credentials: {{account_key: a{HIDDEN}, sas_token: b}}\n"),
        // Another fault of the same line, and of a text that cannot be read at all.
        format!("{{type: local, name: a b, path: x, credentials: {{account_key: '{HIDDEN}'}}}}"),
        format!("{{type: nope, credentials: {{account_key: '{HIDDEN}'}}}}"),
        format!("{blob}credentials:\n  account_key: 'a{HIDDEN}\n"),
        format!("{blob}credentials: {{account_key: a{HIDDEN}\n"),
    ] {
        let said = parse_with(&yaml, &[]).unwrap_err().to_string();
        assert!(!said.contains(HIDDEN) && !said.is_empty(), "{said}\nfor\n{yaml}");
    }
    for set in [
        "credentials.account_key=12345678",
        "credentials.sas_token.x={12345678",
        "credentials=12345678",
    ] {
        let yaml = format!("{blob}credentials: {{sas_token: a{HIDDEN}}}\n");
        let said = parse_with(&yaml, &[set]).unwrap_err().to_string();
        assert!(!said.contains(HIDDEN) && said.contains("--set credentials"), "{said}");
    }
    let said = Override::parse("credentials..a=12345678").unwrap_err().to_string();
    assert!(!said.contains(HIDDEN), "{said}");
    let whole = read(&format!("{blob}credentials: {{account_key: abcd{HIDDEN}}}\n"));
    assert!(!format!("{whole:?}").contains(HIDDEN), "{whole:?}");
}

#[test]
fn changes_are_applied() {
    let parsed =
        parse_with("type: local\nname: n\n", &["path=/srv/x", "tags.team=vision"]).unwrap();
    assert_eq!(parsed.definition.tags["team"], "vision");
    let said = parse_with("type: local\nname: n\n", &["path=x"]).unwrap_err().to_string();
    assert!(said.contains("--set path=x") && said.contains("absolute"), "{said}");
}

#[test]
fn the_schema_and_the_documentation_have_the_keys_of_the_tables() {
    let schema = datastore_schema();
    assert_eq!(schema["title"], "Atelier datastore");
    assert_eq!(schema["required"], serde_json::json!(["name", "type"]));
    assert_eq!(schema["oneOf"].as_array().unwrap().len(), TYPES.len());
    for (schema, (kind, object)) in schema["oneOf"].as_array().unwrap().iter().zip(&TYPES) {
        assert_eq!(schema["properties"]["type"]["const"], *kind);
        compare(schema, object);
        let undocumented = table_of(object)
            .into_iter()
            .find(|(_, fields)| fields.iter().any(|f| f.doc.is_empty()));
        assert!(undocumented.is_none());
        compare_page("datastore-yaml.md", &format!("datastore/fields.rs ({kind})"), object);
    }
}
