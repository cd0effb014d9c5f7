//! Writing to stdout.
//!
//! Invariant: a reader that went away ends the command quietly and with
//! success: `kiln ls | head -1` is no error.

use std::{
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
};

use ratatui::crossterm::terminal;
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
    let rows: Vec<Vec<&str>> =
        rows.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
    aligned(&heading, &rows)
}

fn aligned(heading: &[&str], rows: &[Vec<&str>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |row: &[&str]| {
        let cells = row.iter().zip(&widths);
        let text: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.join("  ").trim_end().to_owned()
    };
    let lines = std::iter::once(render(heading)).chain(rows.iter().map(|row| render(row)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Columns of the terminal that stdout is; `None`: it is none.
pub(crate) fn width() -> Option<usize> {
    let (columns, _) = io::stdout().is_terminal().then(terminal::size)?.ok()?;
    (columns > 0).then_some(usize::from(columns))
}

/// As [`table`], without those of the columns `spare` for which `width` has no room: the
/// first of them goes first. What is left out is said below it.
pub(crate) fn fitting<const N: usize>(
    heading: [&str; N],
    rows: &[[String; N]],
    spare: &[&str],
    width: Option<usize>,
) -> String {
    let mut left_out: Vec<&str> = Vec::new();
    loop {
        let kept = |at: &usize| !left_out.contains(&heading[*at]);
        let columns: Vec<usize> = (0..N).filter(kept).collect();
        let names: Vec<&str> = columns.iter().map(|at| heading[*at]).collect();
        let cells = rows.iter().map(|row| columns.iter().map(|at| row[*at].as_str()).collect());
        let text = aligned(&names, &cells.collect::<Vec<_>>());
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or_default();
        if width.is_some_and(|width| widest > width)
            && let Some(next) = spare.get(left_out.len())
        {
            left_out.push(next);
            continue;
        }
        return match left_out.is_empty() {
            true => text,
            false => format!("{text}\n(no room for {})", left_out.join(", ")),
        };
    }
}

/// `text` in lines of at most `width` columns, where it is told; all but the first begin with
/// `indent` spaces. A word that is longer has a line of its own.
pub(crate) fn wrapped(text: &str, indent: usize, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| *width > 2 * indent) else { return text.to_owned() };
    let mut lines: Vec<String> = Vec::new();
    // What stands before the first blank of a word is kept: columns are padded with them.
    for word in text.split_inclusive(' ') {
        let room = |line: &String| line.chars().count() + word.trim_end().chars().count() <= width;
        let indent = if lines.is_empty() { 0 } else { indent };
        match lines.last_mut().filter(|line| room(line)) {
            Some(line) => line.push_str(word),
            None => lines.push(format!("{:indent$}{word}", "")),
        }
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// The first digits of a key: enough to name it, in tables and narrow lines.
pub(crate) fn short(key: &str) -> &str {
    key.get(..16).unwrap_or(key)
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
    fn a_narrow_terminal_has_fewer_columns_and_says_which_are_missing() {
        let heading = ["KEY", "LABEL", "HITS", "AGE"];
        let rows = [["0123456789", "gemm", "12", "3 min"].map(str::to_owned)];
        let within = |width| fitting(heading, &rows, &["AGE", "HITS"], width);
        let whole = table(heading, &rows);
        assert_eq!((within(None), within(Some(30))), (whole.clone(), whole));
        assert_eq!(
            within(Some(29)),
            "KEY         LABEL  HITS\n0123456789  gemm   12\n(no room for AGE)"
        );
        let least = "KEY         LABEL\n0123456789  gemm\n(no room for AGE, HITS)";
        assert_eq!((within(Some(22)).as_str(), within(Some(1)).as_str()), (least, least));
    }

    #[test]
    fn a_long_line_goes_on_below_its_own_column() {
        let text = "ok       disk  a folder of which much is to be said";
        assert_eq!(wrapped(text, 15, None), text);
        assert_eq!(wrapped(text, 15, Some(80)), text);
        assert_eq!(
            wrapped(text, 15, Some(32)),
            "ok       disk  a folder of which\n               much is to be\n               said"
        );
        let path = "ok  /a/very/long/path/that/has/no/blank at";
        assert_eq!(
            wrapped(path, 4, Some(12)),
            "ok\n    /a/very/long/path/that/has/no/blank\n    at"
        );
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
