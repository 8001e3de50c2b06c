//! A destination that decides: what is put on record before it stores a mark in the same step as the events.
//!
//! Such a destination (Kafka) is not cut back. So before its step everything that the acknowledgement will change is made durable as a
//! *promise*, the value of one position, and the mark that the destination stores is the promise's number. After a crash the mark that is
//! found there tells: this number, and the promise is kept, in one commit; another, and it never was. Between opening and that answer
//! nobody is told a position that the promise would change, and nothing is taken from sources.
//!
//! ```text
//! source-backed/id              16 bytes, which name this journal in marks
//! source-backed/promise/READER  u8 1, u8 kept, u64 number; if it is not kept:
//!   u32 positions, per position: blob key, blob value
//!   u32 writes of plugins, each as in `StateWrites::encode`
//!   u32 puts, per put: u32 channels, per channel: blob name; blob batch (`flumen_event::layout`)
//! mark                          u8 1, 16 bytes id, u64 number
//! ```
//! One reader promises; with two, a crash between their destinations' steps would leave one ahead.

use std::sync::Arc;
use std::time::Duration;

use arrow_buffer::Buffer;
use flumen_event::layout;

use super::{Shared, commit};
use crate::api::{ChannelId, Commit, CommitError, Journal, Promise, Put, Ticket};
use crate::clock::Clock;
use crate::faults::{self, STORED_MARK_PLACE};
use crate::file::format::wire::{Fields, put_blob};
use crate::file::{FileJournal, OpenError};
use crate::state::StateWrites;

const VERSION: u8 = 1;
const ID_KEY: &[u8] = b"source-backed/id";
const PREFIX: &[u8] = b"source-backed/promise/";
/// What begins the keys of everything here.
pub(super) const OWN: &[u8] = b"source-backed/";

/// A promise that was made by this process.
#[derive(Clone)]
pub(super) struct Open {
    pub seat: usize,
    pub cursor: u64,
    pub number: u64,
    /// What its sink put into quarantine.
    pub puts: Vec<Put>,
}

/// A promise of an earlier process, of which only the destination knows.
#[derive(Clone)]
pub(super) struct Undecided {
    pub reader: String,
    pub number: u64,
    pub commit: Arc<Commit>,
}

impl Undecided {
    pub fn changes(&self, prefix: &[u8]) -> bool {
        self.commit.positions.iter().any(|(key, _)| key.starts_with(prefix))
    }
}

/// What a journal knows of promises when it is opened.
pub(super) struct Found {
    pub id: [u8; 16],
    /// Of the next promise: none is ever used twice.
    pub next: u64,
    pub undecided: Option<Undecided>,
}

/// Reads what an earlier process promised.
pub(super) fn find(file: &FileJournal, readers: &[String], clock: &dyn Clock) -> Result<Found, String> {
    let id = file.position(ID_KEY).map(|id| id.as_slice().try_into());
    let id = match id {
        Some(id) => id.map_err(|_| {
            "its id is not readable: written by a newer release of Flumen; start that one".to_owned()
        })?,
        None => crate::memory::new_id(clock),
    };
    let mut found = Found { id, next: 1, undecided: None };
    for (key, value) in file.positions(PREFIX) {
        let reader = String::from_utf8_lossy(key.strip_prefix(PREFIX).unwrap_or_default()).into_owned();
        let unreadable = || {
            format!(
                "the promise of {reader} is not readable: written by a newer release of Flumen; start that one"
            )
        };
        let (number, commit) = decode(&value, file).ok_or_else(unreadable)?;
        found.next = found.next.max(number + 1);
        // Whose destination is not asked any more: what it holds does not matter to the others.
        if let Some(commit) = commit.filter(|_| readers.contains(&reader)) {
            found.undecided = Some(Undecided { reader, number, commit: Arc::new(commit) });
        }
    }
    Ok(found)
}

/// The id, from the first opening on.
pub(super) fn keep_id(file: &FileJournal, id: [u8; 16]) -> Result<(), OpenError> {
    if file.position(ID_KEY).is_some() {
        return Ok(());
    }
    let commit = Commit { positions: vec![(ID_KEY.to_vec(), id.to_vec())], ..Commit::default() };
    file.commit(commit, None).map(|_| ()).map_err(|error| OpenError::Io {
        what: "writing the journal's id".into(),
        error: std::io::Error::other(error.to_string()),
    })
}

fn key(reader: &str) -> Vec<u8> {
    [PREFIX, reader.as_bytes()].concat()
}

fn head(number: u64, is_kept: bool) -> Vec<u8> {
    let mut out = vec![VERSION, u8::from(is_kept)];
    out.extend(number.to_le_bytes());
    out
}

/// The position that says of a promise that it is kept.
pub(super) fn kept(reader: &str, number: u64) -> (Vec<u8>, Vec<u8>) {
    (key(reader), head(number, true))
}

fn mark(id: [u8; 16], number: u64) -> Vec<u8> {
    let mut mark = vec![VERSION];
    mark.extend(id);
    mark.extend(number.to_le_bytes());
    mark
}

/// The number in a mark of this journal.
pub(super) fn number_in(mark: &[u8], id: [u8; 16]) -> Option<u64> {
    let mut fields = Fields::new(mark);
    let is_own = fields.u8()? == VERSION && fields.bytes(16)? == id;
    let number = fields.u64()?;
    (is_own && fields.is_empty()).then_some(number)
}

