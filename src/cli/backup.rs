//! `kiln cluster backup` and `restore`: the index as a file.
//!
//! Invariant: a backup that ended is whole: it ends with an empty page, and one
//! without is refused. Restoring twice changes nothing.

use std::io::{IsTerminal, Read, Write};

use anyhow::Context;
use kiln_proto::{SignedManifest, pb};
use prost::Message;

use super::{CliError, ClientArgs, client::Endpoints, output};

/// First bytes of the file; the number is that of the format.
/// How a backup begins, without the end of the line.
pub(crate) const FORMAT: &str = "kiln-index-1";
const MAGIC: &[u8] = b"kiln-index-1\n";
/// Entries in one page, of the file as of a request.
const PAGE: u32 = 200;
const LONGEST_PAGE: u32 = 256 << 20;

/// Writes the index of the node that is asked to stdout.
pub(super) async fn write(endpoints: &Endpoints) -> Result<(), CliError> {
    let stdout = std::io::stdout();
    refuse_terminal(stdout.is_terminal(), "write a backup to", "backup > index.kiln")?;
    let mut client = endpoints.connect().await?;
    let refused = |status| CliError::from_status(&status);
    let signers =
        client.status(pb::StatusRequest::default()).await.map_err(refused)?.into_inner().signers;
    let mut out = stdout.lock();
    out.write_all(MAGIC).context("write the backup")?;
    let (mut after, mut total) = (Default::default(), 0);
    loop {
        let request = pb::ListRequest { after, limit: PAGE, ..Default::default() };
        let page = client.list(request).await.map_err(refused)?.into_inner();
        total += page.entries.len();
        let last = page.entries.last().and_then(|entry| entry.manifest.as_ref());
        after = match last {
            Some(signed) => {
                let manifest = SignedManifest::from(signed.clone()).read_unverified();
                manifest.context("read an entry")?.key.as_bytes().to_vec().into()
            }
            None => Default::default(),
        };
        if !page.entries.is_empty() {
            put(&mut out, &pb::RestoreRequest { entries: page.entries, signers: signers.clone() })?;
        }
        if !page.more {
            break;
        }
    }
    put(&mut out, &pb::RestoreRequest::default())?;
    out.flush().context("write the backup")?;
    eprintln!("{total} entries");
    Ok(())
}

/// A backup is bytes: a terminal neither shows them nor gives any.
fn refuse_terminal(is_terminal: bool, doing: &str, instead: &str) -> Result<(), CliError> {
    match is_terminal {
        true => Err(CliError::Usage(format!(
            "a terminal is nothing to {doing}: write kiln cluster {instead}"
        ))),
        false => Ok(()),
    }
}

fn put(out: &mut impl Write, page: &pb::RestoreRequest) -> anyhow::Result<()> {
    let bytes = page.encode_to_vec();
    let size = u32::try_from(bytes.len()).context("a page of the backup is too long")?;
    out.write_all(&size.to_le_bytes()).and_then(|()| out.write_all(&bytes)).context("write")
}

/// Reads a backup from stdin into the cluster.
pub(super) async fn read(args: &ClientArgs) -> Result<(), CliError> {
    let stdin = std::io::stdin();
    refuse_terminal(stdin.is_terminal(), "read a backup from", "restore < index.kiln")?;
    let pages = wholes_last(pages(&mut stdin.lock())?);
    let mut client = args.endpoints.connect().await?;
    let mut done = pb::RestoreResponse::default();
    for page in pages {
        let answer = client.restore(page).await.map_err(|e| CliError::from_status(&e))?;
        let answer = answer.into_inner();
        done.restored += answer.restored;
        done.known += answer.known;
        done.refused += answer.refused;
    }
    let pb::RestoreResponse { restored, known, refused } = done;
    match args.json {
        true => output::json(&serde_json::json!({
            "restored": restored, "known": known, "refused": refused,
        })),
        false => output::line(format!(
            "{restored} restored, {known} had an artifact already, {refused} refused"
        )),
    }
}

/// What is put together of other entries comes after all of those: the index takes no
/// whole without its pieces.
fn wholes_last(pages: Vec<pb::RestoreRequest>) -> Vec<pb::RestoreRequest> {
    let mut last = Vec::new();
    let mut first: Vec<_> = pages
        .into_iter()
        .map(|mut page| {
            let is_whole = |entry: &mut pb::Entry| {
                let manifest = entry.manifest.clone().map(SignedManifest::from);
                let manifest = manifest.and_then(|signed| signed.read_unverified().ok());
                manifest.is_some_and(|manifest| !manifest.pieces.is_empty())
            };
            let wholes: Vec<_> = page.entries.extract_if(.., is_whole).collect();
            if !wholes.is_empty() {
                last.push(pb::RestoreRequest { entries: wholes, signers: page.signers.clone() });
            }
            page
        })
        .collect();
    first.append(&mut last);
    first
}

