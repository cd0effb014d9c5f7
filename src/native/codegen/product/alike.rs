//! Products side by side that differ in what they read and write alone: one text for them.
//!
//! Invariant: a block takes the pointers of its own product, and each product has as many
//! blocks as it has alone.

use std::{collections::BTreeMap, fmt::Write, ops::Range};

use super::super::{NAME, params::Params};
use crate::size::Size;

/// Parameters of a kernel, with the types of what they point to.
type Pointers = (Range<usize>, Vec<&'static str>);

/// One of the products: its place among the kernel's parameters, and its text.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) reads: Pointers,
    pub(super) writes: Pointers,
    /// Which it is.
    pub(super) index: usize,
    /// Its structures.
    pub(super) structures: String,
    /// What it does in its `block`.
    pub(super) text: String,
    pub(super) grid: Size,
}

impl Part {
    /// Its structures and its text with names that do not say where its parameters are, nor,
    /// where that is asked for, which it is.
    fn renamed(&self, anonymous: bool) -> [String; 2] {
        let mut names = BTreeMap::from([("block".to_owned(), "own".to_owned())]);
        let mut rename = |from: &Range<usize>, own: &str, any: &str| {
            for (i, at) in from.clone().enumerate() {
                names.insert(format!("{own}{at}"), format!("{any}{i}"));
            }
        };
        rename(&self.reads.0, "r", "q");
        rename(&self.writes.0, "w", "u");
        for structure in ["problem", "write"] {
            let any = format!("{NAME}_{structure}");
            if anonymous && self.index > 0 {
                names.insert(format!("{any}{}", self.index), any);
            }
        }
        [&self.structures, &self.text].map(|text| renamed(text, &names))
    }

    fn is_like(&self, other: &Self) -> bool {
        self.grid == other.grid
            && self.reads.1 == other.reads.1
            && self.writes.1 == other.writes.1
            && self.renamed(true) == other.renamed(true)
    }
}

/// `parts` with one part for all that are alike, in the order of the first of each.
pub(super) fn joined(parts: Vec<Part>, params: &mut Params) -> Vec<Part> {
    let mut classes: Vec<Vec<Part>> = Vec::new();
    for part in parts {
        match classes.iter_mut().find(|class| class[0].is_like(&part)) {
            Some(class) => class.push(part),
            None => classes.push(vec![part]),
        }
    }
    classes.into_iter().filter_map(|class| join(class, params)).collect()
}

/// One part that is all of `class`, which are alike.
fn join(mut class: Vec<Part>, params: &mut Params) -> Option<Part> {
    let last = class.pop()?;
    let Some(first) = class.first() else { return Some(last) };
    let [structures, call] = first.renamed(false);
    let blocks = params.size(&first.grid, &|_| String::new());
    let mut text = format!(
        "const unsigned blocks = (unsigned)({blocks});\n\
         const unsigned part = block / blocks, own = block % blocks;\n"
    );
    let mut choose = |of: fn(&Part) -> &Pointers, own: &str, any: &str, constant: &str| {
        for (i, element) in of(first).1.iter().enumerate() {
            let _ = write!(text, "{constant}{element}* const {any}{i} = ");
            for (number, part) in class.iter().enumerate() {
                let _ = write!(text, "part == {number} ? {own}{} : ", of(part).0.start + i);
            }
            let _ = writeln!(text, "{own}{};", of(&last).0.start + i);
        }
    };
    choose(|part| &part.reads, "r", "q", "const ");
    choose(|part| &part.writes, "w", "u", "");
    text += &call;
    let grid = class.iter().fold(last.grid, |all, part| &all + &part.grid);
    let first = class.swap_remove(0);
    Some(Part { structures, text, grid, ..first })
}

/// `text` with other names for some of its identifiers.
fn renamed(text: &str, names: &BTreeMap<String, String>) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        out += &rest[..start];
        rest = &rest[start..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        out += names.get(word).map_or(word, String::as_str);
        rest = &rest[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_are_exchanged_and_no_parts_of_them() {
        let names = [("r1", "q0"), ("w1", "u0")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let text = "kiln_load<8>(r1 + r10, x.r1);\nw1[xr1] = r_1 / r1;";
        let found = renamed(text, &names.into());
        assert_eq!(found, "kiln_load<8>(q0 + r10, x.q0);\nu0[xr1] = r_1 / q0;");
    }
}
