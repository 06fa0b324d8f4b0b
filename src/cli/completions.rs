//! `atelier completions`

use clap::Args;
use clap_complete::Shell;

use super::{Context, Error};

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier completions bash > ~/.local/share/bash-completion/completions/atelier
  atelier completions zsh > \"${fpath[1]}/_atelier\"
  atelier completions fish > ~/.config/fish/completions/atelier.fish")]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run(
    arguments: &Arguments,
    command: &mut clap::Command,
    context: &Context,
) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "atelier", &mut script);
    context.output.bytes(&script)
}
