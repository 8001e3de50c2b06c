//! The options of a bridge's file: `[bridge]`, and `[kafka]` or `[tree]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flumen_kafka::settings::with_client_options;
use flumen_kafka::{CLIENT_OPTIONS, Settings as Client};
use flumen_pipeline::component::option;
use flumen_pipeline::{BuildError, ComponentSpec, OptionKind, OptionSpec, Options};
use globset::Glob;
use jiff::Timestamp;

use super::calendar::{Bucket, Calendar, UNITS};
use super::time::EventTime;
use crate::sinks::encode::Encoding;
use crate::sinks::file::compress::Compression;
use crate::sinks::file::template::Template;
use crate::sinks::file::zone;

const WEEK: Duration = Duration::from_secs(7 * 86_400);
const SPAN: OptionKind = OptionKind::Duration { min: Duration::ZERO, max: WEEK };

const fn required(name: &'static str, kind: OptionKind, about: &'static str) -> OptionSpec {
    OptionSpec { name, kind, required: true, default: None, about }
}

/// `[bridge]`: which buckets, and what their files are.
pub const BRIDGE: ComponentSpec = ComponentSpec {
    kind: "bridge",
    about: "Buckets by event time: a directory each, with whole files and `_SUCCESS` when all of it is there.",
    options: &[
        required(
            "path",
            OptionKind::Text,
            "Directory of a bucket, with `{topic}` (or the tree's name) and `{time:%Y-%m-%d/%H}`.",
        ),
        option(
            "bucket",
            OptionKind::Choice(UNITS),
            Some("\"1h\""),
            "The span of event time that is one bucket.",
        ),
        option(
            "time_zone",
            OptionKind::Text,
            Some("\"UTC\""),
            "Time zone of `{time:…}`, of days, and of times without an offset; an IANA name.",
        ),
        option(
            "lateness",
            SPAN,
            Some("\"10m\""),
            "Allowed lateness: a bucket is closed when every partition has shown a time this long after its end.",
        ),
        option(
            "from",
            OptionKind::Text,
            None,
            "Where following begins if the bridge never ran here, a time as for `--from`; without it at the oldest record.",
        ),
        option(
            "late",
            OptionKind::Choice(&["side", "append", "drop"]),
            Some("\"side\""),
            "Records that come after their bucket was closed. `side`: to `late/` of the bucket that is open then; `append`: to \
             their own bucket, as new files and a new generation of its `_SUCCESS`; `drop`: counted and dropped.",
        ),
        option(
            "format",
            OptionKind::Choice(&["text", "json"]),
            Some("\"text\""),
            "`text`: the value and a newline; `json`: one object per line, with time, headers and offset.",
        ),
        option(
            "compression",
            OptionKind::Choice(&["none", "gzip", "zstd"]),
            Some("\"none\""),
            "Of the files.",
        ),
        option(
            "files_per_bucket",
            OptionKind::Integer { min: 1, max: 10_000 },
            None,
            "Join the partitions in this many files; without it each partition has files of its own.",
        ),
        option(
            "file_size",
            OptionKind::Size { min: 1, max: 1 << 50 },
            None,
            "Without `files_per_bucket`: begin another file of a partition when one has this many bytes.",
        ),
    ],
};

const KAFKA_OPTIONS: [OptionSpec; CLIENT_OPTIONS.len() + 8] = with_client_options([
    required("topics", OptionKind::TextList, "The topics, each a bridge of its own."),
    option(
        "time",
        OptionKind::Text,
        Some("\"record\""),
        "The event's time: `record` (the record's timestamp), `header.NAME`, or `body` (see `time_pattern`).",
    ),
    option(
        "time_pattern",
        OptionKind::Text,
        None,
        "With `time = \"body\"`: a regular expression whose first group is the time.",
    ),
    option(
        "time_format",
        OptionKind::Text,
        None,
        "strptime's format of the time in header or body; without it RFC 3339, or a number of s, ms, µs or ns.",
    ),
    option(
        "clock_skew",
        SPAN,
        Some("\"10m\""),
        "How far a time in header or body may lie ahead of the record's own; beyond that the record's is taken, and counted.",
    ),
    option(
        "idle",
        SPAN,
        Some("\"10m\""),
        "A partition without records is taken as complete this long (by the clock) after the bucket's end and lateness.",
    ),
    option(
        "workers",
        OptionKind::Integer { min: 1, max: 64 },
        Some("4"),
        "Threads with a connection each, among which the partitions are shared; never more than partitions.",
    ),
    option(
        "gaps",
        OptionKind::Choice(&["stop", "count"]),
        Some("\"stop\""),
        "When retention has removed records that a bucket may need: `stop` and say so, or `count` what is known and go on.",
    ),
]);

