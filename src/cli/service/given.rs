//! What was said on the command line, to be said again by a unit.

use std::ffi::{OsStr, OsString};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueHint};

/// Arguments as they were read, and the words that said them: a unit repeats what its author wrote,
/// and leaves to the program what its author left to it.
#[derive(Clone, Debug)]
pub(super) struct Given<T> {
    pub(super) arguments: T,
    /// `--option=value`, paths from the root.
    pub(super) words: Vec<OsString>,
}

impl<T: Args> Args for Given<T> {
    fn augment_args(command: Command) -> Command {
        T::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}

impl<T: Args> FromArgMatches for Given<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let arguments = T::from_arg_matches(matches)?;
        let command = T::augment_args(Command::new("given"));
        let words = command.get_arguments().flat_map(|arg| words(arg, matches)).collect();
        Ok(Self { arguments, words })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn words(arg: &Arg, matches: &ArgMatches) -> Vec<OsString> {
    let id = arg.get_id().as_str();
    // A service does not have the environment of whoever installs it.
    let said = Some(ValueSource::CommandLine) == matches.value_source(id)
        || Some(ValueSource::EnvVariable) == matches.value_source(id);
    let (true, Some(long)) = (said, arg.get_long()) else { return Vec::new() };
    if !arg.get_action().takes_values() {
        return vec![format!("--{long}").into()];
    }
    let is_path = arg.get_value_hint() == ValueHint::AnyPath;
    let word = |value: &OsStr| {
        let mut word = OsString::from(format!("--{long}="));
        match std::path::absolute(value) {
            Ok(path) if is_path => word.push(path),
            _ => word.push(value),
        }
        word
    };
    matches.get_raw(id).into_iter().flatten().map(word).collect()
}
