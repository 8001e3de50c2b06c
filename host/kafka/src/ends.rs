//! Transactions whose end a broker has lost, ended as their coordinator decided.
//!
//! A broker that dies can leave the end of a transaction out of a partition for good, although the coordinator has decided it and
//! takes it for done (KAFKA-20734; the broker logs `likely deleted already`). What stands behind is hidden from everybody
//! who reads what is committed. And the next end that the same producer writes there counts for both: a lost abort before a commit
//! brings events twice, a lost commit before an abort loses them.
//!
//! So whoever has taken a transactional id over looks first ([`settle`]). The coordinators' own topic tells how the newest
//! transaction of the id in each partition ended ([`read`]); a partition of these that stays hidden gets another
//! transaction with the same end. What is written for it is a copy of what is hidden, where it is undone or replaces itself; else
//! a record that its readers pass over.
//!
//! How it fails: a partition that has nobody who answers for it is waited for, because the next transaction there would end what is
//! lost in its own way. Reading needs READ on `__transaction_state`; without it, and where the id has another producer by now (it gets one
//! after 32,000 starts), nothing is ended, and who waits for the partition says so ([`crate::words::hidden`]).
//!
//! Of two transactions of one producer in one partition that both lost their ends the newer decides; nobody can tell them
//! apart any more. So it is, too, if an agent dies in a transaction and the one before it there had lost its end: the coordinator
//! ends both when the id is taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::admin::partition_reader;
use crate::admin::transactions::{self, TOPIC, Transaction};
use crate::channel::{in_slices, send_offsets};
use crate::context::Context;
use crate::read_back::{self, Met};
use crate::settings::Settings;
use crate::{limits, words};

/// Where brokers keep the offsets of groups.
const GROUP_OFFSETS: &str = "__consumer_offsets";

/// Why a look was not finished.
const GIVEN_UP: &str = "the look for lost ends of transactions was given up: something else is more urgent";

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It counts.
    Commit,
    /// It does not.
    Abort,
}

/// A partition.
pub type Place = (String, i32);

/// What a topic holds.
pub enum Nature<'a> {
    /// The newest value of each key; those of this id have keys that the function knows.
    Registers(&'a dyn Fn(&[u8]) -> bool),
    /// Events. The header of a record that its readers pass over, and the record's value, if they know such a one.
    Events(Option<(&'static str, &'static [u8])>),
}

/// Whose transactions are looked after.
pub struct Owner<'a> {
    /// The component, as for [`Context::new`].
    pub who: &'a str,
    /// How to connect.
    pub settings: &'a Arc<Settings>,
    /// It.
    pub transactional_id: &'a str,
    /// What its topics hold.
    pub nature: &'a dyn Fn(&str) -> Nature<'a>,
    /// Groups whose offsets are in its transactions, each with the topic that it reads.
    pub groups: &'a [(String, String)],
    /// A topic that is there: a group whose offsets have to be ended gets an offset of its first partition.
    pub anchor: &'a str,
}

/// How the newest transaction of an id in each partition ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ends(BTreeMap<Place, End>);

impl Ends {
    /// Of the states of one id, in the order in which they were written.
    fn of(states: &[Transaction]) -> Ends {
        let mut ends = BTreeMap::new();
        let current = states.last().map(|state| state.producer_id);
        // The end of another producer's transaction is not ours to write.
        for state in states.iter().filter(|state| Some(state.producer_id) == current) {
            let end = match state.state {
                "PrepareCommit" => End::Commit,
                "PrepareAbort" => End::Abort,
                _ => continue,
            };
            let places = state.partitions.iter().filter_map(|name| {
                let (topic, number) = name.rsplit_once('-')?;
                Some((topic.to_owned(), number.parse().ok()?))
            });
            ends.extend(places.map(|place| (place, end)));
        }
        Ends(ends)
    }
}

/// What an id's producer has to end, in a partition and how.
struct Lost {
    place: Place,
    end: End,
    /// The first offset that is hidden.
    from: i64,
    /// Behind the last one.
    to: i64,
}

