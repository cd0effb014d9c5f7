//! Whose signatures a command believes.
//!
//! Invariant: where a root is pinned, a manifest is believed only under a key that a pinned root
//! lets sign in the manifest's namespace now, as the node that it names. What a node says adds no
//! key: it only carries what the root signed. Where a namespace was asked for, pinned or not, no
//! manifest of another one is taken.

use std::ffi::OsString;

use clap::{
    builder::{OsStringValueParser, TypedValueParser},
    error::ErrorKind,
    parser::ValueSource,
};
use ed25519_dalek::VerifyingKey;
use kiln::clock;
use kiln_proto::{
    ArtifactKey, FailureKind, Manifest, NodeId, SignedManifest, pb,
    root::{Says, SignedStatement, SignerCertificate},
};

use super::{CliError, client::Endpoints, fetch};

/// The roots that are pinned.
#[derive(Debug, Clone, Default)]
pub(crate) struct PinArgs(Option<Roots>);

#[derive(Debug, clap::Args)]
struct Flags {
    /// The public key of the cluster's root, in hexadecimal (`kiln signer list`): no artifact is
    /// taken whose signer it did not certify for the namespace, whatever a node says. While one
    /// root follows another: both, separated by commas.
    #[arg(
        long = "trust-root",
        value_name = "KEY",
        env = "KILN_ROOT",
        value_parser = OsStringValueParser::new().try_map(given),
        global = true
    )]
    roots: Option<Roots>,
}

#[derive(Debug, Clone, Default)]
struct Roots(Vec<VerifyingKey>);

/// A pin that was meant and has no key is a mistake, and never one that believes everybody.
fn roots(text: &str) -> Result<Roots, String> {
    let named = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let keys: Vec<_> = named.map(super::signer::public_key).collect::<Result<_, _>>()?;
    match keys.is_empty() && !text.is_empty() {
        true => Err(format!("{text:?} names no key: give the root's, or leave it unset")),
        false => Ok(Roots(keys)),
    }
}

/// The same of a flag or a variable, which clap does not tell apart. Lossy: what is no text is no
/// key either, and must not count as unset.
#[allow(clippy::needless_pass_by_value)] // as clap has it
fn given(text: OsString) -> Result<Roots, String> {
    roots(&text.to_string_lossy()).map_err(|why| format!("{why} (--trust-root or KILN_ROOT)"))
}

impl clap::FromArgMatches for PinArgs {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let Flags { roots } = Flags::from_arg_matches(matches)?;
        // An empty variable is as one that is not set; an empty flag is a slip.
        let is_flag = matches.value_source("roots") == Some(ValueSource::CommandLine);
        match roots {
            Some(Roots(keys)) if keys.is_empty() && is_flag => {
                Err(clap::Error::raw(ErrorKind::InvalidValue, "--trust-root names no key\n"))
            }
            roots => Ok(Self(roots)),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for PinArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}

impl PinArgs {
    /// As the environment has it, for commands that name their nodes otherwise.
    pub(crate) fn from_env() -> Result<Self, String> {
        Ok(Self(Some(given(std::env::var_os("KILN_ROOT").unwrap_or_default())?)))
    }

    /// Whether there is one.
    pub(crate) fn is_set(&self) -> bool {
        !self.keys().is_empty()
    }

    fn keys(&self) -> &[VerifyingKey] {
        self.0.as_ref().map_or(&[], |roots| &roots.0)
    }
}

/// What is believed of manifests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Belief {
    /// `None`: no root is pinned, and the node's word counts.
    certified: Option<Vec<Certified>>,
}

/// A key that a pinned root certified.
#[derive(Debug, Clone)]
struct Certified {
    node: NodeId,
    key: VerifyingKey,
    says: SignerCertificate,
}

impl Certified {
    fn of(signer: &pb::Signer, roots: &[VerifyingKey]) -> Option<Self> {
        let key = VerifyingKey::from_bytes(&<[u8; 32]>::try_from(&*signer.key).ok()?).ok()?;
        let wire = signer.certificate.clone()?;
        let signed =
            SignedStatement { bytes: wire.statement.into(), signature: wire.signature.into() };
        let read = roots.iter().find_map(|root| signed.verify(root).ok())?;
        let Says::Signer(says) = read.says else { return None };
        (says.key == key.to_bytes()).then_some(Self { node: signer.node, key, says })
    }
}

