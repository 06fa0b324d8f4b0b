//! The runtimes' command lines.

use std::path::{Path, PathBuf};

use super::{Kind, Runtime, users};

/// What containers are labelled with: the folder of their agent.
const OWNER: &str = "atelier.agent";

/// All that one attempt's container is made of.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) name: &'a str,
    /// The agent's folder.
    pub(crate) owner: &'a Path,
    /// As [`super::Image::reference`].
    pub(crate) image: &'a str,
    /// What it runs; see [`super::script`].
    pub(crate) script: &'a Path,
    /// The command's working directory.
    pub(crate) directory: &'a Path,
    /// The only folders and files of the node that it sees, besides [`Plan::temporary`].
    pub(crate) binds: Vec<Bind>,
    /// Its `/tmp` and `/var/tmp`.
    pub(crate) temporary: &'a Path,
    /// A variable that all its processes have from the start.
    pub(crate) mark: (&'a str, &'a Path),
    /// Bytes of shared memory.
    pub(crate) shm_bytes: u64,
    /// Whom it runs as, as it sees itself.
    pub(crate) user: (u32, u32),
    /// The node's user that is its root; `None`: the node's root.
    pub(crate) root: Option<u32>,
    /// What it may use, for a runtime whose containers are in no group of the agent's.
    pub(crate) limits: Limits,
    /// The devices of its GPUs, in the runtime's words.
    pub(crate) gpus: Vec<String>,
    /// The most open files and processes that the agent may grant.
    pub(crate) ulimits: Vec<(&'static str, u64)>,
    /// The job's own, already found harmless: `--name=value`.
    pub(crate) arguments: &'a [String],
}

/// Something of the node that the container has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bind {
    /// Where it has it.
    pub(crate) path: PathBuf,
    /// Where it lies on the node, if that is elsewhere.
    pub(crate) from: Option<PathBuf>,
    pub(crate) writable: bool,
}

impl Bind {
    fn from(&self) -> &Path {
        self.from.as_deref().unwrap_or(&self.path)
    }
}

/// What an engine is to hold a container to; 0: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) cpu_milli: u64,
    pub(crate) memory_mib: u64,
    pub(crate) processes: u64,
}

fn texts<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// A value of a comma-separated list, in quotes where it has to be (RFC 4180).
fn quoted(field: String) -> String {
    if field.contains([',', '"', '\n']) {
        return format!("\"{}\"", field.replace('"', "\"\""));
    }
    field
}

pub(super) fn mount(from: &Path, to: &Path, writable: bool) -> String {
    let source = quoted(format!("source={}", from.display()));
    let target = quoted(format!("target={}", to.display()));
    let read_only = if writable { "" } else { ",readonly" };
    format!("--mount=type=bind,{source},{target}{read_only}")
}

/// How every container of podman's is kept: no privileges and no way to get any, in the control groups of
/// whoever starts it, and apart from the node but for its network, over which a job reaches its workspace.
pub(super) fn kept_apart(runtime: &Runtime) -> Vec<String> {
    let mut all = texts([
        "--network=host",
        "--ipc=private",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
    ]);
    if runtime.kind == Kind::Podman {
        // Private is what docker has when it is not told.
        all.extend(texts(["--pid=private", "--cgroups=disabled", "--systemd=false"]));
        if runtime.rootless {
            all.push("--userns=keep-id".to_owned());
        }
    }
    all
}

