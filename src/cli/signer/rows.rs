//! `kiln signer list`: a row for each key of each node.
//!
//! Invariant: `--json` only grows; what a node does not say is absent.

use std::time::{Duration, UNIX_EPOCH};

use kiln_proto::pb;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct SignerView {
    pub(super) node: u64,
    pub(super) key: String,
    /// For `--cluster` of what the root signs.
    cluster: String,
    left: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<RevokedView>,
    /// What the root lets it sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateView>,
    /// Why it is not believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    unbelieved: Option<String>,
    /// Since when the node signs with it; absent: since it joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_unix_ms: Option<u64>,
    /// When another key followed; absent: it is the present one.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_unix_ms: Option<u64>,
    /// When what was published under it counts no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    revoked_times: Vec<RevokedTimeView>,
    /// Whether the root that is to be has certified it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    certified_next: bool,
}

#[derive(Debug, Serialize)]
struct CertificateView {
    name: String,
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after_unix_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct RevokedView {
    keep: bool,
    reason: String,
    by: u64,
    at_unix_ms: u64,
}

#[derive(Debug, Serialize)]
struct RevokedTimeView {
    after_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    before_unix_ms: Option<u64>,
    reason: String,
    by: u64,
    at_unix_ms: u64,
}

impl RevokedTimeView {
    fn told(&self) -> String {
        let from = match self.after_unix_ms {
            0 => String::new(),
            at => format!(" from {}", moment(at)),
        };
        let until = self.before_unix_ms.map(|at| format!(" until {}", moment(at)));
        format!("revoked{from}{}: {}", until.unwrap_or_default(), self.reason)
    }
}

/// A moment, for people.
fn moment(unix_ms: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    // The library writes no year behind 9999.
    let at = at.filter(|_| unix_ms < 253_402_300_800_000);
    at.map_or_else(|| unix_ms.to_string(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

impl SignerView {
    pub(super) fn new(signer: pb::SignerStatus, cluster: String) -> Self {
        let revoked = signer.revocation.map(|revoked| RevokedView {
            keep: revoked.keep,
            reason: revoked.reason,
            by: revoked.by,
            at_unix_ms: revoked.at_unix_ms,
        });
        let certificate = signer.certificate.map(|of| CertificateView {
            name: of.name,
            namespaces: of.namespaces,
            not_after_unix_ms: Some(of.not_after_unix_ms).filter(|end| *end != 0),
        });
        let times = signer.key_revocations.into_iter().map(|revoked| RevokedTimeView {
            after_unix_ms: revoked.after_unix_ms,
            before_unix_ms: Some(revoked.before_unix_ms).filter(|end| *end != 0),
            reason: revoked.reason,
            by: revoked.by,
            at_unix_ms: revoked.at_unix_ms,
        });
        Self {
            node: signer.node,
            key: hex::encode(signer.key),
            cluster,
            left: signer.left,
            revoked,
            certificate,
            unbelieved: Some(signer.unbelieved).filter(|why| !why.is_empty()),
            since_unix_ms: Some(signer.since_unix_ms).filter(|at| *at != 0),
            until_unix_ms: Some(signer.until_unix_ms).filter(|at| *at != 0),
            revoked_times: times.collect(),
            certified_next: signer.certified_next,
        }
    }

    /// What is said of the key, in a line.
    pub(super) fn state(&self) -> String {
        if let Some(revoked) = &self.revoked {
            return format!("revoked: {}", revoked.reason);
        }
        let mut said = vec![if self.left { "left" } else { "member" }.to_owned()];
        said.extend(self.since_unix_ms.map(|at| format!("since {}", moment(at))));
        said.extend(self.until_unix_ms.map(|at| format!("until {}", moment(at))));
        match (&self.unbelieved, &self.certificate) {
            (Some(why), _) => said.push(format!("not believed: {why}")),
            (None, Some(of)) => said.push(format!("may sign in {}", of.namespaces.join(", "))),
            (None, None) => {}
        }
        said.extend(self.certified_next.then(|| "certified by the next root".to_owned()));
        said.extend(self.revoked_times.iter().map(RevokedTimeView::told));
        said.join(", ")
    }
}

/// A moment as people write it, in milliseconds since the Unix epoch.
pub(super) fn read_moment(text: &str) -> Result<u64, String> {
    if text == "now" {
        return Ok(kiln::clock::unix_ms());
    }
    let why = "write 2026-11-28T20:00:00Z, in UTC, or now";
    let at = humantime::parse_rfc3339_weak(text).map_err(|_| why.to_owned())?;
    let since = at.duration_since(UNIX_EPOCH).map_err(|_| why.to_owned())?;
    u64::try_from(since.as_millis()).map_err(|_| why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_it_is_written() {
        assert_eq!(read_moment("1970-01-01T00:00:01Z"), Ok(1000));
        assert_eq!(read_moment(&moment(1_700_000_000_000)), Ok(1_700_000_000_000));
        assert!(read_moment("now").is_ok_and(|at| at > 1_700_000_000_000));
        for bad in ["", "yesterday", "2h", "-1", "1700000000000"] {
            assert!(read_moment(bad).is_err(), "{bad:?}");
        }
        assert_eq!(moment(u64::MAX), u64::MAX.to_string());
    }
}
