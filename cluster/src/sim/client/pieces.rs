//! Clients that compile in pieces, and those that take what is wanted.
//!
//! Invariant: whatever a member shows in one view, a whole is there only with its pieces,
//! and a list only with its lease.

use std::sync::Arc;

use kiln_proto::{ArtifactKey, Digest, PieceRef};
use tokio::time::Instant;

use super::{Client, Clients, Ended, artifacts::compiler, key_of, longest_ask};
use crate::{
    Acquired, ClusterError, Lease, Published, Tried, Wanted, WantedPiece,
    sim::fleet::{Running, timings},
    table::{self, EntryRecord, LeaseRecord, PiecesRecord, ReferenceRecord, Table, View},
};

/// Pieces of one whole.
const PIECES: u64 = 3;

impl Clients {
    /// What must hold between wholes and pieces, lists and leases, in one view of `member`.
    pub(in crate::sim) fn stitching_holds(&self, member: &Running) {
        if let Err(what) = whole_pieces(member) {
            self.violation(format!("incarnation {}: {what}", member.incarnation));
        }
    }
}

fn whole_pieces(member: &Running) -> Result<(), String> {
    let view = member.cluster.store.view();
    let all = |table| view.all(table).unwrap();
    let key = |bytes: &[u8]| ArtifactKey::try_from(bytes).unwrap();
    let mut references = 0;
    for (whole, value) in all(Table::Pieces) {
        let whole = key(&whole);
        let PiecesRecord { pieces } = crate::codec::decode(&value).unwrap();
        if table::read::<EntryRecord>(&view, whole).unwrap().is_none() {
            return Err(format!("{} has pieces and no artifact", whole.short()));
        }
        for (piece, pack) in pieces {
            references += 1;
            let entry: Option<EntryRecord> = table::read(&view, piece).unwrap();
            let reference: Option<ReferenceRecord> = table::read(&view, (piece, whole)).unwrap();
            let (found, referred) = (entry.map(|e| e.pack), reference.map(|r| r.pack));
            if (found, referred) != (Some(pack), Some(pack)) {
                return Err(format!(
                    "{} is of piece {} with {found:?}, referred to as {referred:?}",
                    whole.short(),
                    piece.short()
                ));
            }
        }
    }
    let found = all(Table::References).len();
    if found != references {
        return Err(format!("{found} references for {references} pieces"));
    }
    let mut lists: Vec<Wanted> = Vec::new();
    for (whole, value) in all(Table::Wanted) {
        let list: Wanted = crate::codec::decode(&value).unwrap();
        let lease: Option<LeaseRecord> = table::read(&view, key(&whole)).unwrap();
        if lease.is_none_or(|lease| lease.token != list.token) {
            return Err(format!("a list of {} whose lease is over", list.whole.short()));
        }
        lists.push(list);
    }
    lists.sort_by_key(|list| list.token);
    match member.index.wanted().iter().map(|list| &**list).eq(&lists) {
        true => Ok(()),
        false => Err("the lists in memory are not those of the state".into()),
    }
}

impl Client {
    /// Compiles a whole in pieces: asks all for them, takes some, stitches.
    pub(super) async fn stitch(&mut self, member: &Arc<Running>, phase: u64, slot: u64) {
        let whole = format!("w{phase}.{slot}");
        // Some are pieces of the other whole as well.
        let pieces: Vec<String> = (0..PIECES).map(|n| format!("p{phase}.{}", slot + n)).collect();
        let (wait, found) = (self.chance.millis(200..3000), key_of(&whole));
        let call = member.index.acquire(&found, None, Instant::now() + wait, || {});
        let lease = match self.call(member, &format!("acquire {whole}"), wait, call).await {
            Ended::Answered(Ok(Acquired::Granted(lease))) => lease,
            Ended::Answered(Ok(Acquired::Ready(entry))) => return self.all.saw(&whole, &entry),
            _ => return,
        };
        self.granted(&whole, &lease);
        let Some(wanted) = self.list(member, &lease, &pieces) else { return };
        let bound = longest_ask() + timings().patience;
        let call = member.index.want(&lease, wanted);
        match self.call(member, &format!("want the pieces of {whole}"), bound, call).await {
            Ended::Answered(Ok(())) => self.all.fleet.trace.count("wanted"),
            Ended::Answered(Err(ClusterError::StaleToken)) | Ended::Died => return,
            // It takes them alone, then.
            Ended::Answered(Err(_)) => {}
        }
        let until = Instant::now() + self.chance.millis(3000..12000);
        while Instant::now() < until && !lease.is_lost() && !member.process.is_dead() {
            match self.ready(member, &pieces).await {
                Ok(refs) => {
                    // Sometimes a piece is found wrong just before.
                    let wrong = self.chance.pick(&[0, 1, 2]).and_then(|at| pieces.get(at));
                    if let Some(wrong) = wrong.filter(|_| self.chance.permille(200)) {
                        self.remove(member, wrong).await;
                    }
                    match self.commit_whole(member, &whole, &lease, refs).await {
                        Ended::Answered(Err(ClusterError::NoPiece(_))) => {
                            self.all.fleet.trace.count("without a piece");
                        }
                        _ => return,
                    }
                }
                Err(missing) if self.chance.permille(500) => self.take(member, &missing).await,
                Err(_) => {}
            }
            tokio::select! {
                biased;
                () = member.process.dead.cancelled() => return,
                () = tokio::time::sleep(self.chance.millis(10..200)) => {}
            }
        }
    }

