//! Syncs of what is written, before anybody waits for one.
//!
//! A flush waits until the disk has everything since the last one, and nothing is written meanwhile. So a thread beside it syncs a file
//! when so much of it is written, and the flush finds little left to do. Nothing is acknowledged by these syncs: they go through a file
//! description of their own, so that an error of the disk is reported to the flush as well (Linux reports it to each once). At most one is under
//! way; what comes meanwhile is the next one's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::sinks::limits::SYNC_AHEAD_BYTES;

/// Of one sink. The thread begins with the first file that is long enough.
#[derive(Default)]
pub(super) struct Ahead {
    thread: Option<SyncSender<PathBuf>>,
    /// The file that was written last, and how much of it since it was last asked for.
    path: PathBuf,
    bytes: usize,
}

impl Ahead {
    /// So much was written to a file.
    pub fn wrote(&mut self, path: &Path, bytes: usize) {
        if self.path != path {
            path.clone_into(&mut self.path);
            self.bytes = 0;
        }
        self.bytes += bytes;
        if self.bytes < SYNC_AHEAD_BYTES {
            return;
        }
        if self.thread.is_none() {
            self.thread = start();
        }
        // A thread that is busy, or was not to be had: the flush does it.
        let is_taken = self.thread.as_ref().is_some_and(|thread| thread.try_send(path.to_owned()).is_ok());
        if is_taken {
            self.bytes = 0;
        }
    }

    /// A file was synced as a whole.
    pub fn synced(&mut self, path: &Path) {
        if self.path == path {
            self.bytes = 0;
        }
    }
}

fn start() -> Option<SyncSender<PathBuf>> {
    let (to, files) = sync_channel(1);
    let thread = thread::Builder::new().name("sync-ahead".into());
    thread.spawn(move || run(&files)).ok().map(|_| to)
}

fn run(files: &Receiver<PathBuf>) {
    for path in files {
        if let Err(error) = File::open(&path).and_then(|file| file.sync_data()) {
            tracing::debug!(file = %path.display(), %error, "not synced ahead: the flush will say why");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asked for once for so much of one file; what a flush synced does not count.
    #[test]
    fn so_much_of_one_file_is_synced_ahead() {
        let (to, files) = sync_channel(1);
        let mut ahead = Ahead { thread: Some(to), ..Ahead::default() };
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        ahead.wrote(a, SYNC_AHEAD_BYTES - 1);
        ahead.wrote(b, 1);
        ahead.wrote(a, SYNC_AHEAD_BYTES - 1);
        ahead.synced(a);
        ahead.wrote(a, SYNC_AHEAD_BYTES - 1);
        assert!(files.try_recv().is_err());
        ahead.wrote(a, 1);
        ahead.wrote(a, SYNC_AHEAD_BYTES);
        ahead.wrote(a, 1);
        assert_eq!(files.try_recv().unwrap(), a);
        assert!(files.try_recv().is_err(), "the thread had not taken the first");
        ahead.wrote(a, 1);
        assert_eq!(files.try_recv().unwrap(), a, "it is asked again");
    }
}
