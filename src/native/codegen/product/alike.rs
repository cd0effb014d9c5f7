//! Products side by side that differ in what they read and write alone: one text for all.
//!
//! Invariant: a block takes the pointers of its own product, and each product has as many
//! blocks as it has alone.

use std::{collections::BTreeMap, fmt::Write, ops::Range};

use super::super::{NAME, params::Params};
use crate::size::Size;

/// One of the products: its place among the kernel's parameters, and its text.
pub(super) struct Part {
    /// Of the parameters that are read, with the types of what they point to.
    pub(super) reads: (Range<usize>, Vec<&'static str>),
    /// Of those that are written.
    pub(super) writes: (Range<usize>, Vec<&'static str>),
    /// Which it is.
    pub(super) index: usize,
    /// Its structures.
    pub(super) structures: String,
    /// What it does in its block.
    pub(super) text: String,
    pub(super) grid: Size,
}

/// What a kernel does that has several products of the same text.
pub(super) struct Alike {
    pub(super) structures: String,
    pub(super) text: String,
    pub(super) grid: Size,
    /// To show.
    pub(super) parts: String,
}

impl Part {
    /// Its structures and its text, with names that do not say which it is.
    fn anonymous(&self) -> [String; 2] {
        let mut names = BTreeMap::new();
        let mut rename = |from: &Range<usize>, own: &str, any: &str| {
            for (i, at) in from.clone().enumerate() {
                names.insert(format!("{own}{at}"), format!("{any}{i}"));
            }
        };
        rename(&self.reads.0, "r", "q");
        rename(&self.writes.0, "w", "u");
        for structure in ["problem", "write"] {
            let own = format!("{NAME}_{structure}");
            if self.index > 0 {
                names.insert(format!("{own}{}", self.index), own);
            }
        }
        [&self.structures, &self.text].map(|text| renamed(text, &names))
    }
}

/// `parts` as one text, if that is what they are.
pub(super) fn alike(parts: &[Part], params: &mut Params) -> Option<Alike> {
    let (first, others) = parts.split_first().filter(|(_, others)| !others.is_empty())?;
    let [structures, call] = first.anonymous();
    let same = |part: &Part| {
        part.anonymous() == [structures.as_str(), call.as_str()]
            && part.grid == first.grid
            && part.reads.1 == first.reads.1
            && part.writes.1 == first.writes.1
    };
    if !others.iter().all(same) {
        return None;
    }
    let blocks = params.size(&first.grid, &|_| String::new());
    let mut text = format!(
        "const unsigned blocks = (unsigned)({blocks});\n\
         const unsigned part = blockIdx.x / blocks, block = blockIdx.x % blocks;\n"
    );
    let mut choose = |of: fn(&Part) -> &(Range<usize>, Vec<&'static str>), own, any, constant| {
        for (i, element) in of(first).1.iter().enumerate() {
            let _ = write!(text, "{constant}{element}* const {any}{i} = ");
            for (number, part) in parts[..others.len()].iter().enumerate() {
                let _ = write!(text, "part == {number} ? {own}{} : ", of(part).0.start + i);
            }
            let _ = writeln!(text, "{own}{};", of(&parts[others.len()]).0.start + i);
        }
    };
    choose(|part| &part.reads, "r", "q", "const ");
    choose(|part| &part.writes, "w", "u", "");
    text += &call;
    let grid = parts.iter().fold(Size::default(), |all, part| &all + &part.grid);
    let parts = format!("; {} side by side", parts.len());
    Some(Alike { structures, text, grid, parts })
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
