//! Being asked to end, which is heard whatever the agent's own thread waits for: a folder on a file system whose
//! server is gone (NFS) holds up everything that touches it, and nothing can be done about that from here.

use std::future::Future;
use std::io;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How long the agent may take to end by itself, which it mostly does at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Resolves when this process gets SIGTERM or SIGINT. If it has not ended [`PATIENCE`] after that it is ended: jobs
/// go on under their supervisors, and the next agent takes them up.
///
/// # Errors
/// The operating system gives no thread, or lets nobody listen to signals.
pub(crate) fn asked() -> io::Result<impl Future<Output = ()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _within = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let (asked, is_asked) = oneshot::channel();
    let listen = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = asked.send(());
        tokio::time::sleep(PATIENCE).await;
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(listen);
        tracing::error!(
            "asked to end, and something that this agent waits for does not answer (a folder on a file system whose \
             server is gone?); it ends all the same"
        );
        // SAFETY: It only ends the process. What another thread holds is not waited for.
        unsafe { libc::_exit(1) }
    })?;
    Ok(async move {
        let _ = is_asked.await;
    })
}
