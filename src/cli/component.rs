//! `atelier component`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use atelier_core::asset::Kind;
use atelier_core::component::Draft;
use atelier_core::spec::{
    Code, Environment, Origin, Override, component_reference, parse_component,
};
use atelier_proto::component::v1::{
    self as pb, ArchiveComponentRequest, CreateComponentRequest, DeleteComponentRequest,
    GetComponentRequest, ListComponentsRequest, UpdateComponentRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::asset::{Listing, Which, description, must_be_version, state, tag, whole_or_version};
use super::job::{materials, read, time, view};
use super::output::moment;
use super::pages::pages;
use super::{Column, Context, Error};
use crate::config::Here;

mod download;

use download::{Download, download};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a version of a component from its file
    ///
    /// Azure's files of command components are read as they are. The code is sent, and not again while its files are
    /// the same; an environment's name means one version from then on. A version never changes.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier component create -f component.yml
  atelier component create -f component.yml --version 3 --set tags.team=vision"
    )]
    Create(Create),
    /// List the components, each by its latest version, or the versions of one
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  atelier component list
  atelier component list --name train --include-archived"
    )]
    List(Listing),
    /// Show one version: its command, what it takes and gives
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier component show train@latest
  atelier component show --name train --version 3 -o yaml"
    )]
    Show(Which),
    /// Change what is said of a version, or which labels point to it
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier component update train:3 --set description='With warm-up' tags.team=vision
  atelier component update train:3 --set-label champion"
    )]
    Update(Update),
    /// Hide a component, or one of its versions, from lists
    ///
    /// An archived version is still found by its name; no label points to it.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier component archive train
  atelier component archive train --version 2"
    )]
    Archive(Which),
    /// Show an archived component, or one of its versions, in lists again
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier component restore train
  atelier component restore train --version 2"
    )]
    Restore(Which),
    /// Forget a version; its code stays, as others may be made of the same
    ///
    /// Its name is not given again.
    #[command(
        disable_version_flag = true,
        after_help = "Example:\n  atelier component delete train --version 2"
    )]
    Delete(Delete),
    /// Bring a version's code here, with a file of which it can be made again
    ///
    /// A folder of its name is made, with component.yml and the code in it; it is there whole or not at all, and never
    /// put among other files. A download that broke off goes on where it was when the command is run again.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier component download train@latest                   ./train/component.yml, ./train/code/…
  atelier component download train:3 --download-path old    old/train/…"
    )]
    Download(Download),
}

#[derive(Args)]
pub(super) struct Create {
    /// The component's file; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Change a field before the file is checked, for example tags.team=vision
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = read::change)]
    set: Vec<Override>,
    /// Its name [default: the file's]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// The version to make [default: the file's, else the next number]
    #[arg(short, long, value_name = "VERSION")]
    version: Option<String>,
}

#[derive(Args)]
pub(super) struct Update {
    #[command(flatten)]
    which: Which,
    /// Change display_name, description or a tag, for example tags.team=vision; nothing after the = clears it
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = tag)]
    set: Vec<(String, String)>,
    /// Remove a tag, for example tags.team
    #[arg(long, value_name = "KEY", num_args = 1..)]
    remove: Vec<String>,
    /// Have this label point to the version, and to no other
    #[arg(long, value_name = "LABEL", num_args = 1..)]
    set_label: Vec<String>,
    /// Have this label no longer point to it
    #[arg(long, value_name = "LABEL", num_args = 1..)]
    remove_label: Vec<String>,
}

#[derive(Args)]
pub(super) struct Delete {
    #[command(flatten)]
    which: Which,
    /// As users of `az ml` write it: nothing is asked either way
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Create(arguments) => create(arguments, context).await,
        Command::List(arguments) => list(arguments, context).await,
        Command::Show(which) => {
            let component = Some((&which.reference(component_reference)?).into());
            let client = context.client().await?;
            let request = GetComponentRequest { component };
            let found = client.call(client.components().get_component(request)).await?;
            context.output.show(&shown(&found))
        }
        Command::Update(arguments) => update(arguments, context).await,
        Command::Archive(which) => archive(&which, true, context).await,
        Command::Restore(which) => archive(&which, false, context).await,
        Command::Delete(arguments) => delete(&arguments, context).await,
        Command::Download(arguments) => download(&arguments, context).await,
    }
}

