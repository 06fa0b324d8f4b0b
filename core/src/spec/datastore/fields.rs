//! Every key of a datastore's file, once for each type.

use super::super::fields::{SCHEMA, field};
use super::super::shape::{Field, Object, Shape, Support};
use Shape::{Any, Bool, LiteralOrNull, Map, OneOf, Text, Word};
use Support::{Dropped, Extends, Recorded, Runs, Unused};

const BLOB_PROTOCOLS: [&str; 2] = ["https", "wasbs"];
const FILE_PROTOCOLS: [&str; 1] = ["https"];
const LAKE_PROTOCOLS: [&str; 2] = ["https", "abfss"];
const ARTIFACTS: [&str; 1] = ["lake_house"];

const NAME: Field =
    field("name", Text, Runs, "required", "The datastore's name, unique in the workspace.");
const TYPE: Field = field("type", Text, Runs, "required", "Where the data lies.");
const DESCRIPTION: Field = field("description", Text, Recorded, "", "What it is for.");
const TAGS: Field = field("tags", Map(&LiteralOrNull), Recorded, "", "Key-value pairs.");
const PROPERTIES: Field =
    field("properties", Map(&LiteralOrNull), Recorded, "", "Key-value pairs.");
const ID: Field = field("id", Any, Dropped, "", "Written by Azure's tools.");
const GROUP: Field = field("resourceGroup", Any, Dropped, "", "Written by Azure's tools.");
const CONTEXT: Field = field("creation_context", Any, Dropped, "", "Written by this program.");
const IS_DEFAULT: Field = field("is_default", Any, Dropped, "", "Written by this program.");
const LOCATION: Field = field("location", Any, Dropped, "", "Written by this program.");
const CREDENTIAL_TYPE: Field =
    field("credential_type", Any, Dropped, "", "Written by this program.");

/// A document of one type: what all have, and the keys of its own.
macro_rules! document {
    ($NAME:ident, $what:literal, [$($own:expr),* $(,)?]) => {
        pub(in crate::spec) static $NAME: Object = Object {
            what: $what,
            fields: &[
                SCHEMA, NAME, TYPE, DESCRIPTION, TAGS, PROPERTIES, $($own,)* ID, GROUP, CONTEXT,
                IS_DEFAULT, LOCATION, CREDENTIAL_TYPE,
            ],
        };
    };
}

const ACCOUNT: Field = field("account_name", Text, Runs, "required", "The storage account.");
const ENDPOINT: Field = field(
    "endpoint",
    Text,
    Runs,
    "core.windows.net",
    "The suffix of the cloud's addresses; or the URL of the account at another server.",
);
const AZURE: Field = field(
    "credentials",
    Shape::Object(&AZURE_CREDENTIALS),
    Runs,
    "none",
    "With what it is reached: an account_key, a sas_token, or a service principal.",
);
const ANONYMOUS: Field = field(
    "anonymous",
    Bool,
    Extends,
    "false",
    "Whether requests are not signed: everybody may read there.",
);

document!(
    AZURE_BLOB,
    "a datastore of type azure_blob",
    [
        ACCOUNT,
        field("container_name", Text, Runs, "required", "The container."),
        ENDPOINT,
        field("protocol", Word(&BLOB_PROTOCOLS), Runs, "https", "How it is reached."),
        AZURE,
        ANONYMOUS,
    ]
);
document!(
    AZURE_FILE,
    "a datastore of type azure_file",
    [
        ACCOUNT,
        field("file_share_name", Text, Runs, "required", "The share."),
        ENDPOINT,
        field("protocol", Word(&FILE_PROTOCOLS), Runs, "https", "How it is reached."),
        AZURE,
    ]
);
document!(
    AZURE_DATA_LAKE_GEN2,
    "a datastore of type azure_data_lake_gen2",
    [
        ACCOUNT,
        field("filesystem", Text, Runs, "required", "The file system, which is a container."),
        ENDPOINT,
        field("protocol", Word(&LAKE_PROTOCOLS), Runs, "https", "How it is reached."),
        AZURE,
    ]
);
document!(
    ONE_LAKE,
    "a datastore of type one_lake",
    [
        field(
            "one_lake_workspace_name",
            Text,
            Runs,
            "required",
            "The workspace of Fabric, by its name or its id.",
        ),
        field(
            "endpoint",
            Text,
            Runs,
            "onelake.dfs.fabric.microsoft.com",
            "The host; or the URL of another server.",
        ),
        field("artifact", Shape::Object(&ARTIFACT), Runs, "required", "What of the workspace."),
        AZURE,
    ]
);

