//! The options of the Kafka source.

use std::sync::Arc;
use std::time::Duration;

use flumen_kafka::settings::with_client_options;
use flumen_kafka::{CLIENT_OPTIONS, Settings as Client};
use flumen_pipeline::component::option;
use flumen_pipeline::{BuildError, ComponentSpec, DecoderLink, OptionKind, OptionSpec, Options};
use regex::Regex;

use super::limits::RECEIVE_BYTES_MAX;

const OWN: usize = 12;

const OPTIONS: [OptionSpec; CLIENT_OPTIONS.len() + OWN] = with_client_options([
    option(
        "topics",
        OptionKind::TextList,
        None,
        "Topics to read; an entry that begins with `^` is a regular expression over all topics.",
    ),
    option(
        "partitions",
        OptionKind::TextList,
        None,
        "Instead of `topics`: partitions that this agent alone reads, as \"topic:0,1,5-7\". No group shares them out, so nothing ever moves between agents.",
    ),
    option(
        "group",
        OptionKind::Text,
        None,
        "Consumer group: agents with the same one share the partitions. Without it `flumen/AGENT/PIPELINE/SOURCE`; with `partitions` the offsets are then kept in the journal alone.",
    ),
    option(
        "instance",
        OptionKind::Text,
        None,
        "Name of this agent within the group, different for each. A restart within `session_timeout` then moves no partition.",
    ),
    option(
        "session_timeout",
        OptionKind::Duration { min: Duration::from_secs(1), max: Duration::from_secs(1_800) },
        Some("\"45s\""),
        "After this long without a sign of life the group gives this agent's partitions to others.",
    ),
    option(
        "start",
        OptionKind::Choice(&["stored", "earliest", "latest", "timestamp"]),
        Some("\"stored\""),
        "Where to begin in partitions of which neither the journal nor the group has an offset: `stored` and `earliest`: at the first record; `latest`: behind the last; `timestamp`: at `start_time`. A partition that is added to a topic later is read from its first record.",
    ),
    option(
        "start_time",
        OptionKind::Text,
        None,
        "The time of start = \"timestamp\", as \"2026-11-21T08:00:00Z\": the first record of that time or later.",
    ),
    option(
        "value",
        OptionKind::Choice(&["raw", "flume-avro"]),
        Some("\"raw\""),
        "What values are: `raw` bytes become the body; `flume-avro` is an event of Flume with its headers (useFlumeEventFormat, parseAsFlumeEvent).",
    ),
    option(
        "headers",
        OptionKind::TextList,
        Some("[\"topic\", \"partition\", \"offset\", \"timestamp\", \"key\", \"record\"]"),
        "Headers that events get; `record`: those of the record itself, under their own names. What an event brings itself is kept, but for `key`: the record's replaces it, as in Flume.",
    ),
    option(
        "tombstones",
        OptionKind::Choice(&["keep", "skip"]),
        Some("\"keep\""),
        "Records without a value: `keep` as events with an empty body and the header `tombstone`, or `skip` and count them.",
    ),
    option(
        "on_gap",
        OptionKind::Choice(&["continue", "stop"]),
        Some("\"continue\""),
        "When the broker deleted records before they were read, or the topic was made anew: name and count what is lost and `continue` with the first record there is, or `stop` reading that partition until a person looks.",
    ),
    option(
        "read_ahead",
        OptionKind::Size { min: 1 << 20, max: 2 << 30 },
        Some("\"32 MiB\""),
        "Memory for records that were fetched and are not yet taken.",
    ),
]);

/// The source's name and options.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "kafka",
    about: "Reads topics of Kafka, each committed record once; its offsets are in the journal's commits.",
    options: &OPTIONS,
};

/// What values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Bytes.
    Raw,
    /// An event of Flume.
    FlumeAvro,
}

/// Which headers events get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnHeaders {
    /// The topic's name.
    pub topic: bool,
    /// The partition's number.
    pub partition: bool,
    /// The offset.
    pub offset: bool,
    /// The record's time, in milliseconds since the Unix epoch.
    pub timestamp: bool,
    /// The record's key.
    pub key: bool,
    /// The record's own headers.
    pub record: bool,
}

/// Where to begin where nothing is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first record.
    Earliest,
    /// Behind the last.
    Latest,
    /// At the first record of this time (milliseconds) or later.
    Time(i64),
}

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// What a group gives this agent of these topics and patterns.
    Topics(Vec<String>),
    /// These partitions.
    Partitions(Vec<(String, i32)>),
}

/// Checked options.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach the brokers.
    pub client: Arc<Client>,
    /// See [`What`].
    pub what: What,
    /// The group, if one was named.
    pub group: Option<String>,
    /// Static membership.
    pub instance: Option<String>,
    /// See [`SPEC`].
    pub session_timeout: Duration,
    /// See [`Start`].
    pub start: Start,
    /// See [`Value`].
    pub value: Value,
    /// Decodes values, in place of `value`.
    pub codec: Option<DecoderLink>,
    /// See [`OwnHeaders`].
    pub headers: OwnHeaders,
    /// Leave out records without a value.
    pub skips_tombstones: bool,
    /// Stop when records are lost.
    pub stops_on_gap: bool,
    /// Bytes.
    pub read_ahead: u64,
}

