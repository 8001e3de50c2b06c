//! What librdkafka calls back: its log, its statistics, its errors, tokens, delivery reports, rebalances.
//!
//! One type for producers, consumers and admin clients. Callbacks run on the thread that polls (or, for the log,
//! on librdkafka's own), so they only note what happened.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use flumen_pipeline::ComponentMetrics;
use parking_lot::Mutex;
use rdkafka::bindings::rd_kafka_resp_err_t as RespErr;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::{Message, TopicPartitionList};

use crate::settings::Settings;
use crate::{limits, oauth, statistics, words};

/// Told of changes of a consumer's assignment, from inside its `poll`.
pub trait Rebalance: Send + Sync {
    /// These partitions come; the offsets set here are where reading begins.
    fn assigned(&self, consumer: &BaseConsumer<Context>, partitions: &mut TopicPartitionList);

    /// These partitions go, after this call. `is_lost`: another may have them already (this member was too slow),
    /// and nothing can be committed for them.
    fn revoked(&self, consumer: &BaseConsumer<Context>, partitions: &TopicPartitionList, is_lost: bool);

    /// True: the change is not carried out when these calls return. The listener noted it and does it soon on the
    /// polling thread (`incremental_assign`, `incremental_unassign`): with what it cannot reach from in here.
    fn takes_over(&self) -> bool {
        false
    }
}

/// The context of one client.
pub struct Context {
    who: String,
    settings: Arc<Settings>,
    metrics: Option<Arc<ComponentMetrics>>,
    /// The newest error that librdkafka told of, in words; kept until something works.
    last_error: Mutex<Option<String>>,
    failed: Mutex<Vec<(usize, RDKafkaErrorCode)>>,
    /// Behind the last record that was delivered.
    delivered_to: AtomicI64,
    /// Topics that a transaction may not write.
    unwritable: Mutex<BTreeSet<String>>,
    rebalance: Mutex<Option<Arc<dyn Rebalance>>>,
    logged: Mutex<HashMap<String, Instant>>,
}

impl Context {
    /// `who`: the component as the log names it (`sink out`). `metrics` gets the statistics.
    pub fn new(who: &str, settings: Arc<Settings>, metrics: Option<Arc<ComponentMetrics>>) -> Context {
        let (last_error, failed, delivered_to, unwritable, rebalance, logged) = Default::default();
        let who = who.into();
        Context { who, settings, metrics, last_error, failed, delivered_to, unwritable, rebalance, logged }
    }

    /// Whom to tell of rebalances.
    pub fn set_rebalance(&self, listener: Arc<dyn Rebalance>) {
        *self.rebalance.lock() = Some(listener);
    }

    /// Nobody is told any more: changes are carried out at once. To be called before a consumer whose listener
    /// takes over is dropped, because its end waits until its partitions are given up.
    pub fn clear_rebalance(&self) {
        *self.rebalance.lock() = None;
    }

    /// The newest error of the connection in words: the reason behind a timeout.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Forgets it: something worked.
    pub fn works(&self) {
        *self.last_error.lock() = None;
    }

    /// Records that were not delivered since the last call: what [`crate::rdkafka`] was given as opaque, and why.
    pub fn take_failed(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        std::mem::take(&mut self.failed.lock())
    }

    /// As if a record had been reported as not delivered.
    pub fn note_failed(&self, id: usize, code: RDKafkaErrorCode) {
        self.failed.lock().push((id, code));
    }

    /// True if [`Context::take_failed`] has something.
    pub fn has_failed(&self) -> bool {
        !self.failed.lock().is_empty()
    }

    /// The offset behind the last record that was delivered since the last call, of a producer that writes one partition and has all
    /// reports; 0 if there was none, or the broker did not say.
    pub fn take_delivered_to(&self) -> i64 {
        self.delivered_to.swap(0, Ordering::Relaxed)
    }

