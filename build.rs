//! Tells the program which commit it is built of, where that costs nothing.
//!
//! Invariant: KILN_COMMIT decides where it is set. A debug build looks at no repository, so
//! that a commit makes nobody compile again; a source without one builds as well.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=KILN_COMMIT");
    let told = env::var_os("KILN_COMMIT").is_some_and(|commit| !commit.is_empty());
    if told || env::var_os("PROFILE").is_none_or(|profile| profile != "release") {
        return;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = output.status.success().then(|| String::from_utf8(output.stdout).ok())??;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    // Of a copy of the source in somebody else's repository, that one's commit says nothing.
    let root = git(&["rev-parse", "--show-toplevel"]);
    if root.is_none() || root != env::var("CARGO_MANIFEST_DIR").ok() {
        return;
    }
    if let Some(commit) = git(&["rev-parse", "HEAD"]) {
        println!("cargo:rustc-env=KILN_COMMIT={commit}");
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
}
