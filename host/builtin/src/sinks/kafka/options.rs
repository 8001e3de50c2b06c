//! The options of the Kafka sink, and what they mean.

use std::sync::Arc;
use std::time::Duration;

use flumen_kafka::rdkafka::ClientConfig;
use flumen_kafka::settings::with_client_options;
use flumen_kafka::{CLIENT_OPTIONS, Settings as Client};
use flumen_pipeline::component::option;
use flumen_pipeline::{BuildError, ComponentSpec, EncoderLink, OptionKind, OptionSpec, Options};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::template::{self, Template};
use crate::sinks::limits;

const OWN: [OptionSpec; 18] = [
    OptionSpec {
        name: "topic",
        kind: OptionKind::Text,
        required: true,
        default: None,
        about: "The topic; with `{header.NAME}` and `{header.NAME:-default}` one by header, out of `topics`.",
    },
    option(
        "topics",
        OptionKind::TextList,
        Some("[]"),
        "Topics that a `topic` with headers may come to, as names or patterns (`web-*`).",
    ),
    option(
        "topic_default",
        OptionKind::Text,
        None,
        "Topic of events whose own is not legal, not in `topics`, not there, or not ours to write; without it they go to quarantine.",
    ),
    option(
        "key",
        OptionKind::Text,
        Some("\"none\""),
        "Key of a record: `none`, `header.NAME`, or `body-hash` (16 hexadecimal digits of the body's BLAKE3).",
    ),
    option(
        "partitioner",
        OptionKind::Choice(&["sticky", "round-robin", "murmur2", "header", "fixed"]),
        Some("\"murmur2\""),
        "`murmur2`: by key as Java's producer does, without a key as `sticky`; `sticky`: batch after batch to another partition; `round-robin`: event after event; `header`: the number in `partition_header`; `fixed`: always `partition`.",
    ),
    option(
        "partition_header",
        OptionKind::Text,
        None,
        "Header that holds the partition, for `partitioner = \"header\"`; events without it go as with `murmur2`.",
    ),
    option(
        "partition",
        OptionKind::Integer { min: 0, max: i32::MAX as i64 },
        None,
        "The partition of `partitioner = \"fixed\"`.",
    ),
    option(
        "headers",
        OptionKind::TextList,
        Some("[]"),
        "Headers of the event that become headers of the record; `[\"*\"]`: all.",
    ),
    option(
        "timestamp",
        OptionKind::Choice(&["event", "broker"]),
        Some("\"event\""),
        "Time of a record: the event's, or when it is sent. A topic keeps records by this time.",
    ),
    option(
        "value",
        OptionKind::Choice(&["raw", "json", "flume-avro"]),
        Some("\"raw\""),
        "`raw`: the body; `json`: an object with time, body, headers and identity; `flume-avro`: headers and body as Flume's Kafka channel writes them.",
    ),
    option(
        "delivery",
        OptionKind::Choice(&["exactly-once", "at-least-once", "at-most-once"]),
        Some("\"exactly-once\""),
        "`exactly-once`: transactions, for consumers that read with read_committed; `at-least-once`: acks=all, after a crash some come twice; `at-most-once`: acknowledged before they are sent, after a crash or an error some are missing.",
    ),
    option(
        "lanes",
        OptionKind::Integer { min: 1, max: limits::LANES_MAX as i64 },
        Some("1"),
        "Producers side by side. Order is kept per lane: per key if `key` is a header (which interceptors of this sink must not change then), else per MiB of a file.",
    ),
    option(
        "progress_topic",
        OptionKind::Text,
        Some("\"flumen-progress\""),
        "Compacted topic in which transactions store how far they delivered; made if it is missing and this agent may.",
    ),
    option(
        "transaction_interval",
        OptionKind::Duration { min: Duration::from_millis(1), max: Duration::from_secs(60) },
        Some("\"500ms\""),
        "A transaction is committed this long after its first event; consumers see it then.",
    ),
    option(
        "transaction_bytes",
        OptionKind::Size { min: 1, max: 1 << 30 },
        Some("\"32 MiB\""),
        "A transaction is committed when it has bodies of this many bytes; memory is bounded by it.",
    ),
    option(
        "transaction_timeout",
        OptionKind::Duration { min: Duration::from_secs(5), max: Duration::from_secs(900) },
        Some("\"60s\""),
        "The broker aborts a transaction of this age; how long a broker may be away before delivery begins anew.",
    ),
    option(
        "compression",
        OptionKind::Choice(&["none", "lz4", "zstd", "gzip", "snappy"]),
        Some("\"lz4\""),
        "Compression of batches of records.",
    ),
    option(
        "batch_bytes",
        OptionKind::Size { min: 1, max: 100 << 20 },
        Some("\"1 MB\""),
        "Bytes of records that are sent to a partition as one batch.",
    ),
];

