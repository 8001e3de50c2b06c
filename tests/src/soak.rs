//! The soak: a busy writer, an agent that is killed (or loses its power) at random moments, plugins that are
//! swapped meanwhile, and the oracle at the end.

use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde::Serialize;

use crate::agent::Agent;
use crate::disk::CuttableDisk;
use crate::generator::{Generator, Load, Rotation};
pub use crate::interceptors::Plugin;
use crate::interceptors::Swaps;
use crate::oracle::Verdict;
use crate::output::LineCounter;
use crate::scene::Scene;
use crate::soak_changes::{Changes, Growth};
use crate::soak_faults::{counted_lost, faults, stop_behind, wait_all};
use crate::soak_tidy::Tidy;
use crate::{flow, limits, oracle, output, poll, scene};

/// What ends the agent's lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    /// SIGKILL.
    Kill,
    /// The disk with journal and output goes back to what it had made durable.
    PowerCut,
}

/// Kinds of channels: two that promise each event once whatever kills the agent, and one that counts what it loses then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// On disk.
    File,
    /// In memory, and read again.
    SourceBacked,
    /// The same, with a second sink that flushes and rolls at other times.
    SourceBackedTwice,
    /// In memory until that is full, then on disk. A kill loses what was in memory, and the next start says how much.
    Spillable,
    /// In memory alone, with the same words.
    Memory,
}

impl Channel {
    /// The channel in a pipeline file.
    #[must_use]
    pub fn table(self) -> &'static str {
        match self {
            Channel::File => "",
            Channel::SourceBacked | Channel::SourceBackedTwice => "[channel]\nkind = \"source-backed\"\n",
            // Hardly more than a batch: while the sink's disk fails it overflows.
            Channel::Spillable => {
                "[channel]\nkind = \"spillable\"\nmemory = { events = 10_000, bytes = \"4 MiB\" }\n"
            }
            Channel::Memory => {
                "[channel]\nkind = \"memory\"\ncapacity = { events = 10_000, bytes = \"4 MiB\" }\n"
            }
        }
    }

    /// Kills lose what was in memory.
    #[must_use]
    pub fn may_lose(self) -> bool {
        matches!(self, Channel::Spillable | Channel::Memory)
    }
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Soak {
    /// What ends the agent's lives.
    pub harm: Harm,
    /// How many of them.
    pub times: u32,
    /// Swaps of a plugin and edits of the pipeline, half of them in lives that are killed, half in one long life. Needs a plugin.
    pub changes: u32,
    /// Of all random choices.
    pub seed: u64,
    /// The interceptors.
    pub plugin: Plugin,
    /// How the input is rotated.
    pub rotation: Rotation,
    /// Bytes per second into the input, all files together.
    pub bytes_per_s: u64,
    /// `false`: `durability = "os"`, which does not hold through a power cut. Shows that the cuts have teeth.
    pub is_durable: bool,
    /// The channel's kind.
    pub channel: Channel,
    /// Every life but the last has errors of its disk (`docs/faults.md`): EIO, ENOSPC, full for a moment.
    pub has_faults: bool,
    /// Where to work; the system's temporary directory by default.
    pub dir: Option<PathBuf>,
    /// The binary; `None`: the one beside the running program.
    pub binary: Option<PathBuf>,
    /// Keep the directory at the end.
    pub keep: bool,
    /// Removes what was delivered, so that a long run needs no more disk than a short one. Not with power cuts: a removed file
    /// may come back.
    pub is_tidy: bool,
    /// Says how far it is.
    pub is_talkative: bool,
}

impl Soak {
    /// Kills with the defaults.
    #[must_use]
    pub fn kills(times: u32, seed: u64, plugin: Plugin) -> Self {
        Self {
            harm: Harm::Kill,
            times,
            changes: 0,
            seed,
            plugin,
            rotation: Rotation::Rename,
            bytes_per_s: 3_000_000,
            is_durable: true,
            channel: Channel::File,
            has_faults: false,
            dir: None,
            binary: None,
            keep: false,
            is_tidy: false,
            is_talkative: false,
        }
    }

