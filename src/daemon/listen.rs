//! The daemon's two ports. By one it is told what to do: gRPC, and all else beside it. By the other jobs log and
//! store, and nodes move data; what gives orders is not there, so that jobs can be kept from the first.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::serve::Error;

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

async fn bound(address: SocketAddr, option: &'static str) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| Error::Listen { address, option, source })
}

#[cfg(test)]
mod tests;
