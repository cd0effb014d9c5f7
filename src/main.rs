//! The `kiln` executable.

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => kiln::compiler::worker_main(),
        _ => std::process::ExitCode::SUCCESS,
    }
}
