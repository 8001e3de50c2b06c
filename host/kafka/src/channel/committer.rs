//! The thread that makes transactions of commits, and finds out whether they counted.
//!
//! A group is sent until it counts: aborted and sent again without the acknowledgements that the group coordinator
//! refuses; after anything else the connection is made anew, and the commit record tells. What is too large for its topic
//! leaves for the quarantine in the same step.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flumen_event::Batch;
use flumen_journal::failover::{Away, Health, StatePlace};
use flumen_journal::{Clock, Commit, CommitError, OsClock, StateWrites};
use flumen_pipeline::{Quarantined, quarantine};
use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::connection::{Connection, Places, ReadBack, in_slices};
use super::handover::{is_membership, send_offsets};
use super::limbo::Limbo;
use super::options::{ChannelTopic, JournalOptions};
use super::queue::{Pending, Queue};
use super::record::{Encoder, FLUME_NOTHING, NOTHING};
use super::registers::{CommitRecord, Owner};
use super::remembered::records;
use super::share::{ReaderAck, ReaderShared};
use super::topics::{POSITIONS, STATE, Topic};
use crate::context::Context;
use crate::ends::{self, Nature};
use crate::{limits, words};

/// What the committer tells `status`.
#[derive(Default)]
pub(super) struct Figures {
    pub groups: AtomicU64,
    pub commits: AtomicU64,
    pub bytes: AtomicU64,
    pub encode_ns: AtomicU64,
    pub commit_ns: AtomicU64,
    /// Where events go, if there is a failover.
    pub failover: Mutex<Option<String>>,
    pub failovers: AtomicU64,
    /// Why nothing goes on now.
    pub waiting_for: Mutex<Option<String>>,
    /// Events that were sent to each channel since the start.
    pub events: Vec<AtomicU64>,
    /// The channels' topics, once they are known.
    pub topics: Mutex<Vec<Topic>>,
    /// The largest record of the topic of state; 0 until it is known.
    pub state_record_bytes: AtomicUsize,
}

/// Why a group did not count.
pub(super) enum Trouble {
    /// The transaction was aborted; the group, or what is left of it, can be sent at once.
    Again,
    /// Nobody knows; ask, then perhaps send again.
    Unknown(String),
    /// Never.
    Fatal(String),
}

/// The committer's side of a journal.
pub(super) struct Committer {
    pub options: Arc<JournalOptions>,
    pub owner: Owner,
    pub queue: Arc<Queue>,
    pub limbo: Limbo,
    pub figures: Arc<Figures>,
    session: u64,
    /// Of the last group that counted.
    pub number: u64,
    /// The partitions of our records, once they are known.
    places: Option<Places>,
    /// Where to look for the commit record.
    read_from: i64,
    pub connection: Option<Connection>,
    /// What was taken from the queue and has no outcome.
    pub group: Vec<Pending>,
    /// A transaction with the group was begun, and nobody knows whether it counts.
    pub is_in_doubt: bool,
    pub failover: Option<Away>,
    /// Whether the brokers answer, if there is a failover.
    health: Option<Arc<Health>>,
    /// Events go to the file.
    pub is_away: bool,
    /// Acknowledgements that wait for Kafka.
    pub held: Vec<Pending>,
    /// Those of a group in doubt, and its number.
    pub held_in_doubt: (u64, Vec<Pending>),
    /// When expired state was looked for.
    swept: Instant,
    /// When it is next looked whether what was written last is to be seen. `None`: it was, or there is no use in it.
    next_look: Option<Instant>,
    /// How often it was looked for since a group counted last.
    looks: u32,
}

