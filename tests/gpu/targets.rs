//! Fixtures for every target, by NVRTC alone: no GPU is asked.
//!
//! ```sh
//! make test-targets TARGETS=all
//! ```
//!
//! Of all fixtures that takes long; without the variable these are [`SOME`], and
//! `TARGETS=models/,ops/` (`KILN_ONLY_PROGRAMS`) are those whose names have one of these.
//! `KILN_ONLY_TARGETS=sm_80,sm_100` compiles for these alone. Programs of one text are compiled
//! once for a target: what exporters of two versions write often is.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use kiln_native::Lowered;
use kiln_proto::{FailureKind, Target};

use crate::{compile, expect_none, in_parallel};

/// What the README's table has.
const TARGETS: [&str; 7] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_103", "sm_120"];
/// What is compiled where nobody says: products, rows, open sizes, caches that are written.
const SOME: &str = "block_bf16,block_f32_dynamic,state/";
/// Of one folder of fixtures, and of those in it.
const FOLDERS: [&str; 5] = ["", "models", "ops", "state", "decode"];

/// The archives below the folder of fixtures: name and bytes.
fn archives() -> Vec<(String, Vec<u8>)> {
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let root = std::env::var_os("KILN_FIXTURES").map_or_else(own, PathBuf::from);
    let mut found = Vec::new();
    for folder in FOLDERS {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            if path.extension().is_some_and(|ending| ending == "pt2") {
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
#[ignore = "compiles for long, without a GPU: KILN_NVRTC_DIR"]
fn fixtures_compile_for_every_target() {
    let only = std::env::var("KILN_ONLY_TARGETS").unwrap_or_default();
    let is_wanted = |name: &&str| only.is_empty() || only.split(',').any(|own| own == *name);
    let targets: Vec<&str> = TARGETS.into_iter().filter(is_wanted).collect();
    let only = std::env::var("KILN_ONLY_PROGRAMS").unwrap_or_else(|_| SOME.to_owned());
    let mut archives = archives();
    archives.retain(|(name, _)| only == "all" || only.split(',').any(|own| name.contains(own)));
    assert!(
        !targets.is_empty() && !archives.is_empty(),
        "of {TARGETS:?} and programs none is left"
    );
    let (major, minor) = compile::nvrtc();
    println!("NVRTC {major}.{minor}");
    let mut all = Vec::new();
    for target in targets {
        let parsed: Target = target.parse().unwrap();
        let (mut known, mut refused) = (HashSet::new(), 0);
        for (name, archive) in &archives {
            match kiln_native::lower(archive, &BTreeMap::new(), parsed) {
                Ok(lowered)
                    if known.insert((lowered.source.clone(), lowered.nvrtc_options.clone())) =>
                {
                    all.push((target, name, lowered));
                }
                Ok(_) => {}
                // What the fixture is there for: without a form, before any target counts.
                Err(failure) if is_to_be_refused(name) => {
                    assert_eq!(failure.kind, FailureKind::UnsupportedOp, "{name}");
                    refused += 1;
                }
                Err(failure) => panic!("{target}, {name}: {}", failure.message),
            }
        }
        println!("{target}: {} texts of {} programs", known.len(), archives.len() - refused);
    }
    let wrong = in_parallel(all.len(), |at| {
        let (target, name, lowered) = &all[at];
        let done = compiles(lowered);
        println!("{target}, {name}: {}", done.as_ref().map_or("wrong", |()| "ok"));
        done.map_err(|why| format!("{target}, {name}: {why}"))
    });
    expect_none("programs for a target", all.len(), &wrong);
}

/// To machine code that has each kernel which the plan launches.
fn compiles(lowered: &Lowered) -> Result<(), String> {
    let code = kiln_native::cubin::read(&compile::cubin(lowered)?)?;
    let lost = lowered.plan.kernels.iter().find(|own| !code.kernels.contains_key(&own.name));
    lost.map_or(Ok(()), |kernel| Err(format!("{} is not in it", kernel.name)))
}

fn is_to_be_refused(name: &str) -> bool {
    let file = Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    file.ends_with(".refused.pt2") || file.starts_with("unknown.")
}
