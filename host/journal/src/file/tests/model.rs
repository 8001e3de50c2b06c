//! Random operations with crashes against a plain model.
//!
//! The promise in one sentence: after any crash the journal is what it was after some prefix of the
//! commits that were handed in, and no commit that was acknowledged is missing from it.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::basic::*;
use super::disk::MemDisk;
use crate::file::{FileConfig, FileJournal};
use crate::{Ack, ByteColumn, ChannelId, Commit, Journal, Put, ReaderId, StateOp, StateWrites, Ticket};

#[derive(Debug, Clone)]
enum Step {
    Put {
        channels: u8,
        rows: u64,
        size: usize,
    },
    Ack {
        which: usize,
        share: u64,
    },
    Position {
        key: u8,
        value: u8,
    },
    /// Writes to the state of a plugin; 0 removes, odd values expire far away, 254 has expired already.
    Remember {
        plugin: u8,
        key: u8,
        count: u8,
        value: u8,
    },
    /// All of these in one commit.
    All {
        channels: u8,
        rows: u64,
        which: usize,
        share: u64,
        key: u8,
    },
    Wait,
    Read {
        which: usize,
    },
    /// A reader of the first channel comes, or comes back, while the journal is open.
    Come,
    Go,
    AckLate {
        share: u64,
    },
    Reopen,
    Crash {
        power: u64,
        seed: u64,
    },
    SyncError,
    WriteError,
}

const READERS: [(ChannelId, ReaderId); 3] = [(A, R0), (A, R1), (B, R0)];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u8..4, 1u64..20, 0usize..400).prop_map(|(channels, rows, size)| Step::Put { channels, rows, size }),
        4 => (0usize..3, 0u64..=100).prop_map(|(which, share)| Step::Ack { which, share }),
        2 => (0u8..4, any::<u8>()).prop_map(|(key, value)| Step::Position { key, value }),
        3 => (0u8..2, 0u8..12, 1u8..9, prop_oneof![Just(0), Just(254), any::<u8>()])
            .prop_map(|(plugin, key, count, value)| Step::Remember { plugin, key, count, value }),
        3 => (1u8..4, 1u64..20, 0usize..3, 0u64..=100, 0u8..4)
            .prop_map(|(channels, rows, which, share, key)| Step::All { channels, rows, which, share, key }),
        3 => Just(Step::Wait),
        3 => (0usize..3).prop_map(|which| Step::Read { which }),
        1 => Just(Step::Come),
        1 => Just(Step::Go),
        2 => (0u64..=100).prop_map(|share| Step::AckLate { share }),
        1 => Just(Step::Reopen),
        2 => (0u64..30, any::<u64>()).prop_map(|(power, seed)| Step::Crash { power, seed }),
        1 => Just(Step::SyncError),
        1 => Just(Step::WriteError),
    ]
}

/// The journal as it should be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    channels: [Vec<u64>; 2],
    cursors: [u64; 3],
    positions: BTreeMap<Vec<u8>, Vec<u8>>,
    state: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
    /// The cursor of the reader that comes and goes, once it was there.
    late: Option<u64>,
}

fn plugin_name(plugin: u8) -> &'static str {
    ["dedup", "windows"][usize::from(plugin)]
}

fn remember_one(model: &mut Model, writes: &mut StateWrites, plugin: u8, key: u8, value: u8) {
    let name = (plugin, vec![key; 20]);
    let expiry = match value {
        254 => Some(1),
        odd if odd % 2 == 1 => Some(i64::MAX - 1),
        _ => None,
    };
    let bytes = vec![value; usize::from(value)];
    let alive = (value != 0).then_some(bytes.as_slice());
    writes.push(StateOp { key: &name.1, value: alive, expiry });
    match value {
        0 | 254 => model.state.remove(&name),
        _ => model.state.insert(name, bytes),
    };
}

/// All keys by look-up, and for one plugin, which is never ordered otherwise, by a scan.
fn check_state(journal: &FileJournal, model: &Model) {
    let state = journal.state().unwrap();
    for plugin in 0..2 {
        let (mut offsets, mut data) = (vec![0; 4], Vec::new());
        for key in 0..24 {
            data.extend_from_slice(&[key; 20]);
            offsets.extend_from_slice(&(data.len() as u32).to_le_bytes());
        }
        let keys = ByteColumn::new(&offsets, &data).unwrap();
        state.get_many(plugin_name(plugin), &keys, 1_000, &mut |index, value| {
            let expected = model.state.get(&(plugin, keys.row(index).to_vec())).map(Vec::as_slice);
            assert_eq!(value, expected, "{plugin} {index}");
        });
    }
    let mut found = Vec::new();
    state.scan(plugin_name(1), b"", None, 1_000, &mut |key, value| {
        found.push(((1, key.to_vec()), value.to_vec()));
        true
    });
    let expected: Vec<_> = model.state.iter().filter(|((plugin, _), _)| *plugin == 1).collect();
    assert_eq!(found.iter().map(|(key, value)| (key, value)).collect::<Vec<_>>(), expected);
}

