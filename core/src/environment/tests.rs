use proptest::prelude::*;
use serde_json::json;

use super::conda::{Document, MatchSpec};
use super::*;

fn recipe(document: serde_json::Value) -> Recipe {
    Recipe::from_conda(&document).unwrap()
}

/// The requirements without those that every environment has.
fn own(recipe: &Recipe) -> Vec<&str> {
    let always = ["pip", "setuptools<82", "wheel"];
    recipe.requirements.iter().map(String::as_str).filter(|r| !always.contains(r)).collect()
}

fn conda(text: &str) -> String {
    let recipe = recipe(json!({ "dependencies": [text] }));
    own(&recipe).join(" ")
}

#[test]
fn match_specifications_become_requirements() {
    for (written, expected) in [
        ("numpy", "numpy"),
        ("NumPy", "numpy"),
        ("numpy=1.26", "numpy==1.26.*"),
        ("numpy=1.26.*", "numpy==1.26.*"),
        ("numpy 1.26.*", "numpy==1.26.*"),
        ("numpy==1.26.4", "numpy==1.26.4"),
        ("numpy 1.26.4", "numpy==1.26.4"),
        ("numpy=1.26.4=py310h5f9d8c6_0", "numpy==1.26.4"),
        ("numpy==1.26.4=py310h5f9d8c6_0", "numpy==1.26.4"),
        ("numpy 1.26.4 py310h5f9d8c6_0", "numpy==1.26.4"),
        ("numpy>=1.20,<2", "numpy>=1.20,<2"),
        ("numpy >=1.20, <2", "numpy>=1.20,<2"),
        ("numpy >= 1.20", "numpy>=1.20"),
        ("numpy >=1.20 <2", "numpy>=1.20,<2"),
        ("numpy>=1.20.*", "numpy>=1.20"),
        ("numpy~=1.26.0", "numpy~=1.26.0"),
        ("numpy!=1.25", "numpy!=1.25"),
        ("numpy!=1.25.*", "numpy!=1.25.*"),
        ("numpy=*", "numpy"),
        ("numpy=*=*openblas*", "numpy"),
        ("conda-forge::numpy=1.26", "numpy==1.26.*"),
        ("conda-forge/linux-64::numpy", "numpy"),
        ("numpy[version='>=1.20,<2']", "numpy>=1.20,<2"),
        ("numpy[version=1.26.4, build=py310_0]", "numpy==1.26.4"),
        ("numpy=2.0.0rc1", "numpy==2.0.0rc1"),
        ("pytorch=2.1", "torch==2.1.*"),
        ("pytorch=2.1.0=*cuda*", "torch==2.1.0.*"),
        ("matplotlib-base", "matplotlib"),
        ("pillow", "pillow"),
        ("opencv=4.8", "opencv-python-headless==4.8.*"),
        ("python-dateutil", "python-dateutil"),
        ("tensorflow-gpu=2.15", "tensorflow[and-cuda]==2.15.*"),
        ("scikit-learn=1.5.*", "scikit-learn==1.5.*"),
        ("py-xgboost", "xgboost"),
        ("librosa", "librosa"),
        ("cudatoolkit=11.8", ""),
        ("libgcc-ng=13.2.0=h807b86f_5", ""),
        ("pip=21.2.4", ""),
    ] {
        assert_eq!(conda(written), expected, "{written}");
    }
}

#[test]
fn specifications_that_make_no_sense_are_named() {
    for (written, word) in [
        ("numpy=1.8|1.9", "alternatives"),
        ("=1.2", "expected a package's name"),
        ("", "expected a package's name"),
        ("numpy>=", "has no version"),
        ("numpy 1.2 a b", "expected 'name version build'"),
        ("numpy==1;2", "is no version"),
        ("uvicorn[standard]", "move the line into the 'pip:' list"),
        ("numpy[version='1]", "quote"),
        ("numpy]", "without '['"),
        ("numpy[colour=red]", "unknown key 'colour'"),
    ] {
        let error = Recipe::from_conda(&json!({ "dependencies": [written] })).unwrap_err();
        assert!(error.to_string().contains(word), "{written}: {error}");
    }
}

