//! From what a client names as the source of a version to where it lies.

use atelier_core::access::{Permission, Role};
use atelier_core::asset::{Draft, MadeBy};
use atelier_core::id::{AssetName, DatastoreName, JobName};
use atelier_core::layout::ARTIFACT_STORE;
use atelier_core::spec::{DataKind, DataUri};
use atelier_core::track::registry::{Source, Which, invalid_source, not_contained};
use atelier_core::track::{
    ArtifactPath, Error as Refusal, ExperimentId, LifecycleStage, LoggedModelId, LoggedModelInfo,
    LoggedModelStatus, RunId, RunInfo,
};

use super::super::call::Call;
use super::super::failure::Failure;
use super::Located;
use crate::storage::{self, ObjectPath};
use crate::store;
use crate::store::assets::models::{self, Lineage, ModelVersion};
use crate::store::tracking;

/// What a request says of where a version comes from.
pub(super) struct Wanted {
    pub(super) source: String,
    pub(super) run: Option<String>,
    pub(super) logged: Option<String>,
}

impl Wanted {
    /// What is said and not empty.
    fn run(&self) -> Option<&str> {
        self.run.as_deref().filter(|run| !run.is_empty())
    }

    fn logged(&self) -> Option<&str> {
        self.logged.as_deref().filter(|id| !id.is_empty())
    }
}

/// Where it lies, and where it comes from.
pub(super) struct Resolved {
    pub(super) located: Located,
    pub(super) lineage: Lineage,
}

/// A draft of a version that lies there.
fn draft(name: AssetName, form: DataKind, uri: DataUri) -> Draft {
    Draft {
        name,
        version: None,
        description: None,
        tags: [].into(),
        properties: [].into(),
        form,
        uri,
        flavors: [].into(),
        stage: None,
    }
}

/// A place in the store of artifacts.
fn artifact_place(path: String) -> Result<DataUri, Refusal> {
    let datastore = DatastoreName::new(ARTIFACT_STORE)
        .map_err(|invalid| Refusal::Invalid(invalid.to_string()))?;
    Ok(DataUri::Datastore { datastore, path })
}

/// Follows a source to where it lies.
pub(super) async fn resolve(
    call: &Call,
    name: AssetName,
    wanted: &Wanted,
) -> Result<Resolved, Failure> {
    let source = wanted.source.clone();
    let (found, made_by, lineage) = match Source::parse(&source)? {
        Source::Registered { name: of, which } => {
            return of_version(call, name, wanted, of, which).await;
        }
        Source::LoggedModel { id, experiment } => {
            if wanted.logged() != Some(&id) {
                return Err(not_contained(&source, "model_id").into());
            }
            let logged = logged_model(call, &source, &id, experiment).await?;
            let run = run_of(call, &source, wanted.run()).await?.or(logged.run);
            let lineage = Lineage { source, run, run_link: None, logged: Some(id) };
            (artifact_place(logged.folder)?, None, lineage)
        }
        Source::Artifacts { experiment, run, path } => {
            if wanted.logged().is_some() {
                return Err(not_contained(&source, "model_id").into());
            }
            if wanted.run() != Some(run.as_str()) {
                return Err(not_contained(&source, "run_id").into());
            }
            let (uri, made_by) = of_run(call, &source, experiment, &run, &path).await?;
            (uri, made_by, Lineage { source, run: Some(run), ..Lineage::default() })
        }
        Source::Place(uri) => {
            if matches!(call.caller.role, Role::Attempt(_)) {
                return Err(Refusal::NotAllowed(
                    "A job's token makes versions only of what its runs have logged: \
                     runs:/RUN_ID/PATH. Declare an output with 'type: mlflow_model' and 'name' to make \
                     one of what the job writes"
                        .to_owned(),
                )
                .into());
            }
            let run = run_of(call, &source, wanted.run()).await?;
            let logged = wanted.logged().map(str::to_owned);
            (uri, None, Lineage { source, run, run_link: None, logged })
        }
    };
    let mut located = locate(call, draft(name, DataKind::CustomModel, found)).await?;
    located.draft.form = form_of(call, &lineage.source, &located.draft.uri).await?;
    located.made_by = located.made_by.or(made_by);
    let run = located.made_by.as_ref().map(|by| RunId::from(&by.job));
    let lineage = Lineage { run: lineage.run.or(run), ..lineage };
    Ok(Resolved { located, lineage })
}

async fn locate(call: &Call, draft: Draft) -> Result<Located, Failure> {
    Ok(call.state.places.locate(draft).await?)
}