const ALL: [OptionSpec; OWN.len() + CLIENT_OPTIONS.len()] = with_client_options(OWN);

/// What `flumen check` and the docs know about the Kafka sink.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "kafka",
    about: "Writes events to Kafka topics: exactly once by transactions that store the cursor beside the events.",
    options: &ALL,
};

/// What it promises with these options.
pub fn delivery(options: &Options) -> &'static str {
    Delivery::from_options(options).word()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "these are their names everywhere")]
pub(super) enum Delivery {
    ExactlyOnce,
    AtLeastOnce,
    AtMostOnce,
}

impl Delivery {
    fn from_options(options: &Options) -> Delivery {
        match options.text_opt("delivery") {
            Some("at-least-once") => Delivery::AtLeastOnce,
            Some("at-most-once") => Delivery::AtMostOnce,
            _ => Delivery::ExactlyOnce,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Delivery::ExactlyOnce => "exactly-once",
            Delivery::AtLeastOnce => "at-least-once",
            Delivery::AtMostOnce => "at-most-once",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum KeyOf {
    None,
    Header(String),
    BodyHash,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Partitioner {
    Sticky,
    RoundRobin,
    Murmur2,
    Header(String),
    Fixed(i32),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum HeadersSent {
    None,
    All,
    These(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueForm {
    Raw,
    Json,
    FlumeAvro,
}

/// Checked options.
pub(super) struct Settings {
    pub client: Arc<Client>,
    pub topic: Template,
    pub topics: GlobSet,
    pub topic_default: Option<String>,
    pub key: KeyOf,
    pub partitioner: Partitioner,
    pub headers: HeadersSent,
    pub event_time: bool,
    pub value: ValueForm,
    /// Makes the values, in place of `value`.
    pub codec: Option<EncoderLink>,
    pub delivery: Delivery,
    pub lanes: usize,
    pub progress_topic: String,
    pub transaction_interval: Duration,
    pub transaction_bytes: u64,
    pub transaction_timeout: Duration,
    pub compression: String,
    pub batch_bytes: u64,
}

impl Settings {
    pub fn from_options(options: &Options) -> Result<Settings, BuildError> {
        let topic = Template::parse(options.text("topic")?)?;
        let patterns = options.list_opt("topics").unwrap_or_default();
        if topic.plain().is_none() && patterns.is_empty() {
            return Err(BuildError::new(
                "topics",
                "is empty, but `topic` is made of headers, whose values come from the data",
                "list the topics that it may come to, for instance [\"web-*\"]",
            ));
        }
        let (interval, timeout) =
            (options.duration("transaction_interval")?, options.duration("transaction_timeout")?);
        if interval * 2 > timeout {
            return Err(BuildError::new(
                "transaction_interval",
                "is more than half of `transaction_timeout`: the broker would abort transactions that are on time",
                "make it shorter, or `transaction_timeout` longer",
            ));
        }
        Ok(Settings {
            client: Arc::new(Client::from_options(options)?),
            topics: globs(patterns)?,
            topic_default: legal(options, "topic_default")?,
            key: key(options.text_opt("key").unwrap_or("none"))?,
            partitioner: partitioner(options)?,
            headers: match options.list_opt("headers").unwrap_or_default() {
                [] => HeadersSent::None,
                names if names.iter().any(|name| name == "*") => HeadersSent::All,
                names => HeadersSent::These(names.to_vec()),
            },
            event_time: options.text_opt("timestamp") != Some("broker"),
            value: match options.text_opt("value") {
                Some("json") => ValueForm::Json,
                Some("flume-avro") => ValueForm::FlumeAvro,
                _ => ValueForm::Raw,
            },
            codec: None,
            delivery: Delivery::from_options(options),
            lanes: options.integer("lanes")?.max(1) as usize,
            progress_topic: legal(options, "progress_topic")?.unwrap_or_default(),
            transaction_interval: interval,
            transaction_bytes: options.size("transaction_bytes")?,
            transaction_timeout: timeout,
            compression: options.text("compression")?.to_owned(),
            batch_bytes: options.size("batch_bytes")?,
            topic,
        })
    }

    /// librdkafka's configuration of a producer, but for the transactional id and the size of batches.
    pub fn producer(&self, who: &str) -> ClientConfig {
        let mut config = self.client.config(who);
        let ms = |duration: Duration| duration.as_millis().to_string();
        config.set("compression.type", &self.compression);
        // What fills no batch is sent at the latest by the flush, and by `Link::deliver` when nothing more comes. A
        // short linger would keep a processor busy: see `Producer::drain_step`.
        config.set("linger.ms", ms(limits::KAFKA_LINGER));
        config.set("queue.buffering.max.kbytes", (limits::KAFKA_QUEUE_BYTES / 1024).to_string());
        config.set("queue.buffering.max.messages", limits::KAFKA_QUEUE_EVENTS.to_string());
        match self.delivery {
            Delivery::ExactlyOnce => {
                config.set("enable.idempotence", "true").set("acks", "all");
                config.set("transaction.timeout.ms", ms(self.transaction_timeout));
            }
            Delivery::AtLeastOnce => {
                config.set("enable.idempotence", "true").set("acks", "all");
                config.set("message.timeout.ms", ms(self.transaction_timeout));
            }
            Delivery::AtMostOnce => {
                config.set("acks", "1").set("retries", "0");
                config.set("message.timeout.ms", ms(self.transaction_timeout));
            }
        }
        config
    }
}

fn key(text: &str) -> Result<KeyOf, BuildError> {
    match text {
        "none" => Ok(KeyOf::None),
        "body-hash" => Ok(KeyOf::BodyHash),
        _ => match text.strip_prefix("header.").filter(|name| !name.is_empty()) {
            Some(name) => Ok(KeyOf::Header(name.into())),
            None => Err(BuildError::new(
                "key",
                format!("{text:?} is none of `none`, `header.NAME` and `body-hash`"),
                format!("for a header write \"header.{}\"", text.trim_start_matches("header.")),
            )),
        },
    }
}

fn partitioner(options: &Options) -> Result<Partitioner, BuildError> {
    let missing = |option: &str, word: &str| {
        BuildError::new(option, format!("is missing, but `partitioner` is \"{word}\""), "add it")
    };
    let (header, fixed) = (options.text_opt("partition_header"), options.integer_opt("partition"));
    match options.text_opt("partitioner").unwrap_or("murmur2") {
        "sticky" => Ok(Partitioner::Sticky),
        "round-robin" => Ok(Partitioner::RoundRobin),
        "header" => {
            let header = header.ok_or_else(|| missing("partition_header", "header"))?;
            Ok(Partitioner::Header(header.into()))
        }
        "fixed" => {
            let fixed = fixed.ok_or_else(|| missing("partition", "fixed"))?;
            Ok(Partitioner::Fixed(i32::try_from(fixed).unwrap_or(i32::MAX)))
        }
        _ => Ok(Partitioner::Murmur2),
    }
}

fn legal(options: &Options, option: &str) -> Result<Option<String>, BuildError> {
    let Some(name) = options.text_opt(option) else { return Ok(None) };
    if !template::is_legal(name) {
        let fix = "use letters, digits, `.`, `_` and `-`";
        return Err(BuildError::new(option, format!("{name:?} is not a legal name of a topic"), fix));
    }
    Ok(Some(name.to_owned()))
}

fn globs(patterns: &[String]) -> Result<GlobSet, BuildError> {
    let wrong = |error: globset::Error| {
        BuildError::new("topics", error.to_string(), "write names or patterns such as \"web-*\"")
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern).build().map_err(wrong)?);
    }
    set.build().map_err(wrong)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flumen_pipeline::Value;

    pub fn settings(values: &[(&str, &str)]) -> Result<Settings, BuildError> {
        let mut all = std::collections::BTreeMap::from([
            ("brokers".to_owned(), Value::TextList(vec!["k:9092".into()])),
            ("topic".to_owned(), Value::Text("t".into())),
            ("lanes".to_owned(), Value::Integer(1)),
            ("transaction_interval".to_owned(), Value::Duration(Duration::from_millis(500))),
            ("transaction_bytes".to_owned(), Value::Size(1)),
            ("transaction_timeout".to_owned(), Value::Duration(Duration::from_secs(60))),
            ("compression".to_owned(), Value::Text("lz4".into())),
            ("batch_bytes".to_owned(), Value::Size(1_000_000)),
        ]);
        for (name, value) in values {
            let value = match *name {
                "transaction_interval" => Value::Duration(Duration::from_secs(value.parse().unwrap())),
                "topics" | "headers" => Value::TextList(value.split(',').map(str::to_owned).collect()),
                "partition" => Value::Integer(value.parse().unwrap()),
                _ => Value::Text((*value).to_owned()),
            };
            all.insert((*name).to_owned(), value);
        }
        Settings::from_options(&Options(all))
    }

    #[test]
    fn each_mistake_names_its_option() {
        for (values, option, reason) in [
            (vec![("topic", "a b")], "topic", "' '"),
            (vec![("topic", "{header.x}")], "topics", "is empty"),
            (vec![("topics", "web-[")], "topics", "unclosed"),
            (vec![("topic_default", "a/b")], "topic_default", "not a legal name"),
            (vec![("progress_topic", "")], "progress_topic", "not a legal name"),
            (vec![("transaction_interval", "31")], "transaction_interval", "half"),
            (vec![("key", "host")], "key", "header.NAME"),
            (vec![("partitioner", "header")], "partition_header", "missing"),
            (vec![("partitioner", "fixed")], "partition", "missing"),
        ] {
            let error = settings(&values).err().unwrap();
            assert_eq!(error.option, option, "{error}");
            assert!(error.reason.contains(reason) && !error.fix.is_empty(), "{error:?}");
        }
    }

    #[test]
    fn promises_are_what_librdkafka_gets() {
        let get = |delivery: &str, name: &str| {
            let settings = settings(&[("delivery", delivery)]).unwrap();
            settings.producer("who").get(name).map(str::to_owned)
        };
        assert_eq!(get("exactly-once", "transaction.timeout.ms").as_deref(), Some("60000"));
        assert_eq!(get("exactly-once", "acks").as_deref(), Some("all"));
        assert_eq!(get("at-least-once", "enable.idempotence").as_deref(), Some("true"));
        assert_eq!(get("at-least-once", "transaction.timeout.ms"), None);
        assert_eq!(get("at-most-once", "acks").as_deref(), Some("1"));
        assert_eq!(get("at-most-once", "retries").as_deref(), Some("0"));
    }

    #[test]
    fn words_become_choices() {
        let settings = settings(&[
            ("key", "header.host"),
            ("partitioner", "fixed"),
            ("partition", "7"),
            ("headers", "a,b"),
            ("value", "flume-avro"),
        ])
        .unwrap();
        assert_eq!(settings.key, KeyOf::Header("host".into()));
        assert_eq!(settings.partitioner, Partitioner::Fixed(7));
        assert_eq!(settings.headers, HeadersSent::These(vec!["a".into(), "b".into()]));
        assert_eq!(settings.value, ValueForm::FlumeAvro);
    }
}
