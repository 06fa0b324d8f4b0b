//! Round trips of arbitrary jobs, defaults, and errors that name their field.

use std::collections::BTreeMap;
use std::sync::Arc;

use atelier_core::content::Digest;
use atelier_core::datastore::{self, Credentials, FolderKind, FolderSource, Source};
use atelier_core::environment::Draft;
use atelier_core::id::{
    AssetName, ComputeName, DatastoreName, ExperimentName, JobName, PortName, VersionName,
};
use atelier_core::resource::Demand;
use atelier_core::spec::{self, CommandJob};
use proptest::option;
use proptest::prelude::*;

use crate::job::v1 as pb;

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,8}"
}

fn free_text() -> impl Strategy<Value = String> {
    "[^\\x00]{0,20}"
}

fn words() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(word(), free_text(), 0..3)
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        free_text().prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Into::into),
            proptest::collection::btree_map(word(), inner, 0..3)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn code() -> impl Strategy<Value = spec::Code> {
    prop_oneof![
        free_text().prop_map(spec::Code::Local),
        any::<[u8; 32]>().prop_map(|bytes| spec::Code::Snapshot(Digest::from_bytes(bytes))),
    ]
}

fn asset() -> impl Strategy<Value = spec::AssetRef> {
    let version = prop_oneof![
        Just(spec::AssetVersion::Default),
        word().prop_map(spec::AssetVersion::Exact),
        word().prop_map(spec::AssetVersion::Label),
    ];
    (option::of(word()), word(), version).prop_map(|(registry, name, version)| spec::AssetRef {
        registry,
        name,
        version,
    })
}

fn inline() -> impl Strategy<Value = spec::InlineEnvironment> {
    let build = (code(), word())
        .prop_map(|(path, dockerfile_path)| spec::BuildContext { path, dockerfile_path });
    (option::of(word()), option::of(word()), option::of(json()), option::of(build)).prop_map(
        |(name, image, conda, build)| spec::InlineEnvironment { name, image, conda, build },
    )
}

fn environment() -> impl Strategy<Value = spec::Environment> {
    prop_oneof![
        Just(spec::Environment::Host),
        asset().prop_map(spec::Environment::Named),
        inline().prop_map(spec::Environment::Inline),
    ]
}

fn uri() -> impl Strategy<Value = spec::DataUri> {
    prop_oneof![
        free_text().prop_map(spec::DataUri::Local),
        (word(), free_text()).prop_map(|(name, path)| spec::DataUri::Datastore {
            datastore: DatastoreName::new(&name).unwrap(),
            path,
        }),
        (word(), word(), free_text()).prop_map(|(job, output, path)| spec::DataUri::JobOutput {
            job: JobName::new(&job).unwrap(),
            output,
            path,
        }),
        (word(), free_text()).prop_map(|(run, path)| spec::DataUri::RunArtifact { run, path }),
        asset().prop_map(spec::DataUri::Asset),
        free_text().prop_map(spec::DataUri::Http),
        free_text().prop_map(spec::DataUri::Cloud),
    ]
}

fn kind() -> impl Strategy<Value = spec::DataKind> {
    use spec::DataKind as K;
    prop::sample::select(vec![
        K::UriFile,
        K::UriFolder,
        K::MlTable,
        K::MlflowModel,
        K::CustomModel,
        K::TritonModel,
    ])
}

fn input() -> impl Strategy<Value = spec::Input> {
    use spec::InputMode as M;
    let mode = prop::sample::select(vec![
        M::RoMount,
        M::Download,
        M::Direct,
        M::EvalMount,
        M::EvalDownload,
    ]);
    prop_oneof![
        free_text().prop_map(|value| spec::Input::Literal { value }),
        (kind(), mode, uri(), option::of(asset()), option::of(free_text())).prop_map(
            |(kind, mode, uri, asset, address)| {
                spec::Input::Data { kind, mode, uri, asset, address }
            }
        ),
        Just(spec::Input::Unset),
    ]
}

