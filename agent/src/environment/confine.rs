//! Where environments are built: apart from the rest of the node, because building a package runs its code.
//!
//! Each step of a build is a process with a view and groups of its own, as a job's command has; where jobs have
//! users of their own, so have the steps. There are three kinds of steps:
//!
//! | | [`Role::Resolve`] | [`Role::Fetch`] | [`Role::Build`] |
//! |-|-|-|-|
//! | runs code of packages | yes | no | yes |
//! | may write the environment | no | yes | yes |
//! | may write besides | what is gone with the build | the packages that all builds share | what is gone with the build |
//!
//! No step fetches after one has built: it would run what that left in the environment.
//!
//! **Invariant:** what code of a package could write is in no environment whose packages do not need it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::exec::{self, Finished, Watch};
use super::installer;
use super::keep::PACKAGES;
use super::pythons::others_may_run;
use super::uv::Home;
use crate::attempt;
use crate::cgroup::{Cgroups, Passing};
use crate::exec::Alone;
use crate::gpu::Devices;
use crate::isolation::{self, Abilities, Means, User, Users, View};
use crate::supervisor::Launch;

/// Where builds have what is theirs alone, below the agent's folder.
const BUILDS: &str = "builds";
/// What names the fetching steps' user: all of the node's builds share it, as they share what it fetches.
const FETCHER: u64 = 0;
/// Longer is no list of packages.
const LONGEST_LIST: u64 = 4 << 20;

/// How what is built on this node is kept from the rest of it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Confinement {
    /// The agent's folder.
    pub(crate) root: PathBuf,
    /// How far a view goes; `None`: there are none, and steps have but groups.
    pub(crate) abilities: Option<Abilities>,
    pub(crate) users: Option<Users>,
    pub(crate) cgroups: Arc<Cgroups>,
    pub(crate) devices: Arc<Devices>,
    /// Files that no step may see.
    pub(crate) masked: Vec<PathBuf>,
    /// Folders that no step may see.
    pub(crate) hidden: Arc<dyn Fn() -> Vec<PathBuf> + Send + Sync>,
}

impl fmt::Debug for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confinement").field("abilities", &self.abilities).finish_non_exhaustive()
    }
}

/// What a step of a build is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// To find what is to be installed: the metadata of some packages come only by running their code.
    Resolve,
    /// To fetch and unpack. No code of packages runs.
    Fetch,
    /// To build packages, which runs their code.
    Build,
}

/// The place of one build. It is gone when this is dropped, with all that runs in it.
pub(super) struct Confined {
    node: Confinement,
    /// First to be dropped: what runs in them may write into the folder.
    groups: Option<Passing>,
    folder: Folder,
    /// What becomes the environment.
    draft: PathBuf,
    /// Where the node's environments lie.
    environments: PathBuf,
    /// What all builds share.
    packages: PathBuf,
    readable: Vec<PathBuf>,
    variables: BTreeMap<String, String>,
    fetcher: Option<User>,
    builder: Option<User>,
}

/// Removed with all that is in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // It may be large, and what was killed just now may still write into it.
        let folder = std::mem::take(&mut self.0);
        let removing = std::thread::Builder::new().name("build-folder".into());
        let _ = removing.spawn(move || {
            for _ in 0..500 {
                match attempt::remove_tree(&folder) {
                    Ok(()) => return,
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
            tracing::debug!(folder = %folder.display(), "cannot remove what a build left");
        });
    }
}

impl Confinement {
    /// Removes what builds of an agent before this one left.
    pub(super) fn clean(&self) {
        if let Err(error) = attempt::remove_tree(&self.root.join(BUILDS)) {
            tracing::warn!(%error, "cannot remove what builds of environments left");
        }
    }

    /// A place to build the environment of `key` in the folder `draft`, which is made. Waits for the disk.
    pub(super) fn enter(self, home: &Home, key: &str, draft: &Path) -> io::Result<Confined> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = Folder(self.root.join(BUILDS).join(format!("{key}.{number}")));
        let at = |name: &str| folder.0.join(name);
        // Holds passwords for indexes, which are the build's to use.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder.0)?;
        for name in [Role::Fetch.name(), Role::Build.name()] {
            fs::create_dir_all(at(name).join("tmp"))?;
        }
        fs::create_dir(at("given"))?;
        fs::create_dir_all(draft)?;

        // Builds of different environments have different users, those of one environment never run at once.
        let seed = u64::from_str_radix(key.get(..16).unwrap_or_default(), 16).unwrap_or(1);
        let user = |seed: u64, name: &str| {
            let users = self.users.as_ref();
            let made = users.map(|users| users.user(seed, at(&format!("passwd-{name}"))));
            // Accelerators are no builder's.
            made.map(|made| made.map(|user| User { groups: Vec::new(), ..user })).transpose()
        };
        let (fetcher, builder) = (user(FETCHER, "fetch")?, user(seed, "build")?);
        let packages = packages(&home.root, fetcher.as_ref())?;
        for (owner, path) in
            [(&fetcher, at("fetch")), (&builder, at("build")), (&fetcher, draft.to_owned())]
        {
            own(owner.as_ref(), &path)?;
        }
        let groups = self.cgroups.create_for_build(number, &self.devices.denied(&[]))?;
        let mut place = Confined {
            groups,
            draft: draft.to_owned(),
            environments: home.root.clone(),
            packages,
            readable: vec![at("given"), home.pythons(), home.own_uv_folder()],
            variables: BTreeMap::new(),
            fetcher,
            builder,
            node: self,
            folder,
        };
        place.readable.extend(attempt::NEEDED.map(PathBuf::from));
        place.variables = place.settings()?;
        Ok(place)
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            // What was built to find out is used again.
            Self::Resolve | Self::Build => "build",
        }
    }
}

