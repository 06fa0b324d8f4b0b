//! How fast an attempt reads and writes (Documentation/admin-guide/cgroup-v2.rst, "IO", and
//! cgroup-v1/blkio-controller.rst): its share when a disk is short, and the most that it gets in any case.
//!
//! Version 1 counts what is written past the cache, and what is read; what goes through the cache is written
//! by the kernel, on nobody's account.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Limits;
use super::group::{Group, Version};

/// Bytes a second, to be read and as many to be written, of one disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DiskRate {
    major: u32,
    minor: u32,
    bytes: u64,
}

impl DiskRate {
    /// Of the disk that a folder is on. The whole one: the kernel holds no group to a rate on a partition.
    ///
    /// # Errors
    /// The folder is on no disk that the kernel could hold somebody to.
    pub(crate) fn of(folder: &Path, bytes: u64) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("cannot look at {}: {error}", folder.display());
        let device = fs::metadata(folder).map_err(cannot)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let known = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
        let Ok(known) = known.canonicalize() else {
            return Err(format!(
                "{} is on a file system that is on no one disk ({major}:{minor})",
                folder.display()
            ));
        };
        let disk = match (known.join("partition").exists(), known.parent()) {
            (true, Some(disk)) => disk,
            _ => &known,
        };
        let text = fs::read_to_string(disk.join("dev")).map_err(cannot)?;
        let numbers = text
            .trim()
            .split_once(':')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers.ok_or_else(|| format!("'{text}' names no disk"))?;
        Ok(Self { major, minor, bytes })
    }
}

/// Gives a group its share, and holds it to its rate.
pub(super) fn limit(group: &Group, limits: &Limits) -> io::Result<()> {
    // 100 is what a group has of whom nothing is said, and what one CPU is.
    let weight = (limits.cpu_milli / 10).clamp(1, 10_000);
    let coarse = weight.clamp(1, 1_000);
    match group.version {
        Version::V2 => {
            group.write_if_there("io.weight", &weight.to_string())?;
            group.write_if_there("io.bfq.weight", &coarse.to_string())?;
        }
        Version::V1 => {
            group.write_if_there("blkio.bfq.weight", &coarse.to_string())?;
            group.write_if_there("blkio.weight", &coarse.max(10).to_string())?;
        }
    }
    let Some(DiskRate { major, minor, bytes }) = limits.io else { return Ok(()) };
    match group.version {
        Version::V2 => {
            let rate = format!("{major}:{minor} rbps={bytes} wbps={bytes}");
            fs::write(group.file("io.max"), rate)
        }
        Version::V1 => ["read", "write"].into_iter().try_for_each(|way| {
            let file = group.file(&format!("blkio.throttle.{way}_bps_device"));
            fs::write(file, format!("{major}:{minor} {bytes}"))
        }),
    }
}

#[cfg(test)]
mod tests;
