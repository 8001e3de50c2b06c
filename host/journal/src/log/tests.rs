//! A log that is simulated, with appends that fail before or after they count, other writers and crashes; a crash is a drop.
//! `FLUMEN_LOG_SEED` and `FLUMEN_LOG_SEEDS` choose the schedules.

mod model;
mod sim;

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::{Batch, BatchBuilder};

use self::sim::{SimClock, SimLog};
use super::record::{HEADER_BYTES, Header, Kind, VERSION, cut};
use super::{LogConfig, LogContents, LogJournal};
use crate::api::{
    Ack, ChannelId, ChannelSpec, Commit, CommitError, Delivery, Journal, Put, ReadError, Reader, ReaderId,
};
use crate::clock::OsClock;
use crate::keys::{Key, KeyId, Keys};
use crate::limits;
use crate::state::{ByteColumn, StateOp, StateWrites};

/// A test that waits longer than this has failed.
const LIMIT: Duration = Duration::from_secs(60);

const A: ChannelId = ChannelId(0);
const B: ChannelId = ChannelId(1);
const READER: ReaderId = ReaderId(0);

fn spec(name: &str) -> ChannelSpec {
    let readers = vec!["return".to_owned()];
    ChannelSpec { name: name.into(), readers, capacity_events: u64::MAX, capacity_bytes: u64::MAX }
}

/// Small enough that everything happens.
fn config() -> LogConfig {
    LogConfig {
        snapshot_bytes: 4 << 10,
        garbage_bytes: 16 << 10,
        retry_first: Duration::ZERO,
        close_within: LIMIT,
        ..LogConfig::new("test", vec![spec("a"), spec("b")], Keys::default())
    }
}

fn open_with(log: &SimLog, config: LogConfig) -> Arc<LogJournal> {
    LogJournal::open(config, Box::new(log.handle()), Arc::new(OsClock)).unwrap()
}

fn open(log: &SimLog) -> Arc<LogJournal> {
    open_with(log, config())
}

fn batch(first: u64, rows: u64) -> Batch {
    let mut builder = BatchBuilder::with_capacity(rows as usize, 0);
    (first..first + rows).for_each(|number| builder.push(7, number, 1, format!("body {number}").as_bytes()));
    builder.finish(Vec::new()).unwrap()
}

fn put(channel: ChannelId, first: u64, rows: u64) -> Commit {
    Commit { puts: vec![Put { channels: vec![channel], batch: batch(first, rows) }], ..Commit::default() }
}

fn settle(journal: &LogJournal, commit: Commit) -> u64 {
    journal.commit(commit, None).unwrap().wait(Some(LIMIT)).expect("an outcome").unwrap()
}

fn ack(journal: &LogJournal, channel: ChannelId, cursor: u64) {
    let acks = vec![Ack { channel, reader: READER, cursor }];
    settle(journal, Commit { acks, ..Commit::default() });
}

/// All that is there without a wait.
fn all(reader: &mut dyn Reader) -> Vec<Delivery> {
    std::iter::from_fn(|| reader.next(Duration::ZERO).unwrap()).collect()
}

fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    let rows = |delivery: &Delivery| delivery.batch.position().values().to_vec();
    deliveries.iter().flat_map(rows).collect()
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_put_is_there_after_a_crash() {
    let log = SimLog::default();
    let journal = open(&log);
    settle(&journal, put(A, 0, 3));
    let positions = vec![
        (b"p/x".to_vec(), b"1".to_vec()),
        (b"p/y".to_vec(), b"2".to_vec()),
        (b"q".to_vec(), b"3".to_vec()),
    ];
    settle(&journal, Commit { positions, ..put(B, 0, 2) });
    settle(&journal, Commit { positions: vec![(b"p/x".to_vec(), Vec::new())], ..put(A, 3, 2) });
    ack(&journal, A, 1);
    let mark = journal.open_reader(A, READER).mark(4);
    drop(journal);

    let journal = open(&log);
    assert_eq!(journal.positions(b"p/"), [(b"p/y".to_vec(), b"2".to_vec())]);
    assert_eq!((journal.position(b"p/x"), journal.position(b"q")), (None, Some(b"3".to_vec())));
    let mut reader = journal.open_reader(A, READER);
    assert_eq!((reader.acknowledged(), reader.resolve(&mark)), (1, Some(4)));
    let found = all(reader.as_mut());
    assert_eq!(numbers(&found), [1, 2, 3, 4]);
    assert_eq!((found[0].first, found[0].next, found[1].first, found[1].next), (1, 3, 3, 5));
    assert_eq!(found[1].batch.body().value(1), b"body 4");
    reader.seek(2).unwrap();
    assert_eq!(numbers(&all(reader.as_mut())), [2, 3, 4]);
    let status = journal.status();
    assert_eq!((status.channels[0].head, status.channels[0].events, status.channels[1].head), (5, 4, 2));
    assert_eq!(status.damaged_commits, 0);
    let other = open(&SimLog::default());
    assert_eq!(other.open_reader(A, READER).resolve(&mark), None, "a mark of another journal");
}