/// The run that the request names, which must be there and be one that the caller reads; of a job, one of its own.
async fn run_of(call: &Call, source: &str, run: Option<&str>) -> Result<Option<RunId>, Failure> {
    let Some(run) = run else { return Ok(None) };
    let missing = || Failure::from(not_contained(source, "run_id"));
    let id = RunId::new(run).map_err(|_| missing())?;
    let (asked, caller, reader) = (id.clone(), call.caller.clone(), call.reader()?);
    let known = call.read(move |conn| match tracking::run_info(conn, &asked) {
        Ok(info) => Ok(match &caller.role {
            Role::Attempt(scope) => info.job.as_ref() == Some(&scope.job),
            _ => reader.check(conn, info.experiment).is_ok(),
        }),
        Err(store::Error::Track(Refusal::NoRun(_))) => Ok(false),
        Err(error) => Err(error),
    });
    if known.await? { Ok(Some(id)) } else { Err(missing()) }
}

/// Another version of this or of another model.
async fn of_version(
    call: &Call,
    name: AssetName,
    wanted: &Wanted,
    of: AssetName,
    which: Which,
) -> Result<Resolved, Failure> {
    let caller = call.caller.clone();
    let found = call
        .read(move |conn| {
            let found = version_of(conn, &of, &which)?;
            if let Role::Attempt(scope) = &caller.role
                && !models::is_of_job(conn, &found, &scope.job)?
            {
                return Err(Refusal::NotAllowed(format!(
                    "A job's token makes versions only of what its runs have logged, and of its inputs; \
                     version {} of model '{of}' is neither",
                    found.version.version
                ))
                .into());
            }
            Ok(found)
        })
        .await?;
    let own = |said: &Option<String>, known: Option<&str>| {
        said.as_deref().is_none_or(|said| said == known.unwrap_or_default())
    };
    let run = found.run.as_ref().map(RunId::as_str);
    if !own(&wanted.run, run) || !own(&wanted.logged, found.logged.as_deref()) {
        return Err(invalid_source(
            &wanted.source,
            "The run_id and model_id request parameters must match the referenced model version.",
        )
        .into());
    }
    let ModelVersion { version, run, logged, .. } = found;
    let source = format!("models:/{}/{}", version.name, version.version);
    let lineage = Lineage { source, run, run_link: None, logged };
    let like = Draft {
        properties: version.properties,
        flavors: version.flavors,
        ..draft(name, version.form, version.uri)
    };
    let mut located = locate(call, like).await?;
    located.made_by = located.made_by.or(version.made_by);
    Ok(Resolved { located, lineage })
}

fn version_of(
    conn: &rusqlite::Connection,
    name: &AssetName,
    which: &Which,
) -> Result<ModelVersion, store::Error> {
    let missing = |shown: &str| {
        let name = name.to_string();
        store::Error::from(Refusal::NoModelVersion { name, version: shown.to_owned() })
    };
    match which {
        Which::Version(version) => models::version(conn, name, version),
        Which::Alias(alias) => models::by_alias(conn, name, alias),
        Which::Latest => {
            let latest = models::model(conn, name)?.latest;
            // The highest number comes first.
            latest.into_iter().next().ok_or_else(|| missing("latest"))
        }
        Which::Stage(stage) => {
            let latest = models::model(conn, name)?.latest;
            let found = latest.into_iter().find(|version| version.stage() == stage.as_str());
            found.ok_or_else(|| missing(stage.as_str()))
        }
    }
}

/// Where the files of a logged model lie.
struct Logged {
    /// The folder in the store of artifacts.
    folder: String,
    /// The run that logged it.
    run: Option<RunId>,
}

