//! The sink `file`: events in files, exactly once.
//!
//! # Names
//! The `path` option names buckets ([`template`]); the files of `/logs/access.log` are
//! `/logs/access-000012.log`, and `/logs/access-000012.log.open` while they are written. The number
//! runs through all files of a sink, is never used twice, and a name that exists is never taken: what
//! has no `.open` at its end is complete and will not change. Two sinks should not share a path.
//!
//! # Protocol
//! The position ([`position`]) lists every file that is not final, with its committed length.
//!
//! 1. Before files are created their names are put on record with length 0 (one durable commit for
//!    all new files of a batch).
//! 2. `deliver` appends. A full file becomes *closing* and its bucket goes on in a new one.
//! 3. `flush` writes all buffers, syncs all written files, then the directories; the position it
//!    returns is committed together with the acknowledgement.
//! 4. `committed` gives closing files of that position their final name. They are forgotten at the
//!    next flush, after their directory was synced.
//!
//! After a crash each listed file is cut to its committed length ([`recovery`]): what was delivered
//! but not acknowledged is gone and is delivered again, in whatever cuts. Files go on to be written
//! after a crash or an error. A clean stop finishes them: who stops an agent expects whole files.
//!
//! The order of events within a bucket is kept, through all its files by number.
//!
//! # How it fails
//! Any error of the system makes the call fail with words; from then on only `recover` works, which
//! rebuilds everything from the last flush. A full disk is such an error: recovery first gives back
//! the space of what was not acknowledged. After a failed sync the file is finished at its committed length,
//! because the kernel may have dropped pages. What was written to a file that someone removed is not
//! acknowledged, and delivered again to a new one. Rows whose headers lead to where no file can be (what is there is no directory, or not ours)
//! go to quarantine, if the rest of the path is fine; what is wrong with that is an error. An unreadable position stops the sink and touches nothing.
//!
//! Files whose bytes are made by a codec: [`codec`].
//!
//! Compressed files are made of complete blocks, so a file cut at a committed length is valid; each flush
//! ends a block, therefore flushes are rarer by default ([`compress`]).

use std::time::{SystemTime, UNIX_EPOCH};

use flumen_event::Batch;
use flumen_journal::Delivery;
use flumen_pipeline::sink::{Cursors, Sink, SinkContext, Stored};
use flumen_pipeline::{BuildError, FlushPolicy, Metric, Options, SinkError};

mod ahead;
mod codec;
pub(crate) mod compress;
mod disk;
mod durable;
pub mod faults;
mod files;
mod options;
pub mod position;
mod recovery;
mod route;
mod sanitise;
pub(crate) mod template;
#[cfg(test)]
pub(crate) mod testing;
mod writing;

pub use options::SPEC;
pub(crate) use options::zone;

use codec::rows_of;
use disk::Disk;
use files::{Clock, Files, Phase};
use options::Settings;
use position::Position;
use route::{Router, Run};

use crate::sinks::SinkCodec;

/// Makes one.
pub fn build(options: &Options) -> Result<Box<dyn Sink>, BuildError> {
    Ok(Box::new(FileSink::new(Settings::from_options(options)?, faults::system_disk(), Box::new(now_ms))))
}

/// What a codec does here.
pub const CODEC: SinkCodec = SinkCodec {
    instead_of: &["encoding"],
    build: |options, codec| {
        let settings = Settings::with_codec(options, codec)?;
        Ok(Box::new(FileSink::new(settings, faults::system_disk(), Box::new(now_ms))))
    },
};

