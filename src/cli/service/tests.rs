//! Units as they are written: escaped, complete, from what was said.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use clap::Parser as _;
use proptest::prelude::*;

use super::unit::{Service, Unit};
use super::{Command, Install, check_agent, escape, upgrade};
use crate::cli::{Cli, Command as Noun, Kind};

/// The words of `ExecStart=` as systemd.service(5) and systemd.syntax(7) read them.
fn read(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => (quoted, begun) = (!quoted, true),
            '\\' => word.push(letters.next().unwrap()),
            ' ' if !quoted => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            letter => {
                begun = true;
                word.push(letter);
            }
        }
    }
    if begun {
        words.push(word);
    }
    let doubled = |word: String| word.replace("%%", "%").replace("$$", "$");
    words.into_iter().map(doubled).collect()
}

proptest! {
    #[test]
    fn words_come_back_as_they_were(words in prop::collection::vec("[ -~äß€]{0,12}", 1..5)) {
        let line: Vec<String> =
            words.iter().map(|word| escape::argument(OsStr::new(word)).unwrap()).collect();
        prop_assert_eq!(read(&line.join(" ")), words);
    }
}

#[test]
fn values_are_escaped_and_what_cannot_be_is_refused() {
    let argument = |text: &str| escape::argument(OsStr::new(text)).unwrap();
    assert_eq!(argument("--cpus=2"), "--cpus=2");
    assert_eq!(argument("100%"), "100%%");
    assert_eq!(argument("$HOME ${X}"), "\"$$HOME $${X}\"");
    assert_eq!(argument(""), "\"\"");
    assert_eq!(argument(";"), "\";\"");
    assert_eq!(argument("it's"), "\"it's\"");
    assert_eq!(argument(r#"a"b\"#), r#""a\"b\\""#);
    for bad in [&b"two\nlines"[..], b"\x1b[31m", b"\xff", b"tab\t"] {
        let error = escape::argument(OsStr::from_bytes(bad)).unwrap_err();
        assert_eq!(error.kind, Kind::Refused, "{bad:?}");
        assert!(error.cause.starts_with("cannot write a unit: '"), "{}", error.cause);
        assert!(error.help.is_some());
    }
    let path = |text: &str| escape::path(OsStr::new(text));
    assert_eq!(path("/srv/my data%").unwrap(), "\"/srv/my data%%\"");
    assert_eq!(path("/srv/$x").unwrap(), "/srv/$x");
    assert!(path("srv").is_err() && path("").is_err() && path("-/srv").is_err());
    assert!(escape::program(OsStr::new("/opt/$x/atelier")).is_err());
    assert!(escape::user("atelier").is_ok() && escape::user("_a-b.c").is_ok());
    for bad in ["", "1a", "a b", "a%", "a:b", "a\nGroup=x", &"a".repeat(32)] {
        assert_eq!(escape::user(bad).unwrap_err().kind, Kind::Usage, "{bad}");
    }
}

fn unit(service: Service, words: &[&str], data_dir: &str, run_as: Option<&str>) -> String {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let (program, data_dir) = (Path::new("/usr/bin/atelier"), Path::new(data_dir));
    Unit { service, program, words: &words, data_dir, run_as }.render().unwrap()
}

fn settings<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_units_of_the_system_let_jobs_outlive_their_service() {
    let agent = unit(Service::Agent, &["--node=a b"], "/var/lib/atelier-agent", Some("root"));
    assert!(
        agent.contains("\nExecStart=/usr/bin/atelier agent \\\n    \"--node=a b\"\n"),
        "{agent}"
    );
    let serve = unit(Service::Serve, &[], "/var/lib/atelier", Some("atelier"));
    for (text, state, group) in
        [(&agent, "atelier-agent", "agent"), (&serve, "atelier atelier-vault", "daemon")]
    {
        for (key, value) in [
            ("Type", "notify"),
            ("NotifyAccess", "main"),
            ("Restart", "on-failure"),
            ("KillMode", "process"),
            ("Delegate", "yes"),
            ("DelegateSubgroup", group),
            ("OOMPolicy", "continue"),
            ("TasksMax", "infinity"),
            ("StartLimitIntervalSec", "0"),
            ("StateDirectory", state),
            ("WantedBy", "multi-user.target"),
        ] {
            assert_eq!(settings(text, key), [value], "{key}");
        }
        assert!(!text.lines().any(|line| line.len() > 110), "{text}");
    }
    // Whatever closes the agent off closes its jobs off too.
    for key in ["NoNewPrivileges", "ProtectSystem", "PrivateTmp", "PrivateDevices"] {
        assert_eq!(settings(&agent, key), [""; 0], "{key}");
    }
    assert_eq!(settings(&serve, "User"), ["atelier"]);
    assert_eq!(settings(&serve, "ProtectSystem"), ["strict"]);
    assert_eq!(settings(&serve, "ReadWritePaths"), ["/var/lib/atelier /tmp /var/tmp"]);
    assert_eq!(settings(&serve, "PrivateTmp"), [""; 0]);
    // The vault's key is neither in the data folder nor among what may be emptied.
    let environment = settings(&serve, "Environment");
    assert!(environment.contains(&"ATELIER_VAULT_KEY=file:%S/atelier-vault/vault.key"), "{serve}");
    assert_eq!(settings(&agent, "Environment"), [""; 0]);
}

#[test]
fn a_data_folder_elsewhere_is_made_before_the_file_system_is_closed_off() {
    let text = unit(Service::Serve, &[], "/srv/100% ours", Some("ada"));
    assert_eq!(settings(&text, "StateDirectory"), ["atelier-vault"]);
    assert_eq!(
        settings(&text, "ExecStartPre"),
        ["+/usr/bin/install -d -m 0700 -o ada \"/srv/100%% ours\""]
    );
    assert_eq!(settings(&text, "ReadWritePaths"), ["\"/srv/100%% ours\" /tmp /var/tmp"]);
}

#[test]
fn the_unit_of_a_user_names_nothing_that_only_the_system_has() {
    let text = unit(Service::Serve, &[], "/home/ada/data", None);
    for key in ["User", "ExecStartPre", "StateDirectory", "ProtectSystem", "Wants"] {
        assert_eq!(settings(&text, key), [""; 0], "{key}");
    }
    assert_eq!(settings(&text, "WantedBy"), ["default.target"]);
    assert_eq!(settings(&text, "KillMode"), ["process"]);
}

#[test]
fn the_slim_program_has_no_verb() {
    let words = [OsString::from("--cpus=2")];
    let (program, data_dir) = (Path::new("/usr/bin/atelier-agent"), Path::new("/var/lib/x"));
    let unit = Unit { service: Service::Agent, program, words: &words, data_dir, run_as: None };
    assert!(unit.render().unwrap().contains("ExecStart=/usr/bin/atelier-agent \\\n    --cpus=2\n"));
}

fn install(line: &[&str]) -> Install {
    let line = ["atelier", "service", "install"].iter().chain(line);
    match Cli::try_parse_from(line).unwrap().command {
        Noun::Service(Command::Install(install)) => *install,
        _ => panic!("another command"),
    }
}

/// A unit is for everybody to read.
#[test]
fn secrets_keep_out_of_units() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    let private = |mode| std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode));
    let path = token.to_str().unwrap();
    let checked = |server: &str, run_as: &str| {
        let line = ["agent", "--server", server, "--token-file", path, "--run-as", run_as];
        let Install::Agent(arguments) = install(&line) else { panic!("another service") };
        check_agent(&arguments.given.arguments, &arguments.unit).map_err(|error| error.cause)
    };
    private(0o640).unwrap();
    assert!(checked("http://h:1", "root").unwrap_err().contains("(mode 640, the limit is 600)"));
    private(0o400).unwrap();
    assert_eq!(checked("http://h:1", "root"), Ok(()));
    assert!(checked("http://ada:secret@h:1", "root").unwrap_err().contains("a password"));
    let is_roots = rustix::process::geteuid().is_root();
    assert_eq!(checked("http://h:1", "ada").is_err(), is_roots);
}

