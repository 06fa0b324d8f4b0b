//! What things are in Atelier, and every decision about them.
//!
//! **Invariant:** nothing here touches a clock, randomness, the file system, the network or the
//! environment. Time, random bits and facts come in as arguments; decisions go out as values.
//! `Cargo.toml` names no library that could break this, and `clippy.toml` bans the rest.

// A hash map may be looked into, but its order differs from run to run and must decide nothing.
#![warn(clippy::iter_over_hash_type)]

pub mod access;
pub mod asset;
pub mod audit;
pub mod authority;
pub mod component;
pub mod compute;
pub mod content;
pub mod datastore;
pub mod doctor;
pub mod egress;
pub mod environment;
pub mod expr;
pub mod id;
pub mod job;
pub mod join;
pub mod layout;
pub mod limit;
pub mod live;
pub mod node;
pub mod resource;
pub mod retention;
pub mod scale;
pub mod sched;
pub mod secret;
pub mod sign_in;
pub mod simulate;
pub mod spec;
pub mod suggest;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod time;
pub mod track;
pub mod url;
