//! Whole documents, written as people write them for Azure ML.

use super::*;
use crate::id::PortName;
use crate::resource::Demand;

fn port(name: &str) -> PortName {
    PortName::new(name).unwrap()
}

pub(super) const TRAIN: &str = r#"
$schema: https://azuremlschemas.azureedge.net/latest/commandJob.schema.json
type: command
command: >-
  python train.py
  --data ${{inputs.training_data}}
  --epochs ${{inputs.epochs}}
  --lr ${{inputs.learning_rate}}
  $[[--warm-start ${{inputs.checkpoint}}]]
  --model ${{outputs.model}}
code: ./src
inputs:
  training_data:
    type: uri_file
    path: ./data/iris.csv
    mode: download
  epochs: 20
  learning_rate: 1e-3
  shuffle: true
  checkpoint:
    type: custom_model
    optional: true
outputs:
  model:
    type: mlflow_model
    mode: upload
  scratch:
environment: azureml:AzureML-sklearn-1.5@latest
compute: azureml:cpu-cluster
display_name: iris
experiment_name: flowers
description: |
  Trains a classifier.
tags:
  team: plants
  rows: 150
environment_variables:
  OMP_NUM_THREADS: 2
  DATA: ${{inputs.training_data}}
resources:
  instance_count: 1
  cpus: 1.5
  memory: 2GiB
limits:
  timeout: 3600
retry:
  max_attempts: 3
  backoff: 1m
  memory: 2x
on_node_loss: keep
"#;

#[test]
fn a_whole_job() {
    let job = job(TRAIN);
    assert_eq!(
        job.command,
        "python train.py --data ${{inputs.training_data}} --epochs ${{inputs.epochs}} --lr \
         ${{inputs.learning_rate}} $[[--warm-start ${{inputs.checkpoint}}]] --model \
         ${{outputs.model}}"
    );
    assert_eq!(job.code, Some(Code::Local("/w/proj/src".to_owned())));
    let literal = |value: &str| Input::Literal { value: value.to_owned() };
    assert_eq!(job.inputs[&port("epochs")], literal("20"));
    assert_eq!(job.inputs[&port("learning_rate")], literal("1e-3"));
    assert_eq!(job.inputs[&port("shuffle")], literal("True"));
    assert_eq!(job.inputs[&port("checkpoint")], Input::Unset);
    assert_eq!(
        job.inputs[&port("training_data")],
        Input::Data {
            kind: DataKind::UriFile,
            mode: InputMode::Download,
            uri: DataUri::Local("/w/proj/data/iris.csv".to_owned()),
            asset: None,
            address: None,
        }
    );
    let model = &job.outputs[&port("model")];
    assert_eq!((model.kind, model.mode), (DataKind::MlflowModel, OutputMode::Upload));
    let scratch = &job.outputs[&port("scratch")];
    assert_eq!((scratch.kind, scratch.mode), (DataKind::UriFolder, OutputMode::RwMount));
    assert_eq!(scratch.path, None);
    assert_eq!(
        job.environment,
        Environment::Named(AssetRef {
            registry: None,
            name: "AzureML-sklearn-1.5".to_owned(),
            version: AssetVersion::Label("latest".to_owned()),
        })
    );
    assert_eq!(job.compute.unwrap().as_str(), "cpu-cluster");
    assert_eq!(job.experiment_name.as_str(), "flowers");
    assert_eq!(job.description.as_deref(), Some("Trains a classifier.\n"));
    assert_eq!(job.tags["rows"], "150");
    assert_eq!(job.environment_variables["OMP_NUM_THREADS"], "2");
    assert_eq!(job.resources.demand, Demand { cpu: 1500, memory: 2048, ..Demand::DEFAULT });
    assert_eq!(job.limits.timeout, Some(3600));
    assert_eq!(job.retry, Retry { max_attempts: 3, backoff: 60, memory_percent: Some(200) });
    assert_eq!(job.on_node_loss, OnNodeLoss::Keep);
}

#[test]
fn what_becomes_of_idle_gpus() {
    let read = |idle| job(&format!("command: x\nresources: {{gpus: 0.5}}\n{idle}")).idle_gpu;
    assert_eq!(read(""), None);
    assert_eq!(read("idle_gpu: {}"), Some(IdleGpu { action: IdleAction::Notify, after: 1800 }));
    let stop = IdleGpu { action: IdleAction::Stop, after: 600 };
    assert_eq!(read("idle_gpu: {action: stop, after: 10m}"), Some(stop));
}

#[test]
fn how_long_what_failed_is_kept() {
    let read = |kept| job(&format!("command: x\n{kept}")).keep_failed;
    assert_eq!(
        (read(""), read("keep_failed: 0"), read("keep_failed: 30m")),
        (None, Some(0), Some(1800))
    );
    assert_eq!(read("keep_failed: 7d"), Some(604_800));
}

#[test]
fn the_least_job() {
    let job = job("command: 'true'");
    assert_eq!(job.command, "true");
    assert_eq!(job.experiment_name.as_str(), "proj");
    assert_eq!(job.environment, Environment::Host);
    assert_eq!(job.compute, None);
    assert_eq!(job.resources, JobResources::default());
    assert_eq!(job.retry, Retry::default());
    assert!(parse("command: 'true'").unwrap().warnings.is_empty());
}

#[test]
fn a_parsed_job_survives_json_and_the_daemons_check() {
    let job = job(TRAIN);
    let json = serde_json::to_string(&job).unwrap();
    let again: CommandJob = serde_json::from_str(&json).unwrap();
    assert_eq!(again, job);
    validate(&again).unwrap();
    let errors = validate_submitted(&again).unwrap_err().to_string();
    assert!(errors.contains("code: '/w/proj/src': it lies on the submitter's machine"), "{errors}");
    assert!(errors.contains("inputs.training_data: "), "{errors}");
}
