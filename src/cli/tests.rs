//! Arguments, exit codes, and what errors tell.

use clap::{CommandFactory as _, Parser as _};
use tonic::{Code, Status};

use super::{Cli, Error, Kind};
use crate::client;

fn parses(line: &[&str]) -> bool {
    Cli::try_parse_from(std::iter::once(&"atelier").chain(line)).is_ok()
}

fn complaint(line: &[&str]) -> String {
    match Cli::try_parse_from(std::iter::once(&"atelier").chain(line)) {
        Ok(_) => panic!("{line:?} was taken"),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "{line:?}");
            error.to_string()
        }
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_an_example() {
    fn check(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        let subcommands: Vec<_> =
            command.get_subcommands().filter(|c| c.get_name() != "help").collect();
        if subcommands.is_empty() {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Example"), "{path} has no example");
        }
        assert!(command.get_about().is_some(), "{path} says nothing of itself");
        for subcommand in subcommands {
            check(subcommand, &path);
        }
    }
    check(&Cli::command(), "");
}

/// The words of a line as a shell splits them, without what it does itself.
fn words(line: &str) -> Vec<String> {
    // A comment stands apart by several blanks.
    let line = line.split("   ").next().unwrap_or_default();
    let line = line.split(" > ").next().unwrap_or_default();
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, ' ') => words.push(std::mem::take(&mut word)),
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Tries every line of a text that is a command; gives how many there were.
fn try_examples(text: &str) -> usize {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("atelier "));
    lines
        .map(|line| {
            let words = words(line);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert!(parses(&words), "{line}");
        })
        .count()
}

/// Examples in the help are command lines too, and must not rot.
#[test]
fn examples_in_the_help_parse() {
    fn check(command: &clap::Command) -> usize {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        try_examples(&after) + command.get_subcommands().map(check).sum::<usize>()
    }
    let tried = check(&Cli::command());
    assert!(tried > 30, "{tried}");
}

#[test]
fn the_manual_has_every_command_and_its_examples_parse() {
    const MANUAL: &str = include_str!("../../docs/cli.md");
    assert!(try_examples(MANUAL) > 30);
    let root = Cli::command();
    for noun in root.get_subcommands().filter(|noun| noun.get_name() != "help") {
        let noun_line = format!("atelier {}", noun.get_name());
        assert!(MANUAL.contains(&noun_line), "{noun_line}");
        for verb in noun.get_subcommands().filter(|verb| verb.get_name() != "help") {
            let line = format!("{noun_line} {}", verb.get_name());
            assert!(MANUAL.contains(&line), "{line}");
        }
    }
    for status in atelier_proto::job::v1::JobStatus::ALL {
        assert!(MANUAL.contains(&format!("`{}`", status.word())), "{}", status.word());
    }
}

#[test]
fn names_are_taken_in_both_forms() {
    for verb in ["show", "stream", "cancel", "download", "events", "archive", "restore", "delete"] {
        assert!(parses(&["job", verb, "x"]), "{verb}");
        assert!(parses(&["job", verb, "-n", "x"]), "{verb}");
        assert!(parses(&["job", verb, "--name", "x"]), "{verb}");
        assert!(complaint(&["job", verb]).contains("<NAME|--name <NAME>>"), "{verb}");
        assert!(complaint(&["job", verb, "x", "-n", "y"]).contains("cannot be used with"));
    }
}

#[test]
fn what_users_of_az_type_is_taken() {
    assert!(parses(&["job", "create", "--file", "job.yml", "--set", "a=1", "b.c=2", "--stream"]));
    assert!(parses(&["job", "list", "--query", "[].name", "-o", "tsv", "-r", "5"]));
    assert!(parses(&["job", "download", "-n", "x", "--all", "-p", "here"]));
    assert!(parses(&["-o", "json", "compute", "list"]));
    assert!(parses(&["job", "list", "--status", "cancelled", "--status", "Running"]));
    assert!(complaint(&["job", "list", "--status", "Done"]).contains("use one of NotStarted,"));
}

