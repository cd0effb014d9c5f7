//! Who this disk is: a candidate first, a node once a cluster gave it an id.
//!
//! Invariant: the file `identity` (mode 0600) is written whole or not at all, and
//! after the database was marked with the same owner. So an identity never
//! outlives its data: a disk without data is a new candidate, never an old node.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use fail::fail_point;

use crate::{
    command::Candidate,
    error::ClusterError,
    store::{Owner, Store},
};

const NAME: &str = "identity";

/// The identity of one data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub candidate: Candidate,
    pub owner: Option<Owner>,
}

impl Identity {
    /// Reads the identity of `dir`, whose database is `store`; mints a candidate
    /// on an empty disk.
    pub(crate) fn open(dir: &Path, store: &Store) -> Result<Self, ClusterError> {
        let failed = |e: io::Error| ClusterError::storage(format!("identity file: {e}"));
        let marked = store.owner()?;
        let file = match fs::read_to_string(dir.join(NAME)) {
            Ok(text) => Some(parse(&text).ok_or_else(|| {
                ClusterError::storage("the identity file is damaged: empty the data folder")
            })?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed(e)),
        };
        let identity = match (file, marked) {
            (None, None) => {
                let mut candidate = Candidate::default();
                getrandom::fill(&mut candidate).map_err(ClusterError::storage)?;
                Self { candidate, owner: None }
            }
            // A crash between the database's mark and the file.
            (Some(Self { candidate, owner: None }), marked) => Self { candidate, owner: marked },
            (Some(known), marked) if known.owner == marked => return Ok(known),
            (file, marked) => {
                return Err(ClusterError::storage(format!(
                    "the identity file says {file:?}, the data {marked:?}: a node's id must not \
                     outlive its data, so empty the data folder and join as a new node"
                )));
            }
        };
        identity.write(dir).map_err(failed)?;
        Ok(identity)
    }

    /// Becomes a node, durably: data first, then the file.
    pub(crate) fn become_node(
        &mut self,
        dir: &Path,
        store: &Store,
        owner: Owner,
    ) -> Result<(), ClusterError> {
        store.set_owner(owner)?;
        self.owner = Some(owner);
        self.write(dir).map_err(|e| ClusterError::storage(format!("identity file: {e}")))
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let mut text = format!("candidate {}\n", hex::encode(self.candidate));
        if let Some(Owner { cluster, node }) = self.owner {
            text += &format!("cluster {cluster:016x}\nnode {node}\n");
        }
        let temporary = dir.join("identity.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fail_point!("identity.written");
        file.sync_all()?;
        fail_point!("identity.synced");
        fs::rename(&temporary, dir.join(NAME))?;
        fail_point!("identity.renamed");
        File::open(dir)?.sync_all()
    }
}

fn parse(text: &str) -> Option<Identity> {
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let mut candidate = Candidate::default();
    hex::decode_to_slice(field("candidate")?, &mut candidate).ok()?;
    let owner = match (field("cluster"), field("node")) {
        (None, None) => None,
        (cluster, node) => Some(Owner {
            cluster: u64::from_str_radix(cluster?, 16).ok()?,
            node: node?.parse().ok()?,
        }),
    };
    Some(Identity { candidate, owner })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::{self, RealDisk};

    const OWNER: Owner = Owner { cluster: 0xfeed, node: 7 };

    #[test]
    fn an_identity_survives_a_restart_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(dir.path(), &RealDisk, "").unwrap();
        let mut identity = Identity::open(dir.path(), &store).unwrap();
        assert_eq!(identity.owner, None);
        assert_eq!(Identity::open(dir.path(), &store).unwrap(), identity);
        identity.become_node(dir.path(), &store, OWNER).unwrap();
        drop(store);
        let store = store::open(dir.path(), &RealDisk, "").unwrap();
        assert_eq!(Identity::open(dir.path(), &store).unwrap(), identity);
        let mode = fs::metadata(dir.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_identity_without_its_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(dir.path(), &RealDisk, "").unwrap();
        let mut identity = Identity::open(dir.path(), &store).unwrap();
        identity.become_node(dir.path(), &store, OWNER).unwrap();
        drop(store);
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let store = store::open(dir.path(), &RealDisk, "").unwrap();
        assert!(matches!(Identity::open(dir.path(), &store), Err(ClusterError::Storage(_))));
    }

    #[test]
    fn a_crash_between_data_and_file_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(dir.path(), &RealDisk, "").unwrap();
        let identity = Identity::open(dir.path(), &store).unwrap();
        store.set_owner(OWNER).unwrap();
        let mended = Identity::open(dir.path(), &store).unwrap();
        assert_eq!(mended, Identity { owner: Some(OWNER), ..identity });
    }
}
