//! What a root signed, as a file that a person carries to the cluster.
//!
//! Invariant: what is read was signed by the root that the file names; nothing is written over
//! a file that is there.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

use anyhow::Context;
use ed25519_dalek::{SigningKey, VerifyingKey};
use kiln_proto::{
    pb,
    root::{ROOT_FORMAT, RootStatement, SignedStatement},
};
use serde::{Deserialize, Serialize};

use crate::cli::CliError;

/// Longest file that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// The form of the file: JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Form {
    format: String,
    /// In hexadecimal, as the others.
    root: String,
    statement: String,
    signature: String,
}

/// A statement with its root.
pub(super) struct Said {
    pub(super) root: VerifyingKey,
    pub(super) signed: SignedStatement,
    pub(super) read: RootStatement,
}

impl Said {
    /// What tells it to a node.
    pub(super) fn request(&self) -> pb::RootSaysRequest {
        let statement = pb::SignedStatement {
            statement: self.signed.bytes.clone().into(),
            signature: self.signed.signature.clone().into(),
        };
        pb::RootSaysRequest {
            root: self.root.to_bytes().to_vec().into(),
            statement: Some(statement),
        }
    }
}

/// Signs, and writes that to a new file.
pub(super) fn write(
    path: &Path,
    root: &SigningKey,
    statement: &RootStatement,
) -> Result<(), CliError> {
    let signed = statement.sign(root).map_err(|e| CliError::Usage(e.to_string()))?;
    let form = Form {
        format: ROOT_FORMAT.into(),
        root: hex::encode(root.verifying_key().as_bytes()),
        statement: hex::encode(signed.bytes),
        signature: hex::encode(signed.signature),
    };
    let shown = || format!("write {}", path.display());
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(path).with_context(shown)?;
    let text = serde_json::to_string_pretty(&form).context("write the statement")?;
    writeln!(file, "{text}").with_context(shown)?;
    file.sync_all().with_context(shown)?;
    Ok(())
}

/// Reads a file, and checks what it says against the root that it names.
pub(super) fn read(path: &Path) -> Result<Said, CliError> {
    let wrong = |why: String| CliError::Usage(format!("{}: {why}", path.display()));
    let shown = || format!("read {}", path.display());
    if fs::metadata(path).with_context(shown)?.len() > LONGEST {
        return Err(wrong("no statement of a root is so long".into()));
    }
    let text = fs::read(path).with_context(shown)?;
    let form: Form = serde_json::from_slice(&text)
        .map_err(|e| wrong(format!("it is no statement of a root: {e}")))?;
    if form.format != ROOT_FORMAT {
        return Err(wrong(format!(
            "its format is {:?}, and this version of Kiln reads {ROOT_FORMAT:?}",
            form.format
        )));
    }
    let root = key(&form.root).map_err(|why| wrong(format!("root: {why}")))?;
    let bytes = |text: &str| hex::decode(text).map_err(|e| wrong(e.to_string()));
    let signed =
        SignedStatement { bytes: bytes(&form.statement)?, signature: bytes(&form.signature)? };
    let read = signed.verify(&root).map_err(|e| wrong(e.to_string()))?;
    Ok(Said { root, signed, read })
}

/// An ed25519 public key in hexadecimal.
pub(super) fn key(text: &str) -> Result<VerifyingKey, String> {
    let bytes = hex::decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    key.ok_or_else(|| format!("{text:?} is no ed25519 public key in hexadecimal"))
}
