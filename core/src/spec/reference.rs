//! `azureml:…` and the other ways to name a thing.

use super::command::{AssetRef, AssetVersion, DataUri};
use super::secret;
use crate::id::{ComputeName, DatastoreName, JobName};

/// Why a reference cannot be read: what is wrong, and the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) help: String,
}

fn wrong<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), help: help.into() })
}

/// A reference, and a remark if part of it does not matter here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Read<T> {
    pub(super) value: T,
    pub(super) remark: Option<&'static str>,
}

impl<T> Read<T> {
    fn plain(value: T) -> Self {
        Self { value, remark: None }
    }

    fn map<U>(self, f: impl FnOnce(T) -> U) -> Read<U> {
        Read { value: f(self.value), remark: self.remark }
    }
}

const OTHER_WORKSPACE: &str =
    "the subscription, resource group and workspace in it are not used: it means this workspace's";

/// Parts of an Azure resource id after its workspace, for example `["environments", "e", …]`.
fn after_workspace(id: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = id.trim_matches('/').split('/').collect();
    let at = parts.iter().position(|part| part.eq_ignore_ascii_case("workspaces"))?;
    let rest = parts.get(at + 2..)?;
    (parts.first()?.eq_ignore_ascii_case("subscriptions") && !rest.is_empty())
        .then(|| rest.to_vec())
}

/// The name that ends a resource id of that kind, within a workspace or beside one.
fn last_name<'a>(id: &'a str, kind: &str) -> Option<&'a str> {
    let mut parts = id.trim_matches('/').rsplit('/');
    let name = parts.next()?;
    parts.next()?.eq_ignore_ascii_case(kind).then_some(name)
}

/// Whether `text` is a resource id of Azure's, with or without the `azureml:` before it.
fn resource_id(text: &str) -> Option<&str> {
    let id = text
        .strip_prefix("azureml://")
        .or_else(|| text.strip_prefix("azureml:/"))
        .or_else(|| text.strip_prefix('/'))?;
    id.to_ascii_lowercase().starts_with("subscriptions/").then_some(id)
}

fn asset_name(name: &str) -> Result<String, Wrong> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 255 || !name.chars().all(good) {
        return wrong(
            format!("'{}' is not an asset's name", super::yaml::shorten(name)),
            "names have letters, digits, '-', '_' and '.', at most 255",
        );
    }
    Ok(name.to_owned())
}

/// `versions/V` or `labels/L`, or nothing.
fn version(parts: &[&str], shown: &str) -> Result<AssetVersion, Wrong> {
    match parts {
        [] => Ok(AssetVersion::Default),
        [kind, version] if kind.eq_ignore_ascii_case("versions") => {
            Ok(AssetVersion::Exact(asset_name(version)?))
        }
        [kind, label] if kind.eq_ignore_ascii_case("labels") => {
            Ok(AssetVersion::Label(asset_name(label)?))
        }
        _ => wrong(
            format!("'{shown}' does not end in a version"),
            "end it in /versions/VERSION or /labels/latest",
        ),
    }
}

/// An asset of one of `kinds` (`environments`, `data`, `models`).
pub(super) fn asset(text: &str, kinds: &[&str]) -> Result<Read<AssetRef>, Wrong> {
    if text.starts_with(secret::SECRETS) {
        return wrong(
            format!("'{}' is a secret, which has no meaning here", super::yaml::shorten(text)),
            secret::PLACE,
        );
    }
    let kind_is = |found: &str| kinds.iter().any(|kind| kind.eq_ignore_ascii_case(found));
    let of_kind = |parts: &[&str], registry: Option<&str>| match parts {
        [kind, name, rest @ ..] if kind_is(kind) => Ok(AssetRef {
            registry: registry.map(asset_name).transpose()?,
            name: asset_name(name)?,
            version: version(rest, text)?,
        }),
        _ => wrong(
            format!("'{text}' does not name one of: {}", kinds.join(", ")),
            format!("write for example azureml://registries/R/{}/NAME/versions/1", kinds[0]),
        ),
    };
    if let Some(id) = resource_id(text) {
        let parts = after_workspace(id);
        let asset = of_kind(&parts.unwrap_or_default(), None)?;
        return Ok(Read { value: asset, remark: Some(OTHER_WORKSPACE) });
    }
    if let Some(rest) = text.strip_prefix("azureml://registries/") {
        let parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
        let (registry, rest) = (parts[0], &parts[1..]);
        return of_kind(rest, Some(registry)).map(Read::plain);
    }
    let Some(name) = text.strip_prefix("azureml:").filter(|name| !name.starts_with('/')) else {
        return wrong(
            format!("'{}' does not name an asset", super::yaml::shorten(text)),
            "write azureml:NAME:VERSION or azureml:NAME@latest",
        );
    };
    let (name, version) = if let Some((name, label)) = name.split_once('@') {
        (name, AssetVersion::Label(asset_name(label)?))
    } else if let Some((name, version)) = name.split_once(':') {
        (name, AssetVersion::Exact(asset_name(version)?))
    } else {
        (name, AssetVersion::Default)
    };
    Ok(Read::plain(AssetRef { registry: None, name: asset_name(name)?, version }))
}

/// `compute:`; `None` means the workspace's default.
pub(super) fn compute(text: &str) -> Result<Read<Option<ComputeName>>, Wrong> {
    let (name, remark) = match resource_id(text) {
        Some(id) => match last_name(id, "computes").or_else(|| last_name(id, "virtualclusters")) {
            Some(name) => (name, Some(OTHER_WORKSPACE)),
            None => return wrong(format!("'{text}' names no compute"), "write azureml:NAME"),
        },
        None => (text.strip_prefix("azureml:").unwrap_or(text), None),
    };
    if name == "serverless" {
        return Ok(Read { value: None, remark });
    }
    match ComputeName::new(name) {
        Ok(name) => Ok(Read { value: Some(name), remark }),
        Err(error) => wrong(error.to_string(), "write NAME or azureml:NAME"),
    }
}

