//! This node's part in what wholes anywhere in the cluster wait for.
//!
//! A list of wanted pieces comes with the index. A node takes from it what it can
//! compile: it has the toolchain, a compiler is free, there is memory, and nobody else
//! has begun. The node that wants them takes from its own list in the same way.
//!
//! Invariant: nothing is compiled here but under a lease of its own key, and nothing
//! whose key does not come out as it is wanted; a list that is gone costs nothing more.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kiln_cluster::{IndexEvent, Lease, Tried, Wanted};
use kiln_proto::{ArtifactKey, Failure, Token};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    task::{JoinError, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    order,
    requests::{Asked, Requests},
};
use crate::{
    check::Verify,
    compiler::{Compiler, Prepared, room},
    error::Error,
    manager::Manager,
};

/// After what time alone may mend: too little memory, no leader, a silent node.
const RETRY: Duration = Duration::from_secs(1);

/// The next change after which there may be something to take; `None`: the index ended.
async fn heard(events: &mut Receiver<IndexEvent>) -> Option<IndexEvent> {
    use IndexEvent::{Free, NodesChanged, Reset, Wanted};
    loop {
        match events.recv().await {
            Ok(event @ (Wanted { .. } | Free { .. } | NodesChanged | Reset)) => return Some(event),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return Some(Reset),
            Err(RecvError::Closed) => return None,
        }
    }
}

/// A piece that this node compiled, or not.
struct Ended {
    whole: Token,
    index: usize,
    key: ArtifactKey,
    result: Result<(), Error>,
}

/// What this node takes, and what it does not.
pub struct Puller {
    manager: Arc<Manager>,
    requests: Requests,
    running: JoinSet<Ended>,
    /// Keys of `running`, with the memory that each is thought to take.
    taken: HashMap<ArtifactKey, u64>,
    /// Pieces of live lists that others compile: [`IndexEvent::Free`] tells when one is to be
    /// had again, but only while a list asks for it.
    held: HashSet<(Token, ArtifactKey)>,
    /// Pieces of live lists that failed here: another node may do better.
    failed: HashSet<(Token, usize)>,
    /// Live lists that are not what they say.
    refused: HashSet<Token>,
    /// In which order the pieces of each live list are taken.
    orders: HashMap<Token, Arc<[usize]>>,
}

/// Why nothing was taken.
#[derive(Default)]
struct Idle {
    /// There is something for this compiler, which is busy.
    busy: Option<Arc<dyn Compiler>>,
    /// There is something that may be taken after a while.
    later: bool,
}

impl Puller {
    /// Of a node with this manager.
    pub fn new(manager: Arc<Manager>) -> Self {
        Self {
            requests: Requests::new(manager.clone()),
            manager,
            running: JoinSet::new(),
            taken: HashMap::new(),
            held: HashSet::new(),
            failed: HashSet::new(),
            refused: HashSet::new(),
            orders: HashMap::new(),
        }
    }

    /// Takes pieces until `stop`, and sees what it has begun to its end.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut events = self.manager.index.events();
        loop {
            // Before the look: what changes after it wakes.
            let compilers = self.manager.compilers.changes();
            let idle = loop {
                if let Err(idle) = self.take().await {
                    break idle;
                }
                if stop.is_cancelled() {
                    break Idle::default();
                }
            };
            let free = async {
                match &idle.busy {
                    Some(compiler) => compiler.until_free().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = heard(&mut events) => match event {
                    Some(event) => self.hear(&event),
                    None => return,
                },
                Some(ended) = self.running.join_next() => self.ended(ended),
                () = self.requests.came() => {}
                () = compilers => {}
                () = free => {}
                () = sleep(RETRY), if idle.later => {}
                () = stop.cancelled() => break,
            }
        }
        // The manager stops its compiles: these end soon.
        while self.running.join_next().await.is_some() {}
    }

    fn hear(&mut self, event: &IndexEvent) {
        match event {
            IndexEvent::Free { key } => self.held.retain(|(_, held)| held != key),
            IndexEvent::NodesChanged => self.orders.clear(),
            IndexEvent::Reset => self.forget(),
            _ => {}
        }
    }

    /// Anything may have changed.
    fn forget(&mut self) {
        self.held.clear();
        self.orders.clear();
    }

