//! The `path` option: text with placeholders.
//!
//! ```text
//! {header.NAME}            a header; `unknown` for events that lack it (or have it empty)
//! {header.NAME:-default}   with another word for these
//! {time:%Y-%m-%d/%H}       the event's time, with strftime's letters down to seconds
//! {{  }}                   a brace
//! ```
//!
//! A rendered path names a *bucket*; its files are the path with a running number before the extension:
//! `/logs/access.log` becomes `/logs/access-000012.log`. The extension is what follows the last dot of the
//! file name, and the suffix of a compression after it, but only text of the template counts: in
//! `/logs/{header.host}` a host `a.example` is `/logs/a.example-000012`. A relative path begins at the
//! working directory of the agent.
//!
//! How it fails: everything that can be wrong is a [`BuildError`] with a fix; rendering cannot fail.

use flumen_event::limits::HEADER_NAME_BYTES_MAX;
use flumen_pipeline::BuildError;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::sanitise::{prefix, push_value};
use crate::sinks::limits::{PATH_PLACEHOLDERS_MAX, PATH_SEGMENT_BYTES_MAX, PATH_TEMPLATE_BYTES_MAX};

const NS_PER_S: i64 = 1_000_000_000;

/// A checked path option.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    parts: Vec<Part>,
    headers: Vec<HeaderPart>,
    /// Bytes at the end of every rendered path that come after the running number.
    tail_bytes: usize,
    zone: TimeZone,
    /// Seconds of the smallest unit that any time part shows; `None`: no time part.
    unit_s: Option<i64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    /// Index into `headers`.
    Header(usize),
    /// A format for strftime.
    Time(String),
}

/// A header that a path shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeaderPart {
    /// Its name.
    pub name: String,
    default: String,
}

fn error(reason: impl Into<String>, fix: impl Into<String>) -> BuildError {
    BuildError::new("path", reason, fix)
}

