//! The options of the file sink, and what they mean.

use std::time::Duration;

use flumen_pipeline::component::option;
use flumen_pipeline::{BuildError, ComponentSpec, EncoderLink, OptionKind, OptionSpec, Options};
use jiff::tz::TimeZone;

use super::compress::Compression;
use super::template::Template;
use crate::sinks::encode::Encoding;
use crate::sinks::limits::{BLOCK_BYTES, WRITE_BYTES};

const DAY: Duration = Duration::from_secs(86_400);
const SIZE: OptionKind = OptionKind::Size { min: 1, max: 1 << 50 };

/// What `flumen check` and the docs know about the file sink.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "file",
    about: "Writes events to files, exactly once: rolled by size, age and count, in directories by header and event time.",
    options: &[
        OptionSpec {
            name: "path",
            kind: OptionKind::Text,
            required: true,
            default: None,
            about: "Path of the files, with `{header.NAME}`, `{header.NAME:-default}` and `{time:%Y-%m-%d/%H}`; a running number is put before the extension, and `.open` follows while a file is written.",
        },
        option(
            "encoding",
            OptionKind::Choice(&["text", "json"]),
            Some("\"text\""),
            "`text`: the body and a newline; `json`: one object per line.",
        ),
        option(
            "compression",
            OptionKind::Choice(&["auto", "none", "gzip", "zstd"]),
            Some("\"auto\""),
            "`auto`: by the end of the path (`.gz`, `.zst`); otherwise the path gets that end if it lacks it.",
        ),
        option(
            "time_zone",
            OptionKind::Text,
            Some("\"UTC\""),
            "Time zone of `{time:…}` in the path, by its IANA name.",
        ),
        option(
            "roll_size",
            SIZE,
            Some("\"128 MiB\""),
            "A file is finished when it has this many bytes on disk.",
        ),
        option(
            "roll_interval",
            OptionKind::Duration { min: Duration::ZERO, max: Duration::from_secs(31 * 86_400) },
            Some("\"10m\""),
            "A file is finished this long after it was begun; `0s`: never.",
        ),
        option(
            "roll_count",
            OptionKind::Integer { min: 0, max: i64::MAX },
            Some("0"),
            "A file is finished when it has this many events; 0: never.",
        ),
        option(
            "idle_timeout",
            OptionKind::Duration { min: Duration::from_secs(1), max: DAY },
            None,
            "A file is finished when no event came for this long; absent: never.",
        ),
        option(
            "max_open_files",
            OptionKind::Integer { min: 1, max: 65_536 },
            Some("256"),
            "When there are more, the file that was written longest ago is finished.",
        ),
        option(
            "flush_bytes",
            SIZE,
            None,
            "Body bytes after which files are synced and events acknowledged; default 8 MiB, compressed 64 MiB.",
        ),
        option(
            "flush_interval",
            OptionKind::Duration { min: Duration::from_millis(1), max: DAY },
            None,
            "Time after which files are synced and events acknowledged; default 1s, compressed 10s (each flush ends a compressed block).",
        ),
        option(
            "file_mode",
            OptionKind::Text,
            Some("\"0644\""),
            "Permissions of the files, in octal; the umask does not apply.",
        ),
    ],
};

/// The options in the form that the sink uses.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub template: Template,
    pub encoding: Encoding,
    /// Makes the bytes, in place of `encoding`.
    pub codec: Option<EncoderLink>,
    pub compression: Compression,
    pub roll_bytes: u64,
    pub roll_interval_ms: Option<u64>,
    pub roll_events: Option<u64>,
    pub idle_timeout_ms: Option<u64>,
    pub open_files_max: usize,
    pub flush_bytes: u64,
    pub flush_interval: Duration,
    pub mode: u32,
    /// Bytes of encoded text that are written (and compressed) at once.
    pub block_bytes: usize,
    /// Changes when bytes of the new settings must not follow bytes of the old ones in a file.
    pub fingerprint: u64,
}

