//! One run, from the first start to the verdict.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::feeder::{Feed, Feeder};
use super::harm::{Act, Choices};
use super::outcome::spread_keys;
use super::pipelines::{self, PARTITIONS};
use super::{Flow, KafkaSoak, Plugin, Report, Tally};
use crate::agent::Agent;
use crate::disk::CuttableDisk;
use crate::generator::{Generator, Load, Rotation};
use crate::interceptors::Swaps;
use crate::kafka::{Broker, BrokerOptions, Proxy};
use crate::oracle::Verdict;
use crate::output::LineCounter;
use crate::scene::Scene;
use crate::{limits, poll, scene};

/// How often a broker looks for transactions that are over their time.
const CLEANUP_INTERVAL: &str = "transaction.abort.timed.out.transaction.cleanup.interval.ms";
/// Files written side by side.
const INPUT_FILES: u32 = 3;
/// One run's state.
pub(super) struct Stage<'a> {
    pub soak: &'a KafkaSoak,
    // Before the scenes: the broker's directory lies in the first of them.
    pub broker: Broker,
    pub proxy: Proxy,
    pub hosts: Vec<Host>,
    // Behind the agents: nothing of the disk may be open when it is unmounted.
    pub disk: Option<CuttableDisk>,
    pub choices: Choices,
    pub tally: Tally,
    pub swaps: Swaps,
    pub counter: LineCounter,
    pub started: Instant,
}

/// A directory, and the agent that runs in it.
pub(super) struct Host {
    // Before the scene: nothing writes there any more when it is removed.
    pub agent: Option<Agent>,
    pub scene: Scene,
}

/// Who writes what has to arrive.
pub(super) enum Input {
    Files(Generator),
    Feed(Feeder),
}

impl Host {
    fn new(soak: &KafkaSoak) -> Result<Self> {
        let mut scene = match &soak.dir {
            Some(dir) => Scene::below(dir)?,
            None => Scene::new()?,
        };
        scene.binary.clone_from(&soak.binary);
        Ok(Self { agent: None, scene })
    }

    pub fn start(&mut self) -> Result<()> {
        self.agent = Some(self.scene.start()?);
        Ok(())
    }

    pub fn agent(&mut self) -> Result<&mut Agent> {
        let agent = self.agent.as_mut().context("no agent runs")?;
        agent.expect_running()?;
        Ok(agent)
    }

    pub fn kill(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    pub fn stop(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.stop()
    }
}

impl Input {
    /// Lines per file (or partition), and rotations.
    fn stop(self) -> Result<(Vec<u64>, u64)> {
        match self {
            Input::Files(generator) => {
                let rotations = generator.rotations();
                Ok((generator.stop()?, rotations))
            }
            Input::Feed(feeder) => {
                let fed = feeder.stop()?;
                eprintln!("  fed by {} transactions, and {} aborted ones", fed.transactions, fed.aborted);
                Ok((fed.written, 0))
            }
        }
    }
}

impl<'a> Stage<'a> {
    pub fn new(soak: &'a KafkaSoak) -> Result<Self> {
        let mut hosts = vec![Host::new(soak)?];
        let first = hosts.first().context("no scene")?;
        let dir = Some(first.scene.root().join("broker"));
        let eager = soak.is_broker_eager.then(|| (CLEANUP_INTERVAL.to_owned(), "500".to_owned()));
        let properties = eager.into_iter().collect();
        let options = BrokerOptions { dir, properties, ..BrokerOptions::default() };
        let broker = Broker::start(&options)?;
        let proxy = broker.proxy()?;
        for topic in pipelines::topics(soak) {
            broker.client().create_topic(&topic, PARTITIONS, &[])?;
        }
        let disk = match soak.mix.count(Act::PowerCut) {
            0 => None,
            _ => Some(CuttableDisk::new()?),
        };
        if let (Some(disk), Some(host)) = (&disk, hosts.first_mut()) {
            host.scene.data = disk.dir().join("data");
            if soak.flow == Flow::KafkaToFile {
                host.scene.output = disk.dir().join("out");
            }
        }
        let texts = pipelines::texts(soak, &broker.bootstrap_proxied());
        for (at, text) in texts.iter().enumerate() {
            if at > 0 {
                hosts.push(Host::new(soak)?);
            }
            let host = hosts.get_mut(at).context("no scene")?;
            // Agents on one broker must differ.
            host.scene.agent_name = format!("soak-{at}");
            soak.plugin.install(&host.scene)?;
            host.scene.pipeline(text)?;
        }
        Ok(Self {
            soak,
            broker,
            proxy,
            hosts,
            disk,
            choices: Choices::new(soak.seed),
            tally: Tally::default(),
            swaps: Swaps::default(),
            counter: LineCounter::default(),
            started: Instant::now(),
        })
    }

