//! What an attempt may read and write of the datastores: its inputs, its outputs, its artifacts.

#[cfg(test)]
pub(in crate::identity) mod tests;

use atelier_core::id::{DatastoreName, JobName};
use atelier_core::layout;
use atelier_core::spec::{CommandJob, Input, OutputMode};

/// Prefixes, each of one datastore.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Grants {
    read: Vec<(DatastoreName, String)>,
    write: Vec<(DatastoreName, String)>,
}

impl Grants {
    /// Whether `path` lies at or below a granted prefix. What may be written may be read back.
    pub fn allow(&self, datastore: &DatastoreName, path: &str, write: bool) -> bool {
        self.prefix(datastore, path, write).is_some()
    }

    /// The granted prefix that `path` lies at or below.
    pub fn prefix(&self, datastore: &DatastoreName, path: &str, write: bool) -> Option<&str> {
        // Whoever may read all of a datastore does not see what other jobs have not committed.
        let write = write || layout::is_uncommitted(path);
        let covers = |(store, prefix): &(DatastoreName, String)| {
            store == datastore
                && (prefix.is_empty()
                    || path
                        .strip_prefix(prefix.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        };
        let written = self.write.iter().find(|granted| covers(granted));
        let found = written.or_else(|| self.read.iter().find(|granted| !write && covers(granted)));
        found.map(|(_, prefix)| prefix.as_str())
    }
}

/// The grants of any attempt of this job. Its references were resolved when it was accepted.
pub fn grants_of(job: &JobName, spec: &CommandJob) -> Grants {
    let mut grants = Grants::default();
    for input in spec.inputs.values() {
        if let Input::Data { uri, .. } = input
            && let Some((datastore, path)) = uri.read_from()
        {
            grants.read.push((datastore, trim(&path)));
        }
    }
    for (name, output) in &spec.outputs {
        // A job writes a direct output itself, with what it brings along.
        if output.mode == OutputMode::Direct {
            continue;
        }
        if let Some((datastore, path)) =
            output.path.as_deref().and_then(layout::parse_datastore_uri)
        {
            if output.mode == OutputMode::RwMount {
                let uncommitted = format!("{}/{name}", layout::uncommitted_root(job));
                grants.write.push((datastore.clone(), uncommitted));
            }
            grants.write.push((datastore, trim(&path)));
        }
    }
    if let Ok(artifacts) = DatastoreName::new(layout::ARTIFACT_STORE) {
        grants.write.push((artifacts, layout::artifact_root(job.as_str())));
    }
    grants
}

fn trim(path: &str) -> String {
    path.trim_matches('/').to_owned()
}
