//! `build.ninja`: which outputs a build makes from which inputs.
//!
//! Invariant: pure but for the files that it includes, of which the depth is bounded.

use std::collections::HashMap;

/// Files within files.
const DEEPEST: usize = 16;

type Edges = Vec<(Vec<String>, Vec<String>)>;
type Variables = HashMap<String, String>;

/// Outputs and inputs of each statement. `include` reads another file by its name.
pub(super) fn edges(bytes: &[u8], include: &dyn Fn(&str) -> Option<Vec<u8>>) -> Edges {
    let mut found = Edges::new();
    read(bytes, include, &mut Variables::new(), 0, &mut found);
    found
}

fn read(
    bytes: &[u8],
    include: &dyn Fn(&str) -> Option<Vec<u8>>,
    variables: &mut Variables,
    depth: usize,
    found: &mut Edges,
) {
    let text = String::from_utf8_lossy(bytes);
    let lines = joined(&text);
    let mut lines = lines.iter().map(String::as_str).peekable();
    while let Some(line) = lines.next() {
        let mut block = Vec::new();
        while let Some(indented) = lines.next_if(|line| line.starts_with(' ')) {
            block.push(indented.trim_start());
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "build" => {
                let mut own = variables.clone();
                for (name, value) in block.iter().filter_map(|line| assignment(line)) {
                    let value = expanded(value, variables);
                    own.insert(name.to_owned(), value);
                }
                found.extend(edge(rest, &own));
            }
            "include" | "subninja" if depth < DEEPEST => {
                let name = expanded(rest.trim(), variables);
                let Some(bytes) = include(&name) else { continue };
                // A subninja's variables are its own.
                let mut own = variables.clone();
                let scope = if word == "include" { &mut *variables } else { &mut own };
                read(&bytes, include, scope, depth + 1, found);
            }
            "rule" | "pool" | "default" => {}
            _ => {
                if let Some((name, value)) = assignment(line) {
                    let value = expanded(value, variables);
                    variables.insert(name.to_owned(), value);
                }
            }
        }
    }
}

/// Lines, with those joined that end in `$`, and without comments.
fn joined(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        let line = if goes_on { line.trim_start() } else { line };
        if !goes_on && line.trim_start().starts_with('#') {
            continue;
        }
        let dollars = line.bytes().rev().take_while(|byte| *byte == b'$').count();
        let next = dollars % 2 == 1;
        let line = if next { &line[..line.len() - 1] } else { line };
        match lines.last_mut() {
            Some(last) if goes_on => last.push_str(line),
            _ => lines.push(line.to_owned()),
        }
        goes_on = next;
    }
    lines
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    Some((name.trim(), value.trim_start()))
}

/// `outputs | more: rule inputs | more || order-only |@ validations`.
fn edge(text: &str, variables: &Variables) -> Option<(Vec<String>, Vec<String>)> {
    let (mut outputs, mut inputs) = (Vec::new(), Vec::new());
    let mut left = text;
    let mut rule = None;
    let mut after_colon = false;
    loop {
        left = left.trim_start_matches(' ');
        if left.is_empty() {
            break;
        }
        if let Some(rest) = left.strip_prefix(':') {
            (after_colon, left) = (true, rest);
        } else if left.starts_with("|@") {
            // Made beside it, not from them.
            break;
        } else if let Some(rest) = left.strip_prefix('|') {
            left = rest;
        } else {
            let end = word_end(left);
            let word = expanded(&left[..end], variables);
            left = &left[end..];
            match (after_colon, &rule) {
                (false, _) => outputs.push(word),
                (true, None) => rule = Some(word),
                (true, Some(_)) => inputs.push(word),
            }
        }
    }
    rule.map(|_| (outputs, inputs))
}

fn word_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '$' => escaped = true,
            ' ' | ':' | '|' => return at,
            _ => {}
        }
    }
    text.len()
}

/// `text` with its variables and escapes replaced.
fn expanded(text: &str, variables: &Variables) -> String {
    let mut out = String::new();
    let mut left = text;
    while let Some((before, rest)) = left.split_once('$') {
        out.push_str(before);
        let (name, after) = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some(braced) => braced,
            None => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                rest.split_at(rest.find(|c| !plain(c)).unwrap_or(rest.len()))
            }
        };
        left = match name {
            // `$ `, `$:` and `$$` stand for what follows.
            "" => {
                let mut chars = rest.chars();
                out.extend(chars.next());
                chars.as_str()
            }
            name => {
                out.push_str(variables.get(name).map(String::as_str).unwrap_or_default());
                after
            }
        };
    }
    out.push_str(left);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_read_as_ninja_reads_them() {
        let text = b"# build no: x y\nroot = /src\nrule cc\n  command = cc $in: -o $out\n\
            build ${dir}a.o | a.map: cc $root/a$ b.cu $\n    c$:d.cu | gen.h || dirs |@ check\n  dir = out/\n\
            include more.ninja\nbuild all: phony out/a.o\ndefault all\nbuild cut";
        let more = |name: &str| (name == "more.ninja").then(|| b"build x: cc $root/x\n".to_vec());
        let edges = edges(text, &more);
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            edges,
            [
                (words(&["out/a.o", "a.map"]), words(&["/src/a b.cu", "c:d.cu", "gen.h", "dirs"])),
                (words(&["x"]), words(&["/src/x"])),
                (words(&["all"]), words(&["out/a.o"])),
            ]
        );
    }

    #[test]
    fn a_file_that_includes_itself_ends() {
        let own = |_: &str| Some(b"include me\nbuild a: cc b\n".to_vec());
        assert_eq!(edges(b"include me\n", &own).len(), DEEPEST);
        edges(b"$\n${\nbuild $", &|_| None);
    }
}
