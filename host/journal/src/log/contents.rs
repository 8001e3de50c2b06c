//! What stands in a log, for somebody who only looks: nothing is taken over.

use super::LogError;
use super::replay::Replay;
use crate::keys::Keys;
use crate::view::MemoryState;

/// Takes a log's records in order, and knows its positions.
pub struct LogContents {
    replay: Replay,
    view: MemoryState,
}

impl LogContents {
    /// Nothing yet. `name` as [`super::LogConfig::name`].
    pub fn new(name: &str, keys: &Keys) -> LogContents {
        LogContents { replay: Replay::new(name, Vec::new(), keys), view: MemoryState::default() }
    }

    /// The next record, from the first that is there on.
    ///
    /// # Errors
    /// If it is of a newer version, or its key is not given.
    pub fn take(&mut self, place: u64, record: &[u8]) -> Result<(), LogError> {
        self.replay.take(&self.view, place, record)
    }

    /// A position as of the last record.
    pub fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.replay.position(key)
    }
}
