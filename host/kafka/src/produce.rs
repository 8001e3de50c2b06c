//! A producer without the costs per record that rdkafka's own `send` has: topics are looked up once, values are not
//! copied, and only failures are reported back.
//!
//! Values stand in [`Values`], which the producer keeps until [`Producer::release`]: what librdkafka was given points
//! into them. The rules of its unsafe code:
//!
//! * A value's bytes live in a `Values` that is held, are on the heap, and are never written to: moving the
//!   `Values` moves no byte of them.
//! * `held` is let go of when librdkafka says that it has no record left, or after the client is destroyed: fields are
//!   dropped in the order of their declaration, topics, then the client (which ends librdkafka's threads), then
//!   `held`.
//! * Keys and headers are copied by librdkafka.
//!
//! How it fails: [`Producer::send`] says what is wrong with this record or this producer at once; what the broker
//! refuses later comes out of [`Producer::failed`]. Nothing blocks but what has a timeout.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{Array, BinaryArray};
use rdkafka::ClientConfig;
use rdkafka::bindings as sys;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer as _};

use crate::context::Context;
use crate::limits;

/// The bytes of many records' values, kept while librdkafka reads them.
#[derive(Debug, Clone)]
pub enum Values {
    /// Bodies as they are.
    Bodies(BinaryArray),
    /// Encoded, one after the other; value `i` ends at `ends[i]`.
    Encoded {
        /// All of them.
        bytes: Vec<u8>,
        /// Where each ends.
        ends: Vec<usize>,
    },
}

impl Values {
    /// Bytes of the longest.
    pub fn longest(&self) -> usize {
        match self {
            Values::Bodies(bodies) => longest(bodies.value_offsets()),
            Values::Encoded { ends, .. } => {
                let from = std::iter::once(&0).chain(ends);
                ends.iter().zip(from).map(|(end, from)| end.saturating_sub(*from)).max().unwrap_or(0)
            }
        }
    }

    /// One value; empty past the last.
    pub fn get(&self, row: usize) -> &[u8] {
        match self {
            Values::Bodies(bodies) if row < bodies.len() => bodies.value(row),
            Values::Bodies(_) => &[],
            Values::Encoded { bytes, ends } => {
                let from = row.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
                ends.get(row).and_then(|end| bytes.get(from..*end)).unwrap_or_default()
            }
        }
    }
}

/// The longest of values that lie one after the other between these offsets.
pub fn longest(offsets: &[i32]) -> usize {
    let lengths = offsets.iter().zip(offsets.iter().skip(1)).map(|(from, to)| to.saturating_sub(*from));
    lengths.max().and_then(|longest| usize::try_from(longest).ok()).unwrap_or(0)
}

/// A topic of one producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicId(usize);

/// A record, but for its value.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where it goes.
    pub topic: TopicId,
    /// `None`: librdkafka chooses.
    pub partition: Option<i32>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Milliseconds since the Unix epoch; `None`: now.
    pub time_ms: Option<i64>,
    /// Its headers.
    pub headers: &'a [(&'a CString, &'a [u8])],
    /// What [`Producer::failed`] calls it.
    pub id: usize,
}

/// See the module's text.
pub struct Producer {
    topics: Vec<Topic>,
    by_name: HashMap<String, TopicId>,
    client: BaseProducer<Context>,
    held: VecDeque<Arc<Values>>,
    fields: Vec<sys::rd_kafka_vu_t>,
    /// `batch.size`.
    batch_bytes: u64,
    /// Records handed to librdkafka since it had none, and the bytes of their values.
    sent: u64,
    sent_bytes: u64,
}

impl Producer {
    /// A producer of this configuration. Failures alone are reported.
    pub fn new(config: &ClientConfig, context: Context) -> KafkaResult<Producer> {
        let mut config = config.clone();
        config.set("delivery.report.only.error", "true");
        let client = BaseProducer::from_config_and_context(&config, context)?;
        let batch_bytes = config.get("batch.size").and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        let (topics, by_name, held, fields, sent, sent_bytes) = Default::default();
        Ok(Producer { topics, by_name, client, held, fields, batch_bytes, sent, sent_bytes })
    }

    /// rdkafka's own, for transactions and questions.
    pub fn client(&self) -> &BaseProducer<Context> {
        &self.client
    }

    /// The context.
    pub fn context(&self) -> &Context {
        self.client.client().context()
    }

    /// A topic by its name, looked up once.
    pub fn topic(&mut self, name: &str) -> KafkaResult<TopicId> {
        if let Some(id) = self.by_name.get(name) {
            return Ok(*id);
        }
        let topic = Topic::new(&self.client, name)?;
        let id = TopicId(self.topics.len());
        self.topics.push(topic);
        self.by_name.insert(name.to_owned(), id);
        Ok(id)
    }

    /// Keeps values while records that point into them may be under way.
    pub fn hold(&mut self, values: Arc<Values>) {
        self.held.push_back(values);
    }

