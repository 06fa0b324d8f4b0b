//! How assets and their versions are named on a command line.

use atelier_core::asset::Kind;
use atelier_core::spec::{AssetRef, AssetVersion, Diagnostics};
use clap::Args;

use crate::cli::job::read;
use crate::cli::{Error, Name};

/// An asset, and which of its versions: `NAME`, `NAME:VERSION`, `NAME@LABEL`, or by options.
#[derive(Args)]
pub(in crate::cli) struct Which {
    #[command(flatten)]
    name: Name,
    /// Which version
    #[arg(short, long, value_name = "VERSION")]
    version: Option<String>,
    /// The label that points to the version, for example latest
    #[arg(short, long, value_name = "LABEL", conflicts_with = "version")]
    label: Option<String>,
}

impl Which {
    /// What is named; `read` knows how names of its kind are written.
    pub(in crate::cli) fn reference(
        &self,
        read: impl Fn(&str) -> Result<AssetRef, Diagnostics>,
    ) -> Result<AssetRef, Error> {
        let mut asset = read(self.name.get()).map_err(read::faults)?;
        let given = match (&self.version, &self.label) {
            (Some(version), _) => Some(AssetVersion::Exact(version.clone())),
            (None, Some(label)) => Some(AssetVersion::Label(label.clone())),
            (None, None) => None,
        };
        if let Some(given) = given {
            if asset.version != AssetVersion::Default && asset.version != given {
                let name = self.name.get();
                return Err(Error::usage(format!(
                    "'{name}' says which version, and so do the options"
                ))
                .help("write it once"));
            }
            asset.version = given;
        }
        Ok(asset)
    }
}

/// The version to put away; empty for all of them.
pub(in crate::cli) fn whole_or_version(asset: &AssetRef, what: &str) -> Result<String, Error> {
    match &asset.version {
        AssetVersion::Default => Ok(String::new()),
        AssetVersion::Exact(version) => Ok(version.clone()),
        AssetVersion::Label(_) => Err(Error::usage("a label is not put away, versions are").help(
            format!("name the version with --version, or leave it out for the whole {what}"),
        )),
    }
}

/// That one version is named, and not a label of it: which is forgotten must be plain.
pub(in crate::cli) fn must_be_version(asset: &AssetRef, kind: Kind) -> Result<(), Error> {
    if whole_or_version(asset, &kind.to_string())?.is_empty() {
        return Err(Error::usage("which version is to be deleted is not said").help(format!(
            "name it with --version; 'atelier {} archive' hides the {kind} as a whole",
            kind.word()
        )));
    }
    Ok(())
}

#[derive(Args)]
pub(in crate::cli) struct Listing {
    /// The versions of this one, the newest first
    #[arg(short, long, value_name = "NAME")]
    pub(in crate::cli) name: Option<String>,
    /// How many at most
    #[arg(short = 'r', long, value_name = "N", default_value_t = 1000)]
    pub(in crate::cli) max_results: u32,
    /// Archived ones too
    #[arg(long)]
    pub(in crate::cli) include_archived: bool,
    /// Archived ones only
    #[arg(long, visible_alias = "archived", conflicts_with = "include_archived")]
    pub(in crate::cli) archived_only: bool,
}
