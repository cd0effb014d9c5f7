//! `kiln explain`: what an error means, and what to do about it.
//!
//! Invariant: it says what `deploy/ERRORS.md` says of failures, and `deploy/README.md` of callers
//! that are refused; no node is asked.

use clap::Args;
use kiln::error::{
    ASK_ANOTHER, NOT_ADMITTED, NOT_ALLOWED, SHOW_A_JOIN_TOKEN, SHOW_A_TOKEN, UNAUTHENTICATED,
};
use kiln_proto::{CLASSES, Class, classes, code_meaning};
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
#[derive(Debug, Clone, Copy, Serialize)]
struct ExplainView {
    code: &'static str,
    kind: &'static str,
    exit_code: u8,
    meaning: &'static str,
    advice: &'static str,
    /// What Kiln does by itself before it fails.
    tries: &'static str,
    /// What the kinds of this code have in common.
    #[serde(skip)]
    in_general: &'static str,
}

/// Refusals of a caller: no compile failed.
const DENIED: [ExplainView; 3] = [
    ExplainView {
        code: UNAUTHENTICATED,
        kind: "unauthenticated",
        exit_code: 22,
        meaning: "this cluster serves nobody unasked, and what was shown is no token, or one that \
                  is unknown, revoked or expired; or nothing was shown",
        advice: SHOW_A_TOKEN,
        tries: "nothing: it is said at once, counted (kiln_access_refused_total) and in the audit \
                log of the node",
        in_general: "who asks is not known",
    },
    ExplainView {
        code: UNAUTHENTICATED,
        kind: NOT_ADMITTED,
        exit_code: 22,
        meaning: "this node is not let into the cluster: joining needs a token, and it showed none, \
                  or one that is unknown, revoked, expired or used up",
        advice: SHOW_A_JOIN_TOKEN,
        tries: "nothing: the node ends at once, and the one that it asked counts that \
                (kiln_access_refused_total) and has it in its audit log",
        in_general: "who asks is not known",
    },
    ExplainView {
        code: NOT_ALLOWED,
        kind: "not_allowed",
        exit_code: 22,
        meaning: "who asks is known; its role does not allow this call, or it has no right to that \
                  namespace",
        advice: ASK_ANOTHER,
        tries: "nothing: it is said at once, counted (kiln_access_refused_total) and in the audit \
                log of the node",
        in_general: "who asks may not",
    },
];

impl From<&Class> for ExplainView {
    fn from(class: &Class) -> Self {
        let Class { kind, meaning, advice, done } = class;
        Self {
            code: kind.code(),
            kind: kind.name(),
            exit_code: kind.exit_code(),
            meaning,
            advice,
            tries: done,
            in_general: code_meaning(kind.code()),
        }
    }
}

impl Explain {
    pub(crate) fn run(self) -> Result<(), CliError> {
        for view in found(self.subject.as_deref())? {
            match self.json {
                true => output::json(&view)?,
                false => output::line(for_people(&view))?,
            }
        }
        Ok(())
    }
}

/// What `subject` names, or all there is.
fn found(subject: Option<&str>) -> Result<Vec<ExplainView>, CliError> {
    let Some(subject) = subject else {
        return Ok(CLASSES.iter().map(ExplainView::from).chain(DENIED).collect());
    };
    let is_it = |view: &ExplainView| {
        view.code.eq_ignore_ascii_case(subject)
            || view.kind.eq_ignore_ascii_case(subject)
            || subject.parse() == Ok(view.exit_code)
    };
    let denied = DENIED.into_iter().filter(is_it);
    let found: Vec<_> = classes(subject).into_iter().map(ExplainView::from).chain(denied).collect();
    if found.is_empty() {
        let kinds = CLASSES.map(|class| class.kind.name()).into_iter();
        let names: Vec<_> = kinds.chain(DENIED.map(|denied| denied.kind)).collect();
        return Err(CliError::Usage(format!(
            "{subject:?} is no error; there are C001 to C005, A001, A002, and {}",
            names.join(", ")
        )));
    }
    Ok(found)
}

fn for_people(view: &ExplainView) -> String {
    let ExplainView { code, kind, exit_code, meaning, advice, tries, in_general } = view;
    format!(
        "{code} {kind} ({in_general}; exit code {exit_code})\n  what happened: {meaning}\n  what to \
         do: {advice}\n  what Kiln tries first: {tries}"
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

    #[test]
    fn what_a_node_refuses_a_caller_is_explained_with_the_exit_code_it_has() {
        for (subject, codes) in [
            ("a001", &["A001", "A001"][..]),
            ("not_allowed", &["A002"]),
            ("not_admitted", &["A001"]),
            ("22", &["A001", "A001", "A002"]),
        ] {
            let found = found(Some(subject)).unwrap();
            assert_eq!(found.iter().map(|view| view.code).collect::<Vec<_>>(), codes);
            let denied = CliError::denied(String::new());
            assert_eq!(found[0].exit_code, denied.exit_code());
        }
        assert_eq!(found(None).unwrap().len(), CLASSES.len() + DENIED.len());
    }
}
