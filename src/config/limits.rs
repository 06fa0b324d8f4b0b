//! How much one caller may ask a daemon for, and where nodes fetch what users name.

use atelier_core::egress::Network;

/// Limits that an admin may set.
#[derive(clap::Args, Clone, Debug)]
pub struct LimitArgs {
    /// Requests a second that each user may make on average; twenty seconds' worth may come at once. Nodes and jobs may
    /// make ten times as many
    #[arg(
        long,
        default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "NUMBER"
    )]
    pub request_rate: u32,
    /// Requests of each user that are answered at the same time, logs and events that are followed included. Nodes and
    /// jobs may make four times as many
    #[arg(
        long,
        default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "NUMBER"
    )]
    pub requests_at_once: u32,
    /// Addresses inside your network from which nodes may fetch inputs that are URLs: ADDRESS or ADDRESS/BITS; may be
    /// given several times. Without, they fetch from public addresses only
    #[arg(long, value_name = "NETWORK")]
    pub allow_egress: Vec<Network>,
}

impl Default for LimitArgs {
    fn default() -> Self {
        Self { request_rate: 1000, requests_at_once: 1000, allow_egress: Vec::new() }
    }
}
