//! Where the steps of an image's build run: what they do is jobs' code, so they are in control groups as jobs are,
//! with no way to what is closed to those.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Kind, Runtime};
use crate::cgroup::Cgroups;
use crate::environment::Error;
use crate::gpu::Devices;

/// The groups of all images that are built here, one for each build below.
#[derive(Clone)]
pub(crate) struct BuildGroups {
    pub(crate) cgroups: Arc<Cgroups>,
    pub(crate) devices: Arc<Devices>,
}

impl fmt::Debug for BuildGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BuildGroups").field(&self.cgroups).finish()
    }
}

impl BuildGroups {
    /// The path of a build's group, which the runtime makes and removes; `None`: it cannot be told one. Docker's
    /// engine has groups of its own, and podman without root makes none.
    ///
    /// # Errors
    /// They cannot be made.
    pub(super) fn of(&self, runtime: &Runtime, key: &str) -> Result<Option<PathBuf>, Error> {
        if runtime.kind != Kind::Podman || runtime.rootless {
            return Ok(None);
        }
        let made = self.cgroups.of_image_builds(&self.devices.denied(&[]));
        let all = made.map_err(|error| super::failed("make the build's control groups", &error))?;
        Ok(all.map(|all| all.join(key)))
    }
}
