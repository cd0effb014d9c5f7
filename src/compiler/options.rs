//! NVRTC options in one canonical form.
//!
//! Invariants: what enters the key is exactly what NVRTC is given; spellings
//! and order that mean the same give the same; and an option that would make
//! the output depend on the machine, or be no output at all, is refused.

use std::collections::{BTreeMap, BTreeSet};

use kiln_proto::{Component, Failure, FailureKind, KeyField, component};

use super::header_tree::{self, HeaderTree};

/// How an option takes its value.
#[derive(Clone, Copy)]
enum Value {
    /// None.
    Flag,
    /// `true` or `false`.
    Bool,
    /// A decimal number.
    Number,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Comma-separated words; several options add up.
    List,
    /// Comma-separated options of ptxas from [`PTXAS`]; several options add up.
    Ptxas,
}

/// Long name without dashes, short name, value.
#[rustfmt::skip]
const ALLOWED: &[(&str, &str, Value)] = &[
    ("Ofast-compile", "Ofc", Value::OneOf(&["0", "min", "mid", "max"])),
    ("Wconversion", "Wconversion", Value::Flag),
    ("Wreorder", "Wreorder", Value::Flag),
    ("brief-diagnostics", "brief-diag", Value::Bool),
    ("builtin-initializer-list", "builtin-initializer-list", Value::Bool),
    ("builtin-move-forward", "builtin-move-forward", Value::Bool),
    ("device-as-default-execution-space", "default-device", Value::Flag),
    ("device-c", "dc", Value::Flag),
    ("device-float128", "device-float128", Value::Flag),
    ("device-int128", "device-int128", Value::Flag),
    ("device-stack-protector", "device-stack-protector", Value::Bool),
    ("device-w", "dw", Value::Flag),
    ("diag-error", "diag-error", Value::List),
    ("diag-suppress", "diag-suppress", Value::List),
    ("diag-warn", "diag-warn", Value::List),
    ("disable-warnings", "w", Value::Flag),
    ("display-error-number", "err-no", Value::Flag),
    ("extensible-whole-program", "ewp", Value::Flag),
    ("extra-device-vectorization", "extra-device-vectorization", Value::Flag),
    ("ffinite-math-only", "ffinite-math-only", Value::Flag),
    ("fmad", "fmad", Value::Bool),
    ("fmax-errors", "fmax-errors", Value::Number),
    ("fno-signed-zeros", "fno-signed-zeros", Value::Flag),
    ("ftz", "ftz", Value::Bool),
    ("jump-table-density", "jtd", Value::Number),
    ("maxrregcount", "maxrregcount", Value::Number),
    ("minimal", "minimal", Value::Flag),
    ("no-display-error-number", "no-err-no", Value::Flag),
    ("optimization-info", "opt-info", Value::OneOf(&["inline"])),
    ("prec-div", "prec-div", Value::Bool),
    ("prec-sqrt", "prec-sqrt", Value::Bool),
    ("ptxas-options", "Xptxas", Value::Ptxas),
    ("relocatable-device-code", "rdc", Value::Bool),
    ("restrict", "restrict", Value::Flag),
    ("std", "std", Value::OneOf(&["c++03", "c++11", "c++14", "c++17", "c++20", "c++23"])),
    ("use_fast_math", "use_fast_math", Value::Flag),
    ("warning-as-error", "Werror", Value::List),
];

/// What may be passed on to ptxas: by the part before `=`.
#[rustfmt::skip]
const PTXAS: &[&str] = &[
    "-O0", "-O1", "-O2", "-O3", "-v", "--verbose", "-dlcm", "--def-load-cache", "-dscm",
    "--def-store-cache", "--allow-expensive-optimizations", "--fmad", "--maxrregcount",
    "--warn-on-spills", "--warn-on-local-memory-usage", "--warn-on-double-precision-use",
    "--disable-optimizer-constants",
];

