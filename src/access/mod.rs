//! Who asks, and what they may do.
//!
//! ```text
//!  a door (gRPC, RESP, HTTP, unix socket) ── Shown ──▶ Access::judge ──▶ Grant
//!                                                        │ tokens of the local replica,
//!                                                        │ certificates and users of the
//!                                                        ▼ configuration
//!                         rights: what a method needs ── Grant::needs, reads, writes
//! ```
//!
//! Invariant: where access is required, nobody gets a grant who has shown nothing, or
//! something that is not good now; a bad token is never made up for by anything else. Where
//! it is not, everybody has all rights, as the doors themselves decide who comes in.

mod denied;
mod grant;
mod limit;
pub mod oidc;
mod rate;
mod rights;
mod settings;

use std::{
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

pub use kiln_cluster::tokens::{Role, Secret};
use kiln_cluster::{
    Caller, Index,
    admission::NotAdmitted,
    tokens::{TokenInfo, matches},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    denied::{Denied, Limited},
    grant::{Grant, Identity},
    rate::Held,
    rights::{Right, is_of_api, method, name, of_members},
    settings::{Limits, Row, Settings, SocketAdmin},
};
use self::{
    limit::Limit,
    oidc::Issuers,
    rate::{Client, Flight, Rate},
};
use crate::{
    audit::{self, Audit, Event},
    clock,
};

/// Longest name of what was refused, in bytes: a caller chooses it.
const LONGEST_WHAT: usize = 128;
/// No contact yet.
const NEVER: i64 = i64::MIN;

/// What a caller showed of itself.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// What stood where a token belongs.
    pub bearer: Option<String>,
    /// The names in its certificate, which was of the clients' authority.
    pub certificate: Option<Arc<[String]>>,
    /// Its user, by the kernel's word.
    pub uid: Option<u32>,
}

/// The judge of callers.
#[derive(Debug)]
pub struct Access {
    settings: Settings,
    shared: Arc<[String]>,
    own_uid: u32,
    index: OnceLock<IndexHandle>,
    began: Instant,
    /// When the cluster was last heard of, in milliseconds since `began`: before it, where
    /// that was in an earlier life of the node.
    heard: AtomicI64,
    limit: Limit,
    calls: Rate,
    failures: Rate,
    flight: Flight,
    issuers: Issuers,
    audit: Audit,
}

struct IndexHandle(Index);

impl std::fmt::Debug for IndexHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Index")
    }
}

impl Access {
    /// By these settings; tokens are known from [`Self::know`] on. What is refused is told to
    /// `audit`.
    pub fn new(settings: Settings, audit: Audit) -> Self {
        let Limits { calls_per_second, failures_per_minute, bytes_in_flight } = settings.limits;
        let issuers = Issuers::new(settings.oidc.clone());
        Self {
            shared: settings.shared.clone().into(),
            settings,
            own_uid: rustix::process::geteuid().as_raw(),
            index: OnceLock::new(),
            began: Instant::now(),
            heard: AtomicI64::new(NEVER),
            limit: Limit::default(),
            calls: Rate::new(calls_per_second, Duration::from_secs(1)),
            failures: Rate::new(failures_per_minute, Duration::from_secs(60)),
            flight: Flight::new(bytes_in_flight),
            issuers,
            audit,
        }
    }

    /// Whether callers need a grant.
    pub fn is_required(&self) -> bool {
        self.settings.required
    }

    /// What fetches the keys of issuers until `stop`. An error: settings that cannot be used,
    /// for people.
    pub fn follow_issuers(
        &self,
        stop: &CancellationToken,
    ) -> Result<Vec<impl Future<Output = ()> + Send + use<>>, String> {
        self.issuers.follow(stop)
    }

    /// Whether `text` has the form of a token that is judged here.
    pub fn is_token(&self, text: &str) -> bool {
        Secret::read(text).is_some() || (!self.issuers.are_none() && oidc::is_one(text))
    }

    /// Whether what is shown at `from` is a token whose issuer may have a key that is not known
    /// here, or no more. Of who may try nothing now nothing is looked at.
    pub fn wants_keys_of(&self, bearer: &str, from: Option<IpAddr>) -> bool {
        self.settings.required
            && !self.issuers.are_none()
            && self.may_try(from).is_ok()
            && self.issuers.want_key_of(bearer)
    }

    /// Waits a moment for that key, where there is one to wait for.
    pub async fn freshen(&self, bearer: &str, from: Option<IpAddr>) {
        if self.wants_keys_of(bearer, from) {
            self.issuers.freshen(bearer).await;
        }
    }

