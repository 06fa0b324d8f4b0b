//! References, inputs, outputs, environments and overrides.

use std::sync::Arc;

use super::*;
use crate::id::{ComputeName, DatastoreName, JobName};
use crate::spec::shell;

/// The data that `path` names.
#[track_caller]
fn uri(path: &str) -> DataUri {
    let job = job(&format!("command: x\ninputs: {{d: {{type: custom_model, path: '{path}'}}}}"));
    match job.inputs.into_values().next() {
        Some(Input::Data { uri, .. }) => uri,
        other => panic!("{other:?}"),
    }
}

fn asset(registry: Option<&str>, name: &str, version: AssetVersion) -> AssetRef {
    AssetRef { registry: registry.map(str::to_owned), name: name.to_owned(), version }
}

const ID: &str = "subscriptions/0000-11/resourceGroups/rg/providers/\
                  Microsoft.MachineLearningServices/workspaces/ws";

#[test]
fn every_form_of_data_reference() {
    let exact = |version: &str| AssetVersion::Exact(version.to_owned());
    let label = |label: &str| AssetVersion::Label(label.to_owned());
    let blob = |path: &str| DataUri::Datastore {
        datastore: DatastoreName::new("blob").unwrap(),
        path: path.to_owned(),
    };
    let output = |output: &str, path: &str| DataUri::JobOutput {
        job: JobName::new("brave_fox_1").unwrap(),
        output: output.to_owned(),
        path: path.to_owned(),
    };
    let local = |path: &str| DataUri::Local(path.to_owned());
    for (path, expected) in [
        ("./data", local("/w/proj/data")),
        ("data/iris.csv", local("/w/proj/data/iris.csv")),
        ("../shared/./conda.yml", local("/w/shared/conda.yml")),
        ("/w/proj/data/", local("/w/proj/data")),
        ("file:data", local("/w/proj/data")),
        ("file:///w/proj/data", local("/w/proj/data")),
        ("azureml:iris", DataUri::Asset(asset(None, "iris", AssetVersion::Default))),
        ("azureml:iris:3", DataUri::Asset(asset(None, "iris", exact("3")))),
        ("azureml:iris@latest", DataUri::Asset(asset(None, "iris", label("latest")))),
        (
            "azureml://registries/azureml/data/iris/versions/1.2",
            DataUri::Asset(asset(Some("azureml"), "iris", exact("1.2"))),
        ),
        (
            "azureml://registries/azureml/models/m/labels/latest",
            DataUri::Asset(asset(Some("azureml"), "m", label("latest"))),
        ),
        (
            &format!("azureml:/{ID}/data/iris/versions/3"),
            DataUri::Asset(asset(None, "iris", exact("3"))),
        ),
        (&format!("/{ID}/data/iris/versions/3"), DataUri::Asset(asset(None, "iris", exact("3")))),
        (
            &format!("/{}/DATA/iris/Versions/3", ID.to_uppercase()),
            DataUri::Asset(asset(None, "iris", exact("3"))),
        ),
        (
            &format!("azureml://{ID}/models/m/versions/3"),
            DataUri::Asset(asset(None, "m", exact("3"))),
        ),
        ("azureml://datastores/blob/paths/a/b c/*.csv", blob("a/b c/*.csv")),
        ("azureml://datastores/blob/paths/", blob("")),
        ("azureml://datastores/blob/paths", blob("")),
        ("azureml://datastores/blob", blob("")),
        (
            "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/blob/paths/a/b",
            blob("a/b"),
        ),
        ("azureml://jobs/brave_fox_1/outputs/model", output("model", "")),
        ("azureml://jobs/brave_fox_1/outputs/artifacts/paths/m/", output("artifacts", "m/")),
        (
            "runs:/brave_fox_1/model/a",
            DataUri::RunArtifact { run: "brave_fox_1".to_owned(), path: "model/a".to_owned() },
        ),
        (
            "runs:///brave_fox_1",
            DataUri::RunArtifact { run: "brave_fox_1".to_owned(), path: String::new() },
        ),
        (
            "https://example.com/a.csv?x=1",
            DataUri::Http("https://example.com/a.csv?x=1".to_owned()),
        ),
        ("http://example.com/a", DataUri::Http("http://example.com/a".to_owned())),
        ("wasbs://c@a.blob/x", DataUri::Cloud("wasbs://c@a.blob/x".to_owned())),
        ("abfss://c@a.dfs/x", DataUri::Cloud("abfss://c@a.dfs/x".to_owned())),
        ("s3://bucket/x", DataUri::Cloud("s3://bucket/x".to_owned())),
    ] {
        assert_eq!(uri(path), expected, "for {path}");
    }
}

