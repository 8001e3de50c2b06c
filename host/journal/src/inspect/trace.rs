//! One batch's life, as far as the files tell it: which commit brought it, from which positions it was read, which channels it entered, and
//! when each reader had acknowledged all of it.
//!
//! A batch is known by the number of its commit. An event leads to it: by its number in a channel, or by its identity.

use flumen_event::Batch;

use super::{CommitView, FrameView, InspectError, Inspector, SegmentView, failed};
use crate::file::format::commit::{PutChannel, PutHead};

/// What a person knows of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The number of its commit.
    Commit(u64),
    /// An event in a channel, by its number.
    Event {
        /// The channel.
        channel: String,
        /// Its number there.
        number: u64,
    },
    /// An event, by its identity.
    Identity {
        /// The stream.
        stream: u64,
        /// The position.
        position: u64,
    },
}

/// A commit's life.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The segment that it is in.
    pub segment: String,
    /// The commit.
    pub commit: CommitView,
    /// Whether a later frame says that it is durable.
    pub is_durable: bool,
    /// What it put.
    pub puts: Vec<PutTrace>,
}

/// Events of one put.
#[derive(Debug, Clone, Default)]
pub struct PutTrace {
    /// How many.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Streams, each with its smallest and largest position here; empty if the events are not readable.
    pub identities: Vec<(u64, u64, u64)>,
    /// The channels that they entered.
    pub channels: Vec<ChannelTrace>,
}

/// A put in one channel.
#[derive(Debug, Clone, Default)]
pub struct ChannelTrace {
    /// The channel.
    pub name: String,
    /// Number of the first event.
    pub first: u64,
    /// Number behind the last one.
    pub end: u64,
    /// What became of it at each reader.
    pub readers: Vec<ReaderTrace>,
}

/// A put at one reader.
#[derive(Debug, Clone, Default)]
pub struct ReaderTrace {
    /// The reader: a sink.
    pub name: String,
    /// Where it is now.
    pub cursor: u64,
    /// The commit that acknowledged all of the put, and when (ns since the Unix epoch).
    pub acknowledged: Option<(u64, i64)>,
    /// Positions that are in that commit: what the destination held then.
    pub positions: Vec<Vec<u8>>,
}

/// Follows a batch; `None`: it is not in the journal (any more).
pub fn trace(inspector: &Inspector, wanted: &Wanted) -> Result<Option<Trace>, InspectError> {
    let segments = inspector.segments()?;
    let mut found: Option<Trace> = None;
    for (at, segment) in segments.iter().enumerate() {
        // Of commits that were written again to a later segment, that one counts.
        let later =
            segments.iter().skip(at + 1).filter_map(|view| view.header.map(|header| header.first_commit));
        let void_from = later.min().unwrap_or(u64::MAX);
        for frame in inspector.frames(segment.id)? {
            let FrameView::Commit(commit) = frame else { continue };
            if commit.commit >= void_from {
                continue;
            }
            match &mut found {
                Some(trace) => follow(trace, segment, &commit),
                None if begins(inspector, segment, &commit, wanted)? => {
                    found = Some(begin(inspector, segment, commit)?);
                }
                None => {}
            }
        }
        if let (Some(trace), Some(next)) = (&mut found, segments.get(at + 1)) {
            trace.is_durable |= next.header.is_some_and(|header| header.first_commit > trace.commit.commit);
        }
    }
    let Some(mut trace) = found else { return Ok(None) };
    let present = inspector.present()?;
    for channel in trace.puts.iter_mut().flat_map(|put| &mut put.channels) {
        let register = present.channels.iter().find(|register| register.name == channel.name);
        for reader in register.into_iter().flat_map(|register| &register.readers).filter(|reader| reader.live)
        {
            match channel.readers.iter_mut().find(|known| known.name == reader.name) {
                Some(known) => known.cursor = reader.cursor,
                None => channel.readers.push(ReaderTrace {
                    name: reader.name.clone(),
                    cursor: reader.cursor,
                    ..ReaderTrace::default()
                }),
            }
        }
        channel.readers.sort_by(|one, other| one.name.cmp(&other.name));
    }
    Ok(Some(trace))
}

