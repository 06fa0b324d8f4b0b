//! Whom containers run as where the agent is root: in each of them root is the user of its job, as host jobs have
//! one, and root's number on the node is nobody's there (user_namespaces(7)).
//!
//! The map of users is one stretch: number `n` of the image is `user + n` of the node. Podman can let the kernel show
//! an image's layers through such a map as they are (idmapped mounts, since Linux 5.19 under overlay), so that a
//! container costs neither time nor room more than without. Through a map of several stretches podman would copy
//! all layers of the image for each user that ever ran one, as it does where the kernel cannot show them: then there is
//! no map at all. The stretches of two jobs overlap, and only their first numbers are ever anybody's: no process
//! of a container has or gets the capabilities to take another number than root's.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command;
use super::detect::ask;
use super::{Containers, Kind, Runtime, reason, run};
use crate::facts::Facts;
use crate::isolation::Users;

/// Users that an image may be expected to have.
const LEAST: u32 = 1 << 16;
/// How long podman may take for a try, which another use of it may keep it from, and how many there are.
const PATIENCE: Duration = Duration::from_secs(30);
const TRIES: u32 = 2;
/// How long it may take to remove what a try leaves.
const TIDYING: Duration = Duration::from_secs(10);
/// How long [`users_of`] takes at most.
pub(crate) const AT_MOST: Duration =
    Duration::from_secs(TRIES as u64 * PATIENCE.as_secs() + TIDYING.as_secs());

/// How `user` becomes a container's root, with all the numbers above it for others: images have files of whom they
/// like.
pub(super) fn map(user: u32) -> impl Iterator<Item = String> {
    // The largest number means none.
    let count = u32::MAX - user;
    ["uidmap", "gidmap"].into_iter().map(move |map| format!("--{map}=0:{user}:{count}"))
}

impl Containers {
    /// The number of the user that is root in the containers of the job with this seed; `None`: the agent's is.
    pub(crate) fn user(&self, seed: u64) -> Option<u32> {
        self.0.users.as_ref().map(|users| users.number(seed))
    }
}

/// Why containers have no users.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Why {
    /// They can have none here.
    Never(String),
    /// Podman has not told: it may be otherwise the next time.
    Untold(String),
}

impl From<String> for Why {
    fn from(why: String) -> Self {
        Self::Never(why)
    }
}

/// The users of containers, of those that other jobs have here. The facts tell, and why there are none.
///
/// # Errors
/// They are `wanted`, and podman does not tell whether they can be had: why.
pub(crate) async fn users_of(
    runtime: &Runtime,
    root: &Path,
    users: Option<&Users>,
    wanted: bool,
    facts: &mut Facts,
) -> Result<Option<Users>, String> {
    let mut found = None;
    // Where other jobs have none either, that is told already.
    if let Some(users) = users {
        match try_them(runtime, root, users, PATIENCE).await {
            Ok(()) => found = Some(users.clone()),
            Err(Why::Untold(why)) if wanted => return Err(why),
            Err(Why::Never(why) | Why::Untold(why)) => {
                tracing::warn!(%why, "containers run as root");
                facts.not_isolated(format!(
                    "containers run as root, without its privileges ({why})"
                ));
            }
        }
    }
    let told = found.as_ref().map_or("none".to_owned(), |users| users.range().to_string());
    facts.other.insert("container_users".to_owned(), told);
    Ok(found)
}

/// Finds out whether containers can have root for each of these users, or why not. `root`: the agent's folder.
///
/// An image of nothing is made and a container of it is started, for whether the layers of an image are copied
/// shows only there.
async fn try_them(
    runtime: &Runtime,
    root: &Path,
    users: &Users,
    patience: Duration,
) -> Result<(), Why> {
    if runtime.kind != Kind::Podman {
        return Err(format!("{} cannot give each a user of its own", runtime.kind.program()).into());
    }
    if runtime.rootless {
        return Err("podman has no privileges here".to_owned().into());
    }
    let range = users.range();
    if u32::MAX - range.last() < LEAST {
        return Err(format!(
            "--job-users {range} leaves no {LEAST} numbers above it for the users of an image"
        )
        .into());
    }
    let name = format!("atelier-probe-{}", super::hash(root));
    let probe = Probe { runtime, image: format!("localhost/{name}"), name };
    let late = format!("podman did not answer {TRIES} times within {} s", patience.as_secs());
    let mut tried = Err(Why::Untold(late));
    for _ in 0..TRIES {
        let one = tokio::time::timeout(patience, probe.run(root, range.first())).await;
        if let Ok(told) = one {
            tried = told.map_err(Why::Never);
            break;
        }
    }
    // With its container. What is left of it is the next one's to remove.
    let _ = tokio::time::timeout(TIDYING, probe.ask(&["rmi", "--force", &probe.image])).await;
    tried
}

/// What there is not in an image of nothing.
const PROGRAM: &str = "/no-such-program";

struct Probe<'a> {
    runtime: &'a Runtime,
    image: String,
    /// Of the container.
    name: String,
}

