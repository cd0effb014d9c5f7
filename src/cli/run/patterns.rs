//! Which files of a folder are not taken along.
//!
//! Invariant: pure: the same path gives the same answer at capture and at restore.

use std::sync::Arc;

use super::profiles::NEVER;

/// Patterns of names. `*` stands for any characters. One with a leading `/` is
/// compared with a path from the folder down, the others with each part of it.
#[derive(Debug, Clone)]
pub(crate) struct Patterns(Arc<[String]>);

impl Patterns {
    /// [`NEVER`], the profile's and the user's.
    pub(crate) fn new(profile: &[&str], user: &[String]) -> Self {
        let own = NEVER.iter().chain(profile).map(|pattern| (*pattern).to_owned());
        Self(own.chain(user.iter().cloned()).collect())
    }

    /// Whether the file at `path`, or a folder that it is in, is left out.
    pub(crate) fn leave_out(&self, path: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_prefix('/') {
            Some(pattern) => {
                let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
                ends.into_iter().any(|end| matches(pattern, &path[..end]))
            }
            None => path.split('/').any(|part| matches(pattern, part)),
        })
    }
}

/// Whether `pattern` stands for all of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in [("*.tmp", ".1.2.tmp"), ("a*c*e", "abcde"), ("a", "a"), ("*", "")] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("*.tmp", "tmp"), ("a*a", "a"), ("a", "ab"), ("a*c", "abd")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn locks_and_temporary_files_are_never_taken() {
        let patterns = Patterns::new(&["/cubins", "/p2p*"], &["*.log".into()]);
        for path in [
            "ext/lock",
            "locks/k.lock",
            "K/tmp.pid_1_x/k.cubin",
            ".kiln-0011/0",
            "cubins/a/b",
            "p2p_0.json",
            "a/run.log",
            ".1.2.tmp",
        ] {
            assert!(patterns.leave_out(path), "{path}");
        }
        for path in ["a/cubins/x", "K/k.cubin", "blocks/a", "template.json", "K/__grp__k.json"] {
            assert!(!patterns.leave_out(path), "{path}");
        }
    }
}