    pub fn perform(&mut self, started: Instant) -> Result<Report> {
        self.started = started;
        let acts = self.soak.mix.shuffled(&mut self.choices.random);
        let input = self.start_input()?;
        self.start_agents()?;
        for (at, act) in (1..).zip(&acts) {
            self.note(&format!("{at} of {}: {act:?}", acts.len()));
            self.live().and_then(|()| self.act(*act)).with_context(|| format!("harm {at}, {act:?}"))?;
        }
        let (written, rotations) = input.stop()?;
        let lines = written.iter().sum::<u64>();
        if lines == 0 {
            bail!("nothing was written: there is nothing to judge");
        }
        self.note(&format!("drain of {lines} lines"));
        self.drain(&written)?;
        let quarantine = match self.hosts.first() {
            Some(host) if self.soak.flow != Flow::Bare => {
                self.soak.plugin.judge_quarantine(&host.scene, &written)?
            }
            _ => Verdict::default(),
        };
        Ok(Report {
            flow: self.soak.flow,
            plugin: self.soak.plugin,
            delivery: self.soak.delivery,
            harm: self.tally,
            verdict: self.judge(&written)?,
            quarantine,
            beside: self.judge_beside(&written)?,
            spread_keys: spread_keys(self.output()?)?,
            undone: self.undone()?,
            skipped_markers: self.skipped_markers()?,
            swaps: self.swaps.good,
            broken_swaps: self.swaps.broken,
            rotations,
            seconds: started.elapsed().as_secs_f64(),
            seed: self.soak.seed,
        })
    }

    /// Keeps everything for a look.
    pub fn keep(&mut self) {
        for host in &mut self.hosts {
            eprintln!("kept for a look: {}", host.scene.keep().display());
        }
        if let (Some(disk), Some(host)) = (&self.disk, self.hosts.first()) {
            let copied = scene::copy_tree(&disk.dir(), &host.scene.root().join("disk"));
            copied.unwrap_or_else(|error| eprintln!("the disk could not be kept: {error:#}"));
        }
    }

    pub fn start_input(&self) -> Result<Input> {
        let scene = &self.hosts.first().context("no scene")?.scene;
        let (bytes_per_s, seed) = (self.soak.bytes_per_s, self.soak.seed);
        let has_malformed = self.soak.plugin == Plugin::AccessLog;
        if matches!(self.soak.flow, Flow::KafkaToFile | Flow::Bare) {
            let topic = &pipelines::topics(self.soak).into_iter().next().context("no topic")?;
            // Without an agent the producer is what is harmed.
            let is_bare = self.soak.flow == Flow::Bare;
            let bootstrap = if is_bare { self.broker.bootstrap_proxied() } else { self.broker.bootstrap() };
            let feed = Feed { bootstrap, topic, bytes_per_s, has_malformed, seed };
            let feeder = Feeder::start(scene.root(), &feed)?;
            // Harm to a producer that only begins is another matter, and leaves nothing to judge.
            poll::until("the first lines in the topic", limits::KAFKA_FEED_END, || {
                Ok(self.oracle().offsets(topic)?.iter().any(|part| part.end > 0))
            })?;
            return Ok(Input::Feed(feeder));
        }
        Ok(Input::Files(Generator::start(Load {
            dir: scene.input(),
            files: INPUT_FILES,
            bytes_per_s,
            // Three files share the rate: each is rotated about once a second.
            rotate_bytes: bytes_per_s / 3,
            rotation: Rotation::Rename,
            lines: None,
            has_malformed,
            has_doubles: self.soak.plugin == Plugin::Dedup,
            seed,
        })?))
    }

    /// Starts those that do not run.
    pub fn start_agents(&mut self) -> Result<()> {
        if self.soak.flow == Flow::Bare {
            return Ok(());
        }
        self.hosts.iter_mut().filter(|host| host.agent.is_none()).try_for_each(Host::start)
    }

    /// Into `acts.log`, for a look behind a failure; and to who watches.
    pub fn note(&self, text: &str) {
        let line = format!("{:8.3} s  {text}", self.started.elapsed().as_secs_f64());
        if self.soak.is_talkative {
            eprintln!("  {line}");
        }
        let Some(host) = self.hosts.first() else { return };
        let log = OpenOptions::new().create(true).append(true).open(host.scene.root().join("acts.log"));
        // A note that cannot be written is no reason to end the run.
        drop(log.and_then(|mut log| writeln!(log, "{} {line}", jiff::Timestamp::now())));
    }
}