fn output() -> impl Strategy<Value = spec::Output> {
    use spec::OutputMode as M;
    let mode = prop::sample::select(vec![M::RwMount, M::Upload, M::Direct]);
    (kind(), mode, option::of(free_text()), option::of(word()), option::of(word())).prop_map(
        |(kind, mode, path, asset_name, asset_version)| spec::Output {
            kind,
            mode,
            path,
            asset_name,
            asset_version,
        },
    )
}

fn ports<T: std::fmt::Debug>(
    port: impl Strategy<Value = T>,
) -> impl Strategy<Value = BTreeMap<PortName, T>> {
    let name = word().prop_map(|name| PortName::new(&name).unwrap());
    proptest::collection::btree_map(name, port, 0..3)
}

fn resources() -> impl Strategy<Value = spec::JobResources> {
    let properties = proptest::collection::btree_map(word(), json(), 0..2);
    (
        1..50u32,
        demand(),
        option::of(word()),
        option::of(any::<u64>()),
        proptest::collection::vec(free_text(), 0..2),
        properties,
    )
        .prop_map(|(members, demand, instance_type, shm, args, properties)| {
            spec::JobResources {
                instance_count: members,
                demand,
                instance_type,
                shm_size: shm,
                docker_args: args,
                properties,
            }
        })
}

fn demand() -> impl Strategy<Value = Demand> {
    let gpus =
        prop_oneof![(0..16u32).prop_map(|gpus| (gpus, 0)), (1..1000u16).prop_map(|s| (1, s))];
    let models = option::of(proptest::collection::vec(word(), 1..3));
    let labels = option::of(proptest::collection::btree_map(word(), free_text(), 1..3));
    let amounts = (1..1_000_000u64, 0..1_000_000u64, 0..1_000_000u64, 0..1_000_000u64);
    (amounts, gpus, models, labels).prop_map(
        |((cpu, memory, gpu_memory, disk), (gpus, gpu_share), models, labels)| Demand {
            cpu,
            memory,
            gpus,
            gpu_share,
            gpu_models: models.map(Into::into),
            gpu_memory,
            disk,
            node_labels: labels.map(Arc::new),
            ..Demand::DEFAULT
        },
    )
}

fn distribution() -> impl Strategy<Value = spec::Distribution> {
    prop_oneof![
        (1..9u32).prop_map(|n| spec::Distribution::PyTorch { process_count_per_instance: n }),
        (1..9u32, 0..9u32).prop_map(|(worker_count, parameter_server_count)| {
            spec::Distribution::TensorFlow { worker_count, parameter_server_count }
        }),
        (1..9u32).prop_map(|n| spec::Distribution::Mpi { process_count_per_instance: n }),
        (option::of(1..=u16::MAX), option::of(word()), option::of(any::<bool>())).prop_map(
            |(port, text, include_dashboard)| {
                spec::Distribution::Ray(spec::Ray {
                    port,
                    address: text.clone(),
                    include_dashboard,
                    dashboard_port: port.map(|port| port / 2 + 1),
                    head_node_additional_args: text.clone(),
                    worker_node_additional_args: text,
                })
            }
        ),
    ]
}

fn service() -> impl Strategy<Value = spec::Service> {
    (word(), any::<bool>(), option::of(any::<u16>()), words()).prop_map(
        |(kind, all_nodes, port, properties)| spec::Service { kind, all_nodes, port, properties },
    )
}

fn identity() -> impl Strategy<Value = spec::Identity> {
    prop_oneof![
        option::of(word()).prop_map(|client_id| spec::Identity::Managed { client_id }),
        Just(spec::Identity::UserIdentity),
        Just(spec::Identity::AmlToken),
    ]
}

