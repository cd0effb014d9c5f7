//! Idle connections to peers, and the buffers for what comes over them.
//!
//! Invariant: a connection in the pool is between two requests; at most
//! `idle_per_address` are kept for an address, none for longer than `idle`.

use std::{collections::HashMap, io};

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::settings::ClientSettings;
use crate::net::{Conn, tls::Dialer};

/// Bytes of a receive buffer: stays in a core's own cache while its bytes are
/// received, hashed and stored; a runtime thread is held for some 50 us. Measured
/// from 64 KiB to 1 MiB.
const BUFFER: usize = 128 << 10;
/// Unused buffers that are kept.
const MOST_BUFFERS: usize = 16;

pub(super) struct Pool {
    settings: ClientSettings,
    dialer: Dialer,
    idle: Mutex<HashMap<String, Vec<Idle>>>,
    buffers: Mutex<Vec<Box<[u8]>>>,
}

struct Idle {
    stream: Conn,
    since: Instant,
}

impl Pool {
    pub(super) fn new(settings: ClientSettings, dialer: Dialer) -> Self {
        Self { settings, dialer, idle: Mutex::default(), buffers: Mutex::default() }
    }

    /// The connection to `address` that was used last, if it still lives.
    pub(super) fn pop(&self, address: &str) -> Option<Conn> {
        let mut idle = self.idle.lock();
        let waiting = idle.get_mut(address)?;
        while let Some(Idle { stream, since }) = waiting.pop() {
            if since.elapsed() < self.settings.idle && stream.is_quiet() {
                return Some(stream);
            }
        }
        None
    }

    /// A new connection to `address`.
    pub(super) async fn connect(&self, address: &str) -> io::Result<Conn> {
        timeout(self.settings.connect, self.dialer.bytes(address)).await?
    }

    /// Keeps a connection whose last answer came whole.
    pub(super) fn put_back(&self, address: &str, stream: Conn) {
        let mut idle = self.idle.lock();
        idle.retain(|_, waiting| {
            waiting.retain(|c| c.since.elapsed() < self.settings.idle);
            !waiting.is_empty()
        });
        let waiting = idle.entry(address.to_owned()).or_default();
        if waiting.len() < self.settings.idle_per_address {
            waiting.push(Idle { stream, since: Instant::now() });
        }
    }

    /// A buffer to receive into: fresh memory would fault on every page.
    pub(super) fn pop_buffer(&self) -> Box<[u8]> {
        self.buffers.lock().pop().unwrap_or_else(|| vec![0; BUFFER].into())
    }

    /// Keeps a buffer for the next fetch.
    pub(super) fn put_back_buffer(&self, buffer: Box<[u8]>) {
        let mut buffers = self.buffers.lock();
        if buffers.len() < MOST_BUFFERS {
            buffers.push(buffer);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.idle.lock().values().map(Vec::len).sum()
    }
}