/// The packages that builds share, of the fetching steps' user; what an agent with another user left is apart.
fn packages(root: &Path, fetcher: Option<&User>) -> io::Result<PathBuf> {
    let Some(user) = fetcher else {
        let named = std::env::var_os("UV_CACHE_DIR").filter(|folder| !folder.is_empty());
        let folder = named.map_or_else(|| root.join(PACKAGES), PathBuf::from);
        return fs::create_dir_all(&folder).map(|()| folder);
    };
    let folder = root.join(PACKAGES).join(user.id.to_string());
    fs::create_dir_all(&folder)?;
    own(fetcher, &folder)?;
    Ok(folder)
}

/// Gives a folder to a step's user, but not what is in it.
fn own(user: Option<&User>, folder: &Path) -> io::Result<()> {
    let Some(User { id, .. }) = user else { return Ok(()) };
    let all = [folder.to_owned(), folder.join("tmp")];
    let mut there = all.iter().filter(|folder| folder.is_dir());
    there.try_for_each(|folder| std::os::unix::fs::lchown(folder, Some(*id), Some(*id)))
}

impl Confined {
    /// Whether what a step writes is out of others' reach. Else nothing is gained by keeping steps of different
    /// kinds apart.
    pub(super) fn is_apart(&self) -> bool {
        self.node.abilities.is_some()
    }

