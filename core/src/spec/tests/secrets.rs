//! Secrets that a job names.

use super::*;
use crate::id::{SecretName, SecretVersion};

fn of(value: &str) -> Option<SecretRef> {
    SecretRef::of(value)
}

#[test]
fn a_variable_names_a_secret_and_how_it_comes() {
    let named = |name: &str, version: Option<u32>, delivery| {
        let name = SecretName::new(name).unwrap();
        Some(SecretRef { name, version: version.map(SecretVersion), delivery })
    };
    use Delivery::{File, Variable};
    assert_eq!(of("azureml:secrets/hf"), named("hf", None, Variable));
    assert_eq!(of("azureml:secrets/hf@latest"), named("hf", None, Variable));
    assert_eq!(of("azureml:secrets/Db-Key:3"), named("Db-Key", Some(3), Variable));
    assert_eq!(of("azureml:secrets/gcp?as=file"), named("gcp", None, File));
    assert_eq!(of("azureml:secrets/gcp:12?as=file"), named("gcp", Some(12), File));
    assert_eq!(of("plain"), None);
    for text in
        ["azureml:secrets/hf:3", "azureml:secrets/gcp?as=file", "azureml:secrets/a:1?as=file"]
    {
        assert_eq!(of(text).unwrap().to_string(), text);
    }
    let job = job("command: x\nenvironment_variables: {A: azureml:secrets/a, B: plain, C: 1}\n");
    let secrets: Vec<_> = job.secrets().map(|(variable, _)| variable).collect();
    assert_eq!(secrets, ["A"]);
}

#[test]
fn what_names_no_secret_is_refused_where_it_stands() {
    let form =
        "write azureml:secrets/NAME, azureml:secrets/NAME:VERSION, or azureml:secrets/NAME?as=file";
    for (value, problem) in [
        (
            "azureml:secrets/",
            "'azureml:secrets/' names no secret: secret name '' is not valid: use letters, digits and '-', at most 127 characters",
        ),
        (
            "azureml:secrets/hf:0",
            "'azureml:secrets/hf:0' names no version: versions are numbers from 1, and the only label is @latest",
        ),
        (
            "azureml:secrets/hf@newest",
            "'azureml:secrets/hf@newest' names no version: versions are numbers from 1, and the only label is @latest",
        ),
        (
            "azureml:secrets/hf?as=mount",
            "'azureml:secrets/hf?as=mount' asks for something unknown after '?'",
        ),
    ] {
        let yaml = format!("command: x\nenvironment_variables: {{A: '{value}'}}\n");
        let found = errors(&yaml);
        assert!(found.contains(problem) && found.contains(form), "{found}");
        assert!(found.contains("job.yml:2:"), "{found}");
    }
    for name in ["CUDA_VISIBLE_DEVICES", "ATELIER_JOB", "RANK"] {
        let found =
            errors(&format!("command: x\nenvironment_variables: {{{name}: azureml:secrets/a}}\n"));
        assert!(found.contains(name) && found.contains("use another name"), "{found}");
    }
}

#[test]
fn a_secret_is_nothing_but_the_whole_value_of_a_variable() {
    let place = "name it as the whole value of a variable under 'environment_variables'";
    for yaml in [
        "command: run --token azureml:secrets/hf\n",
        "command: x\nenvironment_variables: {A: 'Bearer azureml:secrets/hf'}\n",
        "command: x\ninputs: {a: 'azureml:secrets/hf'}\n",
        "command: x\ninputs: {a: {path: 'azureml:secrets/hf'}}\n",
        "command: x\nresources: {docker_args: '--env A=azureml:secrets/hf'}\n",
        "command: x\nenvironment: {image: a, conda_file: {dependencies: [python], variables: {A: 'azureml:secrets/hf'}}}\n",
    ] {
        let found = errors(yaml);
        assert!(found.contains(place), "{yaml}\n{found}");
    }
}
