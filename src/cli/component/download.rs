//! Bringing a version's code here, and a file of which the same version can be made again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use atelier_core::content::Digest;
use atelier_core::spec::component_reference;
use atelier_proto::component::v1::{Component, GetComponentRequest};
use atelier_proto::job::v1::{Code, code, environment};
use clap::Args;
use serde_json::{Value, json};

use super::shown;
use crate::cli::asset::Which;
use crate::cli::output::yaml;
use crate::cli::{Context, Error, Kind};
use crate::client::Client;

/// The component's file in the folder.
const FILE: &str = "component.yml";
/// The folder of its code, beside the file.
const CODE: &str = "code";
/// The folder that its environment is built from.
const BUILD: &str = "context";

#[derive(Args)]
pub(in crate::cli) struct Download {
    #[command(flatten)]
    which: Which,
    /// The folder in which a folder of its name is made
    #[arg(short = 'p', long, value_name = "FOLDER", default_value = ".")]
    download_path: PathBuf,
}

pub(super) async fn download(arguments: &Download, context: &Context) -> Result<(), Error> {
    let component = Some((&arguments.which.reference(component_reference)?).into());
    let client = context.client().await?;
    let request = GetComponentRequest { component };
    let found = client.call(client.components().get_component(request)).await?;
    let id = format!("azureml:{}:{}", found.name, found.version);
    let folder = arguments.download_path.join(&found.name);
    must_be_free(&folder, &id)?;
    // What came before a connection broke is kept in it, and found when the command is run again.
    let coming = arguments.download_path.join(format!(".{}.atelier-component", found.name));
    let whole = coming.join("whole");
    let failed =
        |doing: &'static str, path: PathBuf| move |error| Error::file(doing, &path, &error);
    match fs::remove_dir_all(&whole) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::file("remove", &whole, &error));
        }
        _ => fs::create_dir_all(&whole).map_err(failed("create", whole.clone()))?,
    }
    for (snapshot, name) in snapshots(&found) {
        let into = whole.join(name);
        fs::create_dir(&into).map_err(failed("create", into.clone()))?;
        fetch(&client, &coming.join("cache"), snapshot?, &into).await?;
    }
    let file = whole.join(FILE);
    fs::write(&file, yaml(&as_file(&found))?).map_err(failed("write", file.clone()))?;
    // An empty folder of this name gives way.
    fs::rename(&whole, &folder).map_err(failed("write", folder.clone()))?;
    fs::remove_dir_all(&coming).map_err(failed("remove", coming.clone()))?;
    context.output.note(&format!("Downloaded {id} to {}.", folder.display()));
    context.output.show(&json!({
        "id": id,
        "download_path": folder.display().to_string(),
        "file": folder.join(FILE).display().to_string(),
    }))
}

/// That nothing is written over: with files of another version among them the folder would be no version at all.
fn must_be_free(folder: &Path, id: &str) -> Result<(), Error> {
    let is_free = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => return Err(Error::file("list", folder, &error)),
    };
    if is_free {
        return Ok(());
    }
    let cause = format!("{} holds files, and {id} is not put among them", folder.display());
    let help = "remove the folder, or choose another place with --download-path";
    Err(Error::new(Kind::Refused, cause).help(help))
}

/// The folders that a version is made of, each with its name here.
fn snapshots(component: &Component) -> Vec<(Result<Digest, Error>, &'static str)> {
    let content = component.content.as_ref();
    let code = content.and_then(|content| content.code.as_ref());
    let environment = content.and_then(|content| content.environment.as_ref()?.source.as_ref());
    let build = match environment {
        Some(environment::Source::Inline(inline)) => inline.build.as_ref(),
        _ => None,
    };
    let build = build.and_then(|build| build.path.as_ref());
    let named = [(code, CODE), (build, BUILD)].into_iter();
    named.filter_map(|(code, name)| Some((digest(code?)?, name))).collect()
}

fn digest(code: &Code) -> Option<Result<Digest, Error>> {
    match code.source.as_ref()? {
        code::Source::Snapshot(bytes) => Some(
            Digest::try_from(&bytes[..])
                .map_err(|error| Error::new(Kind::Failed, format!("the daemon's answer: {error}"))),
        ),
        code::Source::Local(_) => None,
    }
}

async fn fetch(client: &Client, cache: &Path, root: Digest, into: &Path) -> Result<(), Error> {
    let token = client.target().token.secret();
    let fetched = atelier_agent::data::fetch_code(client.channel(), token, cache, root, into);
    fetched.await.map_err(|error| {
        Error::new(Kind::Failed, error.to_string())
            .help("run the command again: what came is not fetched twice")
    })
}

/// A version by the keys of its file, whose folders lie beside it.
fn as_file(component: &Component) -> Value {
    /// Said of a version, and not by its file.
    const NOT_OF_A_FILE: [&str; 5] = ["id", "labels", "latest", "archived", "creation_context"];
    let mut file = without_nulls(shown(component));
    if let Some(keys) = file.as_object_mut() {
        keys.retain(|key, _| !NOT_OF_A_FILE.contains(&key.as_str()));
        // What runs in no environment says so by leaving it out.
        keys.retain(|key, value| key != "environment" || value != "host");
    }
    if file.get("code").is_some() {
        file["code"] = json!(format!("./{CODE}"));
    }
    if let Some(path) = file.pointer_mut("/environment/build/path") {
        *path = json!(format!("./{BUILD}"));
    }
    file
}

/// What is not said is left out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(keys) => {
            let said = keys.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(said.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        value => value,
    }
}
