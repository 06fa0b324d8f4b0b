//! Images that were made on this node: what is kept of them, and what goes first.
//!
//! A runtime knows nothing of when an image was last used, so that is noted beside: a file for each,
//! with the time of its last use. In use is what a container is of; until a job has its container, a pin holds
//! the image. **Invariant:** an image is removed only after it was marked as going while nobody had pinned it;
//! whoever wants to pin one that is going waits until it is gone, and no others.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::image::Image;
use super::{Containers, Kind, answer, run};
use crate::bound;

/// Folder of the notes.
const NOTES: &str = ".made";

/// What is noted of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Made {
    /// The name that it has on the node.
    pub(super) tag: String,
    /// For people.
    pub(super) description: String,
    /// On the disk, without the image that it is on top of.
    pub(super) bytes: u64,
}

/// An image that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeptImage {
    pub(crate) key: String,
    pub(crate) description: String,
    pub(crate) bytes: u64,
    pub(crate) last_used: SystemTime,
    /// By how many containers it is in use.
    pub(crate) in_use: u64,
    tag: String,
}

/// How long the runtime may take to remove an image.
const REMOVAL: Duration = Duration::from_secs(120);

/// Who holds which image, and which are going.
#[derive(Debug, Default)]
pub(super) struct Pins {
    keys: Mutex<Keys>,
    /// One has gone, or stays after all.
    gone: Notify,
}

#[derive(Debug, Default)]
struct Keys {
    held: HashMap<String, usize>,
    going: HashSet<String>,
}

impl Pins {
    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds one, unless it is going.
    fn try_pin(self: &Arc<Self>, key: &str) -> Option<Pin> {
        let mut keys = self.keys();
        if keys.going.contains(key) {
            return None;
        }
        *keys.held.entry(key.to_owned()).or_default() += 1;
        Some(Pin { pins: Arc::clone(self), key: key.to_owned() })
    }

    /// Marks one as going, unless somebody holds it or removes it already.
    fn let_go(self: &Arc<Self>, key: &str) -> Option<Going> {
        let mut keys = self.keys();
        let is_free = !keys.held.contains_key(key) && keys.going.insert(key.to_owned());
        is_free.then(|| Going { pins: Arc::clone(self), key: key.to_owned() })
    }
}

/// An image on its way out.
struct Going {
    pins: Arc<Pins>,
    key: String,
}

impl Drop for Going {
    fn drop(&mut self) {
        self.pins.keys().going.remove(&self.key);
        self.pins.gone.notify_waiters();
    }
}

/// Holds an image until a container is made of it.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    key: String,
}

