//! The slim node agent.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "atelier-agent", version, about = "Joins this machine to an Atelier workspace")]
struct Cli {
    #[command(flatten)]
    agent: atelier_agent::AgentArgs,
}

fn main() -> ExitCode {
    if let Some(code) = atelier_agent::supervise_if_asked(std::env::args_os()) {
        return code;
    }
    atelier_agent::main(Cli::parse().agent)
}
