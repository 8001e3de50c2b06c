//! What becomes of records that the broker refuses for good: too large, or of a time that the topic does not take.
//!
//! A refusal ends the transaction, so everything else of it is sent again without the guilty record, which goes to
//! quarantine. The broker refuses batches of records: a record that was alone in its batch is guilty; several are
//! suspects, and each is sent alone, in a transaction that is taken back.

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
            let failed = self.drain(context, patience)?;
            if failed.is_empty() {
                return Ok(());
            }
            let suspects: Vec<(usize, Code)> =
                failed.iter().copied().filter(|(_, code)| lane::is_refusal(*code)).collect();
            match suspects.as_slice() {
                [] => {
                    let is_cause = |code: &Code| !matches!(code, Code::PurgeQueue | Code::PurgeInflight);
                    let code = failed.iter().map(|(_, code)| *code).find(is_cause);
                    let error = KafkaError::MessageProduction(code.unwrap_or(Code::PurgeQueue));
                    return Err(self.error(&error));
                }
                // It was alone in its batch of records.
                [(id, code)] => {
                    self.refuse(context, *id, *code);
                    self.begin_anew(context, patience)?;
                }
                _ => {
                    self.fit_batches(&suspects)?;
                    self.begin_anew(context, patience)?;
                    self.try_alone(context, &suspects, patience)?;
                }
            }
            if self.settings.delivery == Delivery::ExactlyOnce {
                match self.send_all(context, patience) {
                    Ok(()) | Err(Broken::Refused) => {}
                    Err(Broken::Error(error)) => return Err(error),
                }
            }
        }
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

    /// Sends each suspect alone, and takes it back: those that are refused again are guilty.
    fn try_alone(
        &mut self,
        context: &mut SinkContext,
        suspects: &[(usize, Code)],
        patience: &Patience,
    ) -> Result<(), SinkError> {
        let timeout = self.settings.transaction_timeout;
        for (id, _) in suspects {
            let (index, row) = batch_and_row(*id);
            self.alone.insert(*id);
            match self.send_rows(context, index, row..row + 1, patience) {
                Ok(()) | Err(Broken::Refused) => {}
                Err(Broken::Error(error)) => return Err(error),
            }
            match self.drain(context, patience)?.first() {
                None => {
                    let go_on = || patience.go_on();
                    let aborted = self.lanes.iter_mut().try_for_each(|lane| lane.lane.abort(timeout, &go_on));
                    aborted.map_err(|error| self.error(&error))?;
                }
                Some((_, code)) if lane::is_refusal(*code) => {
                    self.refuse(context, *id, *code);
                    self.begin_anew(context, patience)?;
                }
                Some((_, code)) => return Err(self.error(&KafkaError::MessageProduction(*code))),
            }
        }
        Ok(())
    }

    /// A topic that takes smaller batches than we send would refuse many records that are not to blame: then
    /// smaller ones are sent from now on.
    fn fit_batches(&mut self, suspects: &[(usize, Code)]) -> Result<(), SinkError> {
        let Some((id, _)) = suspects.get(1) else { return Ok(()) };
        let (index, row) = batch_and_row(*id);
        let batch = self.delivered.get(index).map(|delivered| delivered.batch.slice(row, 1));
        let topic = batch.map(|batch| self.topic_of(&batch)).unwrap_or_default();
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
