//! Addresses of cloud storage, as Azure's, Amazon's and Google's tools write them, and which datastore has what lies
//! there.

mod bucket;
mod public;

use std::fmt;

use super::{AzureStorage, Source};
use crate::id::DatastoreName;

pub use bucket::{PublicBucket, PublicServers};

/// Where something lies in cloud storage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// As written.
    text: String,
    bucket: Bucket,
    /// Without a leading `/`.
    path: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Bucket {
    Azure {
        /// Whether the address is one of Data Lake Storage Gen2, whose data is the same.
        gen2: bool,
        account: String,
        container: String,
        /// The cloud's, `core.windows.net` mostly.
        suffix: String,
    },
    S3(String),
    Gcs(String),
}

/// How an address is written whose query opens it.
const WITHOUT_SIGNATURE: &str = "it without the signature, which is a secret: a datastore keeps it (credentials: \
     {sas_token: …}, atelier datastore create)";

/// Why an address leads to no datastore.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// It is none.
    #[error("'{text}' is not an address of cloud storage: write {form}")]
    Form {
        /// As written.
        text: String,
        /// How such an address is written.
        form: &'static str,
    },
    /// No datastore can be made of what it names.
    #[error("'{text}' cannot be read: {why}")]
    NotServed {
        /// As written.
        text: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// No datastore has it.
    #[error(
        "no datastore has '{text}'; have an admin make one: printf '{definition}' | atelier datastore create -f - \
         (with its credentials, or 'anonymous: true' if everybody may read there)"
    )]
    NoDatastore {
        /// As written.
        text: String,
        /// The file of a datastore that has it, its lines ended by `\n` as `printf` takes it.
        definition: String,
    },
    /// Several have it.
    #[error(
        "several datastores have '{text}' ({}); name the one that is meant: azureml://datastores/NAME/paths/PATH",
        .names.join(", ")
    )]
    Ambiguous {
        /// As written.
        text: String,
        /// Their names.
        names: Vec<String>,
    },
}

const WASBS: &str = "wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PATH";
const ABFSS: &str = "abfss://FILESYSTEM@ACCOUNT.dfs.core.windows.net/PATH";
const GEN1: &str = "Data Lake Storage Gen1 is no more; name the same data in Gen2 \
                    (abfss://FILESYSTEM@ACCOUNT.dfs.core.windows.net/PATH)";
const HDFS: &str = "files of HDFS cannot be served; mount them on the daemon's machine and make a datastore of type \
                    nfs with the mount's path";