#[test]
fn documents_of_the_wrong_shape_are_refused() {
    for (document, word) in [
        (json!([]), "expected a mapping"),
        (json!("numpy"), "expected a mapping"),
        (json!({"dependencies": "numpy"}), "'dependencies' must be a list"),
        (json!({"dependencies": [{"pip": "numpy"}]}), "'pip:' must hold a list"),
        (json!({"dependencies": [{"numpy": "1.2"}]}), "write 'numpy=VERSION'"),
        (json!({"dependencies": [5]}), "expected a package's name"),
        (json!({"dependencies": [{"pip": [5]}]}), "expected a pip requirement"),
        (json!({"dependencies": [{"pip": ["a\nb"]}]}), "must be one line"),
    ] {
        let error = Recipe::from_conda(&document).unwrap_err().to_string();
        assert!(error.contains(word), "{document}: {error}");
    }
}

#[test]
fn a_whole_document() {
    let recipe = recipe(json!({
        "name": "model-env",
        "channels": ["conda-forge", "defaults"],
        "variables": {"MODE": "fast", "N": 3},
        "dependencies": [
            "python=3.10",
            "pip=21.2.4",
            "pytorch=2.1.0=py3.10_cuda12.1_cudnn8.9.2_0",
            "cudatoolkit=11.8",
            "libgcc-ng",
            "ffmpeg",
            {"pip": [
                "mlflow== 2.9.2",
                "--extra-index-url https://wheels.example.com/simple",
                "-f https://wheels.example.com/links",
                "pip==21.3",
                "torchmetrics # why",
                "-e git+https://git.example.com/a/b.git#egg=b",
                "setuptools==65.0",
                "--pre",
                "--upgrade",
            ]},
        ],
    }));
    assert_eq!(recipe.python.as_ref().unwrap().to_string(), "3.10");
    assert_eq!(
        recipe.requirements,
        [
            "git+https://git.example.com/a/b.git#egg=b",
            "mlflow== 2.9.2",
            "pip",
            "setuptools==65.0",
            "torch==2.1.0",
            "torchmetrics",
            "wheel",
        ]
    );
    assert_eq!(
        recipe.options,
        [
            "--extra-index-url https://wheels.example.com/simple",
            "--find-links https://wheels.example.com/links",
        ]
    );
    assert!(recipe.prerelease);
    assert_eq!(recipe.variables, [("MODE".into(), "fast".into()), ("N".into(), "3".into())]);
    assert_eq!(recipe.programs, [Program { package: "ffmpeg".into(), program: "ffmpeg".into() }]);
    let notes = recipe.notes.join("\n");
    for word in ["'torch' from PyPI", "py3.10_cuda12.1", "cudatoolkit", "libgcc-ng", "--upgrade"] {
        assert!(notes.contains(word), "{word}: {notes}");
    }
    assert!(recipe.requirements_file().starts_with("--extra-index-url https://"));
}

