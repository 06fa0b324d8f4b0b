//! Every key of a compute cluster and of a sizes file, once.

use super::super::fields::{SCHEMA, field};
use super::super::limits;
use super::super::shape::{Field, Object, Shape, Support};
use crate::compute::MAX_CLUSTER;
use Shape::{
    Any, Bool, List, Literal, LiteralOrNull, Map, OneOf, Quantity, Tagged, Text, Whole, Word,
};
use Support::{Dropped, Extends, Ignored, Recorded, Refused, Runs, Unused};

pub(super) const COMPUTE_TYPES: [&str; 1] = ["amlcompute"];
pub(super) const TIERS: [&str; 2] = ["dedicated", "low_priority"];
pub(super) const PLACEMENTS: [&str; 2] = ["exclusive", "shared"];
pub(super) const CONTAINMENTS: [&str; 2] = ["best_effort", "strict"];
pub(super) const PROVIDERS: [&str; 3] = ["local", "joined", "command"];
const IDENTITIES: [&str; 2] = ["system_assigned", "user_assigned"];

/// Kinds of compute that are known and not supported, by `type`, with their names in words.
pub(super) const OTHER_COMPUTES: [(&str, &str); 4] = [
    ("computeinstance", "compute instances"),
    ("kubernetes", "Kubernetes computes"),
    ("virtualmachine", "attached virtual machines"),
    ("synapsespark", "Synapse Spark pools"),
];

/// The whole document.
pub(in crate::spec) static AMLCOMPUTE: Object = Object {
    what: "a compute cluster",
    fields: &[
        SCHEMA,
        field("type", Word(&COMPUTE_TYPES), Runs, "amlcompute", "The kind of compute."),
        field("name", Text, Runs, "required", "The cluster's name, unique in the workspace."),
        field("description", Text, Recorded, "", "What the cluster is for."),
        field("tags", Map(&LiteralOrNull), Recorded, "", "Key-value pairs."),
        field("location", Text, Recorded, "", "Azure's region; the nodes are where they are."),
        field(
            "size",
            Text,
            Runs,
            "STANDARD_DS3_v2",
            "What each node offers, by the name of an Azure VM size or of a row of the sizes file, \
             in any case.",
        ),
        field(
            "tier",
            Word(&TIERS),
            Runs,
            "dedicated",
            "Azure's VM priority: whether nodes may be taken away. Provider programs are told, and a \
             machine of a low_priority cluster that is gone counts as preempted.",
        ),
        field(
            "min_instances",
            Whole(0, MAX_CLUSTER as i64),
            Runs,
            "0",
            "Nodes that are kept even when there is no work.",
        ),
        field("max_instances", Whole(1, MAX_CLUSTER as i64), Runs, "4", "Nodes at most."),
        field(
            "idle_time_before_scale_down",
            Whole(0, limits::MAX_SECONDS as i64),
            Runs,
            "120",
            "Seconds without work after which a node above the minimum is given up.",
        ),
        field(
            "ssh_public_access_enabled",
            Bool,
            Ignored("who may log in to a node is decided on the node"),
            "",
            "Whether nodes take SSH connections from outside.",
        ),
        field(
            "ssh_settings",
            Shape::Object(&SSH),
            Ignored("accounts are those of the node, and passwords are not kept"),
            "",
            "The account to log in with.",
        ),
        field(
            "network_settings",
            Shape::Object(&NETWORK),
            Ignored("virtual networks are Azure's; nodes reach the daemon by their own network"),
            "",
            "The virtual network of the nodes.",
        ),
        field(
            "enable_node_public_ip",
            Bool,
            Ignored("a node's addresses are its own"),
            "",
            "Whether nodes have public addresses.",
        ),
        field(
            "identity",
            Shape::Object(&IDENTITY),
            Ignored("managed identities are Azure's; jobs have a token of their own"),
            "",
            "As whom the nodes reach Azure's services.",
        ),
        field(
            "placement",
            Word(&PLACEMENTS),
            Extends,
            "exclusive",
            "One job a node, as in Azure, or as many as fit by what they ask for.",
        ),
        field(
            "containment",
            Word(&CONTAINMENTS),
            Extends,
            "best_effort",
            "What keeps jobs apart: whatever each node's machine allows, or strict: only nodes that hold \
             jobs to their memory, processes and CPU, isolate them, and keep them from cloud metadata and \
             the daemon's control port.",
        ),
        field(
            "provider",
            OneOf(&[Word(&PROVIDERS), Tagged("a provider", &PROVIDER_KINDS)]),
            Extends,
            "local",
            "Who adds and removes nodes: local (the daemon, on its own machine), joined (nobody: \
             machines join by themselves), or your own commands.",
        ),
        field(
            "node_labels",
            Map(&Literal),
            Extends,
            "",
            "Labels of each node that the cluster adds, for jobs that ask for them \
             (resources.node_labels). Not for a joined cluster, whose agents say their own. Fixed \
             when the cluster is made.",
        ),
        field(
            "resources",
            Shape::Object(&NODE),
            Extends,
            "those of the size",
            "What each node offers, in place of what the size stands for.",
        ),
        field(
            "scale_settings",
            Any,
            Refused("write min_instances, max_instances and idle_time_before_scale_down"),
            "",
            "A key of the REST API.",
        ),
        field("id", Any, Dropped, "", "Written by Azure's tools."),
        field("resource_id", Any, Dropped, "", "Written by Azure's tools."),
        field("resourceGroup", Any, Dropped, "", "Written by Azure's tools."),
        field("created_on", Any, Dropped, "", "Written by Azure's tools."),
        field("provisioning_state", Any, Dropped, "", "Written by Azure's tools."),
        field("provisioning_errors", Any, Dropped, "", "Written by Azure's tools."),
    ],
};

