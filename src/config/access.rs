//! Who may ask for what.
//!
//! Invariant: where callers need a right, somebody can get the first one.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Config, units};
use crate::access::{Limits, Role, Row, Settings, SocketAdmin, oidc};
use kiln_cluster::tokens::is_pattern;

/// Rights of clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Whether clients must show who they are: a token (`kiln token create`), a certificate
    /// of `certificates`, or a password of `resp.users`. All nodes of a cluster at once, or
    /// one after the other once clients have tokens. Default: false.
    pub required: bool,
    /// Namespaces that every client with any right may read: names, or beginnings of names
    /// with `*` behind. Who fills them needs a right to them by name. Default: none.
    pub shared: Vec<String>,
    /// Rights of clients' certificates: `NAME ROLE NAMESPACE[,NAMESPACE]`, as in
    /// `spiffe://prod/trainer* write team-a`. The name is a URI or a DNS name in the
    /// certificate; the first row that matches counts. Default: none.
    pub certificates: Vec<String>,
    /// Issuers whose tokens are taken as well: Kubernetes, for its service accounts, or any
    /// OpenID provider. Default: none.
    pub oidc: Vec<OidcConfig>,
    /// For how long a node that hears of no leader judges tokens by what it knows: it cannot
    /// hear then which were revoked. After that it refuses them. Default: 1 h.
    #[serde(with = "humantime_serde")]
    pub offline: Duration,
    /// When the user that runs the node, and root, are admins at `socket`: `first`, until the
    /// cluster has had a token of an admin; `always`, also to make another when all of those have
    /// ended; or `never`, where containers that
    /// share the socket run as root. Default: `first`.
    pub socket_admin: SocketAdmin,
    /// Calls, and commands of Redis clients, in a second: of each token, certificate, password
    /// or user, and of each address (of IPv6 each /64) whose caller is not known. One may save
    /// up two seconds of them; the next is refused, with the time after which to ask again.
    /// 0: any number. Default: 0.
    pub calls_per_second: u32,
    /// Tokens and passwords that are no good, in a minute, from one address (of IPv6 one /64):
    /// after that what is shown from there is not looked at. Clients behind one address share
    /// it. 0: any number. Default: 600.
    pub failures_per_minute: u32,
    /// Bytes that each of the same publishes and fetches over gRPC at once; a single transfer
    /// is taken whatever its size. What is fetched at the unix socket has no such bound. 0: any
    /// number. Default: 0.
    #[serde(with = "units::bytes")]
    pub bytes_in_flight: u64,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            required: false,
            shared: Vec::new(),
            certificates: Vec::new(),
            oidc: Vec::new(),
            offline: Duration::from_secs(3600),
            socket_admin: SocketAdmin::First,
            calls_per_second: 0,
            failures_per_minute: 600,
            bytes_in_flight: 0,
        }
    }
}

/// An issuer of tokens other than Kiln's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OidcConfig {
    /// As it names itself in its tokens (`iss`): `https://kubernetes.default.svc`.
    pub issuer: String,
    /// For whom its tokens have to be (`aud`), such as `kiln`.
    pub audience: String,
    /// Where its keys are: an https:// address, or a file's path, which begins with `/`.
    /// Default: where the issuer says, at `ISSUER/.well-known/openid-configuration`.
    pub jwks: Option<String>,
    /// The only authorities of that place, in PEM. Default: the system's.
    pub ca: Option<PathBuf>,
    /// File with a token that is shown there, as Kubernetes wants it: to the issuer's own host
    /// and port, or to `jwks`, and to nobody else. Default: none.
    pub bearer_file: Option<PathBuf>,
    /// Rights of its tokens: `SUBJECT ROLE NAMESPACE[,NAMESPACE]`, as in
    /// `system:serviceaccount:team-a:* write team-a`, or by another claim:
    /// `email=ci@example.com read *` (where the token says `email_verified`). The first that
    /// matches counts.
    pub rows: Vec<String>,
}

