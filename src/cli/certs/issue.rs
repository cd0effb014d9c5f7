//! Authorities, and the certificates that they sign.
//!
//! Invariant: an authority signs ends, never another authority, and only with the key that is
//! its own; a certificate is good for what its audience needs and for no more.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, string::Ia5String,
};

use super::Made;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Clocks of other machines may be behind by so much.
const BEHIND: Duration = Duration::from_secs(3600);

/// What a certificate is good for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Server,
    Client,
    Both,
}

/// An authority that signs for itself.
pub(super) fn authority(name: &str, days: u32) -> anyhow::Result<Made> {
    let mut params = params(name, Vec::new(), days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?.pem();
    Ok(Made { cert, key: key.serialize_pem() })
}

/// A certificate of the authority `signer`, its certificate and its key in PEM. Of several
/// certificates the first one is the signer's: while an authority is replaced, its file has both.
pub(super) fn issue(
    signer: (&str, &str),
    name: &str,
    hosts: &[String],
    uri: Option<String>,
    purpose: Purpose,
    days: u32,
) -> anyhow::Result<Made> {
    let signing = KeyPair::from_pem(signer.1).context("the authority's key")?;
    let (_, first) =
        x509_parser::pem::parse_x509_pem(signer.0.as_bytes()).context("the authority")?;
    let first = first.parse_x509().context("the authority")?;
    anyhow::ensure!(
        first.public_key().raw == signing.subject_public_key_info(),
        "the authority's key is not that of its first certificate"
    );
    let issuer = Issuer::from_ca_cert_pem(signer.0, signing).context("the authority")?;
    let mut params = params(name, hosts.to_vec(), days)?;
    if let Some(uri) = uri {
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri)?));
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let (server, client) =
        (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    params.extended_key_usages = match purpose {
        Purpose::Server => vec![server],
        Purpose::Client => vec![client],
        Purpose::Both => vec![server, client],
    };
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?.pem();
    Ok(Made { cert, key: key.serialize_pem() })
}

fn params(name: &str, hosts: Vec<String>, days: u32) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts).context("--host")?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - BEHIND).into();
    params.not_after = (now + DAY * days).into();
    Ok(params)
}
