//! Opening: what the records of a log come to.
//!
//! How it fails: what is damaged is passed over and counted by the numbers of commits that are missing; a record of somebody else is told
//! and passed over; a newer version and a key that is not given end it.

use std::collections::{BTreeMap, VecDeque};

use arrow_buffer::Buffer;

use super::LogError;
use super::commit::{LogCommit, Part, decode_part};
use super::record::{self, Assembler, Fault, Header, Kind};
use super::shared::Entry;
use crate::api::ChannelSpec;
use crate::file::format::commit::AckRecord;
use crate::file::format::registers::{ChannelRegister, ReaderRegister, Registers};
use crate::file::format::sealed::Opener;
use crate::keys::{KeyError, Keys};
use crate::limits;
use crate::state::StateOp;
use crate::view::MemoryState;

/// Takes a log's records in order.
pub(super) struct Replay {
    name: String,
    wanted: Vec<ChannelSpec>,
    opener: Opener,
    assembler: Assembler,
    journal: Option<[u8; 16]>,
    registers: Registers,
    /// By the names of the wanted channels.
    index: BTreeMap<String, VecDeque<Entry>>,
    /// Number of the first commit that is there.
    first: Option<u64>,
    /// Number of the last commit that counts here.
    last: u64,
    /// Highest number that a sound header has.
    seen: u64,
    /// Records since the last sound one.
    unreadable: u64,
    /// Number, next part and parts of a snapshot that is not whole yet.
    snapshot: Option<(u64, u32, u32)>,
    has_snapshot: bool,
    /// Place of the content under way, and bytes of the log before it.
    begin: (u64, u64),
    log_bytes: u64,
    damaged: u64,
}

/// What they come to.
pub(super) struct Recovered {
    /// `None`: nothing was there.
    pub journal: Option<[u8; 16]>,
    pub registers: Registers,
    /// Of each wanted channel.
    pub index: Vec<VecDeque<Entry>>,
    /// Number of the last commit.
    pub last: u64,
    pub log_bytes: u64,
    /// Commits that are lost.
    pub damaged: u64,
}

impl Replay {
    pub fn new(name: &str, wanted: Vec<ChannelSpec>, keys: &Keys) -> Replay {
        Replay {
            name: name.to_owned(),
            wanted,
            opener: Opener::new(keys),
            assembler: Assembler::default(),
            journal: None,
            registers: Registers::default(),
            index: BTreeMap::new(),
            first: None,
            last: 0,
            seen: 0,
            unreadable: 0,
            snapshot: None,
            has_snapshot: false,
            begin: (0, 0),
            log_bytes: 0,
            damaged: 0,
        }
    }

