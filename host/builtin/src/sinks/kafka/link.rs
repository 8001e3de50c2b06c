//! What the sink has while it works: lanes, what is known of topics, and what was delivered since the last flush.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow_buffer::ScalarBuffer;
use flumen_event::Batch;
use flumen_kafka::channel::{Acknowledger, Taken};
use flumen_kafka::lane::{self, Lane};
use flumen_kafka::produce::{Record, TopicId, Values};
use flumen_kafka::progress::{self, By, Progress, Who};
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use flumen_kafka::topics::Topics;
use flumen_kafka::words;
use flumen_pipeline::SinkError;
use flumen_pipeline::sink::SinkContext;

use super::faults;
use super::options::{Delivery, Settings};
use super::patience::Patience;
use super::routes::{LaneOf, Routes};
use crate::sinks::limits;

/// The id of a progress record in failures; rows have others.
pub(super) const PROGRESS_ID: usize = usize::MAX;

/// A lane, and where it is.
pub(super) struct LaneState {
    pub lane: Lane,
    /// It has all its events before this.
    pub cursor: u64,
    /// Its handles of the topics in [`Routes`].
    pub topic_ids: Vec<Option<TopicId>>,
}

/// A batch since the last flush.
pub(super) struct Delivered {
    pub batch: Batch,
    pub values: Arc<Values>,
    /// Rows that are not sent: in quarantine.
    pub refused: HashSet<usize>,
}

pub(super) struct Link {
    pub settings: Arc<Settings>,
    pub who: Who,
    pub by: By,
    /// All lanes that were taken over.
    pub lanes: Vec<LaneState>,
    /// How many of them are in force.
    pub used: usize,
    /// From where on there are so many.
    pub since: Vec<u8>,
    /// Acknowledges the channel in our transactions: a Kafka channel on the same cluster, with one lane.
    pub group: Option<Arc<Acknowledger>>,
    /// The mark that the broker holds of lane 0; with a `group` alone.
    pub stored_mark: Vec<u8>,
    pub topics: Topics,
    pub routes: Routes,
    pub delivered: Vec<Delivered>,
    /// Rows that are sent in a batch of their own, because a batch with them was refused.
    pub alone: HashSet<usize>,
    /// Events before this were handed to us, as far as is known.
    pub reached: AtomicU64,
    /// Until there, lanes are at different cursors.
    pub until: u64,
    pub is_fenced: bool,
    /// When the last batch was handed over.
    pub handed: Option<Instant>,
    pub sizes: Sizes,
}

/// What producers are set up for; known again after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Bytes of a batch of records: `batch_bytes`, or what the topics take.
    pub batch: u64,
    /// Bytes of the largest record: see [`super::room`].
    pub record: usize,
}

impl Link {
    /// Serves what the clients have to tell.
    pub fn serve(&self) {
        self.lanes.iter().for_each(|lane| lane.lane.producer.serve());
        self.topics.look();
    }

    pub fn reach(&self, next: u64) {
        self.reached.fetch_max(next, Ordering::Relaxed);
    }

    /// Of rows that end at `next`, those whose lane has not got them.
    pub fn missing(&self, batch: Batch, next: u64) -> Result<Batch, SinkError> {
        self.reach(next);
        let lane_of = LaneOf::new(&self.settings, &batch, self.used);
        let first = next.saturating_sub(batch.rows() as u64);
        let is_missing = |row: &usize| {
            let cursor = self.lanes.get(lane_of.row(*row)).map_or(0, |lane| lane.cursor);
            // A lane's cursor in the middle of a delivery comes of a flush in the middle of such a stretch.
            cursor <= first + *row as u64
        };
        let rows: ScalarBuffer<u32> = (0..batch.rows()).filter(is_missing).map(|row| row as u32).collect();
        let rows = arrow_array::UInt32Array::new(rows, None);
        batch.take(&rows).map_err(|error| SinkError::Retry(error.to_string()))
    }

