//! Generator: events made of a seed, for tries, tests and benchmarks.
//!
//! Event number n of a seed always has the same body, so a reader can check what arrived. The stream is
//! a hash of the options that decide bodies, the position is n. The committed position (key: stream,
//! big-endian; value: version 1, then the next n in 8 bytes, little-endian) is where a restart goes on.

use std::io::Write;
use std::time::{Duration, Instant};

use flumen_event::BatchBuilder;
use flumen_pipeline::component::option;
use flumen_pipeline::{
    BuildError, ComponentSpec, Emission, OptionKind, Options, Source, SourceContext, SourceError, Stopped,
};

use super::now_ns;

const VERSION: u8 = 1;

/// Longest body: a generator is no test of memory.
const SIZE_MAX: u64 = 1 << 20;

/// The clock of access-log lines begins here (2026-01-01T00:00:00Z) and moves a millisecond per event.
const ACCESS_LOG_EPOCH_S: i64 = 1_767_225_600;

/// The source's name and options.
pub const SPEC: ComponentSpec = ComponentSpec {
    kind: "generator",
    about: "Makes events from a seed: always the same ones; after a restart it goes on where it was.",
    options: &[
        option(
            "rate",
            OptionKind::Integer { min: 0, max: 1_000_000_000 },
            Some("1000"),
            "Events per second; 0: as fast as the pipeline takes them.",
        ),
        option(
            "size",
            OptionKind::Size { min: 1, max: SIZE_MAX },
            Some("128"),
            "Bytes of a body (format `lines`).",
        ),
        option(
            "count",
            OptionKind::Integer { min: 0, max: i64::MAX },
            Some("0"),
            "Events in all; 0: without end.",
        ),
        option(
            "seed",
            OptionKind::Integer { min: 0, max: i64::MAX },
            Some("1"),
            "What the bodies are made of.",
        ),
        option(
            "format",
            OptionKind::Choice(&["lines", "access-log"]),
            Some("\"lines\""),
            "Numbered lines, or lines of a web server's access log.",
        ),
    ],
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Lines,
    AccessLog,
}

/// Bytes of an access-log line, and some.
const ACCESS_LOG_BYTES: usize = 192;

struct Generator {
    rate: u64,
    size: usize,
    count: u64,
    seed: u64,
    format: Format,
}

/// Builds the source.
pub fn build(options: &Options) -> Result<Box<dyn Source>, BuildError> {
    Ok(Box::new(Generator {
        rate: options.integer("rate")?.unsigned_abs(),
        size: usize::try_from(options.size("size")?.min(SIZE_MAX)).unwrap_or(1),
        count: options.integer("count")?.unsigned_abs(),
        seed: options.integer("seed")?.unsigned_abs(),
        format: if options.text("format")? == "access-log" { Format::AccessLog } else { Format::Lines },
    }))
}

impl Source for Generator {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let stream = self.stream();
        let key = stream.to_be_bytes().to_vec();
        let committed = context.positions().into_iter().find(|(k, _)| *k == key);
        let mut next = match committed {
            Some((_, value)) => {
                decode(&value).ok_or_else(|| SourceError::Retry("position not understood".into()))?
            }
            None => 0,
        };
        let (begun, first) = (Instant::now(), next);
        let mut body = Vec::with_capacity(self.size);
        while self.count == 0 || next < self.count {
            if context.stopping() {
                return Err(Stopped.into());
            }
            let due = self.due(begun.elapsed()).saturating_sub(next - first);
            let left = if self.count == 0 { u64::MAX } else { self.count - next };
            let rows = due.min(left).min(context.batch.rows as u64);
            if rows == 0 {
                context.wait(context.batch.linger.max(Duration::from_millis(1)))?;
                continue;
            }
            let time = now_ns();
            // No more than is filled: batches wait in the journal's window and in sinks, which count what is in them.
            let rows_max = usize::try_from(rows).unwrap_or(0);
            let body_max = self.body_bytes_max();
            let bytes_max = rows_max.saturating_mul(body_max).min(context.batch.bytes + body_max);
            let mut builder = BatchBuilder::with_capacity(rows_max, bytes_max);
            while (builder.rows() as u64) < rows && builder.bytes() < context.batch.bytes {
                self.body(next, &mut body);
                builder.push(stream, next, time, &body);
                next += 1;
            }
            let batch = builder.finish(Vec::new()).map_err(|error| SourceError::Retry(error.to_string()))?;
            let positions = vec![(key.clone(), encode(next))];
            context.emit(Emission { batch, positions, quarantined: Vec::new() })?;
        }
        Ok(())
    }
}

