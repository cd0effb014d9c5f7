//! Descriptors: how many this process may have, and what may take them.
//!
//! Invariant: L1's entries and all ports' connections together fit into the limit
//! that the system gives this process, with room left for files; what the
//! configuration wants beyond that is cut at the start, with a warning.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{config::Config, transfer::ServerSettings};

/// Connections to the gRPC port: clients, and a few of each other node.
pub(super) const GRPC_CONNECTIONS: usize = 1024;
/// Files of log, index and disk tier, children, connections to other nodes.
const OTHERS: usize = 256;
/// Less than this of either makes a node useless: then starting is left to fail.
const LEAST: usize = 16;

/// Raises this process's limit as far as the system lets it, and cuts what needs more.
pub(super) fn fit(mut config: Config) -> Config {
    let limit = raise();
    let wanted = (config.memory.entries, config.resp.max_connections);
    (config.memory.entries, config.resp.max_connections) = within(limit, wanted);
    if (config.memory.entries, config.resp.max_connections) != wanted {
        tracing::warn!(
            limit,
            "memory.entries = {} and resp.max_connections = {} need more file descriptors than \
             this process may have: it goes on with {} and {}; raise the limit (ulimit -Hn)",
            wanted.0,
            wanted.1,
            config.memory.entries,
            config.resp.max_connections,
        );
    }
    config
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

/// Entries and connections as they fit, in the proportion that was wanted.
fn within(limit: usize, (entries, connections): (usize, usize)) -> (usize, usize) {
    // Two servers of bytes: to peers, and on the unix socket.
    let fixed = 2 * ServerSettings::default().max_connections + GRPC_CONNECTIONS + OTHERS;
    let wanted = entries.saturating_add(connections);
    // A limit below what the fixed ports may need is shared out all the same.
    let free = limit.saturating_sub(fixed).max(limit / 4);
    if wanted <= free {
        return (entries, connections);
    }
    let part = |of: usize| {
        let part = of as u128 * free as u128 / wanted as u128;
        usize::try_from(part).unwrap_or(free).max(LEAST.min(of))
    };
    (part(entries), part(connections))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_more_than_there_is_is_cut_in_proportion() {
        assert_eq!(within(usize::MAX, (4096, 10_000)), (4096, 10_000));
        assert_eq!(within(1 << 20, (4096, 1024)), (4096, 1024));
        for limit in [1024, 4096, 20_000] {
            let (entries, connections) = within(limit, (100_000, 50_000));
            assert!(entries + connections <= limit, "{limit}: {entries} + {connections}");
            assert!(entries >= connections && connections >= LEAST, "{limit}");
        }
    }
}
