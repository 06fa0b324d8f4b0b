//! `atelier schema`

use atelier_core::spec;
use clap::{Args, ValueEnum};

use super::{Context, Error};

/// Print the JSON Schema of job, compute, environment, component, data, model or datastore files, for editors
#[derive(Args)]
#[command(after_help = "\
Examples, for editors with the YAML language server:
  atelier schema -o json > atelier.schema.json
  atelier schema compute -o json > compute.schema.json
  # yaml-language-server: $schema=atelier.schema.json     as the first line of job.yml")]
pub(super) struct Arguments {
    /// Of which files
    #[arg(value_name = "KIND", default_value = "job")]
    of: Of,
}

#[derive(Clone, Copy, ValueEnum)]
enum Of {
    /// Command jobs
    Job,
    /// Compute clusters
    Compute,
    /// Environments
    Environment,
    /// Command components
    Component,
    /// Data assets
    Data,
    /// Models
    Model,
    /// Datastores
    Datastore,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    context.output.show(&match arguments.of {
        Of::Job => spec::schema(),
        Of::Compute => spec::compute_schema(),
        Of::Environment => spec::environment_schema(),
        Of::Component => spec::component_schema(),
        Of::Data => spec::data_schema(),
        Of::Model => spec::model_schema(),
        Of::Datastore => spec::datastore_schema(),
    })
}
