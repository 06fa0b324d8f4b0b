//! NVIDIA's GPUs, through NVML (docs.nvidia.com, `deploy/nvml-api`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TopologyLevel};
use nvml_wrapper::enum_wrappers::nv_link::IntDeviceType;
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper::{Nvml, struct_wrappers};

use super::{Device, GpuSample, Gpus, Health, Inventory, Link, Mig, Process, Untold};
use crate::cgroup::DeviceNode;

const MIB: u64 = 1024 * 1024;
/// NVLinks that a device has at most; those beyond what it has are told as not supported.
const NVLINKS: u32 = 18;
/// How long the thread that hears of errors waits for the next before it sees whether it is still wanted.
const PATIENCE_MS: u32 = 1000;

/// Critical errors that the driver told, by the device's index.
type Xids = Mutex<BTreeMap<u32, BTreeSet<u64>>>;

/// The library is opened when it is first asked for an inventory, which may take as long as any call.
#[derive(Default)]
pub(super) struct Nvidia {
    nvml: OnceLock<Arc<Nvml>>,
    xids: Arc<Xids>,
    /// Up to when each device's processes were asked what they do, in NVML's microseconds.
    asked: Mutex<BTreeMap<u32, u64>>,
}

impl Nvidia {
    fn open(&self) -> Result<&Nvml, NvmlError> {
        if let Some(nvml) = self.nvml.get() {
            return Ok(nvml);
        }
        let nvml = Arc::new(Nvml::init()?);
        let (library, heard) = (Arc::downgrade(&nvml), self.xids.clone());
        let listener = thread::Builder::new().name("xid".to_owned());
        // Without it errors show in the counters that are looked at.
        if let Err(error) = listener.spawn(move || listen(&library, &heard)) {
            tracing::warn!(%error, "cannot listen to the driver's errors");
        }
        Ok(self.nvml.get_or_init(|| nvml))
    }

    /// How many devices there are, as far as anybody has asked.
    fn count(&self) -> u32 {
        self.nvml.get().and_then(|nvml| nvml.device_count().ok()).unwrap_or(0)
    }

    fn device(&self, index: u32) -> Result<nvml_wrapper::Device<'_>, NvmlError> {
        self.nvml.get().ok_or(NvmlError::Uninitialized)?.device_by_index(index)
    }

    fn describe(&self, index: u32, listed: &[Listed]) -> Result<Device, NvmlError> {
        let device = self.device(index)?;
        let parts = device.mig_device_count().unwrap_or(0);
        let mig = (0..parts).filter_map(|part| {
            let part = device.mig_device_by_index(part).ok()?;
            let memory_mib = part.memory_info().map_or(0, |memory| memory.total / MIB);
            Some(Mig { uuid: part.uuid().ok()?, memory_mib })
        });
        let pci = device.pci_info().ok().map(|pci| pci.bus_id);
        let by_kernel = || {
            let address = address(pci.as_deref()?);
            listed.iter().find(|gpu| Some(&gpu.address) == address.as_ref()).map(|gpu| gpu.minor)
        };
        let minor = device.minor_number().ok().or_else(by_kernel);
        let mut nodes = minor.map(nodes).unwrap_or_default();
        nodes.extend(pci.iter().flat_map(|pci| drawing_nodes(pci, Path::new(SYSFS))));
        Ok(Device {
            index,
            uuid: device.uuid()?,
            model: device.name().unwrap_or_else(|_| MODEL.to_owned()),
            memory_mib: device.memory_info().map_or(0, |memory| memory.total / MIB),
            pci,
            nodes,
            numa_node: device.numa_node_id().ok(),
            mig: mig.collect(),
        })
    }
}

/// Of a device that does not say what it is.
const MODEL: &str = "NVIDIA GPU";

