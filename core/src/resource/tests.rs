use proptest::prelude::*;

use super::*;

fn device(model: &str, memory: MiB) -> GpuDevice {
    GpuDevice { uuid: String::new(), model: model.to_owned(), memory }
}

fn node(devices: &[(&str, MiB)]) -> Ledger {
    let gpus = (0..).zip(devices.iter().map(|(model, memory)| device(model, *memory))).collect();
    Ledger::new(Capacity { cpu: 64_000, memory: 1 << 20, gpus, ..Capacity::default() })
}

fn share(share: MilliGpu) -> Demand {
    Demand { gpus: 1, gpu_share: share, ..Demand::DEFAULT }
}

fn whole(gpus: u32) -> Demand {
    Demand { gpus, ..Demand::DEFAULT }
}

fn models(models: &[&str]) -> Option<Arc<[String]>> {
    Some(models.iter().map(|model| (*model).to_owned()).collect())
}

#[test]
fn several_share_a_device_and_fill_it_exactly() {
    let mut node = node(&[("", 0), ("", 0)]);
    let held: Vec<Reservation> = [500, 300, 600, 200]
        .map(|milli| node.reserve(&share(milli)).expect("there is room"))
        .into();
    // The fullest with room: 0.6 does not fit beside 0.8, 0.2 does.
    let on: Vec<&[GpuIndex]> = held.iter().map(|held| held.gpus.as_slice()).collect();
    assert_eq!(on, [&[0], &[0], &[1], &[0]]);
    assert_eq!(node.free_shares().collect::<Vec<_>>(), [(0, 0), (1, 400)]);
    assert_eq!(node.shortage(&share(401)), Some(Shortage::Gpus));
    assert_eq!((node.free_for(&share(1)), node.free_for(&whole(1))), (400, 0));
    // Whole devices are wholly free ones.
    assert_eq!(node.reserve(&whole(1)), Err(Shortage::Gpus));
    node.release(&held[2]);
    assert_eq!(node.reserve(&whole(1)).map(|held| held.gpus), Ok(vec![1]));
    for held in [&held[0], &held[1], &held[3]] {
        node.release(held);
    }
    assert_eq!(node.free_gpus().collect::<Vec<_>>(), [0]);
}

#[test]
fn only_devices_that_suit_are_taken() {
    let mut node =
        node(&[("Tesla T4", 15_000), ("NVIDIA A100-SXM4-80GB", 81_920), ("NVIDIA H100", 81_000)]);
    let asks = |gpus, wanted: &[&str]| Demand { gpu_models: models(wanted), ..whole(gpus) };
    assert!(node.capacity().could_hold(&asks(1, &["a100 sxm4"])));
    assert!(!node.capacity().could_hold(&asks(2, &["A100"])));
    assert!(node.capacity().could_hold(&asks(2, &["h100", "A100"])));
    assert!(!node.capacity().could_hold(&asks(1, &["B200"])));
    let large = Demand { gpu_memory: 80 * 1024, ..share(500) };
    assert_eq!(node.reserve(&large).map(|held| held.gpus), Ok(vec![1]));
    assert_eq!(node.reserve(&asks(2, &["H100", "A100"])), Err(Shortage::Gpus));
    assert_eq!(node.reserve(&asks(1, &["H100", "A100"])).map(|held| held.gpus), Ok(vec![2]));
    assert_eq!(node.reserve(&asks(1, &["H100"])), Err(Shortage::Gpus));
    // The fullest with room of those that suit, not the fullest.
    assert_eq!(node.reserve(&share(900)).map(|held| held.gpus), Ok(vec![0]));
    assert_eq!(node.reserve(&large).map(|held| held.gpus), Ok(vec![1]));
}

#[test]
fn disk_is_counted_where_it_is_known() {
    let demand = Demand { disk: 60, ..Demand::DEFAULT };
    let mut known = Ledger::new(Capacity { cpu: 9_000, disk: Some(100), ..Capacity::default() });
    let held = known.reserve(&demand).expect("there is room");
    assert_eq!((known.free_disk(), known.reserve(&demand)), (Some(40), Err(Shortage::Disk)));
    known.release(&held);
    assert!(known.is_idle());
    assert!(!known.capacity().could_hold(&Demand { disk: 101, ..Demand::DEFAULT }));
    let silent = Capacity { cpu: 9_000, ..Capacity::default() };
    assert!(silent.could_hold(&Demand { disk: MiB::MAX, ..Demand::DEFAULT }));
    let mut silent = Ledger::new(silent);
    let huge = silent.reserve(&Demand { disk: 1 << 40, ..Demand::DEFAULT }).expect("holds any");
    assert_eq!(silent.shortage(&demand), None);
    silent.release(&huge);
    assert!(silent.is_idle());
}

#[test]
fn labels_are_all_of_them_with_their_values() {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let labels: BTreeMap<_, _> = [label("zone", "b"), label("net", "ib")].into();
    let there = Capacity { cpu: 9_000, labels, ..Capacity::default() };
    let asks = |labels: &[(&str, &str)]| Demand {
        node_labels: Some(Arc::new(labels.iter().map(|(k, v)| label(k, v)).collect())),
        ..Demand::DEFAULT
    };
    assert!(there.could_hold(&asks(&[("zone", "b")])));
    assert!(there.could_hold(&asks(&[("zone", "b"), ("net", "ib")])));
    assert!(!there.could_hold(&asks(&[("zone", "b"), ("net", "eth")])));
    assert!(!there.could_hold(&asks(&[("rack", "1")])));
    assert_eq!(Ledger::new(there).shortage(&asks(&[("zone", "c")])), Some(Shortage::Labels));
}

