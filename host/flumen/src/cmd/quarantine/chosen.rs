//! Which events are meant, as arguments.

use anyhow::{Context, Result, bail};
use flumen_pipeline::kept::filter::Filter;
use jiff::{SignedDuration, Timestamp};

/// Which events; everything that is said has to be true of an event.
#[derive(Debug, clap::Args)]
pub struct Chosen {
    /// Only events that this plugin or component could not take.
    #[arg(long)]
    by: Option<String>,
    /// Only events that this version of a plugin could not take: the beginning of its hash.
    #[arg(long)]
    hash: Option<String>,
    /// Only events that were rejected by the plugin itself, or that it failed on.
    #[arg(long, value_parser = ["rejected", "failed"])]
    kind: Option<String>,
    /// Only events whose reason contains this text.
    #[arg(long)]
    reason: Option<String>,
    /// Only events of this time or later: 2026-05-01T12:00:00Z, or 2h for two hours ago. It is the event's own time.
    #[arg(long)]
    since: Option<String>,
    /// Only events before this time, written as for --since.
    #[arg(long)]
    before: Option<String>,
    /// Only events with this header and value; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Only the event with this number, as `show` prints it, or a range: 17..40 is 17 to 39.
    #[arg(long)]
    number: Option<String>,
}

impl Chosen {
    /// As plain values.
    pub fn filter(&self) -> Result<Filter> {
        // One for both: `--since 2h --before 1h` is an hour.
        let now = Timestamp::now();
        let time = |text: &Option<String>| text.as_deref().map(|text| time(text, now)).transpose();
        let header = |text: &String| {
            let (name, value) =
                text.split_once('=').with_context(|| format!("--header {text}: write NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        Ok(Filter {
            by: self.by.clone(),
            hash: self.hash.clone(),
            kind: self.kind.clone(),
            reason: self.reason.clone(),
            since: time(&self.since)?,
            before: time(&self.before)?,
            headers: self.header.iter().map(header).collect::<Result<_>>()?,
            numbers: self.number.as_deref().map(numbers).transpose()?,
        })
    }
}

/// Nanoseconds since the Unix epoch of a time, or of how long ago.
pub fn time(text: &str, now: Timestamp) -> Result<i64> {
    let at = match (text.parse::<Timestamp>(), text.parse::<SignedDuration>()) {
        (Ok(at), _) => at,
        (_, Ok(ago)) => now.checked_sub(ago).with_context(|| format!("{text} ago is before all time"))?,
        _ => bail!("{text:?} is no time; write 2026-05-01T12:00:00Z, or 2h30m for so long ago"),
    };
    i64::try_from(at.as_nanosecond()).with_context(|| format!("{text} is out of range"))
}

/// The first number of a range, and the one behind its last.
pub fn numbers(text: &str) -> Result<(u64, u64)> {
    let number = |text: &str| text.trim_start_matches('#').parse::<u64>().ok();
    let range = match text.split_once("..") {
        Some((from, to)) => number(from).zip(number(to)),
        None => number(text).map(|at| (at, at.saturating_add(1))),
    };
    match range {
        Some((from, to)) if from < to => Ok((from, to)),
        _ => bail!("--number {text}: write a number as 17, or a range as 17..40"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_times_are_counted_from_one_moment() {
        let (by, hash, kind, reason, header, number) = Default::default();
        let (since, before) = (Some("2h".to_owned()), Some("1h".to_owned()));
        let filter = Chosen { by, hash, kind, reason, since, before, header, number }.filter().unwrap();
        assert_eq!(filter.before.unwrap() - filter.since.unwrap(), 3_600_000_000_000);
    }

    #[test]
    fn times_and_numbers_are_read() {
        let now: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
        let second = 1_000_000_000;
        assert_eq!(time("1970-01-01T00:01:00Z", now).unwrap(), 60 * second);
        let ago = |text| (now.as_nanosecond() as i64 - time(text, now).unwrap()) / second;
        assert_eq!((ago("2h"), ago("2h30m"), ago("90s")), (7_200, 9_000, 90));
        assert!(time("yesterday", now).unwrap_err().to_string().contains("2h30m"));
        assert_eq!((numbers("17").unwrap(), numbers("#17..40").unwrap()), ((17, 18), (17, 40)));
        for wrong in ["", "x", "4..4", "5..4", "-1", "1..", "1..2..3"] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
    }
}
