//! Statements, the values that they name, and their text.
//!
//! Invariant: the text keeps the order of the statements; only declarations move,
//! before statements that do not know them.

use std::collections::HashMap;

use super::Guards;
use crate::loops::Id;

/// A value in the text.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub(super) text: String,
    /// Whether it is an array over the lanes.
    pub(super) varies: bool,
}

impl Name {
    /// The value at lane `v`.
    pub(super) fn at_lane(&self) -> String {
        if self.varies { format!("{}[v]", self.text) } else { self.text.clone() }
    }
}

/// One statement.
#[derive(Debug, Clone)]
pub(super) enum Statement {
    Plain(String),
    /// A declaration, and what is done for each lane.
    Lanes(String, String),
}

/// What is known at a place of the text, and what is written there.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) names: HashMap<(Id, Guards), Name>,
    pub(super) statements: Vec<Statement>,
}

/// Statements as text: neighbours that are for each lane share a loop.
pub(super) fn text_of(statements: &[Statement], lanes: i64) -> String {
    let mut out = String::new();
    let mut each: Vec<&str> = Vec::new();
    let close = |out: &mut String, each: &mut Vec<&str>| {
        if !each.is_empty() {
            *out += &format!(
                "#pragma unroll\nfor (int v = 0; v < {lanes}; ++v) {{\n{}\n}}\n",
                each.join("\n")
            );
            each.clear();
        }
    };
    for statement in statements {
        match statement {
            Statement::Plain(text) => {
                close(&mut out, &mut each);
                out += text;
                out.push('\n');
            }
            Statement::Lanes(declaration, text) => {
                // A declaration may stand before statements that do not know it.
                if !declaration.is_empty() {
                    out += declaration;
                    out.push('\n');
                }
                each.push(text);
            }
        }
    }
    close(&mut out, &mut each);
    out
}
