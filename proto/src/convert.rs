//! Wire types to domain types and back.
//!
//! Invariant: the only place where a field of a wire message is interpreted; a
//! missing or impossible one is an error that names it.

use crate::{
    ArtifactKey, BinaryKind, Check, Component, Components, Difference, Digest, Failure,
    FailureKind, FileEntry, Fingerprint, KeyField, Manifest, ManifestError, PieceRef,
    SignedManifest, Target, pb,
};

/// A wire message that means nothing in the domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}`: {why}")]
pub struct InvalidField {
    /// The field's name on the wire.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl InvalidField {
    /// An error about `field`.
    pub fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self { field, why: why.into() }
    }
}

impl From<InvalidField> for ManifestError {
    fn from(e: InvalidField) -> Self {
        Self::Malformed(e.to_string())
    }
}

/// Most fields a component may carry, and most components.
const MOST_FIELDS: usize = 65_536;

/// Reads a digest.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, InvalidField> {
    Digest::try_from(bytes).map_err(|e| InvalidField::new(field, e.to_string()))
}

/// Reads a key.
pub fn key(field: &'static str, bytes: &[u8]) -> Result<ArtifactKey, InvalidField> {
    ArtifactKey::try_from(bytes).map_err(|e| InvalidField::new(field, e.to_string()))
}

/// Reads a target.
pub fn target(wire: &pb::Target) -> Result<Target, InvalidField> {
    let kind = match wire.kind() {
        pb::BinaryKind::Ptx => BinaryKind::Ptx,
        pb::BinaryKind::Cubin => BinaryKind::Cubin,
        pb::BinaryKind::Files => BinaryKind::Files,
        pb::BinaryKind::Unspecified => {
            return Err(InvalidField::new("target.kind", "neither PTX, CUBIN nor files"));
        }
    };
    let target = Target {
        compute: wire.compute,
        arch_specific: wire.arch_specific,
        kind,
        min_driver: wire.min_driver,
    };
    match target.is_plausible() {
        true => Ok(target),
        false => Err(InvalidField::new("target.compute", format!("{} is no GPU", wire.compute))),
    }
}

/// Reads a fingerprint.
pub fn fingerprint(wire: pb::Fingerprint) -> Result<Fingerprint, InvalidField> {
    if wire.compiler.is_empty() {
        return Err(InvalidField::new("fingerprint.compiler", "empty"));
    }
    Ok(Fingerprint::new(wire.compiler, wire.versions.into_iter().map(|f| (f.name, f.value))))
}

/// Reads a manifest's fields; [`Manifest::validate`] judges them together.
pub fn manifest(wire: pb::Manifest) -> Result<Manifest, InvalidField> {
    let fields: usize = wire.components.iter().map(|c| c.fields.len()).sum();
    if fields > MOST_FIELDS || wire.components.len() > MOST_FIELDS {
        return Err(InvalidField::new("components", format!("{fields} fields")));
    }
    let components = wire.components.into_iter().map(component).collect::<Result<_, _>>()?;
    let target_of = wire.target.as_ref().ok_or(InvalidField::new("target", "missing"))?;
    Ok(Manifest {
        key: key("key", &wire.key)?,
        namespace: wire.namespace,
        components: Components::new(components),
        fingerprint: fingerprint(
            wire.fingerprint.ok_or(InvalidField::new("fingerprint", "missing"))?,
        )?,
        target: target(target_of)?,
        files: wire.files.into_iter().map(file).collect::<Result<_, _>>()?,
        pack_digest: digest("pack_digest", &wire.pack_digest)?,
        pack_size: wire.pack_size,
        producer: wire.producer,
        compile_seconds: wire.compile_seconds,
        created_unix_ms: wire.created_unix_ms,
        label: wire.label,
        pieces: wire.pieces.iter().map(piece).collect::<Result<_, _>>()?,
        check: wire.check.map(check).transpose()?,
    })
}

fn piece(wire: &pb::PieceRef) -> Result<PieceRef, InvalidField> {
    Ok(PieceRef {
        key: key("pieces.key", &wire.key)?,
        pack: digest("pieces.pack_digest", &wire.pack_digest)?,
        pack_size: wire.pack_size,
    })
}

/// Reads how an artifact was checked.
pub fn check(wire: pb::Check) -> Result<Check, InvalidField> {
    let pb::Check { unchecked, relative_error, limit } = wire;
    let check = match unchecked.is_empty() {
        true => Check::Passed { relative_error, limit },
        false => Check::Not { why: unchecked },
    };
    check.validate().map_err(|why| InvalidField::new("check", why))?;
    Ok(check)
}

impl From<&Check> for pb::Check {
    fn from(check: &Check) -> Self {
        match check {
            Check::Passed { relative_error, limit } => {
                Self { unchecked: String::new(), relative_error: *relative_error, limit: *limit }
            }
            Check::Not { why } => Self { unchecked: why.clone(), ..Self::default() },
        }
    }
}

fn component(wire: pb::Component) -> Result<Component, InvalidField> {
    let fields = wire.fields.into_iter();
    let fields =
        fields.map(|f| KeyField { name: f.name, value: f.value, derived: f.derived }).collect();
    let component = Component::new(wire.name, fields);
    if component.digest != digest("component.digest", &wire.digest)? {
        return Err(InvalidField::new("component.digest", "does not follow from its fields"));
    }
    Ok(component)
}

