//! Processes that die, stand still, or are restarted.
//!
//! Invariant: who was struck runs again when the strike ends.

use anyhow::{Context, ensure};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::{fleet::Plan, node::binary};

pub(super) fn all() -> Vec<Nemesis> {
    vec![
        nemesis("kill-leader", "SIGKILL of the leader, restarted after 3 s", 20, kill_leader),
        nemesis("kill-follower", "SIGKILL of a follower", 20, kill_follower),
        Nemesis {
            plan: Plan { configure: |_, config| config.object.url = None, ..THREE },
            ..nemesis("kill-holder", "SIGKILL of a node that alone has bytes: no L3", 20, kill_any)
        },
        nemesis("kill-two", "SIGKILL of two of three: no quorum for 3 s", 5, kill_two),
        nemesis(
            "pause-leader",
            "SIGSTOP of the leader for longer than lease and election",
            20,
            pause_leader,
        ),
        nemesis("pause-follower", "the same of a follower", 20, pause_follower),
        nemesis(
            "pause-short",
            "SIGSTOP of the leader for longer than an election, not a lease",
            2,
            pause_short,
        ),
        nemesis(
            "rolling-restart",
            "SIGTERM and start of each node in turn, same build",
            20,
            rolling_restart,
        ),
        Nemesis {
            plan: Plan { earlier: true, ..THREE },
            once: true,
            ..nemesis(
                "rolling-builds",
                "the same, from an earlier build to this one: KILN_BINARY_BEFORE",
                20,
                rolling_builds,
            )
        },
    ]
}

fn kill_leader<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, _) = strike.roles().await?;
        kill(strike, &[leader]).await
    })
}

fn kill_follower<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (_, others) = strike.roles().await?;
        kill(strike, &others[..1]).await
    })
}

fn kill_any<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let any = strike.chance.below(3);
        kill(strike, &[any]).await
    })
}

fn kill_two<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, others) = strike.roles().await?;
        let both = if strike.chance.percent(50) { vec![leader, others[0]] } else { others };
        kill(strike, &both).await
    })
}

/// Kills and restarts them.
async fn kill(strike: &mut Strike<'_>, nodes: &[usize]) -> anyhow::Result<()> {
    for at in nodes {
        strike.fleet.nodes[*at].kill().await?;
    }
    strike.struck(format!("killed {nodes:?}"));
    strike.hold(3.0).await;
    for at in nodes {
        strike.fleet.nodes[*at].spawn()?;
    }
    for at in nodes {
        strike.fleet.nodes[*at].ready().await?;
    }
    strike.heal()
}

fn pause_leader<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, _) = strike.roles().await?;
        pause(strike, leader, 5.0).await
    })
}

fn pause_follower<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (_, others) = strike.roles().await?;
        pause(strike, others[0], 5.0).await
    })
}

fn pause_short<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, _) = strike.roles().await?;
        pause(strike, leader, 2.0).await
    })
}

async fn pause(strike: &mut Strike<'_>, at: usize, seconds: f64) -> anyhow::Result<()> {
    strike.pause(at).await?;
    strike.struck(format!("paused {at}"));
    strike.hold(seconds).await;
    strike.resume(at)?;
    strike.heal()
}

/// Each node in turn becomes one of this build. The first one goes back once, which it may
/// while others hold back what is new; once all are upgraded, it is refused.
fn rolling_builds<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (from, to) = (strike.fleet.nodes[0].binary.clone(), binary());
        strike.struck(format!("restarted each in turn: {} -> {}", from.display(), to.display()));
        for (at, build) in [(0, &to), (0, &from), (0, &to), (1, &to), (2, &to)] {
            strike.fleet.nodes[at].terminate().await?;
            strike.fleet.nodes[at].binary.clone_from(build);
            strike.fleet.nodes[at].start().await?;
            strike.hold(2.0).await;
        }
        // Hits are reported by now in the way that the earlier build does not read.
        strike.hold(3.0).await;
        let node = &mut strike.fleet.nodes[0];
        node.terminate().await?;
        node.binary.clone_from(&from);
        node.spawn()?;
        let code = node.ended().await.context("the earlier build runs on a later one's index")?;
        let words = node.last_words();
        ensure!(code != Some(0) && words.contains("needs Kiln"), "{code:?}: {words}");
        node.binary.clone_from(&to);
        node.start().await?;
        strike.heal()
    })
}

fn rolling_restart<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        strike.struck("restarted each in turn");
        for at in 0..strike.fleet.nodes.len() {
            strike.fleet.nodes[at].terminate().await?;
            strike.fleet.nodes[at].start().await?;
            strike.hold(1.0).await;
        }
        strike.heal()
    })
}