    /// Power cuts with the defaults. Slower input: everything has to fit on the disk image.
    #[must_use]
    pub fn power_cuts(times: u32, seed: u64, plugin: Plugin) -> Self {
        Self { harm: Harm::PowerCut, bytes_per_s: 800_000, ..Self::kills(times, seed, plugin) }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Lives ended.
    pub kills: u32,
    /// How.
    pub harm: Harm,
    /// Interceptors.
    pub plugin: Plugin,
    /// The oracle.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The oracle over the quarantine, for the lines that `access-log` rejects.
    pub quarantine: Verdict,
    /// The oracle over what a second sink wrote.
    pub second: Option<Verdict>,
    /// Good plugin files copied over a running one.
    pub swaps: u32,
    /// Broken plugin files copied over a running one.
    pub broken_swaps: u32,
    /// Edits of the pipeline that were taken over.
    pub edits: u32,
    /// Versions with a bug that were rolled back.
    pub rollbacks: u32,
    /// Lives that ended by themselves, because the disk failed too often.
    pub stops: u32,
    /// Steps of the disk that were refused on purpose, as far as the log tells them.
    pub refused: u64,
    /// Events that starts said were lost with the memory of a spillable channel.
    pub counted_lost: u64,
    /// Of the long life.
    pub memory: Option<Growth>,
    /// The most that input, output and journal took, where what was delivered is removed.
    pub disk_bytes: u64,
    /// Rotations of the input.
    pub rotations: u64,
    /// Whole run.
    pub seconds: f64,
    /// To repeat it.
    pub seed: u64,
}

impl Report {
    /// True if nothing was lost, doubled or out of order, and memory does not grow.
    #[must_use]
    pub fn holds(&self) -> bool {
        let is_bounded = self.memory.is_none_or(|memory| memory.is_bounded());
        let is_second_whole = self.second.as_ref().is_none_or(Verdict::holds);
        let is_whole = self.verdict.holds_but_for(self.counted_lost) && is_second_whole;
        is_bounded && is_whole && self.quarantine.holds()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.harm {
            Harm::Kill => "kills",
            Harm::PowerCut => "power cuts",
        };
        let (kills, plugin, swaps, broken) = (self.kills, self.plugin, self.swaps, self.broken_swaps);
        let (edits, rollbacks) = (self.edits, self.rollbacks);
        let memory = self.memory.map_or(String::new(), |memory| format!("\n  memory:     {memory}"));
        let disk = match self.disk_bytes {
            0 => String::new(),
            bytes => format!("\n  disk:       {:.0} MB at most", bytes as f64 / 1e6),
        };
        let second = self.second.as_ref().map_or(String::new(), |it| format!("\n  second:     {it}"));
        let (rotations, seconds, seed) = (self.rotations, self.seconds, self.seed);
        let faults = match (self.refused, self.counted_lost) {
            (0, 0) => String::new(),
            (refused, lost) => format!(
                "\n  faults:     {refused} steps refused or more, {} stops by itself, {lost} events counted as lost",
                self.stops
            ),
        };
        write!(
            formatter,
            "{kills} {what}, plugin {plugin:?}, {swaps} swaps ({broken} broken, {rollbacks} rolled back), {edits} edits, {rotations} rotations, {seconds:.1} s, seed {seed}\n  output:     {}{second}\n  quarantine: {}{memory}{disk}{faults}",
            self.verdict, self.quarantine
        )
    }
}

/// Changes before memory is looked at: by then every part has been exchanged.
const CHANGES_TO_WARM_UP: u32 = 40;
/// Between two looks at what was delivered.
const CHANGES_AT_ONCE: usize = 10;
/// Between two looks while everything drains.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// Files written side by side.
const INPUT_FILES: u32 = 3;
/// Longest life before a kill.
const LIFE_MAX: Duration = Duration::from_millis(1_500);
/// One life in so many ends while it still starts and recovers.
const EARLY_ODDS: u32 = 4;
/// Longest of these.
const EARLY_LIFE_MAX: Duration = Duration::from_millis(120);
/// About how long an agent takes over a change: kills come within.
const CHANGE_TAKES: Duration = Duration::from_millis(500);
/// One life in so many sees a swap.
const SWAP_ODDS: u32 = 3;
/// As [`limits::NO_PROGRESS`], without durability: lines that are lost are waited for in vain each time.
const NO_PROGRESS_OF_LOSERS: Duration = Duration::from_secs(30);
/// Starts behind which what a kill took back is read again: the first is enough, unless the machine stands still right behind it.
const STARTS_MAX: u32 = 10;
/// What the log says of a step of the disk that fails by [`faults`].
const REFUSED: &str = "refused on purpose";
/// Runs it.
///
/// # Errors
/// If something else than the promise breaks: the agent ends by itself, does not start, does not stop.
pub fn run(soak: &Soak) -> Result<Report> {
    let started = Instant::now();
    let mut stage = Stage::new(soak)?;
    let result = stage.perform(started);
    if soak.keep || result.as_ref().map_or(true, |report| soak.is_durable && !report.holds()) {
        stage.keep();
    }
    result.with_context(|| format!("soak with seed {}", soak.seed))
}

/// One run's state.
struct Stage<'a> {
    soak: &'a Soak,
    // Before the disk: nothing of the disk may be open when it is unmounted.
    scene: Scene,
    disk: Option<CuttableDisk>,
    random: StdRng,
    swaps: Swaps,
    changes: Changes,
    memory: Option<Growth>,
    stops: u32,
    counter: LineCounter,
    tidy: Tidy,
}

