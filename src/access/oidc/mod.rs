//! Tokens of other issuers: of Kubernetes' service accounts, and of any OpenID provider.
//!
//! Invariant: a token is taken only where its signature is by a key of the issuer that it
//! names, made with the algorithm of that key, for this audience, at this time, and a row is
//! for whom it names. An issuer that is away is judged by what it said last, for a while.

mod crypto;
mod keys;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jsonwebtoken::{Validation, decode, decode_header, errors::ErrorKind};
use kiln_cluster::tokens::matches;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::keys::Source;
pub(crate) use self::keys::source;
use self::keys::{Fetcher, Shared};
use super::{Denied, Role};

/// Longest token of another issuer, in bytes.
const LONGEST: usize = 16 << 10;
/// Between two fetches where nothing asks for one.
const REFRESH: Duration = Duration::from_secs(300);
/// The least of it, where keys are good for a short time only.
const LEAST: Duration = Duration::from_secs(1);
/// Between two fetches for keys that nobody knows: whoever makes ids up causes no more.
const AT_MOST: Duration = Duration::from_secs(10);
/// What a call waits for a key that may be new.
const PATIENCE: Duration = Duration::from_secs(3);
/// How far apart clocks may be.
const SKEW: Duration = Duration::from_secs(30);

/// Rights by a claim of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The claim; `sub` where none is named.
    pub claim: String,
    /// Its value, or the beginning of some with `*` behind.
    pub value: String,
    /// What its bearer may do.
    pub role: Role,
    /// In which namespaces.
    pub namespaces: Vec<String>,
}

/// One issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// As it names itself in tokens.
    pub issuer: String,
    /// For whom its tokens have to be.
    pub audience: String,
    /// Where its keys come from.
    pub source: Source,
    /// Authorities of that place, in PEM; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// File with a token that is shown there.
    pub bearer: Option<PathBuf>,
    /// The first that matches counts.
    pub rows: Vec<Row>,
    /// For how long keys are good when the issuer does not answer.
    pub offline: Duration,
}

/// What a token says, as far as it is asked.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// Whom a token is of, and what a row gives it.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    /// With its issuer: two of them may name theirs alike.
    pub(super) name: String,
    /// In seconds since 1970.
    pub(super) expires: u64,
    pub(super) row: &'a Row,
}

/// The issuers that are believed.
#[derive(Debug)]
pub(super) struct Issuers(Vec<Arc<Issuer>>);

#[derive(Debug)]
struct Issuer {
    settings: Settings,
    known: ArcSwap<Known>,
    /// The number of fetches that ended, whatever came of them.
    fetched: watch::Sender<u64>,
    /// When one was last asked for, for a key that nobody knew, and how many there had been.
    asked: Mutex<Option<(Instant, u64)>>,
    wanted: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Known {
    keys: Shared,
    /// When they were fetched; `None`: never.
    at: Option<Instant>,
}

/// Whether text has the form of one of these tokens, and not that of Kiln's own.
pub fn is_one(text: &str) -> bool {
    text.len() <= LONGEST && text.starts_with("ey") && text.split('.').count() == 3
}

impl Issuers {
    pub(super) fn new(settings: Vec<Settings>) -> Self {
        if !settings.is_empty() {
            crypto::install();
        }
        Self(settings.into_iter().map(|settings| Arc::new(Issuer::new(settings))).collect())
    }

    pub(super) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Fetches keys until `stop`. An error: an issuer's settings cannot be used.
    pub(super) fn follow(
        &self,
        stop: &CancellationToken,
    ) -> Result<Vec<impl Future<Output = ()> + Send + use<>>, String> {
        let mut tasks = Vec::new();
        for issuer in &self.0 {
            let Settings { issuer: name, source, ca, bearer, .. } = &issuer.settings;
            let wrong = |why: String| format!("access.oidc: issuer {name:?}: {why}");
            let ca = ca.as_ref().map(|path| {
                std::fs::read(path).map_err(|e| wrong(format!("read {}: {e}", path.display())))
            });
            let ca = ca.transpose()?;
            let fetcher = Fetcher::new(source.clone(), name.clone(), ca.as_deref(), bearer.clone());
            let fetcher = fetcher.map_err(wrong)?;
            tasks.push(follow(issuer.clone(), fetcher, stop.clone()));
        }
        Ok(tasks)
    }

    /// Whether the key of this token is not known, or no more, and its issuer is.
    pub(super) fn want_key_of(&self, token: &str) -> bool {
        self.named(token).is_ok_and(|(issuer, id)| issuer.lacks(&id))
    }

    /// Waits for a key of this token that may be new, a moment at most.
    pub(super) async fn freshen(&self, token: &str) {
        let Ok((issuer, id)) = self.named(token) else { return };
        if !issuer.lacks(&id) {
            return;
        }
        let mut fetched = issuer.fetched.subscribe();
        fetched.mark_unchanged();
        if issuer.ask() {
            // Whatever comes of it is judged by who asks.
            let _ = tokio::time::timeout(PATIENCE, fetched.changed()).await;
        }
    }

