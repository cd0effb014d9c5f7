//! Which headers a text may ask for.
//!
//! Invariant: a header that NVRTC looks for in a text is among [`Asked::names`], or the text
//! [computes](Asked::computes) names. Conditionals are not evaluated: a name too many does no
//! harm, for what is sent is what is there.

/// What a text asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Headers that it names.
    pub(super) names: Vec<Name>,
    /// It may ask for others: their names come of macros.
    pub(super) computes: bool,
}

/// A header as an include names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) bytes: Vec<u8>,
    /// Looked for beside the including file first.
    pub(super) quoted: bool,
    /// `#include_next`: it may be another than the first that is found.
    pub(super) next: bool,
}

const HAS_INCLUDE: &[u8] = b"__has_include";

/// Reads a text in each way in which a dialect of C++ may read it.
pub(super) fn asked(text: &[u8]) -> Asked {
    let mut found = Asked::default();
    // Trigraphs and raw strings are there or not by the dialect that is asked for.
    let trigraphs = if contains(text, b"??") { &[false, true][..] } else { &[false] };
    for &trigraphs in trigraphs {
        let joined = joined(text, trigraphs);
        let raw = if contains(&joined, b"R\"") { &[true, false][..] } else { &[true] };
        for &raw in raw {
            for line in code(&joined, raw).split(|b| *b == b'\n') {
                read_line(line, &mut found);
            }
        }
    }
    found.names.sort();
    found.names.dedup();
    found
}

/// The words of a text: what a computed name can be put together from.
pub(super) fn words(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let joined = joined(text, false);
    let words: Vec<_> =
        joined.split(|b| !is_word(*b)).filter(|w| !w.is_empty()).map(<[u8]>::to_vec).collect();
    words.into_iter()
}

/// What looks like a path in a text: a computed name may be spelled out.
pub(super) fn paths(text: &[u8]) -> Vec<Vec<u8>> {
    let joined = joined(text, false);
    let outside = |b: &u8| b.is_ascii_whitespace() || b"\"'<>(),;#\\".contains(b);
    let runs = joined.split(outside).filter(|run| run.iter().any(|b| b"./".contains(b)));
    runs.map(<[u8]>::to_vec).collect()
}

/// Lines that go on are one line.
fn joined(text: &[u8], trigraphs: bool) -> Vec<u8> {
    let mut all = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match rest {
            [b'?', b'?', b'/', after @ ..] if trigraphs => (b'\\', after),
            [b'?', b'?', b'=', after @ ..] if trigraphs => (b'#', after),
            _ => (byte, after),
        };
        rest = match (byte, after) {
            (b'\\', [b'\n', after @ ..] | [b'\r', b'\n', after @ ..]) => after,
            _ => {
                all.push(byte);
                after
            }
        };
    }
    all
}

/// The text with a space for each comment, and without what raw strings hold.
fn code(text: &[u8], raw_strings: bool) -> Vec<u8> {
    let mut code: Vec<u8> = Vec::with_capacity(text.len());
    let (mut rest, mut line_start) = (text, 0);
    while let Some((&byte, after)) = rest.split_first() {
        let line = &code[line_start..];
        let length = match byte {
            b'/' if after.starts_with(b"*") => {
                let end = find(&after[1..], b"*/").map_or(rest.len(), |at| at + 4);
                rest = &rest[end..];
                code.push(b' ');
                continue;
            }
            b'/' if after.starts_with(b"/") => {
                let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                rest = &rest[end..];
                continue;
            }
            b'"' | b'<' if awaits_name(line) => {
                let close = if byte == b'<' { b'>' } else { b'"' };
                until(after, |b| b == close || b == b'\n') + 1
            }
            b'"' if raw_strings && is_raw(line) => match raw_end(after) {
                Some(end) => {
                    code.extend(b"\"\"");
                    rest = &after[end..];
                    continue;
                }
                None => 1,
            },
            b'\'' if ends_in_a_number(line) => 1,
            b'"' | b'\'' => string(after, byte) + 1,
            _ => 1,
        };
        let (taken, after) = rest.split_at(length.min(rest.len()));
        code.extend(taken);
        rest = after;
        if byte == b'\n' {
            line_start = code.len();
        }
    }
    code
}

