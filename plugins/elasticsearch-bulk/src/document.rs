//! The body of a request: two lines for each event.

use std::fmt::Write as _;

use flumen_sdk::prelude::*;
use flumen_sdk::serde_json::{self, Value};

use crate::options::{Action, Document, Id, Options};
use crate::time::Civil;

/// All lines of a batch, and where each document begins.
pub struct Bulk {
    lines: Vec<u8>,
    /// Begin of each document's lines, and the end of the last one's.
    begins: Vec<usize>,
    /// The row of each document.
    rows: Vec<u32>,
}

impl Bulk {
    /// Rows that make no document are rejected.
    pub fn new(options: &Options, batch: &BatchView, rejected: &mut Vec<(u32, String)>) -> Bulk {
        let body = batch.body();
        let room = body.map_or(0, |body| body.data().len()) + 160 * batch.rows();
        let mut bulk =
            Bulk { lines: Vec::with_capacity(room), begins: vec![0], rows: Vec::with_capacity(batch.rows()) };
        let mut index = String::new();
        for row in 0..batch.rows() {
            let begin = bulk.lines.len();
            let body = body.map_or(&[][..], |body| body.get(row));
            match write(options, batch, row, body, &mut index, &mut bulk.lines) {
                Ok(()) => {
                    bulk.begins.push(bulk.lines.len());
                    bulk.rows.push(row as u32);
                }
                Err(reason) => {
                    bulk.lines.truncate(begin);
                    rejected.push((row as u32, reason));
                }
            }
        }
        bulk
    }

    /// Documents.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The row of a document.
    pub fn row(&self, document: usize) -> Option<u32> {
        self.rows.get(document).copied()
    }

    /// The lines of some documents.
    pub fn lines(&self, first: usize, end: usize) -> Option<&[u8]> {
        self.lines.get(*self.begins.get(first)?..*self.begins.get(end)?)
    }
}

fn write(
    options: &Options,
    batch: &BatchView,
    row: usize,
    body: &[u8],
    index: &mut String,
    lines: &mut Vec<u8>,
) -> Result<(), String> {
    let time = batch.time().and_then(|times| times.get(row)).unwrap_or(0);
    options.index.fill(batch, row, time, index)?;
    lines.extend_from_slice(match options.action {
        Action::Create => b"{\"create\":{\"_index\":".as_slice(),
        Action::Index => b"{\"index\":{\"_index\":".as_slice(),
    });
    text(index, lines)?;
    if let (Id::Identity, Some((streams, positions))) = (options.id, batch.identity()) {
        let (stream, position) = (streams.get(row).unwrap_or(0), positions.get(row).unwrap_or(0));
        lines.extend_from_slice(b",\"_id\":");
        index.clear();
        let written = write!(index, "{}{stream:016x}-{position:016x}", options.id_prefix);
        written.map_err(|error| error.to_string())?;
        text(index, lines)?;
    }
    lines.extend_from_slice(b"}}\n");
    match options.document {
        Document::Json => json(body, lines)?,
        Document::Fields => fields(options, batch, row, time, body, lines)?,
    }
    lines.push(b'\n');
    Ok(())
}

/// The body as it is, on one line.
fn json(body: &[u8], lines: &mut Vec<u8>) -> Result<(), String> {
    let not = |error: String| format!("its body is not a JSON object: {error}");
    if body.contains(&b'\n') || body.contains(&b'\r') {
        let document: serde_json::Map<String, Value> =
            serde_json::from_slice(body).map_err(|error| not(error.to_string()))?;
        return serde_json::to_writer(lines, &document).map_err(|error| error.to_string());
    }
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(not("it does not begin with {".to_owned()));
    }
    let checked: Result<flumen_sdk::serde::de::IgnoredAny, _> = serde_json::from_slice(body);
    checked.map_err(|error| not(error.to_string()))?;
    lines.extend_from_slice(body);
    Ok(())
}

/// Time, body and headers.
fn fields(
    options: &Options,
    batch: &BatchView,
    row: usize,
    time: i64,
    body: &[u8],
    lines: &mut Vec<u8>,
) -> Result<(), String> {
    lines.extend_from_slice(b"{\"@timestamp\":\"");
    lines.extend_from_slice(Civil::of(time).to_string().as_bytes());
    lines.extend_from_slice(b"\",\"message\":");
    text(&String::from_utf8_lossy(body), lines)?;
    for (column, name) in options.fields.iter().enumerate() {
        if let Some(value) = batch.header(column).and_then(|header| header.get(row)) {
            lines.push(b',');
            text(name, lines)?;
            lines.push(b':');
            // Headers are UTF-8.
            text(&String::from_utf8_lossy(value), lines)?;
        }
    }
    lines.push(b'}');
    Ok(())
}

fn text(text: &str, lines: &mut Vec<u8>) -> Result<(), String> {
    serde_json::to_writer(lines, text).map_err(|error| error.to_string())
}
