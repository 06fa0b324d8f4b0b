//! `atelier workspace migrate-storage`

use std::path::PathBuf;

use atelier_core::datastore::Unnamed;
use clap::Args;
use serde_json::{Value, json};

use crate::cli::{Context, Error, Kind};
use crate::config::data_dir;
use crate::daemon::{Clock, Move, MoveError, MoveProgress, Moved, move_storage};

#[derive(Args)]
pub(in crate::cli) struct Migrate {
    /// The file that says where the data is to lie, as for `atelier serve --storage`
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The file that the daemon was started with (--storage), if the data is reached with its keys
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The workspace's data folder [default: `<home>/workspace`]
    #[arg(long, env = "ATELIER_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

pub(super) async fn run(arguments: Migrate, context: &Context) -> Result<(), Error> {
    let Migrate { to, from, data_dir: given } = arguments;
    let data_dir = data_dir(given.as_ref()).map_err(|error| Error::usage(error.to_string()))?;
    let file = to.display().to_string();
    let bar = context.output.bar(0, "Copying");
    let note = {
        let bar = bar.clone();
        move |MoveProgress { bytes, total, .. }| {
            bar.set_length(total);
            bar.set_position(bytes);
        }
    };
    let moved = move_storage(Move { data_dir, from, to }, Clock::default().wall(), &note).await;
    bar.finish_and_clear();
    let Moved { from, to, objects, bytes, stays, has_keys } = moved.map_err(Error::from)?;
    let left: Vec<Value> = stays
        .iter()
        .map(|(datastore, unnamed)| {
            let Unnamed { count, examples } = unnamed;
            json!({ "datastore": datastore, "keys": count, "examples": examples })
        })
        .collect();
    context.output.show(&json!({
        "storage": to,
        "moved_from": from,
        "objects": objects,
        "bytes": bytes,
        // Where it lay before is not looked at again once it lies there.
        "not_moved": from.as_ref().map(|_| left),
    }))?;
    for (datastore, unnamed) in &stays {
        context.output.warn(&format!(
            "datastore {datastore} has {unnamed}: not moved; copy what you need of that with the store's own tools"
        ));
    }
    match from {
        Some(from) => context.output.note(&format!(
            "The data lies in {to} now. What was in {from} is still there; remove it when you do not need it any more."
        )),
        None => context.output.note(&format!("The data lies in {to} already.")),
    }
    if has_keys {
        context.output.note(&format!("Start the daemon with --storage {file}."));
    }
    Ok(())
}

impl From<MoveError> for Error {
    fn from(error: MoveError) -> Self {
        let kind = match &error {
            MoveError::NoWorkspace(_) => Kind::NotFound,
            MoveError::Store(_) | MoveError::Copy(_) | MoveError::Storage(_) => Kind::Failed,
            MoveError::Place(error) if !error.is_refusal() => Kind::Failed,
            _ => Kind::Refused,
        };
        Self::new(kind, error.to_string())
    }
}
