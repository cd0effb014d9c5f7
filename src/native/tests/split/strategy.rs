//! Whole or in pieces.

use super::{build, model};
use crate::split::{Budget, Choice, Piecewise, Reason, Settings, SplitError, strategy};

fn why(reasons: &[Reason]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_large_model_of_equal_layers_is_compiled_in_pieces() {
    let found = strategy(&model("qwen3_lm_f32_static.new"), &Settings::default()).unwrap();
    assert_eq!(found.choice, Choice::Piecewise);
    let text = why(&found.reasons);
    for part in [
        "as a whole, over",
        "operations, over",
        "different pieces take",
        "16 operations to cut at",
        "equal layers: 16",
        "50 pieces, 5 different",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(found.split.is_some_and(|split| split.items.len() == 50));
}

#[test]
fn a_small_one_is_compiled_as_a_whole() {
    let found = strategy(&model("llama_block_f32_static.new"), &Settings::default()).unwrap();
    assert_eq!(found.choice, Choice::Full);
    assert!(matches!(found.reasons[..], [Reason::Small { .. }]), "{}", why(&found.reasons));
    let found = strategy(&build::chain("8", 3), &Settings::default()).unwrap();
    assert_eq!(found.reasons, [Reason::OnePiece]);
}

#[test]
fn somebody_may_say_so() {
    let (large, small) = (model("qwen3_lm_f32_static.new"), model("llama_block_f32_static.new"));
    let told = |piecewise| Settings { piecewise, ..Settings::default() };
    let found = strategy(&large, &told(Piecewise::Never)).unwrap();
    assert_eq!(
        (found.choice, found.reasons),
        (Choice::Full, vec![Reason::Asked { piecewise: Piecewise::Never }])
    );
    let found = strategy(&small, &told(Piecewise::Always)).unwrap();
    assert_eq!(found.choice, Choice::Piecewise);
    assert_eq!(found.reasons[0], Reason::Asked { piecewise: Piecewise::Always });
    assert_eq!("always".parse(), Ok(Piecewise::Always));
    assert!("maybe".parse::<Piecewise>().is_err());
}

#[test]
fn what_cannot_be_split_is_compiled_as_a_whole_unless_asked_for() {
    let mut graph = build::chain("8", 3);
    graph.nodes[1].op = "aten.exp_.default".to_owned();
    let found = strategy(&graph, &Settings::default()).unwrap();
    assert_eq!(found.choice, Choice::Full);
    assert!(matches!(&found.reasons[..], [Reason::Refused { error }] if error.contains("exp_")));
    let always = Settings { piecewise: Piecewise::Always, ..Settings::default() };
    assert!(matches!(strategy(&graph, &always), Err(SplitError::Mutation { .. })));
}

#[test]
fn what_compiles_cost_is_the_callers_to_say() {
    let graph = model("qwen3_lm_f32_static.new");
    let mut settings = Settings::default();
    settings.whole = Budget { most_operations: 0, ..settings.whole };
    // What takes a second however much there is of it is best compiled once.
    settings.coefficients = crate::split::Coefficients {
        seconds: 1.0,
        seconds_per_operation: 0.0,
        seconds_per_product: 0.0,
        seconds_per_attention: 0.0,
        ..Default::default()
    };
    assert_eq!(strategy(&graph, &settings).unwrap().choice, Choice::Full);
    settings.coefficients.seconds_per_attention = 1.0;
    assert_eq!(strategy(&graph, &settings).unwrap().choice, Choice::Piecewise);
}

#[test]
fn reasons_and_settings_are_data() {
    let found = strategy(&model("qwen3_lm_f32_static.new"), &Settings::default()).unwrap();
    let text = serde_json::to_string(&found.reasons).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Reason>>(&text).unwrap(), found.reasons);
    let settings: Settings = serde_json::from_str(r#"{"piecewise": "never"}"#).unwrap();
    assert_eq!(settings, Settings { piecewise: Piecewise::Never, ..Settings::default() });
    assert!(serde_json::from_str::<Settings>(r#"{"pieces": 3}"#).is_err());
}
