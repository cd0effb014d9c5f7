//! Networks that can be cut: a namespace for each node, joined by a bridge.
//!
//! Invariant: everything made here has a name of this run's own, and is removed when
//! this value is dropped. A cut drops packets silently, as a broken network does.

use std::{
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use anyhow::{Context, ensure};

/// Where packets go that nobody shall get.
const NOBODY: &str = "02:00:00:00:00:fe";
static RUNS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Network {
    id: u32,
    nodes: usize,
}

impl Network {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let id = (std::process::id() + (RUNS.fetch_add(1, Relaxed) << 12)) & 0xffff;
        let network = Self { id, nodes: 0 };
        let bridge = network.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        let address = format!("{}/24", network.address(253));
        ip(&["addr", "add", &address, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        Ok(network)
    }

    /// One more namespace; the words that start a process in it.
    pub(crate) fn add(&mut self) -> anyhow::Result<Vec<String>> {
        let at = self.nodes;
        self.nodes += 1;
        let (name, link, inner) = (self.name(at), self.link(at), format!("kf{:x}i{at}", self.id));
        ip(&["netns", "add", &name])?;
        ip(&["link", "add", &link, "type", "veth", "peer", "name", &inner])?;
        ip(&["link", "set", &inner, "netns", &name])?;
        ip(&["-n", &name, "link", "set", &inner, "name", "eth0"])?;
        let address = format!("{}/24", self.address(at));
        ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
        for inside in ["lo", "eth0"] {
            ip(&["-n", &name, "link", "set", inside, "up"])?;
        }
        ip(&["link", "set", &link, "master", &self.bridge(), "up"])?;
        Ok(["ip", "netns", "exec", &name].map(str::to_owned).into())
    }

    /// The address of a node.
    pub(crate) fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 64 + (self.id >> 8) as u8 % 128, self.id as u8, at as u8 + 1)
    }

    /// What `from` sends to `to` is lost; `to` itself does not know.
    pub(crate) fn cut(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let (name, to) = (self.name(from), self.address(to).to_string());
        let lost = ["neigh", "replace", &to, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"];
        ip(&[&["-n", &name][..], &lost].concat())
    }

    /// Whether a connection can be made.
    pub(crate) fn connects(&self, from: usize, to: usize) -> anyhow::Result<bool> {
        let (name, to) = (self.name(from), self.address(to));
        let connect = format!("exec 3<>/dev/tcp/{to}/7400");
        let words = ["netns", "exec", &name, "timeout", "0.3", "bash", "-c", &connect];
        Ok(Command::new("ip").args(words).output().context("run ip")?.status.success())
    }

    pub(crate) fn mend(&self, from: usize, to: usize) -> anyhow::Result<()> {
        let (name, to) = (self.name(from), self.address(to).to_string());
        ip(&["-n", &name, "neigh", "del", &to, "dev", "eth0"])
    }

    /// Whether the cable of a node is in.
    pub(crate) fn plug(&self, at: usize, plugged: bool) -> anyhow::Result<()> {
        ip(&["link", "set", &self.link(at), if plugged { "up" } else { "down" }])
    }

    fn name(&self, at: usize) -> String {
        format!("kiln-faults-{:x}-{at}", self.id)
    }

    fn link(&self, at: usize) -> String {
        format!("kf{:x}h{at}", self.id)
    }

    fn bridge(&self) -> String {
        format!("kf{:x}br", self.id)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for at in 0..self.nodes {
            // What was never made cannot be removed.
            let _ = ip(&["link", "del", &self.link(at)]);
            let _ = ip(&["netns", "del", &self.name(at)]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let done = Command::new("ip").args(words).output().context("run ip")?;
    let why = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "ip {}: {}", words.join(" "), why.trim());
    Ok(())
}
