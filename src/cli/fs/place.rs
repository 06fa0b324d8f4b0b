//! What `azureml://…` on a command line points to.

use atelier_core::datastore::{Address, AddressError, Source, Unnamed};
use atelier_core::id::{DatastoreName, JobName};
use atelier_core::layout;
use atelier_proto::convert::told_source;
use atelier_proto::job::v1::{GetJobRequest, job_spec};
use atelier_proto::workspace::v1::ListDatastoresRequest;
use globset::{GlobBuilder, GlobMatcher};

use crate::cli::{Error, Kind};
use crate::client::Client;
use crate::client::data::{self, Data, Depth, Object};

const FORM: &str =
    "write azureml://datastores/NAME/paths/PATH, or azureml://jobs/JOB/outputs/OUTPUT/paths/PATH";

/// A path in a datastore; empty: all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Place {
    pub(in crate::cli) datastore: String,
    /// Without `/` at its end.
    pub(in crate::cli) path: String,
    /// Whether it was written as a folder, with `/` at its end.
    pub(in crate::cli) folder: bool,
}

/// Whether a text names something in a datastore rather than a file of this machine.
pub(super) fn is_remote(text: &str) -> bool {
    text.starts_with("azureml:") || Address::is_one(text)
}

/// What lies at an address of cloud storage, by the datastore that has it.
async fn of_address(text: &str, client: &Client) -> Result<Place, Error> {
    let request = ListDatastoresRequest {};
    let listed = client.call(client.workspace().list_datastores(request)).await?;
    let known: Vec<(DatastoreName, Source)> = listed
        .datastores
        .into_iter()
        .filter_map(|known| {
            let source = told_source(known.source?).ok()?;
            Some((DatastoreName::new(&known.name).ok()?, source))
        })
        .collect();
    let known = known.iter().map(|(name, source)| (name, source));
    let found = Address::parse(text).and_then(|address| address.find(known));
    match found {
        Ok((datastore, path)) => Ok(Place::new(datastore.as_str(), &path)),
        Err(error @ AddressError::Form { .. }) => Err(Error::usage(error.to_string())),
        Err(error @ AddressError::NoDatastore { .. }) => {
            Err(Error::new(Kind::NotFound, error.to_string()))
        }
        Err(error) => Err(Error::new(Kind::Refused, error.to_string())),
    }
}

impl Place {
    /// What `text` says; of a job's output where it lies is asked of the daemon.
    pub(super) async fn read(text: &str, client: &Client) -> Result<Self, Error> {
        if Address::is_one(text) {
            return of_address(text, client).await;
        }
        match text.strip_prefix("azureml://jobs/") {
            Some(rest) => of_job(text, rest, client).await,
            None => Self::of_datastore(text),
        }
    }

    fn of_datastore(text: &str) -> Result<Self, Error> {
        // What `paths` is not written for is the datastore.
        let whole = text.trim_end_matches('/');
        let whole = whole.strip_suffix("/paths").unwrap_or(whole);
        let short = whole.strip_prefix("azureml://datastores/").filter(|rest| !rest.contains('/'));
        let found = match short.map(DatastoreName::new) {
            Some(Ok(datastore)) => Some((datastore, String::new())),
            Some(Err(_)) => None,
            None => layout::parse_datastore_uri(text),
        };
        let Some((datastore, path)) = found else {
            let cause = format!("'{text}' names nothing in a datastore");
            return Err(Error::usage(cause).help(FORM));
        };
        Ok(Self::new(datastore.as_str(), &path))
    }

    pub(in crate::cli) fn new(datastore: &str, path: &str) -> Self {
        Self {
            datastore: datastore.to_owned(),
            path: path.trim_end_matches('/').to_owned(),
            folder: path.is_empty() || path.ends_with('/'),
        }
    }

    /// A path below this one.
    pub(super) fn join(&self, below: &str) -> Self {
        let path = match self.path.as_str() {
            "" => below.to_owned(),
            path => format!("{path}/{below}"),
        };
        Self { datastore: self.datastore.clone(), path, folder: false }
    }

    /// Its last segment.
    pub(in crate::cli) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// As it is written.
    pub(in crate::cli) fn uri(&self) -> String {
        let end = if self.folder && !self.path.is_empty() { "/" } else { "" };
        layout::datastore_uri(&self.datastore, &format!("{}{end}", self.path))
    }