/// A reader that finds nothing believes that it has everything.
#[test]
fn what_counts_is_waited_for_also_without_a_wait() {
    let log = SimLog::default();
    let journal = open(&log);
    settle(&journal, put(A, 0, 3));
    log.with(|image| image.empty_reads = 5);
    assert_eq!(numbers(&all(journal.open_reader(A, READER).as_mut())), [0, 1, 2]);
    log.with(|image| image.read_errors = 1);
    let mut reader = journal.open_reader(A, READER);
    assert!(matches!(reader.next(Duration::ZERO), Err(ReadError::Io { .. })));
    assert_eq!(numbers(&all(reader.as_mut())), [0, 1, 2]);
}

#[test]
fn an_append_in_doubt_counts_once_whether_it_did_or_not() {
    let log = SimLog::default();
    let journal = open(&log);
    settle(&journal, put(A, 0, 1));
    log.with(|image| image.lost_answers = 1);
    settle(&journal, put(A, 1, 1));
    log.with(|image| image.lost_appends = 1);
    settle(&journal, put(A, 2, 1));
    assert_eq!(numbers(&all(journal.open_reader(A, READER).as_mut())), [0, 1, 2]);
    assert_eq!(log.with(|image| image.opened), 3, "it was opened again for each");
}

#[test]
fn a_log_that_is_away_is_waited_for_and_told() {
    let log = SimLog::default();
    log.with(|image| image.is_away = true);
    let journal = open(&log);
    wait("a reason", || journal.status().waiting_for.is_some_and(|reason| reason.contains("nobody answers")));
    assert!(!journal.is_read() && !journal.is_over());
    let refused = journal.commit(put(A, 0, 1), Some(Instant::now() + Duration::from_millis(5)));
    assert!(matches!(refused, Err(CommitError::Full { .. })));
    log.with(|image| image.is_away = false);
    assert_eq!(journal.position(b"x"), None);
    assert!(journal.is_read());
    wait("no reason", || journal.status().waiting_for.is_none());
    log.with(|image| image.is_away = true);
    let ticket = journal.commit(put(A, 0, 1), None).unwrap();
    wait("a reason", || journal.status().waiting_for.is_some());
    assert!(ticket.wait(Some(Duration::ZERO)).is_none());
    log.with(|image| image.is_away = false);
    ticket.wait(Some(LIMIT)).unwrap().unwrap();
}

#[test]
fn a_close_does_not_wait_for_ever_and_says_what_it_left() {
    let log = SimLog::default();
    let journal = open_with(&log, LogConfig { close_within: Duration::from_millis(100), ..config() });
    settle(&journal, put(A, 0, 1));
    log.with(|image| image.is_away = true);
    let ticket = journal.commit(put(A, 1, 1), None).unwrap();
    assert!(matches!(journal.close(), Err(CommitError::Closing)));
    assert!(matches!(ticket.wait(Some(LIMIT)), Some(Err(CommitError::Closing))));
    let never_read = open(&log);
    never_read.close().unwrap();
    assert!(never_read.is_over());
    assert_eq!(never_read.position(b"x"), None);
    // It was read, and nobody could say so in it: nothing is left either.
    log.with(|image| (image.is_away, image.lost_appends) = (false, u32::MAX));
    let never_written = open(&log);
    let is_refused = |reason: String| reason.contains("no answer");
    wait("a refusal", || never_written.status().waiting_for.is_some_and(is_refused));
    never_written.close().unwrap();
    log.with(|image| image.lost_appends = 0);
    let journal = open(&log);
    let ticket = journal.commit(put(A, 1, 1), None).unwrap();
    journal.close().unwrap();
    ticket.wait(Some(LIMIT)).unwrap().unwrap();
    let mut reader = open(&log).open_reader(A, READER);
    assert!(matches!(reader.next(Duration::ZERO), Err(ReadError::Closing)), "its journal is dropped");
    assert_eq!(numbers(&all(open_kept(&log).1.as_mut())), [0, 1]);
}

