//! What this node offers of its GPUs now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use tokio::sync::watch;

use super::driver::Driver;
use super::kept::Kept;
use super::{Device, GpuSample, Gpus, Link, Owners, PATIENCE, Process, Sickness, settle};
use crate::cgroup::DeviceNode;
use crate::proc;

/// Between two looks at all devices.
const LOOK: Duration = Duration::from_secs(1);

/// The node's GPUs. One that is found unfit is out for as long as the machine runs, under the next agent
/// too: whoever has mended it removes [the record](Kept) of that and restarts the agent.
pub(crate) struct Devices {
    source: Arc<dyn Gpus>,
    /// `None` where there are no devices to ask for.
    driver: Option<Driver>,
    kept: Kept,
    inventory: Vec<Device>,
    links: Vec<Link>,
    /// The device nodes of those that are not offered.
    withheld: Vec<(u32, u32)>,
    /// Uncorrected errors that each device had when this agent started.
    errors_before: BTreeMap<u32, u64>,
    owners: Owners,
    state: watch::Sender<State>,
    /// Those of attempts that this agent has found.
    held: Mutex<BTreeSet<u32>>,
    /// The newest of each device.
    samples: Mutex<BTreeMap<u32, GpuSample>>,
}

/// What changes while an agent runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct State {
    /// Devices that jobs do not get, and why.
    out: BTreeMap<u32, Sickness>,
    /// Processes on devices that belong to no attempt, in words.
    strangers: BTreeMap<u32, BTreeSet<String>>,
}

/// What an attempt has and does on one of its devices.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Use {
    /// The device, whoever uses it.
    pub(crate) device: GpuSample,
    /// Memory that the attempt's processes hold; `None` if the driver does not tell.
    pub(crate) memory_mib: Option<u64>,
    /// Percent of time in which their kernels ran; `None` if the driver does not tell.
    pub(crate) utilization: Option<f64>,
}

/// One look at a device and all who are on it.
#[derive(Default)]
pub(crate) struct Look {
    device: GpuSample,
    /// With the attempt that each belongs to.
    processes: Option<Vec<(Option<u64>, Process)>>,
    utilization: Option<BTreeMap<i32, f64>>,
}

impl Look {
    /// The part of an attempt in it.
    pub(crate) fn of(&self, epoch: u64) -> Use {
        let mine = || {
            let all = self.processes.iter().flatten();
            all.filter(|(owner, _)| *owner == Some(epoch)).map(|(_, process)| process)
        };
        let told = self.processes.is_some();
        let sum = |utilization: &BTreeMap<i32, f64>| {
            mine().filter_map(|process| utilization.get(&process.pid)).sum()
        };
        Use {
            device: self.device,
            memory_mib: mine()
                .map(|process| process.memory_mib)
                .sum::<Option<u64>>()
                .filter(|_| told),
            utilization: self.utilization.as_ref().map(sum).filter(|_| told),
        }
    }
}

impl Devices {
    /// The first `most` devices, looked at once; none if the driver does not answer. `root`: the agent's
    /// data folder.
    pub(crate) fn new(
        source: Arc<dyn Gpus>,
        owners: Owners,
        most: usize,
        root: &Path,
    ) -> Arc<Self> {
        Self::with_patience(source, owners, most, root, PATIENCE)
    }

    pub(super) fn with_patience(
        source: Arc<dyn Gpus>,
        owners: Owners,
        most: usize,
        root: &Path,
        patience: Duration,
    ) -> Arc<Self> {
        let (driver, asked) = (Driver::new(patience), source.clone());
        let found = driver.call_now(move || {
            let inventory = asked.inventory();
            let errors = inventory
                .iter()
                .map(|device| (device.index, asked.health(device.index).uncorrected_volatile));
            let errors: BTreeMap<u32, u64> = errors.collect();
            (inventory, asked.links(), errors)
        });
        if found.is_none() {
            tracing::error!(
                ?patience,
                "the GPUs' driver does not answer: this node has no GPUs until it does and the agent is restarted"
            );
        }
        let (mut inventory, links, errors_before) = found.unwrap_or_default();
        let beyond = inventory.split_off(most.min(inventory.len()));
        let withheld = beyond.into_iter().flat_map(|device| device.nodes).collect();
        let driver = Some(driver).filter(|_| !inventory.is_empty());
        let kept = Kept::new(root);
        let out = kept.read(&inventory);
        for (index, Sickness { reason, .. }) in &out {
            tracing::warn!(
                gpu = index, reason, record = %kept.path().display(),
                "a GPU was out when an agent last ran; when it is mended, remove the record and restart the agent"
            );
        }
        let devices = Arc::new(Self {
            source,
            driver,
            kept,
            inventory,
            links,
            withheld,
            errors_before,
            owners,
            state: watch::Sender::new(State { out, ..State::default() }),
            held: Mutex::default(),
            samples: Mutex::default(),
        });
        let looked = devices.clone();
        let look = move || looked.look();
        if devices.driver.as_ref().is_some_and(|driver| driver.call_now(look).is_none()) {
            devices.all_out();
        }
        devices
    }

