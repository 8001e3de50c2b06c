//! A failover's journal in a topic of a real broker: kills of the broker, another writer, cuts, topics that cannot be logs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

use std::sync::Arc;
use std::time::Duration;

use flumen_event::{Batch, BatchBuilder};
use flumen_journal::failover::STATE;
use flumen_journal::{
    Ack, ChannelId, ChannelSpec, Commit, CommitError, Journal, Keys, Put, ReaderId, StateOp, StateWrites,
};
use flumen_kafka::log::{self, LogOptions};
use flumen_pipeline::{Options, Value};
use flumen_tests::kafka::{Broker, BrokerOptions};
use flumen_tests::{limits, poll};

const MAIN: ChannelId = ChannelId(0);
const READER: ReaderId = ReaderId(0);

fn options(broker: &Broker, topic: &str) -> LogOptions {
    let brokers = Value::TextList(vec![broker.bootstrap()]);
    let entries = [("brokers".to_owned(), brokers), ("topic".to_owned(), Value::Text(topic.to_owned()))];
    LogOptions::new("agent", topic, &Options(entries.into())).unwrap()
}

fn open(options: &LogOptions) -> Arc<dyn Journal> {
    let readers = vec!["return".to_owned()];
    let spec =
        ChannelSpec { name: "main".into(), readers, capacity_events: u64::MAX, capacity_bytes: u64::MAX };
    log::open(options.clone(), vec![spec], Keys::default()).unwrap()
}

/// Bodies that do not shrink.
fn batch(first: u64, rows: u64, body_bytes: usize) -> Batch {
    let mut builder = BatchBuilder::with_capacity(rows as usize, 0);
    let mut state = first + 1;
    for number in first..first + rows {
        let bytes = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        builder.push(7, number, 1, &bytes.take(body_bytes).collect::<Vec<u8>>());
    }
    builder.finish(Vec::new()).unwrap()
}

fn put(first: u64, rows: u64, body_bytes: usize) -> Commit {
    let puts = vec![Put { channels: vec![MAIN], batch: batch(first, rows, body_bytes) }];
    Commit { puts, ..Commit::default() }
}

fn settle(journal: &dyn Journal, commit: Commit) {
    let ticket = journal.commit(commit, None).unwrap();
    ticket.wait(Some(limits::CONDITION)).expect("an outcome").unwrap();
}

fn ack(cursor: u64) -> Commit {
    let acks = vec![Ack { channel: MAIN, reader: READER, cursor }];
    Commit { acks, ..Commit::default() }
}

/// Events from the acknowledged one on, until there are so many.
fn read(journal: &dyn Journal, rows: usize) -> Vec<u64> {
    let mut reader = journal.open_reader(MAIN, READER);
    let mut found = Vec::new();
    poll::until("events", limits::CONDITION, || {
        while let Ok(Some(delivery)) = reader.next(Duration::ZERO) {
            assert_eq!(delivery.lost_before, 0);
            found.extend_from_slice(delivery.batch.position().values());
        }
        Ok(found.len() >= rows)
    })
    .unwrap();
    found
}

#[test]
fn a_journal_in_a_topic_outlives_its_broker_and_its_writer() {
    let mut broker = Broker::start(&BrokerOptions::default()).unwrap();
    let options = options(&broker, "outlives");
    assert_eq!(log::is_in_use(&options, &Keys::default()), Ok(false), "there is no topic");
    let journal = open(&options);
    let mut writes = StateWrites::new("dedup".into());
    writes.push(StateOp { key: b"k", value: Some(b"v"), expiry: None });
    let positions = vec![(STATE.to_vec(), 1_u64.to_le_bytes().to_vec())];
    settle(journal.as_ref(), Commit { positions, state: vec![writes], ..put(0, 10, 10) });
    // More than a record takes.
    settle(journal.as_ref(), put(10, 30, 100_000));
    settle(journal.as_ref(), ack(5));
    assert_eq!(log::is_in_use(&options, &Keys::default()), Ok(true));
    assert_eq!(read(journal.as_ref(), 35), (5..40).collect::<Vec<_>>());

    broker.client().wait_ended("outlives").unwrap();
    broker.kill().unwrap();
    let ticket = journal.commit(put(40, 5, 10), None).unwrap();
    poll::until("a reason", limits::CONDITION, || Ok(journal.status().waiting_for.is_some())).unwrap();
    assert!(ticket.wait(Some(Duration::ZERO)).is_none());
    let told = log::is_in_use(&options, &Keys::default()).unwrap_err();
    assert!(told.contains("outlives") && told.contains("cannot be known"), "{told}");
    broker.restart().unwrap();
    ticket.wait(Some(limits::CONDITION)).expect("an outcome").unwrap();
    poll::until("no reason", limits::CONDITION, || Ok(journal.status().waiting_for.is_none())).unwrap();
    drop(journal);

    let journal = open(&options);
    assert_eq!(journal.position(STATE), Some(1_u64.to_le_bytes().to_vec()));
    assert_eq!(read(journal.as_ref(), 40), (5..45).collect::<Vec<_>>());
    assert_eq!(journal.state().unwrap().size("dedup").keys, 1);
    let status = journal.status();
    assert_eq!((status.channels[0].head, status.damaged_commits), (45, 0));
    settle(journal.as_ref(), Commit { positions: vec![(STATE.to_vec(), Vec::new())], ..ack(45) });
    journal.close().unwrap();
    assert_eq!(log::is_in_use(&options, &Keys::default()), Ok(false));
}