#[test]
fn demands_and_nodes_in_words() {
    let labels = Arc::new([("zone".to_owned(), "b".to_owned())].into());
    let asks = Demand {
        gpu_models: models(&["A100", "H100"]),
        gpu_memory: 40 << 10,
        disk: 100 << 10,
        node_labels: Some(labels),
        ..whole(2)
    };
    assert_eq!(
        asks.to_string(),
        "1 CPU, 2 × A100 or H100 of at least 40 GiB, 100 GiB disk, a node with label zone=b"
    );
    assert_eq!(share(250).to_string(), "1 CPU, 0.25 GPU");
    let has = node(&[("", 0), ("NVIDIA A100", 81_920), ("NVIDIA A100", 81_920)]);
    let told = "64 CPU, 1024 GiB memory, 2 × NVIDIA A100 (80 GiB) and 1 GPU";
    assert_eq!(has.capacity().to_string(), told);
}

#[test]
fn records_from_before_shares_are_read_and_nothing_new_is_written_for_them() {
    let old = r#"{"cpu":1000,"memory":0,"gpus":2}"#;
    let demand: Demand = serde_json::from_str(old).expect("an old demand");
    assert_eq!(demand, whole(2));
    assert_eq!(serde_json::to_string(&demand).expect("it is written"), old);
    let old = r#"{"cpu":1000,"memory":0,"gpus":[0,3]}"#;
    let held: Reservation = serde_json::from_str(old).expect("an old reservation");
    assert_eq!((held.of_each_gpu(), held.disk), (WHOLE_GPU, 0));
    assert_eq!(serde_json::to_string(&held).expect("it is written"), old);
    let old = r#"{"cpu":1000,"memory":0,"gpus":{}}"#;
    let capacity: Capacity = serde_json::from_str(old).expect("an old capacity");
    assert_eq!(capacity.disk, None);
    assert_eq!(serde_json::to_string(&capacity).expect("it is written"), old);
}

fn any_demand() -> impl Strategy<Value = Demand> {
    let gpus =
        prop_oneof![Just(whole(0)), (1..3_u32).prop_map(whole), (1..1000_u16).prop_map(share),];
    let model = prop_oneof![Just(None), Just(models(&["A100"])), Just(models(&["T4", "A100"]))];
    let memory = prop_oneof![Just(0), Just(20)];
    (gpus, model, memory, 0..40_u64).prop_map(|(gpus, gpu_models, gpu_memory, disk)| Demand {
        cpu: 1,
        gpu_models,
        gpu_memory,
        disk,
        ..gpus
    })
}

proptest! {
    /// Whatever comes and goes, no device is held beyond the whole of it, what is taken suits, what
    /// is refused does not fit, and all is given back.
    #[test]
    fn books_balance(ops in proptest::collection::vec((any_demand(), any::<u8>()), 1..60)) {
        let mut node = node(&[("T4", 16), ("A100", 40), ("A100", 40), ("V100", 16)]);
        node.capacity.disk = Some(100);
        let mut held: Vec<Reservation> = Vec::new();
        for (demand, release) in ops {
            if release % 3 == 0 && !held.is_empty() {
                let back = held.swap_remove(usize::from(release) % held.len());
                node.release(&back);
            }
            let room = node.free_shares().filter(|(index, free)| {
                demand.suits(&node.capacity.gpus[index]) && *free >= demand.of_each_gpu()
            });
            let fits = room.count() >= demand.gpus as usize
                && Some(demand.disk) <= node.free_disk();
            let got = node.reserve(&demand);
            prop_assert_eq!(got.is_ok(), fits, "{:?} of {:?}", demand, node);
            if let Ok(got) = got {
                prop_assert_eq!(got.gpus.len(), demand.gpus as usize);
                prop_assert!(got.gpus.iter().all(|at| demand.suits(&node.capacity.gpus[at])));
                held.push(got);
            }
            for index in node.capacity.gpus.keys() {
                let sum: u32 = held
                    .iter()
                    .filter(|held| held.gpus.contains(index))
                    .map(|held| u32::from(held.of_each_gpu()))
                    .sum();
                prop_assert!(sum <= WHOLE_GPU.into());
                let kept = node.gpus.get(index).copied().unwrap_or_default();
                prop_assert_eq!(sum, u32::from(kept));
            }
            prop_assert!(held.iter().map(|held| held.disk).sum::<MiB>() <= 100);
        }
        held.iter().for_each(|held| node.release(held));
        prop_assert!(node.is_idle());
    }
}

#[test]
fn a_models_number_stands_for_itself() {
    let is = |model: &str, wanted: &str| device(model, 0).is_model(wanted);
    for (model, wanted) in [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "nvidia a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-PCIE-16GB", "v100"),
        ("NVIDIA RTX A1000", "RTX A1000"),
    ] {
        assert!(is(model, wanted), "{model} is {wanted}");
    }
    for (model, wanted) in
        [("NVIDIA RTX A1000", "A100"), ("NVIDIA A100", "A10"), ("NVIDIA L40S", "L4"), ("", "A100")]
    {
        assert!(!is(model, wanted), "{model} is no {wanted}");
    }
}