    /// Has something asked of the driver, away from this thread. `None` if it does not answer: then all
    /// devices are out.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let (driver, devices) = (self.driver.as_ref()?, self.clone());
        let answer = driver.call(move || ask(&devices)).await;
        if answer.is_none() {
            self.all_out();
        }
        answer
    }

    /// The driver does not answer: nothing is known of the devices, and nothing can be given back.
    fn all_out(&self) {
        let patience = self.driver.as_ref().map(Driver::patience).unwrap_or_default();
        for device in &self.inventory {
            let reason = format!("its driver did not answer for {patience:?}");
            self.take_out(device.index, Sickness { reason, ends_jobs: false, passing: true });
        }
        self.samples.lock().unwrap_or_else(|broken| broken.into_inner()).clear();
    }

    /// Attempts of an earlier agent have these.
    pub(crate) fn hold(&self, indices: &[u32]) {
        self.held.lock().unwrap_or_else(|broken| broken.into_inner()).extend(indices);
    }

    /// Those that no attempt had when this agent started.
    pub(super) fn unheld(&self) -> Vec<u32> {
        let held = self.held.lock().unwrap_or_else(|broken| broken.into_inner());
        let indices = self.inventory.iter().map(|device| device.index);
        indices.filter(|index| !held.contains(index)).collect()
    }

    /// What the daemon is told of them.
    pub(crate) fn offered(&self) -> Vec<pb::Gpu> {
        let state = self.state.borrow();
        let told = |device: &Device| pb::Gpu {
            index: device.index,
            uuid: device.uuid.clone(),
            model: device.model.clone(),
            memory_mib: device.memory_mib,
            out: state.out.get(&device.index).map(|why| why.reason.clone()).unwrap_or_default(),
        };
        self.inventory.iter().map(told).collect()
    }

    /// What else is to be known of them, as facts of the node.
    pub(crate) fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut set = |name: &str, value: String| {
            if !value.is_empty() {
                facts.insert(name.to_owned(), value);
            }
        };
        let of_each = |text: &dyn Fn(&Device) -> Option<String>| {
            let told = self.inventory.iter().filter_map(|device| {
                text(device).map(|text| format!("GPU {}: {text}", device.index))
            });
            told.collect::<Vec<_>>().join("; ")
        };
        set("gpu_pci", of_each(&|device| device.pci.clone()));
        set("gpu_numa", of_each(&|device| device.numa_node.map(|node| format!("node {node}"))));
        let parts = |device: &Device| {
            let parts = device.mig.iter().map(|part| format!("{} MiB", part.memory_mib));
            (!device.mig.is_empty()).then(|| parts.collect::<Vec<_>>().join(", "))
        };
        set("gpu_mig", of_each(&parts));
        set("gpu_links", links(&self.links));
        let state = self.state.borrow();
        let others = state.strangers.iter().map(|(index, who)| {
            format!("GPU {index}: {}", who.iter().cloned().collect::<Vec<_>>().join(", "))
        });
        set("gpu_strangers", others.collect::<Vec<_>>().join("; "));
        facts
    }

    /// Whether there are device nodes that not every job may open.
    pub(crate) fn guarded(&self) -> bool {
        !self.withheld.is_empty() || self.inventory.iter().any(|device| !device.nodes.is_empty())
    }

    /// What an attempt that holds these devices may not open: the others, also those that are not offered.
    pub(crate) fn denied(&self, held: &[u32]) -> Vec<DeviceNode> {
        let others = self.inventory.iter().filter(|device| !held.contains(&device.index));
        let nodes = others.flat_map(|device| &device.nodes).chain(&self.withheld);
        nodes.map(|&(major, minor)| DeviceNode { major, minor }).collect()
    }

    /// Told whenever what is offered, or who is on it, has changed.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Looks at all devices, over and over.
    pub(crate) async fn watch(self: Arc<Self>) {
        if self.inventory.is_empty() {
            return;
        }
        settle::at_start(&self).await;
        loop {
            tokio::time::sleep(LOOK).await;
            self.ask(Self::look).await;
        }
    }

    /// Looks at all devices once.
    pub(super) fn look(&self) {
        for device in &self.inventory {
            let before = self.errors_before.get(&device.index).copied().unwrap_or_default();
            if let Some(sickness) = self.source.health(device.index).sickness(before) {
                self.take_out(device.index, sickness);
            }
        }
        self.let_back();
        let samples = self
            .inventory
            .iter()
            .filter_map(|device| Some((device.index, self.source.sample(device.index)?)));
        let samples = samples.collect();
        *self.samples.lock().unwrap_or_else(|broken| broken.into_inner()) = samples;
        let strangers: BTreeMap<_, _> = self
            .inventory
            .iter()
            .map(|device| (device.index, self.strangers_on(device.index)))
            .filter(|(_, strangers)| !strangers.is_empty())
            .collect();
        self.state.send_if_modified(|state| {
            let differs = state.strangers != strangers;
            state.strangers = strangers;
            differs
        });
    }

    /// Offers those again that were out for something that is over.
    fn let_back(&self) {
        let is_passing = |(index, sickness): (&u32, &Sickness)| sickness.passing.then_some(*index);
        let passing: Vec<u32> = self.state.borrow().out.iter().filter_map(is_passing).collect();
        let mut over = passing;
        over.retain(|index| settle::is_empty(self, *index));
        self.state.send_if_modified(|state| {
            for index in &over {
                // A fault may have been told of it meanwhile.
                if state.out.get(index).is_some_and(|sickness| sickness.passing) {
                    tracing::info!(gpu = index, "a GPU is fit for jobs again");
                    state.out.remove(index);
                }
            }
            !over.is_empty()
        });
    }

    fn strangers_on(&self, index: u32) -> BTreeSet<String> {
        let processes = self.source.processes(index).unwrap_or_default();
        let others = processes.into_iter().filter(|process| self.owners.of(process.pid).is_none());
        others
            // One that has just ended is of no attempt any more.
            .filter(|process| proc::stat(process.pid).is_some_and(|stat| stat.state != 'Z'))
            .map(|Process { pid, memory_mib }| {
                let name = proc::name(pid).unwrap_or_else(|| "a process".to_owned());
                let holds = memory_mib.map(|memory| format!(" with {memory} MiB"));
                format!("{name} (pid {pid}){}", holds.unwrap_or_default())
            })
            .collect()
    }

    /// Keeps a device from jobs. What was first said against it stands, unless it now ends jobs.
    pub(super) fn take_out(&self, index: u32, sickness: Sickness) {
        self.state.send_if_modified(|state| {
            let worse = match state.out.get(&index) {
                None => true,
                Some(known) => {
                    !known.ends_jobs && sickness.ends_jobs || known.passing && !sickness.passing
                }
            };
            if worse {
                tracing::error!(gpu = index, reason = sickness.reason, "a GPU is out");
                state.out.insert(index, sickness);
                if let Err(error) = self.kept.write(&self.inventory, &state.out) {
                    tracing::warn!(%error, "cannot keep which GPUs are out");
                }
            }
            worse
        });
    }

    /// Why one of these is out, if one is: the index and the reason.
    pub(crate) fn sick_one(&self, indices: &[u32]) -> Option<(u32, String)> {
        let state = self.state.borrow();
        indices.iter().find_map(|index| Some((*index, state.out.get(index)?.reason.clone())))
    }

    /// Once one of these is out in a way that ends what runs on it: the index and the reason.
    pub(crate) async fn lost(&self, indices: &[u32]) -> (u32, String) {
        let mut states = self.state.subscribe();
        let lost = |state: &State| {
            indices.iter().find_map(|index| {
                let sickness = state.out.get(index).filter(|sickness| sickness.ends_jobs)?;
                Some((*index, sickness.reason.clone()))
            })
        };
        loop {
            if let Some(found) = lost(&states.borrow_and_update()) {
                return found;
            }
            if states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Looks at a device and those who are on it; takes milliseconds. What processes did is told since
    /// the last call for this device.
    pub(crate) fn look_at(&self, index: u32) -> Look {
        let owned = |process: Process| (self.owners.of(process.pid), process);
        let processes = self.source.processes(index);
        Look {
            device: self.source.sample(index).unwrap_or_default(),
            processes: processes.ok().map(|all| all.into_iter().map(owned).collect()),
            utilization: self.source.utilization(index),
        }
    }

    /// What the devices do now, for the node's heartbeat.
    pub(crate) fn usage(&self) -> BTreeMap<String, f64> {
        let samples = self.samples.lock().unwrap_or_else(|broken| broken.into_inner());
        let mut usage = BTreeMap::new();
        for (index, sample) in samples.iter() {
            let mut set = |name: &str, value| usage.insert(format!("gpu_{index}_{name}"), value);
            if let Some(utilization) = sample.utilization {
                set("utilization", utilization);
            }
            set("memory_used_mib", sample.memory_used_mib);
            set("memory_total_mib", sample.memory_total_mib);
        }
        usage
    }

    pub(super) fn source(&self) -> &dyn Gpus {
        self.source.as_ref()
    }

    pub(super) fn is_out(&self, index: u32) -> bool {
        self.state.borrow().out.contains_key(&index)
    }

    pub(super) fn owner(&self, pid: i32) -> Option<u64> {
        self.owners.of(pid)
    }
}

/// Pairs by what lies between them: `NVLink: all`, or `NVLink: 0-1, 2-3; NUMA node: 0-2, ...`.
fn links(links: &[Link]) -> String {
    let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for Link { between: (one, other), kind } in links {
        kinds.entry(kind).or_default().push(format!("{one}-{other}"));
    }
    let words = kinds.into_iter().map(|(kind, pairs)| match pairs.len() == links.len() {
        true => format!("{kind}: all"),
        false => format!("{kind}: {}", pairs.join(", ")),
    });
    words.collect::<Vec<_>>().join("; ")
}