/// The device nodes of a GPU: `/dev/nvidia<minor>`, and those in `/dev/nvidia-caps` that open its parts
/// (NVIDIA's Multi-Instance GPU user guide, "Device Nodes and Capabilities").
fn nodes(minor: u32) -> Vec<(u32, u32)> {
    let majors = fs::read_to_string("/proc/devices").unwrap_or_default();
    let caps = fs::read_to_string("/proc/driver/nvidia-caps/mig-minors").unwrap_or_default();
    nodes_of(minor, &majors, &caps)
}

/// The same from the texts: lines such as `195 nvidia`, and such as `gpu0/gi1/access 12`.
pub(super) fn nodes_of(minor: u32, majors: &str, caps: &str) -> Vec<(u32, u32)> {
    let major = |names: &[&str]| {
        majors.lines().find_map(|line| {
            let (number, name) = line.trim().split_once(' ')?;
            names.contains(&name).then(|| number.parse().ok())?
        })
    };
    // Drivers before 550 call it otherwise.
    let own = major(&["nvidia", "nvidia-frontend"]).map(|major| (major, minor));
    let parts = major(&["nvidia-caps"]).into_iter().flat_map(|major: u32| {
        let minors = caps.lines().filter_map(|line| {
            let (path, number) = line.rsplit_once(' ')?;
            let mine = path.strip_prefix(&format!("gpu{minor}"))?.starts_with('/');
            if mine { number.parse().ok() } else { None }
        });
        minors.map(move |minor| (major, minor)).collect::<Vec<_>>()
    });
    own.into_iter().chain(parts).collect()
}

const SYSFS: &str = "/sys/bus/pci/devices";

/// Where the kernel's driver lists its GPUs, whether or not the library describes them.
const LIST: &str = "/proc/driver/nvidia/gpus";

/// A GPU as the kernel's driver lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Listed {
    /// On the PCI bus.
    pub(super) address: String,
    pub(super) minor: u32,
}

/// The GPUs of a list: a folder for each, by its address, with a text that has its minor.
pub(super) fn listed(folder: &Path) -> Vec<Listed> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let gpu = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("information")).ok()?;
        let minor = text.lines().find_map(|line| line.strip_prefix("Device Minor:"))?;
        let address = address(entry.file_name().to_str()?)?;
        Some(Listed { address, minor: minor.trim().parse().ok()? })
    };
    entries.filter_map(gpu).collect()
}

/// The device nodes of those that are listed and not described.
pub(super) fn undescribed(
    described: &[Device],
    listed: &[Listed],
    nodes: impl Fn(&Listed) -> Vec<(u32, u32)>,
) -> Vec<(u32, u32)> {
    let known: BTreeSet<_> = described.iter().flat_map(|device| &device.nodes).collect();
    let of_each = listed.iter().map(nodes);
    of_each.filter(|nodes| nodes.iter().all(|node| !known.contains(node))).flatten().collect()
}

/// Whether there is a GPU, or will be once its driver is loaded, though the library knows of none.
fn has_any() -> bool {
    has_files(Path::new("/dev"))
        || !listed(Path::new(LIST)).is_empty()
        || is_on_the_bus(Path::new(SYSFS))
}

/// Whether there is a GPU on the PCI bus that is the driver's, or nobody's yet. One that was given to a virtual machine,
/// or to the kernel's own driver, is another's.
pub(super) fn is_on_the_bus(devices: &Path) -> bool {
    let mut entries = fs::read_dir(devices).into_iter().flatten().flatten();
    entries.any(|entry| {
        let text = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let driver = fs::read_link(entry.path().join("driver")).ok();
        let is_anothers = driver.is_some_and(|driver| !driver.ends_with("nvidia"));
        text("vendor").trim() == VENDOR && text("class").starts_with(DISPLAY) && !is_anothers
    })
}

