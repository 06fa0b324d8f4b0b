//! From what was sent to what is submitted: checks again what the client checked, resolves every
//! reference, and fixes where each output goes.

use std::sync::Arc;

use atelier_core::access::Caller;
use atelier_core::asset::{Draft, Kind, MadeBy, Refusal, Unresolved};
use atelier_core::component;
use atelier_core::datastore::{Address, AddressError, PublicServers, Source, find_https};
use atelier_core::egress::Egress;
use atelier_core::expr::{self, Template};
use atelier_core::id::{DatastoreName, JobName};
use atelier_core::layout;
use atelier_core::resource::ContainerNeed;
use atelier_core::spec::{
    AssetRef, Code, CommandJob, DataKind, DataUri, Environment, InlineEnvironment, Input,
    InputMode, SecretRef,
};

use super::assets::{self, Assets};
use super::datastores::no_such;
use super::environments::{self, Environments};
use super::retention::Retention;
use super::shared::Committed;
use crate::storage::{ContentStore, Datastore, Datastores};
use crate::store::{self, Store};
use crate::vault::{self, Vault};

/// Knows what references may point to.
#[derive(Clone)]
pub struct Admission {
    pub(super) store: Arc<dyn Store>,
    pub(super) datastores: Datastores,
    pub(super) content: ContentStore,
    pub(super) committed: Arc<Committed>,
    pub(super) environments: Environments,
    pub(super) assets: Assets,
    pub(super) vault: Vault,
    pub(super) retention: Retention,
    /// The image policy: no image may be left out.
    pub(super) require_containers: bool,
    pub(super) public: Public,
}

/// What may be read that is no datastore's.
#[derive(Clone, Debug)]
pub(super) struct Public {
    /// Whether anything may.
    pub(super) is_allowed: bool,
    /// Where nodes fetch it from.
    pub(super) egress: Arc<Egress>,
    /// Where it lies.
    pub(super) servers: PublicServers,
}

/// How what is no datastore's may be had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Not at all.
    Closed,
    /// As a page of the web.
    Page,
    /// As what lies in a bucket.
    Bucket,
    /// As a page of the web, if it is one of a file; else as what lies in a bucket.
    Either,
}

impl Open {
    fn of(kind: DataKind) -> Self {
        match kind {
            DataKind::UriFile => Self::Page,
            DataKind::CustomModel => Self::Either,
            _ => Self::Bucket,
        }
    }
}

const NO_PUBLIC: &str = "this workspace reads inputs from datastores only (serve --public-data refuse): have an admin \
                         make a datastore of it, or upload the data";