/// `[kafka]`: where records come from.
pub const KAFKA: ComponentSpec = ComponentSpec {
    kind: "kafka",
    about: "Read topics of a Kafka cluster, only what is committed.",
    options: &KAFKA_OPTIONS,
};

/// `[tree]`: files with done files instead.
pub const TREE: ComponentSpec = ComponentSpec {
    kind: "tree",
    about: "Read producers' directories of files per bucket; a bucket is made when the done files of all are there.",
    options: &[
        required("name", OptionKind::Text, "What `{topic}` stands for."),
        required(
            "producers",
            OptionKind::TextList,
            "The directories, one for each producer, in the order of the output.",
        ),
        required(
            "files",
            OptionKind::Text,
            "A bucket's files in each directory, with strftime's letters and `*`: `access-%Y%m%d%H*.log.gz`. `.gz` and `.zst` are unpacked.",
        ),
        required("done", OptionKind::Text, "A bucket's empty done file in each directory: `%Y%m%d%H.done`."),
    ],
};

/// What becomes of late records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    Side,
    Append,
    Drop,
}

/// How files are written.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub encoding: Encoding,
    pub compression: Compression,
    pub files_per_bucket: Option<u64>,
    pub file_bytes: Option<u64>,
}

impl Output {
    /// What file names end with.
    pub fn suffix(&self) -> String {
        let kind = if self.encoding == Encoding::Json { "json" } else { "log" };
        format!(".{kind}{}", self.compression.suffix())
    }
}

/// `[bridge]`, checked.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub calendar: Calendar,
    pub lateness_ns: i64,
    pub late: Late,
    /// Where following begins, if it never ran.
    pub from_ns: Option<i64>,
    pub output: Output,
    template: Template,
    /// The directory above all buckets.
    pub root: PathBuf,
}

fn nanoseconds(options: &Options, name: &str) -> Result<i64, BuildError> {
    Ok(i64::try_from(options.duration(name)?.as_nanos()).unwrap_or(i64::MAX))
}

impl Settings {
    pub fn from_options(options: &Options) -> Result<Settings, BuildError> {
        let zone = zone(options.text("time_zone")?)?;
        let calendar = Calendar::new(options.text("bucket")?, zone.clone())?;
        let text = options.text("path")?;
        let trimmed = text.trim_end_matches('/');
        let template = Template::parse(&trimmed.replace("{topic}", "{header.topic}"), "", zone)?;
        let before = trimmed.split('{').next().unwrap_or_default();
        let root = before.rsplit_once('/').map_or("", |(root, _)| root);
        let root = if before.starts_with('/') {
            format!("/{}", root.trim_start_matches('/'))
        } else {
            format!("./{root}")
        };
        let root = std::path::absolute(root)
            .map_err(|cause| BuildError::new("path", cause.to_string(), "begin it with `/`"))?;
        if let Some(other) = template.headers().iter().find(|header| header.name != "topic") {
            let reason = format!("has `{{header.{}}}`: a bucket is of a topic and a time only", other.name);
            return Err(BuildError::new("path", reason, "use `{topic}` and `{time:…}`"));
        }
        let from_ns = match options.text_opt("from") {
            None => None,
            Some(text) => Some(calendar.parse(text).ok_or_else(|| {
                let fix = "write for instance 2026-11-21T07 or 2026-11-21T07:00+01:00";
                BuildError::new("from", format!("{text:?} is no time"), fix)
            })?),
        };
        let settings = Settings {
            from_ns,
            calendar,
            lateness_ns: nanoseconds(options, "lateness")?,
            late: match options.text("late")? {
                "append" => Late::Append,
                "drop" => Late::Drop,
                _ => Late::Side,
            },
            output: Output {
                encoding: if options.text("format")? == "json" { Encoding::Json } else { Encoding::Text },
                compression: match options.text("compression")? {
                    "gzip" => Compression::Gzip,
                    "zstd" => Compression::Zstd,
                    _ => Compression::None,
                },
                files_per_bucket: options.integer_opt("files_per_bucket").and_then(|n| u64::try_from(n).ok()),
                file_bytes: options.size_opt("file_size"),
            },
            template,
            root,
        };
        if settings.output.files_per_bucket.is_some() && settings.output.file_bytes.is_some() {
            let fix = "keep one of the two";
            return Err(BuildError::new("file_size", "is given together with `files_per_bucket`", fix));
        }
        settings.check_times()?;
        Ok(settings)
    }

