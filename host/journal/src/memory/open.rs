//! Opening: what the file journal says was put and acknowledged, and what of it is gone.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::channel::{Channel, Held, MemorySpec};
use super::registers::{ID_KEY, ReaderRegister, Region, Registers, Store, channel_key, number, reader_key};
use super::{MemoryJournal, Shared, State};
use crate::api::{Ack, ChannelId, ChannelSpec, Commit, CommitError, Journal, Ticket, Unsaved};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::file::{FileConfig, FileJournal, OpenError};

/// How long an opening waits for its first commit.
const OPEN_WAIT: Duration = Duration::from_secs(1);

/// Of a put that was durable before this opening.
struct Durable;

impl Ticket for Durable {
    fn wait(&self, _: Option<Duration>) -> Option<Result<u64, CommitError>> {
        Some(Ok(0))
    }
}

impl MemoryJournal {
    /// Opens a journal, or makes one in an empty or absent directory. `others`: channels that are in the file alone, behind
    /// those in memory.
    pub fn open(
        config: FileConfig,
        channels: Vec<MemorySpec>,
        others: Vec<ChannelSpec>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<MemoryJournal>, OpenError> {
        MemoryJournal::reopen(config, channels, others, None, disk, clock)
    }

    /// The same after its disk has failed under an earlier opening, which is closed: goes on with what that had in memory. Of another
    /// journal it takes nothing.
    pub fn reopen(
        config: FileConfig,
        channels: Vec<MemorySpec>,
        others: Vec<ChannelSpec>,
        unsaved: Option<Unsaved>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<MemoryJournal>, OpenError> {
        let dir = config.dir.clone();
        let specs = [Store::Overflow, Store::Saved]
            .into_iter()
            .flat_map(|store| channels.iter().map(move |channel| file_spec(&channel.channel, store)));
        let file = FileJournal::open(config, specs.chain(others).collect(), disk, clock.clone())?;
        let unreadable = |what: &str| OpenError::NotAJournal {
            dir: dir.clone(),
            reason: format!(
                "the numbers of {what} are not readable: written by a newer release of Flumen; start that one"
            ),
        };
        let id = match file.position(ID_KEY) {
            Some(id) => number(Some(id)).ok_or_else(|| unreadable("the journal"))?,
            None => new_id(clock.as_ref()),
        };
        let heads: Vec<u64> = file.status().channels.iter().map(|channel| channel.head).collect();
        let count = channels.len();
        let mut opened = Vec::with_capacity(count);
        for (index, spec) in channels.into_iter().enumerate() {
            let name = spec.channel.name.clone();
            let channel = recover(&file, spec, [index, count + index], &heads);
            opened.push(channel.ok_or_else(|| unreadable(&format!("channel {name}")))?);
        }
        let mut commit = Commit { positions: vec![(ID_KEY.to_vec(), id.to_vec())], ..Commit::default() };
        match unsaved.filter(|unsaved| unsaved.journal == id) {
            Some(unsaved) => opened.iter_mut().for_each(|channel| go_on(channel, &unsaved)),
            None => opened.iter_mut().for_each(|channel| settle(channel, &mut commit)),
        }
        // So that the same loss is not counted twice. On a full disk it comes later.
        let written = file.commit(commit, None).and_then(|ticket| ticket.wait(Some(OPEN_WAIT)).transpose());
        if let Err(error) = written {
            let error = std::io::Error::other(error.to_string());
            return Err(OpenError::Io { what: format!("writing {}", dir.display()), error });
        }
        let shared = Shared {
            file,
            clock,
            id,
            order: Mutex::default(),
            state: Mutex::new(State { channels: opened, is_open: true }),
            space: Condvar::new(),
            published: Condvar::new(),
        };
        Ok(Arc::new(MemoryJournal { shared: Arc::new(shared) }))
    }
}

/// The file channel behind one in memory. Its puts never wait: the memory channel says when it is full.
fn file_spec(channel: &ChannelSpec, store: Store) -> ChannelSpec {
    let name = match store {
        Store::Overflow => channel.name.clone(),
        Store::Saved => format!("{}/saved", channel.name),
    };
    ChannelSpec {
        name,
        readers: channel.readers.clone(),
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    }
}

/// Random enough to tell journals apart, as the file journal's own.
pub(crate) fn new_id(clock: &dyn Clock) -> [u8; 16] {
    let half = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_i64(clock.wall_ns());
        u128::from(hasher.finish())
    };
    (half() << 64 | half()).to_le_bytes()
}

/// A channel as its numbers say. `None`: they are not readable.
fn recover(file: &FileJournal, spec: MemorySpec, files: [usize; 2], heads: &[u64]) -> Option<Channel> {
    let ids = files.map(|index| ChannelId(u16::try_from(index).unwrap_or(u16::MAX)));
    let file_heads = files.map(|index| heads.get(index).copied().unwrap_or(0));
    let name = &spec.channel.name;
    let own = |reader: &String| Some([file.reader_id(ids[0], reader)?, file.reader_id(ids[1], reader)?]);
    let acknowledged =
        |reader: &String| Some(file.open_reader(ids[0], file.reader_id(ids[0], reader)?).acknowledged());
    let readers: Vec<(&String, _)> =
        spec.channel.readers.iter().filter_map(|it| Some((it, own(it)?))).collect();
    let (head, regions) = match file.position(&channel_key(name)) {
        Some(bytes) => {
            let (head, mut regions) = Registers::decode(&bytes)?;
            // On a full disk an acknowledgement passes puts, and says where they are before they are there.
            for region in &mut regions {
                let there = region.store.of(file_heads).saturating_sub(region.file_first);
                region.rows = region.rows.min(there);
            }
            regions.retain(|region| region.rows > 0);
            (head, regions)
        }
        None => {
            // New, or of kind `file` until now: then the file's events are its beginning, and have the file's numbers.
            let first =
                readers.iter().filter_map(|(reader, _)| acknowledged(reader)).min().unwrap_or(file_heads[0]);
            let region =
                Region { store: Store::Overflow, first, rows: file_heads[0] - first, file_first: first };
            let regions = if region.rows == 0 { Vec::new() } else { vec![region] };
            (file_heads[0], regions)
        }
    };
    let is_new = file.position(&channel_key(name)).is_none();
    let register = |(reader, file_ids): &(&String, _)| {
        let stored = number(file.position(&reader_key(name, reader))).map(u64::from_le_bytes);
        let before = stored.or_else(|| acknowledged(reader).filter(|_| is_new));
        ReaderRegister {
            name: (*reader).clone(),
            cursor: before.unwrap_or(head).min(head),
            live: true,
            file: *file_ids,
        }
    };
    let registers = Registers { head, regions, readers: readers.iter().map(register).collect() };
    Some(Channel {
        spec,
        registers,
        files: ids,
        file_heads,
        held: Default::default(),
        held_bytes: 0,
        spilling: None,
        full_since: None,
        lost: 0,
        dropped: 0,
        overflowed: 0,
    })
}

/// What an earlier opening had in memory is there again. Readers stay where the disk has them: what they have behind that, they
/// acknowledge once more, and until then a kill costs it like what is in memory.
fn go_on(channel: &mut Channel, unsaved: &Unsaved) {
    let Channel { spec, registers, held, held_bytes, .. } = channel;
    registers.forget_done();
    for put in unsaved.puts.iter().filter(|put| put.channel == spec.channel.name) {
        let end = put.first + put.batch.rows() as u64;
        if end > registers.head {
            // The disk did not get its numbers: nobody was told that it is here.
            continue;
        }
        // What a close brought to a file is there.
        let in_file = registers.regions.iter().find(|region| region.first < end && put.first < region.end());
        let rows = in_file.map_or(end, |region| region.first.max(put.first)) - put.first;
        if rows == 0 {
            continue;
        }
        let batch = put.batch.slice(0, rows as usize);
        let bytes = batch.memory_bytes() as u64;
        *held_bytes += bytes;
        let (first, time_ns) = (put.first, put.time_ns);
        held.push_back(Held { first, batch, bytes, time_ns, ticket: Arc::new(Durable) });
    }
}

/// What was in memory when the process died is counted and passed over, and the files hear what was acknowledged.
fn settle(channel: &mut Channel, commit: &mut Commit) {
    let name = &channel.spec.channel.name;
    let registers = &mut channel.registers;
    let needed = registers.needed();
    channel.lost = needed.map_or(0, |needed| registers.not_in_files(needed));
    if channel.lost > 0 {
        tracing::error!(channel = %name, events = channel.lost, acknowledged = needed,
            "these events were in memory when the agent died, and are lost");
    }
    let (head, regions) = (registers.head, registers.clone());
    for reader in &mut registers.readers {
        reader.cursor = regions.next_in_files(reader.cursor).unwrap_or(head);
        let cursor = reader.cursor;
        commit.positions.push((reader_key(name, &reader.name), cursor.to_le_bytes().to_vec()));
        commit.acks.extend(regions.regions.iter().filter(|region| region.first < cursor).map(|region| {
            let (channel, reader) = (region.store.of(channel.files), region.store.of(reader.file));
            Ack { channel, reader, cursor: region.file_cursor(cursor) }
        }));
    }
    registers.forget_done();
    commit.positions.push((channel_key(name), registers.encode()));
}
