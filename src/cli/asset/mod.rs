//! What `atelier data` and `atelier model` do. They differ in what their files say.

mod create;
mod download;
mod which;

use std::collections::BTreeMap;

use atelier_core::asset::Kind;
use atelier_core::spec::{AssetRef, asset_reference};
use atelier_proto::asset::v1::{
    self as pb, ArchiveAssetRequest, DeleteAssetRequest, GetAssetRequest, ListAssetUsesRequest,
    ListAssetsRequest, UpdateAssetRequest,
};
use clap::Args;
use serde_json::{Map, Value, json};

use super::job::{time, view};
use super::output::moment;
use super::pages::{PAGE, pages};
use super::{Column, Context, Error};
use crate::client::Client;

pub(super) use create::{Create, absolute, create, tag};
pub(super) use download::{Download, download};
pub(super) use which::{Listing, Which, must_be_version, whole_or_version};

#[derive(Args)]
pub(super) struct Show {
    #[command(flatten)]
    which: Which,
    /// List the jobs that used it instead, the newest first
    #[arg(long)]
    used_by: bool,
}

#[derive(Args)]
pub(super) struct Update {
    #[command(flatten)]
    which: Which,
    /// Change description, stage (of a model) or a tag, for example tags.team=vision; nothing after the = clears it
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
    /// Remove what it is made of too, unless somebody refers to it
    #[arg(long)]
    with_data: bool,
    /// As users of `az ml` write it: nothing is asked either way
    #[arg(long, short)]
    yes: bool,
}

fn wire(kind: Kind) -> i32 {
    pb::AssetKind::from(kind).into()
}

fn reference(kind: Kind, which: &Which) -> Result<AssetRef, Error> {
    which.reference(|text| asset_reference(kind, text))
}

async fn get(kind: Kind, asset: &AssetRef, client: &Client) -> Result<pb::Asset, Error> {
    let request = GetAssetRequest { kind: wire(kind), asset: Some(asset.into()) };
    Ok(client.call(client.assets().get_asset(request)).await?)
}

pub(super) async fn show(kind: Kind, arguments: &Show, context: &Context) -> Result<(), Error> {
    let asset = reference(kind, &arguments.which)?;
    let client = context.client().await?;
    if arguments.used_by {
        return used_by(kind, &asset, &client, context).await;
    }
    context.output.show(&shown(&get(kind, &asset, &client).await?))
}

async fn used_by(
    kind: Kind,
    asset: &AssetRef,
    client: &Client,
    context: &Context,
) -> Result<(), Error> {
    let mut request = ListAssetUsesRequest {
        kind: wire(kind),
        asset: Some(asset.into()),
        page_size: PAGE,
        page_token: String::new(),
    };
    let mut items = Vec::new();
    loop {
        let page = client.call(client.assets().list_asset_uses(request.clone())).await?;
        items.extend(page.uses.iter().map(|used| {
            json!({
                "name": used.job,
                "status": used.status().word(),
                "inputs": used.inputs,
                "created_at": time(used.created_at_ms),
            })
        }));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return context.output.list(items, USES);
        }
    }
}

pub(super) async fn list(kind: Kind, arguments: Listing, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut request = ListAssetsRequest {
        kind: wire(kind),
        name: arguments.name.unwrap_or_default(),
        include_archived: arguments.include_archived,
        archived_only: arguments.archived_only,
        ..ListAssetsRequest::default()
    };
    let items = pages(arguments.max_results, async |size, token| {
        (request.page_size, request.page_token) = (size, token);
        let page = client.call(client.assets().list_assets(request.clone())).await?;
        Ok((page.assets.iter().map(shown).collect(), page.next_page_token))
    });
    let items = items.await?;
    context.output.list(items, COLUMNS)
}

pub(super) async fn update(kind: Kind, arguments: Update, context: &Context) -> Result<(), Error> {
    let asset = reference(kind, &arguments.which)?;
    let mut request = UpdateAssetRequest {
        kind: wire(kind),
        asset: Some((&asset).into()),
        set_labels: arguments.set_label,
        remove_labels: arguments.remove_label,
        ..UpdateAssetRequest::default()
    };
    for (key, value) in arguments.set {
        match (key.as_str(), key.strip_prefix("tags.")) {
            ("description", _) => request.description = Some(value),
            ("stage", _) if kind == Kind::Model => request.stage = Some(value),
            (_, Some(tag)) if !tag.is_empty() => {
                request.set_tags.insert(tag.to_owned(), value);
            }
            _ => return Err(fixed(kind, &key)),
        }
    }
    for key in arguments.remove {
        match key.strip_prefix("tags.").filter(|tag| !tag.is_empty()) {
            Some(tag) => request.remove_tags.push(tag.to_owned()),
            None => return Err(fixed(kind, &key)),
        }
    }
    let client = context.client().await?;
    let changed = client.call(client.assets().update_asset(request)).await?;
    context.output.show(&shown(&changed))
}