impl<'a> Stage<'a> {
    fn new(soak: &'a Soak) -> Result<Self> {
        let mut scene = match &soak.dir {
            Some(dir) => Scene::below(dir)?,
            None => Scene::new()?,
        };
        scene.binary.clone_from(&soak.binary);
        let disk = match soak.harm {
            Harm::Kill => None,
            Harm::PowerCut => Some(CuttableDisk::new()?),
        };
        if let Some(disk) = &disk {
            scene.data = disk.dir().join("data");
            scene.output = disk.dir().join("out");
        }
        soak.plugin.install(&scene)?;
        scene.pipeline(&pipeline(soak))?;
        let random = StdRng::seed_from_u64(soak.seed);
        let counter = LineCounter::default();
        let changes = if soak.changes > 0 { Changes::new(&scene)? } else { Changes::default() };
        let (swaps, memory, tidy) = (Swaps::default(), None, Tidy::new(soak.plugin));
        let stops = 0;
        Ok(Self { soak, scene, disk, random, swaps, changes, memory, stops, counter, tidy })
    }

    fn perform(&mut self, started: Instant) -> Result<Report> {
        let generator = Generator::start(Load {
            dir: self.scene.input(),
            files: INPUT_FILES,
            bytes_per_s: self.soak.bytes_per_s,
            // Three files share the rate: each is rotated about once a second.
            rotate_bytes: self.soak.bytes_per_s / 3,
            rotation: self.soak.rotation,
            lines: None,
            has_malformed: self.soak.plugin == Plugin::AccessLog,
            has_doubles: self.soak.plugin == Plugin::Dedup,
            seed: self.soak.seed,
        })?;
        for life in 1..=self.soak.times {
            self.live(&generator).with_context(|| format!("life {life}"))?;
            self.tidy()?;
            if self.soak.is_talkative && life % 10 == 0 {
                let lines: u64 = generator.written().iter().sum();
                let seconds = started.elapsed().as_secs();
                eprintln!("  {life} of {} after {seconds} s, {lines} lines written", self.soak.times);
            }
        }
        if self.soak.rotation != Rotation::None && generator.rotations() == 0 {
            self.live_until_rotated(&generator)?;
        }
        if self.soak.has_faults && self.refused()? == 0 {
            self.live_until_refused(&generator)?;
        }
        self.live_with_changes()?;
        let rotations = generator.rotations();
        let written = self.drain(generator)?;
        let tidy = std::mem::replace(&mut self.tidy, Tidy::new(self.soak.plugin));
        let disk_bytes = tidy.most_bytes;
        let verdict = tidy.verdict(&self.scene, &written)?;
        let second = self
            .second_output()
            .map(|dir| oracle::judge(&output::sequences(&dir)?, &written, |seq| self.soak.plugin.keeps(seq)));
        Ok(Report {
            second: second.transpose()?,
            kills: self.soak.times,
            harm: self.soak.harm,
            plugin: self.soak.plugin,
            verdict,
            quarantine: self.soak.plugin.judge_quarantine(&self.scene, &written)?,
            swaps: self.swaps.good + self.changes.swaps,
            edits: self.changes.edits,
            rollbacks: self.changes.rollbacks,
            stops: self.stops,
            refused: self.refused()?,
            counted_lost: counted_lost(&self.scene)?,
            memory: self.memory,
            disk_bytes,
            broken_swaps: self.swaps.broken,
            rotations,
            seconds: started.elapsed().as_secs_f64(),
            seed: self.soak.seed,
        })
    }