/// What readers of what is committed do not see.
#[derive(Debug, Default)]
pub struct Hidden {
    /// Partitions that stay hidden, from an offset to the end that is there now.
    pub places: BTreeMap<Place, (i64, i64)>,
    /// Every partition answered.
    pub is_whole: bool,
    /// Partitions that are there and have nobody who answers for them now.
    pub led_by_none: Vec<Place>,
}

/// All that is to be ended.
struct Found<'a> {
    lost: Vec<Lost>,
    /// Groups whose offsets stay unstable.
    groups: Vec<(&'a str, End)>,
    /// Partitions of which nobody can say now.
    led_by_none: Vec<Place>,
}

/// A record that makes a partition part of a transaction.
struct Filling {
    place: Place,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: OwnedHeaders,
}

/// Looks for partitions in which a broker has lost the end of a transaction of this id, and ends it there. To be called with the
/// producer that has just taken the id over, no transaction open. It is given back, with why nobody could
/// look if so. An error instead: an end was begun and did not succeed, a partition has nobody who answers for it, or `give_up`
/// came before it was known; whoever called takes the id over again later, and writes nothing before.
pub fn settle<T: Send + 'static>(
    owner: &Owner<'_>,
    producer: T,
    client: fn(&T) -> &BaseProducer<Context>,
    give_up: &dyn Fn() -> bool,
) -> Result<(T, Result<(), String>), String> {
    let found = Search { owner, give_up }.lost();
    let Found { lost, groups, led_by_none } = match found {
        Ok(found) => found,
        // It was not looked to the end.
        Err(reason) if give_up() => return Err(reason),
        Err(reason) => return Ok((producer, Err(reason))),
    };
    // The next transaction there would end what is lost in its own way.
    if let Some((topic, partition)) = led_by_none.first() {
        return Err(format!(
            "{topic}, partition {partition}: no broker answers for it, so whether the last transaction there was ended is not known; \
             start the broker that has it, or delete the topic if nobody needs it any more"
        ));
    }
    let mut producer = producer;
    for end in [End::Abort, End::Commit] {
        let lost: Vec<&Lost> = lost.iter().filter(|lost| lost.end == end).collect();
        let groups: Vec<&str> = groups.iter().filter(|(_, of)| *of == end).map(|(group, _)| *group).collect();
        let fillings: Result<Vec<Filling>, String> =
            lost.iter().filter_map(|lost| owner.filling(lost).transpose()).collect();
        let fillings = match fillings {
            Ok(fillings) if fillings.is_empty() && groups.is_empty() => continue,
            Ok(fillings) => fillings,
            Err(reason) => return Ok((producer, Err(reason))),
        };
        for filling in &fillings {
            let ((topic, partition), id) = (&filling.place, owner.transactional_id);
            tracing::warn!(id, topic, partition, end = ?end, "a broker had lost the end of a transaction: it is ended now");
        }
        for group in &groups {
            let id = owner.transactional_id;
            tracing::warn!(id, group, end = ?end, "a broker had lost the end of a transaction with offsets: it is ended now");
        }
        let ended;
        (producer, ended) = owner.end(producer, client, end, &fillings, &groups, give_up)?;
        if let Err(error) = ended {
            let text = client(&producer).context().explain(&error);
            return Err(format!("ending a transaction whose end was lost: {text}"));
        }
    }
    Ok((producer, Ok(())))
}

