//! Standard input: lines until its end.
//!
//! A pipe cannot be read again: what was read from it and not yet committed when the agent is killed
//! is lost. That is the pipe's nature; write to a file and tail it where this matters. For the same reason
//! the stream is a new one in each process, and no position is kept.
//!
//! A source that stops emits the events it has; what the pipeline does not take then, and a line whose end has not come, stay in
//! memory for the next source of this process. If the agent ends, they are lost.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::time::{Duration, Instant};

use flumen_pipeline::codec::Origin;
use flumen_pipeline::{
    BuildError, ComponentSpec, DecoderLink, Emission, Metric, OptionKind, OptionSpec, Options, Source,
    SourceContext, SourceError, Stopped,
};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::tail::lines::{End, LongLines, Splitter, State};
use super::tail::out::{Out, Place};
use super::{SourceCodec, elapsed_ns, now_ns};

/// Bytes of one read: what a pipe holds.
const CHUNK_BYTES: usize = 64 << 10;

/// How long a read waits before it looks whether the pipeline stops.
const WAIT: Duration = Duration::from_millis(100);

/// The source's name and options.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "stdin",
    about: "Reads lines from standard input; the source ends with it.",
    options: &[
        OptionSpec {
            name: "max_line",
            kind: OptionKind::Size { min: 64, max: 16 << 20 },
            required: false,
            default: Some("\"1 MiB\""),
            about: "Longest line, in bytes.",
        },
        OptionSpec {
            name: "long_lines",
            kind: OptionKind::Choice(&["split", "quarantine"]),
            required: false,
            default: Some("\"split\""),
            about: "What becomes of longer lines: `split` into events of max_line, or the first max_line bytes to `quarantine` and the rest skipped.",
        },
    ],
};

struct Stdin {
    max_line: usize,
    long: LongLines,
    codec: Option<DecoderLink>,
}

/// What a codec does here: it finds the events, in place of lines.
pub const CODEC: SourceCodec = SourceCodec {
    instead_of: &["long_lines"],
    build: |options, codec| Ok(Box::new(Stdin { codec: Some(codec), ..settings(options)? })),
};

/// Builds the source.
pub fn build(options: &Options) -> Result<Box<dyn Source>, BuildError> {
    Ok(Box::new(settings(options)?))
}

fn settings(options: &Options) -> Result<Stdin, BuildError> {
    let long =
        if options.text("long_lines")? == "quarantine" { LongLines::Quarantine } else { LongLines::Split };
    let max_line = usize::try_from(options.size("max_line")?).unwrap_or(usize::MAX);
    Ok(Stdin { max_line, long, codec: None })
}

/// How far the input is read. It belongs to the process, which has one standard input: a source that is restarted, or made from
/// other options, goes on where the last one stopped.
struct Reading {
    /// Read, and not yet in an event: the beginning of a line.
    held: Vec<u8>,
    state: State,
    place: Place,
    /// What the pipeline did not take, because it stopped. Goes before everything else.
    refused: Option<Emission>,
}

/// `None`: not begun, or at its end. Locked by the source that reads: another one waits for its turn.
static READING: Mutex<Option<Reading>> = Mutex::new(None);

impl Reading {
    fn begin() -> Reading {
        let place = Place { stream: new_stream(), base: 0, first: None, time: now_ns() };
        Reading { held: Vec::new(), state: State::default(), place, refused: None }
    }

    fn emit(&mut self, context: &mut SourceContext, emission: Emission) -> Result<(), SourceError> {
        // Columns are shared, not copied.
        self.refused = Some(emission.clone());
        context.emit(emission)?;
        self.refused = None;
        Ok(())
    }

    /// For a source with other options: what is held is looked at anew.
    fn take_up(&mut self, has_codec: bool) {
        self.state = match has_codec {
            true => State::default(),
            false => State::resumed(self.state.mid_line, self.state.skip_line),
        };
    }
}

/// Waits until no other source reads.
fn turn(context: &SourceContext) -> Result<MutexGuard<'static, Option<Reading>>, Stopped> {
    while !context.stopping() {
        if let Some(turn) = READING.try_lock_for(WAIT) {
            return Ok(turn);
        }
    }
    Err(Stopped)
}