    /// Topics that the brokers did not let a transaction write, since the last call: it failed as a whole.
    pub fn take_unwritable(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.unwritable.lock())
    }

    /// True if [`Context::take_unwritable`] has something.
    pub fn has_unwritable(&self) -> bool {
        !self.unwritable.lock().is_empty()
    }

    /// An error of librdkafka in words, with the connection's trouble behind it if there is any.
    pub fn explain(&self, error: &KafkaError) -> String {
        words::explain(error, &self.settings, self.last_error().as_deref())
    }

    /// True the first time in [`limits::LOG_REPEAT`].
    fn is_new(&self, line: &str) -> bool {
        // Numbers (ports of our own, milliseconds) make the same line look different.
        let shape: String = line.chars().filter(|c| !c.is_ascii_digit()).collect();
        let mut logged = self.logged.lock();
        let now = Instant::now();
        logged.retain(|_, at| now.duration_since(*at) < limits::LOG_REPEAT);
        if logged.contains_key(&shape) || logged.len() >= limits::LOG_LINES_MAX {
            return false;
        }
        logged.insert(shape, now);
        true
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // A port that ends the connection at once is told of by the log alone, not as an error.
        let early_end = (facility == "FAIL").then(|| words::early_end(line, &self.settings)).flatten();
        // Why a transaction failed: its records are only reported as purged.
        let failed = (facility == "TXNERR").then(|| words::transaction(line));
        if let Some(text) = early_end.or(failed) {
            *self.last_error.lock() = Some(text);
        }
        let unwritable = (facility == "ADDPARTS").then(|| words::unwritable(line)).flatten();
        self.unwritable.lock().extend(unwritable.map(str::to_owned));
        if !self.is_new(line) {
            return;
        }
        let who = self.who.as_str();
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::warn!(who, facility, "librdkafka: {line}");
            }
            RDKafkaLogLevel::Warning => tracing::info!(who, facility, "librdkafka: {line}"),
            _ => tracing::debug!(who, facility, "librdkafka: {line}"),
        }
    }

    fn stats_raw(&self, json: &[u8]) {
        if let Some(metrics) = &self.metrics {
            statistics::publish(json, metrics);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Not an error: a reader that asked to be told is at the end.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        let text = words::connection(&error, reason, &self.settings);
        if self.is_new(&text) {
            tracing::warn!(who = self.who, "{text}");
        }
        // That all brokers are down is told after why the last of them is, and says less.
        let mut last = self.last_error.lock();
        if last.is_none() || error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *last = Some(text);
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let token = oauth::token(&self.settings);
        if let Err(error) = &token {
            *self.last_error.lock() = Some(error.to_string());
        }
        Ok(token?)
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (error, message) = match result {
            Ok(message) => {
                self.delivered_to.fetch_max(message.offset().saturating_add(1), Ordering::Relaxed);
                return;
            }
            Err((error, message)) => (error, message),
        };
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let topic = message.topic();
        tracing::debug!(who = self.who, topic, %error, "a record was not delivered");
        self.note_failed(opaque, code);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RespErr, partitions: &mut TopicPartitionList) {
        let listener = self.rebalance.lock().clone();
        let takes_over = listener.as_ref().is_some_and(|listener| listener.takes_over());
        let is_cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let outcome = if error == RespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if let Some(listener) = &listener {
                listener.assigned(consumer, partitions);
            }
            if takes_over {
                return;
            }
            if is_cooperative { consumer.incremental_assign(partitions) } else { consumer.assign(partitions) }
        } else {
            if let Some(listener) = &listener {
                listener.revoked(consumer, partitions, consumer.assignment_lost());
            }
            if takes_over {
                return;
            }
            if is_cooperative { consumer.incremental_unassign(partitions) } else { consumer.unassign() }
        };
        if let Err(error) = outcome {
            tracing::error!(who = self.who, %error, "the change of partitions was refused");
        }
    }
}
