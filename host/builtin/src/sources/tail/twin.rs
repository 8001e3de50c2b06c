//! Archives of files that are known: `access.log.1` becomes `access.log.1.gz`.
//!
//! An archive whose content begins with what was read of a known stream is that stream in another form
//! (its head and the bytes before the offset are compared). While the plain file is there, the archive
//! waits; when it is gone, the archive takes over its stream and goes on at its offset. So nothing of
//! it comes twice, and what was not read before the compression comes from the archive.
//!
//! Files with the same header begin alike, and so does an archive of any of them. They are compared from the
//! one of which the most was read, and only an archive that none of them is begins as a file of its own.
//!
//! A short head proves little: below 1 KiB the archive's name has to begin with the file's as well.

use std::io;
use std::time::Instant;

use flumen_pipeline::SourceError;

use super::file::{Change, FileId, Presence, TailFile};
use super::input::Input;
use super::limits::{ARCHIVE_RETRY, CHUNK_BYTES, HEAD_BYTES};
use super::position::Mark;
use super::tailer::Tailer;

impl Tailer<'_> {
    /// True while the plain form of an archive is there. It is not compared again: one that has grown or was truncated since
    /// (`gzip -k`, copytruncate) is no other, and cannot be told from one that only began alike.
    pub(super) fn twin_is_there(&self, file: &TailFile) -> bool {
        let twin = file.twin.filter(|_| file.stream.is_none());
        twin.and_then(|twin| self.files.get(&twin)).is_some_and(is_there)
    }

    /// True if the archive, of which the first `new` bytes are in the buffer, may be another form of a known
    /// file: its state is changed so that it does not begin anew, or so that it begins as a file of its own.
    pub(super) fn is_twin(&mut self, id: FileId, new: usize) -> Result<bool, SourceError> {
        let Some(file) = self.files.get(&id).filter(|file| file.kind.is_archive() && !file.own) else {
            return Ok(false);
        };
        let first = self.buffer.get(..new).unwrap_or_default();
        let known = self.files.iter().filter(|(other, known)| **other != id && alike(file, known, first));
        let mut known: Vec<(u64, FileId)> = known.map(|(other, known)| (known.offset, *other)).collect();
        if known.is_empty() {
            return Ok(false);
        }
        // Files that begin alike (with the same header) are many: the one of which the most was read proves the most.
        known.sort_unstable_by_key(|known| std::cmp::Reverse(*known));
        let twin = self.same_as(file, &known);
        // Its first bytes are in the buffer, but its decoder goes: it is read from the start.
        self.close(id);
        if let Some(file) = self.files.get_mut(&id) {
            file.unread();
            file.twin = None;
        }
        match twin {
            Ok(Some(of)) => self.pair(id, of),
            Ok(None) => {
                if let Some(file) = self.files.get_mut(&id) {
                    file.own = true;
                }
            }
            // It is still being written: compared again when it has changed.
            Err(_) => {
                if let Some(file) = self.files.get_mut(&id) {
                    file.archive_bytes = 0;
                    file.retry_at = Some(Instant::now() + ARCHIVE_RETRY);
                }
            }
        }
        Ok(true)
    }

    /// The first of these files of which all that was read is the beginning of the archive. An error: the
    /// archive broke off before that was known.
    fn same_as(&self, archive: &TailFile, known: &[(u64, FileId)]) -> io::Result<Option<FileId>> {
        let mut chunk = vec![0; CHUNK_BYTES];
        for (_, id) in known {
            let Some(file) = self.files.get(id) else { continue };
            let mut probe = TailFile::new(archive.path.clone(), archive.inode);
            probe.adopt(file.stream, file.record());
            let (mut input, _) = Input::open(&probe.path, probe.kind)?;
            if probe.skip(&mut input, &mut chunk)? == Change::None {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// The archive waits for its plain form while that is there, and takes its place when it is gone.
    fn pair(&mut self, id: FileId, of: FileId) {
        let Some(known) = self.files.get(&of) else { return };
        let (stream, record, is_there) = (known.stream, known.record(), is_there(known));
        let Some(file) = self.files.get_mut(&id) else { return };
        if is_there {
            file.twin = Some(of);
        } else {
            file.adopt(stream, record);
            self.remove(of);
        }
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
