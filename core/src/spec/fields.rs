//! Every key of a command job, once.

use super::limits;
use super::shape::{Field, Object, Shape, Support};
use Shape::{
    Any, Bool, List, Literal, LiteralOrNull, Map, Null, OneOf, Quantity, Tagged, Text, Whole, Word,
};
use Support::{Dropped, Extends, Ignored, Later, Recorded, Refused, Runs, Unused};

pub(super) const fn field(
    key: &'static str,
    shape: Shape,
    support: Support,
    default: &'static str,
    doc: &'static str,
) -> Field {
    Field { key, shape, support, default, doc }
}

const COUNT: Shape = Whole(1, limits::MAX_PROCESSES_PER_NODE as i64);
pub(super) const SCHEMA: Field =
    field("$schema", Text, Unused, "", "The schema's address, for editors.");

pub(super) const JOB_TYPES: [&str; 1] = ["command"];
pub(super) const DATA_TYPES: [&str; 6] =
    ["uri_file", "uri_folder", "mltable", "mlflow_model", "custom_model", "triton_model"];
pub(super) const INPUT_TYPES: [&str; 10] = [
    "uri_file",
    "uri_folder",
    "mltable",
    "mlflow_model",
    "custom_model",
    "triton_model",
    "string",
    "integer",
    "number",
    "boolean",
];
pub(super) const INPUT_MODES: [&str; 5] =
    ["ro_mount", "download", "direct", "eval_mount", "eval_download"];
pub(super) const OUTPUT_MODES: [&str; 4] = ["rw_mount", "upload", "direct", "mount"];
pub(super) const SERVICES: [&str; 6] =
    ["ssh", "jupyter_lab", "tensor_board", "vs_code", "studio", "tracking"];
pub(super) const TIERS: [&str; 4] = ["spot", "basic", "standard", "premium"];
pub(super) const PRIORITIES: [&str; 3] = ["low", "medium", "high"];
pub(super) const NODE_LOSS: [&str; 2] = ["requeue", "keep"];
pub(super) const OS_TYPES: [&str; 2] = ["linux", "windows"];
pub(super) const IDLE_ACTIONS: [&str; 2] = ["notify", "stop"];
const ALL_NODES: [&str; 1] = ["all"];

