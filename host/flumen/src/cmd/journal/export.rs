//! `export`: events of a channel as lines of JSON, for whatever comes next in a shell.

use std::io::{BufWriter, Write};

use flumen_journal::inspect::Inspector;

use super::{Chosen, shown_time};
use crate::cmd::event_json;
use crate::exit::Failure;

/// Prints them; what is missing in the range is told on standard error.
pub fn run(inspector: &Inspector, chosen: &Chosen, limit: Option<u64>) -> Result<(), Failure> {
    let request = chosen.request(inspector)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let (mut room, mut missing) = (limit.unwrap_or(u64::MAX), 0);
    for rows in inspector.events(&request.channel, request.bounds.from)? {
        let rows = rows?;
        if rows.first >= request.bounds.until || room == 0 {
            break;
        }
        missing += rows.missing_before;
        let committed = shown_time(rows.time_ns);
        for row in request.bounds.rows(&rows.batch, rows.first) {
            if room == 0 {
                break;
            }
            room -= 1;
            let mut event = event_json(&rows.batch, row as usize);
            if let Some(event) = event.as_object_mut() {
                event.insert("channel".into(), request.channel.as_str().into());
                event.insert("number".into(), (rows.first + u64::from(row)).into());
                event.insert("committed".into(), committed.as_str().into());
                let body = rows.batch.body().value(row as usize);
                // The text beside it has replacement characters.
                if std::str::from_utf8(body).is_err() {
                    event.insert("body_hex".into(), hex(body).into());
                }
            }
            writeln!(out, "{event}")?;
        }
    }
    out.flush()?;
    if missing > 0 {
        eprintln!("{missing} events of the range are not in the journal any more, or damaged");
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
