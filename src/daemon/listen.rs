//! The daemon's two ports. By one it is told what to do: gRPC, and all else beside it. By the other jobs log and
//! store, and nodes move data; what gives orders is not there, so that jobs can be kept from the first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

use super::serve::Error;
use crate::config::{ServeArgs, TlsWhen};
use crate::identity::AskedAs;

/// Both ports, open.
pub(super) struct Listeners {
    pub(super) control: TcpListener,
    pub(super) jobs: TcpListener,
    /// Whether the jobs' address is the one to come back to: none that stands in for one that was taken.
    pub(super) is_to_keep: bool,
}

impl Listeners {
    /// Opens them. Unless it is said, the jobs' is the one that it was `before`: running jobs know the daemon by
    /// it. At first it is the one after the other, or any that is free.
    pub(super) async fn open(
        listen: SocketAddr,
        jobs: Option<SocketAddr>,
        before: Option<SocketAddr>,
    ) -> Result<Self, Error> {
        let control = bound(listen, "--listen").await?;
        if let Some(jobs) = jobs {
            let jobs = bound(jobs, "--jobs-listen").await?;
            return Ok(Self { control, jobs, is_to_keep: true });
        }
        let at = |port| SocketAddr::new(listen.ip(), port);
        // Where it listens at another address now, so it does for jobs.
        let before = before.map(|before| at(before.port()));
        let next = listen.port().checked_add(1).filter(|port| *port > 1);
        for address in before.into_iter().chain(next.map(at)) {
            match TcpListener::bind(address).await {
                Ok(jobs) => {
                    let is_to_keep = before.is_none_or(|before| before == address);
                    return Ok(Self { control, jobs, is_to_keep });
                }
                Err(error) if before == Some(address) => tracing::warn!(
                    %address, %error,
                    "running jobs do not reach the daemon: its port for them is taken; free it and restart the \
                     daemon, or choose another with --jobs-listen"
                ),
                Err(error) => tracing::warn!(
                    %address, %error,
                    "the port for jobs is any that is free: the next one is taken; choose one with --jobs-listen"
                ),
            }
        }
        let jobs = bound(at(0), "--jobs-listen").await?;
        Ok(Self { control, jobs, is_to_keep: before.is_none() })
    }
}

/// Whether the ports are encrypted: always where other machines reach one of them, for tokens go through both.
pub(super) fn is_secure(args: &ServeArgs) -> bool {
    let mut all = [Some(args.listen), args.jobs_listen].into_iter().flatten();
    args.tls == TlsWhen::On || args.tls_cert.is_some() || all.any(|at| !at.ip().is_loopback())
}

/// By what the daemon is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Addresses {
    pub(super) control: SocketAddr,
    pub(super) jobs: SocketAddr,
    pub(super) is_secure: bool,
}

impl Addresses {
    /// What clients on this machine are told.
    pub(super) fn announced(&self) -> String {
        self.url(&from_here(self.control).to_string())
    }

    /// Where it is told what to do, for who has asked so.
    pub(crate) fn control_url(&self, asked: Option<&AskedAs>) -> String {
        self.of(self.control, asked)
    }

    /// Where jobs log and store, for who has asked so.
    pub(crate) fn jobs_url(&self, asked: Option<&AskedAs>) -> String {
        self.of(self.jobs, asked)
    }

    /// Both ports of one address have whatever name the daemon was asked by: it leads there, and the certificate has
    /// it. So has a port at all addresses, which is no place to send anybody to.
    fn of(&self, at: SocketAddr, asked: Option<&AskedAs>) -> String {
        match asked {
            Some(AskedAs(host))
                if at.ip().is_unspecified() || self.control.ip() == self.jobs.ip() =>
            {
                self.url(&format!("{host}:{}", at.port()))
            }
            _ => self.url(&from_here(at).to_string()),
        }
    }

    fn url(&self, authority: &str) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{authority}")
    }
}

/// An address as this machine reaches it: one that stands for all of them is the loopback.
fn from_here(at: SocketAddr) -> SocketAddr {
    let ip = match at.ip() {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, at.port())
}

async fn bound(address: SocketAddr, option: &'static str) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| Error::Listen { address, option, source })
}

#[cfg(test)]
mod tests;
