//! Whom a member's certificate names: a node, its signing key, or neither.
//!
//! Invariant: a certificate names at most one node and one key. One that names two, or
//! writes a name of Kiln's in a form that is not understood, names nobody that could be
//! believed, and is refused.

use kiln_proto::NodeId;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// Kiln's own form.
const OWN: &str = "kiln://";
/// SPIFFE's, in which Kiln's names are the end of the path.
const SPIFFE: (&str, &str) = ("spiffe://", "/kiln/");

/// Whom a certificate names, in URIs among its alternative names:
///
/// `kiln://node/3`, `kiln://node/3/KEY` or `kiln://key/KEY`, where KEY is the node's signing
/// key in 64 hexadecimal digits; `spiffe://DOMAIN/ANY/kiln/node/3` and so on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// The node's id.
    pub node: Option<NodeId>,
    /// Public half of the key with which it signs.
    pub key: Option<[u8; 32]>,
}

impl Identity {
    /// Whom `certificate` names. An error: what is wrong with the name, for people.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|e| format!("not a certificate: {e}"))?;
        let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let uris = names.filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let mut found = None;
        for uri in uris {
            let named = match (uri.strip_prefix(OWN), uri.strip_prefix(SPIFFE.0)) {
                (Some(name), _) => name,
                (_, Some(path)) => match path.rsplit_once(SPIFFE.1) {
                    Some((_, name)) if name.starts_with("node/") || name.starts_with("key/") => {
                        name
                    }
                    _ => continue,
                },
                _ => continue,
            };
            let named = Self::parse(named).ok_or_else(|| {
                format!("{uri:?} is no name: kiln://node/ID, kiln://node/ID/KEY or kiln://key/KEY")
            })?;
            if found.replace(named).is_some_and(|other| other != named) {
                return Err("it names two nodes".into());
            }
        }
        Ok(found.unwrap_or_default())
    }

    /// Whether a node of that id and key is not another one than the one named.
    pub fn is_of(self, node: NodeId, key: &[u8; 32]) -> bool {
        self.node.is_none_or(|named| named == node) && self.key.is_none_or(|named| named == *key)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('/');
        let (kind, first, second) = (parts.next()?, parts.next()?, parts.next());
        if parts.next().is_some() {
            return None;
        }
        let key = |text: &str| {
            let mut key = [0; 32];
            hex::decode_to_slice(text, &mut key).ok()?;
            Some(key)
        };
        match (kind, second) {
            ("key", None) => Some(Self { node: None, key: Some(key(first)?) }),
            ("node", second) => {
                let node = Some(first.parse().ok().filter(|node| *node != 0)?);
                let key = second.map(|text| key(text).ok_or(())).transpose().ok()?;
                Some(Self { node, key })
            }
            _ => None,
        }
    }

    /// As a URI; `None` where it names nobody.
    pub fn to_uri(self) -> Option<String> {
        match (self.node, self.key) {
            (Some(node), Some(key)) => Some(format!("{OWN}node/{node}/{}", hex::encode(key))),
            (Some(node), None) => Some(format!("{OWN}node/{node}")),
            (None, Some(key)) => Some(format!("{OWN}key/{}", hex::encode(key))),
            (None, None) => None,
        }
    }
}

/// The names of a client's certificate: its URIs and DNS names, as they are written there.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|e| format!("not a certificate: {e}"))?;
    let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::URI(name) | GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let key = Some([0xab; 32]);
        for identity in [
            Identity { node: Some(3), key },
            Identity { node: Some(3), key: None },
            Identity { node: None, key },
        ] {
            let uri = identity.to_uri().unwrap();
            assert_eq!(Identity::parse(uri.strip_prefix(OWN).unwrap()), Some(identity), "{uri}");
        }
        assert_eq!(Identity::default().to_uri(), None);
        for bad in ["node", "node/", "node/x", "node/0", "node/3/", "node/3/ab", "key/ab", "key"] {
            assert_eq!(Identity::parse(bad), None, "{bad}");
        }
        let long = format!("node/3/{}/more", "ab".repeat(32));
        assert_eq!(Identity::parse(&long), None);
    }

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        for uri in uris {
            let uri = rcgen::string::Ia5String::try_from(*uri).unwrap();
            params.subject_alt_names.push(rcgen::SanType::URI(uri));
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_names_one_node_or_nobody() {
        let named = |uris: &[&str]| Identity::of(&certificate(uris));
        let three = Ok(Identity { node: Some(3), key: None });
        assert_eq!(named(&["kiln://node/3"]), three);
        assert_eq!(named(&["spiffe://example.org/ns/a/kiln/node/3"]), three);
        assert_eq!(named(&["spiffe://example.org/ns/a/sa/b"]), Ok(Identity::default()));
        let of_a_namespace = "spiffe://cluster.local/ns/kiln/sa/kiln";
        assert_eq!(named(&[of_a_namespace]), Ok(Identity::default()));
        assert_eq!(named(&["spiffe://d/ns/kiln/sa/kiln/node/3"]), three);
        assert_eq!(named(&["https://example.org"]), Ok(Identity::default()));
        assert_eq!(named(&[]), Ok(Identity::default()));
        assert_eq!(named(&["kiln://node/3", "spiffe://d/kiln/node/3"]), three);
        for bad in [&["kiln://node/3", "kiln://node/4"][..], &["kiln://node/x"], &["kiln://"]] {
            assert!(named(bad).is_err(), "{bad:?}");
        }
    }
}
