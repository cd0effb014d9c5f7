//! The certificates of a node: what its ports take, and how it connects to members.
//!
//! Invariant: every port is told here what it takes, so that none is forgotten; plain text
//! that other machines reach is in the log of every start.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{NodeError, Tasks};
use crate::{
    config::Config,
    net::tls::{Acceptor, BYTES, Dialer, GRPC, Mode, Trust, Verify, Whose},
};

/// HTTP as the HTTP port speaks it.
const HTTP: &[u8] = b"http/1.1";

/// Whether who calls a member from another machine shows which member it is.
fn proves_members(config: &Config) -> bool {
    let members = &config.tls.members;
    config.transfer_listen.ip().is_loopback() || members.mode == Mode::Require && members.named
}

/// What each port takes.
pub(super) struct Security {
    pub(super) grpc: Acceptor,
    pub(super) http: Acceptor,
    pub(super) resp: Acceptor,
    pub(super) members: Acceptor,
    /// To the other members.
    pub(super) dialer: Dialer,
    /// Whether members may speak plain text here, and so one of an earlier version can.
    pub(super) plain_members: bool,
    trusts: Vec<Arc<Trust>>,
}

impl Security {
    /// Reads the certificates.
    pub(super) fn open(config: &Config) -> Result<Self, NodeError> {
        let (members, clients) = (&config.tls.members, &config.tls.clients);
        let mut security = Self {
            grpc: Acceptor::plain("grpc"),
            http: Acceptor::plain("http"),
            resp: Acceptor::plain("resp"),
            members: Acceptor::plain("members"),
            dialer: Dialer::default(),
            plain_members: members.mode != Mode::Require,
            trusts: Vec::new(),
        };
        if let Some(files) = members.files() {
            let trust = Trust::open("members", files)?;
            let (mode, verify) = (members.mode, Verify::Required);
            let protocols = [GRPC, BYTES];
            let whose = Whose::Members { named: members.named };
            security.members =
                Acceptor::new("members", mode, verify, whose, &protocols, trust.clone())?;
            security.dialer = Dialer::new(mode, members.named, trust.clone())?;
            security.trusts.push(trust);
        }
        if let Some(files) = clients.files() {
            let trust = Trust::open("clients", files)?;
            let port = |name, verify, protocols: &[&[u8]]| {
                let whose = Whose::Clients;
                Acceptor::new(name, clients.mode, verify, whose, protocols, trust.clone())
            };
            security.grpc = port("grpc", clients.verify, &[GRPC])?;
            security.resp = port("resp", clients.verify, &[])?;
            security.http = port("http", Verify::Off, &[HTTP])?;
            security.trusts.push(trust);
        }
        for (name, address, _) in
            config.in_plain_text().into_iter().filter(|_| config.access.required)
        {
            tracing::warn!(
                "INSECURE: access.required is set, and {name} {address} takes plain text from other \
                 machines: whoever is on the way reads the tokens, and may be taken for a member"
            );
        }
        for (name, address, _) in config.in_plain_text() {
            tracing::warn!(
                "INSECURE: {name} {address} takes plain text from other machines: whoever reaches \
                 it can read and change what every node runs"
            );
        }
        if config.cluster.join_needs_token && !proves_members(config) {
            tracing::warn!(
                "INSECURE: cluster.join_needs_token is set, and the members' port {} does not prove \
                 who calls: whoever reaches it can speak as a member, and needs no token; set \
                 tls.members.mode = \"require\" and tls.members.named = true",
                config.transfer_listen
            );
        }
        Ok(security)
    }

    /// Follows the files until `stop`.
    pub(super) fn follow(&self, tasks: &mut Tasks) {
        let stop: CancellationToken = tasks.stop.clone();
        for trust in &self.trusts {
            tasks.spawn(trust.clone().follow(stop.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    #[test]
    fn only_named_certificates_that_are_required_prove_who_calls() {
        let judge = |mode, named, host: Ipv4Addr| {
            let mut config = Config::default();
            let members = &mut config.tls.members;
            (members.mode, members.named) = (mode, named);
            config.transfer_listen = SocketAddr::from((host, 1));
            proves_members(&config)
        };
        let everywhere = Ipv4Addr::UNSPECIFIED;
        assert!(judge(Mode::Require, true, everywhere));
        assert!(judge(Mode::Off, false, Ipv4Addr::LOCALHOST), "nobody else reaches it");
        for (mode, named) in [(Mode::Off, false), (Mode::Dial, true), (Mode::Require, false)] {
            assert!(!judge(mode, named, everywhere), "{mode:?} {named}");
        }
    }
}
