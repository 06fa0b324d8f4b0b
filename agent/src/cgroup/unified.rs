//! Where in the hierarchy of version 2 attempts may have their groups.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::group::Version;
use super::mounts::Hierarchy;
use super::{IO, Parent, make_folder};

/// The group of the agent itself where version 2 lets no processes stay in a group with groups below it.
/// The unit of `atelier service install` names it too.
const AGENT: &str = "agent";
/// The groups that a service manager makes for a unit's own processes below the one that the unit may use
/// (`DelegateSubgroup=`).
const SUBGROUPS: [&str; 2] = [AGENT, "daemon"];

/// Hands controllers on to the groups below a group of version 2.
pub(super) fn enable<'a>(
    folder: &Path,
    controllers: impl Iterator<Item = &'a str>,
) -> io::Result<()> {
    let order: Vec<String> = controllers.map(|name| format!("+{name}")).collect();
    if order.is_empty() {
        return Ok(());
    }
    fs::write(folder.join("cgroup.subtree_control"), order.join(" "))
}

/// Finds where in version 2 attempts may have their groups, with as many of the controllers as there are.
pub(super) fn parent(
    unified: &Hierarchy,
    name: &str,
    left: &BTreeSet<&'static str>,
) -> Result<Parent, String> {
    let made = |folder, controllers| Parent::new(&unified.root, folder, Version::V2, controllers);
    // A service manager has put the agent into a group of its own below the one that it may use.
    let base = match unified.own.parent() {
        Some(above)
            if SUBGROUPS.iter().any(|name| unified.own.ends_with(name))
                && above.starts_with(&unified.root) =>
        {
            above
        }
        _ => &unified.own,
    };
    let here = offered(base, left);
    match hand_on(base, &here) {
        Ok(()) => {
            return Ok(made(base.join(name), here));
        }
        // The first process of a service sits where only groups may be. Root does not move: a manager that
        // starts the service anew (systemd before 254) puts the next process into this group, which the kernel
        // refuses as long as jobs have groups with controllers below it.
        Err(error)
            if error.raw_os_error() == Some(libc::EBUSY)
                && is_alone(base)
                && (*base == unified.root || !rustix::process::geteuid().is_root()) =>
        {
            let own = base.join(AGENT);
            let moved = make_folder(&own)
                .and_then(|()| fs::write(own.join("cgroup.procs"), "0"))
                .and_then(|()| hand_on(base, &here));
            if moved.is_ok() {
                return Ok(made(base.join(name), here));
            }
        }
        Err(_) => {}
    }
    // An agent of root's: the top of the tree takes groups beside processes.
    let here = offered(&unified.root, left);
    hand_on(&unified.root, &here).map_err(|error| {
        format!(
            "this agent may not hand on the cgroup {} ({error}); run it as a service with \
             Delegate=yes",
            base.display()
        )
    })?;
    Ok(made(unified.root.join(name), here))
}

/// Of the controllers that are wanted, those that a group has.
pub(super) fn offered(folder: &Path, wanted: &BTreeSet<&'static str>) -> Vec<String> {
    let text = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    let of_use = |name: &&str| *name == IO || wanted.contains(name);
    text.split_ascii_whitespace().filter(of_use).map(str::to_owned).collect()
}

/// Enables what is not enabled below a group, and sees whether groups can be made there.
fn hand_on(folder: &Path, controllers: &[String]) -> io::Result<()> {
    let text = fs::read_to_string(folder.join("cgroup.subtree_control"))?;
    let enabled: BTreeSet<&str> = text.split_ascii_whitespace().collect();
    let missing = controllers.iter().map(String::as_str).filter(|name| !enabled.contains(name));
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        enable(folder, missing.into_iter())?;
    }
    let access = rustix::fs::Access::WRITE_OK;
    Ok(rustix::fs::access(folder, access)?)
}

/// Whether this process is the only one in a group.
fn is_alone(folder: &Path) -> bool {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.split_ascii_whitespace().all(|pid| pid == std::process::id().to_string())
}
