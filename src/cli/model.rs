//! `atelier model`

use atelier_core::asset::Kind;
use clap::Subcommand;

use super::asset::{self, Create, Delete, Download, Listing, Show, Update, Which};
use super::{Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a version of a model from its file
    ///
    /// Azure's files are read as they are. A path of this machine is sent, and not again while its files are the
    /// same. Where a version lies never changes: with a version the same again is no change, and another place needs another.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier model create -f model.yml
  atelier model create --name digits --path ./model --type mlflow_model
  atelier model create --name digits --path azureml://jobs/calm_apple_x1/outputs/model/paths/"
    )]
    Create(Create),
    /// List the models, each by its latest version, or the versions of one
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  atelier model list
  atelier model list --name digits --include-archived"
    )]
    List(Listing),
    /// Show one version: where it lies, which job made it, or which used it
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier model show digits@latest
  atelier model show --name digits --version 3
  atelier model show digits:3 --used-by"
    )]
    Show(Show),
    /// Change what is said of a version, or which labels point to it
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier model update digits:3 --set description='With the new sensor' tags.team=vision
  atelier model update digits:3 --set-label champion"
    )]
    Update(Update),
    /// Hide a model, or one of its versions, from lists
    ///
    /// Jobs may still name an archived version; no label points to it.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier model archive digits
  atelier model archive digits --version 2"
    )]
    Archive(Which),
    /// Show an archived model, or one of its versions, in lists again
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier model restore digits
  atelier model restore digits --version 2"
    )]
    Restore(Which),
    /// Forget a version; what it was made of stays where it lies. Refused while jobs use it
    ///
    /// Its name is not given again.
    #[command(
        disable_version_flag = true,
        after_help = "Example:\n  atelier model delete digits --version 2"
    )]
    Delete(Delete),
    /// Bring a version's files here, into a folder of its name
    ///
    /// A file that was in the folder before is overwritten. A download that broke off goes on where it was when the
    /// command is run again.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier model download digits@latest                     ./digits/…
  atelier model download digits:3 --download-path /data    /data/digits/…"
    )]
    Download(Download),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    const OF: Kind = Kind::Model;
    match command {
        Command::Create(arguments) => asset::create(OF, arguments, context).await,
        Command::List(arguments) => asset::list(OF, arguments, context).await,
        Command::Show(arguments) => asset::show(OF, &arguments, context).await,
        Command::Update(arguments) => asset::update(OF, arguments, context).await,
        Command::Archive(which) => asset::archive(OF, &which, true, context).await,
        Command::Restore(which) => asset::archive(OF, &which, false, context).await,
        Command::Delete(arguments) => asset::delete(OF, &arguments, context).await,
        Command::Download(arguments) => asset::download(OF, &arguments, context).await,
    }
}
