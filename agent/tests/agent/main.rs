//! A real agent process against a daemon played by the test, over real gRPC.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod daemon;
mod jobs;
mod logs;
mod restarts;
