//! The files of MLflow's pages.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use axum::body::Body;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use crate::cli::fetch::beneath;
use crate::cli::{Error, Kind};

/// Tells where an interpreter has `mlflow`, without running any of it.
const FIND: &str = "\
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import importlib.util
found = importlib.util.find_spec('mlflow')
print(list(found.submodule_search_locations or [''])[0] if found else '')";

/// A folder of built pages.
#[derive(Debug, Clone)]
pub(super) struct Pages(PathBuf);

impl Pages {
    /// The named folder, or that of an installed `mlflow`.
    pub(super) fn find(named: Option<PathBuf>) -> Result<Self, Error> {
        const HELP: &str = "install it (pip install mlflow; mlflow-skinny has no pages), or name the folder with --pages";
        if let Some(folder) = named {
            return Self::at(&folder).ok_or_else(|| {
                let cause = format!("{} holds no pages: index.html is missing", folder.display());
                Error::new(Kind::NotFound, cause).help(HELP)
            });
        }
        let mut without = Vec::new();
        for python in interpreters() {
            let Some(package) = package(&python) else { continue };
            match Self::at(&package.join("server/js/build")) {
                Some(pages) => return Ok(pages),
                None => without.push(package.display().to_string()),
            }
        }
        let cause = match without.first() {
            Some(package) => format!("the mlflow at {package} has no pages"),
            None => "no mlflow is installed for the python in use".to_owned(),
        };
        Err(Error::new(Kind::NotFound, cause).help(HELP))
    }

    fn at(folder: &Path) -> Option<Self> {
        let folder = folder.canonicalize().ok()?;
        folder.join("index.html").is_file().then_some(Self(folder))
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// A file of the pages.
    pub(super) async fn file(&self, path: &str) -> Response {
        let Some(path) = beneath(Path::new(path)) else { return nothing() };
        // A link in the folder is the installation's own affair, unless it leads out of it.
        let Ok(file) = tokio::fs::canonicalize(self.0.join(&path)).await else { return nothing() };
        if !file.starts_with(&self.0) {
            return nothing();
        }
        let Ok(bytes) = tokio::fs::read(&file).await else { return nothing() };
        // The names of what is below `static` change with their content.
        let kept = match path.starts_with("static") {
            true => "private, max-age=31536000, immutable",
            false => "no-cache",
        };
        let headers: [(HeaderName, &str); 5] = [
            (header::CONTENT_TYPE, kind(&path)),
            (header::CACHE_CONTROL, kept),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CONTENT_SECURITY_POLICY, "frame-ancestors 'none'"),
        ];
        (headers, Body::from(bytes)).into_response()
    }
}

fn nothing() -> Response {
    (StatusCode::NOT_FOUND, "MLflow's pages have no such file\n").into_response()
}

/// Of the environment that is active, then the system's.
fn interpreters() -> Vec<PathBuf> {
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os);
    let active =
        active.filter(|root| !root.is_empty()).map(|root| Path::new(&root).join("bin/python"));
    active.chain(["python3", "python"].map(PathBuf::from)).collect()
}

fn package(python: &Path) -> Option<PathBuf> {
    // A file that happens to be called mlflow.py in the current folder is not looked at.
    let asked = Command::new(python)
        .args(["-c", FIND])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8(asked.stdout).ok()?;
    let folder = said.trim();
    (asked.status.success() && !folder.is_empty()).then(|| PathBuf::from(folder))
}

/// The media type of a file, by its name.
fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|end| end.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("gif") => "image/gif",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("ico") => "image/x-icon",
        Some("woff") => "font/woff",
        Some("woff2") => "font/woff2",
        Some("ttf") => "font/ttf",
        Some("wasm") => "application/wasm",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
