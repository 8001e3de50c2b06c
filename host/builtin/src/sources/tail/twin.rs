//! Archives of files that are known: `access.log.1` becomes `access.log.1.gz`.
//!
//! An archive whose content begins with the head of a known stream is that stream in another form:
//! while the plain file is there the archive waits; when it is gone, the archive takes over its stream,
//! offset and all, after comparing the bytes before the offset. If they differ it is a file of its own.

use std::time::{Duration, Instant};

use flumen_pipeline::SourceError;

use super::file::{FileId, Presence};
use super::limits::TWIN_HEAD_BYTES_MIN;
use super::position::Mark;
use super::tailer::Tailer;

/// How long an archive waits before it looks again whether the plain file is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Tailer<'_> {
    /// True if the archive, of which the first `new` bytes are in the buffer, is another form of a known
    /// file: its state is changed so that it does not begin anew.
    pub(super) fn is_twin(&mut self, id: FileId, new: usize) -> Result<bool, SourceError> {
        let Some(file) = self.files.get(&id) else { return Ok(false) };
        if !file.kind.is_archive() || file.own {
            return Ok(false);
        }
        let first = self.buffer.get(..new).unwrap_or_default();
        let twin = self.files.iter().find(|(other, known)| {
            let len = usize::from(known.head().len);
            let whole = len as u64 == known.offset && len == new;
            **other != id
                && known.stream.is_some()
                && (len >= TWIN_HEAD_BYTES_MIN || (whole && len > 0))
                && first.get(..len).is_some_and(|head| Mark::of(head) == known.head())
        });
        let Some((twin, gone)) = twin.map(|(id, known)| (*id, matches!(known.presence, Presence::Gone(_)))) else {
            return Ok(false);
        };
        self.close(id);
        if gone && let Some(known) = self.files.get(&twin) {
            let (stream, record) = (known.stream, known.record());
            if let Some(file) = self.files.get_mut(&id) {
                file.adopt(stream, record);
            }
            self.remove(twin);
        } else if let Some(file) = self.files.get_mut(&id) {
            file.unread();
            file.retry_at = Some(Instant::now() + LOOK_AGAIN);
        }
        Ok(true)
    }
}
