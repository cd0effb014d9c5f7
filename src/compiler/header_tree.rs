//! Headers of a request that are files of a tree, as they were where the source lies.
//!
//! What a quoted include finds depends on the folder of the including file, what an angled
//! one finds on the order of the folders, and `__has_include` and `#pragma once` on which
//! files there are. So the compiler is given files, not names: a worker lays them out below
//! a folder of its own, and NVRTC finds there what it would have found there.
//!
//! Invariant: every path in a tree is relative and stays below its root, so that it names
//! nothing of the node; and all of a tree is in the key.
//!
//! A request says so by options that only Kiln has (a node of an earlier version refuses
//! them, rather than compile to other code): `--source-folder` is where the source lies,
//! each `--include-path` a folder to search, in this order, `--same-file=A//B` two names of
//! one file (which `#pragma once` counts once). A header whose name ends in `/` is a folder.

use std::collections::BTreeSet;

use kiln_proto::KeyField;
use serde::{Deserialize, Serialize};

/// How the headers of one request lie.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderTree {
    /// Where the source lies: quoted includes of the source begin here.
    pub source: String,
    /// Folders to search, in this order.
    pub include: Vec<String>,
    /// A file, and another name of it.
    pub same: Vec<(String, String)>,
}

/// Longest path of a tree; no part of it is then longer than a file's name may be.
const MAX_PATH: usize = 255;
/// Most folders of a tree: a worker makes each of them.
const MAX_FOLDERS: usize = 16_384;
const SOURCE: &str = "--source-folder=";
const INCLUDE: &str = "--include-path=";
const SAME: &str = "--same-file=";

/// The tree, if there is one, and the other options.
type Split<'a> = (Option<HeaderTree>, Vec<&'a str>);

/// Takes the options of a tree from `given`. The error is the option that is not one of a
/// tree, and why.
pub(super) fn split(given: &[String]) -> Result<Split<'_>, (&str, &'static str)> {
    const OUTSIDE: &str = "it is no path below the folder of the request's headers";
    let Some(source) = given.iter().find_map(|option| option.strip_prefix(SOURCE)) else {
        return Ok((None, given.iter().map(String::as_str).collect()));
    };
    let mut tree = HeaderTree { source: source.to_owned(), ..HeaderTree::default() };
    let mut others = Vec::new();
    for option in given {
        let option = option.as_str();
        if let Some(folder) = option.strip_prefix(SOURCE) {
            if folder != source || !is_below(folder) {
                return Err((option, OUTSIDE));
            }
        } else if let Some(folder) = option.strip_prefix(INCLUDE) {
            if !is_below(folder) {
                return Err((option, OUTSIDE));
            }
            tree.include.push(folder.to_owned());
        } else if let Some(names) = option.strip_prefix(SAME) {
            match names.split_once("//") {
                Some((file, other)) if is_below(file) && is_below(other) => {
                    tree.same.push((file.to_owned(), other.to_owned()));
                }
                _ => return Err((option, OUTSIDE)),
            }
        } else {
            others.push(option);
        }
    }
    tree.same.sort();
    Ok((Some(tree), others))
}

/// Whether a header's name is a path that stays below the root; a folder's ends in `/`.
pub(super) fn is_path(name: &str) -> bool {
    is_below(name.strip_suffix('/').unwrap_or(name))
}

fn is_below(path: &str) -> bool {
    path.len() <= MAX_PATH
        && !path.contains(['\0', '\n', '\r'])
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The folders above `path`.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

impl HeaderTree {
    /// Why `names`, the headers that are sent, cannot be laid out as this tree; `None`: they can.
    pub(super) fn conflict<'a>(&'a self, names: impl Iterator<Item = &'a str>) -> Option<String> {
        let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::new());
        let paths = names.filter(|name| !name.starts_with('/'));
        for path in paths.chain(self.same.iter().map(|(_, other)| other.as_str())) {
            if let Some(folder) = path.strip_suffix('/') {
                folders.insert(folder);
            } else if !files.insert(path) {
                return Some(format!("{path:?} is there twice"));
            }
            folders.extend(above(path));
        }
        for folder in self.include.iter().chain([&self.source]) {
            folders.insert(folder);
            folders.extend(above(folder));
        }
        if let Some(both) = files.iter().find(|file| folders.contains(*file)) {
            return Some(format!("{both:?} is a file and a folder"));
        }
        let most = format!("{} folders, at most {MAX_FOLDERS}", folders.len());
        (folders.len() > MAX_FOLDERS).then_some(most)
    }

    /// As options of a request.
    pub fn options(&self) -> Vec<String> {
        let include = self.include.iter().map(|folder| format!("{INCLUDE}{folder}"));
        let same = self.same.iter().map(|(file, other)| format!("{SAME}{file}//{other}"));
        std::iter::once(format!("{SOURCE}{}", self.source)).chain(include).chain(same).collect()
    }

    /// Its fields of the key: the order of the folders decides what is found.
    pub(super) fn fields(&self) -> Vec<KeyField> {
        let include = self.include.iter().enumerate();
        let include = include
            .map(|(i, folder)| KeyField::new(format!("--include-path.{i}"), folder.as_str()));
        let same = self.same.iter().enumerate();
        let same = same.map(|(i, (file, other))| {
            KeyField::new(format!("--same-file.{i}"), format!("{file}//{other}"))
        });
        let source = KeyField::new("--source-folder", self.source.as_str());
        std::iter::once(source).chain(include).chain(same).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_laid_out_is_a_tree() {
        let tree = |same: &[(&str, &str)]| HeaderTree {
            source: "src".into(),
            include: vec!["inc/deep".into()],
            same: same.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect(),
        };
        let conflict = |tree: HeaderTree, names: &[&str]| tree.conflict(names.iter().copied());
        assert_eq!(conflict(tree(&[("inc/a", "inc/b")]), &["inc/a", "src/a/", "/abs/a"]), None);
        for names in [&["a", "a/b"][..], &["a", "a/"], &["src"], &["inc"], &["inc/deep"]] {
            assert!(conflict(tree(&[]), names).is_some(), "{names:?}");
        }
        assert!(conflict(tree(&[("a", "x"), ("b", "x")]), &["a", "b"]).is_some());
        assert!(conflict(tree(&[("a", "a/x")]), &["a"]).is_some());
        let many: Vec<String> = (0..200).map(|n| format!("{n}/{}h", "a/".repeat(100))).collect();
        let names: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(conflict(tree(&[]), &names).is_some(), "a folder for each part of a path");
        assert_eq!(conflict(tree(&[]), &names[..100]), None);
        assert!(!is_path(&"a".repeat(256)) && is_path(&"a".repeat(255)));
    }
}
