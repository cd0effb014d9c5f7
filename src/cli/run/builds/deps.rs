//! `.ninja_deps`: the inputs that compilers named, in ninja's binary form.
//!
//! Invariant: what is read is bounded by the file's own size, and what is written is
//! a file that ninja reads, with one record an output.

use std::collections::BTreeMap;

use super::stamp::stamp;

const SIGNATURE: &[u8] = b"# ninjadeps\n";
/// The bit of a record's size that tells inputs from a path.
const INPUTS: u32 = 1 << 31;
/// ninja's own limit.
const LARGEST_RECORD: usize = (1 << 19) - 1;

/// Which output was made from what.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Deps {
    /// 3 has times of 32 bits, 4 of 64.
    version: u32,
    paths: Vec<String>,
    outputs: BTreeMap<u32, (i64, Vec<u32>)>,
}

impl Deps {
    /// Reads one; `None` for a version that is not known. A record that was cut ends it,
    /// as it does for ninja.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(SIGNATURE)?;
        let version = take_u32(&mut rest)?;
        if !matches!(version, 3 | 4) {
            return None;
        }
        let mut deps = Self { version, paths: Vec::new(), outputs: BTreeMap::new() };
        while let Some(size) = take_u32(&mut rest) {
            let length = (size & !INPUTS) as usize;
            let Some((record, after)) = rest.split_at_checked(length) else { break };
            rest = after;
            let read = match size & INPUTS == 0 {
                true => deps.take_path(record),
                false => deps.take_inputs(record),
            };
            if !length.is_multiple_of(4) || length > LARGEST_RECORD || read.is_none() {
                break;
            }
        }
        Some(deps)
    }

    fn take_path(&mut self, record: &[u8]) -> Option<()> {
        let (path, check) = record.split_at_checked(record.len().checked_sub(4)?)?;
        let id = u32::from_le_bytes(check.try_into().ok()?);
        if !id as usize != self.paths.len() {
            return None;
        }
        let padding = path.iter().rev().take(3).take_while(|byte| **byte == 0).count();
        let path = String::from_utf8_lossy(&path[..path.len() - padding]);
        self.paths.push(path.into_owned());
        Some(())
    }

    fn take_inputs(&mut self, mut record: &[u8]) -> Option<()> {
        let output = take_u32(&mut record)?;
        let low = take_u32(&mut record)?;
        let modified = match self.version {
            3 => i64::from(low.cast_signed()),
            _ => (u64::from(take_u32(&mut record)?) << 32 | u64::from(low)).cast_signed(),
        };
        let mut inputs = Vec::new();
        while let Some(input) = take_u32(&mut record) {
            inputs.push(input);
        }
        let known = |id: &u32| (*id as usize) < self.paths.len();
        (known(&output) && inputs.iter().all(known)).then_some(())?;
        self.outputs.insert(output, (modified, inputs));
        Some(())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend(self.version.to_le_bytes());
        for (id, path) in self.paths.iter().enumerate() {
            let padding = (4 - path.len() % 4) % 4;
            bytes.extend(((path.len() + padding + 4) as u32).to_le_bytes());
            bytes.extend(path.as_bytes());
            bytes.extend(std::iter::repeat_n(0, padding));
            bytes.extend((!(id as u32)).to_le_bytes());
        }
        for (output, (modified, inputs)) in &self.outputs {
            let words = inputs.len() + if self.version == 3 { 2 } else { 3 };
            bytes.extend(((words as u32 * 4) | INPUTS).to_le_bytes());
            bytes.extend(output.to_le_bytes());
            match self.version {
                3 => bytes.extend((*modified as i32).to_le_bytes()),
                _ => bytes.extend(modified.to_le_bytes()),
            }
            inputs.iter().for_each(|input| bytes.extend(input.to_le_bytes()));
        }
        bytes
    }

    /// Each output with its inputs, as they are spelled.
    pub(crate) fn edges(&self) -> Vec<(Vec<String>, Vec<String>)> {
        let path = |id: &u32| self.paths[*id as usize].clone();
        let edge = |(output, (_, inputs)): (&u32, &(i64, Vec<u32>))| {
            (vec![path(output)], inputs.iter().map(path).collect())
        };
        self.outputs.iter().map(edge).collect()
    }

    /// Takes what `other` knows of outputs that are not known here.
    pub(super) fn add(&mut self, other: &Self) {
        if other.version != self.version {
            return;
        }
        let mut ids: BTreeMap<String, u32> =
            self.paths.iter().zip(0..).map(|(path, id)| (path.clone(), id)).collect();
        let mut id_of = |paths: &mut Vec<String>, id: u32| {
            let path = &other.paths[id as usize];
            *ids.entry(path.clone()).or_insert_with(|| {
                paths.push(path.clone());
                (paths.len() - 1) as u32
            })
        };
        for (output, (modified, inputs)) in &other.outputs {
            let output = id_of(&mut self.paths, *output);
            let inputs = inputs.iter().map(|input| id_of(&mut self.paths, *input)).collect();
            self.outputs.entry(output).or_insert((*modified, inputs));
        }
    }

    /// Keeps what `keep` names, as made at `modified`.
    pub(super) fn renew(&mut self, keep: impl Fn(&str) -> bool, modified: (i64, u32)) {
        let paths = &self.paths;
        self.outputs.retain(|output, _| keep(&paths[*output as usize]));
        for (made, _) in self.outputs.values_mut() {
            *made = stamp(modified, *made);
        }
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deps(paths: &[&str], outputs: &[(u32, i64, &[u32])]) -> Deps {
        let outputs = outputs.iter().map(|(id, at, inputs)| (*id, (*at, inputs.to_vec())));
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Deps { version: 4, paths, outputs: outputs.collect() }
    }

    #[test]
    fn it_is_read_as_it_was_written_and_a_cut_one_as_far_as_it_goes() {
        let made = 1_700_000_000_000_000_000;
        let whole = deps(&["a.o", "/src/abcd", "x", "b.o"], &[(0, made, &[1, 2]), (3, made, &[1])]);
        let bytes = whole.encode();
        assert_eq!(Deps::decode(&bytes).unwrap(), whole);
        for cut in SIGNATURE.len() + 4..bytes.len() {
            let read = Deps::decode(&bytes[..cut]).unwrap();
            assert!(read.outputs.len() < 2 && whole.paths.starts_with(&read.paths), "{cut}");
        }
        assert_eq!(Deps::decode(b"# ninjadeps\n\x09\0\0\0"), None);
        assert_eq!(Deps::decode(b""), None);
    }

    #[test]
    fn two_are_merged_by_their_paths_and_renewed() {
        let made = 1_700_000_000_000_000_000;
        let mut ours = deps(&["a.o", "h"], &[(0, made, &[1])]);
        ours.add(&deps(&["h", "z", "b.o", "a.o"], &[(2, made, &[0, 1]), (3, made, &[1])]));
        ours.renew(|output| output == "b.o", (1_800_000_000, 3));
        let edges = [(vec!["b.o".to_owned()], vec!["h".to_owned(), "z".to_owned()])];
        assert_eq!(ours.edges(), edges);
        assert_eq!(ours.outputs.values().next().unwrap().0, 1_800_000_000_000_000_003);
    }
}
