//! What lists of wanted pieces ask for: requests of other nodes, split here again.
//!
//! Invariant: a piece is given only by the key by which it is wanted; a node that is
//! silent holds up nothing but its own lists.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use kiln_cluster::Wanted;
use kiln_proto::{Digest, Failure, FailureKind, MAX_MESSAGE_BYTES, pb};
use prost::Message;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    cache::{Blob, BlobWriter},
    check::Verify,
    compiler::{Compiler, Prepared, Stitch},
    error::Error,
    manager::{Manager, Request},
    transfer::PeerAddress,
};

/// Requests kept split, those of compile sizes each: more than that at once are rare, and cost
/// a split again.
const KEPT: usize = 16;
/// For a request on its way.
const LONGEST: Duration = Duration::from_secs(30);
/// Before a node that did not give a request is asked again.
const PAUSE: Duration = Duration::from_secs(2);

/// What there is of a piece.
pub(super) enum Asked {
    /// What to compile.
    Piece(Arc<Prepared>, Verify),
    /// Its list is not what it says, now and later.
    Refused,
    /// Its request is on its way, or its node does not answer.
    Later,
}

/// What became of a request.
type Split = Result<Option<(Arc<Stitch>, Verify)>, Error>;

/// Split requests of live lists.
pub(super) struct Requests {
    manager: Arc<Manager>,
    split: VecDeque<(Digest, (Arc<Stitch>, Verify))>,
    coming: JoinSet<(Digest, Split)>,
    on_the_way: HashSet<Digest>,
    /// Which could not be had, and when.
    missed: HashMap<Digest, Instant>,
    /// Which are no requests for pieces, and why.
    wrong: HashMap<Digest, String>,
}

impl Requests {
    pub(super) fn new(manager: Arc<Manager>) -> Self {
        Self {
            manager,
            split: VecDeque::new(),
            coming: JoinSet::new(),
            on_the_way: HashSet::new(),
            missed: HashMap::new(),
            wrong: HashMap::new(),
        }
    }

    /// Forgets those that no list asks for any more: a large model's takes much memory.
    pub(super) fn keep(&mut self, asked_for: &HashSet<Digest>) {
        self.split.retain(|(request, _)| asked_for.contains(request));
        self.wrong.retain(|request, _| asked_for.contains(request));
    }

    /// One piece of a list.
    pub(super) fn piece(
        &mut self,
        list: &Wanted,
        index: usize,
        compiler: &Arc<dyn Compiler>,
    ) -> Asked {
        let known = self.split.iter().find(|(of, _)| *of == list.request);
        let (stitch, verify) = match self.manager.own.stitch(list.token) {
            Some(own) => own,
            // Who asked for it is gone; so will its list be.
            None if list.node == self.manager.identity.node => return Asked::Later,
            None => match known {
                Some((_, split)) => split.clone(),
                None => return self.ask(list, compiler),
            },
        };
        let keys = stitch.pieces.iter().map(|piece| piece.key());
        if !keys.eq(list.pieces.iter().map(|piece| piece.key)) {
            let why = "its pieces have other keys here: is it another version of Kiln?";
            return self.refuse(list, why);
        }
        match stitch.pieces.get(index) {
            Some(piece) => Asked::Piece(piece.prepared.clone(), verify),
            None => self.refuse(list, "it has fewer pieces here"),
        }
    }

    /// Sends for a request, unless it is on its way.
    fn ask(&mut self, list: &Wanted, compiler: &Arc<dyn Compiler>) -> Asked {
        self.missed.retain(|_, when| when.elapsed() < PAUSE);
        if let Some(why) = self.wrong.remove(&list.request) {
            return self.refuse(list, &why);
        }
        if list.request_bytes > MAX_MESSAGE_BYTES as u64 {
            return self.refuse(list, "its request is larger than any");
        }
        if !self.missed.contains_key(&list.request) && self.on_the_way.insert(list.request) {
            let (manager, compiler) = (self.manager.clone(), compiler.clone());
            let list = list.clone();
            self.coming.spawn(async move {
                let late = |_| Error::Unreachable(format!("not had within {LONGEST:?}"));
                let split = timeout(LONGEST, split(&manager, &list, compiler)).await;
                (list.request, split.map_err(late).and_then(|split| split))
            });
        }
        Asked::Later
    }

    /// Returns when a request came, or did not come.
    pub(super) async fn came(&mut self) {
        let Some(came) = self.coming.join_next().await else {
            return std::future::pending().await;
        };
        let Ok((request, split)) = came else {
            // A bug of the splitter, which one is not known: all are asked for again.
            self.on_the_way.clear();
            return;
        };
        self.on_the_way.remove(&request);
        match split {
            Ok(Some(stitch)) => {
                self.split.truncate(KEPT - 1);
                self.split.push_front((request, stitch));
            }
            Ok(None) => drop(self.wrong.insert(request, "it is not in pieces here".into())),
            Err(Error::Unreachable(why)) => {
                tracing::debug!(%request, why, "a request for pieces is not to be had");
                self.missed.insert(request, Instant::now());
            }
            Err(why) => drop(self.wrong.insert(request, why.to_string())),
        }
    }

    /// Told once: a refused list is not looked at again.
    fn refuse(&self, list: &Wanted, why: &str) -> Asked {
        self.manager.counters.refused_pieces();
        tracing::warn!(whole = %list.whole, node = list.node, why, "its pieces are not taken");
        Asked::Refused
    }
}

/// The pieces of another node's request; `None`: it has none.
async fn split(manager: &Manager, list: &Wanted, compiler: Arc<dyn Compiler>) -> Split {
    let blob = fetch(manager, list).await?;
    let fingerprint = list.fingerprint.clone();
    // Parsing and splitting take milliseconds: not on a runtime thread.
    let planning = tokio::task::spawn_blocking(move || {
        let wire = pb::CompileRequest::decode(&blob[..]);
        let wire = wire.map_err(|e| Error::Invalid(e.to_string()))?;
        let mut requests = Request::read(wire, Instant::now())?;
        let request = requests.pop().ok_or_else(|| Error::Invalid("no target".into()))?;
        let planned = compiler.plan(&request.input, &fingerprint, request.piecewise)?;
        Ok(planned.stitch().map(|stitch| (stitch.clone(), request.verify)))
    });
    let planned = planning.await;
    planned.map_err(|e| Error::from(Failure::new(FailureKind::Crashed, e.to_string())))?
}

async fn fetch(manager: &Manager, list: &Wanted) -> Result<Blob, Error> {
    let unreachable = |why: String| Error::Unreachable(format!("node {}: {why}", list.node));
    let Some(node) = manager.index.node(list.node) else {
        return Err(unreachable("its address is not known".into()));
    };
    let budget = manager.tiers.budget();
    let room = BlobWriter::within(budget, list.request_bytes).await;
    // No memory for it now is no verdict.
    let mut writer = room.map_err(|e| unreachable(e.to_string()))?;
    let from = PeerAddress { node: list.node, address: &node.facts.transfer };
    let fetched = manager.fetcher.fetch_into(from, &list.request, &mut writer).await;
    fetched.map_err(|e| unreachable(e.to_string()))?;
    writer.finish_as(list.request).map_err(|e| unreachable(e.to_string()))
}
