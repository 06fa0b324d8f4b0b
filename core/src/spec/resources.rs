//! `resources:` read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::command::JobResources;
use super::job::{Reader, count, given, text};
use super::quantity;
use super::shell::split;
use super::yaml::Node;
use crate::resource::Demand;

pub(super) fn read(reader: &mut Reader<'_>, root: &Node) -> JobResources {
    let mut resources = JobResources::default();
    let Some(node) = given(root, "resources") else { return resources };
    let cpu = reader.quantity(node, "resources", "cpus", quantity::cpus);
    let memory = reader.quantity(node, "resources", "memory", quantity::memory);
    let gpu_memory = reader.quantity(node, "resources", "gpu_memory", quantity::gpu_memory);
    let disk = reader.quantity(node, "resources", "disk", quantity::disk);
    let (gpus, gpu_share) =
        reader.quantity(node, "resources", "gpus", quantity::gpus).unwrap_or_default();
    resources.demand = Demand {
        cpu: cpu.unwrap_or(Demand::DEFAULT.cpu),
        memory: memory.unwrap_or(Demand::DEFAULT.memory),
        gpus,
        gpu_share,
        gpu_models: models(node),
        gpu_memory: gpu_memory.unwrap_or_default(),
        disk: disk.unwrap_or_default(),
        node_labels: labels(node),
        ..Demand::DEFAULT
    };
    resources.instance_count = count(node, "instance_count").unwrap_or(1);
    resources.instance_type = text(node, "instance_type");
    resources.shm_size = reader.quantity(node, "resources", "shm_size", quantity::shared_memory);
    if let Some(arguments) = given(node, "docker_args") {
        resources.docker_args = match arguments.as_text() {
            Some(line) => split(line).unwrap_or_else(|| {
                reader
                    .report
                    .error(arguments.mark, "resources.docker_args", "a quote is not closed")
                    .help("close it, or write the arguments as a list");
                Vec::new()
            }),
            None => arguments.items().iter().filter_map(Node::as_text).map(str::to_owned).collect(),
        };
    }
    for entry in given(node, "properties").map(Node::entries).unwrap_or_default() {
        resources.properties.insert(entry.key.text.clone(), entry.value.to_json());
    }
    for key in ["locations", "max_instance_count"] {
        if let Some(value) = given(node, key) {
            resources.properties.insert(key.to_owned(), value.to_json());
        }
    }
    resources
}

/// One model, or a list of them.
fn models(node: &Node) -> Option<Arc<[String]>> {
    let given = given(node, "gpu_model")?;
    let models: Arc<[String]> = match given.as_text() {
        Some(model) => [model.to_owned()].into(),
        None => given.items().iter().filter_map(Node::as_text).map(str::to_owned).collect(),
    };
    (!models.is_empty()).then_some(models)
}

fn labels(node: &Node) -> Option<Arc<BTreeMap<String, String>>> {
    let labels: BTreeMap<String, String> = given(node, "node_labels")?
        .entries()
        .iter()
        .filter_map(|entry| Some((entry.key.text.clone(), entry.value.python_str()?)))
        .collect();
    (!labels.is_empty()).then(|| Arc::new(labels))
}
