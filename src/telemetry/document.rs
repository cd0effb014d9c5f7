//! `deploy/METRICS.md`: the table of metrics, for people and for tools.
//!
//! Invariant: the page is made of [`table`] alone; a test compares it with the file.

use super::table::{self, Group};

/// The whole page.
pub fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Written by `KILN_WRITE_METRICS=1 cargo test --locked -p kiln --lib telemetry`, from the \
         table in `src/telemetry/table/`.\n\n\
         A node exports them at its HTTP port, `/metrics`. Times are in seconds, sizes in bytes. \
         The same as JSON: `kiln metrics --json`, of all nodes with `--cluster`. A histogram has \
         the series `_bucket` (label `le`), `_sum` and `_count`.\n",
    );
    for group in table::GROUPS {
        put(&mut page, group);
    }
    page
}

fn put(page: &mut String, group: &Group) {
    page.push_str(&format!("\n## {}\n\n", group.title));
    page.push_str("| metric | kind | labels | what it says |\n|---|---|---|---|\n");
    for metric in group.metrics {
        let labels: Vec<String> = metric.labels.iter().map(|name| format!("`{name}`")).collect();
        page.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            metric.help
        ));
    }
}
