//! Prometheus' text form, read back: what `/metrics` shows, as data.
//!
//! Reading what this process has just written keeps one list of series for both.
//!
//! Invariant: a line that is no sample is left out, never a panic; a histogram's buckets
//! are cumulative and end with `+Inf`.

use std::collections::BTreeMap;

/// Series' labels, sorted.
pub type Labels = BTreeMap<String, String>;

/// All series of one metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Family {
    /// The metric's name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Sorted by labels.
    pub series: BTreeMap<Labels, Value>,
}

/// The value of one series.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Histogram(Histogram),
}

/// How often which value was seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// Of all values.
    pub sum: f64,
    /// How many there are.
    pub count: u64,
    /// Upper ends, rising, with how many values are at or below each.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// The mean; 0 where there is nothing.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }

    /// The value that a share `q` of all is at or below, interpolated within its bucket as
    /// Prometheus does; 0 where there is nothing.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = q * self.count as f64;
        let Some(at) = self.buckets.iter().position(|(_, count)| *count as f64 >= rank) else {
            return 0.0;
        };
        if self.count == 0 {
            return 0.0;
        }
        let (below, seen) = match at {
            0 => (0.0, 0),
            at => self.buckets[at - 1],
        };
        let (end, count) = self.buckets[at];
        if end.is_infinite() || count == seen {
            // Beyond the last bucket, all that is known is where it begins.
            return below;
        }
        below + (end - below) * (rank - seen as f64) / (count - seen) as f64
    }

    /// Adds another one's values. Both have the buckets of one table; where they do not,
    /// nodes differ in version, and the buckets of both that are alike count.
    pub fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.count += other.count;
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        let theirs = |end: f64| other.buckets.iter().find(|(known, _)| *known == end);
        self.buckets.retain(|(end, _)| other.buckets.is_empty() || theirs(*end).is_some());
        for (end, count) in &mut self.buckets {
            *count += theirs(*end).map_or(0, |(_, count)| *count);
        }
    }
}

/// Reads a page of metrics; families are sorted by name.
pub fn read(page: &str) -> Vec<Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            if let Some((name, kind)) = declared.split_once(' ') {
                let family = families.entry(name.to_owned()).or_default();
                (family.name, family.kind) = (name.to_owned(), kind.trim().to_owned());
            }
        } else if !line.starts_with('#')
            && let Some(sample) = Sample::read(line)
        {
            sample.put_into(&mut families);
        }
    }
    families.into_values().collect()
}

struct Sample<'a> {
    name: &'a str,
    labels: Labels,
    value: f64,
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, labels(rest)?),
            None => (series, Labels::new()),
        };
        Some(Self { name, labels, value })
    }

    fn put_into(mut self, families: &mut BTreeMap<String, Family>) {
        if let Some(family) = families.get_mut(self.name) {
            family.series.insert(self.labels, Value::Number(self.value));
            return;
        }
        let part = ["_bucket", "_sum", "_count"]
            .into_iter()
            .find_map(|suffix| Some((self.name.strip_suffix(suffix)?, suffix)));
        let Some((name, part)) = part else { return };
        let end = self.labels.remove("le").and_then(|end| end.parse().ok());
        let Some(family) = families.get_mut(name) else { return };
        let empty = Value::Histogram(Histogram::default());
        let Value::Histogram(histogram) = family.series.entry(self.labels).or_insert(empty) else {
            return;
        };
        match (part, end) {
            ("_sum", _) => histogram.sum = self.value,
            ("_count", _) => histogram.count = self.value as u64,
            (_, Some(end)) => histogram.buckets.push((end, self.value as u64)),
            (_, None) => {}
        }
    }
}

/// `a="1",b="2"}`, with `\\`, `\"` and `\n` in the values.
fn labels(mut text: &str) -> Option<Labels> {
    let mut found = Labels::new();
    while !text.starts_with('}') {
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        found.insert(name.to_owned(), value);
        text = rest[end..].trim_start_matches(',');
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP a_total What a does: with \"quotes\".
# TYPE a_total counter
a_total{kind=\"x\\\"y,}\",of=\"z\"} 3
a_total 4

# TYPE t_seconds histogram
t_seconds_bucket{le=\"0.1\"} 1
t_seconds_bucket{le=\"1\"} 3
t_seconds_bucket{le=\"+Inf\"} 4
t_seconds_sum 7.5
t_seconds_count 4
garbage
";

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_page_is_read_back_as_it_was_written() {
        let families = read(PAGE);
        let [a, t] = &families[..] else { panic!("{families:?}") };
        assert_eq!((a.name.as_str(), a.kind.as_str()), ("a_total", "counter"));
        let named = labels(&[("kind", "x\"y,}"), ("of", "z")]);
        assert_eq!(a.series[&named], Value::Number(3.0));
        assert_eq!(a.series[&labels(&[])], Value::Number(4.0));
        let Value::Histogram(t) = &t.series[&labels(&[])] else { panic!("{t:?}") };
        assert_eq!(t.buckets, [(0.1, 1), (1.0, 3), (f64::INFINITY, 4)]);
        assert_eq!((t.sum, t.count, t.mean()), (7.5, 4, 1.875));
    }

    #[test]
    fn quantiles_are_interpolated_and_never_invented() {
        let buckets = vec![(0.1, 1), (1.0, 3), (f64::INFINITY, 4)];
        let histogram = Histogram { sum: 7.5, count: 4, buckets };
        assert!((histogram.quantile(0.5) - 0.55).abs() < 1e-9, "{}", histogram.quantile(0.5));
        assert_eq!(histogram.quantile(0.99), 1.0, "beyond the last bucket");
        assert_eq!(Histogram::default().quantile(0.5), 0.0);
    }

    #[test]
    fn histograms_of_two_nodes_add_up() {
        let buckets = vec![(0.1, 1), (f64::INFINITY, 2)];
        let one = Histogram { sum: 2.0, count: 2, buckets };
        let mut both = Histogram::default();
        both.add(&one);
        both.add(&one);
        assert_eq!(both.buckets, [(0.1, 2), (f64::INFINITY, 4)]);
        assert_eq!((both.sum, both.count), (4.0, 4));
    }
}
