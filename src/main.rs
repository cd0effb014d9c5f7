//! The `kiln` binary: daemon and command line.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
