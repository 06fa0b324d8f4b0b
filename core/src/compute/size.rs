//! What a VM size stands for.

use std::collections::BTreeMap;

use super::NodeShape;
use crate::suggest;

/// One GiB in MiB.
const G: u64 = 1 << 10;
/// How many near names are worth showing.
const MAX_SHOWN: usize = 3;

/// VM sizes by name: those of Azure that are used most, and an admin's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SizeTable {
    /// By name in lower case, since Azure's names differ in case from page to page.
    rows: BTreeMap<String, (String, NodeShape)>,
}

impl SizeTable {
    /// Azure's sizes, from its documentation
    /// (<https://learn.microsoft.com/azure/virtual-machines/sizes/overview>).
    pub fn builtin() -> Self {
        let cpu = CPU_SIZES.iter().map(|&(name, cpus, memory, disk)| {
            let node = NodeShape {
                cpu: cpus * 1000,
                memory,
                disk: disk * G,
                gpus: 0,
                gpu_model: None,
                gpu_memory: 0,
            };
            (name.to_owned(), node)
        });
        let gpu = GPU_SIZES.iter().map(|&(name, cpus, memory, disk, gpus, model, gpu_memory)| {
            let node = NodeShape {
                cpu: cpus * 1000,
                memory,
                disk: disk * G,
                gpus,
                gpu_model: Some(model.to_owned()),
                gpu_memory,
            };
            (name.to_owned(), node)
        });
        Self { rows: BTreeMap::new() }.with(cpu.chain(gpu))
    }

    /// The same with `extra` rows, which replace rows of the same name.
    #[must_use]
    pub fn with(mut self, extra: impl IntoIterator<Item = (String, NodeShape)>) -> Self {
        self.rows.extend(
            extra.into_iter().map(|(name, node)| (name.to_ascii_lowercase(), (name, node))),
        );
        self
    }

    /// What the size called `name` in any case stands for, with its name as the table spells it.
    pub fn get(&self, name: &str) -> Option<(&str, &NodeShape)> {
        let (name, node) = self.rows.get(&name.to_ascii_lowercase())?;
        Some((name, node))
    }

    /// Every row, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &NodeShape)> {
        self.rows.values().map(|(name, node)| (name.as_str(), node))
    }

    /// The few names nearest to an unknown one, the nearest first. `STANDARD_` does not count, as
    /// it would make any two names look alike.
    pub fn closest(&self, name: &str) -> Vec<&str> {
        let names = self.rows.iter().map(|(key, (name, _))| (bare(key), name.as_str()));
        let names: BTreeMap<&str, &str> = names.collect();
        let wanted = name.to_ascii_lowercase();
        let near = suggest::nearest(bare(&wanted), names.keys().copied());
        near.into_iter().take(MAX_SHOWN).filter_map(|key| names.get(key).copied()).collect()
    }
}

fn bare(name: &str) -> &str {
    name.strip_prefix("standard_").unwrap_or(name)
}

