#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use super::Listeners;

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn the_port_for_jobs_is_the_one_it_was_unless_that_is_taken() {
    let first = Listeners::open(any(), None, None).await.unwrap();
    let before = first.jobs.local_addr().unwrap();
    assert_ne!(before, first.control.local_addr().unwrap());
    assert!(first.is_to_keep);
    // It is taken, and something is found all the same, until the next start.
    let other = Listeners::open(any(), None, Some(before)).await.unwrap();
    assert_ne!(other.jobs.local_addr().unwrap(), before);
    assert!(!other.is_to_keep);
    drop(first);
    let again = Listeners::open(any(), None, Some(before)).await.unwrap();
    assert_eq!(again.jobs.local_addr().unwrap(), before);
    assert!(again.is_to_keep);
    drop(again);
    let chosen = Listeners::open(any(), Some(any()), Some(before)).await.unwrap();
    assert!(chosen.is_to_keep, "whoever names one means it");
}

#[tokio::test]
async fn a_port_that_was_asked_for_and_is_taken_is_told_with_the_option() {
    let first = Listeners::open(any(), None, None).await.unwrap();
    let jobs = first.jobs.local_addr().unwrap();
    let told = Listeners::open(any(), Some(jobs), None).await.err().unwrap().to_string();
    assert!(told.contains("--jobs-listen") && told.contains(&jobs.to_string()), "{told}");
}
