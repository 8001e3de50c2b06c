//! Going on with a file: at an offset that was committed, after it was closed, as another form of itself.
//!
//! A plain file is compared by its length, the hash of its head and the hash of the bytes before the
//! offset. An archive is decompressed up to the offset, and what passes is compared the same way.

use std::io;
use std::time::Instant;

use super::file::{Change, TailFile};
use super::input::Input;
use super::limits::{ARCHIVE_RETRY, HEAD_BYTES, TAIL_BYTES};
use super::lines::State;
use super::position::{Mark, Record};

impl TailFile {
    /// Compares an opened plain file with what was read of it, and loads what later checks need.
    pub fn verify(&mut self, input: &Input, len: u64) -> io::Result<Change> {
        if len < self.read_offset {
            return Ok(Change::Truncated);
        }
        let head = input.look(0, usize::from(self.head.len))?;
        if Mark::of(&head) != self.head {
            return Ok(Change::Replaced);
        }
        if !self.verified {
            let tail =
                input.look(self.offset.saturating_sub(self.tail.len.into()), usize::from(self.tail.len))?;
            if Mark::of(&tail) != self.tail {
                return Ok(Change::Ambiguous);
            }
            self.loaded(head, tail);
        }
        Ok(Change::None)
    }

    fn loaded(&mut self, head: Vec<u8>, tail: Vec<u8>) {
        if head.len() < HEAD_BYTES {
            self.head_bytes = head;
        }
        self.tail_len = tail.len();
        self.held = tail;
        self.verified = true;
    }

    /// Decompresses a just opened archive up to the offset, comparing what it passes.
    pub fn skip(&mut self, input: &mut Input, buffer: &mut [u8]) -> io::Result<Change> {
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        let mut passed = 0_u64;
        while passed < self.offset {
            let want = usize::try_from(self.offset - passed).unwrap_or(usize::MAX).min(buffer.len());
            let Some(into) = buffer.get_mut(..want) else { break };
            let read = input.read(&mut [], into, passed)?;
            let bytes = into.get(..read).unwrap_or_default();
            if read == 0 {
                return Ok(Change::Truncated);
            }
            passed += read as u64;
            let missing = usize::from(self.head.len).saturating_sub(head.len()).min(bytes.len());
            head.extend_from_slice(bytes.get(..missing).unwrap_or_default());
            tail.extend_from_slice(bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default());
            tail.drain(..tail.len().saturating_sub(usize::from(self.tail.len)));
        }
        match (Mark::of(&head) == self.head, Mark::of(&tail) == self.tail) {
            (false, _) => return Ok(Change::Replaced),
            (true, false) => return Ok(Change::Ambiguous),
            (true, true) => {}
        }
        self.read_offset = self.offset;
        self.loaded(head, tail);
        Ok(Change::None)
    }

    /// Counts everything before `offset` as read.
    pub fn begin_at(&mut self, input: &Input, offset: u64, source: &str) -> io::Result<()> {
        let short = |most: usize| usize::try_from(offset).unwrap_or(usize::MAX).min(most);
        let head = input.look(0, short(HEAD_BYTES))?;
        let tail = input.look(offset - short(TAIL_BYTES) as u64, short(TAIL_BYTES))?;
        self.head = Mark::of(&head);
        self.tail = Mark::of(&tail);
        self.offset = offset;
        self.read_offset = offset;
        self.verified = false;
        self.state = State::resumed(offset > 0 && tail.last() != Some(&b'\n'), false);
        self.name_stream(source, &head);
        Ok(())
    }

    /// Goes on with the stream of a file that this one is another form of.
    pub fn adopt(&mut self, stream: Option<u64>, of: Record) {
        let inode = self.inode;
        self.begin_at_zero();
        self.stream = stream;
        self.label = of.label.into();
        self.generation = of.generation;
        self.offset = of.offset;
        self.read_offset = of.offset;
        self.head = of.head;
        self.tail = of.tail;
        self.state = State::resumed(of.mid_line, of.skip_line);
        self.verified = false;
        self.own = true;
        self.inode = inode;
    }

    /// Forgets what was read: it is read again from the first byte not taken.
    pub fn unread(&mut self) {
        self.held.truncate(self.tail_len);
        self.read_offset = self.offset;
        self.state = State::resumed(self.state.mid_line, self.state.skip_line);
        self.verified = self.offset == 0;
    }

    /// An archive broke off: it is tried again when it has changed, from the first byte not taken.
    pub fn archive_failed(&mut self) {
        self.archive_bytes = self.opened_bytes;
        self.retry_at = Some(Instant::now() + ARCHIVE_RETRY);
    }
}
