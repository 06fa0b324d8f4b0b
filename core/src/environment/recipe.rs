//! What to install, worked out from a conda document.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::conda::{self, Document, MatchSpec};
use super::names::{Fate, fate};
use super::pip::{self, Line};
use super::python::{PythonRequest, PythonVersion};
use crate::content::Digest;

/// A document that cannot be realised from the Python Package Index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(transparent)]
    Conda(#[from] conda::Error),
    /// Packages that are not to be had.
    #[error(
        "the conda packages cannot all come from the Python Package Index, which environments \
         are built from: {}", several(.0)
    )]
    Packages(Vec<String>),
    /// Lines of the `pip:` list that make no sense on a node.
    #[error("conda_file: pip: {}", several(.0))]
    Pip(Vec<String>),
}

/// A document may be wrong in thousands of lines; the first few are enough to mend it.
fn several(faults: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown = faults[..faults.len().min(SHOWN)].join("; ");
    match faults.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// A program that a conda package would have brought and that the node must have.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Program {
    /// The conda package.
    pub package: String,
    /// What to look for on the path.
    pub program: String,
}

/// What a private Python environment is made of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recipe {
    /// The Python asked for.
    pub python: Option<PythonRequest>,
    /// Packages in pip's syntax; sorted, none twice.
    pub requirements: Vec<String>,
    /// Lines for the head of the requirements file (indexes), in order.
    pub options: Vec<String>,
    /// Whether pre-releases are welcome.
    pub prerelease: bool,
    /// Hosts whose certificate is not checked.
    pub insecure_hosts: Vec<String>,
    /// Programs that must be on the node.
    pub programs: Vec<Program>,
    /// Variables to set.
    pub variables: Vec<(String, String)>,
    /// Whether the packages of the Python it is made from are visible inside.
    pub sees_host_packages: bool,
    /// What was substituted or left out, a sentence each, for the job's log.
    pub notes: Vec<String>,
}

/// What an environment is built with: together with the recipe it decides what comes out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base<'a> {
    /// The Python chosen.
    pub python: PythonVersion,
    /// Where it is.
    pub python_path: &'a str,
    /// Operating system and processor: `linux-x86_64`.
    pub platform: &'a str,
    /// Names the way of building; changes when the same recipe would come out differently.
    pub builder: &'a str,
}

/// Every conda environment has them, and scripts count on it.
///
/// setuptools 82 dropped `pkg_resources`, which packages of the years before import.
const ALWAYS: [(&str, &str); 3] =
    [("pip", "pip"), ("setuptools", "setuptools<82"), ("wheel", "wheel")];

impl Recipe {
    /// The recipe of a conda document given as JSON.
    ///
    /// # Errors
    /// Names every package and line that cannot be had, with the remedy.
    pub fn from_conda(document: &Value) -> Result<Self, Error> {
        let document = Document::parse(document)?;
        let mut recipe = Self { variables: document.variables, ..Self::default() };
        let mut requirements = BTreeSet::new();
        let mut left_out = BTreeSet::new();
        let mut gpu = BTreeSet::new();
        let mut refused = Vec::new();
        for spec in &document.packages {
            if spec.name == "python" {
                recipe.python = PythonRequest::new(spec.version.clone());
                continue;
            }
            match fate(&spec.name) {
                Fate::Package(package) => {
                    recipe.note_of(spec, package);
                    requirements.insert(requirement(package, spec));
                }
                Fate::Program(program) => {
                    let package = spec.name.clone();
                    recipe.programs.push(Program { package, program: program.into() });
                }
                Fate::Bundled => {
                    left_out.insert(spec.name.as_str());
                }
                Fate::Gpu => {
                    gpu.insert(spec.name.as_str());
                }
                Fate::Refused(remedy) => refused.push(format!("'{}': {remedy}", spec.name)),
            }
        }
        if !refused.is_empty() {
            return Err(Error::Packages(refused));
        }
        recipe.pip_lines(&document.pip, &mut requirements)?;
        left_out.remove("pip");
        if !left_out.is_empty() {
            recipe.notes.push(format!(
                "left out, since packages of the Python Package Index carry what they need: {}",
                list(&left_out)
            ));
        }
        if !gpu.is_empty() {
            recipe.notes.push(format!(
                "left out, since GPU libraries come with the packages and the driver with the \
                 node: {}",
                list(&gpu)
            ));
        }
        for (name, default) in ALWAYS {
            if !requirements.iter().any(|have| same_package(have, name)) {
                requirements.insert(default.to_owned());
            }
        }
        recipe.programs.sort();
        recipe.programs.dedup();
        recipe.requirements = requirements.into_iter().collect();
        Ok(recipe)
    }

