//! `kiln plan`: what a change of a toolchain will make miss, and what the next day will make.

use std::collections::BTreeMap;

use clap::Args;
use kiln_proto::{Target, pb};
use serde::Serialize;

use super::{
    CliError, ClientArgs, NamespaceArgs,
    client::Client,
    misses::{MissView, Tool, tool},
    output::{self, seconds, size, table},
    prewarm,
};

const EXAMPLES: &str = "\
Examples:
  kiln plan
  kiln plan --toolchain cuda=13.1
  kiln plan --toolchain cuda=13.1 --target sm_90 --prewarm
  kiln plan --toolchain torch=2.12 --json";

/// Say what a change of a toolchain will make miss, and what the next day will make.
///
/// Nothing is changed. With --prewarm, what misses is compiled beforehand, on a node that
/// has the new toolchain already: start one with it, a learner will do.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Plan {
    /// A tool and its new version, or the first parts of it; cuda is NVRTC's. May be given
    /// several times. Without it only the next day is told.
    #[arg(long, value_name = "TOOL=VERSION", value_parser = tool)]
    toolchain: Vec<Tool>,
    /// Only what runs on this: of a change on some of the nodes.
    #[arg(long = "target", visible_alias = "targets", value_name = "ARCH", value_delimiter = ',')]
    targets: Vec<Target>,
    /// Compile it now, one node for each target, so that nobody waits for it later.
    #[arg(long, requires = "toolchain")]
    prewarm: bool,
    /// With --prewarm: compiles at once.
    #[arg(short, long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `kiln plan --json`, last: as `{"summary": ..}`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PlanView {
    misses: usize,
    unaffected: u64,
    /// By target.
    targets: BTreeMap<String, TargetView>,
    looked_at: u64,
    entries: u64,
    /// There was no time for all of them.
    cut: bool,
    tools: Vec<String>,
    /// Null: the oldest artifact is younger than a day.
    next_day: Option<DayView>,
}

#[derive(Debug, Clone, Default, Serialize)]
struct TargetView {
    misses: usize,
    bytes: u64,
    compile_seconds: f64,
}

#[derive(Debug, Clone, Serialize)]
struct DayView {
    /// Whole days that it rests on.
    days: u32,
    bytes: RangeView,
    compile_seconds: RangeView,
}

/// The median of all days, and the least and the most of one.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct RangeView {
    least: f64,
    middle: f64,
    most: f64,
}