pub(super) fn ulimits(all: &[(&'static str, u64)]) -> impl Iterator<Item = String> {
    all.iter().map(|(name, most)| format!("--ulimit={name}={most}:{most}"))
}

/// Makes the container, not yet running; `None` for a runtime that makes and runs in one.
pub(crate) fn create(runtime: &Runtime, plan: &Plan<'_>) -> Option<Vec<String>> {
    let mut all = texts(["create", "--pull=never"]);
    match runtime.kind {
        Kind::Podman => all.extend(texts([
            // One that an agent made before it was killed.
            "--replace",
            // Output goes where the supervisor's pipe is, byte for byte and past nobody.
            "--log-driver=passthrough",
            // What an image declares as a volume is part of the container and goes with it.
            "--image-volume=ignore",
        ])),
        Kind::Docker => all.push("--log-driver=none".to_owned()),
        Kind::Apptainer => return None,
    }
    all.push(format!("--name={}", plan.name));
    all.push(format!("--label={OWNER}={}", plan.owner.display()));
    all.extend(kept_apart(runtime));
    let (user, group) = plan.user;
    all.push(format!("--user={user}:{group}"));
    all.extend(plan.root.into_iter().flat_map(users::map));
    all.push(format!("--shm-size={}b", plan.shm_bytes));
    all.push(format!("--workdir={}", plan.directory.display()));
    let (mark, folder) = plan.mark;
    all.push(format!("--env={mark}={}", folder.display()));
    all.extend(plan.binds.iter().map(|bind| mount(bind.from(), &bind.path, bind.writable)));
    for place in ["/tmp", "/var/tmp"] {
        all.push(mount(plan.temporary, Path::new(place), true));
    }
    let Limits { cpu_milli, memory_mib, processes } = plan.limits;
    if runtime.kind == Kind::Docker {
        if cpu_milli > 0 {
            all.push(format!("--cpus={}.{:03}", cpu_milli / 1000, cpu_milli % 1000));
        }
        if memory_mib > 0 {
            all.push(format!("--memory={memory_mib}m"));
            // No more with swap than without.
            all.push(format!("--memory-swap={memory_mib}m"));
        }
        if processes > 0 {
            all.push(format!("--pids-limit={processes}"));
        }
        if !plan.gpus.is_empty() {
            // Docker reads a list of its own in this.
            all.push(format!("--gpus=\"device={}\"", plan.gpus.join(",")));
        }
    } else {
        all.extend(plan.gpus.iter().map(|gpu| format!("--device={gpu}")));
        all.extend(ulimits(&plan.ulimits));
    }
    all.extend(plan.arguments.iter().cloned());
    all.push("--entrypoint=/bin/sh".to_owned());
    all.push(plan.image.to_owned());
    all.push(plan.script.display().to_string());
    Some(all)
}

/// What the supervisor runs.
pub(crate) fn start(kind: Kind, plan: &Plan<'_>) -> Vec<String> {
    match kind {
        Kind::Podman | Kind::Docker => texts(["start", "--attach", plan.name]),
        Kind::Apptainer => {
            let mut all = texts(["--quiet", "exec", "--containall", "--no-privs", "--no-eval"]);
            let mut bind = |from: &Path, to: &Path, mode: &str| {
                all.push(format!("--bind={}:{}:{mode}", from.display(), to.display()));
            };
            for one in &plan.binds {
                bind(one.from(), &one.path, if one.writable { "rw" } else { "ro" });
            }
            for place in ["/tmp", "/var/tmp"] {
                bind(plan.temporary, Path::new(place), "rw");
            }
            all.push(format!("--pwd={}", plan.directory.display()));
            let (mark, folder) = plan.mark;
            all.push(format!("--env={mark}={}", folder.display()));
            if !plan.gpus.is_empty() {
                all.push("--nv".to_owned());
            }
            all.extend([plan.image.to_owned(), "/bin/sh".to_owned()]);
            all.push(plan.script.display().to_string());
            all
        }
    }
}

/// Tells when the first process started.
pub(super) fn started(kind: Kind, name: &str) -> Option<Vec<String>> {
    let inspect = ["container", "inspect", "--format={{.State.StartedAt}}", name];
    (kind != Kind::Apptainer).then(|| texts(inspect))
}

/// Makes an image of what a container is now.
pub(super) fn commit(name: &str, tag: &str) -> Vec<String> {
    texts(["commit", "--quiet", "--pause=false", name, tag])
}

/// The arguments that made a container, for one of another image.
pub(super) fn create_of(made: &[String], image: &str) -> Vec<String> {
    let place = made.len().saturating_sub(2);
    let words = made.iter().enumerate();
    words.map(|(at, word)| if at == place { image } else { word.as_str() }.to_owned()).collect()
}

/// What ends an engine's containers, and fails unless it is sure that none of them runs; of the others
/// the end is their supervisor's.
pub(crate) fn end(
    kind: Kind,
    program: &Path,
    names: impl Iterator<Item = String>,
) -> Option<Vec<String>> {
    const END: &str = r#"program=$1; shift
for name; do
  "$program" stop -t 0 "$name"
  left=$("$program" ps --quiet --filter "name=^/?$name\$") && test -z "$left" || exit 1
done"#;
    let words = texts(["/bin/sh", "-c", END, "sh"]).into_iter();
    let words = words.chain([program.display().to_string()]).chain(names);
    (kind == Kind::Docker).then(|| words.collect())
}

/// Runs a command beside that of a container, which is below an engine: nobody else can enter it. Its script
/// gives the variables. `terminal`: its kind, if there is one and if that is known.
pub(crate) fn exec(
    name: &str,
    terminal: Option<&str>,
    script: &Path,
    command: &[String],
) -> Vec<String> {
    const SHELL: &str = "command -v bash >/dev/null && exec bash; exec sh";
    let mut all = texts(["exec", "--interactive"]);
    if let Some(kind) = terminal {
        all.push("--tty".to_owned());
        all.extend(
            Some(kind).filter(|kind| !kind.is_empty()).map(|kind| format!("--env=TERM={kind}")),
        );
    }
    all.extend([name.to_owned(), "/bin/sh".to_owned(), script.display().to_string()]);
    match command.is_empty() {
        true => all.extend(texts(["/bin/sh", "-c", SHELL])),
        false => all.extend_from_slice(command),
    }
    all
}

/// Ends and removes, with the volumes that have no name.
pub(super) fn remove(kind: Kind, name: &str) -> Option<Vec<String>> {
    match kind {
        Kind::Podman => Some(texts(["rm", "--force", "--ignore", "--time=0", "--volumes", name])),
        Kind::Docker => Some(texts(["rm", "--force", "--volumes", name])),
        Kind::Apptainer => None,
    }
}

/// Lists the names of an agent's containers.
pub(super) fn list(kind: Kind, owner: &Path) -> Option<Vec<String>> {
    let filter = format!("--filter=label={OWNER}={}", owner.display());
    (kind != Kind::Apptainer)
        .then(|| texts(["ps", "--all", "--no-trunc", filter.as_str(), "--format={{.Names}}"]))
}
