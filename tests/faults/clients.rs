//! Clients that work until they are stopped.
//!
//! Invariant: a key is used for a bounded number of calls, so that its history can be
//! checked; no two writes have the same bytes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    calls::{Caller, Shared},
    door::Door,
    fleet::Doors,
    history::{Call, End},
    payload::{Chance, bytes},
};

/// Calls of one key.
const CALLS: usize = 30;
/// Keys in use at once.
const KEYS: usize = 5;
/// All at once, each with one call under way.
const CLIENTS: u32 = 16;
/// Requests for each kernel, and for each model.
const COMPILES: usize = 4;
/// Bound that compiles and leases are asked with.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Bound that wholes are asked with, each of several compiles on a busy machine.
pub(crate) const WHOLE: Duration = Duration::from_secs(25);

/// What the clients of one run work on.
pub(crate) struct Work {
    pub(crate) shared: Arc<Shared>,
    pub(crate) doors: Doors,
    pub(crate) stop: CancellationToken,
    keys: Mutex<(Vec<(usize, usize)>, usize)>,
    artifact: AtomicUsize,
    kernel: AtomicUsize,
    model: AtomicUsize,
    writes: AtomicUsize,
    seed: u64,
}

/// Starts all clients.
pub(crate) fn start(
    doors: &Doors,
    shared: &Arc<Shared>,
    chance: &Chance,
) -> (Arc<Work>, JoinSet<()>) {
    let keys = Mutex::new(((0..KEYS).map(|n| (n, 0)).collect(), KEYS));
    let seed = chance.clone().below(1 << 30) as u64;
    let (artifact, kernel, model, writes) = Default::default();
    let (shared, doors, stop) = (Arc::clone(shared), Arc::clone(doors), CancellationToken::new());
    let work = Arc::new(Work { shared, doors, stop, keys, artifact, kernel, model, writes, seed });
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let work = Arc::clone(&work);
        let chance = chance.part(u64::from(client) + 1);
        clients.spawn(async move { work.client(client, chance).await });
    }
    (work, clients)
}

impl Work {
    async fn client(&self, client: u32, mut chance: Chance) {
        let mut caller = Caller::new(client, Arc::clone(&self.shared));
        let mut sets = 0;
        while !self.stop.is_cancelled() {
            let Some(door) = self.door(client, &mut chance) else { break };
            let call = match client {
                0..8 => self.value(&mut caller, &door, &mut chance).await,
                8..11 => self.artifact(&caller, &door, &mut chance).await,
                11 => self.kernel(&caller, &door).await,
                12 if !self.shared.models_rest.load(Relaxed) => self.model(&caller, &door).await,
                13..15 => self.redis(&mut caller, &door, &mut chance, &mut sets).await,
                _ => self.other(&caller, &door, &mut chance).await,
            };
            let pause = if call.ended == End::Failed { 60 } else { 5 + chance.below(15) };
            sleep(Duration::from_millis(pause as u64)).await;
        }
    }

    /// Some node that clients may ask. Each leaves one alone, where there are others: a node
    /// that keeps whoever asks it waiting never has all of them.
    fn door(&self, client: u32, chance: &mut Chance) -> Option<Arc<Door>> {
        let doors = self.doors.lock();
        let mut open: Vec<_> = doors.iter().filter(|door| door.open.load(Relaxed)).collect();
        if open.len() > 1 {
            open.remove(client as usize % open.len());
        }
        (!open.is_empty()).then(|| Arc::clone(open[chance.below(open.len())]))
    }

    /// Bytes that no other write has.
    fn bytes(&self, name: &str, chance: &mut Chance) -> Vec<u8> {
        let n = self.writes.fetch_add(1, Relaxed);
        bytes(&format!("{:x}: write {n} of {name}", self.seed), chance)
    }

