//! Messages about files, each at most once a minute for the same path and reason.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use flumen_pipeline::{ComponentMetrics, Metric};

use super::limits::{COMPLAIN_AGAIN, COMPLAINTS_MAX};

/// What was said, and when.
pub struct Complaints {
    source: Arc<str>,
    metrics: Arc<ComponentMetrics>,
    said: HashMap<(PathBuf, String), Instant>,
}

impl Complaints {
    /// Nothing said yet.
    pub fn new(source: Arc<str>, metrics: Arc<ComponentMetrics>) -> Complaints {
        Complaints { source, metrics, said: HashMap::new() }
    }

    /// A file could not be used; it is tried again.
    pub fn file(&mut self, path: &Path, error: &io::Error) {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => "let the agent's user read it (and search its directories)",
            io::ErrorKind::IsADirectory => {
                "a directory is where a file was expected; it is skipped until a file is there"
            }
            _ => "tried again; nothing of it is skipped",
        };
        self.say(path, &error.to_string(), advice);
    }

    /// Something about a file that its owner should know: an error, and counted.
    pub fn say(&mut self, path: &Path, what: &str, advice: &str) {
        if self.mention(path, what, advice) {
            self.metrics.add(Metric::SourceErrors, 1);
        }
    }

    /// The same, of what need not be an error. True if it was not said just before.
    pub fn mention(&mut self, path: &Path, what: &str, advice: &str) -> bool {
        let key = (path.to_path_buf(), what.to_owned());
        if self.said.get(&key).is_some_and(|at| at.elapsed() < COMPLAIN_AGAIN) {
            return false;
        }
        if self.said.len() >= COMPLAINTS_MAX {
            self.said.retain(|_, at| at.elapsed() < COMPLAIN_AGAIN);
            if self.said.len() >= COMPLAINTS_MAX {
                return false;
            }
        }
        self.said.insert(key, Instant::now());
        tracing::warn!(source = %self.source, path = %path.display(), "{what}: {advice}");
        true
    }
}