impl Probe<'_> {
    async fn run(&self, root: &Path, user: u32) -> Result<(), String> {
        let cannot = |error: std::io::Error| format!("cannot try it: {error}");
        let archive = root.join("probe-image.tar");
        // A tar file's end, and nothing before it.
        std::fs::write(&archive, [0; 1024]).map_err(cannot)?;
        self.ask(&["import", "--quiet", &archive.display().to_string(), &self.image]).await?;
        let mut words = ["run", "--pull=never", "--replace"].map(str::to_owned).to_vec();
        words.push(format!("--name={}", self.name));
        words.extend(command::kept_apart(self.runtime));
        words.extend(command::ulimits(&super::ulimits()));
        words.extend(map(user));
        // What every job's container has: a folder to which there is no way but for the agent's user.
        let bound = root.join("probe-image");
        std::fs::create_dir_all(&bound).map_err(cannot)?;
        words.push(command::mount(&bound, &bound, true));
        words.extend([self.image.clone(), PROGRAM.to_owned()]);
        let ran = run(&self.runtime.program, &words).await.map_err(cannot)?;
        let said = reason(&ran.tail);
        // Of the shell's codes: no such program. All that a container needs was done before, unless it is something
        // else that was not found: a file of a storage that root sees and the user does not.
        if ran.status.code() != Some(127) || !said.contains(PROGRAM) {
            return Err(format!("podman cannot start one with a map: {said}"));
        }
        let format =
            "--format=atelier|{{.GraphDriver.Name}}|{{index .GraphDriver.Data \"LowerDir\"}}";
        let said = self.ask(&["container", "inspect", format, &self.name]).await?;
        let line = said.iter().find_map(|line| line.strip_prefix("atelier|")).unwrap_or_default();
        let (driver, layers) = line.split_once('|').unwrap_or_default();
        let layer = layers.rsplit(':').next().map(PathBuf::from).unwrap_or_default();
        match std::fs::metadata(layer) {
            Ok(found) if found.uid() != user => Ok(()),
            Ok(_) => {
                Err("podman would copy images for each of them, as it does on kernels before 5.19"
                    .to_owned())
            }
            Err(_) => {
                Err(format!("podman's storage '{driver}' would copy images for each of them"))
            }
        }
    }

    async fn ask(&self, words: &[&str]) -> Result<Vec<String>, String> {
        ask(&self.runtime.program, words).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::isolation::JobUsers;

    const STARTS: &str =
        "echo 'Error: crun: executable file `/no-such-program` not found' >&2; exit 127";
    const LAYERS: &str = "atelier|overlay|/upper:LAYER";

    /// A podman that says this of a start and of its storage. `LAYER` is a folder of `owner`.
    fn podman(place: &Path, owner: u32, start: &str, storage: &str) -> Runtime {
        let (program, layer) = (place.join("podman"), place.join("layer"));
        fs::create_dir(&layer).unwrap();
        std::os::unix::fs::lchown(&layer, Some(owner), None).unwrap();
        let storage = storage.replace("LAYER", &layer.display().to_string());
        let text = format!(
            "#!/bin/sh\necho \"$@\" >> $0.asked\ncase \"$1 $2\" in\n'run '*) {start};;\n'container inspect') echo \
             '{storage}';;\nesac\n"
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (version, folders) = (String::new(), Vec::new());
        Runtime { kind: Kind::Podman, program, version, rootless: false, folders }
    }

    fn users() -> Users {
        Users::new("300000-300255".parse::<JobUsers>().unwrap().range().unwrap())
    }

    /// What is found where podman says this.
    async fn found(owner: u32, start: &str, storage: &str) -> Result<(), String> {
        let place = tempfile::tempdir().unwrap();
        let runtime = podman(place.path(), owner, start, storage);
        let found = try_them(&runtime, place.path(), &users(), PATIENCE).await;
        let asked = fs::read_to_string(place.path().join("podman.asked")).unwrap();
        assert!(asked.contains(" --uidmap=0:300000:4294667295 "), "{asked}");
        let bound = format!("type=bind,source={}/", place.path().display());
        assert!(asked.contains(&bound), "{asked}");
        assert!(asked.lines().last().unwrap().starts_with("rmi "), "{asked}");
        found.map_err(|why| match why {
            Why::Never(why) => why,
            Why::Untold(why) => panic!("{why}"),
        })
    }

    #[tokio::test]
    async fn a_podman_that_does_not_answer_is_asked_again() {
        let place = tempfile::tempdir().unwrap();
        let once = format!("test -e $0.late || {{ touch $0.late; exec sleep 1000; }}; {STARTS}");
        let runtime = podman(place.path(), 0, &once, LAYERS);
        let tried = try_them(&runtime, place.path(), &users(), Duration::from_secs(3)).await;
        assert_eq!(tried, Ok(()));
        let place = tempfile::tempdir().unwrap();
        let runtime = podman(place.path(), 0, "exec sleep 1000", LAYERS);
        let tried = try_them(&runtime, place.path(), &users(), Duration::from_millis(10)).await;
        let late = "podman did not answer 2 times within 0 s".to_owned();
        assert_eq!(tried, Err(Why::Untold(late)));
    }

    #[tokio::test]
    async fn containers_have_users_where_images_need_not_be_copied() {
        let (starts, layers) = (STARTS, LAYERS);
        assert_eq!(found(0, starts, layers).await, Ok(()));
        let copied = found(300_000, starts, layers).await.unwrap_err();
        assert!(copied.contains("kernels before 5.19"), "{copied}");
        let other = found(0, starts, "atelier|vfs|").await.unwrap_err();
        assert!(other.contains("storage 'vfs'"), "{other}");
        // What a storage hides from the user is not found either.
        let hidden = "echo 'Error: crun: open resolv.conf: not found' >&2; exit 127";
        let told = found(0, hidden, layers).await.unwrap_err();
        assert!(told.contains("open resolv.conf"), "{told}");
        let refused = found(0, "echo 'Error: no user namespaces' >&2; exit 126", layers).await;
        assert!(refused.unwrap_err().contains("no user namespaces"));
    }
}