    /// A file that every step can read.
    pub(super) fn give(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.folder.0.join("given").join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Where a building step may write a file of this name.
    pub(super) fn written(&self, name: &str) -> PathBuf {
        self.folder.0.join(Role::Build.name()).join(name)
    }

    /// What a building step wrote there: it may be anything.
    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        let mut options = File::options();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = options.read(true).custom_flags(flags).open(self.written(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = String::new();
        file.take(LONGEST_LIST).read_to_string(&mut text)?;
        Ok(text)
    }

    /// The program where steps can run it.
    pub(super) fn program(&self, program: &Path) -> io::Result<PathBuf> {
        let program = program.canonicalize()?;
        let is_shown = self.readable.iter().any(|folder| program.starts_with(folder));
        if self.node.users.is_none() || is_shown || others_may_run(&program) {
            return Ok(program);
        }
        let name = program.file_name().unwrap_or_default();
        let given = self.folder.0.join("given").join(name);
        if !given.exists() {
            fs::hard_link(&program, &given).or_else(|_| fs::copy(&program, &given).map(drop))?;
        }
        Ok(given)
    }

    /// Of the agent's variables what builds need, and the files that they name.
    fn settings(&self) -> io::Result<BTreeMap<String, String>> {
        let texts = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let mut variables = attempt::inherited(texts);
        variables.extend(installer::settings(std::env::vars_os()));
        let variable =
            |name: &str| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        for (name, file) in installer::files(variable) {
            let given = self.folder.0.join("given").join(name);
            fs::copy(file, &given)?;
            fs::set_permissions(&given, Permissions::from_mode(0o644))?;
            variables.insert(name.to_owned(), given.to_string_lossy().into_owned());
        }
        if self.fetcher.is_some() {
            for name in ["USER", "LOGNAME"] {
                variables.insert(name.to_owned(), isolation::NAME.to_owned());
            }
        }
        variables.remove("XDG_CACHE_HOME");
        Ok(variables)
    }

    /// Runs a step: the command with the variables that it sets, and with no others of the agent's.
    ///
    /// # Errors
    /// It cannot be started, or the reason that its end does not tell: it took too much memory.
    pub(super) async fn run(
        &self,
        command: &Command,
        role: Role,
        watch: &mut dyn Watch,
    ) -> io::Result<Finished> {
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let own = self.folder.0.join(role.name());
        let view = self.view(role);
        let mut variables = self.variables.clone();
        let set = command.get_envs().filter_map(|(name, value)| Some((text(name), text(value?))));
        variables.extend(set);
        let temporary = match &view {
            Some(View { means: Means::UserNamespace | Means::Root, .. }) => "/tmp".to_owned(),
            Some(View { means: Means::Rules, .. }) | None => text(own.join("tmp").as_os_str()),
        };
        for name in ["HOME", "TMPDIR"] {
            variables.insert(name.to_owned(), temporary.clone());
        }
        let packages = match (role, self.is_apart()) {
            (Role::Resolve | Role::Build, true) => own.join("packages"),
            (Role::Fetch, _) | (_, false) => self.packages.clone(),
        };
        variables.insert("UV_CACHE_DIR".to_owned(), text(packages.as_os_str()));
        if packages != self.packages {
            // As it would have to in the end, and would say so.
            variables.insert("UV_LINK_MODE".to_owned(), "copy".to_owned());
        }
        let launch = Launch {
            version: Launch::VERSION,
            environment: variables,
            directory: own,
            cgroup: self.groups.as_ref().map(|groups| groups.groups().clone()),
            view,
            ..Launch::default()
        };
        let (reader, writer) = io::pipe()?;
        let running =
            Alone::start(&self.folder.0, &launch, words.map(text).collect(), writer.into())?;
        let before = self.memory_kills();
        let finished = exec::follow(reader, running.ended(), watch).await?;
        match self.memory_kills() > before && !finished.status.success() {
            true => Err(self.out_of_memory()),
            false => Ok(finished),
        }
    }

    fn memory_kills(&self) -> u64 {
        self.groups.as_ref().map_or(0, |groups| groups.groups().memory().kills)
    }

    fn out_of_memory(&self) -> io::Error {
        let memory = self.groups.as_ref().map(|groups| groups.groups().memory());
        let limit = memory.and_then(|memory| memory.limit_bytes).unwrap_or_default() >> 20;
        let why = format!(
            "it needed more memory than a build has on this node ({limit} MiB, half of what jobs have): use \
             packages that need not be compiled, an image, or a node with more memory"
        );
        io::Error::new(io::ErrorKind::OutOfMemory, why)
    }

    fn view(&self, role: Role) -> Option<View> {
        let abilities = self.node.abilities?;
        let own = self.folder.0.join(role.name());
        let mut readable = self.readable.clone();
        if role == Role::Resolve {
            readable.push(self.draft.clone());
        }
        let (user, mut writable) = match role {
            // In one: from one mount into another no file can be given a second name, which saves half of the
            // disk and most of the time. Of the other environments they are not the owner.
            Role::Fetch => (&self.fetcher, vec![self.environments.clone(), self.packages.clone()]),
            Role::Build => (&self.builder, vec![self.draft.clone()]),
            Role::Resolve => (&self.builder, Vec::new()),
        };
        writable.push(own.clone());
        Some(View {
            hidden: (self.node.hidden)(),
            masked: self.node.masked.clone(),
            readable,
            writable,
            temporary: own.join("tmp"),
            means: abilities.means,
            own_processes: abilities.own_processes,
            filtered: abilities.filtered,
            withheld: isolation::withheld(false),
            user: user.clone(),
        })
    }

    /// From here on building steps may write the environment. What is in it must have no other names.
    pub(super) async fn hand_over(&self) -> io::Result<()> {
        let Some(builder) = &self.builder else { return Ok(()) };
        let (draft, id) = (self.draft.clone(), builder.id);
        // As many files as packages have.
        let given = tokio::task::spawn_blocking(move || isolation::give(&[draft], id)).await;
        given.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
    }

    /// Empties the environment, into which only fetching steps have written.
    pub(super) async fn empty(&self) -> io::Result<()> {
        let draft = self.draft.clone();
        let emptied = tokio::task::spawn_blocking(move || {
            fs::read_dir(draft)?.try_for_each(|entry| attempt::remove_tree(&entry?.path()))
        });
        emptied.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
    }

    /// Makes what was built the agent's alone, and looks that it has the form on which the agent counts: it will
    /// read it, and write into it. `built`: code of packages ran. Nothing of any step runs any more.
    pub(super) fn secure(&self, built: bool) -> io::Result<()> {
        if let Some(groups) = &self.groups {
            groups.end()?;
        }
        if self.builder.is_some() {
            take(&self.draft, built)?;
        }
        let is = |name: &str, wanted: fn(&fs::Metadata) -> bool| {
            fs::symlink_metadata(self.draft.join(name)).is_ok_and(|found| wanted(&found))
        };
        let is_whole = is("", fs::Metadata::is_dir)
            && is("bin", fs::Metadata::is_dir)
            && is("lib", fs::Metadata::is_dir)
            && is("pyvenv.cfg", fs::Metadata::is_file);
        match is_whole {
            true => Ok(()),
            false => Err(io::Error::other("what was installed is no virtual environment any more")),
        }
    }
}

/// Takes a tree back from who built it. Files that have other names belong to the packages that builds share,
/// unless code of packages ran (`all`): then they have none but in the tree.
fn take(draft: &Path, all: bool) -> io::Result<()> {
    let mut folders = vec![draft.to_owned()];
    let seize = |path: &Path, found: &fs::Metadata| -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(0), Some(0))?;
        let mode = found.mode() & 0o7777;
        if found.is_symlink() || mode & !0o755 == 0 {
            return Ok(());
        }
        fs::set_permissions(path, Permissions::from_mode(mode & 0o755))
    };
    seize(draft, &fs::symlink_metadata(draft)?)?;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let (path, found) = (entry.path(), entry.metadata()?);
            if found.is_dir() || found.nlink() == 1 || all {
                seize(&path, &found)?;
            }
            if found.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}
