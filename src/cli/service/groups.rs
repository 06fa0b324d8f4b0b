//! What an older systemd cannot do: start a unit's program anew while groups below the unit's own hold
//! processes to limits.
//!
//! The kernel allows no process in a group of version 2 whose controllers are handed on to groups below it
//! ("no internal processes", Documentation/admin-guide/cgroup-v2.rst), and that is where systemd before 254
//! starts the program. An agent that is root has its jobs' groups elsewhere.

use std::fs;
use std::path::Path;

use super::systemctl::Manager;
use super::unit::Service;
use crate::cli::{Error, Kind};

/// Since this one `DelegateSubgroup=` is known.
const STARTS_BELOW: u32 = 254;

/// Whether an agent of another user than root is not started anew by this manager while its jobs are held
/// to limits; its version then.
pub(super) fn cannot_restart(manager: Manager, root: bool) -> Result<Option<u32>, Error> {
    if root {
        return Ok(None);
    }
    let said = manager.answers()?;
    Ok(version(&said).filter(|version| *version < STARTS_BELOW))
}

/// Refuses a restart that would fail until the service's jobs are over.
pub(super) fn check_restart(manager: Manager, service: Service) -> Result<(), Error> {
    let known = manager.properties(service, "User,ControlGroup")?;
    let known = |name: &str| known.get(name).map(String::as_str).unwrap_or_default();
    let root = !manager.user && matches!(known("User"), "" | "root" | "0");
    let Some(version) = cannot_restart(manager, root)? else { return Ok(()) };
    let group = known("ControlGroup").trim_start_matches('/');
    if group.is_empty() || !holds_jobs(&Path::new("/sys/fs/cgroup").join(group)) {
        return Ok(());
    }
    let cause = format!(
        "cannot restart {}: its jobs are held to limits, and systemd {version} starts no program beside such \
         groups; {STARTS_BELOW} and later do",
        service.unit()
    );
    Err(Error::new(Kind::Refused, cause).help(
        "drain its node with `atelier node drain NODE`, wait until its jobs are over, and try again; an agent \
         that runs as root needs no drain",
    ))
}

/// The number in `Version=252.38-1~deb12u1`.
fn version(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once("Version=")?;
    let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// Whether there are processes in groups below a unit's, other than the one that the agent has itself.
fn holds_jobs(unit: &Path) -> bool {
    let populated = |group: &Path| {
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    };
    let groups = fs::read_dir(unit).into_iter().flatten().flatten();
    groups.filter(|group| group.file_name() != "agent").any(|group| populated(&group.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_number_before_what_packagers_add() {
        for (said, number) in [
            ("Version=252.38-1~deb12u1\n", Some(252)),
            ("Version=254\n", Some(254)),
            ("Version=v255\n", None),
            ("", None),
        ] {
            assert_eq!(version(said), number, "{said}");
        }
    }

    #[test]
    fn jobs_are_what_lives_in_other_groups_than_the_agents_own() {
        let unit = tempfile::tempdir().unwrap();
        let group = |name: &str, populated: u8| {
            let folder = unit.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n"))
                .unwrap();
        };
        assert!(!holds_jobs(unit.path()));
        group("agent", 1);
        group("atelier-n1-0", 0);
        assert!(!holds_jobs(unit.path()));
        group("atelier-n1-0", 1);
        assert!(holds_jobs(unit.path()));
    }
}