/// Whether there are files through which a job could use a GPU.
fn has_files(folder: &Path) -> bool {
    let mut names = fs::read_dir(folder).into_iter().flatten().flatten();
    names.any(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("nvidia"));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

/// All that leads to GPUs of NVIDIA's: whatever is the driver's own, also before it is loaded, and the nodes to draw
/// with.
pub(super) fn all_nodes(majors: &str, devices: &Path) -> Vec<DeviceNode> {
    let own = majors.lines().filter_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        let is_own = ["nvidia", "nvidia-frontend", "nvidia-caps"].contains(&name);
        is_own.then(|| number.parse().ok())?
    });
    let own = own.chain([MAJOR]).map(|major| DeviceNode { major, minor: None });
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let drawing = entries.flat_map(|entry| {
        let vendor = fs::read_to_string(entry.path().join("vendor")).unwrap_or_default();
        let name = entry.file_name();
        let address = name.to_str().filter(|_| vendor.trim() == VENDOR);
        address.map(|address| drawing_nodes(address, devices)).unwrap_or_default()
    });
    let drawing = drawing.map(|(major, minor)| DeviceNode { major, minor: Some(minor) });
    let all: BTreeSet<_> = own.chain(drawing).collect();
    all.into_iter().collect()
}

/// NVIDIA, on the PCI bus.
const VENDOR: &str = "0x10de";
/// How the classes of all GPUs begin there: display controllers.
const DISPLAY: &str = "0x03";
/// NVIDIA's, by registration (the kernel's `Documentation/admin-guide/devices.txt`).
const MAJOR: u32 = 195;

/// An address on the PCI bus as the kernel writes it. NVML has eight digits for the domain where the kernel has four.
fn address(pci: &str) -> Option<String> {
    let (domain, rest) = pci.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
}

/// The nodes in `/dev/dri` of a GPU, by its address on the PCI bus.
pub(super) fn drawing_nodes(pci: &str, devices: &Path) -> Vec<(u32, u32)> {
    let folder = address(pci).map(|address| devices.join(address).join("drm"));
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
    let node = |entry: fs::DirEntry| {
        let numbers = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let mut nodes: Vec<_> = entries.filter_map(|entry| node(entry.ok()?)).collect();
    nodes.sort_unstable();
    nodes
}

/// Hears of the driver's critical errors until the library is not wanted any more.
fn listen(nvml: &Weak<Nvml>, xids: &Xids) {
    while let Some(nvml) = nvml.upgrade() {
        if let Err(error) = listen_once(&nvml, xids) {
            tracing::debug!(%error, "the driver's errors cannot be heard");
            // A device that is lost ends the set for all: a new one is made of those that are left.
            thread::sleep(Duration::from_millis(PATIENCE_MS.into()));
        }
    }
}

fn listen_once(nvml: &Arc<Nvml>, xids: &Xids) -> Result<(), NvmlError> {
    let mut set = nvml.create_event_set()?;
    let mut registered = false;
    for index in 0..nvml.device_count()? {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        let kinds = device.supported_event_types().unwrap_or(EventTypes::empty());
        if !kinds.contains(EventTypes::CRITICAL_XID_ERROR) {
            continue;
        }
        match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
            Ok(same) => (set, registered) = (same, true),
            Err(error) => return Err(error.error),
        }
    }
    // Whether somebody else still holds the library: this thread must not be what keeps it.
    while registered && Arc::strong_count(nvml) > 1 {
        match set.wait(PATIENCE_MS) {
            Ok(event) => {
                let Some(XidError::Value(xid)) = event.event_data else { continue };
                let Ok(index) = event.device.index() else { continue };
                tracing::warn!(gpu = index, xid, "the driver told of an error");
                let mut xids = xids.lock().unwrap_or_else(|broken| broken.into_inner());
                xids.entry(index).or_default().insert(xid);
            }
            Err(NvmlError::Timeout) => {}
            Err(error) => return Err(error),
        }
    }
    match registered {
        true => Ok(()),
        false => Err(NvmlError::NotSupported),
    }
}

