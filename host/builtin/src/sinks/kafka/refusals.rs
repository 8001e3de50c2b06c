//! What becomes of records that the broker refuses for good: too large, or of a time that the topic does not take; and of
//! those whose own topic, by a header, may not be written.
//!
//! A refusal ends the transaction, so everything else of it is sent again without the guilty record, which goes to
//! quarantine. The broker refuses batches of records: a record that was alone in its batch is guilty; several are
//! suspects, and each is sent alone, in a transaction that is taken back. Without transactions nothing is taken back: what
//! failed and is not refused itself (of a batch with a guilty record, for instance) is sent again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use flumen_event::Batch;
use flumen_kafka::lane;
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use flumen_pipeline::SinkError;
use flumen_pipeline::sink::SinkContext;

use super::faults;
use super::link::Link;
use super::options::Delivery;
use super::patience::Patience;
use super::routes::TopicNames;
use super::sending::{Broken, batch_and_row};
use crate::sinks::limits;

impl Link {
    /// Waits until the brokers have everything. Then no record can be refused any more.
    pub fn settle(&mut self, context: &mut SinkContext, patience: &Patience) -> Result<(), SinkError> {
        loop {
            let failed = self.failures(context, patience)?;
            if failed.is_empty() {
                return Ok(());
            }
            let has_closed = self.close_topics(&failed);
            let is_suspect = |(_, code): &(usize, Code)| lane::is_refusal(*code);
            let (suspects, mut others): (Vec<_>, Vec<_>) = failed.into_iter().partition(is_suspect);
            match suspects.as_slice() {
                // The others' records can be sent.
                [] if has_closed => self.begin_anew(context, patience)?,
                [] => {
                    let is_cause = |code: &Code| !matches!(code, Code::PurgeQueue | Code::PurgeInflight);
                    let cause = others.iter().find(|(_, code)| is_cause(code)).copied();
                    return Err(self.failure(cause));
                }
                // It was alone in its batch of records.
                [(id, code)] => {
                    self.refuse(context, *id, *code);
                    self.begin_anew(context, patience)?;
                }
                _ => {
                    self.fit_batches(&suspects)?;
                    self.begin_anew(context, patience)?;
                    others.extend(self.try_alone(context, &suspects, patience)?);
                }
            }
            if self.settings.delivery == Delivery::ExactlyOnce {
                match self.send_all(context, patience) {
                    Ok(()) | Err(Broken::Refused) => {}
                    Err(Broken::Error(error)) => return Err(error),
                }
            } else {
                self.send_again(context, &others, patience)?;
            }
        }
    }

    /// Waits for the brokers. Without transactions until nothing is under way: other batches than the one that failed
    /// are, and what becomes of them must not be taken for what becomes of a suspect.
    fn failures(
        &mut self,
        context: &SinkContext,
        patience: &Patience,
    ) -> Result<Vec<(usize, Code)>, SinkError> {
        let mut failed = self.drain(context, patience)?;
        if self.settings.delivery == Delivery::ExactlyOnce || failed.is_empty() {
            return Ok(failed);
        }
        loop {
            let more = self.drain(context, patience)?;
            if more.is_empty() {
                return Ok(failed);
            }
            failed.extend(more);
        }
    }

    /// What failed without being refused itself. Only without transactions.
    fn send_again(
        &mut self,
        context: &mut SinkContext,
        failed: &[(usize, Code)],
        patience: &Patience,
    ) -> Result<(), SinkError> {
        for (index, rows) in runs(failed.iter().map(|(id, _)| *id).collect()) {
            match self.send_rows(context, index, rows, patience) {
                Ok(()) => {}
                Err(Broken::Error(error)) => return Err(error),
                // Only a row that was tried alone ends it, and none of those is here: then all of it comes again.
                Err(Broken::Refused) => {
                    let error = KafkaError::MessageProduction(Code::InvalidDifferentRecord);
                    return Err(self.error(&error));
                }
            }
        }
        Ok(())
    }

