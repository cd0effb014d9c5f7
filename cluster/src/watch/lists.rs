//! The wanted lists of this replica, in memory.
//!
//! Invariant: between two commands they are those of the state, and a piece counts as
//! wanted exactly while a list has it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kiln_proto::{ArtifactKey, Token};

use crate::{
    codec,
    table::{self, StateError, Table, View},
    wanted::Wanted,
};

/// The lists, and what they want.
#[derive(Default)]
pub(super) struct Lists {
    /// By token: the oldest one first.
    lists: BTreeMap<(Token, ArtifactKey), Arc<Wanted>>,
    tokens: HashMap<ArtifactKey, Token>,
    /// In how many lists a piece is.
    pieces: HashMap<ArtifactKey, usize>,
    all: Arc<[Arc<Wanted>]>,
}

impl Lists {
    /// Those of the state in `view`.
    pub(super) fn read(view: &impl View) -> Result<Self, StateError> {
        let mut lists = Self::default();
        for (_, value) in view.all(Table::Wanted)? {
            lists.add(codec::decode(&value)?);
        }
        lists.list();
        Ok(lists)
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Arc<[Arc<Wanted>]> {
        Arc::clone(&self.all)
    }

    /// Whether a list has the piece.
    pub(super) fn want(&self, piece: &ArtifactKey) -> bool {
        self.pieces.contains_key(piece)
    }

    /// Takes over what the state in `view` says of `whole`.
    pub(super) fn follow(
        &mut self,
        view: &impl View,
        whole: ArtifactKey,
    ) -> Result<(), StateError> {
        self.remove(&whole);
        if let Some(wanted) = table::read::<Wanted>(view, whole)? {
            self.add(wanted);
        }
        self.list();
        Ok(())
    }

    fn add(&mut self, wanted: Wanted) {
        for piece in &wanted.pieces {
            *self.pieces.entry(piece.key).or_default() += 1;
        }
        self.tokens.insert(wanted.whole, wanted.token);
        self.lists.insert((wanted.token, wanted.whole), Arc::new(wanted));
    }

    fn remove(&mut self, whole: &ArtifactKey) {
        let token = self.tokens.remove(whole);
        let Some(wanted) = token.and_then(|token| self.lists.remove(&(token, *whole))) else {
            return;
        };
        for piece in &wanted.pieces {
            if let Some(lists) = self.pieces.get_mut(&piece.key) {
                *lists -= 1;
                if *lists == 0 {
                    self.pieces.remove(&piece.key);
                }
            }
        }
    }

    fn list(&mut self) {
        self.all = self.lists.values().cloned().collect();
    }
}