/// The whole document.
pub(super) static JOB: Object = Object {
    what: "a command job",
    fields: &[
        SCHEMA,
        field("type", Word(&JOB_TYPES), Runs, "command", "The kind of job."),
        field("name", Text, Runs, "made up", "The job's name, unique in the workspace."),
        field("display_name", Text, Runs, "the name", "A name for people; need not be unique."),
        field("description", Text, Recorded, "", "What the job is for."),
        field(
            "experiment_name",
            Text,
            Runs,
            "the current folder's name",
            "The experiment that groups this run.",
        ),
        field("tags", Map(&LiteralOrNull), Runs, "", "Key-value pairs that may change later."),
        field("properties", Map(&LiteralOrNull), Recorded, "", "Key-value pairs that stay."),
        field("command", Text, Runs, "required", "The shell command, with expressions."),
        field(
            "code",
            Text,
            Runs,
            "an empty folder",
            "The folder with the code, relative to this file. The command starts in it.",
        ),
        field(
            "environment",
            OneOf(&[Text, Shape::Object(&ENVIRONMENT)]),
            Runs,
            "the node's own programs",
            "What the command runs in: azureml:NAME:VERSION, azureml:NAME@latest, \
             azureml://registries/R/environments/N/labels/latest, file:PATH, or an environment \
             written out. In Azure it is required.",
        ),
        field(
            "compute",
            Text,
            Runs,
            "the workspace's default",
            "Where the job runs: NAME or azureml:NAME; azureml:serverless means the default.",
        ),
        field(
            "inputs",
            Map(&OneOf(&[Literal, Shape::Object(&INPUT), Null])),
            Runs,
            "",
            "What the job reads, by name: a literal, or data.",
        ),
        field(
            "outputs",
            Map(&OneOf(&[Shape::Object(&OUTPUT), Null])),
            Runs,
            "",
            "What the job writes, by name; a name alone makes a folder.",
        ),
        field(
            "environment_variables",
            Map(&LiteralOrNull),
            Runs,
            "",
            "Added to the command's environment; may hold ${{…}}, or be a secret: azureml:secrets/NAME.",
        ),
        field("resources", Shape::Object(&RESOURCES), Runs, "", "What the job takes of nodes."),
        field(
            "distribution",
            Tagged("a distribution", &DISTRIBUTIONS),
            Runs,
            "one process",
            "How the members of a job of several nodes are told of each other: by which variables.",
        ),
        field("limits", Shape::Object(&LIMITS), Runs, "", "Bounds on the run."),
        field("queue_settings", Shape::Object(&QUEUE), Runs, "", "The job's rank in the queue."),
        field(
            "services",
            Map(&OneOf(&[Shape::Object(&SERVICE), Null])),
            Later("services are not started yet"),
            "",
            "Interactive services to start with the job, by name.",
        ),
        field(
            "identity",
            Tagged("an identity", &IDENTITIES),
            Recorded,
            "",
            "As whom the job reaches Azure's services.",
        ),
        field("retry", Shape::Object(&RETRY), Extends, "", "When a failed attempt is tried again."),
        field(
            "on_node_loss",
            Word(&NODE_LOSS),
            Extends,
            "requeue",
            "What becomes of the job when its node is lost: a new attempt once the old one is \
             known to be dead, or keep waiting for the node.",
        ),
        field(
            "idle_gpu",
            Shape::Object(&IDLE_GPU),
            Extends,
            "",
            "What becomes of the job when its GPUs do nothing.",
        ),
        field(
            "keep_failed",
            Quantity("a time such as 30, 30s, 5m, 1h or 2d"),
            Extends,
            "what the node says",
            "How long a node keeps what a failed command left, for `atelier job debug`, in seconds \
             without a unit, at most a week (7d); 0 keeps nothing.",
        ),
        field(
            "parent_job_name",
            Text,
            Ignored("only a pipeline or sweep makes children"),
            "",
            "The job this one belongs to.",
        ),
        field(
            "is_deterministic",
            Any,
            Refused("it belongs to components; remove it"),
            "",
            "A component's key.",
        ),
        field(
            "version",
            Any,
            Refused("it belongs to components and assets; jobs have no version"),
            "",
            "A component's key.",
        ),
        field("id", Any, Dropped, "", "Written by Azure's tools."),
        field("status", Any, Dropped, "", "Written by Azure's tools."),
        field("creation_context", Any, Dropped, "", "Written by Azure's tools."),
        field("log_files", Any, Dropped, "", "Written by Azure's tools."),
        field("parameters", Any, Dropped, "", "Written by Azure's tools."),
    ],
};

/// `environment`, written out; also the content of an environment file.
pub(super) static ENVIRONMENT: Object = Object {
    what: "an environment",
    fields: &[
        SCHEMA,
        field(
            "name",
            Text,
            Recorded,
            "",
            "A name; the environment is not registered under it: atelier environment create does that.",
        ),
        field("version", Literal, Unused, "", "A version."),
        field("image", Text, Runs, "the node's own system", "The container image."),
        field(
            "conda_file",
            OneOf(&[Text, Map(&Any)]),
            Runs,
            "",
            "The conda file's path, or its content. May stand without an image.",
        ),
        field("build", Shape::Object(&BUILD), Runs, "", "A container build context."),
        field("description", Text, Unused, "", "What it is for."),
        field("tags", Map(&LiteralOrNull), Unused, "", "Key-value pairs."),
        field("properties", Map(&LiteralOrNull), Unused, "", "Key-value pairs."),
        field("os_type", Word(&OS_TYPES), Runs, "linux", "Only linux."),
        field(
            "inference_config",
            Map(&Any),
            Ignored("it matters to deployments only"),
            "",
            "Routes of a deployment.",
        ),
        field(
            "datastore",
            Text,
            Ignored("files of a job's environment travel with the job"),
            "",
            "Where to upload to.",
        ),
        field(
            "dependencies",
            Any,
            Refused(
                "it belongs into a conda file: write 'conda_file: ./conda.yml' or the content under 'conda_file:'",
            ),
            "",
            "A conda file's key.",
        ),
        field(
            "channels",
            Any,
            Refused(
                "it belongs into a conda file: write 'conda_file: ./conda.yml' or the content under 'conda_file:'",
            ),
            "",
            "A conda file's key.",
        ),
        field("id", Any, Dropped, "", "Written by Azure's tools."),
        field("creation_context", Any, Dropped, "", "Written by Azure's tools."),
        field("latest_version", Any, Dropped, "", "Written by Azure's tools."),
        field("resourceGroup", Any, Dropped, "", "Written by Azure's tools."),
    ],
};

