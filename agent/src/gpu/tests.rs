#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use atelier_proto::agent::v1 as pb;
use futures::FutureExt as _;
use nvml_wrapper::error::NvmlError;
use serde_json::{Value, json};

use super::kept::RECORD;
use super::nvidia::{
    Listed, all_nodes, drawing_nodes, is_on_the_bus, listed, nodes_of, note, undescribed,
};
use super::{
    Device, Devices, GpuSample, Gpus, Health, Idle, Inventory, Link, Owners, Process, Sickness,
    Untold, find, settle,
};
use crate::attempt::MARK;
use crate::cgroup::DeviceNode;
use crate::monitor::{Granted, Monitor};
use crate::proc;

/// A file with a recording, in a folder of its own.
struct Recording {
    folder: tempfile::TempDir,
}

impl Recording {
    fn new(gpus: &Value) -> Self {
        let recording = Self { folder: tempfile::tempdir().unwrap() };
        recording.write(gpus);
        recording
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("gpus.json")
    }

    fn write(&self, gpus: &Value) {
        let next = self.folder.path().join("next");
        fs::write(&next, json!({ "gpus": gpus }).to_string()).unwrap();
        fs::rename(next, self.file()).unwrap();
    }

    fn devices(&self) -> Arc<Devices> {
        let source: Arc<dyn Gpus> = Arc::from(find(Some(&self.file())).unwrap());
        Devices::new(source, owners(), usize::MAX, self.folder.path())
    }
}

const ATTEMPTS: &str = "/nowhere/attempts";

fn owners() -> Owners {
    Owners::new(Path::new(ATTEMPTS).to_owned(), "atelier-n-0".to_owned())
}

/// A driver of two devices that answers as it is told to.
#[derive(Default)]
struct Stubborn {
    hangs: AtomicBool,
    /// It answers, and does not say what there is.
    refuses: AtomicBool,
    /// Of the first device no processes are told, of the second no memory.
    is_mute: AtomicBool,
    /// How often it was asked who is on a device.
    asked: AtomicU32,
}

/// The device nodes of the two, and of a third that is not described.
const FILES: [(u32, u32); 3] = [(195, 0), (195, 1), (195, 2)];

impl Stubborn {
    fn answers(&self) {
        while self.hangs.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn says(&self, index: u32, of: u32) -> bool {
        self.answers();
        index != of || !self.is_mute.load(Ordering::Relaxed)
    }

    fn devices(self: &Arc<Self>, root: &Path) -> Arc<Devices> {
        let patience = Duration::from_millis(300);
        Devices::with_patience(self.clone(), owners(), usize::MAX, root, patience)
    }
}

impl Gpus for Stubborn {
    fn inventory(&self) -> Result<Inventory, String> {
        self.answers();
        if self.refuses.load(Ordering::Relaxed) {
            return Err("its version is not the library's".to_owned());
        }
        let device = |index: u32| {
            let nodes = vec![FILES[index as usize]];
            Device { index, nodes, ..Device::default() }
        };
        Ok(Inventory { devices: [0, 1].map(device).into(), undescribed: vec![FILES[2]] })
    }

    fn closed(&self) -> Vec<DeviceNode> {
        vec![DeviceNode { major: 195, minor: None }]
    }

    fn links(&self) -> Vec<Link> {
        self.answers();
        Vec::new()
    }

    fn sample(&self, index: u32) -> Option<GpuSample> {
        self.says(index, 1).then(GpuSample::default)
    }

    fn health(&self, _index: u32) -> Health {
        self.answers();
        Health::default()
    }

    fn processes(&self, index: u32) -> Result<Vec<Process>, Untold> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.says(index, 0) { Ok(Vec::new()) } else { Err(Untold::Now) }
    }

    fn utilization(&self, _index: u32) -> Option<std::collections::BTreeMap<i32, f64>> {
        self.answers();
        None
    }
}