#[test]
fn environments_and_computes_by_reference() {
    let exact = AssetVersion::Exact("3".to_owned());
    for (written, expected) in [
        ("azureml:train:3", asset(None, "train", exact.clone())),
        ("azureml:train", asset(None, "train", AssetVersion::Default)),
        (
            "azureml://registries/azureml/environments/sklearn-1.5/labels/latest",
            asset(Some("azureml"), "sklearn-1.5", AssetVersion::Label("latest".to_owned())),
        ),
        (
            "azureml://registries/azureml/environments/sklearn-1.5/versions/3",
            asset(Some("azureml"), "sklearn-1.5", exact.clone()),
        ),
        (
            &format!("azureml:/{ID}/environments/train/versions/3"),
            asset(None, "train", exact.clone()),
        ),
        (&format!("/{ID}/environments/train/versions/3"), asset(None, "train", exact)),
    ] {
        let environment = job(&format!("command: x\nenvironment: {written}")).environment;
        assert_eq!(environment, Environment::Named(expected), "for {written}");
    }
    for (written, expected) in [
        ("azureml:gpu-cluster", Some("gpu-cluster")),
        ("gpu-cluster", Some("gpu-cluster")),
        ("local", Some("local")),
        ("azureml:serverless", None),
        ("serverless", None),
        (&format!("/{ID}/computes/gpu-cluster"), Some("gpu-cluster")),
        (&format!("azureml:/{ID}/computes/gpu-cluster"), Some("gpu-cluster")),
        (&format!("/{}/Computes/gpu-cluster", ID.to_uppercase()), Some("gpu-cluster")),
        (
            "/subscriptions/s/resourceGroups/r/providers/Microsoft.MachineLearningServices/\
             virtualclusters/shared",
            Some("shared"),
        ),
        (&format!("azureml:/{ID}/virtualClusters/shared"), Some("shared")),
    ] {
        let compute = job(&format!("command: x\ncompute: {written}")).compute;
        assert_eq!(compute.as_ref().map(ComputeName::as_str), expected, "for {written}");
    }
    let other = warnings(&format!("command: x\ncompute: azureml:/{ID}/computes/c"));
    assert!(other.contains("it means this workspace's"), "{other}");
}

#[test]
fn written_out_environments_carry_their_files() {
    let inline = |yaml: &str| match job(&format!("command: x\nenvironment: {yaml}")).environment {
        Environment::Inline(inline) => inline,
        other => panic!("{other:?}"),
    };
    let conda = serde_json::json!({
        "name": "train",
        "channels": ["conda-forge"],
        "dependencies": ["python=3.12", "pip", {"pip": ["scikit-learn==1.5.2", "mlflow"]}],
    });
    let from_file = inline("{conda_file: ./conda.yml, name: train, version: 2}");
    assert_eq!(from_file.conda, Some(conda.clone()));
    assert_eq!(from_file.image, None);
    assert_eq!(from_file.name.as_deref(), Some("train"));
    // The paths in a file start from that file, not from the one that names it.
    for written in ["file:env/env.yml", "./env/env.yml", "env/env.yml", "/w/proj/env/env.yml"] {
        let environment = inline(written);
        assert_eq!(environment.image.as_deref(), Some("python:3.12"), "for {written}");
        assert_eq!(environment.conda, Some(conda.clone()), "for {written}");
    }
    let written_out =
        inline("\n  image: ubuntu\n  conda_file:\n    dependencies: [pip: [a, b>=1]]\n");
    let expected = serde_json::json!({"dependencies": [{"pip": ["a", "b>=1"]}]});
    assert_eq!(written_out.conda, Some(expected));
    let build = inline("{build: {path: ./env}}").build.unwrap();
    assert_eq!(build.path, Code::Local("/w/proj/env".to_owned()));
    assert_eq!(build.dockerfile_path, "Dockerfile");
}

