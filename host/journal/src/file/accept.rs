//! The caller's side of a commit: encode and checksum, wait for room, take a number in the queue.
//!
//! Encoding, compression, encryption and checksums run in the calling thread, outside the lock, so several sources use several
//! cores; the committer only adds a head of some bytes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow_buffer::Buffer;
use flumen_event::Batch;
use flumen_event::layout::{Encoded, Encoder};
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::format::commit::{CommitHead, PutChannel, PutHead, encode_lists};
use super::format::packed::{self, Compression};
use super::format::sealed::Piece;
use super::state::{Position, Queued, Shared, State};
use super::ticket::{FileTicket, Owed};
use super::writer::Writer;
use crate::api::{Ack, Commit, CommitError, Ticket};
use crate::limits;

/// What a small batch's layout takes beside its columns, about.
const LAYOUT_BYTES: usize = 256;

/// Channels, each once, in order.
type Channels = SmallVec<[usize; 4]>;

/// A commit that is encoded but has no numbers yet, and no place in the queue.
struct Prepared {
    queued: Box<Queued>,
    acks: Vec<Ack>,
    targets: Channels,
    took: Duration,
}

/// `Journal::commit`.
pub fn commit(
    shared: &Shared,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<Box<dyn Ticket>, CommitError> {
    let ticket = take(shared, commit, deadline)?;
    shared.work.notify_one();
    Ok(Box::new(ticket))
}

/// `Journal::commit_and_wait`.
pub fn commit_and_wait(
    shared: &Shared,
    writer: Option<&Mutex<Writer>>,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<u64, CommitError> {
    let ticket = take(shared, commit, deadline)?;
    // Somebody who writes does not see what comes after it gathered: then the committer is the next.
    if let Some(writer) = writer.and_then(Mutex::try_lock) {
        Writer::lead(writer);
    }
    let outcome = ticket.0.outcome().or_else(|| {
        shared.work.notify_one();
        ticket.wait(None)
    });
    outcome.unwrap_or(Err(CommitError::Closing))
}

/// Everything but waking whoever writes.
fn take(shared: &Shared, commit: Commit, deadline: Option<Instant>) -> Result<FileTicket, CommitError> {
    let prepared = prepare(shared, commit)?;
    let has_acks = !prepared.acks.is_empty();
    let ticket = if prepared.queued.head.has_state {
        // Both locks together give one order to the commits and to the view; neither is held while it waits for room.
        loop {
            drop(with_room(shared, &prepared.targets, deadline)?);
            let mut view = shared.view.view().lock();
            let mut state = shared.state.lock();
            state.check_open()?;
            if state.full_channel(&prepared.targets).is_none() {
                let now_ns = prepared.queued.head.time_ns;
                let writes = prepared.queued.plugin_state.clone();
                let ticket = hand_in(&mut state, prepared);
                drop(state);
                let writes = writes.iter().flat_map(|writes| writes.iter());
                writes.for_each(|writes| view.apply(writes, now_ns, &mut |_| {}));
                break ticket;
            }
        }
    } else {
        let mut state = with_room(shared, &prepared.targets, deadline)?;
        hand_in(&mut state, prepared)
    };
    if has_acks {
        shared.space.notify_all();
    }
    Ok(ticket)
}

/// Waits until the channels have room.
fn with_room<'a>(
    shared: &'a Shared,
    targets: &[usize],
    deadline: Option<Instant>,
) -> Result<MutexGuard<'a, State>, CommitError> {
    let mut state = shared.state.lock();
    loop {
        state.check_open()?;
        let Some(full) = state.full_channel(targets) else { return Ok(state) };
        match deadline {
            None => shared.space.wait(&mut state),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(shared.clock.now());
                if left.is_zero() {
                    return Err(full);
                }
                shared.space.wait_for(&mut state, left);
            }
        }
    }
}

/// Gives numbers and a place in the queue: from here on it is handed in.
fn hand_in(state: &mut State, prepared: Prepared) -> FileTicket {
    let Prepared { mut queued, acks, took, .. } = prepared;
    number(state, &mut queued.head, &queued.positions, &acks);
    state.status.encode_ns += took.as_nanos() as u64;
    queued.order = state.next_order;
    state.next_order += 1;
    let ticket = queued.ticket.cell().clone();
    ticket.join(&state.bell);
    state.queue.push_back(queued);
    FileTicket(ticket)
}

