//! Schedules of everything against a plain model: each event once, in order, with positions, cursors and state that agree.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::api::Ticket;

/// Set by each commit to its number.
const NUMBER: &[u8] = b"number";

/// One commit of the model.
#[derive(Debug, Clone, Default)]
struct Change {
    puts: Vec<(usize, u64, u64)>,
    ack: Option<(usize, u64)>,
    position: Option<(Vec<u8>, Vec<u8>)>,
    state: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What all changes come to.
#[derive(Debug, Default)]
struct Truth {
    /// Events of each channel, ever.
    events: [Vec<u64>; 2],
    acked: [u64; 2],
    positions: BTreeMap<Vec<u8>, Vec<u8>>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn set(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, key: &[u8], value: Option<&[u8]>) {
    match value {
        Some(value) => drop(map.insert(key.to_vec(), value.to_vec())),
        None => drop(map.remove(key)),
    }
}

impl Truth {
    fn of(changes: &[Change]) -> Truth {
        let mut truth = Truth::default();
        changes.iter().for_each(|change| truth.apply(change));
        truth
    }

    fn apply(&mut self, change: &Change) {
        for (channel, first, rows) in &change.puts {
            self.events[*channel].extend(*first..first + rows);
        }
        if let Some((channel, cursor)) = change.ack {
            self.acked[channel] = self.acked[channel].max(cursor);
        }
        if let Some((key, value)) = &change.position {
            set(&mut self.positions, key, Some(value).filter(|value| !value.is_empty()).map(Vec::as_slice));
        }
        if let Some((key, value)) = &change.state {
            set(&mut self.state, key, value.as_deref());
        }
    }
}

struct World {
    log: SimLog,
    journal: Option<Arc<LogJournal>>,
    readers: [Box<dyn Reader>; 2],
    /// How far each was read.
    read: [u64; 2],
    changes: Vec<Change>,
    truth: Truth,
    /// Commits whose outcome was not looked at.
    tickets: Vec<Box<dyn Ticket>>,
    next_event: u64,
}

impl World {
    fn new(log: SimLog) -> World {
        let journal = open(&log);
        let readers = [A, B].map(|channel| journal.open_reader(channel, READER));
        let (read, changes, truth, tickets) = Default::default();
        World { log, journal: Some(journal), readers, read, changes, truth, tickets, next_event: 0 }
    }

    fn journal(&self) -> &LogJournal {
        self.journal.as_deref().unwrap()
    }

    fn commit(&mut self, change: Change) {
        self.truth.apply(&change);
        self.changes.push(change.clone());
        let number = (self.changes.len() as u64).to_le_bytes().to_vec();
        let mut commit = Commit { positions: vec![(NUMBER.to_vec(), number)], ..Commit::default() };
        for (channel, first, rows) in change.puts {
            commit.puts.push(Put { channels: vec![[A, B][channel]], batch: batch(first, rows) });
        }
        commit.positions.extend(change.position);
        let ack =
            change.ack.map(|(channel, cursor)| Ack { channel: [A, B][channel], reader: READER, cursor });
        commit.acks.extend(ack);
        if let Some((key, value)) = change.state {
            commit.state = state_write(&key, value.as_deref()).state;
        }
        let ticket = self.journal().commit(commit, None).unwrap();
        self.tickets.push(ticket);
    }

    fn settle(&mut self) {
        for ticket in self.tickets.drain(..) {
            ticket.wait(Some(LIMIT)).expect("an outcome").unwrap();
        }
    }

    fn read_some(&mut self, channel: usize, deliveries: u32) {
        self.settle();
        for _ in 0..deliveries {
            let Some(delivery) = self.readers[channel].next(Duration::ZERO).unwrap() else {
                assert_eq!(self.read[channel], self.truth.events[channel].len() as u64, "nothing, too soon");
                return;
            };
            assert_eq!((delivery.first, delivery.lost_before), (self.read[channel], 0));
            let range = delivery.first as usize..delivery.next as usize;
            assert_eq!(delivery.batch.position().values().to_vec(), self.truth.events[channel][range]);
            self.read[channel] = delivery.next;
        }
    }