impl Plan {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let asked = async |client| self.plan(client).await;
        let (misses, summary) = self.client.endpoints.attempt(asked).await?;
        if !self.prewarm {
            return self.show(&misses, &summary);
        }
        let nodes = prewarm::Nodes::having(&self.client.endpoints, &self.toolchain).await?;
        let work = prewarm::Work { misses, jobs: self.jobs.into(), namespace: self.namespace() };
        let compiled = nodes.compile(work, &self.client.endpoints, |one| match self.client.json {
            true => output::json(one),
            false => output::line(one),
        });
        let failed = compiled.await?;
        // What is still not there: what was not kept, and what failed.
        let (left, summary) = self.client.endpoints.attempt(asked).await?;
        self.show(&left, &summary)?;
        match failed {
            0 => Ok(()),
            _ => Err(CliError::Local(anyhow::anyhow!("{failed} could not be compiled"))),
        }
    }

    fn namespace(&self) -> String {
        self.namespace.namespace.clone()
    }

    async fn plan(&self, mut client: Client) -> Result<(Vec<MissView>, PlanView), CliError> {
        let field =
            |tool: &Tool| pb::Field { name: tool.name.clone(), value: tool.version.clone() };
        let request = pb::PlanRequest {
            toolchain: self.toolchain.iter().map(field).collect(),
            targets: self.targets.iter().map(|target| (*target).into()).collect(),
            namespace: self.namespace(),
        };
        let answer = client.plan(request).await.map_err(|e| CliError::from_status(&e))?;
        let (mut events, mut misses) = (answer.into_inner(), Vec::new());
        loop {
            let event = events.message().await.map_err(|e| CliError::from_status(&e))?;
            match event.and_then(|event| event.event) {
                Some(pb::plan_event::Event::Miss(miss)) => misses.push(MissView::read(miss)?),
                Some(pb::plan_event::Event::End(end)) => {
                    let summary = PlanView::new(&misses, end);
                    return Ok((misses, summary));
                }
                None => {
                    return Err(CliError::Unreachable("the node ended its answer early".into()));
                }
            }
        }
    }

    fn show(&self, misses: &[MissView], summary: &PlanView) -> Result<(), CliError> {
        if self.client.json {
            misses.iter().try_for_each(output::json)?;
            return output::json(&serde_json::json!({ "summary": summary }));
        }
        if !misses.is_empty() {
            output::line(table(HEADING, &misses.iter().map(row).collect::<Vec<_>>()))?;
        }
        output::line(self.for_people(summary))
    }

    fn for_people(&self, summary: &PlanView) -> String {
        let mut lines = Vec::new();
        if !self.toolchain.is_empty() {
            let tools = self.toolchain.iter().map(|tool| format!("{} {}", tool.name, tool.version));
            let tools: Vec<_> = tools.collect();
            let PlanView { misses, unaffected, .. } = summary;
            lines.push(format!(
                "with {}: {misses} artifacts miss, {unaffected} do not",
                tools.join(", ")
            ));
            lines.extend(summary.targets.iter().map(|(target, of)| {
                let TargetView { misses, bytes, compile_seconds } = of;
                let (bytes, took) = (size(*bytes), seconds(*compile_seconds));
                format!("  {target}: {misses}, {bytes}, {took} of compiling")
            }));
        }
        lines.push(match &summary.next_day {
            None => "next day: not known, as the oldest artifact is younger than a day".to_owned(),
            Some(DayView { days, bytes, compile_seconds }) => {
                let bytes = bytes.each(|bytes| size(bytes.max(0.0) as u64));
                let took = compile_seconds.each(seconds);
                format!(
                    "next day, by the last {days}: {} published ({} to {}), {} of compiling ({} \
                     to {})",
                    bytes[1], bytes[0], bytes[2], took[1], took[0], took[2]
                )
            }
        });
        if summary.cut {
            let PlanView { looked_at, entries, .. } = summary;
            lines.push(format!("there was time for {looked_at} of {entries} entries alone"));
        }
        lines.join("\n")
    }
}

const HEADING: [&str; 8] =
    ["KEY", "LABEL", "TARGET", "COMPILER", "SIZE", "COMPILE", "HITS", "REQUEST"];

fn row(miss: &MissView) -> [String; 8] {
    [
        miss.key[..16].to_owned(),
        miss.label.clone(),
        miss.target.clone(),
        miss.compiler.clone(),
        size(miss.bytes),
        seconds(miss.compile_seconds),
        miss.hits.to_string(),
        if miss.kept { "kept" } else { "-" }.to_owned(),
    ]
}

impl PlanView {
    fn new(misses: &[MissView], end: pb::PlanEnd) -> Self {
        let mut targets: BTreeMap<String, TargetView> = BTreeMap::new();
        for miss in misses {
            let of = targets.entry(miss.target.clone()).or_default();
            of.misses += 1;
            of.bytes = of.bytes.saturating_add(miss.bytes);
            of.compile_seconds += miss.compile_seconds;
        }
        let range = |range: Option<pb::ForecastRange>| {
            let pb::ForecastRange { least, middle, most } = range.unwrap_or_default();
            RangeView { least, middle, most }
        };
        let next_day = end.forecast.map(|forecast| DayView {
            days: forecast.days,
            bytes: range(forecast.bytes),
            compile_seconds: range(forecast.seconds),
        });
        Self {
            misses: misses.len(),
            unaffected: end.unaffected,
            targets,
            looked_at: end.looked_at,
            entries: end.entries,
            cut: end.cut,
            tools: end.tools,
            next_day,
        }
    }
}

impl RangeView {
    fn each(&self, show: impl Fn(f64) -> String) -> [String; 3] {
        [self.least, self.middle, self.most].map(show)
    }
}