    /// The URI of another path of the datastore.
    pub(super) fn uri_of(&self, path: &str) -> String {
        layout::datastore_uri(&self.datastore, path)
    }

    /// What the daemon said of it.
    pub(super) fn failed(&self, doing: &str, error: &data::Error) -> Error {
        failed(doing, &self.uri(), error)
    }

    /// The object of this path, or nothing, and whether there are others below.
    pub(super) async fn look(&self, data: &Data) -> Result<Look, Error> {
        if self.path.is_empty() {
            return Ok(Look::Folder);
        }
        let page = data.page(&self.datastore, &self.path, None, Depth::Level).await;
        let page = page.map_err(|error| self.failed("looking at", &error))?;
        let own = page.objects.iter().find(|object| object.path == self.path);
        Ok(match own {
            Some(object) if !self.folder => Look::Object(object.clone()),
            None if !page.unnamed.is_empty() => Look::Folder,
            _ if page.objects.is_empty() && page.folders.is_empty() => Look::Nothing,
            Some(_) => Look::Nothing,
            None => Look::Folder,
        })
    }

    /// Everything below it.
    pub(in crate::cli) async fn list(
        &self,
        data: &Data,
        depth: Depth,
    ) -> Result<data::Page, Error> {
        let listed = data.list(&self.datastore, &self.path, depth).await;
        listed.map_err(|error| self.failed("listing", &error))
    }

    /// What a listing of it left out, in words.
    pub(in crate::cli) fn lacks(&self, unnamed: &Unnamed) -> Option<String> {
        (!unnamed.is_empty())
            .then(|| format!("{} has {unnamed}; the store's own tools reach these", self.uri()))
    }

    /// If its path is a pattern, the folder that all that match lie in, and the pattern.
    pub(super) fn pattern(&self) -> Result<Option<(Self, GlobMatcher)>, Error> {
        let plain: Vec<&str> = self
            .path
            .split('/')
            .take_while(|segment| !segment.contains(['*', '?', '[', '{']))
            .collect();
        let plain = plain.join("/");
        if plain.len() == self.path.len() {
            return Ok(None);
        }
        let glob =
            GlobBuilder::new(&self.path).literal_separator(true).backslash_escape(false).build();
        let glob = glob.map_err(|error| {
            Error::usage(format!("'{}' is no pattern: {}", self.path, error.kind()))
                .help("* and ? are within a name, ** goes through folders; [*] is a star itself")
        })?;
        let base = Self { datastore: self.datastore.clone(), path: plain, folder: true };
        Ok(Some((base, glob.compile_matcher())))
    }

    /// How deep a listing has to go for what may match.
    pub(super) fn depth(&self, base: &Self) -> Depth {
        let below = self.path.strip_prefix(base.path.as_str()).unwrap_or(&self.path);
        match below.trim_start_matches('/').contains('/') || below.contains("**") {
            true => Depth::All,
            false => Depth::Level,
        }
    }

    /// That nothing is there.
    pub(super) fn missing(&self) -> Error {
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Error::new(Kind::NotFound, format!("nothing is stored at {}", self.uri()))
            .help(format!("see what there is: atelier fs ls {}", self.uri_of(folder)))
    }
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    Object(Object),
    Folder,
    Nothing,
}

/// What the daemon said.
pub(super) fn failed(doing: &str, what: &str, error: &data::Error) -> Error {
    use data::Error as E;
    let cause = format!("{doing} {what}: {error}");
    match error {
        E::Lost(_) => Error::new(Kind::Unreachable, cause).help("run the command again"),
        E::Refused { status, .. } => match status {
            401 | 403 => Error::new(Kind::NotAllowed, cause),
            404 | 410 => Error::new(Kind::NotFound, cause),
            502..=504 => Error::new(Kind::Unreachable, cause).help("run the command again"),
            400..=499 | 507 => Error::new(Kind::Refused, cause),
            _ => Error::new(Kind::Failed, cause),
        },
    }
}