/// Sends the rows of a bucket to quarantine. After an error the pipeline forgets that, and they are delivered again.
fn refuse(context: &mut SinkContext, batch: &Batch, runs: &[Run], reason: &str) -> Result<(), SinkError> {
    let rows = rows_of(batch, runs)?;
    let reasons = vec![reason.to_owned(); rows.rows()];
    context.quarantine(rows, reasons);
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

struct FileSink {
    router: Router,
    files: Files,
    /// An error left the table of files behind the directory: only `recover` helps.
    recovered: bool,
    /// Something was delivered after the last flush.
    unflushed: bool,
}

impl FileSink {
    fn new(settings: Settings, disk: Box<dyn Disk>, clock: Clock) -> Self {
        let router = Router::new(settings.template.clone());
        FileSink { router, files: Files::new(settings, disk, clock), recovered: false, unflushed: false }
    }

    /// Runs a step that leaves the sink unusable when it fails.
    fn step<T>(
        &mut self,
        context: &mut SinkContext,
        step: impl FnOnce(&mut Self, &mut SinkContext) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        if !self.recovered {
            return Err(SinkError::Retry("the files have to be recovered first".into()));
        }
        let done = step(self, context);
        self.recovered = done.is_ok();
        context.metrics.set(Metric::SinkFilesOpen, self.files.open.len() as u64);
        done
    }

    fn write(&mut self, context: &mut SinkContext, delivery: &Delivery) -> Result<(), SinkError> {
        self.unflushed = true;
        let now_ms = (self.files.clock)();
        let mut routing = self.router.route(&delivery.batch);
        // Open files first: what `max_open_files` finishes for new ones is then not needed in this batch.
        routing.sort_by_key(|(bucket, _)| !self.files.open.contains_key(&bucket.path));
        let refused = self.files.announce(context, routing.iter().map(|(bucket, _)| bucket))?;
        for (bucket, runs) in &routing {
            if let Some(reason) = refused.get(&bucket.path) {
                refuse(context, &delivery.batch, runs, reason)?;
                continue;
            }
            match self.files.version.is_some() {
                true => self.files.append_encoded(context, bucket, &delivery.batch, runs, now_ms)?,
                false => self.files.append(context, bucket, &delivery.batch, runs, now_ms)?,
            }
        }
        Ok(())
    }

    /// Final names for all files. Three durable steps: on record as closing, renamed, forgotten.
    fn finish_all(&mut self, context: &mut SinkContext) -> Result<(), SinkError> {
        let open: Vec<u64> = self.files.open.values().copied().collect();
        for number in open {
            self.files.finish(number)?;
        }
        let closing = self.files.flush()?;
        context.commit_position(&closing.encode())?;
        self.files.rename_closing(context, &closing)?;
        let rest = self.files.flush()?;
        context.commit_position(&rest.encode())
    }
}

impl Sink for FileSink {
    fn recover(
        &mut self,
        context: &mut SinkContext,
        committed: Option<&[u8]>,
        _: &mut Cursors<'_>,
    ) -> Result<Option<Stored>, SinkError> {
        self.recovered = false;
        // Never committed, or committed by a flush before the first event: nothing is there.
        let position = match committed {
            None | Some([]) => Position { next_number: 1, ..Position::default() },
            Some(bytes) => Position::decode(bytes).map_err(|error| {
                SinkError::Retry(format!(
                    "the committed position of sink {} cannot be read: {error}",
                    context.name
                ))
            })?,
        };
        self.files.rebuild(context, position)?;
        self.recovered = true;
        self.unflushed = false;
        context.metrics.set(Metric::SinkFilesOpen, self.files.open.len() as u64);
        Ok(None)
    }

    fn deliver(&mut self, context: &mut SinkContext, delivery: &Delivery) -> Result<(), SinkError> {
        self.step(context, |sink, context| sink.write(context, delivery))
    }

    fn flush(&mut self, context: &mut SinkContext, _: &[u8]) -> Result<Vec<u8>, SinkError> {
        self.step(context, |sink, _| {
            let position = sink.files.flush()?.encode();
            sink.unflushed = false;
            Ok(position)
        })
    }

    fn committed(&mut self, context: &mut SinkContext, position: &[u8]) -> Result<(), SinkError> {
        // After an error this waits for the flush that follows `recover`.
        if !self.recovered || !self.files.entries.values().any(|entry| entry.phase == Phase::Closing) {
            return Ok(());
        }
        let position = Position::decode(position).map_err(|error| {
            SinkError::Retry(format!("the position just committed cannot be read: {error}"))
        })?;
        self.step(context, |sink, context| sink.files.rename_closing(context, &position))
    }

    fn due(&mut self) -> bool {
        self.recovered && (self.files.due() || self.files.is_codec_swapped())
    }

    fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy { bytes: self.files.settings.flush_bytes, linger: self.files.settings.flush_interval }
    }

    fn close(&mut self, context: &mut SinkContext) -> Result<(), SinkError> {
        // What was delivered but not acknowledged must not get a final name; the next start cuts it.
        if !self.recovered || self.unflushed || self.files.entries.is_empty() {
            return Ok(());
        }
        self.step(context, Self::finish_all)
    }
}

#[cfg(test)]
mod tests;