/// Why a job is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of the specification is broken.
    #[error("{field}: {problem}")]
    Invalid {
        /// Where.
        field: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Something named does not exist.
    #[error("{field}: {problem}")]
    Missing {
        /// Where.
        field: String,
        /// What is missing and what to do.
        problem: String,
    },
    /// What later work will run.
    #[error("{field}: {problem}")]
    NotYet {
        /// Where.
        field: String,
        /// What, and what to do instead.
        problem: String,
    },
    /// A secret that is not to be had.
    #[error("{field}: {error}")]
    Secret {
        /// Where.
        field: String,
        /// Why.
        #[source]
        error: vault::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Invalid { field: field.into(), problem: problem.into() }
}

fn missing(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Missing { field: field.into(), problem: problem.into() }
}

fn not_yet(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::NotYet { field: field.into(), problem: problem.into() }
}

impl Admission {
    /// Checks and resolves. `name` is the job's name, because output paths may hold it.
    pub async fn admit(
        &self,
        name: &JobName,
        mut job: CommandJob,
        caller: &Caller,
    ) -> Result<CommandJob, Error> {
        if let Some(problem) = layout::unfit_job_name(name) {
            return Err(invalid("name", problem));
        }
        self.must_stay("name", layout::BLOB_STORE, &layout::outputs_root(name))?;
        self.must_stay("name", layout::ARTIFACT_STORE, &layout::artifact_root(name.as_str()))?;
        job.name = Some(name.clone());
        if let Err(problems) = atelier_core::spec::validate_submitted(&job) {
            return Err(invalid("job", problems.to_string()));
        }
        self.pin_secrets(&mut job, caller)?;
        self.check_code(&job).await?;
        job.environment = self.environment(job.environment).await?;
        self.ask_for_containers(&mut job)?;
        let inputs = std::mem::take(&mut job.inputs);
        for (port, input) in inputs {
            let input = match input {
                // Which asset it is of, and by which address it was named, is said here, and by nobody else.
                Input::Data { kind, mode, uri, .. } => {
                    let field = format!("inputs.{port}");
                    let (uri, asset) = self.of_asset(&field, kind, uri)?;
                    let written = match &uri {
                        DataUri::Cloud(text) | DataUri::Http(text) => Some(text.clone()),
                        _ => None,
                    };
                    let uri = match uri {
                        // The job reads it itself, and wants what it has written.
                        DataUri::Http(page) if mode == InputMode::Direct => DataUri::Http(page),
                        uri => self.resolve(&field, uri, Open::of(kind)).await?,
                    };
                    let stays = |written: &String| match &uri {
                        DataUri::Http(address) | DataUri::Cloud(address) => address == written,
                        _ => false,
                    };
                    let address = written.filter(|written| !stays(written));
                    Input::Data { kind, mode, uri, asset, address }
                }
                other => other,
            };
            job.inputs.insert(port, input);
        }
        let outputs = std::mem::take(&mut job.outputs);
        for (port, mut output) in outputs {
            let field = format!("outputs.{port}");
            let path = match &output.path {
                None => {
                    let is_folder = output.kind != DataKind::UriFile;
                    layout::output_uri(layout::BLOB_STORE, name, &port, is_folder)
                }
                Some(path) => {
                    let scope = expr::Values {
                        name: Some(name.to_string()),
                        output_name: Some(port.to_string()),
                        default_datastore: Some(layout::BLOB_STORE.to_owned()),
                        ..expr::Values::default()
                    };
                    Template::parse(path)
                        .and_then(|template| template.render(&scope))
                        .map_err(|e| invalid(format!("{field}.path"), e.to_string()))?
                }
            };
            let path = match Address::is_one(&path) {
                true => {
                    let (datastore, path) = self.of_address(&format!("{field}.path"), &path)?;
                    layout::datastore_uri(datastore.as_str(), &path)
                }
                false => path,
            };
            self.check_output_path(name, &field, &path)?;
            output.path = Some(path);
            job.outputs.insert(port, output);
        }
        Ok(job)
    }

    /// Has each secret mean one version from now on, whatever is set later.
    ///
    /// # Errors
    /// There is no such secret, or the caller's jobs may not use it.
    pub fn pin_secrets(&self, job: &mut CommandJob, caller: &Caller) -> Result<(), Error> {
        for (variable, value) in &mut job.environment_variables {
            let Some(secret) = SecretRef::of(value) else { continue };
            let pinned = self.vault.pin(&secret, caller).map_err(|error| Error::Secret {
                field: format!("environment_variables.{variable}"),
                error,
            })?;
            *value = pinned.to_string();
        }
        Ok(())
    }

    /// The component as it is from now on: its code is there, and its environment means one version.
    ///
    /// # Errors
    /// It breaks a rule, or names what is not there.
    pub async fn pin_component(
        &self,
        mut draft: component::Draft,
    ) -> Result<component::Draft, Error> {
        draft.check().map_err(|problems| invalid("component", problems.to_string()))?;
        if let Some(code) = &draft.content.code {
            self.uploaded("code", code).await?;
        }
        draft.content.environment = self.environment(draft.content.environment).await?;
        Ok(draft)
    }

    async fn check_code(&self, job: &CommandJob) -> Result<(), Error> {
        match &job.code {
            None => Ok(()),
            Some(code) => self.uploaded("code", code).await,
        }
    }

    /// Whether the workspace has a folder.
    async fn uploaded(&self, field: &str, folder: &Code) -> Result<(), Error> {
        match folder {
            Code::Local(path) => Err(invalid(
                field,
                format!("'{path}' is on your machine; upload it first (atelier job create does)"),
            )),
            Code::Snapshot(root) if self.content.missing(vec![*root]).await?.is_empty() => Ok(()),
            Code::Snapshot(root) => Err(missing(
                field,
                format!("the workspace has no snapshot {root}; upload it first"),
            )),
        }
    }

    /// The environment as the job has it from now on: a name means one version, whatever is made later.
    async fn environment(&self, environment: Environment) -> Result<Environment, Error> {
        match environment {
            Environment::Host => Ok(environment),
            Environment::Inline(inline) => {
                self.check_made_of(&inline).await?;
                Ok(Environment::Inline(inline))
            }
            Environment::Named(asset) => {
                let (pinned, inline) = self.environments.pin(&asset).map_err(unresolved)?;
                self.check_made_of(&inline).await?;
                Ok(Environment::Named(pinned))
            }
        }
    }

    /// Has the job ask for nodes that can make its environment.
    ///
    /// # Errors
    /// The environment does not exist.
    pub fn ask_for_containers(&self, job: &mut CommandJob) -> Result<(), Error> {
        let need = |made_of: &InlineEnvironment| made_of.container_need(self.require_containers);
        job.resources.demand.containers = match &job.environment {
            Environment::Host => ContainerNeed::Nothing,
            Environment::Inline(inline) => need(inline),
            Environment::Named(asset) => {
                let (_, inline) = self.environments.pin(asset).map_err(unresolved)?;
                need(&inline)
            }
        };
        Ok(())
    }

    async fn check_made_of(&self, inline: &InlineEnvironment) -> Result<(), Error> {
        match &inline.build {
            None => Ok(()),
            Some(build) => self.uploaded("environment.build.path", &build.path).await,
        }
    }

    /// Where a named asset lies, and which version of it that is from now on; other references stay.
    fn of_asset(
        &self,
        field: &str,
        kind: DataKind,
        uri: DataUri,
    ) -> Result<(DataUri, Option<AssetRef>), Error> {
        let DataUri::Asset(named) = uri else { return Ok((uri, None)) };
        let found = self.assets.find(kind.asset_kind(), &named);
        let version = found.map_err(|error| unknown(field, error))?.version;
        version.fits(kind).map_err(|unfit| invalid(field, unfit.to_string()))?;
        let asset = version.reference();
        Ok((version.uri, Some(asset)))
    }

    /// Checks a data asset or a model that is to be made, and follows its path to where it lies; and which job
    /// wrote it, if the path says.
    pub async fn locate(&self, draft: Draft) -> Result<(Draft, Option<MadeBy>), Error> {
        draft.check().map_err(|problems| invalid("asset", problems.to_string()))?;
        let made_by = assets::made_by(&draft.uri);
        // A model is read by others than jobs, too.
        let open = match draft.kind() {
            Kind::Model => Open::Closed,
            Kind::Data | Kind::Environment | Kind::Component => Open::of(draft.form),
        };
        let uri = self.resolve("path", draft.uri.clone(), open).await?;
        Ok((Draft { uri, ..draft }, made_by))
    }

    /// Follows a reference to where the data lies, which may be no datastore if everybody may read there.
    async fn resolve(&self, field: &str, uri: DataUri, open: Open) -> Result<DataUri, Error> {
        let (datastore, path) = match self.as_cloud(uri, open) {
            DataUri::Datastore { datastore, path } => (datastore, path),
            DataUri::Cloud(text) => match self.of_address(field, &text) {
                Err(missing @ Error::Missing { .. }) => {
                    return self.open_to_all(field, &text, open)?.ok_or(missing);
                }
                found => found?,
            },
            DataUri::Http(url) => match self.of_page(&url) {
                Some(found) => found,
                None if self.public.is_allowed => {
                    self.may_be_fetched(field, &url)?;
                    return Ok(DataUri::Http(url));
                }
                None => return Err(invalid(field, NO_PUBLIC)),
            },
            other => return self.elsewhere(field, other).await,
        };
        self.datastore(field, &datastore)?;
        let below = path.trim_end_matches('/');
        if layout::is_uncommitted(below) {
            let problem = format!("'{below}' is kept for what jobs have not committed yet");
            return Err(invalid(format!("{field}.path"), problem));
        }
        if !below.is_empty() {
            crate::storage::ObjectPath::new(below)
                .map_err(|e| invalid(format!("{field}.path"), e.to_string()))?;
        }
        if datastore.as_str() == layout::BLOB_STORE
            && let Some(job) = layout::job_of_output(below)
            && let Some(job) = self.store.job(&job)?
        {
            self.committed.tidy(&job).await?;
        }
        self.must_stay(field, datastore.as_str(), below)?;
        Ok(DataUri::Datastore { datastore, path })
    }

    /// Refuses a page that no node would fetch, as far as its host says.
    fn may_be_fetched(&self, field: &str, url: &str) -> Result<(), Error> {
        let url =
            reqwest::Url::parse(url).map_err(|e| invalid(field, format!("it is no URL: {e}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid(field, format!("'{}' is not http or https", url.scheme())));
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        match self.public.egress.refuses_host(host, port) {
            None => Ok(()),
            Some(inside) => {
                let shown: String = host.chars().take(100).collect();
                Err(invalid(field, format!("'{shown}' is not read: {}", inside.told())))
            }
        }
    }

    /// Where the data of a reference lies that names no storage.
    async fn elsewhere(&self, field: &str, uri: DataUri) -> Result<DataUri, Error> {
        match uri {
            DataUri::JobOutput { job, output, path } => {
                self.job_output(field, &job, &output, &path).await
            }
            DataUri::RunArtifact { run, path } => {
                let job = JobName::new(&run).map_err(|e| invalid(field, e.to_string()))?;
                self.job_output(field, &job, "artifacts", &path).await
            }
            DataUri::Local(path) => Err(invalid(
                field,
                format!("'{path}' is on your machine; upload it first (atelier job create does)"),
            )),
            DataUri::Asset(AssetRef { name, .. }) => {
                Err(invalid(field, format!("'{name}' is an asset; give the path that it has")))
            }
            DataUri::Datastore { .. } | DataUri::Http(_) | DataUri::Cloud(_) => Ok(uri),
        }
    }

    /// The datastore that has what lies at an address of cloud storage, and the path there.
    fn of_address(&self, field: &str, text: &str) -> Result<(DatastoreName, String), Error> {
        let all = self.datastores.all();
        let found = Address::parse(text).and_then(|address| address.find(sources(&all)));
        found.map_err(|error| match error {
            AddressError::NoDatastore { .. } => missing(field, error.to_string()),
            AddressError::NotServed { .. } => not_yet(field, error.to_string()),
            AddressError::Form { .. } | AddressError::Ambiguous { .. } => {
                invalid(field, error.to_string())
            }
        })
    }

    /// A folder's page as the address of cloud storage that it is: a page of the web is one file.
    fn as_cloud(&self, uri: DataUri, open: Open) -> DataUri {
        let is_of_bucket = |url: &str| match open {
            Open::Bucket => self.public.is_allowed,
            Open::Either => self.public.is_allowed && url.ends_with('/'),
            Open::Closed | Open::Page => false,
        };
        let address = match &uri {
            DataUri::Http(url) if is_of_bucket(url) => {
                Address::of_page(url).filter(|_| self.of_page(url).is_none())
            }
            _ => None,
        };
        address.map_or(uri, |address| DataUri::Cloud(address.to_string()))
    }

    /// Where what no datastore has is read as everybody may read it; `None`: nowhere.
    fn open_to_all(&self, field: &str, text: &str, open: Open) -> Result<Option<DataUri>, Error> {
        let Some(address) = Address::parse(text).ok().filter(|_| self.public.is_allowed) else {
            return Ok(None);
        };
        let bucket = match open {
            Open::Closed => None,
            Open::Page => {
                return Ok(address.public_url(&self.public.servers).map(DataUri::Http));
            }
            Open::Bucket | Open::Either => address.public_bucket().and_then(|bucket| bucket.name()),
        };
        // The name is kept for such; one that was given before it was would open what an admin keeps.
        if bucket.is_none_or(|name| self.datastores.get(name.as_str()).is_ok()) {
            return Ok(None);
        }
        let below = address.path().trim_end_matches('/');
        if !below.is_empty() {
            crate::storage::ObjectPath::new(below)
                .map_err(|e| invalid(format!("{field}.path"), e.to_string()))?;
        }
        Ok(Some(DataUri::Cloud(text.to_owned())))
    }

    /// The same of an address of the web, if a datastore has it.
    fn of_page(&self, url: &str) -> Option<(DatastoreName, String)> {
        find_https(url, sources(&self.datastores.all()))
    }

    async fn job_output(
        &self,
        field: &str,
        job: &JobName,
        output: &str,
        path: &str,
    ) -> Result<DataUri, Error> {
        let known = self
            .store
            .job(job)?
            .ok_or_else(|| missing(field, format!("there is no job '{job}'")))?;
        let (datastore, root) = if output == "artifacts" {
            let datastore = DatastoreName::new(layout::ARTIFACT_STORE)
                .map_err(|e| invalid(field, e.to_string()))?;
            (datastore, layout::artifact_root(job.as_str()))
        } else {
            let found = known.spec.outputs.iter().find(|(name, _)| name.as_str() == output);
            let Some((_, found)) = found else {
                let names: Vec<&str> = known.spec.outputs.keys().map(|n| n.as_str()).collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let problem = format!("job '{job}' has no output '{output}' (it has: {known})");
                return Err(missing(field, problem));
            };
            found.path.as_deref().and_then(layout::parse_datastore_uri).ok_or_else(|| {
                invalid(field, format!("output '{output}' of job '{job}' is not in a datastore"))
            })?
        };
        if known.ended().is_none() {
            let problem = format!("job '{job}' is not over, so its outputs are not there yet");
            return Err(missing(field, problem));
        }
        self.datastore(field, &datastore)?;
        self.committed.tidy(&known).await?;
        let root = root.trim_end_matches('/');
        let path = path.trim_matches('/');
        let path = if path.is_empty() { root.to_owned() } else { format!("{root}/{path}") };
        for (what, at) in self.retention.removed(job)? {
            if what.holds(&known, datastore.as_str(), &format!("{path}/")) {
                let what = what.word();
                let problem = format!(
                    "the {what} of job '{job}' were removed at {at}, as the workspace's retention rules say"
                );
                return Err(missing(field, problem));
            }
        }
        self.must_stay(field, datastore.as_str(), &path)?;
        Ok(DataUri::Datastore { datastore, path })
    }

    /// That what lies at a path is not being removed.
    fn must_stay(&self, field: &str, datastore: &str, path: &str) -> Result<(), Error> {
        match self.retention.being_removed(datastore, path)? {
            None => Ok(()),
            Some(why) => Err(missing(
                field,
                format!(
                    "what lies at {path} of {datastore} is being removed ({why}); try again later"
                ),
            )),
        }
    }

    fn datastore(&self, field: &str, name: &DatastoreName) -> Result<(), Error> {
        if self.datastores.get(name.as_str()).is_ok() {
            return Ok(());
        }
        Err(missing(field, no_such(name.as_str(), &self.datastores).to_string()))
    }

    fn check_output_path(&self, job: &JobName, field: &str, uri: &str) -> Result<(), Error> {
        let Some((datastore, path)) = layout::parse_datastore_uri(uri) else {
            return Err(invalid(
                format!("{field}.path"),
                format!(
                    "'{uri}' is not in a datastore; write azureml://datastores/NAME/paths/PATH"
                ),
            ));
        };
        self.datastore(field, &datastore)?;
        let trimmed = path.trim_end_matches('/');
        if trimmed.is_empty() {
            return Err(invalid(
                format!("{field}.path"),
                "it names a whole datastore; add a folder after 'paths/'",
            ));
        }
        crate::storage::ObjectPath::new(trimmed)
            .map(drop)
            .map_err(|e| invalid(format!("{field}.path"), e.to_string()))?;
        self.must_stay(&format!("{field}.path"), datastore.as_str(), trimmed)?;
        // Content, uploads and other jobs' results must stay what they are.
        let mut segments = trimmed.split('/');
        let first = segments.next().unwrap_or_default();
        let is = |folder| layout::is_named(first, folder);
        let kept = match first {
            layout::OUTPUTS => segments.next() != Some(job.as_str()),
            _ => {
                let all = [layout::OUTPUTS, layout::UPLOADS, layout::RUNS, layout::UNCOMMITTED];
                all.into_iter().any(is)
            }
        };
        if kept {
            return Err(invalid(
                format!("{field}.path"),
                format!(
                    "'{trimmed}' is kept for the workspace and for other jobs; choose another \
                     folder, or {}/…",
                    layout::outputs_root(job)
                ),
            ));
        }
        Ok(())
    }
}

/// Where the data of datastores lies.
fn sources(all: &[Datastore]) -> impl Iterator<Item = (&DatastoreName, &Source)> {
    all.iter().filter_map(|known| Some((known.name(), &known.record()?.datastore.source)))
}

fn unknown(field: &str, error: assets::Error) -> Error {
    use assets::Error as E;
    match error {
        E::Store(error) => Error::Store(error),
        E::Refused(Refusal::Unresolved(
            Unresolved::Archived { .. } | Unresolved::ArchivedLabel { .. },
        )) => invalid(field, error.to_string()),
        E::Refused(_)
        | E::OtherKind { .. }
        | E::Registry { .. }
        | E::Invalid(_)
        | E::NotOwner { .. } => missing(field, error.to_string()),
    }
}

fn unresolved(error: environments::Error) -> Error {
    use environments::Error as E;
    match error {
        E::Store(error) => Error::Store(error),
        E::Storage(error) => Error::Storage(error),
        E::Refused(Refusal::Unresolved(Unresolved::Archived { .. })) | E::Invalid(_) => {
            invalid("environment", error.to_string())
        }
        E::Refused(_) | E::NoSnapshot(_) => missing("environment", error.to_string()),
    }
}
