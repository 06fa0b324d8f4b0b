//! Shares of Azure Files, on a server of the tests' own.

use super::*;
use crate::harness::share::{ACCOUNT, Server};

fn share(server: &Server, name: &str, key: &str) -> String {
    format!(
        "$schema: https://azuremlschemas.azureedge.net/latest/azureFile.schema.json\nname: store\n\
         type: azure_file\ndescription: A share.\naccount_name: {ACCOUNT}\nfile_share_name: {name}\n\
         endpoint: {}\ncredentials: {{account_key: {key}}}\n",
        server.url()
    )
}

#[test]
fn azure_files_are_read_and_written_by_jobs() {
    let server = Server::start(KEY);
    let cluster = Cluster::start();
    let made = create(&cluster, &share(&server, "made", WRONG));
    assert_eq!(
        (&made["type"], &made["file_share_name"], &made["credential_type"]),
        (&json!("azure_file"), &json!("made"), &json!("account_key"))
    );
    assert_eq!(made["location"], format!("{}/made", server.url()));
    says(&problems(&cluster), &["does not accept the credentials", "cannot write"]);
    cluster.atelier(["datastore", "update", "-f", "-"]).stdin(share(&server, "made", KEY)).ok();
    cluster.atelier(["datastore", "test", "store"]).ok();

    server.write("given/a.txt", b"from the share\n");
    server.write("given/b/c d.txt", b"deep\n");
    let job = cluster.create(COPY);
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b"a.txt\nb\n");
    assert_eq!(server.read("made/b/c d.txt").unwrap(), b"deep\n");
    assert_eq!(server.read("made/large").unwrap().len(), 20_000_000);
    is_hidden(&cluster, KEY);

    let (here, back) = (cluster.path().join("here"), cluster.path().join("back"));
    fs::create_dir_all(here.join("x")).unwrap();
    fs::write(here.join("x/y"), "from here\n").unwrap();
    let fs = |words: &[&str]| cluster.atelier(["fs"].iter().chain(words)).ok();
    let at = |path: &str| format!("azureml://datastores/store/paths/{path}");
    fs(&["cp", "-r", here.to_str().unwrap(), &at("up")]);
    fs(&["cp", "-r", &at("up"), back.to_str().unwrap()]);
    assert_eq!(fs(&["cat", &at("made/a.txt")]).stdout(), "from the share\n");
    says(&fs(&["ls", &at("made/")]).stdout(), &["a.txt", "b/", "large"]);
    let came: Vec<String> =
        server.files().into_iter().filter(|path| path.starts_with("up/")).collect();
    assert_eq!(came.len(), 1, "{came:?}");
    fs(&["rm", "-r", "--yes", &at("up")]);
    assert!(!server.files().iter().any(|path| path.starts_with("up/")));
    let found = walk(&back);
    assert_eq!(found, ["from here\n"]);

    cluster.atelier(["datastore", "delete", "store"]).ok();
    create(&cluster, &share(&server, "gone", KEY));
    says(&problems(&cluster), &["has no share 'gone'", "list", "write"]);
}

/// What the files below a folder hold.
fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(fs::read_to_string(path).unwrap()),
        }
    }
    found
}
