//! How fast: Flumen with its promises beside producers that only produce, in interleaved rounds.

use std::path::Path;

use anyhow::{Context, Result};
use flumen_tests::kafka::ConsumeOptions;
use flumen_tests::kafka::client;
use serde_json::{Map, Value, json};

use super::agent::{self, Delivery, Run, Variant};
use super::ground::{Ground, PARTITIONS, remove};
use super::lines::{self, Lines, Tally};
use super::yardstick::{self, Speed};
use super::{Arguments, peer};
use crate::report::{median, step};

/// Milliseconds of the plain producer's transactions, for orientation.
const TRANSACTION_MS: u32 = 1_000;
/// MB that warm the broker up, without transactions and with them: its first seconds run unoptimised, and what is
/// measured first must not pay for what follows.
const WARM_UP_MB: u64 = 300;

const VARIANTS: [Variant; 4] = [
    Variant { delivery: Delivery::ExactlyOnce, lanes: 1 },
    Variant { delivery: Delivery::ExactlyOnce, lanes: 2 },
    Variant { delivery: Delivery::AtLeastOnce, lanes: 1 },
    Variant { delivery: Delivery::AtLeastOnce, lanes: 2 },
];

/// Everything of one event size.
pub struct Figures {
    lines: Lines,
    plain: Vec<Speed>,
    transactional: Vec<Speed>,
    java: Vec<Speed>,
    flumen: [Vec<Run>; VARIANTS.len()],
    flume: Option<peer::Run>,
    tally: Option<Tally>,
}

/// Measures one event size.
///
/// # Errors
/// If something does not deliver.
pub fn run(ground: &Ground, binary: &Path, event_bytes: usize, arguments: &Arguments) -> Result<Figures> {
    let lines = lines::of_size(arguments.size_mb, event_bytes)?;
    let warm_up = Lines { events: WARM_UP_MB * 1_000_000 / event_bytes as u64, ..lines.clone() };
    step("warming the broker up", || {
        [0, TRANSACTION_MS, 0].into_iter().try_for_each(|transaction_ms| {
            let warm = |topic: &str| yardstick::plain(ground, topic, &warm_up, transaction_ms);
            ground.with_topic("warm-up", warm).map(drop)
        })
    })?;
    let mut figures = Figures {
        lines,
        plain: Vec::new(),
        transactional: Vec::new(),
        java: Vec::new(),
        flumen: Default::default(),
        flume: None,
        tally: None,
    };
    for round in 1..=arguments.rounds {
        step(&format!("{event_bytes} bytes, round {round} of {} ({})", arguments.rounds, load()), || {
            figures.round(ground, binary, round, arguments)
        })?;
    }
    if !arguments.no_flume {
        let flume = step("Flume 1.11", || {
            ground.with_topic("flume", |topic| peer::run(ground, topic, &figures.lines))
        });
        figures.flume = flume.map_err(|error| eprintln!("    left out: {error:#}")).ok();
    }
    Ok(figures)
}

/// How busy the machine is.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {}", text.split_whitespace().next().unwrap_or("?"))
}

impl Figures {
    fn round(&mut self, ground: &Ground, binary: &Path, round: u32, arguments: &Arguments) -> Result<()> {
        let lines = self.lines.clone();
        let name = |what: &str| format!("{what}-{}-{round}", lines.event_bytes);
        let plain = |topic: &str| yardstick::plain(ground, topic, &lines, 0);
        self.plain.push(said("plain librdkafka", ground.with_topic(&name("plain"), plain)?));
        let transactional = |topic: &str| yardstick::plain(ground, topic, &lines, TRANSACTION_MS);
        self.transactional.push(said("in transactions", ground.with_topic(&name("txn"), transactional)?));
        self.java.push(said(
            "kafka-producer-perf-test",
            ground.with_topic(&name("java"), |topic| yardstick::java(ground, topic, &lines))?,
        ));
        for (at, variant) in VARIANTS.into_iter().enumerate() {
            // What exactly once is, is counted once: reading it all takes longer than the run.
            let is_counted = at == 0 && round == arguments.rounds;
            let run = ground.with_topic(&name(&format!("flumen{at}")), |topic| {
                let run = agent::run(ground, binary, topic, &lines, variant, &arguments.sink())?;
                if is_counted {
                    self.tally = Some(count(ground, topic, lines.events, lines.event_bytes)?);
                }
                Ok(run)
            });
            let run = run.with_context(|| variant.name())?;
            eprintln!("    {:<32} {:>9.0} events/s {:>6.1} MB/s", variant.name(), run.events_s, run.mb_s);
            if let Some(runs) = self.flumen.get_mut(at) {
                runs.push(run);
            }
        }
        Ok(())
    }

    fn of(&self, at: usize, figure: impl Fn(&Run) -> f64) -> f64 {
        let runs = self.flumen.get(at).map(Vec::as_slice).unwrap_or_default();
        median(&runs.iter().map(figure).collect::<Vec<_>>())
    }

