//! Components as rows: [`super::assets`] of their kind.

use atelier_core::asset::{Asset, Kind, Refusal, Registration};
use atelier_core::component::{Change, ComponentVersion, Draft};
use atelier_core::id::{AssetName, Principal, VersionName};
use atelier_core::spec::AssetVersion;
use atelier_core::time::Timestamp;
use rusqlite::Connection;

use super::Error;
use super::assets::{self, Listed, Record};

const KIND: Kind = Kind::Component;

/// A version, and where it stands.
pub type ListedComponent = Listed<ComponentVersion>;

impl Record for ComponentVersion {
    fn kind(&self) -> Kind {
        KIND
    }

    fn name(&self) -> &AssetName {
        &self.name
    }

    fn version(&self) -> &VersionName {
        &self.version
    }
}

/// Makes a version, or finds the one that is made of the same and says anew what it is for.
pub fn register(
    conn: &Connection,
    draft: Draft,
    by: Principal,
    at: Timestamp,
) -> Result<Result<ComponentVersion, Refusal>, Error> {
    let asked = draft.version.as_ref().map(VersionName::as_str);
    let known = assets::asset(conn, KIND, &draft.name, asked)?;
    let known = known.unwrap_or_else(|| Asset::new(KIND, draft.name.clone()));
    let same: Option<ComponentVersion> = match &draft.version {
        Some(version) => assets::version(conn, KIND, &draft.name, version)?,
        None => None,
    };
    let is_same = same.as_ref().map(|same| same.content == draft.content);
    let made = match (known.register(draft.version.as_ref(), is_same), same) {
        (Err(refusal), _) => return Ok(Err(refusal)),
        (Ok(Registration::Known(_)), Some(same)) => {
            let Draft { display_name, description, tags, .. } = draft;
            ComponentVersion { display_name, description, tags, ..same }
        }
        (Ok(Registration::New(version) | Registration::Known(version)), _) => {
            draft.made(version, by, at)
        }
    };
    assets::put(conn, &made)?;
    Ok(Ok(made))
}

/// Changes what may change of a version.
pub fn change(
    conn: &Connection,
    name: &AssetName,
    which: &AssetVersion,
    change: &Change,
) -> Result<Result<ComponentVersion, Refusal>, Error> {
    let (known, found) = match assets::find::<ComponentVersion>(conn, KIND, name, which)? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    for label in &change.labels {
        if let Err(refusal) = known.may_label(label) {
            return Ok(Err(refusal));
        }
    }
    let changed = found.changed(change);
    assets::put(conn, &changed)?;
    assets::label(conn, &changed, &change.labels, &change.unlabel)?;
    Ok(Ok(changed))
}
