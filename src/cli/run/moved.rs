//! Why a restored folder was of no use: what moved in it.
//!
//! A tool that keeps what depends on its settings below a folder named by their digest
//! does not look at another's. Some say beside it what the digest was of, as JSON: vLLM's
//! `cache_key_factors.json`.
//!
//! Invariant: names files and fields, and never what they hold; bounded whatever is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;

/// Of a file that says what a digest was of.
const LARGEST: u64 = 1 << 20;
/// Fields that are named.
const NAMED: usize = 5;

/// What tells `new` files of `folder` from the `unused` ones, if it can be seen.
pub(crate) fn moved(folder: &Path, unused: &[String], new: &[String]) -> Option<String> {
    let (prefix, old_name, new_name) = parted(unused, new)?;
    let (was, is) = (format!("{prefix}{old_name}"), format!("{prefix}{new_name}"));
    let names: BTreeSet<&str> =
        new.iter().filter_map(|path| path.strip_prefix(&format!("{is}/"))).collect();
    let tails = unused.iter().filter_map(|path| path.strip_prefix(&format!("{was}/")));
    let fields: BTreeSet<String> = tails
        .filter(|tail| tail.ends_with(".json") && names.contains(tail))
        .flat_map(|tail| {
            let fields = |name: &str| leaves(&folder.join(name).join(tail));
            differing(&fields(&was), &fields(&is))
        })
        .collect();
    let mut text = format!("{was} is {is} now");
    if !fields.is_empty() {
        let more = if fields.len() > NAMED { " and more" } else { "" };
        let shown: Vec<_> = fields.into_iter().take(NAMED).collect();
        text += &format!("; it differs in {}{more}", shown.join(", "));
    }
    Some(text)
}

/// Where both stop having names in common: the path until there, and a name of each.
fn parted<'a>(unused: &'a [String], new: &'a [String]) -> Option<(String, &'a str, &'a str)> {
    let mut prefix = String::new();
    loop {
        let names = |paths: &'a [String]| {
            let below = paths.iter().filter_map(|path| path.strip_prefix(&prefix));
            below.map(|path| path.split('/').next().unwrap_or(path)).collect::<BTreeSet<&str>>()
        };
        let (old_names, new_names) = (names(unused), names(new));
        let common = old_names.intersection(&new_names).next();
        match common {
            Some(name) => prefix.push_str(&format!("{name}/")),
            None => return Some((prefix, old_names.first()?, new_names.first()?)),
        }
    }
}

/// Values of a JSON file by their dotted names.
fn leaves(path: &Path) -> BTreeMap<String, String> {
    fn walk(name: String, value: &Value, depth: usize, found: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) if depth < 8 => {
                for (field, value) in fields {
                    let dot = if name.is_empty() { "" } else { "." };
                    walk(format!("{name}{dot}{field}"), value, depth + 1, found);
                }
            }
            value => drop(found.insert(name, value.to_string())),
        }
    }
    let mut found = BTreeMap::new();
    let small = fs::symlink_metadata(path).is_ok_and(|d| d.is_file() && d.len() <= LARGEST);
    let bytes = small.then(|| fs::read(path).ok()).flatten().unwrap_or_default();
    if let Ok(value @ Value::Object(_)) = serde_json::from_slice(&bytes) {
        walk(String::new(), &value, 0, &mut found);
    }
    found
}

fn differing(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn the_folder_that_moved_and_the_fields_that_it_is_of_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, factors) in [
            ("aaa", r#"{"env":{"A":"1","B":"2"},"code_hash":"x"}"#),
            ("bbb", r#"{"env":{"A":"1","B":"secret"},"code_hash":"x","more":[1]}"#),
        ] {
            let folder = dir.path().join("cache").join(name).join("rank_0");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("factors.json"), factors).unwrap();
        }
        let unused = paths(&["cache/aaa/rank_0/factors.json", "cache/aaa/rank_0/graph"]);
        let new = paths(&["cache/bbb/rank_0/factors.json", "cache/bbb/rank_0/graph"]);
        let text = moved(dir.path(), &unused, &new).unwrap();
        assert_eq!(text, "cache/aaa is cache/bbb now; it differs in env.B, more");
    }

    #[test]
    fn where_nothing_new_came_or_all_is_the_same_nothing_moved() {
        let folder = Path::new("/nonexistent");
        assert_eq!(moved(folder, &paths(&["a/b"]), &[]), None);
        assert_eq!(moved(folder, &paths(&["a/b"]), &paths(&["a/b"])), None);
        assert_eq!(moved(folder, &paths(&["k1"]), &paths(&["k2"])).unwrap(), "k1 is k2 now");
    }
}