pub(super) static BUILD: Object = Object {
    what: "a build context",
    fields: &[
        field("path", Text, Runs, "required", "The folder to build in, relative to this file."),
        field("dockerfile_path", Text, Runs, "Dockerfile", "The Dockerfile within it."),
    ],
};

static INPUT: Object = Object {
    what: "an input",
    fields: &[
        field("type", Word(&INPUT_TYPES), Runs, "uri_folder", "What the input is."),
        field(
            "path",
            Text,
            Runs,
            "required for data",
            "Where it lies: a local path, azureml:NAME:VERSION, azureml://datastores/D/paths/P, \
             azureml://jobs/J/outputs/O/paths/P, runs:/ID/P, https://…",
        ),
        field(
            "mode",
            Word(&INPUT_MODES),
            Runs,
            "ro_mount",
            "How the job gets it. eval_mount and eval_download are for mltable only.",
        ),
        field("value", Literal, Runs, "", "A literal's value."),
        field("default", Literal, Runs, "", "A literal's value if 'value' is not given."),
        field("optional", Bool, Runs, "false", "Whether it may be left without a value."),
        field("description", Text, Unused, "", "What it is."),
        field("min", Literal, Runs, "", "The least value of a number."),
        field("max", Literal, Runs, "", "The greatest value of a number."),
        field("enum", List(&Literal), Runs, "", "The values allowed."),
        field(
            "datastore",
            Text,
            Ignored("local data goes to the workspace's default datastore"),
            "",
            "Where to upload local data to.",
        ),
        field(
            "path_on_compute",
            Text,
            Ignored("the agent chooses the path; use ${{inputs.NAME}}"),
            "",
            "Where to mount it.",
        ),
    ],
};

static OUTPUT: Object = Object {
    what: "an output",
    fields: &[
        field("type", Word(&DATA_TYPES), Runs, "uri_folder", "What the output is."),
        field(
            "path",
            Text,
            Runs,
            "azureml/<job>/<output>/ on the default datastore",
            "Where it goes: azureml://datastores/D/paths/P; may hold ${{name}}, ${{output_name}} \
             and ${{default_datastore}}.",
        ),
        field("mode", Word(&OUTPUT_MODES), Runs, "rw_mount", "How it gets there."),
        field(
            "name",
            Text,
            Runs,
            "",
            "Registers it as a version of the asset of this name once the job is completed.",
        ),
        field("version", Literal, Runs, "the next number", "The version to register."),
        field("description", Text, Unused, "", "What it is."),
        field(
            "path_on_compute",
            Text,
            Ignored("the agent chooses the path; use ${{outputs.NAME}}"),
            "",
            "Where to mount it.",
        ),
    ],
};

