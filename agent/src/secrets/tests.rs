use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn values() -> Values {
    Values {
        variables: [("TOKEN".to_owned(), "it's a \"value\"\n".to_owned())].into(),
        files: [("KEY".to_owned(), b"\0binary\xff".to_vec())].into(),
    }
}

#[test]
fn secrets_lie_in_memory_for_their_owner_and_go_with_their_attempt() {
    let root = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let held = Held::write(root.path(), 7, &values(), Some("export TOKEN=x\n")).unwrap();
    let kind = i128::from(rustix::fs::statfs(&held.path).unwrap().f_type);
    assert!(IN_MEMORY.iter().any(|known| i128::from(*known) == kind));
    let read = held.values().unwrap().unwrap();
    assert_eq!(read.variables, values().variables);
    assert_eq!(fs::read(held.job().join("KEY")).unwrap(), values().files["KEY"]);
    assert_eq!(mode(&held.path.join(VALUES)), 0o600);
    for name in ["KEY", SCRIPT] {
        assert_eq!(mode(&held.job().join(name)), 0o400, "{name}");
    }
    // A preparation that begins anew.
    let held = Held::write(root.path(), 7, &Values::default(), None).unwrap();
    assert!(!held.job().join("KEY").exists());
    assert!(Held::write(root.path(), 8, &values(), None).unwrap().path.exists());

    sweep(root.path(), |epoch| epoch == 7);
    assert!(held.path.exists() && !held.path.with_file_name("8").exists());
    Held::remove_of(root.path(), 7).unwrap();
    assert!(held.values().unwrap().is_none());
    Held::remove_of(root.path(), 7).unwrap();
    assert!(folders(root.path()).is_empty());
    held.make_empty().unwrap();
    assert!(held.job().is_dir());
    for folder in folders(root.path()) {
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_folder_that_is_open_to_others_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let folder = Held::write(root.path(), 1, &values(), None).unwrap();
    let folder = folder.path.parent().unwrap().to_owned();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!folders(root.path()).contains(&folder));
    fs::remove_dir_all(&folder).unwrap();
}