fn encode(number: u64, commit: &Commit, name_of: impl Fn(ChannelId) -> String) -> Vec<u8> {
    let mut out = head(number, false);
    out.extend((commit.positions.len() as u32).to_le_bytes());
    for (key, value) in &commit.positions {
        put_blob(&mut out, key);
        put_blob(&mut out, value);
    }
    out.extend((commit.state.len() as u32).to_le_bytes());
    commit.state.iter().for_each(|writes| writes.encode(&mut out));
    out.extend((commit.puts.len() as u32).to_le_bytes());
    for put in &commit.puts {
        out.extend((put.channels.len() as u32).to_le_bytes());
        put.channels.iter().for_each(|channel| put_blob(&mut out, name_of(*channel).as_bytes()));
        put_blob(&mut out, &layout::encode(&put.batch).to_vec());
    }
    out
}

/// The number, and what is promised if it is not known to be kept.
fn decode(value: &[u8], file: &FileJournal) -> Option<(u64, Option<Commit>)> {
    let mut fields = Fields::new(value);
    if fields.u8()? != VERSION {
        return None;
    }
    let is_kept = fields.u8()? == 1;
    let number = fields.u64()?;
    if is_kept {
        return fields.is_empty().then_some((number, None));
    }
    let mut commit = Commit::default();
    for _ in 0..fields.count(8)? {
        commit.positions.push((fields.blob()?.to_vec(), fields.blob()?.to_vec()));
    }
    for _ in 0..fields.count(12)? {
        commit.state.push(StateWrites::decode(&mut fields)?);
    }
    for _ in 0..fields.count(8)? {
        let mut channels = Vec::new();
        for _ in 0..fields.count(4)? {
            channels.push(file.channel(fields.text()?)?);
        }
        let batch = layout::decode(Buffer::from(fields.blob()?)).ok()?;
        commit.puts.push(Put { channels, batch });
    }
    fields.is_empty().then_some((number, Some(commit)))
}

/// [`crate::Reader::promise`].
pub(super) fn promise(
    shared: &Shared,
    seat: usize,
    cursor: u64,
    puts: &[Put],
    wait: Duration,
) -> Result<Option<Promise>, CommitError> {
    let deadline = shared.clock.now() + wait;
    {
        let mut state = shared.state.lock();
        loop {
            state.check_open()?;
            if state.have_acked(cursor, Some(seat)) {
                break;
            }
            let left = deadline.saturating_duration_since(shared.clock.now());
            if left.is_zero() {
                return Ok(None);
            }
            shared.published.wait_for(&mut state, left);
        }
    }
    let _order = shared.order.lock();
    let (number, reader, mut promised) = {
        let mut state = shared.state.lock();
        state.check_open()?;
        let number = state.next_promise;
        state.next_promise += 1;
        let reader = state.seats.get(seat).map(|seat| seat.name.clone()).unwrap_or_default();
        (number, reader, state.gather(cursor))
    };
    promised.puts.extend(puts.iter().cloned());
    let name_of = |channel: ChannelId| {
        let status = shared.file.status().channels;
        status.get(usize::from(channel.0)).map(|channel| channel.name.clone()).unwrap_or_default()
    };
    let record = Commit {
        positions: vec![(key(&reader), encode(number, &promised, name_of))],
        acks: shared.stand_in.into_iter().collect(),
        ..Commit::default()
    };
    let taken = shared.file.commit(record, Some(shared.clock.now()));
    let ticket = taken.inspect_err(|_| shared.look())?;
    shared.state.lock().promise = Some(Open { seat, cursor, number, puts: puts.to_vec() });
    Ok(Some(Promise { mark: mark(shared.id, number), ticket }))
}

/// What the destination said of the promise of an earlier process.
pub(super) fn decide(shared: &Shared, is_kept: bool) -> Result<(), CommitError> {
    loop {
        let order = shared.order.lock();
        let undecided = shared.state.lock().undecided.clone();
        let Some(Undecided { reader, number, commit }) = undecided else { return Ok(()) };
        if is_kept {
            let mut file = Commit::clone(&commit);
            file.positions.push(kept(&reader, number));
            file.acks.extend(shared.stand_in);
            let ticket: Box<dyn Ticket> = match shared.file.commit(file, Some(shared.clock.now())) {
                Ok(ticket) => ticket,
                Err(CommitError::Full { .. }) => {
                    drop(order);
                    std::thread::sleep(commit::FULL_RETRY);
                    shared.state.lock().check_open()?;
                    continue;
                }
                Err(error) => {
                    shared.look();
                    return Err(error);
                }
            };
            // It has its place: whoever acknowledges does not wait for its sync.
            drop(order);
            let written = ticket.wait(None).unwrap_or(Err(CommitError::Closing));
            written.inspect_err(|_| shared.look())?;
            faults::passed(STORED_MARK_PLACE, "promise-kept");
            let now_ns = shared.clock.wall_ns();
            commit.state.iter().for_each(|writes| shared.view.apply(writes, now_ns));
        }
        tracing::info!(%reader, is_kept, "the destination says whether it has the last transaction");
        shared.state.lock().undecided = None;
        shared.published.notify_all();
        shared.space.notify_all();
        return Ok(());
    }
}
