//! The process that a pool's workers are forked from, where their dialect has one.
//!
//! Invariant: only a short cut. No worker needs it: where it is not there, cannot be
//! started or ends, a worker loads its compiler itself. It ends with the pool.

use std::path::PathBuf;

use tokio::sync::Mutex;

use super::{
    dialect::Dialect,
    process::{Forks, Worker},
};

/// The process, while it runs.
#[derive(Debug, Default)]
pub(super) struct Preloaded {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    server: Worker,
    socket: PathBuf,
}

impl Preloaded {
    /// Starts it unless it runs; it loads while the caller goes on.
    pub(super) async fn ensure<T: Dialect>(&self, dialect: &T) {
        let Some(Forks { launch, socket }) = dialect.forks() else { return };
        let mut running = self.running.lock().await;
        if let Some(Running { server, .. }) = &mut *running
            && server.is_alive()
        {
            return;
        }
        *running = None;
        match (Worker::start(launch), dialect.hello()) {
            (Ok(mut server), Ok(hello)) => {
                server.send(&hello).await;
                *running = Some(Running { server, socket: socket.clone() });
            }
            (Err(why), _) => tracing::warn!("no fork server: {why}"),
            (_, Err(why)) => tracing::warn!("no fork server: {why}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not there: it ended before it listened.
        let _ = std::fs::remove_file(&self.socket);
    }
}
