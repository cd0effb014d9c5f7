//! The headers that a CUDA source needs from this machine.
//!
//! They are sent as files that lie to each other as they lie here, so that NVRTC finds on the
//! node what it would find here, and finds nothing that is not here.
//!
//! Invariant: each file that NVRTC would open here is sent; no path of this machine is, but
//! how the folders that are needed lie to each other.

mod lex;
mod places;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

pub(crate) use self::places::Sent;
use self::{
    lex::Name,
    places::{Found, real},
};
use super::CliError;

const MOST_HEADERS: usize = 4096;
const MOST_BYTES: usize = 64 << 20;
/// Most files and folders that are looked at where a name is computed.
const MOST_LOOKED_AT: usize = 200_000;

/// Headers that CUDA's own include: where a source includes one of those, a folder of the
/// caller's that has such a name is searched before the node's.
const OF_CUDA: [&str; 21] = [
    "nv",
    "cuda",
    "cub",
    "thrust",
    "crt",
    "cooperative_groups",
    "curand",
    "vector_",
    "device_",
    "sm_",
    "mma",
    "math_",
    "builtin_types",
    "host_",
    "driver_",
    "surface_",
    "texture_",
    "library_",
    "channel_descriptor",
    "common_functions",
    "fatbinary",
];

/// What a source is compiled with.
pub(crate) struct Given<'a> {
    /// Folders to search (`-I`), in this order.
    pub(crate) folders: &'a [PathBuf],
    /// Definitions of macros (`-D`): `NAME=VALUE`.
    pub(crate) defines: &'a [String],
    /// Files to include before the source.
    pub(crate) pre_includes: &'a [String],
    /// Whether quoted includes of the source are looked for beside it.
    pub(crate) beside: bool,
}

/// All that `text`, read from `file`, may include: `"quoted"` headers from beside the
/// including file or from the folders, `<angled>` ones from the folders, and in turn what those
/// include. A header found nowhere is left to the compiler, which has its own.
pub(crate) fn collect(file: &Path, text: &[u8], given: &Given<'_>) -> Result<Sent, CliError> {
    let beside = file.parent().unwrap_or(Path::new(""));
    let mut search = Search {
        source: real(beside).with_context(|| beside.display().to_string())?,
        beside: given.beside,
        folders: Vec::new(),
        found: Found::default(),
        texts: Vec::new(),
        computes: false,
        bytes: 0,
    };
    for folder in given.folders {
        search.folders.push(real(folder).with_context(|| folder.display().to_string())?);
    }
    let define = |d: &String| format!("#define {}\n", d.replacen('=', " ", 1));
    let defined: String = given.defines.iter().map(define).collect();
    let mut unread = vec![(None, defined.into_bytes()), (None, text.to_vec())];
    for name in given.pre_includes {
        let name = Name { bytes: name.clone().into_bytes(), quoted: true, next: false };
        unread.extend(search.look_for(None, &name)?);
    }
    loop {
        search.read(unread)?;
        // What is found may hold more words.
        unread = if search.computes { search.computed()? } else { Vec::new() };
        if unread.is_empty() {
            unread = search.before_cudas()?;
        }
        if unread.is_empty() {
            return search.found.sent(&search.source, &search.folders);
        }
    }
}

/// A text, and the file that it is of: `None` is the source.
type Text = (Option<PathBuf>, Vec<u8>);

struct Search {
    source: PathBuf,
    beside: bool,
    folders: Vec<PathBuf>,
    found: Found,
    /// All texts so far.
    texts: Vec<Text>,
    computes: bool,
    bytes: usize,
}

impl Search {
    fn read(&mut self, mut unread: Vec<Text>) -> Result<(), CliError> {
        while let Some((includer, text)) = unread.pop() {
            let asked = lex::asked(&text);
            self.computes |= asked.computes;
            for name in &asked.names {
                unread.extend(self.look_for(includer.as_deref(), name)?);
            }
            self.texts.push((includer, text));
        }
        Ok(())
    }

    /// Where a quoted include of `includer` begins.
    fn beside(&self, includer: Option<&Path>) -> Option<PathBuf> {
        match includer {
            Some(includer) => includer.parent().map(Path::to_path_buf),
            None => self.beside.then(|| self.source.clone()),
        }
    }

    /// The texts that `name` may stand for and that are new.
    fn look_for(&mut self, includer: Option<&Path>, name: &Name) -> Result<Vec<Text>, CliError> {
        let written = Path::new(OsStr::from_bytes(&name.bytes));
        if written.is_absolute() {
            let found = self.take(Path::new("/"), written)?;
            if found.is_some() {
                self.found.by_absolute_path(written);
            }
            return Ok(found.into_iter().collect());
        }
        let beside = self.beside(includer).filter(|_| name.quoted || name.next);
        let mut new = Vec::new();
        for folder in beside.into_iter().chain(self.folders.clone()) {
            if !folder.join(written).is_file() {
                continue;
            }
            new.extend(self.take(&folder, written)?);
            if !name.next {
                return Ok(new);
            }
        }
        self.found.of_cuda |= !name.next;
        Ok(new)
    }