static SSH: Object = Object {
    what: "SSH settings",
    fields: &[
        field("admin_username", Text, Unused, "", "The account's name."),
        field("admin_password", Text, Unused, "", "Its password."),
        field("ssh_key_value", Text, Unused, "", "Its public key."),
    ],
};

static NETWORK: Object = Object {
    what: "network settings",
    fields: &[
        field("vnet_name", Text, Unused, "", "The virtual network."),
        field("subnet", Text, Unused, "", "The subnet's name or id."),
    ],
};

static IDENTITY: Object = Object {
    what: "an identity",
    fields: &[
        field("type", Word(&IDENTITIES), Unused, "", "Which kind."),
        field("user_assigned_identities", List(&Any), Unused, "", "The identities' ids."),
        field("principal_id", Any, Dropped, "", "Written by Azure's tools."),
        field("tenant_id", Any, Dropped, "", "Written by Azure's tools."),
    ],
};

const PROVIDER_TYPE: Field = field("type", Text, Extends, "required", "Who.");

static PROVIDER_KINDS: [(&str, &Object); 3] = [
    ("local", &Object { what: "a local provider", fields: &[PROVIDER_TYPE] }),
    ("joined", &Object { what: "a joined provider", fields: &[PROVIDER_TYPE] }),
    (
        "command",
        &Object {
            what: "a command provider",
            fields: &[
                PROVIDER_TYPE,
                field(
                    "create",
                    COMMAND,
                    Extends,
                    "required",
                    "Adds a node: a command line, split as a shell splits words, or a list of \
                     words. No shell runs it.",
                ),
                field("delete", COMMAND, Extends, "required", "Removes a node."),
                field("list", COMMAND, Extends, "", "Prints the nodes there are."),
                field(
                    "timeout",
                    Quantity("a time such as 30, 30s, 5m, 1h or 2d"),
                    Extends,
                    "10m",
                    "How long a command may run, in seconds without a unit.",
                ),
                field(
                    "retries",
                    Whole(0, limits::MAX_ATTEMPTS as i64),
                    Extends,
                    "3",
                    "Further tries of a command that failed.",
                ),
            ],
        },
    ),
];
const COMMAND: Shape = OneOf(&[Text, List(&Text)]);

const AMOUNT: Shape = Quantity("an amount with its unit such as 4GiB or 512MiB");

/// What a node offers, also as a row of a sizes file.
static NODE: Object = Object {
    what: "what a node offers",
    fields: &[
        field(
            "cpus",
            Quantity("a number of CPUs such as 2, 0.5 or 500m"),
            Extends,
            "required",
            "CPUs, to a thousandth.",
        ),
        field("memory", AMOUNT, Extends, "required", "Memory."),
        field("disk", AMOUNT, Extends, "none of its own", "The local scratch disk."),
        field("gpus", Whole(0, limits::MAX_GPUS as i64), Extends, "0", "GPUs."),
        field("gpu_model", Text, Extends, "", "The GPUs' model, for example NVIDIA A100."),
        field("gpu_memory", AMOUNT, Extends, "not known", "Memory of each GPU."),
    ],
};

/// A sizes file.
pub(super) static SIZES: Object = Object {
    what: "a sizes file",
    fields: &[field(
        "sizes",
        Map(&Shape::Object(&NODE)),
        Extends,
        "required",
        "What each size offers, by name.",
    )],
};
