//! One producer and its transactions, if it has a transactional id.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_pipeline::ComponentMetrics;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::producer::Producer as _;

use crate::context::Context;
use crate::produce::Producer;
use crate::settings::{Settings, without_statistics};
use crate::{limits, words};

/// A producer, and whether a transaction is open.
pub struct Lane {
    /// The producer.
    pub producer: Producer,
    /// `None`: it has no transactions.
    pub transactional_id: Option<String>,
    is_open: bool,
}

impl Lane {
    /// Makes the producer. `config` has everything but the id.
    pub fn new(
        who: &str,
        settings: &Arc<Settings>,
        config: &ClientConfig,
        transactional_id: Option<String>,
        metrics: Option<Arc<ComponentMetrics>>,
    ) -> KafkaResult<Lane> {
        let mut config = match metrics {
            Some(_) => config.clone(),
            None => without_statistics(config.clone()),
        };
        if let Some(id) = &transactional_id {
            config.set("transactional.id", id);
        }
        let producer = Producer::new(&config, Context::new(who, settings.clone(), metrics))?;
        Ok(Lane { producer, transactional_id, is_open: false })
    }

    /// True if a transaction is open.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes the transactional id over: who had it is fenced, and what he left open is aborted.
    pub fn take_over(&mut self, timeout: Duration, go_on: &dyn Fn() -> bool) -> KafkaResult<()> {
        if self.transactional_id.is_none() {
            return Ok(());
        }
        self.repeat(timeout, limits::TRANSACTION_STEP, go_on, |producer, step| {
            producer.client().init_transactions(step)
        })
    }

    /// Opens a transaction, if none is.
    pub fn begin(&mut self) -> KafkaResult<()> {
        if self.is_open || self.transactional_id.is_none() {
            return Ok(());
        }
        self.producer.client().begin_transaction()?;
        self.is_open = true;
        Ok(())
    }

    /// Waits until the brokers have every record.
    pub fn flush(&mut self, timeout: Duration, go_on: &dyn Fn() -> bool) -> KafkaResult<()> {
        if !self.producer.drain(timeout, go_on) {
            return Err(KafkaError::Flush(Code::OperationTimedOut));
        }
        match self.producer.failed().first() {
            Some((_, code)) => Err(KafkaError::MessageProduction(*code)),
            None => Ok(()),
        }
    }

    /// [`Lane::flush`], then ends the transaction. After an error its outcome is not known.
    pub fn commit(&mut self, timeout: Duration, go_on: &dyn Fn() -> bool) -> KafkaResult<()> {
        self.flush(timeout, go_on)?;
        if self.is_open {
            self.repeat(timeout, limits::TRANSACTION_STEP, go_on, |producer, step| {
                producer.client().commit_transaction(step)
            })?;
            self.is_open = false;
        }
        self.producer.release();
        Ok(())
    }

    /// Takes everything since `begin` back.
    pub fn abort(&mut self, timeout: Duration, go_on: &dyn Fn() -> bool) -> KafkaResult<()> {
        if self.is_open {
            // It waits for reports of what it purges, which are served between the steps.
            self.repeat(timeout, limits::DRAIN_STEP, go_on, |producer, step| {
                producer.client().abort_transaction(step)
            })?;
            self.is_open = false;
        }
        // What was purged is reported as failed; it was taken back.
        self.producer.drain(timeout, go_on);
        self.producer.failed();
        self.producer.release();
        Ok(())
    }

    /// Calls again what may be called again, in steps, so that a stop of the pipeline need not wait.
    fn repeat(
        &mut self,
        timeout: Duration,
        step: Duration,
        go_on: &dyn Fn() -> bool,
        call: impl Fn(&Producer, Duration) -> KafkaResult<()>,
    ) -> KafkaResult<()> {
        let begin = Instant::now();
        loop {
            let outcome = call(&self.producer, step);
            self.producer.poll(if outcome.is_ok() { Duration::ZERO } else { limits::SERVE });
            let Err(error) = outcome else { return Ok(()) };
            let is_retriable = match &error {
                KafkaError::Transaction(inner) => inner.is_retriable(),
                _ => words::code(&error) == Some(Code::OperationTimedOut),
            };
            if !is_retriable || begin.elapsed() >= timeout || !go_on() {
                return Err(error);
            }
        }
    }
}

/// True if another producer with the same transactional id has begun, or our transaction took too long: the broker
/// says the same of both.
pub fn is_fenced(code: Code) -> bool {
    matches!(code, Code::ProducerFenced | Code::InvalidProducerEpoch | Code::Fenced)
}

/// True if the record itself is what the broker does not take, and would not another time.
pub fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::MessageBatchTooLarge
    )
}
