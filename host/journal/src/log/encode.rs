//! The caller's side of a commit: encode, wait for room, take a number in the queue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use arrow_buffer::Buffer;
use flumen_event::layout::{Encoded, Encoder};
use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::CommitCell;
use super::commit::encode_names;
use super::shared::{Queued, Shared, State};
use crate::api::{Ack, Commit, CommitError, Put, Ticket};
use crate::file::format::commit::{AckRecord, CommitHead, PutChannel, PutHead, encode_lists};
use crate::file::format::packed::{self, Compression};
use crate::file::format::sealed::{Piece, Sealer};
use crate::limits;
use crate::state::StateWrites;

/// The name under which it is told that too much waits for the log. No channel has it: who can do without one does not leave it out
/// for this.
const QUEUE: &str = "(the queue to the log)";

/// A commit that is encoded and has no numbers yet.
pub(super) struct Prepared {
    head: CommitHead,
    data: Encoded,
    /// The channels that the indexes in the head mean.
    channels: Vec<usize>,
    /// With the names' indexes of channel and reader.
    acks: Vec<(Ack, u16, u16)>,
    positions: Vec<(Vec<u8>, Vec<u8>)>,
    state: Vec<StateWrites>,
}

/// `Journal::commit`.
pub(super) fn commit(
    shared: &Shared,
    commit: Commit,
    deadline: Option<Instant>,
) -> Result<Box<dyn Ticket>, CommitError> {
    let sealer = wait_opened(shared, deadline)?;
    let started = shared.clock.now();
    let prepared = prepare(shared, sealer.as_deref(), commit)?;
    let took = shared.clock.now().saturating_duration_since(started);
    shared.encode_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    let has_acks = !prepared.acks.is_empty();
    let cell = take(shared, prepared, deadline)?;
    shared.work.notify_one();
    if has_acks {
        shared.changed.notify_all();
    }
    Ok(Box::new(cell))
}

/// Gives it a place in the queue.
fn take(
    shared: &Shared,
    prepared: Prepared,
    deadline: Option<Instant>,
) -> Result<Arc<CommitCell>, CommitError> {
    let targets: Vec<usize> = targets(&prepared);
    if !prepared.head.has_state {
        let mut state = with_room(shared, &targets, deadline)?;
        return Ok(hand_in(&mut state, prepared));
    }
    // Both locks together give one order to the commits and to the view; neither is held while it waits for room.
    loop {
        drop(with_room(shared, &targets, deadline)?);
        let mut view = shared.view.view().lock();
        let mut state = shared.state.lock();
        state.check_open()?;
        if full(&state, &targets).is_none() {
            let now_ns = prepared.head.time_ns;
            prepared.state.iter().for_each(|writes| view.apply(writes, now_ns, &mut |_| {}));
            return Ok(hand_in(&mut state, prepared));
        }
    }
}

/// Channels that events go to.
fn targets(prepared: &Prepared) -> Vec<usize> {
    let parts = prepared.head.puts.iter().flat_map(|put| &put.channels);
    let targets: BTreeSet<usize> =
        parts.filter_map(|part| prepared.channels.get(part.channel as usize)).copied().collect();
    targets.into_iter().collect()
}

/// What its data are encrypted with, once the log was read.
fn wait_opened(shared: &Shared, deadline: Option<Instant>) -> Result<Option<Arc<Sealer>>, CommitError> {
    let mut state = shared.state.lock();
    loop {
        state.check_open()?;
        if let Some(opened) = &state.opened {
            return Ok(opened.sealer.clone());
        }
        wait(shared, &mut state, deadline, || CommitError::Full {
            channel: QUEUE.into(),
            events: 0,
            bytes: 0,
        })?;
    }
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
        let Some(error) = full(&state, targets) else { return Ok(state) };
        wait(shared, &mut state, deadline, || error)?;
    }
}

/// Why there is no room for a put to these channels.
fn full(state: &State, targets: &[usize]) -> Option<CommitError> {
    if targets.is_empty() {
        return None;
    }
    state.full_channel(targets).or_else(|| {
        let puts = state.queue.iter().flat_map(|queued| &queued.head.puts);
        let bytes = state.queue_bytes;
        (bytes >= limits::LOG_QUEUE_BYTES).then(|| CommitError::Full {
            channel: QUEUE.into(),
            events: puts.map(|put| u64::from(put.rows)).sum(),
            bytes: bytes as u64,
        })
    })
}

fn wait(
    shared: &Shared,
    state: &mut MutexGuard<'_, State>,
    deadline: Option<Instant>,
    error: impl FnOnce() -> CommitError,
) -> Result<(), CommitError> {
    match deadline {
        None => shared.changed.wait(state),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(shared.clock.now());
            if left.is_zero() {
                return Err(error());
            }
            shared.changed.wait_for(state, left);
        }
    }
    Ok(())
}