    /// Ends the transactions: everything delivered, and the mark.
    pub fn commit(
        &mut self,
        context: &SinkContext,
        mark: &[u8],
        patience: &Patience,
    ) -> Result<(), SinkError> {
        if self.reached.load(Ordering::Relaxed) < self.until && patience.is_stopping() {
            // In a stretch that some lanes have: the next start reads it again as a whole.
            return Err(SinkError::Stopped);
        }
        if self.settings.delivery == Delivery::ExactlyOnce {
            match self.group.clone() {
                Some(group) => self.commit_with_group(&group, mark, patience)?,
                None => self.commit_transactions(mark, patience)?,
            }
        } else {
            self.end_lanes(patience)?;
        }
        context.metrics.set_error(None);
        self.delivered.clear();
        self.alone.clear();
        if self.routes.trim() {
            for lane in &mut self.lanes {
                lane.topic_ids.clear();
                lane.lane.producer.forget_topics();
            }
        }
        Ok(())
    }

    fn commit_transactions(&mut self, mark: &[u8], patience: &Patience) -> Result<(), SinkError> {
        if !self.lanes.iter().any(|lane| lane.lane.is_open()) {
            // Everything was filtered, or went to quarantine: the journal alone has to know.
            return Ok(());
        }
        let wanted = self.settings.lanes;
        let may_switch = wanted != self.used && self.reached.load(Ordering::Relaxed) >= self.until;
        if may_switch && self.used == 1 {
            self.switch_lanes(mark);
            self.put_progress(0, mark)?;
            return self.end_lanes(patience);
        }
        for lane in 0..self.used {
            if self.lanes.get(lane).is_some_and(|lane| lane.lane.is_open()) {
                self.put_progress(lane, mark)?;
            }
        }
        self.end_lanes(patience)?;
        if may_switch {
            // All lanes have everything before the mark now. One more transaction says so for the new number.
            self.switch_lanes(mark);
            let first = self.lanes.first_mut().map_or(Ok(()), |lane| lane.lane.begin());
            first.map_err(|error| self.error(&error))?;
            self.put_progress(0, mark)?;
            return self.end_lanes(patience);
        }
        Ok(())
    }

    fn switch_lanes(&mut self, mark: &[u8]) {
        let (from, to) = (self.used, self.settings.lanes);
        tracing::info!(sink = self.who.sink, from, to, "the number of lanes changes");
        self.used = to;
        self.since = mark.to_vec();
    }

    /// A lane's progress, into its transaction.
    fn put_progress(&mut self, lane: usize, mark: &[u8]) -> Result<(), SinkError> {
        let progress = Progress { mark: mark.to_vec(), lanes: self.used as u16, since: self.since.clone() };
        let key = self.who.lane_key(lane as u16);
        self.put(lane, &key, progress.encode(&self.by))?;
        faults::passed("progress.handed-over");
        Ok(())
    }

    /// As [`Link::commit_transactions`] in the one lane, with the channel's acknowledgement in the same transaction. A
    /// transaction is made for that alone, too: the journal must not write these offsets beside us.
    fn commit_with_group(
        &mut self,
        group: &Acknowledger,
        mark: &[u8],
        patience: &Patience,
    ) -> Result<(), SinkError> {
        let begin = Instant::now();
        let taken = loop {
            match group.take(mark) {
                Taken::Wait if patience.go_on() && begin.elapsed() < self.settings.transaction_timeout => {
                    std::thread::sleep(limits::KAFKA_QUEUE_WAIT);
                }
                taken => break taken,
            }
        };
        let (acknowledgement, member) = match taken {
            Taken::Now(acknowledgement, member) => (acknowledgement, member),
            // Nothing was delivered either.
            Taken::Nothing => return self.end_lanes(patience),
            Taken::Late(reason) => return Err(SinkError::Moved(reason)),
            Taken::Wait => {
                return Err(SinkError::Retry(
                    "an earlier acknowledgement of the channel is under way".into(),
                ));
            }
        };
        let first = self.lanes.first_mut().map_or(Ok(()), |lane| lane.lane.begin());
        first.map_err(|error| self.error(&error))?;
        self.put_progress(0, mark)?;
        if self.lanes.is_empty() {
            return Err(SinkError::Retry("there is no lane".into()));
        }
        let lane = self.lanes.remove(0);
        let timeout = self.settings.transaction_timeout;
        let sent = acknowledgement
            .send(member, lane, |lane| lane.lane.producer.client(), timeout, &|| !patience.go_on());
        // If nobody waited for its end, the lane went with the call: this connection is given up anyway.
        let (lane, sent) = sent.map_err(|error| self.error(&error))?;
        self.lanes.insert(0, lane);
        sent.map_err(|error| match acknowledgement.refusal(&error) {
            Some(reason) => SinkError::Moved(reason),
            None => self.error(&error),
        })?;
        faults::passed("offsets.sent");
        self.end_lanes(patience)?;
        acknowledgement.counts();
        self.stored_mark = mark.to_vec();
        Ok(())
    }