#[test]
fn who_is_taken_over_gives_up_and_the_other_goes_on() {
    let log = SimLog::default();
    let old = open(&log);
    settle(&old, put(A, 0, 1));
    let new = open(&log);
    settle(&new, put(A, 1, 1));
    let refused = old.commit(put(A, 7, 1), None).unwrap().wait(Some(LIMIT)).unwrap();
    assert!(matches!(&refused, Err(CommitError::Failed(reason)) if reason.contains("fenced")), "{refused:?}");
    assert!(matches!(old.close(), Err(CommitError::Failed(_))));
    settle(&new, put(A, 2, 1));
    assert_eq!(numbers(&all(new.open_reader(A, READER).as_mut())), [0, 1, 2]);
}

#[test]
fn a_full_channel_makes_puts_wait_and_an_acknowledgement_makes_room() {
    let log = SimLog::default();
    let journal = open(&log);
    journal.set_capacity(A, 2, u64::MAX);
    settle(&journal, put(A, 0, 2));
    let soon = || Some(Instant::now() + Duration::from_millis(5));
    let full = journal.commit(put(A, 2, 1), soon());
    assert!(matches!(full, Err(CommitError::Full { channel, events: 2, .. }) if channel == "a"));
    settle(&journal, put(B, 0, 1));
    ack(&journal, A, 2);
    settle(&journal, put(A, 2, 1));
    // Past the end, as of the end.
    ack(&journal, A, 900);
    assert_eq!(journal.status().channels[0].readers, [("return".to_owned(), 3)]);
    assert!(journal.commit(put(ChannelId(9), 0, 1), None).is_err());
}

fn state_of(journal: &LogJournal, key: &[u8]) -> Option<Vec<u8>> {
    let (offsets, mut found) = ([0_u32.to_le_bytes(), (key.len() as u32).to_le_bytes()].concat(), None);
    let keys = ByteColumn::new(&offsets, key).unwrap();
    journal.state().unwrap().get_many("dedup", &keys, 0, &mut |_, value| found = value.map(<[u8]>::to_vec));
    found
}

fn state_write(key: &[u8], value: Option<&[u8]>) -> Commit {
    let mut writes = StateWrites::new("dedup".into());
    writes.push(StateOp { key, value, expiry: None });
    Commit { state: vec![writes], ..Commit::default() }
}

/// Positions, cursors and state outlive the records that they came with.
#[test]
fn a_log_is_cut_behind_a_snapshot() {
    let log = SimLog::default();
    let journal = open(&log);
    settle(
        &journal,
        Commit { positions: vec![(b"old".to_vec(), b"1".to_vec())], ..state_write(b"k", Some(b"v")) },
    );
    settle(&journal, state_write(b"gone", Some(b"v")));
    settle(&journal, state_write(b"gone", None));
    for round in 0..60 {
        settle(&journal, put(A, round * 10, 10));
        ack(&journal, A, round * 10 + 10);
    }
    settle(&journal, put(B, 0, 2));
    let (bytes, first) = log.with(|image| (image.bytes(), image.records[0].0));
    assert!(first > 20 && bytes < 30_000, "{first} {bytes}");
    // While something is needed, what is before it may go.
    for round in 0..200 {
        settle(&journal, put(A, 600 + round * 10, 10));
        ack(&journal, A, 600 + round * 10 + 10);
    }
    settle(&journal, put(A, 9_000, 1));
    drop(journal);
    let journal = open(&log);
    assert_eq!(journal.position(b"old"), Some(b"1".to_vec()));
    assert_eq!((state_of(&journal, b"k"), state_of(&journal, b"gone")), (Some(b"v".to_vec()), None));
    assert_eq!(numbers(&all(journal.open_reader(A, READER).as_mut())), [9_000]);
    assert_eq!(numbers(&all(journal.open_reader(B, READER).as_mut())), [0, 1]);
    assert_eq!((journal.status().channels[0].head, journal.status().damaged_commits), (2_601, 0));
}