impl Source for Stdin {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let mut turn = turn(context)?;
        let reading = turn.get_or_insert_with(Reading::begin);
        reading.take_up(self.codec.is_some());
        let mut out = Out::new(context.name.clone(), context.batch, false);
        let done = self.read_all(context, reading, &mut out);
        if done.is_ok() {
            *turn = None;
        } else if !out.is_empty() {
            // Whole events: the pipeline still takes them if it has room.
            reading.emit(context, out.take()?)?;
        }
        done
    }
}

impl Stdin {
    fn read_all(
        &self,
        context: &mut SourceContext,
        reading: &mut Reading,
        out: &mut Out,
    ) -> Result<(), SourceError> {
        if let Some(refused) = reading.refused.take() {
            reading.emit(context, refused)?;
        }
        // Whole lines may be among it, when the pipeline stopped within a long read.
        if !reading.held.is_empty() {
            self.split(context, reading, End::Open, out)?;
        }
        let mut since: Option<Instant> = None;
        loop {
            if context.stopping() {
                return Err(Stopped.into());
            }
            let linger = since.map(|at| context.batch.linger.saturating_sub(at.elapsed()));
            let start = Instant::now();
            let read = if readable(linger.unwrap_or(WAIT).min(WAIT)).map_err(retry)? {
                read(&mut reading.held)?
            } else {
                None
            };
            let end = if read == Some(0) { End::Event } else { End::Open };
            if let Some(bytes) = read {
                context.metrics.add(Metric::SourceReadNs, elapsed_ns(start));
                context.metrics.add(Metric::SourceBytesRead, bytes as u64);
                reading.place.time = now_ns();
                let start = Instant::now();
                if self.split(context, reading, end, out)? {
                    since = None;
                }
                context.metrics.add(Metric::SourceSplitNs, elapsed_ns(start));
            }
            if !out.is_empty() && since.is_none() {
                since = Some(Instant::now());
            }
            if !out.is_empty()
                && (end == End::Event || since.is_some_and(|at| at.elapsed() >= context.batch.linger))
            {
                reading.emit(context, out.take()?)?;
                since = None;
            }
            if end == End::Event {
                return Ok(());
            }
        }
    }

    /// Makes events of what is held, and emits full batches. True if there was one.
    fn split(
        &self,
        context: &mut SourceContext,
        reading: &mut Reading,
        end: End,
        out: &mut Out,
    ) -> Result<bool, SourceError> {
        let metrics = context.metrics.clone();
        let splitter = Splitter { max_line: self.max_line, long: self.long, multiline: None, metrics };
        let mut has_emitted = false;
        loop {
            let mut is_done = true;
            let taken = match &self.codec {
                None => splitter.split(&mut reading.state, &reading.held, &reading.place, end, out),
                Some(codec) => {
                    let Place { stream, base, time, .. } = reading.place;
                    let origin = Origin { stream, base, time };
                    let intake = codec.decode(&reading.held, end == End::Event, self.max_line, origin);
                    let taken = intake.consumed;
                    is_done = taken == 0 || taken == reading.held.len();
                    if !out.fits(&intake) {
                        reading.emit(context, out.take()?)?;
                    }
                    out.push_decoded(intake);
                    taken
                }
            };
            reading.place.base += taken as u64;
            reading.held.drain(..taken);
            if !out.is_full() {
                if is_done {
                    return Ok(has_emitted);
                }
                continue;
            }
            reading.emit(context, out.take()?)?;
            has_emitted = true;
        }
    }
}

/// A number that no other process has: the standard library's random keys over the time.
fn new_stream() -> u64 {
    RandomState::new().hash_one(now_ns())
}

fn retry(error: impl Into<io::Error>) -> SourceError {
    SourceError::Retry(format!("standard input: {}", error.into()))
}

/// True if a read would not wait (something is there, or the end).
fn readable(wait: Duration) -> rustix::io::Result<bool> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.min(WAIT).subsec_nanos()) };
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Appends what is there. `None`: nothing, although the poll said so.
fn read(held: &mut Vec<u8>) -> Result<Option<usize>, SourceError> {
    let before = held.len();
    held.resize(before + CHUNK_BYTES, 0);
    let into = held.get_mut(before..).unwrap_or_default();
    let read = rustix::io::read(io::stdin(), into);
    held.truncate(before + read.unwrap_or(0));
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(retry(error)),
    }
}