/// `J/outputs/O[/paths/P]`
async fn of_job(text: &str, rest: &str, client: &Client) -> Result<Place, Error> {
    let wrong = || Error::usage(format!("'{text}' names no output of a job")).help(FORM);
    let mut parts = rest.splitn(4, '/');
    let (job, word, output) = (parts.next(), parts.next(), parts.next());
    let (Some(job), Some("outputs"), Some(output)) = (job, word, output) else {
        return Err(wrong());
    };
    let path = match parts.next() {
        None | Some("" | "paths") => "",
        Some(path) => path.strip_prefix("paths/").ok_or_else(wrong)?,
    };
    if JobName::new(job).is_err() {
        return Err(wrong());
    }
    if matches!(output, "artifacts" | "default") {
        let root = format!("{}/{path}", layout::artifact_root(job));
        return Ok(Place::new(layout::ARTIFACT_STORE, &root));
    }
    let request = GetJobRequest { name: job.to_owned(), advise: false };
    let found = client.call(client.jobs().get_job(request)).await?;
    let outputs = match found.spec.and_then(|spec| spec.kind) {
        Some(job_spec::Kind::Command(command)) => command.outputs,
        None => Default::default(),
    };
    let known = outputs.get(output).and_then(|output| output.path.as_deref());
    let Some((datastore, root)) = known.and_then(layout::parse_datastore_uri) else {
        let mut names: Vec<&str> = outputs.keys().map(String::as_str).collect();
        names.sort_unstable();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let cause = format!("job {job} has no output '{output}' in a datastore");
        return Err(
            Error::new(Kind::NotFound, cause).help(format!("it has: {names}, and artifacts"))
        );
    };
    let root = root.trim_end_matches('/');
    let path = if path.is_empty() { root.to_owned() } else { format!("{root}/{path}") };
    Ok(Place::new(datastore.as_str(), &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::of_datastore(text).unwrap()
    }

    #[test]
    fn every_form_of_a_place() {
        let sub = "azureml://subscriptions/s/resourcegroups/r/workspaces/w/datastores/d/paths/a/b";
        for (text, path, folder) in [
            ("azureml://datastores/d", "", true),
            ("azureml://datastores/d/", "", true),
            ("azureml://datastores/d/paths", "", true),
            ("azureml://datastores/d/paths/", "", true),
            ("azureml://datastores/d/paths/a/b", "a/b", false),
            ("azureml://datastores/d/paths/a/b/", "a/b", true),
            (sub, "a/b", false),
        ] {
            let found = place(text);
            assert_eq!(
                (&*found.datastore, &*found.path, found.folder),
                ("d", path, folder),
                "{text}"
            );
        }
        for text in
            ["azureml:x", "azureml://datastores/", "azureml://datastores/d/p/x", "azureml://x"]
        {
            assert_eq!(Place::of_datastore(text).unwrap_err().kind, Kind::Usage, "{text}");
        }
        assert_eq!(
            place("azureml://datastores/d/paths/a/b/").uri(),
            "azureml://datastores/d/paths/a/b/"
        );
        assert_eq!(
            place("azureml://datastores/d").join("x").uri(),
            "azureml://datastores/d/paths/x"
        );
    }

    #[test]
    fn patterns_begin_where_the_first_sign_is() {
        let matches = |pattern: &str, path: &str| {
            let (_, glob) = place(&format!("azureml://datastores/d/paths/{pattern}"))
                .pattern()
                .unwrap()
                .unwrap();
            glob.is_match(path)
        };
        for (pattern, base, depth) in [
            ("*", "", Depth::Level),
            ("a/b*.csv", "a", Depth::Level),
            ("a/*/c", "a", Depth::All),
            ("a/**", "a", Depth::All),
            ("a b/{x,y}", "a b", Depth::Level),
        ] {
            let place = place(&format!("azureml://datastores/d/paths/{pattern}"));
            let (found, _) = place.pattern().unwrap().unwrap();
            assert_eq!((&*found.path, place.depth(&found)), (base, depth), "{pattern}");
        }
        assert!(matches("a/*.csv", "a/x.csv") && !matches("a/*.csv", "a/b/x.csv"));
        assert!(matches("a/**/x", "a/b/c/x") && matches("a/**/x", "a/x") && matches("**", "a/b"));
        assert!(matches("a/{x,y}?", "a/y1") && matches("[*]", "*") && !matches("[*]", "x"));
        assert_eq!(place("azureml://datastores/d/paths/a/b").pattern().unwrap().map(|_| ()), None);
        assert!(place("azureml://datastores/d/paths/a[").pattern().is_err());
    }
}