    /// Keeps everything for a look; what is on the disk of a power cut is copied beside it.
    fn keep(&mut self) {
        let root = self.scene.keep();
        eprintln!("kept for a look: {}", root.display());
        if let Some(disk) = &self.disk {
            let copied = scene::copy_tree(&disk.dir(), &root.join("disk"));
            copied.unwrap_or_else(|error| eprintln!("the disk could not be kept: {error:#}"));
        }
    }

    /// From a start to a kill.
    fn live(&mut self, generator: &Generator) -> Result<()> {
        if self.soak.changes > 0 {
            let mut agent = self.scene.start_ready()?;
            let count = self.soak.changes / 2 / self.soak.times.max(1);
            self.changes.make(&self.scene, &mut agent, count, false)?;
            self.changes.begin_one(&self.scene)?;
            thread::sleep(self.random.random_range(Duration::ZERO..CHANGE_TAKES));
            return self.harm(agent);
        }
        if self.soak.has_faults {
            self.scene.env = vec![("FLUMEN_FAULTS".to_owned(), faults(&mut self.random))];
        }
        let mut agent = self.scene.start()?;
        self.scene.env.clear();
        if generator.wants_truncation() {
            agent = self.let_truncate(agent, generator)?;
        }
        if !self.soak.is_durable {
            // A cut before anything was delivered shows nothing.
            flow::wait_progress(&[&self.scene], 1)?;
        }
        let is_early = self.random.random_ratio(1, EARLY_ODDS);
        if self.soak.has_faults && !is_early {
            // On a busy machine all lives might end before there was a step to refuse.
            agent.wait_ready_or_end()?;
        }
        let longest = if is_early { EARLY_LIFE_MAX } else { LIFE_MAX };
        let life = self.random.random_range(Duration::ZERO..longest);
        if self.soak.plugin != Plugin::None && self.random.random_ratio(1, SWAP_ODDS) {
            let before = self.random.random_range(Duration::ZERO..=life);
            // The experiment itself, not a wait for something.
            thread::sleep(before);
            self.swaps.swap(&self.scene, &mut self.random)?;
            thread::sleep(life.saturating_sub(before));
        } else {
            thread::sleep(life);
        }
        self.harm(agent)
    }

    /// A life that lasts until the input was rotated: many short lives may all end before the first rotation.
    fn live_until_rotated(&mut self, generator: &Generator) -> Result<()> {
        let mut agent = self.scene.start_ready()?;
        let is_rotated = || generator.rotations() > 0;
        poll::until("a rotation of the input", limits::NO_PROGRESS, || {
            Ok(is_rotated() || generator.wants_truncation())
        })?;
        if generator.wants_truncation() {
            agent = self.let_truncate(agent, generator)?;
            poll::until("the truncation", limits::NO_PROGRESS, || Ok(is_rotated()))?;
        }
        self.harm(agent)
    }

    /// A life that lasts until its disk has refused a step: on a busy machine all lives may end before there was one to refuse.
    fn live_until_refused(&mut self, generator: &Generator) -> Result<()> {
        self.scene.env = vec![("FLUMEN_FAULTS".to_owned(), faults(&mut self.random))];
        let agent = self.scene.start()?;
        self.scene.env.clear();
        // A writer that waits for its truncation brings nothing to refuse.
        poll::until("a step that is refused", limits::CONDITION, || {
            Ok(agent.log()?.contains(REFUSED) || generator.wants_truncation())
        })
        .with_context(|| agent.log_tail())?;
        self.harm(agent)
    }