pub(super) static RESOURCES: Object = Object {
    what: "resources",
    fields: &[
        field(
            "cpus",
            Quantity("a number of CPUs such as 2, 0.5 or 500m"),
            Extends,
            "1",
            "CPUs of each member, to a thousandth.",
        ),
        field(
            "memory",
            Quantity("an amount with its unit such as 4GiB or 512MiB"),
            Extends,
            "what is there",
            "Memory of each member. k, m, g, t, with or without B or iB, count by 1024.",
        ),
        field(
            "gpus",
            Quantity("a whole number from 0 to 1024, or a share of one such as 0.5"),
            Extends,
            "0",
            "GPUs of each member. Less than 1: that share of one GPU, to a thousandth, which other \
             jobs may share.",
        ),
        field(
            "gpu_model",
            OneOf(&[Text, List(&Text)]),
            Extends,
            "any",
            "Only GPUs whose model has this in its name, such as A100; case and punctuation do not \
             count. A list: any of them.",
        ),
        field(
            "gpu_memory",
            Quantity("an amount with its unit such as 40GiB"),
            Extends,
            "any",
            "Only GPUs with at least so much memory, as in memory.",
        ),
        field(
            "disk",
            Quantity("an amount with its unit such as 100GiB"),
            Extends,
            "what is there",
            "Scratch disk of each member, as in memory. A node that does not say what it has holds \
             any.",
        ),
        field(
            "node_labels",
            Map(&Literal),
            Extends,
            "",
            "Only nodes that have all these labels, with these values (atelier agent --label).",
        ),
        field(
            "instance_count",
            Whole(1, limits::MAX_INSTANCES as i64),
            Runs,
            "1",
            "How many members the job has, each on a node of its own; they start at once or not at all.",
        ),
        field(
            "instance_type",
            Text,
            Ignored("VM sizes are Azure's; say what the job needs with cpus, memory and gpus"),
            "",
            "Azure's VM size; recorded.",
        ),
        field(
            "shm_size",
            Quantity("an amount with its unit such as 2g"),
            Runs,
            "2g",
            "Shared memory of a container.",
        ),
        field(
            "docker_args",
            OneOf(&[Text, List(&Text)]),
            Runs,
            "",
            "Further options for the container: add-host, env, hostname, label, read-only, shm-size, tmpfs, ulimit.",
        ),
        field(
            "locations",
            List(&Text),
            Ignored("regions are Azure's; the workspace's nodes are where they are"),
            "",
            "Azure's regions; recorded.",
        ),
        field(
            "max_instance_count",
            Whole(1, limits::MAX_INSTANCES as i64),
            Ignored("the number of members is fixed: instance_count"),
            "",
            "Recorded.",
        ),
        field("properties", Map(&Any), Recorded, "", "Anything else."),
    ],
};

const PROCESSES: Field = field(
    "process_count_per_instance",
    COUNT,
    Runs,
    "1",
    "How often the command is run at once on each node; of `mpi`, how many processes `mpirun` starts there.",
);
const TYPE: Field = field("type", Text, Runs, "required", "Which kind.");

pub(super) static DISTRIBUTIONS: [(&str, &Object); 4] = [
    ("pytorch", &Object { what: "a pytorch distribution", fields: &[TYPE, PROCESSES] }),
    (
        "tensorflow",
        &Object {
            what: "a tensorflow distribution",
            fields: &[
                TYPE,
                field(
                    "worker_count",
                    Whole(1, limits::MAX_PROCESSES as i64),
                    Runs,
                    "the rest",
                    "Workers in all. With the parameter servers they are as many as `instance_count`.",
                ),
                field(
                    "parameter_server_count",
                    Whole(0, limits::MAX_PROCESSES as i64),
                    Runs,
                    "0",
                    "So many of the members, the last ones, are parameter servers.",
                ),
            ],
        },
    ),
    ("mpi", &Object { what: "an mpi distribution", fields: &[TYPE, PROCESSES] }),
    (
        "ray",
        &Object {
            what: "a ray distribution",
            fields: &[
                TYPE,
                field("port", Whole(1, 65535), Runs, "the attempt's own", "The head's port."),
                field(
                    "address",
                    Text,
                    Runs,
                    "the node's",
                    "Where the other members reach the head: HOST or HOST:PORT.",
                ),
                field(
                    "include_dashboard",
                    Bool,
                    Runs,
                    "Ray's",
                    "Whether the head starts the dashboard.",
                ),
                field("dashboard_port", Whole(1, 65535), Runs, "Ray's", "The dashboard's port."),
                field(
                    "head_node_additional_args",
                    Text,
                    Runs,
                    "",
                    "Further arguments of `ray start` on the head.",
                ),
                field(
                    "worker_node_additional_args",
                    Text,
                    Runs,
                    "",
                    "The same on the other members.",
                ),
            ],
        },
    ),
];

static MANAGED: Object = Object {
    what: "a managed identity",
    fields: &[
        TYPE,
        field("client_id", Text, Recorded, "", "The identity's client id."),
        field("object_id", Text, Ignored("only client_id is kept"), "", "Its object id."),
        field("msi_resource_id", Text, Ignored("only client_id is kept"), "", "Its resource id."),
    ],
};

