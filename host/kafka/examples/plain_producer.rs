//! The yardstick of `cargo xtask bench kafka`: an ordinary good producer on librdkafka, nothing else.
//!
//! `plain_producer BOOTSTRAP TOPIC EVENTS EVENT_BYTES TRANSACTION_MS [NAME=VALUE …]` sends events from memory to
//! a topic and prints a line of JSON. `TRANSACTION_MS` 0: no transactions. `NAME=VALUE` are librdkafka's own
//! properties. The time runs from the first event, with the connection (and the transactional id) there
//! already, to the last acknowledgement.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};

/// For one call to the broker.
const PATIENCE: Duration = Duration::from_secs(60);
/// When the queue is full: a tenth of what it holds has gone by then.
const PAUSE: Duration = Duration::from_millis(5);
/// Events are cut from a text of this length, so that they differ.
const TEXT_BYTES: usize = 1 << 20;

static FAILED: AtomicU64 = AtomicU64::new(0);

struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            FAILED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, topic, events, event_bytes, transaction_ms, properties @ ..] = arguments.as_slice()
    else {
        return Err("arguments: BOOTSTRAP TOPIC EVENTS EVENT_BYTES TRANSACTION_MS [NAME=VALUE …]".into());
    };
    let (events, event_bytes): (u64, usize) = (events.parse()?, event_bytes.parse()?);
    let interval = Duration::from_millis(transaction_ms.parse()?);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    for property in properties {
        let (name, value) = property.split_once('=').ok_or("a property is NAME=VALUE")?;
        config.set(name, value);
    }
    if !interval.is_zero() {
        config.set("transactional.id", format!("plain-{topic}"));
    }
    let producer: ThreadedProducer<Reports> = config.create_with_context(Reports)?;
    producer.client().fetch_metadata(Some(topic), PATIENCE)?;
    if !interval.is_zero() {
        producer.init_transactions(PATIENCE)?;
        producer.begin_transaction()?;
    }
    let text = text();
    let begin = Instant::now();
    let mut transaction = begin;
    for number in 0..events {
        let at = number as usize * 31 % (TEXT_BYTES - event_bytes);
        let body = text.get(at..at + event_bytes).ok_or("an event is longer than the text")?;
        send(&producer, topic, body)?;
        if !interval.is_zero() && number % 1_024 == 0 && transaction.elapsed() >= interval {
            producer.commit_transaction(PATIENCE)?;
            producer.begin_transaction()?;
            transaction = Instant::now();
        }
    }
    if interval.is_zero() {
        producer.flush(PATIENCE)?;
    } else {
        producer.commit_transaction(PATIENCE)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let failed = FAILED.load(Ordering::Relaxed);
    if failed > 0 {
        return Err(format!("{failed} events were not delivered").into());
    }
    let answer = serde_json::json!({
        "events_s": events as f64 / seconds,
        "mb_s": (events * event_bytes as u64) as f64 / 1e6 / seconds,
        "cpu_ns_per_event": cpu_ns()? as f64 / events as f64,
        "seconds": seconds,
    });
    println!("{answer}");
    Ok(())
}

fn send(producer: &ThreadedProducer<Reports>, topic: &str, body: &[u8]) -> Result<(), KafkaError> {
    let mut record = BaseRecord::<(), [u8]>::to(topic).payload(body);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                thread::sleep(PAUSE);
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Printable bytes without a pattern.
fn text() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b' ' + (state % 95) as u8
    };
    (0..TEXT_BYTES).map(|_| next()).collect()
}

/// Processor time of this process; `/proc` counts in steps of 10 ms.
fn cpu_ns() -> Result<u64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    // After the name come 11 fields, then user and system time.
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Ok(ticks * 10_000_000)
}
