//! One cache folder and its key.
//!
//! Invariant: the key follows from what decides the folder's content and from
//! nothing else: the folder's path is in it only where the tool's own files hold
//! that path, and then as a digest.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use kiln_proto::{
    ArtifactKey, Component, Components, Fingerprint, KeyField, Target, component, value,
};

use super::{
    patterns::Patterns,
    profiles::{Environment, PROFILES, Profile},
    toolchain::{ALL, Tool, Versions},
};
use crate::cli::CliError;

/// A folder that is to be shared.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// The profile's name, or what the user calls it.
    pub(crate) label: String,
    /// From the root down.
    pub(crate) path: PathBuf,
    /// What the command's environment gets.
    pub(crate) variables: Vec<(&'static str, PathBuf)>,
    pub(crate) patterns: Patterns,
    pub(crate) profile: Option<&'static Profile>,
}

/// What else decides the key.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) versions: Versions,
    pub(crate) target: Target,
    /// The target, or all of a machine's where they differ.
    pub(crate) gpus: String,
    pub(crate) tag: String,
    pub(crate) namespace: String,
}

impl Folder {
    /// The folder of the profile called `name`.
    pub(crate) fn of_profile(
        name: &str,
        env: &Environment<'_>,
        exclude: &[String],
    ) -> Result<Self, CliError> {
        let profile = Profile::named(name).ok_or_else(|| {
            let names: Vec<_> = PROFILES.iter().map(|profile| profile.name).collect();
            CliError::Usage(format!(
                "no profile is called {name:?}; there are {}",
                names.join(", ")
            ))
        })?;
        let (path, base) = profile.locate(env).ok_or_else(|| {
            let variable = profile.variables[0];
            CliError::Usage(format!("the folder of {name} is unknown: set HOME or {variable}"))
        })?;
        let set = profile.variables.iter().map(|name| base.clone().map(|base| (*name, base)));
        Ok(Self {
            label: profile.name.into(),
            path,
            variables: set.flatten().collect(),
            patterns: Patterns::new(profile.skip, exclude),
            profile: Some(profile),
        })
    }

    /// `DIR` or `LABEL=DIR`.
    pub(crate) fn of_path(
        text: &str,
        env: &Environment<'_>,
        exclude: &[String],
    ) -> Result<Self, CliError> {
        let plain = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let (label, path) = match text.split_once('=') {
            Some((label, path)) if plain(label) => (Some(label), path),
            _ => (None, text),
        };
        let path = env.absolute(Path::new(path));
        let own = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let label = label
            .map(str::to_owned)
            .or(own)
            .ok_or_else(|| CliError::Usage(format!("{text:?} is no folder that can be shared")))?;
        let (variables, patterns) = (Vec::new(), Patterns::new(&[], exclude));
        Ok(Self { label, path, variables, patterns, profile: None })
    }

    /// What decides its content.
    pub(crate) fn tools(&self) -> &'static [Tool] {
        self.profile.map_or(ALL, |profile| profile.tools)
    }

    pub(crate) fn components(&self, facts: &Facts) -> Components {
        let mut what = match self.profile {
            Some(profile) => vec![KeyField::new("profile", profile.name)],
            None => vec![KeyField::new("folder", &self.label)],
        };
        what.push(KeyField::new("tag", &facts.tag));
        if self.profile.is_some_and(|profile| profile.path_bound) {
            what.push(KeyField::of_bytes("path", self.path.as_os_str().as_encoded_bytes()));
        }
        let mut toolchain = vec![KeyField::new("compiler", value::FOLDER_FAMILY)];
        let versions = self.versions(facts);
        toolchain.extend(versions.map(|(tool, version)| KeyField::new(tool, version)));
        let field = |name, value: &str| vec![KeyField::new(name, value)];
        Components::new(vec![
            Component::new(component::GRAPH, what),
            Component::new(component::FINGERPRINT, toolchain),
            Component::new(component::TARGET, field("target", &facts.gpus)),
            Component::new(component::NAMESPACE, field("namespace", &facts.namespace)),
        ])
    }

    pub(crate) fn fingerprint(&self, facts: &Facts) -> Fingerprint {
        Fingerprint::new(value::FOLDER_FAMILY, self.versions(facts))
    }

    pub(crate) fn key(&self, facts: &Facts) -> ArtifactKey {
        self.components(facts).key()
    }

    /// The key whose lease is the right to fill the folder.
    pub(crate) fn right_key(&self, facts: &Facts) -> ArtifactKey {
        let right = Component::new("right", vec![KeyField::new("right", "fill")]);
        let own = self.components(facts);
        Components::new(own.iter().cloned().chain([right]).collect()).key()
    }

    fn versions<'a>(&self, facts: &'a Facts) -> impl Iterator<Item = (&'static str, &'a str)> {
        let names: BTreeSet<_> = self.tools().iter().map(|tool| tool.name()).collect();
        let known = facts.versions.iter().map(|(name, version)| (*name, version.as_str()));
        known.filter(move |(name, _)| names.contains(name))
    }
}