prop_compose! {
    fn job()(
        (name, display_name, description, experiment) in
            (option::of(word()), option::of(free_text()), option::of(free_text()), word()),
        (tags, properties, variables) in (words(), words(), words()),
        (command, code, environment, compute) in
            ("[^\\x00 ]{1,30}x", option::of(code()), environment(), option::of(word())),
        (inputs, outputs) in (ports(input()), ports(output())),
        (resources, distribution, timeout) in
            (resources(), option::of(distribution()), option::of(1..1_000_000u64)),
        (job_tier, priority) in (option::of(word()), prop::sample::select(vec![
            spec::Priority::Low, spec::Priority::Medium, spec::Priority::High,
        ])),
        services in proptest::collection::btree_map(word(), service(), 0..2),
        identity in option::of(identity()),
        (max_attempts, backoff, memory_percent) in
            (1..10u32, 0..1000u64, option::of(100..1000u32)),
        on_node_loss in prop::sample::select(vec![
            spec::OnNodeLoss::Requeue, spec::OnNodeLoss::Keep,
        ]),
        idle_gpu in option::of((any::<bool>(), 1..10_000u64)),
        keep_failed in option::of(0..10_000u64),
    ) -> CommandJob {
        CommandJob {
            name: name.map(|name| JobName::new(&name).unwrap()),
            display_name,
            description,
            experiment_name: ExperimentName::new(&experiment).unwrap(),
            tags,
            properties,
            command,
            code,
            environment,
            compute: compute.map(|name| ComputeName::new(&name).unwrap()),
            inputs,
            outputs,
            environment_variables: variables,
            resources,
            distribution,
            limits: spec::Limits { timeout },
            queue: spec::QueueSettings { job_tier, priority },
            services,
            identity,
            retry: spec::Retry { max_attempts, backoff, memory_percent },
            on_node_loss,
            idle_gpu: idle_gpu.map(|(stops, after)| spec::IdleGpu {
                action: if stops { spec::IdleAction::Stop } else { spec::IdleAction::Notify },
                after,
            }),
            keep_failed,
        }
    }
}

proptest! {
    #[test]
    fn a_job_survives_the_wire(job in job()) {
        let bytes = prost::Message::encode_to_vec(&pb::JobSpec::from(&job));
        let wire: pb::JobSpec = prost::Message::decode(&bytes[..]).unwrap();
        prop_assert_eq!(CommandJob::try_from(wire).unwrap(), job);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = <pb::JobSpec as prost::Message>::decode(&bytes[..]) {
            let _ = CommandJob::try_from(wire);
        }
    }
}

/// The least that a client must send.
fn least() -> pb::CommandJob {
    pb::CommandJob {
        command: "true".to_owned(),
        experiment_name: "e".to_owned(),
        environment: Some(pb::Environment {
            source: Some(pb::environment::Source::Host(pb::HostEnvironment {})),
        }),
        ..Default::default()
    }
}

fn refused(change: impl FnOnce(&mut pb::CommandJob)) -> String {
    let mut job = least();
    change(&mut job);
    let kind = Some(pb::job_spec::Kind::Command(job));
    CommandJob::try_from(pb::JobSpec { kind }).unwrap_err().to_string()
}

#[test]
fn what_is_left_out_gets_azures_defaults() {
    let mut wire = least();
    wire.inputs.insert(
        "data".to_owned(),
        pb::Input {
            value: Some(pb::input::Value::Data(pb::input::Data {
                uri: Some(pb::DataUri {
                    form: Some(pb::data_uri::Form::Http("https://h/x".to_owned())),
                }),
                ..Default::default()
            })),
        },
    );
    wire.outputs.insert("model".to_owned(), pb::Output::default());
    let job = CommandJob::try_from(wire).unwrap();
    assert_eq!(job.name, None);
    assert_eq!(job.resources, spec::JobResources::default());
    assert_eq!(job.retry, spec::Retry::default());
    assert_eq!(job.queue.priority, spec::Priority::Medium);
    assert_eq!(job.on_node_loss, spec::OnNodeLoss::Requeue);
    let data = &job.inputs[&PortName::new("data").unwrap()];
    assert!(matches!(
        data,
        spec::Input::Data { kind: spec::DataKind::UriFolder, mode: spec::InputMode::RoMount, .. }
    ));
    let model = &job.outputs[&PortName::new("model").unwrap()];
    assert_eq!((model.kind, model.mode), (spec::DataKind::UriFolder, spec::OutputMode::RwMount));
}

#[test]
fn tensorflow_without_workers_has_one_on_each_instance() {
    let mut wire = least();
    wire.resources = Some(pb::Resources { instance_count: 3, ..Default::default() });
    wire.distribution = Some(pb::Distribution {
        kind: Some(pb::distribution::Kind::Tensorflow(Default::default())),
    });
    let job = CommandJob::try_from(wire).unwrap();
    assert_eq!(
        job.distribution,
        Some(spec::Distribution::TensorFlow { worker_count: 3, parameter_server_count: 0 })
    );
}

