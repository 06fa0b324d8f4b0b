//! Until when this node may run jobs without hearing from the daemon.
//!
//! One file per node holds the instant (milliseconds of CLOCK_BOOTTIME, little endian). The agent
//! moves it on with every acknowledged heartbeat; each supervisor looks at it when the instant that
//! it last saw has come. So a lease costs nothing while it lasts, and ends jobs on a node whose
//! agent is dead or stopped.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The lease file, open.
#[derive(Debug)]
pub(crate) struct Lease {
    file: File,
}

impl Lease {
    /// An instant that never comes.
    pub(crate) const NEVER: u64 = u64::MAX;

    /// Opens the file for the agent; creates it if need be.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(Self { file: options.open(path)? })
    }

    /// Opens the file for a supervisor.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// Moves the end of the lease.
    pub(crate) fn set(&self, until: u64) -> io::Result<()> {
        self.file.write_all_at(&until.to_le_bytes(), 0)
    }

    /// The end of the lease.
    pub(crate) fn until(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
