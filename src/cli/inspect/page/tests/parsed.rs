//! A page, read as XML, and what every page keeps to.
//!
//! Invariant: a page that is no XML, that has anything from elsewhere, or a sign that is not
//! shown, fails.

use std::collections::{BTreeMap, HashSet};

use quick_xml::{Reader, XmlVersion, escape::resolve_predefined_entity, events::Event};

/// An element, with all text in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    pub(super) tag: String,
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) text: String,
}

/// All elements of a page, as they end. A page that is no XML fails.
fn parsed(page: &str) -> Vec<Element> {
    let mut reader = Reader::from_str(page);
    let (mut open, mut all): (Vec<Element>, Vec<Element>) = (Vec::new(), Vec::new());
    loop {
        let begin = |start: &quick_xml::events::BytesStart<'_>| {
            let mut element = Element {
                tag: String::from_utf8(start.name().as_ref().to_vec()).unwrap(),
                ..Element::default()
            };
            for attribute in start.attributes() {
                let attribute = attribute.unwrap();
                let value = attribute.normalized_value(XmlVersion::Implicit1_0).unwrap();
                let key = String::from_utf8(attribute.key.as_ref().to_vec()).unwrap();
                element.attributes.insert(key, value.into_owned());
            }
            element
        };
        let add = |open: &mut Vec<Element>, text: &str| {
            open.iter_mut().for_each(|element| element.text.push_str(text));
        };
        match reader.read_event().unwrap() {
            Event::Start(start) => {
                let element = begin(&start);
                open.push(element);
            }
            Event::Empty(start) => all.push(begin(&start)),
            Event::End(_) => all.push(open.pop().unwrap()),
            Event::Text(text) => add(&mut open, &text.decode().unwrap()),
            Event::GeneralRef(reference) => {
                let own = reference.resolve_char_ref().unwrap().map(String::from);
                let name = reference.decode().unwrap();
                let named = || resolve_predefined_entity(&name).unwrap().to_owned();
                add(&mut open, &own.unwrap_or_else(named));
            }
            Event::DocType(_) => {}
            Event::Eof => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(open.is_empty(), "{open:?}");
    all
}

/// What every page keeps to.
pub(super) fn judged(page: &str) -> Vec<Element> {
    let all = parsed(page);
    let mut ids = HashSet::new();
    for element in &all {
        assert_ne!(element.tag, "script", "no script");
        for (name, value) in &element.attributes {
            assert!(!name.starts_with("on") && name != "style", "{element:?}");
            if ["src", "href"].contains(&name.as_str()) {
                assert!(value.starts_with('#'), "from elsewhere: {value}");
            }
        }
        if let Some(id) = element.attributes.get("id") {
            assert!(ids.insert(id.clone()), "{id} is there twice");
        }
    }
    for element in all.iter().filter(|element| element.tag == "a") {
        let to = &element.attributes["href"][1..];
        assert!(ids.contains(to), "a link to {to}, which is not there");
    }
    assert!(!page.contains("url(") && !page.contains("@import"), "from elsewhere");
    let hidden = |c: &char| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c);
    assert_eq!(page.chars().find(hidden), None);
    all
}
