//! Code, environment and inputs, made ready side by side.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use atelier_core::expr::{Template, Values};
use atelier_core::spec::{Code, Environment, Input, OutputMode, SecretRef};
use atelier_proto::agent::v1::attempt_report::Phase;
use atelier_proto::agent::v1::{self as pb, Cause, Preparing, Problem};
use futures::future::{try_join_all, try_join3};

use super::contain::Contained;
use super::mounted::Inputs;
use super::problem::{self, problem};
use super::{Attempt, Node, Services, contain, moved, secrets, uncommitted, variables};
use crate::clock;
use crate::container::{Containers, Image, Kind};
use crate::data::{self, Fault, Given, Places};
use crate::environment::{self, BuildLog, ImagePolicy, Realised, Wanted};

/// Everything that the command needs, ready.
pub(super) struct Prepared {
    pub(super) command: String,
    pub(super) variables: BTreeMap<String, String>,
    /// Runs in a container of it; `None`: on the node itself.
    pub(super) image: Option<Image>,
    /// What the job names as secrets.
    pub(super) secrets: crate::secrets::Values,
}

/// What a command runs in.
pub(crate) enum Surroundings {
    /// On the node itself.
    Programs(Realised),
    /// In a container.
    Image(Contained),
}

impl Surroundings {
    /// For people: `Python 3.11.7, 45 packages`.
    pub(crate) fn description(&self) -> String {
        match self {
            Self::Programs(realised) => realised.description.clone(),
            Self::Image(contained) => format!("image {}", contained.image.digest),
        }
    }
}

/// Makes all ready. May be cut short at any point and begun anew.
pub(super) async fn prepare(attempt: &Attempt, services: &Services) -> Result<Prepared, Problem> {
    attempt.folder.make_work(attempt.spec.code.is_none()).map_err(|error| {
        problem::of(Cause::Platform, "cannot make the working directory", &error)
    })?;
    // Nothing to fetch or build is nothing to tell or wait for.
    let steps = steps(attempt);
    if !steps.is_empty() {
        attempt
            .report(Phase::Preparing(Preparing { at_ms: clock::now_ms(), step: steps.join(", ") }));
    }
    let (code, inputs) = (code(attempt, services), inputs(attempt, services));
    let ((), mut inputs, surroundings) =
        try_join3(code, inputs, environment(attempt, services)).await?;
    if let (Surroundings::Image(_), Some(why)) = (&surroundings, inputs.not_for_containers()) {
        fetch(attempt, services, &mut inputs, why).await?;
    }
    moved::note(attempt, inputs.moved).await;
    attempt.folder.make_artifact_folders().map_err(|error| {
        problem::of(Cause::Platform, "cannot make ./outputs and ./logs", &error)
    })?;
    let outputs = outputs(attempt)?;
    uncommitted::restore(attempt, services).await?;
    let prepared = render(attempt, services, inputs.texts, outputs, surroundings)?;
    // Last, so that they are as little as can be from before what else takes its time.
    Ok(Prepared { secrets: secrets::open(attempt).await?, ..prepared })
}