/// Up to and with the first byte that `ends` it, but for a line's end.
fn until(text: &[u8], ends: impl Fn(u8) -> bool) -> usize {
    match text.iter().position(|b| ends(*b)) {
        Some(at) if text[at] == b'\n' => at,
        Some(at) => at + 1,
        None => text.len(),
    }
}

/// Whether a quote after this separates digits: what it is part of begins with one.
fn ends_in_a_number(line: &[u8]) -> bool {
    let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'\'');
    let length = line.iter().rev().take_while(|b| part(b)).count();
    line[line.len() - length..].first().is_some_and(u8::is_ascii_digit)
}

/// Length of what follows the opening quote, to the closing one or the line's end.
fn string(text: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'\n' => return at,
            b'\\' if text.get(at + 1) != Some(&b'\n') => at += 2,
            _ if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Whether a quote after `line` opens a raw string.
fn is_raw(line: &[u8]) -> bool {
    let word = line.rsplit(|b| !is_word(*b)).next().unwrap_or_default();
    matches!(word, b"R" | b"LR" | b"uR" | b"UR" | b"u8R")
}

/// Where a raw string ends that begins after its quote with `text`.
fn raw_end(text: &[u8]) -> Option<usize> {
    let open = text.iter().take(17).position(|b| *b == b'(')?;
    let close = [b")", &text[..open], b"\""].concat();
    Some(open + find(&text[open..], &close)? + close.len())
}

/// Whether a header's name comes next, in which nothing is a comment or an escape.
fn awaits_name(line: &[u8]) -> bool {
    let line = line.trim_ascii_end();
    let of_directive = directive(line).is_some_and(|(_, rest)| rest.is_empty());
    let of_question = line.strip_suffix(b"(").map(<[u8]>::trim_ascii_end);
    of_directive
        || of_question
            .is_some_and(|l| l.ends_with(HAS_INCLUDE) || l.ends_with(b"__has_include_next"))
}

/// `#include` or its kind at the start of a line: whether it is `#include_next`, and what
/// follows.
fn directive(line: &[u8]) -> Option<(bool, &[u8])> {
    let line = trim(line);
    let line = line.strip_prefix(b"#").or_else(|| line.strip_prefix(b"%:"))?;
    let line = trim(line);
    let word = line.iter().position(|b| !is_word(*b)).unwrap_or(line.len());
    let (word, rest) = line.split_at(word);
    match word {
        b"include" | b"import" => Some((false, trim(rest))),
        b"include_next" => Some((true, trim(rest))),
        _ => None,
    }
}

/// White space as the preprocessor has it.
fn trim(line: &[u8]) -> &[u8] {
    let blank = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let start = line.iter().position(|b| !blank(b)).unwrap_or(line.len());
    &line[start..]
}

fn read_line(line: &[u8], found: &mut Asked) {
    if let Some((next, rest)) = directive(line) {
        match literal(rest) {
            Some((bytes, quoted)) => found.names.push(Name { bytes, quoted, next }),
            None => found.computes = true,
        }
        return;
    }
    let pastes = contains(line, b"##") || contains(line, b"%:%:");
    let start = trim(line);
    let asks_whether = [&b"#ifdef"[..], b"#ifndef", b"# ifdef", b"# ifndef"];
    let asks_whether = asks_whether.iter().any(|word| start.starts_with(word));
    let mut at = 0;
    while at < line.len() {
        if line[at] == b'"' {
            // Words in a string are none.
            at += 1 + string(&line[at + 1..], b'"');
            continue;
        }
        let length = line[at..].iter().position(|b| !is_word(*b)).unwrap_or(line.len() - at);
        let word = &line[at..at + length];
        match word {
            b"__has_include" | b"__has_include_next" => {
                let rest = trim(&line[at + length..]);
                let name = rest.strip_prefix(b"(").and_then(|rest| literal(trim(rest)));
                let before = line[..at].trim_ascii_end();
                let before = before.strip_suffix(b"(").unwrap_or(before).trim_ascii_end();
                match name {
                    Some((bytes, quoted)) => {
                        found.names.push(Name { bytes, quoted, next: word != HAS_INCLUDE });
                    }
                    None => found.computes |= !(asks_whether || before.ends_with(b"defined")),
                }
            }
            // Two pieces may become the word.
            [b'_', ..] if HAS_INCLUDE.starts_with(word) => found.computes = true,
            b"include" | b"has_include" | b"_has_include" if pastes => found.computes = true,
            _ => {}
        }
        at += length.max(1);
    }
}

/// A name in quotes or angle brackets.
fn literal(text: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (close, quoted) = match text.first()? {
        b'"' => (b'"', true),
        b'<' => (b'>', false),
        _ => return None,
    };
    let end = text[1..].iter().position(|b| *b == close)?;
    Some((text[1..=end].to_vec(), quoted))
}

pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    find(text, what).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let names = asked(text.as_bytes()).names.into_iter();
        names.map(|name| String::from_utf8(name.bytes).unwrap()).collect()
    }

    #[test]
    fn a_name_is_found_however_it_is_written() {
        for text in [
            "#include \"e.h\"",
            " \t#\u{b} include<e.h>",
            "%:include \"e.h\"",
            "??=include \"e.h\"",
            "#incl\\\nude \\\r\n \"e\\\n.h\" // why",
            "#/* a\n */include/* b */\"e.h\"",
            "/* a */ # /* b\n\n */ include <e.h>",
            "#if 0\n#include \"e.h\"\n#endif",
            "#if A\n#elif __has_include(<e.h>)",
            "#if defined(__has_include) && __has_include /* ? */ ( \"e.h\" )",
            "#include_next <e.h>",
            "auto t = R\"(\n/* no comment\n)\";\n#include \"e.h\"\n",
            "auto t = u8R\"x(\n)\" /* \n)x\";\n#include \"e.h\"\n",
            "#define R 1\nauto t = R\"(\";\n#include \"e.h\"\n",
            "int n = 1'000; int m = 2'0; /* ' */\n#include \"e.h\"\n",
            "#error don't\n#include \"e.h\"\n",
            "const char* s = \"/*\\\"\";\n#include \"e.h\"\n",
            "char c = '\"';\n#include \"e.h\"\n",
        ] {
            let found = asked(text.as_bytes());
            assert_eq!(names(text), ["e.h"], "{text}");
            assert!(!found.computes, "{text}");
        }
        assert_eq!(names("#include <a//b.h>\n#include \"c//d.h\""), ["a//b.h", "c//d.h"]);
        let latin = asked(b"// 8 \xb0\n#include \"e.h\"");
        assert_eq!(latin.names[0].bytes, b"e.h");
    }

    #[test]
    fn what_is_no_directive_asks_for_nothing() {
        for text in [
            "// #include \"e.h\"",
            "/* #include \"e.h\"\n#include \"e.h\" */ int x;",
            "// a comment that goes on \\\n#include \"e.h\"",
            "const char* s = \"__has_include\";",
            "#ifdef __has_include\n#endif",
            "int include(int x);",
        ] {
            assert_eq!(asked(text.as_bytes()), Asked::default(), "{text}");
        }
    }

    #[test]
    fn a_name_that_comes_of_macros_is_said_to_be_computed() {
        for text in [
            "#include IMPL",
            "#include STR(impl.h)",
            "#if __has_include(IMPL)",
            "#define HAS __has_include\n#if HAS(\"e.h\")",
            "#define HAS(x) __has_include(x)",
            "#if PASTE(__has_, include)(\"e.h\")",
            "#define HAS __has_ ## include",
        ] {
            assert!(asked(text.as_bytes()).computes, "{text}");
        }
    }
}
