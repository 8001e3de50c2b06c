//! Whether the journals of a pipeline that restarts as a whole can be opened again: asked before anything of it is stopped. One that runs
//! while its disk has failed goes on with what it can; one that was stopped would deliver nothing before that disk is back.
//!
//! Each directory is asked by a block that is written, made durable and removed, as by the probe of a failover. That probes the disk of its
//! channel itself, and starts without it once events go elsewhere: nobody else writes to its file there.
//!
//! How it fails: a disk that hangs keeps the thread that asks it, and counts as one that takes nothing.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use flumen_journal::OsDisk;
use flumen_journal::failover::DiskProbe;
use flumen_pipeline::plan::{ChannelPlan, PipelinePlan};

use crate::agent::{JOURNAL_DIR, QUARANTINE_DIR, pipeline_dir};
use crate::running::END_WAIT;

/// A disk that takes nothing.
pub(super) struct Trouble {
    /// A directory on it.
    pub dir: PathBuf,
    /// What it says.
    pub error: io::Error,
}

/// The first of its disks on which a start with this plan would fail. A disk that it leaves is not asked: it may be what the edit is for.
pub(super) fn trouble(plan: &PipelinePlan, data_dir: &Path) -> Option<Trouble> {
    let ask = |dir: PathBuf| {
        let asked = dir.clone();
        let error = within(END_WAIT, move || error_of(&asked))?;
        Some(Trouble { dir, error })
    };
    places(plan, data_dir).into_iter().find_map(ask)
}

/// The answer, if it comes in time: whoever reloads holds up everybody who would change the agent, also who stops it. A restart would not wait
/// for longer either.
fn within(limit: Duration, ask: impl FnOnce() -> Option<io::Error> + Send + 'static) -> Option<io::Error> {
    let (reply, answer) = bounded(1);
    let asks = move || {
        // It may be too late.
        reply.send(ask()).ok();
    };
    let late = || io::Error::new(ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()));
    match thread::Builder::new().name("ask-disk".into()).spawn(asks) {
        Ok(_) => answer.recv_timeout(limit).unwrap_or_else(|_| Some(late())),
        Err(error) => Some(error),
    }
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

    /// Of a pipeline `p0` with this channel.
    fn plan(channel: &str) -> PipelinePlan {
        let mut env = MemoryEnv::default();
        env.files
            .insert("flumen.toml".into(), b"[agent]\nname = \"a1\"\npipelines = [\"p0.toml\"]\n".to_vec());
        let text = format!(
            "[source]\ntype = \"tail\"\npaths = [\"/a\"]\n[sink]\ntype = \"null\"\n[channel]\n{channel}\n"
        );
        env.files.insert("p0.toml".into(), text.into_bytes());
        let (agent, _) = load_agent(&["flumen.toml".into()], &registry(), &env).unwrap();
        agent.pipelines[0].clone()
    }

    /// The directories that are asked.
    fn asked(channel: &str) -> Vec<String> {
        let places = places(&plan(channel), Path::new("/d"));
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

    /// A failover whose disk is dead is taken out, or gets another place: the edit is the mend.
    #[test]
    fn a_disk_that_the_new_plan_leaves_is_not_asked() {
        let scene = tempfile::tempdir().unwrap();
        let [data, dead, well] = ["data", "dead", "well"].map(|name| scene.path().join(name));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("p0"), "in the way").unwrap();
        let found = |channel: &str| trouble(&plan(channel), &data).map(|trouble| trouble.dir);
        let to = |dir: &Path| format!("failover = {{ kind = \"file\", dir = \"{}\" }}", dir.display());
        assert_eq!(found(&to(&dead)), Some(dead.join("p0")));
        assert_eq!(found(&to(&well)), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn a_disk_that_hangs_holds_nobody_up() {
        let (hangs, until) = bounded::<()>(0);
        let asks = move || {
            until.recv().ok();
            None
        };
        let error = within(Duration::from_millis(10), asks);
        assert_eq!(error.unwrap().kind(), ErrorKind::TimedOut);
        drop(hangs);
        assert!(within(END_WAIT, || None).is_none());
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
