//! Whether the journals of a pipeline that restarts as a whole can be opened again: asked before anything of it is stopped. One that runs
//! while its disk has failed goes on with what it can; one that was stopped would deliver nothing before that disk is back.
//!
//! Each directory is asked by a block that is written, made durable and removed, as by the probe of a failover. That probes the disk of its
//! channel itself, and starts without it: nobody else writes to its file there.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flumen_journal::OsDisk;
use flumen_journal::failover::DiskProbe;
use flumen_pipeline::plan::{ChannelPlan, PipelinePlan};

use crate::agent::{JOURNAL_DIR, QUARANTINE_DIR, pipeline_dir};
use crate::running::RunningPipeline;

/// A disk that takes nothing.
pub(super) struct Trouble {
    /// A directory on it.
    pub dir: PathBuf,
    /// What it says.
    pub error: io::Error,
}

/// The first of its disks on which a start of this pipeline would fail.
pub(super) fn trouble(running: &RunningPipeline, data_dir: &Path) -> Option<Trouble> {
    let places = places(&running.pipeline.plan(), data_dir);
    places.into_iter().find_map(|dir| Some(Trouble { error: error_of(&dir)?, dir }))
}

/// Where a start opens a journal, and fails without it.
fn places(plan: &PipelinePlan, data_dir: &Path) -> Vec<PathBuf> {
    let own = pipeline_dir(data_dir, &plan.name);
    let is_shared = plan.channels.iter().any(ChannelPlan::is_shared);
    let failover = plan.channels.iter().find_map(|channel| channel.failover.as_ref());
    let journal = match failover {
        Some(failover) if !is_shared => failover.dir.as_ref().map(|dir| dir.join(&plan.name)),
        _ => Some(own.join(JOURNAL_DIR)),
    };
    journal.into_iter().chain([own.join(QUARANTINE_DIR)]).collect()
}

fn error_of(dir: &Path) -> Option<io::Error> {
    use ErrorKind::{FileTooLarge, NotFound, QuotaExceeded, StorageFull};
    let asked = DiskProbe::new(Arc::new(OsDisk), dir.to_owned(), 0).ask();
    // A journal on a full disk opens, and waits for room; a directory that is not there is made.
    let is_fine =
        |error: &io::Error| matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | NotFound);
    asked.err().filter(|error| !is_fine(error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flumen_config::{MemoryEnv, load_agent};

    use super::*;
    use crate::registry::registry;

    /// The directories that are asked of a pipeline `p0` with this channel.
    fn asked(channel: &str) -> Vec<String> {
        let mut env = MemoryEnv::default();
        env.files
            .insert("flumen.toml".into(), b"[agent]\nname = \"a1\"\npipelines = [\"p0.toml\"]\n".to_vec());
        let text = format!(
            "[source]\ntype = \"tail\"\npaths = [\"/a\"]\n[sink]\ntype = \"null\"\n[channel]\n{channel}\n"
        );
        env.files.insert("p0.toml".into(), text.into_bytes());
        let (agent, _) = load_agent(&["flumen.toml".into()], &registry(), &env).unwrap();
        let places = places(&agent.pipelines[0], Path::new("/d"));
        places.iter().map(|dir| dir.display().to_string()).collect()
    }

    #[test]
    fn what_a_start_needs_is_asked_and_a_disk_that_fails_over_is_not() {
        let (journal, quarantine) = ("/d/pipelines/p0/journal", "/d/pipelines/p0/quarantine");
        assert_eq!(asked(""), [journal, quarantine]);
        assert_eq!(asked("kind = \"memory\""), [journal, quarantine]);
        assert_eq!(asked("failover = { kind = \"file\", dir = \"/b\" }"), ["/b/p0", quarantine]);
        let topic = "failover = { kind = \"kafka\", brokers = [\"k:9092\"], topic = \"t\" }";
        assert_eq!(asked(topic), [quarantine]);
    }

    #[test]
    fn what_cannot_be_written_to_is_named_and_what_is_not_there_is_made() {
        let scene = tempfile::tempdir().unwrap();
        let [dir, gone, file] = ["a", "gone", "file"].map(|name| scene.path().join(name));
        fs::create_dir(&dir).unwrap();
        fs::write(&file, "in the way").unwrap();
        assert!(error_of(&dir).is_none());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing of it is left");
        assert!(error_of(&gone).is_none());
        assert_eq!(error_of(&file).unwrap().kind(), ErrorKind::NotADirectory);
        // Of a process that was killed.
        fs::write(dir.join("probe"), "").unwrap();
        assert!(error_of(&dir).is_none());
    }
}