fn begins(
    inspector: &Inspector,
    segment: &SegmentView,
    commit: &CommitView,
    wanted: &Wanted,
) -> Result<bool, InspectError> {
    match wanted {
        Wanted::Commit(number) => Ok(commit.commit == *number),
        Wanted::Event { channel, number } => {
            let index = segment.checkpoint.as_ref().and_then(|checkpoint| checkpoint.channel(channel));
            let parts = commit.puts.iter().flat_map(|put| put.channels.iter().map(move |part| (put, part)));
            let is_it = |part: u32, first: u64, rows: u32| {
                Some(part as usize) == index && (first..first + u64::from(rows)).contains(number)
            };
            Ok(parts.into_iter().any(|(put, part)| is_it(part.channel, part.first, put.rows)))
        }
        Wanted::Identity { stream, position } => {
            let batches = batches(inspector, segment, commit)?;
            let all = batches.iter().filter_map(|(_, batch)| batch.as_ref());
            let mut all = all.flat_map(|batch| (0..batch.rows()).filter_map(|row| batch.identity(row)));
            Ok(all.any(|identity| (identity.stream, identity.position) == (*stream, *position)))
        }
    }
}

fn begin(inspector: &Inspector, segment: &SegmentView, commit: CommitView) -> Result<Trace, InspectError> {
    let puts = puts(inspector, segment, &commit)?;
    Ok(Trace { segment: segment.name.clone(), is_durable: commit.durable >= commit.commit, commit, puts })
}

/// The puts of a commit, with their events where those are readable.
fn batches(
    inspector: &Inspector,
    segment: &SegmentView,
    commit: &CommitView,
) -> Result<Vec<(PutHead, Option<Batch>)>, InspectError> {
    let Some((mut file, view)) = inspector.open_segment(segment.id)? else { return Ok(Vec::new()) };
    let frame = file.frame(commit.offset, view.file_bytes, true).map_err(failed(view.name.clone()))?;
    let of_put = |put: &PutHead| (put.clone(), frame.as_ref().and_then(|frame| frame.batch(put)));
    Ok(commit.puts.iter().map(of_put).collect())
}

/// The puts of a commit, with the identities of their events.
fn puts(
    inspector: &Inspector,
    segment: &SegmentView,
    commit: &CommitView,
) -> Result<Vec<PutTrace>, InspectError> {
    let channels = segment.checkpoint.iter().flat_map(|checkpoint| &checkpoint.channels);
    let names: Vec<&str> = channels.map(|channel| channel.name.as_str()).collect();
    let of_put = |(put, batch): (PutHead, Option<Batch>)| {
        let mut identities: Vec<(u64, u64, u64)> = Vec::new();
        for identity in batch.iter().flat_map(|batch| (0..batch.rows()).filter_map(|row| batch.identity(row)))
        {
            match identities.iter_mut().find(|(stream, ..)| *stream == identity.stream) {
                Some((_, first, last)) => {
                    (*first, *last) = ((*first).min(identity.position), (*last).max(identity.position));
                }
                None => identities.push((identity.stream, identity.position, identity.position)),
            }
        }
        let rows = u64::from(put.rows);
        let channel = |part: &PutChannel| ChannelTrace {
            name: names.get(part.channel as usize).map(|name| (*name).to_owned()).unwrap_or_default(),
            first: part.first,
            end: part.first + rows,
            readers: Vec::new(),
        };
        PutTrace { rows, bytes: put.bytes, identities, channels: put.channels.iter().map(channel).collect() }
    };
    Ok(batches(inspector, segment, commit)?.into_iter().map(of_put).collect())
}

/// What a later commit says of it.
fn follow(trace: &mut Trace, segment: &SegmentView, later: &CommitView) {
    trace.is_durable |= later.durable >= trace.commit.commit;
    let Some(checkpoint) = &segment.checkpoint else { return };
    for ack in &later.acks {
        let Some(register) = checkpoint.channels.get(usize::from(ack.channel)) else { continue };
        let Some(reader) = register.readers.get(usize::from(ack.reader)) else { continue };
        for channel in trace.puts.iter_mut().flat_map(|put| &mut put.channels) {
            let is_known = channel.readers.iter().any(|known| known.name == reader.name);
            if channel.name != register.name || ack.cursor < channel.end || is_known {
                continue;
            }
            channel.readers.push(ReaderTrace {
                name: reader.name.clone(),
                cursor: ack.cursor,
                acknowledged: Some((later.commit, later.time_ns)),
                positions: later.positions.iter().map(|(key, _)| key.clone()).collect(),
            });
        }
    }
}
