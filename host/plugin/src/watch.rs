//! Notices that plugin files changed.
//!
//! The kernel's notices only wake the thread up early: what decides is a look at each file (times, size, inode), at least
//! every [`limits::WATCH_POLL`]. So a lost notice, a replaced directory or a network file system delays a swap, and
//! never loses it. A file is read when its directory has been quiet for a moment; one that is read half-written
//! fails its validation, and is tried again when it changes again.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;

use crate::error::HostError;
use crate::limits;
use crate::swap::PluginSlot;

/// The thread's end is this value's end.
pub(crate) struct Watch {
    notices: Mutex<Notices>,
    slots: Arc<Mutex<Vec<Weak<PluginSlot>>>>,
    /// Dropped with the host; the thread then ends.
    _wake: Sender<()>,
}

struct Notices {
    watcher: Option<RecommendedWatcher>,
    dirs: HashSet<PathBuf>,
}

impl Watch {
    pub(crate) fn start() -> Result<Watch, HostError> {
        const NAME: &str = "flumen-watch";
        let (wake, woken) = channel();
        let slots: Arc<Mutex<Vec<Weak<PluginSlot>>>> = Arc::default();
        let notice = wake.clone();
        let watcher = notify::recommended_watcher(move |_| {
            // Fails only when the thread has ended.
            notice.send(()).ok();
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!("plugin files are only looked at every second: {error}"))
            .ok();
        let watched = Arc::downgrade(&slots);
        let run = move || run(&woken, &watched);
        thread::Builder::new()
            .name(NAME.into())
            .spawn(run)
            .map_err(|source| HostError::Thread { name: NAME, source })?;
        let notices = Mutex::new(Notices { watcher, dirs: HashSet::new() });
        Ok(Watch { notices, slots, _wake: wake })
    }

    pub(crate) fn add(&self, slot: &Arc<PluginSlot>) {
        if let Some(dir) = slot.path().parent() {
            self.notices.lock().watch(dir);
        }
        let mut slots = self.slots.lock();
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(slot));
    }
}

impl Notices {
    fn watch(&mut self, dir: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        if !self.dirs.insert(dir.to_owned()) {
            return;
        }
        if let Err(error) = watcher.watch(dir, RecursiveMode::NonRecursive) {
            tracing::warn!(dir = %dir.display(), "plugin files here are only looked at every second: {error}");
        }
    }
}

fn run(woken: &Receiver<()>, slots: &Weak<Mutex<Vec<Weak<PluginSlot>>>>) {
    loop {
        match woken.recv_timeout(limits::WATCH_POLL) {
            Ok(()) => wait_until_quiet(woken),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(slots) = slots.upgrade() else { return };
        let slots: Vec<Arc<PluginSlot>> = slots.lock().iter().filter_map(Weak::upgrade).collect();
        for slot in slots.iter().filter(|slot| slot.is_changed()) {
            // The outcome is in the slot's status and in the log.
            slot.reload_now().ok();
        }
    }
}

fn wait_until_quiet(woken: &Receiver<()>) {
    let deadline = Instant::now() + limits::WATCH_QUIET_MAX;
    while Instant::now() < deadline {
        if woken.recv_timeout(limits::WATCH_QUIET).is_err() {
            return;
        }
    }
}
