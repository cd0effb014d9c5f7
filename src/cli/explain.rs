//! `kiln explain`: what an error means, and what to do about it.
//!
//! Invariant: it says what `deploy/ERRORS.md` says; no node is asked.

use clap::Args;
use kiln_proto::{CLASSES, Class, FailureKind, classes, code_meaning};
use serde::Serialize;

use super::{CliError, output};

const EXAMPLES: &str = "\
Examples:
  kiln explain C004
  kiln explain out_of_memory
  kiln explain --json";

/// Say what an error means, what to do, and what Kiln tries before it says so.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Explain {
    /// A code (C004), a kind (timeout) or an exit code (14); all, if it is left out.
    #[arg(value_name = "CODE|KIND")]
    subject: Option<String>,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `kiln explain --json`: one for each kind.
#[derive(Debug, Serialize)]
struct ExplainView {
    code: &'static str,
    kind: &'static str,
    exit_code: u8,
    meaning: &'static str,
    advice: &'static str,
    /// What Kiln does by itself before it fails.
    tries: &'static str,
}

impl Explain {
    pub(crate) fn run(self) -> Result<(), CliError> {
        let found = match &self.subject {
            None => CLASSES.iter().collect(),
            Some(subject) => classes(subject),
        };
        if found.is_empty() {
            let names = CLASSES.map(|class| class.kind.name()).join(", ");
            let subject = self.subject.unwrap_or_default();
            return Err(CliError::Usage(format!(
                "{subject:?} is no error; there are C001 to C005, and {names}"
            )));
        }
        for Class { kind, meaning, advice, done } in found {
            match self.json {
                true => output::json(&ExplainView {
                    code: kind.code(),
                    kind: kind.name(),
                    exit_code: kind.exit_code(),
                    meaning,
                    advice,
                    tries: done,
                })?,
                false => output::line(for_people(*kind, meaning, advice, done))?,
            }
        }
        Ok(())
    }
}

fn for_people(kind: FailureKind, meaning: &str, advice: &str, done: &str) -> String {
    let (code, name, exit) = (kind.code(), kind.name(), kind.exit_code());
    format!(
        "{code} {name} ({}; exit code {exit})\n  what happened: {meaning}\n  what to do: \
         {advice}\n  what Kiln tries first: {done}",
        code_meaning(code),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_error_is_refused_with_those_that_are() {
        let subject = Some("C009".to_owned());
        let refused = Explain { subject, json: false }.run().unwrap_err().to_string();
        assert!(refused.contains("C009") && refused.contains("out_of_memory"), "{refused}");
    }
}
