//! The options of the tail source.

use std::time::Duration;

use flumen_pipeline::component::option;
use flumen_pipeline::{BuildError, ComponentSpec, DecoderLink, OptionKind, OptionSpec, Options};
use regex::bytes::Regex;

use super::discover::Globs;
use super::limits::LINE_BYTES_MAX;
use super::lines::{LongLines, Multiline, MultilineRule};

const HOUR: Duration = Duration::from_secs(3_600);
const MS: Duration = Duration::from_millis(1);

const TIME: OptionKind = OptionKind::Duration { min: MS, max: HOUR };

/// The source's name and options.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "tail",
    about: "Reads files as they grow, through rotation, truncation and compression.",
    options: &[
        OptionSpec {
            name: "paths",
            kind: OptionKind::TextList,
            required: true,
            default: None,
            about: "Files to read: globs in which `**` stands for any directories. Names ending in .gz or .zst are decompressed.",
        },
        option(
            "exclude",
            OptionKind::TextList,
            Some("[]"),
            "Globs of files to leave out; one without `/` is compared with the name alone.",
        ),
        option(
            "start",
            OptionKind::Choice(&["beginning", "end"]),
            Some("\"beginning\""),
            "Where to begin in files that are there when the source starts for the first time. Later files are read from their beginning.",
        ),
        option(
            "file_header",
            OptionKind::Bool,
            Some("true"),
            "Whether events get the header `file`, the path of their file.",
        ),
        option(
            "max_line",
            OptionKind::Size { min: 64, max: LINE_BYTES_MAX },
            Some("\"1 MiB\""),
            "Longest line, in bytes.",
        ),
        option(
            "long_lines",
            OptionKind::Choice(&["split", "quarantine"]),
            Some("\"split\""),
            "What becomes of longer lines: `split` into events of max_line, or the first max_line bytes to `quarantine` and the rest skipped.",
        ),
        option(
            "multiline_start",
            OptionKind::Text,
            None,
            "Regular expression: a line that matches begins an event.",
        ),
        option(
            "multiline_continue",
            OptionKind::Text,
            None,
            "Regular expression: a line that matches belongs to the event before.",
        ),
        option(
            "multiline_max_lines",
            OptionKind::Integer { min: 1, max: 1_000_000 },
            Some("500"),
            "Lines of one event.",
        ),
        option(
            "multiline_max_bytes",
            OptionKind::Size { min: 64, max: LINE_BYTES_MAX },
            Some("\"1 MiB\""),
            "Bytes of one event of several lines.",
        ),
        option(
            "multiline_timeout",
            TIME,
            Some("\"5s\""),
            "An event is taken when no further line came for this long.",
        ),
        option(
            "last_line_timeout",
            TIME,
            Some("\"5s\""),
            "A last line without newline is taken when nothing came for this long.",
        ),
        option(
            "poll_interval",
            TIME,
            Some("\"250ms\""),
            "How often growing files are looked at where notifications do not work.",
        ),
        option(
            "rescan_interval",
            TIME,
            Some("\"1s\""),
            "How often the globs are walked, beside notifications.",
        ),
        option(
            "max_open_files",
            OptionKind::Integer { min: 1, max: 1_000_000 },
            Some("1024"),
            "Files kept open at a time.",
        ),
        option(
            "close_idle_after",
            TIME,
            Some("\"1m\""),
            "A file that did not grow for this long is closed, and opened again when it grows. Also how long a rotated or deleted file is kept open after its end.",
        ),
    ],
};

/// Checked options.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What to read.
    pub globs: Globs,
    /// Begin at the end of files that exist at the first start.
    pub start_at_end: bool,
    /// Add the `file` header.
    pub file_header: bool,
    /// Bytes of a line.
    pub max_line: usize,
    /// What becomes of longer ones.
    pub long_lines: LongLines,
    /// Groups of lines.
    pub multiline: Option<Multiline>,
    /// Finds the events, in place of lines.
    pub codec: Option<DecoderLink>,
    /// See [`SPEC`].
    pub multiline_timeout: Duration,
    /// See [`SPEC`].
    pub last_line_timeout: Duration,
    /// See [`SPEC`].
    pub poll_interval: Duration,
    /// See [`SPEC`].
    pub rescan_interval: Duration,
    /// See [`SPEC`].
    pub max_open_files: usize,
    /// See [`SPEC`].
    pub close_idle_after: Duration,
}

impl Settings {
    /// Reads checked options.
    pub fn new(options: &Options) -> Result<Settings, BuildError> {
        let paths = options.list("paths")?;
        let globs = Globs::new(paths, options.list_opt("exclude").unwrap_or_default()).map_err(
            |(pattern, reason)| {
                let option = if paths.contains(&pattern) { "paths" } else { "exclude" };
                BuildError::new(
                    option,
                    format!("{pattern:?}: {reason}"),
                    "write a glob such as /var/log/**/*.log",
                )
            },
        )?;
        let size = |name: &str| Ok(usize::try_from(options.size(name)?).unwrap_or(usize::MAX));
        let count = |name: &str| Ok(usize::try_from(options.integer(name)?).unwrap_or(usize::MAX));
        Ok(Settings {
            globs,
            start_at_end: options.text("start")? == "end",
            file_header: options.flag("file_header")?,
            max_line: size("max_line")?,
            long_lines: match options.text("long_lines")? {
                "quarantine" => LongLines::Quarantine,
                _ => LongLines::Split,
            },
            multiline: rule(options)?
                .map(|rule| {
                    let (lines_max, bytes_max) =
                        (count("multiline_max_lines")?, size("multiline_max_bytes")?);
                    Ok(Multiline { rule, lines_max, bytes_max })
                })
                .transpose()?,
            codec: None,
            multiline_timeout: options.duration("multiline_timeout")?,
            last_line_timeout: options.duration("last_line_timeout")?,
            poll_interval: options.duration("poll_interval")?,
            rescan_interval: options.duration("rescan_interval")?,
            max_open_files: count("max_open_files")?,
            close_idle_after: options.duration("close_idle_after")?,
        })
    }
}

fn rule(options: &Options) -> Result<Option<MultilineRule>, BuildError> {
    let pattern = |name: &str, text: &str| {
        Regex::new(text).map_err(|error| {
            // The crate draws the place over several lines; the last one says what is wrong.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            BuildError::new(name, reason, "write a regular expression of the Rust crate `regex`")
        })
    };
    match (options.text_opt("multiline_start"), options.text_opt("multiline_continue")) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(MultilineRule::Start(pattern("multiline_start", text)?))),
        (None, Some(text)) => Ok(Some(MultilineRule::Continue(pattern("multiline_continue", text)?))),
        (Some(_), Some(_)) => Err(BuildError::new(
            "multiline_continue",
            "cannot be combined with multiline_start",
            "keep the one that describes your lines",
        )),
    }
}
