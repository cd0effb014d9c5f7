//! The lists that this node asked for, for the one that takes from them.
//!
//! Invariant: a list is here while its request is followed, and no longer.

use std::{collections::HashMap, sync::Arc};

use kiln_proto::{NodeId, Token};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{PieceReport, PieceStage, States};
use crate::{check::Verify, compiler::Stitch, error::Error};

/// Hears how far all pieces are.
pub(in crate::manager) type Tell = Box<dyn Fn(Arc<[PieceReport]>) + Send + Sync>;

/// All of them, by the token of the whole.
#[derive(Default)]
pub(in crate::manager) struct OwnLists(Mutex<HashMap<Token, Arc<OwnList>>>);

/// One of them.
pub(super) struct OwnList {
    stitch: Arc<Stitch>,
    verify: Verify,
    states: Arc<States<Tell>>,
    node: NodeId,
    /// What this node failed of, though another one may not.
    errors: Mutex<HashMap<usize, Error>>,
    pub(super) changed: Notify,
}

/// Removes a list when its request is over.
pub(super) struct Followed<'m> {
    lists: &'m OwnLists,
    token: Token,
    pub(super) list: Arc<OwnList>,
}

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        self.lists.0.lock().remove(&self.token);
    }
}

impl OwnLists {
    /// A list that is about to be wanted under `token` by `node`, this one.
    pub(super) fn follow(
        &self,
        token: Token,
        node: NodeId,
        (stitch, verify): (Arc<Stitch>, Verify),
        states: Arc<States<Tell>>,
    ) -> Followed<'_> {
        let list = Arc::new(OwnList {
            stitch,
            verify,
            states,
            node,
            errors: Mutex::default(),
            changed: Notify::new(),
        });
        self.0.lock().insert(token, list.clone());
        Followed { lists: self, token, list }
    }

    /// The pieces of a list of this node, and whether they are checked.
    pub(super) fn stitch(&self, token: Token) -> Option<(Arc<Stitch>, Verify)> {
        self.0.lock().get(&token).map(|list| (list.stitch.clone(), list.verify))
    }

    /// This node compiles a piece.
    pub(super) fn begun(&self, token: Token, index: usize) {
        self.change(token, |list| list.states.set(index, PieceStage::Compiling(list.node)));
    }

    /// This node does not compile it any more.
    pub(super) fn lost(&self, token: Token, index: usize) {
        self.change(token, |list| list.states.set(index, PieceStage::Wanted));
    }

    /// This node could not compile it.
    pub(super) fn failed(&self, token: Token, index: usize, error: Error) {
        self.change(token, |list| {
            let failure = error.clone().into_failure();
            list.errors.lock().insert(index, error);
            list.states.set(index, PieceStage::Failed { node: Some(list.node), failure });
        });
    }

    fn change(&self, token: Token, change: impl FnOnce(&OwnList)) {
        let list = self.0.lock().get(&token).cloned();
        if let Some(list) = list {
            change(&list);
            list.changed.notify_one();
        }
    }
}

impl OwnList {
    /// What this node failed of.
    pub(super) fn error(&self, index: usize) -> Option<Error> {
        self.errors.lock().get(&index).cloned()
    }
}
