//! The headers that a CUDA source needs from this machine.
//!
//! Invariant: each header is known by the name that the source includes, never
//! by its path, and one name stands for one text.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::CliError;

const MOST_HEADERS: usize = 4096;
const MOST_BYTES: usize = 64 << 20;

/// Headers that `text`, read from `file`, includes: `"quoted"` ones from beside
/// the including file or from `folders`, `<angled>` ones from `folders`, and in
/// turn what those include. A header found nowhere is left to the compiler, which
/// has its own, or names it in its log.
pub(crate) fn collect(
    file: &Path,
    text: &str,
    folders: &[PathBuf],
) -> Result<BTreeMap<String, Vec<u8>>, CliError> {
    let mut found: BTreeMap<String, (PathBuf, Vec<u8>)> = BTreeMap::new();
    let mut bytes = 0;
    let mut to_read = vec![(file.to_path_buf(), text.to_owned())];
    while let Some((includer, text)) = to_read.pop() {
        let beside = includer.parent().unwrap_or(Path::new("")).to_path_buf();
        for include in scan(&text) {
            let places = include.quoted.then_some(&beside).into_iter().chain(folders);
            let Some(path) = places.map(|d| d.join(&include.name)).find(|path| path.is_file())
            else {
                continue;
            };
            let header = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            if let Some((other, known)) = found.get(&include.name) {
                if *known != header {
                    return Err(CliError::Usage(format!(
                        "{:?} is included from {} and from {}, and they differ: rename one, or \
                         include them by longer paths",
                        include.name,
                        other.display(),
                        path.display()
                    )));
                }
                continue;
            }
            bytes += header.len();
            if bytes > MOST_BYTES || found.len() == MOST_HEADERS {
                return Err(CliError::Usage(format!(
                    "{} includes more than {MOST_HEADERS} headers or {} MiB of them",
                    file.display(),
                    MOST_BYTES >> 20
                )));
            }
            to_read.push((path.clone(), String::from_utf8_lossy(&header).into_owned()));
            found.insert(include.name, (path, header));
        }
    }
    Ok(found.into_iter().map(|(name, (_, bytes))| (name, bytes)).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct Include {
    name: String,
    quoted: bool,
}

/// `#include` directives outside comments. Conditionals are not evaluated: a
/// header too many does no harm.
fn scan(text: &str) -> Vec<Include> {
    let mut found = Vec::new();
    let mut in_comment = false;
    for line in text.lines() {
        let code = without_comments(line, &mut in_comment);
        let Some(directive) = code.trim_start().strip_prefix('#') else { continue };
        let Some(rest) = directive.trim_start().strip_prefix("include") else { continue };
        let rest = rest.trim_start();
        let (quoted, end) = match rest.as_bytes().first() {
            Some(b'"') => (true, '"'),
            Some(b'<') => (false, '>'),
            _ => continue,
        };
        if let Some((name, _)) = rest[1..].split_once(end) {
            found.push(Include { name: name.to_owned(), quoted });
        }
    }
    found
}

/// `line` with its comments cut out; a string may hold what looks like one.
fn without_comments(line: &str, in_comment: &mut bool) -> String {
    let mut code = String::new();
    let mut rest = line;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if *in_comment {
            let Some((_, after)) = rest.split_once("*/") else { return code };
            *in_comment = false;
            rest = after;
            continue;
        }
        if !in_string && rest.starts_with("//") {
            break;
        }
        if !in_string && rest.starts_with("/*") {
            *in_comment = true;
            rest = &rest[2..];
            continue;
        }
        in_string ^= c == '"';
        code.push(c);
        rest = &rest[c.len_utf8()..];
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn names(dir: &tempfile::TempDir, text: &str, folders: &[&str]) -> Vec<String> {
        let folders: Vec<_> = folders.iter().map(|f| dir.path().join(f)).collect();
        collect(&dir.path().join("k.cu"), text, &folders).unwrap().into_keys().collect()
    }

    #[test]
    fn headers_come_from_beside_the_file_and_from_the_folders() {
        let dir = tree(&[("a.h", ""), ("inc/b.h", ""), ("inc/c.h", ""), ("d.h", "")]);
        let text = "#include \"a.h\"\n # include <b.h>\n#include \"c.h\"\n#include <d.h>\n\
                    #include <cuda_fp16.h>\n#include MACRO\n";
        assert_eq!(names(&dir, text, &["inc"]), ["a.h", "b.h", "c.h"]);
        assert_eq!(names(&dir, text, &[]), ["a.h"], "an angled header is not beside the file");
    }

    #[test]
    fn headers_of_headers_and_circles_end() {
        let dir = tree(&[
            ("inc/top.h", "#include \"sub/low.h\""),
            ("inc/sub/low.h", "#include \"beside.h\"\n#include <top.h>"),
            ("inc/sub/beside.h", ""),
        ]);
        assert_eq!(names(&dir, "#include <top.h>", &["inc"]), ["beside.h", "sub/low.h", "top.h"]);
    }

    #[test]
    fn one_name_stands_for_one_text() {
        let dir = tree(&[("a.h", "1"), ("sub/x.h", "#include \"a.h\""), ("sub/a.h", "2")]);
        let text = "#include \"a.h\"\n#include \"sub/x.h\"\n";
        let refused = collect(&dir.path().join("k.cu"), text, &[]).unwrap_err();
        assert!(refused.to_string().contains("they differ"), "{refused}");
        fs::write(dir.path().join("sub/a.h"), "1").unwrap();
        assert_eq!(names(&dir, text, &[]), ["a.h", "sub/x.h"]);
    }

    #[test]
    fn comments_include_nothing() {
        let text = "// #include \"a\"\n/* #include \"b\"\n#include \"c\"\n*/ #include \"d\"\n\
                    const char* s = \"/*\";\n#include \"e\" // and why\n";
        let found: Vec<_> = scan(text).into_iter().map(|i| i.name).collect();
        assert_eq!(found, ["d", "e"]);
    }
}