    /// A private environment that sees the packages of the Python it is made from: what stands in
    /// for a container image when nothing says what the image holds.
    pub fn of_host_packages() -> Self {
        Self { sees_host_packages: true, ..Self::default() }
    }

    fn note_of(&mut self, spec: &MatchSpec, package: &str) {
        if package != spec.name {
            self.notes.push(format!("conda's '{}' is '{package}' from PyPI", spec.name));
        }
        if let Some(build) =
            spec.build.as_deref().filter(|build| !build.trim_matches('*').is_empty())
        {
            self.notes.push(format!("'{}': conda's build '{build}' is ignored", spec.name));
        }
    }

    fn pip_lines(
        &mut self,
        lines: &[String],
        requirements: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        let mut wrong = Vec::new();
        for text in lines {
            match pip::line(text) {
                Ok(Line::Requirement(text)) => {
                    // pip is here to be used by the job; an old one cannot run on a new Python.
                    if same_package(&text, "pip") {
                        continue;
                    }
                    requirements.insert(text);
                }
                Ok(Line::Option(text)) => self.options.push(text),
                Ok(Line::Prerelease) => self.prerelease = true,
                Ok(Line::InsecureHost(host)) => self.insecure_hosts.push(host),
                Ok(Line::Ignored(text)) => {
                    self.notes.push(format!("pip's option '{text}' is ignored"));
                }
                Err(problem) => {
                    let text: String = text.chars().take(200).collect();
                    wrong.push(format!("'{text}': {problem}"));
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::Pip(wrong)) }
    }

    /// The recipe as a requirements file.
    pub fn requirements_file(&self) -> String {
        let mut text = String::new();
        for line in self.options.iter().chain(&self.requirements) {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// The name that what is built is kept under: equal recipes on equal bases share it.
    pub fn key(&self, base: &Base<'_>) -> Digest {
        let mut hasher = blake3::Hasher::new();
        // Every part is preceded by its length, so that no two lists run into the same bytes.
        let mut part = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part("atelier environment 1");
        part(base.builder);
        part(base.platform);
        part(&base.python.to_string());
        part(base.python_path);
        part(if self.sees_host_packages { "host packages" } else { "own packages" });
        part(if self.prerelease { "pre-releases" } else { "releases" });
        for (kind, lines) in [
            ("options", &self.options),
            ("hosts", &self.insecure_hosts),
            ("requirements", &self.requirements),
        ] {
            part(kind);
            part(&lines.len().to_string());
            for line in lines {
                part(line);
            }
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }
}

fn list(names: &BTreeSet<&str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(", ")
}

fn requirement(package: &str, spec: &MatchSpec) -> String {
    let versions: Vec<String> = spec.version.iter().map(conda::Clause::to_pep440).collect();
    format!("{package}{}", versions.join(","))
}

/// Whether a requirement line is for this package (names compared as the index does).
fn same_package(requirement: &str, package: &str) -> bool {
    let end = requirement
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
        .unwrap_or(requirement.len());
    let normal = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
    normal(&requirement[..end]) == normal(package)
}
