//! Defaults, then a TOML file, then `KILN_*`, then flags.
//!
//! Invariant: the environment variable of `memory.bytes` is `KILN_MEMORY_BYTES`,
//! and so for every leaf of [`Config`]; names are derived, never listed.

use std::path::PathBuf;

use config::{File, FileFormat, Value, ValueKind};

use super::Config;

/// A configuration that cannot be used; the message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("cannot read the configuration {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A source has a key that does not exist, or a value of the wrong form.
    #[error("configuration: {0}")]
    Form(String),
    /// Each value is well formed, together they cannot work.
    #[error("configuration: {}", .0.join("\n  and: "))]
    Invalid(Vec<String>),
}

/// Where a configuration comes from, weakest first.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// The environment; other variables may be among these.
    pub environment: Vec<(String, String)>,
    /// Dotted keys with values, as flags set them.
    pub flags: Vec<(String, String)>,
}

impl Layers {
    /// Merges the layers and validates the outcome.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut builder = config::Config::builder();
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            // Read alone first: its errors then show the line.
            toml::from_str::<Config>(&text)
                .map_err(|e| ConfigError::Form(format!("{}: {e}", path.display())))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        let leaves = leaves()?;
        for leaf in &leaves {
            let name = environment_name(&leaf.key);
            let set = self.environment.iter().rev().find(|(n, v)| *n == name && !v.is_empty());
            if let Some((_, text)) = set {
                builder = override_with(builder, leaf, &name, text)?;
            }
        }
        for (key, text) in &self.flags {
            let leaf = leaves.iter().find(|leaf| leaf.key == *key).ok_or_else(|| {
                ConfigError::Form(format!("there is no key `{key}`; see kiln serve --print-config"))
            })?;
            builder = override_with(builder, leaf, &format!("flag for {key}"), text)?;
        }
        let merged = builder.build().map_err(form)?;
        let config: Config = merged.try_deserialize().map_err(form)?;
        config.validate()?;
        Ok(config)
    }
}

/// The environment variables that a configuration reads.
pub fn environment_names() -> Vec<String> {
    leaves().unwrap_or_default().iter().map(|leaf| environment_name(&leaf.key)).collect()
}

struct Leaf {
    key: String,
    list: bool,
}

type Builder = config::ConfigBuilder<config::builder::DefaultState>;

fn override_with(
    builder: Builder,
    leaf: &Leaf,
    origin: &str,
    text: &str,
) -> Result<Builder, ConfigError> {
    let origin = origin.to_owned();
    let scalar = |text: &str| Value::new(Some(&origin), ValueKind::String(text.to_owned()));
    let value = match leaf.list {
        false => scalar(text),
        true => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::new(Some(&origin), ValueKind::Array(items.map(scalar).collect()))
        }
    };
    builder.set_override(&leaf.key, value).map_err(form)
}

/// Every dotted key that holds a value, found on the defaults themselves.
fn leaves() -> Result<Vec<Leaf>, ConfigError> {
    fn walk(prefix: &str, value: &serde_json::Value, found: &mut Vec<Leaf>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let key =
                        if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    walk(&key, value, found);
                }
            }
            leaf => found.push(Leaf { key: prefix.to_owned(), list: leaf.is_array() }),
        }
    }
    let defaults = serde_json::to_value(Config::default())
        .map_err(|e| ConfigError::Form(format!("defaults: {e}")))?;
    let mut found = Vec::new();
    walk("", &defaults, &mut found);
    Ok(found)
}