    /// A position as of the last record.
    pub fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.registers.positions.get(key).map(|value| value.to_vec())
    }

    /// The next record. What plugins remember goes to `view`.
    pub fn take(&mut self, view: &MemoryState, place: u64, record: &[u8]) -> Result<(), LogError> {
        let before = self.log_bytes;
        self.log_bytes += record.len() as u64;
        let (header, piece) = match record::decode(record) {
            Ok(found) => found,
            Err(Fault::Newer(version)) => return Err(newer(&self.name, place, version)),
            // Somebody's way to say nothing.
            Err(Fault::Foreign) if record.is_empty() => return Ok(()),
            Err(Fault::Foreign) => {
                tracing::error!(
                    log = self.name,
                    place,
                    "a record is none of this journal, and is passed over"
                );
                return Ok(());
            }
            Err(Fault::Damaged(header)) => {
                tracing::error!(log = self.name, place, "a record is damaged");
                self.assembler.clear();
                match header {
                    Some(header) => self.seen = self.seen.max(header.number),
                    None => self.unreadable += 1,
                }
                return Ok(());
            }
        };
        if *self.journal.get_or_insert(header.journal) != header.journal {
            tracing::error!(log = self.name, place, "a record is of another journal, and is passed over");
            return Ok(());
        }
        self.seen = self.seen.max(header.number);
        if header.index == 0 {
            self.begin = (place, before);
        }
        let Some((header, content)) = self.assembler.take(&header, piece) else { return Ok(()) };
        self.unreadable = 0;
        match header.kind {
            Kind::Commit => self.commit(view, &header, &content),
            Kind::Snapshot => self.part(view, &header, &content),
        }
    }

    fn commit(&mut self, view: &MemoryState, header: &Header, content: &Buffer) -> Result<(), LogError> {
        self.end_snapshot();
        let commit = LogCommit::decode(header, content, &mut self.opener);
        let commit = commit.map_err(|error| unreadable(&self.name, error))?;
        let Some((commit, (positions, writes))) =
            commit.and_then(|commit| commit.lists().map(|lists| (commit, lists)))
        else {
            // Its number is missing then.
            tracing::error!(log = self.name, commit = header.number, "a commit is damaged");
            return Ok(());
        };
        if !self.count(header.number) {
            return Ok(());
        }
        self.puts(header.number, &commit);
        for ack in &commit.head.acks {
            let (channel, reader) = (commit.name(ack.channel.into()), commit.name(ack.reader.into()));
            if let Some((channel, reader)) = channel.zip(reader) {
                self.acknowledge(channel, reader, ack);
            }
        }
        for (key, value) in positions {
            self.registers.set_position(&key.into(), &value.into());
        }
        for write in &writes {
            let op = StateOp { key: &write.key, value: write.value.as_deref(), expiry: write.expiry };
            view.load(&write.plugin, op);
        }
        self.release();
        Ok(())
    }

    /// Whether the commit of this number is the next; what is missing before it is lost.
    fn count(&mut self, number: u64) -> bool {
        let is_first = self.first.is_none();
        self.first.get_or_insert(number);
        if number <= self.last {
            tracing::error!(log = self.name, commit = number, "a commit is there twice, and is passed over");
            return false;
        }
        if !is_first {
            self.lose(number - self.last - 1);
        }
        self.last = number;
        true
    }

    fn lose(&mut self, commits: u64) {
        if commits > 0 {
            tracing::error!(log = self.name, commits, behind = self.last, "commits are lost to damage");
            self.damaged = self.damaged.saturating_add(commits);
        }
    }

    fn puts(&mut self, number: u64, commit: &LogCommit) {
        for (at, put) in commit.head.puts.iter().enumerate() {
            for part in &put.channels {
                let Some(name) = commit.name(part.channel) else { continue };
                let entry = Entry {
                    commit: number,
                    put: at,
                    first: part.first,
                    rows: u64::from(put.rows),
                    bytes_before: part.bytes_before,
                    bytes: put.bytes,
                    time_ns: commit.head.time_ns,
                    place: self.begin.0,
                    log_bytes: self.begin.1,
                };
                let Some(register) = channel(&mut self.registers, name) else { continue };
                register.head = register.head.max(entry.end());
                register.head_bytes = register.head_bytes.max(part.bytes_before.saturating_add(put.bytes));
                if self.wanted.iter().any(|spec| spec.name == name && !spec.readers.is_empty()) {
                    let index = self.index.entry(name.to_owned()).or_default();
                    // Foreign numbers do not break its order.
                    if index.back().is_none_or(|before| before.end() <= entry.first) {
                        index.push_back(entry);
                    }
                }
            }
        }
    }

    fn acknowledge(&mut self, name: &str, reader: &str, ack: &AckRecord) {
        let Some(register) = channel(&mut self.registers, name) else { return };
        register.head = register.head.max(ack.cursor);
        register.head_bytes = register.head_bytes.max(ack.bytes);
        let at = register.readers.iter().position(|known| known.name == reader).unwrap_or_else(|| {
            register.readers.push(ReaderRegister { name: reader.to_owned(), ..ReaderRegister::default() });
            register.readers.len() - 1
        });
        if let Some(known) = register.readers.get_mut(at)
            && ack.cursor > known.cursor
        {
            (known.cursor, known.bytes) = (ack.cursor, ack.bytes);
        }
    }

    /// Forgets where that is which every wanted reader has. Of one that was not named yet nobody knows.
    fn release(&mut self) {
        for (name, index) in &mut self.index {
            let register = self.registers.channels.iter().find(|register| register.name == *name);
            let spec = self.wanted.iter().find(|spec| spec.name == *name);
            let cursor = |reader: &String| {
                let known = register.and_then(|it| it.readers.iter().find(|known| known.name == *reader));
                known.map_or(0, |known| known.cursor)
            };
            let needed = spec.and_then(|spec| spec.readers.iter().map(cursor).min()).unwrap_or(u64::MAX);
            while index.pop_front_if(|entry| entry.end() <= needed).is_some() {}
        }
    }

    /// A part of a snapshot. What it says is true as of its commit, so it is taken at once.
    fn part(&mut self, view: &MemoryState, header: &Header, content: &Buffer) -> Result<(), LogError> {
        let part = decode_part(header, content, &mut self.opener);
        let part = part.map_err(|error| unreadable(&self.name, error))?;
        let Some((index, parts, part)) = part else {
            tracing::error!(log = self.name, commit = header.number, "a part of a snapshot is damaged");
            return Ok(());
        };
        match part {
            Part::Registers(registers) => {
                self.end_snapshot();
                if self.first.is_some() && header.number > self.last {
                    self.lose(header.number - self.last);
                }
                self.first.get_or_insert(header.number);
                self.last = self.last.max(header.number);
                self.registers = registers;
                self.has_snapshot = true;
                self.snapshot = Some((header.number, 1, parts));
                self.release();
            }
            Part::State(writes) => {
                if self.snapshot == Some((header.number, index, parts)) {
                    self.snapshot = Some((header.number, index.saturating_add(1), parts));
                }
                writes.iter().for_each(|op| view.load(writes.plugin(), op));
            }
        }
        self.snapshot = self.snapshot.filter(|(_, next, parts)| next < parts);
        Ok(())
    }

    /// What is missing of a snapshot does not come any more.
    fn end_snapshot(&mut self) {
        if let Some((number, ..)) = self.snapshot.take() {
            tracing::error!(
                log = self.name,
                commit = number,
                "a part of what plugins remember is lost to damage"
            );
            self.damaged = self.damaged.saturating_add(1);
        }
    }

    /// All was handed over.
    pub fn finish(mut self) -> Recovered {
        self.end_snapshot();
        if let Some(first) = self.first.filter(|first| *first > 1 && !self.has_snapshot) {
            tracing::error!(
                log = self.name,
                first,
                "the beginning of the log is gone: does somebody delete records of it?"
            );
            self.damaged = self.damaged.saturating_add(first - 1);
        }
        let highest = self.seen.max(self.last.saturating_add(self.unreadable));
        self.lose(highest - self.last);
        let Replay { wanted, mut registers, mut index, journal, log_bytes, damaged, .. } = self;
        let mut known = std::mem::take(&mut registers.channels);
        registers.channels = wanted.iter().map(|spec| configured(spec, &mut known, damaged > 0)).collect();
        registers.last_commit = highest;
        known.iter_mut().for_each(|register| register.live = false);
        known.truncate(limits::RETIRED_MAX);
        let mut found = Vec::with_capacity(wanted.len());
        for (spec, register) in wanted.iter().zip(&registers.channels) {
            let mut entries = index.remove(&spec.name).unwrap_or_default();
            let needed = register.needed().unwrap_or(u64::MAX);
            while entries.pop_front_if(|entry| entry.end() <= needed).is_some() {}
            found.push(entries);
        }
        registers.channels.append(&mut known);
        Recovered { journal, registers, index: found, last: highest, log_bytes, damaged }
    }
}

