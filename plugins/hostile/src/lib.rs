//! A test guest that misbehaves as its configuration says:
//! `{ "do": "...", "only_bodies_containing": "..." }`. See README.md for what it can do.

use flumen_sdk::prelude::*;
use serde::Deserialize;

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Misdeed {
    Loop,
    LoopOn,
    BombOn,
    TrapOn,
    LyingOffsets,
    FallingOffsets,
    WrongRows,
    BadUtf8,
    RowsOutOfRange,
    HugeAnswer,
    RejectOutOfRange,
    OpenError,
    OpenLoop,
    SlowOpen,
    Slow,
    ProcessError,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    r#do: Misdeed,
    only_bodies_containing: Option<String>,
}

struct Hostile {
    misdeed: Misdeed,
    /// Misbehave only in batches that hold a row with this text.
    trigger: Option<Finder>,
}

const HUGE_BYTES: usize = 100 << 20;
const OUT_OF_RANGE: usize = 1_000_000;
/// A second or some.
const SLOW_TURNS: u32 = 600;

impl BatchInterceptor for Hostile {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings: Settings = config.parse()?;
        match settings.r#do {
            Misdeed::OpenError => {
                return Err("config.do: `open-error` was asked for; use another value".to_owned());
            }
            Misdeed::OpenLoop => spin(),
            Misdeed::SlowOpen => work(),
            _ => {}
        }
        let fixed = match settings.r#do {
            Misdeed::LoopOn => Some("LOOP"),
            Misdeed::BombOn => Some("BOMB"),
            Misdeed::TrapOn | Misdeed::SlowOpen => Some("TRAP"),
            _ => None,
        };
        let trigger = settings.only_bodies_containing.as_deref().or(fixed).map(Finder::new);
        Ok((Self { misdeed: settings.r#do, trigger }, Reads::body()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let Some(body) = batch.body() else { return Err("no body was passed".to_owned()) };
        let is_triggered =
            self.trigger.as_ref().is_none_or(|trigger| find_rows(body, trigger).next().is_some());
        if is_triggered { self.misbehave(batch.rows()) } else { Ok(Difference::unchanged()) }
    }
}

impl Hostile {
    fn misbehave(&self, rows: usize) -> Result<Difference, String> {
        let mut difference = Difference::unchanged();
        match self.misdeed {
            Misdeed::Loop | Misdeed::LoopOn | Misdeed::OpenLoop | Misdeed::OpenError => spin(),
            Misdeed::BombOn => bomb(),
            Misdeed::TrapOn | Misdeed::SlowOpen => trap(),
            Misdeed::Slow => (0..SLOW_TURNS).for_each(|_| work()),
            // Every row one byte long, and no data.
            Misdeed::LyingOffsets => {
                difference.set_body(ColumnBuilder::from_parts((0..=rows as u32).collect(), Vec::new()));
            }
            Misdeed::FallingOffsets => {
                let len = rows as u32;
                // From 0 to the data's length as it should be, but on the way above it and falling.
                let offset = |row: u32| match row {
                    0 if rows == 1 => len + 1,
                    0 => 0,
                    row => len + (len - row),
                };
                let offsets = (0..=len).map(offset).collect();
                difference.set_body(ColumnBuilder::from_parts(offsets, vec![b'x'; rows]));
            }
            Misdeed::WrongRows => {
                difference.set_body(column_of(rows + 1, b"one row too many"));
            }
            Misdeed::BadUtf8 => {
                let column = column_of(rows, b"\xff\xfe");
                difference.set_header(HeaderBuilder::from_parts("bad", column, None));
            }
            Misdeed::RowsOutOfRange => {
                difference.keep_rows((0..rows).map(|_| OUT_OF_RANGE).collect());
            }
            Misdeed::HugeAnswer => {
                let mut column = ColumnBuilder::with_capacity(rows, HUGE_BYTES);
                (1..rows).for_each(|_| column.push(b""));
                column.push(&vec![b'x'; HUGE_BYTES]);
                difference.set_body(column);
            }
            Misdeed::RejectOutOfRange => {
                difference.reject(OUT_OF_RANGE, "a row that does not exist");
            }
            Misdeed::ProcessError => return Err("`process-error` was asked for".to_owned()),
        }
        Ok(difference)
    }
}

fn column_of(rows: usize, value: &[u8]) -> ColumnBuilder {
    let mut column = ColumnBuilder::with_capacity(rows, rows * value.len());
    (0..rows).for_each(|_| column.push(value));
    column
}

/// Some milliseconds of work, and no optimiser may take it out.
fn work() {
    (0..5_000_000_u64).for_each(|step| {
        std::hint::black_box(step);
    });
}

/// Never comes back.
fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

/// Allocates until the host says no.
fn bomb() -> ! {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![1; 1 << 20]);
        std::hint::black_box(&held);
    }
}

/// A trap is the misdeed that was asked for.
#[allow(clippy::panic)]
fn trap() -> ! {
    panic!("TRAP")
}

flumen_sdk::batch_interceptor!(Hostile);