/// Name, vCPUs, memory in MiB, temporary disk in GiB.
#[rustfmt::skip]
const CPU_SIZES: &[(&str, u64, u64, u64)] = &[
    // Av2
    ("STANDARD_A1_v2", 1, 2 * G, 10),
    ("STANDARD_A2_v2", 2, 4 * G, 20),
    ("STANDARD_A4_v2", 4, 8 * G, 40),
    ("STANDARD_A8_v2", 8, 16 * G, 80),
    ("STANDARD_A2m_v2", 2, 16 * G, 20),
    ("STANDARD_A4m_v2", 4, 32 * G, 40),
    ("STANDARD_A8m_v2", 8, 64 * G, 80),
    // Dv2
    ("STANDARD_D1_v2", 1, 7 * G / 2, 50),
    ("STANDARD_D2_v2", 2, 7 * G, 100),
    ("STANDARD_D3_v2", 4, 14 * G, 200),
    ("STANDARD_D4_v2", 8, 28 * G, 400),
    ("STANDARD_D5_v2", 16, 56 * G, 800),
    ("STANDARD_D11_v2", 2, 14 * G, 100),
    ("STANDARD_D12_v2", 4, 28 * G, 200),
    ("STANDARD_D13_v2", 8, 56 * G, 400),
    ("STANDARD_D14_v2", 16, 112 * G, 800),
    // DSv2
    ("STANDARD_DS1_v2", 1, 7 * G / 2, 7),
    ("STANDARD_DS2_v2", 2, 7 * G, 14),
    ("STANDARD_DS3_v2", 4, 14 * G, 28),
    ("STANDARD_DS4_v2", 8, 28 * G, 56),
    ("STANDARD_DS5_v2", 16, 56 * G, 112),
    ("STANDARD_DS11_v2", 2, 14 * G, 28),
    ("STANDARD_DS12_v2", 4, 28 * G, 56),
    ("STANDARD_DS13_v2", 8, 56 * G, 112),
    ("STANDARD_DS14_v2", 16, 112 * G, 224),
    // Dv3 and Dsv3
    ("STANDARD_D2_v3", 2, 8 * G, 50),
    ("STANDARD_D4_v3", 4, 16 * G, 100),
    ("STANDARD_D8_v3", 8, 32 * G, 200),
    ("STANDARD_D16_v3", 16, 64 * G, 400),
    ("STANDARD_D32_v3", 32, 128 * G, 800),
    ("STANDARD_D48_v3", 48, 192 * G, 1200),
    ("STANDARD_D64_v3", 64, 256 * G, 1600),
    ("STANDARD_D2s_v3", 2, 8 * G, 16),
    ("STANDARD_D4s_v3", 4, 16 * G, 32),
    ("STANDARD_D8s_v3", 8, 32 * G, 64),
    ("STANDARD_D16s_v3", 16, 64 * G, 128),
    ("STANDARD_D32s_v3", 32, 128 * G, 256),
    ("STANDARD_D48s_v3", 48, 192 * G, 384),
    ("STANDARD_D64s_v3", 64, 256 * G, 512),
    // Dv4, Dsv4, Ddv4 and Ddsv4
    ("STANDARD_D2_v4", 2, 8 * G, 0),
    ("STANDARD_D4_v4", 4, 16 * G, 0),
    ("STANDARD_D8_v4", 8, 32 * G, 0),
    ("STANDARD_D16_v4", 16, 64 * G, 0),
    ("STANDARD_D32_v4", 32, 128 * G, 0),
    ("STANDARD_D48_v4", 48, 192 * G, 0),
    ("STANDARD_D64_v4", 64, 256 * G, 0),
    ("STANDARD_D2s_v4", 2, 8 * G, 0),
    ("STANDARD_D4s_v4", 4, 16 * G, 0),
    ("STANDARD_D8s_v4", 8, 32 * G, 0),
    ("STANDARD_D16s_v4", 16, 64 * G, 0),
    ("STANDARD_D32s_v4", 32, 128 * G, 0),
    ("STANDARD_D48s_v4", 48, 192 * G, 0),
    ("STANDARD_D64s_v4", 64, 256 * G, 0),
    ("STANDARD_D2d_v4", 2, 8 * G, 75),
    ("STANDARD_D4d_v4", 4, 16 * G, 150),
    ("STANDARD_D8d_v4", 8, 32 * G, 300),
    ("STANDARD_D16d_v4", 16, 64 * G, 600),
    ("STANDARD_D32d_v4", 32, 128 * G, 1200),
    ("STANDARD_D48d_v4", 48, 192 * G, 1800),
    ("STANDARD_D64d_v4", 64, 256 * G, 2400),
    ("STANDARD_D2ds_v4", 2, 8 * G, 75),
    ("STANDARD_D4ds_v4", 4, 16 * G, 150),
    ("STANDARD_D8ds_v4", 8, 32 * G, 300),
    ("STANDARD_D16ds_v4", 16, 64 * G, 600),
    ("STANDARD_D32ds_v4", 32, 128 * G, 1200),
    ("STANDARD_D48ds_v4", 48, 192 * G, 1800),
    ("STANDARD_D64ds_v4", 64, 256 * G, 2400),
    // Dv5, Dsv5, Ddv5 and Ddsv5
    ("STANDARD_D2_v5", 2, 8 * G, 0),
    ("STANDARD_D4_v5", 4, 16 * G, 0),
    ("STANDARD_D8_v5", 8, 32 * G, 0),
    ("STANDARD_D16_v5", 16, 64 * G, 0),
    ("STANDARD_D32_v5", 32, 128 * G, 0),
    ("STANDARD_D48_v5", 48, 192 * G, 0),
    ("STANDARD_D64_v5", 64, 256 * G, 0),
    ("STANDARD_D96_v5", 96, 384 * G, 0),
    ("STANDARD_D2s_v5", 2, 8 * G, 0),
    ("STANDARD_D4s_v5", 4, 16 * G, 0),
    ("STANDARD_D8s_v5", 8, 32 * G, 0),
    ("STANDARD_D16s_v5", 16, 64 * G, 0),
    ("STANDARD_D32s_v5", 32, 128 * G, 0),
    ("STANDARD_D48s_v5", 48, 192 * G, 0),
    ("STANDARD_D64s_v5", 64, 256 * G, 0),
    ("STANDARD_D96s_v5", 96, 384 * G, 0),
    ("STANDARD_D2d_v5", 2, 8 * G, 75),
    ("STANDARD_D4d_v5", 4, 16 * G, 150),
    ("STANDARD_D8d_v5", 8, 32 * G, 300),
    ("STANDARD_D16d_v5", 16, 64 * G, 600),
    ("STANDARD_D32d_v5", 32, 128 * G, 1200),
    ("STANDARD_D48d_v5", 48, 192 * G, 1800),
    ("STANDARD_D64d_v5", 64, 256 * G, 2400),
    ("STANDARD_D96d_v5", 96, 384 * G, 3600),
    ("STANDARD_D2ds_v5", 2, 8 * G, 75),
    ("STANDARD_D4ds_v5", 4, 16 * G, 150),
    ("STANDARD_D8ds_v5", 8, 32 * G, 300),
    ("STANDARD_D16ds_v5", 16, 64 * G, 600),
    ("STANDARD_D32ds_v5", 32, 128 * G, 1200),
    ("STANDARD_D48ds_v5", 48, 192 * G, 1800),
    ("STANDARD_D64ds_v5", 64, 256 * G, 2400),
    ("STANDARD_D96ds_v5", 96, 384 * G, 3600),
    // Ev3 and Esv3
    ("STANDARD_E2_v3", 2, 16 * G, 50),
    ("STANDARD_E4_v3", 4, 32 * G, 100),
    ("STANDARD_E8_v3", 8, 64 * G, 200),
    ("STANDARD_E16_v3", 16, 128 * G, 400),
    ("STANDARD_E20_v3", 20, 160 * G, 500),
    ("STANDARD_E32_v3", 32, 256 * G, 800),
    ("STANDARD_E48_v3", 48, 384 * G, 1200),
    ("STANDARD_E64_v3", 64, 432 * G, 1600),
    ("STANDARD_E2s_v3", 2, 16 * G, 32),
    ("STANDARD_E4s_v3", 4, 32 * G, 64),
    ("STANDARD_E8s_v3", 8, 64 * G, 128),
    ("STANDARD_E16s_v3", 16, 128 * G, 256),
    ("STANDARD_E20s_v3", 20, 160 * G, 320),
    ("STANDARD_E32s_v3", 32, 256 * G, 512),
    ("STANDARD_E48s_v3", 48, 384 * G, 768),
    ("STANDARD_E64s_v3", 64, 432 * G, 864),
    // Esv4 and Edsv4
    ("STANDARD_E2s_v4", 2, 16 * G, 0),
    ("STANDARD_E4s_v4", 4, 32 * G, 0),
    ("STANDARD_E8s_v4", 8, 64 * G, 0),
    ("STANDARD_E16s_v4", 16, 128 * G, 0),
    ("STANDARD_E20s_v4", 20, 160 * G, 0),
    ("STANDARD_E32s_v4", 32, 256 * G, 0),
    ("STANDARD_E48s_v4", 48, 384 * G, 0),
    ("STANDARD_E64s_v4", 64, 504 * G, 0),
    ("STANDARD_E2ds_v4", 2, 16 * G, 75),
    ("STANDARD_E4ds_v4", 4, 32 * G, 150),
    ("STANDARD_E8ds_v4", 8, 64 * G, 300),
    ("STANDARD_E16ds_v4", 16, 128 * G, 600),
    ("STANDARD_E20ds_v4", 20, 160 * G, 750),
    ("STANDARD_E32ds_v4", 32, 256 * G, 1200),
    ("STANDARD_E48ds_v4", 48, 384 * G, 1800),
    ("STANDARD_E64ds_v4", 64, 504 * G, 2400),
    // Esv5 and Edsv5
    ("STANDARD_E2s_v5", 2, 16 * G, 0),
    ("STANDARD_E4s_v5", 4, 32 * G, 0),
    ("STANDARD_E8s_v5", 8, 64 * G, 0),
    ("STANDARD_E16s_v5", 16, 128 * G, 0),
    ("STANDARD_E20s_v5", 20, 160 * G, 0),
    ("STANDARD_E32s_v5", 32, 256 * G, 0),
    ("STANDARD_E48s_v5", 48, 384 * G, 0),
    ("STANDARD_E64s_v5", 64, 512 * G, 0),
    ("STANDARD_E96s_v5", 96, 672 * G, 0),
    ("STANDARD_E2ds_v5", 2, 16 * G, 75),
    ("STANDARD_E4ds_v5", 4, 32 * G, 150),
    ("STANDARD_E8ds_v5", 8, 64 * G, 300),
    ("STANDARD_E16ds_v5", 16, 128 * G, 600),
    ("STANDARD_E20ds_v5", 20, 160 * G, 750),
    ("STANDARD_E32ds_v5", 32, 256 * G, 1200),
    ("STANDARD_E48ds_v5", 48, 384 * G, 1800),
    ("STANDARD_E64ds_v5", 64, 512 * G, 2400),
    ("STANDARD_E96ds_v5", 96, 672 * G, 3600),
    // Fsv2
    ("STANDARD_F2s_v2", 2, 4 * G, 16),
    ("STANDARD_F4s_v2", 4, 8 * G, 32),
    ("STANDARD_F8s_v2", 8, 16 * G, 64),
    ("STANDARD_F16s_v2", 16, 32 * G, 128),
    ("STANDARD_F32s_v2", 32, 64 * G, 256),
    ("STANDARD_F48s_v2", 48, 96 * G, 384),
    ("STANDARD_F64s_v2", 64, 128 * G, 512),
    ("STANDARD_F72s_v2", 72, 144 * G, 576),
];