    /// Lets go of what is held, if no record is under way. False: some is.
    pub fn release(&mut self) -> bool {
        // What waits to be served counts as under way.
        self.serve();
        let is_empty = self.client.in_flight_count() == 0;
        if is_empty {
            self.held.clear();
            (self.sent, self.sent_bytes) = (0, 0);
        }
        is_empty
    }

    /// Hands a record to librdkafka: its value is row `row` of the values held last. `QueueFull`: poll, and try again.
    pub fn send(&mut self, record: &Record<'_>, row: usize) -> Result<(), Code> {
        let values = self.held.back().ok_or(Code::InvalidArgument)?;
        let topic = self.topics.get(record.topic.0).ok_or(Code::UnknownTopic)?;
        let value = values.get(row);
        send(&self.client, topic, record, value, &mut self.fields)?;
        self.sent += 1;
        self.sent_bytes += value.len() as u64;
        Ok(())
    }

    /// Hands a record of its own to librdkafka, which copies the value.
    pub fn send_copy(&mut self, record: &Record<'_>, value: Vec<u8>) -> Result<(), Code> {
        let ends = vec![value.len()];
        self.hold(Arc::new(Values::Encoded { bytes: value, ends }));
        self.send(record, 0)
    }

    /// Waits, then serves what librdkafka has to tell. rdkafka's own `poll` with a timeout does not sleep in its last
    /// millisecond, but asks without a pause.
    pub fn poll(&self, wait: Duration) {
        std::thread::sleep(wait);
        self.serve();
    }

    /// Waits until librdkafka has no record left; false when `timeout` passed first.
    pub fn drain(&self, timeout: Duration, mut go_on: impl FnMut() -> bool) -> bool {
        let begin = Instant::now();
        loop {
            if self.drain_step() {
                return true;
            }
            // Reports of failures count as records until they are served.
            self.serve();
            if self.has_failed() {
                self.client.poll(limits::SERVE);
            }
            if begin.elapsed() >= timeout || !go_on() {
                return self.client.in_flight_count() == 0;
            }
        }
    }

    /// One step of [`Producer::drain`].
    ///
    /// librdkafka's flush sends what fills no batch yet. But while a partition with an idempotent producer has a request
    /// under way, and a record of it is older than `linger.ms`, its thread asks in a loop without a pause whether
    /// it may send (2.12, `rd_kafka_toppar_producer_serve`), and a flush makes every record that old. So full batches are left to go by
    /// themselves as long as they go, and only the rest is flushed.
    fn drain_step(&self) -> bool {
        // Statistics that wait are no records.
        self.serve();
        let before = self.client.in_flight_count();
        let left_bytes = u64::from(before.unsigned_abs()) * self.sent_bytes / self.sent.max(1);
        if left_bytes > self.batch_bytes * limits::DRAIN_BATCHES {
            let begin = Instant::now();
            while begin.elapsed() < limits::DRAIN_PROGRESS && !self.has_failed() {
                self.poll(limits::DRAIN_LOOK);
                if self.client.in_flight_count() < before {
                    return false;
                }
            }
        }
        drain_for(&self.client, limits::DRAIN_STEP)
    }

    /// Sends what fills no batch yet, and waits for it so long at most.
    pub fn kick(&self, wait: Duration) {
        drain_for(&self.client, wait);
    }

    /// The records that failed since the last call.
    pub fn failed(&self) -> Vec<(usize, Code)> {
        self.context().take_failed()
    }

    /// True if [`Producer::failed`] has something.
    pub fn has_failed(&self) -> bool {
        self.context().has_failed()
    }

    /// Serves what is there now. Nothing else empties librdkafka's queue of reports, statistics and lines of its log: a
    /// producer that sends nothing is to be served, too.
    pub fn serve(&self) {
        let mut in_vain = 0;
        for _ in 0..limits::EVENTS_AT_ONCE {
            let before = self.client.in_flight_count();
            // Without a wait rdkafka takes one event, and does not say whether there was one.
            self.client.poll(Duration::ZERO);
            // Once may be because another event came just then.
            in_vain = if self.client.in_flight_count() < before { 0 } else { in_vain + 1 };
            if in_vain == 2 {
                return;
            }
        }
    }

    /// Lets go of all topics; nothing may be under way.
    pub fn forget_topics(&mut self) {
        self.by_name.clear();
        self.topics.clear();
    }

    /// What made the client useless for good, if something did.
    pub fn fatal(&self) -> Option<KafkaError> {
        self.client.client().fatal_error().map(|(code, _)| KafkaError::Global(code))
    }
}

/// A topic's handle.
struct Topic(*mut sys::rd_kafka_topic_t);

#[allow(unsafe_code, reason = "librdkafka's produce calls without a lookup and a copy per record")]
mod unsafe_calls {
    use super::*;

    // SAFETY: librdkafka's topic handles may be used and destroyed on any thread (INTRODUCTION.md, "Thread safety").
    unsafe impl Send for Topic {}

    // SAFETY: the scratch space `fields` holds pointers only while `send` runs.
    unsafe impl Send for Producer {}

