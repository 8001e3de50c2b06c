//! From the bytes that a codec answered with to events or payloads, or the exact reason why not.
//!
//! Pure, like [`answer`](crate::answer), whose columns these are. What is let through holds for whoever uses it: ends
//! and bad ranges are in order and within what was consumed, and no event without bytes can come again and again.

use arrow_array::BinaryArray;
use flumen_event::Rejection;
use flumen_pipeline::codec::{BadBytes, Decoded, Events};

use crate::answer::{AnswerError, RawColumn, RawEvents, binary, check_names, header, lie, rejection, times};
use crate::failure::printable;

/// `bad-bytes` of the interface as it came.
#[derive(Debug, Clone, Default)]
pub struct RawBad {
    /// The first byte.
    pub begin: u32,
    /// Behind the last.
    pub end: u32,
    /// Why.
    pub reason: String,
}

/// `decoded` of the interface as it came.
#[derive(Debug, Clone, Default)]
pub struct RawDecoded {
    /// Bytes that are done with.
    pub consumed: u32,
    /// The events.
    pub events: RawEvents,
    /// Little-endian `u32`: where each ends.
    pub ends: Vec<u8>,
    /// Bytes that are no event.
    pub bad: Vec<RawBad>,
}

/// `encoded` of the interface as it came.
#[derive(Debug, Clone, Default)]
pub struct RawEncoded {
    /// One payload for each row that is not rejected.
    pub payloads: RawColumn,
    /// Row numbers with reasons.
    pub rejected: Vec<(u32, String)>,
}

/// Payloads, and the rows that have none.
#[derive(Debug, Clone)]
pub struct EncodedRows {
    /// One for each row that is not rejected, in order.
    pub payloads: BinaryArray,
    /// The others.
    pub rejected: Vec<Rejection>,
}

/// Headers of the events of one answer: sources add some of their own.
const HEADERS_MAX: usize = flumen_event::limits::HEADERS_MAX - 24;

/// Checks what an encoder answered about this many rows. Row numbers are checked when they are applied.
pub fn encoded(raw: RawEncoded, rows: usize) -> Result<EncodedRows, AnswerError> {
    let RawEncoded { payloads, rejected } = raw;
    if rejected.len() > rows {
        return lie("rejected", format!("{} rejections of {rows} rows", rejected.len()));
    }
    let payloads = binary("payloads", payloads, rows - rejected.len())?;
    let rejected = rejected.into_iter().map(|(row, reason)| rejection(row, &reason)).collect();
    Ok(EncodedRows { payloads, rejected })
}

/// Checks what a decoder answered about an input of this many bytes.
pub fn decoded(raw: RawDecoded, input_bytes: usize) -> Result<Decoded, AnswerError> {
    let RawDecoded { consumed, events, ends, bad } = raw;
    let consumed = consumed as usize;
    if consumed > input_bytes {
        return lie("consumed", format!("{consumed} bytes of {input_bytes}"));
    }
    let rows = events.rows as usize;
    let rows_max = flumen_event::limits::ROWS_MAX;
    if rows > rows_max || bad.len() > rows_max {
        let most = rows.max(bad.len());
        return lie("events", format!("{most} events or bad ranges, a batch has at most {rows_max}"));
    }
    let ends = self::ends(&ends, rows, consumed)?;
    let bad = self::bad(bad, &ends, consumed)?;
    Ok(Decoded { consumed, events: self::events(events)?, ends, bad })
}

fn events(raw: RawEvents) -> Result<Events, AnswerError> {
    let RawEvents { rows, body, time, headers } = raw;
    let rows = rows as usize;
    let body = binary("body", body, rows)?;
    let time = time.map(|list| times(list, rows)).transpose()?;
    if headers.len() > HEADERS_MAX {
        return lie("headers", format!("{} headers, events have at most {HEADERS_MAX}", headers.len()));
    }
    check_names(&headers)?;
    let headers = headers.into_iter().map(|raw| header(raw, rows)).collect::<Result<Vec<_>, _>>()?;
    Ok(Events { body, time, headers })
}

/// At least 1, never falling, at most `consumed`.
fn ends(list: &[u8], rows: usize, consumed: usize) -> Result<Vec<u32>, AnswerError> {
    if list.len() != rows * 4 {
        return lie("ends", format!("{} bytes for {rows} events of 4", list.len()));
    }
    let (numbers, _) = list.as_chunks::<4>();
    let ends: Vec<u32> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let mut before = 1;
    for (row, end) in ends.iter().enumerate() {
        if *end < before {
            return lie("ends", format!("event {row} ends at {end}, which is before {before}"));
        }
        before = *end;
    }
    match ends.last() {
        Some(last) if *last as usize > consumed => {
            lie("ends", format!("the last event ends at {last}, only {consumed} bytes are consumed"))
        }
        _ => Ok(ends),
    }
}

/// In order, not empty, within `consumed`, and none with an event's end in it.
fn bad(raw: Vec<RawBad>, ends: &[u32], consumed: usize) -> Result<Vec<BadBytes>, AnswerError> {
    let mut before = 0;
    let mut bad = Vec::with_capacity(raw.len());
    for (index, RawBad { begin, end, reason }) in raw.into_iter().enumerate() {
        if begin >= end || begin < before || end as usize > consumed {
            let rule =
                format!("range {index} is {begin}..{end}: not behind {before}, empty, or over {consumed}");
            return lie("bad", rule);
        }
        // The first event that ends behind the range's first byte ends behind all of it.
        let next = ends.partition_point(|at| *at <= begin);
        if let Some(inside) = ends.get(next).filter(|at| **at <= end) {
            return lie("bad", format!("an event ends at {inside}, in range {index}: {begin}..{end}"));
        }
        before = end;
        let reason = printable(&reason, flumen_event::limits::REASON_BYTES_MAX);
        bad.push(BadBytes { bytes: begin as usize..end as usize, reason, is_rejected: true });
    }
    Ok(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_bad_bytes_has_nothing_that_a_terminal_obeys() {
        let raw = RawBad { begin: 0, end: 2, reason: "\x1b[2Jbad\n".to_owned() };
        let found = bad(vec![raw], &[], 2).unwrap();
        assert_eq!(found.first().map(|bad| bad.reason.as_str()), Some("\\u{1b}[2Jbad\\n"));
    }
}
