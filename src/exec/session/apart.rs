//! Whether memory that runs write to is given as another input as well.
//!
//! Invariant: kernels read what they do not write as if nobody wrote it; so a call never
//! begins where an input that is written to shares a byte with another one.

/// Where an input lies: bytes of the device from `start` up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Whether runs write to it.
    pub(super) written: bool,
    pub(super) input: usize,
}

/// Two inputs that share bytes, the first of which is written to.
pub(super) fn shared(mut spans: Vec<Span>) -> Option<(usize, usize)> {
    spans.retain(|span| span.start < span.end);
    spans.sort_unstable();
    // Of those before, the ones that reach furthest.
    let (mut any, mut written): (Option<Span>, Option<Span>) = (None, None);
    for span in spans {
        let reaches = |before: Option<Span>| before.filter(|before| before.end > span.start);
        if let Some(before) = reaches(written) {
            return Some((before.input, span.input));
        }
        if let Some(before) = reaches(any).filter(|_| span.written) {
            return Some((span.input, before.input));
        }
        let further = |before: Option<Span>| before.filter(|before| before.end >= span.end);
        any = further(any).or(Some(span));
        if span.written {
            written = further(written).or(Some(span));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pairs, one by one.
    fn by_pairs(spans: &[Span]) -> bool {
        let meet = |a: &Span, b: &Span| {
            a.start.max(b.start) < a.end.min(b.end) && (a.written || b.written)
        };
        spans.iter().enumerate().any(|(i, a)| spans[i + 1..].iter().any(|b| meet(a, b)))
    }

    #[test]
    fn shared_bytes_are_found_where_one_of_both_is_written_to() {
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut found = [0; 2];
        for _ in 0..20_000 {
            let spans: Vec<Span> = (0..next(6) as usize)
                .map(|input| {
                    let start = next(40);
                    Span { start, end: start + next(9), written: next(4) == 0, input }
                })
                .collect();
            let pair = shared(spans.clone());
            assert_eq!(pair.is_some(), by_pairs(&spans), "{spans:?}");
            found[usize::from(pair.is_some())] += 1;
            if let Some((first, second)) = pair {
                let pair = [spans[first], spans[second]];
                assert!(pair[0].written && by_pairs(&pair), "{pair:?} of {spans:?}");
            }
        }
        assert!(found.iter().all(|count| *count > 1000), "{found:?}");
    }
}