async fn create(arguments: Create, context: &Context) -> Result<(), Error> {
    let mut draft = draft(arguments, context)?;
    let client = context.client().await?;
    let content = &mut draft.content;
    if let Some(Code::Local(folder)) = &content.code {
        let root = materials::snapshot(context, &client, Path::new(folder), "code").await?;
        content.code = Some(Code::Snapshot(root));
    }
    if let Environment::Inline(inline) = &mut content.environment
        && let Some(build) = &mut inline.build
        && let Code::Local(folder) = &build.path
    {
        let folder = PathBuf::from(folder);
        let root = materials::snapshot(context, &client, &folder, "build context").await?;
        build.path = Code::Snapshot(root);
    }
    let request = CreateComponentRequest::from(&draft);
    let made = client.call(client.components().create_component(request)).await?;
    context.output.show(&shown(&made))
}

/// What a file and the arguments describe.
fn draft(arguments: Create, context: &Context) -> Result<Draft, Error> {
    let mut changes = arguments.set;
    for (flag, key, value) in
        [("--name", "name", arguments.name), ("--version", "version", arguments.version)]
    {
        changes.extend(value.map(|value| Override::text(flag, &[key], &value)));
    }
    let document = read::document(&arguments.file, "component")?;
    let folder = read::utf8(&document.folder)?.to_owned();
    let origin = Origin { name: document.name, folder, experiment: String::new() };
    let parsed = parse_component(&document.text, &origin, &changes, &Here).map_err(read::faults)?;
    for warning in &parsed.warnings {
        context.output.warn(&warning.to_string());
    }
    Ok(parsed.draft)
}

async fn list(arguments: Listing, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut request = ListComponentsRequest {
        name: arguments.name.unwrap_or_default(),
        include_archived: arguments.include_archived,
        archived_only: arguments.archived_only,
        ..ListComponentsRequest::default()
    };
    let items = pages(arguments.max_results, async |size, token| {
        (request.page_size, request.page_token) = (size, token);
        let page = client.call(client.components().list_components(request.clone())).await?;
        Ok((page.components.iter().map(shown).collect(), page.next_page_token))
    });
    let items = items.await?;
    context.output.list(items, COLUMNS)
}

async fn update(arguments: Update, context: &Context) -> Result<(), Error> {
    let component = arguments.which.reference(component_reference)?;
    let mut request = UpdateComponentRequest {
        component: Some((&component).into()),
        set_labels: arguments.set_label,
        remove_labels: arguments.remove_label,
        ..UpdateComponentRequest::default()
    };
    for (key, value) in arguments.set {
        match (key.as_str(), key.strip_prefix("tags.")) {
            ("display_name", _) => request.display_name = Some(value),
            ("description", _) => request.description = Some(value),
            (_, Some(tag)) if !tag.is_empty() => {
                request.set_tags.insert(tag.to_owned(), value);
            }
            _ => return Err(fixed(&key)),
        }
    }
    for key in arguments.remove {
        match key.strip_prefix("tags.").filter(|tag| !tag.is_empty()) {
            Some(tag) => request.remove_tags.push(tag.to_owned()),
            None => return Err(fixed(&key)),
        }
    }
    let client = context.client().await?;
    let changed = client.call(client.components().update_component(request)).await?;
    context.output.show(&shown(&changed))
}

fn fixed(key: &str) -> Error {
    Error::usage(format!("'{key}' of a version does not change"))
        .help("what may change is display_name, description and tags.KEY; make another version")
}

async fn archive(which: &Which, archived: bool, context: &Context) -> Result<(), Error> {
    let component = which.reference(component_reference)?;
    let version = whole_or_version(&component, Kind::Component.word())?;
    let client = context.client().await?;
    let request = ArchiveComponentRequest { name: component.name, version, archived };
    let found = client.call(client.components().archive_component(request)).await?;
    context.output.show(&shown(&found))
}

