//! Where files lie that are sent, so that they lie to each other as they do here.
//!
//! Invariant: a file's name on the wire is its path below one of a few bases, which are
//! numbered: how this machine calls the folders above a base is never sent. Two folders have
//! one base only where one lies in the other, or an include goes from one to the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use anyhow::Context;
use kiln::compiler::HeaderTree;

use crate::cli::CliError;

/// Where the source lies if nothing lies beside it.
const NOWHERE: &str = "source";

/// Device and number of a file or folder.
pub(super) type Identity = (u64, u64);

pub(super) fn identity(about: &fs::Metadata) -> Identity {
    (about.dev(), about.ino())
}

/// Files by their paths here, without `.` and `..`.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: BTreeMap<PathBuf, Identity>,
    pub(super) texts: BTreeMap<PathBuf, Vec<u8>>,
    /// A header was found nowhere: CUDA's own, as it seems.
    pub(super) of_cuda: bool,
    /// Folders that a name with `..` goes through.
    through: BTreeSet<PathBuf>,
    /// Folders in which something was found.
    used: BTreeSet<PathBuf>,
    /// From which folder a path goes out to which.
    climbs: Vec<(PathBuf, PathBuf)>,
    /// Files that are named by their absolute paths.
    absolute: BTreeSet<PathBuf>,
}

/// Headers as they are sent.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// By name.
    pub(crate) headers: BTreeMap<String, Vec<u8>>,
    /// How they lie; `None`: there are none.
    pub(crate) tree: Option<HeaderTree>,
}

impl Found {
    /// Notes that `written` was found in `folder`; its path where it is new.
    pub(super) fn add(
        &mut self,
        folder: &Path,
        written: &Path,
    ) -> Result<Option<PathBuf>, CliError> {
        let spelled = folder.join(written);
        let about = fs::metadata(&spelled).with_context(|| spelled.display().to_string())?;
        let path = normal(&spelled).with_context(|| spelled.display().to_string())?;
        if fs::metadata(&path).map(|about| identity(&about)).ok() != Some(identity(&about)) {
            return Err(CliError::Usage(format!(
                "{} leads through a link to another file than {}: name the link's folder with -I",
                spelled.display(),
                path.display()
            )));
        }
        if written.is_absolute() {
            self.used.insert(path.parent().unwrap_or(Path::new("/")).to_path_buf());
        } else {
            self.used.insert(folder.to_path_buf());
            self.walk(folder, written);
        }
        let known = self.files.insert(path.clone(), identity(&about));
        Ok(known.is_none().then_some(path))
    }

    pub(super) fn by_absolute_path(&mut self, path: &Path) {
        self.absolute.insert(path.to_path_buf());
    }

    /// The folders that a path goes through.
    fn walk(&mut self, folder: &Path, written: &Path) {
        let climbs = written.components().any(|part| part == Component::ParentDir);
        let mut at = folder.to_path_buf();
        for part in written.components().take(written.components().count().saturating_sub(1)) {
            match part {
                Component::ParentDir => {
                    at.pop();
                }
                Component::Normal(name) => at.push(name),
                _ => {}
            }
            if climbs {
                self.through.insert(at.clone());
                self.climbs.push((folder.to_path_buf(), at.clone()));
            }
        }
    }

    /// All of it under names that say nothing of this machine.
    pub(super) fn sent(self, source: &Path, folders: &[PathBuf]) -> Result<Sent, CliError> {
        if self.files.is_empty() {
            return Ok(Sent::default());
        }
        let bases = self.bases(source, folders);
        let name = |path: &Path| name_of(path, &bases);
        let mut sent = Sent::default();
        let source = match self.used.contains(source) {
            true => name(source)?,
            false => NOWHERE.into(),
        };
        let mut tree = HeaderTree { source, ..HeaderTree::default() };
        for folder in folders.iter().filter(|folder| self.used.contains(*folder)) {
            let folder = name(folder)?;
            if !tree.include.contains(&folder) {
                tree.include.push(folder);
            }
        }
        let mut first: BTreeMap<Identity, String> = BTreeMap::new();
        for (path, identity) in &self.files {
            let text = self.texts.get(path).cloned().unwrap_or_default();
            if self.absolute.contains(path) {
                sent.headers.insert(utf8(path)?, text.clone());
            }
            let is_in_a_base = bases.iter().any(|base| path.starts_with(base));
            if self.absolute.contains(path) && !is_in_a_base {
                continue;
            }
            let called = name(path)?;
            match first.get(identity) {
                Some(file) => tree.same.push((file.clone(), called)),
                None => {
                    first.insert(*identity, called.clone());
                    sent.headers.insert(called, text);
                }
            }
        }
        for folder in &self.through {
            let called = name(folder)?;
            sent.headers.insert(format!("{called}/"), Vec::new());
        }
        sent.tree = Some(tree);
        Ok(sent)
    }

    /// The folders whose names are not sent, in the order in which they are searched.
    fn bases(&self, source: &Path, folders: &[PathBuf]) -> Vec<PathBuf> {
        let searched = std::iter::once(source).chain(folders.iter().map(PathBuf::as_path));
        let mut bases: Vec<PathBuf> = Vec::new();
        let used = searched.filter(|folder| self.used.contains(*folder));
        used.for_each(|folder| cover(&mut bases, folder));
        let mut before = Vec::new();
        while before != bases {
            before.clone_from(&bases);
            for (from, to) in &self.climbs {
                let Some(base) = bases.iter_mut().find(|base| from.starts_with(base)) else {
                    continue;
                };
                while !to.starts_with(&*base) && base.pop() {}
                let wider = base.clone();
                cover(&mut bases, &wider);
            }
        }
        bases
    }
}

/// One base more, where it lies in none; those that lie in it are no bases any longer.
fn cover(bases: &mut Vec<PathBuf>, folder: &Path) {
    let Some(at) = bases.iter().position(|base| base.starts_with(folder)) else {
        if !bases.iter().any(|base| folder.starts_with(base)) {
            bases.push(folder.to_path_buf());
        }
        return;
    };
    bases[at] = folder.to_path_buf();
    let mut index = 0;
    bases.retain(|base| {
        index += 1;
        index - 1 == at || !base.starts_with(folder)
    });
}

fn name_of(path: &Path, bases: &[PathBuf]) -> Result<String, CliError> {
    let below = bases.iter().enumerate().find_map(|(i, b)| Some((i, path.strip_prefix(b).ok()?)));
    let Some((base, below)) = below else {
        return Err(CliError::Usage(format!(
            "{} is reached from a header that is included by its absolute path: name its folder \
             with -I instead",
            path.display()
        )));
    };
    let below = utf8(below)?;
    Ok(if below.is_empty() { format!("kiln-{base}") } else { format!("kiln-{base}/{below}") })
}

fn utf8(path: &Path) -> Result<String, CliError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        CliError::Usage(format!(
            "the name of the header {} is not UTF-8: rename it",
            path.display()
        ))
    })
}

/// Where a folder really is; a folder that is not there is where it says.
pub(super) fn real(folder: &Path) -> std::io::Result<PathBuf> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    fs::canonicalize(folder).or_else(|_| normal(folder))
}

/// An absolute path without `.` and `..`.
pub(super) fn normal(path: &Path) -> std::io::Result<PathBuf> {
    let mut normal = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    Ok(normal)
}