    fn list(&self, member: &Running, lease: &Lease, pieces: &[String]) -> Option<Wanted> {
        let mut seen = self.all.seen.lock();
        let mut piece = |name: &String| {
            let key = key_of(name);
            seen.pieces.insert(key, name.clone());
            WantedPiece { key, seconds: 0.5, memory: 1 << 20 }
        };
        Some(Wanted {
            whole: *lease.key(),
            token: lease.token(),
            node: member.identity()?.node,
            request: Digest::of(b"request"),
            request_bytes: 7,
            pieces: pieces.iter().map(&mut piece).collect(),
            fingerprint: compiler(),
        })
    }

    /// The pieces by their artifacts, or one that has none here.
    async fn ready(&self, member: &Running, pieces: &[String]) -> Result<Vec<PieceRef>, String> {
        let mut refs = Vec::new();
        for name in pieces {
            let key = key_of(name);
            match member.index.lookup(&key).await {
                Ok(Some(entry)) => {
                    self.all.saw(name, &entry);
                    refs.push(PieceRef { key, pack: entry.pack, pack_size: entry.pack_size });
                }
                _ => return Err(name.clone()),
            }
        }
        Ok(refs)
    }

    async fn commit_whole(
        &mut self,
        member: &Arc<Running>,
        whole: &str,
        lease: &Lease,
        pieces: Vec<PieceRef>,
    ) -> Ended<Published> {
        let (pack, digest) = self.all.new_pack();
        let Some((manifest, _)) = self.sign_whole(member, whole, digest, pieces) else {
            return Ended::Died;
        };
        let fenced = self.is_fenced(whole, lease.token());
        let what = format!("publish {pack} as {whole} under {}", lease.token());
        let bound = longest_ask() + timings().patience;
        let call = member.index.publish(lease, manifest, Vec::new());
        let ended = self.call(member, &what, bound, call).await;
        match &ended {
            Ended::Answered(Ok(Published::Committed(entry))) => {
                self.all.saw(whole, entry);
                self.all.fleet.trace.count("stitched");
                if fenced {
                    let token = lease.token();
                    self.all.violation(format!("{token} of {whole} published after a later one"));
                }
            }
            Ended::Answered(Ok(Published::Existing(entry))) => self.all.saw(whole, entry),
            _ => {}
        }
        ended
    }

    /// Takes some piece that anyone wants.
    pub(super) async fn pull(&mut self, member: &Arc<Running>) {
        let lists = member.index.wanted();
        let keys: Vec<_> = lists.iter().flat_map(|list| &list.pieces).map(|p| p.key).collect();
        let Some(key) = self.chance.pick(&keys) else { return };
        let name = self.all.seen.lock().pieces.get(&key).cloned();
        match name {
            Some(name) => self.take(member, &name).await,
            None => self.all.violation(format!("nobody wants {}", key.short())),
        }
    }

    async fn take(&mut self, member: &Arc<Running>, piece: &str) {
        let key = key_of(piece);
        let call = member.index.try_acquire(&key);
        match self.call(member, &format!("try {piece}"), longest_ask(), call).await {
            Ended::Answered(Ok(Tried::Granted(lease))) => {
                self.all.fleet.trace.count("taken");
                self.granted(piece, &lease);
                self.compile_under(member, piece, lease).await;
            }
            Ended::Answered(Ok(Tried::Ready(entry))) => self.all.saw(piece, &entry),
            _ => {}
        }
    }
}