#[test]
fn errors_name_the_field() {
    assert_eq!(
        CommandJob::try_from(pb::JobSpec { kind: None }).unwrap_err().to_string(),
        "kind: is required, or is of a kind that this version does not know"
    );
    assert_eq!(
        refused(|job| job.name = "-x".to_owned()),
        "command.name: job name '-x' is not valid: use letters, digits, '-', '_' and '.', start \
         with a letter or digit, at most 255 characters"
    );
    assert!(refused(|job| job.environment = None).starts_with("command.environment: is required"));
    assert!(
        refused(|job| job.command = " ".to_owned()).starts_with("command.command: is required")
    );
    assert_eq!(
        refused(|job| job.command = "a\0b".to_owned()),
        "command.command: holds a NUL character; remove it"
    );
    assert!(refused(|job| job.command = "x".repeat(200_000)).contains("200000 bytes long"));
    assert_eq!(
        refused(|job| job.on_node_loss = 9),
        "command.on_node_loss: has the unknown value 9; the sender may be newer than the receiver"
    );
    assert_eq!(
        refused(|job| {
            let code = pb::code::Source::Snapshot(vec![1; 31].into());
            job.code = Some(pb::Code { source: Some(code) });
        }),
        "command.code.snapshot: not a content digest: expected 64 hexadecimal digits (32 bytes)"
    );
    let uri = pb::data_uri::Datastore { name: "a b".to_owned(), path: String::new() };
    let data = pb::input::Data {
        uri: Some(pb::DataUri { form: Some(pb::data_uri::Form::Datastore(uri)) }),
        ..Default::default()
    };
    assert!(
        refused(|job| {
            let value = Some(pb::input::Value::Data(data));
            job.inputs.insert("train".to_owned(), pb::Input { value });
        })
        .starts_with("command.inputs.train.data.uri.datastore.name: datastore name 'a b'")
    );
    assert!(
        refused(|job| {
            job.resources = Some(pb::Resources { gpus: 100_000, ..Default::default() });
        })
        .starts_with("command.resources.gpus: is 100000, and at most 1024")
    );
    for (resources, expected) in [
        (
            pb::Resources { gpus: 1, gpu_share_milli: 1000, ..Default::default() },
            "gpu_share_milli: is 1000, and at most 999",
        ),
        (
            pb::Resources { gpus: 2, gpu_share_milli: 500, ..Default::default() },
            "gpus: is 2, and at most 1",
        ),
        (
            pb::Resources { disk_mib: u64::MAX, ..Default::default() },
            "disk_mib: is 18446744073709551615, and at most",
        ),
        (
            pb::Resources { gpu_models: vec!["x".repeat(101)], ..Default::default() },
            "gpu_models: is 101 bytes long",
        ),
    ] {
        let told = refused(|job| job.resources = Some(resources.clone()));
        assert!(told.starts_with(&format!("command.resources.{expected}")), "{told}");
    }
    assert!(
        refused(|job| {
            job.services
                .insert("s".to_owned(), pb::Service { port: Some(70_000), ..Default::default() });
        })
        .starts_with("command.services.s.port: is 70000, and at most 65535")
    );
    for name in ["A=B", "A-B", "1A"] {
        let found = refused(|job| {
            job.environment_variables.insert(name.to_owned(), String::new());
        });
        let expected = format!("command.environment_variables.{name}: is not a valid environment");
        assert!(found.starts_with(&expected), "{found}");
    }
    assert!(
        refused(|job| {
            let inline =
                pb::InlineEnvironment { conda_json: Some("{".to_owned()), ..Default::default() };
            job.environment =
                Some(pb::Environment { source: Some(pb::environment::Source::Inline(inline)) });
        })
        .starts_with("command.environment.inline.conda_json: is not valid JSON")
    );
    assert_eq!(
        refused(|job| job.limits = Some(pb::Limits { timeout_s: Some(0) })),
        "command.limits.timeout_s: is 0, and at least 1 is needed"
    );
}