impl PartialEq for Pin {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Pin {}

impl Drop for Pin {
    fn drop(&mut self) {
        let held = &mut self.pins.keys().held;
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

impl Containers {
    /// Holds the image of that key, there or not.
    pub(super) async fn pin(&self, key: &str) -> Arc<Pin> {
        let pins = &self.0.pins;
        loop {
            let gone = pins.gone.notified();
            if let Some(pin) = pins.try_pin(key) {
                return Arc::new(pin);
            }
            gone.await;
        }
    }

    fn notes(&self) -> PathBuf {
        self.0.folder.join(NOTES)
    }

    /// Notes that an image was made or used now. Its size is asked for once.
    pub(super) async fn note(&self, key: &str, image: &Image, base: Option<&Image>, made: Made) {
        let at = self.notes().join(key);
        let now = File::options().write(true).open(&at);
        if now.and_then(|note| note.set_modified(SystemTime::now())).is_ok() {
            return;
        }
        let below = match base {
            Some(base) => self.size(base).await,
            None => 0,
        };
        let made = Made { bytes: self.size(image).await.saturating_sub(below), ..made };
        let written = fs::create_dir_all(self.notes())
            .and_then(|()| crate::record::write(&self.notes(), key, &made));
        if let Err(error) = written {
            tracing::warn!(%error, key, "cannot note what an image is");
        }
        let all = self.clone();
        tokio::spawn(async move { all.shrink().await });
    }

    async fn size(&self, image: &Image) -> u64 {
        let words = ["image", "inspect", "--format=atelier|{{.Size}}", &image.reference];
        let said = self.ask(&words).await;
        let bytes = said.iter().find_map(|line| line.strip_prefix("atelier|")?.parse().ok());
        bytes.unwrap_or(0)
    }

    /// What the runtime answers, nothing if it fails.
    async fn ask(&self, words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        answer(&self.runtime().program, &words).await.unwrap_or_default()
    }

    /// Every image that was made here and is still there, by its key.
    pub(crate) async fn kept(&self) -> Vec<KeptImage> {
        let mut noted = Vec::new();
        for entry in fs::read_dir(self.notes()).into_iter().flatten().flatten() {
            let Ok(key) = entry.file_name().into_string() else { continue };
            if key.starts_with('.') {
                continue;
            }
            let Ok(Some(made)) = crate::record::read::<Made>(&self.notes(), &key) else { continue };
            let used = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
            noted.push((key, made, used));
        }
        if noted.is_empty() {
            return Vec::new();
        }
        let there = self.ask(&["images", "--no-trunc", LISTED]).await;
        let there: HashMap<&str, &str> =
            there.iter().filter_map(|line| line.split_once(' ')).collect();
        let containers =
            self.ask(&["ps", "--all", "--no-trunc", used_by(self.runtime().kind)]).await;
        let mut kept = Vec::new();
        for (key, Made { tag, description, bytes }, last_used) in noted {
            let Some(id) = there.get(tag.as_str()) else { continue };
            let is_of = |of: &&String| bare(of) == bare(id) || ***of == *tag;
            let in_use = containers.iter().filter(is_of).count() as u64;
            kept.push(KeptImage { key, description, bytes, last_used, in_use, tag });
        }
        kept.sort_by(|one, other| one.key.cmp(&other.key));
        kept
    }

    /// Removes images that nothing uses; those that went.
    async fn remove_images(&self, images: Vec<KeptImage>) -> Vec<KeptImage> {
        let mut gone = Vec::new();
        for image in images {
            if image.in_use > 0 {
                continue;
            }
            let Some(_going) = self.0.pins.let_go(&image.key) else { continue };
            match self.remove_image(&image.tag, REMOVAL).await {
                Ok(()) => {
                    let _ = fs::remove_file(self.notes().join(&image.key));
                    gone.push(image);
                }
                Err(why) => tracing::warn!(tag = image.tag, why, "cannot remove an image"),
            }
        }
        gone
    }

    pub(super) async fn remove_image(&self, tag: &str, within: Duration) -> Result<(), String> {
        // Refused of one that a container is of.
        let words = ["rmi", tag].map(str::to_owned);
        match tokio::time::timeout(within, run(&self.runtime().program, &words)).await {
            Ok(Ok(finished)) if finished.status.success() => Ok(()),
            Ok(Ok(finished)) => Err(super::reason(&finished.tail)),
            Ok(Err(error)) => Err(error.to_string()),
            // It is killed, and what it has not done is left to the next time.
            Err(_) => Err(format!("it takes longer than {} s", within.as_secs())),
        }
    }

    /// Removes the image of a key, of which nothing else is known.
    #[cfg(test)]
    pub(super) async fn remove_image_of(&self, key: &str) {
        let (key, tag) = (key.to_owned(), key.to_owned());
        let (description, last_used) = (String::new(), UNIX_EPOCH);
        let image = KeptImage { key, description, bytes: 0, last_used, in_use: 0, tag };
        self.remove_images(vec![image]).await;
    }

    /// Removes images that are not in use and were not used for so long; those that went.
    pub(crate) async fn prune(&self, unused_for: Duration) -> Vec<KeptImage> {
        let mut old = self.kept().await;
        old.retain(|image| bound::unused_for(image.last_used, unused_for));
        self.remove_images(old).await
    }

    /// Bytes kept at most, but for what is in use.
    pub(crate) fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Keeps to the bound.
    pub(crate) async fn shrink(&self) {
        let limit = self.limit();
        let all = self.kept().await;
        let total = all.iter().map(|image| image.bytes).sum();
        let unused = all.into_iter().filter(|image| image.in_use == 0);
        let unused = unused.map(|image| (image.last_used, image)).collect();
        let mut going = Vec::new();
        bound::shrink(total, limit, unused, |image: KeptImage| {
            let bytes = image.bytes;
            going.push(image);
            bytes
        });
        for image in self.remove_images(going).await {
            let KeptImage { key, bytes, .. } = image;
            tracing::info!(key, bytes, limit, "an image that was not used for longest was removed");
        }
    }
}

/// A line of a list of images: its name and its id.
const LISTED: &str = "--format={{.Repository}}:{{.Tag}} {{.ID}}";

/// What a list of containers says of their images.
const fn used_by(kind: Kind) -> &'static str {
    match kind {
        Kind::Podman => "--format={{.ImageID}}",
        Kind::Docker | Kind::Apptainer => "--format={{.Image}}",
    }
}

fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}
