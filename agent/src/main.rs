//! The slim node agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = atelier_agent::supervise_if_asked(std::env::args_os()) {
        return code;
    }
    ExitCode::SUCCESS
}