impl OidcConfig {
    fn settings(&self, offline: Duration) -> Result<oidc::Settings, String> {
        let Self { issuer, audience, jwks, ca, bearer_file, rows } = self;
        let wrong = |why: String| format!("access.oidc: issuer {issuer:?}: {why}");
        if issuer.is_empty() || audience.is_empty() {
            return Err(wrong("name the issuer and the audience of its tokens".into()));
        }
        let one = |text: &String| {
            let Row { name, role, namespaces } = row(text, "access.oidc", "SUBJECT")?;
            let (claim, value) = name.split_once('=').unwrap_or(("sub", &name));
            let (claim, value) = (claim.to_owned(), value.to_owned());
            if claim.is_empty() || value.trim_end_matches('*').is_empty() {
                return Err(format!("access.oidc: {text:?}: a row that is for all tokens is none"));
            }
            Ok(oidc::Row { claim, value, role, namespaces })
        };
        let rows: Vec<_> = rows.iter().map(one).collect::<Result<_, _>>()?;
        if rows.is_empty() {
            return Err(wrong("no row gives its tokens a right: set rows".into()));
        }
        Ok(oidc::Settings {
            issuer: issuer.clone(),
            audience: audience.clone(),
            source: oidc::source(jwks.as_deref(), issuer).map_err(wrong)?,
            ca: ca.clone(),
            bearer: bearer_file.clone(),
            rows,
            offline,
        })
    }
}

impl AccessConfig {
    /// Issuers of tokens other than Kiln's own.
    pub fn issuers(&self) -> Result<Vec<oidc::Settings>, String> {
        self.oidc.iter().map(|issuer| issuer.settings(self.offline)).collect()
    }

    /// Rights of certificates, in order.
    pub fn rows(&self) -> Result<Vec<Row>, String> {
        self.certificates.iter().map(|text| row(text, "access.certificates", "NAME")).collect()
    }

    /// What the judge of callers is told. The configuration was validated.
    pub fn settings(&self) -> Settings {
        Settings {
            required: self.required,
            shared: self.shared.clone(),
            certificates: self.rows().unwrap_or_default(),
            oidc: self.issuers().unwrap_or_default(),
            socket_admin: self.socket_admin,
            offline: self.offline,
            limits: Limits {
                calls_per_second: self.calls_per_second,
                failures_per_minute: self.failures_per_minute,
                bytes_in_flight: self.bytes_in_flight,
            },
        }
    }
}

fn row(text: &str, of: &str, first: &str) -> Result<Row, String> {
    let wrong = |what: &str| {
        format!(
            "{of}: {text:?}: {what}; write {first} ROLE NAMESPACE[,NAMESPACE], such as {first} write \
             team-a"
        )
    };
    let mut words = text.split_whitespace();
    let (Some(name), Some(role), Some(namespaces), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(wrong("it has not three words"));
    };
    let role = Role::named(role).ok_or_else(|| wrong("a role is read, write or admin"))?;
    let namespaces: Vec<_> = namespaces.split(',').map(str::to_owned).collect();
    if name.trim_end_matches('*').is_empty() {
        return Err(wrong("a name that stands for all of them is none"));
    }
    if !namespaces.iter().all(|pattern| is_pattern(pattern)) {
        return Err(wrong("a namespace is a name, its beginning with * behind, or *"));
    }
    if role == Role::Admin && namespaces != ["*"] {
        return Err(wrong("an admin's namespaces are *"));
    }
    Ok(Row { name: name.to_owned(), role, namespaces })
}

