//! The faults of a run, one after the other and sometimes together.
//!
//! Invariant: whatever was done to the network or a disk is undone again, and a fault is
//! counted only when it struck: a message was held or lost, a process ended, a snapshot was sent.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    chance::Chance,
    disk::Unsynced,
    fleet::Fleet,
    network::{Host, Weather, address},
    wire::SNAPSHOT,
};
use crate::{ClusterError, Role, Start};

/// Most machines of one run.
const MOST_HOSTS: Host = 6;

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    CutOneWay,
    Isolate,
    IsolateLeader,
    Split,
    Crash,
    CrashLeader,
    PowerOfOne,
    PowerOfAll,
    Restart,
    SlowDisk,
    BrokenDisk,
    Storm,
    Reset,
    Join,
    Remove,
    Voters,
    Behind,
}

impl Fault {
    /// What happens to machines and to the network between them.
    pub(super) const OUTSIDE: [Self; 11] = [
        Self::CutOneWay,
        Self::Isolate,
        Self::IsolateLeader,
        Self::Split,
        Self::Crash,
        Self::CrashLeader,
        Self::PowerOfOne,
        Self::PowerOfAll,
        Self::SlowDisk,
        Self::Storm,
        Self::Reset,
    ];
    /// What operators do meanwhile, and what breaks besides.
    pub(super) const INSIDE: [Self; 6] =
        [Self::Restart, Self::BrokenDisk, Self::Join, Self::Remove, Self::Voters, Self::Behind];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::CutOneWay => "cut one way",
            Self::Isolate => "isolate",
            Self::IsolateLeader => "isolate the leader",
            Self::Split => "split",
            Self::Crash => "crash",
            Self::CrashLeader => "crash the leader",
            Self::PowerOfOne => "power of one",
            Self::PowerOfAll => "power of all",
            Self::Restart => "restart",
            Self::SlowDisk => "slow disk",
            Self::BrokenDisk => "broken disk",
            Self::Storm => "storm",
            Self::Reset => "reset",
            Self::Join => "join",
            Self::Remove => "remove",
            Self::Voters => "voters",
            Self::Behind => "behind",
        }
    }
}

/// Whoever does it.
pub(super) struct Nemesis {
    pub fleet: Arc<Fleet>,
    pub chance: Chance,
    pub faults: &'static [Fault],
}

impl Nemesis {
    /// Makes trouble until `until`.
    pub(super) async fn rage(mut self, until: Instant) {
        let mut deck: Vec<Fault> = Vec::new();
        while Instant::now() < until {
            tokio::time::sleep(self.chance.millis(100..1200)).await;
            if deck.is_empty() {
                deck = self.faults.to_vec();
            }
            let at = self.chance.within(0..deck.len() as u64);
            let fault = deck.swap_remove(usize::try_from(at).unwrap_or(0));
            self.strike(fault).await;
        }
    }

    async fn strike(&mut self, fault: Fault) {
        let trace = Arc::clone(&self.fleet.trace);
        trace.event(format_args!("fault: {}", fault.name()));
        let blows = || ["held", "lost", "resent", "stalled"].map(|what| trace.counted(what));
        let before = blows();
        trace.count("faults");
        trace.trouble(1);
        let struck = self.inflict(fault).await;
        trace.trouble(-1);
        if struck || before != blows() {
            trace.count("struck");
            trace.count(fault.name());
        }
        trace.event(format_args!("over: {}", fault.name()));
    }

