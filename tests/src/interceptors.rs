//! The Wasm interceptors of a soak: what they keep, what they reject, and the swaps of their files.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::generator::{is_malformed, status_of};
use crate::oracle::{self, Verdict};
use crate::scene::Scene;
use crate::{locate, output};

/// One swap in so many is preceded by a broken file.
const BROKEN_ODDS: u32 = 3;
/// How long a broken file stays before the good one comes.
const BROKEN_STAYS: Duration = Duration::from_millis(150);

/// The Wasm interceptor in the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plugin {
    /// None at all.
    None,
    /// `filter`, which drops the lines with status 404, and `swap`, whose file is copied over meanwhile.
    Filter,
    /// `access-log`, which rejects lines that are none, and `swap`.
    AccessLog,
    /// `dedup` over lines of which some come again, and `swap`.
    Dedup,
}

impl Plugin {
    /// Puts the plugins into the scene.
    ///
    /// # Errors
    /// If they were not built.
    pub fn install(self, scene: &Scene) -> Result<()> {
        match self {
            Plugin::None => return Ok(()),
            Plugin::Filter => scene.install("filter", "filter")?,
            Plugin::AccessLog => scene.install("access-log", "access-log")?,
            Plugin::Dedup => scene.install("dedup", "dedup")?,
        }
        scene.install("swap-a", "swap")
    }

    /// The interceptors in a pipeline file.
    #[must_use]
    pub fn interceptors(self) -> &'static str {
        match self {
            Plugin::None => "",
            Plugin::Filter => {
                "[[interceptor]]\nplugin = \"filter\"\nconfig = { drop = { contains = '\" 404 ' } }\n[[interceptor]]\nplugin = \"swap\"\n"
            }
            Plugin::AccessLog => {
                "[[interceptor]]\nplugin = \"access-log\"\n[[interceptor]]\nplugin = \"swap\"\n"
            }
            Plugin::Dedup => {
                "[[interceptor]]\nplugin = \"dedup\"\ngrant = [\"state\"]\nconfig = { by = \"body\", window = \"2h\" }\n[[interceptor]]\nplugin = \"swap\"\n"
            }
        }
    }

    /// Whether a line of this number has to be in the output.
    #[must_use]
    pub fn keeps(self, seq: u64) -> bool {
        match self {
            Plugin::None | Plugin::Dedup => true,
            Plugin::Filter => status_of(seq) != 404,
            Plugin::AccessLog => !is_malformed(seq),
        }
    }

    /// Whether a line of this number has to be in quarantine.
    #[must_use]
    pub fn rejects(self, seq: u64) -> bool {
        self == Plugin::AccessLog && is_malformed(seq)
    }

    /// How many of the written lines have to be in the output.
    #[must_use]
    pub fn kept(self, written: &[u64]) -> u64 {
        written.iter().map(|lines| (0..*lines).filter(|seq| self.keeps(*seq)).count() as u64).sum()
    }

    /// The quarantine has to hold what is rejected, each once, and nothing else.
    ///
    /// # Errors
    /// If the quarantine cannot be read.
    pub fn judge_quarantine(self, scene: &Scene, written: &[u64]) -> Result<Verdict> {
        let dir = tempfile::tempdir()?;
        let lines: String = scene.quarantine()?.iter().map(|entry| format!("{entry}\n")).collect();
        fs::write(dir.path().join("quarantine.log"), lines)?;
        oracle::judge(&output::sequences(dir.path())?, written, |seq| self.rejects(seq))
    }
}

/// Plugin files that were copied over a running one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Swaps {
    /// Good ones.
    pub good: u32,
    /// Broken ones.
    pub broken: u32,
}

impl Swaps {
    /// Copies another version over the running one, now and then a broken file before it.
    ///
    /// # Errors
    /// If the plugins were not built.
    pub fn swap(&mut self, scene: &Scene, random: &mut StdRng) -> Result<()> {
        let target = scene.plugin_dir().join("swap.wasm");
        if random.random_ratio(1, BROKEN_ODDS) {
            let whole = fs::read(locate::plugin("swap-a")?)?;
            let half = whole.get(..whole.len() / 2).unwrap_or_default();
            fs::write(&target, half)?;
            thread::sleep(BROKEN_STAYS);
            self.broken += 1;
        }
        self.good += 1;
        let next = if self.good % 2 == 1 { "swap-b" } else { "swap-a" };
        scene.install(next, "swap")
    }
}
