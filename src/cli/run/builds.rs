//! What the build files in a folder say: which of its files were made from which.
//!
//! Invariant: reading them runs nothing and ends, whatever they hold: what cannot be
//! read says nothing, and a file that nothing is said about is nobody's output.

mod depfile;
pub(crate) mod deps;
pub(crate) mod log;
mod ninja;
mod stamp;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use self::{deps::Deps, log::Log};

/// ninja's own: which command made which output, and when.
pub(crate) const LOG: &str = ".ninja_log";
/// ninja's own: which inputs the compiler named.
pub(crate) const DEPS: &str = ".ninja_deps";
/// Of one build file. Larger ones are no build files.
const LARGEST: u64 = 64 << 20;

/// Inputs by output. A file of the folder goes by its path from there, another one by
/// its path from the root, or from the folder with `..` where the build has it so.
pub(crate) type Rules = BTreeMap<String, BTreeSet<String>>;

/// The name of the file at `path`.
fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The folder of the file at `path`: empty, or with a `/` at its end.
pub(crate) fn folder_of(path: &str) -> &str {
    &path[..path.len() - name(path).len()]
}

/// Whether `path` is one of ninja's own files, which promise that outputs are current.
pub(crate) fn is_record(path: &str) -> bool {
    matches!(name(path), LOG | DEPS)
}

/// Whether `path` says what others were made from.
pub(crate) fn is_build_file(path: &str) -> bool {
    let name = name(path);
    let makes = matches!(name, "Makefile" | "makefile" | "GNUmakefile");
    let ends = |end: &str| name.len() > end.len() && name.ends_with(end);
    is_record(path) || makes || ends(".ninja") || ends(".d") || ends(".mk")
}

/// What the build files `paths` of `folder` say.
pub(crate) fn rules(folder: &Path, paths: &[String]) -> Rules {
    let folders = Folders::new(folder);
    let logs: BTreeSet<&str> =
        paths.iter().filter(|path| name(path) == LOG).map(|path| folder_of(path)).collect();
    let mut rules = Rules::new();
    for path in paths {
        let Some(bytes) = read(&folder.join(path)) else { continue };
        let mut from = folder_of(path);
        let edges = match name(path) {
            LOG => Vec::new(),
            DEPS => Deps::decode(&bytes).map(|deps| deps.edges()).unwrap_or_default(),
            other if other.ends_with(".ninja") => {
                // It runs where it keeps its log: here, or in a folder further up.
                while !logs.contains(from) && !from.is_empty() {
                    from = folder_of(from.trim_end_matches('/'));
                }
                if !logs.contains(from) {
                    from = folder_of(path);
                }
                let include = |file: &str| read(&folder.join(from).join(file));
                ninja::edges(&bytes, &include)
            }
            _ => {
                let edges = depfile::edges(&bytes);
                // It names files as its compiler did: from here, or from further up.
                let first = edges.first().and_then(|edge| edge.0.first());
                let own = from;
                let found = |from: &str| {
                    first.is_some_and(|output| folder.join(from).join(output).exists())
                };
                while !found(from) && !from.is_empty() {
                    from = folder_of(from.trim_end_matches('/'));
                }
                from = if found(from) { from } else { own };
                edges
            }
        };
        // Without an input it is a file like any other: compilers write such rules for
        // headers, so that make does not miss one that is gone.
        for (outputs, inputs) in edges.into_iter().filter(|edge| !edge.1.is_empty()) {
            let inputs: Vec<_> = inputs.iter().map(|input| folders.place(from, input)).collect();
            for output in outputs {
                let made = rules.entry(folders.place(from, &output)).or_default();
                made.extend(inputs.iter().cloned());
            }
        }
    }
    rules
}

/// How a folder is written in its build files.
pub(crate) struct Folders {
    own: PathBuf,
    /// Without links on the way.
    real: PathBuf,
}

impl Folders {
    pub(crate) fn new(folder: &Path) -> Self {
        let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        Self { own: folder.to_owned(), real }
    }