fn given(line: &[&str]) -> Vec<String> {
    let words = match install(line) {
        Install::Serve(arguments) => arguments.given.words,
        Install::Agent(arguments) => arguments.given.words,
    };
    words.into_iter().map(|word| word.into_string().unwrap()).collect()
}

#[test]
fn a_unit_repeats_what_was_said_and_nothing_else() {
    let here = std::env::current_dir().unwrap();
    let line = [
        "agent",
        "--server",
        "http://h:1",
        "--token-file",
        "t",
        "--label",
        "a=b",
        "--label=c=d e",
        "--no-shared-store",
        "--memory",
        "4GiB",
        "--dry-run",
        "--quiet",
        "--user",
    ];
    assert_eq!(
        given(&line),
        [
            "--server=http://h:1",
            &format!("--token-file={}", here.join("t").display()),
            "--memory=4GiB",
            "--label=a=b",
            "--label=c=d e",
            "--no-shared-store",
        ]
    );
    assert_eq!(
        given(&["serve", "--run-as", "ada", "--compute", "a", "--compute", "b", "--data-dir", "d"]),
        [&format!("--data-dir={}", here.join("d").display()), "--compute=a", "--compute=b"]
    );
    assert_eq!(given(&["serve"]), [""; 0]);
}

#[test]
fn the_program_of_a_unit_is_found() {
    let found = |text: &str| {
        let properties = BTreeMap::from([("ExecStart".to_owned(), text.to_owned())]);
        upgrade::program_of(&properties).map(|path| path.display().to_string())
    };
    let printed =
        "{ path=/opt/my atelier/bin ; argv[]=/opt/my atelier/bin agent ; flags= ; pid=0 }";
    assert_eq!(found(printed).as_deref(), Some("/opt/my atelier/bin"));
    assert_eq!(found(""), None);
}
