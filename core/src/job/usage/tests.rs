use super::{Advice, Usage, advise};

#[test]
fn members_add_up() {
    let one = Usage {
        cpu_ms: 10,
        peak_memory: 5,
        wall_ms: 7,
        gpu_ms: 3,
        peak_gpu_memory: 9,
        input_bytes: 8,
        input_fetched_bytes: 8,
    };
    let other = Usage {
        cpu_ms: 1,
        peak_memory: 8,
        wall_ms: 6,
        gpu_ms: 2,
        peak_gpu_memory: 4,
        input_bytes: 8,
        input_fetched_bytes: 3,
    };
    let both = Usage {
        cpu_ms: 11,
        peak_memory: 8,
        wall_ms: 7,
        gpu_ms: 5,
        peak_gpu_memory: 9,
        input_bytes: 8,
        input_fetched_bytes: 11,
    };
    assert_eq!(one.with(other), both);
}

#[test]
fn what_was_used_says_what_to_ask_for() {
    let of = |asked, peaks: &[u64]| advise(asked, peaks.iter().copied());
    assert_eq!(of(16_384, &[]), None);
    // Nothing was measured of runs that were too short.
    assert_eq!(of(16_384, &[0, 0]), None);
    let advice = Advice { runs: 2, peak_memory: 2_100, memory: 2_560 };
    assert_eq!(of(16_384, &[2_100, 1_000]), Some(advice));
    // Whoever asked for nothing is told too, and whoever asked for too little.
    assert_eq!(of(0, &[2_100, 0, 1_000]), Some(advice));
    assert_eq!(of(2_000, &[2_100, 1_000]), Some(advice));
    // About right is right.
    assert_eq!(of(2_560, &[2_100]), None);
    assert_eq!(of(3_800, &[2_100]), None);
    assert_eq!(of(100, &[20]), Some(Advice { runs: 1, peak_memory: 20, memory: 64 }));
    assert_eq!(of(64, &[20]), None);
}
