//! A long soak on a small disk: what the agent has finished goes to the oracle while the soak runs, and is removed; so is the
//! input that it was made of. The oracle sees the same lines as at the end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::interceptors::Plugin;
use crate::oracle::{self, Mark, Oracle, Verdict};
use crate::output;
use crate::scene::Scene;

/// The newest files of a bucket stay: the sink forgets what it finished with its next flush, and looks for it until then.
const FILES_KEPT: usize = 3;

/// The oracle of a soak, and what it has read so far.
pub struct Tidy {
    oracle: Oracle<Box<dyn Fn(u64) -> bool>>,
    /// Lines of output that were removed.
    pub lines: u64,
    /// The most that the scene took on disk.
    pub most_bytes: u64,
}

impl Tidy {
    /// For what a plugin keeps.
    #[must_use]
    pub fn new(plugin: Plugin) -> Self {
        Self { oracle: Oracle::new(Box::new(move |seq| plugin.keeps(seq))), lines: 0, most_bytes: 0 }
    }

    /// Reads finished files of the output, and removes them and the input that is in them.
    ///
    /// # Errors
    /// If a file cannot be read or removed.
    pub fn tidy(&mut self, scene: &Scene) -> Result<()> {
        self.most_bytes = self.most_bytes.max(output::bytes(scene.root())?);
        for (bucket, paths) in output::sequences(&scene.output)? {
            let finished = paths.iter().take_while(|path| !output::is_open(path));
            let finished: Vec<&PathBuf> = finished.take(paths.len().saturating_sub(FILES_KEPT)).collect();
            for path in finished {
                self.lines += self.oracle.read(&bucket, path)?;
                fs::remove_file(path)?;
            }
        }
        for path in rotated(&scene.input())? {
            if self.is_delivered(&path)? {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Reads the rest of the output. `written`: lines per input file.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn verdict(mut self, scene: &Scene, written: &[u64]) -> Result<Verdict> {
        for (bucket, paths) in output::sequences(&scene.output)? {
            for path in paths {
                self.oracle.read(&bucket, &path)?;
            }
        }
        Ok(self.oracle.verdict(written))
    }

    /// Whether a line of each input file came: the one of this number.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn has(&self, scene: &Scene, lines: &[Option<u64>]) -> Result<bool> {
        let mut rest = Oracle::new(|_| true);
        for (bucket, paths) in output::sequences(&scene.output)? {
            for path in paths {
                // It gets its final name just now: there is another look.
                if rest.read(&bucket, &path).is_err() {
                    return Ok(false);
                }
            }
        }
        let is_there = |(file, seq): (u32, &Option<u64>)| {
            seq.is_none_or(|seq| {
                let mark = Mark { file, turn: 0, seq };
                self.oracle.has(mark) || rest.has(mark)
            })
        };
        Ok((0..).zip(lines).all(is_there))
    }

    /// Whether every line that has to come from an input file came, its last one too: then the agent is through with it.
    fn is_delivered(&self, path: &Path) -> Result<bool> {
        let mut is_last_kept = false;
        for line in BufReader::new(File::open(path)?).split(b'\n') {
            let Some(mark) = oracle::mark(&line?) else { return Ok(false) };
            is_last_kept = self.oracle.keeps(mark);
            if is_last_kept && !self.oracle.has(mark) {
                return Ok(false);
            }
        }
        Ok(is_last_kept)
    }
}

/// Input files that are not written to any more: `web-0.log.00007`, but for the newest of each.
fn rotated(input: &Path) -> Result<Vec<PathBuf>> {
    let mut by_name: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in output::files(input)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((name, _)) = name.split_once(".log.") {
            by_name.entry(name.to_owned()).or_default().push(path);
        }
    }
    // `files` sorts by name.
    by_name.values_mut().for_each(|paths| drop(paths.pop()));
    Ok(by_name.into_values().flatten().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_finished_and_delivered_goes() {
        let scene = Scene::new().unwrap();
        let lines = |seqs: std::ops::Range<u64>| -> String {
            seqs.map(|seq| format!("?file=0&turn=0&seq={seq} x\n")).collect()
        };
        for number in 0..6 {
            let open = if number == 5 { ".open" } else { "" };
            let path = scene.output.join(format!("200-{number}.log{open}"));
            fs::write(path, lines(10 * number..10 * number + 10)).unwrap();
        }
        for (name, seqs) in [
            ("web-0.log.00001", 0..30),
            ("web-0.log.00002", 0..31),
            ("web-0.log.00003", 0..1),
            ("web-0.log", 0..1),
        ] {
            fs::write(scene.input().join(name), lines(seqs)).unwrap();
        }
        let mut tidy = Tidy::new(Plugin::None);
        tidy.tidy(&scene).unwrap();
        let names = |dir: &Path| -> Vec<String> {
            let files = output::files(dir).unwrap();
            files.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names(&scene.output), ["200-3.log", "200-4.log", "200-5.log.open"]);
        assert_eq!(names(&scene.input()), ["web-0.log", "web-0.log.00002", "web-0.log.00003"]);
        assert_eq!(tidy.lines, 30);
        assert!(tidy.verdict(&scene, &[60]).unwrap().holds());
    }
}