    /// Does it and takes it back; whether it struck, where no message or sync tells that.
    async fn inflict(&mut self, fault: Fault) -> bool {
        let fleet = Arc::clone(&self.fleet);
        let trace = Arc::clone(&fleet.trace);
        let hosts: Vec<Host> = fleet.all().iter().map(|member| member.host()).collect();
        let others = |of: &[Host]| -> Vec<Host> {
            (0..fleet.size()).filter(|host| !of.contains(host)).collect()
        };
        let Some(victim) = self.chance.pick(&hosts) else { return false };
        let leader = self.leader().unwrap_or(victim);
        match fault {
            Fault::CutOneWay => {
                let other = self.chance.pick(&others(&[victim])).unwrap_or(victim);
                self.part(&[victim], &[other], false, 300..6000).await;
            }
            Fault::Isolate => self.part(&[victim], &others(&[victim]), true, 300..7000).await,
            Fault::IsolateLeader => self.part(&[leader], &others(&[leader]), true, 300..7000).await,
            Fault::Split => {
                let half: Vec<Host> =
                    (0..fleet.size()).filter(|_| self.chance.permille(500)).collect();
                self.part(&half, &others(&half), true, 300..5000).await;
            }
            Fault::Crash => return self.crash(&[victim], false).await,
            Fault::CrashLeader => return self.crash(&[leader], false).await,
            Fault::PowerOfOne => return self.crash(&[victim], true).await,
            Fault::PowerOfAll => return self.crash(&hosts, true).await,
            Fault::Restart => {
                let stopped = fleet.stop(victim).await;
                tokio::time::sleep(self.chance.millis(50..1500)).await;
                fleet.boot(victim);
                return stopped;
            }
            Fault::SlowDisk => {
                let disks: Vec<_> = fleet.all().iter().map(|m| Arc::clone(&m.disk)).collect();
                let one = self.chance.within(0..disks.len() as u64);
                let all = self.chance.permille(300);
                for (at, disk) in (0u64..).zip(&disks) {
                    disk.stall(all || at == one);
                }
                tokio::time::sleep(self.chance.millis(500..5000)).await;
                // Much is written and not synced: a good moment to lose it.
                if self.chance.permille(600) {
                    let hosts = if all { hosts } else { vec![victim, leader] };
                    self.crash(&hosts, true).await;
                }
                disks.iter().for_each(|disk| disk.stall(false));
            }
            Fault::BrokenDisk => {
                let Some(member) = fleet.running(victim) else { return false };
                member.disk.fail();
                // A disk that failed once is not trusted again: the member stops itself.
                let stopped = async {
                    tokio::select! {
                        biased;
                        () = member.process.dead.cancelled() => {}
                        _ = member.cluster.failed() => {}
                    }
                };
                let stopped = tokio::time::timeout(Duration::from_secs(10), stopped).await;
                if stopped.is_err() && member.disk.told_so() {
                    trace.violation(format!("host {victim} works on with a broken disk"));
                }
                return self.crash(&[victim], false).await;
            }
            Fault::Storm => {
                let lost = self.chance.within(20..250);
                let delay = 100..self.chance.within(2_000..250_000);
                fleet.network.set_weather(Weather { delay, resent: lost / 2, lost });
                tokio::time::sleep(self.chance.millis(500..5000)).await;
                fleet.network.set_weather(Weather::fair());
            }
            Fault::Reset => {
                fleet.network.reset_all();
                return true;
            }
            Fault::Join => return self.join(),
            Fault::Remove => return self.remove().await,
            Fault::Voters => {
                let Some(member) = fleet.running(victim) else { return false };
                let voters = if self.chance.permille(500) { 5 } else { 3 };
                let set =
                    tokio::time::timeout(Duration::from_secs(3), member.cluster.set_voters(voters));
                return matches!(set.await, Ok(Ok(_)));
            }
            Fault::Behind => return self.leave_behind(victim).await,
        }
        false
    }

    fn leader(&self) -> Option<Host> {
        let all = self.fleet.all();
        let leads = |m: &&Arc<super::fleet::Running>| m.cluster.status().role == Role::Leader;
        all.iter().find(leads).map(|member| member.host())
    }

    /// Nothing of `some` reaches `others` for a while, nor, `both`, the other way round.
    async fn part(
        &mut self,
        some: &[Host],
        others: &[Host],
        both: bool,
        millis: std::ops::Range<u64>,
    ) {
        let pairs: Vec<(Host, Host)> =
            some.iter().flat_map(|a| others.iter().map(move |b| (*a, *b))).collect();
        for (a, b) in &pairs {
            self.fleet.network.cut(*a, *b);
            if both {
                self.fleet.network.cut(*b, *a);
            }
        }
        // Sometimes a crash on top, while nobody can tell.
        if let Some(victim) = self.chance.pick(some)
            && self.chance.permille(200)
        {
            self.crash(&[victim], false).await;
        }
        tokio::time::sleep(self.chance.millis(millis)).await;
        for (a, b) in pairs {
            self.fleet.network.mend(a, b);
            self.fleet.network.mend(b, a);
        }
    }