impl Settings {
    pub fn from_options(options: &Options) -> Result<Settings, BuildError> {
        let text = options.text("path")?;
        let compression = compression(options.text_opt("compression").unwrap_or("auto"), text)?;
        let encoding = match options.text_opt("encoding") {
            Some("json") => Encoding::Json,
            _ => Encoding::Text,
        };
        let compressed = compression != Compression::None;
        let (flush_bytes, flush_s) = if compressed { (64 << 20, 10) } else { (8 << 20, 1) };
        let zone = zone(options.text_opt("time_zone").unwrap_or("UTC"))?;
        let millis = |name| options.duration_opt(name).filter(|d| !d.is_zero()).map(|d| d.as_millis() as u64);
        Ok(Settings {
            template: Template::parse(text, compression.suffix(), zone)?,
            encoding,
            codec: None,
            compression,
            roll_bytes: options.size_opt("roll_size").unwrap_or(128 << 20),
            roll_interval_ms: millis("roll_interval"),
            roll_events: options
                .integer_opt("roll_count")
                .and_then(|n| u64::try_from(n).ok())
                .filter(|n| *n > 0),
            idle_timeout_ms: millis("idle_timeout"),
            open_files_max: options
                .integer_opt("max_open_files")
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(256)
                .max(1),
            flush_bytes: options.size_opt("flush_bytes").unwrap_or(flush_bytes),
            flush_interval: options.duration_opt("flush_interval").unwrap_or(Duration::from_secs(flush_s)),
            mode: mode(options.text_opt("file_mode").unwrap_or("0644"))?,
            block_bytes: if compressed { BLOCK_BYTES } else { WRITE_BYTES },
            fingerprint: fingerprint(&[text, encoding.word(), compression.word()]),
        })
    }

    pub fn with_codec(options: &Options, codec: EncoderLink) -> Result<Settings, BuildError> {
        let plain = Settings::from_options(options)?;
        let parts = [options.text("path")?, "codec", codec.name(), plain.compression.word()];
        Ok(Settings { fingerprint: fingerprint(&parts), codec: Some(codec), ..plain })
    }
}

fn compression(word: &str, path: &str) -> Result<Compression, BuildError> {
    let by_path = [Compression::Gzip, Compression::Zstd].into_iter().find(|c| path.ends_with(c.suffix()));
    let chosen = match word {
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        "none" => Compression::None,
        _ => return Ok(by_path.unwrap_or(Compression::None)),
    };
    match by_path {
        Some(other) if other != chosen => Err(BuildError::new(
            "compression",
            format!("is {word}, but the path ends with {}", other.suffix()),
            format!("write `compression = \"{}\"`, or change the end of the path", other.word()),
        )),
        _ => Ok(chosen),
    }
}

/// A time zone of this machine by its IANA name.
pub(crate) fn zone(name: &str) -> Result<TimeZone, BuildError> {
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| {
        let reason = format!("{name:?} is not a time zone of this machine");
        BuildError::new(
            "time_zone",
            reason,
            "use a name such as \"UTC\" or \"Europe/Berlin\" (package tzdata)",
        )
    })
}

fn mode(text: &str) -> Result<u32, BuildError> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && mode & 0o200 != 0);
    mode.ok_or_else(|| {
        let reason = format!("{text:?} is not an octal mode in which the owner may write");
        BuildError::new("file_mode", reason, "write for instance \"0640\"")
    })
}

fn fingerprint(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    u64::from_le_bytes(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_pipeline::Value;

    fn settings(values: &[(&str, &str)]) -> Result<Settings, BuildError> {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), Value::Text((*value).to_owned()));
        Settings::from_options(&Options(values.iter().map(text).collect()))
    }

    #[test]
    fn compression_follows_the_path_unless_it_is_given() {
        for (path, word, expected) in [
            ("/a.log", "auto", Compression::None),
            ("/a.log.gz", "auto", Compression::Gzip),
            ("/a.zst", "auto", Compression::Zstd),
            ("/a.log", "zstd", Compression::Zstd),
            ("/a.gz", "gzip", Compression::Gzip),
        ] {
            assert_eq!(settings(&[("path", path), ("compression", word)]).unwrap().compression, expected);
        }
    }

    #[test]
    fn options_that_cannot_work_have_a_fix() {
        for (option, value, fix) in [
            ("compression", "none", "gzip"),
            ("compression", "zstd", "gzip"),
            ("time_zone", "Mars/Olympus", "Europe/Berlin"),
            ("file_mode", "0999", "0640"),
            ("file_mode", "0444", "0640"),
        ] {
            let error = settings(&[("path", "/a.gz"), (option, value)]).unwrap_err();
            assert!(error.option == option && error.fix.contains(fix), "{error:?}");
        }
        assert_eq!(settings(&[]).unwrap_err().option, "path");
    }

    #[test]
    fn what_shapes_bytes_changes_the_fingerprint() {
        let of = |values| settings(values).unwrap().fingerprint;
        let base = of(&[("path", "/a")]);
        assert_eq!(base, of(&[("path", "/a"), ("file_mode", "0600")]));
        assert_ne!(base, of(&[("path", "/a"), ("encoding", "json")]));
        assert_ne!(base, of(&[("path", "/a"), ("compression", "gzip")]));
        assert_ne!(base, of(&[("path", "/b")]));
    }
}
