//! Which devices are out, on the disk: an agent that starts again must not give them to jobs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Device, Sickness};
use crate::{proc, record};

/// In the agent's data folder. Whoever has mended a device removes it.
pub(super) const RECORD: &str = "gpus-out.json";

/// Where the record is, and what boot it is for: a machine that starts anew has all its devices reset.
pub(super) struct Kept {
    folder: PathBuf,
    boot_id: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    boot_id: String,
    /// By the device's own name.
    out: BTreeMap<String, Sickness>,
}

impl Kept {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), boot_id: proc::boot_id().unwrap_or_default() }
    }

    /// What was out when this was last written, in this boot.
    pub(super) fn read(&self, inventory: &[Device]) -> BTreeMap<u32, Sickness> {
        let mut out = self.record().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read which GPUs were out");
            BTreeMap::new()
        });
        let found = inventory.iter();
        found.filter_map(|device| Some((device.index, out.remove(&name(device))?))).collect()
    }

    fn record(&self) -> io::Result<BTreeMap<String, Sickness>> {
        let record: Option<Record> = record::read(&self.folder, RECORD)?;
        let record = record.filter(|record| record.boot_id == self.boot_id);
        Ok(record.map(|record| record.out).unwrap_or_default())
    }

    /// Adds these; one that has left the bus and is not known now stays in it.
    pub(super) fn write(
        &self,
        inventory: &[Device],
        out: &BTreeMap<u32, Sickness>,
    ) -> io::Result<()> {
        let named = inventory
            .iter()
            .filter_map(|device| Some((name(device), out.get(&device.index)?.clone())))
            .filter(|(_, sickness)| !sickness.passing);
        let mut all = self.record().unwrap_or_default();
        all.extend(named);
        let record = Record { boot_id: self.boot_id.clone(), out: all };
        record::write(&self.folder, RECORD, &record)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(RECORD)
    }
}

/// Indices change when a device leaves the bus.
fn name(device: &Device) -> String {
    match device.uuid.as_str() {
        "" => format!("index {}", device.index),
        uuid => uuid.to_owned(),
    }
}
