//! Markup that text cannot leave.
//!
//! Invariant: what is written parses as HTML and as XML, whatever the texts in it are: they
//! come from strangers. Text becomes markup in [`text`] alone, and attributes in [`element`];
//! names of elements and attributes are in the source. A character that shows nothing, or
//! turns what stands beside it around, is written as its number.

use std::fmt::Write;

/// Characters of one text, at most.
const LONGEST: usize = 200;

/// A piece of a page.
#[derive(Debug, Clone, Default)]
pub(super) struct Html(String);

impl Html {
    /// Adds what comes after it.
    pub(super) fn push(&mut self, next: Html) {
        let Self(next) = next;
        self.0.push_str(&next);
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

impl FromIterator<Html> for Html {
    fn from_iter<I: IntoIterator<Item = Html>>(parts: I) -> Self {
        let mut all = Self::default();
        parts.into_iter().for_each(|part| all.push(part));
        all
    }
}

/// What is in the source already: style sheets and the like.
pub(super) fn fixed(markup: &'static str) -> Html {
    Html(markup.to_owned())
}

/// A text, cut where it is too long.
pub(super) fn text(text: impl AsRef<str>) -> Html {
    Html(escaped(text.as_ref()))
}

/// `<name a="b">content</name>`.
pub(super) fn element(
    name: &'static str,
    attributes: &[(&'static str, &str)],
    content: impl Into<Html>,
) -> Html {
    let mut html = format!("<{name}");
    for (attribute, value) in attributes {
        let _ = write!(html, " {attribute}=\"{}\"", escaped(value));
    }
    html.push('>');
    html.push_str(&content.into().0);
    let _ = write!(html, "</{name}>");
    Html(html)
}

impl From<&str> for Html {
    fn from(plain: &str) -> Self {
        text(plain)
    }
}

impl From<String> for Html {
    fn from(plain: String) -> Self {
        text(plain)
    }
}

/// A row: where links to it lead, and its cells.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) cells: Vec<Html>,
}

/// Rows under headings.
pub(super) fn table(headings: &[&str], rows: impl IntoIterator<Item = Row>) -> Html {
    let heading = |name: &&str| element("th", &[("scope", "col")], *name);
    let head = element("tr", &[], headings.iter().map(heading).collect::<Html>());
    let row = |row: Row| {
        let cells: Html = row.cells.into_iter().map(|cell| element("td", &[], cell)).collect();
        element("tr", &[("id", row.id.as_str())], cells)
    };
    let body: Html = rows.into_iter().map(row).collect();
    let table = [element("thead", &[], head), element("tbody", &[], body)];
    let table = element("table", &[], table.into_iter().collect::<Html>());
    element("div", &[("class", "scroll")], table)
}

/// A link to a place of the page.
pub(super) fn link(id: &str, shown: &str) -> Html {
    element("a", &[("href", format!("#{id}").as_str())], shown)
}

/// Things in one cell, the first `most` of them, with a word on the others.
pub(super) fn list(things: Vec<Html>, most: usize) -> Html {
    let others = things.len().saturating_sub(most);
    let mut all = Html::default();
    for (at, thing) in things.into_iter().take(most).enumerate() {
        if at > 0 {
            all.push(text(", "));
        }
        all.push(thing);
    }
    if others > 0 {
        all.push(text(format!(" and {others} more")));
    }
    all
}

fn escaped(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        if at == LONGEST {
            made.push('…');
            break;
        }
        match c {
            '&' => made.push_str("&amp;"),
            '<' => made.push_str("&lt;"),
            '>' => made.push_str("&gt;"),
            '"' => made.push_str("&quot;"),
            '\'' => made.push_str("&#39;"),
            c if is_hidden(c) => made.extend(c.escape_unicode()),
            c => made.push(c),
        }
    }
    made
}

/// Whether a character shows nothing by itself, or is no character of XML.
fn is_hidden(c: char) -> bool {
    let number = u32::from(c);
    c.is_control()
        // What text is turned around with, and what has no width.
        || matches!(number, 0xAD | 0x61C | 0x180E | 0x200B..=0x200F | 0x2028..=0x202E)
        || matches!(number, 0x2060..=0x206F | 0xFE00..=0xFE0F | 0xFEFF | 0xFFF0..=0xFFFB)
        || matches!(number, 0xE0000..=0xE0FFF | 0xFDD0..=0xFDEF)
        // No characters, in any plane.
        || number & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let hostile = "</td></script><script>alert('1')</script>&\"";
        let made = element("td", &[("title", hostile)], hostile).into_string();
        assert_eq!(made.matches('<').count(), 2, "{made}");
        assert_eq!(made.matches('"').count(), 2, "{made}");
        assert!(made.contains("&lt;/script&gt;") && made.contains("&#39;1&#39;"), "{made}");
    }

    #[test]
    fn what_shows_nothing_is_a_number() {
        let made =
            text("a\u{0}\u{1b}[2J\n\u{202e}\u{200b}\u{ffff}\u{1fffe}\u{85}é語").into_string();
        assert_eq!(made, "a\\u{0}\\u{1b}[2J\\u{a}\\u{202e}\\u{200b}\\u{ffff}\\u{1fffe}\\u{85}é語");
    }

    #[test]
    fn long_texts_and_long_lists_end() {
        let made = text("語".repeat(10_000)).into_string();
        assert_eq!(made.chars().count(), LONGEST + 1);
        let things = (0..9).map(|n| text(n.to_string())).collect();
        assert_eq!(list(things, 3).into_string(), "0, 1, 2 and 6 more");
    }
}
