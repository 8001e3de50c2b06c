//! What a file journal is opened with, and why that may fail.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::format::packed::Compression;
use super::segment::segment_name;
use crate::disk::is_damage;
use crate::keys::{KeyError, Keys};
use crate::limits;

/// What a durable commit has survived when its ticket says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Loss of power: every group is synced before anyone is told.
    #[default]
    Durable,
    /// The end of the process only: what the system has not written back yet (up to half a minute, or
    /// [`limits::SNAPSHOT_EVERY_BYTES`]) is lost with the power.
    Os,
}

/// Settings of a file journal. `Default` has all but the directory.
#[derive(Debug, Clone)]
pub struct FileConfig {
    /// Where the files are; made if it is not there.
    pub dir: PathBuf,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of commits that are written and synced together.
    pub group_bytes_max: u64,
    /// Memory for recent batches, over all channels.
    pub window_bytes: u64,
    /// What a commit waits for.
    pub durability: Durability,
    /// How batches are compressed from now on; what is there is read whatever it is.
    pub compression: Compression,
    /// Keys: from now on everything is encrypted with the first. What is there already is read with any of them.
    pub keys: Keys,
    /// Bytes kept aside for acknowledgements on a full disk; 0: none.
    pub reserve_bytes: u64,
    /// Segment bytes between two snapshots.
    pub snapshot_every_bytes: u64,
    /// Segment bytes between two files of the plugins' state, at least.
    pub state_file_every_bytes: u64,
}

impl Default for FileConfig {
    fn default() -> Self {
        FileConfig {
            dir: PathBuf::new(),
            segment_bytes: limits::SEGMENT_BYTES,
            group_bytes_max: limits::GROUP_BYTES_MAX,
            window_bytes: limits::WINDOW_BYTES,
            durability: Durability::Durable,
            compression: Compression::None,
            keys: Keys::default(),
            reserve_bytes: limits::RESERVE_BYTES,
            snapshot_every_bytes: limits::SNAPSHOT_EVERY_BYTES,
            state_file_every_bytes: limits::STATE_FILE_EVERY_BYTES,
        }
    }
}

/// Why a journal does not open. Each says where, why, and what to do about it.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the journal in {0} is in use by another process; stop that one, or give this one a directory of its own"
    )]
    Locked(PathBuf),
    /// Written by a newer Flumen.
    #[error(
        "{file} has format version {version}; this program reads up to {newest}: start the release of Flumen that wrote it, \
         or a newer one",
        newest = super::format::VERSION
    )]
    NewerVersion {
        /// Which file, with its directory.
        file: PathBuf,
        /// Its version.
        version: u8,
    },
    /// The directory holds something else, or what this kind of journal cannot go on with.
    #[error("{dir} cannot be used as the journal: {reason}")]
    NotAJournal {
        /// The directory.
        dir: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// It is encrypted, and cannot be read with the keys that were given. Nothing was changed.
    #[error("{what} is {error}")]
    Key {
        /// Which file, with its directory.
        what: String,
        /// Why not, and what to do.
        error: KeyError,
    },
    /// The disk refused.
    #[error("{what}: {error}{fix}", fix = what_to_do(.error))]
    Io {
        /// What was tried, with the path.
        what: String,
        /// The system's error. Not as the source of this one: who prints the sources too would say it twice.
        error: io::Error,
    },
}

impl OpenError {
    /// For `map_err`. An error of a key is told as one.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
        move |source| {
            let what = what.into();
            match source.get_ref().and_then(|inner| inner.downcast_ref::<KeyError>()) {
                Some(error) => OpenError::Key { what, error: *error },
                None => OpenError::Io { what, error: source },
            }
        }
    }

    /// For `map_err`, of a segment.
    pub(super) fn of_segment(dir: &Path, id: u64) -> impl FnOnce(io::Error) -> OpenError {
        OpenError::io(dir.join(segment_name(id)).display().to_string())
    }
}

/// What helps against an error of the disk, where that is known.
fn what_to_do(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "; mount it writable (`dmesg` says whether an error made it read-only), or give the agent a directory elsewhere"
        }
        io::ErrorKind::PermissionDenied => {
            "; the user that runs flumen needs read and write permission there"
        }
        io::ErrorKind::StorageFull => "; make room on its disk",
        _ if is_damage(error) => "; the disk or its file system is damaged, `dmesg` says more",
        _ => "",
    }
}