/// Name, vCPUs, memory in MiB, temporary disk in GiB, GPUs, their model, memory of each in MiB.
#[rustfmt::skip]
const GPU_SIZES: &[(&str, u64, u64, u64, u32, &str, u64)] = &[
    // NC: a K80 board counts as two GPUs
    ("STANDARD_NC6", 6, 56 * G, 340, 1, "NVIDIA K80", 12 * G),
    ("STANDARD_NC12", 12, 112 * G, 680, 2, "NVIDIA K80", 12 * G),
    ("STANDARD_NC24", 24, 224 * G, 1440, 4, "NVIDIA K80", 12 * G),
    ("STANDARD_NC24r", 24, 224 * G, 1440, 4, "NVIDIA K80", 12 * G),
    // NCv2
    ("STANDARD_NC6s_v2", 6, 112 * G, 736, 1, "NVIDIA P100", 16 * G),
    ("STANDARD_NC12s_v2", 12, 224 * G, 1474, 2, "NVIDIA P100", 16 * G),
    ("STANDARD_NC24s_v2", 24, 448 * G, 2948, 4, "NVIDIA P100", 16 * G),
    ("STANDARD_NC24rs_v2", 24, 448 * G, 2948, 4, "NVIDIA P100", 16 * G),
    // NCv3
    ("STANDARD_NC6s_v3", 6, 112 * G, 736, 1, "NVIDIA V100", 16 * G),
    ("STANDARD_NC12s_v3", 12, 224 * G, 1474, 2, "NVIDIA V100", 16 * G),
    ("STANDARD_NC24s_v3", 24, 448 * G, 2948, 4, "NVIDIA V100", 16 * G),
    ("STANDARD_NC24rs_v3", 24, 448 * G, 2948, 4, "NVIDIA V100", 16 * G),
    // NCasT4_v3
    ("STANDARD_NC4as_T4_v3", 4, 28 * G, 180, 1, "NVIDIA T4", 16 * G),
    ("STANDARD_NC8as_T4_v3", 8, 56 * G, 360, 1, "NVIDIA T4", 16 * G),
    ("STANDARD_NC16as_T4_v3", 16, 110 * G, 360, 1, "NVIDIA T4", 16 * G),
    ("STANDARD_NC64as_T4_v3", 64, 440 * G, 2880, 4, "NVIDIA T4", 16 * G),
    // NC A100 v4
    ("STANDARD_NC24ads_A100_v4", 24, 220 * G, 64, 1, "NVIDIA A100", 80 * G),
    ("STANDARD_NC48ads_A100_v4", 48, 440 * G, 128, 2, "NVIDIA A100", 80 * G),
    ("STANDARD_NC96ads_A100_v4", 96, 880 * G, 256, 4, "NVIDIA A100", 80 * G),
    // NCads H100 v5
    ("STANDARD_NC40ads_H100_v5", 40, 320 * G, 128, 1, "NVIDIA H100", 94 * G),
    ("STANDARD_NC80adis_H100_v5", 80, 640 * G, 256, 2, "NVIDIA H100", 94 * G),
    // NDv2
    ("STANDARD_ND40rs_v2", 40, 672 * G, 2948, 8, "NVIDIA V100", 32 * G),
    // ND A100 v4
    ("STANDARD_ND96asr_v4", 96, 900 * G, 6000, 8, "NVIDIA A100", 40 * G),
    // NDm A100 v4
    ("STANDARD_ND96amsr_A100_v4", 96, 1900 * G, 6400, 8, "NVIDIA A100", 80 * G),
    // ND H100 v5
    ("STANDARD_ND96isr_H100_v5", 96, 1900 * G, 1000, 8, "NVIDIA H100", 80 * G),
    // NV and NVv3
    ("STANDARD_NV6", 6, 56 * G, 340, 1, "NVIDIA M60", 8 * G),
    ("STANDARD_NV12", 12, 112 * G, 680, 2, "NVIDIA M60", 8 * G),
    ("STANDARD_NV24", 24, 224 * G, 1440, 4, "NVIDIA M60", 8 * G),
    ("STANDARD_NV12s_v3", 12, 112 * G, 320, 1, "NVIDIA M60", 8 * G),
    ("STANDARD_NV24s_v3", 24, 224 * G, 640, 2, "NVIDIA M60", 8 * G),
    ("STANDARD_NV48s_v3", 48, 448 * G, 1280, 4, "NVIDIA M60", 8 * G),
    // NVadsA10 v5; its smaller sizes have a part of a GPU
    ("STANDARD_NV36ads_A10_v5", 36, 440 * G, 720, 1, "NVIDIA A10", 24 * G),
    ("STANDARD_NV72ads_A10_v5", 72, 880 * G, 1400, 2, "NVIDIA A10", 24 * G),
];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