    /// Nobody knows what of the last commits counts: the journal says it.
    fn reopen(&mut self, is_clean: bool) {
        let known = if is_clean {
            self.settle();
            self.journal().close().unwrap();
            self.changes.len()
        } else {
            let pending = self.tickets.iter().filter(|ticket| ticket.wait(Some(Duration::ZERO)).is_none());
            self.changes.len() - pending.count()
        };
        self.tickets.clear();
        self.log.with(|image| image.is_away = false);
        self.journal = None;
        self.journal = Some(open(&self.log));
        let count = self
            .journal()
            .position(NUMBER)
            .map_or(0, |number| u64::from_le_bytes(number.try_into().unwrap()) as usize);
        assert!((known..=self.changes.len()).contains(&count), "{known} {count} {}", self.changes.len());
        self.changes.truncate(count);
        self.truth = Truth::of(&self.changes);
        self.readers = [A, B].map(|channel| self.journal().open_reader(channel, READER));
        self.read = self.truth.acked;
        self.check();
    }

    fn check(&self) {
        let mut positions = self.journal().positions(b"");
        positions.retain(|(key, _)| key != NUMBER);
        assert_eq!(positions, self.truth.positions.clone().into_iter().collect::<Vec<_>>());
        let mut state = BTreeMap::new();
        self.journal().state().unwrap().scan("dedup", b"", None, 0, &mut |key, value| {
            state.insert(key.to_vec(), value.to_vec());
            true
        });
        assert_eq!(state, self.truth.state);
        let status = self.journal().status();
        for (channel, status) in status.channels.iter().enumerate() {
            let (head, acked) = (self.truth.events[channel].len() as u64, self.truth.acked[channel]);
            assert_eq!((status.head, status.events, status.readers[0].1), (head, head - acked, acked));
            let ends = (status.events == 0, status.bytes == 0);
            assert_eq!(ends.0, ends.1, "{} bytes", status.bytes);
        }
        assert_eq!(status.damaged_commits, 0);
    }

    fn step(&mut self, random: &mut SmallRng) {
        let channel = random.random_range(0..2);
        match random.random_range(0..40) {
            0..14 => {
                let rows = random.random_range(1..20);
                let mut change = Change { puts: vec![(channel, self.next_event, rows)], ..Change::default() };
                self.next_event += rows;
                if random.random_bool(0.3) {
                    change.puts.push((random.random_range(0..2), self.next_event, 3));
                    self.next_event += 3;
                }
                let key = vec![b'p', random.random_range(0..3)];
                let value = vec![random.random(); random.random_range(0..3)];
                change.position = Some((key, value));
                self.commit(change);
            }
            14..18 => {
                let value = random.random_bool(0.7).then(|| vec![random.random(); 5]);
                let state = Some((vec![random.random_range(0..4)], value));
                self.commit(Change { state, ..Change::default() });
            }
            18..24 => self.read_some(channel, random.random_range(1..6)),
            24..30 => {
                self.settle();
                let acked = self.truth.acked[channel];
                let cursor = random.random_range(acked..=self.read[channel].max(acked));
                self.commit(Change { ack: Some((channel, cursor)), ..Change::default() });
            }
            30..32 => {
                self.settle();
                let acked = self.truth.acked[channel];
                let cursor = random.random_range(acked..=self.read[channel].max(acked));
                self.readers[channel].seek(cursor).unwrap();
                self.read[channel] = cursor;
            }
            32 => self.log.with(|image| image.lost_appends = 1),
            33 => self.log.with(|image| image.lost_answers = 1),
            34 => self.log.with(|image| image.empty_reads = 2),
            35 => {
                self.log.with(|image| image.is_away = true);
                let key = vec![b'q', 0];
                self.commit(Change { position: Some((key, vec![1])), ..Change::default() });
                self.log.with(|image| image.is_away = false);
            }
            36 => self.log.with(|image| image.refuses_trims = !image.refuses_trims),
            37 => self.reopen(true),
            38 => self.reopen(false),
            _ => {
                self.settle();
                self.check();
            }
        }
    }
}

#[test]
fn each_event_once_over_lost_answers_and_crashes() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first: u64 = number("FLUMEN_LOG_SEED").unwrap_or(0);
    for seed in first..first + number("FLUMEN_LOG_SEEDS").unwrap_or(2_000) {
        let told = std::panic::catch_unwind(|| schedule(seed));
        if let Err(panic) = told {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn schedule(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let log = SimLog::default();
    log.with(|image| image.record_bytes_max = HEADER_BYTES + random.random_range(50..2_000));
    let mut world = World::new(log);
    for _ in 0..30 {
        world.step(&mut random);
    }
    world.settle();
    world.log.with(|image| image.empty_reads = 0);
    world.read_some(0, u32::MAX);
    world.read_some(1, u32::MAX);
    world.reopen(false);
    world.read_some(0, u32::MAX);
    world.read_some(1, u32::MAX);
}
