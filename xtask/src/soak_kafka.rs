//! `cargo xtask soak --kafka N` and `--away SECONDS`: the promise with a real Kafka broker.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use flumen_tests::oracle::Verdict;
use flumen_tests::soak_kafka::away::{self, Absence, Away};
use flumen_tests::soak_kafka::harm::Act;
use flumen_tests::soak_kafka::{self, Delivery, Flow, KafkaSoak, Mix, Plugin, Report};
use serde_json::json;

/// What concerns Kafka alone.
#[derive(clap::Args)]
pub struct KafkaArguments {
    /// Harms to agents, a Kafka broker and the connection to it
    #[arg(long, default_value_t = 0)]
    pub kafka: u32,
    /// With --kafka: as many power cuts of the agent's disk more (needs root)
    #[arg(long, default_value_t = 0)]
    disk_cuts: u32,
    /// Seconds for which a Kafka broker is away while the input goes on
    #[arg(long, default_value_t = 0)]
    pub away: u64,
    /// From where to where, with --kafka
    #[arg(long, value_enum, default_value_t = Way::FileToKafka)]
    flow: Way,
    /// Producers side by side in the sink; without this: one without a key, three with one
    #[arg(long)]
    lanes: Option<u32>,
    /// The control: must show duplicates
    #[arg(long)]
    at_least_once: bool,
    /// With --kafka: each harm kills the broker, every second one agents too; it aborts old transactions as soon as it starts,
    /// which loses ends of transactions (KAFKA-20734)
    #[arg(long)]
    eager_broker: bool,
    /// With --away: the broker is killed, not stopped
    #[arg(long)]
    killed: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    FileToKafka,
    SourceBacked,
    KafkaToFile,
    Channel,
    Bare,
}

impl From<Way> for Flow {
    fn from(way: Way) -> Self {
        match way {
            Way::FileToKafka => Flow::FileToKafka,
            Way::SourceBacked => Flow::SourceBacked,
            Way::KafkaToFile => Flow::KafkaToFile,
            Way::Channel => Flow::Channel,
            Way::Bare => Flow::Bare,
        }
    }
}

impl KafkaArguments {
    /// Whether there is anything to do.
    pub fn is_asked(&self) -> bool {
        self.kafka > 0 || self.away > 0
    }

    /// Runs it; `base` has what all soaks share. Gives whether the promise holds, and a summary.
    pub fn run(&self, base: &KafkaSoak, plugins: &[Plugin]) -> Result<(bool, serde_json::Value)> {
        let delivery = if self.at_least_once { Delivery::AtLeastOnce } else { Delivery::ExactlyOnce };
        let (flow, lanes, is_broker_eager) = (self.flow.into(), self.lanes, self.eager_broker);
        let base = KafkaSoak { flow, lanes, delivery, is_broker_eager, ..base.clone() };
        let mut holds = true;
        let mut away_report = None;
        if self.away > 0 {
            let absence = if self.killed { Absence::Killed } else { Absence::Stopped };
            let lasts = Duration::from_secs(self.away);
            let report = away::run(&Away { absence, lasts, soak: base.clone() })?;
            println!("{report}");
            holds &= report.verdict.holds();
            away_report = Some(report);
        }
        let mut reports = Vec::new();
        // Without an agent there is nothing to put an interceptor into.
        let plugins = if base.flow == Flow::Bare { &[Plugin::None] } else { plugins };
        let count = plugins.len() as u32;
        for (at, plugin) in (0_u32..).zip(plugins) {
            // The remainder goes to the first.
            let share = |times: u32| times / count + u32::from(at < times % count);
            let mix = Mix::of(share(self.kafka)).add(Act::PowerCut, share(self.disk_cuts));
            let mix = match self.eager_broker {
                true => Mix::default()
                    .add(Act::KillBoth, mix.total().div_ceil(2))
                    .add(Act::KillBroker, mix.total() / 2),
                false => mix,
            };
            let mix = if base.flow == Flow::Bare { mix.without_agents() } else { mix };
            if mix.total() == 0 {
                continue;
            }
            // Not the same choices with each plugin.
            let seed = base.seed + u64::from(at);
            let report = soak_kafka::run(&KafkaSoak { plugin: *plugin, mix, seed, ..base.clone() })?;
            println!("{report}");
            reports.push(report);
        }
        holds &= reports.iter().all(Report::holds);
        let summary = summary(&reports, base.seed, away_report.map(|report| json!(report)));
        Ok((holds, summary))
    }
}

/// All runs together.
fn summary(reports: &[Report], seed: u64, away: Option<serde_json::Value>) -> serde_json::Value {
    // Output and quarantine together: a line has to come out in exactly one of them.
    let both =
        |report: &Report, figure: fn(&Verdict) -> u64| figure(&report.verdict) + figure(&report.quarantine);
    let sum = |figure: fn(&Verdict) -> u64| reports.iter().map(|report| both(report, figure)).sum::<u64>();
    json!({
        "harms": reports.iter().map(|report| report.harm.total()).sum::<u32>(),
        "agent_kills": reports.iter().map(|report| report.harm.agent_kills).sum::<u32>(),
        "broker_kills": reports.iter().map(|report| report.harm.broker_kills).sum::<u32>(),
        "lost": sum(|verdict| verdict.lost),
        "doubled": sum(|verdict| verdict.doubled),
        "out_of_order": sum(|verdict| verdict.out_of_order),
        "foreign": sum(|verdict| verdict.foreign),
        "events": sum(|verdict| verdict.events),
        "quarantined": reports.iter().map(|report| report.quarantine.events).sum::<u64>(),
        "undone": reports.iter().map(|report| report.undone).sum::<u64>(),
        "seconds": reports.iter().map(|report| report.seconds).sum::<f64>(),
        "seed": seed,
        "runs": reports,
        "away": away,
    })
}
