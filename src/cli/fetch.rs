//! Fetching an artifact and writing its files.
//!
//! Invariant: nothing is fetched under a manifest that the command does not believe, or of another
//! namespace than was asked for; no file is
//! written before all bytes were checked against it, and none outside the folder asked for.

use std::{
    fs,
    io::Write,
    ops::Deref,
    path::{Path, PathBuf},
};

use anyhow::Context;
use kiln::{
    cache::BlobWriter,
    transfer::{ClientSettings, LocalClient, TransferError},
};
use kiln_proto::{ArtifactKey, Digest, FailureKind, Manifest, SignedManifest, pb};
use pb::fetch_chunk::Chunk;

use super::{CliError, belief::Belief, client::Client};

/// An artifact whose bytes are what its manifest says.
pub(crate) struct Fetched {
    pub(crate) manifest: Manifest,
    pub(crate) pack: Box<dyn Deref<Target = [u8]> + Send + Sync>,
    pub(crate) tier: pb::Tier,
}

/// Reads a manifest that is only told of: what is fetched is checked by [`Belief`].
pub(crate) fn manifest(wire: pb::SignedManifest) -> Result<Manifest, CliError> {
    SignedManifest::from(wire).read_unverified().map_err(corrupt)
}

/// What an artifact is fetched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To run it, or to go on with its files: a hit.
    Use,
    /// To see what it is: no hit.
    Look,
}

/// The artifact of `key`, of the tenant `namespace`, from the node on this machine: mapped, not
/// copied. Empty: the node's own tenant.
pub(crate) async fn fetch_local(
    socket: &Path,
    token: Option<String>,
    key: &ArtifactKey,
    namespace: &str,
    purpose: Purpose,
    belief: &Belief,
) -> Result<Fetched, CliError> {
    let mut client = LocalClient::connect(socket, ClientSettings::default()).await?;
    client.show(token);
    let artifact = match purpose {
        Purpose::Use => client.fetch(key, namespace).await?,
        Purpose::Look => client.look(key, namespace).await?,
    };
    let manifest = belief.read(&artifact.manifest, key, namespace)?;
    Ok(Fetched { manifest, pack: Box::new(artifact.pack), tier: artifact.tier })
}

/// Streams the artifact of `key`.
pub(crate) async fn fetch(
    client: &mut Client,
    key: &ArtifactKey,
    namespace: &str,
    purpose: Purpose,
    belief: &Belief,
) -> Result<Fetched, CliError> {
    let request = pb::FetchRequest {
        key: key.as_bytes().to_vec().into(),
        namespace: namespace.to_owned(),
        look: purpose == Purpose::Look,
    };
    let answer = client.fetch(request).await.map_err(|e| CliError::from_status(&e))?;
    let mut chunks = answer.into_inner();
    let mut next = async || {
        let message = chunks.message().await.map_err(|e| CliError::from_status(&e))?;
        Ok::<_, CliError>(message.and_then(|message| message.chunk))
    };
    let Some(Chunk::Header(header)) = next().await? else {
        return Err(corrupt("the node sent no manifest"));
    };
    let tier = header.tier();
    let signed = SignedManifest::from(header.manifest.unwrap_or_default());
    let manifest = belief.read(&signed, key, namespace)?;
    let mut writer = BlobWriter::with_size(manifest.pack_size).map_err(anyhow::Error::from)?;
    while let Some(chunk) = next().await? {
        match chunk {
            Chunk::Data(bytes) => writer.write(&bytes).map_err(corrupt)?,
            Chunk::Header(_) => return Err(corrupt("the node sent a second manifest")),
        }
    }
    let pack = writer.finish_as(manifest.pack_digest).map_err(corrupt)?;
    Ok(Fetched { manifest, pack: Box::new(pack), tier })
}

impl From<TransferError> for CliError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::NotFound => Self::NotFound("the node has no such artifact".into()),
            TransferError::Busy | TransferError::WrongNode | TransferError::Broken { .. } => {
                Self::Unreachable(format!("the node's socket: {error}"))
            }
            TransferError::Unreachable { address, source } => Self::Unreachable(format!(
                "{address}: {source}; is --socket or KILN_SOCKET the node's own socket?"
            )),
            TransferError::Denied(why) => Self::denied(why),
            TransferError::Failed(_) | TransferError::Protocol(_) | TransferError::Memory(_) => {
                Self::Local(error.into())
            }
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn corrupt(why: impl ToString) -> CliError {
    CliError::failed(FailureKind::Corrupt, why.to_string())
}