const FABRIC: &str = "data of Microsoft Fabric is not found by its address; make a datastore of type one_lake and name \
                      azureml://datastores/NAME/paths/Files/PATH";

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Address {
    /// Whether a text is to be read as one, by how it begins.
    pub fn is_one(text: &str) -> bool {
        const SCHEMES: [&str; 9] =
            ["wasb", "wasbs", "abfs", "abfss", "adl", "s3", "s3a", "gs", "hdfs"];
        text.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
    }

    /// Reads an address.
    ///
    /// # Errors
    /// [`AddressError::Form`] and [`AddressError::NotServed`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let form = |form| AddressError::Form { text: text.to_owned(), form };
        let not_served = |why| AddressError::NotServed { text: text.to_owned(), why };
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let is_signed = |query: &str| query.split('&').any(|pair| pair.starts_with("sig="));
        if let Some((place, _)) = text.split_once('?').filter(|(_, query)| is_signed(query)) {
            // It would be part of the path, and be told wherever that is.
            let text = format!("{place}?…");
            return Err(AddressError::Form { text, form: WITHOUT_SIGNATURE });
        }
        let (root, path) = rest.split_once('/').unwrap_or((rest, ""));
        // In a bucket, what begins with a slash is another object; in Azure's containers it is the same.
        let path = match scheme {
            "s3" | "s3a" | "gs" => path,
            _ => path.trim_start_matches('/'),
        };
        let path = path.to_owned();
        let bucket = match scheme {
            "wasb" | "wasbs" => azure(root, ".blob.", false).ok_or(form(WASBS))?,
            "abfs" | "abfss" => azure(root, ".dfs.", true).ok_or(form(ABFSS))?,
            "s3" | "s3a" if is_name(root) => Bucket::S3(root.to_owned()),
            "s3" | "s3a" => return Err(form("s3://BUCKET/KEY")),
            "gs" if is_name(root) => Bucket::Gcs(root.to_owned()),
            "gs" => return Err(form("gs://BUCKET/NAME")),
            "adl" => return Err(not_served(GEN1)),
            "hdfs" => return Err(not_served(HDFS)),
            _ => return Err(form("wasbs://, abfss://, s3:// or gs://")),
        };
        if matches!(&bucket, Bucket::Azure { suffix, .. } if suffix.contains("fabric.microsoft")) {
            return Err(not_served(FABRIC));
        }
        Ok(Self { text: text.to_owned(), bucket, path })
    }

    /// The datastore that has what lies there, and the path within it.
    ///
    /// Of several whose paths have prefixes it is the one with the longest. A datastore at another server than the
    /// cloud's own counts too: of Azure's if none at its own has it, of S3 if it is the only one, since an address of
    /// S3 does not say at which server the bucket is.
    ///
    /// # Errors
    /// [`AddressError::NoDatastore`] and [`AddressError::Ambiguous`].
    pub fn find<'a>(
        &self,
        datastores: impl IntoIterator<Item = (&'a DatastoreName, &'a Source)>,
    ) -> Result<(DatastoreName, String), AddressError> {
        let mut found: Vec<Found<'_>> =
            datastores.into_iter().filter_map(|(name, source)| self.within(name, source)).collect();
        let best = found.iter().map(|found| found.rank).max();
        found.retain(|found| Some(found.rank) == best);
        // The longest of each server.
        let longest: Vec<(Option<&str>, usize)> =
            found.iter().map(|found| (found.server, found.prefix)).collect();
        found.retain(|found| {
            longest
                .iter()
                .all(|(server, prefix)| *server != found.server || *prefix <= found.prefix)
        });
        match found.as_slice() {
            [] => Err(self.without_datastore()),
            [one] => Ok((one.name.clone(), one.path.to_owned())),
            several => Err(AddressError::Ambiguous {
                text: self.text.clone(),
                names: several.iter().map(|found| found.name.to_string()).collect(),
            }),
        }
    }

    fn within<'a>(&'a self, name: &'a DatastoreName, source: &'a Source) -> Option<Found<'a>> {
        let (prefix, rank, server) = match (&self.bucket, source) {
            (Bucket::Azure { gen2, .. }, Source::AzureBlob(azure)) => {
                (&None, self.rank_of(azure, !gen2)?, None)
            }
            (Bucket::Azure { gen2, .. }, Source::AzureDataLakeGen2(azure)) => {
                (&None, self.rank_of(azure, *gen2)?, None)
            }
            (Bucket::S3(wanted), Source::S3 { bucket, prefix, endpoint, .. })
                if wanted == bucket =>
            {
                (prefix, Rank::default(), endpoint.as_deref())
            }
            (Bucket::Gcs(wanted), Source::Gcs { bucket, prefix }) if wanted == bucket => {
                (prefix, Rank::default(), None)
            }
            _ => return None,
        };
        let path = below(&self.path, prefix.as_deref())?;
        Some(Found { name, path, rank, prefix: prefix.as_ref().map_or(0, String::len), server })
    }

    fn rank_of(&self, azure: &AzureStorage, same_kind: bool) -> Option<Rank> {
        let Bucket::Azure { account, container, suffix, .. } = &self.bucket else { return None };
        let is_own = *suffix == azure.endpoint;
        let is_there = *account == azure.account_name && *container == azure.container;
        (is_there && (is_own || azure.endpoint.contains("://")))
            .then_some(Rank { is_own, same_kind })
    }

    /// A datastore that would have it.
    fn definition(&self) -> String {
        match &self.bucket {
            Bucket::Azure { gen2, account, container, suffix } => {
                let (kind, key) = match gen2 {
                    true => ("azure_data_lake_gen2", "filesystem"),
                    false => ("azure_blob", "container_name"),
                };
                let endpoint = match suffix.as_str() {
                    "core.windows.net" => String::new(),
                    other => format!("endpoint: {other}\\n"),
                };
                format!(
                    "name: {account}_{}\\ntype: {kind}\\naccount_name: {account}\\n{key}: {container}\\n{endpoint}",
                    as_name(container)
                )
            }
            Bucket::S3(bucket) => {
                format!("name: {}\\ntype: s3\\nbucket: {bucket}\\n", as_name(bucket))
            }
            Bucket::Gcs(bucket) => {
                format!("name: {}\\ntype: gcs\\nbucket: {bucket}\\n", as_name(bucket))
            }
        }
    }
}