static ARTIFACT: Object = Object {
    what: "an artifact",
    fields: &[
        field("type", Word(&ARTIFACTS), Runs, "lake_house", "Which kind; only a lakehouse."),
        field("name", Text, Runs, "required", "The lakehouse, by its name or its id."),
    ],
};

static AZURE_CREDENTIALS: Object = Object {
    what: "Azure's credentials",
    fields: &[
        field("account_key", Text, Runs, "", "The storage account's key."),
        field("sas_token", Text, Runs, "", "A shared access signature."),
        field("tenant_id", Text, Runs, "", "A service principal's directory."),
        field("client_id", Text, Runs, "", "The service principal."),
        field("client_secret", Text, Runs, "", "Its secret."),
        field(
            "certificate",
            Text,
            Runs,
            "",
            "Its certificate with the private key, in place of a secret: PEM, or the path of such a file.",
        ),
        field("thumbprint", Text, Runs, "", "The certificate's (SHA-1)."),
        field("authority_url", Text, Runs, "Azure's public cloud", "Who gives out tokens."),
        field("resource_url", Text, Unused, "Azure storage", "For what tokens are asked."),
    ],
};

document!(
    S3,
    "a datastore of type s3",
    [
        field("bucket", Text, Runs, "required", "The bucket."),
        field(
            "endpoint",
            Text,
            Runs,
            "Amazon's",
            "The server's URL, which may start with http://."
        ),
        field("region", Text, Runs, "", "The region."),
        field("prefix", Text, Runs, "", "What all paths start with."),
        field(
            "path_style",
            Bool,
            Runs,
            "false",
            "Whether the bucket is part of the path rather than of the host's name.",
        ),
        field("credentials", Shape::Object(&S3_CREDENTIALS), Runs, "none", "The keys."),
        ANONYMOUS,
    ]
);

static S3_CREDENTIALS: Object = Object {
    what: "keys of S3",
    fields: &[
        field("access_key_id", Text, Runs, "required", "The public half."),
        field("secret_access_key", Text, Runs, "required", "The other half."),
        field("session_token", Text, Runs, "", "Of keys that end."),
    ],
};

document!(
    GCS,
    "a datastore of type gcs",
    [
        field("bucket", Text, Runs, "required", "The bucket."),
        field("prefix", Text, Runs, "", "What all paths start with."),
        field("credentials", Shape::Object(&GCS_CREDENTIALS), Runs, "none", "The service account.",),
        ANONYMOUS,
    ]
);

static GCS_CREDENTIALS: Object = Object {
    what: "a service account of Google",
    fields: &[field(
        "service_account",
        OneOf(&[Text, Map(&Any)]),
        Runs,
        "required",
        "Its key, as the JSON that Google gives out.",
    )],
};

document!(
    LOCAL,
    "a datastore of type local",
    [field(
        "path",
        Text,
        Extends,
        "required",
        "A folder on the daemon's machine, as an absolute path.",
    )]
);
document!(
    NFS,
    "a datastore of type nfs",
    [field(
        "path",
        Text,
        Extends,
        "required",
        "The folder of the daemon's machine where a file system is mounted, as an absolute path. Any kind of \
     file system will do.",
    )]
);
document!(
    HTTP,
    "a datastore of type http",
    [field(
        "url",
        Text,
        Runs,
        "required",
        "The address that all files are below. It can only be read.",
    )]
);

/// Each type, and its document.
pub(in crate::spec) static TYPES: [(&str, &Object); 9] = [
    ("azure_blob", &AZURE_BLOB),
    ("azure_file", &AZURE_FILE),
    ("azure_data_lake_gen2", &AZURE_DATA_LAKE_GEN2),
    ("one_lake", &ONE_LAKE),
    ("s3", &S3),
    ("gcs", &GCS),
    ("local", &LOCAL),
    ("nfs", &NFS),
    ("http", &HTTP),
];

/// Known, and no more.
pub(super) const RETIRED: &str = "azure_data_lake_gen1";
