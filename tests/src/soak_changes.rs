//! Changes of a running agent during a soak: swaps of a plugin and edits of the pipeline, one after the other, each waited for.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::agent::{Agent, Memory};
use crate::scene::{PIPELINE, Scene};
use crate::{limits, poll};

/// One change in so many is an edit of the pipeline's file.
const EDIT_EVERY: u32 = 8;

/// A version with a bug that a flow of access log lines brings out.
const BUGGY: &str = "swap-trap";

/// Memory that a change may leave behind. A compiled plugin that is kept would be several times as much.
const BYTES_PER_CHANGE_MAX: i64 = 32 << 10;

/// An edit that has not been taken over by then was refused.
const REFUSED_AFTER: Duration = Duration::from_secs(5);

/// What a pipeline's file is edited to, in turn. The last one restarts the pipeline, the others exchange a part of it. A sink comes
/// with an edit and goes with the next one, which must not be the restart: without `--drain` that is refused under load.
const EDITS: [(&str, &str); 6] = [
    ("", "[[interceptor]]\nplugin = \"noop\"\n"),
    ("", "[sink.side]\ntype = \"null\"\n"),
    ("", "[batch]\nrows = 2000\n"),
    ("", "[sink.other]\ntype = \"null\"\n[[sink.other.interceptor]]\nplugin = \"noop\"\n"),
    ("roll_size = \"2 MiB\"", "roll_size = \"3 MiB\""),
    ("segment = \"4 MiB\"", "segment = \"2 MiB\""),
];

/// Changes so far.
#[derive(Debug, Default)]
pub struct Changes {
    /// Plugin files that were swapped in.
    pub swaps: u32,
    /// Edits that were taken over.
    pub edits: u32,
    /// Versions with a bug that were rolled back.
    pub rollbacks: u32,
    /// The pipeline's file as it was written first.
    pipeline: String,
    turn: u32,
    written: usize,
    /// The last good version.
    is_b: bool,
}

impl Changes {
    /// For a scene whose pipeline is written.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn new(scene: &Scene) -> Result<Self> {
        scene.install("noop", "noop")?;
        let pipeline = fs::read_to_string(scene.root().join(format!("{PIPELINE}.toml")))?;
        Ok(Self { pipeline, ..Self::default() })
    }

    /// Makes so many changes, each when the one before is in effect. `is_buggy`: every other version has a bug, which the
    /// agent must find while it is on probation; not before a kill, or it would be the first version of the next life.
    ///
    /// # Errors
    /// If one has no effect.
    pub fn make(&mut self, scene: &Scene, agent: &mut Agent, count: u32, is_buggy: bool) -> Result<()> {
        for _ in 0..count {
            self.turn += 1;
            agent.expect_running()?;
            let outcome = if self.turn.is_multiple_of(EDIT_EVERY) {
                self.edit(scene)
            } else {
                let plugin = if is_buggy && self.swaps % 2 == 1 { BUGGY } else { self.other() };
                self.swap(scene, plugin)
            };
            outcome.with_context(|| agent.log_tail())?;
        }
        Ok(())
    }

    /// Writes a file and does not wait: the kill comes meanwhile.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin_one(&mut self, scene: &Scene) -> Result<()> {
        self.turn += 1;
        if self.turn.is_multiple_of(2) {
            return self.write(scene);
        }
        let plugin = self.other();
        scene.install(plugin, "swap")
    }

    /// The good version that was not the last one.
    fn other(&mut self) -> &'static str {
        self.is_b = !self.is_b;
        if self.is_b { "swap-b" } else { "swap-a" }
    }

    fn swap(&mut self, scene: &Scene, plugin: &str) -> Result<()> {
        let before = look(scene)?;
        scene.install(plugin, "swap")?;
        poll::until(&format!("{plugin} in the flow"), limits::CONDITION, || {
            let now = look(scene)?;
            if plugin == BUGGY {
                return Ok(now.rollbacks > before.rollbacks);
            }
            // What is there already after a rollback is no swap, but takes the error away.
            Ok(now.swaps > before.swaps || (before.has_error && !now.has_error))
        })?;
        self.swaps += 1;
        self.rollbacks = self.rollbacks.max(u32::try_from(look(scene)?.rollbacks)?);
        Ok(())
    }

    fn edit(&mut self, scene: &Scene) -> Result<()> {
        let before = generation(scene)?;
        self.write(scene)?;
        let mut asked = Instant::now();
        poll::until("the edit taken over", limits::CONDITION, || {
            // On a busy machine a sink that goes may not have delivered everything within its second: then it is refused.
            if asked.elapsed() > REFUSED_AFTER {
                scene.flumen(&["reload", "--drain"])?;
                asked = Instant::now();
            }
            Ok(generation(scene)? > before)
        })?;
        self.edits += 1;
        Ok(())
    }

    /// The next edit: not the one that stands there.
    fn write(&mut self, scene: &Scene) -> Result<()> {
        self.written += 1;
        let number = self.written;
        let (from, to) = EDITS.get(number % EDITS.len()).copied().unwrap_or_default();
        let text = if from.is_empty() {
            format!("{}\n{to}", self.pipeline)
        } else {
            self.pipeline.replace(from, to)
        };
        Ok(fs::write(scene.root().join(format!("{PIPELINE}.toml")), text)?)
    }

    /// The pipeline's file as it was at first.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn restore(&self, scene: &Scene) -> Result<()> {
        Ok(fs::write(scene.root().join(format!("{PIPELINE}.toml")), &self.pipeline)?)
    }
}

