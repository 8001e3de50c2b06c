//! How the lines of files become events: as the source reads whose way they go.

use std::time::Duration;

use flumen_pipeline::plan::SourcePlan;
use flumen_pipeline::{BuildError, DecoderLink};

use super::job::Bounds;
use crate::sources::tail::Settings;
use crate::sources::tail::lines::{LongLines, Multiline};

/// What counts of a source's options.
#[derive(Debug, Clone)]
pub struct Reading {
    pub(super) file_header: bool,
    pub(super) max_line: usize,
    pub(super) long_lines: LongLines,
    pub(super) multiline: Option<Multiline>,
    pub(super) codec: Option<DecoderLink>,
    pub(super) last_line_timeout: Duration,
}

impl Reading {
    /// Of a source of type `tail`, as it is configured. Lines of files that another source would have brought (from standard input,
    /// say) are read as tail does by default; what such a source decodes is no text in a file, and an error.
    pub fn of(source: &SourcePlan, codec: Option<DecoderLink>) -> Result<Reading, BuildError> {
        if source.kind == "tail" {
            let settings = Settings::new(&source.options)?;
            return Ok(Reading {
                file_header: settings.file_header,
                max_line: settings.max_line,
                long_lines: settings.long_lines,
                multiline: settings.multiline,
                codec,
                last_line_timeout: settings.last_line_timeout,
            });
        }
        if codec.is_some() {
            let reason = format!(
                "the source {} decodes what it reads, and is of type `{}`: its events are not the lines of a file",
                source.name, source.kind
            );
            return Err(BuildError::new("codec", reason, "name a source of type `tail` (--source)"));
        }
        Ok(Reading {
            file_header: true,
            max_line: 1 << 20,
            long_lines: LongLines::Split,
            multiline: None,
            codec: None,
            last_line_timeout: Duration::from_secs(5),
        })
    }

    /// Whether events have what these bounds ask for. Also of a backfill that goes on: its source may have got a codec since.
    pub fn check(&self, source: &str, bounds: Bounds) -> Result<(), String> {
        match bounds.has_times() && !self.has_lines() {
            true => Err(format!(
                "the source {source} finds its events with a codec, not by lines: --from and --to have no meaning there; say which bytes \
                 (--from-byte, --to-byte)"
            )),
            false => Ok(()),
        }
    }

    /// Whether events are lines, which have times; a codec finds events in bytes.
    pub(super) fn has_lines(&self) -> bool {
        self.codec.is_none()
    }
}
