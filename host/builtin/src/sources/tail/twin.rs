//! Archives of files that are known: `access.log.1` becomes `access.log.1.gz`.
//!
//! An archive whose content begins with what was read of a known stream is that stream in another form
//! (its head and the bytes before the offset are compared). While the plain file is there, the archive
//! waits; when it is gone, the archive takes over its stream and goes on at its offset. So nothing of
//! it comes twice, and what was not read before the compression comes from the archive.
//!
//! A short head proves little: below 1 KiB the archive's name has to begin with the file's as well.

use std::time::Instant;

use flumen_pipeline::SourceError;

use super::file::{Change, FileId, Presence, TailFile};
use super::input::Input;
use super::limits::{ARCHIVE_RETRY, CHUNK_BYTES, HEAD_BYTES};
use super::position::Mark;
use super::tailer::Tailer;

impl Tailer<'_> {
    /// True while the plain form of an archive is there.
    pub(super) fn twin_is_there(&self, file: &TailFile) -> bool {
        file.twin.and_then(|twin| self.files.get(&twin)).is_some_and(is_there)
    }

    /// True if the archive, of which the first `new` bytes are in the buffer, is another form of a known
    /// file: its state is changed so that it does not begin anew.
    pub(super) fn is_twin(&mut self, id: FileId, new: usize) -> Result<bool, SourceError> {
        let Some(file) = self.files.get(&id).filter(|file| file.kind.is_archive() && !file.own) else {
            return Ok(false);
        };
        let first = self.buffer.get(..new).unwrap_or_default();
        let twin = self.files.iter().find(|(other, known)| **other != id && alike(file, known, first));
        let Some((twin, known)) = twin else {
            return Ok(false);
        };
        let (twin, stream, record, there) = (*twin, known.stream, known.record(), is_there(known));
        let mut probe = TailFile::new(file.path.clone(), file.inode);
        probe.adopt(stream, record.clone());
        let compared = Input::open(&probe.path, probe.kind)
            .and_then(|(mut input, _)| probe.skip(&mut input, &mut vec![0; CHUNK_BYTES]));
        if compared.is_ok() {
            self.close(id);
        }
        let Some(file) = self.files.get_mut(&id) else { return Ok(true) };
        match compared {
            Ok(Change::None) if there => {
                file.unread();
                file.twin = Some(twin);
            }
            Ok(Change::None) => {
                file.adopt(stream, record);
                self.remove(twin);
            }
            Ok(_) => {
                // Its first bytes are in the buffer, but its decoder is gone: it is read from the start.
                file.unread();
                file.own = true;
            }
            // It is still being written: compared again when it has changed.
            Err(_) => {
                file.unread();
                file.archive_bytes = 0;
                file.retry_at = Some(Instant::now() + ARCHIVE_RETRY);
                self.close(id);
            }
        }
        Ok(true)
    }
}

/// True if the archive may begin with what was read of `known`.
fn alike(archive: &TailFile, known: &TailFile, first: &[u8]) -> bool {
    let len = usize::from(known.head().len);
    let named = || {
        let name = archive.path.to_string_lossy();
        name.starts_with(&*known.label) || name.starts_with(&*known.path.to_string_lossy())
    };
    known.stream.is_some()
        && !known.kind.is_archive()
        && len > 0
        && (len == HEAD_BYTES || named())
        && first.get(..len).is_some_and(|head| Mark::of(head) == known.head())
}

/// True while the file itself is read, or holds something that is.
fn is_there(known: &TailFile) -> bool {
    let gone = matches!(known.presence, Presence::Gone(_));
    !gone || known.handed_over || (known.input.is_some() && !known.at_end)
}