    /// Buckets that follow each other, and the same hour of other days, must not share a directory.
    fn check_times(&self) -> Result<(), BuildError> {
        const DAYS: [i64; 4] = [1, 31, 366, 3_653];
        let first = self.calendar.bucket(1_795_244_400_000_000_000);
        let others = DAYS.map(|days| self.calendar.bucket(first.start_ns + days * 86_400_000_000_000));
        let same = [self.calendar.next(first)]
            .into_iter()
            .chain(others)
            .find(|other| self.directory("t", *other) == self.directory("t", first));
        match same {
            None => Ok(()),
            Some(other) => {
                let reason = format!("is the same for the buckets {} and {}", first.label(), other.label());
                Err(BuildError::new("path", reason, "show the time down to the bucket: `{time:%Y-%m-%d/%H}`"))
            }
        }
    }

    /// The directory of a bucket.
    pub fn directory(&self, name: &str, bucket: Bucket) -> PathBuf {
        self.template.render(bucket.start_ns, &[Some(name); 16]).0.into()
    }

    /// Names must not share directories.
    pub fn check_names(&self, option: &str, names: &[String]) -> Result<(), BuildError> {
        let bucket = self.calendar.bucket(0);
        for (at, name) in names.iter().enumerate() {
            let right = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if name.is_empty()
                || name.len() > 249
                || matches!(name.as_str(), "." | "..")
                || !name.chars().all(right)
            {
                let fix = "use letters, digits, `.`, `_` and `-`, at most 249";
                return Err(BuildError::new(option, format!("{name:?} is not a legal name"), fix));
            }
            let shares = |other: &&String| self.directory(other, bucket) == self.directory(name, bucket);
            if let Some(other) = names.iter().take(at).find(shares) {
                let reason = format!("{other:?} and {name:?} would share their directories");
                return Err(BuildError::new(option, reason, "name each once, and put `{topic}` into `path`"));
            }
        }
        Ok(())
    }
}

/// `[kafka]`, checked.
#[derive(Debug, Clone)]
pub(super) struct KafkaInput {
    pub client: Arc<Client>,
    pub topics: Vec<String>,
    pub time: EventTime,
    pub idle_ns: i64,
    pub workers: usize,
    pub may_miss: bool,
}

impl KafkaInput {
    pub fn from_options(options: &Options, settings: &Settings) -> Result<KafkaInput, BuildError> {
        let topics = options.list("topics")?.to_vec();
        settings.check_names("topics", &topics)?;
        Ok(KafkaInput {
            client: Arc::new(Client::from_options(options)?),
            topics,
            time: EventTime::new(
                options.text("time")?,
                options.text_opt("time_pattern"),
                options.text_opt("time_format"),
                nanoseconds(options, "clock_skew")?,
                settings.calendar.zone().clone(),
            )?,
            idle_ns: nanoseconds(options, "idle")?,
            workers: usize::try_from(options.integer("workers")?).unwrap_or(1),
            may_miss: options.text("gaps")? == "count",
        })
    }
}

/// `[tree]`, checked.
#[derive(Debug, Clone)]
pub(super) struct TreeInput {
    pub name: String,
    pub producers: Vec<PathBuf>,
    pub files: String,
    pub done: String,
}

impl TreeInput {
    pub fn from_options(options: &Options, settings: &Settings) -> Result<TreeInput, BuildError> {
        let name = options.text("name")?.to_owned();
        settings.check_names("name", std::slice::from_ref(&name))?;
        let producers: Vec<PathBuf> = options.list("producers")?.iter().map(PathBuf::from).collect();
        if let Some(twice) =
            producers.iter().enumerate().find(|(at, path)| producers.iter().take(*at).any(|p| p == *path))
        {
            let reason = format!("{} is named twice", twice.1.display());
            return Err(BuildError::new("producers", reason, "name each directory once"));
        }
        let input = TreeInput {
            name,
            producers,
            files: options.text("files")?.into(),
            done: options.text("done")?.into(),
        };
        for (option, pattern) in [("files", &input.files), ("done", &input.done)] {
            let first = settings.calendar.bucket(1_795_244_400_000_000_000);
            let wrong =
                |reason: String| BuildError::new(option, reason, "write for instance `access-%Y%m%d%H*.log`");
            let text = expand(pattern, first, settings).map_err(&wrong)?;
            if Path::new(&text).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                return Err(wrong("leads out of the producer's directory".into()));
            }
            if text == expand(pattern, settings.calendar.next(first), settings).map_err(&wrong)? {
                return Err(wrong("is the same for every bucket".into()));
            }
            Glob::new(&text).map_err(|cause| wrong(cause.to_string()))?;
        }
        Ok(input)
    }
}

/// A pattern for a bucket.
pub(super) fn expand(pattern: &str, bucket: Bucket, settings: &Settings) -> Result<String, String> {
    let start = Timestamp::from_nanosecond(bucket.start_ns.into()).map_err(|error| error.to_string())?;
    let start = start.to_zoned(settings.calendar.zone().clone());
    jiff::fmt::strtime::format(pattern, &start).map_err(|error| error.to_string())
}
