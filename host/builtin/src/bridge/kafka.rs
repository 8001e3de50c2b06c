//! A bucket out of a topic: where each partition is read, by whom, and what comes of it.
//!
//! Where reading begins is asked of the broker's time index (ListOffsets): the first record with a timestamp of the
//! bucket's start, less `clock_skew` when the event's time is not the record's. No earlier record can belong to the
//! bucket. What is recorded is not that answer but what the walk over the records found ([`super::scan`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use flumen_kafka::Context;
use flumen_kafka::limits::REQUEST;
use flumen_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use flumen_kafka::rdkafka::{Message, Offset, TopicPartitionList};

use super::calendar::{Bucket, time_text};
use super::error::BridgeError;
use super::limits::PARTITIONS_MAX;
use super::manifest::{ClosedBy, Manifest, PartitionEntry};
use super::options::{KafkaInput, Late, Settings};
use super::partition::{Finished, Stretch};
use super::publish::Parts;
use super::reading::{Run, consumer, read};
use super::scan::End;
use super::watch::Watch;

/// A question about a topic failed.
fn failed(consumer: &BaseConsumer<Context>, topic: &str, error: &KafkaError) -> BridgeError {
    let text = format!("topic `{topic}`: {}", consumer.context().explain(error));
    match flumen_kafka::words::code(error) {
        Some(
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::TopicAuthorizationFailed
            | Code::InvalidTopic
            | Code::SaslAuthenticationFailed
            | Code::Authentication,
        ) => BridgeError::Refused(text),
        _ => BridgeError::Kafka(text),
    }
}

/// The partitions of a topic, in order.
fn partitions(consumer: &BaseConsumer<Context>, topic: &str) -> Result<Vec<i32>, BridgeError> {
    let metadata =
        consumer.fetch_metadata(Some(topic), REQUEST).map_err(|error| failed(consumer, topic, &error))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    if let Some(error) = found.and_then(|found| found.error()) {
        return Err(failed(consumer, topic, &KafkaError::MetadataFetch(error.into())));
    }
    let mut partitions: Vec<i32> = found
        .map(|found| found.partitions().iter().map(|partition| partition.id()).collect())
        .unwrap_or_default();
    partitions.sort_unstable();
    match partitions.len() {
        0 => Err(failed(consumer, topic, &KafkaError::MetadataFetch(Code::UnknownTopicOrPartition))),
        1..=PARTITIONS_MAX => Ok(partitions),
        many => Err(BridgeError::Refused(format!(
            "topic `{topic}` has {many} partitions, and the bridge takes {PARTITIONS_MAX}"
        ))),
    }
}

/// Whether there is such a topic.
pub(super) fn check(input: &KafkaInput, topic: &str) -> Result<(), BridgeError> {
    partitions(&consumer(input, None)?, topic).map(drop)
}

/// What the bucket before has recorded, by partition; empty: there is no record of it.
pub(super) type Known = BTreeMap<i32, Before>;

/// Where a later bucket took over, by partition.
pub(super) type Ends = BTreeMap<i32, End>;

/// Where the bucket before ended in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// Where reading for the next bucket begins.
    pub read_start: i64,
    /// Where that bucket ended.
    pub commit: i64,
}

impl Manifest {
    /// For the run of the next bucket.
    pub(super) fn known(&self) -> Known {
        let before = |p: &PartitionEntry| Before { read_start: p.next_read_start, commit: p.commit };
        self.partitions.iter().map(|p| (p.partition, before(p))).collect()
    }
}

