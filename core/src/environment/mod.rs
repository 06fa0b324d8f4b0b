//! What an environment is made of: conda documents turned into packages of the Python Package
//! Index, the Python to use, the name a built environment is kept under, the curated names, and the
//! versions that a workspace keeps of its own.
//!
//! Only decisions: an agent gathers the facts (which Pythons are installed, which programs are on
//! the path) and builds what [`Recipe`] says.

mod asset;
pub mod conda;
pub mod curated;
mod names;
mod pip;
pub mod python;
mod recipe;

pub(crate) use pip::needs_file;

pub use asset::{Draft, EnvironmentVersion};
pub use curated::{CuratedTable, curated};
pub use python::{Choice, Installed, PythonRequest, PythonVersion, choose};
pub use recipe::{Base, Error, Program, Recipe};

#[cfg(test)]
mod tests;
