//! What an environment is built from: the Python that is asked for, or the nearest, and the node's own programs.

use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use atelier_core::environment::{Choice, Installed, PythonRequest, Recipe, choose};

use super::pythons::{Known, find_program, look};
use super::shared::Reporter;
use super::uv::Builder;
use super::{BuildLog, Environments, Error, Inner};

/// How long a Python that could not be fetched is not asked for again.
const FETCH_AGAIN: Duration = Duration::from_secs(3600);
/// How long the list of Pythons stands when what is asked for is not among them.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Inner {
    /// Why this Python could not be fetched, if that was tried lately.
    fn unavailable(&self, specifier: &str) -> Option<String> {
        let tried = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, reason) = tried.get(specifier)?;
        (when.elapsed() < FETCH_AGAIN).then(|| reason.clone())
    }

    fn note_unavailable(&self, specifier: &str, reason: &str) {
        let mut tried = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        tried.insert(specifier.to_owned(), (Instant::now(), reason.to_owned()));
    }
}

impl Environments {
    pub(super) fn check_programs(&self, recipe: &Recipe, log: &dyn BuildLog) -> Result<(), Error> {
        let mut missing = Vec::new();
        let mut found = Vec::new();
        for wanted in &recipe.programs {
            match find_program(&self.0.home.path, &wanted.program) {
                Some(path) => found.push(format!("{} ({})", wanted.package, path.display())),
                None => missing.push(format!("'{}' ({})", wanted.package, wanted.program)),
            }
        }
        if !missing.is_empty() {
            return Err(Error::Programs { programs: missing });
        }
        if !found.is_empty() {
            log.line(&format!("environment: the node's own are used of: {}", found.join(", ")));
        }
        Ok(())
    }

    /// The Python to build from.
    pub(super) async fn python(
        &self,
        request: Option<&PythonRequest>,
        log: &dyn BuildLog,
    ) -> Result<Installed, Error> {
        let (asked, nearest) = self.installed(request, false).await?;
        if let Some(python) = asked {
            return Ok(python);
        }
        let Some(request) = request else { return Ok(nearest) };
        let specifier = request.specifier();
        let reason = match self.0.unavailable(&specifier) {
            Some(reason) => reason,
            None => {
                // One at a time, so that many jobs do not fetch the same one.
                let _fetching = self.0.fetching.lock().await;
                match self.0.unavailable(&specifier) {
                    Some(reason) => reason,
                    None => {
                        log.line(&format!(
                            "environment: Python {specifier} is not installed: fetching it"
                        ));
                        let fetched = self.fetch(&nearest, &specifier, log).await;
                        if let (Some(python), _) = self.installed(Some(request), true).await? {
                            return Ok(python);
                        }
                        let reason = fetched.err().unwrap_or_else(|| "it does not run".into());
                        self.0.note_unavailable(&specifier, &reason);
                        reason
                    }
                }
            }
        };
        log.line(&format!(
            "environment: Python {specifier} is not installed and cannot be fetched ({reason}): \
             using Python {}, the nearest on this node",
            nearest.version
        ));
        Ok(nearest)
    }

    /// The Python asked for, if it is installed, and the one to take otherwise.
    pub(super) async fn installed(
        &self,
        request: Option<&PythonRequest>,
        again: bool,
    ) -> Result<(Option<Installed>, Installed), Error> {
        let inner = &self.0;
        let mut known = inner.pythons.lock().await;
        // Someone may have removed one since.
        let chosen = |known: &Known| {
            let there: Vec<Installed> = known
                .installed
                .iter()
                .filter(|python| Path::new(&python.path).exists())
                .cloned()
                .collect();
            match choose(request, &there) {
                Some(Choice::Asked(python)) => Some((Some(python.clone()), python.clone())),
                Some(Choice::Nearest(python)) => Some((None, python.clone())),
                None => None,
            }
        };
        match chosen(&known) {
            Some(found) if found.0.is_some() && !again => return Ok(found),
            _ => {}
        }
        if again || known.looked.is_none_or(|then| then.elapsed() > LOOK_AGAIN) {
            look(&inner.places, &mut known).await;
        }
        chosen(&known).ok_or(Error::NoPython)
    }

    async fn fetch(
        &self,
        nearest: &Installed,
        specifier: &str,
        log: &dyn BuildLog,
    ) -> Result<(), String> {
        let home = &self.0.home;
        std::fs::create_dir_all(&home.root).map_err(|error| error.to_string())?;
        let reporter = Reporter::detached();
        let builder = home.builder(nearest, &reporter).await.map_err(|error| error.to_string());
        reporter.drain(log);
        match builder? {
            Builder::Uv(uv) => home.fetch_python(&uv, specifier).await,
            Builder::Pip => Err("that needs uv".into()),
        }
    }
}
