//! MULTI, EXEC and DISCARD: commands that are kept until all of them are known.
//!
//! Invariant: nothing of a transaction runs before EXEC, and nothing at all where one of
//! its commands was refused; what is kept was admitted to the node's budget but for its
//! first [`FREE`] bytes, and a client that stalls with more than those is let go. All of its
//! commands together have the time of one that names many keys.
//!
//! It is not isolated: other clients' commands may come in between, so WATCH, which asks
//! for more, is refused.

use std::time::Instant;

use super::{
    connection::{Connection, Ended},
    decode::{Admitted, Arg, Request},
    many::{self, Time},
    reply::Reply,
    table::Family,
};

/// Bytes of short arguments that are kept without an admission.
const FREE: usize = 64 << 10;
/// Bytes that one admission is for.
const STEP: usize = 256 << 10;
/// What is kept of a command beside its arguments' bytes, and of each argument.
const COMMAND: usize = 128;
const ARGUMENT: usize = 64;

/// Commands between MULTI and EXEC.
#[derive(Default)]
pub(super) struct Transaction {
    queue: Vec<(&'static str, Request)>,
    /// One was refused: EXEC runs none.
    spoiled: bool,
    /// Bytes of what is kept, and of what was admitted for them.
    bytes: usize,
    free: usize,
    admitted: Admitted,
}

impl Transaction {
    /// Whether it holds memory that others may wait for.
    pub(super) fn holds(&self) -> bool {
        self.free > 0 || self.queue.iter().any(|(_, request)| !request.admitted.is_empty())
    }

    /// Nothing of it will run.
    pub(super) fn spoil(&mut self) {
        *self = Self { spoiled: true, ..Self::default() };
    }
}

impl Connection {
    /// Answers what begins or ends a transaction, or keeps a command of one; gives back
    /// what is to be run now.
    pub(super) async fn in_transaction(
        &mut self,
        name: &'static str,
        request: Request,
    ) -> Result<Option<Request>, Ended> {
        let open = self.transaction.is_some();
        match (name, open) {
            ("multi", false) => {
                self.transaction = Some(Transaction::default());
                self.push(Reply::OK);
            }
            ("multi", true) => self.push(Reply::error("ERR MULTI calls can not be nested")),
            ("exec", true) => self.exec().await?,
            ("discard", true) => {
                self.transaction = None;
                self.push(Reply::OK);
            }
            ("exec", false) => self.push(Reply::error("ERR EXEC without MULTI")),
            ("discard", false) => self.push(Reply::error("ERR DISCARD without MULTI")),
            ("watch", true) => self.push(Reply::error("ERR WATCH inside MULTI is not allowed")),
            ("watch", false) => self.push(Reply::error(
                "ERR WATCH is not supported: a transaction runs in order here, and is not \
                 isolated from other clients",
            )),
            ("quit" | "reset", true) => {
                self.transaction = None;
                return Ok(Some(request));
            }
            ("auth" | "hello", true) => {
                self.refuse(Reply::error("ERR Command not allowed inside a transaction"));
            }
            (_, true) => self.keep(name, request).await,
            // There is nothing that it could end.
            ("unwatch", false) => self.push(Reply::OK),
            (_, false) => return Ok(Some(request)),
        }
        Ok(None)
    }

    /// Answers a command that cannot run with its error; a transaction that it is in runs
    /// nothing.
    pub(super) fn refuse(&mut self, error: Reply) {
        if let Some(transaction) = &mut self.transaction {
            transaction.spoil();
        }
        self.push(error);
    }

    async fn keep(&mut self, name: &'static str, request: Request) {
        let Some(transaction) = &mut self.transaction else { return };
        if transaction.spoiled {
            // It is never run, so it is not kept.
            return self.push(Reply::Simple("QUEUED"));
        }
        let bytes = |arg: &Arg| match arg {
            Arg::Bytes(bytes) => bytes.len() + ARGUMENT,
            Arg::Blob(_) | Arg::Skipped(_) => ARGUMENT,
        };
        transaction.bytes += COMMAND + request.args.iter().map(bytes).sum::<usize>();
        transaction.queue.push((name, request));
        while transaction.bytes > FREE + transaction.free {
            match self.values.parts.arrivals.admit(STEP as u64).await {
                Ok((charge, place)) => {
                    transaction.admitted.add(charge, place);
                    transaction.free += STEP;
                }
                Err(error) => {
                    return self.refuse(Reply::error(format!("OOM no memory for it: {error}")));
                }
            }
        }
        self.push(Reply::Simple("QUEUED"));
    }

    async fn exec(&mut self) -> Result<(), Ended> {
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        if transaction.spoiled {
            self.push(Reply::error("EXECABORT Transaction discarded because of previous errors."));
            return Ok(());
        }
        self.out.push_array_of(transaction.queue.len());
        let time = Time::begin(self.settings.longest);
        self.executing = Some(time);
        let mut left = 0;
        for (name, request) in transaction.queue {
            if time.is_over() {
                left += match Family::of(name) {
                    Family::Write => many::values_of(name, request.args.len()),
                    Family::Read | Family::Other => 0,
                };
                self.push(time.not_begun());
                continue;
            }
            let began = Instant::now();
            self.execute(name, request).await?;
            self.values.parts.counters.took(Family::of(name), began.elapsed());
            self.flush_if_long().await?;
        }
        self.executing = None;
        if left > 0 {
            self.values
                .failed_all(left, &"a transaction had more commands than there was time for");
        }
        Ok(())
    }
}
