//! Where everybody may read what lies at an address, if its owner lets everybody.

use super::{Address, AddressError, Bucket, PublicServers};
use crate::url::encoded;

impl Address {
    /// The page of the web that an object is if everybody may read it; `None`: the address names a whole bucket or
    /// a folder.
    ///
    /// Forms as in Azure's "Get Blob", Amazon's "Methods for accessing a general purpose bucket" and Google's
    /// "Request endpoints".
    pub fn public_url(&self, servers: &PublicServers) -> Option<String> {
        if self.path.is_empty() || self.path.ends_with('/') {
            return None;
        }
        let root = match &self.bucket {
            Bucket::Azure { account, container, suffix, .. } => match &servers.azure {
                Some(server) => format!("{}/{account}/{container}", server.trim_end_matches('/')),
                None => format!("https://{account}.blob.{suffix}/{container}"),
            },
            Bucket::S3(bucket) => match &servers.s3 {
                Some(server) => format!("{}/{bucket}", server.trim_end_matches('/')),
                // A name with dots in it is of no certificate.
                None if bucket.contains('.') => format!("https://s3.amazonaws.com/{bucket}"),
                None => format!("https://{bucket}.s3.amazonaws.com"),
            },
            Bucket::Gcs(bucket) => format!("https://storage.googleapis.com/{bucket}"),
        };
        // Whoever reads a URL takes these away, and would read another object.
        if self.path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return None;
        }
        Some(format!("{root}/{}", encoded(&self.path)))
    }

    /// That no datastore has it, with the command that makes one.
    pub fn without_datastore(&self) -> AddressError {
        AddressError::NoDatastore { text: self.text.clone(), definition: self.definition() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_not_taken_for_a_name_and_not_told() {
        let text = "wasbs://c@a.blob.core.windows.net/x.csv?sv=2022-11-02&sig=c2VjcmV0";
        let error = Address::parse(text).unwrap_err().to_string();
        assert!(error.contains("x.csv?…") && error.contains("sas_token"), "{error}");
        assert!(!error.contains("c2VjcmV0"), "{error}");
        assert!(Address::parse("s3://b/x?design=1&sigma=2").is_ok());
    }

    #[test]
    fn objects_are_pages_of_the_web() {
        let url = |text: &str, servers: &_| Address::parse(text).unwrap().public_url(servers);
        let clouds = PublicServers::default();
        for (text, expected) in [
            (
                "wasbs://datasets@azuremlexamples.blob.core.windows.net/titanic.csv",
                Some("https://azuremlexamples.blob.core.windows.net/datasets/titanic.csv"),
            ),
            (
                "abfss://f@a.dfs.core.chinacloudapi.cn/a b/c?d",
                Some("https://a.blob.core.chinacloudapi.cn/f/a%20b/c%3Fd"),
            ),
            ("s3://open-data/x/y.csv", Some("https://open-data.s3.amazonaws.com/x/y.csv")),
            ("s3://open.data/ä", Some("https://s3.amazonaws.com/open.data/%C3%A4")),
            ("gs://b/#1", Some("https://storage.googleapis.com/b/%231")),
            ("gs://b/folder/", None),
            ("gs://b/a/../../other/x", None),
            ("s3://b", None),
        ] {
            assert_eq!(url(text, &clouds).as_deref(), expected, "{text}");
        }
        let server = || Some("http://127.0.0.1:9000/".to_owned());
        let own = PublicServers { s3: server(), azure: server() };
        assert_eq!(url("s3://b/x", &own).as_deref(), Some("http://127.0.0.1:9000/b/x"));
        let blob = url("wasbs://c@acct.blob.core.windows.net/x", &own);
        assert_eq!(blob.as_deref(), Some("http://127.0.0.1:9000/acct/c/x"));
    }

    #[test]
    fn who_has_no_datastore_is_told_how_to_make_one() {
        let told = Address::parse("s3://b/x").unwrap().without_datastore().to_string();
        assert!(told.contains("'s3://b/x'") && told.contains("datastore create"), "{told}");
    }
}