    /// From now on the tokens of `index` are known, of whose cluster was heard `ago`; `None`:
    /// never, or nobody knows when.
    pub fn know(&self, index: Index, ago: Option<Duration>) {
        if let Some(ago) = ago {
            let heard =
                self.now().saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX));
            self.heard.store(heard, Ordering::Relaxed);
        }
        // Nobody else sets it.
        let _ = self.index.set(IndexHandle(index));
    }

    /// Whether the certificate of `caller` names a node that has joined, or nobody.
    pub fn has_joined(&self, caller: &Caller) -> bool {
        let names_nobody = caller.node.is_none() && caller.key.is_none();
        // Before that the API itself says that this node is still joining.
        names_nobody || self.index.get().is_none_or(|index| index.0.has_joined(caller))
    }

    /// The cluster was heard of: what was revoked until now is known here, or soon.
    pub fn hear(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// Milliseconds of this node's life.
    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// What a caller at `from` may do who showed this, for one call; else also who it is, as
    /// far as that is known.
    pub fn ask(&self, shown: &Shown, from: Option<IpAddr>) -> Result<Grant, (Denied, Identity)> {
        let nobody = |denied| (denied, Identity::Anyone);
        if shown.bearer.is_some() {
            self.may_try(from).map_err(nobody)?;
        }
        let judged = self.judge(shown).inspect_err(|denied| self.tried(*denied, from));
        let grant = judged.map_err(nobody)?;
        match self.spend(grant.who(), from) {
            Ok(()) => Ok(grant),
            Err(denied) => Err((denied, grant.who().clone())),
        }
    }

    /// Whether who is at `from` may show something: not after too much that was no good.
    pub fn may_try(&self, from: Option<IpAddr>) -> Result<(), Denied> {
        if from.is_none() {
            return Ok(());
        }
        let has = self.failures.has(Client::at(from));
        has.map_err(|wait| Denied::Limit(Limited::Failures, wait))
    }

    /// Counts against `from` what was shown there and is no good.
    pub fn tried(&self, denied: Denied, from: Option<IpAddr>) {
        if from.is_some() && denied.is_bad_try() {
            // Whoever has none left is told at the next try.
            let _ = self.failures.take(Client::at(from));
        }
    }

    /// Counts one call of `who`, at `from`.
    pub fn spend(&self, who: &Identity, from: Option<IpAddr>) -> Result<(), Denied> {
        let Some(client) = Client::of(who, from).filter(|_| self.calls.is_bound()) else {
            return Ok(());
        };
        self.calls.take(client).map_err(|wait| Denied::Limit(Limited::Calls, wait))
    }

    /// Counts `bytes` that `who`, at `from`, has on their way until what is returned is
    /// dropped.
    pub fn hold(&self, who: &Identity, from: Option<IpAddr>, bytes: u64) -> Result<Held, Denied> {
        let Some(client) = Client::of(who, from) else { return Ok(Held::default()) };
        self.flight.hold(client, bytes).map_err(|wait| Denied::Limit(Limited::Bytes, wait))
    }

    /// What a caller may do who showed this.
    pub fn judge(&self, shown: &Shown) -> Result<Grant, Denied> {
        if !self.settings.required {
            let who = self.known_anyway(shown).unwrap_or(Identity::Anyone);
            return Ok(Grant::all(who, self.shared.clone()));
        }
        if let Some(bearer) = &shown.bearer {
            return self.of_token(bearer);
        }
        if let Some(names) = &shown.certificate {
            return self.of_certificate(names);
        }
        match shown.uid {
            Some(uid) => self.of_user(uid),
            None => Err(Denied::NoCredential),
        }
    }

    /// Whether this is the user that runs the node, by the kernel's word. It may always ask
    /// how its node is, and make it leave: whoever can do that can end its process, too.
    pub fn is_own(&self, uid: u32) -> bool {
        uid == self.own_uid
    }

    /// Whether the node's own user is an admin at its socket for want of any other.
    pub fn is_open_to_own(&self) -> bool {
        self.settings.required
            && self.settings.socket_admin == SocketAdmin::First
            && self.of_user(self.own_uid).is_ok()
    }

    /// All rights, for `who` is known by other means.
    pub fn all(&self, who: Identity) -> Grant {
        Grant::all(who, self.shared.clone())
    }

    /// Whether a grant is as good as when it was given: who holds a connection for long is
    /// asked again at each request.
    pub fn still(&self, grant: &Grant) -> Result<(), Denied> {
        if !self.settings.required {
            return Ok(());
        }
        match grant.who() {
            Identity::Token { id, .. } => self.token(*id).map(drop),
            Identity::User(uid) => self.of_user(*uid).map(drop),
            Identity::Subject { expires, .. } if *expires <= clock::unix_ms() / 1000 => {
                Err(Denied::Expired)
            }
            _ => Ok(()),
        }
    }

    /// For the log and the audit: who asks, where nobody has to say so.
    fn known_anyway(&self, shown: &Shown) -> Option<Identity> {
        if let Some(bearer) = &shown.bearer {
            return self.of_token(bearer).ok().map(|grant| grant.who().clone());
        }
        let named = shown.certificate.as_ref().and_then(|names| names.first());
        match (named, shown.uid) {
            (Some(name), _) => Some(Identity::Certificate(name.as_str().into())),
            (None, Some(uid)) => Some(Identity::User(uid)),
            (None, None) => None,
        }
    }

    fn of_token(&self, bearer: &str) -> Result<Grant, Denied> {
        if !self.issuers.are_none() && oidc::is_one(bearer) {
            let oidc::Judged { name, expires, row } = self.issuers.judge(bearer)?;
            let who = Identity::Subject { name: name.into(), expires };
            return Ok(Grant::new(who, row.role, &row.namespaces, self.shared.clone()));
        }
        let (id, secret) = Secret::read(bearer).ok_or(Denied::Malformed)?;
        let tokens = self.tokens()?;
        // Who guesses ids learns nothing: an unknown one is as a wrong secret.
        let token = tokens.get(&id).filter(|token| secret.is_of(&token.digest));
        let token = token.ok_or(Denied::Unknown)?;
        check(token)?;
        let who = Identity::Token { id, name: token.name.as_str().into() };
        Ok(Grant::new(who, token.role, &token.namespaces, self.shared.clone()))
    }

    fn token(&self, id: u64) -> Result<(), Denied> {
        check(self.tokens()?.get(&id).ok_or(Denied::Unknown)?)
    }

    fn tokens(&self) -> Result<Arc<std::collections::BTreeMap<u64, TokenInfo>>, Denied> {
        let index = self.index.get().ok_or(Denied::NotYet)?;
        let silent = self.now().saturating_sub(self.heard.load(Ordering::Relaxed));
        if u128::try_from(silent).unwrap_or_default() > self.settings.offline.as_millis() {
            return Err(Denied::Offline);
        }
        Ok(index.0.tokens())
    }

    fn of_certificate(&self, names: &Arc<[String]>) -> Result<Grant, Denied> {
        let row = self.settings.certificates.iter().find_map(|row| {
            let name = names.iter().find(|name| matches(&row.name, name))?;
            Some((row, name))
        });
        let (row, name) = row.ok_or(Denied::NoRow)?;
        let who = Identity::Certificate(name.as_str().into());
        Ok(Grant::new(who, row.role, &row.namespaces, self.shared.clone()))
    }

    fn of_user(&self, uid: u32) -> Result<Grant, Denied> {
        let trusted = uid == self.own_uid || uid == 0;
        let open = match self.settings.socket_admin {
            SocketAdmin::Always => true,
            SocketAdmin::Never => false,
            // Where settings make admins, nobody has to be the first.
            SocketAdmin::First if self.settings.name_an_admin() => false,
            SocketAdmin::First => {
                // One whose time is over or that was revoked, too: that an admin's token ends
                // makes nobody one.
                !self.tokens()?.values().any(|token| token.role == Role::Admin)
            }
        };
        match trusted && open {
            true => Ok(Grant::all(Identity::User(uid), self.shared.clone())),
            false => Err(Denied::NoUser),
        }
    }

    /// Where this node writes what is done.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Counts a refusal, and tells of it.
    pub fn refused(&self, denied: Denied, door: &'static str, what: &str, who: &Identity) {
        let why = denied.why();
        metrics::counter!("kiln_access_refused_total", "door" => door, "why" => why).increment(1);
        self.tell_of_refusal(why, door, what, who);
    }

    /// Counts that a candidate was not let in, and tells of it.
    pub fn refused_node(&self, why: NotAdmitted, what: &str) {
        let why = why.why();
        metrics::counter!("kiln_access_refused_total", "door" => "members", "why" => why)
            .increment(1);
        self.tell_of_refusal(why, "members", what, &Identity::Member(None));
    }

    /// Logs a refusal unless there are too many: who asks in vain at a door does not fill the
    /// log. Those of whom nobody knows who they are share a bound; who is known has one of its
    /// own for each reason, so that a crowd does not hide it.
    pub fn tell_of_refusal(&self, why: &str, door: &'static str, what: &str, who: &Identity) {
        let caller = match who {
            Identity::Anyone | Identity::Member(None) => String::new(),
            known => format!("{why} {known}"),
        };
        let Some(left_out) = self.limit.tell(&caller) else { return };
        let left_out_before = match left_out {
            0 => String::new(),
            some => format!(", and {some} more before it"),
        };
        let what = &what[..what.floor_char_boundary(LONGEST_WHAT)];
        let said = format!("{why} at {door}{left_out_before}");
        self.audit.record(Event::new(audit::DENIED, who).of(what).saying(said));
        tracing::warn!(door, what, %who, why, left_out, "a call is refused");
    }
}

fn check(token: &TokenInfo) -> Result<(), Denied> {
    if token.revoked.is_some() {
        return Err(Denied::Revoked);
    }
    match token.has_expired(clock::unix_ms()) {
        true => Err(Denied::Expired),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