/// Options that NVRTC has and Kiln refuses: long, short, why.
#[rustfmt::skip]
const REFUSED: &[(&str, &str, &str)] = &[
    ("gpu-architecture", "arch", "the target is a field of the request, not an option"),
    ("generate-line-info", "lineinfo", PATHS),
    ("device-debug", "G", PATHS),
    ("include-path", "I", FOLDERS),
    ("use-bundled-headers", "use-bundled-headers", "Kiln supplies CUDA's headers itself"),
    ("no-source-include", "no-source-include", "there is no source folder"),
    ("pch", "pch", PCH), ("create-pch", "create-pch", PCH), ("use-pch", "use-pch", PCH),
    ("pch-dir", "pch-dir", PCH), ("pch-verbose", "pch-verbose", PCH),
    ("pch-messages", "pch-messages", PCH),
    ("instantiate-templates-in-pch", "instantiate-templates-in-pch", PCH),
    ("time", "time", TIMES), ("fdevice-time-trace", "fdevice-time-trace", TIMES),
    ("split-compile", "split-compile", "how many threads compile is the node's to say"),
    ("dlink-time-opt", "dlto", NO_OUTPUT), ("gen-opt-lto", "gen-opt-lto", NO_OUTPUT),
    ("optix-ir", "optix-ir", NO_OUTPUT), ("tile-only", "tile-only", NO_OUTPUT),
    ("fdevice-syntax-only", "fdevice-syntax-only", NO_OUTPUT),
];
const FOLDERS: &str = "it names folders of one machine; send headers with the request";
const PATHS: &str = "debug information holds file paths, so equal sources would differ";
const PCH: &str = "a precompiled header is a file of one machine";
const TIMES: &str = "it writes timings into a file of one machine";
const NO_OUTPUT: &str = "it gives neither PTX nor CUBIN";

/// The options of one request, each once, in a fixed order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Canonical {
    /// Name without dashes -> value; flags are `true`.
    plain: BTreeMap<&'static str, String>,
    /// Macro -> its definition, or none: undefined. The last word on each.
    macros: BTreeMap<String, Option<String>>,
    /// What is included before the source, in this order.
    pre_includes: Vec<String>,
    /// Where the request's headers lie, where they are files of a tree.
    pub(super) tree: Option<HeaderTree>,
}

/// Reads options as NVRTC would.
pub(super) fn canonical(given: &[String]) -> Result<Canonical, Failure> {
    let mut found = Canonical::default();
    let (mine, others) = header_tree::split(given).map_err(|(option, why)| refused(option, why))?;
    found.tree = mine;
    let mut rest = others.into_iter().map(|o| o.trim());
    while let Some(option) = rest.next() {
        found.add(option, &mut rest)?;
    }
    match (&found.tree, found.pre_includes.first()) {
        (None, Some(name)) => {
            let option = format!("--pre-include={name}");
            Err(refused(&option, "it reads a file of one machine; put an #include into the source"))
        }
        _ => Ok(found),
    }
}

impl Canonical {
    /// The options as NVRTC gets them.
    pub(super) fn arguments(&self) -> Vec<String> {
        let plain = self.plain.iter().map(|(name, value)| match value_of(name) {
            Some(Value::Flag) => format!("--{name}"),
            _ => format!("--{name}={value}"),
        });
        let macros = self.macros.iter().map(|(name, value)| match value {
            Some(value) => format!("--define-macro={name}={value}"),
            None => format!("--undefine-macro={name}"),
        });
        let before = self.pre_includes.iter().map(|name| format!("--pre-include={name}"));
        plain.chain(macros).chain(before).collect()
    }

    /// The `options` component: one field an option, one a macro.
    pub(super) fn component(&self) -> Component {
        let plain = self.plain.iter();
        let plain = plain.map(|(name, value)| KeyField::new(format!("--{name}"), value.as_str()));
        let macros = self.macros.iter().map(|(name, value)| match value {
            Some(value) => KeyField::new(format!("-D{name}"), value.as_str()),
            None => KeyField::new(format!("-U{name}"), "true"),
        });
        let before = self.pre_includes.iter().enumerate();
        let before =
            before.map(|(i, name)| KeyField::new(format!("--pre-include.{i}"), name.as_str()));
        let tree = self.tree.iter().flat_map(HeaderTree::fields);
        let all = plain.chain(macros).chain(before).chain(tree);
        Component::new(component::OPTIONS, all.collect())
    }