async fn delete(arguments: &Delete, context: &Context) -> Result<(), Error> {
    let component = arguments.which.reference(component_reference)?;
    must_be_version(&component, Kind::Component)?;
    let client = context.client().await?;
    let request = DeleteComponentRequest { component: Some((&component).into()) };
    let pb::Component { name, version, .. } =
        client.call(client.components().delete_component(request)).await?;
    context.output.note(&format!(
        "Version {version} of component {name} is forgotten; its code stays, as others may be made of the same."
    ));
    Ok(())
}

/// A version, in the keys of its file.
fn shown(component: &pb::Component) -> Value {
    let said = |text: &String| json!((!text.is_empty()).then_some(text));
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| {
        shown.insert(key.to_owned(), value);
    };
    put("name", json!(component.name));
    put("version", json!(component.version));
    put("id", json!(format!("azureml:{}:{}", component.name, component.version)));
    put("type", json!("command"));
    put("display_name", said(&component.display_name));
    put("description", said(&component.description));
    put("tags", json!(component.tags));
    if let Some(content) = &component.content {
        put("is_deterministic", json!(content.is_deterministic));
        put("inputs", ports(&content.inputs, input));
        put("outputs", ports(&content.outputs, output));
        put("code", content.code.as_ref().map_or(Value::Null, view::code));
        put("command", json!(content.command));
        let environment = content.environment.as_ref();
        put("environment", environment.map_or(Value::Null, view::environment));
        put("resources", content.resources.as_ref().map_or(Value::Null, view::resources));
        let distribution = content.distribution.as_ref();
        put("distribution", distribution.map_or(Value::Null, view::distribution));
    }
    put("labels", json!(component.labels));
    put("latest", json!(component.latest));
    put("archived", json!(component.archived));
    put(
        "creation_context",
        json!({ "created_at": time(component.created_at_ms), "created_by": component.created_by }),
    );
    Value::Object(shown)
}

fn ports<T>(ports: &BTreeMap<String, T>, shown: impl Fn(&T) -> Value) -> Value {
    Value::Object(ports.iter().map(|(name, port)| (name.clone(), shown(port))).collect())
}

fn input(port: &pb::ComponentInput) -> Value {
    use pb::LiteralType as L;
    use pb::input_type::Of;
    let word = match port.r#type.as_ref().and_then(|of| of.of) {
        Some(Of::Data(kind)) => view::kind(kind.try_into().unwrap_or_default()),
        Some(Of::Literal(literal)) => match L::try_from(literal).unwrap_or_default() {
            L::Integer => "integer",
            L::Number => "number",
            L::Boolean => "boolean",
            L::String | L::Unspecified => "string",
        },
        None => "string",
    };
    let mut shown = json!({ "type": word });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            shown[key] = value;
        }
    };
    put("description", (!port.description.is_empty()).then(|| json!(port.description)));
    put("optional", port.optional.then(|| json!(true)));
    put("default", port.default.as_ref().map(|text| json!(text)));
    put("min", port.min.as_ref().map(|text| json!(text)));
    put("max", port.max.as_ref().map(|text| json!(text)));
    put("enum", (!port.r#enum.is_empty()).then(|| json!(port.r#enum)));
    shown
}

fn output(port: &pb::ComponentOutput) -> Value {
    let mut shown = json!({ "type": view::kind(port.r#type()) });
    if !port.description.is_empty() {
        shown["description"] = json!(port.description);
    }
    shown
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |c| Some(c["name"].as_str()?.to_owned()) },
    Column { title: "VERSION", cell: |c| Some(c["version"].as_str()?.to_owned()) },
    Column { title: "DISPLAY NAME", cell: |c| Some(c["display_name"].as_str()?.to_owned()) },
    Column { title: "INPUTS", cell: |c| Some(names(&c["inputs"])) },
    Column { title: "OUTPUTS", cell: |c| Some(names(&c["outputs"])) },
    Column { title: "CREATED", cell: |c| moment(&c["creation_context"]["created_at"]) },
    Column { title: "STATE", cell: state },
    Column { title: "DESCRIPTION", cell: description },
];

fn names(ports: &Value) -> String {
    let names = ports.as_object().into_iter().flat_map(Map::keys);
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}
