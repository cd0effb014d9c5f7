//! The id of a call, from the caller's header to the next node's.
#![allow(clippy::unwrap_used)]

use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::config::TraceConfig;

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNDECIDED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

fn traced(test: impl FnOnce()) {
    let tracing = Tracing::start(&TraceConfig::default()).unwrap();
    with_default(tracing_subscriber::registry().with(tracing.layer()), test);
}

#[test]
fn a_caller_s_trace_goes_on_to_the_next_node_under_a_span_of_its_own() {
    traced(|| {
        for (parent, flags) in [(CALLER, "01"), (UNDECIDED, "00")] {
            let span = incoming("Compile", Some(parent), Some(1));
            assert_eq!(Id::of(&span).unwrap().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
            let next = span.in_scope(outgoing).unwrap();
            let parts: Vec<&str> = next.split('-').collect();
            assert_eq!(parts[1], "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_ne!(parts[2], "00f067aa0ba902b7", "the parent is this node's span");
            assert_eq!(parts[3], flags, "the caller decides whether it is traced");
            assert_eq!(span.in_scope(of_traced).is_some(), flags == "01");
            let step = span.in_scope(|| step!("fetch"));
            assert_eq!(Id::of(&step), Id::of(&span));
        }
    });
}

#[test]
fn every_call_has_an_id_and_what_no_call_began_has_none() {
    traced(|| {
        let (one, other) = (incoming("Status", None, None), incoming("Status", None, None));
        assert_ne!(Id::of(&one).unwrap(), Id::of(&other).unwrap());
        let garbage = incoming("Status", Some("00-zz-1-01"), None);
        assert!(Id::of(&garbage).is_some());
        assert!(step!("fetch").is_none());
        assert_eq!(outgoing(), None);
    });
}