    impl Topic {
        pub(super) fn new(client: &BaseProducer<Context>, name: &str) -> KafkaResult<Topic> {
            let name = CString::new(name).map_err(KafkaError::Nul)?;
            // SAFETY: the client lives (it is borrowed); the name is copied; no configuration is given.
            let handle = unsafe {
                sys::rd_kafka_topic_new(client.client().native_ptr(), name.as_ptr(), std::ptr::null_mut())
            };
            if handle.is_null() {
                return Err(KafkaError::MessageProduction(Code::InvalidTopic));
            }
            Ok(Topic(handle))
        }
    }

    impl Drop for Topic {
        fn drop(&mut self) {
            // SAFETY: the handle is ours, destroyed once, and before its client (order of `Producer`'s fields).
            unsafe { sys::rd_kafka_topic_destroy(self.0) };
        }
    }

    /// True if no record is left.
    pub(super) fn drain_for(client: &BaseProducer<Context>, step: Duration) -> bool {
        let step_ms = i32::try_from(step.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client lives. Events are served by `poll`, which librdkafka demands in this mode.
        let outcome = unsafe { sys::rd_kafka_flush(client.client().native_ptr(), step_ms) };
        outcome == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    pub(super) fn send(
        client: &BaseProducer<Context>,
        topic: &Topic,
        record: &Record<'_>,
        value: &[u8],
        fields: &mut Vec<sys::rd_kafka_vu_t>,
    ) -> Result<(), Code> {
        use sys::rd_kafka_vtype_t as Type;
        let field = |vtype, u| sys::rd_kafka_vu_t { vtype, u };
        let bytes = |bytes: &[u8]| Union {
            mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
                ptr: bytes.as_ptr() as *mut c_void,
                size: bytes.len(),
            },
        };
        fields.clear();
        fields.push(field(Type::RD_KAFKA_VTYPE_RKT, Union { rkt: topic.0 }));
        fields.push(field(Type::RD_KAFKA_VTYPE_PARTITION, Union { i32_: record.partition.unwrap_or(-1) }));
        // Neither copied nor freed by librdkafka.
        fields.push(field(Type::RD_KAFKA_VTYPE_MSGFLAGS, Union { i: 0 }));
        fields.push(field(Type::RD_KAFKA_VTYPE_VALUE, bytes(value)));
        fields.push(field(Type::RD_KAFKA_VTYPE_OPAQUE, Union { ptr: record.id as *mut c_void }));
        if let Some(key) = record.key {
            fields.push(field(Type::RD_KAFKA_VTYPE_KEY, bytes(key)));
        }
        if let Some(time_ms) = record.time_ms {
            fields.push(field(Type::RD_KAFKA_VTYPE_TIMESTAMP, Union { i64_: time_ms }));
        }
        for (name, value) in record.headers {
            let header = sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
                name: name.as_ptr(),
                val: value.as_ptr().cast(),
                size: value.len() as isize,
            };
            fields.push(field(Type::RD_KAFKA_VTYPE_HEADER, Union { header }));
        }
        // SAFETY: the client and the topic live, and the topic is this client's. Name, key and headers are copied
        // before the call returns. The value is in `held` (or the call fails): see the module's text.
        let error =
            unsafe { sys::rd_kafka_produceva(client.client().native_ptr(), fields.as_ptr(), fields.len()) };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: a non-null answer is an error that is ours to read and to destroy once.
        let code = unsafe {
            let code = sys::rd_kafka_error_code(error);
            sys::rd_kafka_error_destroy(error);
            code
        };
        Err(code.into())
    }

    type Union = sys::rd_kafka_vu_s__bindgen_ty_1;
}

use unsafe_calls::{drain_for, send};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use flumen_pipeline::{Options, Value};
    use std::collections::BTreeMap;

    /// Nothing listens there; statistics come all the same.
    fn unconnected() -> Producer {
        let brokers = Value::TextList(vec!["127.0.0.1:1".into()]);
        let options = Options(BTreeMap::from([("brokers".to_owned(), brokers)]));
        let settings = Arc::new(Settings::from_options(&options).unwrap());
        let mut config = settings.config("test");
        config.set("statistics.interval.ms", "10");
        Producer::new(&config, Context::new("test", settings, None)).unwrap()
    }

    fn let_statistics_pile_up(producer: &Producer) {
        let until = Instant::now() + Duration::from_secs(20);
        while producer.client.in_flight_count() < 50 {
            assert!(Instant::now() < until, "{} events", producer.client.in_flight_count());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn one_call_serves_all_that_waited() {
        let producer = unconnected();
        let_statistics_pile_up(&producer);
        // A call ends early when the thread is off its core while more come.
        let serves = || {
            producer.serve();
            producer.client.in_flight_count()
        };
        let left: Vec<_> = (0..3).map(|_| serves()).collect();
        assert!(left.iter().any(|left| *left < 25), "{left:?} events");
    }

    #[test]
    fn statistics_that_wait_keep_no_values() {
        let mut producer = unconnected();
        let_statistics_pile_up(&producer);
        producer.hold(Arc::new(Values::Encoded { bytes: vec![1], ends: vec![1] }));
        // One more may come just then.
        assert!((0..10).any(|_| producer.release()));
        assert!(producer.held.is_empty());
    }
}
