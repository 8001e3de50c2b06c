//! Standard input: lines until its end.
//!
//! A pipe cannot be read again: what was read from it and not yet committed when the agent is killed
//! is lost. That is the pipe's nature; write to a file and tail it where this matters. For the same reason
//! the stream is a new one at each run, and no position is kept.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::time::{Duration, Instant};

use flumen_pipeline::codec::Origin;
use flumen_pipeline::{
    BuildError, ComponentSpec, DecoderLink, Metric, OptionKind, OptionSpec, Options, Source, SourceContext,
    SourceError, Stopped,
};
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

impl Source for Stdin {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let metrics = context.metrics.clone();
        let splitter = Splitter { max_line: self.max_line, long: self.long, multiline: None, metrics };
        let mut out = Out::new(context.name.clone(), context.batch, false);
        let mut state = State::default();
        let mut place = Place { stream: new_stream(), base: 0, first: None, time: now_ns() };
        let mut held: Vec<u8> = Vec::new();
        let mut since: Option<Instant> = None;
        loop {
            if context.stopping() {
                return Err(Stopped.into());
            }
            let linger = since.map(|at| context.batch.linger.saturating_sub(at.elapsed()));
            let start = Instant::now();
            let read = if readable(linger.unwrap_or(WAIT).min(WAIT)).map_err(retry)? {
                read(&mut held)?
            } else {
                None
            };
            let end = if read == Some(0) { End::Event } else { End::Open };
            if let Some(bytes) = read {
                context.metrics.add(Metric::SourceReadNs, elapsed_ns(start));
                context.metrics.add(Metric::SourceBytesRead, bytes as u64);
                place.time = now_ns();
                let start = Instant::now();
                loop {
                    let mut is_done = true;
                    let taken = match &self.codec {
                        None => splitter.split(&mut state, &held, &place, end, &mut out),
                        Some(codec) => {
                            let origin = Origin { stream: place.stream, base: place.base, time: place.time };
                            let intake = codec.decode(&held, end == End::Event, self.max_line, origin);
                            let taken = intake.consumed;
                            is_done = taken == 0 || taken == held.len();
                            if !out.fits(&intake) {
                                context.emit(out.take()?)?;
                            }
                            out.push_decoded(intake);
                            taken
                        }
                    };
                    place.base += taken as u64;
                    held.drain(..taken);
                    if !out.is_full() {
                        if is_done {
                            break;
                        }
                        continue;
                    }
                    context.emit(out.take()?)?;
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
                context.emit(out.take()?)?;
                since = None;
            }
            if end == End::Event {
                return Ok(());
            }
        }
    }
}

/// A number that no other run has: the standard library's random keys over the time.
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
