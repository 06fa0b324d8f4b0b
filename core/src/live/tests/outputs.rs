//! What becomes an asset, and when.

use super::super::*;
use super::ended;
use crate::id::PortName;
use crate::job::{EventKind, Progress, Report};
use crate::spec::{DataKind, Output, OutputMode};
use crate::testkit::{
    LEASE, Store, capacity, command_job, compute_name, demand, job_name, node_name, node_record,
    principal,
};

const NOW: Now = Now { wall: Timestamp::from_millis(1_700_000_000_000), mono: Mono(0) };

/// The kinds of events of a job whose command ends so, and the outputs that are registered.
fn story(code: i32) -> (Vec<&'static str>, Vec<String>) {
    let local = compute_name("local");
    let mut live =
        Live::new([local.clone()], local, principal("daemon"), LEASE, Counters::default());
    let mut spec = command_job(demand(1, 0, 0));
    for (name, asset) in [("kept", Some("digits")), ("other", Some("w")), ("plain", None)] {
        let output = Output {
            kind: DataKind::CustomModel,
            mode: OutputMode::Upload,
            path: None,
            asset_name: asset.map(str::to_owned),
            asset_version: None,
        };
        spec.outputs.insert(PortName::new(name).unwrap(), output);
    }
    let mut out = Decisions::default();
    live.node_joined(node_record("n", "local", capacity(1, 1_000, 0)), vec![], NOW, &mut out);
    let (name, principal) = (job_name("train"), principal("ana"));
    live.submit(
        Submission { name: name.clone(), spec: Arc::new(spec), principal, manages: false },
        NOW,
        &mut out,
    )
    .unwrap();
    live.schedule(NOW, &mut out);
    let key = live.job(&name).unwrap().attempt_key().unwrap();
    let progress = Progress::Ended(Box::new(ended(code)));
    live.report(&node_name("n"), Report { key, progress }, NOW, &mut out);
    // The log takes them as it takes all others.
    let mut store = Store::default();
    store.commit(&out, live.counters()).unwrap();
    let outputs = out.events.iter().filter_map(|event| match &event.kind {
        EventKind::AssetRegistering { output } => Some(output.to_string()),
        _ => None,
    });
    (store.story(&name), outputs.collect())
}

#[test]
fn outputs_with_a_name_are_registered_right_before_the_job_is_completed() {
    let (events, outputs) = story(0);
    assert_eq!(outputs, ["kept", "other"]);
    assert_eq!(
        events,
        ["Submitted", "Assigned", "AssetRegistering", "AssetRegistering", "Completed"]
    );
}

#[test]
fn a_job_that_fails_registers_nothing() {
    let (events, outputs) = story(3);
    assert!(outputs.is_empty());
    assert_eq!(events.last(), Some(&"Failed"));
}
