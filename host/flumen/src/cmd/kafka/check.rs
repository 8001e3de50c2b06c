//! `flumen kafka check`: is the cluster fit, and who fences whom.

use flumen_kafka::admin::check::{self, Grade, Report};

use super::connection::Connection;
use crate::cmd::print_json;
use crate::exit::{FAILED, Failure, counted};

/// Looks and prints.
pub fn run(connection: &Connection, is_json: bool) -> Result<(), Failure> {
    let report = check::check(&connection.settings, connection.target.as_ref());
    if is_json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    if report.is_well { Ok(()) } else { Err(Failure::Reported(FAILED)) }
}

fn print(report: &Report) {
    for finding in &report.findings {
        let word = match finding.grade {
            Grade::Ok => "ok  ",
            Grade::Note => "note",
            Grade::Bad => "BAD ",
        };
        println!("{word}  {}: {}", finding.about, finding.text);
        if let Some(fix) = &finding.fix {
            println!("      -> {fix}");
        }
    }
    let now_ms = jiff::Timestamp::now().as_millisecond();
    for transaction in report.transactions.iter().flat_map(|transactions| &transactions.known) {
        let partitions = match transaction.partitions.len() {
            0 => String::new(),
            _ => format!(" in {}", transaction.partitions.join(", ")),
        };
        println!(
            "      {}  producer {} epoch {}  {}{partitions}  since {} s",
            transaction.id,
            transaction.producer_id,
            transaction.epoch,
            transaction.state,
            (now_ms - transaction.changed_ms).max(0) / 1_000,
        );
    }
    for record in report.progress.iter().flat_map(|progress| &progress.known) {
        let what = record.lane.map_or("claimed".into(), |lane| format!("lane {lane} written"));
        println!("      {}  {what} by {} at {}", record.sink, record.by, record.time);
    }
    let bad = report.findings.iter().filter(|finding| finding.grade == Grade::Bad).count();
    if bad == 0 {
        println!("all is well");
    } else {
        println!("{} to mend", counted(bad, "thing"));
    }
}
