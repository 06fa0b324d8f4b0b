//! Listing a store's keys in the order of whole paths.

use atelier_core::datastore::{Credentials, Source, Unnamed};
use object_store::list::PaginatedListOptions;
use object_store::path::Path;

use super::beside::is_upload;
use super::client::Client;
use super::listing::{Asked, Entry, Listing};
use super::problem::Told;
use super::walk::end_of;
use super::{Cloud, MAX_KEY};
use crate::storage::level::first_below;
use crate::storage::{Error, Level, Listed, Meta, ObjectPath, PAGE, Page};

/// Objects that are looked at at once.
pub(super) const LOOKS: usize = 8;
/// As many names as S3 tells with one answer.
const REQUEST: usize = 1000;
const _: () = assert!(PAGE <= REQUEST, "a page is one request");
/// At least so many are asked for, since some are gone past.
const FEW: usize = 100;
/// The region that requests are signed for where none is given.
const REGION: &str = "us-east-1";

/// What a key of a store is to the datastore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Named<'a> {
    /// An object.
    Object(ObjectPath),
    /// The mark of a folder: an empty object whose key ends with a `/`. Or what is being written.
    Mark,
    /// What no path names; the key below the datastore, of which the root's own mark is `/`.
    Not(&'a str),
}

/// Objects in their order, each with what was gone past before it.
#[derive(Debug, Default)]
pub(super) struct Run {
    objects: Vec<(ObjectPath, Meta, Unnamed)>,
    /// What was gone past after the last.
    pub(super) rest: Unnamed,
    /// Whether the store has more after what was looked at.
    has_more: bool,
}

impl Run {
    pub(super) fn of(path: ObjectPath, meta: Meta) -> Self {
        Self { objects: vec![(path, meta, Unnamed::default())], ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn push(&mut self, path: ObjectPath, meta: Meta) {
        self.objects.push((path, meta, std::mem::take(&mut self.rest)));
    }

    pub(super) fn append(&mut self, other: Self) {
        for (path, meta, before) in other.objects {
            self.rest.merge(before);
            self.push(path, meta);
        }
        self.rest.merge(other.rest);
        self.has_more |= other.has_more;
    }

    /// What comes after the first so many is another page's, and so is what was gone past on the way there.
    pub(super) fn truncate(&mut self, most: usize) {
        if self.objects.len() > most || self.has_more {
            self.objects.truncate(most);
            self.rest = Unnamed::default();
        }
    }

    /// A page of at most `limit`.
    pub(super) fn page(mut self, limit: usize) -> Page {
        let is_more = self.objects.len() > limit || self.has_more;
        self.truncate(limit);
        let next = self.objects.last().filter(|_| is_more).map(|(path, ..)| path.clone());
        let mut page = Page { next, ..Page::default() };
        for (path, meta, before) in self.objects {
            page.unnamed.merge(before);
            page.objects.push(Listed { path, meta });
        }
        page.unnamed.merge(self.rest);
        page
    }
}

impl Cloud {
    /// What an object's key is.
    pub(super) fn named<'a>(&self, object: &'a Entry) -> Named<'a> {
        let is_empty = object.meta.size == 0;
        match self.within(&object.key) {
            // Of another folder, whose name begins alike.
            None => Named::Mark,
            Some("") if is_empty => Named::Mark,
            Some("") => Named::Not("/"),
            // Nobody's yet.
            Some(below) if self.hides_uploads() && is_upload(below) => Named::Mark,
            Some(below) => match below.strip_suffix('/') {
                Some(folder) if is_empty && self.path_of(folder).is_some() => Named::Mark,
                _ => self.path_of(below).map_or(Named::Not(below), Named::Object),
            },
        }
    }

    /// The path of the folder of objects whose keys begin so; none for the datastore's own.
    ///
    /// # Errors
    /// What the key is below the datastore, if no path names it.
    pub(super) fn folder(&self, key: &str) -> Result<Option<ObjectPath>, String> {
        let below = self.shown(key);
        match below.strip_suffix('/').unwrap_or(below) {
            "" if below.is_empty() => Ok(None),
            folder => self.path_of(folder).map(Some).ok_or_else(|| below.to_owned()),
        }
    }

