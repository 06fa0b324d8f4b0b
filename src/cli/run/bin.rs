//! `atelier run delete`, `restore`

use clap::Args;

use super::failed;
use crate::cli::{Context, Error};
use crate::client::tracking::Tracking;

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier run delete 0a1b2c3d4e5f60718293a4b5c6d7e8f9
  atelier run delete calm_apple_x1 warm_pear_k2
  atelier run list --deleted
  atelier workspace retention preview                  what goes, and what stays and why")]
pub(in crate::cli) struct DeleteArguments {
    /// The runs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier run restore calm_apple_x1
  atelier run list --deleted")]
pub(in crate::cli) struct RestoreArguments {
    /// The runs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// The first that cannot be deleted ends it: what was asked for is not done then.
pub(super) async fn delete(arguments: &DeleteArguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let tracking = Tracking::of(&client)?;
    for name in &arguments.names {
        tracking.delete(name).await.map_err(failed(&format!("delete the run {name}")))?;
        context.output.note(&format!(
            "{name} is deleted. Until it goes for good it can be had again: atelier run restore {name}"
        ));
    }
    Ok(())
}

pub(super) async fn restore(arguments: &RestoreArguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let tracking = Tracking::of(&client)?;
    for name in &arguments.names {
        tracking.restore(name).await.map_err(failed(&format!("restore the run {name}")))?;
        context.output.note(&format!("{name} is restored."));
    }
    Ok(())
}
