//! Random graphs in pieces: views and aliases, symbolic sizes, constants, inputs
//! with holes. There are no operations in place, which are refused: see `rules`.

use super::{finest, same};
use crate::{
    lower_parsed,
    random::Random,
    split::{Settings, split},
    tests::EMULATED,
};

/// Settings from few large pieces to many small ones.
fn settings(seed: u64) -> Settings {
    let mut settings = finest();
    settings.budget.most_operations = [1, 2, 5, 40][(seed % 4) as usize];
    settings.layers = seed % 8 < 4;
    settings
}

fn graph(seed: u64) -> Random {
    let steps = 1 + (seed % 24) as usize;
    if seed.is_multiple_of(3) {
        Random::with_aliases(seed, steps)
    } else {
        Random::new(seed, steps)
    }
}

/// `KILN_SPLIT=COUNT[@SEED]` runs so many.
#[test]
fn random_graphs_in_pieces_give_what_they_give_as_a_whole() {
    let told = std::env::var("KILN_SPLIT").unwrap_or_else(|_| "300".to_owned());
    let (count, first) = told.split_once('@').unwrap_or((&told, "0"));
    let (count, first): (u64, u64) = (count.parse().unwrap(), first.parse().unwrap());
    let (mut wrong, mut pieces, mut symbolic, mut in_place) = (Vec::new(), 0, 0, 0);
    for seed in first..first + count {
        let random = graph(seed);
        match same(&random.graph, &random.cases, &settings(seed / 24)) {
            Ok(done) => {
                pieces += done.split.items.len();
                symbolic += usize::from(!done.stitching.symbols.is_empty());
                let calls = done.stitching.calls.iter();
                in_place += calls.filter(|call| call.in_place.is_some()).count();
            }
            Err(why) => wrong.push(format!("seed {seed}: {why}\n{random}")),
        }
    }
    println!("{count} graphs, {symbolic} symbolic, {pieces} pieces, {in_place} in place");
    assert!(wrong.is_empty(), "{} wrong, the first:\n{}", wrong.len(), wrong[0]);
    assert!(pieces > 2 * count as usize && symbolic * 5 > count as usize, "too tame");
}

#[test]
fn what_compiles_as_a_whole_compiles_in_pieces() {
    for seed in 0..60 {
        let random = graph(seed);
        if lower_parsed(&random.graph, &Default::default(), EMULATED).is_err() {
            continue;
        }
        let split = split(&random.graph, &settings(seed)).unwrap();
        for piece in &split.pieces {
            let done = lower_parsed(split.graph(piece), &Default::default(), EMULATED);
            done.unwrap_or_else(|e| panic!("seed {seed}: {e}\n{random}"));
        }
    }
}