    fn add<'a>(
        &mut self,
        option: &'a str,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), Failure> {
        if option.contains(['\0', '\n', '\r']) {
            return Err(refused(option, "it has a line break or a NUL byte"));
        }
        if let Some((kind, definition)) = macro_option(option) {
            let definition = match definition.trim_start() {
                "" => rest.next().unwrap_or_default(),
                text => text,
            };
            return self.add_macro(option, kind, definition);
        }
        let bare = option.trim_start_matches('-');
        let dashes = option.len() - bare.len();
        if !(1..=2).contains(&dashes) {
            return Err(refused(option, "an option starts with one or two dashes"));
        }
        let (name, inline) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (bare, None),
        };
        if name == "no-cache" {
            return Ok(()); // Always given.
        }
        let is = |long: &str, short: &str| name == long || (dashes == 1 && name == short);
        if is("pre-include", "include") {
            let value = inline.or_else(|| rest.next()).unwrap_or_default().trim();
            if value.is_empty() {
                return Err(refused(option, "it needs a value"));
            }
            self.pre_includes.push(value.to_owned());
            return Ok(());
        }
        let Some(&(long, _, value)) = ALLOWED.iter().find(|(long, short, _)| is(long, short))
        else {
            // `-I/usr/include` has no separator.
            let known = REFUSED.iter().find(|(long, short, _)| {
                is(long, short) || (*short == "I" && dashes == 1 && name.starts_with('I'))
            });
            return Err(refused(option, known.map_or("Kiln does not know it", |(.., why)| why)));
        };
        let mut argument = || inline.or_else(|| rest.next()).unwrap_or_default().trim();
        let text = match value {
            Value::Flag if inline.is_some() => return Err(refused(option, "it takes no value")),
            Value::Flag => "true".to_owned(),
            Value::Bool => one_of(option, argument(), &["true", "false"])?,
            Value::OneOf(words) => one_of(option, argument(), words)?,
            Value::Number => number(option, argument())?,
            Value::List => {
                let word = |w: &str| w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                merged(option, self.plain.get(long), argument(), word)?
            }
            Value::Ptxas => {
                let known = |w: &str| PTXAS.contains(&w.split('=').next().unwrap_or(w));
                merged(option, self.plain.get(long), argument(), known)?
            }
        };
        match self.plain.insert(long, text.clone()) {
            Some(before) if before != text && !matches!(value, Value::List | Value::Ptxas) => {
                Err(refused(option, "it is given twice, with different values"))
            }
            _ => Ok(()),
        }
    }

    fn add_macro(&mut self, option: &str, kind: Macro, text: &str) -> Result<(), Failure> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value),
            None => (text, "1"),
        };
        let identifier = name.split('(').next().unwrap_or_default();
        let mut letters = identifier.bytes();
        let starts = letters.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !starts || !letters.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(refused(option, "it names no macro"));
        }
        // `F(x)` and `F` are one macro: the last definition of either counts.
        self.macros.retain(|known, _| known.split('(').next() != Some(identifier));
        match kind {
            Macro::Define => self.macros.insert(name.to_owned(), Some(value.to_owned())),
            Macro::Undefine => self.macros.insert(identifier.to_owned(), None),
        };
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Macro {
    Define,
    Undefine,
}

/// `-DX`, `-D X`, `-D=X`, `--define-macro=X`, `--define-macro` `X`, and `-U` alike.
fn macro_option(option: &str) -> Option<(Macro, &str)> {
    let long = [("--define-macro", Macro::Define), ("--undefine-macro", Macro::Undefine)];
    for (name, kind) in long {
        match option.strip_prefix(name) {
            Some("") => return Some((kind, "")),
            Some(rest) if rest.starts_with(['=', ' ']) => return Some((kind, &rest[1..])),
            _ => {}
        }
    }
    let (kind, rest) = match option.split_at_checked(2)? {
        ("-D", rest) => (Macro::Define, rest),
        ("-U", rest) => (Macro::Undefine, rest),
        _ => return None,
    };
    Some((kind, rest.strip_prefix('=').unwrap_or(rest)))
}

fn value_of(name: &str) -> Option<Value> {
    ALLOWED.iter().find(|(long, ..)| *long == name).map(|(.., value)| *value)
}

