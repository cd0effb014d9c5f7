//! What must hold on a stream of Raft's append requests, whatever the library does.
//!
//! openraft 0.10.0-alpha.37 may take up an earlier order to replicate again, after the log
//! that it names was purged: a debug build then panics in the task that replicates, and a
//! release build sends entries that do not follow what comes before them.
//!
//! Invariant: no request leaves or enters a node whose entries do not follow `prev_log_id`
//! one by one; a stream that gets nowhere ends, and so does one that was not answered.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{Stream, StreamExt, stream};
use openraft::{entry::RaftEntry, raft::AppendEntriesRequest};

use crate::raft::Types;

type Request = AppendEntriesRequest<Types>;

/// Whether the entries follow `prev_log_id` without a hole.
pub(crate) fn is_gapless(request: &Request) -> bool {
    let mut before = request.prev_log_id.map(|id| id.index);
    request.entries.iter().all(|entry| {
        let next = before.map_or(Some(0), |index| index.checked_add(1));
        before = Some(entry.index());
        next == before
    })
}

/// `requests` up to the first with a hole, or that says what the one before it said. The log
/// store has nothing for a range that was purged, and the library would ask on and on.
pub(crate) fn with_headway(
    requests: impl Stream<Item = Request> + Unpin,
) -> impl Stream<Item = Request> + Unpin {
    let mut told = None;
    requests.take_while(move |request| {
        let news = (request.prev_log_id, request.leader_commit);
        let again = request.entries.is_empty() && told == Some(news);
        told = request.entries.is_empty().then_some(news);
        ready(!again && is_gapless(request))
    })
}

/// Counts the requests of a stream that still want an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unanswered(Arc<AtomicU64>);

impl Unanswered {
    /// One more request is on its way.
    pub(crate) fn asked(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// `answers`, and `cut` at their end if there are fewer than requests: the library takes
    /// the end of a stream for the end of its work.
    pub(crate) fn until_all<T, E>(
        self,
        answers: impl Stream<Item = Result<T, E>>,
        cut: impl FnOnce() -> E,
    ) -> impl Stream<Item = Result<T, E>> {
        let counted = Arc::clone(&self.0);
        let answers = answers.inspect(move |answer| {
            if answer.is_ok() {
                counted.fetch_sub(1, Ordering::Relaxed);
            }
        });
        let end = stream::once(async move { (self.0.load(Ordering::Relaxed) > 0).then(cut) });
        answers.chain(end.filter_map(|cut| ready(cut.map(Err))))
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::{
        command::Command,
        raft::{Entry, RaftLogId, Vote},
    };

    fn at(index: u64) -> RaftLogId {
        RaftLogId::new(Vote::new(1, 1).leader_id, index)
    }

    fn request(prev: u64, commit: u64, entries: &[u64]) -> Request {
        let entry = |index: &u64| Entry {
            log_id: at(*index),
            payload: openraft::EntryPayload::Normal(Command::Forget {
                pack: kiln_proto::Digest::of(b""),
            }),
        };
        Request {
            vote: Vote::new(1, 1),
            prev_log_id: Some(at(prev)),
            leader_commit: Some(at(commit)),
            entries: entries.iter().map(entry).collect(),
        }
    }

    fn passed(requests: Vec<Request>) -> usize {
        block_on(with_headway(stream::iter(requests)).count())
    }

    #[test]
    fn entries_that_do_not_follow_are_not_sent() {
        assert!(is_gapless(&request(446, 446, &[447, 448])));
        assert!(!is_gapless(&request(446, 446, &[454, 455])));
        assert!(!is_gapless(&request(446, 446, &[447, 449])));
        assert!(!is_gapless(&Request { prev_log_id: None, ..request(0, 0, &[1]) }));
        assert_eq!(passed(vec![request(3, 3, &[4]), request(4, 3, &[6]), request(4, 3, &[5])]), 1);
    }

    #[test]
    fn what_was_said_is_not_said_again() {
        let commits = vec![request(9, 7, &[]), request(9, 8, &[]), request(9, 9, &[])];
        assert_eq!(passed(commits), 3);
        let stuck = vec![request(446, 491, &[]); 5];
        assert_eq!(passed(stuck), 1);
        let between = vec![request(4, 4, &[]), request(4, 4, &[5]), request(4, 4, &[])];
        assert_eq!(passed(between), 3, "entries went out between the two");
    }

    #[test]
    fn an_end_before_all_answers_is_an_error() {
        let told = |asked: usize, answers: Vec<Result<u8, &'static str>>| {
            let unanswered = Unanswered::default();
            (0..asked).for_each(|_| unanswered.asked());
            let all = unanswered.until_all(stream::iter(answers), || "cut");
            block_on(all.collect::<Vec<_>>())
        };
        assert_eq!(told(2, vec![Ok(1), Ok(2)]), [Ok(1), Ok(2)]);
        assert_eq!(told(2, vec![Ok(1)]), [Ok(1), Err("cut")]);
        assert_eq!(told(0, vec![]), []);
        assert_eq!(told(1, vec![Err("lost")]), [Err("lost"), Err("cut")]);
    }
}