impl Owner<'_> {
    /// What stays hidden in these partitions: by a transaction whose end was lost, or one of somebody who is slow.
    pub fn hidden<'p>(
        &self,
        places: impl ExactSizeIterator<Item = &'p Place>,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Hidden, String> {
        let asked = places.len();
        let committed = self.reader("read_committed")?;
        let written = ends_of(&self.reader("read_uncommitted")?, places, give_up)?;
        let until = Instant::now() + limits::LOST_END;
        loop {
            let stable = ends_of(&committed, written.found.keys(), give_up)?;
            let hidden = written.found.iter().filter_map(|(place, to)| {
                let from = *stable.found.get(place)?;
                (from < *to).then(|| (place.clone(), (from, *to)))
            });
            let hidden = Hidden {
                places: hidden.collect(),
                is_whole: stable.found.len() == asked,
                led_by_none: [written.led_by_none.as_slice(), &stable.led_by_none].concat(),
            };
            if hidden.places.is_empty() || Instant::now() > until {
                return Ok(hidden);
            }
            if give_up() {
                return Err(GIVEN_UP.into());
            }
            std::thread::sleep(limits::STABLE_POLL);
        }
    }

    /// One transaction in these partitions, with this end.
    fn end<T: Send + 'static>(
        &self,
        mut producer: T,
        client: fn(&T) -> &BaseProducer<Context>,
        end: End,
        fillings: &[Filling],
        groups: &[&str],
        give_up: &dyn Fn() -> bool,
    ) -> Result<(T, KafkaResult<()>), String> {
        drop(client(&producer).context().take_failed());
        if let Err(error) = client(&producer).begin_transaction() {
            return Ok((producer, Err(error)));
        }
        for filling in fillings {
            if let Err(error) = filling.send(client(&producer)) {
                return Ok((producer, Err(error)));
            }
        }
        for group in groups {
            let sent = match self.member(group) {
                Ok((member, list)) => {
                    send_offsets(producer, client, list, member, limits::TRANSACTION, give_up)
                }
                Err(error) => return Ok((producer, Err(error))),
            };
            let outcome;
            (producer, outcome) = sent.map_err(|error| error.to_string())?;
            if outcome.is_err() {
                return Ok((producer, outcome));
            }
        }
        let now = client(&producer);
        // Before an abort, too: what was not sent is in no partition, and is purged.
        let ended = in_slices(now, give_up, |slice| now.flush(slice)).and_then(|()| {
            match now.context().take_failed().first() {
                Some((_, code)) => Err(KafkaError::MessageProduction(*code)),
                None if end == End::Commit => in_slices(now, give_up, |slice| now.commit_transaction(slice)),
                None => in_slices(now, give_up, |slice| now.abort_transaction(slice)),
            }
        });
        Ok((producer, ended))
    }

    /// Somebody who is no member of the group but names it, and the offset that he writes.
    fn member(&self, group: &str) -> KafkaResult<(ConsumerGroupMetadata, TopicPartitionList)> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(self.anchor, 0, Offset::Offset(0))?;
        let consumer = self.consumer("read_committed", group)?;
        let member = consumer.group_metadata().ok_or(KafkaError::Subscription("no group".into()))?;
        Ok((member, list))
    }

    /// What is written into a partition; `None`: it is none of this id's, or nothing can be.
    fn filling(&self, lost: &Lost) -> Result<Option<Filling>, String> {
        let place = lost.place.clone();
        let copied = match ((self.nature)(&place.0), lost.end) {
            // It replaces itself, or is undone with the original.
            (Nature::Registers(is_own), _) => {
                self.hidden_record(lost, false, |key| is_own(key.unwrap_or_default()))
            }
            (Nature::Events(_), End::Abort) => self.hidden_record(lost, true, |_| true),
            (Nature::Events(Some((header, value))), End::Commit) => {
                let headers = OwnedHeaders::new().insert(Header { key: header, value: Some(b"") });
                return Ok(Some(Filling { place, key: None, value: Some(value.to_vec()), headers }));
            }
            (Nature::Events(None), End::Commit) => {
                let ((topic, partition), id) = (&lost.place, self.transactional_id);
                tracing::warn!(
                    id,
                    topic,
                    partition,
                    from = lost.from,
                    "a broker has lost the end of a transaction that counts: the next event there shows it"
                );
                Ok(None)
            }
        };
        Ok(copied?.map(|record| Filling::copy(place, &record)))
    }

    /// The first or the last record of what is hidden that has such a key.
    fn hidden_record(
        &self,
        lost: &Lost,
        is_first: bool,
        is_wanted: impl Fn(Option<&[u8]>) -> bool,
    ) -> Result<Option<OwnedMessage>, String> {
        let (topic, partition) = (lost.place.0.as_str(), lost.place.1);
        let reader = self.reader("read_uncommitted")?;
        let explain = |error: KafkaError| reader.context().explain(&error);
        let mut next = lost.from;
        read_back::assign(&reader, topic, partition, next).map_err(explain)?;
        let until = Instant::now() + limits::READ_BACK;
        let (mut found, mut met) = (None, Met::default());
        while Instant::now() < until {
            match reader.poll(limits::REQUEST) {
                Some(Ok(record)) => {
                    next = record.offset() + 1;
                    if is_wanted(record.key()) {
                        found = Some(record.detach());
                    }
                    if next >= lost.to || (is_first && found.is_some()) {
                        return Ok(found);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_)))
                    if met.counts(&reader, topic, partition, next, lost.to).map_err(explain)? =>
                {
                    return Ok(found);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => return Err(explain(error)),
                None => break,
            }
        }
        Err(format!("reading what is hidden in {topic}, partition {partition}: no end in time"))
    }

    fn consumer(&self, isolation: &str, group: &str) -> KafkaResult<BaseConsumer<Context>> {
        partition_reader(self.who, self.settings, group, isolation)
    }

    fn reader(&self, isolation: &str) -> Result<BaseConsumer<Context>, String> {
        self.consumer(isolation, "flumen-questions")
            .map_err(|error| words::explain(&error, self.settings, None))
    }
}