/// Refuses folders that are the same, or of which one holds another.
pub(crate) fn check_apart(folders: &[Folder]) -> Result<(), CliError> {
    for (at, one) in folders.iter().enumerate() {
        for other in &folders[at + 1..] {
            if one.path.starts_with(&other.path) || other.path.starts_with(&one.path) {
                let (one, other) = (one.path.display(), other.path.display());
                return Err(CliError::Usage(format!("{one} and {other} lie within one another")));
            }
            if one.label == other.label {
                let why = format!("two folders are called {:?}; write LABEL=DIR", one.label);
                return Err(CliError::Usage(why));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<T>(ask: impl FnOnce(&Environment<'_>) -> T) -> T {
        let variable = |name: &str| (name == "HOME").then(|| "/home/u".into());
        ask(&Environment { variable: &variable, folder: Path::new("/work") })
    }

    fn facts() -> Facts {
        Facts {
            versions: ALL.iter().map(|tool| (tool.name(), "1".to_owned())).collect(),
            target: Target::any(),
            gpus: "none".into(),
            tag: String::new(),
            namespace: "default".into(),
        }
    }

    #[test]
    fn a_plain_folder_is_keyed_by_its_label_never_by_its_path() {
        let key = |text: &str| env(|e| Folder::of_path(text, e, &[])).unwrap().key(&facts());
        assert_eq!(key("/a/cache"), key("/b/cache"));
        assert_eq!(key("cache=/a/x"), key("/b/cache"));
        assert_ne!(key("/a/cache"), key("/a/other"));
        assert!(env(|e| Folder::of_path("/", e, &[])).is_err());
        let right =
            |text: &str| env(|e| Folder::of_path(text, e, &[])).unwrap().right_key(&facts());
        assert_eq!(right("/a/cache"), right("/b/cache"));
        assert_ne!(right("/a/cache"), key("/a/cache"), "publishing would end it");
    }

    #[test]
    fn a_tag_a_target_and_a_version_separate() {
        let folder = env(|e| Folder::of_profile("triton", e, &[])).unwrap();
        let key = folder.key(&facts());
        let changes: [fn(&mut Facts); 4] = [
            |f| f.tag = "nightly".into(),
            |f| f.gpus = "gpu_90".into(),
            |f| f.namespace = "team".into(),
            |f| drop(f.versions.insert("triton", "2".into())),
        ];
        for change in changes {
            let mut facts = facts();
            change(&mut facts);
            assert_ne!(folder.key(&facts), key);
        }
        let mut other = facts();
        other.versions.insert("driver", "2".into());
        assert_eq!(folder.key(&other), key, "the driver decides no Triton kernel");
    }

    #[test]
    fn the_path_counts_only_where_the_tools_files_hold_it() {
        let moved = |name: &str| {
            let mut folder = env(|e| Folder::of_profile(name, e, &[])).unwrap();
            let key = folder.key(&facts());
            folder.path = "/elsewhere".into();
            folder.key(&facts()) != key
        };
        assert!(moved("triton") && moved("inductor"));
        assert!(!moved("cuda") && !moved("deep_gemm"));
    }

    #[test]
    fn its_manifest_may_be_replaced() {
        let folder = env(|e| Folder::of_profile("cuda", e, &[])).unwrap();
        let components = folder.components(&facts());
        let fingerprint = components.iter().find(|c| c.name == component::FINGERPRINT).unwrap();
        let compiler = fingerprint.fields.iter().find(|f| f.name == "compiler").unwrap();
        assert!(value::REPLACEABLE.contains(&compiler.value.as_str()));
    }

    #[test]
    fn folders_lie_apart() {
        let folder = |text: &str| env(|e| Folder::of_path(text, e, &[])).unwrap();
        let apart = |a: &str, b: &str| check_apart(&[folder(a), folder(b)]).is_ok();
        assert!(apart("/a/one", "/a/two"));
        assert!(!apart("/a", "/a/two") && !apart("/a/b", "/a/b") && !apart("/x/c", "/y/c"));
        assert!(apart("/x/c", "d=/y/c"));
    }
}
