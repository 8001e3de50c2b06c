//! How long events take to a consumer: the outside view of `cargo xtask bench kafka --sustained` and `--table`.
//!
//! `delay_consumer BOOTSTRAP TOPIC SECONDS WINDOW_S time|body` reads every partition from its beginning with
//! `read_committed` until `SECONDS` have passed since the first event, and prints a line of JSON for each window:
//! events, and how old they were when they came (p50, p99, max, in ms). The age counts from the record's time
//! (`time`), or from the 13 digits of milliseconds that its value begins with (`body`).

use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};

/// Ages from here on count as this.
const AGE_MS_MAX: usize = 600_000;
/// Without a first event for this long it gives up.
const FIRST_EVENT: Duration = Duration::from_secs(120);
/// Digits of milliseconds since 1970, until the year 2286.
const TIME_DIGITS: usize = 13;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, topic, seconds, window, age_of] = arguments.as_slice() else {
        return Err("arguments: BOOTSTRAP TOPIC SECONDS WINDOW_S time|body".into());
    };
    let time = if age_of == "body" { time_in_body } else { time_of_record };
    let (total, window) = (Duration::from_secs(seconds.parse()?), Duration::from_secs(window.parse()?));
    let consumer = reader(bootstrap, topic)?;
    let mut ages = Ages { of_ms: vec![0; AGE_MS_MAX + 1], events: 0 };
    let (mut begin, started, mut windows) = (None, Instant::now(), 0_u32);
    loop {
        let message = consumer.poll(Duration::from_millis(100));
        if let Some(first) = begin.filter(|first: &Instant| first.elapsed() >= window * (windows + 1)) {
            windows += 1;
            println!("{}", ages.take(window));
            if first.elapsed() >= total {
                return Ok(());
            }
        }
        match message {
            None if begin.is_none() && started.elapsed() > FIRST_EVENT => return Err("no event came".into()),
            None => {}
            Some(Ok(message)) => {
                begin.get_or_insert_with(Instant::now);
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
                ages.add(now - time(&message).ok_or("an event without a time")?);
            }
            Some(Err(error @ KafkaError::MessageConsumption(_))) => eprintln!("{error}"),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

fn reader(bootstrap: &str, topic: &str) -> Result<BaseConsumer, Box<dyn Error>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", format!("delay-{topic}"));
    config.set("isolation.level", "read_committed").set("enable.auto.commit", "false");
    config.set("fetch.wait.max.ms", "10").set("fetch.queue.backoff.ms", "2");
    config.set("queued.max.messages.kbytes", "65536").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30))?;
    let found = metadata.topics().first().ok_or("there is no such topic")?;
    let mut partitions = TopicPartitionList::new();
    for partition in found.partitions() {
        partitions.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    Ok(consumer)
}

fn time_of_record(message: &BorrowedMessage<'_>) -> Option<i64> {
    message.timestamp().to_millis()
}

fn time_in_body(message: &BorrowedMessage<'_>) -> Option<i64> {
    std::str::from_utf8(message.payload()?.get(..TIME_DIGITS)?).ok()?.parse().ok()
}

/// A histogram of whole milliseconds.
struct Ages {
    of_ms: Vec<u32>,
    events: u64,
}

impl Ages {
    fn add(&mut self, age_ms: i64) {
        let at = usize::try_from(age_ms.max(0)).unwrap_or(AGE_MS_MAX).min(AGE_MS_MAX);
        if let Some(count) = self.of_ms.get_mut(at) {
            *count += 1;
        }
        self.events += 1;
    }

    /// What it has, as JSON; then it is empty.
    fn take(&mut self, window: Duration) -> serde_json::Value {
        let answer = serde_json::json!({
            "events": self.events,
            "events_s": self.events as f64 / window.as_secs_f64(),
            "p50_ms": self.percentile(0.5),
            "p99_ms": self.percentile(0.99),
            "max_ms": self.percentile(1.0),
        });
        self.of_ms.fill(0);
        self.events = 0;
        answer
    }

    fn percentile(&self, part: f64) -> Option<usize> {
        let wanted = (self.events as f64 * part).ceil() as u64;
        let mut seen = 0_u64;
        self.of_ms.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted && seen > 0
        })
    }
}
