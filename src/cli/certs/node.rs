//! `kiln certs node`: a node's certificates for both audiences, kept in force beside it.
//!
//! Invariant: a file is replaced as a whole, by what the authorities sign that lie there now.
//! Where these cannot be used, what was written before stays, and that is told.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use kiln::net::tls::Identity;
use tokio_util::sync::CancellationToken;

use super::{CLIENTS, MEMBERS, Made, Pair, Purpose, issue, make_folder, tell};
use crate::cli::{CliError, client, serve::stop_on_signal};

/// Between two looks at the authorities: a secret of Kubernetes changes without a word.
const EVERY: Duration = Duration::from_secs(2);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The files are called `node-member.pem`, `node-member.key`, `node-server.pem` and so on.
const NAME: &str = "node";

#[derive(Debug, Args)]
pub(super) struct Node {
    /// Folder of the authorities, as `kiln certs init` made it. Of several certificates in a
    /// file the first one's key signs: while an authority is replaced, its file has both.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Folder for the certificates and their keys; it is made. What is there is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Data folder of the node: its member's certificate names the key with which it signs,
    /// which is made there if the node has not run yet.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Host name or IP address under which members and clients reach it. May be repeated.
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',', required = true)]
    hosts: Vec<String>,
    /// Days that they are good for; a third of them later there are new ones.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Sign them, and end.
    #[arg(long)]
    once: bool,
}

/// Of members and of clients.
type Authorities = [Made; 2];

impl Node {
    pub(super) fn run(&self, json: bool) -> Result<(), CliError> {
        let authorities = self.authorities()?;
        tell(json, &self.sign(&authorities)?)?;
        match self.once {
            true => Ok(()),
            false => client(self.follow(authorities, json)),
        }
    }

    fn authorities(&self) -> anyhow::Result<Authorities> {
        let read = |name: &str| Pair::at(&self.dir.join(name)).read();
        Ok([read(MEMBERS)?, read(CLIENTS)?])
    }

    /// Nothing is written unless both are signed.
    fn sign(&self, [members, clients]: &Authorities) -> anyhow::Result<Vec<PathBuf>> {
        make_folder(&self.data_dir)?;
        let key = kiln::identity::name(&self.data_dir).context("the node's key")?;
        let named = Identity { node: None, key: Some(key.to_bytes()) }.to_uri();
        let sign = |authority: &Made, uri, purpose| {
            let signer = (authority.cert.as_str(), authority.key.as_str());
            issue(signer, NAME, &self.hosts, uri, purpose, self.days).context("sign a certificate")
        };
        let member = sign(members, named, Purpose::Both)?;
        let server = sign(clients, None, Purpose::Server)?;
        make_folder(&self.out)?;
        let at = |audience: &str| Pair::at(&self.out.join(format!("{NAME}-{audience}")));
        let mut written = at("member").replace(&member)?;
        written.extend(at("server").replace(&server)?);
        Ok(written)
    }

    /// Until SIGINT or SIGTERM.
    async fn follow(&self, mut signed: Authorities, json: bool) -> Result<(), CliError> {
        let stop = CancellationToken::new();
        stop_on_signal(stop.clone())?;
        let (life, mut since) = (DAY * self.days / 3, Instant::now());
        let mut told = String::new();
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let renewed = self.authorities().and_then(|now| {
                let due = now != signed || since.elapsed() >= life;
                let written = due.then(|| self.sign(&now)).transpose()?;
                Ok(written.map(|written| (now, written)))
            });
            match renewed {
                Ok(None) => told.clear(),
                Ok(Some((now, written))) => {
                    tell(json, &written)?;
                    told.clear();
                    (signed, since) = (now, Instant::now());
                }
                Err(error) => {
                    let error = format!("{error:#}: the certificates stay as they are");
                    if error != told {
                        eprintln!("{error}");
                    }
                    told = error;
                }
            }
        }
        Ok(())
    }
}