    /// The table for people.
    pub fn print(&self) {
        println!(
            "\n{} events of {} bytes ({:.0} MB), {PARTITIONS} partitions, acks=all, no compression; medians of {} rounds",
            self.lines.events,
            self.lines.event_bytes,
            self.lines.bytes() as f64 / 1e6,
            self.plain.len()
        );
        println!(
            "{:<34} {:>10} {:>7} {:>6} {:>13} {:>10} {:>8}",
            "", "events/s", "MB/s", "ratio", "CPU ns/event", "broker's", "peak MB"
        );
        let plain = middle(&self.plain);
        let row = |name: &str, events_s: f64, mb_s: f64, others: [Option<f64>; 3]| {
            let [cpu, broker, peak] =
                others.map(|figure| figure.map_or(String::new(), |f| format!("{f:.0}")));
            let ratio = events_s / plain.events_s;
            println!("{name:<34} {events_s:>10.0} {mb_s:>7.1} {ratio:>6.2} {cpu:>13} {broker:>10} {peak:>8}");
        };
        for (name, speed) in [
            ("plain librdkafka", plain),
            ("plain librdkafka, transactions of 1 s", middle(&self.transactional)),
            ("kafka-producer-perf-test", middle(&self.java)),
        ] {
            row(
                name,
                speed.events_s,
                speed.mb_s,
                [speed.cpu_ns_per_event, Some(speed.broker_cpu_ns_per_event), None],
            );
        }
        for (at, variant) in VARIANTS.into_iter().enumerate() {
            let others: [fn(&Run) -> f64; 3] =
                [|run| run.cpu_ns_per_event, |run| run.broker_cpu_ns_per_event, |run| run.peak_rss_mb];
            let others = others.map(|figure| Some(self.of(at, figure)));
            row(&variant.name(), self.of(at, |run| run.events_s), self.of(at, |run| run.mb_s), others);
        }
        if let Some(run) = self.flume {
            let others = [Some(run.cpu_ns_per_event), None, Some(run.peak_rss_mb)];
            row("Flume 1.11, file channel (a part)", run.events_s, run.mb_s, others);
        }
        for (at, variant) in VARIANTS.into_iter().enumerate() {
            let Some(run) = self.flumen.get(at).and_then(|runs| runs.last()) else { continue };
            let steps: Vec<String> =
                run.ns_per_event.iter().map(|(step, ns)| format!("{step} {ns:.0}")).collect();
            println!("  {}: ns per event: {}", variant.name(), steps.join(", "));
        }
        if let Some(tally) = self.tally {
            println!("  exactly-once, counted by a consumer of other make: {tally:?}");
        }
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let plain = middle(&self.plain);
        let java = middle(&self.java);
        let exactly_once = self.of(0, |run| run.events_s);
        let mut variants = Map::new();
        for (at, variant) in VARIANTS.into_iter().enumerate() {
            let figures = json!({
                "events_s": self.of(at, |run| run.events_s),
                "mb_s": self.of(at, |run| run.mb_s),
                "ratio_to_plain_librdkafka": self.of(at, |run| run.events_s) / plain.events_s,
                "cpu_ns_per_event": self.of(at, |run| run.cpu_ns_per_event),
                "broker_cpu_ns_per_event": self.of(at, |run| run.broker_cpu_ns_per_event),
                "peak_rss_mb": self.of(at, |run| run.peak_rss_mb),
                "connect_ms": self.of(at, |run| run.connect_ms),
                "ns_per_event": self.flumen.get(at).and_then(|runs| runs.last()).map(|run| &run.ns_per_event),
            });
            variants.insert(variant.name(), figures);
        }
        json!({
            "event_bytes": self.lines.event_bytes,
            "events": self.lines.events,
            "exactly_once_events_s": exactly_once,
            "at_least_once_events_s": self.of(2, |run| run.events_s),
            "ratio_to_plain_librdkafka": exactly_once / plain.events_s,
            "at_least_once_ratio_to_plain_librdkafka": self.of(2, |run| run.events_s) / plain.events_s,
            "ratio_to_java_perf_test": exactly_once / java.events_s,
            "flume_events_s": self.flume.map(|run| run.events_s),
            "plain_librdkafka": plain,
            "plain_librdkafka_in_transactions": middle(&self.transactional),
            "java_perf_test": java,
            "flume": self.flume,
            "variants": variants,
            "exactly_once_tally": self.tally,
        })
    }
}

/// What a consumer of other make reads back.
///
/// # Errors
/// If it cannot.
pub fn count(ground: &Ground, topic: &str, events: u64, event_bytes: usize) -> Result<Tally> {
    let path = ground.path(&format!("{topic}.values"));
    client::values_to_file(&ConsumeOptions::new(&ground.client(), topic), &path)?;
    let tally = lines::tally(&path, events, event_bytes);
    remove(&path)?;
    tally
}

fn said(name: &str, speed: Speed) -> Speed {
    eprintln!("    {name:<32} {:>9.0} events/s {:>6.1} MB/s", speed.events_s, speed.mb_s);
    speed
}

/// The medians.
fn middle(speeds: &[Speed]) -> Speed {
    let of = |figure: fn(&Speed) -> f64| median(&speeds.iter().map(figure).collect::<Vec<_>>());
    let cpu: Vec<f64> = speeds.iter().filter_map(|speed| speed.cpu_ns_per_event).collect();
    Speed {
        events_s: of(|speed| speed.events_s),
        mb_s: of(|speed| speed.mb_s),
        broker_cpu_ns_per_event: of(|speed| speed.broker_cpu_ns_per_event),
        cpu_ns_per_event: (!cpu.is_empty()).then(|| median(&cpu)),
    }
}