impl Settings {
    /// Reads checked options.
    pub fn new(options: &Options) -> Result<Settings, BuildError> {
        let client = Arc::new(Client::from_options(options)?);
        check_receive(&client)?;
        let text = |name: &str| options.text_opt(name).map(str::to_owned);
        let settings = Settings {
            what: what(options)?,
            group: text("group"),
            instance: text("instance"),
            session_timeout: options.duration("session_timeout")?,
            start: start(options)?,
            value: if options.text("value")? == "flume-avro" { Value::FlumeAvro } else { Value::Raw },
            codec: None,
            headers: headers(options.list("headers")?)?,
            skips_tombstones: options.text("tombstones")? == "skip",
            stops_on_gap: options.text("on_gap")? == "stop",
            read_ahead: options.size("read_ahead")?,
            client,
        };
        let is_empty = |name: &Option<String>| name.as_ref().is_some_and(String::is_empty);
        for (option, value) in [("group", &settings.group), ("instance", &settings.instance)] {
            if is_empty(value) {
                return Err(BuildError::new(option, "is empty", "give a name, or leave it out"));
            }
        }
        if settings.instance.is_some() && matches!(settings.what, What::Partitions(_)) {
            let fix = "remove it: with `partitions` no group shares anything out";
            return Err(BuildError::new("instance", "has no meaning with `partitions`", fix));
        }
        Ok(settings)
    }

    /// True if offsets of a group are read and written.
    pub fn uses_group(&self) -> bool {
        self.group.is_some() || matches!(self.what, What::Topics(_))
    }
}

/// One record must fit into one commit, so an answer of the broker must too.
fn check_receive(client: &Client) -> Result<(), BuildError> {
    let config = client.config("check");
    for name in ["receive.message.max.bytes", "fetch.message.max.bytes", "max.partition.fetch.bytes"] {
        let bytes = config.get(name).and_then(|bytes| bytes.parse::<u64>().ok());
        if bytes.is_some_and(|bytes| bytes > RECEIVE_BYTES_MAX) {
            let reason =
                format!("`{name}` is over {RECEIVE_BYTES_MAX}: a larger record does not fit into one commit");
            return Err(BuildError::new("properties", reason, "lower it, or leave it out"));
        }
    }
    Ok(())
}

fn what(options: &Options) -> Result<What, BuildError> {
    let list = |name: &str| options.list_opt(name).filter(|list| !list.is_empty());
    match (list("topics"), list("partitions")) {
        (Some(topics), None) => {
            topics.iter().try_for_each(|topic| check_topic("topics", topic))?;
            Ok(What::Topics(topics.to_vec()))
        }
        (None, Some(entries)) => {
            let mut all = Vec::new();
            for entry in entries {
                for partition in partitions(entry)? {
                    if !all.contains(&partition) {
                        all.push(partition);
                    }
                }
            }
            Ok(What::Partitions(all))
        }
        (None, None) => Err(BuildError::new(
            "topics",
            "nothing to read is named",
            "add topics = [\"…\"], or `partitions` for a fixed share",
        )),
        (Some(_), Some(_)) => Err(BuildError::new(
            "partitions",
            "cannot be combined with `topics`",
            "keep `topics` to share partitions within a group, `partitions` to fix them",
        )),
    }
}

fn check_topic(option: &str, topic: &str) -> Result<(), BuildError> {
    if topic.starts_with('^') {
        return match Regex::new(topic) {
            Ok(_) => Ok(()),
            Err(error) => {
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                let fix = "write a regular expression such as ^logs\\..*";
                Err(BuildError::new(option, format!("{topic:?}: {reason}"), fix))
            }
        };
    }
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > 249 || !topic.chars().all(is_legal) || topic == "." || topic == ".."
    {
        let reason = format!("{topic:?} is not a topic's name");
        let fix = "letters, digits, `.`, `_` and `-` only, 1 to 249; a pattern begins with `^`";
        return Err(BuildError::new(option, reason, fix));
    }
    Ok(())
}

/// Partitions of one topic that a list may name: more is a mistake.
const PARTITIONS_MAX: i32 = 100_000;

fn partitions(entry: &str) -> Result<Vec<(String, i32)>, BuildError> {
    let wrong = || {
        let reason = format!("{entry:?} names no partitions");
        BuildError::new("partitions", reason, "write \"topic:0,1,5-7\"")
    };
    let (topic, numbers) = entry.split_once(':').ok_or_else(wrong)?;
    check_topic("partitions", topic)?;
    if topic.starts_with('^') {
        return Err(wrong());
    }
    let number = |text: &str| {
        let number: Option<i32> = text.trim().parse().ok();
        number.filter(|number| (0..PARTITIONS_MAX).contains(number)).ok_or_else(wrong)
    };
    let mut all = Vec::new();
    for part in numbers.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(wrong());
        }
        all.extend((first..=last).map(|number| (topic.to_owned(), number)));
    }
    Ok(all)
}