/// A channel's register, made if there is none.
fn channel<'a>(registers: &'a mut Registers, name: &str) -> Option<&'a mut ChannelRegister> {
    let channels = &mut registers.channels;
    let at = channels.iter().position(|register| register.name == name).unwrap_or(channels.len());
    if at == channels.len() {
        channels.push(ChannelRegister { name: name.to_owned(), ..ChannelRegister::default() });
    }
    channels.get_mut(at)
}

/// The register of a configured channel, with the configured readers first. A new reader begins at the end; with damage, one that is not
/// known may be lost, and gets what is there.
fn configured(spec: &ChannelSpec, known: &mut Vec<ChannelRegister>, is_damaged: bool) -> ChannelRegister {
    let at = known.iter().position(|register| register.name == spec.name);
    let mut register = match at {
        Some(at) => known.swap_remove(at),
        None => ChannelRegister { name: spec.name.clone(), ..ChannelRegister::default() },
    };
    register.live = true;
    let mut before = std::mem::take(&mut register.readers);
    for name in &spec.readers {
        let mut reader = match before.iter().position(|reader| reader.name == *name) {
            Some(at) => before.swap_remove(at),
            None => ReaderRegister {
                name: name.clone(),
                cursor: if is_damaged { 0 } else { register.head },
                bytes: if is_damaged { 0 } else { register.head_bytes },
                ..ReaderRegister::default()
            },
        };
        reader.live = true;
        reader.cursor = reader.cursor.min(register.head);
        register.readers.push(reader);
    }
    before.iter_mut().for_each(|reader| reader.live = false);
    before.truncate(limits::RETIRED_MAX);
    register.readers.append(&mut before);
    register
}

/// A record of a newer release.
pub(super) fn newer(name: &str, place: u64, version: u8) -> LogError {
    LogError::Final(format!(
        "{name}: the record at place {place} is of version {version}, written by a newer release of Flumen than this one, which reads \
         up to version {}: start that release",
        record::VERSION
    ))
}

fn unreadable(name: &str, error: KeyError) -> LogError {
    LogError::Final(format!("{name}: {error}"))
}