impl Committer {
    pub fn new(
        options: Arc<JournalOptions>,
        queue: Arc<Queue>,
        limbo: Limbo,
        figures: Arc<Figures>,
        failover: Option<(Arc<Health>, Away)>,
    ) -> Committer {
        let owner = Owner::new(&options.agent, &options.pipeline);
        let session = RandomState::new().build_hasher().finish();
        let (held, held_in_doubt) = Default::default();
        let (health, failover) = failover.unzip();
        Committer {
            options,
            owner,
            queue,
            limbo,
            figures,
            session,
            number: 0,
            places: None,
            read_from: 0,
            connection: None,
            group: Vec::new(),
            is_in_doubt: false,
            failover,
            health,
            is_away: false,
            held,
            held_in_doubt,
            swept: Instant::now(),
            next_look: None,
            looks: 0,
        }
    }

    /// Runs until the journal closes and everything handed in counts, or cannot be made to.
    pub fn run(mut self) {
        let mut pause = limits::RECONNECT_FIRST;
        if let Err(Trouble::Fatal(reason)) = self.begin() {
            tracing::error!(pipeline = &*self.options.pipeline, "{reason}");
            return self.give_up(Some(reason));
        }
        loop {
            let trouble = match self.step() {
                Ok(true) => {
                    pause = limits::RECONNECT_FIRST;
                    continue;
                }
                Ok(false) => return self.queue.fail(None),
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Again => {}
                Trouble::Fatal(reason) => {
                    tracing::error!(pipeline = &*self.options.pipeline, "{reason}");
                    return self.give_up(Some(reason));
                }
                Trouble::Unknown(reason) => {
                    self.disconnect();
                    if let Err(Trouble::Fatal(reason)) = self.put_waiting_away() {
                        tracing::error!(pipeline = &*self.options.pipeline, "{reason}");
                        return self.give_up(Some(reason));
                    }
                    let first = self.figures.waiting_for.lock().replace(reason.clone()).is_none();
                    let retry_in_ms = pause.as_millis() as u64;
                    if first {
                        tracing::error!(
                            pipeline = &*self.options.pipeline,
                            retry_in_ms,
                            "Kafka journal: {reason}"
                        );
                    } else {
                        tracing::debug!(
                            pipeline = &*self.options.pipeline,
                            retry_in_ms,
                            "Kafka journal: {reason}"
                        );
                    }
                    // With a file to go to nobody waits long, and a close makes everything handed in durable there.
                    let now = if self.is_away { limits::RECONNECT_FIRST } else { pause };
                    if self.wait(now) && !self.is_away {
                        return self.give_up(None);
                    }
                    pause = (pause * 2).min(limits::RECONNECT_MAX);
                }
            }
        }
    }

    /// True: the journal closes.
    fn wait(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.queue.is_closing() {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.queue.is_closing()
    }

    fn give_up(self, reason: Option<String>) {
        let reason: Option<Arc<str>> = reason.map(Into::into);
        let error = reason.clone().map_or(CommitError::Closing, CommitError::Failed);
        for pending in self.group.iter().chain(&self.held).chain(&self.held_in_doubt.1) {
            pending.slot.answer(Err(error.clone()));
        }
        self.queue.fail(reason);
    }

    /// One group, if there is one. False: closed, and nothing is left.
    fn step(&mut self) -> Result<bool, Trouble> {
        if self.is_away {
            return self.step_away();
        }
        if self.is_given_up() && self.queue.is_open() {
            self.leave()?;
            return Ok(true);
        }
        if self.connection.is_none() {
            self.connect()?;
        }
        self.sweep();
        if self.group.is_empty() {
            self.group = self.queue.take_group(Duration::from_millis(500));
        }
        if self.group.is_empty() {
            if let Some(connection) = &self.connection {
                // Each takes one event: lines of the log and errors come faster than this step while brokers are away.
                (0..limits::EVENTS_AT_ONCE).for_each(|_| connection.producer.poll(Duration::ZERO));
            }
            self.look_after_idle();
            return Ok(!self.queue.is_closing() || !self.queue.is_empty());
        }
        self.drop_late();
        self.send_group()?;
        Ok(true)
    }

    /// Makes the group count.
    pub fn send_group(&mut self) -> Result<(), Trouble> {
        if self.group.is_empty() {
            return Ok(());
        }
        self.is_in_doubt = true;
        let sent = self.send();
        // Aborted: it does not count.
        self.is_in_doubt = !matches!(sent, Ok(()) | Err(Trouble::Again));
        sent?;
        self.finish()
    }

    /// The brokers are thought to be away, and there is somewhere else to go.
    pub fn is_given_up(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.is_down())
    }

