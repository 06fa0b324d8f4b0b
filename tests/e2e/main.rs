//! End-to-end tests: real processes of the built program in a temporary folder, as a user, an
//! operator and a misfortune meet them.
//!
//! `tests/run` builds with `--features failpoints`, which some of the tests in `recovery` need. The
//! long ones have names that begin with `soak_` and run only under `tests/run --soak`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says why and fails"
)]

mod harness;

mod access;
mod addresses;
mod assets;
mod attacks;
mod audit;
mod authorities;
mod autolog;
mod backups;
mod bad_input;
mod builds;
mod caches;
mod checkpoints;
mod clocks;
mod clusters;
mod components;
mod contained_users;
mod containers;
mod containment;
mod datastores;
mod debug;
mod direct;
mod drain;
mod engines;
mod environments;
mod events;
mod exec;
mod fs;
mod gangs;
mod gpus;
mod groups;
mod homes;
mod images;
mod installs;
mod io;
mod isolation;
mod job_secrets;
mod jobs;
mod joins;
mod keyrings;
mod layers;
mod listings;
mod local;
mod locality;
mod mounts;
mod moves;
mod mpi;
mod nodes;
mod nouns;
mod overlays;
mod queue;
mod quotas;
mod ray;
mod recovery;
mod retention;
mod runs;
mod secrets;
mod service;
mod sharing;
mod sign_in;
mod spool;
mod storage;
mod stores;
mod tls;
mod transit;
mod users;
