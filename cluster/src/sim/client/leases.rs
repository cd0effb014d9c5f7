//! Clients that compile under a lease.
//!
//! Invariant: tokens of one key rise, and a publication under one that is over is refused.

use std::sync::Arc;

use kiln_proto::Token;
use tokio::time::Instant;

use super::{Client, Ended, key_of, longest_ask};
use crate::{
    Acquired, Lease, Published,
    sim::{
        fleet::{Running, timings},
        history::{Ask, Told},
    },
};

impl Client {
    pub(super) async fn compile(&mut self, member: &Arc<Running>, key: &str) {
        let wait = self.chance.millis(200..8000);
        let found = key_of(key);
        let call = member.index.acquire(&found, None, Instant::now() + wait, || {});
        let what = format!("acquire {key} for {wait:?}");
        let lease = match self.call(member, &what, wait, call).await {
            Ended::Answered(Ok(Acquired::Granted(lease))) => lease,
            Ended::Answered(Ok(Acquired::Ready(entry))) => return self.all.saw(key, &entry),
            _ => return,
        };
        self.granted(key, &lease);
        self.compile_under(member, key, lease).await;
    }

    /// Compiles `key`, so to speak, and publishes it most of the time.
    pub(super) async fn compile_under(&mut self, member: &Arc<Running>, key: &str, lease: Lease) {
        // Some compiles take longer than a lease lives without heartbeats.
        let takes = match self.chance.permille(150) {
            true => self.chance.millis(2000..6000),
            false => self.chance.millis(5..600),
        };
        tokio::select! {
            biased;
            () = member.process.dead.cancelled() => return,
            () = tokio::time::sleep(takes) => {}
        }
        match self.chance.within(0..100) {
            0..58 => self.publish(member, key, lease.token(), Some(&lease)).await,
            58..72 => self.fail(member, &lease).await,
            72..82 => {} // given back
            _ => {
                // Given back, and the compiler did not hear of it.
                let token = lease.token();
                drop(lease);
                // Sometimes so late that others published meanwhile.
                let tries = if self.chance.permille(500) { 1 } else { 10 };
                for _ in 0..tries {
                    tokio::time::sleep(self.chance.millis(1..500)).await;
                    if matches!(member.index.lookup(&key_of(key)).await, Ok(Some(_))) {
                        break;
                    }
                }
                if !member.process.is_dead() {
                    self.publish(member, key, token, None).await;
                }
            }
        }
    }

    pub(super) fn granted(&self, key: &str, lease: &Lease) {
        let token = lease.token();
        self.all.fleet.trace.event(format_args!("client {}: {key} under {token}", self.number));
        let mut seen = self.all.seen.lock();
        let again = !seen.tokens.insert((key.to_owned(), token));
        drop(seen);
        if again {
            self.all.violation(format!("{token} of {key} was granted twice"));
        }
    }

    /// Whether a later token of `key` was granted to anyone.
    pub(super) fn is_fenced(&self, key: &str, token: Token) -> bool {
        let seen = self.all.seen.lock();
        let later = seen.tokens.range((key.to_owned(), Token(token.0 + 1))..).next();
        let fenced = later.is_some_and(|(known, _)| known == key);
        drop(seen);
        if fenced {
            self.all.fleet.trace.count("fenced");
        }
        fenced
    }

    /// Publishes under `token`, of `lease` where it is still held.
    async fn publish(
        &mut self,
        member: &Arc<Running>,
        key: &str,
        token: Token,
        lease: Option<&Lease>,
    ) {
        let (pack, digest) = self.all.new_pack();
        let Some((manifest, node)) = self.sign(member, key, digest) else { return };
        let pending = self.all.history.begin(self.number, key, Ask::Publish { pack, node });
        // Whoever was granted the key later fenced this one off.
        let fenced = self.is_fenced(key, token);
        let found = key_of(key);
        let call = async {
            match lease {
                Some(lease) => member.index.publish(lease, manifest, Vec::new()).await,
                None => member.index.publish_as(&found, token, manifest, Vec::new()).await,
            }
        };
        let bound = longest_ask() + timings().patience;
        let what = format!("publish {pack} as {key} under {token}");
        let told = match self.call(member, &what, bound, call).await {
            Ended::Answered(Ok(Published::Committed(entry))) => {
                self.all.saw(key, &entry);
                self.all.fleet.trace.count("published");
                if fenced {
                    self.all.violation(format!("{token} of {key} published after a later one"));
                }
                Told::Committed
            }
            Ended::Answered(Ok(Published::Existing(entry))) => {
                self.all.fleet.trace.count("published too late");
                self.all.saw(key, &entry);
                // An earlier try may have committed it, and a removal ended that.
                Told::Unknown
            }
            // The same.
            _ => Told::Unknown,
        };
        self.all.history.end(&pending, told);
    }

    async fn fail(&mut self, member: &Arc<Running>, lease: &Lease) {
        use kiln_proto::{Failure, FailureKind};
        let kinds = [FailureKind::CompileError, FailureKind::Timeout, FailureKind::Crashed];
        let kind = self.chance.pick(&kinds).unwrap_or(FailureKind::Timeout);
        let call = member.index.fail(lease, Failure::new(kind, "simulated"));
        drop(self.call(member, &format!("fail {kind:?}"), longest_ask(), call).await);
    }
}