fn gpu(index: u32, more: &Value) -> Value {
    let mut gpu = json!({
        "index": index,
        "uuid": format!("GPU-{index}"),
        "model": "NVIDIA H200",
        "memory_mib": 143_771,
    });
    gpu.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    gpu
}

fn sickness(health: &Value) -> Option<Sickness> {
    serde_json::from_value::<Health>(health.clone()).unwrap().sickness(0)
}

/// A process that belongs to the attempt of this epoch.
fn process_of(epoch: u64) -> Child {
    let folder = format!("{ATTEMPTS}/{epoch}");
    let child = Command::new("sleep").arg("1000").env(MARK, &folder).spawn().unwrap();
    // It counts as started a little before its environment can be read.
    let pid = child.id().try_into().unwrap();
    while !proc::has_variable(pid, MARK, Path::new(&folder)) {
        std::thread::yield_now();
    }
    child
}

/// What the daemon is told of each device.
fn told(devices: &Devices) -> Vec<String> {
    devices.offered().into_iter().map(|gpu| gpu.out).collect()
}

#[test]
fn faults_of_a_device_are_told_from_those_of_programs() {
    assert_eq!(sickness(&json!({})), None);
    // A kernel that reads what is not its own, one that was killed, errors of long ago.
    let users = json!({ "xids": [13, 31, 43, 45], "uncorrected_aggregate": 7 });
    assert_eq!(sickness(&users), None);
    let of = |health| sickness(&health).map(|found| (found.reason, found.ends_jobs)).unwrap();
    let (reason, ends) = of(json!({ "uncorrected_volatile": 2, "uncorrected_aggregate": 5 }));
    assert_eq!((reason.as_str(), ends), ("2 uncorrected ECC errors (5 in its life)", true));
    let (reason, ends) = of(json!({ "xids": [31, 79] }));
    assert_eq!((reason.as_str(), ends), ("Xid 79, it has fallen off the bus", true));
    // A contained error has ended those whom it hit: the others run on.
    let contained = json!({ "xids": [94], "uncorrected_volatile": 1, "remap_pending": true });
    let (reason, ends) = of(contained);
    assert!(
        reason.starts_with("Xid 94, contained ECC error; 1 uncorrected ECC error;"),
        "{reason}"
    );
    assert!(reason.ends_with("wait to be remapped by a reset") && !ends, "{reason}");
    for (xid, ends_jobs) in
        [(48, true), (63, false), (64, false), (74, false), (95, true), (119, false), (120, false)]
    {
        assert_eq!(of(json!({ "xids": [xid] })).1, ends_jobs, "{xid}");
    }
    assert!(of(json!({ "lost": true })).1);
    let (reason, ends) = of(json!({ "reset_required": true }));
    assert_eq!((reason.as_str(), ends), ("it does nothing more until it is reset", true));
}

#[test]
fn errors_from_before_the_agent_take_a_device_out_and_end_no_job() {
    let aches =
        |errors: u64| json!([gpu(0, &json!({ "health": {"uncorrected_volatile": errors} }))]);
    let recording = Recording::new(&aches(1));
    let devices = recording.devices();
    let ends = |devices: &Devices| devices.lost(&[0]).now_or_never().is_some();
    assert_eq!(told(&devices), ["1 uncorrected ECC error"]);
    devices.look();
    assert!(!ends(&devices));
    // It happens again, under this agent's eyes.
    recording.write(&aches(2));
    devices.look();
    assert!(ends(&devices));
}

