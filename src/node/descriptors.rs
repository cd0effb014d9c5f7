//! Descriptors: how many this process may have, and what may take them.
//!
//! Invariant: all blobs, in L1 or on their way in or out, and all ports' connections
//! together fit into the limit that the system gives this process, with room left for
//! files; what the configuration wants beyond that is cut at the start, with a warning.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{config::Config, transfer::ServerSettings};

/// Files of log, index and disk tier, children, connections to other nodes; half of a
/// limit that is too low for as many.
const OTHERS: usize = 256;
/// Each has so many, however low the limit: less makes a node useless.
const LEAST: usize = 8;

/// What may take descriptors, at most so many each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// Blobs, L1's among them.
    pub(super) blobs: usize,
    /// Connections of Redis clients.
    pub(super) resp: usize,
    /// Connections to the gRPC port: clients, and a few of each other node.
    pub(super) grpc: usize,
    /// Connections to each of the two servers of bytes: to peers, and on the unix socket.
    pub(super) bytes: usize,
    /// Connections to the HTTP port.
    pub(super) http: usize,
}

/// Raises this process's limit as far as the system lets it, and cuts what needs more.
pub(super) fn fit(mut config: Config) -> (Config, Descriptors) {
    let limit = raise();
    let wanted = Descriptors::wanted(&config);
    let fitting = wanted.within(limit);
    if fitting != wanted {
        config.memory.entries = config.memory.entries.min(fitting.blobs / 2);
        config.resp.max_connections = fitting.resp;
        tracing::warn!(
            limit,
            "memory.entries, resp.max_connections and the other ports need more file descriptors \
             than this process may have ({wanted:?}): it goes on with {fitting:?}; raise the limit \
             (ulimit -Hn)",
        );
    }
    (config, fitting)
}

/// Raises the soft limit to the hard one; what it is then.
fn raise() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "raise the limit of file descriptors");
            current
        }
    };
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

impl Descriptors {
    /// What a node takes whose limit is no matter.
    fn wanted(config: &Config) -> Self {
        Self {
            // As many as L1 has may be on their way in or out.
            blobs: config.memory.entries.saturating_mul(2),
            resp: config.resp.max_connections,
            grpc: 1024,
            bytes: ServerSettings::default().max_connections,
            http: 128,
        }
    }

    fn total(self) -> usize {
        let Self { blobs, resp, grpc, bytes, http } = self;
        [blobs, resp, grpc, bytes, bytes, http].into_iter().fold(0, usize::saturating_add)
    }

    fn each(self, part: impl Fn(usize) -> usize) -> Self {
        let Self { blobs, resp, grpc, bytes, http } = self;
        Self {
            blobs: part(blobs),
            resp: part(resp),
            grpc: part(grpc),
            bytes: part(bytes),
            http: part(http),
        }
    }

    /// The same as far as it fits into `limit`: [`LEAST`] of each, and the rest in the
    /// proportion that was wanted.
    fn within(self, limit: usize) -> Self {
        let free = limit - OTHERS.min(limit / 2);
        if self.total() <= free {
            return self;
        }
        let least = self.each(|of| of.min(LEAST));
        let over = (self.total() - least.total()).max(1) as u128;
        let rest = free.saturating_sub(least.total()) as u128;
        self.each(|of| {
            let least = of.min(LEAST);
            let more = (of - least) as u128 * rest / over;
            least + usize::try_from(more).unwrap_or(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_more_than_there_is_is_cut_in_proportion() {
        let wanted = |entries: usize, resp: usize| {
            let mut config = Config::default();
            (config.memory.entries, config.resp.max_connections) = (entries, resp);
            Descriptors::wanted(&config)
        };
        let usual = wanted(4096, 4096);
        assert_eq!(usual.within(1 << 20), usual);
        assert_eq!(wanted(usize::MAX, 1).within(usize::MAX).resp, 1);
        for limit in [128, 256, 1024, 4096, 20_000] {
            let fitting = wanted(100_000, 50_000).within(limit);
            assert!(fitting.total() <= limit - OTHERS.min(limit / 2), "{limit}: {fitting:?}");
            assert!(fitting.blobs >= fitting.resp && fitting.resp >= fitting.grpc, "{fitting:?}");
            assert!(fitting.bytes >= LEAST && fitting.http >= LEAST, "{limit}: {fitting:?}");
        }
    }
}
