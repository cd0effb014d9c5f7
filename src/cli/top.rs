//! `kiln top`: the dashboard in a terminal.
//!
//! Invariant: the terminal is as it was when the command ends, however it ends; no text of
//! an artifact or a node reaches it but as printable characters.

mod draw;
mod rows;
mod tab;
mod terminal;

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use kiln::dashboard::View;
use kiln_proto::pb;

use self::{
    draw::Screen,
    tab::TABS,
    terminal::{Key, Terminal},
};
use super::{CliError, ClientArgs, client::Client, output};

const EXAMPLES: &str = "\
Examples:
  kiln top
  kiln top --endpoint http://10.0.0.2:7400
  kiln top --once --json

Keys: tab and arrows left and right go from part to part, up and down from row to row,
q ends it.";

/// Watch the cluster: nodes, hits, compiles, what saved most, what was missed and why.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Top {
    /// Print what there is now, and end.
    #[arg(long)]
    once: bool,
    /// Between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    every: Duration,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl Top {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        if self.once || self.client.json {
            return self.print().await;
        }
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            let why = "kiln top needs a terminal; --once prints what there is now";
            return Err(CliError::Usage(why.into()));
        }
        // Before the terminal is taken: an error of the first look is an ordinary one.
        let first = self.look().await?;
        self.watch(first).await
    }

    async fn print(&self) -> Result<(), CliError> {
        loop {
            let view = self.look().await?;
            match self.client.json {
                true => output::json(&view)?,
                false => output::line(for_people(&view))?,
            }
            if self.once {
                return Ok(());
            }
            tokio::time::sleep(self.every).await;
        }
    }

    async fn look(&self) -> Result<View, CliError> {
        self.client.endpoints.attempt(look).await
    }

    async fn watch(&self, first: View) -> Result<(), CliError> {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut terminal = Terminal::take()?;
        let mut screen = Screen::new(first);
        loop {
            terminal.draw(|frame| screen.draw(frame))?;
            // A look that takes long holds up no key.
            let mut looking = std::pin::pin!(async {
                tokio::time::sleep(self.every).await;
                self.look().await
            });
            loop {
                tokio::select! {
                    looked = &mut looking => {
                        screen.see(looked.map_err(|e| e.to_string()));
                        break;
                    }
                    key = terminal.key() => match key {
                        Some(Key::Quit) | None => return Ok(()),
                        Some(key) => screen.press(key),
                    },
                    _ = terminate.recv() => return Ok(()),
                }
                terminal.draw(|frame| screen.draw(frame))?;
            }
        }
    }
}

async fn look(mut client: Client) -> Result<View, CliError> {
    let request = pb::OverviewRequest::default();
    let answer = client.overview(request).await.map_err(|e| CliError::from_status(&e))?;
    let json = answer.into_inner().json;
    Ok(serde_json::from_slice(&json).map_err(|e| anyhow::anyhow!("the node's answer: {e}"))?)
}

fn for_people(view: &View) -> String {
    let mut parts = vec![rows::heading(view)];
    for tab in TABS {
        let rows = rows::of(tab, view);
        parts.push(format!("{}\n{}", tab.name(), rows.text()));
    }
    parts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_once_has_every_part_and_no_control_characters() {
        let mut view = draw::tests::view();
        view.top.artifacts[0].label = "\u{1b}]0;owned\u{7}\u{202e}evil\r\n".into();
        let text = for_people(&view);
        for part in ["NODES", "UNDER WAY", "TOP", "MISSES", "ALERTS"] {
            assert!(text.to_uppercase().contains(part), "{part}: {text}");
        }
        assert!(!text.chars().any(|c| c != '\n' && c.is_control()), "{text:?}");
        assert!(!text.contains('\u{202e}'));
    }
}
