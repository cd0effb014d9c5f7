//! The steps at which a node is killed, and how it is brought there.

/// What brings a node to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Clients write.
    Load,
    /// The leader is killed, and this node votes.
    Election,
    /// It comes back after the log was purged beyond what it has.
    Snapshot,
    /// It led alone, and comes back with entries that nobody else has.
    Truncate,
    /// It joins.
    Join,
    /// One of its files is not what it was.
    Corrupt,
    /// It leads and collects the object store.
    Collect,
    /// It has just joined, and changes its signing key.
    Rotate,
    /// It was killed before it noted such a change, and notes it at a later start.
    NoteRotation,
}

/// All steps.
pub(crate) const POINTS: &[(&str, Way)] = &[
    ("log.begin", Way::Load),
    ("log.written", Way::Load),
    ("log.synced", Way::Load),
    ("log.purged", Way::Load),
    ("log.truncated", Way::Truncate),
    ("vote.begin", Way::Election),
    ("vote.written", Way::Election),
    ("vote.synced", Way::Election),
    ("apply.begin", Way::Load),
    ("apply.written", Way::Load),
    ("apply.seen", Way::Load),
    ("snapshot.created", Way::Snapshot),
    ("snapshot.torn", Way::Snapshot),
    ("snapshot.written", Way::Snapshot),
    ("snapshot.synced", Way::Snapshot),
    ("install.cleared", Way::Snapshot),
    ("install.chunk", Way::Snapshot),
    ("install.filled", Way::Snapshot),
    ("install.swapped", Way::Snapshot),
    ("install.synced", Way::Snapshot),
    ("install.done", Way::Snapshot),
    ("key.written", Way::Join),
    ("key.synced", Way::Join),
    ("key.renamed", Way::Join),
    ("key.written", Way::Rotate),
    ("key.synced", Way::Rotate),
    ("key.renamed", Way::Rotate),
    ("rotate.named", Way::Rotate),
    ("rotate.prepared", Way::Rotate),
    ("rotate.asked", Way::Rotate),
    ("rotate.committed", Way::Rotate),
    ("rotate.replaced", Way::Rotate),
    ("rotate.finished", Way::Rotate),
    ("rotate.replaced", Way::NoteRotation),
    ("rotate.finished", Way::NoteRotation),
    ("identity.written", Way::Join),
    ("identity.synced", Way::Join),
    ("identity.renamed", Way::Join),
    ("owner.written", Way::Join),
    ("owner.synced", Way::Join),
    ("blob.created", Way::Load),
    ("blob.written", Way::Load),
    ("blob.synced", Way::Load),
    ("blob.renamed", Way::Load),
    ("blob.placed", Way::Load),
    ("blob.recorded", Way::Load),
    ("remove.unlinked", Way::Load),
    ("remove.recorded", Way::Load),
    ("evict.begin", Way::Load),
    ("evict.unlinked", Way::Load),
    ("evict.recorded", Way::Load),
    ("pin.recorded", Way::Load),
    ("quarantine.moved", Way::Corrupt),
    ("upload.queued", Way::Load),
    ("upload.begin", Way::Load),
    ("upload.put", Way::Load),
    ("upload.noted", Way::Load),
    ("upload.finished", Way::Load),
    ("collect.condemned", Way::Collect),
    ("collect.begin", Way::Collect),
    ("collect.deleted", Way::Collect),
    ("collect.forgotten", Way::Collect),
    ("publish.stored", Way::Load),
    ("publish.put", Way::Load),
];
