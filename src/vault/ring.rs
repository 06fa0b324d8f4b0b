//! The key encryption keys that a daemon has at hand, and what each does with data keys.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::envelope::{self, DataKey, Place, Plain, Sealed};
use super::key::{Key, KeyError, KeyId, KeySource};
use super::source::TextSource;
use super::transit::{KeyName, Settings, Transit, TransitKey};
use super::{Error, Keys};

/// A key encryption key, or who has it. Cheap to clone.
#[derive(Clone)]
pub(super) enum Wrapper {
    Key(Arc<Key>),
    Transit(TransitKey),
}

impl Wrapper {
    /// Whether it seals with this key; of transit's, with any version.
    pub(super) fn is(&self, id: &KeyId) -> bool {
        match self {
            Self::Key(key) => key.id() == id,
            Self::Transit(key) => id.is_of_transit(key.name()),
        }
    }

    /// The id of the key that it seals with now.
    pub(super) async fn newest(&self) -> Result<KeyId, Error> {
        match self {
            Self::Key(key) => Ok(key.id().clone()),
            Self::Transit(key) => Ok(key.newest().await?),
        }
    }

    /// Makes a data key for a place.
    pub(super) async fn make(&self, place: Place<'_>) -> Result<DataKey, Error> {
        self.wrap(place, envelope::new_data_key()?).await
    }

    async fn wrap(&self, place: Place<'_>, plain: Plain) -> Result<DataKey, Error> {
        match self {
            Self::Key(key) => envelope::wrap(place, plain, key),
            Self::Transit(key) => Ok(key.wrap(place, plain).await?),
        }
    }

    /// The data key of what is sealed with it.
    async fn unwrap(&self, place: Place<'_>, sealed: &Sealed) -> Result<Plain, Error> {
        match self {
            Self::Key(key) => envelope::unwrap(place, sealed, key),
            Self::Transit(key) => {
                let opened = key.unwrap(place, &sealed.data_key).await;
                opened.map_err(|error| not_opened(place, error))
            }
        }
    }

    /// The value of what is sealed with it.
    pub(super) async fn open(
        &self,
        place: Place<'_>,
        sealed: &Sealed,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, Error> {
        envelope::open(place, sealed, &self.unwrap(place, sealed).await?)
    }

    /// Seals with `newest` the data key of what is sealed with this one; the value stays as it is.
    pub(super) async fn rewrap(
        &self,
        place: Place<'_>,
        sealed: Sealed,
        newest: &Self,
    ) -> Result<Sealed, Error> {
        if let (Self::Transit(old), Self::Transit(new)) = (self, newest)
            && old.name() == new.name()
        {
            let anew = new.rewrap(place, &sealed.data_key).await;
            if let Some((data_key, key)) = anew.map_err(|error| not_opened(place, error))? {
                return Ok(Sealed { value: sealed.value, data_key, key });
            }
        }
        let plain = self.unwrap(place, &sealed).await?;
        let DataKey { kept, key, .. } = newest.wrap(place, plain).await?;
        Ok(Sealed { value: sealed.value, data_key: kept, key })
    }
}

fn not_opened(place: Place<'_>, error: super::TransitError) -> Error {
    Error::NotOpened { name: place.name.clone(), version: place.version, error }
}

/// The keys of a vault.
pub(super) struct Ring {
    data_dir: PathBuf,
    pub(super) source: KeySource,
    /// That for new secrets, once it is there.
    newest: Mutex<Option<Wrapper>>,
    /// Those that older ones were sealed with.
    pub(super) old: Vec<(Wrapper, KeySource)>,
    transit: Option<Transit>,
}

impl Ring {
    /// The old keys, and the newest if it is there; why it is not otherwise.
    pub(super) fn open(keys: Keys, data_dir: &Path) -> Result<(Self, Option<KeyError>), Error> {
        let transit = match keys.transit {
            Some(settings) => Some(Transit::new(settings, data_dir, keys.limits)?),
            None => None,
        };
        let at = |name: &KeyName| match &transit {
            Some(server) => Ok(Wrapper::Transit(server.key(name.clone()))),
            None => Err(Error::NoTransit(name.clone())),
        };
        let load = |source: &TextSource| Ok(Wrapper::Key(Arc::new(source.load(data_dir)?)));
        let mut old = Vec::new();
        for source in keys.old {
            let wrapper = match &source {
                KeySource::Text(text) => load(text)?,
                KeySource::Transit(name) => at(name)?,
                KeySource::Nowhere => return Err(KeyError::nowhere().into()),
            };
            old.push((wrapper, source));
        }
        let (newest, missing) = match &keys.source {
            KeySource::Transit(name) => (Some(at(name)?), None),
            KeySource::Nowhere => (None, Some(KeyError::nowhere())),
            KeySource::Text(text) => match load(text) {
                Ok(key) => (Some(key), None),
                Err(missing) => (None, Some(missing)),
            },
        };
        let (data_dir, newest) = (data_dir.to_owned(), Mutex::new(newest));
        Ok((Self { data_dir, source: keys.source, newest, old, transit }, missing))
    }

    pub(super) fn newest(&self) -> Option<Wrapper> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key for new secrets. It is made, or looked for again, where there was none.
    pub(super) fn to_seal(&self) -> Result<Wrapper, Error> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*newest {
            return Ok(key.clone());
        }
        let KeySource::Text(source) = &self.source else {
            return Err(KeyError::nowhere().into());
        };
        let key = match source.load(&self.data_dir) {
            Err(error) if error.is_missing() => {
                let key = source.make(&self.data_dir)?;
                tracing::warn!(%source, key = %key.id(), "made the vault's key; back it up, apart from the data folder");
                key
            }
            found => found?,
        };
        Ok(newest.insert(Wrapper::Key(Arc::new(key))).clone())
    }

    /// The key of this id. What no old one has sealed is the newest's.
    pub(super) fn of(&self, id: &KeyId) -> Result<Wrapper, Error> {
        let newest = self.newest().filter(|newest| newest.is(id));
        let old = || self.old.iter().find(|(old, _)| old.is(id)).map(|(old, _)| old.clone());
        newest.or_else(old).map_or_else(|| self.to_seal(), Ok)
    }

    /// Where transit is, if keys are there.
    pub(super) fn transit(&self) -> Option<&str> {
        self.transit.as_ref().map(|transit| transit.settings().address.as_str())
    }

    /// Files with keys, and with what opens the way to one.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let login = self.transit.as_ref().map(Transit::settings).map(|of: &Settings| &of.login);
        let of_keys = self.old.iter().map(|(_, source)| source).chain([&self.source]);
        let texts = of_keys.filter_map(|source| match source {
            KeySource::Text(text) => Some(text),
            _ => None,
        });
        texts.chain(login.map(|login| login.source())).filter_map(|source| match source {
            TextSource::File(path) => Some(path.as_path()),
            _ => None,
        })
    }

    /// Looks whether transit's keys can be used, tells if not, and stays logged in there. Returns only without transit.
    pub(super) async fn tend(&self) {
        let Some(transit) = &self.transit else { return };
        let keys = self.old.iter().map(|(old, _)| old.clone()).chain(self.newest());
        for key in keys.filter(|key| matches!(key, Wrapper::Transit(_))) {
            match key.newest().await {
                Ok(key) => tracing::info!(%key, "transit has the vault's key"),
                Err(error) => {
                    tracing::warn!(%error, "secrets that need it are neither set nor given to jobs until that is well");
                }
            }
        }
        transit.tend().await;
    }
}
