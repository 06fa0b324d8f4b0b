//! What the node installs packages with, for an image in which that is to be done.

use std::collections::BTreeMap;
use std::path::PathBuf;

use atelier_core::spec::InlineEnvironment;

use super::shared::Reporter;
use super::uv::{Builder, index_of_pip};
use super::{Environments, Error};

/// Variables that say where packages come from and how, besides proxies'.
const NAMES: [&str; 13] = [
    "UV_DEFAULT_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_EXCLUDE_NEWER",
    "UV_HTTP_TIMEOUT",
    "UV_INSECURE_HOST",
    "UV_NATIVE_TLS",
    "UV_PYTHON_INSTALL_MIRROR",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "CONDA_CHANNELS",
    "CONDA_CHANNEL_ALIAS",
];
/// A named index and its credentials: `UV_INDEX_CORP_USERNAME`.
const UV_INDEX: &str = "UV_INDEX";
/// Variables that name a file of certificates.
const CERTIFICATES: [&str; 4] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
/// Variables that name a file of settings, and where it lies for who does not set them: `~` is the home
/// folder.
const SETTINGS: [(&str, &[&str]); 4] = [
    ("UV_CONFIG_FILE", &["~/.config/uv/uv.toml", "/etc/uv/uv.toml"]),
    ("PIP_CONFIG_FILE", &["~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/pip.conf"]),
    ("CONDARC", &["~/.condarc"]),
    ("NETRC", &["~/.netrc"]),
];

/// What installs packages, and with which settings.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Installer {
    /// The program; `None`: there is none to be had.
    pub(crate) uv: Option<PathBuf>,
    /// Where packages come from. They may hold passwords.
    pub(crate) variables: BTreeMap<String, String>,
    /// Files, by the variable that names each.
    pub(crate) files: BTreeMap<&'static str, PathBuf>,
}

impl Environments {
    /// What packages are installed with on this node.
    ///
    /// # Errors
    /// The uv that an administrator named is none.
    pub(crate) async fn installer(&self, reporter: &Reporter) -> Result<Installer, Error> {
        let home = &self.0.home;
        std::fs::create_dir_all(&home.root)
            .map_err(|error| Error::io("create", &home.root, &error))?;
        let uv = match (home.found_uv()?, self.installed(None, false).await) {
            (Some(uv), _) => Some(uv),
            (None, Ok((_, python))) => match home.builder(&python, reporter).await? {
                Builder::Uv(uv) => Some(uv),
                Builder::Pip => None,
            },
            // Without a Python there is nothing to get one with.
            (None, Err(_)) => None,
        };
        let variable =
            |name: &str| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        Ok(Installer { uv, variables: settings(std::env::vars_os()), files: files(variable) })
    }
}

pub(super) fn settings(
    all: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<String, String> = all
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| {
            let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
            let is_setting = NAMES.contains(&name.as_str()) || name.starts_with(UV_INDEX);
            (is_proxy || is_setting) && !value.is_empty()
        })
        .collect();
    for (name, value) in index_of_pip(|name| kept.get(name).cloned()) {
        kept.insert(name.to_owned(), value);
    }
    kept
}

pub(super) fn files(variable: impl Fn(&str) -> Option<String>) -> BTreeMap<&'static str, PathBuf> {
    let home = variable("HOME").unwrap_or_default();
    let given = |name: &str| variable(name).map(PathBuf::from);
    let certificates = CERTIFICATES.into_iter().map(|name| (name, given(name)));
    let settings = SETTINGS.into_iter().map(|(name, usual)| {
        let usual = usual.iter().map(|path| PathBuf::from(path.replacen('~', &home, 1)));
        (name, given(name).or_else(|| usual.into_iter().find(|path| path.is_file())))
    });
    let named = certificates.chain(settings);
    named.filter_map(|(name, file)| Some((name, file.filter(|file| file.is_file())?))).collect()
}

/// What a job's command is told of the environment in this folder.
pub(crate) fn variables(
    folder: &str,
    environment: &InlineEnvironment,
    own: &[(String, String)],
) -> BTreeMap<String, String> {
    let name = environment.name.as_deref().unwrap_or("project_environment");
    let mut variables: BTreeMap<String, String> = [
        ("VIRTUAL_ENV", folder),
        ("AZUREML_CONDA_ENVIRONMENT_PATH", folder),
        ("CONDA_DEFAULT_ENV", name),
        // Packages of the user that the agent runs as are no part of the environment.
        ("PYTHONNOUSERSITE", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    variables.extend(own.iter().cloned());
    variables
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn settings_are_where_packages_come_from_and_nothing_else() {
        let all = [
            ("PATH", "/bin"),
            ("ATELIER_TOKEN", "secret"),
            ("UV_CACHE_DIR", "/cache"),
            ("UV_PYTHON", "3.9"),
            ("UV_INDEX_CORP_PASSWORD", "p"),
            ("https_proxy", "http://proxy:1"),
            ("NO_PROXY", ""),
            ("PIP_INDEX_URL", "https://index/simple"),
        ];
        let all = all.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let kept = settings(all.into_iter());
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        let wanted = ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_CORP_PASSWORD", "https_proxy"];
        assert_eq!(names, wanted);
        assert_eq!(kept["UV_DEFAULT_INDEX"], "https://index/simple");
    }

    #[test]
    fn files_are_those_that_are_there() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir_all(at(".pip")).unwrap();
        for name in [".pip/pip.conf", "ca.pem"] {
            std::fs::write(at(name), "").unwrap();
        }
        let variable = |name: &str| match name {
            "HOME" => Some(home.path().to_str().unwrap().to_owned()),
            "SSL_CERT_FILE" => Some(at("ca.pem").to_str().unwrap().to_owned()),
            "PIP_CERT" | "UV_CONFIG_FILE" => Some(at("missing").to_str().unwrap().to_owned()),
            _ => None,
        };
        let found: Vec<_> = files(variable).into_iter().collect();
        let wanted = [("PIP_CONFIG_FILE", at(".pip/pip.conf")), ("SSL_CERT_FILE", at("ca.pem"))];
        assert_eq!(found, wanted);
    }
}