/// What somebody needs stays, and all that came behind it.
#[test]
fn a_cut_leaves_what_is_needed() {
    let log = SimLog::default();
    let journal = open(&log);
    let mut next = 0;
    while log.with(|image| image.bytes()) < 40 << 10 {
        settle(&journal, put(A, next, 50));
        next += 50;
    }
    settle(&journal, put(B, 0, 5));
    settle(&journal, put(A, next, 5));
    ack(&journal, A, next);
    wait("a cut", || log.with(|image| image.bytes()) < 20 << 10);
    let left = |journal: &LogJournal| {
        [A, B].map(|channel| numbers(&all(journal.open_reader(channel, READER).as_mut())))
    };
    let expected = [(next..next + 5).collect::<Vec<_>>(), (0..5).collect()];
    assert_eq!(left(&journal), expected);
    drop(journal);
    let journal = open(&log);
    assert_eq!(left(&journal), expected);
    assert_eq!(journal.status().damaged_commits, 0);
}

#[test]
fn a_cut_that_is_refused_costs_nothing() {
    let log = SimLog::default();
    log.with(|image| image.refuses_trims = true);
    let journal = open(&log);
    for round in 0..60 {
        settle(&journal, put(A, round * 10, 10));
        ack(&journal, A, round * 10 + 10);
    }
    settle(&journal, put(A, 600, 1));
    drop(journal);
    let journal = open(&log);
    assert_eq!(numbers(&all(journal.open_reader(A, READER).as_mut())), [600]);
    assert_eq!(journal.status().damaged_commits, 0);
}

/// Of a group of commits that are appended while the log was away, each is one record or more.
#[test]
fn commits_larger_than_a_record_come_in_pieces() {
    let log = SimLog::default();
    log.with(|image| image.record_bytes_max = HEADER_BYTES + 40);
    let journal = open(&log);
    settle(&journal, put(A, 0, 50));
    settle(&journal, put(A, 50, 50));
    assert!(log.with(|image| image.records.iter().all(|(_, record)| record.len() <= HEADER_BYTES + 40)));
    drop(journal);
    let expected: Vec<u64> = (0..100).collect();
    assert_eq!(numbers(&all(open_kept(&log).1.as_mut())), expected);
}

/// Whoever keeps it may change that at any time.
#[test]
fn a_log_that_takes_smaller_records_than_before_gets_them() {
    let log = SimLog::default();
    let journal = open(&log);
    // It is read by then.
    assert_eq!(journal.position(b"p"), None);
    log.with(|image| image.is_away = true);
    let ticket = journal.commit(put(A, 0, 50), None).unwrap();
    wait("a refusal", || journal.status().waiting_for.is_some());
    log.with(|image| (image.record_bytes_max, image.is_away) = (HEADER_BYTES + 40, false));
    ticket.wait(Some(LIMIT)).unwrap().unwrap();
    let expected: Vec<u64> = (0..50).collect();
    assert_eq!(numbers(&all(journal.open_reader(A, READER).as_mut())), expected);
}

/// What comes slowly comes.
#[test]
fn a_commit_of_many_records_is_read_from_a_slow_log() {
    let log = SimLog::default();
    log.with(|image| image.record_bytes_max = HEADER_BYTES + 40);
    let clock = Arc::new(SimClock(log.clone()));
    let journal = LogJournal::open(config(), Box::new(log.handle()), clock).unwrap();
    settle(&journal, put(A, 0, 50));
    log.with(|image| image.read_takes = limits::LOG_READ / 2);
    let expected: Vec<u64> = (0..50).collect();
    assert_eq!(numbers(&all(journal.open_reader(A, READER).as_mut())), expected);
}

#[test]
fn a_record_of_another_journal_says_nothing_of_what_is_missing() {
    let log = SimLog::default();
    let journal = open(&log);
    settle(&journal, put(A, 0, 1));
    let other = Header {
        kind: Kind::Commit,
        is_sealed: false,
        session: 1,
        number: 1_000,
        journal: [9; 16],
        index: 0,
        pieces: 1,
    };
    log.with(|image| image.append(cut(&other, b"content", 100)));
    settle(&journal, put(A, 1, 1));
    let found = all(journal.open_reader(A, READER).as_mut());
    assert_eq!((numbers(&found), found[1].lost_before), (vec![0, 1], 0));
    assert_eq!(journal.status().damaged_commits, 0);
}

/// A journal, and a reader of its first channel.
fn open_kept(log: &SimLog) -> (Arc<LogJournal>, Box<dyn Reader>) {
    let journal = open(log);
    let reader = journal.open_reader(A, READER);
    (journal, reader)
}