fn file(wire: pb::FileEntry) -> Result<FileEntry, InvalidField> {
    Ok(FileEntry {
        digest: digest("file.digest", &wire.digest)?,
        path: wire.path,
        offset: wire.offset,
        size: wire.size,
    })
}

/// Reads a failure.
pub fn failure(wire: pb::Failure) -> Result<Failure, InvalidField> {
    use pb::FailureKind as Wire;
    let kind = match wire.kind() {
        Wire::CompileError => FailureKind::CompileError,
        Wire::UnsupportedOp => FailureKind::UnsupportedOp,
        Wire::InvalidInput => FailureKind::InvalidInput,
        Wire::Corrupt => FailureKind::Corrupt,
        Wire::WrongOutput => FailureKind::WrongOutput,
        Wire::Incompatible => FailureKind::Incompatible,
        Wire::Timeout => FailureKind::Timeout,
        Wire::ToolchainMissing => FailureKind::ToolchainMissing,
        Wire::OutOfMemory => FailureKind::OutOfMemory,
        Wire::Crashed => FailureKind::Crashed,
        Wire::Busy => FailureKind::Busy,
        Wire::Unspecified => return Err(InvalidField::new("failure.kind", "unknown")),
    };
    Ok(Failure::new(kind, wire.message))
}

impl From<&Failure> for pb::Failure {
    fn from(failure: &Failure) -> Self {
        use pb::FailureKind as Wire;
        let kind = match failure.kind {
            FailureKind::CompileError => Wire::CompileError,
            FailureKind::UnsupportedOp => Wire::UnsupportedOp,
            FailureKind::InvalidInput => Wire::InvalidInput,
            FailureKind::Corrupt => Wire::Corrupt,
            FailureKind::WrongOutput => Wire::WrongOutput,
            FailureKind::Incompatible => Wire::Incompatible,
            FailureKind::Timeout => Wire::Timeout,
            FailureKind::ToolchainMissing => Wire::ToolchainMissing,
            FailureKind::OutOfMemory => Wire::OutOfMemory,
            FailureKind::Crashed => Wire::Crashed,
            FailureKind::Busy => Wire::Busy,
        };
        Self { kind: kind.into(), message: failure.message.clone() }
    }
}

impl From<Target> for pb::Target {
    fn from(target: Target) -> Self {
        let kind = match target.kind {
            BinaryKind::Ptx => pb::BinaryKind::Ptx,
            BinaryKind::Cubin => pb::BinaryKind::Cubin,
            BinaryKind::Files => pb::BinaryKind::Files,
        };
        Self {
            compute: target.compute,
            arch_specific: target.arch_specific,
            kind: kind.into(),
            min_driver: target.min_driver,
        }
    }
}

impl From<&Fingerprint> for pb::Fingerprint {
    fn from(fingerprint: &Fingerprint) -> Self {
        let versions = fingerprint.versions.iter();
        Self {
            compiler: fingerprint.compiler.clone(),
            versions: versions
                .map(|(name, value)| pb::Field { name: name.clone(), value: value.clone() })
                .collect(),
        }
    }
}

impl From<&Component> for pb::Component {
    fn from(component: &Component) -> Self {
        let fields = component.fields.iter().map(|f| pb::KeyField {
            name: f.name.clone(),
            value: f.value.clone(),
            derived: f.derived,
        });
        Self {
            name: component.name.clone(),
            digest: component.digest.as_bytes().to_vec().into(),
            fields: fields.collect(),
        }
    }
}

impl From<&Manifest> for pb::Manifest {
    fn from(m: &Manifest) -> Self {
        let pieces = m.pieces.iter().map(|piece| pb::PieceRef {
            key: piece.key.as_bytes().to_vec().into(),
            pack_digest: piece.pack.as_bytes().to_vec().into(),
            pack_size: piece.pack_size,
        });
        let files = m.files.iter().map(|f| pb::FileEntry {
            path: f.path.clone(),
            offset: f.offset,
            size: f.size,
            digest: f.digest.as_bytes().to_vec().into(),
        });
        Self {
            key: m.key.as_bytes().to_vec().into(),
            namespace: m.namespace.clone(),
            components: m.components.iter().map(pb::Component::from).collect(),
            fingerprint: Some((&m.fingerprint).into()),
            target: Some(m.target.into()),
            files: files.collect(),
            pack_digest: m.pack_digest.as_bytes().to_vec().into(),
            pack_size: m.pack_size,
            producer: m.producer,
            compile_seconds: m.compile_seconds,
            created_unix_ms: m.created_unix_ms,
            label: m.label.clone(),
            pieces: pieces.collect(),
            check: m.check.as_ref().map(Into::into),
        }
    }
}

impl From<&SignedManifest> for pb::SignedManifest {
    fn from(signed: &SignedManifest) -> Self {
        Self {
            manifest: signed.bytes.clone().into(),
            signer: signed.signer,
            signature: signed.signature.clone().into(),
        }
    }
}

impl From<pb::SignedManifest> for SignedManifest {
    fn from(wire: pb::SignedManifest) -> Self {
        Self { bytes: wire.manifest.into(), signer: wire.signer, signature: wire.signature.into() }
    }
}

impl From<&Difference> for pb::Difference {
    fn from(d: &Difference) -> Self {
        Self {
            component: d.component.clone(),
            field: d.field.clone(),
            ours: d.ours.clone(),
            theirs: d.theirs.clone(),
        }
    }
}
