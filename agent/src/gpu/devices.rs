//! What this node offers of its GPUs now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use atelier_core::node::GPU_DRIVER;
use atelier_proto::agent::v1 as pb;
use tokio::sync::watch;

use super::driver::Driver;
use super::kept::Kept;
use super::{
    Device, GpuSample, Gpus, Inventory, Link, Owners, PATIENCE, Process, Sickness, settle,
};
use crate::cgroup::DeviceNode;
use crate::proc;

/// Between two looks at all devices.
const LOOK: Duration = Duration::from_secs(1);
/// Before a driver that has not told its devices is asked again: at first, and doubled up to at most.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// The node's GPUs. One that is found unfit is out for as long as the machine runs, under the next agent
/// too: whoever has mended it removes [the record](Kept) of that and restarts the agent.
pub(crate) struct Devices {
    source: Arc<dyn Gpus>,
    driver: Driver,
    kept: Kept,
    /// How many are offered at most.
    most: usize,
    /// When the driver was first asked.
    asked_at: Instant,
    /// What the driver told, once it has.
    found: OnceLock<Found>,
    owners: Owners,
    state: watch::Sender<State>,
    /// Those of attempts that this agent has found.
    held: Mutex<BTreeSet<u32>>,
    /// The newest of each device.
    samples: Mutex<BTreeMap<u32, GpuSample>>,
}

/// What there is. It is told once, and stays what it is while the agent runs.
#[derive(Debug, Default)]
struct Found {
    inventory: Vec<Device>,
    links: Vec<Link>,
    /// The device nodes of those that are not offered.
    withheld: Vec<(u32, u32)>,
    /// Uncorrected errors that each device had when this agent started.
    errors_before: BTreeMap<u32, u64>,
}

