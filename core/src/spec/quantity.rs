//! Amounts as people write them, read exactly: no floating point, rounded up where a unit is
//! coarser than what was written, so that nobody gets less than asked for.

use super::limits::{MAX_BACKOFF, MAX_GPUS, MAX_MEMORY, MAX_MEMORY_PERCENT, MAX_MILLI_CPUS};
use super::yaml::shorten;
use crate::compute::MAX_CLUSTER;
use crate::resource::{MiB, MilliCpu, MilliGpu, WHOLE_GPU};

/// Why an amount cannot be read, in words that follow `'resources.cpus': `.
pub(super) type Wrong = String;

/// A decimal number as an integer and a power of ten to divide it by.
struct Decimal {
    units: u128,
    scale: u128,
}

impl Decimal {
    /// Reads `12`, `1.5`, `.5`, `1.`; at most 18 digits.
    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{fraction}");
        let good =
            !digits.is_empty() && digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit());
        let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        good.then_some(Self { units: digits.parse().ok()?, scale })
    }

    /// `self * factor / divisor`, rounded up.
    fn times(&self, factor: u128, divisor: u128) -> u128 {
        // At most 10^18 * 2^40 * …: far from the end of 128 bits.
        (self.units * factor).div_ceil(self.scale * divisor)
    }
}

/// Splits `4GiB` into `4` and `gib`.
fn split_unit(text: &str) -> (&str, String) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim().to_ascii_lowercase())
}

fn sign_or_nan(text: &str, least: &str) -> Option<Wrong> {
    let lower = text.trim().to_ascii_lowercase();
    if lower.starts_with('-') {
        Some(format!("must be {least}, found {text}"))
    } else if matches!(lower.as_str(), "nan" | ".nan" | "inf" | ".inf") {
        Some(format!("must be a number, found {text}"))
    } else {
        None
    }
}

/// CPUs: `2`, `0.5`, `500m`.
pub(super) fn cpus(text: &str) -> Result<MilliCpu, Wrong> {
    let most = MAX_MILLI_CPUS / 1000;
    if let Some(wrong) = sign_or_nan(text, "more than 0") {
        return Err(wrong);
    }
    let (digits, unit) = split_unit(text);
    let wrong = || format!("expected a number of CPUs such as 2, 0.5 or 500m, found '{text}'");
    let factor = match unit.as_str() {
        "" => 1000,
        "m" => 1,
        _ => return Err(wrong()),
    };
    if digits.len() > 18 && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("is out of range: at most {most} CPUs, found {text}"));
    }
    match Decimal::parse(digits).ok_or_else(wrong)?.times(factor, 1) {
        0 => Err(format!("must be more than 0, found {text}")),
        milli if milli > u128::from(MAX_MILLI_CPUS) => {
            Err(format!("is out of range: at most {most} CPUs, found {text}"))
        }
        milli => Ok(milli as MilliCpu),
    }
}

/// GPUs: how many, or thousandths of one: `2`, `0.5`.
pub(super) fn gpus(text: &str) -> Result<(u32, MilliGpu), Wrong> {
    let expected = format!("a whole number from 0 to {MAX_GPUS}, or a share of one such as 0.5");
    if let Some(wrong) = sign_or_nan(text, &expected) {
        return Err(wrong);
    }
    let text = text.trim();
    let out_of_range = || format!("is out of range: expected {expected}, found {}", shorten(text));
    if text.len() > 18 && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(out_of_range());
    }
    let wrong = || format!("expected {expected}, found '{}'", shorten(text));
    let milli = Decimal::parse(text).ok_or_else(wrong)?.times(WHOLE_GPU.into(), 1);
    let (whole, part) = (milli / u128::from(WHOLE_GPU), milli % u128::from(WHOLE_GPU));
    match (u32::try_from(whole), part) {
        (Ok(count), 0) if count <= MAX_GPUS => Ok((count, 0)),
        (Ok(0), part) => Ok((1, part as MilliGpu)),
        (Ok(count), _) if count < MAX_GPUS => Err(format!(
            "cannot be {text}: a share is of one GPU; write {} for whole ones, or less than 1",
            count + 1
        )),
        _ => Err(out_of_range()),
    }
}

