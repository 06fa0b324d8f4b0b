//! A job from a command line, without a YAML file: `atelier run --cpus 2 -- python train.py`.

use super::command::{Code, CommandJob, Environment, JobResources, Limits, OnNodeLoss};
use super::command::{QueueSettings, Retry};
use super::diagnostic::{Diagnostic, Diagnostics};
use super::quantity;
use super::validate::validate;
use crate::id::{ExperimentName, JobName};
use crate::resource::Demand;

/// What was typed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CommandLine {
    /// The program and its arguments; at least the program.
    pub arguments: Vec<String>,
    /// The folder with the code, absolute.
    pub folder: String,
    /// `--name`
    pub name: Option<String>,
    /// `--experiment-name`, or the current folder's last name.
    pub experiment: String,
    /// `--cpus`: `2`, `0.5`, `500m`.
    pub cpus: Option<String>,
    /// `--memory`: `4GiB`.
    pub memory: Option<String>,
    /// `--gpus`
    pub gpus: Option<u32>,
}

impl CommandJob {
    /// The job that runs a command line in its folder, in the node's own environment.
    ///
    /// # Errors
    /// If there is no program, an amount cannot be read, or the job breaks a limit.
    pub fn from_command_line(line: &CommandLine) -> Result<Self, Diagnostics> {
        if line.arguments.is_empty() {
            let missing = Diagnostic::new("there is no command to run");
            return Err(missing
                .with_help("write it after '--': atelier run -- python x.py")
                .into());
        }
        let wrong = |option: &str, what: String| Diagnostic::new(format!("{option}: {what}"));
        let cpu = line.cpus.as_deref().map(quantity::cpus).transpose();
        let memory = line.memory.as_deref().map(quantity::memory).transpose();
        let name = line.name.as_deref().map(JobName::new).transpose();
        let experiment =
            ExperimentName::new(&line.experiment).or_else(|_| ExperimentName::new("Default"));
        let job = Self {
            name: name.map_err(|error| wrong("--name", error.to_string()))?,
            display_name: None,
            description: None,
            experiment_name: experiment.map_err(|e| Diagnostic::new(e.to_string()))?,
            tags: Default::default(),
            properties: Default::default(),
            command: line.arguments.iter().map(|part| quote(part)).collect::<Vec<_>>().join(" "),
            code: Some(Code::Local(line.folder.clone())),
            environment: Environment::Host,
            compute: None,
            inputs: Default::default(),
            outputs: Default::default(),
            environment_variables: Default::default(),
            resources: JobResources {
                demand: Demand {
                    cpu: cpu.map_err(|what| wrong("--cpus", what))?.unwrap_or(Demand::DEFAULT.cpu),
                    memory: memory
                        .map_err(|what| wrong("--memory", what))?
                        .unwrap_or(Demand::DEFAULT.memory),
                    gpus: line.gpus.unwrap_or(Demand::DEFAULT.gpus),
                },
                ..JobResources::default()
            },
            distribution: None,
            limits: Limits::default(),
            queue: QueueSettings::default(),
            services: Default::default(),
            identity: None,
            retry: Retry::default(),
            on_node_loss: OnNodeLoss::default(),
        };
        validate(&job)?;
        Ok(job)
    }
}

/// One argument as a word of a POSIX shell's command line.
pub fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    // A word with '=' before the first plain part would be an assignment at the line's start.
    let assigns = argument.split_once('=').is_some_and(|(name, _)| !name.contains(['/', '-', '.']));
    if !argument.is_empty() && argument.chars().all(plain) && !assigns {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// The words of a command line as a POSIX shell splits them, without expansions; `None` if a quote
/// is not closed.
pub(super) fn split(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}