#[test]
fn status_words_are_azures() {
    for status in pb::JobStatus::ALL {
        assert_eq!(status.word().to_lowercase().parse(), Ok(status));
        assert_eq!(
            status.as_str_name().replace("JOB_STATUS_", "").replace('_', ""),
            status.word().to_uppercase()
        );
    }
    assert_eq!("cancelled".parse(), Ok(pb::JobStatus::Canceled));
    let error = "Done".parse::<pb::JobStatus>().unwrap_err().to_string();
    assert!(error.starts_with("'Done' is not a job status; use one of NotStarted, Queued,"));
}

proptest! {
    #[test]
    fn environments_come_back_as_they_were(
        (name, version) in (word(), option::of(word())),
        description in option::of("[^\\x00]{1,20}"),
        tags in words(),
        made_of in inline(),
    ) {
        let draft = Draft {
            name: AssetName::new(&name).unwrap(),
            version: version.map(|text| VersionName::new(&text).unwrap()),
            description,
            tags,
            environment: made_of,
        };
        let sent = crate::environment::v1::CreateEnvironmentRequest::from(&draft);
        prop_assert_eq!(Draft::try_from(sent).unwrap(), draft);
    }
}

proptest! {
    #[test]
    fn datastores_come_back_as_they_were(
        name in word(),
        description in option::of("[^\\x00]{1,20}"),
        (tags, properties) in (words(), words()),
        is_mount in any::<bool>(),
        path in "/[^\\x00]{1,20}",
    ) {
        let kind = if is_mount { FolderKind::Nfs } else { FolderKind::Local };
        let draft = datastore::Draft {
            name: DatastoreName::new(&name).unwrap(),
            description,
            tags,
            properties,
            source: Source::Folder(FolderSource { kind, path }),
        };
        let sent = crate::workspace::v1::DatastoreDraft::from(&draft);
        prop_assert_eq!(datastore::Draft::try_from(sent).unwrap(), draft);
    }
}

#[test]
fn a_datastore_names_the_field_that_is_wrong() {
    use crate::workspace::v1::{DatastoreDraft, LocalFolder, datastore_draft::Source};
    let local = |path: &str| Some(Source::Local(LocalFolder { path: path.to_owned() }));
    let good = DatastoreDraft { name: "d".to_owned(), source: local("/x"), ..Default::default() };
    let field = |draft: DatastoreDraft| datastore::Draft::try_from(draft).unwrap_err().field;
    assert_eq!(field(DatastoreDraft { name: "a b".to_owned(), ..good.clone() }), "name");
    assert_eq!(field(DatastoreDraft { source: None, ..good.clone() }), "source");
    assert_eq!(field(DatastoreDraft { source: local("\0"), ..good.clone() }), "local.path");
    let tags = (0..=1000).map(|n| (n.to_string(), String::new())).collect();
    assert_eq!(field(DatastoreDraft { tags, ..good }), "tags");
}

#[test]
fn a_draft_names_the_field_that_is_wrong() {
    use crate::environment::v1::CreateEnvironmentRequest;
    let good = CreateEnvironmentRequest {
        name: "e".to_owned(),
        content: Some(pb::InlineEnvironment::default()),
        ..Default::default()
    };
    let field = |change: &dyn Fn(&mut CreateEnvironmentRequest)| {
        let mut request = good.clone();
        change(&mut request);
        Draft::try_from(request).unwrap_err().field
    };
    assert_eq!(field(&|request| request.name = String::new()), "name");
    assert_eq!(field(&|request| request.version = "a b".to_owned()), "version");
    assert_eq!(field(&|request| request.content = None), "content");
    let conda = |request: &mut CreateEnvironmentRequest| {
        request.content =
            Some(pb::InlineEnvironment { conda_json: Some("{".to_owned()), ..Default::default() });
    };
    assert_eq!(field(&conda), "content.conda_json");
}