/// The files of an artifact, each checked as it comes.
pub(crate) fn checked_files<'a>(
    manifest: &'a Manifest,
    pack: &'a [u8],
) -> impl Iterator<Item = Result<(&'a str, &'a [u8]), CliError>> {
    manifest.files.iter().map(|file| {
        let range = file.offset as usize..(file.offset + file.size) as usize;
        let bytes = pack.get(range).filter(|bytes| Digest::of(bytes) == file.digest);
        let bytes =
            bytes.ok_or_else(|| corrupt(format!("{} is not what was signed", file.path)))?;
        Ok((file.path.as_str(), bytes))
    })
}

/// Writes the files below `folder`, each complete or not at all.
pub(crate) fn write_files(
    folder: &Path,
    manifest: &Manifest,
    pack: &[u8],
) -> Result<PathBuf, CliError> {
    // All are checked before one is written.
    let checked: Vec<_> = checked_files(manifest, pack).collect::<Result<_, _>>()?;
    for (path, bytes) in checked {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        write_file(parent, &path, bytes)?;
    }
    Ok(folder.to_path_buf())
}

/// Writes one file in `parent`, complete or not at all.
pub(crate) fn write_file(parent: &Path, path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let mut temp = tempfile::NamedTempFile::new_in(parent)
        .with_context(|| format!("write into {}", parent.display()))?;
    temp.write_all(bytes).with_context(|| format!("write {}", path.display()))?;
    let file = temp.persist(path).with_context(|| format!("write {}", path.display()))?;
    readable_by_all(&file)
}

/// A temporary file is private; what is left in a build folder is not.
fn readable_by_all(file: &fs::File) -> Result<(), CliError> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.set_permissions(fs::Permissions::from_mode(0o644))?)
}

#[cfg(test)]
pub(crate) mod tests {
    use kiln_proto::{
        Component, Components, FileEntry, Fingerprint, KeyField, Target, claimed_components,
    };

    use super::*;

    pub(crate) fn artifact(files: &[(&str, &[u8])]) -> (Manifest, Vec<u8>) {
        let (fingerprint, target) =
            (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
        let graph = Component::new("graph", vec![KeyField::new("structure", "g")]);
        let claims = claimed_components(&fingerprint, &target, "default");
        let components = Components::new([graph].into_iter().chain(claims).collect());
        let mut pack = Vec::new();
        let mut entries = Vec::new();
        for (path, bytes) in files {
            entries.push(FileEntry {
                path: (*path).into(),
                offset: pack.len() as u64,
                size: bytes.len() as u64,
                digest: Digest::of(bytes),
            });
            pack.extend_from_slice(bytes);
        }
        let manifest = Manifest {
            key: components.key(),
            namespace: "default".into(),
            components,
            fingerprint,
            target,
            files: entries,
            pack_digest: Digest::of(&pack),
            pack_size: pack.len() as u64,
            producer: 1,
            compile_seconds: 0.5,
            created_unix_ms: 0,
            label: "k.cu".into(),
            pieces: Vec::new(),
            check: None,
        };
        (manifest, pack)
    }

    #[test]
    fn files_come_out_as_they_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let (manifest, pack) = artifact(&[("a/b.txt", b"one"), ("module.cubin", b"two")]);
        write_files(dir.path(), &manifest, &pack).unwrap();
        assert_eq!(fs::read(dir.path().join("a/b.txt")).unwrap(), b"one");
        assert_eq!(fs::read(dir.path().join("module.cubin")).unwrap(), b"two");
    }

    #[tokio::test]
    async fn a_missing_socket_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let key = artifact(&[("a", b"")]).0.key;
        let refused = fetch_local(&socket, None, &key, "", Purpose::Use, &Belief::default())
            .await
            .err()
            .unwrap();
        assert_eq!(refused.exit_code(), 3);
        assert!(refused.to_string().contains("none.sock"), "{refused}");
    }

    #[test]
    fn nothing_is_written_where_one_byte_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let (manifest, mut pack) = artifact(&[("a", b"one"), ("b", b"two")]);
        pack[4] ^= 1;
        let refused = write_files(dir.path(), &manifest, &pack).unwrap_err();
        assert_eq!(refused.exit_code(), 12);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