impl Gpus for Nvidia {
    fn inventory(&self) -> Result<Inventory, String> {
        let count = match self.open().and_then(Nvml::device_count) {
            Ok(count) => count,
            Err(error) if has_any() => return Err(error.to_string()),
            Err(error) => {
                tracing::debug!(%error, "no NVIDIA driver");
                return Ok(Inventory::default());
            }
        };
        let listed = listed(Path::new(LIST));
        let described = |index| match self.describe(index, &listed) {
            Ok(device) => Some(device),
            // It is told what is wrong with it rather than left out.
            Err(NvmlError::GpuLost | NvmlError::ResetRequired) => {
                Some(Device { index, model: MODEL.to_owned(), ..Device::default() })
            }
            Err(error) => {
                tracing::warn!(
                    gpu = index, %error,
                    "cannot ask a GPU what it is: it is left out, and closed to jobs"
                );
                None
            }
        };
        let devices: Vec<Device> = (0..count).filter_map(described).collect();
        let undescribed = undescribed(&devices, &listed, |gpu| {
            let mut all = nodes(gpu.minor);
            all.extend(drawing_nodes(&gpu.address, Path::new(SYSFS)));
            all
        });
        Ok(Inventory { devices, undescribed })
    }

    fn closed(&self) -> Vec<DeviceNode> {
        let majors = fs::read_to_string("/proc/devices").unwrap_or_default();
        all_nodes(&majors, Path::new(SYSFS))
    }

    fn links(&self) -> Vec<Link> {
        let count = self.count();
        let pairs = (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other)));
        pairs
            .filter_map(|(one, other)| {
                let kind = kind_of_link(self.device(one).ok()?, self.device(other).ok()?)?;
                Some(Link { between: (one, other), kind: kind.to_owned() })
            })
            .collect()
    }

    fn sample(&self, index: u32) -> Option<GpuSample> {
        let device = self.device(index).ok()?;
        let memory = device.memory_info().ok()?;
        Some(GpuSample {
            utilization: device.utilization_rates().ok().map(|percent| percent.gpu.into()),
            memory_used_mib: (memory.used / MIB) as f64,
            memory_total_mib: (memory.total / MIB) as f64,
            power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
        })
    }

    fn health(&self, index: u32) -> Health {
        let xids = self.xids.lock().unwrap_or_else(|broken| broken.into_inner());
        let mut health =
            Health { xids: xids.get(&index).cloned().unwrap_or_default(), ..Health::default() };
        drop(xids);
        let device = match self.device(index) {
            Ok(device) => device,
            Err(error) => {
                note(&mut health, &error);
                return health;
            }
        };
        let errors = |counter| device.total_ecc_errors(MemoryError::Uncorrected, counter);
        match errors(EccCounter::Volatile) {
            Ok(count) => health.uncorrected_volatile = count,
            Err(error) => note(&mut health, &error),
        }
        // Also asked where there is no ECC that could tell.
        if let Err(error) = device.memory_info() {
            note(&mut health, &error);
        }
        health.uncorrected_aggregate = errors(EccCounter::Aggregate).unwrap_or(0);
        health.retired_pending = device.are_pages_pending_retired().unwrap_or(false);
        health.remap_pending = flag(&device, field_id::NVML_FI_DEV_REMAPPED_PENDING);
        health.remap_failed = flag(&device, field_id::NVML_FI_DEV_REMAPPED_FAILURE);
        health
    }

    fn processes(&self, index: u32) -> Result<Vec<Process>, Untold> {
        let untold = |error| match error {
            // Of parts of a device (MIG) only root is told.
            NvmlError::NotSupported | NvmlError::NoPermission => Untold::Never,
            _ => Untold::Now,
        };
        let device = self.device(index).map_err(untold)?;
        let computing = device.running_compute_processes().map_err(untold)?;
        let drawing = device.running_graphics_processes().unwrap_or_default();
        // One that does both is told twice, with the same memory.
        let mut found: BTreeMap<i32, Option<u64>> = BTreeMap::new();
        for ProcessInfo { pid, used_gpu_memory, .. } in computing.into_iter().chain(drawing) {
            let Ok(pid) = i32::try_from(pid) else { continue };
            let memory = match used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes / MIB),
                UsedGpuMemory::Unavailable => None,
            };
            let known = found.entry(pid).or_default();
            *known = (*known).max(memory);
        }
        Ok(found.into_iter().map(|(pid, memory_mib)| Process { pid, memory_mib }).collect())
    }

    fn utilization(&self, index: u32) -> Option<BTreeMap<i32, f64>> {
        let device = self.device(index).ok()?;
        let mut asked = self.asked.lock().unwrap_or_else(|broken| broken.into_inner());
        let since = asked.entry(index).or_default();
        let samples = match device.process_utilization_stats(*since) {
            Ok(samples) => samples,
            // Nothing has run since then.
            Err(NvmlError::NotFound) => return Some(BTreeMap::new()),
            Err(_) => return None,
        };
        let mut sums: BTreeMap<i32, (f64, f64)> = BTreeMap::new();
        for sample in samples {
            // Buffers hold what is older, too.
            if sample.timestamp <= *since {
                continue;
            }
            let Ok(pid) = i32::try_from(sample.pid) else { continue };
            let (sum, count) = sums.entry(pid).or_default();
            (*sum, *count) = (*sum + f64::from(sample.sm_util), *count + 1.0);
            *since = (*since).max(sample.timestamp);
        }
        Some(sums.into_iter().map(|(pid, (sum, count))| (pid, sum / count)).collect())
    }
}