fn fixed(kind: Kind, key: &str) -> Error {
    let stage = if kind == Kind::Model { ", stage" } else { "" };
    Error::usage(format!("'{key}' of a version does not change"))
        .help(format!("what may change is description{stage} and tags.KEY; make another version"))
}

pub(super) async fn archive(
    kind: Kind,
    which: &Which,
    archived: bool,
    context: &Context,
) -> Result<(), Error> {
    let asset = reference(kind, which)?;
    let version = whole_or_version(&asset, &kind.to_string())?;
    let client = context.client().await?;
    let request = ArchiveAssetRequest { kind: wire(kind), name: asset.name, version, archived };
    let found = client.call(client.assets().archive_asset(request)).await?;
    context.output.show(&shown(&found))
}

pub(super) async fn delete(kind: Kind, arguments: &Delete, context: &Context) -> Result<(), Error> {
    let asset = reference(kind, &arguments.which)?;
    must_be_version(&asset, kind)?;
    let client = context.client().await?;
    let with_data = arguments.with_data;
    let request = DeleteAssetRequest { kind: wire(kind), asset: Some((&asset).into()), with_data };
    let gone = client.call(client.assets().delete_asset(request)).await?;
    let place = gone.uri.as_ref().map_or(Value::Null, view::uri);
    let place = place.as_str().unwrap_or_default();
    let data = match (with_data, gone.data_kept.as_str(), gone.data_going) {
        (true, "", false) if !gone.data_left.is_empty() => {
            format!("what it was made of is gone from {place}, but for {}", gone.data_left)
        }
        (false, ..) => format!("what it was made of still lies at {place}"),
        (true, "", false) => format!("what it was made of is gone from {place}"),
        (true, "", true) => format!("what it was made of goes from {place} in the background"),
        (true, why, _) => format!("what it was made of stays at {place}: {why}"),
    };
    let (name, version) = (&gone.name, &gone.version);
    context.output.note(&format!("Version {version} of {kind} {name} is forgotten; {data}."));
    Ok(())
}

fn shown(asset: &pb::Asset) -> Value {
    let said = |text: &String| json!((!text.is_empty()).then_some(text));
    let mut shown = Map::new();
    let mut put = |key: &str, value: Value| {
        shown.insert(key.to_owned(), value);
    };
    put("name", json!(asset.name));
    put("version", json!(asset.version));
    put("id", json!(format!("azureml:{}:{}", asset.name, asset.version)));
    put("type", json!(view::kind(asset.r#type())));
    put("path", asset.uri.as_ref().map_or(Value::Null, view::uri));
    put("description", said(&asset.description));
    put("tags", json!(asset.tags));
    put("properties", json!(asset.properties));
    if asset.kind() == pb::AssetKind::Model {
        let flavors: BTreeMap<&String, Value> = asset
            .flavors_json
            .iter()
            .map(|(name, json)| (name, serde_json::from_str(json).unwrap_or_default()))
            .collect();
        put("flavors", json!(flavors));
        put("stage", said(&asset.stage));
    }
    put("created_by_job", said(&asset.job));
    put("created_by_output", said(&asset.output));
    put("labels", json!(asset.labels));
    put("latest", json!(asset.latest));
    put("archived", json!(asset.archived));
    put(
        "creation_context",
        json!({ "created_at": time(asset.created_at_ms), "created_by": asset.created_by }),
    );
    Value::Object(shown)
}

/// What a version says of where it stands.
pub(super) fn state(asset: &Value) -> Option<String> {
    let own = asset["labels"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let first = match (asset["archived"] == true, asset["latest"] == true) {
        (true, _) => Some("archived"),
        (false, true) => Some("latest"),
        (false, false) => None,
    };
    Some(first.into_iter().chain(own).collect::<Vec<_>>().join(", "))
}

/// The first line of what it is for.
pub(super) fn description(asset: &Value) -> Option<String> {
    let text = asset["description"].as_str()?.lines().next().unwrap_or_default();
    Some(text.chars().take(60).collect())
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |a| Some(a["name"].as_str()?.to_owned()) },
    Column { title: "VERSION", cell: |a| Some(a["version"].as_str()?.to_owned()) },
    Column { title: "TYPE", cell: |a| Some(a["type"].as_str()?.to_owned()) },
    Column { title: "CREATED", cell: |a| moment(&a["creation_context"]["created_at"]) },
    Column { title: "BY JOB", cell: |a| Some(a["created_by_job"].as_str()?.to_owned()) },
    Column { title: "STATE", cell: state },
    Column { title: "DESCRIPTION", cell: description },
];

const USES: &[Column] = &[
    Column { title: "JOB", cell: |used| Some(used["name"].as_str()?.to_owned()) },
    Column { title: "STATUS", cell: |used| Some(used["status"].as_str()?.to_owned()) },
    Column { title: "SUBMITTED", cell: |used| moment(&used["created_at"]) },
    Column {
        title: "INPUTS",
        cell: |used| {
            let inputs = used["inputs"].as_array()?.iter().filter_map(Value::as_str);
            Some(inputs.collect::<Vec<_>>().join(", "))
        },
    },
];
