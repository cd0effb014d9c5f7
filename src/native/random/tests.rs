//! The generator's own promises.

use std::collections::BTreeMap;

use super::*;
use crate::{
    decompose::decompose,
    interp::{self, Settings},
};

#[test]
fn the_same_seed_gives_the_same_graph_and_inputs() {
    for seed in 0..20 {
        let (a, b) = (Random::new(seed, 12), Random::new(seed, 12));
        assert_eq!(a.graph, b.graph);
        assert_eq!(a.cases, b.cases);
        assert_eq!(a.bounds, b.bounds);
    }
}

#[test]
fn every_operation_comes_up() {
    let mut count = BTreeMap::new();
    for seed in 0..1500 {
        for node in Random::new(seed, 12).graph.nodes {
            *count.entry(node.op).or_insert(0) += 1;
        }
    }
    let rare: Vec<_> = count.iter().filter(|(_, n)| **n < 10).collect();
    assert!(rare.is_empty() && count.len() >= 125, "{} operations, rare: {rare:?}", count.len());
}

#[test]
fn every_graph_is_understood_and_gives_what_it_says() {
    let mut wrong = Vec::new();
    for seed in 0..600 {
        let random = Random::new(seed, 1 + seed as usize % 16);
        if let Err(why) = understood(&random) {
            wrong.push(format!("seed {seed}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn understood(random: &Random) -> Result<(), String> {
    let Random { graph, cases, bounds, .. } = random;
    let program = decompose(graph).map_err(|failure| failure.message)?;
    for case in cases {
        let found = interp::run(&program, case, &Settings::default());
        let found = found.map_err(|failure| failure.message)?;
        for ((id, bound), tensor) in graph.outputs.iter().zip(bounds).zip(&found) {
            let (value, dtype) = (graph.value(*id), tensor.dtype);
            if dtype != value.ty.dtype {
                return Err(format!("{} is {dtype}, not {}", value.name, value.ty.dtype));
            }
            bound.check(tensor, tensor)?;
            let numbers = tensor.to_f64().map_err(|failure| failure.message)?;
            let (low, high) = (bound.low - bound.error, bound.high + bound.error);
            let outside = numbers.iter().find(|x| x.is_finite() && !(low..=high).contains(*x));
            if let Some(outside) = outside {
                return Err(format!("{} has {outside}, not {low} to {high}", value.name));
            }
        }
    }
    Ok(())
}

/// `SEED=.. STEPS=..`: what a seed makes.
#[test]
#[ignore = "shows one graph"]
fn show() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seed, steps) = (number("SEED").unwrap_or_default(), number("STEPS").unwrap_or(12));
    let random = Random::new(seed, steps as usize);
    println!("{random}\n{:#?}", decompose(&random.graph));
}
