//! Reads entries of a torch.export `.pt2`: an uncompressed zip.
//!
//! Invariant: what an archive declares is never believed. No entry is inflated
//! past its limit, and nothing is written anywhere.

use std::io::{Cursor, Read, Seek};

use kiln_proto::{Failure, FailureKind};
use zip::{
    ZipArchive,
    read::{ArchiveOffset, Config},
    result::ZipResult,
};

/// Most entries of an archive: a model of ten thousand layers has fewer.
const MOST_ENTRIES: usize = 200_000;
/// Exporters store, so a ratio beyond this is an attack and not a model.
const HIGHEST_RATIO: u64 = 100;
/// Below this an entry may have any ratio.
const HARMLESS: u64 = 1 << 20;

/// An opened archive.
pub(super) struct Archive<'a> {
    zip: ZipArchive<Cursor<&'a [u8]>>,
    prefix: String,
}

impl<'a> Archive<'a> {
    /// Opens the archive in `bytes` and finds the folder that holds its entries.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Failure> {
        let mut zip = directory(Cursor::new(bytes)).map_err(|e| {
            invalid(format!("not a complete .pt2 archive ({} bytes): {e}", bytes.len()))
        })?;
        if zip.len() > MOST_ENTRIES {
            return Err(invalid(format!("{} entries, at most {MOST_ENTRIES}", zip.len())));
        }
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|e| unreadable("an entry", e))?;
            let allowed = entry.compressed_size().saturating_mul(HIGHEST_RATIO).max(HARMLESS);
            if entry.size() > allowed {
                return Err(invalid(format!(
                    "entry {:?} claims {} bytes from {}: no model is packed like this",
                    entry.name(),
                    entry.size(),
                    entry.compressed_size()
                )));
            }
        }
        let prefix = |name: &str| name.strip_suffix("archive_format").map(str::to_owned);
        let found = zip.file_names().flatten().find_map(|name| prefix(&name));
        let prefix = found.ok_or_else(|| {
            invalid(
                "no archive_format entry: not written by torch.export.save of torch 2.8 or newer",
            )
        })?;
        Ok(Self { zip, prefix })
    }

    /// The name of the one model in the archive.
    pub(super) fn model(&self) -> Result<String, Failure> {
        let folder = format!("{}models/", self.prefix);
        let names = self.zip.file_names().flatten();
        let models: Vec<String> = names
            .filter_map(|name| Some(name.strip_prefix(&folder)?.strip_suffix(".json")?.to_owned()))
            .filter(|name| !name.contains('/'))
            .collect();
        match &models[..] {
            [one] => Ok(one.clone()),
            [] => Err(invalid("no models/*.json in the archive")),
            _ => Err(invalid(format!("{} models in one archive; give one", models.len()))),
        }
    }

    /// The paths of the entries whose path starts with `folder`, in order.
    pub(super) fn paths_below(&self, folder: &str) -> Vec<String> {
        let whole = format!("{}{folder}", self.prefix);
        let names = self.zip.file_names().flatten();
        let below = names.filter(|name| name.starts_with(whole.as_str()));
        let mut below: Vec<String> =
            below.map(|name| name[self.prefix.len()..].to_owned()).collect();
        below.sort();
        below
    }

    /// The bytes of the entry at `path`, at most `limit`; `None` where there is none.
    pub(super) fn read(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let name = format!("{}{path}", self.prefix);
        let Some(index) = self.zip.index_for_name(&name) else { return Ok(None) };
        let entry = self.zip.by_index(index).map_err(|e| unreadable(path, e))?;
        // The declared size only saves work; the copy below counts for itself.
        if entry.size() > limit {
            return Err(invalid(format!("{path} has {} bytes, at most {limit}", entry.size())));
        }
        let mut bytes = Vec::new();
        entry.take(limit + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, e))?;
        if bytes.len() as u64 > limit {
            return Err(invalid(format!("{path} inflates past {limit} bytes")));
        }
        Ok(Some(bytes))
    }
}

/// Reads the directory of an archive that starts where its bytes start, as every exporter
/// writes it. Left to guess what stands before the archive, the reader takes the second
/// entry for the first where PyTorch's end records are as long as the first entry's header
/// (its path has 30 letters), and the sample inputs, an archive of their own, for the
/// whole where the end is missing.
pub(super) fn directory<R: Read + Seek>(archive: R) -> ZipResult<ZipArchive<R>> {
    ZipArchive::with_config(Config { archive_offset: ArchiveOffset::Known(0) }, archive)
}

/// The name of an archive, to show: its folder's.
pub(super) fn name(bytes: &[u8]) -> String {
    Archive::open(bytes)
        .map(|archive| archive.prefix.trim_end_matches('/').to_owned())
        .unwrap_or_default()
}

fn unreadable(path: &str, error: impl std::fmt::Display) -> Failure {
    invalid(format!("{path} in the .pt2 cannot be read: {error}"))
}

pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::InvalidInput, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

    fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in entries {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn message(result: Result<impl Sized, Failure>) -> String {
        let failure = result.err().unwrap();
        assert_eq!(failure.kind, FailureKind::InvalidInput);
        failure.message
    }

    #[test]
    fn an_entry_that_claims_too_much_is_refused_before_it_is_inflated() {
        let zeros = vec![0; 8 << 20];
        let entries = [("m/archive_format", &b"pt2"[..]), ("m/models/model.json", &zeros)];
        let bomb = archive(&entries, CompressionMethod::Deflated);
        assert!(bomb.len() < 100_000);
        assert!(message(Archive::open(&bomb)).contains("claims"));
    }

    #[test]
    fn an_entry_that_lies_about_its_size_stops_at_the_limit() {
        let zeros = vec![0; 4 << 20];
        let entries = [("m/archive_format", &b"pt2"[..]), ("m/models/model.json", &zeros)];
        let mut liar = archive(&entries, CompressionMethod::Deflated);
        let (true_size, false_size) = ((4u32 << 20).to_le_bytes(), 900u32.to_le_bytes());
        while let Some(at) = liar.windows(4).position(|w| w == true_size) {
            liar[at..at + 4].copy_from_slice(&false_size);
        }
        let mut opened = Archive::open(&liar).unwrap();
        message(opened.read("models/model.json", 1000));
    }

    #[test]
    fn a_truncated_archive_is_refused_at_every_length() {
        let entries = [("m/archive_format", &b"pt2"[..]), ("m/models/model.json", b"{}")];
        let whole = archive(&entries, CompressionMethod::Stored);
        assert_eq!(Archive::open(&whole).unwrap().model().unwrap(), "model");
        for length in 0..whole.len() {
            assert!(message(Archive::open(&whole[..length])).contains("complete"), "{length}");
        }
    }

    /// As PyTorch's writer ends an archive: with a zip64 record and its locator even
    /// where the plain end record says all.
    fn as_torch(mut archive: Vec<u8>) -> Vec<u8> {
        let at = archive.len() - 22;
        let end = archive.split_off(at);
        let entries = u64::from(u16::from_le_bytes([end[10], end[11]]));
        let field = |at: usize| {
            u64::from(u32::from_le_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]))
        };
        archive.extend(b"PK\x06\x06");
        archive.extend(44u64.to_le_bytes());
        archive.extend([0x2d, 0, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for number in [entries, entries, field(12), field(16)] {
            archive.extend(number.to_le_bytes());
        }
        archive.extend(b"PK\x06\x07\0\0\0\0");
        archive.extend((at as u64).to_le_bytes());
        archive.extend(1u32.to_le_bytes());
        archive.extend(end);
        archive
    }

    /// As torch.export.save writes it to a file of that name: the sample inputs are an
    /// archive of their own.
    fn exported(name: &str, json: usize, inputs: usize) -> Vec<u8> {
        let stored = CompressionMethod::Stored;
        let (tensor, json) = (vec![7; inputs], vec![b' '; json]);
        let inner = [("model/data.pkl", &b"pickle"[..]), ("model/data/0", &tensor)];
        let inner = as_torch(archive(&inner, stored));
        let files = [
            ("data/weights/weight_0", &tensor[..]),
            ("models/model.json", &json),
            ("data/sample_inputs/model.pt", &inner),
            ("archive_format", b"pt2"),
        ];
        let paths = files.map(|(path, bytes)| (format!("{name}/{path}"), bytes));
        let entries: Vec<_> = paths.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
        as_torch(archive(&entries, stored))
    }

    #[test]
    fn an_archive_with_an_archive_in_it_opens_at_every_size() {
        let mut refused = Vec::new();
        for (length, size) in (1..=60).flat_map(|length| (0..20).map(move |n| (length, 37 * n))) {
            let whole = exported(&"m".repeat(length), size, 3 * size);
            let opened = Archive::open(&whole)
                .and_then(|mut archive| archive.read("models/model.json", 1 << 20));
            let read = opened.is_ok_and(|model| model.is_some_and(|model| model.len() == size));
            if !read || crate::slim(Cursor::new(&whole)).is_err() {
                refused.push((length, size));
            }
        }
        assert!(refused.is_empty(), "{} refused: {refused:?}", refused.len());
    }

    #[test]
    fn sample_inputs_are_not_taken_for_the_archive_that_was_cut_off_behind_them() {
        let whole = exported("m", 100, 100);
        for length in 0..whole.len() {
            assert!(message(Archive::open(&whole[..length])).contains("complete"), "{length}");
            assert!(crate::slim(Cursor::new(&whole[..length])).is_err(), "{length}");
        }
    }

    #[test]
    fn another_kind_of_zip_is_named() {
        let other = archive(&[("a.txt", b"hello")], CompressionMethod::Stored);
        assert!(message(Archive::open(&other)).contains("torch.export.save"));
    }
}