impl Endpoints {
    /// What is believed from now on; asks a node for the certificates where a root is pinned.
    pub(crate) async fn belief(&self) -> Result<Belief, CliError> {
        let roots = self.pinned.keys();
        if roots.is_empty() {
            return Ok(Belief::default());
        }
        let status = self.attempt(async |mut client| {
            let answer = client.status(pb::StatusRequest::default()).await;
            answer.map_err(|e| CliError::from_status(&e))
        });
        Ok(Belief::of(&status.await?.into_inner().signers, roots))
    }
}

impl Belief {
    fn of(signers: &[pb::Signer], roots: &[VerifyingKey]) -> Self {
        let certified = signers.iter().filter_map(|signer| Certified::of(signer, roots));
        Self { certified: Some(certified.collect()) }
    }

    /// Whether a root is pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.certified.is_some()
    }

    /// Whether a pinned root certified `key` for now, and for `namespace` where one is named; so
    /// too where none is pinned.
    pub(crate) fn certifies(&self, key: &VerifyingKey, namespace: Option<&str>) -> bool {
        let Some(certified) = &self.certified else { return true };
        let mut its = certified.iter().filter(|of| of.key == *key);
        its.any(|of| of.says.allows(of.node, namespace, clock::unix_ms()).is_ok())
    }

    /// The manifest of `key`, if it is believed, and of `namespace`. Empty: whichever it is of.
    pub(crate) fn read(
        &self,
        signed: &SignedManifest,
        key: &ArtifactKey,
        namespace: &str,
    ) -> Result<Manifest, CliError> {
        let manifest = self.judge(signed, key)?;
        is_of(&manifest, namespace)?;
        Ok(manifest)
    }

    /// The same of what an answer tells, whose key the command does not know.
    pub(crate) fn read_told(
        &self,
        told: Option<pb::SignedManifest>,
        namespace: &str,
    ) -> Result<Manifest, CliError> {
        let told = told.unwrap_or_default();
        let key = fetch::manifest(told.clone())?.key;
        self.read(&told.into(), &key, namespace)
    }

    fn judge(&self, signed: &SignedManifest, key: &ArtifactKey) -> Result<Manifest, CliError> {
        let corrupt = |why: String| CliError::failed(FailureKind::Corrupt, why);
        let Some(certified) = &self.certified else {
            let manifest = signed.read_unverified().map_err(|e| corrupt(e.to_string()))?;
            return match manifest.key == *key {
                true => Ok(manifest),
                false => Err(corrupt(format!("the node sent key {} for {key}", manifest.key))),
            };
        };
        let mut why = format!(
            "its signer, node {}, has no certificate of the root that this command believes \
             (--trust-root, KILN_ROOT): kiln signer list",
            signed.signer
        );
        for of in certified.iter().filter(|of| of.node == signed.signer) {
            match signed.verify(&of.key, key) {
                Ok(manifest) => {
                    let namespace = Some(manifest.namespace.as_str());
                    match of.says.allows(of.node, namespace, clock::unix_ms()) {
                        Ok(()) => return Ok(manifest),
                        Err(e) => why = e.to_string(),
                    }
                }
                // Of another of its keys, maybe.
                Err(e) => tracing::debug!(error = %e, "a manifest is not of this key"),
            }
        }
        Err(corrupt(format!("the artifact of {key} is not believed: {why}")))
    }
}

