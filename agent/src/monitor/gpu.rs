//! The node's GPUs, through NVML where there is one.

use atelier_proto::agent::v1::Gpu;
use nvml_wrapper::Nvml;

/// What one GPU is doing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct GpuSample {
    /// Percent of time in which a kernel ran.
    pub(crate) utilization: f64,
    pub(crate) memory_used_mib: f64,
    pub(crate) memory_total_mib: f64,
    pub(crate) power_watts: Option<f64>,
}

impl GpuSample {
    /// Adds another look at the same device; of memory the most counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.utilization += other.utilization;
        self.memory_used_mib = self.memory_used_mib.max(other.memory_used_mib);
        self.memory_total_mib = other.memory_total_mib;
        self.power_watts = match (self.power_watts, other.power_watts) {
            (Some(sum), Some(watts)) => Some(sum + watts),
            _ => None,
        };
    }

    /// Makes means of sums over so many looks.
    pub(crate) fn divide(&mut self, looks: f64) {
        self.utilization /= looks;
        self.power_watts = self.power_watts.map(|sum| sum / looks);
    }
}

/// Where GPUs are found and looked at.
pub(crate) trait Gpus: Send + Sync {
    /// All devices, by index.
    fn inventory(&self) -> Vec<Gpu>;
    /// One device now; `None` if it cannot be asked.
    fn sample(&self, index: u32) -> Option<GpuSample>;
}

/// The GPUs of this machine. Without a driver there are none, which is no error.
pub(crate) fn find() -> Box<dyn Gpus> {
    match Nvml::init() {
        Ok(nvml) => Box::new(Nvidia { nvml }),
        Err(reason) => {
            tracing::debug!(%reason, "no NVIDIA driver");
            Box::new(NoGpus)
        }
    }
}

struct NoGpus;

impl Gpus for NoGpus {
    fn inventory(&self) -> Vec<Gpu> {
        Vec::new()
    }

    fn sample(&self, _index: u32) -> Option<GpuSample> {
        None
    }
}

struct Nvidia {
    nvml: Nvml,
}

const MIB: u64 = 1024 * 1024;

impl Gpus for Nvidia {
    fn inventory(&self) -> Vec<Gpu> {
        let count = self.nvml.device_count().unwrap_or(0);
        (0..count)
            .filter_map(|index| {
                let device = self.nvml.device_by_index(index).ok()?;
                Some(Gpu {
                    index,
                    uuid: device.uuid().ok()?,
                    model: device.name().unwrap_or_else(|_| "NVIDIA GPU".to_owned()),
                    memory_mib: device.memory_info().map_or(0, |memory| memory.total / MIB),
                })
            })
            .collect()
    }

    fn sample(&self, index: u32) -> Option<GpuSample> {
        let device = self.nvml.device_by_index(index).ok()?;
        let memory = device.memory_info().ok()?;
        Some(GpuSample {
            utilization: f64::from(device.utilization_rates().ok()?.gpu),
            memory_used_mib: (memory.used / MIB) as f64,
            memory_total_mib: (memory.total / MIB) as f64,
            power_watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
        })
    }
}