    /// A record that failed and is not refused, in words.
    fn failure(&mut self, cause: Option<(usize, Code)>) -> SinkError {
        let Some((id, code)) = cause else {
            return self.error(&KafkaError::MessageProduction(Code::PurgeQueue));
        };
        let topic = self.topic_of_record(id).unwrap_or_default();
        self.record_error(&topic, code)
    }

    /// Of the topics by header, those that the brokers did not let us write: from now on their events go where those of a topic go
    /// that is not there. True: there was one more. A transaction fails as a whole, and only librdkafka's log names them.
    fn close_topics(&mut self, failed: &[(usize, Code)]) -> bool {
        let mut topics: BTreeSet<String> =
            self.lanes.iter().flat_map(|lane| lane.lane.producer.context().take_unwritable()).collect();
        if self.settings.topic.plain().is_some() {
            return false;
        }
        let refused = failed.iter().filter(|(_, code)| *code == Code::TopicAuthorizationFailed);
        topics.extend(refused.filter_map(|(id, _)| self.topic_of_record(*id)));
        if let Some(default) = &self.settings.topic_default {
            // What goes there has nowhere else to go: it is waited for.
            topics.remove(default);
        }
        let mut has_closed = false;
        for topic in &topics {
            has_closed |= self.routes.refuse(topic);
        }
        has_closed
    }

    /// Takes everything since the last flush back, in all lanes. After a refusal with fresh producers: librdkafka's
    /// sequence numbers are ahead of the broker's then, and the transactions that follow an abort fail by that.
    fn begin_anew(&mut self, context: &SinkContext, patience: &Patience) -> Result<(), SinkError> {
        match self.settings.delivery {
            Delivery::ExactlyOnce => self.renew_lanes(context, patience)?,
            _ => return Ok(()),
        }
        faults::passed("refusal.taken-back");
        Ok(())
    }

    /// Waits for the brokers; stops at the first failure. Returns the failures.
    fn drain(&mut self, context: &SinkContext, patience: &Patience) -> Result<Vec<(usize, Code)>, SinkError> {
        let begin = Instant::now();
        let mut said = begin;
        loop {
            let mut is_done = true;
            let mut failed = Vec::new();
            for lane in &self.lanes {
                // Only one step: a refusal in a transaction holds up all that is behind it.
                is_done &= lane.lane.producer.drain(std::time::Duration::ZERO, || true);
                failed.append(&mut lane.lane.producer.failed());
            }
            if is_done || !failed.is_empty() {
                return Ok(failed);
            }
            if let Some(error) = self.lanes.iter().find_map(|lane| lane.lane.producer.fatal()) {
                return Err(self.error(&error));
            }
            if !patience.go_on() {
                return Err(SinkError::Stopped);
            }
            if begin.elapsed() > self.settings.transaction_timeout * 2 {
                return Err(self.error(&KafkaError::Flush(Code::OperationTimedOut)));
            }
            if said.elapsed() > limits::BROKER_SLOW {
                said = Instant::now();
                self.say_what_is_waited_for(context);
            }
        }
    }

    /// Sends each suspect alone, and takes it back: those that are refused again are guilty. Returns what else failed.
    fn try_alone(
        &mut self,
        context: &mut SinkContext,
        suspects: &[(usize, Code)],
        patience: &Patience,
    ) -> Result<Vec<(usize, Code)>, SinkError> {
        let timeout = self.settings.transaction_timeout;
        let mut others = Vec::new();
        for (id, _) in suspects {
            let (index, row) = batch_and_row(*id);
            self.alone.insert(*id);
            match self.send_rows(context, index, row..row + 1, patience) {
                Ok(()) | Err(Broken::Refused) => {}
                Err(Broken::Error(error)) => return Err(error),
            }
            let failed = self.failures(context, patience)?;
            let own = failed.iter().find(|(failed, _)| failed == id).map(|(_, code)| *code);
            others.extend(failed.into_iter().filter(|(failed, _)| failed != id));
            match own {
                None => {
                    let go_on = || patience.go_on();
                    let aborted = self.lanes.iter_mut().try_for_each(|lane| lane.lane.abort(timeout, &go_on));
                    aborted.map_err(|error| self.error(&error))?;
                }
                Some(code) if lane::is_refusal(code) => {
                    self.refuse(context, *id, code);
                    self.begin_anew(context, patience)?;
                }
                Some(code) => return Err(self.error(&KafkaError::MessageProduction(code))),
            }
        }
        Ok(others)
    }