static IDENTITIES: [(&str, &Object); 4] = [
    ("managed", &MANAGED),
    ("managed_identity", &MANAGED),
    ("user_identity", &Object { what: "a user identity", fields: &[TYPE] }),
    ("aml_token", &Object { what: "a workspace token identity", fields: &[TYPE] }),
];

static LIMITS: Object = Object {
    what: "limits",
    fields: &[field(
        "timeout",
        Whole(1, limits::MAX_SECONDS as i64),
        Runs,
        "none",
        "Seconds of running after which the job is cancelled.",
    )],
};

static QUEUE: Object = Object {
    what: "queue settings",
    fields: &[
        field(
            "job_tier",
            Word(&TIERS),
            Runs,
            "standard",
            "A higher tier goes before a lower, and takes its nodes if it must.",
        ),
        field(
            "priority",
            Word(&PRIORITIES),
            Runs,
            "medium",
            "The rank among the waiting. A level is worth a day of waiting.",
        ),
    ],
};

static SERVICE: Object = Object {
    what: "a service",
    fields: &[
        field("type", Word(&SERVICES), Recorded, "required", "The kind of service."),
        field("job_service_type", Word(&SERVICES), Recorded, "", "An older spelling of 'type'."),
        field("nodes", Word(&ALL_NODES), Recorded, "the first node", "all: on every node."),
        field("port", Whole(0, 65535), Recorded, "chosen", "The port."),
        field("log_dir", Text, Recorded, "", "Where TensorBoard reads."),
        field("ssh_public_keys", Text, Recorded, "", "Who may log in."),
        field("properties", Map(&LiteralOrNull), Recorded, "", "Anything else."),
        field("endpoint", Any, Dropped, "", "Written by Azure's tools."),
        field("status", Any, Dropped, "", "Written by Azure's tools."),
        field("error_message", Any, Dropped, "", "Written by Azure's tools."),
    ],
};

static RETRY: Object = Object {
    what: "retry",
    fields: &[
        field(
            "max_attempts",
            Whole(1, limits::MAX_ATTEMPTS as i64),
            Extends,
            "1",
            "Attempts in all that may fail by the job's own fault.",
        ),
        field(
            "backoff",
            Quantity("a time such as 30, 30s, 5m, 1h or 2d"),
            Extends,
            "10",
            "Time before the second attempt, in seconds without a unit; doubles with each further \
             one.",
        ),
        field(
            "memory",
            Quantity("a factor such as 2x or 1.5x"),
            Extends,
            "",
            "Multiplies resources.memory for the next attempt after one was killed for want of memory, \
             at most up to what the largest node has. Needs resources.memory, and a node that can tell.",
        ),
    ],
};

static IDLE_GPU: Object = Object {
    what: "idle_gpu",
    fields: &[
        field(
            "action",
            Word(&IDLE_ACTIONS),
            Extends,
            "notify",
            "An event of the job says so, or the job is stopped.",
        ),
        field(
            "after",
            Quantity("a time such as 30, 30s, 5m, 1h or 2d"),
            Extends,
            "30m",
            "For how long all GPUs that the job has on a node must have done nothing, in seconds without \
             a unit.",
        ),
    ],
};

/// Kinds of document that are known and not supported, by `type`, with their names in words.
pub(super) const OTHER_KINDS: [(&str, &str); 10] = [
    ("sweep", "sweep jobs"),
    ("pipeline", "pipeline jobs"),
    ("parallel", "parallel jobs"),
    ("spark", "spark jobs"),
    ("automl", "automl jobs"),
    ("import", "import jobs"),
    ("data_transfer", "data transfer jobs"),
    ("finetuning", "fine-tuning jobs"),
    ("distillation", "distillation jobs"),
    ("schedule", "schedules"),
];

/// Keys that only one other kind of document has, for documents that do not say their type.
pub(super) const TELLING_KEYS: [(&str, &str); 11] = [
    ("trigger", "schedule"),
    ("create_job", "schedule"),
    ("search_space", "sweep"),
    ("sampling_algorithm", "sweep"),
    ("trial", "sweep"),
    ("jobs", "pipeline"),
    ("component", "pipeline"),
    ("mini_batch_size", "parallel"),
    ("entry", "spark"),
    ("training_data", "automl"),
    ("primary_metric", "automl"),
];
