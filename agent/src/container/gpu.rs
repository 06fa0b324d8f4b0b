//! The GPUs of a container.

use std::path::{Path, PathBuf};

use super::{Containers, Kind};
use crate::environment::Error;

/// Where specifications of the Container Device Interface lie.
const CDI: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// NVIDIA's kind of device in them.
const NVIDIA: &str = "nvidia.com/gpu";

impl Containers {
    /// These GPUs as the runtime names them.
    ///
    /// # Errors
    /// The runtime needs a description of the node's devices, and there is none.
    pub(crate) fn gpus(&self, indices: &[u32]) -> Result<Vec<String>, Error> {
        let folders: Vec<PathBuf> = CDI.iter().map(PathBuf::from).collect();
        devices(self.runtime().kind, indices, &folders)
    }

    /// The indices by which the command finds its GPUs. A container that has only its own counts them from
    /// zero.
    pub(crate) fn visible(&self, indices: &[u32]) -> Vec<u32> {
        match self.runtime().kind {
            Kind::Podman | Kind::Docker => (0..).take(indices.len()).collect(),
            Kind::Apptainer => indices.to_vec(),
        }
    }
}

pub(super) fn devices(kind: Kind, indices: &[u32], cdi: &[PathBuf]) -> Result<Vec<String>, Error> {
    match kind {
        Kind::Docker | Kind::Apptainer => Ok(indices.iter().map(u32::to_string).collect()),
        Kind::Podman if indices.is_empty() => Ok(Vec::new()),
        Kind::Podman if cdi.iter().any(|folder| describes_nvidia(folder)) => {
            Ok(indices.iter().map(|index| format!("{NVIDIA}={index}")).collect())
        }
        Kind::Podman => Err(Error::Tool {
            operation: "give the container its GPUs".to_owned(),
            reason: format!(
                "there is no CDI specification of {NVIDIA} in {}; make one with 'nvidia-ctk cdi generate \
                 --output=/etc/cdi/nvidia.yaml'",
                CDI.join(" or ")
            ),
        }),
    }
}

fn describes_nvidia(folder: &Path) -> bool {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .map(|file| file.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|e| ending == *e))
        })
        .any(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(NVIDIA)))
}
