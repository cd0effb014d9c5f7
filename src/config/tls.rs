//! TLS between members, and with clients.
//!
//! Invariant: a mode that speaks TLS has the files that it needs; what is reached from
//! other machines in plain text was allowed so by name.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Config;
use crate::net::tls::{Files, Mode, Verify};

/// TLS, with an authority of its own for each audience.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// On the members' port: what the nodes of a cluster say to each other.
    pub members: MembersTlsConfig,
    /// On the ports of clients: gRPC, RESP and HTTP.
    pub clients: ClientsTlsConfig,
}

/// TLS between the nodes of a cluster; each end shows a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MembersTlsConfig {
    /// `off`: plain text. `accept`: TLS is taken as well. `dial`: this node also connects in
    /// TLS. `require`: plain text is refused. A running cluster goes through them in this
    /// order, all nodes at one before the first goes on. Default: `off`.
    pub mode: Mode,
    /// This node's certificate, in PEM; read again when it changes. Default: none.
    pub cert: Option<PathBuf>,
    /// Its private key. Default: none.
    pub key: Option<PathBuf>,
    /// The authority of the members' certificates, and of nobody else's. Default: none.
    pub ca: Option<PathBuf>,
    /// Whether a certificate that names neither a node nor a signing key (`kiln://..`, see
    /// `kiln certs issue member --data-dir`) is refused, in both directions. Without, whoever has
    /// one may speak for any member. Default: false.
    pub named: bool,
    /// What becomes of a node that this one has not heard of, and that cannot prove that a member
    /// let it in. `report`: it is served, counted (`kiln_unproved_peers_total`) and told of in the
    /// log. `require`: it is refused. Default: `report`.
    pub proofs: Proofs,
}

/// What becomes of members without a proof.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proofs {
    /// They are served and counted.
    #[default]
    Report,
    /// They are refused.
    Require,
}

impl Proofs {
    /// Whether who has none is refused.
    pub fn are_required(self) -> bool {
        self == Self::Require
    }
}

/// TLS with clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientsTlsConfig {
    /// `off`: plain text. `accept`: TLS is taken as well. `require`: plain text is refused.
    /// Default: `off`.
    pub mode: Mode,
    /// The certificate that clients see, in PEM; read again when it changes. Default: none.
    pub cert: Option<PathBuf>,
    /// Its private key. Default: none.
    pub key: Option<PathBuf>,
    /// The authority of clients' own certificates. Default: none.
    pub ca: Option<PathBuf>,
    /// Whether clients on the gRPC and the RESP port show a certificate: `off`, `optional`
    /// or `required`. On the HTTP port none is asked for: probes have none. Default: `off`.
    pub verify: Verify,
}

impl Default for MembersTlsConfig {
    fn default() -> Self {
        let proofs = Proofs::default();
        Self { mode: Mode::Off, cert: None, key: None, ca: None, named: false, proofs }
    }
}

impl Default for ClientsTlsConfig {
    fn default() -> Self {
        Self { mode: Mode::Off, cert: None, key: None, ca: None, verify: Verify::Off }
    }
}

/// The files of an audience whose mode speaks TLS, as far as they are named.
fn files(
    mode: Mode,
    cert: Option<&PathBuf>,
    key: Option<&PathBuf>,
    ca: Option<&PathBuf>,
) -> Option<Files> {
    let named = cert.zip(key).filter(|_| mode != Mode::Off);
    named.map(|(cert, key)| Files { cert: cert.clone(), key: key.clone(), ca: ca.cloned() })
}

impl MembersTlsConfig {
    /// The files, where TLS is spoken.
    pub fn files(&self) -> Option<Files> {
        files(self.mode, self.cert.as_ref(), self.key.as_ref(), self.ca.as_ref())
    }
}

impl ClientsTlsConfig {
    /// The files, where TLS is spoken.
    pub fn files(&self) -> Option<Files> {
        files(self.mode, self.cert.as_ref(), self.key.as_ref(), self.ca.as_ref())
    }
}

impl Config {
    /// What is wrong with it.
    pub(super) fn check_tls(&self, wrong: &mut Vec<String>) {
        let (members, clients) = (&self.tls.members, &self.tls.clients);
        if members.mode != Mode::Off
            && [&members.cert, &members.key, &members.ca].iter().any(|file| file.is_none())
        {
            wrong.push(
                "tls.members speaks TLS: name its cert, key and ca (kiln certs makes them)".into(),
            );
        }
        if members.named && members.mode == Mode::Off {
            wrong.push(
                "tls.members.named is about certificates, and none is shown: set tls.members.mode"
                    .into(),
            );
        }
        if members.proofs.are_required() && members.mode == Mode::Off {
            wrong.push(
                "tls.members.proofs is about certificates, and none is shown: set tls.members.mode"
                    .into(),
            );
        }
        if clients.mode != Mode::Off && (clients.cert.is_none() || clients.key.is_none()) {
            wrong.push(
                "tls.clients speaks TLS: name its cert and key (kiln certs makes them)".into(),
            );
        }
        if clients.mode == Mode::Dial {
            wrong.push("tls.clients.mode is \"dial\": clients connect, so write \"accept\"".into());
        }
        if clients.verify != Verify::Off && (clients.ca.is_none() || clients.mode == Mode::Off) {
            wrong.push(
                "tls.clients.verify asks for certificates: name their authority in tls.clients.ca, \
                 and set tls.clients.mode"
                    .into(),
            );
        }
        if clients.verify == Verify::Off && clients.ca.is_some() {
            wrong.push(
                "tls.clients.ca is the authority of clients' certificates, and none is asked for: set \
                 tls.clients.verify to \"optional\" or \"required\", or leave it out"
                    .into(),
            );
        }
        if members.ca.is_some() && members.ca == clients.ca {
            wrong.push(
                "tls.members.ca and tls.clients.ca are one file: whoever it makes a client would be a \
                 member; give each audience an authority of its own (kiln certs init)"
                    .into(),
            );
        }
        if clients.verify == Verify::Required && clients.mode == Mode::Accept {
            wrong.push(
                "tls.clients.verify is \"required\", and tls.clients.mode takes plain text: write \
                 \"require\" there, or \"optional\" until all clients speak TLS"
                    .into(),
            );
        }
        if !self.insecure {
            wrong.extend(self.in_plain_text().into_iter().map(|(name, address, section)| {
                format!(
                    "{name} is {address}: other machines reach it, and it takes plain text. Set \
                     {section}.mode = \"require\" with certificates (kiln certs makes them), or listen \
                     on loopback, or say --insecure"
                )
            }));
        }
    }

