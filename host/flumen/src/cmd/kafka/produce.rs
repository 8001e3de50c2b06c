//! `flumen kafka produce`: lines of the standard input, one record each.

use std::io::BufRead;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use flumen_kafka::admin::{Link, topics};
use flumen_kafka::rdkafka::ClientConfig;
use flumen_kafka::rdkafka::config::FromClientConfigAndContext;
use flumen_kafka::rdkafka::error::{KafkaError, RDKafkaErrorCode};
use flumen_kafka::rdkafka::message::{Header, OwnedHeaders};
use flumen_kafka::rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use flumen_kafka::{Context, words};

use super::connection::{Connection, pair};
use super::{interrupted, is_set};
use crate::exit::{FAILED, Failure, counted};

/// A record that the broker has not taken by then is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often Ctrl-C and failures are looked for.
const TICK: Duration = Duration::from_millis(100);
/// Lines that are read ahead of the broker.
const LINES_AHEAD: usize = 1_024;
/// Failures that are told one by one.
const TOLD_MAX: usize = 5;

/// What librdkafka takes as `message.max.bytes`.
const MESSAGE_MAX_BYTES: (u64, u64) = (1_000, 1_000_000_000);

/// Arguments of `flumen kafka produce`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topic; it has to exist.
    topic: String,
    /// What stands between the key and the value in a line; without it a line is a value.
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// A header of every record, as name=value.
    #[arg(long = "header", value_parser = pair, value_name = "NAME=VALUE")]
    headers: Vec<(String, String)>,
    /// The partition of all records; without it the key decides, as in Java.
    #[arg(long)]
    partition: Option<i32>,
}

/// Reads lines and writes records until the input ends or someone wants an end.
pub fn run(args: &Args, connection: &Connection) -> Result<(), Failure> {
    let settings = &connection.settings;
    let link = Link::open(settings)?;
    let topic = topics::list(&link, Some(&args.topic))?;
    if let (Some(wanted), Some(topic)) = (args.partition, topic.first())
        && !topic.partitions.iter().any(|partition| partition.id == wanted)
    {
        let count = topic.partitions.len();
        return Err(
            anyhow::anyhow!("{} has {count} partitions, and none is number {wanted}", args.topic).into()
        );
    }
    let mut config: ClientConfig = settings.config("flumen-kafka");
    config.set("acks", "all").set("enable.idempotence", "true").set("partitioner", "murmur2_random");
    config.set("linger.ms", "20").set("delivery.timeout.ms", PATIENCE.as_millis().to_string());
    // The broker's limit is for a whole batch: without it here, one large line would take its neighbours along.
    if let Ok(configs) = topics::configs(&link, &args.topic)
        && let Some(limit) = configs.iter().find(|config| config.name == "max.message.bytes")
        && let Some(bytes) = limit.value.as_ref().and_then(|value| value.parse::<u64>().ok())
    {
        let (least, most) = MESSAGE_MAX_BYTES;
        config.set("message.max.bytes", bytes.clamp(least, most).to_string());
    }
    let context = Context::new("kafka", settings.clone(), None);
    let producer: ThreadedProducer<Context> = ThreadedProducer::from_config_and_context(&config, context)
        .map_err(|error| anyhow::anyhow!(words::explain(&error, settings, None)))?;
    let mut writer = Writer { args, producer, failures: 0, sent: 0 };
    let asked = interrupted()?;
    let ended = writer.all(&lines()?, &asked);
    // What was sent is waited for, whatever came after it.
    let left = writer.producer.flush(PATIENCE);
    writer.failed();
    let written = writer.sent - writer.failures;
    eprintln!("{} written to {}", counted(usize::try_from(written)?, "record"), args.topic);
    ended?;
    left.map_err(|error| anyhow::anyhow!(writer.producer.client().context().explain(&error)))?;
    if writer.failures > 0 { Err(Failure::Reported(FAILED)) } else { Ok(()) }
}

/// Standard input is read by a thread of its own, so that Ctrl-C does not wait for a line.
fn lines() -> Result<Receiver<std::io::Result<Vec<u8>>>, Failure> {
    let (send, receive) = bounded(LINES_AHEAD);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let read = match input.read_until(b'\n', &mut line) {
                Ok(0) => return,
                read => read,
            };
            if line.ends_with(b"\n") {
                line.pop();
            }
            let is_end = read.is_err();
            if send.send(read.map(|_| line)).is_err() || is_end {
                return;
            }
        }
    })?;
    Ok(receive)
}

struct Writer<'a> {
    args: &'a Args,
    producer: ThreadedProducer<Context>,
    failures: u64,
    sent: u64,
}

impl Writer<'_> {
    fn all(&mut self, lines: &Receiver<std::io::Result<Vec<u8>>>, asked: &AtomicBool) -> Result<(), Failure> {
        for number in 1_usize.. {
            let line = loop {
                if is_set(asked) {
                    return Ok(());
                }
                self.failed();
                match lines.recv_timeout(TICK) {
                    Ok(line) => break line?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            };
            self.send(number, &line, asked)?;
        }
        Ok(())
    }

    fn send(&mut self, number: usize, line: &[u8], asked: &AtomicBool) -> Result<(), Failure> {
        let (key, value) = match &self.args.key_separator {
            None => (None, line),
            Some(separator) => match split(line, separator.as_bytes()) {
                Some((key, value)) => (Some(key), value),
                None => {
                    self.sent += 1;
                    self.fail(number, &format!("has no {separator:?}"));
                    return Ok(());
                }
            },
        };
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&self.args.topic, number).payload(value);
        record.key = key;
        record.partition = self.args.partition;
        if !self.args.headers.is_empty() {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &self.args.headers {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            record.headers = Some(headers);
        }
        self.sent += 1;
        let begun = Instant::now();
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if begun.elapsed() < PATIENCE && !is_set(asked) =>
                {
                    record = back;
                    self.producer.poll(TICK);
                }
                Err((error, _)) => {
                    let why = self.producer.client().context().explain(&error);
                    self.fail(number, &why);
                    return Ok(());
                }
            }
        }
    }

    /// Tells of records that the broker did not take.
    fn failed(&mut self) {
        for (number, code) in self.producer.client().context().take_failed() {
            let why = self.producer.client().context().explain(&KafkaError::MessageProduction(code));
            self.fail(number, &why);
        }
    }

    fn fail(&mut self, number: usize, why: &str) {
        self.failures += 1;
        match usize::try_from(self.failures) {
            Ok(failures) if failures <= TOLD_MAX => eprintln!("line {number}: {why}"),
            Ok(failures) if failures == TOLD_MAX + 1 => eprintln!("more lines failed; they are counted"),
            _ => {}
        }
    }
}

fn split<'a>(line: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = line.windows(separator.len().max(1)).position(|part| part == separator)?;
    Some((line.get(..at)?, line.get(at + separator.len()..)?))
}
