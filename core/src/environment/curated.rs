//! Curated environments: the names that public Azure ML job files use, and what takes their place.
//!
//! Azure's are container images. Here each is a conda document with the packages that its name
//! promises, so that it can be built on a node without a container runtime. The contents follow
//! the names' own versions; administrators replace or add entries with a [`CuratedTable`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::spec::InlineEnvironment;

/// Curated environments by name: the built-in ones, with what an administrator adds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CuratedTable {
    entries: BTreeMap<String, CuratedEntry>,
}

/// One environment of a [`CuratedTable`].
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CuratedEntry {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Stands for another name of the table or of the built-in ones; then the rest is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// A container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A conda document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conda: Option<Value>,
}

/// A table entry that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It names nothing to build from.
    #[error("curated environment '{0}': give 'conda', 'image' or 'same_as'")]
    Empty(String),
    /// Its conda document is none.
    #[error("curated environment '{name}': {source}")]
    Conda {
        /// The entry.
        name: String,
        /// Why not.
        source: super::conda::Error,
    },
}

impl CuratedTable {
    /// Adds entries; one of the same name is replaced.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// Refuses entries that could never be used, so that a mistake shows when the table is read.
    ///
    /// # Errors
    /// The first such entry.
    pub fn check(&self) -> Result<(), Error> {
        for (name, entry) in &self.entries {
            if entry.same_as.is_none() && entry.image.is_none() && entry.conda.is_none() {
                return Err(Error::Empty(name.clone()));
            }
            if let Some(conda) = &entry.conda {
                super::conda::Document::parse(conda)
                    .map_err(|source| Error::Conda { name: name.clone(), source })?;
            }
        }
        Ok(())
    }

    /// The names that are worth listing, in order: the table's own, and those of the built-in ones that
    /// public job files use.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.keys().map(String::as_str).chain(KNOWN).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What the table says of its entry of that name.
    pub fn description(&self, name: &str) -> Option<&str> {
        self.entries.get(name)?.description.as_deref()
    }

    /// The environment of that name: the table's own entry, else the built-in one.
    pub fn get(&self, name: &str) -> Option<InlineEnvironment> {
        let mut name = name;
        // A chain of `same_as` longer than the table runs in a circle.
        for _ in 0..=self.entries.len() {
            match self.entries.get(name) {
                Some(CuratedEntry { same_as: Some(other), .. }) if other != name => name = other,
                Some(CuratedEntry { same_as: None, image, conda, .. }) => {
                    return Some(InlineEnvironment {
                        name: Some(name.to_owned()),
                        image: image.clone(),
                        conda: conda.clone(),
                        build: None,
                    });
                }
                // `same_as` itself: the built-in one of that name.
                Some(_) | None => return curated(name),
            }
        }
        None
    }
}

/// Names worth suggesting when one is not found.
pub const KNOWN: [&str; 12] = [
    "sklearn-1.5",
    "sklearn-1.1",
    "sklearn-1.0",
    "lightgbm-3.3",
    "xgboost-2.1",
    "acpt-pytorch-2.2-cuda12.1",
    "acpt-pytorch-2.8-cuda12.6",
    "tensorflow-2.16-cuda12",
    "responsibleai-0.36",
    "python-sdk-v2",
    "minimal-py311-inference",
    "minimal-py312-inference",
];

/// The built-in environment of that name, with or without Azure's older `AzureML-` before it and
/// the `-ubuntu20.04-py38-cpu` kind of ending.
pub fn curated(name: &str) -> Option<InlineEnvironment> {
    let lower = name.to_ascii_lowercase();
    let bare = lower.strip_prefix("azureml-").unwrap_or(&lower);
    let asked = python_in(bare);
    let (python, packages) = packages(bare)?;
    let python = asked.unwrap_or_else(|| python.to_owned());
    Some(InlineEnvironment {
        name: Some(name.to_owned()),
        image: None,
        conda: Some(json!({
            "name": "curated",
            "channels": ["conda-forge"],
            "dependencies": [format!("python={python}"), "pip", { "pip": packages }],
        })),
        build: None,
    })
}

/// `3.8` of `…-py38-…`.
fn python_in(name: &str) -> Option<String> {
    name.split('-').find_map(|part| {
        let digits = part.strip_prefix("py")?;
        let minor: u32 = digits.strip_prefix('3')?.parse().ok()?;
        Some(format!("3.{minor}"))
    })
}

