//! A real Python that runs the real worker, with what needs torch exchanged.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

/// Runs the worker with its compile exchanged for `compile`.
pub(crate) fn interpreter(compile: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("python");
    let text = format!(
        r#"#!/usr/bin/env python3
import os, subprocess, sys, time, types
for name in ("torch", "torch._inductor", "torch._inductor.config"):
    parent, _, last = name.rpartition(".")
    sys.modules[name] = types.ModuleType(name)
    if parent:
        setattr(sys.modules[parent], last, sys.modules[name])
sys.modules["torch._inductor.config"].decide_compile_threads = lambda: 1
at = sys.argv.index("-c") + 1
bootstrap = {{"__name__": "bootstrap"}}
exec(sys.argv[at], bootstrap)
def compile_program(job, folder):
    from kiln_worker.refused import Refused
    (folder / "trace").write_text("left behind")
    {compile}
def exchange():
    from kiln_worker import process
    process.compile_program = compile_program
    process.versions = lambda: {{"torch": "1.2", "cuda": "none"}}
    process.compute_capability = lambda: 0
    process.compilers = lambda: ["inductor", "inductor-standalone"]
    return process
if sys.argv[at + 1:at + 2] == ["--fork-server"]:
    bootstrap["serve_forks"](float(sys.argv[at + 2]), lambda forks: exchange())
else:
    bootstrap["be_forked"]()
    bootstrap["install"]()
    exchange().main()
"#
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    (folder, path)
}
