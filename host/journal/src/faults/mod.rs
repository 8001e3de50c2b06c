//! Faults on purpose, in the real binary: for tests alone.
//!
//! Without [`VARIABLE`] nothing of this is in the way: journals get [`crate::OsDisk`] itself. With it they, and the file sink, get a
//! disk whose every call is a [`Step`] with a name (`docs/faults.md` has the language), and so is every call of the bridge:
//! - when a step is done the process may be killed there, without any unwinding. What lies between two steps is memory alone, so
//!   a kill anywhere between them leaves the same disk as a kill at the first. Between steps of a broker there are points alone
//!   ([`passed`]). A step that changes the disk and is neither a point nor an exception with a reason ends the process: whoever adds
//!   one is told so by every test that runs with faults;
//! - before a step the disk may refuse it (EIO, ENOSPC). A refused sync also loses some of what was written since the last
//!   one, as Linux does, which takes the pages for clean.
//!
//! Constraints: read once, at the start; no step has two names; the same seed refuses the same steps of a thread, as far as threads
//! come in the same order.

mod disk;
mod points;
mod unsynced;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use thiserror::Error;

pub use disk::{FaultyDisk, system_disk};
pub use points::{
    ANY_JOURNAL, BUSY_JOURNAL, FULL_JOURNAL, PROBE, Point, ROLLING_JOURNAL, STORED_MARK, STORED_MARK_PLACE,
    UNWALKED, point,
};

use crate::clock::{Clock, OsClock};

/// The variable of the environment that switches faults on.
pub const VARIABLE: &str = "FLUMEN_FAULTS";

static ACTIVE: OnceLock<Arc<Faults>> = OnceLock::new();

/// The faults of this process, if they were switched on.
#[must_use]
pub fn active() -> Option<Arc<Faults>> {
    ACTIVE.get().cloned()
}

/// Switches faults on, before anything is opened. Only the first call counts.
pub fn switch_on(faults: Faults) {
    ACTIVE.get_or_init(|| Arc::new(faults));
}

/// A place between two steps that no disk of ours sees: the end of the process, if it was to be here.
pub fn passed(place: &str, name: &str) {
    if let Some(faults) = ACTIVE.get() {
        faults.passed(&format!("{place}.{name}"));
    }
}

/// Does a call of the file system, which is a [`Step`] if faults were switched on.
///
/// # Errors
/// If the file system refuses it, by itself or on purpose.
pub fn do_step<T>(step: impl FnOnce() -> Step, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match ACTIVE.get() {
        Some(faults) => faults.step(&step(), call),
        None => call(),
    }
}

/// What kind of call a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Of content or names.
    Read,
    /// Of content, length or space.
    Write,
    /// A name comes, changes or goes.
    Name,
    /// Of content or names.
    Sync,
}

impl Class {
    fn word(self) -> &'static str {
        match self {
            Class::Read => "read",
            Class::Write => "write",
            Class::Name => "name",
            Class::Sync => "sync",
        }
    }
}

/// One call of a disk.
#[derive(Debug)]
pub struct Step {
    /// Words with dots between them: whose, of what, and what was done.
    pub name: String,
    /// What kind of call.
    pub class: Class,
    /// It needs space, so that a full disk refuses it.
    pub grows: bool,
}

/// Which faults there are.
#[derive(Debug)]
pub struct Faults {
    kill: Option<Kill>,
    rules: Vec<Rule>,
    /// Points, and steps that are none for a reason.
    known: BTreeSet<String>,
    random: AtomicU64,
    seed: u64,
    started: Instant,
}

#[derive(Debug)]
struct Kill {
    /// KILL, or STOP for a test that takes the power away then.
    signal: Signal,
    point: String,
    count: u64,
    passed: AtomicU64,
}

#[derive(Debug)]
struct Rule {
    trouble: Trouble,
    /// Words that a step's name or class must have.
    place: Vec<String>,
}

#[derive(Debug)]
enum Trouble {
    Eio { odds: f64 },
    Enospc { odds: f64 },
    Full { every: Duration, lasts: Duration },
}

/// What is wrong with the value of [`VARIABLE`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not of the language.
    #[error(
        "`{0}` is none of kill=POINT:COUNT, stop=POINT:COUNT, eio=ODDS@PLACE, enospc=ODDS@PLACE, full=EVERY_MS:FOR_MS@PLACE, seed=NUMBER"
    )]
    Word(String),
    /// No such point.
    #[error("there is no kill point `{name}`; there are:\n{known}")]
    Point {
        /// What was asked for.
        name: String,
        /// All that there are, one a line.
        known: String,
    },
}

