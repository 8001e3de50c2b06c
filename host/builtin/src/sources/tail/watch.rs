//! File notifications: they make the source quick, never correct. Whatever is missed (a network file
//! system, too few watches, a queue that ran over) is found by the next walk or poll.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use flumen_pipeline::source::Wake;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;

use super::limits::NOTIFIED_PATHS_MAX;

/// What notifications said since they were asked last.
#[derive(Debug, Default)]
pub struct Notified {
    /// Files that were written to.
    pub changed: HashSet<PathBuf>,
    /// Something appeared, vanished or was renamed, or notifications were lost: walk again.
    pub scan: bool,
}

/// Watches directories.
pub struct Watch {
    shared: Arc<Mutex<Notified>>,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, (u64, u64)>,
    complained: bool,
}

impl Watch {
    /// Wakes the source at every change. If the system has no notifications, polling is all there is.
    pub fn new(wake: Wake) -> Watch {
        let shared = Arc::new(Mutex::new(Notified::default()));
        let sender = shared.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if sender.lock().take_in(event) {
                wake.wake();
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, "no file notifications: files are polled");
        }
        Watch { shared, complained: watcher.is_err(), watcher: watcher.ok(), watched: BTreeMap::new() }
    }

    /// Watches exactly these directories.
    pub fn set(&mut self, directories: &BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        // A directory that was removed and made again has the same path and no watch.
        let inode =
            |directory: &PathBuf| std::fs::metadata(directory).ok().map(|meta| (meta.dev(), meta.ino()));
        let present: BTreeMap<&PathBuf, (u64, u64)> =
            directories.iter().filter_map(|directory| Some((directory, inode(directory)?))).collect();
        let stale = self.watched.iter().filter(|(directory, inode)| present.get(directory) != Some(inode));
        let stale: Vec<PathBuf> = stale.map(|(directory, _)| directory.clone()).collect();
        for directory in stale {
            self.watched.remove(&directory);
            // The watch of a removed directory is gone already.
            watcher.unwatch(&directory).ok();
        }
        for (directory, inode) in present {
            if self.watched.contains_key(directory) {
                continue;
            }
            match watcher.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(directory.clone(), inode);
                }
                Err(error) if !self.complained && directory.is_dir() => {
                    self.complained = true;
                    let directory = directory.display();
                    tracing::warn!(%directory, %error, "cannot be watched: its files are polled (too few inotify watches?)");
                }
                Err(_) => {}
            }
        }
    }

    /// What happened since the last call.
    pub fn take(&self) -> Notified {
        std::mem::take(&mut *self.shared.lock())
    }
}

impl Notified {
    /// True if the source has something to do.
    fn take_in(&mut self, event: notify::Result<Event>) -> bool {
        match event {
            Ok(event) if event.need_rescan() => self.scan = true,
            Ok(event) => match event.kind {
                EventKind::Access(_) => return false,
                EventKind::Modify(notify::event::ModifyKind::Data(_)) => {
                    if self.changed.len() < NOTIFIED_PATHS_MAX {
                        self.changed.extend(event.paths);
                    } else {
                        self.scan = true;
                    }
                }
                _ => self.scan = true,
            },
            Err(_) => self.scan = true,
        }
        true
    }
}