    /// The issuer that a token names, which is not proven yet, and the id of its key.
    fn named(&self, token: &str) -> Result<(&Arc<Issuer>, String), Denied> {
        #[derive(Deserialize)]
        struct Named {
            iss: String,
        }
        if !is_one(token) {
            return Err(Denied::Malformed);
        }
        let header = decode_header(token).map_err(|_| Denied::Malformed)?;
        let named: Named = jsonwebtoken::dangerous::insecure_decode_claims(token)
            .map_err(|_| Denied::Malformed)?;
        let issuer = self.0.iter().find(|issuer| issuer.settings.issuer == named.iss);
        let issuer = issuer.ok_or(Denied::Unknown)?;
        if !crypto::TAKEN.contains(&header.alg) {
            return Err(Denied::Signature);
        }
        Ok((issuer, header.kid.ok_or(Denied::Signature)?))
    }

    /// Whose `token` is.
    pub(super) fn judge(&self, token: &str) -> Result<Judged<'_>, Denied> {
        let (issuer, id) = self.named(token)?;
        let known = issuer.known.load();
        if !issuer.is_known(&known) {
            issuer.ask();
            return Err(Denied::NoKeys);
        }
        let Some(key) = known.keys.get(&id) else {
            issuer.ask();
            return Err(Denied::Signature);
        };
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = SKEW.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[&issuer.settings.audience]);
        validation.set_issuer(&[&issuer.settings.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let decoded = decode::<Claims>(token, &key.key, &validation);
        let claims = decoded.map_err(|e| match e.kind() {
            ErrorKind::ExpiredSignature => Denied::Expired,
            ErrorKind::InvalidAudience => Denied::Audience,
            _ => Denied::Signature,
        })?;
        let Claims { sub, exp, others } = claims.claims;
        // Whoever has an account may write any address into it: the issuer has to vouch for it.
        let verified = others.get("email_verified") == Some(&serde_json::Value::Bool(true));
        let is_of = |row: &&Row| match row.claim.as_str() {
            "sub" => matches(&row.value, &sub),
            "email" if !verified => false,
            claim => others
                .get(claim)
                .and_then(serde_json::Value::as_str)
                .is_some_and(|value| matches(&row.value, value)),
        };
        let row = issuer.settings.rows.iter().find(is_of).ok_or(Denied::NoSubject)?;
        let expires = (exp.max(0.0) as u64).saturating_add(SKEW.as_secs());
        let name = format!("{sub} of {}", issuer.settings.issuer);
        Ok(Judged { name, expires, row })
    }
}

impl Issuer {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            known: ArcSwap::default(),
            fetched: watch::Sender::new(0),
            asked: Mutex::default(),
            wanted: tokio::sync::Notify::new(),
        }
    }

    /// Whether what it said is good still.
    fn is_known(&self, known: &Known) -> bool {
        known.at.is_some_and(|at| at.elapsed() <= self.settings.offline)
    }

    /// Whether the key `id` is not known, or no more.
    fn lacks(&self, id: &str) -> bool {
        let known = self.known.load();
        !self.is_known(&known) || !known.keys.contains_key(id)
    }

    /// Asks for a fetch, unless one was asked for just now; whether one is to come.
    fn ask(&self) -> bool {
        let (mut asked, fetched) = (self.asked.lock(), *self.fetched.borrow());
        match *asked {
            Some((at, before)) if at.elapsed() < AT_MOST => before == fetched,
            _ => {
                *asked = Some((Instant::now(), fetched));
                self.wanted.notify_one();
                true
            }
        }
    }
}

/// Fetches the keys of an issuer now and then, and when they are asked for.
async fn follow(issuer: Arc<Issuer>, fetcher: Fetcher, stop: CancellationToken) {
    let mut pause = LEAST;
    loop {
        let fetched = tokio::select! {
            fetched = fetcher.fetch() => fetched,
            () = stop.cancelled() => return,
        };
        let name = &issuer.settings.issuer;
        let wait = match fetched {
            Ok(keys) => {
                tracing::debug!(issuer = name, keys = keys.len(), "the issuer's keys");
                issuer.known.store(Arc::new(Known { keys: keys.into(), at: Some(Instant::now()) }));
                pause = LEAST;
                REFRESH.min(issuer.settings.offline / 2).max(LEAST)
            }
            Err(why) => {
                metrics::counter!("kiln_oidc_failures_total").increment(1);
                tracing::warn!(issuer = name, why, "an issuer's keys cannot be fetched");
                pause = (pause * 2).min(REFRESH);
                pause
            }
        };
        issuer.fetched.send_modify(|fetched| *fetched += 1);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = issuer.wanted.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests;
