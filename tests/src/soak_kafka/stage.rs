//! One run, from the first start to the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::feeder::{Feed, Feeder};
use super::harm::{Act, Choices};
use super::pipelines::{self, PARTITIONS};
use super::{Flow, KafkaSoak, Plugin, Report, Tally};
use crate::agent::Agent;
use crate::disk::CuttableDisk;
use crate::generator::{Generator, Load, Rotation};
use crate::interceptors::Swaps;
use crate::kafka::client;
use crate::kafka::{Broker, BrokerOptions, Client, ConsumeOptions, Proxy};
use crate::oracle::{self, Verdict};
use crate::output::{self, LineCounter};
use crate::scene::Scene;
use crate::{limits, poll, scene};

/// Files written side by side.
const INPUT_FILES: u32 = 3;
/// One harm in so many is preceded by a swap.
const SWAP_ODDS: u32 = 3;
/// One life in so many is ended before events flow again.
const EARLY_ODDS: u32 = 4;
/// More than the talk before the first batch of events.
const FLOW_BYTES: u64 = 100_000;
/// Kafka's own default. With the shorter interval of the other tests a broker that starts again aborts old
/// transactions before it has a leader for their partitions, and then leaves the markers out ([`SKIPPED_MARKERS`]).
const ABORT_LATER: (&str, &str) = ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "10000");
/// What the broker logs when it ends a transaction without telling some of its partitions, for want of a leader at
/// that moment (KAFKA-20734). The producer's next transaction there then decides over the records of both.
const SKIPPED_MARKERS: &str = "these partitions are likely deleted already and hence can be skipped";
/// One kill in so many is followed by another number of lanes.
const LANES_ODDS: u32 = 4;
/// Longest time between the two kills of agent and broker, and before the broker comes back.
const APART_MAX: Duration = Duration::from_millis(500);

/// One run's state.
pub(super) struct Stage<'a> {
    soak: &'a KafkaSoak,
    // Before the scenes: the broker's directory lies in the first of them.
    pub broker: Broker,
    pub proxy: Proxy,
    pub hosts: Vec<Host>,
    // Behind the agents: nothing of the disk may be open when it is unmounted.
    disk: Option<CuttableDisk>,
    choices: Choices,
    tally: Tally,
    swaps: Swaps,
    counter: LineCounter,
    started: Instant,
}

/// A directory, and the agent that runs in it.
pub(super) struct Host {
    // Before the scene: nothing writes there any more when it is removed.
    agent: Option<Agent>,
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