/// What changes while an agent runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct State {
    /// Why it is not known what there is, while it is not. Nothing is offered then, and every device is closed to
    /// jobs.
    unknown: Option<String>,
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
    /// The first `most` devices, looked at once. Those of a driver that does not answer for now come later, by
    /// [`Devices::watch`]. `root`: the agent's data folder.
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
        let unknown = Some("the GPU driver has not been asked".to_owned());
        let devices = Arc::new(Self {
            source,
            driver: Driver::new(patience),
            kept: Kept::new(root),
            most,
            asked_at: Instant::now(),
            found: OnceLock::new(),
            owners,
            state: watch::Sender::new(State { unknown, ..State::default() }),
            held: Mutex::default(),
            samples: Mutex::default(),
        });
        let asked = devices.clone();
        match devices.driver.call_now(move || asked.take_stock()) {
            Some(()) if devices.has_told() => devices.offer(),
            Some(()) => {}
            None => devices.is_silent(),
        }
        devices
    }

    /// Asks the driver, on its own thread, what there is, and looks at it once. It is not offered yet.
    fn take_stock(&self) {
        if self.has_told() {
            return;
        }
        match self.source.inventory() {
            Ok(told) => self.know(told),
            Err(why) => {
                let why = format!("the GPU driver does not say what devices there are: {why}");
                self.stays_unknown(why);
            }
        }
        self.look();
    }

    fn offer(&self) {
        self.state.send_if_modified(|state| state.unknown.take().is_some());
    }

    fn know(&self, told: Inventory) {
        let Inventory { devices: mut inventory, undescribed } = told;
        let beyond = inventory.split_off(self.most.min(inventory.len()));
        let beyond = beyond.into_iter().flat_map(|device| device.nodes);
        let errors = inventory
            .iter()
            .map(|device| (device.index, self.source.health(device.index).uncorrected_volatile));
        let errors_before = errors.collect();
        let out = self.kept.read(&inventory);
        for (index, Sickness { reason, .. }) in &out {
            tracing::warn!(
                gpu = index, reason, record = %self.kept.path().display(),
                "a GPU was out when an agent last ran; when it is mended, remove the record and restart the agent"
            );
        }
        self.state.send_if_modified(|state| {
            state.out.extend(out);
            // Nothing is told yet.
            false
        });
        let withheld = beyond.chain(undescribed).collect();
        let links = self.source.links();
        let _ = self.found.set(Found { inventory, links, withheld, errors_before });
    }

    /// The driver has not said yet what there is.
    fn is_silent(&self) {
        let seconds = self.asked_at.elapsed().as_secs();
        self.stays_unknown(format!("the GPU driver has not answered for {seconds} s"));
    }

    fn stays_unknown(&self, why: String) {
        self.state.send_if_modified(|state| {
            // It may have told just now.
            let differs = state.unknown.as_ref().is_some_and(|known| *known != why);
            if differs {
                tracing::error!(reason = why, "no GPUs for now: they are closed to jobs until their driver tells what they are");
                state.unknown = Some(why);
            }
            differs
        });
    }

    /// Whether it is not known what there is, or that is not offered yet.
    fn is_unknown(&self) -> bool {
        self.state.borrow().unknown.is_some()
    }

    /// Whether the driver has told what there is.
    pub(super) fn has_told(&self) -> bool {
        self.found.get().is_some()
    }

    fn inventory(&self) -> &[Device] {
        self.found.get().map_or(&[], |found| &found.inventory)
    }

    /// Has something asked of the driver, away from this thread. `None` if it does not answer: then all
    /// devices are out.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        if self.inventory().is_empty() {
            return None;
        }
        let devices = self.clone();
        let answer = self.driver.call(move || ask(&devices)).await;
        if answer.is_none() {
            self.all_out();
        }
        answer
    }

    /// The driver does not answer: nothing is known of the devices, and nothing can be given back.
    fn all_out(&self) {
        let patience = self.driver.patience();
        for device in self.inventory() {
            let reason = format!("its driver did not answer for {patience:?}");
            self.take_out(device.index, Sickness { reason, ends_jobs: false, passing: true });
        }
        self.samples.lock().unwrap_or_else(|broken| broken.into_inner()).clear();
    }

    /// Attempts of an earlier agent have these.
    pub(crate) fn hold(&self, indices: &[u32]) {
        self.held.lock().unwrap_or_else(|broken| broken.into_inner()).extend(indices);
    }

    /// Their attempt is over.
    pub(super) fn let_go(&self, indices: &[u32]) {
        let mut held = self.held.lock().unwrap_or_else(|broken| broken.into_inner());
        held.retain(|index| !indices.contains(index));
    }

    /// Those that no attempt had when this agent started.
    pub(super) fn unheld(&self) -> Vec<u32> {
        let held = self.held.lock().unwrap_or_else(|broken| broken.into_inner());
        let indices = self.inventory().iter().map(|device| device.index);
        indices.filter(|index| !held.contains(index)).collect()
    }

    /// What the daemon is told of them.
    pub(crate) fn offered(&self) -> Vec<pb::Gpu> {
        let state = self.state.borrow();
        if state.unknown.is_some() {
            return Vec::new();
        }
        let told = |device: &Device| pb::Gpu {
            index: device.index,
            uuid: device.uuid.clone(),
            model: device.model.clone(),
            memory_mib: device.memory_mib,
            out: state.out.get(&device.index).map(|why| why.reason.clone()).unwrap_or_default(),
        };
        self.inventory().iter().map(told).collect()
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
            let told = self.inventory().iter().filter_map(|device| {
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
        set("gpu_links", links(self.found.get().map_or(&[], |found| &found.links)));
        let state = self.state.borrow();
        set(GPU_DRIVER, state.unknown.clone().unwrap_or_default());
        let others = state.strangers.iter().map(|(index, who)| {
            format!("GPU {index}: {}", who.iter().cloned().collect::<Vec<_>>().join(", "))
        });
        set("gpu_strangers", others.collect::<Vec<_>>().join("; "));
        facts
    }

    /// Whether there are device nodes that not every job may open, or may come to be.
    pub(crate) fn guarded(&self) -> bool {
        self.is_unknown() || !self.denied(&[]).is_empty()
    }

    /// What an attempt that holds these devices may not open: the others, also those that are not offered, and all
    /// of them while nobody knows which they are.
    pub(crate) fn denied(&self, held: &[u32]) -> Vec<DeviceNode> {
        let node = |&(major, minor): &(u32, u32)| DeviceNode { major, minor: Some(minor) };
        let Some(found) = self.found.get().filter(|_| !self.is_unknown()) else {
            return self.source.closed();
        };
        let others = found.inventory.iter().filter(|device| !held.contains(&device.index));
        others.flat_map(|device| &device.nodes).chain(&found.withheld).map(node).collect()
    }

    /// Told whenever what is offered, or who is on it, has changed.
    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Looks at all devices, over and over, once the driver has told what there is.
    pub(crate) async fn watch(self: Arc<Self>) {
        self.wait_for_driver().await;
        settle::at_start(&self).await;
        // Those of a driver that was late.
        self.offer();
        if self.inventory().is_empty() {
            return;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            self.ask(Self::look).await;
        }
    }

    async fn wait_for_driver(self: &Arc<Self>) {
        if self.has_told() {
            return;
        }
        let (mut pause, mut answers) = (ASK_AGAIN, self.driver.answers());
        while !self.has_told() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // That to a call which nobody waits for any more.
                Ok(()) = answers.changed() => continue,
            }
            pause = (pause * 2).min(ASK_AGAIN_AT_MOST);
            let asked = self.clone();
            if self.driver.call(move || asked.take_stock()).await.is_none() {
                self.is_silent();
            }
        }
        let devices = self.inventory().len();
        let after = self.asked_at.elapsed();
        tracing::info!(devices, ?after, "the GPU driver has told what there is");
    }

    /// Looks at all devices once.
    pub(super) fn look(&self) {
        let Some(found) = self.found.get() else { return };
        for device in &found.inventory {
            let before = found.errors_before.get(&device.index).copied().unwrap_or_default();
            if let Some(sickness) = self.source.health(device.index).sickness(before) {
                self.take_out(device.index, sickness);
            }
        }
        self.let_back();
        let samples = found
            .inventory
            .iter()
            .filter_map(|device| Some((device.index, self.source.sample(device.index)?)));
        let samples = samples.collect();
        *self.samples.lock().unwrap_or_else(|broken| broken.into_inner()) = samples;
        let strangers: BTreeMap<_, _> = found
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
                if let Err(error) = self.kept.write(self.inventory(), &state.out) {
                    tracing::warn!(%error, "cannot keep which GPUs are out");
                }
            }
            worse
        });
    }

    /// Why one of these is out, if one is: the index and the reason.
    pub(super) fn sick_one(&self, indices: &[u32]) -> Option<(u32, String)> {
        let state = self.state.borrow();
        indices.iter().find_map(|index| Some((*index, state.out.get(index)?.reason.clone())))
    }

    /// Why no job is to be started on these, if one of them is out or nothing is known of them: the index and the
    /// reason.
    pub(crate) fn unfit_one(&self, indices: &[u32]) -> Option<(u32, String)> {
        let unknown = self.state.borrow().unknown.clone();
        let unknown = unknown.and_then(|why| Some((*indices.first()?, why)));
        unknown.or_else(|| self.sick_one(indices))
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
