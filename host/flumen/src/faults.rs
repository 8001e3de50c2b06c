//! `FLUMEN_FAULTS`: breaks this process on purpose, for tests (`docs/faults.md`).

use std::env;

use flumen_builtin::bridge;
use flumen_builtin::sinks::{file, kafka};
use flumen_journal::faults::{
    self, ANY_JOURNAL, BUSY_JOURNAL, Faults, Point, STORED_MARK, STORED_MARK_PLACE, VARIABLE,
};

use crate::agent::{JOURNAL_DIR, QUARANTINE_DIR};
use crate::exit::{Failure, USAGE};

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
    match Faults::parse(&text, &names) {
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

/// Kill points of this process, with what has just been done there.
fn points() -> Vec<(String, &'static str)> {
    let journal = ANY_JOURNAL.iter().chain(BUSY_JOURNAL).map(|point| (JOURNAL_DIR, point));
    // It is rarely written to: it has no plugins, no reserve, and does not roll in any test.
    let quarantine = ANY_JOURNAL.iter().map(|point| (QUARANTINE_DIR, point));
    let others = [
        (file::faults::PLACE, file::faults::POINTS),
        (STORED_MARK_PLACE, STORED_MARK),
        (kafka::faults::PLACE, kafka::faults::POINTS),
        (bridge::faults::PLACE, bridge::faults::POINTS),
    ];
    let others =
        others.into_iter().flat_map(|(place, points)| points.iter().map(move |point| (place, point)));
    let named = |(place, point): (&str, &Point)| (format!("{place}.{}", point.name), point.meaning);
    journal.chain(quarantine).chain(others).map(named).collect()
}