impl Template {
    /// Reads a path option. `suffix` is the compression's (`.gz`), added if the path lacks it.
    pub fn parse(text: &str, suffix: &str, zone: TimeZone) -> Result<Template, BuildError> {
        if text.len() > PATH_TEMPLATE_BYTES_MAX {
            let limit = format!("it may have {PATH_TEMPLATE_BYTES_MAX} bytes");
            return Err(error(format!("is {} bytes long", text.len()), limit));
        }
        if text.chars().any(char::is_control) {
            return Err(error("has a control character", "use visible characters only"));
        }
        let mut template = Template { parts: vec![], headers: vec![], tail_bytes: 0, zone, unit_s: None };
        let mut literal = absolute(text)?;
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            literal.push_str(before);
            if let Some(after) = brace.strip_prefix("{{").or_else(|| brace.strip_prefix("}}")) {
                literal.push_str(brace.get(..1).unwrap_or_default());
                rest = after;
                continue;
            }
            let inner = brace.strip_prefix('{').ok_or_else(|| {
                error(
                    format!("has a `}}` without `{{` before {brace:?}"),
                    "write `}}` for a brace in the name",
                )
            })?;
            let (placeholder, after) = inner.split_once('}').ok_or_else(|| {
                error(
                    format!("the placeholder `{brace}` has no end"),
                    "add `}`, or write `{{` for a brace in the name",
                )
            })?;
            template.parts.push(Part::Text(std::mem::take(&mut literal)));
            template.placeholder(placeholder)?;
            rest = after;
        }
        literal.push_str(rest);
        template.finish(literal, suffix)
    }

    fn placeholder(&mut self, text: &str) -> Result<(), BuildError> {
        if self.parts.len() > PATH_PLACEHOLDERS_MAX * 2 {
            return Err(error("has too many placeholders", format!("use at most {PATH_PLACEHOLDERS_MAX}")));
        }
        if let Some(format) = text.strip_prefix("time:") {
            let unit_s = time_unit_s(format, self.zone == TimeZone::UTC)?;
            self.check_time(format)?;
            self.unit_s = Some(self.unit_s.map_or(unit_s, |other| other.min(unit_s)));
            self.parts.push(Part::Time(format.into()));
            return Ok(());
        }
        if let Some(header) = text.strip_prefix("header.") {
            let (name, default) = header.split_once(":-").unwrap_or((header, "unknown"));
            if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX {
                return Err(error(format!("`{{{text}}}` names no header"), "write `{header.NAME}`"));
            }
            if default.is_empty() {
                let fix = format!("write `{{header.{name}:-none}}`, or leave `:-` out to get `unknown`");
                return Err(error(
                    format!("`{{{text}}}` has an empty default, which cannot be part of a path"),
                    fix,
                ));
            }
            self.parts.push(Part::Header(self.headers.len()));
            self.headers.push(HeaderPart { name: name.into(), default: default.into() });
            return Ok(());
        }
        let fix = match text {
            "" => "write `{header.NAME}` or `{time:%Y-%m-%d}`, or `{{}}` for braces in the name".into(),
            "time" => "give a format, for instance `{time:%Y-%m-%d/%H}`".into(),
            _ if text.starts_with('%') => format!("write `{{time:{text}}}`"),
            _ if text.starts_with("source") || text.starts_with("stream") => {
                "let the source or an interceptor set a header, and write `{header.NAME}`".into()
            }
            name => format!("for a header write `{{header.{name}}}`"),
        };
        Err(error(format!("`{{{text}}}` is not a placeholder"), fix))
    }

    fn check_time(&self, format: &str) -> Result<(), BuildError> {
        let fix = "use strftime's letters, for instance `{time:%Y-%m-%d/%H}`";
        let example = jiff::fmt::strtime::format(format, &Timestamp::UNIX_EPOCH.to_zoned(self.zone.clone()))
            .map_err(|cause| error(format!("`{{time:{format}}}`: {cause}"), fix))?;
        let harmless = !example.is_empty() && example.split('/').all(|name| name != "." && name != "..");
        if harmless { Ok(()) } else { Err(error(format!("`{{time:{format}}}` gives {example:?}"), fix)) }
    }

    fn finish(mut self, mut literal: String, suffix: &str) -> Result<Template, BuildError> {
        if !suffix.is_empty() && !literal.ends_with(suffix) {
            literal.push_str(suffix);
        }
        let stem = literal.strip_suffix(suffix).unwrap_or(&literal);
        let (name, whole) = match stem.rsplit_once('/') {
            Some((_, name)) => (name, true),
            None => (stem, false),
        };
        if whole && name.is_empty() {
            return Err(error("has no file name", "end it with a name, for instance `/events.log`"));
        }
        if whole && (name == "." || name == "..") {
            return Err(error("ends with a directory", "end it with a name, for instance `/events.log`"));
        }
        let extension = name.rfind('.').filter(|at| *at > 0 || !whole).map_or(0, |at| name.len() - at);
        // A longer one is no extension, and would leave no room for a name that has to be cut.
        let extension = if extension > PATH_SEGMENT_BYTES_MAX / 4 { 0 } else { extension };
        self.tail_bytes = extension + suffix.len();
        self.parts.push(Part::Text(literal));
        Ok(self)
    }

    /// The headers that paths show, in the order of [`Template::render`]'s values.
    pub fn headers(&self) -> &[HeaderPart] {
        &self.headers
    }

    /// The longest span around a time, in nanoseconds and without its end, in which a path shows the same time.
    pub fn same_time(&self, time_ns: i64) -> (i64, i64) {
        let Some(unit_s) = self.unit_s else { return (i64::MIN, i64::MAX) };
        // Before 1972 some zones were not a multiple of a quarter of an hour (Liberia, local mean times).
        let exact = time_ns < 2 * 366 * 86_400 * NS_PER_S && self.zone != TimeZone::UTC;
        let unit = if exact { NS_PER_S } else { unit_s * NS_PER_S };
        let units = time_ns.div_euclid(unit);
        (units.saturating_mul(unit), (units + 1).saturating_mul(unit))
    }

    /// The path of a bucket, and where the running number goes. One value per header.
    pub fn render(&self, time_ns: i64, values: &[Option<&str>]) -> (String, usize) {
        let mut path = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Header(index) => {
                    let value = values.get(*index).copied().flatten().filter(|value| !value.is_empty());
                    let default = self.headers.get(*index).map(|header| header.default.as_str());
                    push_value(value.or(default).unwrap_or_default(), &mut path);
                }
                Part::Time(format) => self.push_time(format, time_ns, &mut path),
            }
        }
        fit(path, self.tail_bytes)
    }

    /// The directory of a path as far as no header takes part in it. `None`: no header takes part in any.
    pub fn fixed_directory(&self, time_ns: i64) -> Option<String> {
        let mut path = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Time(format) => self.push_time(format, time_ns, &mut path),
                Part::Header(_) => {
                    let (directory, _) = path.rsplit_once('/')?;
                    return Some(if directory.is_empty() { "/".into() } else { directory.into() });
                }
            }
        }
        None
    }

    fn push_time(&self, format: &str, time_ns: i64, out: &mut String) {
        let time = Timestamp::from_second(time_ns.div_euclid(NS_PER_S)).unwrap_or_default();
        // `parse` has tried this format; what works for one time works for all.
        let shown = jiff::fmt::strtime::format(format, &time.to_zoned(self.zone.clone()));
        out.push_str(&shown.unwrap_or_default());
    }
}

