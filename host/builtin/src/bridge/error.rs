//! Why a bucket was not made.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a bucket was not made. In every case what was there before is still there.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// Records of the bucket may still come.
    #[error("{bucket} is not complete yet: {waits}; try again later")]
    Incomplete {
        /// Which bucket.
        bucket: String,
        /// What it waits for.
        waits: String,
    },
    /// The brokers do not answer, or refuse.
    #[error("{0}")]
    Kafka(String),
    /// The brokers refuse for good: the topic does not exist, or is not ours to read.
    #[error("{0}")]
    Refused(String),
    /// A tree, and nobody said with which bucket to begin.
    #[error("a tree has no first bucket by itself: say `--from` (or `from` in [bridge])")]
    NoBegin,
    /// What the bucket needs is not there: retention has removed it, or the topic is another one by now.
    #[error("{0}")]
    Gap(String),
    /// A file of the bridge's own is not what the bridge wrote.
    #[error("{} cannot be trusted: {reason}. Nothing was changed. {fix}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        fix: &'static str,
    },
    /// A finished bucket lacks files, and what was read again is not what it had.
    #[error("{}", .0)]
    Differs(String),
    /// Another bridge writes below the same directory.
    #[error("another bridge is at work below {} (it holds {})", root.display(), lock.display())]
    Locked {
        /// The directory.
        root: PathBuf,
        /// The locked file.
        lock: PathBuf,
    },
    /// An input of a tree cannot be read.
    #[error("{}: {reason}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system says no.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Asked to stop.
    #[error("stopped")]
    Stopped,
}

/// Adds what was tried, and where.
pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BridgeError {
    let path = path.to_owned();
    move |source| BridgeError::Io { what, path, source }
}
