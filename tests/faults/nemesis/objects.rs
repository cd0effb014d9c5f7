//! The object store: away, slow, refusing.
//!
//! Invariant: when a strike ends the store is as it was, with all that it held.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::{fleet::Plan, proxy::Weather};

const S3: Plan = Plan { s3: true, ..THREE };

pub(super) fn all() -> Vec<Nemesis> {
    let s3 = |name, about, strike| Nemesis { plan: S3, ..nemesis(name, about, 20, strike) };
    vec![
        nemesis("l3-gone", "the object store's folder is gone", 20, gone),
        s3("s3-away", "S3 closes every connection", |strike| {
            Box::pin(weather(strike, Weather::Away))
        }),
        s3("s3-slow", "S3 answers 2 s later", |strike| {
            Box::pin(weather(strike, Weather::Delay(Duration::from_secs(1))))
        }),
        s3("s3-503", "S3 answers 503", |strike| Box::pin(weather(strike, Weather::Status(503)))),
    ]
}

fn gone<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let (folder, away) = (strike.fleet.objects(), strike.fleet.folder.path().join("away"));
        std::fs::rename(&folder, &away)?;
        // A file in its place: nobody makes the folder anew.
        std::fs::write(&folder, b"")?;
        strike.struck("the folder is gone");
        strike.hold(5.0).await;
        std::fs::remove_file(&folder)?;
        std::fs::rename(&away, &folder)?;
        strike.heal()
    })
}

async fn weather(strike: &mut Strike<'_>, weather: Weather) -> anyhow::Result<()> {
    let proxy = |strike: &Strike<'_>, weather| {
        strike.fleet.store.as_ref().context("no S3").map(|store| store.proxy.set(weather))
    };
    proxy(strike, weather)?;
    strike.struck(format!("S3: {weather:?}"));
    strike.hold(6.0).await;
    let touched = proxy(strike, Weather::Fair)?;
    ensure!(touched > 0, "nobody asked S3");
    strike.note(format!("{touched} requests or chunks"));
    strike.heal()
}