    async fn crash(&mut self, hosts: &[Host], power: bool) -> bool {
        let kinds = [Unsynced::Lost, Unsynced::Lost, Unsynced::Torn, Unsynced::Kept];
        let mut crashed = false;
        for host in hosts {
            let unsynced = match power {
                true => self.chance.pick(&kinds[..3]),
                // What a process wrote to files outlives it; what it had in memory does not.
                false => self.chance.pick(&kinds),
            };
            crashed |= self.fleet.crash(*host, power, unsynced.unwrap_or(Unsynced::Lost));
        }
        tokio::time::sleep(self.chance.millis(50..3500)).await;
        for host in hosts {
            self.fleet.boot(*host);
            tokio::time::sleep(self.chance.millis(1..300)).await;
        }
        crashed
    }

    /// One more machine asks to be let in.
    fn join(&mut self) -> bool {
        if self.fleet.size() >= MOST_HOSTS {
            return true; // earlier ones joined
        }
        let peers = (0..self.fleet.size()).map(address).collect();
        let voter = self.chance.permille(700);
        let host = self.fleet.add(Start::Join { peers }, voter);
        self.fleet.boot(host);
        true
    }

    /// A machine leaves for good, by its own word or another's, where four are left.
    async fn remove(&mut self) -> bool {
        let all = self.fleet.all();
        let members: Vec<Host> = all
            .iter()
            .filter(|m| m.identity().is_some() && !m.is_going())
            .map(|m| m.host())
            .collect();
        let (Some(leaver), true) = (self.chance.pick(&members), members.len() > 3) else {
            return true;
        };
        let Some(member) = self.fleet.running(leaver) else { return true };
        let Some(node) = member.identity().map(|identity| identity.node) else { return true };
        let by = all.iter().find(|m| m.host() != leaver && !m.is_going() && m.identity().is_some());
        let patience = Duration::from_secs(20);
        self.fleet.leaves(&member, node);
        let removed = match by {
            Some(by) if self.chance.permille(500) => {
                tokio::time::timeout(patience, by.cluster.remove(node)).await
            }
            _ => tokio::time::timeout(patience, member.cluster.leave()).await,
        };
        self.fleet.trace.event(format_args!("node {node} is removed: {removed:?}"));
        if matches!(removed, Ok(Err(ClusterError::Invalid(_)))) {
            self.fleet.trace.count("last voter stays");
            self.fleet.stays(&member);
        }
        // Without that answer it may still be one of those whose votes are needed.
        if matches!(removed, Ok(Ok(_))) {
            self.fleet.trace.count("removed");
            self.fleet.retire(leaver);
            self.fleet.crash(leaver, false, Unsynced::Kept);
        }
        true
    }

    /// One member misses what the others do and then forget: it gets a snapshot.
    async fn leave_behind(&mut self, victim: Host) -> bool {
        let fleet = Arc::clone(&self.fleet);
        let before = fleet.trace.counted(SNAPSHOT);
        fleet.crash(victim, false, Unsynced::Lost);
        tokio::time::sleep(self.chance.millis(300..2500)).await;
        for member in fleet.all() {
            let compact = tokio::time::timeout(Duration::from_secs(2), member.cluster.compact());
            drop(compact.await);
        }
        fleet.boot(victim);
        let sent = || fleet.trace.counted(SNAPSHOT) > before;
        for _ in 0..1500 {
            if sent() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Sometimes it crashes in the middle of it, or right after.
        if sent() && self.chance.permille(600) {
            tokio::time::sleep(self.chance.millis(0..20)).await;
            self.crash(&[victim], false).await;
        }
        sent()
    }
}

/// All is well again.
pub(super) fn mend(fleet: &Arc<Fleet>) {
    fleet.trace.event("calm");
    for a in 0..fleet.size() {
        (0..fleet.size()).for_each(|b| fleet.network.mend(a, b));
    }
    fleet.network.set_weather(Weather::fair());
    fleet.off().into_iter().for_each(|host| fleet.boot(host));
}