/// Cuts parts of a path that are too long for the file system, the last one before its extension.
fn fit(path: String, tail_bytes: usize) -> (String, usize) {
    if path.split('/').all(|name| name.len() <= PATH_SEGMENT_BYTES_MAX) {
        let split = path.len() - tail_bytes;
        return (path, split);
    }
    let (head, tail) = path.split_at_checked(path.len() - tail_bytes).unwrap_or((&path, ""));
    let (directory, name) = head.rsplit_once('/').unwrap_or(("", head));
    let names: Vec<&str> = directory.split('/').map(|name| prefix(name, PATH_SEGMENT_BYTES_MAX)).collect();
    let mut cut = names.join("/");
    cut.push('/');
    cut.push_str(prefix(name, PATH_SEGMENT_BYTES_MAX - tail.len()));
    let split = cut.len();
    cut.push_str(tail);
    (cut, split)
}

/// What makes a relative path absolute, so that a committed path means the same after a restart.
fn absolute(text: &str) -> Result<String, BuildError> {
    if text.starts_with('/') {
        return Ok(String::new());
    }
    let here = std::env::current_dir().ok().and_then(|path| path.to_str().map(|path| format!("{path}/")));
    here.ok_or_else(|| {
        error("is relative, and the working directory has no usable name", "begin it with `/`")
    })
}