/// Where to begin in each partition.
fn stretches(
    input: &KafkaInput,
    topic: &str,
    bucket: Bucket,
    known: &Known,
    ends: &Ends,
) -> Result<Vec<Stretch>, BridgeError> {
    let consumer = consumer(input, None)?;
    let explain = |error: &KafkaError| failed(&consumer, topic, error);
    let partitions = partitions(&consumer, topic)?;
    let earliest_ns = bucket.start_ns.saturating_sub(input.time.ahead_ns());
    // Rounded down: an earlier begin is only more to read.
    let earliest_ms = earliest_ns.div_euclid(1_000_000).max(0);
    let mut watermarks = BTreeMap::new();
    let mut question = TopicPartitionList::new();
    for partition in partitions {
        let bounds = consumer.fetch_watermarks(topic, partition, REQUEST).map_err(|error| explain(&error))?;
        if let Some(before) = known.get(&partition).filter(|before| before.read_start > bounds.1) {
            return Err(remade(topic, partition, before.read_start, bounds.1));
        }
        watermarks.insert(partition, bounds);
        question
            .add_partition_offset(topic, partition, Offset::Offset(earliest_ms))
            .map_err(|error| explain(&error))?;
    }
    let answer = consumer.offsets_for_times(question, REQUEST).map_err(|error| explain(&error))?;
    let mut indexed = BTreeMap::new();
    for element in answer.elements() {
        element.error().map_err(|error| explain(&error))?;
        let Some((_, high)) = watermarks.get(&element.partition()).copied() else { continue };
        // The end was asked for before the index: no record below it is of the bucket if the index names none.
        let offset = if let Offset::Offset(offset) = element.offset() { offset } else { high };
        indexed.insert(element.partition(), offset);
    }
    // Retention is known to reach back to before the bucket.
    let reaches =
        watermarks.iter().any(|(p, (low, high))| low < high && indexed.get(p).is_some_and(|at| at > low));
    let mut stretches = Vec::new();
    for (partition, (low, high)) in watermarks {
        let indexed = indexed.get(&partition).copied().unwrap_or(low);
        let (begin, late_from, missing) = match known.get(&partition) {
            Some(known) => (known.read_start.max(low), Some(known.commit), (low - known.read_start).max(0)),
            // The bucket before was closed without this partition: it is new, and all of it is to be seen.
            None if !known.is_empty() => (low, Some(low), 0),
            None => (indexed, None, 0),
        };
        let may_lack = known.is_empty() && low > 0 && indexed <= low && (low < high || !reaches);
        if (may_lack || missing > 0) && !input.may_miss {
            let known = known.get(&partition).map(|known| known.read_start);
            return Err(gap(topic, partition, low, known, bucket));
        }
        let missing = missing.unsigned_abs();
        let end = ends.get(&partition).copied();
        stretches.push(Stretch { partition, begin, late_from, end, missing });
    }
    Ok(stretches)
}

fn gap(topic: &str, partition: i32, low: i64, known: Option<i64>, bucket: Bucket) -> BridgeError {
    let what = match known {
        Some(known) => format!("the records {known} to {} that the bucket needs are gone", low - 1),
        None => format!(
            "its oldest record, {low}, is not from before {}, so earlier ones of the bucket may be gone",
            bucket.label()
        ),
    };
    BridgeError::Gap(format!(
        "topic `{topic}`, partition {partition}: retention has removed records: {what}. To take what is there, write `gaps = \"count\"` \
         in [kafka]"
    ))
}

/// No record at an offset was deleted that was never there: not retention, and nothing that is over after a while.
pub(super) fn remade(topic: &str, partition: i32, offset: i64, high: i64) -> BridgeError {
    BridgeError::Gap(format!(
        "topic `{topic}`, partition {partition}: reading is to go on at offset {offset}, and the partition ends at {high}: the topic \
         was made anew, or its leader lost its log. To begin anew with what is there now, remove the progress file \
         (`_flumen/{topic}.progress`) and say `--from` (or `from` in [bridge]) which bucket is the first; if the bucket before \
         that one was made, its `_SUCCESS` tells of the old log and has to be moved away, too"
    ))
}

