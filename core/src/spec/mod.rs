//! From YAML as written to a validated specification.
//!
//! [`parse_job`] reads a document in four steps: text to a tree that knows its places ([`yaml`]),
//! overrides on the tree ([`overrides`]), kinds and keys against the table of fields ([`shape`],
//! [`fields`]), and values to a [`CommandJob`] ([`job`]). What holds for a job however it came is
//! checked by [`validate`], which the daemon runs again. [`parse_compute`] reads a cluster's YAML,
//! [`parse_environment`] an environment's, [`parse_data`] and [`parse_model`] a data asset's and a model's,
//! and [`parse_datastore`] a datastore's, in the same steps.

pub mod amount;
mod asset;
mod command;
mod component;
mod compute;
mod data_asset;
mod datastore;
mod diagnostic;
mod distribution;
mod docker_args;
mod environment;
mod fields;
mod job;
pub mod limits;
mod origin;
mod overrides;
mod ports;
mod quantity;
mod reference;
mod resources;
mod schema;
mod secret;
mod shape;
mod shell;
mod validate;
mod yaml;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

pub use asset::{
    ParsedEnvironment, environment_reference, parse_environment, validate_environment,
};
pub use command::*;
pub use component::{ParsedComponent, component_reference, parse_component, validate_component};
pub use compute::{ParsedCompute, parse_compute, parse_sizes, validate_cluster};
pub use data_asset::{
    ParsedAsset, asset_reference, data_uri, parse_data, parse_model, validate_asset,
};
pub use datastore::{ParsedDatastore, parse_datastore, validate_datastore};
pub use diagnostic::{Diagnostic, Diagnostics, Place};
pub use distribution::{Distribution, Ray};
pub use docker_args::{NotAllowed, docker_args};
pub use job::{Parsed, parse_job};
pub use origin::{FileKind, Files, Origin};
pub use overrides::Override;
pub use schema::{
    component_schema, compute_schema, data_schema, datastore_schema, environment_schema,
    model_schema, schema,
};
pub use secret::{Delivery, SecretRef};
pub use shell::quote;
pub use validate::{is_variable_name, validate, validate_submitted};