#[test]
fn a_recording_is_read_anew_at_each_look() {
    let recording = Recording::new(&json!([gpu(0, &json!({})), gpu(1, &json!({}))]));
    let devices = recording.devices();
    let mut changes = devices.subscribe();
    assert_eq!(told(&devices), ["", ""]);
    devices.look();
    assert!(!changes.has_changed().unwrap(), "nothing has");
    let broken = gpu(1, &json!({ "health": { "xids": [79] } }));
    recording.write(&json!([gpu(0, &json!({})), broken]));
    devices.look();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(told(&devices), ["", "Xid 79, it has fallen off the bus"]);
    // It stays out, whatever it says of itself now.
    recording.write(&json!([gpu(0, &json!({})), gpu(1, &json!({}))]));
    devices.look();
    assert_eq!(told(&devices)[1], "Xid 79, it has fallen off the bus");
    // What is half written changes nothing, and a device that is not there any more is lost.
    fs::write(recording.file(), "{\"gpus\": [").unwrap();
    devices.look();
    assert_eq!(told(&devices)[0], "");
    recording.write(&json!([gpu(1, &json!({}))]));
    devices.look();
    assert!(told(&devices)[0].contains("fallen off the bus"));
    let error = find(Some(Path::new("/nowhere.json"))).err().unwrap();
    assert!(error.contains("cannot read /nowhere.json"), "{error}");
}

#[test]
fn device_nodes_are_found_by_the_drivers_majors() {
    let majors = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n236 nvidia-caps\n";
    let caps = "config 1\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\ngpu10/gi1/access 900\n";
    assert_eq!(nodes_of(0, majors, caps), [(195, 0), (236, 12), (236, 13)]);
    assert_eq!(nodes_of(1, majors, caps), [(195, 1)]);
    assert_eq!(nodes_of(1, "195 nvidia-frontend\n", ""), [(195, 1)]);
    assert_eq!(nodes_of(1, "1 mem\n", ""), []);
}

#[test]
fn nodes_to_draw_with_are_found_by_the_address() {
    let sys = tempfile::tempdir().unwrap();
    for (path, numbers) in [
        ("0000:1a:00.0/drm/card1", "226:1\n"),
        ("0000:1a:00.0/drm/renderD129", "226:129\n"),
        ("0000:1b:00.0/drm/renderD130", "226:130\n"),
    ] {
        fs::create_dir_all(sys.path().join(path)).unwrap();
        fs::write(sys.path().join(path).join("dev"), numbers).unwrap();
    }
    assert_eq!(drawing_nodes("00000000:1A:00.0", sys.path()), [(226, 1), (226, 129)]);
    assert_eq!(drawing_nodes("00010000:1A:00.0", sys.path()), []);
    assert_eq!(drawing_nodes("nothing", sys.path()), []);
}

#[test]
fn what_leads_to_gpus_is_found_without_the_library() {
    let place = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = place.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("list/0000:1a:00.0/information", "Model: \t\t NVIDIA H200\nDevice Minor: \t 1\n");
    write("list/0000:1b:00.0/information", "Model: \t\t NVIDIA H200\nDevice Minor: \t 0\n");
    write("list/0000:1c:00.0/other", "");
    let mut all = listed(&place.path().join("list"));
    all.sort_by_key(|gpu| gpu.minor);
    let gpu = |address: &str, minor| Listed { address: address.to_owned(), minor };
    assert_eq!(all, [gpu("0000:1b:00.0", 0), gpu("0000:1a:00.0", 1)]);
    let described = Device { nodes: vec![(195, 1), (226, 1)], ..Device::default() };
    let nodes = |gpu: &Listed| vec![(195, gpu.minor), (226, gpu.minor)];
    assert_eq!(undescribed(&[described], &all, nodes), [(195, 0), (226, 0)]);
    assert_eq!(undescribed(&[], &all, nodes).len(), 4);
    write("pci/0000:1a:00.0/vendor", "0x10de\n");
    write("pci/0000:1a:00.0/drm/renderD129/dev", "226:129\n");
    write("pci/0000:2a:00.0/vendor", "0x1a03\n");
    write("pci/0000:2a:00.0/drm/card0/dev", "226:0\n");
    let majors = "Character devices:\n195 nvidia\n195 nvidiactl\n226 drm\n236 nvidia-caps\n";
    let closed: Vec<_> = all_nodes(majors, &place.path().join("pci"))
        .into_iter()
        .map(|DeviceNode { major, minor }| (major, minor))
        .collect();
    assert_eq!(closed, [(195, None), (226, Some(129)), (236, None)]);
    // Before the driver is loaded.
    let first = DeviceNode { major: 195, minor: None };
    assert_eq!(all_nodes("Character devices:\n  1 mem\n", Path::new("/nowhere")), [first]);
}