    /// What other machines reach in plain text: the listener, where it is, and the section
    /// that would end it.
    pub fn in_plain_text(&self) -> Vec<(&'static str, SocketAddr, &'static str)> {
        let clients = (self.tls.clients.mode, "tls.clients");
        let members = (self.tls.members.mode, "tls.members");
        [
            ("grpc_listen", Some(self.grpc_listen), clients),
            ("http_listen", Some(self.http_listen), clients),
            ("transfer_listen", Some(self.transfer_listen), members),
            ("resp_listen", self.resp_listen, clients),
        ]
        .into_iter()
        .filter_map(|(name, address, (mode, section))| {
            let open = address.filter(|a| !a.ip().is_loopback() && mode != Mode::Require);
            Some((name, open?, section))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config);
        let mut wrong = Vec::new();
        config.check_tls(&mut wrong);
        wrong
    }

    fn complete(config: &mut Config) {
        let file = || Some(PathBuf::from("/etc/kiln/x.pem"));
        let mode = Mode::Require;
        config.tls.members = MembersTlsConfig {
            mode,
            cert: file(),
            key: file(),
            ca: file(),
            named: true,
            proofs: Proofs::Report,
        };
        let (cert, key, ca) = (file(), file(), Some(PathBuf::from("/etc/kiln/clients.pem")));
        config.tls.clients = ClientsTlsConfig { mode, cert, key, ca, verify: Verify::Required };
    }

    #[test]
    fn what_is_about_certificates_is_refused_where_none_is_shown() {
        let of_names = problems(|config| config.tls.members.named = true);
        assert!(of_names.len() == 1 && of_names[0].contains("tls.members.named"), "{of_names:?}");
        let of_proofs = problems(|config| config.tls.members.proofs = Proofs::Require);
        assert!(
            of_proofs.len() == 1 && of_proofs[0].contains("tls.members.proofs"),
            "{of_proofs:?}"
        );
        let shown = problems(|config| {
            complete(config);
            config.tls.members.proofs = Proofs::Require;
        });
        assert_eq!(shown, Vec::<String>::new());
    }

    #[test]
    fn plain_text_for_other_machines_is_allowed_by_name_alone() {
        assert_eq!(problems(|_| {}), Vec::<String>::new(), "loopback");
        let open = ([0, 0, 0, 0], 7400).into();
        for (name, set) in [
            ("grpc_listen", (|c, a| c.grpc_listen = a) as fn(&mut Config, SocketAddr)),
            ("http_listen", |c, a| c.http_listen = a),
            ("transfer_listen", |c, a| c.transfer_listen = a),
            ("resp_listen", |c, a| c.resp_listen = Some(a)),
        ] {
            let refused = problems(|c| set(c, open));
            assert!(refused.len() == 1 && refused[0].contains(name), "{refused:?}");
            assert!(refused[0].contains("--insecure"), "{refused:?}");
            let allowed = problems(|c| {
                set(c, open);
                c.insecure = true;
            });
            assert_eq!(allowed, Vec::<String>::new());
            let encrypted = problems(|c| {
                set(c, open);
                complete(c);
            });
            assert_eq!(encrypted, Vec::<String>::new());
            let both = problems(|c| {
                set(c, open);
                complete(c);
                c.tls.members.mode = Mode::Dial;
                c.tls.clients.mode = Mode::Accept;
                c.tls.clients.verify = Verify::Optional;
            });
            assert_eq!(both.len(), 1, "plain text is taken still: {both:?}");
        }
    }

    #[test]
    fn what_tls_needs_is_told() {
        let told = |change: fn(&mut Config), what: &str| {
            let problems = problems(|c| {
                complete(c);
                change(c);
            });
            assert!(problems.len() == 1 && problems[0].contains(what), "{what}: {problems:?}");
        };
        told(|c| c.tls.members.ca = None, "tls.members speaks TLS");
        told(|c| c.tls.members.key = None, "tls.members speaks TLS");
        told(|c| c.tls.clients.cert = None, "tls.clients speaks TLS");
        told(|c| c.tls.clients.ca = None, "tls.clients.verify");
        told(|c| c.tls.clients.mode = Mode::Accept, "takes plain text");
        told(|c| c.tls.clients.verify = Verify::Off, "none is asked for");
        told(|c| c.tls.clients.ca = c.tls.members.ca.clone(), "are one file");
    }
}