/// The begin of all records, for a bridge that starts for the first time: the bucket of the oldest record, or the one
/// after it where retention has removed a part of it.
pub(super) fn first_bucket(
    input: &KafkaInput,
    settings: &Settings,
    topic: &str,
) -> Result<Option<Bucket>, BridgeError> {
    let consumer = consumer(input, None)?;
    let explain = |error: &KafkaError| failed(&consumer, topic, error);
    let mut assignment = TopicPartitionList::new();
    let mut lows = BTreeMap::new();
    for partition in partitions(&consumer, topic)? {
        let (low, high) =
            consumer.fetch_watermarks(topic, partition, REQUEST).map_err(|error| explain(&error))?;
        if low < high {
            assignment
                .add_partition_offset(topic, partition, Offset::Offset(low))
                .map_err(|error| explain(&error))?;
            lows.insert(partition, low);
        }
    }
    consumer.assign(&assignment).map_err(|error| explain(&error))?;
    let begun = std::time::Instant::now();
    let (mut oldest, mut whole): (Option<i64>, Option<i64>) = (None, None);
    while !lows.is_empty() && begun.elapsed() < REQUEST {
        let partition = match consumer.poll(super::limits::POLL) {
            Some(Ok(message)) => {
                let record_ns = message.timestamp().to_millis().unwrap_or(0).saturating_mul(1_000_000);
                let header = |name: &str| super::partition::header(&message, name);
                let (time_ns, _) = input.time.of(record_ns, message.payload().unwrap_or_default(), header);
                if let Some(low) = lows.get(&message.partition()) {
                    // Times are not in order: what lies before the first record is allowed to be this much older.
                    let time_ns = time_ns.saturating_sub(settings.lateness_ns);
                    oldest = Some(oldest.map_or(time_ns, |other| other.min(time_ns)));
                    if *low > 0 {
                        let next =
                            settings.calendar.bucket(record_ns.saturating_add(input.time.ahead_ns())).end_ns;
                        whole = whole.max(Some(next));
                    }
                }
                message.partition()
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => partition,
            Some(Err(error)) => return Err(explain(&error)),
            None => continue,
        };
        lows.remove(&partition);
    }
    Ok(oldest.map(|oldest| settings.calendar.bucket(oldest.max(whole.unwrap_or(i64::MIN)))))
}

/// A job: one bucket of one topic.
pub(super) struct Job<'a> {
    pub settings: &'a Settings,
    pub input: &'a KafkaInput,
    pub topic: &'a str,
    pub bucket: Bucket,
    pub live: bool,
    pub stop: &'a AtomicBool,
    pub watch: &'a Watch,
    pub work: &'a Path,
}