/// All of them, so that a file that is cut short changes nothing.
fn pages(from: &mut impl Read) -> anyhow::Result<Vec<pb::RestoreRequest>> {
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).context("this is no backup")?;
    if magic != MAGIC {
        anyhow::ensure!(
            !is_of_another_format(&magic),
            "the backup has another format than {FORMAT}, which this Kiln {} reads: nothing was \
             changed; restore it with the version that wrote it, or a later one",
            kiln::VERSION,
        );
        anyhow::bail!("this is no backup of a Kiln index");
    }
    let mut pages = Vec::new();
    loop {
        let mut size = [0; 4];
        from.read_exact(&mut size).context("the backup is cut short")?;
        let size = u32::from_le_bytes(size);
        anyhow::ensure!(size <= LONGEST_PAGE, "the backup is damaged");
        if size == 0 {
            return Ok(pages);
        }
        let mut bytes = vec![0; size as usize];
        from.read_exact(&mut bytes).context("the backup is cut short")?;
        pages.push(pb::RestoreRequest::decode(&*bytes).context("the backup is damaged")?);
    }
}

/// Whether a file that begins so is a backup that another version wrote.
fn is_of_another_format(magic: &[u8]) -> bool {
    let number = magic.strip_prefix(b"kiln-index-").and_then(|number| number.first());
    number.is_some_and(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use kiln_proto::{NodeIdentity, PieceRef};

    use super::*;
    use crate::cli::fetch::tests::artifact;

    #[test]
    fn a_whole_is_restored_after_its_pieces() {
        let node = NodeIdentity::new(1, ed25519_dalek::SigningKey::from_bytes(&[1; 32]));
        let entry = |manifest| pb::Entry {
            manifest: Some((&node.sign(manifest).unwrap()).into()),
            ..Default::default()
        };
        let (piece, _) = artifact(&[("module.cubin", b"piece")]);
        let (mut whole, _) = artifact(&[("stitching.json", b"how")]);
        let mut named = PieceRef { key: piece.key, pack: piece.pack_digest, pack_size: 5 };
        if named.key == whole.key {
            named.key = kiln_proto::ArtifactKey::from_bytes([7; 32]);
        }
        whole.pieces = vec![named];
        let page = |entries| pb::RestoreRequest { entries, signers: vec![pb::Signer::default()] };
        let (whole, piece) = (entry(whole), entry(piece));
        let damaged = pb::Entry::default();
        let pages = vec![page(vec![whole.clone(), damaged.clone()]), page(vec![piece.clone()])];
        let wanted = [page(vec![damaged]), page(vec![piece]), page(vec![whole])];
        assert_eq!(wholes_last(pages), wanted, "each with the signers of its page");
    }

    #[test]
    fn a_terminal_gets_no_bytes() {
        let refused = refuse_terminal(true, "write a backup to", "backup > index.kiln");
        let refused = refused.unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().ends_with("kiln cluster backup > index.kiln"), "{refused}");
        assert!(refuse_terminal(false, "", "").is_ok());
    }

    #[test]
    fn a_backup_of_a_version_to_come_is_told_apart_from_what_is_none() {
        let told = |bytes: &[u8]| pages(&mut &*bytes).unwrap_err().to_string();
        for later in [b"kiln-index-2\nand more".as_slice(), b"kiln-index-12\nand more"] {
            assert!(told(later).contains("restore it with the version that wrote it"));
        }
        assert!(told(b"kiln-index-x\nand more").contains("this is no backup of a Kiln index"));
    }

    #[test]
    fn a_backup_reads_back_and_a_part_of_it_does_not() {
        let entry = pb::Entry { epoch: 7, ..Default::default() };
        let page = pb::RestoreRequest { entries: vec![entry], ..Default::default() };
        let mut file = MAGIC.to_vec();
        put(&mut file, &page).unwrap();
        put(&mut file, &pb::RestoreRequest::default()).unwrap();
        assert_eq!(pages(&mut &*file).unwrap(), [page]);
        for length in [0, 5, MAGIC.len() + 3, file.len() - 5, file.len() - 1] {
            assert!(pages(&mut &file[..length]).is_err(), "{length} bytes");
        }
    }
}