    fn put(&mut self, lane: usize, key: &[u8], value: Vec<u8>) -> Result<(), SinkError> {
        let topic = self.settings.progress_topic.clone();
        let Some(state) = self.lanes.get_mut(lane) else { return Ok(()) };
        let producer = &mut state.lane.producer;
        let sent = producer.topic(&topic).and_then(|topic| {
            let partition = Some(progress::PARTITION);
            let record =
                Record { topic, partition, key: Some(key), time_ms: None, headers: &[], id: PROGRESS_ID };
            producer.send_copy(&record, value).map_err(KafkaError::MessageProduction)
        });
        sent.map_err(|error| self.error(&error))
    }

    /// Ends what is open in all lanes, side by side.
    fn end_lanes(&mut self, patience: &Patience) -> Result<(), SinkError> {
        let timeout = self.settings.transaction_timeout;
        let ended: Vec<Result<(), KafkaError>> = match self.lanes.as_mut_slice() {
            [only] => vec![end(&mut only.lane, timeout, patience)],
            lanes => std::thread::scope(|scope| {
                let spawn = |lane: &'_ mut LaneState| end(&mut lane.lane, timeout, patience);
                let threads: Vec<_> = lanes.iter_mut().map(|lane| scope.spawn(move || spawn(lane))).collect();
                let failed = KafkaError::Flush(Code::Fatal);
                threads.into_iter().map(|thread| thread.join().unwrap_or(Err(failed.clone()))).collect()
            }),
        };
        match ended.into_iter().find_map(Result::err) {
            Some(error) => Err(self.error(&error)),
            None => Ok(()),
        }
    }

    /// An error of a producer, in words, with what follows from it.
    pub fn error(&mut self, error: &KafkaError) -> SinkError {
        let fatal = self.lanes.iter().find_map(|lane| lane.lane.producer.fatal());
        let error = fatal.as_ref().unwrap_or(error);
        if words::code(error).is_some_and(lane::is_fenced) {
            self.is_fenced = true;
            return SinkError::Retry(
                "the broker took the transactional id away: another agent with the same name delivers, or the \
                 transaction took longer than `transaction_timeout`; looking which"
                    .into(),
            );
        }
        let explained = match self.lanes.first() {
            Some(lane) => lane.lane.producer.context().explain(error),
            None => error.to_string(),
        };
        SinkError::Retry(explained)
    }
}

/// Ends what is open in a lane: everything is at the brokers, and then it counts.
fn end(lane: &mut Lane, timeout: Duration, patience: &Patience) -> Result<(), KafkaError> {
    let go_on = || patience.go_on();
    if !lane.is_open() {
        return lane.commit(timeout, &go_on);
    }
    lane.flush(timeout, &go_on)?;
    faults::passed("progress.acknowledged");
    lane.commit(timeout, &go_on)?;
    faults::passed("transaction.committed");
    Ok(())
}
