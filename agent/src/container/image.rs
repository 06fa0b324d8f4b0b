//! Images of registries, pulled once however many jobs wait for one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::build::UNFINISHED;
use super::kept::Pin;
use super::{Containers, Kind, Runtime, failed, reason, run};
use crate::environment::exec::{self, Finished};
use crate::environment::progress::Progress;
use crate::environment::shared::Reporter;
use crate::environment::{BuildLog, Error};

/// An image that is here, named so that it stays the same whatever becomes of its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Image {
    /// What the runtime knows it by: an id, or a file.
    pub(crate) reference: String,
    /// The digest of its manifest, or of what else tells it from all others.
    pub(crate) digest: String,
    /// Keeps one that was made here from going before it is used.
    pub(super) held: Option<Arc<Pin>>,
}

impl Image {
    pub(super) fn new(reference: impl Into<String>, digest: impl Into<String>) -> Self {
        Self { reference: reference.into(), digest: digest.into(), held: None }
    }
}

/// A folder for what is fetched and built, removed with what is left in it.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn make(images: &Path) -> Result<Self, Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = images.join(UNFINISHED).join(format!("{}.{number}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, &error))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Containers {
    /// The image of that name, as its registry has it now. Where that cannot be asked, an image of that
    /// name that is here is taken.
    ///
    /// # Errors
    /// There is no such image (the user's), or it cannot be had now.
    pub(crate) async fn pull(&self, name: &str, log: &dyn BuildLog) -> Result<Image, Error> {
        if !is_name(name) {
            let reason = "it is not the name of an image in a registry, as ghcr.io/team/train:3 is, whose path \
                          has small letters, digits and . _ - alone"
                .to_owned();
            return Err(Error::Image { image: name.to_owned(), reason });
        }
        let name = qualified(name);
        let inner = &self.0;
        let key = format!("pull {name}");
        let image = inner
            .images
            .join(&key, log, |reporter| {
                fetch(inner.runtime.clone(), inner.folder.clone(), name.clone(), reporter)
            })
            .await?;
        log.line(&format!("image '{name}' is {}", image.digest));
        Ok((*image).clone())
    }
}

async fn fetch(
    runtime: Runtime,
    folder: PathBuf,
    name: String,
    reporter: Reporter,
) -> Result<Image, Error> {
    // Where podman and others look for what was never in a registry.
    if name.starts_with("localhost/")
        && let Some(image) = inspect(&runtime, &name).await
    {
        return Ok(image);
    }
    reporter.line(format!("pulling image '{name}'"));
    let scratch = Scratch::make(&folder)?;
    if runtime.kind == Kind::Apptainer {
        return fetch_file(&runtime, &folder, &scratch, &name, &reporter).await;
    }
    let mut arguments = vec!["pull".to_owned()];
    if runtime.kind == Kind::Podman && is_on_this_machine(&name) {
        arguments.push("--tls-verify=false".to_owned());
    }
    arguments.push(name.clone());
    let finished = follow(Command::new(&runtime.program), &arguments, &scratch, &reporter).await?;
    if finished.status.success() {
        let image = inspect(&runtime, &name).await;
        return image.ok_or_else(|| Error::Tool {
            operation: format!("find the image '{name}'"),
            reason: "it was pulled and is not there".to_owned(),
        });
    }
    let error = Error::of_pull(&name, reason(&finished.tail));
    if matches!(error, Error::Registry { .. })
        && let Some(image) = inspect(&runtime, &name).await
    {
        reporter.line(format!("{error}: the one that is here is used"));
        return Ok(image);
    }
    Err(error)
}

