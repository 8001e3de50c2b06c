//! `flumen kafka consume`: prints records, and says what their values look like.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use flumen_kafka::admin::offsets::Range;
use flumen_kafka::admin::topics::Topic;
use flumen_kafka::admin::value::{Look, look};
use flumen_kafka::admin::{Link, offsets, topics};
use flumen_kafka::flume_avro;
use flumen_kafka::rdkafka::consumer::Consumer;
use flumen_kafka::rdkafka::error::KafkaError;
use flumen_kafka::rdkafka::message::{BorrowedMessage, Headers, Message};
use flumen_kafka::rdkafka::{Offset, TopicPartitionList};
use serde_json::{Map, Value, json};

use super::connection::Connection;
use super::{interrupted, is_set};
use crate::cmd::print_json;
use crate::exit::Failure;

/// How often Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Arguments of `flumen kafka consume`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topic.
    topic: String,
    /// Where to begin: earliest, latest, an offset, -N (N before the end of each partition), or a time such as
    /// 2026-10-10T13:55:00Z.
    #[arg(long, default_value = "latest", allow_hyphen_values = true)]
    from: String,
    /// Only this partition; may be given more than once.
    #[arg(long = "partition")]
    partitions: Vec<i32>,
    /// End after this many records.
    #[arg(long)]
    count: Option<u64>,
    /// Go on at the end of the topic, until Ctrl-C. With --from latest that is so anyway.
    #[arg(long, short)]
    follow: bool,
    /// Show also records of transactions that are open or were aborted.
    #[arg(long)]
    uncommitted: bool,
    /// raw: the value and a line end; json: the record; flume-avro: the record, its value read as Flume's event.
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Raw,
    Json,
    FlumeAvro,
}

/// Prints records until the end that was asked for.
pub fn run(args: &Args, connection: &Connection) -> Result<(), Failure> {
    let link = Link::open(&connection.settings)?;
    let mut topics = topics::list(&link, Some(&args.topic))?;
    if let Some(topic) = topics.first_mut() {
        keep(topic, &args.partitions)?;
    }
    let ranges = offsets::ranges(&link, &topics)?;
    let starts = starts(&link, &args.from, &topics, &ranges)?;
    let mut open: BTreeMap<i32, i64> = ranges
        .iter()
        .filter(|((topic, id), range)| {
            starts.get(&(topic.clone(), *id)).is_some_and(|start| start < &range.end)
        })
        .map(|((_, id), range)| (*id, range.end))
        .collect();
    let is_endless = args.follow || args.from == "latest";
    if open.is_empty() && !is_endless {
        eprintln!("no records there; --follow waits for new ones");
        return Ok(());
    }
    let mut list = TopicPartitionList::new();
    for ((topic, partition), start) in &starts {
        list.add_partition_offset(topic, *partition, Offset::Offset(*start))?;
    }
    let reader = link.reader(None, !args.uncommitted)?;
    reader.assign(&list)?;
    let asked = interrupted()?;
    let mut printer = Printer { format: args.format, has_warned: false };
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 && !is_set(&asked) && (is_endless || !open.is_empty()) {
        match reader.poll(TICK) {
            Some(Ok(record)) => {
                let is_last = open.get(&record.partition()).is_some_and(|end| record.offset() + 1 >= *end);
                printer.print(&record)?;
                left -= 1;
                if is_last {
                    open.remove(&record.partition());
                }
            }
            // Behind the last record there may be markers of transactions, which are never shown.
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => {
                let why = reader.client().context().explain(&error);
                if !is_endless {
                    return Err(anyhow::anyhow!(why).into());
                }
                eprintln!("flumen: {why}");
            }
            None => {}
        }
    }
    Ok(())
}

