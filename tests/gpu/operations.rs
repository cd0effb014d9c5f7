//! Each operation with its edge cases, against what torch computed.

use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_native::fixtures::{Fixture, Tolerance};

use crate::{
    compile, expect_none,
    fixtures::{self, Compiled, given, view},
    in_parallel,
};

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn operations_are_pytorchs() {
    let found = fixtures::all("ops");
    let outputs = AtomicUsize::new(0);
    let wrong = in_parallel(found.len(), |index| {
        let fixture = &found[index];
        let wrong = check(fixture, &outputs).map_err(|why| format!("{}: {why}", fixture.name))?;
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(format!("{}: {}", fixture.name, wrong.join("; "))),
        }
    });
    println!("{} outputs compared", outputs.load(Ordering::Relaxed));
    expect_none("archives of operations", found.len(), &wrong);
    assert!(outputs.into_inner() > found.len());
}

/// All outputs that are wrong.
fn check(fixture: &Fixture, outputs: &AtomicUsize) -> Result<Vec<String>, String> {
    let Compiled { lowered, calls } = fixtures::compile(fixture)?;
    let module = compile::module(&lowered)?;
    let mut wrong = Vec::new();
    for call in calls {
        let found = fixtures::run(&module, &given(&lowered, &call.inputs)?);
        let found = found.map_err(|e| format!("{:?}: {e}", call.name))?;
        for (expected, found) in call.outputs.iter().zip(&found) {
            wrong.extend(expected.mismatch(&view(found), Tolerance::of(found.dtype)));
            outputs.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(wrong)
}
