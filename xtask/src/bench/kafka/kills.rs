//! SIGKILLs over the input, for Flumen and for Flume 1.11: what is lost, what comes twice. Counted by a consumer of
//! other make that reads what is committed.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flumen_tests::agent::Agent;
use flumen_tests::scene::Scene;
use serde_json::{Value, json};

use super::super::flume::Daemon;
use super::Arguments;
use super::agent::{self, Delivery, Variant};
use super::ground::{Ground, remove};
use super::lines::{Tally, Writer};
use super::peer::{self, Channel, Flume};
use super::throughput::count;
use crate::report::step;

/// Two thirds of what Flume does when nothing happens.
const EVENTS_S: u64 = 20_000;
const EVENT_BYTES: usize = 170;
const SECONDS: u64 = 30;
/// From the first event after a start to the next kill, about; more by a part that differs.
const PAUSE: Duration = Duration::from_millis(1_500);
/// Nothing new for this long, and all that was written there: it is done.
const QUIET: Duration = Duration::from_secs(8);
/// Nothing new for this long: what is not there is lost. Flume is silent for up to 52 s after a kill.
const SILENT: Duration = Duration::from_secs(90);
/// Flume's batch: the best of S3's table that its file channel takes well.
const BATCH: u32 = 5_000;

/// Someone who is killed and started again.
trait Victim {
    fn start(&mut self) -> Result<()>;
    fn kill(&mut self) -> Result<()>;
    fn log_tail(&self) -> String;
}

struct Flumen {
    scene: Scene,
    agent: Option<Agent>,
}

impl Victim for Flumen {
    fn start(&mut self) -> Result<()> {
        self.agent = Some(self.scene.start()?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.agent.take().context("it does not run")?.kill()
    }

    fn log_tail(&self) -> String {
        self.agent.as_ref().map(Agent::log_tail).unwrap_or_default()
    }
}

struct Peer {
    flume: Flume,
    daemon: Option<Daemon>,
}

impl Victim for Peer {
    fn start(&mut self) -> Result<()> {
        self.daemon = Some(self.flume.start()?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("it does not run")?;
        daemon.0.kill()?;
        daemon.0.wait()?;
        Ok(())
    }

    fn log_tail(&self) -> String {
        self.flume.log_tail()
    }
}

/// Kills and counts.
///
/// # Errors
/// If one does not come back.
pub fn run(ground: &Ground, binary: &Path, arguments: &Arguments) -> Result<Value> {
    let events = arguments.seconds.unwrap_or(SECONDS) * EVENTS_S;
    let mut rows = Vec::new();
    for (name, delivery) in
        [("flumen, exactly-once", Delivery::ExactlyOnce), ("flumen, at-least-once", Delivery::AtLeastOnce)]
    {
        let variant = Variant { delivery, lanes: 1 };
        let tally = round(ground, name, arguments.kills, events, |topic, input| {
            let pipeline = agent::tail(input) + &agent::sink(ground, topic, variant, &arguments.sink());
            Ok(Flumen { scene: agent::scene(ground, binary, &pipeline)?, agent: None })
        })?;
        rows.push((name, tally));
    }
    if !arguments.no_flume {
        let name = "Flume 1.11, file channel";
        let tally = round(ground, name, arguments.kills, events, |topic, input| {
            Ok(Peer { flume: Flume::new(ground, topic, input, Channel::File, BATCH)?, daemon: None })
        })?;
        rows.push((name, tally));
    }
    println!("\n{events} events of {EVENT_BYTES} bytes, {} SIGKILLs", arguments.kills);
    println!("{:<28} {:>10} {:>10} {:>10}", "", "events", "lost", "doubled");
    for (name, tally) in &rows {
        println!("{name:<28} {:>10} {:>10} {:>10}", tally.events, tally.lost, tally.doubled);
    }
    let rows: Vec<Value> = rows.iter().map(|(name, tally)| json!({ "who": name, "tally": tally })).collect();
    Ok(json!({ "kills": arguments.kills, "events_s": EVENTS_S, "event_bytes": EVENT_BYTES, "rows": rows }))
}

fn round<V: Victim>(
    ground: &Ground,
    name: &str,
    kills: u32,
    events: u64,
    make: impl FnOnce(&str, &Path) -> Result<V>,
) -> Result<Tally> {
    let input = ground.path("kills.log");
    remove(&input)?;
    let topic = format!("kills-{}", name.replace([' ', ',', '.'], "-").to_lowercase());
    let tally = step(&format!("{name}: {kills} SIGKILLs"), || {
        ground.with_topic(&topic, |topic| {
            let mut victim = make(topic, &input)?;
            let writer = Writer::start(&input, EVENTS_S, events, EVENT_BYTES)?;
            let mut end = 0;
            for kill in 0..kills {
                victim.start()?;
                end = peer::wait_growth(ground, topic, end).with_context(|| victim.log_tail())?;
                // A different moment of whatever it does each time.
                thread::sleep(PAUSE + PAUSE * (kill * 7 % 10) / 10);
                victim.kill()?;
                end = end.max(ground.end(topic)?);
            }
            victim.start()?;
            wait_done(ground, topic, &writer, events)?;
            victim.kill()?;
            writer.stop()?;
            count(ground, topic, events, EVENT_BYTES)
        })
    })?;
    remove(&input)?;
    Ok(tally)
}

/// Until nothing new comes, whether all is there or not.
fn wait_done(ground: &Ground, topic: &str, writer: &Writer, events: u64) -> Result<()> {
    let (mut end, mut since) = (ground.end(topic)?, Instant::now());
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = ground.end(topic)?;
        if now > end || writer.written() < events {
            (end, since) = (now, Instant::now());
        }
        let limit = if end >= events { QUIET } else { SILENT };
        if since.elapsed() > limit {
            return Ok(());
        }
    }
}