#[test]
fn a_gpu_whose_driver_is_not_loaded_yet_is_seen_on_the_bus() {
    let is_there = |vendor: &str, class: &str, driver: Option<&str>| {
        let bus = tempfile::tempdir().unwrap();
        let device = bus.path().join("0000:1a:00.0");
        fs::create_dir(&device).unwrap();
        fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
        fs::write(device.join("class"), format!("{class}\n")).unwrap();
        if let Some(driver) = driver {
            let driver = format!("../../../bus/pci/drivers/{driver}");
            std::os::unix::fs::symlink(driver, device.join("driver")).unwrap();
        }
        is_on_the_bus(bus.path())
    };
    assert!(is_there("0x10de", "0x030200", None));
    assert!(is_there("0x10de", "0x030000", Some("nvidia")));
    assert!(!is_there("0x10de", "0x030200", Some("vfio-pci")), "a virtual machine's");
    assert!(!is_there("0x10de", "0x040300", None), "it makes sounds");
    assert!(!is_there("0x1a03", "0x030000", None), "somebody else's");
    assert!(!is_on_the_bus(Path::new("/nowhere")));
}

#[test]
fn what_lies_between_devices_is_told() {
    let recording = Recording::new(&json!([]));
    let gpus = [gpu(0, &json!({ "pci": "0000:19:00.0", "numa_node": 1 })), gpu(1, &json!({}))];
    let link = json!({ "between": [0, 1], "kind": "NVLink" });
    let text = json!({ "gpus": gpus, "links": [link] }).to_string();
    fs::write(recording.file(), text).unwrap();
    let facts = recording.devices().facts();
    assert_eq!(facts["gpu_links"], "NVLink: all");
    assert_eq!(facts["gpu_numa"], "GPU 0: node 1");
    assert_eq!(facts["gpu_pci"], "GPU 0: 0000:19:00.0");
}

