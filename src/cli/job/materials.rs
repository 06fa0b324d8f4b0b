//! What a job needs from this machine: code folders and local inputs go to the workspace, and the
//! job names them there.

use std::path::Path;

use atelier_core::id::{DatastoreName, Principal};
use atelier_core::spec::{Code, CommandJob, DataUri, Environment, Input};
use atelier_proto::workspace::v1::GetWorkspaceRequest;
use indicatif::ProgressBar;

use super::summary::size;
use crate::cli::upload::{self, Gateway, Progress, Report, Uploader, git};
use crate::cli::{Context, Error, Kind};
use crate::client::Client;
use crate::client::data::{self, Data};

/// Sends everything that lies here and replaces it in the job. Costs nothing when nothing does.
pub(super) async fn send(
    context: &Context,
    client: &Client,
    job: &mut CommandJob,
) -> Result<(), Error> {
    let build = match &mut job.environment {
        Environment::Inline(inline) => inline.build.as_mut().map(|build| &mut build.path),
        Environment::Host | Environment::Named(_) => None,
    };
    for (code, is_the_jobs) in
        [(job.code.as_mut(), true), (build, false)].into_iter().filter_map(|(c, j)| Some((c?, j)))
    {
        let Code::Local(folder) = &*code else { continue };
        let folder = Path::new(folder);
        if is_the_jobs {
            for (key, value) in git::properties(folder).await {
                job.properties.entry(key).or_insert(value);
            }
        }
        *code = Code::Snapshot(snapshot(context, client, folder, "code").await?);
    }
    let mut gateway = None;
    for input in job.inputs.values_mut() {
        let Input::Data { uri, .. } = input else { continue };
        let DataUri::Local(path) = &*uri else { continue };
        let gateway = match &mut gateway {
            Some(gateway) => gateway,
            none => none.insert(open_gateway(context, client).await?),
        };
        *uri = stored(context, gateway, Path::new(path)).await?;
    }
    Ok(())
}

/// Sends a folder; `what` is how the user knows it.
pub(in crate::cli) async fn snapshot(
    context: &Context,
    client: &Client,
    folder: &Path,
    what: &str,
) -> Result<atelier_core::content::Digest, Error> {
    let uploader = Uploader::new(client.content(), home(context)?);
    let (report, bar) = progress(context, what);
    let uploaded = uploader.code(folder, report).await;
    bar.finish_and_clear();
    let uploaded = uploaded?;
    for warning in &uploaded.warnings {
        context.output.warn(warning);
    }
    told(context, what, uploaded.files, uploaded.bytes_sent);
    Ok(uploaded.root)
}

/// Sends a file or folder, and says where it lies then.
pub(in crate::cli) async fn upload(
    context: &Context,
    client: &Client,
    path: &Path,
) -> Result<DataUri, Error> {
    let gateway = open_gateway(context, client).await?;
    stored(context, &gateway, path).await
}

async fn stored(context: &Context, gateway: &Gateway, path: &Path) -> Result<DataUri, Error> {
    let (report, bar) = progress(context, "input");
    let sent = gateway.local_input(path, report).await;
    bar.finish_and_clear();
    let sent = sent?;
    for warning in &sent.warnings {
        context.output.warn(warning);
    }
    told(context, &path.display().to_string(), sent.files, sent.bytes_sent);
    datastore_uri(&sent.uri)
}

/// `azureml://datastores/D/paths/P`, as uploads are named.
fn datastore_uri(uri: &str) -> Result<DataUri, Error> {
    let parts = uri
        .strip_prefix("azureml://datastores/")
        .and_then(|rest| rest.split_once("/paths/"))
        .and_then(|(name, path)| Some((DatastoreName::new(name).ok()?, path.to_owned())));
    let (datastore, path) = parts
        .ok_or_else(|| Error::new(Kind::Failed, format!("an upload has the odd name '{uri}'")))?;
    Ok(DataUri::Datastore { datastore, path })
}

async fn open_gateway(context: &Context, client: &Client) -> Result<Gateway, Error> {
    let workspace = client.call(client.workspace().get_workspace(GetWorkspaceRequest {})).await?;
    let principal = Principal::new(&workspace.principal).map_err(|problem| {
        Error::new(Kind::Failed, format!("the daemon says that you are nobody: {problem}"))
    })?;
    Ok(Gateway::new(Data::of(client)?, principal, home(context)?))
}

/// The home folder, where the record of what was sent already lies.
fn home(context: &Context) -> Result<&Path, Error> {
    let home = context.wanted.home.as_ref().ok_or(crate::client::Error::NoHome)?;
    Ok(home.path())
}

/// Worth a line only if something travelled.
fn told(context: &Context, what: &str, files: u64, bytes: u64) {
    if bytes > 0 {
        let plural = if files == 1 { "" } else { "s" };
        context.output.note(&format!("Sent {what}: {files} file{plural}, {} new.", size(bytes)));
    }
}

fn progress(context: &Context, what: &str) -> (Report, ProgressBar) {
    let bar = context.output.bar(0, what);
    let shown = bar.clone();
    let (reading, sending) = (format!("Reading {what}"), format!("Sending {what}"));
    let report = move |progress| {
        let (text, done, total) = match progress {
            Progress::Reading { done, total } => (&reading, done, total),
            Progress::Sending { done, total } => (&sending, done, total),
        };
        if shown.is_hidden() {
            return;
        }
        if shown.message() != *text {
            shown.set_message(text.clone());
        }
        shown.set_length(total);
        shown.set_position(done);
    };
    (std::sync::Arc::new(report), bar)
}

impl From<upload::Error> for Error {
    fn from(error: upload::Error) -> Self {
        use upload::Error as E;
        let away = |error: &E| {
            Self::new(Kind::Unreachable, error.to_string())
                .help("check the daemon's log, then try again: what was sent is not sent twice")
        };
        match &error {
            E::Workspace(status) => Self::from(&**status),
            E::Missing(_) => Self::new(Kind::NotFound, error.to_string()),
            E::Gateway { problem: data::Error::Refused { status, .. }, .. } => match status {
                401 | 403 => Self::new(Kind::NotAllowed, error.to_string()),
                400..=499 | 507 => Self::new(Kind::Refused, error.to_string()),
                502..=504 => away(&error),
                _ => Self::new(Kind::Failed, error.to_string()).help("see the daemon's log"),
            },
            E::Gateway { problem: data::Error::Lost(_), .. } => away(&error),
            E::Spoiled { .. } => Self::new(Kind::Failed, error.to_string()).help(
                "run the command again, which sends it anew; if it ends so again, check the memory of this machine and \
                 of the daemon's, and what lies between them",
            ),
            E::Internal(_) => Self::new(Kind::Failed, error.to_string()),
            _ => Self::new(Kind::Refused, error.to_string()),
        }
    }
}
