//! Compute clusters and sizes files.

use proptest::prelude::*;

use super::schema::{compare, compare_page, table_of};
use super::*;
use crate::compute::{
    Cluster, CommandProvider, MAX_CLUSTER, NodeShape, Placement, Provider, SizeTable, Tier,
};
use crate::spec::compute::AMLCOMPUTE;

fn read(yaml: &str, sets: &[&str]) -> Result<ParsedCompute, Diagnostics> {
    let changes: Vec<Override> = sets.iter().map(|set| Override::parse(set).unwrap()).collect();
    parse_compute(yaml.as_bytes(), &origin(), &changes, &disk(), &SizeTable::builtin())
}

/// The cluster of a document that has to be good, and its warnings as [`short`] shows them.
#[track_caller]
fn good(yaml: &str) -> (Cluster, String) {
    match read(yaml, &[]) {
        Ok(ParsedCompute { cluster, warnings }) => {
            cluster.check().unwrap();
            (cluster, warnings.iter().map(short).collect::<Vec<_>>().join("\n"))
        }
        Err(errors) => panic!("refused:\n{errors}\nin\n{yaml}"),
    }
}

/// The cluster of a document that has to be good and without warnings.
#[track_caller]
fn quiet(yaml: &str) -> Cluster {
    let (cluster, warnings) = good(yaml);
    assert_eq!(warnings, "", "in\n{yaml}");
    cluster
}

/// `yaml` is refused with exactly these messages.
#[track_caller]
fn check(yaml: &str, expected: &str) {
    let found = match read(yaml, &[]) {
        Ok(parsed) => format!("accepted: {:?}", parsed.cluster),
        Err(errors) => errors.iter().map(short).collect::<Vec<_>>().join("\n"),
    };
    assert_eq!(found, expected, "for\n{yaml}");
}