/// An image as a file, named by its content.
async fn fetch_file(
    runtime: &Runtime,
    folder: &Path,
    scratch: &Scratch,
    name: &str,
    reporter: &Reporter,
) -> Result<Image, Error> {
    let file = scratch.0.join("image.sif");
    let mut arguments = vec!["pull".to_owned()];
    if is_on_this_machine(name) {
        arguments.push("--no-https".to_owned());
    }
    arguments.extend([file.display().to_string(), format!("docker://{name}")]);
    let finished = follow(Command::new(&runtime.program), &arguments, scratch, reporter).await?;
    if !finished.status.success() {
        return Err(Error::of_pull(name, reason(&finished.tail)));
    }
    let hash = |path: &Path| -> std::io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(path)?)?;
        Ok(hasher.finalize())
    };
    let to = folder.to_owned();
    let moved = tokio::task::spawn_blocking(move || {
        let hash = hash(&file).map_err(|error| Error::io("read", &file, &error))?.to_hex();
        let to = to.join(format!("{hash}.sif"));
        std::fs::rename(&file, &to).map_err(|error| Error::io("move", &to, &error))?;
        Ok(Image::new(to.display().to_string(), format!("blake3:{hash}")))
    });
    moved.await.unwrap_or(Err(Error::Stopped))
}

/// Runs the runtime and writes what it says to the log of whoever waits.
pub(super) async fn follow(
    mut command: Command,
    arguments: &[String],
    scratch: &Scratch,
    reporter: &Reporter,
) -> Result<Finished, Error> {
    // What a killed runtime leaves goes with the folder.
    command.args(arguments).current_dir(&scratch.0).env("TMPDIR", &scratch.0);
    let mut progress = Progress::new(reporter);
    exec::run(command, &mut progress)
        .await
        .map_err(|error| failed("run the container runtime", &error))
}

/// The image of that name, if it is here.
pub(super) async fn inspect(runtime: &Runtime, name: &str) -> Option<Image> {
    let format = match runtime.kind {
        Kind::Podman => "--format=atelier|{{.Id}}|{{.Digest}}",
        // What is no field of its own types docker reads from the engine's answer, where lists are of no kind.
        Kind::Docker => "--format=atelier|{{.Id}}|{{json .RepoDigests}}",
        Kind::Apptainer => return None,
    };
    let arguments = ["image", "inspect", format, name].map(str::to_owned);
    let finished = run(&runtime.program, &arguments).await.ok()?;
    if !finished.status.success() {
        return None;
    }
    let line = finished.tail.iter().find_map(|line| line.strip_prefix("atelier|"))?;
    let (id, digests) = line.split_once('|')?;
    let digest = digest_of(digests);
    Some(Image::new(id, if digest.is_empty() { id } else { digest }))
}

/// The digest, of itself or of the first of `["NAME@sha256:…", …]`: an image may have several names.
pub(super) fn digest_of(said: &str) -> &str {
    let first = said.trim_start_matches(['[', '"']).split('"').next().unwrap_or_default();
    let digest = first.rsplit('@').next().unwrap_or_default();
    if matches!(digest, "null" | "]") { "" } else { digest }
}

/// Nothing that a runtime could take for an option, or for images that lie elsewhere than in a registry
/// (`oci:/path`).
pub(super) fn is_name(name: &str) -> bool {
    let name = name.strip_prefix("docker://").unwrap_or(name);
    let begins = name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[');
    let is_port = |port: &str| !port.is_empty() && port.chars().all(|digit| digit.is_ascii_digit());
    begins
        && is_path(name)
        && match name.split_once('/') {
            Some((registry, _)) if !registry.starts_with('[') => {
                registry.split_once(':').is_none_or(|(_, port)| is_port(port))
            }
            _ => true,
        }
}

/// Whether what comes after the registry, and before a tag or a digest, has no large letter, as registries want it.
fn is_path(name: &str) -> bool {
    let path = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => rest,
        _ => name,
    };
    let path = path.split('@').next().unwrap_or_default();
    let tag = path.rfind(':').filter(|at| !path[*at..].contains('/')).unwrap_or(path.len());
    let is_allowed = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || "._-/".contains(letter)
    };
    !path[..tag].is_empty() && path[..tag].chars().all(is_allowed)
}

/// A name as docker reads it: without a registry it is one of Docker Hub.
pub(super) fn qualified(name: &str) -> String {
    let name = name.strip_prefix("docker://").unwrap_or(name);
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// Whether its registry is on this machine: that one needs no certificate.
pub(super) fn is_on_this_machine(name: &str) -> bool {
    let registry = name.split('/').next().unwrap_or_default();
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    atelier_core::node::is_loopback(host)
}