impl Filling {
    fn copy(place: Place, record: &OwnedMessage) -> Filling {
        let headers = record.headers().cloned().unwrap_or_default();
        let (key, value) = (record.key().map(<[u8]>::to_vec), record.payload().map(<[u8]>::to_vec));
        Filling { place, key, value, headers }
    }

    fn send(&self, producer: &BaseProducer<Context>) -> KafkaResult<()> {
        let (topic, partition) = (self.place.0.as_str(), self.place.1);
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(topic, 0).partition(partition);
        (record.key, record.payload) = (self.key.as_deref(), self.value.as_deref());
        record.headers = Some(self.headers.clone());
        producer.send(record).map_err(|(error, _)| error)
    }
}

/// The looking, which changes nothing.
struct Search<'a, 'b> {
    owner: &'a Owner<'b>,
    give_up: &'a dyn Fn() -> bool,
}

impl<'b> Search<'_, 'b> {
    fn lost(&self) -> Result<Found<'b>, String> {
        let mut ends = self.read()?;
        let groups = self.groups(&mut ends)?;
        let hidden = self.owner.hidden(ends.0.keys(), self.give_up)?;
        let lost = hidden.places.into_iter().filter_map(|(place, (from, to))| {
            let end = *ends.0.get(&place)?;
            Some(Lost { place, end, from, to })
        });
        Ok(Found { lost: lost.collect(), groups, led_by_none: hidden.led_by_none })
    }

    /// Groups of ours whose offsets somebody's transaction keeps open, with the end of ours.
    fn groups(&self, ends: &mut Ends) -> Result<Vec<(&'b str, End)>, String> {
        let mut open = Vec::new();
        let parts: Vec<(i32, End)> = ends
            .0
            .iter()
            .filter(|((topic, _), _)| topic == GROUP_OFFSETS)
            .map(|((_, n), end)| (*n, *end))
            .collect();
        ends.0.retain(|(topic, _), _| topic != GROUP_OFFSETS);
        if parts.is_empty() {
            return Ok(open);
        }
        let reader = self.owner.reader("read_committed")?;
        let partitions = partitions(&reader, GROUP_OFFSETS)?;
        for (group, topic) in self.owner.groups {
            let place = coordinator_partition(group, partitions);
            let Some((_, end)) = parts.iter().find(|(number, _)| *number == place) else { continue };
            if self.is_unstable(group, topic)? {
                open.push((group.as_str(), *end));
            }
        }
        Ok(open)
    }

    fn is_unstable(&self, group: &str, topic: &str) -> Result<bool, String> {
        let explain = |error: KafkaError| words::explain(&error, self.owner.settings, None);
        let reader = self.owner.consumer("read_committed", group).map_err(explain)?;
        let mut list = TopicPartitionList::new();
        for number in 0..partitions(&reader, topic)? {
            list.add_partition(topic, number);
        }
        match reader.committed_offsets(list, limits::LOST_END) {
            Ok(_) => Ok(false),
            // librdkafka asks again as long as the answer is `not stable`.
            Err(error) if words::code(&error) == Some(Code::OperationTimedOut) => Ok(true),
            Err(error) => Err(explain(error)),
        }
    }

    /// Asks the coordinators' topic. It is compacted, but what was written last is all there: the end of it is enough, unless
    /// the id was at rest for long.
    fn read(&self) -> Result<Ends, String> {
        let id = self.owner.transactional_id;
        let reader = self.owner.reader("read_uncommitted")?;
        let partition = coordinator_partition(id, partitions(&reader, TOPIC)?);
        let explain = |error: KafkaError| reader.context().explain(&error);
        let (low, high) = reader.fetch_watermarks(TOPIC, partition, limits::REQUEST).map_err(explain)?;
        let mut length = limits::COORDINATOR_RECORDS;
        loop {
            let from = low.max(high.saturating_sub(length));
            let states = self.read_states(&reader, partition, from, high)?;
            let ends = Ends::of(&states);
            // A producer of epoch 0 has never had a transaction, so there is nothing to look for.
            let is_new = states.last().is_some_and(|state| state.epoch == 0);
            if from == low || is_new || !ends.0.is_empty() {
                return Ok(ends);
            }
            length = length.saturating_mul(16);
        }
    }

    fn read_states(
        &self,
        reader: &BaseConsumer<Context>,
        partition: i32,
        from: i64,
        to: i64,
    ) -> Result<Vec<Transaction>, String> {
        let mut states = Vec::new();
        if from >= to {
            return Ok(states);
        }
        let explain = |error: KafkaError| format!("reading {TOPIC}: {}", reader.context().explain(&error));
        let mut next = from;
        read_back::assign(reader, TOPIC, partition, next).map_err(explain)?;
        let until = Instant::now() + limits::READ_BACK;
        let mut met = Met::default();
        while Instant::now() < until && !(self.give_up)() {
            match reader.poll(limits::SLICE) {
                Some(Ok(record)) => {
                    states.extend(transactions::of_record(
                        record.key(),
                        record.payload(),
                        self.owner.transactional_id,
                    ));
                    next = record.offset() + 1;
                    if next >= to {
                        return Ok(states);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_)))
                    if met.counts(reader, TOPIC, partition, next, to).map_err(explain)? =>
                {
                    return Ok(states);
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                Some(Err(error)) => return Err(explain(error)),
            }
        }
        Err(format!("reading {TOPIC}: no end in time"))
    }
}

