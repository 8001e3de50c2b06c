//! Tail: reads files as they grow. Nothing lost, nothing twice, through rotation and restarts.
//!
//! **Identity.** A stream is one incarnation of a file: a hash of source name, device, inode, birth
//! time, generation and first bytes, made once and kept in the position. A position in it is the
//! byte offset of the event's first byte (in the decompressed stream of an archive).
//!
//! **Resume.** A file goes on at its committed offset if inode and birth time are the same, it is at
//! least as long, and the hashes of its head (growing up to 1 KiB) and of the 64 bytes before the
//! offset are equal. So a rename changes nothing. If it is shorter or its head differs it was
//! truncated or replaced: a new generation from its first byte (`rotations`). If only the bytes before
//! the offset differ nobody can know: a new generation too, with a warning (`new_generations`).
//! A rotated file that no glob matches is found by its inode and read to its end: in the directory that it was
//! in, those that links at its path lead to, and those of the globs. A device may have another number after a
//! reboot: then the inode's number and birth time decide (its number and path, where there is no birth time).
//!
//! **Last line.** A last line without newline is taken when the file was idle for
//! `last_line_timeout`. If it grows before, it is one event; if it grows later, the rest is an event
//! of its own with the header `flumen.continued` (what was taken is never taken again).
//!
//! **Multiline.** The committed offset stays before an unfinished event, so a restart reads it again.
//! If a rotated file ends within an event and the file that took its place begins with a line that
//! belongs to it, they are one event, with the identity of its first line.
//!
//! **Codec.** A decoder takes the place of lines. The position of an event is then the offset *behind* its last byte, which
//! does not depend on how the file was cut into chunks. Bytes of an unfinished event stay before the committed
//! offset, and are read again after a restart. They are the last of the file, for the decoder, when it was truncated,
//! when it is gone or has a name that no glob matches and nothing came for `last_line_timeout`, and at an archive's end.
//! What is `max_line` bytes or longer and no whole event goes to quarantine.
//!
//! **What no reader can do.** What the writer appends between copy and truncate of a copytruncate is
//! lost by the rotator, and an unfinished multiline event is lost if the agent is killed right after a
//! truncation. A file that appears and is rotated out of the globs while the agent is down was never
//! seen: let the globs match rotated names (they cost nothing, files are known by inode). A file that is moved
//! to another directory (logrotate's `olddir`) while it is closed or the agent is down is not found there, which
//! a warning says: let a glob match it there as well. Bytes that are truncated or unlinked while the agent is down are gone. A file
//! that is truncated and regrown with the very same first 1 KiB and last 64 bytes is taken for unchanged.
//! Globs must not match the copies that copytruncate makes: a copy is another file (an archive of a
//! file that was read is recognised).
//!
//! Map: `options` (what a user sets), `discover` (globs), `watch` (notifications), `table` (which
//! files there are), `search` (where those are that no glob finds), `tailer` (the loop), `file` (one incarnation), `resume` (whether it still is what it
//! was), `rotation` (what follows it), `input` (bytes), `chunk` (from bytes to
//! events), `lines` (splitting), `out` (the batch), `position` (the committed value), `twin` (archives of known files).

pub mod chunk;
pub mod discover;
pub mod file;
pub mod input;
pub mod limits;
pub mod lines;
pub mod out;
pub mod position;

mod complaints;
mod options;
mod resume;
mod rotation;
mod search;
mod table;
mod tailer;
mod twin;
mod watch;

use flumen_pipeline::{BuildError, Options, Source, SourceContext, SourceError};

pub use options::SPEC;
pub(crate) use options::Settings;
use tailer::Tailer;

use crate::sources::SourceCodec;

/// Builds the source.
pub fn build(options: &Options) -> Result<Box<dyn Source>, BuildError> {
    Ok(Box::new(Tail { settings: Settings::new(options)? }))
}

/// What a codec does here: it finds the events, in place of lines.
pub const CODEC: SourceCodec = SourceCodec {
    instead_of: &[
        "long_lines",
        "multiline_start",
        "multiline_continue",
        "multiline_max_lines",
        "multiline_max_bytes",
        "multiline_timeout",
    ],
    build: |options, codec| {
        Ok(Box::new(Tail { settings: Settings { codec: Some(codec), ..Settings::new(options)? } }))
    },
};

struct Tail {
    settings: Settings,
}

impl Source for Tail {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        Tailer::resume(&self.settings, context)?.run()
    }
}