/// Memory of an agent that is changed again and again, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Growth {
    /// Changes between the middles of the first and the last third.
    pub changes: u32,
    /// Resident memory in the first third, at half of the looks.
    pub rss_before: u64,
    /// In the last third.
    pub rss_after: u64,
    /// By how much memory of its own (without pages of files) grew with each change.
    pub bytes_per_change: i64,
}

impl Growth {
    /// From looks at equal distances, so many changes in all. What is under way differs from look to look by megabytes, so it is
    /// the middle of many that is compared. `None`: too few.
    #[must_use]
    pub fn of(looks: &[Memory], changes: u32) -> Option<Self> {
        let third = looks.len() / 3;
        let (first, last) = (looks.get(..third)?, looks.get(looks.len() - third..)?);
        let middle = |looks: &[Memory], figure: fn(&Memory) -> u64| {
            let mut figures: Vec<u64> = looks.iter().map(figure).collect();
            figures.sort_unstable();
            figures.get(figures.len() / 2).copied()
        };
        let between = changes - changes / 3;
        let own = |looks: &[Memory]| i64::try_from(middle(looks, |memory| memory.anonymous)?).ok();
        Some(Self {
            changes: between,
            rss_before: middle(first, |memory| memory.now)?,
            rss_after: middle(last, |memory| memory.now)?,
            bytes_per_change: (own(last)? - own(first)?) / i64::from(between.max(1)),
        })
    }

    /// Whether it would go on for ever.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.bytes_per_change < BYTES_PER_CHANGE_MAX
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { changes, rss_before, rss_after, bytes_per_change } = self;
        let (before, after) = (*rss_before as f64 / 1e6, *rss_after as f64 / 1e6);
        let verdict = if self.is_bounded() { "bounded" } else { "GROWING" };
        write!(
            formatter,
            "{before:.1} MB resident, {after:.1} MB after {changes} more changes, {bytes_per_change} bytes of its own for each: {verdict}"
        )
    }
}

/// The swapped plugin, as the status shows it.
struct Look {
    swaps: u64,
    rollbacks: u64,
    has_error: bool,
}

fn status(scene: &Scene) -> Result<Value> {
    Ok(scene.answered()?.0)
}

fn generation(scene: &Scene) -> Result<u64> {
    status(scene)?.get("generation").and_then(Value::as_u64).context("no generation in the status")
}

fn look(scene: &Scene) -> Result<Look> {
    let status = status(scene)?;
    let plugins = status.pointer("/pipelines/0/plugins").and_then(Value::as_array).context("no plugins")?;
    let plugin = plugins.iter().find(|plugin| plugin.get("name").is_some_and(|name| name == "swap"));
    let plugin = plugin.context("the status has no plugin `swap`")?;
    let number = |name: &str| plugin.get(name).and_then(Value::as_u64).unwrap_or(0);
    let has_error = plugin.get("last_swap_error").is_some_and(|error| !error.is_null());
    Ok(Look { swaps: number("swaps"), rollbacks: number("rollbacks"), has_error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_all_looks_say() {
        let look = |mb: u64| Memory { peak: 0, now: mb << 20, anonymous: mb << 20 };
        // Noise alone, the last look at its worst.
        let noisy: Vec<Memory> = [50, 58, 51, 57, 50, 52, 51, 50, 60].map(look).to_vec();
        assert!(Growth::of(&noisy, 90).unwrap().is_bounded());
        let growing: Vec<Memory> = (0..9).map(|n| look(50 + n)).collect();
        let growth = Growth::of(&growing, 90).unwrap();
        assert_eq!((growth.changes, growth.bytes_per_change), (60, (6 << 20) / 60));
        assert!(!growth.is_bounded());
        assert!(Growth::of(&growing[..2], 90).is_none());
    }
}
