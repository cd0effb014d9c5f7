//! Writing to stdout.
//!
//! Invariant: a reader that went away ends the command quietly and with
//! success: `kiln ls | head -1` is no error.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use serde::Serialize;

use super::CliError;

/// Writes one line.
pub(crate) fn line(text: impl Display) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    settle(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Writes what is made elsewhere, as it is.
pub(crate) fn bytes(text: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    settle(out.write_all(text).and_then(|()| out.flush()))
}

/// Writes one JSON object on a line of its own.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    line(serde_json::to_string(value).map_err(anyhow::Error::from)?)
}

fn settle(written: io::Result<()>) -> Result<(), CliError> {
    match written {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Rows under a heading, in columns as wide as they need; the last is not padded.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |row: [&str; N]| {
        let cells = row.iter().zip(widths);
        let text: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![render(heading)];
    lines.extend(rows.iter().map(|row| render(std::array::from_fn(|at| row[at].as_str()))));
    lines.join("\n")
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// Seconds as people read them.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// How long ago something was, in the unit that says most: `90 s`, `5 h`, `12 d`.
pub(crate) fn ago(milliseconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3600, "h"), (60, "min")];
    let seconds = milliseconds / 1000;
    let unit = UNITS.iter().find(|(unit, _)| seconds >= 2 * unit);
    unit.map_or_else(|| format!("{seconds} s"), |(unit, name)| format!("{} {name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let rows = [["a".into(), "bb".into()], ["cccc".into(), "d".into()]];
        assert_eq!(table(["X", "Y"], &rows), "X     Y\na     bb\ncccc  d");
    }

    #[test]
    fn what_is_long_ago_is_told_roughly() {
        for (seconds, told) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (86_400, "24 h"),
            (400 * 86_400, "400 d"),
        ] {
            assert_eq!(ago(seconds * 1000 + 999), told);
        }
    }

    #[test]
    fn seconds_keep_three_digits() {
        assert_eq!(seconds(0.000_02), "20 µs");
        assert_eq!(seconds(0.012_34), "12.3 ms");
        assert_eq!(seconds(12.345), "12.35 s");
    }
}
