//! A file gives way to another: truncated in place, or rotated and followed by a new one.
//!
//! What was read and not taken of the old one is taken, or, if it is an unfinished multiline event, put
//! in front of the first line of the new one. The event keeps the identity of its first line, and the
//! old file's position moves in the emission that has the event: a crash before it reads all of it again.

use flumen_pipeline::{Metric, SourceError};

use super::file::{Change, FileId, Prefix, Presence, TailFile};
use super::lines::End;
use super::tailer::{More, Tailer};

impl Tailer<'_> {
    /// The file is not what it was: what was read of it is taken, then it begins anew.
    pub(super) fn changed(&mut self, id: FileId, change: Change) -> Result<(), SourceError> {
        let multiline = self.settings.multiline.is_some();
        let whole = self.files.get(&id).is_some_and(|file| !file.state.mid_line && file.prefix.is_none());
        let join = multiline && whole && change != Change::Ambiguous;
        self.flush(id, if join { End::Line } else { End::Event })?;
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        if change == Change::Ambiguous {
            self.context.metrics.add(Metric::SourceGenerations, 1);
            self.complaints.say(
                &file.path,
                "begins as before, but the bytes before the committed offset are different",
                "read again from its first byte as a new stream; some events may come twice",
            );
        } else {
            self.context.metrics.add(Metric::SourceRotations, 1);
        }
        let prefix = if join { take_prefix(file, None) } else { None };
        if change == Change::Replaced && file.presence == Presence::Matched {
            file.label = file.path.to_string_lossy().into();
        }
        file.restart();
        if let Some((prefix, bytes)) = prefix {
            file.held = bytes;
            file.prefix = Some(prefix);
        } else {
            self.waiting.remove(&id);
        }
        if file.kind.is_archive() {
            self.close(id);
        }
        self.ready.insert(id);
        Ok(())
    }

    /// A new file takes the unfinished event of the file that was at its path. False: that file has to
    /// be read to its end first.
    pub(super) fn take_over(&mut self, id: FileId) -> Result<bool, SourceError> {
        let Some(file) = self.files.get(&id).filter(|file| file.joins) else { return Ok(true) };
        if self.settings.multiline.is_none() || file.kind.is_archive() {
            return Ok(true);
        }
        let Some(before) = self.predecessor(id) else { return Ok(true) };
        if !file.input.as_ref().is_some_and(|input| input.metadata().is_ok_and(|meta| meta.len() > 0)) {
            return Ok(true);
        }
        // The writer has moved on to this file, so what a read of the one before finds now is all of it.
        match self.files.get_mut(&before) {
            Some(previous) if !previous.handed_over => {
                let settled = self.read(before)? != More::Yes;
                if !settled {
                    self.ready.insert(before);
                    return Ok(false);
                }
                self.flush(before, End::Line)?;
            }
            _ => {}
        }
        let taken = self.files.get_mut(&before).and_then(|previous| {
            let taken = if previous.handed_over { None } else { take_prefix(previous, Some(before)) };
            Some((taken?, previous.grown))
        });
        let Some(file) = self.files.get_mut(&id) else { return Ok(true) };
        file.joins = false;
        if let Some(((prefix, bytes), grown)) = taken {
            file.held = bytes;
            file.tail_len = 0;
            file.prefix = Some(prefix);
            file.grown = grown;
            self.waiting.remove(&before);
            self.waiting.insert(id);
        }
        Ok(true)
    }
}

/// Takes the unfinished event off a file that has come to its end (or was truncated).
fn take_prefix(file: &mut TailFile, from: Option<FileId>) -> Option<(Prefix, Vec<u8>)> {
    let stream = file.stream?;
    if file.pending() == 0 || file.state.mid_line || file.prefix.is_some() {
        return None;
    }
    let position = file.offset;
    let mut bytes = file.held.get(file.tail_len..).unwrap_or_default().to_vec();
    file.give_away();
    file.handed_over = from.is_some();
    let record = file.record().encode();
    if bytes.last() != Some(&b'\n') {
        bytes.push(b'\n');
    }
    Some((Prefix { stream, position, len: bytes.len(), record, from }, bytes))
}
