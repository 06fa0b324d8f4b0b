//! Buckets that are no datastore's and that everybody may read, by names that stand where datastores' stand.

use super::{Address, Bucket, is_name};
use crate::datastore::{AzureStorage, Source};
use crate::id::DatastoreName;
use percent_encoding::percent_decode_str;

/// How the names begin that stand for buckets of public storage. No datastore is called so.
const PREFIX: &str = "public-storage.";
/// The clouds of Azure, by what their accounts' addresses end with.
const CLOUDS: [&str; 3] = ["core.windows.net", "core.chinacloudapi.cn", "core.usgovcloudapi.net"];

/// Servers that public storage is read from in place of the clouds' own: `http(s)://HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PublicServers {
    /// Of addresses of S3. Buckets are the first part of its paths.
    pub s3: Option<String>,
    /// Of addresses of Azure's blobs. Accounts are the first part of its paths.
    pub azure: Option<String>,
}

/// A bucket or container that is no datastore's. What its owner lets everybody read there is read without
/// credentials, and nothing can be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicBucket(Bucket);

impl Address {
    /// The bucket as one of public storage; `None`: its name is none that a cloud gives, or its cloud is not known.
    pub fn public_bucket(&self) -> Option<PublicBucket> {
        PublicBucket::of(&self.bucket)
    }

    /// Within the bucket, without a leading `/` in Azure's containers.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The same place of an address of the web, if that is one in a container of Azure's
    /// (`https://ACCOUNT.blob.SUFFIX/CONTAINER/PATH`).
    pub fn of_page(url: &str) -> Option<Self> {
        // With a signature in it, it says itself who may read.
        let rest = url.strip_prefix("https://").filter(|rest| !rest.contains(['?', '#']))?;
        let (host, path) = rest.split_once('/')?;
        let (container, path) = path.split_once('/').unwrap_or((path, ""));
        let scheme = match host {
            host if host.contains(".blob.") => "wasbs",
            host if host.contains(".dfs.") => "abfss",
            _ => return None,
        };
        let path = percent_decode_str(path).decode_utf8().ok()?;
        let address = Self::parse(&format!("{scheme}://{container}@{host}/{path}")).ok()?;
        address.public_bucket().map(|_| address)
    }
}

impl PublicBucket {
    fn of(bucket: &Bucket) -> Option<Self> {
        let fits = match bucket {
            Bucket::Azure { account, container, suffix, .. } => {
                is_account(account) && is_container(container) && CLOUDS.contains(&suffix.as_str())
            }
            Bucket::S3(name) => is_bucket(name, 63, "-."),
            Bucket::Gcs(name) => is_bucket(name, 222, "-._"),
        };
        fits.then(|| Self(bucket.clone()))
    }

    /// Whether a name is kept for such buckets.
    pub fn has_name(name: &str) -> bool {
        let start = name.get(..PREFIX.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
    }

    /// The name that stands for it where a datastore's would.
    pub fn name(&self) -> Option<DatastoreName> {
        let name = match &self.0 {
            Bucket::Azure { gen2, account, container, suffix } => {
                let kind = if *gen2 { "lake" } else { "azure" };
                // No other container's name has a `_`.
                format!("{PREFIX}{kind}.{account}.{}.{suffix}", container.replace('$', "_"))
            }
            Bucket::S3(bucket) => format!("{PREFIX}s3.{bucket}"),
            Bucket::Gcs(bucket) => format!("{PREFIX}gcs.{bucket}"),
        };
        DatastoreName::new(&name).ok()
    }

    /// The bucket that a name stands for.
    pub fn named(name: &DatastoreName) -> Option<Self> {
        let (kind, rest) = name.as_str().strip_prefix(PREFIX)?.split_once('.')?;
        let bucket = match kind {
            "azure" | "lake" => {
                let (account, rest) = rest.split_once('.')?;
                let (container, suffix) = rest.split_once('.')?;
                Bucket::Azure {
                    gen2: kind == "lake",
                    account: account.to_owned(),
                    container: container.replace('_', "$"),
                    suffix: suffix.to_owned(),
                }
            }
            "s3" => Bucket::S3(rest.to_owned()),
            "gcs" => Bucket::Gcs(rest.to_owned()),
            _ => return None,
        };
        Self::of(&bucket)
    }

    /// Its address.
    pub fn address(&self) -> Address {
        let text = match &self.0 {
            Bucket::Azure { gen2, account, container, suffix } => {
                let (scheme, kind) = if *gen2 { ("abfss", "dfs") } else { ("wasbs", "blob") };
                format!("{scheme}://{container}@{account}.{kind}.{suffix}")
            }
            Bucket::S3(bucket) => format!("s3://{bucket}"),
            Bucket::Gcs(bucket) => format!("gs://{bucket}"),
        };
        Address { text, bucket: self.0.clone(), path: String::new() }
    }

    /// Where it lies: at the cloud's own address, or at the server in its place.
    pub fn source(&self, servers: &PublicServers) -> Source {
        match &self.0 {
            Bucket::Azure { gen2, account, container, suffix } => {
                let endpoint = match &servers.azure {
                    Some(server) => format!("{}/{account}", server.trim_end_matches('/')),
                    None => suffix.clone(),
                };
                let azure = AzureStorage {
                    account_name: account.clone(),
                    container: container.clone(),
                    endpoint,
                    protocol: "https".to_owned(),
                };
                match gen2 {
                    true => Source::AzureDataLakeGen2(azure),
                    false => Source::AzureBlob(azure),
                }
            }
            Bucket::S3(bucket) => Source::S3 {
                bucket: bucket.clone(),
                endpoint: servers.s3.clone(),
                region: None,
                prefix: None,
                path_style: servers.s3.is_some(),
            },
            Bucket::Gcs(bucket) => Source::Gcs { bucket: bucket.clone(), prefix: None },
        }
    }
}

/// As Azure names accounts.
fn is_account(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=24).contains(&name.len()) && name.chars().all(fits)
}

