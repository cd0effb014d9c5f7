//! Networks that are cut, slow or lossy.
//!
//! Invariant: every cut and delay is undone when the strike ends.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::{
    fleet::{Ground, Plan},
    proxy::Weather,
};

const CUT: Plan = Plan { ground: Ground::Namespaces, ..THREE };
const CUT_FIVE: Plan = Plan { nodes: 5, ..CUT };
const PROXIED: Plan = Plan { ground: Ground::Proxies, ..THREE };

pub(super) fn all() -> Vec<Nemesis> {
    let cut = |name, about, plan, strike| Nemesis { plan, ..nemesis(name, about, 5, strike) };
    vec![
        cut("cut-leader", "the leader hears no other node; clients reach it", CUT, |strike| {
            Box::pin(async {
                let (leader, others) = strike.roles().await?;
                apart(strike, &[leader], &others, 5.0).await
            })
        }),
        cut("cut-follower", "the same of a follower", CUT, |strike| {
            Box::pin(async {
                let (leader, others) = strike.roles().await?;
                apart(strike, &others[..1], &[leader, others[1]], 5.0).await
            })
        }),
        cut("cut-off", "a node's cable is out: no peer and no client", CUT, cut_off),
        cut("cut-one-way", "what the leader sends is lost, or what is sent to it", CUT, one_way),
        cut("cut-bridge", "five nodes: two pairs that see only the fifth", CUT_FIVE, |strike| {
            Box::pin(async {
                let (leader, others) = strike.roles().await?;
                let (one, two) = ([leader, others[0]], [others[1], others[2]]);
                apart(strike, &one, &two, 6.0).await
            })
        }),
        cut(
            "cut-majority",
            "five nodes: the leader and one other, apart from three",
            CUT_FIVE,
            |strike| {
                Box::pin(async {
                    let (leader, others) = strike.roles().await?;
                    apart(strike, &[leader, others[0]], &others[1..], 6.0).await
                })
            },
        ),
        cut("delay", "120 ms each way between nodes", PROXIED, |strike| {
            Box::pin(weather(strike, Weather::Delay(Duration::from_millis(120))))
        }),
        cut(
            "loss",
            "of what nodes send each other 8% comes late or breaks the line",
            PROXIED,
            |strike| Box::pin(weather(strike, Weather::Loss(8))),
        ),
    ]
}

/// No packet passes between these and those.
async fn apart(
    strike: &mut Strike<'_>,
    these: &[usize],
    those: &[usize],
    seconds: f64,
) -> anyhow::Result<()> {
    let pairs = || these.iter().flat_map(|a| those.iter().map(move |b| (*a, *b)));
    for (a, b) in pairs() {
        strike.network()?.cut(a, b)?;
        strike.network()?.cut(b, a)?;
    }
    let (a, b) = (these[0], those[0]);
    ensure!(!strike.network()?.connects(a, b)?, "node {a} still reaches {b}");
    strike.struck(format!("{these:?} apart from {those:?}"));
    strike.hold(seconds).await;
    for (a, b) in pairs() {
        strike.network()?.mend(a, b)?;
        strike.network()?.mend(b, a)?;
    }
    strike.heal()
}

fn one_way<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, others) = strike.roles().await?;
        let sends = strike.chance.percent(50);
        let ways = others.iter().map(|o| if sends { (leader, *o) } else { (*o, leader) });
        let ways: Vec<_> = ways.collect();
        for (from, to) in &ways {
            strike.network()?.cut(*from, *to)?;
        }
        let (from, to) = ways[0];
        ensure!(!strike.network()?.connects(from, to)?, "node {from} still reaches {to}");
        strike.struck(format!("one way: {ways:?}"));
        strike.hold(5.0).await;
        for (from, to) in &ways {
            strike.network()?.mend(*from, *to)?;
        }
        strike.heal()
    })
}

fn cut_off<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (leader, others) = strike.roles().await?;
        let at = if strike.chance.percent(50) { leader } else { others[0] };
        strike.away(at);
        strike.network()?.plug(at, false)?;
        strike.struck(format!("unplugged {at}"));
        strike.hold(5.0).await;
        strike.network()?.plug(at, true)?;
        strike.back(at);
        strike.heal()
    })
}

async fn weather(strike: &mut Strike<'_>, weather: Weather) -> anyhow::Result<()> {
    strike.fleet.proxies.first().context("no proxies")?;
    for proxy in &strike.fleet.proxies {
        proxy.set(weather);
    }
    strike.struck(format!("{weather:?}"));
    strike.hold(6.0).await;
    let mut touched = 0;
    for proxy in &strike.fleet.proxies {
        touched += proxy.set(Weather::Fair);
    }
    ensure!(touched > 0, "nothing passed");
    strike.note(format!("{touched} chunks"));
    strike.heal()
}