/// Where partitions end.
struct EndOffsets {
    found: BTreeMap<Place, i64>,
    led_by_none: Vec<Place>,
}

/// Where each partition ends for this reader. One that is gone, or may not be seen, is left out. A broker that has just started does not
/// know at once what it leads, and librdkafka hands the first error of a partition on although it asked again: whoever does not answer
/// is asked anew for as long as a question may take.
fn ends_of<'a>(
    reader: &BaseConsumer<Context>,
    places: impl Iterator<Item = &'a Place>,
    give_up: &dyn Fn() -> bool,
) -> Result<EndOffsets, String> {
    let until = Instant::now() + limits::REQUEST;
    let mut offsets = EndOffsets { found: BTreeMap::new(), led_by_none: places.cloned().collect() };
    while !offsets.led_by_none.is_empty() {
        ask_ends(reader, &mut offsets, until)?;
        if offsets.led_by_none.is_empty() || Instant::now() >= until {
            break;
        }
        if give_up() {
            return Err(GIVEN_UP.into());
        }
        std::thread::sleep(limits::STABLE_POLL);
    }
    Ok(offsets)
}

/// One question for those that nobody has answered for. If all of them have no leader, or one broker answers with an error, librdkafka
/// (2.12) gives an error for the question as a whole, and no answers.
fn ask_ends(reader: &BaseConsumer<Context>, offsets: &mut EndOffsets, until: Instant) -> Result<(), String> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in &offsets.led_by_none {
        // librdkafka asks brokers for a time; the end is a time of Kafka's protocol too (-1).
        list.add_partition_offset(topic, *partition, Offset::End).map_err(|error| error.to_string())?;
    }
    let answer = match reader.offsets_for_times(list, until.saturating_duration_since(Instant::now())) {
        Ok(answer) => answer,
        Err(error) => match words::code(&error) {
            Some(code) if is_led_by_none(code) || is_silence(code) => return Ok(()),
            Some(Code::UnknownPartition | Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
                leave_out_gone(reader, &mut offsets.led_by_none, until);
                return Ok(());
            }
            _ => return Err(reader.context().explain(&error)),
        },
    };
    offsets.led_by_none.clear();
    for element in answer.elements() {
        let place = (element.topic().to_owned(), element.partition());
        match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => {
                offsets.found.insert(place, offset);
            }
            (Err(error), _) if words::code(&error).is_some_and(is_led_by_none) => {
                offsets.led_by_none.push(place)
            }
            _ => {}
        }
    }
    Ok(())
}