#[tokio::test]
async fn what_an_attempt_left_on_its_devices_is_killed() {
    let (mut left, other) = (process_of(7), process_of(8));
    let on = |child: &Child| json!({ "pid": child.id(), "memory_mib": 4000 });
    let both = json!({ "processes": [on(&left), on(&other)], "memory_used_mib": 8600 });
    let recording = Recording::new(&json!([gpu(0, &both), gpu(1, &json!({}))]));
    let devices = recording.devices();
    // Its memory comes back once it is dead.
    let file = recording.file();
    let watcher = std::thread::spawn(move || {
        left.wait().unwrap();
        let after = json!({ "processes": [{ "pid": other.id() }], "memory_used_mib": 4500 });
        let next = file.with_extension("next");
        fs::write(&next, json!({ "gpus": [gpu(0, &after), gpu(1, &json!({}))] }).to_string())
            .unwrap();
        fs::rename(next, file).unwrap();
        other
    });
    assert_eq!(settle(&devices, 7, &[0, 1]).await, None);
    let mut other = watcher.join().unwrap();
    assert!(other.try_wait().unwrap().is_none(), "that of another attempt lives");
    assert_eq!(told(&devices), ["", ""]);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_device_whose_memory_does_not_come_back_is_out() {
    let full = gpu(0, &json!({ "memory_used_mib": 90_000 }));
    // What the driver keeps for itself is not missed.
    let idle = gpu(1, &json!({ "memory_used_mib": 700 }));
    let recording = Recording::new(&json!([full, idle]));
    let devices = recording.devices();
    let (index, reason) = settle(&devices, 7, &[0, 1]).await.unwrap();
    assert_eq!(index, 0);
    assert!(reason.contains("90000 MiB of its memory were not given back"), "{reason}");
    assert_eq!(told(&devices), [reason.as_str(), ""]);
    devices.look();
    assert_eq!(told(&devices)[0], reason);
    // Late, but it is; and nothing stands against it for the next agent.
    let free = json!([gpu(0, &json!({})), gpu(1, &json!({}))]);
    recording.write(&free);
    devices.look();
    assert_eq!(told(&devices), ["", ""]);
    assert!(
        !fs::read_to_string(recording.folder.path().join(RECORD))
            .is_ok_and(|text| text.contains("90000"))
    );
}

#[tokio::test]
async fn a_driver_that_hangs_takes_its_devices_out_and_is_waited_for_once() {
    let (root, driver) = (tempfile::tempdir().unwrap(), Arc::<Stubborn>::default());
    let devices = driver.devices(root.path());
    assert_eq!(settle(&devices, 7, &[0]).await, None);
    driver.hangs.store(true, Ordering::Relaxed);
    let reason = "its driver did not answer for 300ms".to_owned();
    let since = Instant::now();
    let ends = (0..20).map(|epoch| settle(&devices, epoch, &[0]));
    for end in futures::future::join_all(ends).await {
        assert_eq!(end, Some((0, reason.clone())));
    }
    assert_eq!(told(&devices), [reason.as_str(), reason.as_str()]);
    assert!(devices.usage().is_empty());
    assert!(devices.ask(|_| ()).await.is_none());
    assert!(since.elapsed() < Duration::from_secs(5), "each has waited for itself");
    assert!(devices.lost(&[0]).now_or_never().is_none(), "what runs there runs on");
    driver.hangs.store(false, Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(10);
    while devices.ask(|_| ()).await.is_none() {
        assert!(Instant::now() < until, "it answers again and is not asked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The files that an attempt may not open which holds these devices.
fn denied(devices: &Devices, held: &[u32]) -> Vec<(u32, Option<u32>)> {
    devices.denied(held).into_iter().map(|DeviceNode { major, minor }| (major, minor)).collect()
}

/// How many seconds the driver is told not to have answered.
fn silent_for(devices: &Devices) -> Option<u64> {
    let told = devices.facts().get("gpu_driver")?.clone();
    told.strip_prefix("the GPU driver has not answered for ")?.strip_suffix(" s")?.parse().ok()
}

#[tokio::test]
async fn a_driver_that_hangs_when_an_agent_starts_tells_its_devices_later() {
    let (root, driver) = (tempfile::tempdir().unwrap(), Arc::<Stubborn>::default());
    driver.hangs.store(true, Ordering::Relaxed);
    let devices = driver.devices(root.path());
    assert!(told(&devices).is_empty());
    let silence = silent_for(&devices).unwrap();
    // Nobody knows which is whose.
    assert!(devices.guarded());
    assert_eq!(denied(&devices, &[]), [(195, None)]);
    assert_eq!(denied(&devices, &[0]), [(195, None)]);
    // A job of an agent before this one ends meanwhile, and nothing is known of its device.
    devices.hold(&[1]);
    assert_eq!(settle(&devices, 7, &[1]).await, None);
    let (index, why) = devices.unfit_one(&[1]).unwrap();
    assert!(index == 1 && why.contains("has not answered"), "{why}");
    assert_eq!(devices.unfit_one(&[]), None);
    let mut changes = devices.subscribe();
    let watching = tokio::spawn(devices.clone().watch());
    // The time that has passed is told.
    changes.changed().await.unwrap();
    assert!(silent_for(&devices).unwrap() > silence);
    driver.hangs.store(false, Ordering::Relaxed);
    while told(&devices).is_empty() {
        tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!(told(&devices), ["", ""]);
    assert!(!devices.facts().contains_key("gpu_driver"));
    assert_eq!(denied(&devices, &[0]), [(195, Some(1)), (195, Some(2))]);
    watching.abort();
}

#[tokio::test]
async fn devices_of_a_late_driver_are_emptied_before_they_are_offered() {
    let (root, driver) = (tempfile::tempdir().unwrap(), Arc::<Stubborn>::default());
    driver.hangs.store(true, Ordering::Relaxed);
    driver.is_mute.store(true, Ordering::Relaxed);
    let devices = driver.devices(root.path());
    let mut changes = devices.subscribe();
    let watching = tokio::spawn(devices.clone().watch());
    driver.hangs.store(false, Ordering::Relaxed);
    // Two of them when it has told what there is, and more when they are to be empty.
    let until = Instant::now() + Duration::from_secs(10);
    while driver.asked.load(Ordering::Relaxed) < 8 {
        assert!(Instant::now() < until, "nobody looks whether they are empty");
        assert!(told(&devices).is_empty(), "it is not known whether they are empty");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    driver.is_mute.store(false, Ordering::Relaxed);
    while told(&devices).is_empty() {
        tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!(told(&devices), ["", ""]);
    watching.abort();
}

#[tokio::test]
async fn a_driver_that_does_not_say_what_there_is_is_asked_again() {
    let (root, driver) = (tempfile::tempdir().unwrap(), Arc::<Stubborn>::default());
    driver.refuses.store(true, Ordering::Relaxed);
    let devices = driver.devices(root.path());
    let why =
        "the GPU driver does not say what devices there are: its version is not the library's";
    assert_eq!(devices.facts()["gpu_driver"], why);
    assert!(told(&devices).is_empty() && devices.guarded());
    let mut changes = devices.subscribe();
    let watching = tokio::spawn(devices.clone().watch());
    driver.refuses.store(false, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
    assert_eq!(told(&devices), ["", ""]);
    watching.abort();
}

#[tokio::test]
async fn jobs_are_measured_while_a_driver_hangs() {
    let (root, driver) = (tempfile::tempdir().unwrap(), Arc::<Stubborn>::default());
    let devices = driver.devices(root.path());
    driver.hangs.store(true, Ordering::Relaxed);
    let mut job = process_of(7);
    let (_client, clients) = tokio::sync::watch::channel(None);
    let (monitor, handle) = Monitor::new(devices, Duration::from_secs(60), clients);
    let running = tokio::spawn(monitor.run());
    let granted = Granted { indices: vec![0], share: None, idle: None };
    let supervisor = std::process::id().try_into().unwrap();
    let sampling = handle.watch(&pb::AttemptKey::default(), supervisor, granted, None, 0);
    let until = Instant::now() + Duration::from_secs(20);
    while sampling.seen().memory_bytes == 0 {
        assert!(Instant::now() < until, "nothing was measured");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.abort();
    driver.hangs.store(false, Ordering::Relaxed);
    job.kill().unwrap();
    job.wait().unwrap();
}

#[tokio::test]
async fn a_device_of_which_nothing_is_known_is_not_free() {
    let (root, driver) = (tempfile::tempdir().unwrap(), Arc::<Stubborn>::default());
    let devices = driver.devices(root.path());
    driver.is_mute.store(true, Ordering::Relaxed);
    let (index, reason) = settle(&devices, 7, &[0, 1]).await.unwrap();
    assert_eq!((index, reason.as_str()), (0, "its driver does not say who is on it"));
    assert_eq!(told(&devices)[1], "its driver does not say how much of its memory is used");
}

#[test]
fn a_device_stays_out_under_the_next_agent_until_somebody_says_otherwise() {
    let broken = json!([gpu(0, &json!({ "health": { "xids": [79] } })), gpu(1, &json!({}))]);
    let recording = Recording::new(&broken);
    let before = told(&recording.devices());
    assert_eq!(before, ["Xid 79, it has fallen off the bus", ""]);
    // The driver tells of errors only once, and to those who are there.
    recording.write(&json!([gpu(1, &json!({})), gpu(0, &json!({}))]));
    assert_eq!(told(&recording.devices()), ["", before[0].as_str()]);
    let record = recording.folder.path().join(RECORD);
    let kept = fs::read_to_string(&record).unwrap();
    fs::remove_file(&record).unwrap();
    assert_eq!(told(&recording.devices()), ["", ""]);
    let mut other_boot: Value = serde_json::from_str(&kept).unwrap();
    other_boot["boot_id"] = "another".into();
    fs::write(&record, other_boot.to_string()).unwrap();
    assert_eq!(told(&recording.devices()), ["", ""]);
}

#[tokio::test]
async fn memory_that_nobody_holds_when_an_agent_starts_takes_a_device_out() {
    let full = |index| gpu(index, &json!({ "memory_used_mib": 90_000 }));
    let recording = Recording::new(&json!([full(0), full(1), gpu(2, &json!({}))]));
    let devices = recording.devices();
    // That of a job which has outlived its agent is the job's.
    devices.hold(&[1]);
    let mut changes = devices.subscribe();
    let watching = tokio::spawn(devices.clone().watch());
    changes.changed().await.unwrap();
    let told = told(&devices);
    assert!(told[0].contains("90000 MiB of its memory were not given back"), "{told:?}");
    assert_eq!(told[1..], ["", ""]);
    watching.abort();
}

#[test]
fn errors_of_the_driver_say_what_is_wrong_with_a_device() {
    let of = |error: &NvmlError| {
        let mut health = Health::default();
        note(&mut health, error);
        health
    };
    assert_eq!(of(&NvmlError::GpuLost), Health { lost: true, ..Health::default() });
    let reset = Health { reset_required: true, ..Health::default() };
    assert_eq!(of(&NvmlError::ResetRequired), reset);
    assert_eq!(of(&NvmlError::NotSupported), Health::default());
}

#[test]
fn strangers_on_a_device_are_told_and_left_alone() {
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut ours = process_of(3);
    let processes = json!([
        { "pid": stranger.id(), "memory_mib": 500 },
        { "pid": ours.id(), "memory_mib": 100 },
    ]);
    let recording = Recording::new(&json!([gpu(0, &json!({ "processes": processes }))]));
    let devices = recording.devices();
    let expected = format!("GPU 0: sleep (pid {}) with 500 MiB", stranger.id());
    assert_eq!(devices.facts()["gpu_strangers"], expected);
    assert!(stranger.try_wait().unwrap().is_none());
    for child in [&mut stranger, &mut ours] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    devices.look();
    assert!(!devices.facts().contains_key("gpu_strangers"));
}

#[test]
fn devices_are_idle_once_all_of_them_are_for_long_enough() {
    let device = |percent| GpuSample {
        utilization: Some(percent),
        memory_total_mib: 1000.0,
        ..GpuSample::default()
    };
    let mut idle = Idle::after(10);
    assert_eq!(idle.looked(&[device(0.0), device(0.5)], 1_000), None);
    assert_eq!(idle.looked(&[device(0.0), device(0.0)], 10_999), None);
    assert_eq!(idle.looked(&[device(0.0), device(0.0)], 11_000), Some(10_000));
    // One that works is enough, and it begins anew.
    assert_eq!(idle.looked(&[device(0.0), device(1.0)], 12_000), None);
    assert_eq!(idle.looked(&[device(0.0), device(0.0)], 13_000), None);
    assert_eq!(idle.looked(&[device(0.0), device(0.0)], 23_000), Some(10_000));
    // One that does not answer may be working.
    assert_eq!(idle.looked(&[device(0.0), GpuSample::default()], 24_000), None);
    let untold = GpuSample { utilization: None, ..device(0.0) };
    assert_eq!(Idle::after(0).looked(&[untold], 1), None);
    assert_eq!(Idle::after(0).looked(&[], 1), None);
}
