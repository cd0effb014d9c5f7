//! `.ninja_log`: which command made which output, and when.
//!
//! Invariant: what is written is a log that ninja reads, with one line an output.

use std::collections::BTreeMap;

use super::stamp::stamp;

const HEADER: &str = "# ninja log v";
/// Later ones may mean something else.
const VERSIONS: [&str; 3] = ["5", "6", "7"];

/// What ninja knows of its outputs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Log {
    version: String,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    start: String,
    end: String,
    modified: i64,
    command: String,
}

impl Log {
    /// Reads one; `None` for a version that is not known. A line that cannot be read,
    /// such as a last one that was cut, is left out: ninja makes its output again.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        let version = lines.next()?.strip_prefix(HEADER)?.to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            return None;
        }
        let entry = |line: &str| {
            let mut fields = line.split('\t');
            let (start, end) = (fields.next()?.to_owned(), fields.next()?.to_owned());
            let modified = fields.next()?.parse().ok()?;
            let output = fields.next()?.to_owned();
            let command = fields.next()?.to_owned();
            fields.next().is_none().then_some((output, Entry { start, end, modified, command }))
        };
        Some(Self { version, entries: lines.filter_map(entry).collect() })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = format!("{HEADER}{}\n", self.version);
        for (output, entry) in &self.entries {
            let Entry { start, end, modified, command } = entry;
            text.push_str(&format!("{start}\t{end}\t{modified}\t{output}\t{command}\n"));
        }
        text.into_bytes()
    }

    /// Outputs as they are spelled.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = String> {
        self.entries.keys().cloned()
    }

    /// Takes what `other` knows of outputs that are not known here. Logs of different
    /// versions hash commands differently.
    pub(super) fn add(&mut self, other: Self) {
        if other.version == self.version {
            for (output, entry) in other.entries {
                self.entries.entry(output).or_insert(entry);
            }
        }
    }

    /// Keeps what `keep` names, as made at `modified`.
    pub(super) fn renew(&mut self, keep: impl Fn(&str) -> bool, modified: (i64, u32)) {
        self.entries.retain(|output, _| keep(output));
        for entry in self.entries.values_mut() {
            entry.modified = stamp(modified, entry.modified);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ninja log v6\n0\t5\t1700000000000000000\ta.o\tabc\n\
                        5\t9\t1700000000\tb.so\tdef\n9\t9\tx\tbad\tdef\ncut\t1";

    #[test]
    fn one_line_an_output_is_renewed_or_left_out() {
        let mut log = Log::decode(TEXT.as_bytes()).unwrap();
        assert_eq!(log.outputs().collect::<Vec<_>>(), ["a.o", "b.so"]);
        log.add(Log::decode(b"# ninja log v6\n1\t2\t3\ta.o\tnew\n1\t2\t3\tc.o\tghi\n").unwrap());
        log.add(Log::decode(b"# ninja log v5\n1\t2\t3\td.o\tghi\n").unwrap());
        log.renew(|output| output != "c.o", (1_800_000_000, 7));
        let renewed = "# ninja log v6\n0\t5\t1800000000000000007\ta.o\tabc\n\
                       5\t9\t1800000000\tb.so\tdef\n";
        assert_eq!(String::from_utf8(log.encode()).unwrap(), renewed);
    }

    #[test]
    fn what_is_no_log_is_none() {
        for bytes in [b"".as_slice(), b"# ninja log v99\n", b"\xff\xfe", b"ninja"] {
            assert_eq!(Log::decode(bytes), None);
        }
    }
}