#[test]
fn a_second_writer_takes_the_log_over_and_the_first_says_so() {
    let broker = Broker::shared().unwrap();
    let options = options(broker, "fenced");
    let first = open(&options);
    settle(first.as_ref(), put(0, 1, 10));
    let second = open(&options);
    settle(second.as_ref(), put(1, 1, 10));
    let refused = first.commit(put(7, 1, 10), None).unwrap().wait(Some(limits::CONDITION)).unwrap();
    assert!(matches!(&refused, Err(CommitError::Failed(reason)) if reason.contains("fenced")), "{refused:?}");
    settle(second.as_ref(), put(2, 1, 10));
    assert_eq!(read(second.as_ref(), 3), [0, 1, 2]);
}

#[test]
fn what_nobody_needs_is_deleted_from_the_topic() {
    let broker = Broker::shared().unwrap();
    let options = options(broker, "cut");
    let journal = open(&options);
    settle(journal.as_ref(), Commit { positions: vec![(b"p".to_vec(), b"1".to_vec())], ..Commit::default() });
    for round in 0..12 {
        settle(journal.as_ref(), put(round * 10, 10, 100_000));
        settle(journal.as_ref(), ack(round * 10 + 10));
    }
    settle(journal.as_ref(), put(120, 2, 10));
    let client = broker.client();
    let begins_later = || Ok(client.offsets("cut")?[0].begin > 0);
    poll::until("a cut", limits::CONDITION, begins_later).unwrap();
    drop(journal);
    let journal = open(&options);
    assert_eq!(journal.position(b"p"), Some(b"1".to_vec()));
    assert_eq!(read(journal.as_ref(), 2), [120, 121]);
    assert_eq!(journal.status().damaged_commits, 0);
}

fn waits_for(journal: &dyn Journal, part: &str) {
    let told = || Ok(journal.status().waiting_for.is_some_and(|reason| reason.contains(part)));
    poll::until(part, limits::CONDITION, told).unwrap();
}

/// Their ids differ, so neither would fence the other.
#[test]
fn a_topic_that_another_pipeline_uses_is_refused() {
    let broker = Broker::shared().unwrap();
    let one = options(broker, "one-for-two");
    let journal = open(&one);
    settle(journal.as_ref(), put(0, 1, 10));
    let two = LogOptions { pipeline: "two".into(), ..one.clone() };
    let other = open(&two);
    waits_for(other.as_ref(), "holds records of flumen/agent/one-for-two/failover");
    assert!(!other.is_read());
    let told = log::is_in_use(&two, &Keys::default()).unwrap_err();
    assert!(told.contains("name another one"), "{told}");
    settle(journal.as_ref(), put(1, 1, 10));
    assert_eq!(read(journal.as_ref(), 2), [0, 1]);
}

/// What it held is lost: nothing goes on as if it were not.
#[test]
fn a_topic_that_is_deleted_while_it_is_in_use_is_told() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    let options = options(broker, "deleted");
    let journal = open(&options);
    settle(journal.as_ref(), put(0, 1, 10));
    client.delete_topic("deleted").unwrap();
    let ticket = journal.commit(put(1, 1, 10), None).unwrap();
    waits_for(journal.as_ref(), "is not there any more");
    // A new one of that name is another one.
    client.create_topic("deleted", 1, &[("retention.ms", "-1")]).unwrap();
    waits_for(journal.as_ref(), "ends at offset 0, and had records up to");
    assert!(ticket.wait(Some(Duration::ZERO)).is_none());
    drop(journal);
    let journal = open(&options);
    settle(journal.as_ref(), put(2, 1, 10));
    assert_eq!(read(journal.as_ref(), 1), [2]);
}

#[test]
fn a_topic_that_cannot_be_a_log_is_told_until_it_can() {
    let broker = Broker::shared().unwrap();
    let client = broker.client();
    client.create_topic("short", 1, &[("retention.ms", "60000")]).unwrap();
    let journal = open(&options(broker, "short"));
    waits_for(journal.as_ref(), "the topic short deletes records by itself (retention.ms=60000)");
    client.alter_config("short", &[("retention.ms", "-1")]).unwrap();
    settle(journal.as_ref(), put(0, 1, 10));
    assert_eq!(journal.status().waiting_for, None);
    client.create_topic("many", 3, &[]).unwrap();
    let journal = open(&options(broker, "many"));
    waits_for(journal.as_ref(), "3 partitions");
    journal.close().unwrap();
}