struct Run {
    disk: MemDisk,
    journal: Option<std::sync::Arc<FileJournal>>,
    /// After each commit handed in since the last crash; the first is the state at the beginning.
    history: Vec<Model>,
    tickets: Vec<Box<dyn Ticket>>,
    next_event: u64,
    base_commit: u64,
    /// The power is about to go: commits may not arrive.
    doomed: bool,
    /// The reader that comes and goes is there, and owed everything from this event on.
    late: Option<u64>,
}

fn small() -> FileConfig {
    FileConfig {
        segment_bytes: 16 << 10,
        window_bytes: 2 << 10,
        snapshot_every_bytes: 20 << 10,
        state_file_every_bytes: 6 << 10,
        ..config()
    }
}

impl Run {
    fn new() -> Run {
        let disk = MemDisk::default();
        let journal = Some(open_with(&disk, small(), specs()).unwrap());
        let history = vec![Model::default()];
        Run {
            disk,
            journal,
            history,
            tickets: Vec::new(),
            next_event: 0,
            base_commit: 0,
            doomed: false,
            late: None,
        }
    }

    fn open(&self) -> Option<std::sync::Arc<FileJournal>> {
        let mut specs = specs();
        if self.late.is_some() {
            specs[0].readers.push("late".into());
        }
        Some(open_with(&self.disk, small(), specs).unwrap())
    }

    fn come(&mut self) {
        self.settle();
        if self.late.is_some() {
            return;
        }
        let head = self.history[0].channels[0].len() as u64;
        self.journal().add_reader(A, "late").unwrap();
        self.history[0].late.get_or_insert(head);
        self.late = Some(head);
    }

    fn go(&mut self) {
        self.settle();
        if let Some(reader) = self.journal().reader_id(A, "late") {
            self.journal().retire_reader(A, reader);
            assert_eq!(self.journal().reader_id(A, "late"), None);
        }
        self.late = None;
    }

    fn acknowledge_late(&mut self, share: u64) {
        self.settle();
        let mut model = self.history[0].clone();
        let (Some(reader), Some(cursor)) = (self.journal().reader_id(A, "late"), model.late) else { return };
        let cursor = cursor + (model.channels[0].len() as u64 - cursor) * share / 100;
        model.late = Some(cursor);
        self.tickets.push(self.journal().commit(ack(A, reader, cursor), None).unwrap());
        self.history.push(model);
    }

    /// What it is owed is all there; of what passed while it was away, some may be.
    fn check_late(&self, model: &Model) {
        let (Some(from), Some(cursor)) = (self.late, model.late) else { return };
        let journal = self.journal();
        let mut reader = journal.open_reader(A, journal.reader_id(A, "late").unwrap());
        assert_eq!(reader.acknowledged(), cursor);
        let (all, found) = (&model.channels[0], drain(reader.as_mut()));
        let owed = &all[from.max(cursor) as usize..];
        assert!(found.ends_with(owed), "{found:?} of {owed:?}");
        assert!(all[cursor as usize..].ends_with(&found), "{found:?} is not an end of what was put");
    }

    fn journal(&self) -> &FileJournal {
        self.journal.as_ref().unwrap()
    }

    fn commit(
        &mut self,
        puts: Option<(u8, u64, usize)>,
        ack: Option<(usize, u64)>,
        position: Option<(u8, u8)>,
        remember: Option<(u8, u8, u8, u8)>,
    ) {
        let mut model = self.history.last().unwrap().clone();
        let mut commit = Commit::default();
        if let Some((which, share)) = ack {
            // Only what is durable can be acknowledged.
            self.wait();
            if self.doomed {
                return;
            }
            let (channel, reader) = READERS[which];
            let head = model.channels[usize::from(channel.0)].len() as u64;
            let cursor = model.cursors[which] + (head - model.cursors[which]) * share / 100;
            model.cursors[which] = cursor;
            commit.acks.push(Ack { channel, reader, cursor });
        }
        if let Some((mask, rows, size)) = puts {
            let channels: Vec<ChannelId> = [A, B].into_iter().filter(|id| mask & (1 << id.0) != 0).collect();
            for channel in &channels {
                model.channels[usize::from(channel.0)].extend(self.next_event..self.next_event + rows);
            }
            commit.puts.push(Put { channels, batch: batch(self.next_event, rows, size) });
            self.next_event += rows;
        }
        if let Some((key, value)) = position {
            let value = if value == 0 { Vec::new() } else { vec![value; 20] };
            match value.is_empty() {
                true => model.positions.remove(&vec![key]),
                false => model.positions.insert(vec![key], value.clone()),
            };
            commit.positions.push((vec![key], value));
        }
        if let Some((plugin, first, count, value)) = remember {
            let mut writes = StateWrites::new(plugin_name(plugin).into());
            for key in first..first + count {
                remember_one(&mut model, &mut writes, plugin, key, value);
            }
            commit.state.push(writes);
        }
        if let Ok(ticket) = self.journal().commit(commit, None) {
            self.tickets.push(ticket);
            self.history.push(model);
        }
    }