/// Refuses what is not of the tenant that was asked for. Empty: none was.
pub(crate) fn is_of(manifest: &Manifest, namespace: &str) -> Result<(), CliError> {
    match namespace.is_empty() || manifest.namespace == namespace {
        true => Ok(()),
        false => Err(CliError::NotFound(format!(
            "the node has no such artifact in the namespace {namespace:?}: what it sent is of {:?}",
            manifest.namespace
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ed25519_dalek::SigningKey;
    use kiln_proto::{NodeIdentity, root::RootStatement};

    use super::*;
    use crate::cli::fetch::tests::artifact;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn signer(root: u8, node: u64, seed: u8, namespace: &str, until: Option<u64>) -> pb::Signer {
        let says = Says::Signer(SignerCertificate {
            key: key(seed).verifying_key().to_bytes(),
            node: Some(3),
            name: String::new(),
            namespaces: vec![namespace.into()],
            not_before_unix_ms: 0,
            not_after_unix_ms: until,
        });
        let signed = RootStatement { serial: 1, cluster: 5, says }.sign(&key(root)).unwrap();
        pb::Signer {
            node,
            key: key(seed).verifying_key().to_bytes().to_vec().into(),
            certificate: Some(pb::SignedStatement {
                statement: signed.bytes.into(),
                signature: signed.signature.into(),
            }),
        }
    }

    #[test]
    fn a_signature_counts_that_a_pinned_root_lets_that_node_make_there_and_now() {
        let (manifest, _) = artifact(&[("a", b"1")]);
        let artifact = manifest.key;
        let signed = NodeIdentity::new(3, key(7)).sign(manifest).unwrap();
        let pinned = [key(1).verifying_key(), key(2).verifying_key()];
        let judge = |signers: &[pb::Signer]| {
            Belief::of(signers, &pinned).read(&signed, &artifact, "").is_ok()
        };
        assert!(judge(&[signer(1, 3, 7, "default", None)]));
        assert!(judge(&[signer(2, 3, 7, "def*", None)]), "the other root that is pinned");
        assert!(judge(&[signer(1, 3, 8, "*", None), signer(1, 3, 7, "*", None)]), "its other key");
        let mut bare = signer(1, 3, 7, "*", None);
        bare.certificate = None;
        let mut of_another = signer(1, 3, 8, "*", None);
        of_another.key = key(7).verifying_key().to_bytes().to_vec().into();
        for (bad, why) in [
            (vec![], "nobody"),
            (vec![bare], "the node's word"),
            (vec![of_another], "a certificate of another key"),
            (vec![signer(9, 3, 7, "*", None)], "another root"),
            (vec![signer(1, 4, 7, "*", None)], "another node"),
            (vec![signer(1, 3, 8, "*", None)], "another key"),
            (vec![signer(1, 3, 7, "team", None)], "another namespace"),
            (vec![signer(1, 3, 7, "*", Some(1))], "over"),
        ] {
            assert!(!judge(&bad), "{why}");
        }
        assert!(Belief::default().read(&signed, &artifact, "").is_ok(), "no root is pinned");
        let other = ArtifactKey::from_bytes([9; 32]);
        assert!(Belief::default().read(&signed, &other, "").is_err(), "another artifact");
        // Whoever is certified for all of them may not choose which one was meant.
        let all = Belief::of(&[signer(1, 3, 7, "*", None)], &pinned);
        for belief in [Belief::default(), all] {
            assert!(belief.read(&signed, &artifact, "default").is_ok());
            let another = belief.read(&signed, &artifact, "team").unwrap_err();
            assert_eq!(another.exit_code(), 20, "{another}");
        }
    }

    #[test]
    fn a_key_is_certified_by_a_pinned_root_for_its_namespaces() {
        let pinned = [key(1).verifying_key()];
        let belief = Belief::of(
            &[
                signer(1, 3, 7, "team", None),
                signer(9, 3, 8, "*", None),
                signer(1, 3, 6, "*", Some(1)),
            ],
            &pinned,
        );
        let certifies = |seed: u8, of| belief.certifies(&key(seed).verifying_key(), of);
        assert!(certifies(7, None) && certifies(7, Some("team")) && !certifies(7, Some("default")));
        assert!(!certifies(8, None), "by another root");
        assert!(!certifies(6, None), "it is over");
        assert!(Belief::default().certifies(&key(8).verifying_key(), Some("team")));
    }

    #[test]
    fn an_empty_flag_is_no_pin_and_an_empty_variable_is_none() {
        #[derive(Debug, clap::Parser)]
        struct Alone {
            #[command(flatten)]
            pinned: PinArgs,
        }
        let parse = |text: &str| {
            let parsed = <Alone as clap::Parser>::try_parse_from(["alone", "--trust-root", text]);
            parsed.map(|alone| alone.pinned.keys().len())
        };
        let one = hex::encode(key(1).verifying_key().as_bytes());
        assert_eq!(parse(&one).unwrap(), 1);
        for bad in ["", " ", ",", " , "] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roots_are_public_keys_and_nothing_is_none() {
        let one = hex::encode(key(1).verifying_key().as_bytes());
        assert_eq!(roots(&format!("{one}, {one}")).unwrap().0.len(), 2);
        assert!(roots("").unwrap().0.is_empty());
        assert_eq!(roots(&format!("{one},")).unwrap().0.len(), 1);
        for bad in ["zz", &one[1..], ",", " , ", " "] {
            assert!(roots(bad).is_err(), "{bad:?}");
        }
    }
}
