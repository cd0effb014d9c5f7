//! The `kiln` binary: daemon, command line, and the workers that it starts.

mod cli;

fn main() -> std::process::ExitCode {
    #[cfg(feature = "crash-points")]
    kiln::crash::watch();
    // A child that loads a compiler, or runs an artifact: it starts nothing else.
    match std::env::args().nth(1).as_deref() {
        Some("worker") => kiln::compiler::worker_main(),
        Some(kiln::compiler::LAUNCHER) => kiln::compiler::launcher_main(),
        Some("checker") => kiln::check::checker_main(),
        _ => cli::main(),
    }
}
