//! Limits that every door of a node shares.
//!
//! Invariant: a limit stands here once, so that what one door lets in no other
//! door refuses.

/// Largest gRPC message in bytes, either way; larger data is streamed.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Bytes in one chunk of a stream.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Longest name of a namespace in bytes.
const LONGEST_NAMESPACE: usize = 64;

/// What [`is_namespace`] accepts, for error messages.
pub const NAMESPACE_RULE: &str = "at most 64 letters, digits, '-', '_' and '.'";

/// Whether a namespace may have this name. Names appear in metrics and listings,
/// so they are short and plain; the empty one is a namespace too.
pub fn is_namespace(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= LONGEST_NAMESPACE && name.bytes().all(plain)
}

/// Whether `pattern` may stand for namespaces: a name, or the beginning of names with `*`
/// behind it; `*` alone stands for all.
pub fn is_pattern(pattern: &str) -> bool {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    is_namespace(name) && !pattern.is_empty()
}

/// Whether `pattern` stands for `namespace`.
pub fn namespace_matches(pattern: &str, namespace: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => namespace.starts_with(beginning),
        None => pattern == namespace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_short_and_plain() {
        for good in ["", "a", "team-1_x.y", &"a".repeat(64)] {
            assert!(is_namespace(good), "{good}");
        }
        for bad in ["a b", "a/b", "ü", "a\n", &"a".repeat(65)] {
            assert!(!is_namespace(bad), "{bad}");
        }
    }
}