fn start(options: &Options) -> Result<Start, BuildError> {
    let time = options.text_opt("start_time");
    match (options.text("start")?, time) {
        ("timestamp", Some(text)) => {
            let parsed: Result<jiff::Timestamp, _> = text.parse();
            parsed.map(|time| Start::Time(time.as_millisecond())).map_err(|error| {
                let reason = format!("{text:?} is not a time: {error}");
                BuildError::new("start_time", reason, "write it as \"2026-11-21T08:00:00Z\"")
            })
        }
        ("timestamp", None) => Err(BuildError::new(
            "start_time",
            "is missing, but start is \"timestamp\"",
            "add it, as \"2026-11-21T08:00:00Z\"",
        )),
        (_, Some(_)) => Err(BuildError::new(
            "start_time",
            "has no meaning here",
            "add start = \"timestamp\", or remove it",
        )),
        ("latest", None) => Ok(Start::Latest),
        _ => Ok(Start::Earliest),
    }
}

fn headers(names: &[String]) -> Result<OwnHeaders, BuildError> {
    let mut own = OwnHeaders::default();
    for name in names {
        match name.as_str() {
            "topic" => own.topic = true,
            "partition" => own.partition = true,
            "offset" => own.offset = true,
            "timestamp" => own.timestamp = true,
            "key" => own.key = true,
            "record" => own.record = true,
            _ => {
                let fix = "choose of topic, partition, offset, timestamp, key and record";
                return Err(BuildError::new("headers", format!("there is no header {name:?}"), fix));
            }
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_pipeline::Value as Option_;
    use std::collections::BTreeMap;

    fn list(values: &[&str]) -> Option_ {
        Option_::TextList(values.iter().map(|value| value.to_string()).collect())
    }

    fn settings(options: &[(&str, Option_)]) -> Result<Settings, BuildError> {
        let text = |value: &str| Option_::Text(value.into());
        let mut all = BTreeMap::from([
            ("brokers".into(), list(&["k:9092"])),
            ("session_timeout".into(), Option_::Duration(Duration::from_secs(45))),
            ("start".into(), text("stored")),
            ("value".into(), text("raw")),
            ("headers".into(), list(&["topic", "record"])),
            ("tombstones".into(), text("keep")),
            ("on_gap".into(), text("continue")),
            ("read_ahead".into(), Option_::Size(1 << 20)),
        ]);
        all.extend(options.iter().map(|(name, value)| (name.to_string(), value.clone())));
        Settings::new(&Options(all))
    }

    #[test]
    fn each_mistake_names_its_option() {
        let text = |value: &str| Option_::Text(value.into());
        let properties = |name: &str, value: &str| {
            Option_::TextMap(BTreeMap::from([(name.to_string(), value.to_string())]))
        };
        let topics = ("topics", list(&["t"]));
        for (options, option, reason) in [
            (vec![], "topics", "nothing to read"),
            (vec![("topics", list(&["a b"]))], "topics", "not a topic's name"),
            (vec![("topics", list(&["^("]))], "topics", "unclosed"),
            (vec![topics.clone(), ("partitions", list(&["t:0"]))], "partitions", "cannot be combined"),
            (vec![("partitions", list(&["t"]))], "partitions", "names no partitions"),
            (vec![("partitions", list(&["t:3-1"]))], "partitions", "names no partitions"),
            (vec![("partitions", list(&["t:-1"]))], "partitions", "names no partitions"),
            (vec![("partitions", list(&["^t:1"]))], "partitions", "names no partitions"),
            (vec![("partitions", list(&["t:1"])), ("instance", text("a"))], "instance", "no meaning"),
            (vec![topics.clone(), ("group", text(""))], "group", "is empty"),
            (vec![topics.clone(), ("start", text("timestamp"))], "start_time", "is missing"),
            (vec![topics.clone(), ("start_time", text("2026-11-21T08:00:00Z"))], "start_time", "no meaning"),
            (
                vec![topics.clone(), ("start", text("timestamp")), ("start_time", text("noon"))],
                "start_time",
                "not a time",
            ),
            (vec![topics.clone(), ("headers", list(&["offst"]))], "headers", "offst"),
            (
                vec![topics.clone(), ("properties", properties("receive.message.max.bytes", "200000000"))],
                "properties",
                "one commit",
            ),
        ] {
            let error = settings(&options).unwrap_err();
            assert_eq!(error.option, option, "{error}");
            assert!(error.reason.contains(reason), "{error}");
            assert!(!error.fix.is_empty());
        }
    }

    #[test]
    fn partitions_are_listed() {
        let both = settings(&[("partitions", list(&["t:0, 2-3", "u:1", "t:2"]))]).unwrap();
        let all = [("t", 0), ("t", 2), ("t", 3), ("u", 1)].map(|(topic, number)| (topic.to_string(), number));
        assert_eq!(both.what, What::Partitions(all.to_vec()));
        assert!(!both.uses_group());
        assert!(settings(&[("topics", list(&["^logs\\..*", "a.b-c_d"]))]).unwrap().uses_group());
    }
}