#[test]
fn words_are_read_in_any_case() {
    let job = job("
type: Command
command: x
inputs:
  table: {type: MLTable, mode: EVAL_MOUNT, path: 'azureml:t:1'}
  raw: {type: URI_FILE, mode: Direct, path: 'azureml:t:1'}
outputs:
  o: {type: Uri_Folder, mode: RW_MOUNT}
  p: {mode: mount}
identity: {type: UserIdentity}
distribution: {type: PyTorch, process_count_per_instance: 4}
queue_settings: {job_tier: Spot, priority: High}
services:
  lab: {type: JupyterLab, nodes: ALL, port: 8888}
  Studio: {type: Studio, endpoint: https://example.com}
on_node_loss: Keep
");
    let modes: Vec<_> = job
        .inputs
        .values()
        .map(|input| match input {
            Input::Data { kind, mode, .. } => (*kind, *mode),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        modes,
        [(DataKind::UriFile, InputMode::Direct), (DataKind::MlTable, InputMode::EvalMount)]
    );
    assert!(job.outputs.values().all(|output| output.mode == OutputMode::RwMount));
    assert_eq!(job.identity, Some(Identity::UserIdentity));
    assert_eq!(job.distribution, Some(Distribution::PyTorch { process_count_per_instance: 4 }));
    assert_eq!(job.queue.job_tier.as_deref(), Some("spot"));
    assert_eq!(job.queue.priority, Priority::High);
    assert_eq!(job.services.len(), 1);
    let lab = &job.services["lab"];
    assert_eq!((lab.kind.as_str(), lab.all_nodes, lab.port), ("jupyter_lab", true, Some(8888)));
}

#[test]
fn an_input_may_be_named_like_a_key() {
    let job = job("command: x ${{inputs.type}} ${{inputs.path}}\ninputs: {type: 1, path: 2}\n");
    assert_eq!(job.inputs.len(), 2);
}

#[test]
fn literals_may_be_written_as_mappings() {
    let job = job("
command: x
inputs:
  a: {value: 5}
  b: {type: number, default: 0.5, min: 0, max: 1}
  c: {type: string, optional: true}
  d: {type: string, value: b, enum: [a, b]}
  e: {type: boolean, value: false}
  f: {type: uri_file, optional: true}
");
    let shown: Vec<Option<&str>> = job
        .inputs
        .values()
        .map(|input| match input {
            Input::Literal { value } => Some(value.as_str()),
            Input::Unset => None,
            Input::Data { .. } => panic!("data"),
        })
        .collect();
    assert_eq!(shown, [Some("5"), Some("0.5"), None, Some("b"), Some("False"), None]);
}

#[test]
fn outputs_go_where_they_say() {
    let path = |path: &str| {
        let job = job(&format!("command: x\noutputs: {{o: {{path: '{path}'}}}}"));
        job.outputs.into_values().next().unwrap().path.unwrap()
    };
    let given = "azureml://datastores/${{default_datastore}}/paths/m/${{name}}/${{output_name}}/";
    assert_eq!(path(given), given);
    assert_eq!(
        path("azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/blob/paths/a"),
        "azureml://datastores/blob/paths/a"
    );
}

#[test]
fn amounts() {
    let demand =
        |resources: &str| job(&format!("command: x\nresources: {{{resources}}}")).resources.demand;
    for (written, milli) in [
        ("2", 2000),
        ("0.5", 500),
        ("'0.5'", 500),
        ("500m", 500),
        (".25", 250),
        ("0.1", 100),
        ("1.0e+1", 10_000),
        ("0.0001", 1),
        ("'2.0005'", 2001),
    ] {
        assert_eq!(demand(&format!("cpus: {written}")).cpu, milli, "for {written}");
    }
    for (written, mib) in [
        ("4GiB", 4096),
        ("4g", 4096),
        ("4 GB", 4096),
        ("4Gi", 4096),
        ("512MiB", 512),
        ("512m", 512),
        ("1.5GiB", 1536),
        ("1TiB", 1 << 20),
        ("1025k", 2),
        ("1b", 1),
    ] {
        assert_eq!(demand(&format!("memory: {written}")).memory, mib, "for {written}");
    }
    for (written, count) in [("0", 0), ("8", 8), ("'2'", 2), ("2.0", 2), ("0x10", 16)] {
        assert_eq!(demand(&format!("gpus: {written}")).gpus, count, "for {written}");
    }
    for (written, count, share) in
        [("0.5", 1, 500), ("'.25'", 1, 250), ("0.0001", 1, 1), ("0.9999", 1, 0), ("1", 1, 0)]
    {
        let asked = demand(&format!("gpus: {written}"));
        assert_eq!((asked.gpus, asked.gpu_share), (count, share), "for {written}");
    }
    let asked = demand(
        "gpus: 2, gpu_model: [A100, H100], gpu_memory: 40Gi, disk: 100Gi, node_labels: {zone: b, rack: 7}",
    );
    assert_eq!(
        asked.gpu_models.as_deref(),
        Some(["A100".to_owned(), "H100".to_owned()].as_slice())
    );
    assert_eq!((asked.gpu_memory, asked.disk), (40 << 10, 100 << 10));
    let labels = asked.node_labels.expect("there are labels");
    assert_eq!(
        labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["rack=7", "zone=b"]
    );
    let one = demand("gpus: 0.5, gpu_model: T4, node_labels: {}").gpu_models;
    assert_eq!(one.as_deref(), Some(["T4".to_owned()].as_slice()));
    let resources = |yaml: &str| job(&format!("command: x\nresources: {{{yaml}}}")).resources;
    assert_eq!(resources("shm_size: 2g").shm_size, Some(2 << 30));
    assert_eq!(resources("shm_size: 1024").shm_size, Some(1024));
    assert_eq!(
        resources("docker_args: --read-only -e 'A=b c' --label \"x=\\\"y\\\"\"").docker_args,
        ["--read-only", "-e", "A=b c", "--label", "x=\"y\""]
    );
    assert_eq!(resources("docker_args: [-e, A=b]").docker_args, ["-e", "A=b"]);
}

#[test]
fn what_azure_alone_has_is_accepted_with_a_warning() {
    let yaml = "
command: x
identity: {type: managed, client_id: abc}
resources: {instance_type: Standard_NC6, locations: [westeurope], max_instance_count: 3}
distribution: {type: mpi}
inputs: {a: 'azureml:iris:1'}
id: azureml:/x
status: Completed
log_files: {a: b}
creation_context: {created_at: 2024-01-01}
";
    let job = job(yaml);
    assert_eq!(job.resources.instance_type.as_deref(), Some("Standard_NC6"));
    assert_eq!(job.resources.properties["locations"], serde_json::json!(["westeurope"]));
    assert_eq!(job.identity, Some(Identity::Managed { client_id: Some("abc".to_owned()) }));
    assert_eq!(
        warnings(yaml),
        "3:11: 'identity' is recorded only: managed identities are Azure's alone | the job reaches \
         the workspace as itself, with a token of its own\n\
         4:13: 'resources.instance_type' is ignored: VM sizes are Azure's; say what the job needs \
         with cpus, memory and gpus\n\
         4:42: 'resources.locations' is ignored: regions are Azure's; the workspace's nodes are \
         where they are\n\
         4:67: 'resources.max_instance_count' is ignored: the number of members is fixed: \
         instance_count\n\
         6:13: 'inputs.a' is a literal, so the job gets this very text | to get the data, write it \
         as a mapping with 'path:'"
    );
}

#[test]
fn overrides_change_the_document_before_it_is_checked() {
    let yaml = "command: x\ntags: {a: b}\ninputs: {d: {path: ./nope}, e: 5}\n";
    let sets = [
        "resources.cpus=0.5",
        "resources.memory=2GiB",
        "tags.a=c",
        "tags.\"x.y\"=yes",
        "tags.empty=",
        "inputs.d.path=./data",
        "inputs.e=1e-3",
        "command=echo a: b # ${{inputs.e}}",
        "environment={conda_file: {dependencies: [python]}}",
        "environment.conda_file.dependencies.1=pip",
        "environment.conda_file.dependencies.0='python=3.12'",
        "display_name=\"a\\tb\"",
    ];
    let job = match parse_with(yaml, &sets) {
        Ok(parsed) => parsed.job,
        Err(errors) => panic!("{errors}"),
    };
    assert_eq!((job.resources.demand.cpu, job.resources.demand.memory), (500, 2048));
    assert_eq!(job.tags["a"], "c");
    assert_eq!(job.tags["x.y"], "True");
    assert_eq!(job.tags["empty"], "");
    assert_eq!(job.command, "echo a: b # ${{inputs.e}}");
    assert_eq!(job.display_name.as_deref(), Some("a\tb"));
    let Environment::Inline(environment) = job.environment else { panic!() };
    assert_eq!(
        environment.conda,
        Some(serde_json::json!({"dependencies": ["python=3.12", "pip"]}))
    );
    let named =
        parse_job(b"command: x", &origin(), &[Override::text("--name", &["name"], "42")], &disk());
    assert_eq!(named.unwrap().job.name.unwrap().as_str(), "42");
}

#[test]
fn faults_in_overrides_name_the_override() {
    for (set, expected) in [
        (
            "resources.gpus=-1",
            "--set resources.gpus=-1: 'resources.gpus' must be a whole number from 0 to 1024, or a \
             share of one such as 0.5, found -1",
        ),
        (
            "resources.gpus=1.5",
            "--set resources.gpus=1.5: 'resources.gpus' cannot be 1.5: a share is of one GPU; \
             write 2 for whole ones, or less than 1",
        ),
        (
            "resources.gpu_model=A100",
            "--set resources.gpu_model=A100: 'resources.gpu_model' is given, and no GPU is asked \
             for | write how many: 'gpus: 1', or remove 'gpu_model'",
        ),
        (
            "resources.cpu=1",
            "--set resources.cpu=1: unknown field 'cpu' in resources | did you mean 'cpus'?",
        ),
        (
            "resources={gpus: two}",
            "--set resources={gpus: two}: 'resources.gpus': expected a whole number from 0 to \
             1024, or a share of one such as 0.5, found 'two'",
        ),
        (
            "command.x=1",
            "--set command.x=1: 'command' is the text 'x ${{inputs.a}}', not a mapping",
        ),
        ("args.5=1", "--set args.5=1: 'args' has 1 items: the place 5 is past its end"),
        ("args.x=1", "--set args.x=1: 'args' is a list: write the place in it, from 0"),
        (
            "tags=[1, 2",
            "--set tags=[1, 2: in its value: this is not YAML: unclosed bracket '[' | \
             quote the value if it is meant as text",
        ),
        (
            "tags.d=2024-02-30",
            "--set tags.d=2024-02-30: '2024-02-30' is a date that does not exist | quote the value \
             if it is meant as text",
        ),
        (
            "command=x ${{inputs.b}}",
            "--set command=x ${{inputs.b}}: in 'command': there is no input 'b' (known inputs: a)",
        ),
    ] {
        let yaml = "command: x ${{inputs.a}}\ninputs: {a: 1}\n";
        let yaml = if set.starts_with("args") { "command: x\nargs: [1]\n" } else { yaml };
        let Err(errors) = parse_with(yaml, &[set]) else { panic!("accepted {set}") };
        let found: Vec<String> = errors.iter().map(short).collect();
        assert_eq!(found.join("\n"), expected);
    }
    for (set, expected) in [
        ("resources.cpus", "--set resources.cpus: there is no '='"),
        ("=5", "--set =5: a part of the key is empty"),
        ("a..b=5", "--set a..b=5: a part of the key is empty"),
        ("\"a=5", "--set \"a=5: a quote is not closed"),
        ("\"a\"b=5", "--set \"a\"b=5: expected '.' or '=' after a part of the key"),
    ] {
        let message = Override::parse(set).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("{expected}\n  help: write for example '--set resources.cpus=2'")
        );
    }
}

#[test]
fn arguments_become_words_of_a_shell() {
    let arguments =
        ["python", "train.py", "--name", "it's", "a b", "", "$HOME", "x=1", "--y=2", "a/b=3"];
    let line = arguments.map(shell::quote).join(" ");
    assert_eq!(line, r"python train.py --name 'it'\''s' 'a b' '' '$HOME' 'x=1' --y=2 a/b=3");
    assert_eq!(shell::split(&line).unwrap(), arguments);
}

#[test]
fn the_daemon_refuses_what_no_reader_would_make() {
    let good = job("command: x\noutputs: {o: }\n");
    let fault = |change: fn(&mut CommandJob)| {
        let mut job = good.clone();
        change(&mut job);
        validate_submitted(&job).map_or_else(|errors| errors.to_string(), |()| String::new())
    };
    assert_eq!(fault(|_| {}), "");
    for (change, expected) in [
        ((|job| job.command = String::new()) as fn(&mut CommandJob), "'command' is empty"),
        (|job| job.command = "a\0b".to_owned(), "'command' holds a NUL character"),
        (|job| job.command = "${{inputs.x}}".to_owned(), "there is no input 'x'"),
        (|job| job.resources.instance_count = 0, "out of range: found 0"),
        (|job| job.resources.demand.cpu = 0, "out of range: found 0"),
        (|job| job.resources.demand.cpu = u64::MAX, "out of range"),
        (|job| job.resources.demand.memory = u64::MAX, "out of range"),
        (|job| job.resources.demand.gpus = u32::MAX, "out of range"),
        (|job| job.resources.demand.gpu_share = 500, "out of range"),
        (|job| (job.resources.demand.gpus, job.resources.demand.gpu_share) = (2, 500), "range"),
        (|job| (job.resources.demand.gpus, job.resources.demand.gpu_share) = (1, 1000), "range"),
        (|job| job.resources.demand.gpu_memory = u64::MAX, "out of range"),
        (|job| job.resources.demand.disk = u64::MAX, "out of range"),
        (|job| job.resources.demand.gpu_memory = 1, "no GPU is asked for"),
        (
            |job| {
                job.resources.demand.node_labels =
                    Some(Arc::new([(" ".to_owned(), "x".to_owned())].into()))
            },
            "is not a label",
        ),
        (|job| job.limits.timeout = Some(0), "out of range"),
        (|job| job.retry.max_attempts = 0, "out of range"),
        (|job| job.idle_gpu = Some(IdleGpu::default()), "no GPU is asked for"),
        (
            |job| job.idle_gpu = Some(IdleGpu { after: 0, ..IdleGpu::default() }),
            "'idle_gpu.after' is out of range",
        ),
        (|job| job.keep_failed = Some(604_801), "'keep_failed' is out of range"),
        (|job| job.retry.memory_percent = Some(50), "out of range"),
        (|job| drop(job.tags.insert(String::new(), String::new())), "is not a key of 'tags'"),
        (
            |job| drop(job.environment_variables.insert("A=B".to_owned(), String::new())),
            "is not an environment variable's name",
        ),
        (
            |job| {
                for output in job.outputs.values_mut() {
                    output.path = Some("azureml://datastores/b/paths/a/../..".to_owned());
                }
            },
            "leaves its root by '..'",
        ),
        (
            |job| {
                for output in job.outputs.values_mut() {
                    output.path = Some("/etc".to_owned());
                }
            },
            "output 'o' cannot go to '/etc'",
        ),
        (|job| job.code = Some(Code::Local("/x".to_owned())), "it lies on the submitter's machine"),
    ] {
        let message = fault(change);
        assert!(message.contains(expected), "expected {expected}, found {message}");
    }
}

/// `depth` lists within each other.
fn nested(depth: usize) -> serde_json::Value {
    (1..depth).fold(serde_json::json!([]), |inner, _| serde_json::json!([inner]))
}

#[test]
fn free_values_are_only_as_deep_as_the_store_reads_back() {
    use crate::spec::limits::MAX_DEPTH;
    fn with(field: &str, value: serde_json::Value) -> CommandJob {
        let mut job = job("command: x\n");
        match field {
            "environment.conda_file" => {
                let conda = Some(serde_json::json!({"dependencies": [], "x": value}));
                job.environment =
                    Environment::Inline(InlineEnvironment { conda, ..Default::default() });
            }
            _ => drop(job.resources.properties.insert("x".to_owned(), value)),
        }
        job
    }
    for field in ["environment.conda_file", "resources.properties.x"] {
        // The conda document itself is one of them.
        let most = MAX_DEPTH - usize::from(field == "environment.conda_file");
        let good = with(field, nested(most));
        validate_submitted(&good).unwrap();
        let json = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<CommandJob>(&json).unwrap(), good);
        let errors = validate_submitted(&with(field, nested(most + 1))).unwrap_err();
        assert_eq!(
            errors.to_string(),
            format!(
                "{field}: '{field}' holds more than 64 lists and mappings within each other\n  \
                 help: write it flatter, or put it into a file that is an input"
            )
        );
    }
    let key = "resources.properties".to_owned() + &".a".repeat(70);
    let error = Override::parse(&format!("{key}=1")).unwrap_err();
    assert!(error.to_string().contains("the key has more than 64 parts"), "{error}");
}

#[test]
fn an_experiments_name_has_500_characters_of_any_kind() {
    let yaml = |length: usize| format!("command: x\nexperiment_name: {}\n", "é".repeat(length));
    assert_eq!(job(&yaml(500)).experiment_name.as_str().len(), 1000);
    assert!(parse(&yaml(501)).is_err());
}
