//! `atelier data`

use atelier_core::asset::Kind;
use clap::Subcommand;

use super::asset::{self, Create, Delete, Download, Listing, Show, Update, Which};
use super::{Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a version of a data asset from its file
    ///
    /// Azure's files are read as they are. A path of this machine is sent, and not again while its files are the
    /// same. Where a version lies never changes: with a version the same again is no change, and another place needs another.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier data create -f data.yml
  atelier data create --name iris --path ./iris.csv --type uri_file
  atelier data create --name set --version 3 --path azureml://datastores/datasets/paths/set/"
    )]
    Create(Create),
    /// List the data assets, each by its latest version, or the versions of one
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  atelier data list
  atelier data list --name iris --include-archived"
    )]
    List(Listing),
    /// Show one version: where it lies, which job made it, or which used it
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier data show iris@latest
  atelier data show --name iris --version 3
  atelier data show iris:3 --used-by"
    )]
    Show(Show),
    /// Change what is said of a version, or which labels point to it
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier data update iris:3 --set description='With the new sensor' tags.team=vision
  atelier data update iris:3 --set-label champion"
    )]
    Update(Update),
    /// Hide a data asset, or one of its versions, from lists
    ///
    /// Jobs may still name an archived version; no label points to it.
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier data archive iris
  atelier data archive iris --version 2"
    )]
    Archive(Which),
    /// Show an archived data asset, or one of its versions, in lists again
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier data restore iris
  atelier data restore iris --version 2"
    )]
    Restore(Which),
    /// Forget a version; what it was made of stays where it lies. Refused while jobs use it
    ///
    /// Its name is not given again.
    #[command(
        disable_version_flag = true,
        after_help = "Example:\n  atelier data delete iris --version 2"
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
  atelier data download iris@latest                     ./iris/…
  atelier data download iris:3 --download-path /data    /data/iris/…"
    )]
    Download(Download),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    const OF: Kind = Kind::Data;
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