    /// A file that is there; its text where it is new.
    fn take(&mut self, folder: &Path, written: &Path) -> Result<Option<Text>, CliError> {
        let spelled = folder.join(written);
        if !spelled.is_file() {
            return Ok(None);
        }
        let Some(path) = self.found.add(folder, written)? else { return Ok(None) };
        let text = fs::read(&spelled).with_context(|| format!("read {}", spelled.display()))?;
        self.bytes += text.len();
        if self.bytes > MOST_BYTES || self.found.files.len() > MOST_HEADERS {
            return Err(CliError::Usage(format!(
                "the source may include more than {MOST_HEADERS} headers or {} MiB of them; name \
                 fewer or narrower folders with -I{}",
                MOST_BYTES >> 20,
                if self.computes { ", or spell out what it includes by macros" } else { "" }
            )));
        }
        self.found.texts.insert(path.clone(), text.clone());
        Ok(Some((Some(path), text)))
    }

    /// New files whose names macros can make of the words that there are.
    fn computed(&mut self) -> Result<Vec<Text>, CliError> {
        let words: BTreeSet<Vec<u8>> =
            self.texts.iter().flat_map(|(_, text)| lex::words(text)).collect();
        let mut new = Vec::new();
        let spelled: BTreeSet<Vec<u8>> =
            self.texts.iter().flat_map(|(_, text)| lex::paths(text)).collect();
        let includers: BTreeSet<Option<PathBuf>> =
            self.texts.iter().filter_map(|(of, _)| self.beside(of.as_deref())).map(Some).collect();
        let folders: BTreeSet<PathBuf> =
            includers.into_iter().flatten().chain(self.folders.clone()).collect();
        for written in &spelled {
            let written = Path::new(OsStr::from_bytes(written));
            for folder in folders.iter().filter(|_| written.is_relative()) {
                new.extend(self.take(folder, written)?);
            }
            if written.is_absolute() && written.is_file() {
                new.extend(self.take(Path::new("/"), written)?);
                self.found.by_absolute_path(written);
            }
        }
        for folder in &folders {
            let fits = |path: &Path| covered(path.as_os_str().as_bytes(), &words);
            for path in files_below(folder, &fits)? {
                new.extend(self.take(folder, &path)?);
            }
        }
        Ok(new)
    }

    /// New files that hide some of CUDA's headers from CUDA's headers.
    fn before_cudas(&mut self) -> Result<Vec<Text>, CliError> {
        if !std::mem::take(&mut self.found.of_cuda) {
            return Ok(Vec::new());
        }
        let mut new = Vec::new();
        for folder in self.folders.clone() {
            let fits = |path: &Path| {
                let first = path.components().next().map(|c| c.as_os_str().to_string_lossy());
                first.is_some_and(|first| OF_CUDA.iter().any(|name| first.starts_with(name)))
            };
            for path in files_below(&folder, &fits)? {
                new.extend(self.take(&folder, &path)?);
            }
        }
        Ok(new)
    }
}

/// Whether each word of `path` is put together from `words` and digits.
fn covered(path: &[u8], words: &BTreeSet<Vec<u8>>) -> bool {
    path.split(|b| !lex::is_word(*b)).all(|run| {
        let mut reached = vec![false; run.len() + 1];
        reached[0] = true;
        for from in 0..run.len() {
            for to in from + 1..=run.len() {
                let piece = &run[from..to];
                let known = words.contains(piece) || piece.iter().all(u8::is_ascii_digit);
                reached[to] |= reached[from] && known;
            }
        }
        reached[run.len()]
    })
}

/// Files below `folder` whose paths, and whose folders' paths, fit; relative to it.
fn files_below(folder: &Path, fits: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>, CliError> {
    let (mut files, mut looked_at) = (Vec::new(), 0);
    let mut folders = vec![PathBuf::new()];
    // By what they are, so that links in a circle end.
    let mut seen = BTreeMap::new();
    while let Some(below) = folders.pop() {
        let place = folder.join(&below);
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            // What cannot be looked into NVRTC does not find either, nor is a -I that is not there.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::NotADirectory
                ) =>
            {
                continue;
            }
            Err(e) => {
                return Err(anyhow::Error::new(e)
                    .context(format!("read {}", place.display()))
                    .into());
            }
        };
        for entry in entries.flatten() {
            looked_at += 1;
            if looked_at > MOST_LOOKED_AT {
                return Err(CliError::Usage(format!(
                    "the source includes what macros name, and {} holds more than \
                     {MOST_LOOKED_AT} files that it may mean: spell the name out, or move the \
                     source and its headers to a folder of their own",
                    folder.display()
                )));
            }
            let path = below.join(entry.file_name());
            if !fits(&path) {
                continue;
            }
            let Ok(about) = fs::metadata(folder.join(&path)) else { continue };
            if about.is_file() {
                files.push(path);
            } else if about.is_dir() {
                let times = seen.entry(places::identity(&about)).or_insert(0);
                *times += 1;
                if *times <= 2 {
                    folders.push(path);
                }
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
