//! What the members of an attempt are told of each other.

use serde_json::Value;

use super::*;

fn job(distribution: Option<Distribution>) -> CommandJob {
    use atelier_proto::job::v1 as pb;
    let host = pb::environment::Source::Host(pb::HostEnvironment {});
    let wire = pb::CommandJob {
        experiment_name: "e".to_owned(),
        command: "true".to_owned(),
        environment: Some(pb::Environment { source: Some(host) }),
        ..pb::CommandJob::default()
    };
    CommandJob { distribution, ..wire.try_into().unwrap() }
}

/// The variables of the member of this rank.
fn member(
    spec: &CommandJob,
    addresses: &[&str],
    rank: u32,
    epoch: u64,
) -> BTreeMap<String, String> {
    inheriting(spec, addresses, rank, epoch, &BTreeMap::new())
}

fn inheriting(
    spec: &CommandJob,
    addresses: &[&str],
    rank: u32,
    epoch: u64,
    inherited: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let (none, unset, texts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    variables(&Facts {
        spec,
        job: "j",
        attempt: 1,
        epoch,
        rank,
        addresses: &addresses,
        experiment_id: "1",
        workspace: "w",
        workspace_id: "i",
        http_url: "http://127.0.0.1:1",
        tracking_url: "http://127.0.0.1:2",
        authorities: None,
        token: "t",
        gpus: &[],
        folder: Path::new("/attempt"),
        work: Path::new("/attempt/work"),
        inputs: &unset,
        outputs: &texts,
        inherited,
        path: &[],
        environment: &none,
        own: &none,
    })
}

const PYTORCH: Distribution = Distribution::PyTorch { process_count_per_instance: 1 };

#[test]
fn members_are_told_of_each_other_as_azure_does() {
    let spec = job(Some(PYTORCH));
    let all = member(&spec, &["10.0.0.1", "10.0.0.2", "10.0.0.3"], 2, 5);
    for (name, value) in [
        ("AZUREML_NODE_COUNT", "3"),
        ("AZUREML_CR_NODE_RANK", "2"),
        ("AZ_BATCHAI_JOB_MASTER_NODE_IP", "10.0.0.1"),
        ("AZ_BATCH_HOST_LIST", "10.0.0.1,10.0.0.2,10.0.0.3"),
        ("AZ_BATCH_MASTER_NODE", &format!("10.0.0.1:{}", port_of(5, 0))),
        ("MASTER_ADDR", "10.0.0.1"),
        ("MASTER_PORT", &port_of(5, 0).to_string()),
        ("WORLD_SIZE", "3"),
        ("NODE_RANK", "2"),
        ("RANK", "2"),
        ("LOCAL_RANK", "0"),
    ] {
        assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[test]
fn who_is_alone_has_a_port_of_its_own_on_this_machine() {
    let spec = job(Some(PYTORCH));
    for addresses in [&[][..], &["10.0.0.1"]] {
        let all = member(&spec, addresses, 0, 77);
        for (name, value) in [
            ("AZUREML_NODE_COUNT", "1"),
            ("AZUREML_CR_NODE_RANK", "0"),
            ("AZ_BATCH_HOST_LIST", "127.0.0.1"),
            ("AZ_BATCH_MASTER_NODE", &format!("127.0.0.1:{}", port_of(77, 0))),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", &port_of(77, 0).to_string()),
            ("WORLD_SIZE", "1"),
            ("RANK", "0"),
        ] {
            assert_eq!(all[name], value, "{name}");
        }
    }
}

#[test]
fn ports_are_below_those_that_systems_hand_out_and_of_each_attempt() {
    let spec = job(Some(PYTORCH));
    let port = |epoch| {
        let all = member(&spec, &["a", "b"], 1, epoch);
        assert_eq!(all["MASTER_PORT"], member(&spec, &["a", "b"], 0, epoch)["MASTER_PORT"]);
        all["MASTER_PORT"].parse::<u16>().unwrap()
    };
    for epoch in [0, 1, 11_999, 12_000, 1_000_000, u64::MAX] {
        assert!((20_000..32_000).contains(&port(epoch)), "{epoch}");
        assert_ne!(port(epoch), port(epoch.wrapping_sub(1)), "{epoch}");
    }
}

/// The port of the `nth` member at an address, of an attempt of the workspace that [`member`] has.
fn port_of(epoch: u64, nth: u64) -> u64 {
    20_000 + (super::super::distribution::place("i", epoch) + nth * 1_009) % 12_000
}

/// Where servers at these addresses listen.
fn servers(addresses: &[&str]) -> Value {
    addresses.iter().map(|address| format!("{address}:{}", port_of(7, 0))).collect()
}

#[test]
fn workspaces_that_share_a_machine_count_from_places_of_their_own() {
    let place = super::super::distribution::place;
    assert_ne!(place("one", 1) % 12_000, place("other", 1) % 12_000);
    assert_eq!(place("one", 2), place("one", 1) + 1);
}

/// Everybody's `TF_CONFIG`.
fn tensorflow(addresses: &[&str], parameter_server_count: u32) -> Vec<Value> {
    let worker_count = addresses.len() as u32;
    let spec = job(Some(Distribution::TensorFlow { worker_count, parameter_server_count }));
    let config = |rank| member(&spec, addresses, rank, 7)["TF_CONFIG"].clone();
    (0..worker_count).map(|rank| serde_json::from_str(&config(rank)).unwrap()).collect()
}

#[test]
fn tensorflow_is_told_workers_and_parameter_servers() {
    let all = tensorflow(&["a", "b", "c"], 1);
    for config in &all {
        assert_eq!(config["environment"], "cloud");
        assert_eq!(config["cluster"]["worker"], servers(&["a", "b"]));
        assert_eq!(config["cluster"]["ps"], servers(&["c"]));
    }
    let tasks: Vec<&Value> = all.iter().map(|config| &config["task"]).collect();
    let expected = [("worker", 0), ("worker", 1), ("ps", 0)]
        .map(|(kind, index)| serde_json::json!({ "type": kind, "index": index }));
    assert_eq!(tasks, expected.iter().collect::<Vec<_>>());
    // Whoever is alone is on this machine, beside others who are.
    assert_eq!(tensorflow(&["a"], 0)[0]["cluster"]["worker"], servers(&["127.0.0.1"]));
    // Somebody has to work.
    assert_eq!(tensorflow(&["a", "b"], 9)[0]["cluster"]["worker"], servers(&["a"]));
}

#[test]
fn servers_at_one_address_have_ports_of_their_own() {
    let all = tensorflow(&["::1", "::1", "b"], 0);
    let servers = all[0]["cluster"]["worker"].as_array().unwrap();
    assert_eq!(servers[0], format!("[::1]:{}", port_of(7, 0)));
    assert_eq!(servers[1], format!("[::1]:{}", port_of(7, 1)));
    assert_eq!(servers[2], format!("b:{}", port_of(7, 0)));
}

#[test]
fn jobs_are_told_of_proxies_as_they_are_and_of_little_else() {
    let proxy = ("https_proxy", "http://me:secret@proxy:3128");
    let agents = [proxy, ("ATELIER_TOKEN", "t"), ("AWS_SECRET_ACCESS_KEY", "k"), ("LC_ALL", "C")];
    let agents = agents.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let told = inherited(agents.into_iter());
    assert_eq!(told[proxy.0], proxy.1);
    let names: Vec<&str> = told.keys().map(String::as_str).collect();
    assert_eq!(names, ["HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "https_proxy"]);
}

#[test]
fn mpirun_is_told_what_is_decided_already() {
    let spec = job(Some(Distribution::Mpi { process_count_per_instance: 2 }));
    let all = member(&spec, &["a"], 0, 7);
    assert_eq!(all["OMPI_MCA_hwloc_base_binding_policy"], "none");
    // Ranks are its own to give.
    assert!(!all.contains_key("MASTER_ADDR") && !all.contains_key("OMPI_COMM_WORLD_RANK"));
}

#[test]
fn processes_of_a_node_are_told_apart() {
    let spec = job(Some(Distribution::PyTorch { process_count_per_instance: 4 }));
    let all = member(&spec, &["a", "b", "c"], 1, 7);
    let told =
        [("WORLD_SIZE", "12"), ("LOCAL_WORLD_SIZE", "4"), ("RANK", "4"), ("LOCAL_RANK", "0")];
    for (name, value) in told {
        assert_eq!(all[name], value, "{name}");
    }
    let last = super::of_process(&spec, 2, 3);
    assert_eq!((last["RANK"].as_str(), last["LOCAL_RANK"].as_str()), ("11", "3"));
}

#[test]
fn what_is_logged_on_this_node_goes_by_no_proxy() {
    let spec = job(None);
    let of = |pairs: &[(&str, &str)]| {
        let inherited = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let all = inheriting(&spec, &[], 0, 1, &inherited.collect());
        assert_eq!(all["MLFLOW_TRACKING_URI"], "http://127.0.0.1:2");
        assert_eq!(all["AZUREML_SERVICE_ENDPOINT"], "http://127.0.0.1:1");
        ["no_proxy", "NO_PROXY"].map(|name| all.get(name).cloned().unwrap_or_default())
    };
    assert_eq!(of(&[]), ["", ""]);
    let proxy = ("http_proxy", "http://proxy:3128");
    assert_eq!(of(&[proxy]), ["127.0.0.1", "127.0.0.1"]);
    let both = "a.example,127.0.0.1";
    assert_eq!(of(&[proxy, ("no_proxy", "a.example")]), [both, both]);
    assert_eq!(of(&[proxy, ("NO_PROXY", "a.example")]), [both, both]);
    assert_eq!(of(&[("ALL_PROXY", "socks5://p"), ("NO_PROXY", "*")]), ["*", "*"]);
    assert_eq!(
        of(&[proxy, ("no_proxy", "127.0.0.1"), ("NO_PROXY", "b")]),
        ["127.0.0.1", "b,127.0.0.1"]
    );
}

#[test]
fn a_command_that_does_not_see_its_nodes_loopback_logs_to_the_daemon() {
    let engine = |kind, rootless| Runtime {
        kind,
        program: "/usr/bin/engine".into(),
        version: "1".to_owned(),
        rootless,
        folders: Vec::new(),
    };
    let alone = job(None);
    assert!(logs_here(&alone, 1, None));
    for (kind, rootless) in [(Kind::Podman, true), (Kind::Docker, false), (Kind::Apptainer, true)] {
        assert!(logs_here(&alone, 1, Some(&engine(kind, rootless))));
    }
    assert!(!logs_here(&alone, 1, Some(&engine(Kind::Docker, true))));
    let mpi = job(Some(Distribution::Mpi { process_count_per_instance: 2 }));
    assert!(logs_here(&mpi, 1, None) && !logs_here(&mpi, 2, None));
    let ray = job(Some(Distribution::Ray(Default::default())));
    assert!(logs_here(&ray, 1, None) && !logs_here(&ray, 2, None));
    assert!(logs_here(&job(Some(PYTORCH)), 2, None));
}