pub(super) fn environment_name(key: &str) -> String {
    format!("KILN_{}", key.replace('.', "_").to_uppercase())
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn form(error: config::ConfigError) -> ConfigError {
    ConfigError::Form(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use super::*;
    use crate::config::{EvictionPolicy, LogFormat};

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn nothing_said_gives_the_defaults() {
        assert_eq!(Layers::default().load().unwrap(), Config::default());
    }

    #[test]
    fn flags_beat_the_environment_and_that_beats_the_file() {
        let file = file("data_dir = \"/f\"\n[memory]\nbytes = \"1 MiB\"\nentries = 5\n");
        let mut layers = Layers { file: Some(file.path().into()), ..Layers::default() };
        let config = layers.load().unwrap();
        assert_eq!((config.memory.bytes, config.memory.entries), (1 << 20, 5));
        layers.environment =
            pairs(&[("KILN_MEMORY_BYTES", "2MiB"), ("KILN_MEMORY_ENTRIES", "6"), ("PATH", "/bin")]);
        let config = layers.load().unwrap();
        assert_eq!((config.memory.bytes, config.memory.entries), (2 << 20, 6));
        layers.flags = pairs(&[("memory.bytes", "3MiB")]);
        let config = layers.load().unwrap();
        assert_eq!((config.memory.bytes, config.memory.entries), (3 << 20, 6));
        assert_eq!(config.data_dir, PathBuf::from("/f"));
    }

    #[test]
    fn every_form_of_value_comes_through_the_environment() {
        let environment = pairs(&[
            ("KILN_GRPC_LISTEN", "127.0.0.1:0"),
            ("KILN_START_PEERS", "a:1, dns:kiln:7400"),
            ("KILN_START_EXPECT", "3"),
            ("KILN_CLUSTER_LEASE_TTL", "1m 30s"),
            ("KILN_DISK_POLICY", "lru"),
            ("KILN_LOG_FORMAT", "json"),
            ("KILN_SOCKET", ""),
        ]);
        let config = Layers { environment, ..Layers::default() }.load().unwrap();
        assert_eq!(config.grpc_listen.port(), 0);
        assert_eq!(config.start.peers, ["a:1", "dns:kiln:7400"]);
        assert_eq!(config.start.expect, 3);
        assert_eq!(config.cluster.lease_ttl, Duration::from_secs(90));
        assert_eq!(config.disk.policy, EvictionPolicy::Lru);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.socket, None, "an empty variable sets nothing");
    }

    #[test]
    fn what_is_printed_reads_back() {
        let flags = pairs(&[
            ("socket", "/run/kiln.sock"),
            ("object.url", "file:///tmp/l3"),
            ("disk.bytes", "1234567891"),
            ("start.join", "a:1,b:2"),
        ]);
        let config = Layers { flags, ..Layers::default() }.load().unwrap();
        let file = file(&config.to_toml());
        let read = Layers { file: Some(file.path().into()), ..Layers::default() }.load().unwrap();
        assert_eq!(read, config);
    }

    #[test]
    fn unknown_keys_are_errors_with_their_place() {
        for (text, named) in [("memroy = 1", "memroy"), ("[memory]\nbyte = 1", "byte")] {
            let file = file(text);
            let layers = Layers { file: Some(file.path().into()), ..Layers::default() };
            let error = layers.load().unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("line"), "{error}");
        }
        let flags = pairs(&[("memory.byte", "1")]);
        let error = Layers { flags, ..Layers::default() }.load().unwrap_err().to_string();
        assert!(error.contains("memory.byte"), "{error}");
    }

    #[test]
    fn a_wrong_value_names_where_it_was_written() {
        let environment = pairs(&[("KILN_MEMORY_ENTRIES", "many")]);
        let error = Layers { environment, ..Layers::default() }.load().unwrap_err().to_string();
        assert!(error.contains("KILN_MEMORY_ENTRIES"), "{error}");
        let flags = pairs(&[("memory.bytes", "lots")]);
        let error = Layers { flags, ..Layers::default() }.load().unwrap_err().to_string();
        assert!(error.contains("lots"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let layers = Layers { file: Some("/no/such.toml".into()), ..Layers::default() };
        assert!(layers.load().unwrap_err().to_string().contains("/no/such.toml"));
    }
}