fn encode(next: u64) -> Vec<u8> {
    std::iter::once(VERSION).chain(next.to_le_bytes()).collect()
}

fn decode(value: &[u8]) -> Option<u64> {
    let (version, next) = value.split_first()?;
    (*version == VERSION).then_some(())?;
    next.try_into().ok().map(u64::from_le_bytes)
}

impl Generator {
    fn stream(&self) -> u64 {
        let size = if self.format == Format::Lines { self.size } else { 0 };
        let text = format!("flumen generator 1 {} {} {:?}", self.seed, size, self.format);
        let mut id = [0; 8];
        blake3::Hasher::new().update(text.as_bytes()).finalize_xof().fill(&mut id);
        u64::from_le_bytes(id)
    }

    /// Events that should have been made in this time.
    fn due(&self, elapsed: Duration) -> u64 {
        if self.rate == 0 {
            return u64::MAX;
        }
        u64::try_from(elapsed.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX)
    }

    /// At least the bytes of a body, as a rule.
    fn body_bytes_max(&self) -> usize {
        match self.format {
            Format::Lines => self.size,
            Format::AccessLog => ACCESS_LOG_BYTES,
        }
    }

    fn body(&self, number: u64, body: &mut Vec<u8>) {
        body.clear();
        let mut random = Random(self.seed.rotate_left(32) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Writing to a vector cannot fail.
        match self.format {
            Format::Lines => {
                write!(body, "n={number} ").ok();
                while body.len() < self.size {
                    write!(body, "{:016x} ", random.next()).ok();
                }
                body.truncate(self.size);
            }
            Format::AccessLog => access_log(number, &mut random, body),
        }
    }
}

/// The combined log format of Apache and nginx.
fn access_log(number: u64, random: &mut Random, body: &mut Vec<u8>) {
    const METHODS: [&str; 4] = ["GET", "GET", "GET", "POST"];
    const STATUS: [u16; 8] = [200, 200, 200, 200, 304, 404, 302, 500];
    const AGENTS: [&str; 2] = ["Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0", "curl/8.5.0"];
    let time_ms = i64::try_from(number).unwrap_or(i64::MAX).saturating_add(ACCESS_LOG_EPOCH_S * 1_000);
    let time = jiff::Timestamp::from_millisecond(time_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let (a, b) = (random.next(), random.next());
    let method = METHODS.get((a >> 8) as usize % METHODS.len()).copied().unwrap_or("GET");
    let status = STATUS.get((a >> 16) as usize % STATUS.len()).copied().unwrap_or(200);
    let agent = AGENTS.get((a >> 24) as usize % AGENTS.len()).copied().unwrap_or("-");
    write!(
        body,
        "10.{}.{}.{} - - [{}] \"{method} /item/{}?n={number} HTTP/1.1\" {status} {} \"-\" \"{agent}\"",
        b & 15,
        b >> 8 & 255,
        b >> 16 & 255,
        time.strftime("%d/%b/%Y:%H:%M:%S %z"),
        b >> 24 & 0xffff,
        b >> 40 & 0x3fff,
    )
    .ok();
}

/// splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_the_same_at_every_run() {
        let mut generator = Generator { rate: 0, size: 40, count: 0, seed: 7, format: Format::Lines };
        let (mut first, mut again) = (Vec::new(), Vec::new());
        generator.body(12, &mut first);
        generator.body(12, &mut again);
        assert_eq!((first.len(), &first[..5]), (40, &b"n=12 "[..]));
        assert_eq!(first, again);
        generator.format = Format::AccessLog;
        generator.body(0, &mut first);
        let text = String::from_utf8(first).unwrap();
        assert!(text.contains("[01/Jan/2026:00:00:00 +0000]"), "{text}");
    }

    #[test]
    fn position_comes_back() {
        assert_eq!(decode(&encode(42)), Some(42));
        assert_eq!(decode(&[2; 9]), None);
        assert_eq!(decode(&[1; 8]), None);
    }
}