    async fn value(&self, caller: &mut Caller, door: &Door, chance: &mut Chance) -> Call {
        let name = {
            let mut keys = self.keys.lock();
            let at = chance.below(KEYS);
            keys.0[at].1 += 1;
            let (n, calls) = keys.0[at];
            if calls == CALLS {
                keys.0[at] = (keys.1, 0);
                keys.1 += 1;
            }
            format!("v{n}")
        };
        match chance.below(100) {
            0..35 => caller.put(door, &name, &self.bytes(&name, chance)).await,
            35..40 => caller.remove(door, &name).await,
            40..65 => caller.lookup(door, &name, true).await,
            65..80 => caller.lookup(door, &name, false).await,
            80..95 => caller.fetch(door, &name).await,
            _ => caller.get(door, &name).await,
        }
    }

    /// Several ask for the right to the same artifact at once; one publishes it.
    async fn artifact(&self, caller: &Caller, door: &Door, chance: &mut Chance) -> Call {
        let n = self.artifact.load(Relaxed);
        let name = format!("a{n}");
        let next = || self.artifact.compare_exchange(n, n + 1, Relaxed, Relaxed).is_ok();
        let deadline = DEADLINE.as_millis() as u64;
        let (call, held) = caller.lease(door, &name, deadline).await;
        let Some(held) = held else {
            if call.read.is_some() {
                next();
            }
            return call;
        };
        match chance.below(100) {
            0..10 => return call,
            10..15 => sleep(crate::fleet::LEASE + Duration::from_secs(1)).await,
            // The lease ends, another is granted: its token is stale.
            15..25 => {
                let stale = held.end();
                let Some(other) = self.door(caller.client, chance) else { return call };
                let (again, new) = caller.lease(&other, &name, deadline).await;
                let Some(new) = new else { return again };
                caller.publish(door, &name, &stale, &self.bytes(&name, chance)).await;
                let call = caller.publish(&other, &name, &new, &self.bytes(&name, chance)).await;
                if call.ended == End::Ok {
                    next();
                }
                return call;
            }
            _ => {}
        }
        let call = caller.publish(door, &name, &held, &self.bytes(&name, chance)).await;
        if call.ended == End::Ok {
            next();
        }
        call
    }

    async fn kernel(&self, caller: &Caller, door: &Door) -> Call {
        let n = self.kernel.fetch_add(1, Relaxed) / COMPILES;
        let name = format!("k{:x}_{n}", self.seed);
        let call = caller.compile(door, &name, DEADLINE.as_millis() as u64).await;
        sleep(Duration::from_millis(200)).await;
        call
    }

    async fn model(&self, caller: &Caller, door: &Door) -> Call {
        let n = self.model.fetch_add(1, Relaxed) / COMPILES;
        let call = caller.whole(door, n, WHOLE.as_millis() as u64).await;
        sleep(Duration::from_millis(200)).await;
        call
    }

    /// One writer a key, always at the same node; everybody reads.
    async fn redis(
        &self,
        caller: &mut Caller,
        door: &Door,
        chance: &mut Chance,
        sets: &mut usize,
    ) -> Call {
        let own = |n: usize| format!("r{}-{}", caller.client, n / 15);
        let name = own(*sets);
        let first = self.doors.lock().get(caller.client as usize % 3).cloned();
        match (chance.below(100), first) {
            (0..45, Some(home)) if home.open.load(Relaxed) => {
                *sets += 1;
                caller.set(&home, &name, &self.bytes(&name, chance)).await
            }
            (0..70, _) => caller.get(door, &name).await,
            _ => caller.lookup(door, &name, true).await,
        }
    }

    async fn other(&self, caller: &Caller, door: &Door, chance: &mut Chance) -> Call {
        sleep(Duration::from_millis(100)).await;
        let n = self.artifact.load(Relaxed).saturating_sub(1 + chance.below(4));
        match chance.below(3) {
            0 => caller.list(door).await,
            1 => caller.fetch(door, &format!("a{n}")).await,
            _ => caller.pin(door, &format!("a{n}"), chance.percent(30)).await,
        }
    }
}
