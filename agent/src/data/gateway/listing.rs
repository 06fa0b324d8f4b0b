//! What lies in a folder of a datastore, asked for in several parts at once.

use atelier_core::datastore::Unnamed;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::Deserialize;

use super::{Failure, Gateway, Patience, accepted};
use crate::data::store::Found;
use crate::data::{Error, path};

/// Parts that are asked for at once.
const PARTS: usize = 16;

#[derive(Deserialize)]
struct Answer {
    objects: Vec<Listed>,
    /// In place of what lies below these, which is to be asked for.
    #[serde(default)]
    folders: Vec<String>,
    next: Option<String>,
    #[serde(default)]
    unnamed: Unnamed,
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    size: u64,
    etag: String,
}

/// What is yet to be asked for: what lies at or below a folder and comes after this.
struct Part {
    folder: String,
    after: Option<String>,
}

impl Part {
    /// What lies below a folder that was told of.
    fn below(folder: String) -> Self {
        Self { after: Some(folder.clone()), folder }
    }

    /// The rest. An answer that does not move on would never end.
    fn rest(self, next: String) -> Result<Self, Failure> {
        if self.after.as_ref().is_some_and(|after| *after >= next) {
            return Err(Failure::Broken(format!("the listing does not go on after '{next}'")));
        }
        Ok(Self { after: Some(next), ..self })
    }
}

impl Gateway {
    /// The object at `key`, or all objects below it, in the order of their paths; of the whole datastore if it is
    /// empty. And what lies there that no path names.
    pub(in crate::data) async fn list(
        &self,
        datastore: &str,
        key: &str,
        token: &str,
    ) -> Result<(Vec<Found>, Unnamed), Error> {
        path::place(key)?;
        let (mut found, mut unnamed) = (Vec::new(), Unnamed::default());
        let mut waiting = vec![Part { folder: key.to_owned(), after: None }];
        let mut asked = FuturesUnordered::new();
        let failed = |failure| Self::error("list", datastore, key, failure);
        loop {
            while asked.len() < PARTS
                && let Some(part) = waiting.pop()
            {
                asked.push(self.list_part(datastore, part, token));
            }
            let Some((part, answer)) = asked.next().await else { break };
            let answer = answer.map_err(failed)?;
            unnamed.merge(answer.unnamed);
            for object in answer.objects {
                path::check(&object.path)?;
                // Nothing outside of what was asked for.
                if let Some(below) = below(key, &object.path) {
                    found.push(Found { below, size: object.size, etag: object.etag });
                }
            }
            for folder in answer.folders {
                path::check(&folder)?;
                // Deeper each time: so there is an end.
                if below(&part.folder, &folder).is_none_or(|below| below.is_empty()) {
                    let problem = format!("'{folder}' is told of as a part of '{}'", part.folder);
                    return Err(failed(Failure::Broken(problem)));
                }
                waiting.push(Part::below(folder));
            }
            if let Some(next) = answer.next {
                waiting.push(part.rest(next).map_err(failed)?);
            }
        }
        found.sort_unstable_by(|a: &Found, b| a.below.cmp(&b.below));
        Ok((found, unnamed))
    }

    async fn list_part(
        &self,
        datastore: &str,
        part: Part,
        token: &str,
    ) -> (Part, Result<Answer, Failure>) {
        let (at, folder) = (path::in_url(datastore), path::in_url(&part.folder));
        let mut url = format!("{}/{at}?prefix={folder}&parts=true", self.base);
        if let Some(after) = &part.after {
            url.push_str("&after=");
            url.push_str(&path::in_url(after));
        }
        let mut patience = Patience::new();
        loop {
            let failure = match self.answer(&url, token).await {
                Ok(answer) => return (part, Ok(answer)),
                Err(failure) => failure,
            };
            if let Err(failure) = patience.after(failure).await {
                return (part, Err(failure));
            }
        }
    }

    async fn answer(&self, url: &str, token: &str) -> Result<Answer, Failure> {
        let answer = self.client.get(url).bearer_auth(token).send().await?;
        let bytes = accepted(answer).await?.bytes().await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Broken(format!("the listing is no JSON: {error}")))
    }
}

/// Where a path leads to from `key` on, if it is that or lies below it.
fn below(key: &str, path: &str) -> Option<String> {
    match path.strip_prefix(key)? {
        rest if key.is_empty() || rest.is_empty() => Some(rest.to_owned()),
        rest => rest.strip_prefix('/').map(str::to_owned),
    }
}