    /// What `spelled`, as seen from the folder's own folder `from`, is called in [`Rules`].
    pub(crate) fn place(&self, from: &str, spelled: &str) -> String {
        let whole = plain(&self.own.join(from).join(spelled));
        for own in [&self.own, &self.real] {
            if let Ok(below) = whole.strip_prefix(own) {
                return below.to_string_lossy().into_owned();
            }
        }
        let shown = match spelled.starts_with('/') {
            true => whole,
            false => plain(&Path::new(from).join(spelled)),
        };
        shown.to_string_lossy().into_owned()
    }
}

/// `path` without `.` parts, and with `..` parts only at its start.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => match plain.components().next_back() {
                Some(Component::Normal(_)) => drop(plain.pop()),
                Some(Component::RootDir) => {}
                _ => plain.push(".."),
            },
            part => plain.push(part),
        }
    }
    plain
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let data = fs::symlink_metadata(path).ok()?;
    (data.is_file() && data.len() <= LARGEST).then(|| fs::read(path).ok()).flatten()
}

/// ninja's file `ours` with what `theirs` says of other outputs.
pub(crate) fn merged(path: &str, ours: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    match name(path) {
        LOG => {
            let mut log = Log::decode(ours)?;
            log.add(Log::decode(theirs)?);
            Some(log.encode())
        }
        DEPS => {
            let mut deps = Deps::decode(ours)?;
            deps.add(&Deps::decode(theirs)?);
            Some(deps.encode())
        }
        _ => None,
    }
}

/// The outputs that ninja's file at `path` knows, as [`Rules`] has them.
pub(crate) fn outputs(folders: &Folders, path: &str, bytes: &[u8]) -> BTreeSet<String> {
    let spelled = match name(path) {
        LOG => Log::decode(bytes).map(|log| log.outputs().collect()),
        _ => Deps::decode(bytes).map(|deps| deps.edges().into_iter().flat_map(|e| e.0).collect()),
    };
    let spelled: Vec<String> = spelled.unwrap_or_default();
    spelled.iter().map(|output| folders.place(folder_of(path), output)).collect()
}

/// ninja's file at `path` for outputs that are written anew at `modified`: all but those
/// that are `current` are unknown to it. `None`: it cannot be read.
pub(crate) fn renewed(
    folders: &Folders,
    path: &str,
    bytes: &[u8],
    current: &dyn Fn(&str) -> bool,
    modified: (i64, u32),
) -> Option<Vec<u8>> {
    let keep = |spelled: &str| current(&folders.place(folder_of(path), spelled));
    match name(path) {
        LOG => {
            let mut log = Log::decode(bytes)?;
            log.renew(keep, modified);
            Some(log.encode())
        }
        DEPS => {
            let mut deps = Deps::decode(bytes)?;
            deps.renew(keep, modified);
            Some(deps.encode())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_name_however_it_is_spelled() {
        let folders = Folders { own: "/a/cache".into(), real: "/real/cache".into() };
        for (from, spelled, place) in [
            ("", "/a/cache/k.o", "k.o"),
            ("", "/real/cache/x/../k.o", "k.o"),
            ("op/", "k.o", "op/k.o"),
            ("op/", "./../k.o", "k.o"),
            ("op/", "/usr/include/./a.h", "/usr/include/a.h"),
            ("op/", "../../pkg/a.h", "../pkg/a.h"),
            ("", "../cache/k.o", "k.o"),
        ] {
            assert_eq!(folders.place(from, spelled), place, "{from} {spelled}");
        }
    }

    #[test]
    fn rules_come_from_all_build_files_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(".ninja_log", "# ninja log v6\n");
        // Run from the folder with the log, as FlashInfer does.
        write("op/build.ninja", "build op/k.so: link op/k.o\nbuild op/k.o: cc /src/k.cu\n");
        write("op/k.o.d", "k.o: /src/k.h \\\n  gen.h\n");
        write("large.ninja", "build");
        let paths = [".ninja_log", "op/build.ninja", "op/k.o.d", "large.ninja", "gone.d"];
        let rules = rules(dir.path(), &paths.map(str::to_owned));
        let of = |output: &str| rules[output].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(of("op/k.so"), ["op/k.o"]);
        assert_eq!(of("op/k.o"), ["/src/k.cu", "/src/k.h", "op/gen.h"]);
        assert_eq!(rules.len(), 2);
    }
}