    /// Steps of the disk that were refused, as far as the log tells them.
    fn refused(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.scene.log())?.matches(REFUSED).count() as u64)
    }

    /// What is delivered may be truncated. The agent that goes on.
    fn let_truncate(&mut self, mut agent: Agent, generator: &Generator) -> Result<Agent> {
        let written = generator.written();
        if self.soak.channel == Channel::File {
            self.wait_delivered(&mut agent, &written)?;
        } else {
            // A line in the output may not be acknowledged yet. A kill takes it back then, and it is read again: from what is no more.
            if let Some(error) = self.deliver_and_stop(agent, &written)? {
                return Err(error);
            }
            agent = self.scene.start()?;
        }
        generator.grant_truncation();
        Ok(agent)
    }

    /// Waits until everything is delivered, and ends the agent. `Some`: why not all of it came.
    ///
    /// What was in the output when the agent before was killed, and not acknowledged, this one takes back. Of a channel that keeps no events
    /// it has to read that again, and the lines may all be counted before it does, so they are counted once more behind its end.
    fn deliver_and_stop(&mut self, mut agent: Agent, written: &[u64]) -> Result<Option<anyhow::Error>> {
        for _ in 0..STARTS_MAX {
            let delivered =
                self.wait_delivered(&mut agent, written).and_then(|()| self.wait_second(&mut agent, written));
            if let Err(error) = delivered {
                agent.stop().with_context(|| format!("{error:#}"))?;
                return Ok(Some(error));
            }
            // Before that a signal ends it as it ends every process.
            agent.wait_ready()?;
            agent.stop()?;
            if self.soak.channel == Channel::File || self.is_settled(written)? {
                return Ok(None);
            }
            eprintln!("what was delivered was taken back: once more");
            agent = self.scene.start()?;
        }
        Ok(Some(anyhow!("{STARTS_MAX} agents in a row took back what was delivered")))
    }

    /// Whether all lines are in files that have their final names: those a clean stop gives to what is acknowledged, and to nothing else.
    fn is_settled(&mut self, written: &[u64]) -> Result<bool> {
        let expected = self.soak.plugin.kept(written);
        let mut has_all = self.counter.count(&self.scene.output)? + self.tidy.lines >= expected;
        let mut paths = output::files(&self.scene.output)?;
        if let Some(dir) = self.second_output() {
            has_all = has_all && LineCounter::default().count(&dir)? >= expected;
            paths.extend(output::files(&dir)?);
        }
        Ok(has_all && !paths.iter().any(|path| output::is_open(path)))
    }

    /// One long life with the other half of the changes; half of the new versions have a bug.
    fn live_with_changes(&mut self) -> Result<()> {
        if self.soak.changes == 0 {
            return Ok(());
        }
        let mut agent = self.scene.start_ready()?;
        let count = self.soak.changes - self.soak.changes / 2;
        let first = count.min(CHANGES_TO_WARM_UP);
        self.changes.make(&self.scene, &mut agent, first, true)?;
        let mut looks = vec![agent.memory()?];
        let changes = count - first;
        for done in (0..changes).step_by(CHANGES_AT_ONCE) {
            let more = (changes - done).min(CHANGES_AT_ONCE as u32);
            self.changes.make(&self.scene, &mut agent, more, true)?;
            looks.push(agent.memory()?);
            self.tidy()?;
            if self.soak.is_talkative && done > 0 && done % 50 == 0 {
                let own_mb = looks.last().map_or(0.0, |memory| memory.anonymous as f64 / 1e6);
                eprintln!("  {done} of {changes} changes in one life, {own_mb:.1} MB of its own");
            }
        }
        if count >= 4 * CHANGES_TO_WARM_UP {
            self.memory = Growth::of(&looks, changes);
        }
        // The drain begins with a good version and the first pipeline.
        self.scene.install("swap-a", "swap")?;
        self.changes.restore(&self.scene)?;
        agent.stop()
    }

    fn tidy(&mut self) -> Result<()> {
        if self.soak.is_tidy && self.disk.is_none() { self.tidy.tidy(&self.scene) } else { Ok(()) }
    }

    fn harm(&mut self, mut agent: Agent) -> Result<()> {
        if !self.soak.has_faults {
            agent.expect_running()?;
        }
        if let Some(disk) = &self.disk {
            disk.cut()?;
        }
        match self.soak.has_faults {
            true => self.kill_unless_ended(agent)?,
            false => agent.kill()?,
        }
        self.disk.as_mut().map_or(Ok(()), CuttableDisk::power_up)
    }

    /// A journal or a start that the disk fails too often ends the agent, with a word; a supervisor starts it again.
    fn kill_unless_ended(&mut self, agent: Agent) -> Result<()> {
        let (status, log) = agent.end()?;
        match (status.signal(), status.code()) {
            (Some(signal), _) if signal == Signal::KILL.as_raw() => {}
            (_, Some(1)) if !log.contains("panicked") => self.stops += 1,
            _ => bail!("the agent ended by itself ({status})\n{log}"),
        }
        Ok(())
    }

    /// A last life without harm: everything has to arrive, and a SIGTERM to end it well. Returns what was written.
    fn drain(&mut self, generator: Generator) -> Result<Vec<u64>> {
        if self.soak.channel.may_lose() {
            return self.drain_behind_losses(generator);
        }
        let written = generator.stop()?;
        let agent = self.scene.start_ready()?;
        if let Some(error) = self.deliver_and_stop(agent, &written)? {
            eprintln!("{error:#}\njudged as it is");
        }
        Ok(written)
    }

    /// How many lines are lost is not known to the last one. But none that is written from now on is, and they come in order.
    fn drain_behind_losses(&mut self, generator: Generator) -> Result<Vec<u64>> {
        let mut agent = self.scene.start_ready()?;
        let written = stop_behind(generator)?;
        if let Err(error) = wait_all(&self.scene, &mut agent, &self.tidy, self.soak.plugin, &written) {
            eprintln!("{error:#}\njudged as it is");
        }
        agent.stop()?;
        Ok(written)
    }

    /// Where a second sink writes, if there is one.
    fn second_output(&self) -> Option<PathBuf> {
        let is_twice = self.soak.channel == Channel::SourceBackedTwice;
        is_twice.then(|| PathBuf::from(format!("{}-second", self.scene.output.display())))
    }

    fn wait_second(&self, agent: &mut Agent, written: &[u64]) -> Result<()> {
        let Some(dir) = self.second_output() else { return Ok(()) };
        let (mut counter, expected) = (LineCounter::default(), self.soak.plugin.kept(written));
        poll::until_counted("all events of the second sink", limits::NO_PROGRESS, expected, || {
            agent.expect_running()?;
            counter.count(&dir)
        })
    }

    fn wait_delivered(&mut self, agent: &mut Agent, written: &[u64]) -> Result<()> {
        let expected = self.soak.plugin.kept(written);
        let patience = if self.soak.is_durable { limits::NO_PROGRESS } else { NO_PROGRESS_OF_LOSERS };
        let mut tidied = Instant::now();
        let waited = poll::until_counted("all events in the output", patience, expected, || {
            agent.expect_running()?;
            if tidied.elapsed() > TIDY_EVERY {
                self.tidy()?;
                tidied = Instant::now();
            }
            Ok(self.counter.count(&self.scene.output)? + self.tidy.lines)
        });
        waited.with_context(|| agent.log_tail())
    }
}