/// The datastore that has what lies at an address of the web, if it is one container's of Azure's; the path within it.
/// `None` too if several have it: then it is read as what it is.
pub fn find_https<'a>(
    url: &str,
    datastores: impl IntoIterator<Item = (&'a DatastoreName, &'a Source)>,
) -> Option<(DatastoreName, String)> {
    // With a signature in it, it says itself who may read.
    if url.contains(['?', '#', '%']) {
        return None;
    }
    let mut found = datastores.into_iter().filter_map(|(name, source)| {
        let (Source::AzureBlob(azure) | Source::AzureDataLakeGen2(azure)) = source else {
            return None;
        };
        let blobs = format!("{}/{}", azure.blob_url(), azure.container);
        let files = blobs.replacen(".blob.", ".dfs.", 1);
        let path = below(url, Some(&blobs)).or_else(|| below(url, Some(&files)))?;
        (!path.is_empty()).then(|| (name.clone(), path.to_owned()))
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// A datastore that has what is looked for.
struct Found<'a> {
    name: &'a DatastoreName,
    path: &'a str,
    rank: Rank,
    /// The length of what its paths start with.
    prefix: usize,
    /// `None`: the cloud's own.
    server: Option<&'a str>,
}

/// How well a datastore of Azure's fits. Ordered: the best is the greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Rank {
    /// Whether it is at the server that the address names.
    is_own: bool,
    /// Whether both are of Blob Storage, or both of Data Lake Storage.
    same_kind: bool,
}

/// `CONTAINER@ACCOUNT.blob.SUFFIX`
fn azure(root: &str, kind: &str, gen2: bool) -> Option<Bucket> {
    let (container, host) = root.split_once('@')?;
    let (account, suffix) = host.split_once(kind)?;
    (is_name(container) && is_name(account) && is_name(suffix)).then(|| Bucket::Azure {
        gen2,
        account: account.to_owned(),
        container: container.to_owned(),
        suffix: suffix.to_owned(),
    })
}

/// Whether it may be a bucket's name, or a host's: nothing that a shell or YAML would take for more.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text == "$web"
        || text == "$root"
        || text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fits)
}

/// A bucket's name as a datastore's.
fn as_name(bucket: &str) -> String {
    bucket.trim_start_matches('$').replace(['-', '.'], "_")
}