fn steps(attempt: &Attempt) -> Vec<&'static str> {
    let spec = &attempt.spec;
    let has_data = spec.inputs.values().any(|input| matches!(input, Input::Data { .. }));
    [
        (!matches!(spec.environment, Environment::Host)).then_some("environment"),
        spec.code.is_some().then_some("code"),
        has_data.then_some("inputs"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn code(attempt: &Attempt, services: &Services) -> Result<(), Problem> {
    let snapshot = match &attempt.spec.code {
        None => return Ok(()),
        Some(Code::Snapshot(digest)) => *digest,
        Some(Code::Local(path)) => {
            let message =
                format!("the code folder '{path}' was never uploaded; submit the job again");
            return Err(problem(Cause::Code, message));
        }
    };
    services
        .data
        .code(snapshot, &attempt.folder.work())
        .await
        .map_err(|error| fault(error.fault(), Cause::Code, "cannot get the code", &error))
}

/// All inputs, mounted where they can be.
async fn inputs(attempt: &Attempt, services: &Services) -> Result<Inputs, Problem> {
    let folder = attempt.folder.inputs();
    if attempt.spec.inputs.values().any(|input| matches!(input, Input::Data { .. })) {
        std::fs::create_dir_all(&folder).map_err(|error| {
            problem::of(Cause::Platform, "cannot make the folder of inputs", &error)
        })?;
    }
    let all: Vec<_> = attempt
        .spec
        .inputs
        .iter()
        .map(|(name, input)| one_input(attempt, services, name.as_str(), input))
        .collect();
    let given = try_join_all(all).await?.into_iter().collect();
    let (mut inputs, not_mounted) = Inputs::mount(attempt, services, given).await;
    if let Some(why) = not_mounted {
        fetch(attempt, services, &mut inputs, &why).await?;
    }
    Ok(inputs)
}

async fn one_input(
    attempt: &Attempt,
    services: &Services,
    name: &str,
    input: &Input,
) -> Result<(String, Option<Given>), Problem> {
    let value = match input {
        Input::Literal { value } => Some(value.clone().into()),
        Input::Unset => None,
        Input::Data { .. } => {
            let grant = attempt.assignment.inputs.get(name);
            let token = &attempt.assignment.token;
            let (inputs, mounts) = (attempt.folder.inputs(), attempt.folder.mounts());
            let overlays = attempt.folder.overlays();
            let places = Places {
                inputs: &inputs,
                mounts: Some(&mounts),
                overlays: may_merge(attempt).then_some(overlays.as_path()),
            };
            let given = services.data.give_input(name, input, grant, token, places);
            Some(given.await.map_err(|error| of_input(name, &error))?)
        }
    };
    Ok((name.to_owned(), value))
}

/// Whether inputs that the job may change are to be merged of the cache and those changes.
fn may_merge(attempt: &Attempt) -> bool {
    let node = &attempt.node;
    // An engine mounts what it sees itself, and may see nothing of it.
    let is_engine = |containers: &Containers| containers.runtime().kind == Kind::Docker;
    let by_engine = !matches!(attempt.spec.environment, Environment::Host)
        && node.containers.as_ref().is_some_and(is_engine);
    node.merges.load(Ordering::Relaxed) && !by_engine
}

/// Fetches the inputs that were to be mounted.
async fn fetch(
    attempt: &Attempt,
    services: &Services,
    inputs: &mut Inputs,
    why: &str,
) -> Result<(), Problem> {
    let (folder, token) = (attempt.folder.inputs(), &attempt.assignment.token);
    for name in inputs.give_up(attempt, why).await {
        let mut all = attempt.spec.inputs.iter();
        let Some((_, input)) = all.find(|(of, _)| of.as_str() == name) else { continue };
        let grant = attempt.assignment.inputs.get(&name);
        let places = Places { inputs: &folder, mounts: None, overlays: None };
        let given = services.data.give_input(&name, input, grant, token, places).await;
        let given = given.map_err(|error| of_input(&name, &error))?;
        inputs.moved.fetched += given.moved.fetched;
        inputs.texts.insert(name.clone(), Some(given.text));
    }
    Ok(())
}

fn of_input(name: &str, error: &data::Error) -> Problem {
    fault(error.fault(), Cause::Input, &format!("cannot get input '{name}'"), error)
}

async fn environment(attempt: &Attempt, services: &Services) -> Result<Surroundings, Problem> {
    let log = PrepareLog::new(attempt.folder.log());
    let failed = |error: environment::Error| {
        fault(error.fault(), Cause::Environment, "cannot make the environment", &error)
    };
    let wanted = wanted(attempt)?;
    match surroundings(&attempt.node, services, &wanted, &log).await.map_err(failed)? {
        // What the command installs is the attempt's own.
        Surroundings::Programs(realised) => {
            let layered = realised.layered(attempt.folder.environment()).await.map_err(failed)?;
            Ok(Surroundings::Programs(layered))
        }
        image @ Surroundings::Image(_) => Ok(image),
    }
}

/// Makes ready what a job asks for, for all that ask for the same.
pub(crate) async fn surroundings(
    node: &Node,
    services: &Services,
    wanted: &Wanted,
    log: &dyn BuildLog,
) -> Result<Surroundings, environment::Error> {
    if let (Some(containers), Wanted::Inline { environment, .. }) = (&node.containers, wanted)
        && let Some(contained) =
            contain::image(node, containers, environment, services, log).await?
    {
        return Ok(Surroundings::Image(contained));
    }
    node.environments.realise(wanted, log).await.map(Surroundings::Programs)
}

/// What is to become of images where no container can be run.
pub(crate) fn images(policy: pb::ImagePolicy) -> ImagePolicy {
    match policy {
        pb::ImagePolicy::HostPython => ImagePolicy::HostPython,
        pb::ImagePolicy::Refuse | pb::ImagePolicy::Unspecified => ImagePolicy::Refuse,
    }
}

fn wanted(attempt: &Attempt) -> Result<Wanted, Problem> {
    let environment = match (&attempt.spec.environment, attempt.assignment.environment.clone()) {
        (Environment::Host, _) => return Ok(Wanted::Host),
        (Environment::Inline(environment), _) => environment.clone(),
        (Environment::Named(_), Some(resolved)) => resolved.try_into().map_err(|error| {
            problem(Cause::Platform, format!("cannot read the resolved environment: {error}"))
        })?,
        (Environment::Named(asset), None) => {
            let message =
                format!("the environment '{}' came without what it is made of", asset.name);
            return Err(problem(Cause::Platform, message));
        }
    };
    Ok(Wanted::Inline { environment, images: images(attempt.assignment.image_policy()) })
}

/// Each output's path or URI.
fn outputs(attempt: &Attempt) -> Result<BTreeMap<String, String>, Problem> {
    use atelier_core::spec::DataKind;
    let mut outputs = BTreeMap::new();
    for (name, output) in &attempt.spec.outputs {
        let value = if output.mode == OutputMode::Direct {
            // Written when the job was accepted. No grant comes with it: what the job writes there,
            // it writes by means of its own.
            output.path.clone().ok_or_else(|| {
                problem(Cause::Platform, format!("output '{name}' came without its URI"))
            })?
        } else {
            let path = attempt.folder.output(name.as_str());
            // A file output's own path is the job's to make, only its folder is ours.
            let folder = match output.kind {
                DataKind::UriFile => path.parent().map(PathBuf::from).unwrap_or_default(),
                _ => path.clone(),
            };
            std::fs::create_dir_all(&folder).map_err(|error| {
                problem::of(Cause::Platform, &format!("cannot make output '{name}'"), &error)
            })?;
            path.to_string_lossy().into_owned()
        };
        outputs.insert(name.to_string(), value);
    }
    Ok(outputs)
}

/// Puts the values into the command and the job's variables.
fn render(
    attempt: &Attempt,
    services: &Services,
    inputs: BTreeMap<String, Option<String>>,
    outputs: BTreeMap<String, String>,
    surroundings: Surroundings,
) -> Result<Prepared, Problem> {
    let scope = Values { inputs, outputs, ..Values::default() };
    let render = |what: &str, text: &str| {
        Template::parse(text)
            .and_then(|template| template.render(&scope))
            .map_err(|error| problem(Cause::Input, format!("{what}: {error}")))
    };
    let command = render("command", &attempt.spec.command)?;
    let mut own = BTreeMap::new();
    let plain = attempt.spec.environment_variables.iter();
    for (name, value) in plain.filter(|(_, value)| SecretRef::of(value).is_none()) {
        let value = render(&format!("environment_variables.{name}"), value)?;
        own.insert(name.clone(), value);
    }
    let (path, environment, inherited, image) = match surroundings {
        Surroundings::Programs(Realised { path, variables, .. }) => {
            (path, variables, attempt.node.inherited.clone(), None)
        }
        // Its path is its own.
        Surroundings::Image(Contained { image, variables }) => {
            (Vec::new(), variables, contain::inherited(&attempt.node.inherited), Some(image))
        }
    };
    let path: Vec<String> = path.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let authorities = services.trust.pem().map(|pem| {
        attempt.folder.write_authorities(pem)?;
        Ok::<_, std::io::Error>(attempt.folder.authorities())
    });
    let authorities = authorities.transpose().map_err(|error| {
        problem::of(Cause::Platform, "cannot write who vouches for the daemon", &error)
    })?;
    let engine =
        attempt.node.containers.as_ref().filter(|_| image.is_some()).map(|all| all.runtime());
    let members = attempt.assignment.addresses.len();
    let logs_here = variables::logs_here(&attempt.spec, members, engine);
    let tracking = attempt.spool.as_ref().filter(|_| logs_here).map(|spool| spool.url());
    let variables = variables::variables(&variables::Facts {
        spec: &attempt.spec,
        job: &attempt.key.job,
        attempt: attempt.key.attempt,
        epoch: attempt.key.epoch,
        rank: attempt.assignment.rank,
        addresses: &attempt.assignment.addresses,
        experiment_id: &attempt.assignment.experiment_id,
        workspace: &services.workspace,
        workspace_id: &services.workspace_id,
        http_url: &services.http_url,
        tracking_url: tracking.as_deref().unwrap_or(&services.http_url),
        authorities: authorities.as_deref(),
        token: &attempt.assignment.token,
        gpus: &attempt.assignment.gpu_indices,
        folder: attempt.folder.path(),
        work: &attempt.folder.work(),
        inputs: &scope.inputs,
        outputs: &scope.outputs,
        inherited: &inherited,
        path: &path,
        environment: &environment,
        own: &own,
    });
    Ok(Prepared { command, variables, image, secrets: Default::default() })
}

/// The cause is the user's own only if the error is.
fn fault(
    fault: Fault,
    cause: Cause,
    what: &str,
    error: &(dyn std::error::Error + 'static),
) -> Problem {
    match fault {
        Fault::User => problem::of(cause, what, error),
        Fault::DiskFull => problem::of(Cause::DiskFull, what, error),
        Fault::Platform => problem::of(Cause::Platform, what, error),
    }
}

/// Lines written before the command starts go to the job's own log.
#[derive(Debug)]
pub(super) struct PrepareLog {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl PrepareLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: Mutex::new(None) }
    }
}

impl BuildLog for PrepareLog {
    fn line(&self, text: &str) {
        let Ok(mut file) = self.file.lock() else { return };
        if file.is_none() {
            *file = File::options().append(true).create(true).open(&self.path).ok();
        }
        // A log that cannot be written is no reason to fail what it tells of.
        if let Some(file) = file.as_mut() {
            let _ = file.write_all(format!("{text}\n").as_bytes());
        }
    }
}
