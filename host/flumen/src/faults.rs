//! `FLUMEN_FAULTS`: breaks this process on purpose, for tests (`docs/faults.md`).

use std::env;

use flumen_builtin::bridge;
use flumen_builtin::sinks::{file, kafka};
use flumen_journal::faults::{
    self, ANY_JOURNAL, BUSY_JOURNAL, FULL_JOURNAL, Faults, PROBE, Point, ROLLING_JOURNAL, STORED_MARK,
    STORED_MARK_PLACE, UNWALKED, VARIABLE,
};

use crate::agent::{JOURNAL_DIR, QUARANTINE_DIR};
use crate::exit::{Failure, USAGE};
use crate::secondaries;

/// Before the names of the steps of a failover's journal.
pub const FAILOVER_PLACE: &str = "failover";

/// The value that asks for the names of all kill points.
const LIST: &str = "list";

/// Reads the variable, once, before anything is opened.
pub fn switch_on() -> Result<(), Failure> {
    let Some(text) = env::var_os(VARIABLE) else { return Ok(()) };
    let text = text.to_string_lossy();
    let points = points();
    if text == LIST {
        for (name, meaning) in points {
            println!("{name}  {meaning}");
        }
        return Err(Failure::Reported(0));
    }
    let names: Vec<String> = points.into_iter().map(|(name, _)| name).collect();
    match Faults::parse(&text, &names, &unwalked()) {
        Ok(faults) => {
            tracing::warn!(faults = %text,
                "{VARIABLE} IS SET: this process breaks on purpose; unset it for anything but a test");
            faults::switch_on(faults);
            Ok(())
        }
        Err(error) => {
            eprintln!(
                "flumen: {VARIABLE}: {error}\nIt is for tests alone; docs/faults.md says what it may be."
            );
            Err(Failure::Reported(USAGE))
        }
    }
}

/// Lists of steps, each with whose they are.
type Places = [(&'static str, &'static [Point])];

/// Where a test may kill.
const POINTS: &Places = &[
    (JOURNAL_DIR, ANY_JOURNAL),
    (JOURNAL_DIR, ROLLING_JOURNAL),
    (JOURNAL_DIR, BUSY_JOURNAL),
    (JOURNAL_DIR, FULL_JOURNAL),
    (JOURNAL_DIR, PROBE),
    // It has no plugins and no reserve.
    (QUARANTINE_DIR, ANY_JOURNAL),
    (FAILOVER_PLACE, ANY_JOURNAL),
    (FAILOVER_PLACE, ROLLING_JOURNAL),
    (FAILOVER_PLACE, BUSY_JOURNAL),
    (secondaries::PLACE, secondaries::POINTS),
    (file::faults::PLACE, file::faults::POINTS),
    (STORED_MARK_PLACE, STORED_MARK),
    (kafka::faults::PLACE, kafka::faults::POINTS),
    (bridge::faults::PLACE, bridge::faults::POINTS),
];

/// Steps that change the disk and are no points; `docs/faults.md` says why.
const EXCEPTIONS: &Places = &[
    (JOURNAL_DIR, UNWALKED),
    (QUARANTINE_DIR, UNWALKED),
    (FAILOVER_PLACE, UNWALKED),
    // Its segments are large: no test fills one.
    (QUARANTINE_DIR, ROLLING_JOURNAL),
    // It would have to be full in the moment of the way out or back, for what is acknowledged then.
    (FAILOVER_PLACE, FULL_JOURNAL),
];

/// Names with what is said of them.
fn named(places: &'static Places) -> impl Iterator<Item = (String, &'static str)> {
    let each = |(place, points): &'static (&'static str, &'static [Point])| {
        points.iter().map(move |point| (format!("{place}.{}", point.name), point.meaning))
    };
    places.iter().flat_map(each)
}

/// Kill points of this process, with what has just been done there.
fn points() -> Vec<(String, &'static str)> {
    named(POINTS).collect()
}

fn unwalked() -> Vec<String> {
    named(EXCEPTIONS).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_step_is_a_point_or_an_exception_once() {
        let all: Vec<String> = points().into_iter().map(|(name, _)| name).chain(unwalked()).collect();
        let names: BTreeSet<&String> = all.iter().collect();
        assert_eq!(names.len(), all.len());
    }

    /// `docs/faults.md` has a row for each, with the reason.
    #[test]
    fn the_exceptions_are_in_the_docs() {
        let docs = include_str!("../../../docs/faults.md");
        let missing: Vec<&str> = UNWALKED
            .iter()
            .chain(ROLLING_JOURNAL)
            .chain(FULL_JOURNAL)
            .map(|point| point.name)
            .filter(|name| !docs.contains(&format!("`{name}`")))
            .collect();
        assert_eq!(missing, Vec::<&str>::new());
    }
}
