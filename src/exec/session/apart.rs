//! Whether memory that runs write to is given as another input as well.
//!
//! Invariant: kernels read what they do not write as if nobody wrote it; so a call never
//! begins where an input that is written to shares a byte with another one. Inputs that share
//! none are refused only where that would take too long to tell.

use std::collections::BTreeMap;

use kiln_native::plan::Layout;

/// Steps in which it must be told whether two inputs share a byte.
const MOST_STEPS: i128 = 4096;

/// The bytes of an input, from where it starts: runs of equal length, at distances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    run: i128,
    /// Distances, and how often each is taken at most.
    steps: Vec<(i128, i128)>,
}

impl Form {
    /// Of a tensor whose elements have `bytes` bytes.
    pub(super) fn of(layout: &Layout, bytes: u64) -> Self {
        if layout.shape.contains(&0) {
            return Self { run: 0, steps: Vec::new() };
        }
        let bytes = i128::from(bytes);
        let dims = layout.shape.iter().zip(&layout.strides);
        let mut dims: Vec<(i128, i128)> =
            dims.map(|(size, stride)| (*stride as i128 * bytes, *size as i128 - 1)).collect();
        dims.sort_unstable();
        let (mut run, mut steps) = (bytes, Vec::new());
        for (step, last) in dims {
            if step <= run {
                // Without a gap.
                run += step * last;
            } else if last > 0 {
                steps.push((step, last));
            }
        }
        Self { run, steps }
    }

    /// From the first byte to the end of the last one.
    fn length(&self) -> i128 {
        self.run + self.steps.iter().map(|(step, last)| step * last).sum::<i128>()
    }
}

/// Where an input lies: bytes of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) form: Form,
    /// Whether runs write to it.
    pub(super) written: bool,
    pub(super) input: usize,
}

impl Span {
    fn end(&self) -> i128 {
        i128::from(self.start) + self.form.length()
    }
}

/// Two inputs, the first of which is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) written: usize,
    pub(super) other: usize,
    /// Whether they share a byte: false where that could not be told in time.
    pub(super) known: bool,
}

/// Two inputs that share bytes, or may.
pub(super) fn shared(mut spans: Vec<Span>) -> Option<Shared> {
    spans.retain(|span| span.form.run > 0);
    spans.sort_unstable_by_key(|span| span.start);
    // Of those that start before, the ones that reach as far.
    let (mut read, mut written): (Vec<&Span>, Vec<&Span>) = (Vec::new(), Vec::new());
    for span in &spans {
        let pair = |other: &&Span| {
            let known = share(span, other).map_or(Some(false), |yes| yes.then_some(true))?;
            let (a, b) = if span.written { (span, *other) } else { (*other, span) };
            Some(Shared { written: a.input, other: b.input, known })
        };
        let reaches = |before: &mut Vec<&Span>| {
            before.retain(|before| before.end() > i128::from(span.start));
            before.iter().find_map(pair)
        };
        let found = reaches(&mut written);
        let found = if span.written { found.or_else(|| reaches(&mut read)) } else { found };
        if found.is_some() {
            return found;
        }
        if span.written { written.push(span) } else { read.push(span) }
    }
    None
}

/// Whether two share a byte; none where that takes too long to tell.
fn share(a: &Span, b: &Span) -> Option<bool> {
    let (start_a, start_b) = (i128::from(a.start), i128::from(b.start));
    if a.end().min(b.end()) <= start_a.max(start_b) {
        return Some(false);
    }
    // A run of `a` starts at its start and some of its steps, one of `b` alike. They share a
    // byte where the difference of both is above -a.run and below b.run. With the steps of
    // `b` counted from its last one all signs are alike, and equal distances are one.
    let mut counts = BTreeMap::new();
    for (step, last) in a.form.steps.iter().chain(&b.form.steps) {
        *counts.entry(*step).or_insert(0) += last;
    }
    let base = start_a - start_b - (b.form.length() - b.form.run);
    // The largest first; with what those from each on reach at most, and of what all their
    // sums are multiples.
    let mut steps: Vec<(i128, i128, i128, i128)> = Vec::with_capacity(counts.len());
    let (mut reach, mut unit) = (0, 0);
    for (step, last) in counts {
        (reach, unit) = (reach + step * last, divisor(step, unit));
        steps.push((step, last, reach, unit));
    }
    steps.reverse();
    let reach_from = |at: usize| steps.get(at).map_or(0, |step| step.2);
    let (mut left, mut tried) = (vec![(0, 1 - a.form.run - base, b.form.run - 1 - base)], 0);
    while let Some((at, low, high)) = left.pop() {
        let reach = reach_from(at);
        // A sum between both?
        if (low <= 0 && high >= 0) || (low <= reach && high >= reach) {
            return Some(true);
        }
        let Some((step, last, _, unit)) = steps.get(at).copied() else { continue };
        if high < 0 || low > reach || high.div_euclid(unit) * unit < low {
            continue;
        }
        if at + 1 == steps.len() {
            return Some(true);
        }
        let first = -(reach_from(at + 1) - low).div_euclid(step);
        let (first, most) = (first.max(0), last.min(high.div_euclid(step)));
        tried += (most + 1 - first).max(0);
        if tried > MOST_STEPS {
            return None;
        }
        left.extend((first..=most).map(|n| (at + 1, low - step * n, high - step * n)));
    }
    Some(false)
}

