//! One client from its first request to its end: read, answer in order, write.
//!
//! Invariant: replies leave in the order of their requests; what waits for a
//! client, or for the cluster on its behalf, ends when the client does.

use std::time::Instant;

use tracing::Instrument;

use super::{
    commands,
    connection::{Connection, Ended},
    counters::Count,
    decode::{Request, Step},
    reply::Reply,
    table::Family,
};
use crate::telemetry::trace;

impl Connection {
    /// Serves the client to its end.
    pub(super) async fn run(mut self) {
        let ended = self.serve().await;
        if let Err(Ended::Decode(error)) = &ended {
            self.push(Reply::error(format!("ERR {error}")));
            // The client may be gone already.
            let _ = self.flush().await;
        }
        tracing::debug!(client = self.session.id, ended = ?ended.err(), "a RESP connection ended");
        self.misses.clear(&self.values).await;
    }

    async fn serve(&mut self) -> Result<(), Ended> {
        loop {
            self.decoder.trust(self.session.authenticated);
            match self.decoder.next()? {
                Step::Request(request) => self.request(request).await?,
                Step::Admit(bytes) => {
                    self.flush().await?;
                    let admitted = self.values.parts.arrivals.admit(bytes as u64).await;
                    self.decoder.admit(admitted.ok())?;
                }
                Step::Read => {
                    self.flush().await?;
                    self.read().await?;
                }
            }
        }
    }

    async fn request(&mut self, request: Request) -> Result<(), Ended> {
        self.arrived();
        self.values.count(Count::Requests);
        let named = commands::named(&request);
        // What a transaction keeps is counted when it runs.
        let family = match self.transaction {
            Some(_) => Family::Other,
            None => named.map_or(Family::Other, |(command, _)| Family::of(command)),
        };
        let began = Instant::now();
        match trace::chosen() {
            false => self.answer(request, named).await?,
            true => {
                let span = trace::root(family.span());
                self.answer(request, named).instrument(span).await?;
            }
        }
        self.values.parts.counters.took(family, began.elapsed());
        if self.session.quits {
            self.flush().await?;
            return Err(Ended::Client);
        }
        self.flush_if_long().await?;
        Ok(())
    }
}