/// A job on two nodes whose second member is over.
fn on_two_nodes() -> atelier_core::job::Job {
    use atelier_core::id::{NodeName, Principal, SubmitSeq};
    use atelier_core::job::{Active, AttemptEnd, Exit, Job, Member, Phase, State, Tries};
    use atelier_core::time::Timestamp;

    let member = |name: &str| Member::placed(NodeName::new(name).unwrap(), Default::default());
    let end = AttemptEnd {
        exit: Some(Exit::Code(3)),
        problem: None,
        started_at: None,
        manifest: None,
        outputs: Vec::new(),
        log_bytes: 0,
        usage: None,
        survivors: 0,
    };
    let active = Active {
        attempt: atelier_core::id::AttemptNumber(1),
        epoch: atelier_core::id::Epoch(1),
        first: Member { phase: Phase::Running, ..member("a") },
        others: vec![Member { end: Some(Box::new(end)), ..member("b") }],
        assigned_at: Timestamp::from_millis(1),
        cancel: None,
        evict: None,
        failed: None,
        dismissed: false,
        yields_at: None,
    };
    Job {
        name: JobName::new("j").unwrap(),
        seq: SubmitSeq(1),
        spec: Arc::new(least().try_into().unwrap()),
        compute: ComputeName::new("local").unwrap(),
        created_by: Principal::new("ana").unwrap(),
        created_at: Timestamp::from_millis(1),
        tries: Tries::default(),
        state: State::Active(active),
        archived: false,
    }
}

#[test]
fn a_job_on_several_nodes_shows_its_members() {
    use atelier_core::job::State;
    let mut job = on_two_nodes();
    let shown = super::job(&job, super::JobDetails::default());
    let members: Vec<_> = shown
        .members
        .iter()
        .map(|member| (member.rank, member.node.as_str(), member.status(), member.exit_code))
        .collect();
    let expected =
        [(0, "a", pb::JobStatus::Running, None), (1, "b", pb::JobStatus::Failed, Some(3))];
    assert_eq!(members, expected);
    assert_eq!(shown.node, "a");
    if let State::Active(active) = &mut job.state {
        active.others.clear();
    }
    assert!(super::job(&job, super::JobDetails::default()).members.is_empty());
}

#[test]
fn credentials_come_whole_and_are_never_printed() {
    use atelier_core::datastore::{Proof, Secret, ServicePrincipal};

    let secret = || Secret::new("S3CR3T".to_owned());
    let principal = |proof| {
        Credentials::ServicePrincipal(ServicePrincipal {
            tenant_id: "t".to_owned(),
            client_id: "c".to_owned(),
            proof,
            authority_url: None,
            resource_url: None,
        })
    };
    for credentials in [
        Credentials::None,
        Credentials::Anonymous,
        Credentials::AccountKey(secret()),
        Credentials::SasToken(secret()),
        principal(Proof::ClientSecret(secret())),
        principal(Proof::Certificate { certificate: secret(), thumbprint: "x".to_owned() }),
        Credentials::S3Keys {
            access_key_id: "id".to_owned(),
            secret_access_key: secret(),
            session_token: Some(secret()),
        },
        Credentials::ServiceAccount(secret()),
    ] {
        let sent = crate::workspace::v1::DatastoreCredentials::from(&credentials);
        assert!(!format!("{sent:?} {:?}", sent.kind).contains("S3CR3T"), "{sent:?}");
        assert_eq!(Credentials::try_from(sent).unwrap(), credentials);
    }
}

#[test]
fn object_stores_come_as_they_were_sent() {
    let azure = || datastore::AzureStorage {
        account_name: "a".to_owned(),
        container: "c".to_owned(),
        endpoint: "core.windows.net".to_owned(),
        protocol: "abfss".to_owned(),
    };
    for source in [
        Source::AzureBlob(azure()),
        Source::AzureDataLakeGen2(azure()),
        Source::AzureFile(azure()),
        Source::S3 {
            bucket: "b".to_owned(),
            endpoint: Some("http://x".to_owned()),
            region: None,
            prefix: Some("p".to_owned()),
            path_style: true,
        },
        Source::Gcs { bucket: "b".to_owned(), prefix: None },
        Source::Http { url: "http://x".to_owned() },
    ] {
        let name = "d".parse().unwrap();
        let (description, tags, properties) = (None, [].into(), [].into());
        let draft = datastore::Draft { name, description, tags, properties, source };
        let sent = crate::workspace::v1::DatastoreDraft::from(&draft);
        assert_eq!(datastore::Draft::try_from(sent).unwrap(), draft);
    }
}
