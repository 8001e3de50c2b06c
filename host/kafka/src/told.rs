//! What the client of a consumer tells (statistics, lines of its log, errors, the question for a token), served by a thread
//! of its own.
//!
//! rdkafka puts all of this into the queue of the records, so that a poll takes the one with the other; while nobody takes
//! records, because the pipeline is full or a broker is waited for, it would pile up. Nor can the partitions be paused meanwhile:
//! that throws away what was fetched ahead, and with it perhaps the error that tells of a gap, whose partition then stands
//! still (2.12, `rd_kafka_q_purge_toppar_version`). So the client gets its own queue back. Records and changes of the assignment
//! stay where they are.
#![allow(unsafe_code, reason = "rdkafka has no safe form of these calls")]

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::{io, ptr};

use rdkafka::bindings as c;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use crate::admin;
use crate::context::Context;
use crate::limits;

/// See the module.
pub struct Told {
    errors: Receiver<KafkaError>,
    queue: Arc<Queue>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Told {
    /// Starts the thread. The consumer is held until the end of this.
    pub fn serve(name: &str, consumer: Arc<BaseConsumer<Context>>) -> io::Result<Told> {
        let queue = Arc::new(Queue::of(consumer));
        let is_over = Arc::new(AtomicBool::new(false));
        // What a poll would give; of more than these nobody learns anything new.
        let (outbox, errors) = sync_channel(limits::EVENTS_AT_ONCE);
        let (served, ends) = (queue.clone(), is_over.clone());
        let thread = std::thread::Builder::new().name(format!("told-{name}")).spawn(move || {
            while !ends.load(Ordering::Acquire) {
                if let Some(error) = served.next().and_then(|event| served.take(&event)) {
                    drop(outbox.try_send(error));
                }
            }
        })?;
        Ok(Told { errors, queue, is_over, thread: Some(thread) })
    }

    /// The oldest error that nobody has asked for yet.
    pub fn error(&self) -> Option<KafkaError> {
        self.errors.try_recv().ok()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        self.queue.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that serves what a client tells panicked (a bug of Flumen)");
        }
    }
}

/// The queue of a consumer's client, and the consumer, so that it lives as long.
struct Queue {
    handle: *mut c::rd_kafka_queue_t,
    consumer: Arc<BaseConsumer<Context>>,
}

