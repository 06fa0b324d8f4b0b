//! The `atelier` program: the daemon, the node agent and the client in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A supervisor is this program too. It must not carry a client's or daemon's baggage, so its
    // case is decided before anything else is set up.
    if let Some(code) = atelier_agent::supervise_if_asked(std::env::args_os()) {
        return code;
    }
    atelier::cli::main(std::env::args_os())
}