/// The rest of a path at or below a prefix.
fn below<'a>(path: &'a str, prefix: Option<&str>) -> Option<&'a str> {
    let Some(prefix) = prefix else { return Some(path) };
    match path.strip_prefix(prefix)? {
        "" => Some(""),
        rest => rest.strip_prefix('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn azure_at(endpoint: &str) -> AzureStorage {
        AzureStorage {
            account_name: "acct".to_owned(),
            container: "data".to_owned(),
            endpoint: endpoint.to_owned(),
            protocol: "https".to_owned(),
        }
    }

    fn s3(bucket: &str, endpoint: Option<&str>, prefix: Option<&str>) -> Source {
        Source::S3 {
            bucket: bucket.to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: None,
            prefix: prefix.map(str::to_owned),
            path_style: false,
        }
    }

    fn gcs(bucket: &str, prefix: Option<&str>) -> Source {
        Source::Gcs { bucket: bucket.to_owned(), prefix: prefix.map(str::to_owned) }
    }

    fn named(all: &[(&str, Source)]) -> Vec<(DatastoreName, Source)> {
        let name = |text: &str| DatastoreName::new(text).unwrap();
        all.iter().map(|(text, source)| (name(text), source.clone())).collect()
    }

    /// `NAME PATH`, or what is said.
    fn found(text: &str, all: &[(&str, Source)]) -> String {
        let all = named(all);
        let found = Address::parse(text)
            .and_then(|address| address.find(all.iter().map(|(name, source)| (name, source))));
        match found {
            Ok((name, path)) => format!("{name} {path}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn each_address_leads_to_its_datastore() {
        let all = [
            ("blobs", Source::AzureBlob(azure_at("core.windows.net"))),
            ("lake", Source::AzureDataLakeGen2(azure_at("core.windows.net"))),
            ("bucket", s3("b", None, None)),
            ("team", s3("b", None, Some("team/a"))),
            ("other", s3("minio", Some("http://127.0.0.1:9000"), Some("x"))),
            ("g", gcs("g", None)),
            ("deep", gcs("g", Some("a/b"))),
        ];
        for (text, expected) in [
            ("wasbs://data@acct.blob.core.windows.net/a/b.csv", "blobs a/b.csv"),
            ("wasb://data@acct.blob.core.windows.net/a/", "blobs a/"),
            ("wasbs://data@acct.blob.core.windows.net", "blobs "),
            ("abfss://data@acct.dfs.core.windows.net/a b", "lake a b"),
            ("abfs://data@acct.dfs.core.windows.net//a", "lake a"),
            ("s3://b/key", "bucket key"),
            ("s3a://b/team/ab", "bucket team/ab"),
            ("s3://b/team/a/x", "team x"),
            ("s3://b/team/a", "team "),
            ("s3://b", "bucket "),
            ("s3://minio/x/y", "other y"),
            ("gs://g/a/bc", "g a/bc"),
            ("gs://g/a/b/c/", "deep c/"),
        ] {
            assert_eq!(found(text, &all), expected, "{text}");
        }
    }

    #[test]
    fn datastores_at_other_servers_and_of_the_other_kind_will_do() {
        let at = "http://127.0.0.1:10000/acct";
        let azurite = ("azurite", Source::AzureBlob(azure_at(at)));
        let lake = ("lake", Source::AzureDataLakeGen2(azure_at("core.windows.net")));
        let address = "wasbs://data@acct.blob.core.windows.net/x";
        assert_eq!(found(address, std::slice::from_ref(&azurite)), "azurite x");
        assert_eq!(found(address, &[azurite.clone(), lake]), "lake x");
        let china = "wasbs://data@acct.blob.core.chinacloudapi.cn/x";
        assert_eq!(found(china, &[azurite]), "azurite x");
    }

    #[test]
    fn what_is_meant_by_two_is_refused_by_name() {
        let two = [("one", s3("b", None, None)), ("two", s3("b", Some("https://minio"), None))];
        let said = found("s3://b/x", &two);
        assert!(said.contains("(one, two)") && said.contains("azureml://datastores/"), "{said}");
        // However long the prefix: it may be another bucket.
        let two = [("one", s3("b", None, None)), ("two", s3("b", Some("https://m"), Some("x")))];
        assert!(found("s3://b/x/y", &two).contains("(one, two)"));
        assert_eq!(found("s3://b/y", &two), "one y");
        let same = [
            ("one", Source::AzureBlob(azure_at("core.windows.net"))),
            ("two", Source::AzureBlob(azure_at("core.windows.net"))),
        ];
        assert!(found("wasbs://data@acct.blob.core.windows.net/x", &same).contains("(one, two)"));
    }

    #[test]
    fn what_no_datastore_has_is_told_with_one_that_would() {
        for (text, words) in [
            ("s3://my-data/x", "printf 'name: my_data\\ntype: s3\\nbucket: my-data\\n' |"),
            ("gs://g/x", "'name: g\\ntype: gcs\\nbucket: g\\n'"),
            (
                "wasbs://c@a.blob.core.windows.net/x",
                "'name: a_c\\ntype: azure_blob\\naccount_name: a\\ncontainer_name: c\\n'",
            ),
            (
                "abfss://f@a.dfs.core.usgovcloudapi.net/x",
                "'name: a_f\\ntype: azure_data_lake_gen2\\naccount_name: a\\nfilesystem: f\\n\
                 endpoint: core.usgovcloudapi.net\\n'",
            ),
            ("adl://a.azuredatalakestore.net/x", "Gen2"),
            ("hdfs://host/x", "nfs"),
            ("abfss://w@onelake.dfs.fabric.microsoft.com/x", "Fabric"),
            ("wasbs://a.blob.core.windows.net/c/x", "CONTAINER@ACCOUNT"),
            ("abfss://c@a.blob.core.windows.net/x", "FILESYSTEM@ACCOUNT"),
            ("s3://$(rm)/x", "s3://BUCKET/KEY"),
            ("s3:///x", "s3://BUCKET/KEY"),
            ("gs://a'b/x", "gs://BUCKET/NAME"),
        ] {
            let said = found(text, &[("g", gcs("g", Some("only")))]);
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn pages_of_a_container_are_its_datastore_s() {
        let blobs = ("blobs", Source::AzureBlob(azure_at("core.windows.net")));
        let azurite = ("azurite", Source::AzureBlob(azure_at("http://127.0.0.1:1/acct")));
        let all = named(&[blobs.clone(), azurite, ("b", s3("b", None, None))]);
        for (url, expected) in [
            ("https://acct.blob.core.windows.net/data/a/b.csv", Some("blobs a/b.csv")),
            ("https://acct.dfs.core.windows.net/data/a", Some("blobs a")),
            ("http://127.0.0.1:1/acct/data/a", Some("azurite a")),
            ("https://acct.blob.core.windows.net/data/a?sv=1&sig=x", None),
            ("https://acct.blob.core.windows.net/data2/a", None),
            ("https://acct.blob.core.windows.net/data", None),
            ("https://acct.blob.core.windows.net/data/a%20b", None),
            ("https://example.org/data/a", None),
        ] {
            let found = find_https(url, all.iter().map(|(name, source)| (name, source)));
            let found = found.map(|(name, path)| format!("{name} {path}"));
            assert_eq!(found.as_deref(), expected, "{url}");
        }
        let two = named(&[blobs.clone(), ("again", blobs.1)]);
        let url = "https://acct.blob.core.windows.net/data/a";
        assert_eq!(find_https(url, two.iter().map(|(name, source)| (name, source))), None);
    }
}
