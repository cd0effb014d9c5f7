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