/// The greatest common divisor.
const fn divisor(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn layout(shape: &[usize], strides: &[usize]) -> Layout {
        Layout { shape: shape.to_vec(), strides: strides.to_vec(), bytes: 0 }
    }

    /// All bytes, one by one.
    fn bytes(start: u64, layout: &Layout, size: u64) -> HashSet<u64> {
        let mut starts = HashSet::from([start]);
        for (count, stride) in layout.shape.iter().zip(&layout.strides) {
            let each = |start: &u64| {
                (0..*count).map(|i| start + (i * stride) as u64 * size).collect::<Vec<_>>()
            };
            starts = starts.iter().flat_map(each).collect();
        }
        starts.iter().flat_map(|start| *start..*start + size).collect()
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
            let mut own = Vec::new();
            let spans: Vec<Span> = (0..next(6) as usize)
                .map(|input| {
                    let rank = next(4);
                    let shape: Vec<usize> =
                        (0..rank).map(|_| [0, 1, 2, 2, 3, 4, 5][next(7) as usize]).collect();
                    let strides: Vec<usize> =
                        (0..rank).map(|_| [0, 1, 2, 3, 4, 6, 8, 12][next(8) as usize]).collect();
                    let (layout, start) = (layout(&shape, &strides), next(100));
                    own.push(bytes(start, &layout, 2));
                    Span { start, form: Form::of(&layout, 2), written: next(4) == 0, input }
                })
                .collect();
            let meet = |a: usize, b: usize| {
                (spans[a].written || spans[b].written) && !own[a].is_disjoint(&own[b])
            };
            let expected = (0..spans.len()).any(|a| (0..a).any(|b| meet(a, b)));
            let pair = shared(spans.clone());
            assert_eq!(pair.is_some(), expected, "{spans:?}");
            found[usize::from(expected)] += 1;
            if let Some(Shared { written, other, known }) = pair {
                assert!(known && spans[written].written && meet(written, other), "{pair:?}");
            }
        }
        assert!(found.iter().all(|count| *count > 1000), "{found:?}");
    }

    fn pair(a: (u64, Layout), b: (u64, Layout)) -> Option<Shared> {
        let span = |(start, layout): (u64, Layout), input| Span {
            start,
            form: Form::of(&layout, 4),
            written: input == 1,
            input,
        };
        shared(vec![span(a, 0), span(b, 1)])
    }

    /// Halves of a cache of keys and values, and columns of a matrix.
    #[test]
    fn views_that_lie_between_each_other_are_no_shared_memory() {
        let half = layout(&[3, 4, 100, 64], &[2 * 25_600, 6_400, 64, 1]);
        let yes = Some(Shared { written: 1, other: 0, known: true });
        assert_eq!(pair((0, half.clone()), (4 * 25_600, half.clone())), None);
        assert_eq!(pair((0, half.clone()), (4 * 25_599, half.clone())), yes);
        assert_eq!(pair((0, half.clone()), (4 * 51_200, half)), yes, "a later half is alike");
        let columns = |count| layout(&[1000, count], &[96, 1]);
        assert_eq!(pair((0, columns(48)), (4 * 48, columns(48))), None);
        assert_eq!(pair((0, columns(49)), (4 * 48, columns(48))), yes);
        let turned = |count| layout(&[count, 1000], &[1, 96]);
        assert_eq!(pair((0, turned(48)), (4 * 48, columns(48))), None);
        assert_eq!(pair((0, turned(49)), (4 * 48, columns(48))), yes);
        // Every second row, and the columns beside all.
        let rows = layout(&[500, 48], &[192, 1]);
        assert_eq!(pair((0, rows.clone()), (4 * 48, columns(48))), None);
        assert_eq!(pair((0, rows.clone()), (4 * 96, rows.clone())), None);
        assert_eq!(pair((0, rows.clone()), (4 * 2, rows)), yes);
    }

    /// Sums of many coprime distances: whether one of them fits is a search.
    #[test]
    fn what_takes_too_long_to_tell_is_refused_as_that() {
        let primes = [9973, 9967, 9949, 9941, 9931, 9929];
        let form = Form { run: 1, steps: primes.iter().map(|step| (*step, 9)).collect() };
        let other = Span { start: 200_001, form: form.clone(), written: true, input: 1 };
        let span = Span { start: 0, form, written: false, input: 0 };
        // However far they lie from each other: never that they share none.
        let pair = shared(vec![span, other]);
        assert!(pair.is_some_and(|pair| pair.written == 1), "{pair:?}");
    }
}