fn one_of(option: &str, value: &str, words: &[&str]) -> Result<String, Failure> {
    match words.contains(&value) {
        true => Ok(value.to_owned()),
        false => Err(refused(option, &format!("its value is one of {}", words.join(", ")))),
    }
}

fn number(option: &str, value: &str) -> Result<String, Failure> {
    let number: u32 = value.parse().map_err(|_| refused(option, "its value is a number"))?;
    Ok(number.to_string())
}

/// The sorted union of what an option had and what it adds.
fn merged(
    option: &str,
    before: Option<&String>,
    added: &str,
    allowed: impl Fn(&str) -> bool,
) -> Result<String, Failure> {
    let added: Vec<&str> = added.split([',', ' ']).filter(|w| !w.is_empty()).collect();
    if added.is_empty() {
        return Err(refused(option, "it needs a value"));
    }
    if let Some(word) = added.iter().find(|word| !allowed(word)) {
        return Err(refused(option, &format!("Kiln does not pass on {word:?}")));
    }
    let before = before.iter().flat_map(|b| b.split(','));
    let all: BTreeSet<&str> = before.chain(added).collect();
    Ok(all.into_iter().collect::<Vec<_>>().join(","))
}

fn refused(option: &str, why: &str) -> Failure {
    let option: String = option.chars().take(120).collect();
    Failure::new(FailureKind::Incompatible, format!("option `{option}` is refused: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(options: &[&str]) -> Result<Canonical, Failure> {
        canonical(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn spellings_that_mean_the_same_are_the_same() {
        let same: [(&[&str], &[&str]); 9] = [
            (&["-DX"], &["--define-macro=X=1"]),
            (&["-D", "X=2"], &["-D X=2"]),
            (&["-U", "X"], &["--undefine-macro", "X"]),
            (&["-DA=1", "-DB=2"], &["-DB=2", "-DA=1"]),
            (&["-DA=1", "-DA=2"], &["-DA=2"]),
            (&["-w", "-fmad=false"], &["--fmad", "false", "--disable-warnings"]),
            (&["-use_fast_math", "--no-cache"], &["--use_fast_math"]),
            (&["-diag-suppress=177,20"], &["--diag-suppress=20", "--diag-suppress", "177"]),
            (&["-Xptxas", "-O2", "-Xptxas=-v"], &["--ptxas-options=-v,-O2"]),
        ];
        for (one, other) in same {
            assert_eq!(read(one).unwrap(), read(other).unwrap(), "{one:?} {other:?}");
        }
    }

    #[test]
    fn what_differs_stays_apart() {
        assert_ne!(read(&["-DA", "-UA"]).unwrap(), read(&["-UA", "-DA"]).unwrap());
        let (a, b) = (read(&["-DA=1", "-w"]).unwrap(), read(&["-DA=2", "-w"]).unwrap());
        assert_ne!(a.component().digest, b.component().digest);
        assert_eq!(a.arguments(), ["--disable-warnings", "--define-macro=A=1"]);
    }

    #[test]
    fn options_that_depend_on_the_machine_are_refused() {
        let bad: [&[&str]; 24] = [
            &["-lineinfo"],
            &["--generate-line-info"],
            &["-G"],
            &["-I/usr/include"],
            &["-I", "/usr/include"],
            &["--include-path=/x"],
            &["--pch"],
            &["--time=-"],
            &["-arch=sm_90"],
            &["--gpu-architecture", "sm_90"],
            &["-dlto"],
            &["--split-compile=0"],
            &["--pre-include=/etc/passwd"],
            &["--pre-include="],
            &["--source-folder=0", "--include-path=/usr/include"],
            &["--source-folder=0", "--include-path=0/../../x"],
            &["--source-folder=/tmp"],
            &["--source-folder=0", "--same-file=a"],
            &["--include-path=0"],
            &["-Xptxas", "--output-file=/x"],
            &["--unheard-of"],
            &["--fmad=perhaps"],
            &["--fmad=true", "--fmad=false"],
            &["-D1X"],
        ];
        for options in bad {
            let refused = read(options).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Incompatible, "{options:?}");
            assert!(refused.message.contains("is refused"), "{refused}");
        }
    }
}
