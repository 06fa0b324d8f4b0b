//! Reading parts of objects from the daemon's gateway, for as long as patience lasts.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use tokio::time::Instant;

use super::failure::Failure;
use super::tree::Object;
use crate::data::direct::{Wanted, Way};
use crate::data::gateway::{Failure as Answer, Gateway};
use crate::reach::{KEPT, Urls};
use crate::record;
use crate::trust::Trust;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What is smaller is not worth an address of its own.
const SMALL: u64 = 1 << 20;

/// The daemon's gateway, wherever the daemon is.
#[derive(Debug)]
pub(in crate::data) struct Fetch {
    gateway: Mutex<(Gateway, String, Trust)>,
    token: String,
    /// The agent's folder, in which it says where the daemon is now.
    root: PathBuf,
    /// How long a read waits for a daemon that is away.
    patience: Duration,
}

impl Fetch {
    pub(in crate::data) fn new(
        url: &str,
        trust: Trust,
        token: String,
        root: PathBuf,
        patience: Duration,
    ) -> Result<Self, String> {
        let gateway = Mutex::new((Gateway::new(url, &trust)?, url.to_owned(), trust));
        Ok(Self { gateway, token, root, patience })
    }

    /// The bytes of `range`, of this very content of the object.
    ///
    /// # Errors
    /// Why the reader gets none.
    pub(in crate::data) async fn part(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<Bytes, Failure> {
        let Object { datastore, key, etag, .. } = object;
        let path = || format!("{datastore}/{key}");
        let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let gateway = self.gateway();
            let wanted = Wanted { datastore, key, etag, token: &self.token };
            let asked = async {
                match object.size {
                    ..SMALL => gateway.once(&Way::Gateway, &wanted, range.clone()).await,
                    _ => gateway.part(&wanted, range.clone()).await,
                }
            };
            let left = self.patience.saturating_sub(began.elapsed());
            let answer = match tokio::time::timeout(left, asked).await {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(answer)) => answer,
                Err(_) => Answer::Broken("no answer came".to_owned()),
            };
            if let Answer::Denied(problem) = answer {
                return Err(Failure::Refused { path: path(), problem });
            }
            if let Answer::Status(status, _) = &answer {
                if matches!(*status, StatusCode::PRECONDITION_FAILED | StatusCode::NOT_FOUND) {
                    return Err(Failure::Changed { path: path() });
                }
                if !answer.is_transient() {
                    return Err(Failure::Refused { path: path(), problem: answer.text() });
                }
            }
            if began.elapsed() + pause >= self.patience {
                let (seconds, problem) = (began.elapsed().as_secs(), answer.text());
                return Err(Failure::Away { path: path(), seconds, problem });
            }
            tracing::debug!(object = key, problem = answer.text(), "trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.look_for_daemon();
        }
    }

    fn gateway(&self) -> Gateway {
        self.gateway.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// It may be somewhere else since it was started anew.
    fn look_for_daemon(&self) {
        let Ok(Some(Urls { jobs, trust, .. })) = record::read(&self.root, KEPT) else { return };
        let mut gateway = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_empty() || jobs == gateway.1 && trust == gateway.2 {
            return;
        }
        let there = match trust == gateway.2 {
            true => Ok(gateway.0.clone().at(&jobs)),
            false => Gateway::new(&jobs, &trust),
        };
        match there {
            Ok(there) => *gateway = (there, jobs, trust),
            Err(problem) => tracing::warn!(problem, "cannot ask the daemon where it is now"),
        }
    }
}