#[test]
fn damage_is_counted_told_and_passed_over() {
    let log = SimLog::default();
    let journal = open(&log);
    for number in 0..5 {
        settle(&journal, put(A, number * 2, 2));
    }
    // While it is open: a reader finds it. The first record is that of the opening.
    log.with(|image| *image.records[2].1.last_mut().unwrap() ^= 1);
    let found = all(journal.open_reader(A, READER).as_mut());
    assert_eq!(numbers(&found), [0, 1, 4, 5, 6, 7, 8, 9]);
    assert_eq!((found[1].lost_before, journal.status().damaged_commits), (2, 1));
    drop(journal);
    // An opening finds it; another header, and somebody else's record, too.
    log.with(|image| {
        image.records[4].1[20] ^= 1;
        image.append(vec![b"somebody else's".to_vec(), Vec::new()]);
    });
    let (journal, mut reader) = open_kept(&log);
    let found = all(reader.as_mut());
    assert_eq!(numbers(&found), [0, 1, 4, 5, 8, 9]);
    assert_eq!(found.iter().map(|delivery| delivery.lost_before).collect::<Vec<_>>(), [0, 2, 2]);
    assert_eq!(journal.status().damaged_commits, 2);
    drop((journal, reader));
    // The last commits of all, and the beginning.
    log.with(|image| {
        let last = image.records.len() - 1;
        image.records[last].1[20] ^= 1;
        image.records.remove(0);
    });
    let journal = open(&log);
    assert_eq!((journal.position(b"x"), journal.status().damaged_commits), (None, 4));
    settle(&journal, put(A, 10, 1));
    drop(journal);
    assert_eq!(numbers(&all(open_kept(&log).1.as_mut())), [0, 1, 4, 5, 8, 9, 10]);
}

#[test]
fn a_newer_record_is_refused_by_name() {
    let log = SimLog::default();
    settle(&open(&log), put(A, 0, 1));
    log.with(|image| {
        let mut record = image.records[1].1.clone();
        record[4] = VERSION + 1;
        let crc = crc32c::crc32c(&record[..HEADER_BYTES - 4]);
        record[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        image.append(vec![record]);
    });
    let journal = open(&log);
    let refused = journal.commit(put(A, 0, 1), None).err();
    assert!(
        matches!(&refused, Some(CommitError::Failed(reason)) if reason.contains("newer release")),
        "{refused:?}"
    );
    assert!(journal.is_over());
}

fn key(byte: u8) -> Key {
    Key::new(KeyId::new(&format!("k{byte}")).unwrap(), [byte; 32])
}

#[test]
fn with_keys_nothing_stands_in_the_log_in_clear() {
    let log = SimLog::default();
    let sealed = |keys: &[u8]| LogConfig { keys: keys.iter().map(|byte| key(*byte)).collect(), ..config() };
    let journal = open_with(&log, sealed(&[1]));
    let positions = vec![(b"secret key".to_vec(), b"secret value".to_vec())];
    settle(&journal, Commit { positions, ..state_write(b"secret", Some(b"secret")) });
    for round in 0..40 {
        settle(&journal, put(B, round * 10, 10));
        ack(&journal, B, round * 10 + 10);
    }
    settle(&journal, put(A, 0, 40));
    ack(&journal, A, 39);
    wait("a cut behind a snapshot", || log.with(|image| image.records[0].0) > 20);
    drop(journal);
    for (_, record) in log.with(|image| image.records.clone()) {
        for text in ["secret", "body 3", "return"] {
            assert!(!record.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
        }
    }
    let journal = open_with(&log, sealed(&[2, 1]));
    assert_eq!(journal.position(b"secret key"), Some(b"secret value".to_vec()));
    assert_eq!(numbers(&all(journal.open_reader(A, READER).as_mut())), [39]);
    drop(journal);
    let refused = open_with(&log, sealed(&[2])).commit(put(A, 0, 1), None).err();
    assert!(matches!(&refused, Some(CommitError::Failed(reason)) if reason.contains("`k1`")), "{refused:?}");
}

#[test]
fn who_only_looks_sees_the_positions_and_takes_nothing_over() {
    let log = SimLog::default();
    let journal = open(&log);
    settle(&journal, Commit { positions: vec![(b"failover/state".to_vec(), b"1".to_vec())], ..put(A, 0, 1) });
    let look = || {
        let mut contents = LogContents::new("test", &Keys::default());
        log.with(|image| image.records.clone())
            .iter()
            .for_each(|(place, record)| contents.take(*place, record).unwrap());
        contents.position(b"failover/state")
    };
    assert_eq!(look(), Some(b"1".to_vec()));
    settle(
        &journal,
        Commit { positions: vec![(b"failover/state".to_vec(), Vec::new())], ..Commit::default() },
    );
    assert_eq!(look(), None);
    settle(&journal, put(A, 1, 1));
}