fn keep(topic: &mut Topic, wanted: &[i32]) -> Result<(), Failure> {
    let count = topic.partitions.len();
    if let Some(missing) =
        wanted.iter().find(|id| !topic.partitions.iter().any(|partition| partition.id == **id))
    {
        return Err(
            anyhow::anyhow!("{} has {count} partitions, and none is number {missing}", topic.name).into()
        );
    }
    topic.partitions.retain(|partition| wanted.is_empty() || wanted.contains(&partition.id));
    Ok(())
}

type Offsets = BTreeMap<(String, i32), i64>;

fn starts(
    link: &Link,
    from: &str,
    topics: &[Topic],
    ranges: &BTreeMap<(String, i32), Range>,
) -> Result<Offsets, Failure> {
    let each = |start: &dyn Fn(&Range) -> i64| {
        ranges.iter().map(|(key, range)| (key.clone(), start(range))).collect()
    };
    let number = from.parse::<i64>();
    Ok(match (from, number) {
        ("earliest", _) => each(&|range| range.first),
        ("latest", _) => each(&|range| range.end),
        (_, Ok(back)) if back < 0 => each(&|range| (range.end + back).max(range.first)),
        (_, Ok(offset)) => each(&|range| offset.clamp(range.first, range.end)),
        (time, Err(_)) => {
            let time: jiff::Timestamp = time.parse().map_err(|error| {
                anyhow::anyhow!("--from {time:?} is neither earliest, latest, an offset nor a time: {error}")
            })?;
            let found = offsets::at_time(link, topics, time.as_millisecond())?;
            let start = |(key, range): (&(String, i32), &Range)| {
                (key.clone(), found.get(key).copied().unwrap_or(range.end))
            };
            ranges.iter().map(start).collect()
        }
    })
}

struct Printer {
    format: Format,
    has_warned: bool,
}

impl Printer {
    fn print(&mut self, record: &BorrowedMessage<'_>) -> Result<(), Failure> {
        let value = record.payload().unwrap_or_default();
        match self.format {
            Format::Raw => {
                if look(value) == Look::FlumeAvro {
                    self.warn("the values look like Flume's Avro (headers before the body), not like text: a consumer \
                        that expects text shows strange characters. See --format flume-avro; to write plain text set \
                        value = \"raw\" in Flumen, or parseAsFlumeEvent = false and useFlumeEventFormat = false in Flume");
                }
                let mut out = std::io::stdout().lock();
                out.write_all(value)?;
                out.write_all(b"\n")?;
                Ok(())
            }
            Format::Json => print_json(&self.record(record, value, None)),
            Format::FlumeAvro => match flume_avro::decode(value) {
                Ok(event) => {
                    let headers = event.headers.iter().map(|(name, value)| (name.to_string(), json!(value)));
                    print_json(&self.record(record, event.body, Some(headers.collect())))
                }
                Err(_) => {
                    let seen = look(value).word();
                    self.warn(&format!("not all values are Flume's Avro; one looks like {seen}"));
                    print_json(&self.record(record, value, None))
                }
            },
        }
    }

    fn warn(&mut self, text: &str) {
        if !self.has_warned {
            eprintln!("flumen: {text}");
        }
        self.has_warned = true;
    }

    fn record(&self, record: &BorrowedMessage<'_>, value: &[u8], flume: Option<Map<String, Value>>) -> Value {
        let time = record.timestamp().to_millis().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let headers: Vec<Value> = record
            .headers()
            .map(|headers| headers.iter().map(|header| json!([header.key, header.value.map(text)])).collect())
            .unwrap_or_default();
        let mut all = json!({
            "topic": record.topic(),
            "partition": record.partition(),
            "offset": record.offset(),
            "time": time.map(|time| time.to_string()),
            "key": record.key().map(text),
            "headers": headers,
            "value": record.payload().map(|_| text(value)),
            "looks_like": look(record.payload().unwrap_or_default()).word(),
        });
        if let (Some(all), Some(flume)) = (all.as_object_mut(), flume) {
            all.insert("flume_headers".into(), Value::Object(flume));
        }
        all
    }
}

/// Bytes that are not UTF-8 are shown in hex, so that nothing is made up.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
    }
}