    /// A topic that takes smaller batches than we send would refuse many records that are not to blame: then
    /// smaller ones are sent from now on.
    fn fit_batches(&mut self, suspects: &[(usize, Code)]) -> Result<(), SinkError> {
        let Some((id, _)) = suspects.get(1) else { return Ok(()) };
        let topic = self.topic_of_record(*id).unwrap_or_default();
        match self.routes.known_limit(&topic).map(|limit| limit as u64) {
            Some(limit) if limit < self.sizes.batch => {
                self.sizes.batch = limit;
                Err(SinkError::Retry(format!(
                    "topic {topic:?} takes batches of {limit} bytes (max.message.bytes); smaller ones are sent from now on"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The topic of a record; `None`: it is none of an event.
    fn topic_of_record(&self, id: usize) -> Option<String> {
        let (index, row) = batch_and_row(id);
        let delivered = self.delivered.get(index).filter(|delivered| row < delivered.batch.rows())?;
        Some(self.topic_of(&delivered.batch.slice(row, 1)))
    }

    /// The topic of the first row.
    fn topic_of(&self, batch: &Batch) -> String {
        match TopicNames::new(&self.settings, batch).of(0) {
            Ok(name) => name.to_owned(),
            Err(_) => self.settings.topic_default.clone().unwrap_or_default(),
        }
    }

    /// To quarantine with a row that the broker refused.
    fn refuse(&mut self, context: &mut SinkContext, id: usize, code: Code) {
        let (index, row) = batch_and_row(id);
        let Some(delivered) = self.delivered.get_mut(index) else { return };
        if !delivered.refused.insert(row) {
            return;
        }
        let bytes = delivered.values.get(row).len();
        let batch = delivered.batch.slice(row, 1);
        let topic = self.topic_of(&batch);
        let limit = self.routes.known_limit(&topic);
        let reason = match (code, limit) {
            (Code::InvalidTimestamp, _) => format!(
                "topic {topic:?} refuses the time of the record (message.timestamp.before.max.ms and \
                 message.timestamp.after.max.ms); `timestamp = \"broker\"` sends its own"
            ),
            (
                Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge,
                Some(limit),
            ) => {
                format!("the value has {bytes} bytes; topic {topic:?} takes {limit} (max.message.bytes)")
            }
            (Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge, None) => {
                format!("the value has {bytes} bytes, more than topic {topic:?} takes (max.message.bytes)")
            }
            (code, _) => format!("topic {topic:?} refuses the record of {bytes} bytes: {code}"),
        };
        context.quarantine(batch, vec![reason]);
    }
}

/// The rows of records, as batches' numbers and rows that follow each other there.
fn runs(mut ids: Vec<usize>) -> Vec<(usize, Range<usize>)> {
    ids.sort_unstable();
    ids.dedup();
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for id in ids {
        let (index, row) = batch_and_row(id);
        match runs.last_mut() {
            Some((last, rows)) if *last == index && rows.end == row => rows.end = row + 1,
            _ => runs.push((index, row..row + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::super::sending::id;
    use super::*;

    #[test]
    fn what_is_sent_again_is_each_row_once_and_no_other() {
        let ids = [id(1, 0), id(0, 7), id(0, 5), id(0, 6), id(1, 2), id(0, 6)];
        assert_eq!(runs(ids.to_vec()), [(0, 5..8), (1, 0..1), (1, 2..3)]);
        assert!(runs(Vec::new()).is_empty());
    }
}