fn prepare(shared: &Shared, commit: Commit) -> Result<Prepared, CommitError> {
    let started = shared.clock.now();
    let of_puts = commit.puts.iter().map(|put| put.batch.bytes()).sum::<usize>();
    let mut data = Encoder::with_capacity(of_puts.min(limits::SMALL_COMMIT_BYTES) + LAYOUT_BYTES);
    data.append(|bytes| encode_lists(&commit.positions, &commit.state, bytes));
    let lists_bytes = data.len();
    if (lists_bytes + of_puts) as u64 > limits::COMMIT_BYTES_MAX {
        return Err(too_large(lists_bytes + of_puts));
    }
    data.pad();
    let mut targets = Channels::new();
    let (mut puts, mut batches) = (SmallVec::new(), SmallVec::new());
    for put in commit.puts {
        let channels = each_once(put.channels.iter().map(|id| usize::from(id.0)).collect());
        if put.batch.is_empty() || channels.is_empty() {
            continue;
        }
        puts.push(prepare_put(shared, &channels, &put.batch, &mut data)?);
        targets.extend(channels);
        batches.push(put.batch);
    }
    for ack in &commit.acks {
        let known = {
            let state = shared.state.lock();
            let channel = state.registers.channels.get(usize::from(ack.channel.0));
            let reader = channel.and_then(|channel| channel.readers.get(usize::from(ack.reader.0)));
            reader.is_some_and(|reader| reader.live)
        };
        if !known {
            return Err(CommitError::Failed(format!("the plan has no such reader: {ack:?}").into()));
        }
    }
    let data = seal(shared, data.finish())?;
    if data.len() as u64 > limits::COMMIT_BYTES_MAX {
        return Err(too_large(data.len()));
    }
    let data_crc = data.parts().fold(0, crc32c::crc32c_append);
    let head = CommitHead {
        puts,
        acks: Vec::new(),
        time_ns: shared.clock.wall_ns(),
        lists_bytes: lists_bytes as u32,
        has_state: commit.state.iter().any(|writes| !writes.is_empty()),
    };
    let positions = commit.positions.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let plugin_state = (!commit.state.is_empty()).then(|| commit.state.into());
    let ticket = Owed::default();
    let queued = Queued { order: 0, head, data, data_crc, batches, positions, plugin_state, ticket };
    let took = shared.clock.now().saturating_duration_since(started);
    Ok(Prepared { queued: Box::new(queued), acks: commit.acks, targets: each_once(targets), took })
}

fn each_once(mut channels: Channels) -> Channels {
    channels.sort_unstable();
    channels.dedup();
    channels
}

fn too_large(bytes: usize) -> CommitError {
    CommitError::TooLarge { bytes: bytes as u64, limit: limits::COMMIT_BYTES_MAX }
}

fn prepare_put(
    shared: &Shared,
    channels: &[usize],
    batch: &Batch,
    data: &mut Encoder,
) -> Result<PutHead, CommitError> {
    let mut kept = false;
    for index in channels {
        let is_kept = shared.kept.get(*index).map(|is_kept| is_kept.load(Ordering::Acquire));
        let is_kept =
            is_kept.ok_or_else(|| CommitError::Failed(format!("the plan has no channel {index}").into()))?;
        kept |= is_kept;
    }
    let data_offset = data.len() as u64;
    let compression =
        if kept { packed::append(shared.config.compression, batch, data) } else { Compression::None };
    let part = |index: &usize| PutChannel { channel: *index as u32, first: 0, bytes_before: 0 };
    Ok(PutHead {
        channels: channels.iter().map(part).collect(),
        rows: batch.rows() as u32,
        data_offset,
        data_bytes: data.len() as u64 - data_offset,
        compression,
        bytes: batch.bytes() as u64,
    })
}

/// Encrypts the data, if they are to be.
fn seal(shared: &Shared, data: Encoded) -> Result<Encoded, CommitError> {
    let Some(sealer) = &shared.sealer else { return Ok(data) };
    let sealed = sealer.seal(Piece::Frame, data.len(), data.parts());
    let sealed = sealed.map_err(|error| CommitError::Failed(error.to_string().into()))?;
    let mut out = Encoder::default();
    out.buffer(Buffer::from_vec(sealed));
    Ok(out.finish())
}

/// Gives event numbers and takes everything over into the registers.
fn number(state: &mut State, head: &mut CommitHead, positions: &[Position], acks: &[Ack]) {
    head.acks = acks.iter().filter_map(|ack| state.acknowledge(*ack)).collect();
    for put in &mut head.puts {
        for part in &mut put.channels {
            if let Some(register) = state.registers.channels.get_mut(part.channel as usize) {
                part.first = register.head;
                part.bytes_before = register.head_bytes;
                register.head += u64::from(put.rows);
                register.head_bytes += put.bytes;
            }
        }
    }
    for (key, value) in positions {
        state.registers.set_position(key, value);
    }
}