    fn disconnect(&mut self) {
        self.connection = None;
        if let Some(failover) = &self.failover {
            failover.break_return();
        }
    }

    /// The last transaction counts.
    pub fn count(&mut self) -> Result<(), Trouble> {
        self.number += 1;
        (self.next_look, self.looks) = (Some(Instant::now() + limits::IDLE_LOOK), 0);
        self.limbo.settle(self.number).map_err(|error| Trouble::Fatal(error.to_string()))
    }

    /// A producer, what it finds, and what that says of the group in doubt.
    pub fn connect(&mut self) -> Result<(), Trouble> {
        let is_first = !self.queue.is_open();
        let give_up = || self.queue.is_closing() || self.is_given_up();
        let connection = Connection::open(&self.options, is_first, &give_up);
        let mut connection = connection.map_err(Trouble::Unknown)?;
        self.end_lost(&connection, &give_up).map_err(Trouble::Unknown)?;
        let places = match self.places {
            Some(places) => Ok(places),
            None => connection.find_places(&self.options, &self.owner, &give_up),
        };
        connection.places = places.map_err(Trouble::Unknown)?;
        let read = connection.read_back(&self.options, &self.owner, self.read_from, &give_up);
        let read = read.map_err(Trouble::Unknown)?;
        if is_first && self.options.keeps_state {
            self.read_state(&connection, &give_up).map_err(Trouble::Unknown)?;
        }
        // Whether an end was lost may not have been known.
        if self.looks < limits::IDLE_LOOKS {
            self.next_look.get_or_insert_with(|| Instant::now() + limits::IDLE_LOOK);
        }
        self.places = Some(connection.places);
        self.note_marks(&read);
        *self.figures.topics.lock() = connection.topics.clone();
        self.figures.state_record_bytes.store(connection.state_record_bytes, Ordering::Relaxed);
        if is_first {
            self.open(&connection, read)?;
        } else {
            self.judge(&read)?;
            self.read_from = read.next;
        }
        self.connection = Some(connection);
        if self.figures.waiting_for.lock().take().is_some() {
            tracing::info!(pipeline = &*self.options.pipeline, "Kafka journal works again");
        }
        Ok(())
    }

    /// Ends what a broker may have left open of ours, before anything is read or written: see [`ends`].
    fn end_lost(&self, connection: &Connection, give_up: &dyn Fn() -> bool) -> Result<(), String> {
        let id = self.options.transactional_id();
        let settled = self
            .with_owner(&id, |owner| ends::settle(owner, connection.producer.clone(), Arc::as_ref, give_up));
        if let (_, Err(reason)) = settled? {
            let pipeline = &*self.options.pipeline;
            tracing::info!(pipeline, "whether a broker lost the end of a transaction is not known: {reason}");
        }
        Ok(())
    }