#[test]
fn what_cannot_come_from_the_index_is_named_with_a_remedy() {
    let error = Recipe::from_conda(&json!({ "dependencies": ["r-base=4", "gdal", "numpy"] }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("'r-base'") && error.contains("'gdal'"), "{error}");
    assert!(error.contains("use an image"), "{error}");
    assert!(!error.contains("numpy"), "{error}");
}

#[test]
fn pip_lines_that_need_files_are_refused() {
    for line in [
        "-r requirements.txt",
        "--constraint=c.txt",
        "-e .",
        ".",
        "./wheels/a.whl",
        "/tmp/a.whl",
        "a.whl",
        "name @ file:///tmp/a",
        "--config-settings=x=y",
        "--extra-index-url",
    ] {
        let error = Recipe::from_conda(&json!({ "dependencies": [{"pip": [line]}] })).unwrap_err();
        assert!(matches!(error, Error::Pip(_)), "{line}");
        assert!(error.to_string().contains(line), "{error}");
    }
}

fn python(path: &str, version: &str, default: bool) -> Installed {
    Installed { path: path.into(), version: version.parse().unwrap(), default }
}

#[test]
fn the_python_asked_for_or_the_nearest() {
    let installed = [
        python("a", "3.6.15", false),
        python("b", "3.9.18", false),
        python("c", "3.11.2", true),
        python("d", "3.12.1", false),
        python("e", "3.13.0", false),
        python("f", "2.7.18", false),
    ];
    let pick = |text: &str| match choose(PythonRequest::parse(text).unwrap().as_ref(), &installed) {
        Some(Choice::Asked(python)) => format!("asked {}", python.path),
        Some(Choice::Nearest(python)) => format!("nearest {}", python.path),
        None => "none".into(),
    };
    for (request, expected) in [
        ("*", "asked c"),
        ("3", "asked c"),
        ("3.9", "asked b"),
        ("3.9.18", "asked b"),
        ("3.9.1", "nearest b"),
        (">=3.8,<3.11", "asked b"),
        (">=3.12", "asked e"),
        ("<3.11", "asked b"),
        ("3.10", "nearest c"),
        ("3.8", "nearest b"),
        ("3.14", "nearest e"),
        // Asked for by name, an old one is used; as the nearest it is not.
        ("3.6", "asked a"),
        ("3.7", "nearest b"),
        ("~=3.11", "asked c"),
        ("==3.11.2", "asked c"),
    ] {
        assert_eq!(pick(request), expected, "{request}");
    }
    assert_eq!(choose(None, &[]), None);
    assert_eq!(choose(None, &installed[..1]), None);
}

fn base(path: &str) -> Base<'_> {
    Base {
        python: "3.11.7".parse().unwrap(),
        python_path: path,
        platform: "linux-x86_64",
        builder: "1",
    }
}

#[test]
fn the_key_depends_on_what_is_installed_and_on_nothing_else() {
    let one = recipe(json!({"name": "a", "dependencies": ["numpy", "pandas=2.1"]}));
    let same =
        recipe(json!({"name": "b", "channels": ["x"], "dependencies": ["pandas=2.1", "numpy"]}));
    let other = recipe(json!({"dependencies": ["numpy", "pandas=2.2"]}));
    assert_eq!(one.key(&base("/p")), same.key(&base("/p")));
    assert_ne!(one.key(&base("/p")), other.key(&base("/p")));
    assert_ne!(one.key(&base("/p")), one.key(&base("/q")));
    let mut seen = one.clone();
    seen.sees_host_packages = true;
    assert_ne!(one.key(&base("/p")), seen.key(&base("/p")));
}

#[test]
fn curated_names() {
    for name in curated::KNOWN {
        let environment = curated(name).unwrap_or_else(|| panic!("{name}"));
        Recipe::from_conda(environment.conda.as_ref().unwrap()).unwrap();
    }
    let packages = |name: &str| {
        let recipe = recipe(curated(name).unwrap().conda.unwrap());
        (recipe.python.as_ref().unwrap().to_string(), own(&recipe).join(" "))
    };
    let (python, all) = packages("sklearn-1.5");
    assert_eq!(python, "3.10");
    assert!(all.contains("scikit-learn==1.5.*") && all.contains("mlflow-skinny"), "{all}");
    let (python, all) = packages("AzureML-sklearn-0.24-ubuntu18.04-py37-cpu");
    assert_eq!(python, "3.7");
    assert!(all.contains("scikit-learn==0.24.*") && all.contains("numpy<1.24"), "{all}");
    let (_, all) = packages("acpt-pytorch-2.2-cuda12.1");
    assert!(all.contains("torch==2.2.*") && all.contains("numpy<2"), "{all}");
    let (_, all) = packages("tensorflow-2.16-cuda12");
    assert!(all.contains("tensorflow[and-cuda]==2.16.*"), "{all}");
    assert_eq!(packages("minimal-py312-inference").0, "3.12");
    assert_eq!(curated("sklearn"), None);
    assert_eq!(curated("no-such-environment"), None);
}

