//! The caller's side of a commit: encode and checksum, wait for room, take a number in the queue.
//!
//! Encoding, compression, encryption and checksums run in the calling thread, outside the lock, so several sources use several
//! cores; the committer only adds a head of some bytes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow_buffer::Buffer;
use flumen_event::Batch;
use flumen_event::layout::{Encoded, Encoder};
use parking_lot::{Mutex, MutexGuard};

use super::format::commit::{CommitHead, PutChannel, PutHead, encode_lists};
use super::format::packed::{self, Compression};
use super::format::sealed::Piece;
use super::state::{Position, Queued, Shared, State};
use super::ticket::{FileTicket, Owed, TicketCell};
use super::writer::Writer;
use crate::api::{Ack, Commit, CommitError, Ticket};
use crate::limits;
use crate::state::StateWrites;

/// What a small batch's layout takes beside its columns, about.
const LAYOUT_BYTES: usize = 256;

/// A commit that is encoded but has no numbers yet.
struct Prepared {
    head: CommitHead,
    data: Encoded,
    data_crc: u32,
    batches: Vec<Batch>,
    positions: Vec<Position>,
    plugin_state: Arc<[StateWrites]>,
    acks: Vec<Ack>,
    targets: Vec<usize>,
}

/// Nanoseconds that callers spent encoding.
#[derive(Default)]
pub struct EncodeTime(AtomicU64);

impl EncodeTime {
    pub fn total_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// `Journal::commit`.
pub fn commit(
    shared: &Shared,
    spent: &EncodeTime,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<Box<dyn Ticket>, CommitError> {
    let ticket = take(shared, spent, commit, deadline)?;
    shared.work.notify_one();
    Ok(Box::new(ticket))
}

/// `Journal::commit_and_wait`.
pub fn commit_and_wait(
    shared: &Shared,
    spent: &EncodeTime,
    writer: Option<&Mutex<Writer>>,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<u64, CommitError> {
    let ticket = take(shared, spent, commit, deadline)?;
    // Somebody who writes does not see what comes after it gathered: then the committer is the next.
    if let Some(mut writer) = writer.and_then(Mutex::try_lock) {
        writer.lead();
    }
    let outcome = ticket.wait(Some(Duration::ZERO)).or_else(|| {
        shared.work.notify_one();
        ticket.wait(None)
    });
    outcome.unwrap_or(Err(CommitError::Closing))
}

/// Everything but waking whoever writes.
fn take(
    shared: &Shared,
    spent: &EncodeTime,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<FileTicket, CommitError> {
    let started = shared.clock.now();
    let prepared = prepare(shared, commit)?;
    let took = shared.clock.now().saturating_duration_since(started);
    spent.0.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);

    let has_acks = !prepared.acks.is_empty();
    let ticket = if prepared.head.has_state {
        // Both locks together give one order to the commits and to the view; neither is held while it waits for room.
        loop {
            drop(with_room(shared, &prepared.targets, deadline)?);
            let mut view = shared.view.view().lock();
            let mut state = shared.state.lock();
            state.check_open()?;
            if state.full_channel(&prepared.targets).is_none() {
                let now_ns = prepared.head.time_ns;
                let writes = prepared.plugin_state.clone();
                let ticket = hand_in(&mut state, prepared);
                drop(state);
                writes.iter().for_each(|writes| view.apply(writes, now_ns, &mut |_| {}));
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
    let Prepared { mut head, data, data_crc, batches, positions, plugin_state, acks, .. } = prepared;
    number(state, &mut head, &positions, &acks);
    let ticket = Arc::new(TicketCell::new(state.bell.clone()));
    let order = state.next_order;
    state.next_order += 1;
    let owed = Owed::new(ticket.clone());
    let queued = Queued { order, head, data, data_crc, batches, positions, plugin_state, ticket: owed };
    state.queue.push_back(queued);
    FileTicket(ticket)
}

fn prepare(shared: &Shared, commit: Commit) -> Result<Prepared, CommitError> {
    let mut lists = Vec::new();
    encode_lists(&commit.positions, &commit.state, &mut lists);
    let lists_bytes = lists.len() as u32;
    let mut targets = BTreeSet::new();
    let mut puts = Vec::with_capacity(commit.puts.len());
    let mut batches = Vec::with_capacity(commit.puts.len());
    let estimate: usize = lists.len() + commit.puts.iter().map(|put| put.batch.bytes()).sum::<usize>();
    if estimate as u64 > limits::COMMIT_BYTES_MAX {
        return Err(too_large(estimate));
    }
    let mut data = Encoder::with_capacity(estimate.min(limits::SMALL_COMMIT_BYTES) + LAYOUT_BYTES);
    data.bytes(&lists);
    data.pad();
    for put in commit.puts {
        let channels: BTreeSet<usize> = put.channels.iter().map(|id| usize::from(id.0)).collect();
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
    let data_crc = data.parts().iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
    let head = CommitHead {
        puts,
        acks: Vec::new(),
        time_ns: shared.clock.wall_ns(),
        lists_bytes,
        has_state: commit.state.iter().any(|writes| !writes.is_empty()),
    };
    let positions = commit.positions.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let targets = targets.into_iter().collect();
    let (plugin_state, acks) = (commit.state.into(), commit.acks);
    Ok(Prepared { head, data, data_crc, batches, positions, plugin_state, acks, targets })
}

fn too_large(bytes: usize) -> CommitError {
    CommitError::TooLarge { bytes: bytes as u64, limit: limits::COMMIT_BYTES_MAX }
}

fn prepare_put(
    shared: &Shared,
    channels: &BTreeSet<usize>,
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
    let parts = data.parts().iter().map(|part| part.as_slice());
    let sealed = sealer.seal(Piece::Frame, data.len(), parts);
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