/// Bytes: a number with a unit that counts by 1024, as container runtimes read them.
pub(super) fn bytes(text: &str, example: &str) -> Result<u128, Wrong> {
    if let Some(wrong) = sign_or_nan(text, "more than 0") {
        return Err(wrong);
    }
    let (digits, unit) = split_unit(text);
    let wrong = || format!("expected an amount with its unit such as {example}, found '{text}'");
    let power = match unit.as_str() {
        "b" => 0,
        "k" | "kb" | "ki" | "kib" => 1,
        "m" | "mb" | "mi" | "mib" => 2,
        "g" | "gb" | "gi" | "gib" => 3,
        "t" | "tb" | "ti" | "tib" => 4,
        "" if Decimal::parse(digits).is_some() => {
            return Err(format!("has no unit: write for example {example}, found '{text}'"));
        }
        _ => return Err(wrong()),
    };
    match Decimal::parse(digits).ok_or_else(wrong)?.times(1u128 << (10 * power), 1) {
        0 => Err(format!("must be more than 0, found {text}")),
        bytes if bytes > u128::from(MAX_MEMORY) << 20 => {
            Err(format!("is out of range: at most {} TiB, found {text}", MAX_MEMORY >> 20))
        }
        bytes => Ok(bytes),
    }
}

/// Memory in MiB: `4GiB`, `512MiB`, `4g`.
pub(super) fn memory(text: &str) -> Result<MiB, Wrong> {
    bytes(text, "4GiB or 512MiB").map(|bytes| bytes.div_ceil(1 << 20) as MiB)
}

/// A GPU's memory in MiB: `40GiB`.
pub(super) fn gpu_memory(text: &str) -> Result<MiB, Wrong> {
    bytes(text, "40GiB").map(|bytes| bytes.div_ceil(1 << 20) as MiB)
}

/// Disk in MiB: `100GiB`.
pub(super) fn disk(text: &str) -> Result<MiB, Wrong> {
    bytes(text, "100GiB").map(|bytes| bytes.div_ceil(1 << 20) as MiB)
}

/// Shared memory in bytes: `2g`, or bytes without a unit, as container runtimes read it.
pub(super) fn shared_memory(text: &str) -> Result<u64, Wrong> {
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = if bare { format!("{text}b") } else { text.to_owned() };
    bytes(&text, "2g").map(|bytes| bytes as u64)
}

/// Seconds, at most a week of them: `30`, `30s`, `5m`, `1h`, `2d`.
pub(super) fn seconds(text: &str) -> Result<u64, Wrong> {
    if let Some(wrong) = sign_or_nan(text, "at least 0") {
        return Err(wrong);
    }
    const DAY: u128 = 24 * 3600;
    let (digits, unit) = split_unit(text);
    let wrong = || format!("expected a time such as 30, 30s, 5m, 1h or 2d, found '{text}'");
    let factor = match unit.as_str() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => DAY,
        _ => return Err(wrong()),
    };
    let seconds = Decimal::parse(digits).ok_or_else(wrong)?.times(factor, 1);
    if seconds > u128::from(MAX_BACKOFF) {
        let days = u128::from(MAX_BACKOFF) / DAY;
        return Err(format!("is out of range: at most {days}d, found {text}"));
    }
    Ok(seconds as u64)
}

/// A factor in percent: `2x` is 200.
pub(super) fn percent(text: &str) -> Result<u32, Wrong> {
    if let Some(wrong) = sign_or_nan(text, "at least 1x") {
        return Err(wrong);
    }
    let (digits, unit) = split_unit(text);
    let wrong = || format!("expected a factor such as 2x or 1.5x, found '{text}'");
    if unit != "x" {
        return Err(wrong());
    }
    let percent = Decimal::parse(digits).ok_or_else(wrong)?.times(100, 1);
    if !(100..=u128::from(MAX_MEMORY_PERCENT)).contains(&percent) {
        return Err(format!(
            "is out of range: from 1x to {}x, found {text}",
            MAX_MEMORY_PERCENT / 100
        ));
    }
    Ok(percent as u32)
}

/// GPUs in thousandths, so many in all: `4`, `0.5`, `1.5`.
pub(super) fn milli_gpus(text: &str) -> Result<u64, Wrong> {
    if let Some(wrong) = sign_or_nan(text, "more than 0") {
        return Err(wrong);
    }
    let most = u128::from(MAX_GPUS) * u128::from(MAX_CLUSTER);
    let wrong = || format!("expected a number of GPUs such as 4 or 0.5, found '{}'", shorten(text));
    match Decimal::parse(text.trim()).ok_or_else(wrong)?.times(WHOLE_GPU.into(), 1) {
        0 => Err(format!("must be more than 0, found {text}")),
        milli if milli > most * u128::from(WHOLE_GPU) => {
            Err(format!("is out of range: at most {most} GPUs, found {text}"))
        }
        milli => Ok(milli as u64),
    }
}