    /// Takes one piece, or says why none.
    async fn take(&mut self) -> Result<(), Idle> {
        let lists = self.manager.index.wanted();
        let live: HashSet<Token> = lists.iter().map(|list| list.token).collect();
        self.failed.retain(|(token, _)| live.contains(token));
        self.refused.retain(|token| live.contains(token));
        self.orders.retain(|token, _| live.contains(token));
        self.requests.keep(&lists.iter().map(|list| list.request).collect());
        self.held.retain(|(token, _)| live.contains(token));
        let mut idle = Idle::default();
        // A node that leaves takes nothing that it would have to hand over, and one without
        // compilers nothing at all.
        if self.manager.gate.check().is_err() || self.manager.emergency.refuses() {
            idle.later = true;
            return Err(idle);
        }
        let me = self.manager.identity.node;
        // What is asked for here first, then what was asked for first.
        let (own, others): (Vec<_>, Vec<_>) = lists.iter().partition(|list| list.node == me);
        for list in own.into_iter().chain(others) {
            if self.refused.contains(&list.token) {
                continue;
            }
            let Some(compiler) = self.manager.compilers.having(&list.fingerprint) else {
                continue;
            };
            match self.take_from(list, &compiler, &mut idle).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => {
                    tracing::debug!(whole = %list.whole, error = %e, "no piece is taken now");
                    idle.later = true;
                }
            }
        }
        Err(idle)
    }

    /// Takes a piece of one list; false: there is none for this node now.
    async fn take_from(
        &mut self,
        list: &Arc<Wanted>,
        compiler: &Arc<dyn Compiler>,
        idle: &mut Idle,
    ) -> Result<bool, Error> {
        let manager = self.manager.clone();
        let is_own = list.node == manager.identity.node;
        let order = self.orders.entry(list.token);
        let order =
            order.or_insert_with(|| order::order(&manager.index, manager.identity.node, list));
        for index in order.clone().iter().copied() {
            let piece = &list.pieces[index];
            let is_held = self.held.contains(&(list.token, piece.key));
            let known = self.taken.contains_key(&piece.key) || is_held;
            if known || self.failed.contains(&(list.token, index)) {
                continue;
            }
            if manager.index.lookup(&piece.key).await?.is_some()
                || manager.index.failure(&piece.key).await?.is_some()
            {
                continue;
            }
            if compiler.free() == 0 {
                idle.busy = Some(compiler.clone());
                return Ok(false);
            }
            // What others want is not worth a full memory; what this node wants is, where
            // nothing else is at work here: else nobody may ever take it.
            let is_needed = is_own && self.taken.is_empty();
            if !is_needed && !room::has_room(piece.memory, self.taken.values().sum()) {
                idle.later = true;
                continue;
            }
            let (prepared, verify) = match self.requests.piece(list, index, compiler) {
                Asked::Piece(prepared, verify) => (prepared, verify),
                Asked::Refused => {
                    self.refused.insert(list.token);
                    return Ok(false);
                }
                Asked::Later => {
                    idle.later = true;
                    return Ok(false);
                }
            };
            if manager.unbelieved_here(&prepared.namespace).await.is_some() {
                // Of what this node compiled here nothing would count.
                self.refused.insert(list.token);
                return Ok(false);
            }
            match manager.index.try_acquire(&piece.key).await? {
                Tried::Granted(lease) => {
                    self.begin(list, index, lease, compiler.clone(), (prepared, verify));
                    // Its compile has its place among the compilers before the next one.
                    tokio::task::yield_now().await;
                    return Ok(true);
                }
                Tried::Held => drop(self.held.insert((list.token, piece.key))),
                Tried::Ready(_) | Tried::Failed(_) => {}
            }
        }
        Ok(false)
    }

    fn begin(
        &mut self,
        list: &Wanted,
        index: usize,
        lease: Lease,
        compiler: Arc<dyn Compiler>,
        (prepared, verify): (Arc<Prepared>, Verify),
    ) {
        let (whole, key, manager) = (list.token, list.pieces[index].key, self.manager.clone());
        self.taken.insert(key, list.pieces[index].memory);
        manager.own.begun(whole, index);
        if list.node != manager.identity.node {
            manager.counters.took_piece();
            tracing::info!(%key, index, node = list.node, "compile a piece for another node");
        }
        self.manager.note_miss(&prepared);
        self.running.spawn(async move {
            // Whoever reads of its failure finds the node in it.
            let node = manager.identity.node;
            let making = async {
                let made = manager.make_piece(&*compiler, &prepared, verify).await;
                made.map_err(|e| match e {
                    Error::Failed(Failure { kind, message }) => {
                        Failure::new(kind, format!("on node {node}: {message}")).into()
                    }
                    other => other,
                })
            };
            let made = manager.compile_under(&lease, &prepared, making).await;
            let result = made.and_then(|(_, unpublished)| unpublished.map_or(Ok(()), Err));
            Ended { whole, index, key, result }
        });
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) {
        let Ended { whole, index, key, result } = match ended {
            Ok(ended) => ended,
            Err(e) => {
                // Which one is not known: each may be tried again.
                tracing::error!(error = %e, "the compile of a piece ended badly");
                self.taken.clear();
                return;
            }
        };
        self.taken.remove(&key);
        match result {
            Ok(()) => {}
            Err(Error::StaleToken) => {
                tracing::warn!(%key, index, "the lease of a piece was lost");
                self.manager.own.lost(whole, index);
            }
            Err(e) => {
                tracing::warn!(%key, index, error = %e, "a piece is not compiled here");
                self.failed.insert((whole, index));
                self.manager.own.failed(whole, index, e);
            }
        }
    }
}
