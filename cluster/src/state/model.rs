//! The replicated state in memory, as the tests have it: no disk, no Raft.
//!
//! Invariant: a command changes it as it changes a replica's database.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::Event;
use crate::{
    command::{Command, Response},
    table::{self, StateError, Table, Txn, View},
};

/// The whole state in memory.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Model(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl View for Model {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>, StateError> {
        Ok(self.0.get(&(table, key.to_vec())))
    }

    fn all(&self, table: Table) -> Result<table::Pairs, StateError> {
        self.starting_with(table, &[])
    }

    fn starting_with(&self, table: Table, prefix: &[u8]) -> Result<table::Pairs, StateError> {
        let pairs = self.0.range((table, prefix.to_vec())..);
        let pairs = pairs.take_while(|((t, key), _)| *t == table && key.starts_with(prefix));
        Ok(pairs.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}

impl Model {
    pub(crate) fn apply(&mut self, index: u64, command: Command) -> (Response, Vec<Event>) {
        let mut events = Vec::new();
        let mut txn = Txn::new(self);
        let response = super::apply(&mut txn, index, command, &mut events).unwrap();
        for (at, value) in txn.into_changes() {
            match value {
                Some(value) => drop(self.0.insert(at, value)),
                None => drop(self.0.remove(&at)),
            }
        }
        (response, events)
    }
}