/// Encodes a commit.
pub(super) fn prepare(
    shared: &Shared,
    sealer: Option<&Sealer>,
    commit: Commit,
) -> Result<Prepared, CommitError> {
    let estimate: usize = commit.puts.iter().map(|put| put.batch.bytes()).sum();
    if estimate as u64 > limits::COMMIT_BYTES_MAX {
        return Err(too_large(estimate));
    }
    let puts: Vec<Put> = commit.puts.into_iter().filter(|put| !put.batch.is_empty()).collect();
    let mut names = Names { shared, channels: Vec::new(), names: Vec::new() };
    for channel in puts.iter().flat_map(|put| &put.channels) {
        names.channel(usize::from(channel.0))?;
    }
    let mut acks = Vec::with_capacity(commit.acks.len());
    for ack in commit.acks {
        acks.push(names.reader(ack)?);
    }
    let Names { channels, names, .. } = names;
    let mut lists = Vec::new();
    encode_names(&names, &mut lists);
    encode_lists(&commit.positions, &commit.state, &mut lists);
    let lists_bytes = u32::try_from(lists.len()).map_err(|_| too_large(lists.len()))?;
    let mut data = Encoder::with_capacity(lists.len());
    data.bytes(&lists);
    data.pad();
    let puts = puts.iter().filter_map(|put| put_head(shared, &channels, put, &mut data)).collect();
    let data = seal(sealer, data.finish())?;
    if data.len() as u64 > limits::COMMIT_BYTES_MAX {
        return Err(too_large(data.len()));
    }
    let head = CommitHead {
        puts,
        acks: Vec::new(),
        time_ns: shared.clock.wall_ns(),
        lists_bytes,
        has_state: commit.state.iter().any(|writes| !writes.is_empty()),
    };
    Ok(Prepared { head, data, channels, acks, positions: commit.positions, state: commit.state })
}

fn too_large(bytes: usize) -> CommitError {
    CommitError::TooLarge { bytes: bytes as u64, limit: limits::COMMIT_BYTES_MAX }
}

/// The names in a commit: its channels come first.
struct Names<'a> {
    shared: &'a Shared,
    channels: Vec<usize>,
    names: Vec<Arc<str>>,
}

impl Names<'_> {
    fn channel(&mut self, channel: usize) -> Result<(), CommitError> {
        if self.channels.contains(&channel) {
            return Ok(());
        }
        let spec = self.shared.config.channels.get(channel);
        let unknown = || CommitError::Failed(format!("the plan has no channel {channel}").into());
        let name = spec.ok_or_else(unknown)?.name.as_str().into();
        self.channels.push(channel);
        self.names.push(name);
        Ok(())
    }

    /// An acknowledgement, and the indexes of its names.
    fn reader(&mut self, ack: Ack) -> Result<(Ack, u16, u16), CommitError> {
        let unknown = || CommitError::Failed(format!("the plan has no such reader: {ack:?}").into());
        let spec = self.shared.config.channels.get(usize::from(ack.channel.0));
        let reader = spec.and_then(|spec| spec.readers.get(usize::from(ack.reader.0)));
        let (spec, reader) = spec.zip(reader).ok_or_else(unknown)?;
        let channel = self.index(&spec.name)?;
        Ok((ack, channel, self.index(reader)?))
    }

    fn index(&mut self, name: &str) -> Result<u16, CommitError> {
        let at = self.names.iter().position(|known| &**known == name).unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        });
        u16::try_from(at).map_err(|_| CommitError::Failed("a commit with too many names".into()))
    }
}

/// A put, whose batch goes to the data; `None`: it is for no channel.
fn put_head(shared: &Shared, channels: &[usize], put: &Put, data: &mut Encoder) -> Option<PutHead> {
    let own: BTreeSet<usize> = put.channels.iter().map(|id| usize::from(id.0)).collect();
    let part = |channel: &usize| {
        let index = channels.iter().position(|known| known == channel)?;
        Some(PutChannel { channel: index as u32, first: 0, bytes_before: 0 })
    };
    let parts: SmallVec<[PutChannel; 1]> = own.iter().filter_map(part).collect();
    if parts.is_empty() {
        return None;
    }
    let is_read = |channel: &usize| {
        shared.config.channels.get(*channel).is_some_and(|channel| !channel.readers.is_empty())
    };
    let data_offset = data.len() as u64;
    let compression = match own.iter().any(is_read) {
        true => packed::append(shared.config.compression, &put.batch, data),
        false => Compression::None,
    };
    Some(PutHead {
        channels: parts,
        rows: put.batch.rows() as u32,
        data_offset,
        data_bytes: data.len() as u64 - data_offset,
        compression,
        bytes: put.batch.bytes() as u64,
    })
}

/// Encrypts the data, if they are to be.
fn seal(sealer: Option<&Sealer>, data: Encoded) -> Result<Encoded, CommitError> {
    let Some(sealer) = sealer else { return Ok(data) };
    let sealed = sealer.seal(Piece::Frame, data.len(), data.parts());
    let sealed = sealed.map_err(|error| CommitError::Failed(error.to_string().into()))?;
    let mut out = Encoder::default();
    out.buffer(Buffer::from_vec(sealed));
    Ok(out.finish())
}

/// Gives event numbers and a place in the queue: from here on it is handed in.
pub(super) fn hand_in(state: &mut State, prepared: Prepared) -> Arc<CommitCell> {
    let Prepared { mut head, data, channels, acks, positions, .. } = prepared;
    for (ack, channel, reader) in acks {
        if let Some(record) = state.acknowledge(ack) {
            head.acks.push(AckRecord { channel, reader, ..record });
        }
    }
    for put in &mut head.puts {
        for part in &mut put.channels {
            let channel = channels.get(part.channel as usize);
            let register = channel.and_then(|channel| state.registers.channels.get_mut(*channel));
            if let Some(register) = register {
                (part.first, part.bytes_before) = (register.head, register.head_bytes);
                register.head = register.head.saturating_add(u64::from(put.rows));
                register.head_bytes = register.head_bytes.saturating_add(put.bytes);
            }
        }
    }
    for (key, value) in positions {
        state.registers.set_position(&key.into(), &value.into());
    }
    let cell = Arc::new(CommitCell::default());
    let queued = Queued { number: state.next_number, head, data, channels, cell: cell.clone() };
    state.registers.last_commit = queued.number;
    state.next_number = state.next_number.saturating_add(1);
    state.queue_bytes += queued.bytes();
    state.queue.push_back(queued);
    cell
}