/// Leaves out what is gone, or may not be seen. This also tells librdkafka who leads the others by now: what it knows of them
/// it does not ask for again.
fn leave_out_gone(reader: &BaseConsumer<Context>, places: &mut Vec<Place>, until: Instant) {
    let topics: BTreeSet<String> = places.iter().map(|(topic, _)| topic.clone()).collect();
    for topic in topics {
        // Without an answer nothing is gone.
        let left = until.saturating_duration_since(Instant::now());
        let Ok(metadata) = reader.fetch_metadata(Some(&topic), left) else { return };
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let is_there = |number: i32| match found.map(|found| (found, found.error())) {
            None => false,
            Some((_, Some(error))) => is_led_by_none(error.into()),
            Some((found, None)) => found.partitions().iter().any(|partition| partition.id() == number),
        };
        places.retain(|(of, number)| *of != topic || is_there(*number));
    }
}

/// Nobody answered in time.
fn is_silence(code: Code) -> bool {
    matches!(
        code,
        Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerTransportFailure | Code::AllBrokersDown
    )
}

/// The partition is there, and somebody will answer for it again.
fn is_led_by_none(code: Code) -> bool {
    matches!(
        code,
        Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::KafkaStorageError
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
    )
}

fn partitions(reader: &BaseConsumer<Context>, topic: &str) -> Result<i32, String> {
    let metadata = reader.fetch_metadata(Some(topic), limits::REQUEST);
    let metadata = metadata.map_err(|error| reader.context().explain(&error))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    let count =
        found.and_then(|found| i32::try_from(found.partitions().len()).ok()).filter(|count| *count > 0);
    count.ok_or_else(|| format!("the topic {topic} is not to be seen: ask for READ and DESCRIBE on it"))
}

