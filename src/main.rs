//! The `atelier` program: the daemon, the node agent and the client in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    atelier::cli::main(std::env::args_os())
}