    fn kill(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    fn stop(&mut self) -> Result<()> {
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
        let options = BrokerOptions {
            dir: Some(first.scene.root().join("broker")),
            properties: vec![(ABORT_LATER.0.to_owned(), ABORT_LATER.1.to_owned())],
            ..BrokerOptions::default()
        };
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

    /// Until the next harm; now and then a plugin is swapped meanwhile.
    fn live(&mut self) -> Result<()> {
        if !self.choices.one_in(EARLY_ODDS) {
            self.wait_flow()?;
        }
        let life = self.choices.life();
        if self.soak.plugin == Plugin::None || !self.choices.one_in(SWAP_ODDS) {
            thread::sleep(life);
            return Ok(());
        }
        // The experiment itself, not a wait for something.
        let before = self.choices.upto(life.max(limits::POLL));
        thread::sleep(before);
        let host = self.hosts.first().context("no scene")?;
        self.swaps.swap(&host.scene, &mut self.choices.random)?;
        thread::sleep(life.saturating_sub(before));
        Ok(())
    }

    /// Until events flow again: harm to what only starts is done often enough.
    fn wait_flow(&mut self) -> Result<()> {
        let before = self.proxy.moved_bytes();
        let flows = poll::until("bytes between agents and broker", limits::KAFKA_FLOW, || {
            self.expect_agents()?;
            Ok(self.proxy.moved_bytes() > before + FLOW_BYTES)
        });
        let Err(error) = flows else { return Ok(()) };
        // Whether it ever goes on is for the drain to say.
        self.expect_agents()?;
        self.note(&format!("{error:#}"));
        Ok(())
    }

    fn expect_agents(&mut self) -> Result<()> {
        self.hosts.iter_mut().filter(|host| host.agent.is_some()).try_for_each(|host| host.agent().map(drop))
    }

    fn act(&mut self, act: Act) -> Result<()> {
        self.expect_agents()?;
        match act {
            Act::KillAgent => self.kill_agents()?,
            Act::KillBroker => {
                self.kill_broker()?;
                thread::sleep(self.choices.upto(APART_MAX));
                self.broker.restart()?;
            }
            Act::KillBoth => self.kill_both()?,
            Act::PauseLink => {
                let away = self.away();
                self.proxy.pause()?;
                self.tally.pauses += 1;
                thread::sleep(away);
                self.proxy.resume()?;
            }
            Act::CutLink => {
                self.proxy.cut()?;
                self.tally.cuts += 1;
                thread::sleep(self.choices.away().0);
                self.proxy.mend()?;
            }
            Act::StopBroker => {
                let away = self.away();
                self.broker.pause()?;
                self.tally.stops += 1;
                thread::sleep(away);
                self.broker.resume()?;
            }
            Act::KillBehindPause => {
                self.proxy.pause()?;
                self.tally.pauses += 1;
                thread::sleep(self.choices.upto(APART_MAX));
                self.kill_agents()?;
                self.start_agents()?;
                thread::sleep(self.choices.upto(APART_MAX));
                self.proxy.resume()?;
            }
            Act::PowerCut => {
                let disk = self.disk.as_mut().context("no disk to cut off")?;
                disk.cut()?;
                self.hosts.first_mut().context("no scene")?.kill()?;
                disk.power_up()?;
                self.tally.power_cuts += 1;
            }
        }
        self.start_agents()
    }

    fn kill_both(&mut self) -> Result<()> {
        let is_broker_first = self.choices.one_in(2);
        if is_broker_first {
            self.kill_broker()?;
            thread::sleep(self.choices.upto(APART_MAX));
        }
        self.kill_agents()?;
        if !is_broker_first {
            thread::sleep(self.choices.upto(APART_MAX));
            self.kill_broker()?;
        }
        self.start_agents()?;
        self.broker.launch()?;
        if self.choices.one_in(2) {
            // Once more, while it asks a broker that does not answer yet.
            thread::sleep(self.choices.upto(APART_MAX * 4));
            self.kill_agents()?;
            self.start_agents()?;
        }
        self.broker.wait_ready()
    }

    fn kill_broker(&mut self) -> Result<()> {
        self.tally.broker_kills += 1;
        self.broker.kill()
    }

    /// One of them, or all.
    fn kill_agents(&mut self) -> Result<()> {
        let count = self.hosts.len();
        let chosen = self.choices.upto(Duration::from_nanos(count as u64 + 1)).as_nanos() as usize;
        for (_, host) in self.hosts.iter_mut().enumerate().filter(|(at, _)| chosen == count || *at == chosen)
        {
            host.kill()?;
            self.tally.agent_kills += 1;
        }
        if pipelines::may_change_lanes(self.soak) && self.choices.one_in(LANES_ODDS) {
            self.change_lanes()?;
        }
        Ok(())
    }

    /// The number of lanes is a user's to change, also while transactions of the old ones are open.
    fn change_lanes(&mut self) -> Result<()> {
        let soak = pipelines::with_other_lanes(self.soak, &mut self.choices.random);
        self.note(&format!("{} lanes", soak.lanes.unwrap_or_default()));
        let texts = pipelines::texts(&soak, &self.broker.bootstrap_proxied());
        self.hosts.iter().zip(texts).try_for_each(|(host, text)| host.scene.pipeline(&text))
    }

    fn away(&mut self) -> Duration {
        let (away, is_long) = self.choices.away();
        self.tally.long += u32::from(is_long);
        away
    }

    /// Everything has to arrive, and a SIGTERM to end the agents well.
    pub fn drain(&mut self, written: &[u64]) -> Result<()> {
        if let Err(error) = self.wait_delivered(written) {
            eprintln!("{error:#}\njudged as it is");
        }
        for host in self.hosts.iter_mut().filter(|host| host.agent.is_some()) {
            host.stop()?;
        }
        // What came behind the last look is one too many.
        self.count().map(drop)
    }

    fn wait_delivered(&mut self, written: &[u64]) -> Result<()> {
        let expected = self.soak.plugin.kept(written);
        let (mut most, mut progress) = (0, Instant::now());
        let waited = poll::until("all events at their destination", Duration::from_secs(3_600), || {
            self.expect_agents()?;
            let count = self.count()?;
            if count > most {
                (most, progress) = (count, Instant::now());
            }
            if progress.elapsed() > limits::KAFKA_NO_PROGRESS {
                bail!("no progress at {count} of {expected} lines");
            }
            if count < expected {
                thread::sleep(limits::KAFKA_LOOK);
            }
            Ok(count >= expected)
        });
        waited.with_context(|| {
            let tails = self.hosts.iter().filter_map(|host| host.agent.as_ref().map(Agent::log_tail));
            tails.collect::<Vec<_>>().join("\n")
        })
    }

    /// Events at their destination now.
    pub fn count(&mut self) -> Result<u64> {
        let output = self.hosts.last().context("no scene")?.scene.output.clone();
        match self.soak.flow {
            Flow::KafkaToFile | Flow::Channel => self.counter.count(&output),
            Flow::FileToKafka | Flow::Bare => {
                client::collect(&self.oracle(), &pipelines::topics(self.soak), &output)
            }
        }
    }

    pub fn judge(&self, written: &[u64]) -> Result<Verdict> {
        oracle::judge(&output::sequences(self.output()?)?, written, |seq| self.soak.plugin.keeps(seq))
    }

    /// Where the destination is, or what came out of it.
    fn output(&self) -> Result<&Path> {
        Ok(&self.hosts.last().context("no scene")?.scene.output)
    }

    /// Records that were written and do not count.
    fn undone(&self) -> Result<u64> {
        if self.soak.flow == Flow::Channel {
            return Ok(0);
        }
        let scratch = tempfile::NamedTempFile::new()?;
        let mut undone = 0;
        for topic in pipelines::topics(self.soak) {
            let mut options = ConsumeOptions::new(&self.oracle(), &topic);
            let committed = client::values_to_file(&options, scratch.path())?;
            options.is_uncommitted = true;
            undone += client::values_to_file(&options, scratch.path())?.saturating_sub(committed);
        }
        Ok(undone)
    }

    /// How often the broker broke its own promise.
    fn skipped_markers(&self) -> Result<u64> {
        let log = fs::read_to_string(self.broker.dir().join("broker.log"))?;
        Ok(log.matches(SKIPPED_MARKERS).count() as u64)
    }

    fn oracle(&self) -> Client {
        self.broker.client().within(limits::KAFKA_NO_PROGRESS)
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

/// Keys of a topic that are in more than one partition: `TOPIC/pN/KEY.log`.
///
/// # Errors
/// If the directory cannot be read.
pub fn spread_keys(dir: &Path) -> Result<u64> {
    let mut partitions: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for path in output::files(dir)? {
        let relative = path.strip_prefix(dir)?.display().to_string();
        let mut parts = relative.split('/');
        if let (Some(topic), Some(partition), Some(key)) = (parts.next(), parts.next(), parts.next())
            && key != "none.log"
        {
            partitions.entry((topic.to_owned(), key.to_owned())).or_default().insert(partition.to_owned());
        }
    }
    Ok(partitions.values().filter(|found| found.len() > 1).count() as u64)
}
