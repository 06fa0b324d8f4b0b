//! Models as MLflow's JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::reply::{put, put_list};
use crate::store::assets::models::{ModelVersion, RegisteredModel};

fn tags(tags: &BTreeMap<String, String>) -> Vec<Value> {
    tags.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

pub(super) fn version(found: &ModelVersion) -> Value {
    let own = &found.version;
    let mut object = Map::new();
    put(&mut object, "name", own.name.as_str());
    put(&mut object, "version", own.version.as_str());
    put(&mut object, "creation_timestamp", own.created_at.as_millis());
    put(&mut object, "last_updated_timestamp", found.updated.as_millis());
    put(&mut object, "user_id", own.created_by.as_str());
    put(&mut object, "current_stage", found.stage());
    put(&mut object, "description", own.description.as_deref().unwrap_or_default());
    put(&mut object, "source", found.source.as_str());
    put(&mut object, "run_id", found.run.as_ref().map_or("", |run| run.as_str()));
    // Whatever there is can be read.
    put(&mut object, "status", "READY");
    put_list(&mut object, "tags", tags(&own.tags));
    put(&mut object, "run_link", found.run_link.as_deref().unwrap_or_default());
    let aliases = found.aliases.iter().map(|alias| json!(alias.as_str()));
    put_list(&mut object, "aliases", aliases.collect());
    if let Some(id) = &found.logged {
        put(&mut object, "model_id", id.as_str());
    }
    object.into()
}

pub(super) fn model(found: &RegisteredModel) -> Value {
    let mut object = Map::new();
    put(&mut object, "name", found.name.as_str());
    put(&mut object, "creation_timestamp", found.created.as_millis());
    put(&mut object, "last_updated_timestamp", found.updated.as_millis());
    put(&mut object, "user_id", found.owner.as_str());
    if let Some(text) = found.description.as_deref().filter(|text| !text.is_empty()) {
        put(&mut object, "description", text);
    }
    put_list(&mut object, "latest_versions", found.latest.iter().map(version).collect());
    put_list(&mut object, "tags", tags(&found.tags));
    let alias = |(alias, version): (&_, &_)| json!({ "alias": alias, "version": version });
    put_list(&mut object, "aliases", found.aliases.iter().map(alias).collect());
    object.into()
}
