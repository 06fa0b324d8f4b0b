//! `atelier schema`

use atelier_core::spec;
use clap::Args;

use super::{Context, Error};

/// Print the JSON Schema of job files, for editors
#[derive(Args)]
#[command(after_help = "\
Example, for editors with the YAML language server:
  atelier schema -o json > atelier.schema.json
  # yaml-language-server: $schema=atelier.schema.json     as the first line of job.yml")]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments, context: &Context) -> Result<(), Error> {
    context.output.show(&spec::schema())
}
