//! Asking before something is destroyed.
//!
//! Invariant: on a terminal nothing is destroyed that was not named and agreed to; a
//! script, which nobody watches, is not asked and never waits.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use super::CliError;

/// What a command takes that destroys something.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct YesArgs {
    /// Do it without asking. Where stdin is no terminal nobody is asked, and what removes by
    /// a filter wants this.
    #[arg(long, short = 'y')]
    yes: bool,
}

impl YesArgs {
    /// Whether somebody is there to be asked.
    pub(crate) fn asks(self) -> bool {
        !self.yes && io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Goes on where whoever sits at the terminal agrees to `what`, a sentence that names
    /// what is destroyed, or where nobody does.
    pub(crate) fn confirm(self, what: &str) -> Result<(), CliError> {
        match !self.asks() || agreed(what, &mut io::stdin().lock(), &mut io::stderr())? {
            true => Ok(()),
            false => Err(CliError::Refused("nothing was done".into())),
        }
    }

    /// As [`Self::confirm`], of what is more than one named thing: a script has to say
    /// `--yes`, which `otherwise` tells it.
    pub(crate) fn confirm_many(self, what: &str, otherwise: &str) -> Result<(), CliError> {
        match self.yes || self.asks() {
            true => self.confirm(what),
            false => Err(CliError::Refused(format!("nothing was done: {otherwise}"))),
        }
    }
}

/// Asks; whoever answers anything but yes, or goes away, does not agree.
fn agreed(what: &str, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<bool> {
    write!(to, "{what} [y/N] ")?;
    to.flush()?;
    let mut answer = String::new();
    from.read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        let answers = [("y\n", true), ("Yes\n", true), ("\n", false), ("n\n", false), ("", false)];
        for (answer, agrees) in answers {
            let mut asked = Vec::new();
            assert_eq!(
                agreed("Remove node 3?", &mut answer.as_bytes(), &mut asked).unwrap(),
                agrees
            );
            assert_eq!(asked, b"Remove node 3? [y/N] ");
        }
    }

    #[test]
    fn who_said_yes_is_not_asked() {
        assert!(!YesArgs { yes: true }.asks());
        assert!(YesArgs { yes: true }.confirm("Remove node 3?").is_ok());
    }
}