impl Faults {
    /// Reads the value of [`VARIABLE`]; `points`: all that may be named; `unwalked`: what changes the disk beside them, and is no point
    /// for a reason.
    ///
    /// # Errors
    /// If it is not of the language, or names a point that there is not.
    pub fn parse(text: &str, points: &[String], unwalked: &[String]) -> Result<Faults, ParseError> {
        let mut faults = Faults {
            kill: None,
            rules: Vec::new(),
            known: points.iter().chain(unwalked).cloned().collect(),
            random: AtomicU64::new(0),
            seed: 0,
            started: OsClock.now(),
        };
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let wrong = || ParseError::Word(word.to_owned());
            match word.split_once('=').ok_or_else(wrong)? {
                ("seed", seed) => faults.seed = seed.parse().map_err(|_| wrong())?,
                ("kill", value) => {
                    let kill = parse_kill(Signal::KILL, value, points);
                    faults.kill = Some(kill.map_err(|error| error.unwrap_or_else(wrong))?);
                }
                ("stop", value) => {
                    let stop = parse_kill(Signal::STOP, value, points);
                    faults.kill = Some(stop.map_err(|error| error.unwrap_or_else(wrong))?);
                }
                (key, value) => faults.rules.push(parse_rule(key, value).ok_or_else(wrong)?),
            }
        }
        faults.random = AtomicU64::new(faults.seed);
        Ok(faults)
    }

    /// Does a step, unless it is refused, and dies behind it if that was asked for.
    ///
    /// # Errors
    /// If the disk refuses the step, by itself or on purpose.
    pub fn step<T>(&self, step: &Step, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.refuse(step)?;
        let done = call()?;
        // A read leaves the disk as it was.
        if step.class != Class::Read {
            self.passed(&step.name);
        }
        Ok(done)
    }

    /// An error if this step is to fail.
    ///
    /// # Errors
    /// The one of the rule that strikes.
    pub fn refuse(&self, step: &Step) -> io::Result<()> {
        for rule in self.rules.iter().filter(|rule| rule.is_about(step)) {
            if let Some(error) = self.error_of(rule, step) {
                tracing::warn!(step = %step.name, %error, "refused on purpose ({VARIABLE})");
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Whether a step that changes the disk is a point, or none for a reason.
    pub fn is_known(&self, name: &str) -> bool {
        self.known.contains(name)
    }

    /// A step that changes the disk is done: the end of the process, if it was to be here. One that is not known ends it, too.
    pub fn passed(&self, name: &str) {
        if !self.is_known(name) {
            let (place, step) = name.split_once('.').unwrap_or(("", name));
            tracing::error!(
                "no kill point for step {step} of {place}: list it as one, or as an exception with its reason (docs/faults.md)"
            );
            std::process::abort();
        }
        let Some(kill) = self.kill.as_ref().filter(|kill| kill.point == name) else { return };
        if kill.passed.fetch_add(1, Ordering::Relaxed) + 1 == kill.count {
            let signal = if kill.signal == Signal::STOP { "stopped" } else { "killed" };
            tracing::warn!(point = name, count = kill.count, "{signal} on purpose ({VARIABLE})");
            if let Err(error) = kill_process(getpid(), kill.signal) {
                tracing::error!(%error, "the kernel does not send the signal");
            }
            // The signal may come a moment later: nothing goes on here.
            loop {
                std::thread::park();
            }
        }
    }

    /// One of two, from the seed.
    pub fn coin(&self) -> bool {
        self.random().is_multiple_of(2)
    }

    fn error_of(&self, rule: &Rule, step: &Step) -> Option<Errno> {
        match rule.trouble {
            Trouble::Eio { odds } => self.happens(odds).then_some(Errno::IO),
            Trouble::Enospc { odds } => (step.grows && self.happens(odds)).then_some(Errno::NOSPC),
            Trouble::Full { every, lasts } => {
                // The seed says where in a period the process begins.
                let every_ms = every.as_millis().max(1);
                let at_ms = OsClock.now().saturating_duration_since(self.started).as_millis();
                let is_full = (at_ms + u128::from(self.seed)) % every_ms < lasts.as_millis();
                (step.grows && is_full).then_some(Errno::NOSPC)
            }
        }
    }

    fn happens(&self, odds: f64) -> bool {
        let unit = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        unit < odds
    }

    /// splitmix64.
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut mixed = self.random.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

impl Rule {
    fn is_about(&self, step: &Step) -> bool {
        let has =
            |word: &String| *word == step.class.word() || step.name.split('.').any(|of_step| of_step == word);
        self.place.iter().all(has)
    }
}

/// `None` as an error: not of the language.
fn parse_kill(signal: Signal, value: &str, points: &[String]) -> Result<Kill, Option<ParseError>> {
    let (name, count) = value.split_once(':').unwrap_or((value, "1"));
    let count = count.parse().map_err(|_| None)?;
    if !points.iter().any(|point| point == name) {
        return Err(Some(ParseError::Point { name: name.to_owned(), known: points.join("\n") }));
    }
    Ok(Kill { signal, point: name.to_owned(), count, passed: AtomicU64::new(0) })
}

fn parse_rule(key: &str, value: &str) -> Option<Rule> {
    let (value, place) = value.split_once('@').unwrap_or((value, ""));
    let odds = || value.parse().ok().filter(|odds| (0.0..=1.0).contains(odds));
    let trouble = match key {
        "eio" => Trouble::Eio { odds: odds()? },
        "enospc" => Trouble::Enospc { odds: odds()? },
        "full" => {
            let (every, lasts) = value.split_once(':')?;
            let ms = |text: &str| text.parse().ok().map(Duration::from_millis);
            Trouble::Full { every: ms(every)?, lasts: ms(lasts)? }
        }
        _ => return None,
    };
    let words = place.split('.').filter(|word| !word.is_empty());
    Some(Rule { trouble, place: words.map(str::to_owned).collect() })
}
