//! The reference of all settings: a configuration file with every default and a comment on
//! each key.
//!
//! Invariant: what is said of a key is the documentation of its field, read from the source
//! that the program was built of, and its default is that of [`Config`]: neither is written
//! down a second time.

use std::fmt::Write as _;

use super::{Config, load::environment_name};

/// Where the fields are.
const SOURCES: [&str; 11] = [
    include_str!("../config.rs"),
    include_str!("access.rs"),
    include_str!("audit.rs"),
    include_str!("cluster.rs"),
    include_str!("monitor.rs"),
    include_str!("prewarm.rs"),
    include_str!("publish.rs"),
    include_str!("resp.rs"),
    include_str!("tls.rs"),
    include_str!("trace.rs"),
    include_str!("trust.rs"),
];

/// A line of comments is filled up to here.
const WIDTH: usize = 96;

/// What the source says of one field.
struct Field {
    name: String,
    doc: String,
    /// As it is written in the source.
    kind: String,
    /// Bytes, which may have a unit.
    size: bool,
}

impl Config {
    /// Every setting with its default, what it does, its unit, and its environment variable:
    /// a file that [`super::Layers::load`] reads back as the defaults. A key without a default
    /// is in a comment.
    pub fn reference() -> String {
        let mut text = String::from(
            "# Every setting of `kiln serve`, with its default. A file needs only those that differ.\n\
             # Flags override the environment, and that overrides the file.\n",
        );
        match toml::Value::try_from(Self::default()) {
            Ok(defaults) => section(&mut text, "", "Config", &defaults),
            Err(e) => drop(writeln!(text, "# cannot be written: {e}")),
        }
        text
    }
}

/// The keys below `prefix`: those that hold a value first, as TOML wants them.
fn section(text: &mut String, prefix: &str, of: &str, defaults: &toml::Value) {
    let fields = fields(of);
    let nested = |field: &Field| field.kind.ends_with("Config");
    let (sections, keys): (Vec<_>, Vec<_>) = fields.into_iter().partition(nested);
    for field in &keys {
        let key = join(prefix, &field.name);
        text.push('\n');
        comment(text, &field.doc);
        let form = field.form().map(|form| format!("{form}; ")).unwrap_or_default();
        comment(text, &format!("{form}{}", environment_name(&key)));
        // Writing into a string does not fail.
        let _ = match defaults.get(&field.name) {
            Some(value) => writeln!(text, "{} = {value}", field.name),
            None => writeln!(text, "# {} = \"\"", field.name),
        };
    }
    for field in &sections {
        let Some(defaults) = defaults.get(&field.name) else { continue };
        let key = join(prefix, &field.name);
        text.push('\n');
        comment(text, &field.doc);
        let _ = writeln!(text, "[{key}]");
        section(text, &key, &field.kind, defaults);
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// `said`, filled.
fn comment(text: &mut String, said: &str) {
    let mut line = String::from("#");
    for word in said.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH && line.len() > 1 {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

impl Field {
    /// How a value is written.
    fn form(&self) -> Option<&'static str> {
        let kind = self.kind.strip_prefix("Option<").and_then(|kind| kind.strip_suffix('>'));
        Some(match kind.unwrap_or(&self.kind) {
            _ if self.size => "a size: 512MiB, 1.5GiB, or bytes",
            "Duration" => "a duration: 150ms, 10s, 1h 30m",
            "SocketAddr" if self.name == "resp_listen" => "HOST:PORT, or off",
            "SocketAddr" => "HOST:PORT",
            "PathBuf" => "a path",
            "Vec<String>" => "a list; in the environment separated by commas",
            "bool" => "true or false",
            "usize" | "u64" => "a number",
            "f64" => "a number from 0 to 1",
            "EvictionPolicy" => "cost or lru",
            "LogFormat" => "text or json",
            "Copies" => "a number of nodes, or object",
            _ => return None,
        })
    }
}

/// The public fields of the struct of that name, in the order of the source.
fn fields(of: &str) -> Vec<Field> {
    let head = format!("pub struct {of} {{");
    let lines = SOURCES.iter().find_map(|source| source.split_once(&head)).map(|(_, rest)| rest);
    let (mut found, mut doc, mut size) = (Vec::new(), String::new(), false);
    for line in lines.unwrap_or_default().lines().skip(1).map(str::trim) {
        if line == "}" {
            break;
        }
        if let Some(said) = line.strip_prefix("///") {
            doc += said;
        } else if line.starts_with("#[") {
            size |= line.contains("units::bytes");
        } else if let Some((name, kind)) =
            line.strip_prefix("pub ").and_then(|field| field.split_once(':'))
        {
            let (name, kind) =
                (name.trim().to_owned(), kind.trim().trim_end_matches(',').to_owned());
            let doc = std::mem::take(&mut doc).replace(['[', ']'], "");
            found.push(Field { name, doc, kind, size: std::mem::take(&mut size) });
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::environment_names;

    #[test]
    fn it_reads_back_as_the_defaults() {
        let read: Config = toml::from_str(&Config::reference()).unwrap();
        assert_eq!(read, Config::default());
    }

    #[test]
    fn no_setting_is_missing_and_each_says_what_it_is() {
        let text = Config::reference();
        let lines: Vec<_> = text.lines().collect();
        for name in environment_names() {
            let said = |line: &&&str| line.ends_with(&format!(" {name}"));
            assert_eq!(lines.iter().filter(said).count(), 1, "{name}");
            let at = lines.iter().position(|line| said(&line)).unwrap();
            let before = lines[at - 1];
            assert!(before.starts_with("# ") && before.len() > 3, "{name} has no documentation");
            let form = lines[at].strip_prefix("# ").unwrap();
            let text = ["KILN_SOCKET_MODE", "KILN_ADVERTISE"];
            let is_text = text.contains(&name.as_str()) || form == name;
            assert!(is_text || form.contains("; "), "{name} has no unit: {form}");
        }
    }

    #[test]
    fn it_says_what_the_source_says() {
        let text = Config::reference();
        assert!(text.contains("[object.collect]"), "{text}");
        let memory = "# Most bytes. Default: 1 GiB.\n\
                      # a size: 512MiB, 1.5GiB, or bytes; KILN_MEMORY_BYTES\nbytes = \"1 GiB\"\n";
        assert!(text.contains(memory), "{text}");
        assert!(text.contains("\n# socket = \"\"\n"), "what has no default is a comment: {text}");
    }
}