/// Seconds of the smallest unit that a format shows.
fn time_unit_s(format: &str, utc: bool) -> Result<i64, BuildError> {
    let mut unit_s = 86_400;
    let mut letters = format.chars();
    while letters.by_ref().any(|letter| letter == '%') {
        let letter = letters.find(|letter| !matches!(letter, '-' | '_' | '^' | '#' | ':' | '0'..='9'));
        unit_s = unit_s.min(match letter {
            Some('f' | 'N' | '.') => {
                let reason =
                    format!("`{{time:{format}}}` is finer than a second: every event would get a file");
                return Err(error(reason, "stop at seconds (`%S`) or coarser"));
            }
            Some(
                'Y' | 'y' | 'C' | 'G' | 'g' | 'm' | 'b' | 'B' | 'h' | 'd' | 'e' | 'j' | 'F' | 'D' | 'A' | 'a'
                | 'u' | 'w' | 'U' | 'W' | 'V' | '%' | 'n' | 't',
            ) => 86_400,
            Some('H' | 'I' | 'k' | 'l' | 'p' | 'P' | 'z' | 'Z' | 'Q') => 3_600,
            Some('M' | 'R') => 60,
            _ => 1,
        });
    }
    // Offsets from UTC are multiples of a quarter of an hour.
    Ok(if utc { unit_s } else { unit_s.min(900) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: i64 = 1_719_826_200_000_000_123; // 2024-07-01T09:30:00Z

    fn path(template: &str, suffix: &str, values: &[Option<&str>]) -> String {
        let (path, split) = Template::parse(template, suffix, TimeZone::UTC).unwrap().render(TIME, values);
        format!("{}|{}", &path[..split], &path[split..])
    }

    #[test]
    fn paths_and_the_place_of_the_number() {
        for (template, suffix, values, expected) in [
            ("/logs/access.log", "", vec![], "/logs/access|.log"),
            ("/logs/access.2.log", "", vec![], "/logs/access.2|.log"),
            ("/logs/access", "", vec![], "/logs/access|"),
            ("/lo.gs/.access", "", vec![], "/lo.gs/.access|"),
            ("/logs/access.log", ".gz", vec![], "/logs/access|.log.gz"),
            ("/logs/access.log.zst", ".zst", vec![], "/logs/access|.log.zst"),
            ("/l/{header.host}.log.zst", ".zst", vec![Some("a.example")], "/l/a.example|.log.zst"),
            ("/l/{header.host}", "", vec![Some("a.example")], "/l/a.example|"),
            ("/l/{header.host}", ".gz", vec![Some("a.example")], "/l/a.example|.gz"),
            ("/l/{header.host}-x/y.log", "", vec![None], "/l/unknown-x/y|.log"),
            ("/l/{header.host:-none}/y.log", "", vec![Some("")], "/l/none/y|.log"),
            ("/l/{header.a}{header.b}", "", vec![Some("../"), Some("..")], "/l/_____|"),
            ("/l/{time:%Y-%m-%d/%H}/{{x}}.log", "", vec![], "/l/2024-07-01/09/{x}|.log"),
        ] {
            assert_eq!(path(template, suffix, &values), expected, "{template}");
        }
    }

    #[test]
    fn what_comes_before_the_first_header_is_fixed() {
        for (template, expected) in [
            ("/l/a.log", None),
            ("/l/{time:%Y}/a.log", None),
            ("/l/{header.host}/{time:%Y}/a.log", Some("/l")),
            ("/l/{time:%Y-%m-%d/%H}/x-{header.host}.log", Some("/l/2024-07-01/09")),
            ("/{header.host}", Some("/")),
        ] {
            let parsed = Template::parse(template, "", TimeZone::UTC).unwrap();
            assert_eq!(parsed.fixed_directory(TIME).as_deref(), expected, "{template}");
        }
    }

    #[test]
    fn long_names_are_cut_before_the_extension() {
        let long = "x".repeat(500);
        let (path, split) =
            Template::parse("/l/{header.a}/{header.a}{header.b}{header.c}.log.gz", ".gz", TimeZone::UTC)
                .unwrap()
                .render(0, &[Some(&long), Some(&long), Some(&long), Some(&long)]);
        assert!(path.split('/').all(|name| name.len() <= PATH_SEGMENT_BYTES_MAX), "{path}");
        assert_eq!(&path[split..], ".log.gz");
    }

    #[test]
    fn every_error_has_a_reason_and_a_fix() {
        for (template, reason, fix) in [
            ("/a/{header.x", "has no end", "add `}`"),
            ("/a/}x", "without `{`", "`}}`"),
            ("/a/{host}", "not a placeholder", "{header.host}"),
            ("/a/{%Y}", "not a placeholder", "{time:%Y}"),
            ("/a/{time}", "not a placeholder", "{time:%Y-%m-%d/%H}"),
            ("/a/{source}", "not a placeholder", "set a header"),
            ("/a/{}", "not a placeholder", "{header.NAME}"),
            ("/a/{header.}", "names no header", "{header.NAME}"),
            ("/a/{header.x:-}", "empty default", "unknown"),
            ("/a/{time:%K}", "%K", "strftime"),
            ("/a/{time:%H%f}", "finer than a second", "%S"),
            ("/a/", "no file name", "end it with a name"),
            ("", "no file name", "end it with a name"),
            ("/a/..", "ends with a directory", "end it with a name"),
            ("/a\n", "control character", "visible"),
        ] {
            let error = Template::parse(template, "", TimeZone::UTC).expect_err(template);
            assert_eq!(error.option, "path");
            assert!(error.reason.contains(reason) && error.fix.contains(fix), "{template}: {error:?}");
        }
        assert!(Template::parse(&"/x".repeat(1_000), "", TimeZone::UTC).is_err());
        assert!(Template::parse(&format!("/{}", "{header.a}".repeat(17)), "", TimeZone::UTC).is_err());
    }

    #[test]
    fn times_are_the_same_within_the_span_and_differ_outside() {
        for (format, zone) in [
            ("%Y-%m-%d/%H", TimeZone::UTC),
            ("%Y-%m-%d", TimeZone::UTC),
            ("%H%M", TimeZone::UTC),
            ("%T", TimeZone::UTC),
            ("%-H", TimeZone::fixed(jiff::tz::offset(5))),
        ] {
            let template = Template::parse(&format!("/{{time:{format}}}"), "", zone).unwrap();
            for time in [TIME, -1, 0, 1, -86_400_000_000_001, i64::MAX, i64::MIN + 1] {
                let (from, to) = template.same_time(time);
                assert!(from <= time && time <= to);
                let here = template.render(time, &[]);
                assert_eq!(template.render(from, &[]), here, "{format} at {time}");
                assert_eq!(template.render(to - i64::from(to < i64::MAX), &[]), here, "{format} at {time}");
            }
        }
    }
}
