//! The table holds what the source records, and the page what the table has.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{document, table};

/// Kind and labels of a metric, as the source records it.
type Recorded = BTreeMap<String, (String, BTreeSet<String>)>;

/// Macros of the facade, by what they record.
const MACROS: [(&str, &str); 3] =
    [("counter!(", "counter"), ("gauge!(", "gauge"), ("histogram!(", "histogram")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.ends_with("telemetry/tests.rs") {
            // These are not recorded.
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All that `src` and `cluster/src` record with a name of its own.
fn recorded() -> Recorded {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("cluster/src"), &mut files);
    let mut all = Recorded::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (opening, kind) in MACROS {
            for (at, _) in text.match_indices(opening) {
                let arguments = arguments(&text[at + opening.len()..]);
                let Some(name) = quoted(arguments).next().filter(|n| n.starts_with("kiln_")) else {
                    continue;
                };
                let labels = arguments
                    .match_indices("=>")
                    .map(|(at, _)| quoted(&arguments[..at]).last().unwrap().to_owned());
                let labels: BTreeSet<String> = labels.collect();
                let known = all.entry(name.to_owned()).or_insert((kind.to_owned(), labels.clone()));
                assert_eq!(*known, (kind.to_owned(), labels), "{name} in {}", file.display());
            }
        }
    }
    // Those that a table of names records.
    let table = std::fs::read_to_string(root().join("src/resp/counters.rs")).unwrap();
    for name in quoted(&table).filter(|n| n.starts_with("kiln_resp_") && n.ends_with("_total")) {
        all.insert(name.to_owned(), ("counter".to_owned(), BTreeSet::new()));
    }
    all
}

/// Up to the parenthesis that closes the call.
fn arguments(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth < 0
    });
    &text[..end.unwrap()]
}

/// Literals without escapes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

#[test]
fn the_table_has_what_is_recorded_and_nothing_else() {
    let recorded = recorded();
    for (name, (kind, labels)) in &recorded {
        let metric = table::find(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        assert_eq!(metric.kind.name(), kind, "{name}");
        let named: BTreeSet<String> = metric.labels.iter().map(|l| (*l).to_owned()).collect();
        assert_eq!(&named, labels, "labels of {name}");
    }
    for metric in table::all() {
        assert!(recorded.contains_key(metric.name), "nothing records {}", metric.name);
    }
}

#[test]
fn names_are_as_prometheus_wants_them_and_none_is_there_twice() {
    let mut names = BTreeSet::new();
    for metric in table::all() {
        assert!(names.insert(metric.name), "{} twice", metric.name);
        let total = metric.name.ends_with("_total");
        assert_eq!(total, metric.kind == super::Kind::Counter, "{}", metric.name);
        let unit = metric.unit.as_str();
        let has_unit = unit == "count" || metric.name.contains(unit);
        assert!(has_unit, "{} is in {unit}", metric.name);
        if let super::Kind::Histogram(buckets) = metric.kind {
            assert!(buckets.is_sorted(), "{}", metric.name);
        }
    }
}

/// `KILN_WRITE_METRICS=1` writes it.
#[test]
fn the_page_about_metrics_is_the_table() {
    let path = root().join("deploy/METRICS.md");
    if std::env::var_os("KILN_WRITE_METRICS").is_some() {
        std::fs::write(&path, document::page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == document::page(), "KILN_WRITE_METRICS=1 writes deploy/METRICS.md anew");
}