#[test]
fn an_administrators_table_extends_the_built_in_one() {
    let mut table = CuratedTable::default();
    assert!(table.get("sklearn-1.5").is_some());
    let more: CuratedTable = serde_json::from_value(json!({
        "ours": {"conda": {"dependencies": ["numpy"]}},
        "alias": {"same_as": "ours"},
        "old-sklearn": {"same_as": "sklearn-1.5"},
        "sklearn-1.1": {"image": "registry.example.com/sklearn:1"},
        "a": {"same_as": "b"},
        "b": {"same_as": "a"},
    }))
    .unwrap();
    more.check().unwrap();
    table.extend(more);
    assert_eq!(table.get("alias").unwrap().conda, table.get("ours").unwrap().conda);
    assert_eq!(table.get("old-sklearn"), curated("sklearn-1.5"));
    assert!(table.get("sklearn-1.1").unwrap().image.is_some());
    assert_eq!(table.get("a"), None);
    let empty: CuratedTable = serde_json::from_value(json!({"x": {}})).unwrap();
    assert!(empty.check().is_err());
    let wrong: CuratedTable = serde_json::from_value(json!({"x": {"conda": 5}})).unwrap();
    assert!(wrong.check().is_err());
    assert!(serde_json::from_value::<CuratedTable>(json!({"x": {"colour": 1}})).is_err());
}

proptest! {
    #[test]
    fn nothing_written_makes_the_parser_panic(text in "\\PC{0,60}") {
        let _ = MatchSpec::parse(&text);
        let _ = PythonRequest::parse(&text);
        let _ = Recipe::from_conda(&json!({ "dependencies": [text.clone(), {"pip": [text]}] }));
    }

    #[test]
    fn specification_like_texts_do_not_panic(text in "[a-z:\\[\\]=<>!~*.,0-9 '\"|_-]{0,40}") {
        let _ = MatchSpec::parse(&text);
        let _ = Document::parse(&json!({ "dependencies": [text] }));
    }

    /// A requirement never carries more than its line: what is written in a conda dependency
    /// cannot add an option or a second package to the requirements file.
    #[test]
    fn a_conda_dependency_stays_one_requirement(text in "\\PC{0,40}") {
        if let Ok(recipe) = Recipe::from_conda(&json!({ "dependencies": [text] })) {
            for line in &recipe.requirements {
                prop_assert!(!line.starts_with('-') && !line.contains(['\n', '\r', ' ', ';', '@']));
            }
        }
    }

    // Names that mean something of their own, as `mpi` does, have no x before them.
    #[test]
    fn the_order_of_packages_does_not_change_the_key(
        mut names in proptest::collection::vec("x[a-z]{3,8}(=[0-9]\\.[0-9])?", 1..8),
        seed in any::<u64>(),
    ) {
        let one = recipe(json!({ "dependencies": names }));
        let turn = seed as usize % names.len();
        names.rotate_left(turn);
        names.reverse();
        let other = recipe(json!({ "dependencies": names }));
        prop_assert_eq!(one.key(&base("/p")), other.key(&base("/p")));
    }

    #[test]
    fn a_version_is_accepted_by_a_request_for_it(major in 2u32..5, minor in 0u32..30, patch in 0u32..30) {
        let version = PythonVersion { major, minor, patch };
        for text in [
            format!("{version}"), format!("={major}.{minor}"), format!(">={version}"),
            format!("<={version}"), format!("=={version}"), format!("~={major}.{minor}"),
        ] {
            let request = PythonRequest::parse(&text).unwrap().unwrap();
            prop_assert!(request.accepts(version), "{text}");
        }
        for text in [format!(">{version}"), format!("<{version}"), format!("!={version}")] {
            let request = PythonRequest::parse(&text).unwrap().unwrap();
            prop_assert!(!request.accepts(version), "{text}");
        }
    }
}
