//! How long events take to a consumer: the outside view of `cargo xtask bench kafka --sustained` and `--table`.
//!
//! `delay_consumer BOOTSTRAP TOPIC SECONDS WINDOW_S time|body|RATE` reads every partition from its beginning with
//! `read_committed` and prints a line of JSON for each window: events, how many of them were there within a second,
//! and how old they were when they came (p50, p99, max, in ms).
//!
//! * `time`, `body`: the age counts from the record's time, or from the 13 digits of milliseconds that its value begins
//!   with. An event is in the window in which it comes; the first event begins the first one.
//! * A number, `RATE`: values begin with `n=NUMBER `, and number n is *due* `n / RATE` seconds after the start. The age
//!   counts from there, so an event that was made late is old, and an event is in the window in which it was due. Each
//!   window has its own events then, whichever side of its end a transaction of theirs falls on, and each is waited for.

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
/// An event that is no older counts as in time: two transactions' intervals.
const IN_TIME_MS: usize = 1_000;
/// Events that were due are waited for so long behind the last one.
const GRACE_S: u64 = 30;
/// Digits of milliseconds since 1970, until the year 2286.
const TIME_DIGITS: usize = 13;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, topic, seconds, window, age_of] = arguments.as_slice() else {
        return Err("arguments: BOOTSTRAP TOPIC SECONDS WINDOW_S time|body|RATE".into());
    };
    let (seconds, window_s): (u64, u64) = (seconds.parse()?, window.parse()?);
    let mut due = age_of.parse().ok().map(Schedule::new);
    let time = if age_of == "body" { time_in_body } else { time_of_record };
    let mut windows: Vec<Ages> = (0..seconds.div_ceil(window_s)).map(|_| Ages::default()).collect();
    // Whole windows.
    let seconds = windows.len() as u64 * window_s;
    let consumer = reader(bootstrap, topic)?;
    let (mut begin, started) = (None, Instant::now());
    loop {
        let message = consumer.poll(Duration::from_millis(100));
        if let Some(first) = begin {
            let passed = Instant::now().duration_since(first).as_secs();
            let is_done = match &due {
                None => passed >= seconds,
                Some(due) => {
                    let all = due.rate * window_s;
                    windows.iter().all(|ages| ages.events >= all) || passed >= seconds + GRACE_S
                }
            };
            if is_done {
                windows.iter().for_each(|ages| println!("{}", ages.figures(window_s)));
                return Ok(());
            }
        }
        match message {
            None if begin.is_none() && started.elapsed() > FIRST_EVENT => return Err("no event came".into()),
            None => {}
            Some(Ok(message)) => {
                let first = *begin.get_or_insert_with(Instant::now);
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
                let made = time(&message).ok_or("an event without a time")?;
                let (since, at_s) = match &mut due {
                    None => (made, first.elapsed().as_secs()),
                    Some(due) => {
                        let number = number(&message).ok_or("an event without a number")?;
                        (due.of(number, made), number / due.rate)
                    }
                };
                if let Some(ages) = windows.get_mut((at_s / window_s) as usize) {
                    ages.add(now - since);
                }
            }
            Some(Err(error @ KafkaError::MessageConsumption(_))) => eprintln!("{error}"),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// When events are due. The start is the latest that any event allows: none is made before it is due.
struct Schedule {
    rate: u64,
    start_ms: i64,
}

impl Schedule {
    fn new(rate: u64) -> Schedule {
        Schedule { rate, start_ms: i64::MAX }
    }

    fn of(&mut self, number: u64, made_ms: i64) -> i64 {
        let after_ms = (number * 1_000 / self.rate) as i64;
        self.start_ms = self.start_ms.min(made_ms - after_ms);
        self.start_ms + after_ms
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

/// The number in `n=NUMBER …`.
fn number(message: &BorrowedMessage<'_>) -> Option<u64> {
    let digits = message.payload()?.strip_prefix(b"n=")?.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A histogram of whole milliseconds.
struct Ages {
    of_ms: Vec<u32>,
    events: u64,
}

impl Default for Ages {
    fn default() -> Ages {
        Ages { of_ms: vec![0; AGE_MS_MAX + 1], events: 0 }
    }
}

impl Ages {
    fn add(&mut self, age_ms: i64) {
        let at = usize::try_from(age_ms.max(0)).unwrap_or(AGE_MS_MAX).min(AGE_MS_MAX);
        if let Some(count) = self.of_ms.get_mut(at) {
            *count += 1;
        }
        self.events += 1;
    }

    fn figures(&self, window_s: u64) -> serde_json::Value {
        let in_time: u64 = self.of_ms.iter().take(IN_TIME_MS + 1).map(|count| u64::from(*count)).sum();
        serde_json::json!({
            "events": self.events,
            "events_s": self.events as f64 / window_s as f64,
            "in_time_events_s": in_time as f64 / window_s as f64,
            "p50_ms": self.percentile(0.5),
            "p99_ms": self.percentile(0.99),
            "max_ms": self.percentile(1.0),
        })
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
