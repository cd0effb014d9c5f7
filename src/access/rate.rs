//! How much each client may ask: calls in a second, bytes at once, and failures to say who
//! it is.
//!
//! Invariant: memory is bounded, whoever asks: a client of whom nothing is owed is not kept,
//! and where there are too many to tell apart, the others share one bound. What was taken is
//! given back by time alone (calls, failures) or when its holder is dropped (bytes).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::Identity;

/// Clients that are told apart at once.
const CLIENTS: usize = 16 << 10;
/// Between two looks for clients of whom nothing is owed, where there are too many.
const SWEEP: Duration = Duration::from_secs(1);
/// What a client may save up, in seconds of its rate.
const BURST: u32 = 2;
/// What is said where it is not known when bytes will be free.
const SOON: Duration = Duration::from_secs(1);

/// Who is counted as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Client {
    Token(u64),
    Certificate(Arc<str>),
    Subject(Arc<str>),
    Password(Arc<str>),
    User(u32),
    /// Of IPv6 the first 64 bits, of which a client has all the others.
    Address(IpAddr),
    /// All others together.
    Others,
}

impl Client {
    /// Whoever `who` is, at `from`; `None`: a member, which has no bound, or somebody of whom
    /// nothing at all is known.
    pub(super) fn of(who: &Identity, from: Option<IpAddr>) -> Option<Self> {
        Some(match who {
            Identity::Token { id, .. } => Self::Token(*id),
            Identity::Certificate(name) => Self::Certificate(name.clone()),
            Identity::Subject { name, .. } => Self::Subject(name.clone()),
            Identity::Password(namespace) => Self::Password(namespace.clone()),
            Identity::User(uid) => Self::User(*uid),
            Identity::Anyone => Self::at(Some(from?)),
            Identity::Member(_) => return None,
        })
    }

    /// Whoever is at `from`.
    pub(super) fn at(from: Option<IpAddr>) -> Self {
        match from.map(|address| address.to_canonical()) {
            None => Self::Others,
            Some(IpAddr::V6(address)) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Self::Address(Ipv6Addr::from_bits(network).into())
            }
            Some(address) => Self::Address(address),
        }
    }
}

/// A rate for each client; each may save up [`BURST`] seconds of it.
#[derive(Debug)]
pub(super) struct Rate {
    /// Between two of one client; zero: no bound.
    every: Duration,
    burst: Duration,
    began: Instant,
    clients: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    /// When the last that each took would have been due, since the beginning.
    due: HashMap<Client, Duration>,
    swept: Duration,
}

impl Rate {
    /// `most` in `per`; 0: no bound.
    pub(super) fn new(most: u32, per: Duration) -> Self {
        let every = if most == 0 { Duration::ZERO } else { per / most };
        let burst = (per * BURST).saturating_sub(every);
        Self { every, burst, began: Instant::now(), clients: Mutex::default() }
    }

    pub(super) fn is_bound(&self) -> bool {
        !self.every.is_zero()
    }

    /// Takes one; an error: there is one again after so long.
    pub(super) fn take(&self, client: Client) -> Result<(), Duration> {
        self.take_at(client, self.began.elapsed())
    }

    /// Whether there is one, which stays.
    pub(super) fn has(&self, client: Client) -> Result<(), Duration> {
        self.has_at(client, self.began.elapsed())
    }

    fn has_at(&self, client: Client, now: Duration) -> Result<(), Duration> {
        let mut clients = self.clients.lock();
        // As whom it is counted.
        let client = clients.room(client, now);
        let due = clients.due.get(&client).copied().unwrap_or_default();
        self.wait(due, now).map_or(Ok(()), Err)
    }

    fn take_at(&self, client: Client, now: Duration) -> Result<(), Duration> {
        if !self.is_bound() {
            return Ok(());
        }
        let mut clients = self.clients.lock();
        let client = clients.room(client, now);
        let due = clients.due.entry(client).or_default();
        if let Some(wait) = self.wait(*due, now) {
            return Err(wait);
        }
        *due = (*due).max(now) + self.every;
        Ok(())
    }

    fn wait(&self, due: Duration, now: Duration) -> Option<Duration> {
        due.checked_sub(now + self.burst).filter(|wait| self.is_bound() && !wait.is_zero())
    }
}