/// The partition of the coordinator of a transactional id or a group: Java's hash of the name.
fn coordinator_partition(name: &str, partitions: i32) -> i32 {
    let hash =
        name.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    hash.checked_abs().unwrap_or(0).checked_rem(partitions).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_back::tests::settings;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use std::cell::Cell;

    fn state(producer_id: i64, state: &'static str, partitions: &[&str]) -> Transaction {
        let partitions = partitions.iter().map(|name| (*name).to_owned()).collect();
        let (epoch, changed_ms, timeout_ms) = (0, 0, 0);
        Transaction { id: "x".into(), producer_id, epoch, state, partitions, changed_ms, timeout_ms }
    }

    #[test]
    fn the_newest_end_in_each_partition_of_the_producer_that_has_the_id_counts() {
        let states = [
            state(1, "PrepareCommit", &["old-1"]),
            state(2, "Ongoing", &["a-b-0"]),
            state(2, "PrepareAbort", &["a-b-0", "c-1"]),
            state(2, "CompleteAbort", &[]),
            state(2, "PrepareCommit", &["c-1"]),
            state(2, "Ongoing", &["d-0"]),
            state(2, "Empty", &[]),
        ];
        let expected = [(("a-b".to_owned(), 0), End::Abort), (("c".to_owned(), 1), End::Commit)];
        assert_eq!(Ends::of(&states), Ends(BTreeMap::from(expected)));
        assert_eq!(Ends::of(&[]), Ends::default());
    }

    fn reader_of(cluster: &MockCluster<'_, DefaultProducerContext>) -> BaseConsumer<Context> {
        partition_reader("test", &settings(cluster), "flumen-questions", "read_uncommitted").unwrap()
    }

    fn places(topic: &str, partitions: i32) -> Vec<Place> {
        (0..partitions).map(|number| (topic.to_owned(), number)).collect()
    }

    #[test]
    fn a_partition_without_a_leader_is_asked_for_until_it_has_one() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        cluster.partition_leader("t", 1, None).unwrap();
        let reader = reader_of(&cluster);
        let asked = Cell::new(0);
        // Asked between two questions: the second is for this partition alone.
        let give_up = || {
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                cluster.partition_leader("t", 1, Some(1)).unwrap();
            }
            false
        };
        let ends = ends_of(&reader, places("t", 2).iter(), &give_up).unwrap();
        assert_eq!(ends.found.into_keys().collect::<Vec<_>>(), places("t", 2));
        assert_eq!((ends.led_by_none, asked.get() >= 2), (Vec::new(), true));
    }

    #[test]
    fn a_partition_that_stays_without_a_leader_is_told_and_none_that_is_gone() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        cluster.partition_leader("t", 0, None).unwrap();
        let reader = reader_of(&cluster);
        let mut offsets =
            EndOffsets { found: BTreeMap::new(), led_by_none: [places("t", 2), places("gone", 1)].concat() };
        ask_ends(&reader, &mut offsets, Instant::now() + limits::REQUEST).unwrap();
        assert_eq!((offsets.found.len(), offsets.led_by_none), (0, places("t", 1)));
        let gone = ends_of(&reader, places("gone", 2).iter(), &|| false).unwrap();
        assert_eq!((gone.found.len(), gone.led_by_none.len()), (0, 0));
    }

    #[test]
    fn a_broker_that_does_not_know_yet_what_it_leads_is_asked_again() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        let not_yet = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        cluster.request_errors(RDKafkaApiKey::ListOffsets, &[not_yet, not_yet]);
        let reader = reader_of(&cluster);
        let ends = ends_of(&reader, places("t", 2).iter(), &|| false).unwrap();
        assert_eq!((ends.found.len(), ends.led_by_none.len()), (2, 0));
    }

    #[test]
    fn a_look_that_is_given_up_is_none() {
        let cluster = MockCluster::new(1).unwrap();
        let settings = settings(&cluster);
        let nature = |_: &str| Nature::Events(None);
        let (who, transactional_id, groups, anchor) = ("test", "x", &[], "t");
        let owner = Owner { who, settings: &settings, transactional_id, nature: &nature, groups, anchor };
        let context = Context::new("test", settings.clone(), None);
        let producer: BaseProducer<Context> = settings.config("test").create_with_context(context).unwrap();
        // Whoever may not read the coordinators' topic goes on without.
        let (producer, looked) = settle(&owner, producer, |producer| producer, &|| false).unwrap();
        assert!(looked.unwrap_err().contains(TOPIC));
        assert!(settle(&owner, producer, |producer| producer, &|| true).is_err());
    }

    /// As `Utils.abs(name.hashCode) % 50` of Kafka.
    #[test]
    fn coordinators_are_found_as_kafka_does() {
        assert_eq!(coordinator_partition("", 50), 0);
        assert_eq!(coordinator_partition("a", 50), 47);
        assert_eq!(coordinator_partition("hello", 50), 22);
        // Java's hash of this one is its smallest integer, whose absolute value is none.
        assert_eq!(coordinator_partition("polygenelubricants", 50), 0);
    }
}