/// A logged model, by its id and, if it is written, its experiment. All of it must be there: it does not change any more.
async fn logged_model(
    call: &Call,
    source: &str,
    id: &str,
    experiment: Option<ExperimentId>,
) -> Result<Logged, Failure> {
    let missing = || not_contained(source, "model_id");
    let id = LoggedModelId::new(id).map_err(|_| missing())?;
    let (reader, asked, caller) = (call.reader()?, id.clone(), call.caller.clone());
    let info = call
        .read(move |conn| {
            let info = match tracking::model_info(conn, &asked) {
                Err(store::Error::Track(Refusal::NoModel(_))) => return Ok(None),
                info => info?,
            };
            if experiment.is_some_and(|experiment| experiment != info.experiment) {
                return Ok(None);
            }
            reader.check(conn, info.experiment)?;
            if let Role::Attempt(scope) = &caller.role
                && info.job.as_ref() != Some(&scope.job)
            {
                return Err(Refusal::NotAllowed(format!(
                    "A job's token makes versions only of what its own runs have logged, not of logged model \
                     '{asked}'"
                ))
                .into());
            }
            Ok(Some(info))
        })
        .await?;
    let info = info.filter(|info| info.stage == LifecycleStage::Active).ok_or_else(missing)?;
    if info.status != LoggedModelStatus::Ready {
        let why = format!("Logged model '{id}' is {}: finalise it first.", info.status.as_str());
        return Err(invalid_source(source, &why).into());
    }
    Ok(Logged { folder: LoggedModelInfo::artifact_root(&id), run: info.source_run })
}

/// Where what a run has logged lies, and by which job it was written.
async fn of_run(
    call: &Call,
    source: &str,
    experiment: Option<ExperimentId>,
    run: &RunId,
    path: &ArtifactPath,
) -> Result<(DataUri, Option<MadeBy>), Failure> {
    let (reader, id, asked) = (call.reader()?, run.clone(), path.clone());
    let (written, caller) = (source.to_owned(), call.caller.clone());
    let (info, is_logged) = call
        .read(move |conn| {
            let info = match tracking::run_info(conn, &id) {
                Err(store::Error::Track(Refusal::NoRun(_))) => {
                    return Err(not_contained(&written, "run_id").into());
                }
                info => info?,
            };
            if experiment.is_some_and(|experiment| experiment != info.experiment) {
                return Err(not_contained(&written, "run_id").into());
            }
            reader.check(conn, info.experiment)?;
            if let Role::Attempt(scope) = &caller.role
                && info.job.as_ref() != Some(&scope.job)
            {
                return Err(Refusal::NotAllowed(format!(
                    "A job's token makes versions only of what its own runs have logged, not of run '{id}'"
                ))
                .into());
            }
            let is_logged = tracking::artifact(conn, &id, &asked)?.is_some()
                || !tracking::entries(conn, &id, Some(&asked))?.is_empty();
            Ok((info, is_logged))
        })
        .await?;
    let job = info.job.clone().filter(|_| info.is_of_job());
    if is_logged {
        let made_by = job.map(|job| MadeBy { job, output: "artifacts".to_owned() });
        return Ok((artifact_place(format!("{}/{path}", RunInfo::artifact_root(run)))?, made_by));
    }
    let Some(job) = job else {
        let why = format!("Run '{run}' has logged nothing at '{path}'.");
        return Err(invalid_source(source, &why).into());
    };
    // What the agent has kept of the job, once it is over.
    Ok((output_of(job, path), None))
}

/// An artifact that is an output of its job.
fn output_of(job: JobName, path: &ArtifactPath) -> DataUri {
    let named = path.as_str().strip_prefix("named-outputs/");
    let (output, path) = match named {
        Some(named) => named.split_once('/').unwrap_or((named, "")),
        None => ("artifacts", path.as_str()),
    };
    DataUri::JobOutput { job, output: output.to_owned(), path: path.to_owned() }
}

/// What lies there: a folder in MLflow's format, or something else.
async fn form_of(call: &Call, source: &str, uri: &DataUri) -> Result<DataKind, Failure> {
    let nothing = || invalid_source(source, "Nothing lies there.");
    let DataUri::Datastore { datastore, path } = uri else { return Err(nothing().into()) };
    let store = call.state.datastores.get(datastore.as_str())?;
    let path = path.trim_end_matches('/');
    let object = |path: &str| ObjectPath::new(path).map_err(storage::Error::from);
    let folder = object(path).map_err(|_| nothing())?;
    match store.head(&object(&format!("{path}/MLmodel"))?).await {
        Ok(_) => return Ok(DataKind::MlflowModel),
        Err(storage::Error::NotFound(_)) => {}
        // A file has nothing below it, which stores tell in their own ways.
        Err(error) if store.head(&folder).await.is_err() => return Err(error.into()),
        Err(_) => return Ok(DataKind::CustomModel),
    }
    match store.list(Some(&folder), None, 1).await?.objects.is_empty() {
        false => Ok(DataKind::CustomModel),
        true => Err(nothing().into()),
    }
}

/// Whether people may read what models are made of.
pub(super) fn reads_files(call: &atelier_core::access::Caller) -> bool {
    call.may(Permission::ReadAssets) && call.may(Permission::ReadData)
}