#[track_caller]
fn check_sizes(yaml: &str, expected: &str) {
    let found = match parse_sizes(yaml.as_bytes(), &origin(), &disk()) {
        Ok(rows) => format!("accepted: {rows:?}"),
        Err(errors) => errors.iter().map(short).collect::<Vec<_>>().join("\n"),
    };
    assert_eq!(found, expected, "for\n{yaml}");
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn every_default() {
    let cluster = quiet("name: c");
    assert_eq!(cluster.name.as_str(), "c");
    assert_eq!((cluster.description, cluster.location), (None, None));
    assert!(cluster.tags.is_empty());
    assert_eq!(cluster.size, "STANDARD_DS3_v2");
    let node = NodeShape {
        cpu: 4000,
        memory: 14 << 10,
        disk: 28 << 10,
        gpus: 0,
        gpu_model: None,
        gpu_memory: 0,
    };
    assert_eq!(cluster.node, node);
    assert_eq!((cluster.min_instances, cluster.max_instances), (0, 4));
    assert_eq!(cluster.idle_time_before_scale_down, 120);
    assert_eq!((cluster.tier, cluster.placement), (Tier::Dedicated, Placement::Exclusive));
    assert_eq!(cluster.provider, Provider::Local);

    let least = r#"{"name": "c", "size": "x", "node": {"cpu": 1000, "memory": 1024}}"#;
    let from_wire: Cluster = serde_json::from_str(least).unwrap();
    assert_eq!(from_wire, Cluster::new(from_wire.name.clone(), "x", from_wire.node.clone()));
    from_wire.check().unwrap();
    let usual: CommandProvider =
        serde_json::from_str(r#"{"create": ["a"], "delete": ["b"]}"#).unwrap();
    assert_eq!((usual.list, usual.timeout, usual.retries), (None, 600, 3));
}

/// The documents of Azure's reference: minimal, basic, location, low priority, SSH, identity.
#[test]
fn clusters_as_azure_documents_them() {
    const SCHEMA: &str =
        "$schema: https://azuremlschemas.azureedge.net/latest/amlCompute.schema.json \n";
    let minimal = quiet(&format!("{SCHEMA}name: minimal\ntype: amlcompute\n"));
    assert_eq!(minimal, quiet("name: minimal"));

    let scaling = "min_instances: 0\nmax_instances: 2\nidle_time_before_scale_down: 120\n";
    let usual = format!("type: amlcompute\nsize: STANDARD_DS3_v2\n{scaling}");
    let basic = quiet(&format!("{SCHEMA}name: basic\n{usual}"));
    assert_eq!((basic.size.as_str(), basic.max_instances), ("STANDARD_DS3_v2", 2));

    let located = quiet(&format!("{SCHEMA}name: located\n{usual}location: westus\n"));
    assert_eq!(located.location.as_deref(), Some("westus"));

    let cheap = quiet(&format!("{SCHEMA}name: cheap\n{usual}tier: low_priority\n"));
    assert_eq!(cheap.tier, Tier::LowPriority);

    let (ssh, warnings) = good(&format!(
        "{SCHEMA}name: ssh\n{usual}ssh_settings:\n  admin_username: ada\n  admin_password: secret\n"
    ));
    assert_eq!(ssh.max_instances, 2);
    assert_eq!(
        warnings,
        "8:1: 'ssh_settings' is ignored: accounts are those of the node, and passwords are not kept"
    );
    assert!(!serde_json::to_string(&ssh).unwrap().contains("secret"));

    let (_, warnings) = good(&format!(
        "{SCHEMA}name: identity\n{usual}identity:\n  type: user_assigned\n  \
         user_assigned_identities: ['/subscriptions/s/…/i']\n"
    ));
    assert!(warnings.starts_with("8:1: 'identity' is ignored: "), "{warnings}");
}

#[test]
fn every_key_is_accepted() {
    let (cluster, warnings) = good(
        "
$schema: https://azuremlschemas.azureedge.net/latest/amlCompute.schema.json
type: AmlCompute
name: gpu-cluster
description: for training
tags: {team: plants, year: 2024}
location: local
size: standard_nc6s_V3
tier: LowPriority
min_instances: 1
max_instances: '8'
idle_time_before_scale_down: 0
ssh_public_access_enabled: true
ssh_settings: {admin_username: a, ssh_key_value: k}
network_settings: {vnet_name: v, subnet: s}
enable_node_public_ip: false
identity: {type: SystemAssigned, principal_id: p, tenant_id: t}
placement: Shared
provider: {type: local}
id: x
resource_id: x
resourceGroup: g
created_on: 2024-01-01
provisioning_state: Succeeded
provisioning_errors: []
",
    );
    assert_eq!(
        warnings,
        "13:1: 'ssh_public_access_enabled' is ignored: who may log in to a node is decided on the node\n\
         14:1: 'ssh_settings' is ignored: accounts are those of the node, and passwords are not kept\n\
         15:1: 'network_settings' is ignored: virtual networks are Azure's; nodes reach the daemon by their own network\n\
         16:1: 'enable_node_public_ip' is ignored: a node's addresses are its own\n\
         17:1: 'identity' is ignored: managed identities are Azure's; jobs have a token of their own"
    );
    assert_eq!(cluster.size, "STANDARD_NC6s_v3");
    assert_eq!(cluster.node.gpu_model.as_deref(), Some("NVIDIA V100"));
    assert_eq!((cluster.min_instances, cluster.max_instances), (1, 8));
    assert_eq!(cluster.idle_time_before_scale_down, 0);
    assert_eq!((cluster.tier, cluster.placement), (Tier::LowPriority, Placement::Shared));
    assert_eq!(cluster.tags["year"], "2024");
    let json = serde_json::to_string(&cluster).unwrap();
    assert_eq!(serde_json::from_str::<Cluster>(&json).unwrap(), cluster);
    assert_eq!(quiet("name: c\ntier: low-priority\n").tier, Tier::LowPriority);
}

#[test]
fn overrides_come_before_the_check() {
    let parsed = read("size: STANDARD_F2s_v2\nmax_instances: 0\n", &["name=c", "max_instances=7"]);
    let cluster = parsed.unwrap().cluster;
    assert_eq!((cluster.name.as_str(), cluster.max_instances), ("c", 7));
    let errors = read("name: c\n", &["min_instances=9"]).unwrap_err().to_string();
    assert_eq!(
        errors,
        "--set min_instances=9: 'min_instances' is 9, more than 'max_instances', which is 4\n  \
         help: write 'max_instances: 9' or more, or 'min_instances: 4' or less"
    );
}

#[test]
fn providers() {
    let provider = |yaml: &str| quiet(&format!("name: c\nprovider: {yaml}\n")).provider;
    assert_eq!(provider("local"), Provider::Local);
    assert_eq!(provider("Joined"), Provider::Joined);
    assert_eq!(provider("{type: joined}"), Provider::Joined);
    assert_eq!(
        provider(
            "{type: command, create: './add-node --name \"big one\"', delete: ./remove-node, \
             list: [./list-nodes, -v], timeout: 5m, retries: 0}"
        ),
        Provider::Command(CommandProvider {
            create: vec!["./add-node".to_owned(), "--name".to_owned(), "big one".to_owned()],
            delete: words("./remove-node"),
            list: Some(words("./list-nodes -v")),
            timeout: 300,
            retries: 0,
        })
    );
    let least = provider("{type: command, create: a, delete: b}");
    let Provider::Command(CommandProvider { list, timeout, retries, .. }) = &least else {
        panic!("{least:?}")
    };
    assert_eq!((list, *timeout, *retries), (&None, 600, 3));
    let json = serde_json::to_string(&least).unwrap();
    assert!(json.starts_with(r#"{"type":"command","create":["a"],"#), "{json}");
    assert_eq!(serde_json::from_str::<Provider>(&json).unwrap(), least);

    let (_, warnings) = good("name: c\nprovider: joined\nmax_instances: 5\n");
    assert_eq!(
        warnings,
        "3:16: 'max_instances' is recorded only: machines of a joined cluster come by themselves"
    );
}

#[test]
fn labels_of_the_nodes_that_a_cluster_adds() {
    let cluster = quiet("name: c\nnode_labels: {zone: b, team/gpu: 7}\n");
    let labels = [("team/gpu", "7"), ("zone", "b")];
    assert_eq!(cluster.node_labels, labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    check(
        "name: c\nnode_labels: {a b: x}\n",
        &format!("2:20: 'a b: x' in 'node_labels' is not a label | {}", crate::node::LABEL_FORM),
    );
    check(
        "name: c\nprovider: joined\nnode_labels: {zone: b}\n",
        "3:14: 'node_labels' cannot be said of a joined cluster: its machines say their own | \
         remove it, and start the agents with '--label KEY=VALUE'",
    );
    let many: Vec<String> = (0..65).map(|at| format!("k{at}: x")).collect();
    check(
        &format!("name: c\nnode_labels: {{{}}}\n", many.join(", ")),
        "2:14: 'node_labels' has 65 labels; at most 64 are allowed | write fewer",
    );
}

#[test]
fn wrong_providers() {
    let refused =
        |yaml: &str, expected: &str| check(&format!("name: c\nprovider: {yaml}\n"), expected);
    let missing = "write 'provider: {type: command, create: \"./add-node\", delete: \
                   \"./remove-node\"}'";
    refused(
        "command",
        &format!(
            "2:11: the provider has no 'create' command | {missing}\n\
             2:11: the provider has no 'delete' command | {missing}"
        ),
    );
    refused(
        "{type: command, create: a}",
        &format!("2:11: the provider has no 'delete' command | {missing}"),
    );
    refused(
        "{create: a, delete: b}",
        "2:11: 'provider' has no 'type' | add 'type:' with one of local, joined, command",
    );
    refused(
        "locl",
        "2:11: 'provider' cannot be 'locl' | did you mean 'local'? (known: local, joined, command)",
    );
    refused(
        "[local]",
        "2:11: 'provider': expected one of local, joined, command, or a mapping (a provider), found a list",
    );
    refused(
        "{type: joined, create: a}",
        "2:26: unknown field 'create' in a joined provider | known fields: type",
    );
    let program = "write the program and its arguments, for example './add-node --size big'";
    refused(
        "{type: command, create: '', delete: [], list: ' '}",
        &format!(
            "2:35: 'provider.create' names no program | {program}\n\
             2:47: 'provider.delete' names no program | {program}\n\
             2:57: 'provider.list' names no program | {program}"
        ),
    );
    refused(
        "{type: command, create: \"a 'b\", delete: b}",
        "2:35: 'provider.create': a quote is not closed | close it, or write the words as a list",
    );
    refused(
        "{type: command, create: a, delete: b, timeout: 0}",
        "2:58: 'provider.timeout' is out of range: found 0 | from 1 to 604800",
    );
    refused(
        "{type: command, create: a, delete: b, timeout: .nan}",
        "2:58: 'provider.timeout' must be a number, found nan",
    );
    refused(
        "{type: command, create: a, delete: b, retries: -1}",
        "2:58: 'provider.retries' is out of range: expected a whole number from 0 to 1000, found -1",
    );
}

#[test]
fn other_kinds() {
    let help = "write a cluster with 'type: amlcompute', a 'size' and 'max_instances'";
    for (kind, name) in [
        ("computeinstance", "compute instances"),
        ("ComputeInstance", "compute instances"),
        ("kubernetes", "Kubernetes computes"),
        ("virtualmachine", "attached virtual machines"),
        ("synapsespark", "Synapse Spark pools"),
    ] {
        check(
            &format!("name: c\ntype: {kind}\n"),
            &format!("2:7: {name} are not supported yet; compute clusters are | {help}"),
        );
    }
    check(
        "$schema: https://azuremlschemas.azureedge.net/latest/computeInstance.schema.json\nname: c\n",
        &format!("1:10: compute instances are not supported yet; compute clusters are | {help}"),
    );
    check(
        "name: c\ntype: amlcompte\n",
        "2:7: there is no compute type 'amlcompte' | did you mean 'amlcompute'?",
    );
    check(
        "name: c\ntype: kubernets\n",
        "2:7: there is no compute type 'kubernets' | 'kubernetes' is known, but only 'amlcompute' is supported yet",
    );
    check(
        "name: c\ntype: command\n",
        "2:7: there is no compute type 'command' | write 'type: amlcompute'",
    );
    check(
        "name: c\ntype: 5\n",
        "2:7: 'type': expected text, found the whole number 5 | quote it if it is meant as text: '5'",
    );
    check(
        "- a\n",
        "1:1: expected a mapping, found a list | write 'key: value' lines, for example 'name: my-cluster'",
    );
}

#[test]
fn names_and_keys() {
    check(
        "type: amlcompute\n",
        "1:1: the cluster has no 'name' | write how jobs call it, for example 'name: my-cluster'",
    );
    check(
        "name: 1st\n",
        "1:7: '1st' is not a valid compute name | use letters, digits, '-' and '_', start with a letter, at most 64 characters",
    );
    check(
        "name: c\nmax_instance: 3\n",
        "2:1: unknown field 'max_instance' in a compute cluster | did you mean 'max_instances'?",
    );
    check(
        "name: c\nscale_settings: {max_node_count: 3}\n",
        "2:1: 'scale_settings' cannot be used here | write min_instances, max_instances and idle_time_before_scale_down",
    );
    check(
        "name: c\ncpus: 3\n",
        "2:1: unknown field 'cpus' in a compute cluster | 'cpus' belongs under 'resources'",
    );
    check("name: c\ntier: spot\n", "2:7: 'tier' cannot be 'spot' | known: dedicated, low_priority");
    check(
        "name: c\nplacement: share\n",
        "2:12: 'placement' cannot be 'share' | did you mean 'shared'? (known: exclusive, shared)",
    );
    check(
        "name: c\nssh_settings: {user: a}\n",
        "2:16: unknown field 'user' in SSH settings | known fields: admin_username, admin_password, ssh_key_value",
    );
}

#[test]
fn counts() {
    let expected = format!("expected a whole number from 1 to {MAX_CLUSTER}");
    for (written, found) in [("0", "0"), ("-3", "-3"), ("10001", "10001"), ("1e30", "")] {
        let message = match found {
            "" => format!("2:16: 'max_instances': {expected}, found the text '1e30'"),
            _ => format!("2:16: 'max_instances' is out of range: {expected}, found {found}"),
        };
        check(&format!("name: c\nmax_instances: {written}\n"), &message);
    }
    for (written, found) in [
        (".nan", "'.nan', which is no number"),
        (".inf", "the number inf (from '.inf')"),
        ("1.5", "the number 1.5"),
        ("many", "the text 'many'"),
        ("yes", "the boolean True (from 'yes')"),
        ("[1]", "a list"),
    ] {
        check(
            &format!("name: c\nmax_instances: {written}\n"),
            &format!("2:16: 'max_instances': {expected}, found {found}"),
        );
    }
    check(
        "name: c\nmin_instances: -1\n",
        "2:16: 'min_instances' is out of range: expected a whole number from 0 to 10000, found -1",
    );
    check(
        "name: c\nidle_time_before_scale_down: -1\n",
        "2:30: 'idle_time_before_scale_down' is out of range: expected a whole number from 0 to 315360000, found -1",
    );
    check(
        "name: c\nidle_time_before_scale_down: 2m\n",
        "2:30: 'idle_time_before_scale_down': expected a whole number from 0 to 315360000, found the text '2m'",
    );
    check(
        "name: c\nmax_instances: 2\nmin_instances: 3\n",
        "3:16: 'min_instances' is 3, more than 'max_instances', which is 2 | write 'max_instances: 3' or more, or 'min_instances: 2' or less",
    );
}

#[test]
fn sizes_and_resources() {
    let remedy = "add it to the sizes file, or say what a node offers: 'resources: {cpus: 8, memory: 32GiB}'";
    check(
        "name: c\nsize: Standard_NC6s_v33\n",
        &format!(
            "2:7: there is no size 'Standard_NC6s_v33' | did you mean STANDARD_NC6s_v3 or \
             STANDARD_NC6s_v2? If not, {remedy}"
        ),
    );
    check(
        "name: c\nsize: n1-standard-4\n",
        &format!("2:7: there is no size 'n1-standard-4' | {remedy}"),
    );
    let box_of_eight =
        "{cpus: 8, memory: 32Gi, disk: 100Gi, gpus: 2, gpu_model: NVIDIA A100, gpu_memory: 80Gi}";
    let node = NodeShape {
        cpu: 8000,
        memory: 32 << 10,
        disk: 100 << 10,
        gpus: 2,
        gpu_model: Some("NVIDIA A100".to_owned()),
        gpu_memory: 80 << 10,
    };
    let cluster = quiet(&format!("name: c\nresources: {box_of_eight}\n"));
    assert_eq!((cluster.size.as_str(), &cluster.node), ("custom", &node));
    let cluster = quiet(&format!("name: c\nsize: big\nresources: {box_of_eight}\n"));
    assert_eq!((cluster.size.as_str(), &cluster.node), ("big", &node));
    let (cluster, warnings) =
        good(&format!("name: c\nsize: standard_ds3_v2\nresources: {box_of_eight}\n"));
    assert_eq!((cluster.size.as_str(), &cluster.node), ("STANDARD_DS3_v2", &node));
    assert_eq!(
        warnings,
        "2:7: 'STANDARD_DS3_v2' is a name only: 'resources' says what the nodes offer"
    );

    let refused =
        |yaml: &str, expected: &str| check(&format!("name: c\nresources: {yaml}\n"), expected);
    let example = "write for example 'cpus: 8' and 'memory: 32GiB'";
    refused(
        "{gpus: 1}",
        &format!(
            "2:12: 'resources' has no 'cpus' | {example}\n\
             2:12: 'resources' has no 'memory' | {example}"
        ),
    );
    refused(
        "{cpus: .nan, memory: 32}",
        "2:19: 'resources.cpus' must be a number, found nan\n\
         2:33: 'resources.memory' has no unit: write for example 4GiB or 512MiB, found '32'",
    );
    refused(
        "{cpus: -1, memory: -1Gi, disk: -1Gi, gpus: -1}",
        "2:55: 'resources.gpus' is out of range: expected a whole number from 0 to 1024, found -1",
    );
    refused(
        "{cpus: -1, memory: -1Gi, disk: -1Gi}",
        "2:19: 'resources.cpus' must be more than 0, found -1\n\
         2:31: 'resources.memory' must be more than 0, found -1Gi\n\
         2:43: 'resources.disk' must be more than 0, found -1Gi",
    );
    refused(
        "{cpus: 1, memory: 1Gi, gpus: 0.5}",
        "2:41: 'resources.gpus': expected a whole number from 0 to 1024, found the number 0.5",
    );
    refused(
        "{cpus: 1, memory: 1Gi, gpu_model: A100}",
        "2:46: 'resources.gpu_model' is given, but there are no GPUs | write how many: 'gpus: 1', or remove 'gpu_model'",
    );
    check(
        "name: c\nsize: a b\nresources: {cpus: 1, memory: 1Gi}\n",
        "2:7: 'a b' is not a size's name | use letters, digits, '-', '_' and '.', start with a letter or digit, at most 128 characters",
    );
}

#[test]
fn what_a_client_of_its_own_may_send() {
    let mut cluster = quiet("name: c");
    cluster.min_instances = 5;
    cluster.max_instances = 0;
    cluster.idle_time_before_scale_down = u64::MAX;
    cluster.size = String::new();
    cluster.node = NodeShape {
        cpu: 0,
        memory: 0,
        disk: u64::MAX,
        gpus: u32::MAX,
        gpu_model: Some("a\0".to_owned()),
        gpu_memory: u64::MAX,
    };
    cluster.provider = Provider::Command(CommandProvider {
        create: Vec::new(),
        delete: vec![String::new()],
        list: Some(Vec::new()),
        timeout: 0,
        retries: u32::MAX,
    });
    let errors = cluster.check().unwrap_err();
    let fields: Vec<&str> =
        errors.iter().filter_map(|d| d.place.as_ref()).map(|place| place.path.as_str()).collect();
    assert_eq!(
        fields,
        [
            "size",
            "resources.cpus",
            "resources.memory",
            "resources.disk",
            "resources.gpus",
            "resources.gpu_memory",
            "resources.gpu_model",
            "max_instances",
            "idle_time_before_scale_down",
            "provider.create",
            "provider.delete",
            "provider.list",
            "provider.timeout",
            "provider.retries",
        ]
    );
}

#[test]
fn a_sizes_file() {
    let yaml = "
sizes:
  my-box: {cpus: 8, memory: 32Gi, disk: 100Gi, gpus: 1, gpu_model: NVIDIA A100, gpu_memory: 80Gi}
  STANDARD_DS3_v2: {cpus: 2, memory: 4Gi}
";
    let rows = parse_sizes(yaml.as_bytes(), &origin(), &disk()).unwrap();
    let table = SizeTable::builtin().with(rows);
    let parse = |yaml: &str| parse_compute(yaml.as_bytes(), &origin(), &[], &disk(), &table);
    let cluster = parse("name: c\nsize: MY-BOX\n").unwrap().cluster;
    assert_eq!(cluster.size, "my-box");
    assert_eq!(
        cluster.node.to_string(),
        "8 CPU, 32 GiB memory, 100 GiB disk, 1 × NVIDIA A100 (80 GiB)"
    );
    let cluster = parse("name: c\n").unwrap().cluster;
    assert_eq!(cluster.node.to_string(), "2 CPU, 4 GiB memory");
}

#[test]
fn wrong_sizes_files() {
    let example = "sizes: {my-box: {cpus: 8, memory: 32GiB}}";
    check_sizes(
        "my-box: {cpus: 8}\n",
        "1:1: unknown field 'my-box' in a sizes file | known fields: sizes",
    );
    check_sizes(
        "sizes:\n",
        &format!("1:1: the file has no 'sizes' | write for example '{example}'"),
    );
    check_sizes(
        "- a\n",
        &format!(
            "1:1: expected a mapping, found a list | write 'key: value' lines, for example '{example}'"
        ),
    );
    let needed = "write for example 'cpus: 8' and 'memory: 32GiB'";
    check_sizes(
        "sizes:\n  a: {cpus: 1}\n  b:\n",
        &format!(
            "2:6: 'sizes.a' has no 'memory' | {needed}\n\
             3:4: 'sizes.b' has no 'cpus' | {needed}\n\
             3:4: 'sizes.b' has no 'memory' | {needed}"
        ),
    );
    check_sizes(
        "sizes:\n  a b: {cpus: 1, memory: 1Gi}\n  x: {cpus: 1, memory: 1Gi}\n  X: {cpus: 1, memory: 0Gi}\n",
        "2:3: 'a b' is not a size's name | use letters, digits, '-', '_' and '.', start with a letter or digit, at most 128 characters\n\
         4:3: 'X' is the same size as 'x' | case does not count in a size's name: remove one of them\n\
         4:24: 'sizes.X.memory' must be more than 0, found 0Gi",
    );
    check_sizes(
        "sizes: {a: {cpu: 1}}\n",
        "1:13: unknown field 'cpu' in what a node offers | did you mean 'cpus'?",
    );
}

#[test]
fn the_schema_and_the_documentation_have_the_keys_of_the_table() {
    let schema = compute_schema();
    compare(&schema, &AMLCOMPUTE);
    assert_eq!(schema["title"], "Atelier compute cluster");
    assert_eq!(schema["required"], serde_json::json!(["name"]));
    let undocumented = table_of(&AMLCOMPUTE)
        .into_iter()
        .find(|(_, fields)| fields.iter().any(|f| f.doc.is_empty()));
    assert!(undocumented.is_none());
    compare_page("compute-yaml.md", "compute/fields.rs", &AMLCOMPUTE);
}

const VALUES: &[&str] = &[
    "x",
    "''",
    "-1",
    "0",
    "3",
    "1.5",
    ".nan",
    "1e999",
    "99999999999999999999",
    "yes",
    "2024-01-01",
    "[a, 'b c']",
    "[null]",
    "{a: b}",
    "{type: command, create: a, delete: '\"', list: []}",
    "{type: joined}",
    "{cpus: 1, memory: 1Gi}",
    "shared",
    "standard_f2s_v2",
    "é",
];

proptest! {
    /// Every key with every value is read or refused without a panic, and what is read holds on
    /// the wire, too.
    #[test]
    fn any_values_of_any_keys(
        pairs in prop::collection::btree_map(
            0..AMLCOMPUTE.fields.len(),
            prop::sample::select(VALUES),
            0..6,
        )
    ) {
        let mut yaml = String::new();
        for (at, value) in pairs {
            yaml.push_str(&format!("{}: {value}\n", AMLCOMPUTE.fields[at].key));
        }
        match read(&yaml, &[]) {
            Ok(parsed) => {
                prop_assert!(parsed.cluster.check().is_ok(), "{yaml}");
                let json = serde_json::to_string(&parsed.cluster).unwrap();
                prop_assert_eq!(serde_json::from_str::<Cluster>(&json).unwrap(), parsed.cluster);
            }
            Err(errors) => prop_assert!(!errors.to_string().is_empty()),
        }
        let _ = parse_sizes(format!("sizes:\n  a: {{{}}}", yaml.replace('\n', ", ")).as_bytes(), &origin(), &disk());
    }
}

#[test]
fn containment_is_strict_or_as_good_as_can_be() {
    use crate::compute::Containment;
    assert_eq!(quiet("name: c\n").containment, Containment::BestEffort);
    assert_eq!(quiet("name: c\ncontainment: best_effort\n").containment, Containment::BestEffort);
    assert_eq!(quiet("name: c\ncontainment: strict\n").containment, Containment::Strict);
}