#[test]
fn run_takes_a_file_or_a_command() {
    assert!(parses(&["run", "job.yml", "--cpus", "2", "-e", "A=b=c"]));
    assert!(parses(&["run", "--gpus", "1", "--", "python", "-c", "print(1)", "--set", "x"]));
    assert!(complaint(&["run"]).contains("FILE"));
    assert!(complaint(&["run", "job.yml", "--", "true"]).contains("cannot be used with"));
    assert!(complaint(&["run", "-e", "novalue", "--", "true"]).contains("KEY=VALUE"));
    assert!(complaint(&["run", "--set", "nothing", "--", "true"]).contains("there is no '='"));
}

#[test]
fn errors_of_the_daemon_have_their_codes_and_remedies() {
    let told = |code, message: &str| Error::from(Status::new(code, message));
    let cases = [
        (Code::InvalidArgument, Kind::Refused, 1),
        (Code::FailedPrecondition, Kind::Refused, 1),
        (Code::AlreadyExists, Kind::Refused, 1),
        (Code::ResourceExhausted, Kind::Refused, 1),
        (Code::NotFound, Kind::NotFound, 3),
        (Code::Unavailable, Kind::Unreachable, 4),
        (Code::Unauthenticated, Kind::NotAllowed, 5),
        (Code::PermissionDenied, Kind::NotAllowed, 5),
        (Code::Internal, Kind::Failed, 6),
        (Code::DataLoss, Kind::Failed, 6),
    ];
    for (code, kind, exit) in cases {
        let error = told(code, "the cause");
        assert_eq!((error.kind, error.kind.code()), (kind, exit), "{code:?}");
        assert!(error.cause.ends_with("the cause"), "{code:?}");
    }
    assert!(told(Code::Unauthenticated, "x").help.unwrap().contains("--token-file"));
    let large = told(
        Code::OutOfRange,
        "Error, decoded message length too large: found 5242880 bytes, the limit is: 4194304 bytes",
    );
    assert_eq!(large.kind, Kind::Refused);
    assert!(large.help.unwrap().contains("input files"));
    // A call that the daemon does not know comes without a word; a feature to come has its own.
    assert!(told(Code::Unimplemented, "").help.unwrap().contains("atelier --version"));
    let later = told(Code::Unimplemented, "gangs are not supported yet");
    assert_eq!((later.kind, later.help), (Kind::Refused, None));
}

#[test]
fn errors_of_the_client_say_what_to_do() {
    let cases = [
        (client::Error::NoLocalDaemon, 4, "atelier local start"),
        (client::Error::NoToken { server: "s".to_owned() }, 5, "atelier token create"),
        (client::Error::BadToken, 5, "on one line"),
        (client::Error::NoHome, 2, "ATELIER_HOME"),
        (client::Error::BadServer { server: "s".to_owned(), why: "w" }, 2, "https://HOST:PORT"),
    ];
    for (error, code, help) in cases {
        let error = Error::from(error);
        assert_eq!(error.kind.code(), code, "{}", error.cause);
        assert!(error.help.as_deref().is_some_and(|text| text.contains(help)), "{error:?}");
    }
}

#[test]
fn times_are_written_with_units_up_to_days() {
    use super::node::seconds;
    for (text, expected) in
        [("90", 90), ("30m", 1800), ("2h 15m", 8100), ("7d", 604_800), ("1w 1d", 691_200)]
    {
        assert_eq!(seconds(text), Ok(expected), "{text}");
    }
    for wrong in ["", "soon", "-1h", "1mo", "2 years", "99999999999999999999"] {
        assert!(seconds(wrong).unwrap_err().contains("7d"), "{wrong}");
    }
    assert!(parses(&["node", "cache", "prune", "gpu-3", "--all", "--older-than", "7d"]));
    assert!(complaint(&["node", "cache", "prune"]).contains("NAME"));
}
