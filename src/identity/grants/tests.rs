use atelier_core::id::PortName;
use atelier_core::spec::{DataKind, DataUri, InputMode, Output};

use super::*;
use crate::store::tests::{name, spec};

pub(in crate::identity) fn port(text: &str) -> PortName {
    PortName::new(text).unwrap()
}

pub(in crate::identity) fn store(text: &str) -> DatastoreName {
    DatastoreName::new(text).unwrap()
}

fn input(path: &str) -> Input {
    let uri = DataUri::Datastore { datastore: store("workspaceblobstore"), path: path.to_owned() };
    Input::Data {
        kind: DataKind::UriFolder,
        mode: InputMode::Download,
        uri,
        asset: None,
        address: None,
    }
}

fn output(mode: OutputMode, path: &str) -> Output {
    let path = Some(layout::datastore_uri("workspaceblobstore", path));
    Output { kind: DataKind::UriFolder, mode, path, asset_name: None, asset_version: None }
}

/// A job with an input and outputs at `data/in`, `azureml/mine/out` and `azureml/mine/kept`, and a direct output.
pub(in crate::identity) fn job() -> CommandJob {
    let url = Input::Data {
        kind: DataKind::UriFile,
        mode: InputMode::Download,
        uri: DataUri::Http("https://example.org/azureml/x".to_owned()),
        asset: None,
        address: None,
    };
    CommandJob {
        inputs: [
            (port("folder"), input("data/in/")),
            (port("number"), Input::Literal { value: "azureml".to_owned() }),
            (port("url"), url),
        ]
        .into(),
        outputs: [
            (port("out"), output(OutputMode::Upload, "azureml/mine/out/")),
            (port("direct"), output(OutputMode::Direct, "direct/place")),
            (port("kept"), output(OutputMode::RwMount, "azureml/mine/kept")),
        ]
        .into(),
        ..spec("true")
    }
}

#[test]
fn an_attempt_reaches_its_inputs_outputs_and_artifacts_alone() {
    let grants = grants_of(&name("mine"), &job());
    let (blobs, artifacts) = ("workspaceblobstore", "workspaceartifactstore");
    let own = "ExperimentRun/dcid.mine";
    // Datastore, path, whether it may be read, whether written.
    for (datastore, path, read, write) in [
        (blobs, "data/in", true, false),
        (blobs, "data/in/part/1.csv", true, false),
        (blobs, "azureml/mine/out", true, true),
        (blobs, "azureml/mine/out/model/weights", true, true),
        (artifacts, own, true, true),
        (artifacts, "ExperimentRun/dcid.mine/outputs/m", true, true),
        // Beside, above and elsewhere.
        (blobs, "data/input", false, false),
        (blobs, "data/in2/x", false, false),
        (blobs, "data", false, false),
        (blobs, "dat", false, false),
        (blobs, "", false, false),
        (blobs, "DATA/IN/x", false, false),
        (blobs, "/data/in/x", false, false),
        (blobs, "data%2fin/x", false, false),
        (blobs, "azureml/mine/out2", false, false),
        (blobs, "azureml/mine", false, false),
        (blobs, "azureml/other/out/x", false, false),
        (blobs, "azureml/content/ab/abcd", false, false),
        (blobs, "direct/place/x", false, false),
        (blobs, own, false, false),
        (artifacts, "data/in/x", false, false),
        (artifacts, "ExperimentRun", false, false),
        (artifacts, "ExperimentRun/dcid.mine2/x", false, false),
        (artifacts, "ExperimentRun/dcid.other/x", false, false),
        (artifacts, "ExperimentRun/dcid.mine%2f../x", false, false),
        ("workspacefilestore", "data/in/x", false, false),
    ] {
        assert_eq!(grants.allow(&store(datastore), path, false), read, "read {datastore} {path}");
        assert_eq!(grants.allow(&store(datastore), path, true), write, "write {datastore} {path}");
    }
}

#[test]
fn what_is_not_committed_is_of_its_own_job_alone() {
    let mut job = job();
    job.inputs.insert(port("all"), input(""));
    job.inputs.insert(port("theirs"), input(".uncommitted/other"));
    let grants = grants_of(&name("mine"), &job);
    for (path, allowed) in [
        (".uncommitted/mine/kept", true),
        (".uncommitted/mine/kept/0/step/1", true),
        (".Uncommitted/mine/kept/0/x", false),
        (".UNCOMMITTED./mine/kept/0/x", false),
        (".uncommitted/mine/out/0/x", false),
        (".uncommitted/mine/kept2/0/x", false),
        (".uncommitted/mine", false),
        (".uncommitted", false),
        (".uncommitted/other/kept/0/x", false),
        (".uncommitted/mine2/kept/0/x", false),
    ] {
        for write in [false, true] {
            let found = grants.allow(&store("workspaceblobstore"), path, write);
            assert_eq!(found, allowed, "{path} {write}");
        }
        assert!(!grants.allow(&store("workspaceartifactstore"), path, false));
    }
    assert!(grants.allow(&store("workspaceblobstore"), "any/thing", false));
}

#[test]
fn nothing_is_granted_that_the_job_does_not_name() {
    let grants = grants_of(&name("mine"), &spec("true"));
    let only_artifacts = Grants {
        read: vec![],
        write: vec![(store("workspaceartifactstore"), "ExperimentRun/dcid.mine".to_owned())],
    };
    assert_eq!(grants, only_artifacts);
    // A whole datastore as an input is what the submitter asked for: to be read, not written.
    let all = CommandJob { inputs: [(port("all"), input("/"))].into(), ..spec("true") };
    let grants = grants_of(&name("mine"), &all);
    assert!(grants.allow(&store("workspaceblobstore"), "any/thing", false));
    assert!(!grants.allow(&store("workspaceblobstore"), "any/thing", true));
}

#[test]
fn an_attempt_reaches_of_public_storage_what_its_input_names() {
    let mut job = job();
    let Some(Input::Data { uri, .. }) = job.inputs.get_mut(&port("url")) else { panic!() };
    *uri = DataUri::Cloud("wasbs://open@acct.blob.core.windows.net/data/".to_owned());
    let grants = grants_of(&name("mine"), &job);
    let bucket = "public-storage.azure.acct.open.core.windows.net";
    for (datastore, path, read) in [
        (bucket, "data", true),
        (bucket, "data/a/b.csv", true),
        (bucket, "", false),
        (bucket, "database/a", false),
        (bucket, "other", false),
        ("public-storage.azure.acct.other.core.windows.net", "data/a", false),
        ("public-storage.lake.acct.open.core.windows.net", "data/a", false),
        ("public-storage.s3.open", "data/a", false),
        ("workspaceblobstore", "data", false),
    ] {
        assert_eq!(grants.allow(&store(datastore), path, false), read, "{datastore} {path}");
        assert!(!grants.allow(&store(datastore), path, true), "{datastore} {path}");
    }
}