/// The pipeline of a soak. Small files and segments: much happens at their borders.
fn pipeline(soak: &Soak) -> String {
    // With copytruncate the copy is not the log: its name is out of the pattern.
    let pattern = match soak.rotation {
        Rotation::CopyTruncate => "web-*.log",
        _ => "web-*.log*",
    };
    let source = format!("[source.access]\ntype = \"tail\"\npaths = [\"{{in}}/{pattern}\"]\n");
    let interceptors = soak.plugin.interceptors();
    let (path, encoding) = match soak.plugin {
        Plugin::None | Plugin::Filter | Plugin::Dedup => ("{out}/all.log", "text"),
        Plugin::AccessLog => ("{out}/{header.status}.log", "json"),
    };
    let durability = if soak.is_durable { "durable" } else { "os" };
    let channel = soak.channel.table();
    let second = match soak.channel {
        Channel::SourceBackedTwice => format!(
            "[sink.second]\ntype = \"file\"\npath = \"{{out}}-second/{}\"\nencoding = \"{encoding}\"\nroll_size = \"700 KiB\"\nflush_interval = \"270ms\"\n",
            path.trim_start_matches("{out}/")
        ),
        _ => String::new(),
    };
    format!(
        "{source}\n{interceptors}\n{channel}[journal]\ndurability = \"{durability}\"\nsegment = \"4 MiB\"\n\n[sink.out]\ntype = \"file\"\npath = \"{path}\"\nencoding = \"{encoding}\"\nroll_size = \"2 MiB\"\nflush_interval = \"100ms\"\n{second}"
    )
}
