//! Images of a folder with a Dockerfile, built once for what is in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use atelier_core::content::Digest;

use super::image::{Image, Scratch, follow, inspect, is_on_this_machine};
use super::kept::Made;
use super::{Containers, Kind, Runtime, reason};
use crate::data::{DataPlane, Fault};
use crate::environment::shared::Reporter;
use crate::environment::{BuildLog, Error, find_program};

/// Folder of what is being fetched and built.
pub(super) const UNFINISHED: &str = ".unfinished";
/// Of a failed build's last lines those that a log is given again, where all came too fast to be shown.
const LAST_LINES: usize = 20;

impl Containers {
    /// The image that a build context makes.
    ///
    /// # Errors
    /// The Dockerfile is missing or fails (the user's), or the image cannot be built now.
    pub(crate) async fn build(
        &self,
        context: Digest,
        dockerfile: &str,
        data: &DataPlane,
        log: &dyn BuildLog,
    ) -> Result<Image, Error> {
        let inner = &self.0;
        let mut hasher = blake3::Hasher::new();
        hasher.update(context.as_bytes()).update(dockerfile.as_bytes());
        let key = hasher.finalize().to_hex()[..32].to_owned();
        let held = self.pin(&key).await;
        let tag = format!("localhost/atelier-build:{key}");
        let build = Build {
            runtime: inner.runtime.clone(),
            folder: inner.folder.clone(),
            tag: tag.clone(),
            context,
            dockerfile: dockerfile.to_owned(),
            data: data.clone(),
            groups: self.build_groups(&key)?,
        };
        let image = inner.images.join(&key, log, |reporter| build.run(reporter)).await?;
        log.line(&format!("the image of the build context is {}", image.digest));
        let made = Made { tag, description: format!("build of {dockerfile}"), bytes: 0 };
        self.note(&key, &image, None, made).await;
        Ok(Image { held: Some(held), ..(*image).clone() })
    }
}

struct Build {
    runtime: Runtime,
    folder: PathBuf,
    /// The name that a whole image gets.
    tag: String,
    context: Digest,
    dockerfile: String,
    data: DataPlane,
    groups: Option<PathBuf>,
}

impl Build {
    async fn run(self, reporter: Reporter) -> Result<Image, Error> {
        if let Some(image) = inspect(&self.runtime, &self.tag).await {
            return Ok(image);
        }
        if self.runtime.kind == Kind::Apptainer {
            let reason = "apptainer, which this node has, builds none of a Dockerfile".to_owned();
            return Err(Error::BuildContext { reason });
        }
        reporter.line("building the image of the build context");
        let scratch = Scratch::make(&self.folder)?;
        let context = scratch.0.join("context");
        std::fs::create_dir(&context).map_err(|error| Error::io("create", &context, &error))?;
        self.data.code(self.context, &context).await.map_err(|error| match error.fault() {
            Fault::DiskFull => Error::DiskFull { path: context.display().to_string() },
            Fault::User | Fault::Platform => Error::Tool {
                operation: "get the build context".to_owned(),
                reason: error.to_string(),
            },
        })?;
        let dockerfile = context.join(&self.dockerfile);
        if !is_within(&context, &dockerfile) {
            let reason = "there is no such file in the build context".to_owned();
            return Err(Error::Dockerfile { path: self.dockerfile, reason });
        }
        let text = std::fs::read_to_string(&dockerfile).unwrap_or_default();
        let insecure = self.runtime.kind == Kind::Podman && starts_on_this_machine(&text);
        let more: &[&str] = if insecure { &["--tls-verify=false"] } else { &[] };
        let arguments =
            build(&self.runtime, &self.tag, &dockerfile, &context, more, self.groups.as_deref());
        let finished = follow(enclosed(&self.runtime), &arguments, &scratch, &reporter).await?;
        if !finished.status.success() {
            for line in &finished.tail[finished.tail.len().saturating_sub(LAST_LINES)..] {
                reporter.line(format!("  {line}"));
            }
            return Err(Error::of_build(&self.dockerfile, reason(&finished.tail)));
        }
        inspect(&self.runtime, &self.tag).await.ok_or_else(|| Error::Tool {
            operation: "find the image that was built".to_owned(),
            reason: "it is not there".to_owned(),
        })
    }
}

/// The arguments of a build. Its image has a name once it is whole.
pub(super) fn build(
    runtime: &Runtime,
    tag: &str,
    dockerfile: &Path,
    context: &Path,
    more: &[&str],
    groups: Option<&Path>,
) -> Vec<String> {
    let mut arguments = ["build", "--network=host", "--force-rm"].map(str::to_owned).to_vec();
    if let Some(groups) = groups {
        // A service manager would take only its own kind of name.
        arguments.insert(0, "--cgroup-manager=cgroupfs".to_owned());
        arguments.push(format!("--cgroup-parent={}", groups.display()));
    }
    if runtime.kind == Kind::Podman {
        arguments.push("--format=docker".to_owned());
    }
    arguments.extend(more.iter().map(|&option| option.to_owned()));
    arguments.push(format!("--tag={tag}"));
    arguments.push(format!("--file={}", dockerfile.display()));
    arguments.push(context.display().to_string());
    arguments
}

/// The runtime for a build. A step of podman's outlives a build that is killed, as happens when all jobs that
/// wait for it are canceled; not so in a process namespace of the build's own.
pub(super) fn enclosed(runtime: &Runtime) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let (Kind::Podman, Some(unshare)) = (runtime.kind, find_program(&path, "unshare")) else {
        return Command::new(&runtime.program);
    };
    let mut command = if runtime.rootless {
        // Where it may make such a namespace.
        let mut command = Command::new(&runtime.program);
        command.args(["unshare", "--"]).arg(unshare);
        command
    } else {
        Command::new(unshare)
    };
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(&runtime.program);
    command
}

/// Whether it is a file of that folder, wherever links lead.
pub(super) fn is_within(folder: &Path, file: &Path) -> bool {
    match (folder.canonicalize(), file.canonicalize()) {
        (Ok(folder), Ok(file)) => file.is_file() && file.starts_with(folder),
        _ => false,
    }
}

/// Whether all images that a Dockerfile takes anything from are in registries of this machine, which need no
/// certificate. What it leaves open, by a variable, may be anywhere.
pub(super) fn starts_on_this_machine(dockerfile: &str) -> bool {
    let (mut any, mut stages) = (false, Vec::new());
    for line in dockerfile.lines() {
        let mut words = line.split_whitespace();
        let begins_stage = words.next().is_some_and(|word| word.eq_ignore_ascii_case("from"));
        let mut taken: Vec<&str> = line
            .split("from=")
            .skip(1)
            .filter_map(|rest| rest.split([' ', '\t', ',']).next())
            .collect();
        if begins_stage {
            taken.extend(words.by_ref().find(|word| !word.starts_with("--")));
            if words.next().is_some_and(|word| word.eq_ignore_ascii_case("as")) {
                stages.extend(words.next());
            }
        }
        for image in taken {
            let is_stage = image == "scratch"
                || image.chars().all(|digit| digit.is_ascii_digit())
                || stages.contains(&image);
            if !is_stage && !is_on_this_machine(image) {
                return false;
            }
            any |= !is_stage;
        }
    }
    any
}