    /// Of the transactions of this journal.
    fn with_owner<T>(&self, id: &str, then: impl FnOnce(&ends::Owner<'_>) -> T) -> T {
        let is_own = |key: &[u8]| self.owner.own(key).is_some();
        let nature = |topic: &str| match topic {
            POSITIONS | STATE => Nature::Registers(&is_own),
            topic => {
                let is_flume = self.options.channels.iter().any(|c| c.topic == topic && c.is_flume);
                Nature::Events(Some((NOTHING, if is_flume { FLUME_NOTHING } else { b"" })))
            }
        };
        let readers = |channel: &ChannelTopic| {
            let topic = channel.topic.clone();
            channel.readers.iter().map(move |(_, group)| (group.clone(), topic.clone())).collect::<Vec<_>>()
        };
        let groups: Vec<(String, String)> = self.options.channels.iter().flat_map(readers).collect();
        then(&ends::Owner {
            who: &format!("journal {}", self.options.pipeline),
            settings: &self.options.settings,
            transactional_id: id,
            nature: &nature,
            groups: &groups,
            anchor: POSITIONS,
        })
    }

    /// Nothing has come for a while: is what was written last to be seen? If not, a broker may have lost its end while this
    /// producer lived, and nothing would end it before the next event. A broker that has just started does not answer for
    /// all of its partitions, so it is looked again until all is to be seen, a few times.
    fn look_after_idle(&mut self) {
        if self.next_look.is_none_or(|next| next > Instant::now()) {
            return;
        }
        let Some(connection) = &self.connection else { return };
        let mut places = vec![(POSITIONS.to_owned(), connection.places.positions)];
        for topic in &connection.topics {
            places.extend((0..topic.partitions).map(|number| (topic.name.clone(), number)));
        }
        let give_up = || !self.queue.is_empty() || self.queue.is_closing();
        let id = self.options.transactional_id();
        let hidden = self.with_owner(&id, |owner| owner.hidden(places.iter(), &give_up));
        let is_seen = hidden.as_ref().is_ok_and(|hidden| hidden.places.is_empty() && hidden.is_whole);
        self.looks += 1;
        let pause = limits::IDLE_LOOK * 2_u32.pow(self.looks.min(limits::IDLE_LOOKS));
        self.next_look = (!is_seen && self.looks < limits::IDLE_LOOKS).then(|| Instant::now() + pause);
        if hidden.is_ok_and(|hidden| !hidden.places.is_empty()) {
            // The way back looks for it.
            self.disconnect();
        }
    }

    /// What plugins remember, before any of them is asked.
    fn read_state(&self, connection: &Connection, give_up: &dyn Fn() -> bool) -> Result<(), String> {
        let begin = Instant::now();
        let remembered = &self.queue.remembered;
        let records = connection.read_state(&self.options, &self.owner, remembered, give_up)?;
        if let Some(failover) = self.failover.as_ref().filter(|_| self.is_away) {
            let mut place = StatePlace::default();
            while let Some(part) = failover.state_part(&mut place) {
                remembered.lay_over(&part);
            }
        }
        let keys: u64 = remembered.sizes().iter().map(|size| size.keys).sum();
        let took_ms = begin.elapsed().as_millis() as u64;
        tracing::info!(
            pipeline = &*self.options.pipeline,
            keys,
            records,
            took_ms,
            "read what plugins remember"
        );
        Ok(())
    }

    /// Forgets what has expired, now and then: its removal from the topic is a commit like any other.
    fn sweep(&mut self) {
        if !self.options.keeps_state || self.swept.elapsed() < limits::STATE_SWEEP_EVERY {
            return;
        }
        self.swept = Instant::now();
        if self.queue.remembered.sweep_some(OsClock.wall_ns()) {
            // A journal that closes leaves it to the next life.
            drop(self.queue.push(Commit::default(), Vec::new(), None));
        }
    }

    /// The first time: takes what is there, and says that this session begins.
    fn open(&mut self, connection: &Connection, read: ReadBack) -> Result<(), Trouble> {
        self.number = read.record.map_or(0, |record| record.number);
        self.limbo.settle(self.number).map_err(|error| Trouble::Fatal(error.to_string()))?;
        let unknown = |error: KafkaError| Trouble::Unknown(connection.producer.context().explain(&error));
        connection.producer.begin_transaction().map_err(unknown)?;
        self.write_record(connection, self.number)?;
        self.end(&connection.producer)?;
        self.read_from = read.next;
        let positions = self.merge(read.positions);
        tracing::info!(
            pipeline = &*self.options.pipeline,
            positions = positions.len(),
            group = self.number,
            "Kafka journal opened"
        );
        self.queue.set_positions(positions);
        Ok(())
    }

    /// Did the group in doubt count?
    fn judge(&mut self, read: &ReadBack) -> Result<(), Trouble> {
        let Some(record) = read.record else { return Ok(()) };
        if record.session != self.session {
            let id = self.options.id();
            return Err(Trouble::Fatal(format!(
                "fenced: another agent with the name `{}` runs the pipeline `{}` on this cluster ({id}) and has taken \
                 over; give each agent a name of its own",
                self.options.agent, self.options.pipeline
            )));
        }
        if record.number == self.number + 1 {
            let group = record.number;
            tracing::info!(pipeline = &*self.options.pipeline, group, "the transaction in doubt counts");
            if self.is_away {
                // A step of the way back from the file: its mark was read too.
                self.count()?;
            } else {
                self.finish()?;
            }
        }
        self.is_in_doubt = false;
        Ok(())
    }

    /// Acknowledgements that come too late are refused, with everything that is in one commit with them.
    pub fn drop_late(&mut self) {
        let group = std::mem::take(&mut self.group);
        for pending in group {
            // The state may change with each refusal: one after the other.
            match pending.acks.iter().find_map(|ack| ack.reader.check(ack).err()) {
                None => self.group.push(pending),
                Some(reason) => {
                    pending.acks.iter().for_each(|ack| ack.reader.refuse(ack, &reason));
                    self.queue.refused(&pending);
                    pending.slot.answer(Err(CommitError::Refused(reason.into())));
                }
            }
        }
    }

    /// The group counts.
    fn finish(&mut self) -> Result<(), Trouble> {
        self.count()?;
        self.is_in_doubt = false;
        let group = std::mem::take(&mut self.group);
        self.answer(&group);
        self.figures.groups.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// These commits count.
    pub fn answer(&self, group: &[Pending]) {
        self.queue.committed(group);
        for pending in group {
            pending.acks.iter().for_each(|ack| ack.reader.committed(ack));
            for (channel, rows) in puts(pending).map(|(channel, batch)| (channel, batch.rows())) {
                if let Some(events) = self.figures.events.get(channel) {
                    events.fetch_add(rows as u64, Ordering::Relaxed);
                }
            }
            pending.slot.answer(Ok(self.number));
        }
        self.figures.commits.fetch_add(group.len() as u64, Ordering::Relaxed);
        self.figures.bytes.fetch_add(group.iter().map(|p| p.bytes as u64).sum(), Ordering::Relaxed);
    }

    /// Commits the transaction.
    pub fn end(&self, producer: &BaseProducer<Context>) -> Result<(), Trouble> {
        let give_up = || self.is_given_up();
        // librdkafka's own flush inside of the commit polls nothing.
        in_slices(producer, &give_up, |slice| producer.flush(slice))
            .and_then(|()| in_slices(producer, &give_up, |slice| producer.commit_transaction(slice)))
            .map_err(|error| Trouble::Unknown(producer.context().explain(&error)))
    }

    /// One transaction with the whole group.
    fn send(&mut self) -> Result<(), Trouble> {
        let Some(connection) = &self.connection else { return Err(Trouble::Again) };
        let producer = &connection.producer;
        let unknown = |error: KafkaError| Trouble::Unknown(producer.context().explain(&error));
        let quarantined = self.quarantined(connection);
        let prepared = self.limbo.prepare(self.number + 1, &quarantined);
        prepared.map_err(|error| Trouble::Fatal(error.to_string()))?;

        drop(producer.context().take_failed());
        let begin = Instant::now();
        producer.begin_transaction().map_err(unknown)?;
        for pending in &self.group {
            for (channel, batch) in puts(pending) {
                if let Some(topic) = connection.topics.get(channel) {
                    send_batch(producer, topic, batch)?;
                }
            }
            self.write_registers(connection, pending)?;
        }
        self.write_record(connection, self.number + 1)?;
        self.figures.encode_ns.fetch_add(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        let begin = Instant::now();
        // Before the offsets: they are acknowledgements of what the same transaction may put.
        self.send_offsets(producer)?;
        self.end(producer)?;
        self.figures.commit_ns.fetch_add(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        producer.context().works();
        Ok(())
    }

    /// What leaves the flow with this group: what was put to the quarantine, and what is too large for its topic.
    fn quarantined(&self, connection: &Connection) -> Vec<Batch> {
        let mut batches = Vec::new();
        for pending in &self.group {
            for put in &pending.commit.puts {
                if put.channels.iter().any(|channel| usize::from(channel.0) >= connection.topics.len()) {
                    batches.push(put.batch.clone());
                }
            }
            for (channel, batch) in puts(pending) {
                let Some(topic) = connection.topics.get(channel) else { continue };
                batches.extend(too_large(topic, batch));
            }
        }
        batches
    }

    fn write_registers(&self, connection: &Connection, pending: &Pending) -> Result<(), Trouble> {
        let producer = &connection.producer;
        for (key, value) in &pending.commit.positions {
            let key = self.owner.position_key(key);
            let value = (!value.is_empty()).then_some(value.as_slice());
            send_register(producer, POSITIONS, connection.places.positions, &key, value)?;
        }
        self.write_state(connection, &pending.commit.state)
    }

    pub fn write_state(&self, connection: &Connection, state: &[StateWrites]) -> Result<(), Trouble> {
        for (key, value) in records(&self.owner, state) {
            let (producer, partition) = (&connection.producer, connection.places.state);
            send_register(producer, STATE, partition, &key, value.as_deref())?;
        }
        Ok(())
    }

    pub fn write_record(&self, connection: &Connection, number: u64) -> Result<(), Trouble> {
        let record = CommitRecord { session: self.session, number }.encode();
        let key = self.owner.commit_key();
        let partition = connection.places.positions;
        send_register(&connection.producer, POSITIONS, partition, &key, Some(&record))
    }

    /// The acknowledgements of all readers, the newest of each.
    fn send_offsets(&self, producer: &Arc<BaseProducer<Context>>) -> Result<(), Trouble> {
        let mut readers: Vec<(&Arc<ReaderShared>, Vec<&ReaderAck>)> = Vec::new();
        for ack in self.group.iter().flat_map(|pending| &pending.acks).filter(|ack| !ack.offsets.is_empty()) {
            match readers.iter_mut().find(|(reader, _)| Arc::ptr_eq(reader, &ack.reader)) {
                Some((_, acks)) => acks.push(ack),
                None => readers.push((&ack.reader, vec![ack])),
            }
        }
        for (reader, acks) in readers {
            let refuse = |reason: String| {
                tracing::info!(sink = reader.name, reason, "an acknowledgement was refused");
                acks.iter().for_each(|ack| ack.reader.refuse(ack, &reason));
                abort(producer)
            };
            // First the generation, then whether the partitions are ours: see reader.rs.
            let member = match reader.member() {
                Ok(member) => member,
                Err(reason) => return Err(refuse(reason)),
            };
            if let Some(reason) = acks.iter().find_map(|ack| reader.check(ack).err()) {
                return Err(refuse(reason));
            }
            let mut newest: BTreeMap<i32, i64> = BTreeMap::new();
            for (number, _, offset) in acks.iter().flat_map(|ack| &ack.offsets) {
                let entry = newest.entry(*number).or_insert(*offset);
                *entry = (*entry).max(*offset);
            }
            let mut list = TopicPartitionList::new();
            for (number, offset) in newest {
                let added = list.add_partition_offset(&reader.topic, number, rdkafka::Offset::Offset(offset));
                added.map_err(|error| Trouble::Unknown(error.to_string()))?;
            }
            let give_up = || self.is_given_up();
            let sent =
                send_offsets(producer.clone(), Arc::as_ref, list, member, limits::TRANSACTION, &give_up);
            if let Err(error) = sent.and_then(|(_, outcome)| outcome) {
                let text = producer.context().explain(&error);
                return Err(match is_membership(&error) {
                    true => refuse(format!("the members of the group {} have changed", reader.group)),
                    false => Trouble::Unknown(text),
                });
            }
        }
        Ok(())
    }
}

/// Puts to channels that are topics.
pub(super) fn puts(pending: &Pending) -> impl Iterator<Item = (usize, &Batch)> {
    let channels = |put: &'_ flumen_journal::Put| put.channels.clone();
    pending.commit.puts.iter().flat_map(move |put| {
        channels(put).into_iter().map(move |channel| (usize::from(channel.0), &put.batch))
    })
}

fn abort(producer: &BaseProducer<Context>) -> Trouble {
    // The abort waits for delivery reports that only a poll takes off: the flush polls.
    let flushed = producer.flush(limits::TRANSACTION);
    match flushed.and_then(|()| producer.abort_transaction(limits::TRANSACTION)) {
        Ok(()) => Trouble::Again,
        Err(error) => Trouble::Unknown(producer.context().explain(&error)),
    }
}

/// Numbers of the rows that the topic does not take.
pub(super) fn too_large_rows(topic: &Topic, batch: &Batch) -> Vec<u32> {
    let encoder = Encoder::new(batch, topic.is_flume);
    (0..batch.rows()).filter(|row| encoder.bytes(*row) > topic.record_bytes).map(|row| row as u32).collect()
}

/// The rows that the topic does not take, with their reason.
pub(super) fn too_large(topic: &Topic, batch: &Batch) -> Option<Batch> {
    let encoder = Encoder::new(batch, topic.is_flume);
    let rows = too_large_rows(topic, batch);
    if rows.is_empty() {
        return None;
    }
    let reason = |row: &u32| {
        let bytes = encoder.bytes(*row as usize);
        format!("{bytes} bytes are over the limit of the topic {} ({})", topic.name, topic.record_bytes)
    };
    let reasons = rows.iter().map(reason).collect();
    let batch = batch.take(&rows.into()).ok()?;
    let plain = batch.clone();
    let (by, hash, rejected) = ("kafka channel".into(), "".into(), false);
    Some(quarantine::labelled(Quarantined { batch, reasons, by, hash, rejected }).unwrap_or(plain))
}

pub(super) fn send_batch(
    producer: &BaseProducer<Context>,
    topic: &Topic,
    batch: &Batch,
) -> Result<(), Trouble> {
    let mut encoder = Encoder::new(batch, topic.is_flume);
    let partitions = u64::from(topic.partitions.unsigned_abs().max(1));
    for row in 0..batch.rows() {
        if encoder.bytes(row) > topic.record_bytes {
            continue;
        }
        let partition = i32::try_from(mix(batch.stream().value(row)) % partitions).unwrap_or(0);
        let (headers, key) = (encoder.headers(row), encoder.key(row));
        let value = encoder.value(row);
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&topic.name, row).partition(partition).payload(value).headers(headers);
        record.key = key;
        send(producer, record)?;
    }
    Ok(())
}

pub(super) fn send_register(
    producer: &BaseProducer<Context>,
    topic: &str,
    partition: i32,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<(), Trouble> {
    let mut record: BaseRecord<'_, [u8], [u8], usize> =
        BaseRecord::with_opaque_to(topic, 0).partition(partition).key(key);
    record.payload = value;
    record.headers = None::<OwnedHeaders>;
    send(producer, record)
}

/// Hands a record to librdkafka; waits while its queue is full.
fn send(
    producer: &BaseProducer<Context>,
    mut record: BaseRecord<'_, [u8], [u8], usize>,
) -> Result<(), Trouble> {
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, back)) if words::code(&error) == Some(Code::QueueFull) => {
                producer.poll(Duration::from_millis(20));
                record = back;
            }
            Err((error, _)) => return Err(Trouble::Unknown(producer.context().explain(&error))),
        }
    }
}

/// Spreads streams that are near to each other (splitmix64).
fn mix(stream: u64) -> u64 {
    let mut z = stream.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
