//! `kiln completions` and `kiln man`: what a shell and `man` know of the command line.
//!
//! Invariant: made of the command line that this program parses; no node is asked.

use std::{io, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::{CliError, output};

const EXAMPLES: &str = "\
Examples:
  kiln completions bash > ~/.local/share/bash-completion/completions/kiln
  kiln completions zsh > ~/.zfunc/_kiln
  kiln completions fish > ~/.config/fish/completions/kiln.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  kiln man | man -l -
  kiln man --dir ~/.local/share/man/man1";

/// Print what completes kiln's arguments in a shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// Which shell.
    shell: Shell,
}

/// Print kiln's manual page, or write those of all commands.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct Man {
    /// Write one page a command into this folder, which is made.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Completions {
    pub(crate) fn run(self, mut kiln: Command) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut kiln, "kiln", &mut script);
        output::bytes(&script)
    }
}

impl Man {
    pub(crate) fn run(self, kiln: Command) -> Result<(), CliError> {
        match self.dir {
            Some(dir) => {
                std::fs::create_dir_all(&dir).map_err(|e| about(&dir, &e))?;
                clap_mangen::generate_to(kiln, &dir).map_err(|e| about(&dir, &e))?;
                output::line(dir.display())
            }
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(kiln).render(&mut page)?;
                output::bytes(&page)
            }
        }
    }
}

fn about(dir: &std::path::Path, error: &io::Error) -> CliError {
    io::Error::new(error.kind(), format!("{}: {error}", dir.display())).into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        Man { dir: Some(dir.path().join("man1")) }.run(Cli::command()).unwrap();
        for command in Cli::command().get_subcommands() {
            let name = format!("kiln-{}.1", command.get_name());
            assert!(dir.path().join("man1").join(&name).is_file(), "no {name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Man { dir: Some(file.path().join("man1")) }.run(Cli::command()).unwrap_err();
        assert!(error.to_string().contains("man1"), "{error}");
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(
                    script.contains(command.get_name()),
                    "{shell} lacks {}",
                    command.get_name()
                );
            }
        }
    }
}