    fn within<'a>(&self, key: &'a str) -> Option<&'a str> {
        match self.prefix() {
            Some(prefix) => key.strip_prefix(prefix)?.strip_prefix('/'),
            None => Some(key),
        }
    }

    /// A key, below the datastore.
    pub(super) fn shown<'a>(&self, key: &'a str) -> &'a str {
        self.within(key).unwrap_or(key)
    }

    /// The path of what lies at a key below the datastore, if the path leads back to there.
    fn path_of(&self, below: &str) -> Option<ObjectPath> {
        ObjectPath::new(below).ok().filter(|path| self.key(path).is_ok())
    }

    /// What all keys below a folder start with.
    pub(super) fn below(&self, folder: Option<&ObjectPath>) -> Result<Option<String>, Error> {
        Ok(self.root(folder)?.map(|root| format!("{root}/")))
    }

    /// One request for at most `most` keys that start with `below` and come after `offset`.
    pub(super) async fn names(
        &self,
        below: Option<&str>,
        delimiter: Option<&'static str>,
        offset: Option<&str>,
        most: usize,
        from: Option<String>,
    ) -> Result<Listing, Error> {
        let options = PaginatedListOptions {
            delimiter: delimiter.map(Into::into),
            max_keys: Some(most),
            page_token: from,
            offset: offset.map(str::to_owned),
            ..Default::default()
        };
        let client = self.client().await?;
        let shown = below.map_or("", |below| self.shown(below)).trim_end_matches('/');
        let found = self.ask(client, below, options).await;
        let found = found.map_err(|error| self.problem("list", shown, error))?;
        let objects = found.objects.iter().map(|object| &object.key);
        let is_other = |key: &&String| below.is_some_and(|below| !key.starts_with(below));
        match objects.chain(&found.folders).find(is_other) {
            // Whatever it is taken for, it may be another's.
            Some(other) => Err(self.unsupported(format!(
                "the store lists what was not asked for: '{}' among what begins with '{}'; its server is at fault",
                other.escape_debug(),
                below.unwrap_or_default().escape_debug(),
            ))),
            None => Ok(found),
        }
    }

    async fn ask(
        &self,
        client: &Client,
        below: Option<&str>,
        mut options: PaginatedListOptions,
    ) -> object_store::Result<Listing> {
        let asked = match client {
            Client::AzureFile(share) => {
                let folder = below.unwrap_or_default().trim_end_matches('/');
                let PaginatedListOptions { delimiter, max_keys, page_token, .. } = options;
                return share.page(folder, delimiter.is_some(), max_keys, page_token).await;
            }
            Client::S3(store) => Asked::S3(match self.inner.credentials.get() {
                Some(Credentials::Anonymous) => None,
                _ => Some((store.credentials().get_credential().await?, self.region())),
            }),
            Client::Gcs(_) => Asked::Gcs,
            Client::Azure(_) => Asked::Azure,
            Client::Http(_) => return Err(not_listed(client)),
        };
        let Some(pages) = client.pages() else { return Err(not_listed(client)) };
        options.extensions.insert(asked);
        let mut page = pages.list_paginated(below, options).await?;
        // Nothing found is not the same as nothing said.
        page.result.extensions.remove::<Listing>().ok_or_else(|| not_listed(client))
    }

    fn region(&self) -> String {
        match &self.inner.source {
            Source::S3 { region: Some(region), .. } => region.clone(),
            _ => REGION.to_owned(),
        }
    }

    /// Whether the store gives keys in the order of their bytes, and begins after any of them.
    pub(in crate::storage) fn is_ordered(&self) -> bool {
        match &self.inner.source {
            // Folders of a data lake and of a share come in an order of their own, and other servers than Azure begin
            // from the start.
            Source::AzureDataLakeGen2(_) | Source::OneLake(_) | Source::AzureFile(_) => false,
            Source::AzureBlob(azure) => !azure.endpoint.contains("://"),
            _ => true,
        }
    }

    pub(super) async fn list_page(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Page, Error> {
        let mut found = Run::default();
        if let Some((path, meta)) = self.object_at(folder, after).await? {
            found.push(path, meta);
        }
        let wanted = (limit + 1).saturating_sub(found.len());
        found.append(match self.is_ordered() {
            true => self.first_ordered(folder, after, wanted).await?,
            false => self.first_walked(folder, after, wanted).await?,
        });
        Ok(found.page(limit))
    }

    /// The object that has the path of `folder` itself, if that comes after `after`.
    pub(super) async fn object_at(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
    ) -> Result<Option<(ObjectPath, Meta)>, Error> {
        let Some(folder) = folder.filter(|folder| after < folder.as_str()) else { return Ok(None) };
        match self.head(folder).await {
            // A hierarchical account answers so for a folder, too.
            Ok(meta) if meta.size == 0 && self.is_lake() && self.has_more(folder).await? => {
                Ok(None)
            }
            Ok(meta) => Ok(Some((folder.clone(), meta))),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The key that all others start with, before a `/`.
    pub(super) fn root(&self, folder: Option<&ObjectPath>) -> Result<Option<Path>, Error> {
        match (folder, self.prefix()) {
            (Some(folder), _) => self.key(folder).map(Some),
            // Checked when the datastore was made.
            (None, Some(prefix)) => Ok(Path::parse(prefix).ok()),
            (None, None) => Ok(None),
        }
    }

    /// The key after which a listing goes on.
    fn offset(&self, after: &str) -> Option<String> {
        let key = match self.prefix() {
            _ if after.is_empty() => return None,
            Some(prefix) => format!("{prefix}/{after}"),
            None => after.to_owned(),
        };
        // No store has longer ones: what comes after is gone past here.
        Some(key[..key.floor_char_boundary(MAX_KEY)].to_owned())
    }

    async fn first_ordered(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        wanted: usize,
    ) -> Result<Run, Error> {
        let (below, offset) = (self.below(folder)?, self.offset(after));
        let (mut found, mut from) = (Run::default(), None);
        loop {
            let most = wanted.saturating_sub(found.len()).clamp(FEW, REQUEST);
            let page = self.names(below.as_deref(), None, offset.as_deref(), most, from).await?;
            for object in page.objects {
                let last = found.objects.last().map_or(after, |(path, ..)| path.as_str());
                match self.named(&object) {
                    Named::Object(path) if path.as_str() > last && Some(&path) != folder => {
                        found.push(path, object.meta);
                    }
                    Named::Not(unnamed) if unnamed > after => found.rest.add(unnamed),
                    _ => {}
                }
                if found.len() >= wanted {
                    return Ok(found);
                }
            }
            match page.next {
                // A page is full, and the store says that it has more: what that is the next page tells.
                Some(_) if found.len() > 0 && found.len() + 1 >= wanted => found.has_more = true,
                Some(next) => {
                    from = Some(next);
                    continue;
                }
                None => {}
            }
            return Ok(found);
        }
    }

    /// What lies right below `folder` and comes after `after`, of a store that begins anywhere: at most `limit`
    /// entries, and some more. Whatever lies deeper is stepped over.
    pub(in crate::storage) async fn level_ordered(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Level, Error> {
        let below = self.below(folder)?;
        let within = folder.map_or_else(String::new, |folder| format!("{folder}/"));
        let mut level = Level::default();
        let itself = self.object_at(folder, after).await?;
        level.objects.extend(itself.map(|(path, meta)| Listed { path, meta }));
        let told = first_below(&within, after).map(str::to_owned);
        let (mut after, mut from) = (after.to_owned(), None);
        let mut offset = self.offset(&after);
        loop {
            let page = self.names(below.as_deref(), None, offset.as_deref(), REQUEST, from).await?;
            let (begun, mut inner) = (after.clone(), None);
            for object in page.objects {
                let key = self.shown(&object.key);
                if key <= begun.as_str() {
                    continue;
                }
                after = key.to_owned();
                let named = self.named(&object);
                // What cannot be named may lie in a folder that can.
                inner = first_below(&within, key)
                    .filter(|_| named != Named::Mark)
                    .and_then(|inner| self.path_of(inner));
                match (&inner, named) {
                    (Some(inner), _) => {
                        let last = level.folders.last().map(ObjectPath::as_str);
                        if last.or(told.as_deref()) != Some(inner.as_str()) {
                            level.folders.push(inner.clone());
                        }
                    }
                    (None, Named::Object(path)) if Some(&path) != folder => {
                        level.objects.push(Listed { path, meta: object.meta });
                    }
                    (None, Named::Not(unnamed)) => level.unnamed.add(unnamed),
                    (None, _) => {}
                }
            }
            let Some(next) = page.next else { return Ok(level) };
            from = Some(next);
            if let Some(inner) = inner {
                // No key of the folder comes after this, but for those that go on with the last character of all.
                let past = end_of(inner.as_str());
                if past > after {
                    (after, from) = (past, None);
                    offset = self.offset(&after);
                }
            }
            if level.folders.len() + level.objects.len() >= limit {
                level.next = Some(after);
                return Ok(level);
            }
        }
    }

    /// A file of a web server, which cannot tell what else it has.
    pub(super) async fn list_one(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
    ) -> Result<Page, Error> {
        let no_list = "the files of a web server cannot be listed: name single files";
        let Some(path) = folder else { return Err(self.unsupported(no_list)) };
        match self.head(path).await {
            Ok(_) if path.as_str() <= after => Ok(Page::default()),
            Ok(meta) => {
                let objects = vec![Listed { path: path.clone(), meta }];
                Ok(Page { objects, ..Page::default() })
            }
            Err(Error::NotFound(_)) => {
                Err(self.unsupported(format!("there is no file '{path}', and {no_list}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the bucket is there and knows who asks, as far as that can be told.
    pub(super) async fn check_there(&self) -> Result<(), Error> {
        let client = self.client().await?;
        if matches!(client, Client::Http(_)) {
            return Ok(());
        }
        let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        match self.ask(client, self.prefix(), options).await {
            Err(error) if self.is_missing(&error) || Told::is_stranger(&error) => {
                Err(self.problem("list", "", error))
            }
            _ => Ok(()),
        }
    }
}

fn not_listed(client: &Client) -> object_store::Error {
    object_store::Error::NotSupported { source: format!("{client:?} gave no listing").into() }
}
