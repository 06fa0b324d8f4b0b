//! What lies in the folders of a share.

use std::time::{Duration, SystemTime};

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::Method;
use object_store::list::PaginatedListResult;
use object_store::path::Path;
use object_store::{Error, ListResult, ObjectMeta, Result};
use serde::Deserialize;

use super::request::{Ask, odd};
use super::write::UPLOAD;
use super::{Share, not_there, time};

/// As many names as the service tells with one answer.
const MOST: usize = 5000;
/// How often an answer may break off before its end.
const BREAKS: u32 = 3;
/// What nobody has written to for so long is left of an upload that is no more.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    entries: Entries,
    #[serde(default)]
    next_marker: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Entries {
    file: Vec<File>,
    directory: Vec<Directory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    name: Name,
    properties: Properties,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Directory {
    name: Name,
}

#[derive(Deserialize)]
struct Name {
    /// Whether it is written as in addresses, since XML cannot have it.
    #[serde(rename = "@Encoded", default)]
    is_encoded: bool,
    #[serde(rename = "$text", default)]
    text: String,
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "Content-Length")]
    length: u64,
    #[serde(rename = "Last-Modified")]
    modified: String,
    #[serde(rename = "Etag")]
    tag: Option<String>,
}

impl Name {
    fn in_folder(self, folder: &str) -> Result<Path> {
        let name = match self.is_encoded {
            true => percent_encoding::percent_decode_str(&self.text)
                .decode_utf8()
                .map_err(|_| odd("a name that is no text"))?
                .into_owned(),
            false => self.text,
        };
        Ok(match folder.is_empty() {
            true => Path::parse(name)?,
            false => Path::parse(format!("{folder}/{name}"))?,
        })
    }
}

impl File {
    fn in_folder(self, folder: &str) -> Result<ObjectMeta> {
        Ok(ObjectMeta {
            location: self.name.in_folder(folder)?,
            last_modified: time(&self.properties.modified)?.into(),
            size: self.properties.length,
            e_tag: self.properties.tag,
            version: None,
        })
    }
}

fn is_upload(meta: &ObjectMeta) -> bool {
    meta.location.filename().is_some_and(|name| name.starts_with(UPLOAD))
}

impl Share {
    /// One answer's part of a folder, with what is under way; where the next continues. A folder that is not there
    /// is empty.
    async fn entries(
        &self,
        folder: &str,
        most: usize,
        from: Option<String>,
    ) -> Result<(ListResult, Option<String>)> {
        let mut ask = Ask::new(Method::GET, folder)
            .query("restype", "directory")
            .query("comp", "list")
            .query("include", "Timestamps,Etag")
            .query("maxresults", most.clamp(1, MOST).to_string())
            .with("x-ms-file-extended-info", "true");
        if let Some(marker) = from {
            ask = ask.query("marker", marker);
        }
        let mut found = empty();
        let mut breaks = 0;
        let text = loop {
            match self.requests.send(ask.clone()).await {
                Ok(answer) => match answer.text().await {
                    Ok(text) => break text,
                    Err(_) if breaks < BREAKS => breaks += 1,
                    Err(_) => return Err(odd("no end")),
                },
                Err(Error::NotFound { .. }) => return Ok((empty(), None)),
                Err(error) => return Err(error),
            }
        };
        let text = text.trim_start_matches('\u{feff}');
        let answer: Answer =
            quick_xml::de::from_str(text).map_err(|_| odd("a listing that is none"))?;
        for file in answer.entries.file {
            found.objects.push(file.in_folder(folder)?);
        }
        for directory in answer.entries.directory {
            found.common_prefixes.push(directory.name.in_folder(folder)?);
        }
        Ok((found, Some(answer.next_marker).filter(|marker| !marker.is_empty())))
    }

    /// One answer's part of a folder. Not of a `level` alone, it is all that lies below, or there is said to be more:
    /// the service lists single folders.
    pub(super) async fn page(
        &self,
        folder: &str,
        is_level: bool,
        most: Option<usize>,
        from: Option<String>,
    ) -> Result<PaginatedListResult> {
        if !is_level && from.is_some() {
            return Err(not_there("pages of more than one folder"));
        }
        let (mut result, next) = self.entries(folder, most.unwrap_or(MOST), from).await?;
        self.drop_abandoned(result.objects.iter().filter(|meta| is_upload(meta))).await;
        result.objects.retain(|meta| !is_upload(meta));
        let has_folders = !result.common_prefixes.is_empty();
        let page_token = match (next, is_level) {
            (None, false) if has_folders => Some(String::new()),
            (next, _) => next,
        };
        Ok(PaginatedListResult { result, page_token })
    }

    /// All that lies right in a folder.
    pub(super) async fn folder(&self, folder: &str) -> Result<ListResult> {
        let (mut all, mut from) = (empty(), None);
        loop {
            let (part, next) = self.entries(folder, MOST, from).await?;
            all.objects.extend(part.objects.into_iter().filter(|meta| !is_upload(meta)));
            all.common_prefixes.extend(part.common_prefixes);
            match next {
                Some(next) => from = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// All files below a folder.
    pub(super) fn all(self, folder: String) -> BoxStream<'static, Result<ObjectMeta>> {
        let files = futures::stream::try_unfold(vec![folder], move |mut folders| {
            let share = self.clone();
            async move {
                let Some(folder) = folders.pop() else { return Ok::<_, Error>(None) };
                let found = share.folder(&folder).await?;
                folders.extend(found.common_prefixes.iter().map(Path::to_string));
                let files = futures::stream::iter(found.objects.into_iter().map(Ok));
                Ok(Some((files, folders)))
            }
        });
        files.try_flatten().boxed()
    }

    /// Removes what is left of uploads in a folder.
    pub(super) async fn collect(&self, folder: &Path) -> Result<()> {
        let mut from = None;
        loop {
            let (part, next) = self.entries(folder.as_ref(), MOST, from).await?;
            self.drop_abandoned(part.objects.iter().filter(|meta| is_upload(meta))).await;
            match next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Removes those uploads that are no more. One that cannot be removed stays.
    async fn drop_abandoned(&self, uploads: impl Iterator<Item = &ObjectMeta> + Send) {
        let since = SystemTime::now() - ABANDONED;
        for upload in uploads {
            if SystemTime::from(upload.last_modified) < since {
                let gone = Ask::new(Method::DELETE, upload.location.as_ref());
                let _ = self.requests.send(gone).await;
            }
        }
    }
}

fn empty() -> ListResult {
    let (common_prefixes, objects, extensions) = Default::default();
    ListResult { common_prefixes, objects, extensions }
}