/// What an answer that is an error says of the device.
pub(super) fn note(health: &mut Health, error: &NvmlError) {
    match error {
        NvmlError::GpuLost => health.lost = true,
        NvmlError::ResetRequired => health.reset_required = true,
        _ => {}
    }
}

/// A field that is set or not; not if it cannot be asked.
fn flag(device: &nvml_wrapper::Device<'_>, field: u32) -> bool {
    let Ok(values) = device.field_values_for(&[FieldId(field)]) else { return false };
    let value = values.into_iter().next().and_then(Result::ok).and_then(|sample| sample.value.ok());
    match value {
        Some(SampleValue::U32(value)) => value > 0,
        Some(SampleValue::U64(value)) => value > 0,
        Some(SampleValue::I64(value)) => value > 0,
        Some(SampleValue::F64(value)) => value > 0.0,
        None => false,
    }
}

fn kind_of_link(
    one: nvml_wrapper::Device<'_>,
    other: nvml_wrapper::Device<'_>,
) -> Option<&'static str> {
    let direct = other.pci_info().is_ok_and(|at| has_nvlink(&one, Some(&at)));
    if direct || has_nvlink(&one, None) && has_nvlink(&other, None) {
        return Some("NVLink");
    }
    Some(match one.topology_common_ancestor(other).ok()? {
        TopologyLevel::Internal => "board",
        TopologyLevel::Single => "switch",
        TopologyLevel::Multiple => "switches",
        TopologyLevel::HostBridge => "host bridge",
        TopologyLevel::Node => "NUMA node",
        TopologyLevel::System => "system",
    })
}

/// Whether an NVLink leads from a device to that at `to`, or without one to a switch, which leads to all.
fn has_nvlink(
    device: &nvml_wrapper::Device<'_>,
    to: Option<&struct_wrappers::device::PciInfo>,
) -> bool {
    (0..NVLINKS).any(|number| {
        let link = device.link_wrapper_for(number);
        let leads = || match to {
            Some(to) => link
                .remote_pci_info()
                .is_ok_and(|at| (at.domain, at.bus, at.device) == (to.domain, to.bus, to.device)),
            None => matches!(link.remote_device_type(number), Ok(IntDeviceType::Switch)),
        };
        link.is_active().unwrap_or(false) && leads()
    })
}