impl Clients {
    /// As whom `client` is counted.
    fn room(&mut self, client: Client, now: Duration) -> Client {
        if self.due.len() < CLIENTS || self.due.contains_key(&client) {
            return client;
        }
        if now.saturating_sub(self.swept) >= SWEEP {
            self.due.retain(|_, due| *due > now);
            self.swept = now;
        }
        if self.due.len() < CLIENTS { client } else { Client::Others }
    }
}

/// Bytes that each client may have on their way at once.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    /// 0: no bound.
    most: u64,
    held: Arc<Mutex<HashMap<Client, u64>>>,
}

/// Bytes of a client that are on their way, until this is dropped.
#[derive(Debug, Default)]
pub struct Held(Option<(Flight, Client, u64)>);

impl Flight {
    pub(super) fn new(most: u64) -> Self {
        Self { most, held: Arc::default() }
    }

    /// Sets `bytes` aside; an error: ask again after so long. One transfer is always taken,
    /// whatever its size.
    pub(super) fn hold(&self, client: Client, bytes: u64) -> Result<Held, Duration> {
        if self.most == 0 {
            return Ok(Held::default());
        }
        let mut held = self.held.lock();
        let of_client = held.get(&client).copied();
        if of_client.is_some_and(|of_client| of_client.saturating_add(bytes) > self.most) {
            return Err(SOON);
        }
        *held.entry(client.clone()).or_default() += bytes;
        Ok(Held(Some((self.clone(), client, bytes))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some((flight, client, bytes)) = self.0.take() else { return };
        let mut held = flight.held.lock();
        let left = held.get(&client).copied().unwrap_or_default().saturating_sub(bytes);
        match left {
            0 => drop(held.remove(&client)),
            left => drop(held.insert(client, left)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(address: &str) -> Client {
        Client::at(Some(address.parse().unwrap()))
    }

    #[test]
    fn a_rate_is_each_clients_own_and_says_when_there_is_more() {
        let rate = Rate::new(10, SECOND);
        let (one, other) = (at("10.0.0.1"), at("10.0.0.2"));
        for _ in 0..20 {
            assert_eq!(rate.take_at(one.clone(), SECOND), Ok(()));
        }
        let wait = rate.take_at(one.clone(), SECOND).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(rate.take_at(other, SECOND), Ok(()));
        assert_eq!(rate.take_at(one.clone(), SECOND + wait), Ok(()));
        assert!(rate.take_at(one, SECOND + wait).is_err());
        let unbound = Rate::new(0, SECOND);
        for _ in 0..100 {
            assert_eq!(unbound.take_at(at("10.0.0.1"), SECOND), Ok(()));
        }
    }

    #[test]
    fn a_client_has_all_of_its_network_and_no_second_bound_for_it() {
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1:2:3"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        let token = |name: &str| Identity::Token { id: 7, name: name.into() };
        let from = Some("10.0.0.1".parse().unwrap());
        assert_eq!(Client::of(&token("a"), from), Client::of(&token("b"), None));
        assert_eq!(Client::of(&Identity::Anyone, from), Some(at("10.0.0.1")));
        assert_eq!(Client::of(&Identity::Member(Some(1)), from), None);
    }

    #[test]
    fn any_number_of_clients_takes_bounded_memory() {
        let rate = Rate::new(1, SECOND);
        let client = |n: usize| Client::User(u32::try_from(n).unwrap());
        for n in 0..3 * CLIENTS {
            let _ = rate.take_at(client(n), SECOND);
        }
        assert!(rate.clients.lock().due.len() <= CLIENTS + 1);
        assert!(rate.take_at(client(4 * CLIENTS), SECOND).is_err(), "they share what is left");
        assert!(rate.has_at(client(4 * CLIENTS + 1), SECOND).is_err(), "and each is told so");
        // Once nothing is owed of them, others are told apart again.
        for n in 0..100 {
            assert_eq!(rate.take_at(client(5 * CLIENTS + n), 10 * SECOND), Ok(()));
        }
        assert!(rate.clients.lock().due.len() <= 101);
    }

    #[test]
    fn bytes_are_free_again_with_their_holder() {
        let flight = Flight::new(100);
        let one = flight.hold(Client::User(1), 60).unwrap();
        assert!(flight.hold(Client::User(1), 41).is_err());
        let _other = flight.hold(Client::User(2), 500).unwrap();
        drop(one);
        assert!(flight.hold(Client::User(1), 100).is_ok());
        assert_eq!(flight.held.lock().len(), 1, "who holds nothing is not kept");
        assert!(Flight::new(0).hold(Client::User(1), u64::MAX).is_ok());
    }
}