/// Major and minor version after `family`, at the start of a name.
fn version_after(name: &str, family: &str) -> Option<(u32, u32)> {
    let rest = name.strip_prefix(family)?.strip_prefix('-')?;
    let version = rest.split('-').next()?;
    let (major, minor) = version.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The default Python and the packages.
fn packages(name: &str) -> Option<(&'static str, Vec<String>)> {
    let sklearn = version_after(name, "sklearn").or_else(|| version_after(name, "scikit-learn"));
    if let Some((major, minor)) = sklearn {
        let python = match (major, minor) {
            (0, _) => "3.8",
            (1, 0..=1) => "3.9",
            (1, 2..=5) => "3.10",
            _ => "3.11",
        };
        let mut all = list(&["scipy", "matplotlib", "joblib", "category_encoders"]);
        all.push(format!("scikit-learn=={major}.{minor}.*"));
        all.extend(numpy_and_pandas((major, minor) < (1, 2), (major, minor) < (1, 5)));
        return Some((python, with_common(all)));
    }
    if let Some((major, minor)) = version_after(name, "lightgbm") {
        let old = major < 4;
        let mut all = list(&["scipy", "scikit-learn", "matplotlib", "joblib"]);
        all.push(format!("lightgbm=={major}.{minor}.*"));
        all.extend(numpy_and_pandas(false, old));
        return Some((if old { "3.9" } else { "3.11" }, with_common(all)));
    }
    if let Some((major, minor)) = version_after(name, "xgboost") {
        let old = (major, minor) < (2, 1);
        let mut all = list(&["scipy", "scikit-learn", "matplotlib", "joblib"]);
        all.push(format!("xgboost=={major}.{minor}.*"));
        all.extend(numpy_and_pandas(false, old));
        return Some((if old { "3.10" } else { "3.11" }, with_common(all)));
    }
    let torch = version_after(name, "acpt-pytorch").or_else(|| version_after(name, "pytorch"));
    if let Some((major, minor)) = torch {
        let old = (major, minor) < (2, 3);
        let mut all = list(&["torchvision", "tensorboard", "matplotlib", "scikit-learn"]);
        all.push(format!("torch=={major}.{minor}.*"));
        all.extend(numpy_and_pandas(false, old));
        let python = match (major, minor) {
            (0..=1, _) => "3.9",
            (2, 0..=5) => "3.10",
            _ => "3.11",
        };
        return Some((python, with_common(all)));
    }
    if let Some((major, minor)) = version_after(name, "tensorflow") {
        // Since 2.14 the package brings its CUDA libraries when asked.
        let gpu = (major, minor) >= (2, 14) && (name.contains("cuda") || name.contains("gpu"));
        let extra = if gpu { "[and-cuda]" } else { "" };
        let old = (major, minor) < (2, 18);
        let mut all = list(&["tensorboard", "matplotlib", "scikit-learn"]);
        all.push(format!("tensorflow{extra}=={major}.{minor}.*"));
        all.extend(numpy_and_pandas(false, old));
        let python = if (major, minor) < (2, 12) { "3.9" } else { "3.10" };
        return Some((python, with_common(all)));
    }
    if name == "responsibleai" || name.starts_with("responsibleai-") {
        let pin = version_after(name, "responsibleai")
            .map(|(major, minor)| format!("=={major}.{minor}.*"))
            .unwrap_or_default();
        let mut all = list(&["raiwidgets", "scikit-learn", "matplotlib"]);
        all.push(format!("responsibleai{pin}"));
        all.extend(numpy_and_pandas(false, true));
        return Some(("3.10", with_common(all)));
    }
    if name == "python-sdk-v2" {
        let all = list(&["azure-ai-ml", "azure-identity", "matplotlib", "scikit-learn"]);
        return Some(("3.10", with_common(all)));
    }
    if name.starts_with("minimal-") && name.ends_with("-inference") {
        return Some(("3.11", list(&["azureml-inference-server-http"])));
    }
    if name == "minimal" || name == "tutorial" {
        let all = list(&["numpy", "pandas", "scikit-learn", "matplotlib"]);
        let basic = if name == "minimal" { Vec::new() } else { all };
        return Some(("3.11", with_common(basic)));
    }
    None
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Packages made before numpy 2 and pandas 2 do not say that they cannot work with them.
fn numpy_and_pandas(before_pandas_2: bool, before_numpy_2: bool) -> [String; 2] {
    let numpy = match (before_pandas_2, before_numpy_2) {
        (true, _) => "numpy<1.24",
        (false, true) => "numpy<2",
        (false, false) => "numpy",
    };
    let pandas = if before_pandas_2 { "pandas<2" } else { "pandas" };
    [numpy.to_owned(), pandas.to_owned()]
}

/// What every training environment of Azure's has; its MLflow is the skinny one.
fn with_common(mut packages: Vec<String>) -> Vec<String> {
    packages.extend(list(&["mlflow-skinny", "psutil", "tqdm"]));
    packages
}
