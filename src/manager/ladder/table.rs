//! Which rungs come after a failure.
//!
//! Invariant: pure, and every rung given is below the one that was tried, so that whoever
//! follows it comes to an end.

use std::time::Duration;

use kiln_proto::FailureKind;

use super::Rung;
use crate::error::Error;

/// What a rung failed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The compile.
    Kind(FailureKind),
    /// The cluster, or a node that does not answer now.
    Cluster,
}

impl Cause {
    /// `None`: nothing else would do better, as the caller or the node is at fault.
    pub(super) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Failed(failure) | Error::Unsound(failure) => Some(Self::Kind(failure.kind)),
            Error::Unavailable(_)
            | Error::Unreachable(_)
            | Error::PieceGone(_)
            | Error::MissingPiece(_) => Some(Self::Cluster),
            _ => None,
        }
    }

    /// Whether the same may go well a moment later.
    pub(super) fn is_transient(self) -> bool {
        chain(self).contains(&Rung::Again)
    }

    /// How often the same is tried again: a compiler that crashed twice crashes.
    pub(super) const fn times_again(self) -> usize {
        match self {
            Self::Kind(FailureKind::Crashed | FailureKind::Corrupt) => 1,
            // A caller that has other nodes to ask is not kept for long.
            Self::Cluster => 2,
            Self::Kind(_) => 4,
        }
    }
}

/// The way down from each failure.
const fn chain(cause: Cause) -> &'static [Rung] {
    use FailureKind as Kind;
    use Rung::{Again, Defaults, Eager, Fewer, Mixed, Other, Pieces, Saving};
    match cause {
        Cause::Kind(Kind::OutOfMemory) => &[Saving, Pieces, Other, Eager],
        Cause::Kind(Kind::UnsupportedOp) => &[Mixed, Other, Eager],
        Cause::Kind(Kind::Timeout) => &[Pieces, Eager],
        Cause::Kind(Kind::CompileError | Kind::WrongOutput) => &[Fewer, Other, Eager],
        Cause::Kind(Kind::Crashed) => &[Again, Fewer, Pieces, Other, Eager],
        Cause::Kind(Kind::Busy | Kind::Corrupt) => &[Again, Eager],
        Cause::Kind(Kind::ToolchainMissing) => &[Other, Eager],
        Cause::Kind(Kind::Incompatible) => &[Defaults],
        Cause::Kind(Kind::InvalidInput) => &[],
        Cause::Cluster => &[Again],
    }
}

/// The rungs below `tried`, which failed of `now`; the request itself failed of `first`,
/// which says the way where `now` says none.
pub(super) fn below(first: Cause, now: Cause, tried: Rung) -> impl Iterator<Item = Rung> {
    let after = move |cause| chain(cause).iter().copied().filter(move |rung| *rung > tried);
    after(now).chain(after(first))
}

/// For how long a fallback is to be used that answers a failure of `kind`: as long as the
/// cluster remembers it, where it does.
pub(super) const fn valid(cause: Cause) -> Duration {
    use FailureKind as Kind;
    let seconds = match cause {
        Cause::Kind(Kind::OutOfMemory | Kind::Timeout) => 120,
        Cause::Kind(Kind::Crashed | Kind::Busy | Kind::Corrupt | Kind::ToolchainMissing)
        | Cause::Cluster => 30,
        Cause::Kind(
            Kind::CompileError
            | Kind::UnsupportedOp
            | Kind::InvalidInput
            | Kind::Incompatible
            | Kind::WrongOutput,
        ) => 600,
    };
    Duration::from_secs(seconds)
}

/// Whether what was wanted may be compiled a while later.
pub(super) const fn may_mend(cause: Cause) -> bool {
    !matches!(
        cause,
        Cause::Kind(
            FailureKind::UnsupportedOp | FailureKind::InvalidInput | FailureKind::Incompatible
        )
    )
}

#[cfg(test)]
mod tests {
    use kiln_proto::CLASSES;

    use super::*;

    fn all() -> impl Iterator<Item = Cause> {
        CLASSES.iter().map(|class| Cause::Kind(class.kind)).chain([Cause::Cluster])
    }

    /// The way where each rung exists and fails in the same way.
    fn way(kind: FailureKind) -> Vec<&'static str> {
        let cause = Cause::Kind(kind);
        let mut tried = vec![Rung::Wanted];
        while let Some(next) = below(cause, cause, *tried.last().unwrap()).next() {
            tried.push(next);
        }
        tried[1..].iter().map(|rung| rung.name()).collect()
    }

    #[test]
    fn the_ways_are_those_of_the_design() {
        use FailureKind::*;
        assert_eq!(way(OutOfMemory), ["saving", "pieces", "other", "eager"]);
        assert_eq!(way(UnsupportedOp), ["mixed", "other", "eager"]);
        assert_eq!(way(Timeout), ["pieces", "eager"]);
        assert_eq!(way(CompileError), ["fewer", "other", "eager"]);
        assert_eq!(way(Crashed), ["again", "fewer", "pieces", "other", "eager"]);
        assert_eq!(way(Busy), ["again", "eager"]);
        assert_eq!(way(Incompatible), ["defaults"]);
        assert_eq!(way(InvalidInput), [""; 0]);
    }

    #[test]
    fn each_chain_goes_down() {
        for cause in all() {
            assert!(chain(cause).is_sorted_by(|a, b| a < b), "{cause:?}");
            assert!(!chain(cause).contains(&Rung::Wanted));
        }
    }

    #[test]
    fn a_rung_that_fails_otherwise_never_leads_up() {
        let rungs = [Rung::Wanted, Rung::Again, Rung::Saving, Rung::Pieces, Rung::Other];
        for (first, now) in all().flat_map(|first| all().map(move |now| (first, now))) {
            for tried in rungs {
                assert!(below(first, now, tried).all(|rung| rung > tried), "{first:?} {now:?}");
            }
            assert_eq!(below(first, now, Rung::Eager).next(), None);
        }
        // A graph that cannot be cut is no end of the way down.
        let (first, now) = (FailureKind::OutOfMemory, FailureKind::Incompatible);
        let mut after = below(Cause::Kind(first), Cause::Kind(now), Rung::Pieces);
        assert_eq!(after.next(), Some(Rung::Other));
    }
}
