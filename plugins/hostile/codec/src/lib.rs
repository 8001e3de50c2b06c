//! A test codec of lines that misbehaves as its configuration says. See ../README.md.

use flumen_sdk::codec::{Decoded, Decoder, Encoder, Payloads};
use flumen_sdk::prelude::*;

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Answers that are none.
    lie: Option<Lie>,
    /// What stands around a file.
    begin: String,
    end: String,
    /// Stands before each payload.
    tag: String,
    /// `begin` or `end` of a file fail.
    no_begin: bool,
    no_end: bool,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Lie {
    Consumed,
    Ends,
    Bad,
    Payloads,
    Huge,
    Open,
}

struct Lines(Settings);

/// Bodies and lines with one of these words bring out a misdeed.
fn misbehave(line: &[u8]) -> Result<(), String> {
    let has = |word: &[u8]| line.windows(word.len()).any(|window| window == word);
    if has(b"TRAP") {
        trap();
    }
    if has(b"LOOP") {
        spin();
    }
    if has(b"BOMB") {
        bomb();
    }
    if has(b"FAIL") { Err("`FAIL` was read".to_owned()) } else { Ok(()) }
}

impl Decoder for Lines {
    fn open(config: Config) -> Result<Self, String> {
        open(&config).map(Lines)
    }

    fn decode(&mut self, input: &[u8], is_last: bool, out: &mut Decoded) -> Result<(), String> {
        let mut start = 0;
        while let Some(rest) = input.get(start..).filter(|rest| !rest.is_empty()) {
            let newline = rest.iter().position(|byte| *byte == b'\n');
            let length = match newline {
                Some(newline) => newline,
                None if is_last => rest.len(),
                None => break,
            };
            let line = rest.get(..length).unwrap_or_default();
            let end = start + length + usize::from(newline.is_some());
            misbehave(line)?;
            if line.starts_with(b"REJECT") {
                out.bad(start..end, "`REJECT` was read");
            } else {
                for part in line.split(|byte| *byte == b'\t') {
                    out.event(end, part).header("tag", &self.0.tag);
                }
            }
            start = end;
        }
        match self.0.lie {
            Some(Lie::Consumed) => out.consume(input.len() + 1),
            Some(Lie::Ends) => drop(out.event(0, b"ends nowhere")),
            Some(Lie::Bad) => out.bad(0..input.len(), "bad over events"),
            Some(Lie::Huge) => drop(out.event(input.len(), &vec![b'x'; 100 << 20])),
            _ => {}
        }
        Ok(())
    }
}

impl Encoder for Lines {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        Ok((Lines(open(&config)?), Reads::body()))
    }

    fn begin(&mut self, seed: u64) -> Result<Vec<u8>, String> {
        let Settings { begin, no_begin, .. } = &self.0;
        if *no_begin { Err("no beginning".to_owned()) } else { Ok(around(begin, seed)) }
    }

    fn encode(&mut self, batch: &BatchView, file: Option<u64>, out: &mut Payloads) -> Result<(), String> {
        let Some(body) = batch.body() else { return Err("no body was passed".to_owned()) };
        for (row, body) in body.iter().enumerate() {
            misbehave(body)?;
            if body.starts_with(b"REJECT") {
                out.reject(row, "`REJECT` was written");
                continue;
            }
            out.add(self.0.tag.as_bytes());
            out.add(body);
            if file.is_some() {
                out.add(b"\n");
            }
            out.end_row();
        }
        match self.0.lie {
            Some(Lie::Payloads) => out.push(b"one too many"),
            Some(Lie::Huge) => out.push(&vec![b'x'; 100 << 20]),
            Some(Lie::Bad) => out.reject(1_000_000, "a row that does not exist"),
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, seed: u64) -> Result<Vec<u8>, String> {
        let Settings { end, no_end, .. } = &self.0;
        if *no_end { Err("no end".to_owned()) } else { Ok(around(end, seed)) }
    }
}

fn open(config: &Config) -> Result<Settings, String> {
    let settings: Settings = config.parse()?;
    if settings.lie == Some(Lie::Open) { Err("it does not open".to_owned()) } else { Ok(settings) }
}

/// `{seed}` stands for the file's number.
fn around(text: &str, seed: u64) -> Vec<u8> {
    text.replace("{seed}", &format!("{seed:016x}")).into_bytes()
}

/// Never comes back, and no optimiser may take it out.
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

flumen_sdk::codec!(Lines, Lines);
