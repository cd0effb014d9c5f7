//! The list call: a page of the index, of what matches or of all.
//!
//! Invariant: a page that is not the last one has as many entries as were asked for,
//! however far apart those that match are; only what is answered stays in memory, in
//! whatever order, and a listing reads the index once.

use std::collections::BTreeMap;

use kiln_cluster::{Entry, Index};
use kiln_proto::{ArtifactKey, Manifest, pb, pb::ListOrder, value};
use tokio_util::sync::CancellationToken;

use super::wire;
use crate::{
    access::Grant,
    clock,
    error::Error,
    scan::order::{Order, Ordered, Place},
};

/// Most entries in one page of a listing.
const LONGEST_PAGE: u32 = 1000;
/// Entries that are read at once.
const READ: usize = 1024;
/// Most bytes of a text that is looked for.
const LONGEST_TEXT: usize = 1024;

/// What to list.
pub(super) struct Listing {
    after: Option<ArtifactKey>,
    prefix: String,
    wanted: Wanted,
    limit: usize,
    /// `None`: that of the keys, in which the index is read.
    order: Option<Order>,
    count: bool,
}

/// Which entries are meant; what is empty says nothing.
struct Wanted {
    grant: Grant,
    namespace: String,
    label: String,
    compiler: String,
    created_before_unix_ms: u64,
    no_requests: bool,
}

impl Listing {
    /// Of what `grant` may read.
    pub(super) fn new(request: pb::ListRequest, grant: Grant) -> Result<Self, Error> {
        let pb::ListRequest { prefix, namespace, limit, after, label, compiler, .. } = request;
        let pb::ListRequest { created_before_unix_ms, no_requests, order, reverse, count, .. } =
            request;
        let after = match after.is_empty() {
            true => None,
            false => Some(kiln_proto::convert::key("after", &after)?),
        };
        if label.len().max(compiler.len()) > LONGEST_TEXT {
            let why = format!("a label or a compiler to look for has at most {LONGEST_TEXT} bytes");
            return Err(Error::Invalid(why));
        }
        let field = ListOrder::try_from(order)
            .map_err(|_| Error::Invalid(format!("there is no order {order} of a listing")))?;
        let order = match (field, reverse) {
            (ListOrder::Unspecified | ListOrder::Key, false) => None,
            _ => Some(Order { field, reverse }),
        };
        if order.is_some() && after.is_some() {
            let why = "a listing in an order has one page: ask for all in the order of their keys";
            return Err(Error::Invalid(why.into()));
        }
        let limit = if limit == 0 { LONGEST_PAGE } else { limit.min(LONGEST_PAGE) };
        let wanted =
            Wanted { grant, namespace, label, compiler, created_before_unix_ms, no_requests };
        Ok(Self { after, prefix, wanted, limit: limit as usize, order, count })
    }
}

impl Listing {
    /// Reads the page. Blocks: run it on a blocking thread; `stop` ends it early.
    pub(super) fn read(
        self,
        index: &Index,
        stop: &CancellationToken,
    ) -> Result<pb::ListResponse, Error> {
        let mut page = Page::new(self.limit, self.order);
        let whole = self.count || self.order.is_some();
        let mut after = self.after;
        while (whole || !page.is_over()) && !stop.is_cancelled() {
            let read = index.blocking_scan(after.as_ref(), &self.prefix, READ)?;
            let Some(last) = read.last() else { break };
            after = Some(last.key);
            for entry in read {
                if self.wanted.is_all() && self.order.is_none() {
                    page.see(entry, None);
                    continue;
                }
                // One that cannot be read matches nothing, as nobody can be given it.
                let Ok(manifest) = entry.manifest.read_unverified() else { continue };
                if self.wanted.has(&manifest) {
                    page.see(entry, Some(&manifest));
                }
            }
        }
        let matching = pb::ListCount { entries: page.seen, bytes: page.bytes };
        let entries = page.entries();
        Ok(pb::ListResponse {
            more: matching.entries > entries.len() as u64,
            entries: entries.iter().map(wire::entry).collect(),
            matching: self.count.then_some(matching),
            now_unix_ms: clock::unix_ms(),
        })
    }
}

impl Wanted {
    fn is_all(&self) -> bool {
        let Self { grant, namespace, label, compiler, created_before_unix_ms, no_requests } = self;
        grant.reads_all()
            && [namespace, label, compiler].iter().all(|text| text.is_empty())
            && *created_before_unix_ms == 0
            && !no_requests
    }

    fn has(&self, manifest: &Manifest) -> bool {
        let of = &manifest.fingerprint.compiler;
        let or_any = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        // When an entry was made that does not say so is not known.
        let created = manifest.created_unix_ms;
        let before = self.created_before_unix_ms;
        self.grant.may_read(&manifest.namespace)
            && or_any(&self.namespace, &manifest.namespace)
            && or_any(&self.compiler, of)
            && manifest.label.contains(&self.label)
            && (before == 0 || (created != 0 && created < before))
            && !(self.no_requests && of == value::REQUEST_FAMILY)
    }
}

/// The entries of a page, as they are found.
struct Page {
    limit: usize,
    order: Option<Order>,
    /// In the order of the keys.
    in_turn: Vec<Entry>,
    /// By their places, the first ones alone.
    first: BTreeMap<Place, Entry>,
    seen: u64,
    bytes: u64,
}

impl Page {
    fn new(limit: usize, order: Option<Order>) -> Self {
        Self { limit, order, in_turn: Vec::new(), first: BTreeMap::new(), seen: 0, bytes: 0 }
    }

    /// Whether another entry can only be counted.
    fn is_over(&self) -> bool {
        self.seen > self.limit as u64
    }

    /// `manifest`: the entry's, wherever there is an order.
    fn see(&mut self, entry: Entry, manifest: Option<&Manifest>) {
        self.seen += 1;
        self.bytes = self.bytes.saturating_add(entry.pack_size);
        match (self.order, manifest) {
            (Some(order), Some(manifest)) => {
                let Entry { hits, last_used_unix_ms, .. } = entry;
                let place = order.place(Ordered { manifest, hits, last_used_unix_ms });
                self.first.insert(place, entry);
                if self.first.len() > self.limit {
                    self.first.pop_last();
                }
            }
            _ if self.in_turn.len() < self.limit => self.in_turn.push(entry),
            _ => {}
        }
    }

    fn entries(self) -> Vec<Entry> {
        match self.order {
            None => self.in_turn,
            Some(_) => self.first.into_values().collect(),
        }
    }
}
