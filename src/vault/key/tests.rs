use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use super::*;

/// A folder with a data folder in it.
struct Place {
    folder: tempfile::TempDir,
    data: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        Self { folder, data }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file for its owner only.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    #[track_caller]
    fn refused(&self, path: &Path) -> String {
        let error = TextSource::File(path.to_owned()).load(&self.data).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(&format!("file:{}", path.display())), "{said}");
        said
    }
}

fn text(byte: u8) -> String {
    STANDARD.encode([byte; KEY_LEN])
}

#[test]
fn a_source_is_written_as_it_is_read_and_a_key_is_none() {
    for text in [
        "file:/etc/key",
        "file:/a b/c:d",
        "credential:atelier-vault.key",
        "env:VAULT_KEY",
        "transit:transit/atelier",
        "transit:of/a-team/my_key.2",
    ] {
        assert_eq!(text.parse::<KeySource>().unwrap().to_string(), text);
    }
    let key = text(7);
    for wrong in [
        "",
        "file:",
        "file:key",
        "file:~/key",
        "env:",
        "credential:",
        "credential:../x",
        "credential:a/b",
        "env:A B",
        "http:x",
        "transit",
        key.as_str(),
    ] {
        let said = wrong.parse::<KeySource>().unwrap_err();
        assert!(said.contains("file:/PATH") && !said.contains(&key), "{said}");
    }
    for wrong in ["transit:", "transit:key", "transit:/key", "transit:a/../b", "transit:a/k?x"] {
        let said = wrong.parse::<KeySource>().unwrap_err();
        assert!(said.contains("transit:MOUNT/NAME"), "{said}");
    }
}

#[test]
fn a_file_is_read_and_tells_its_key_by_an_id() {
    let place = Place::new();
    let load = |path: PathBuf| TextSource::File(path).load(&place.data).unwrap();
    let one = load(place.write("one", text(1)));
    assert_eq!(one.bytes(), &[1; KEY_LEN]);
    assert_eq!(one.id().as_str().len(), 16);
    // The same key, however it is written; another has another id.
    assert_eq!(load(place.write("again", format!(" {}\r\n\n", text(1)))).id(), one.id());
    assert_ne!(load(place.write("two", text(2))).id(), one.id());
    assert!(!format!("{one:?}").contains(&text(1)));
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    let place = Place::new();
    let path = place.write("key", text(1));
    for mode in [0o640, 0o604, 0o644, 0o620, 0o602, 0o610] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let said = place.refused(&path);
        assert!(said.contains(&format!("{mode:o}")) && said.contains("chmod 600"), "{said}");
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        TextSource::File(path.clone()).load(&place.data).unwrap();
    }
}

#[test]
fn a_key_in_the_data_folder_is_refused() {
    let place = Place::new();
    let inside = place.write("data/key", text(1));
    assert!(place.refused(&inside).contains("data folder"));
    // Also by a link, by a way round, and where it is yet to be made.
    symlink(&inside, place.at("link")).unwrap();
    assert!(place.refused(&place.at("link")).contains("data folder"));
    let round = place.data.join("../data/key");
    assert!(place.refused(&round).contains("data folder"));
    let new = TextSource::File(place.at("data/below/new"));
    assert!(new.make(&place.data).unwrap_err().to_string().contains("data folder"));
    assert!(!place.at("data/below").exists());
}

#[test]
fn what_is_no_key_is_refused_and_not_repeated() {
    let place = Place::new();
    for (wrong, reason) in [
        (STANDARD.encode([1; 31]), "31 bytes"),
        (STANDARD.encode([1; 64]), "64 bytes"),
        (text(1)[..20].to_owned(), "cut short"),
        (text(1)[..21].to_owned(), "base64"),
        (String::new(), "0 bytes"),
        ("correct horse battery staple".to_owned(), "base64"),
        ("A".repeat(1 << 20), "bytes"),
    ] {
        let said = place.refused(&place.write("key", &wrong));
        assert!(said.contains(reason), "{said}");
        assert!(wrong.len() < 5 || !said.contains(&wrong), "{said}");
        assert!(said.len() < 500);
    }
    assert!(place.refused(&place.at("data")).contains("data folder"));
    fs::create_dir(place.at("folder")).unwrap();
    assert!(place.refused(&place.at("folder")).contains("no file"));
    let missing = TextSource::File(place.at("none")).load(&place.data).unwrap_err();
    assert!(missing.is_missing() && missing.to_string().contains("openssl rand"), "{missing}");
}

#[test]
fn a_key_is_made_once_for_its_owner_only() {
    let place = Place::new();
    let source = TextSource::File(place.at("settings/vault/w.key"));
    let made = source.make(&place.data).unwrap();
    let path = place.at("settings/vault/w.key");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(source.load(&place.data).unwrap().id(), made.id());
    // One that is there is used, not replaced.
    assert_eq!(source.make(&place.data).unwrap().id(), made.id());
    let other = TextSource::File(place.at("other.key"));
    assert_ne!(other.make(&place.data).unwrap().id(), made.id());
    // The others are not for this program to make.
    for source in ["env:NOT_SET", "credential:none"] {
        let source: TextSource = source.parse().unwrap();
        source.make(&place.data).unwrap_err();
    }
}
