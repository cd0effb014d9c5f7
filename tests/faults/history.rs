//! What clients asked, what they were told, and when faults struck.
//!
//! Invariant: a call's start is taken before it is sent and its end after its answer, on
//! one monotonic clock, so that real time is never claimed to be narrower than it was.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    time::Instant,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Replace a value, through gRPC.
    Put,
    /// Tombstone a key.
    Remove,
    /// What the leader's index has.
    Latest,
    /// What the node's own replica has.
    Local,
    /// The bytes, through gRPC.
    Fetch,
    /// SET, whose OK promises nothing.
    Set,
    /// GET.
    Get,
    /// The right to publish a key.
    Lease,
    /// Commit under that right.
    Publish,
    /// CUDA to a CUBIN.
    Compile,
    /// A model, in pieces.
    Whole,
    /// A piece of one, as the answer for the whole tells it.
    Piece,
    Pin,
    List,
}

impl Kind {
    /// Whether it has an artifact made where there is none.
    pub(crate) fn compiles(self) -> bool {
        matches!(self, Self::Compile | Self::Whole | Self::Piece)
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Ok,
    /// It has no effect, now or later.
    Failed,
    /// It may have an effect, now, later or never.
    Unknown,
}

/// One call of one client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) client: u32,
    pub(crate) node: usize,
    /// Which process of the node, from 1.
    pub(crate) life: u32,
    pub(crate) kind: Kind,
    pub(crate) key: String,
    /// Nanoseconds since the run began.
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) ended: End,
    /// What was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wrote: Option<String>,
    /// What was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read: Option<String>,
    /// Of the entry that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) epoch: Option<u64>,
    /// Granted, or published under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<u64>,
    /// Of a publish: committed. Of a compile: compiled by this very call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<bool>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
}

/// What happened beside the calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// The nemesis struck, and its fault was healed.
    Strike { what: String, start: i64, end: i64 },
    /// Calls to this node may be without an answer.
    Away { node: usize, start: i64, end: i64 },
    /// From here on the run only reads.
    Final { at: i64 },
}

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) nemesis: String,
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    /// Whether bytes may be lost by rights: the fault destroys copies.
    #[serde(default)]
    pub(crate) destroys: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Head(Head),
    Fault(Fault),
    Call(Call),
}

/// A run's calls and faults.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) head: Head,
    pub(crate) calls: Vec<Call>,
    pub(crate) faults: Vec<Fault>,
}

impl History {
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let mut to = BufWriter::new(std::fs::File::create(file)?);
        let faults = self.faults.iter().cloned().map(Line::Fault);
        let calls = self.calls.iter().cloned().map(Line::Call);
        for line in [Line::Head(self.head.clone())].into_iter().chain(faults).chain(calls) {
            writeln!(to, "{}", serde_json::to_string(&line)?)?;
        }
        Ok(to.flush()?)
    }

    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let (mut head, mut calls, mut faults) = (None, Vec::new(), Vec::new());
        for line in BufReader::new(std::fs::File::open(file)?).lines() {
            match serde_json::from_str(&line?)? {
                Line::Head(found) => head = Some(found),
                Line::Fault(fault) => faults.push(fault),
                Line::Call(call) => calls.push(call),
            }
        }
        let head = head.ok_or_else(|| anyhow::anyhow!("it has no head"))?;
        Ok(Self { head, calls, faults })
    }
}

/// Takes down a history while it happens.
pub(crate) struct Recorder {
    began: Instant,
    calls: Mutex<Vec<Call>>,
    faults: Mutex<Vec<Fault>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), calls: Mutex::default(), faults: Mutex::default() }
    }

    pub(crate) fn now(&self) -> i64 {
        self.began.elapsed().as_nanos() as i64
    }

    pub(crate) fn call(&self, call: Call) {
        self.calls.lock().push(call);
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().clone()
    }

    /// The keys of all calls.
    pub(crate) fn all_keys(&self) -> BTreeSet<String> {
        let keys = self.calls.lock().iter().map(|call| call.key.clone()).collect::<BTreeSet<_>>();
        keys.into_iter().filter(|key| !key.is_empty()).collect()
    }

    /// When the first write that began after `from` succeeded.
    pub(crate) fn first_write_after(&self, from: i64) -> Option<i64> {
        let calls = self.calls.lock();
        let writes =
            calls.iter().filter(|c| c.kind == Kind::Put && c.ended == End::Ok && c.start >= from);
        writes.map(|call| call.end).min()
    }

    pub(crate) fn history(&self, head: Head) -> History {
        let mut calls = self.calls.lock().clone();
        calls.sort_by_key(|call| call.start);
        History { head, calls, faults: self.faults.lock().clone() }
    }
}