    /// All tickets; how many commits were acknowledged.
    fn wait(&mut self) -> usize {
        self.tickets.iter().take_while(|ticket| ticket.wait(None).unwrap().is_ok()).count()
    }

    fn settle(&mut self) {
        let acknowledged = self.wait();
        assert_eq!(acknowledged, self.tickets.len());
        self.base_commit += self.tickets.len() as u64;
        self.tickets.clear();
        self.history.drain(..self.history.len() - 1);
    }

    fn check(&self, model: &Model) {
        let journal = self.journal();
        assert_eq!(journal.positions(b"").into_iter().collect::<BTreeMap<_, _>>(), model.positions);
        check_state(journal, model);
        for (which, (channel, reader)) in READERS.into_iter().enumerate() {
            let mut reader = journal.open_reader(channel, reader);
            assert_eq!(reader.acknowledged(), model.cursors[which], "reader {which}");
            let expected = &model.channels[usize::from(channel.0)][model.cursors[which] as usize..];
            assert_eq!(drain(reader.as_mut()), expected, "reader {which}");
        }
        self.check_late(model);
        assert_eq!(journal.status().damaged_commits, 0);
    }

    fn crash(&mut self, power: u64, seed: u64) {
        self.disk.faults(|faults| faults.power_left = Some(power));
        self.doomed = true;
        for n in 0..6 {
            self.commit(
                Some((1 + n % 3, 1 + u64::from(n), 300)),
                None,
                Some((n, n)),
                Some((n % 2, n, 4, n * 7)),
            );
        }
        // In half of the cases the commits are still on their way when everything stops.
        let acknowledged = if seed.is_multiple_of(2) { self.wait() } else { 0 };
        drop(self.journal.take());
        let acknowledged = acknowledged.max(self.wait());
        self.disk.crash(seed);
        self.journal = self.open();
        let survived = (self.journal().status().last_commit - self.base_commit) as usize;
        assert!(survived >= acknowledged, "{survived} commits are there, {acknowledged} were acknowledged");
        let model = self.history.get(survived).expect("no commit that was never handed in").clone();
        self.check(&model);
        self.base_commit += survived as u64;
        self.history = vec![model];
        self.tickets.clear();
        self.doomed = false;
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Put { channels, rows, size } => self.commit(Some((channels, rows, size)), None, None, None),
            Step::Ack { which, share } => self.commit(None, Some((which, share)), None, None),
            Step::Position { key, value } => self.commit(None, None, Some((key, value)), None),
            Step::Remember { plugin, key, count, value } => {
                self.commit(None, None, None, Some((plugin, key, count, value)));
            }
            Step::All { channels, rows, which, share, key } => {
                self.commit(
                    Some((channels, rows, 50)),
                    Some((which, share)),
                    Some((key, 9)),
                    Some((key % 2, key, 3, 9)),
                );
            }
            Step::Wait => {
                self.settle();
                self.check(&self.history[0]);
            }
            Step::Read { which } => {
                let (channel, reader) = READERS[which];
                self.journal().open_reader(channel, reader).next(std::time::Duration::ZERO).unwrap();
            }
            Step::Reopen => {
                self.settle();
                self.disk.faults(|faults| (faults.sync_errors, faults.write_errors) = (0, 0));
                self.journal().close().unwrap();
                self.journal = None;
                self.journal = self.open();
                self.check(&self.history[0]);
            }
            Step::Come => {
                // What fails once fails the change; that is told elsewhere.
                self.disk.faults(|faults| (faults.sync_errors, faults.write_errors) = (0, 0));
                self.come();
            }
            Step::Go => self.go(),
            Step::AckLate { share } => self.acknowledge_late(share),
            Step::Crash { power, seed } => self.crash(power, seed),
            // One of each at most per group: more and the journal rightly fails.
            Step::SyncError => {
                self.settle();
                self.disk.faults(|faults| faults.sync_errors = 1);
            }
            Step::WriteError => {
                self.settle();
                self.disk.faults(|faults| faults.write_errors = 1);
            }
        }
    }
}

/// `FLUMEN_CASES=20000` for a long run.
fn cases() -> u32 {
    std::env::var("FLUMEN_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::with_cases(cases()) })]

    /// A failing schedule is printed whole, crash seeds included.
    #[test]
    fn the_journal_is_its_model(steps in vec(step(), 1..60)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        run.settle();
        run.check(&run.history[0].clone());
    }
}
