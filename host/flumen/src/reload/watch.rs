//! Notices that the configuration's files changed.
//!
//! As with plugin files, the kernel's notices only wake the thread up early: what decides is a look at every file that the
//! configuration was read from, and at the names in the directories that were listed, at least every [`POLL`]. A file is read
//! when its directory has been quiet for a moment; one that is read half-written is an error that changes nothing, and its
//! next change is seen again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::{By, Reloader};
use crate::agent::Agent;

/// How often files are looked at even if the kernel reports nothing: some tens of `stat` calls.
const POLL: Duration = Duration::from_secs(1);
/// A changed file is read when nothing happened beside it for this long: editors write, rename and set times.
const QUIET: Duration = Duration::from_millis(100);
/// A directory that never becomes quiet does not keep an edit waiting for longer than this.
const QUIET_MAX: Duration = Duration::from_secs(1);

/// What is there: of each file its times, size and inode; of a directory its files that can belong to the configuration.
type Look = BTreeMap<PathBuf, Seen>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen(BTreeMap<PathBuf, FileState>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

/// How coarse the times of files may be: the kernel's tick, and more.
const CLOCK_GRAIN: Duration = Duration::from_millis(50);

/// The one access that may have changed a file.
const CLOSED_AFTER_WRITES: AccessKind = AccessKind::Close(AccessMode::Write);

/// Starts the thread. It ends with the agent.
pub fn start(agent: &Arc<Agent>, reloader: &Reloader) -> anyhow::Result<()> {
    // One waiting notice says as much as a thousand.
    let (wake, woken) = bounded(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // This thread reads the directories, which is told as well: each look would be the reason for the next one.
        let is_read =
            |event: &Event| matches!(event.kind, EventKind::Access(kind) if kind != CLOSED_AFTER_WRITES);
        if !event.as_ref().is_ok_and(is_read) {
            wake.try_send(()).ok();
        }
    });
    let watcher = watcher
        .inspect_err(|error| tracing::warn!("configuration files are only looked at every second: {error}"))
        .ok();
    let (weak, reloader) = (Arc::downgrade(agent), reloader.clone());
    // Before the thread: an edit right after the start is a change.
    let mut watch = Watch { watcher, dirs: BTreeSet::new(), seen: BTreeMap::new() };
    watch.seen = watch.look(agent);
    std::thread::Builder::new()
        .name("watch-config".into())
        .spawn(move || watch.run(&weak, &woken, &reloader))?;
    Ok(())
}

struct Watch {
    watcher: Option<RecommendedWatcher>,
    dirs: BTreeSet<PathBuf>,
    seen: Look,
}

impl Watch {
    fn run(mut self, agent: &Weak<Agent>, woken: &Receiver<()>, reloader: &Reloader) {
        loop {
            match woken.recv_timeout(POLL) {
                Ok(()) => wait_until_quiet(woken),
                Err(RecvTimeoutError::Timeout) => {}
                // No notices from the kernel.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            }
            let Some(agent) = agent.upgrade() else { return };
            let look = self.look(&agent);
            if look == self.seen {
                continue;
            }
            self.seen = look;
            if agent.plan().watch {
                let begun = SystemTime::now();
                // What this reload reads is at least as new as what was seen.
                reloader.ask_and_wait(By::Watch, false);
                self.take_into_view(&agent, begun);
            }
        }
    }

    /// Files that a reload brought into view have been read by it, unless they changed since it began.
    fn take_into_view(&mut self, agent: &Agent, begun: SystemTime) {
        let before =
            begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(CLOCK_GRAIN);
        let before = (before.as_secs().cast_signed(), i64::from(before.subsec_nanos()));
        for (path, seen) in self.look(agent) {
            if seen.0.values().all(|file| file.changed < before) {
                self.seen.entry(path).or_insert(seen);
            }
        }
    }

    fn look(&mut self, agent: &Agent) -> Look {
        let (files, suspects) = (agent.files.lock().clone(), agent.suspects.lock().clone());
        let mut look = Look::new();
        for file in files.files().chain(suspects.iter().map(PathBuf::as_path)) {
            self.watch(file.parent().unwrap_or(Path::new("")));
            look.insert(file.to_owned(), Seen::file(file));
        }
        // A plugin that was missing may come: an edit that failed for that reason is tried again.
        let plugins = agent.plan().plugin_dir.clone();
        for dir in files.directories().chain([plugins.as_path()]) {
            self.watch(dir);
            look.insert(dir.to_owned(), Seen::directory(dir));
        }
        look
    }

    fn watch(&mut self, dir: &Path) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let Some(watcher) = &mut self.watcher else { return };
        if self.dirs.contains(dir) {
            return;
        }
        self.dirs.insert(dir.to_owned());
        if let Err(error) = watcher.watch(dir, RecursiveMode::NonRecursive) {
            tracing::warn!(dir = %dir.display(), "configuration files here are only looked at every second: {error}");
        }
    }
}

impl Seen {
    fn file(path: &Path) -> Seen {
        let state = std::fs::metadata(path).map(|metadata| FileState {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
            inode: metadata.ino(),
        });
        Seen(state.into_iter().map(|state| (path.to_owned(), state)).collect())
    }

    fn directory(dir: &Path) -> Seen {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path()).filter(|path| counts(path));
        Seen(files.flat_map(|path| Seen::file(&path).0).collect())
    }
}

/// Whether a file in a listed directory can belong to the configuration.
fn counts(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    !name.starts_with('.') && (name.ends_with(".toml") || name.ends_with(".wasm"))
}

fn wait_until_quiet(woken: &Receiver<()>) {
    let deadline = Instant::now() + QUIET_MAX;
    while Instant::now() < deadline {
        if woken.recv_timeout(QUIET).is_err() {
            return;
        }
    }
}