impl Job<'_> {
    /// Reads a bucket.
    pub fn read(&self, known: &Known, ends: &Ends) -> Result<(Manifest, Parts), BridgeError> {
        let finished = self.read_all(&stretches(self.input, self.topic, self.bucket, known, ends)?)?;
        let mut manifest = Manifest::new(self.topic, self.bucket);
        let late = |finished: &Finished| {
            let side = finished.side.as_ref().map_or(0, |spool| spool.records());
            (side, finished.append.values().map(|spool| spool.records()).sum::<u64>(), finished.late)
        };
        for part in &finished {
            let Some(offsets) = part.scan.offsets() else { continue };
            let (side, appended, late) = late(part);
            manifest.late.side += side;
            manifest.late.appended += appended;
            manifest.late.dropped += if self.settings.late == Late::Drop { late } else { 0 };
            manifest.partitions.push(PartitionEntry {
                partition: part.stretch.partition,
                read_start: offsets.read_start,
                late_from: offsets.late_from,
                commit: offsets.commit,
                next_read_start: offsets.next_read_start,
                records: part.own.as_ref().map_or(0, |spool| spool.records()),
                late,
                time_from_record: part.time_from_record,
                missing: part.stretch.missing,
                watermark: part.scan.watermark_ns.map(time_text),
                closed_by: if offsets.passed { ClosedBy::Watermark } else { ClosedBy::Idle },
            });
        }
        let watermarks = finished.iter().filter_map(|part| part.scan.watermark_ns);
        manifest.watermark = watermarks.min().map(time_text);
        Ok((manifest, parts(finished)))
    }

    /// Reads what a finished bucket was made of.
    pub fn read_again(&self, before: &Manifest) -> Result<Parts, BridgeError> {
        let consumer = consumer(self.input, None)?;
        let mut stretches = Vec::new();
        for part in &before.partitions {
            let (low, high) = consumer
                .fetch_watermarks(self.topic, part.partition, REQUEST)
                .map_err(|error| failed(&consumer, self.topic, &error))?;
            if part.commit > high {
                return Err(remade(self.topic, part.partition, part.commit, high));
            }
            let begin = part.read_start.min(part.late_from);
            if low > begin && begin < part.commit {
                return Err(gap(self.topic, part.partition, low, Some(begin), self.bucket));
            }
            stretches.push(Stretch {
                partition: part.partition,
                begin,
                late_from: Some(part.late_from),
                end: Some(End { commit: part.commit, is_exact: true }),
                missing: 0,
            });
        }
        Ok(parts(self.read_all(&stretches)?))
    }

    /// Workers share the partitions.
    fn read_all(&self, stretches: &[Stretch]) -> Result<Vec<Finished>, BridgeError> {
        let count = self.input.workers.min(stretches.len()).max(1);
        let shares: Vec<Vec<Stretch>> = (0..count)
            .map(|worker| stretches.iter().skip(worker).step_by(count).copied().collect())
            .collect();
        let failed = AtomicBool::new(false);
        let run = Run {
            settings: self.settings,
            input: self.input,
            topic: self.topic,
            bucket: self.bucket,
            live: self.live,
            stop: self.stop,
            watch: self.watch,
            failed: &failed,
            work: self.work,
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = shares.iter().map(|share| scope.spawn(|| read(&run, share))).collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|_| {
                        Err(BridgeError::Kafka("a worker panicked (a bug of Flumen)".into()))
                    })
                })
                .collect()
        });
        let mut finished = Vec::new();
        let mut stopped = None;
        for outcome in outcomes {
            match outcome {
                Ok(parts) => finished.extend(parts),
                // The others stopped because one failed: its reason is the one to tell.
                Err(BridgeError::Stopped) => stopped = Some(BridgeError::Stopped),
                Err(error) => return Err(error),
            }
        }
        finished.sort_by_key(|part| part.stretch.partition);
        stopped.map_or(Ok(finished), Err)
    }
}

fn parts(finished: Vec<Finished>) -> Parts {
    let mut parts = Parts::default();
    for part in finished {
        parts.own.extend(part.own);
        parts.side.extend(part.side);
        for (start_ns, spool) in part.append {
            parts.append.entry(start_ns).or_default().push(spool);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::time::EventTime;
    use super::*;
    use flumen_kafka::rdkafka::mocking::MockCluster;
    use flumen_pipeline::{Options, Value};
    use jiff::tz::TimeZone;
    use std::sync::Arc;

    /// On librdkafka's own mock of a broker, whose topic is empty.
    #[test]
    fn offsets_beyond_the_end_are_of_another_log_and_no_gap() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let brokers = Value::TextList(vec![cluster.bootstrap_servers()]);
        let options = Options([("brokers".to_owned(), brokers)].into());
        let input = KafkaInput {
            client: Arc::new(flumen_kafka::Settings::from_options(&options).unwrap()),
            topics: vec!["t".into()],
            time: EventTime::new("record", None, None, 0, TimeZone::UTC).unwrap(),
            idle_ns: 0,
            workers: 1,
            may_miss: true,
        };
        let bucket = Bucket { start_ns: 0, end_ns: 3_600_000_000_000 };
        let known = Known::from([(0, Before { read_start: 17, commit: 20 })]);
        let error = stretches(&input, "t", bucket, &known, &Ends::new()).unwrap_err();
        // Of the kind that ends `--follow`.
        assert!(matches!(error, BridgeError::Gap(_)), "{error:?}");
        for part in ["topic `t`, partition 0", "offset 17", "ends at 0", "made anew", "t.progress", "--from"]
        {
            assert!(error.to_string().contains(part), "{part:?} in {error}");
        }
    }
}
