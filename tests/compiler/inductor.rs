//! Pieces for Inductor, rebuilt by real torch from what the node writes.
//!
//! `KILN_TORCH_PYTHON` names an interpreter that has torch (`make test-torch`
//! sets it, and runs the tests that need one: they are ignored elsewhere).

use std::process::Command;

use super::*;

/// Writes the graphs of all archives in `folder` as pieces are written, with what they
/// were called with, to be compared by a script with what they gave.
fn rebuilt(folder: &str) {
    let python = std::env::var_os("KILN_TORCH_PYTHON").expect("KILN_TORCH_PYTHON is set");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = root.join("tests/fixtures").join(folder);
    let written = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(&fixtures).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pt2") {
            continue;
        }
        // What no compiler of pieces reads is none.
        let Ok(graph) = kiln_native::read_graph(&std::fs::read(&path).unwrap()) else { continue };
        let portable = kiln_native::portable(&graph).unwrap();
        let own = written.path().join(path.file_stem().unwrap());
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("graph.json"), portable.graph).unwrap();
        std::fs::write(own.join("constants.bin"), portable.constants).unwrap();
        count += 1;
    }
    assert!(count > 0);
    let script = root.join("python/tests/check_rebuilt.py");
    let mut command = Command::new(python);
    command.arg("-I").arg(script).arg(written.path()).arg(fixtures);
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    assert!(told.contains(&format!("of {count} graphs")), "{told}");
    println!("{told}");
}

#[test]
#[ignore = "needs torch: make test-torch"]
fn models_are_rebuilt_as_they_were_exported() {
    rebuilt("models");
}

#[test]
#[ignore = "needs torch: make test-torch"]
fn operations_are_rebuilt_as_they_were_exported() {
    rebuilt(".");
}
