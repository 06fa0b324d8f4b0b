//! What lies in the folders of a share.

use std::time::Duration;

use bytes::BytesMut;
use http::Method;
use object_store::path::Path;
use object_store::{Error, Result};
use reqwest::Response;

use super::request::{Ask, odd};
use super::{Share, not_there};
use crate::storage::cloud::beside::is_upload;
use crate::storage::cloud::listing::{Entry, Form, Listing, add, read};

/// As many names as the service tells with one answer.
const MOST: usize = 5000;
/// How often an answer may break off before its end.
const BREAKS: u32 = 3;
/// What nobody has written to for so long is left of an upload that is no more.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// An answer; `None`: it broke off.
async fn whole(mut answer: Response) -> Result<Option<BytesMut>> {
    let mut all = BytesMut::new();
    loop {
        match answer.chunk().await {
            Ok(Some(piece)) => add(&mut all, &piece).map_err(|_| odd("more than 64 MiB"))?,
            Ok(None) => return Ok(Some(all)),
            Err(_) => return Ok(None),
        }
    }
}

impl Share {
    /// One answer's part of a folder, with what is under way; where the next continues. A folder that is not there
    /// is empty.
    async fn entries(&self, folder: &str, most: usize, from: Option<String>) -> Result<Listing> {
        let mut ask = Ask::new(Method::GET, folder)
            .query("restype", "directory")
            .query("comp", "list")
            .query("include", "Timestamps,Etag")
            .query("maxresults", most.clamp(1, MOST).to_string())
            .with("x-ms-file-extended-info", "true");
        if let Some(marker) = from {
            ask = ask.query("marker", marker);
        }
        let mut breaks = 0;
        let text = loop {
            match self.requests.send(ask.clone()).await {
                Ok(answer) => match whole(answer).await? {
                    Some(text) => break text,
                    None if breaks < BREAKS => breaks += 1,
                    None => return Err(odd("no end")),
                },
                Err(Error::NotFound { .. }) => return Ok(Listing::default()),
                Err(error) => return Err(error),
            }
        };
        let mut found = read(Form::Files, &text).map_err(|_| odd("a listing that is none"))?;
        let whole = |name: &str, end: &str| match folder {
            "" => format!("{name}{end}"),
            folder => format!("{folder}/{name}{end}"),
        };
        found.objects.iter_mut().for_each(|file| file.key = whole(&file.key, ""));
        found.folders.iter_mut().for_each(|name| *name = whole(name, "/"));
        Ok(found)
    }

    /// One answer's part of a folder. Not of a `level` alone, it is all that lies below, or there is said to be more:
    /// the service lists single folders.
    pub(in crate::storage::cloud) async fn page(
        &self,
        folder: &str,
        is_level: bool,
        most: Option<usize>,
        from: Option<String>,
    ) -> Result<Listing> {
        if !is_level && from.is_some() {
            return Err(not_there("pages of more than one folder"));
        }
        let mut found = self.entries(folder, most.unwrap_or(MOST), from).await?;
        self.drop_abandoned(found.objects.iter().filter(|file| is_upload(&file.key))).await;
        found.objects.retain(|file| !is_upload(&file.key));
        if !is_level && !found.folders.is_empty() {
            found.next.get_or_insert_default();
        }
        Ok(found)
    }

    /// Removes what is left of uploads in a folder.
    pub(super) async fn collect(&self, folder: &Path) -> Result<()> {
        let mut from = None;
        loop {
            let part = self.entries(folder.as_ref(), MOST, from).await?;
            self.drop_abandoned(part.objects.iter().filter(|file| is_upload(&file.key))).await;
            match part.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Removes those uploads that are no more. One that cannot be removed stays.
    async fn drop_abandoned(&self, uploads: impl Iterator<Item = &Entry> + Send) {
        let since = jiff::Timestamp::now().as_millisecond() - ABANDONED.as_millis() as i64;
        for upload in uploads {
            if upload.meta.modified.as_millis() < since {
                let gone = Ask::new(Method::DELETE, &upload.key);
                let _ = self.requests.send(gone).await;
            }
        }
    }
}