// SAFETY: librdkafka's queues may be used, and their handles let go of, on any thread (INTRODUCTION.md, "Thread safety").
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// From now on what the client tells comes here alone.
    fn of(consumer: Arc<BaseConsumer<Context>>) -> Queue {
        // SAFETY: the client lives, and does as long as `consumer`. Without another one to go to, its events stay in its queue.
        let handle = unsafe {
            let handle = c::rd_kafka_queue_get_main(consumer.client().native_ptr());
            c::rd_kafka_queue_forward(handle, ptr::null_mut());
            handle
        };
        Queue { handle, consumer }
    }

    /// What is told next, if something is soon.
    fn next(&self) -> Option<Event> {
        let wait_ms = c_int::try_from(limits::SERVE_EVERY.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the queue lives.
        let event = unsafe { c::rd_kafka_queue_poll(self.handle, wait_ms) };
        (!event.is_null()).then_some(Event(event))
    }

    /// Ends the present or next wait.
    fn wake(&self) {
        // SAFETY: the queue lives.
        unsafe { c::rd_kafka_queue_yield(self.handle) };
    }

    /// As a poll of rdkafka does.
    fn take(&self, event: &Event) -> Option<KafkaError> {
        let context = self.consumer.context();
        match event.kind() {
            c::RD_KAFKA_EVENT_STATS => context.stats_raw(event.text(c::rd_kafka_event_stats)),
            c::RD_KAFKA_EVENT_LOG => {
                if let Some((level, facility, line)) = event.line() {
                    context.log(level, facility.trim(), line.trim());
                }
            }
            c::RD_KAFKA_EVENT_ERROR => {
                // SAFETY: the event lives.
                let code = unsafe { c::rd_kafka_event_error(event.0) };
                let reason = String::from_utf8_lossy(event.text(c::rd_kafka_event_error_string));
                context.error(KafkaError::Global(code.into()), reason.trim());
                return Some(KafkaError::MessageConsumption(code.into()));
            }
            c::RD_KAFKA_EVENT_OAUTHBEARER_TOKEN_REFRESH => self.refresh_token(),
            // Nothing else that comes here is of use to anybody.
            _ => {}
        }
        None
    }

    fn refresh_token(&self) {
        let client = self.consumer.client();
        let token = self.consumer.context().generate_oauth_token(None).map_err(|error| error.to_string());
        if let Err(reason) = token.and_then(|token| admin::set_token(client, token)) {
            tracing::debug!(reason, "no token");
            let reason = CString::new(reason.replace('\0', " ")).unwrap_or_default();
            // SAFETY: the client lives, and the text is copied. librdkafka asks again after a pause.
            unsafe { c::rd_kafka_oauthbearer_set_token_failure(client.native_ptr(), reason.as_ptr()) };
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, is let go of once, and before the client is.
        unsafe { c::rd_kafka_queue_destroy(self.handle) };
    }
}

/// Something that a client tells; ours until it is dropped.
struct Event(*mut c::rd_kafka_event_t);

impl Event {
    fn kind(&self) -> c_int {
        // SAFETY: the event lives.
        unsafe { c::rd_kafka_event_type(self.0) }
    }

    /// One of its texts; nothing if it has none.
    fn text(&self, of: unsafe extern "C" fn(*mut c::rd_kafka_event_t) -> *const c_char) -> &[u8] {
        // SAFETY: the event lives, and with it its texts, each of which ends in a zero.
        unsafe {
            let text = of(self.0);
            if text.is_null() { &[] } else { CStr::from_ptr(text).to_bytes() }
        }
    }

    /// A line of the log: how grave, of what, and what.
    fn line(&self) -> Option<(RDKafkaLogLevel, Cow<'_, str>, Cow<'_, str>)> {
        let (mut facility, mut line): (*const c_char, *const c_char) = (ptr::null(), ptr::null());
        let mut level = 0;
        // SAFETY: the event lives. After a success both texts live as long as it does, and end in a zero.
        let (facility, line) = unsafe {
            if c::rd_kafka_event_log(self.0, &mut facility, &mut line, &mut level) != 0 {
                return None;
            }
            (CStr::from_ptr(facility), CStr::from_ptr(line))
        };
        Some((log_level(level), facility.to_string_lossy(), line.to_string_lossy()))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours, and is destroyed once.
        unsafe { c::rd_kafka_event_destroy(self.0) };
    }
}

/// The levels of syslog.
fn log_level(number: c_int) -> RDKafkaLogLevel {
    match number {
        ..=0 => RDKafkaLogLevel::Emerg,
        1 => RDKafkaLogLevel::Alert,
        2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use flumen_pipeline::{ComponentKind, ComponentMetrics, Options, Value};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use rdkafka::{Message, Offset, TopicPartitionList};
    use std::time::{Duration, Instant};

    const RECORDS: i64 = 5;

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn settings(brokers: String) -> Arc<Settings> {
        let brokers = Value::TextList(vec![brokers]);
        Arc::new(Settings::from_options(&Options([("brokers".to_owned(), brokers)].into())).unwrap())
    }

    fn produce(settings: &Arc<Settings>) {
        let context = Context::new("test", settings.clone(), None);
        let producer: BaseProducer<Context> = settings.config("test").create_with_context(context).unwrap();
        for id in 0..RECORDS as usize {
            let record: BaseRecord<'_, [u8], [u8], usize> =
                BaseRecord::with_opaque_to("t", id).partition(0).payload(&b"x"[..]);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    fn consumer(settings: &Arc<Settings>, metrics: &Arc<ComponentMetrics>) -> Arc<BaseConsumer<Context>> {
        let mut config = settings.config("test");
        config.set("group.id", "g").set("statistics.interval.ms", "10").set("enable.auto.commit", "false");
        let context = Context::new("test", settings.clone(), Some(metrics.clone()));
        let consumer: BaseConsumer<Context> = config.create_with_context(context).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("t", 0, Offset::Offset(0)).unwrap();
        consumer.assign(&list).unwrap();
        Arc::new(consumer)
    }

    /// On librdkafka's own mock of a broker.
    #[test]
    fn what_a_client_tells_is_served_without_its_records() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let settings = settings(cluster.bootstrap_servers());
        produce(&settings);
        let metrics = ComponentMetrics::new(ComponentKind::Source, "in".into());
        let consumer = consumer(&settings, &metrics);
        {
            let _told = Told::serve("in", consumer.clone()).unwrap();
            // What was told before is among what waits.
            let waits = || metrics.gauges().get("kafka/t/0/lag").is_some_and(|lag| *lag >= RECORDS as u64);
            for what in ["statistics that count the records that wait", "more of them"] {
                metrics.set_gauges("kafka/", std::iter::empty());
                until(what, waits);
            }
        }
        assert_eq!(Arc::strong_count(&consumer), 1, "nobody else holds it any more");
        let mut offsets = Vec::new();
        until("the records", || {
            offsets.extend(consumer.poll(Duration::from_millis(10)).map(|record| record.unwrap().offset()));
            offsets.len() as i64 >= RECORDS
        });
        assert_eq!(offsets, (0..RECORDS).collect::<Vec<_>>());
    }

    #[test]
    fn errors_are_told_as_a_poll_tells_them() {
        let settings = settings("127.0.0.1:1".to_owned());
        let metrics = ComponentMetrics::new(ComponentKind::Source, "in".into());
        let consumer = consumer(&settings, &metrics);
        let told = Told::serve("in", consumer.clone()).unwrap();
        until("that nobody listens there", || told.error().is_some());
        assert!(consumer.context().last_error().is_some());
    }
}