/// As Azure names containers; two are the service's own.
fn is_container(name: &str) -> bool {
    matches!(name, "$web" | "$root") || is_bucket(name, 63, "-")
}

/// As clouds name buckets: they become part of a host's name.
fn is_bucket(name: &str, most: usize, also: &str) -> bool {
    let alone = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = |c: char| alone(c) || also.contains(c);
    is_name(name)
        && (3..=most).contains(&name.len())
        && name.chars().all(fits)
        && name.starts_with(alone)
        && name.ends_with(alone)
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(text: &str) -> Option<PublicBucket> {
        Address::parse(text).unwrap().public_bucket()
    }

    /// The name, and where it is read from.
    fn read_at(text: &str, servers: &PublicServers) -> Option<(String, String)> {
        let bucket = bucket(text)?;
        Some((bucket.name()?.to_string(), bucket.source(servers).location()))
    }

    #[test]
    fn buckets_are_read_at_their_clouds() {
        for (text, name, place) in [
            (
                "wasbs://datasets@azuremlexamples.blob.core.windows.net/mnist/",
                "azure.azuremlexamples.datasets.core.windows.net",
                "https://azuremlexamples.blob.core.windows.net/datasets",
            ),
            (
                "abfss://$web@acct.dfs.core.chinacloudapi.cn",
                "lake.acct._web.core.chinacloudapi.cn",
                "https://acct.blob.core.chinacloudapi.cn/$web",
            ),
            ("s3a://open-data/x", "s3.open-data", "s3://open-data"),
            ("s3://open.data.org/x", "s3.open.data.org", "s3://open.data.org"),
            ("gs://open_data/x", "gcs.open_data", "gs://open_data"),
        ] {
            let (found, at) = read_at(text, &PublicServers::default()).unwrap();
            assert_eq!((found.strip_prefix(PREFIX), &*at), (Some(name), place), "{text}");
        }
        let servers = PublicServers {
            s3: Some("http://127.0.0.1:9000".to_owned()),
            azure: Some("http://127.0.0.1:10000/".to_owned()),
        };
        for (text, place) in [
            ("wasbs://data@acct.blob.core.windows.net/x", "http://127.0.0.1:10000/acct/data"),
            ("s3://data/x", "http://127.0.0.1:9000/data"),
            ("gs://data/x", "gs://data"),
        ] {
            assert_eq!(read_at(text, &servers).unwrap().1, place, "{text}");
        }
    }

    #[test]
    fn what_no_cloud_names_so_is_no_public_bucket() {
        for text in [
            // No cloud's: the daemon would ask whichever host somebody writes.
            "wasbs://c@a.blob.evil.example/x",
            "wasbs://data@acct.blob.core.windows.net.evil.example/x",
            "wasbs://data@acct.blob.localhost/x",
            "wasbs://data@a.b.blob.core.windows.net/x",
            "wasbs://data@acct.blob.core.windows.net.blob.core.windows.net/x",
            "wasbs://da_ta@acct.blob.core.windows.net/x",
            "wasbs://data@ACCT.blob.core.windows.net/x",
            "abfss://data@acct.dfs.fabric.example/x",
            "s3://B/x",
            "s3://ab/x",
            "s3://a..b/x",
            "s3://bucket-/x",
            "s3://bucket_/x",
            "gs://ab/x",
        ] {
            assert_eq!(bucket(text), None, "{text}");
        }
        for name in ["datasets", "public-storage", "public-storage.s3.B", "public-storage.ftp.abc"]
        {
            assert_eq!(PublicBucket::named(&DatastoreName::new(name).unwrap()), None, "{name}");
        }
        for (name, expected) in
            [("public-storage.x", true), ("Public-Storage.", true), ("public-storage", false)]
        {
            assert_eq!(PublicBucket::has_name(name), expected, "{name}");
        }
    }

    #[test]
    fn pages_of_containers_are_addresses() {
        for (url, expected) in [
            (
                "https://azuremlexamples.blob.core.windows.net/datasets/mnist/",
                Some("wasbs://datasets@azuremlexamples.blob.core.windows.net/mnist/"),
            ),
            (
                "https://acct.dfs.core.windows.net/data/a%20b",
                Some("abfss://data@acct.dfs.core.windows.net/a b"),
            ),
            (
                "https://acct.blob.core.windows.net/data",
                Some("wasbs://data@acct.blob.core.windows.net/"),
            ),
            ("https://acct.blob.core.windows.net/", None),
            ("https://acct.blob.core.windows.net/data/a?sv=1&sig=x", None),
            ("http://acct.blob.core.windows.net/data/a", None),
            ("https://acct.blob.core.windows.net:444/data/a", None),
            ("https://me@acct.blob.core.windows.net/data/a", None),
            ("https://acct.blob.evil.example/data/a", None),
            ("https://example.org/data/a", None),
            ("https://acct.blob.core.windows.net/data/%FF", None),
        ] {
            let found = Address::of_page(url).map(|address| address.text);
            assert_eq!(found.as_deref(), expected, "{url}");
        }
    }

    proptest! {
        /// A name means the bucket that it was made of, and no other has it.
        #[test]
        fn names_mean_their_buckets(
            one in "(wasbs|abfss)://[a-z$0-9-]{3,8}@[a-z0-9]{3,6}\\.(blob|dfs)\\.core\\.windows\\.net/x|(s3|gs)://[a-z0-9._-]{3,12}/x",
            other in "(s3|gs)://[a-z0-9._-]{3,6}/x|wasbs://[a-z]{3}@[a-z]{3}\\.blob\\.core\\.windows\\.net/x",
        ) {
            let of = |text: &str| Address::parse(text).ok()?.public_bucket();
            if let Some(bucket) = of(&one) {
                let name = bucket.name().unwrap();
                prop_assert!(PublicBucket::has_name(name.as_str()));
                prop_assert_eq!(PublicBucket::named(&name), Some(bucket.clone()));
                prop_assert_eq!(of(&bucket.address().text), Some(bucket.clone()));
                if let Some(other) = of(&other) {
                    prop_assert_eq!(other.name() == Some(name), other == bucket);
                }
            }
        }

        /// Whatever is written, what is asked is a cloud's.
        #[test]
        fn nobody_but_a_cloud_is_asked(text in "(wasbs|abfss|s3|gs|https)://[ -~]{0,60}") {
            let address = Address::parse(&text).ok().or_else(|| Address::of_page(&text));
            let Some(bucket) = address.and_then(|address| address.public_bucket()) else {
                return Ok(());
            };
            match bucket.source(&PublicServers::default()) {
                Source::AzureBlob(azure) | Source::AzureDataLakeGen2(azure) => {
                    let url = azure.blob_url();
                    let host = url.strip_prefix("https://").unwrap();
                    let suffix = host.strip_prefix(&*azure.account_name).unwrap();
                    let is_known = suffix.strip_prefix(".blob.").is_some_and(|of| CLOUDS.contains(&of));
                    prop_assert!(is_known);
                    prop_assert!(azure.account_name.chars().all(char::is_alphanumeric));
                }
                Source::S3 { bucket, endpoint: None, .. } => {
                    prop_assert!(!bucket.contains(['/', '@', ':', '#', '?', '\\', '%']));
                }
                Source::Gcs { bucket, .. } => prop_assert!(!bucket.contains(['/', '?', '#', '%'])),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