/// A path within a datastore or an output: no leading `/`, and nothing that leaves it.
pub(super) fn inner_path(path: &str) -> Result<String, Wrong> {
    let path = path.trim_start_matches('/');
    if path.split(['/', '\\']).any(|part| part == "..") {
        return wrong(
            format!("the path '{}' leaves its root by '..'", super::yaml::shorten(path)),
            "write the path without '..'",
        );
    }
    if path.chars().any(char::is_control) {
        return wrong("the path holds a control character", "remove it");
    }
    Ok(path.to_owned())
}

const DATASTORE_FORM: &str = "write azureml://datastores/NAME/paths/PATH";

/// The datastore and the path of `azureml://[…]datastores/D/paths/P`, unchecked; `None` if the text
/// has another form.
pub(super) fn datastore_parts(text: &str) -> Option<(&str, &str, Option<&'static str>)> {
    let (rest, remark) = match text.strip_prefix("azureml://datastores/") {
        Some(rest) => (rest, None),
        None => {
            let id = text.strip_prefix("azureml://subscriptions/")?;
            (&id[id.find("/datastores/")? + "/datastores/".len()..], Some(OTHER_WORKSPACE))
        }
    };
    let (datastore, path) = rest.split_once('/').unwrap_or((rest, ""));
    match path.strip_prefix("paths") {
        Some("") => Some((datastore, "", remark)),
        Some(path) if path.starts_with('/') => Some((datastore, &path[1..], remark)),
        _ if path.is_empty() => Some((datastore, "", remark)),
        _ => None,
    }
}

/// Where an input lies. Paths of the submitter's machine are returned as written, for the caller
/// to resolve.
pub(super) fn data(text: &str) -> Result<Read<DataUri>, Wrong> {
    if text.trim().is_empty() {
        return wrong("the path is empty", "write where the data lies");
    }
    if let Some((datastore, path, remark)) = datastore_parts(text) {
        let datastore = match DatastoreName::new(datastore) {
            Ok(datastore) => datastore,
            Err(error) => return wrong(error.to_string(), DATASTORE_FORM),
        };
        return Ok(Read {
            value: DataUri::Datastore { datastore, path: inner_path(path)? },
            remark,
        });
    }
    if text.starts_with("azureml://datastores/") {
        return wrong(format!("'{text}' has no '/paths/' after the datastore"), DATASTORE_FORM);
    }
    if let Some(rest) = text.strip_prefix("azureml://jobs/") {
        return job_output(text, rest).map(Read::plain);
    }
    // Without a workspace in it, `/subscriptions/…` is a path like any other.
    if text.starts_with("azureml:") || resource_id(text).and_then(after_workspace).is_some() {
        return Ok(asset(text, &["data", "models"])?.map(DataUri::Asset));
    }
    if let Some(rest) = text.strip_prefix("runs:/") {
        let rest = rest.trim_start_matches('/');
        let (run, path) = rest.split_once('/').unwrap_or((rest, ""));
        return match JobName::new(run) {
            Ok(_) => {
                let path = inner_path(path)?;
                Ok(Read::plain(DataUri::RunArtifact { run: run.to_owned(), path }))
            }
            Err(_) => wrong(format!("'{text}' names no run"), "write runs:/RUN_ID/PATH"),
        };
    }
    if let Some(path) = text.strip_prefix("file:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return Ok(Read::plain(DataUri::Local(path.to_owned())));
    }
    match text.split_once(':') {
        Some(("http" | "https", rest)) if rest.len() > 2 && rest.starts_with("//") => {
            Ok(Read::plain(DataUri::Http(text.to_owned())))
        }
        Some((
            "wasb" | "wasbs" | "abfs" | "abfss" | "adl" | "s3" | "s3a" | "gs" | "hdfs",
            rest,
        )) if rest.len() > 2 && rest.starts_with("//") => {
            Ok(Read::plain(DataUri::Cloud(text.to_owned())))
        }
        Some((scheme, rest)) if rest.starts_with("//") => wrong(
            format!("'{scheme}://' is not a way to name data"),
            "known: azureml://, https://, wasbs://, abfss://, adl://, s3://, gs://, runs:/, file:, \
             and local paths",
        ),
        _ => Ok(Read::plain(DataUri::Local(text.to_owned()))),
    }
}

/// The rest of `azureml://jobs/J/outputs/O[/paths/P]`.
fn job_output(text: &str, rest: &str) -> Result<DataUri, Wrong> {
    const FORM: &str = "write azureml://jobs/JOB/outputs/OUTPUT/paths/PATH";
    let mut parts = rest.splitn(4, '/');
    let (job, word, output) = (parts.next(), parts.next(), parts.next());
    let (Some(job), Some("outputs"), Some(output)) = (job, word, output) else {
        return wrong(format!("'{text}' names no output of a job"), FORM);
    };
    let path = match parts.next() {
        None | Some("" | "paths") => "",
        Some(path) => match path.strip_prefix("paths/") {
            Some(path) => path,
            None => return wrong(format!("'{text}' has no '/paths/' after the output"), FORM),
        },
    };
    let job = match JobName::new(job) {
        Ok(job) => job,
        Err(error) => return wrong(error.to_string(), FORM),
    };
    Ok(DataUri::JobOutput { job, output: asset_name(output)?, path: inner_path(path)? })
}