impl Config {
    /// What is wrong with it.
    pub(super) fn check_access(&self, wrong: &mut Vec<String>) {
        let access = &self.access;
        wrong.extend(access.shared.iter().filter(|pattern| !is_pattern(pattern)).map(|pattern| {
            format!(
                "access.shared: {pattern:?} is no namespace: write a name, or its beginning and *"
            )
        }));
        if access.offline < Duration::from_secs(1) {
            wrong.push(
                "access.offline is below 1s: a change of leader would refuse everybody".into(),
            );
        }
        let rows = match access.rows() {
            Ok(rows) => rows,
            Err(why) => {
                wrong.push(why);
                return;
            }
        };
        if !rows.is_empty() && self.tls.clients.verify == crate::net::tls::Verify::Off {
            wrong.push(
                "access.certificates gives rights to certificates, and none is asked for: set \
                 tls.clients.verify to \"optional\" or \"required\""
                    .into(),
            );
        }
        let issuers = match access.issuers() {
            Ok(issuers) => issuers,
            Err(why) => {
                wrong.push(why);
                return;
            }
        };
        for (i, issuer) in issuers.iter().enumerate() {
            if issuers[..i].iter().any(|other| other.issuer == issuer.issuer) {
                wrong.push(format!("access.oidc names the issuer {:?} twice", issuer.issuer));
            }
        }
        let by_socket = access.socket_admin != SocketAdmin::Never;
        let by_token =
            |issuer: &oidc::Settings| issuer.rows.iter().any(|row| row.role == Role::Admin);
        let by_certificate =
            rows.iter().any(|row| row.role == Role::Admin) || issuers.iter().any(by_token);
        // One that joins finds tokens in the index.
        if access.required && !by_socket && !by_certificate && self.start.join.is_empty() {
            wrong.push(
                "access.required is set, and nobody could make the first token: set \
                 access.socket_admin to \"first\" until there is one, or give a certificate the role \
                 admin in access.certificates"
                    .into(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::Verify;

    fn problems(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        config.access.required = true;
        config.tls.clients.verify = Verify::Optional;
        change(&mut config);
        let mut wrong = Vec::new();
        config.check_access(&mut wrong);
        wrong
    }

    #[test]
    fn somebody_can_make_the_first_token() {
        assert_eq!(problems(|_| {}), Vec::<String>::new());
        let closed = problems(|c| c.access.socket_admin = SocketAdmin::Never);
        assert!(closed.len() == 1 && closed[0].contains("first token"), "{closed:?}");
        let by_certificate = problems(|c| {
            c.access.socket_admin = SocketAdmin::Never;
            c.access.certificates = vec!["admin.kiln admin *".into()];
        });
        assert_eq!(by_certificate, Vec::<String>::new());
        let open = problems(|c| {
            (c.access.socket_admin, c.access.required) = (SocketAdmin::Never, false);
        });
        assert_eq!(open, Vec::<String>::new());
        let mut config = Config { data_dir: "/d".into(), ..Config::default() };
        assert_eq!(config.socket_path(), None);
        config.access.required = true;
        assert_eq!(config.socket_path(), Some("/d/kiln.sock".into()));
    }

    #[test]
    fn a_row_is_a_name_a_role_and_namespaces() {
        let read = row("spiffe://prod/trainer* write team-a,lab-*", "x", "NAME")
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((read.name.as_str(), read.role), ("spiffe://prod/trainer*", Role::Write));
        assert_eq!(read.namespaces, ["team-a", "lab-*"]);
        for bad in ["", "a write", "a root x", "* read x", "a read x y", "a read x,,y", "a admin x"]
        {
            let told = problems(|c| c.access.certificates = vec![bad.into()]);
            assert!(told.len() == 1 && told[0].contains("access.certificates"), "{bad}: {told:?}");
        }
        let unasked = problems(|c| {
            c.access.certificates = vec!["a read x".into()];
            c.tls.clients.verify = Verify::Off;
        });
        assert!(unasked[0].contains("tls.clients.verify"), "{unasked:?}");
        assert!(problems(|c| c.access.shared = vec!["a b".into()])[0].contains("access.shared"));
    }
}
