//! Holds events to a rate, together or by the value of a header. See README.md.
//!
//! A bucket of tokens for each key, in the state: so the rate holds over restarts, and over all sources of the pipeline. Time
//! is the events' own: a file that is read late is not held to the rate at which it is read.

use std::collections::HashMap;
use std::time::Duration;

use flumen_sdk::config::duration;
use flumen_sdk::prelude::*;
use flumen_sdk::state;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    events: f64,
    #[serde(default = "one_second")]
    per: String,
    #[serde(default)]
    burst: Option<f64>,
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    above: Above,
    #[serde(default)]
    header: Option<String>,
}

fn one_second() -> String {
    "1s".to_owned()
}

/// What becomes of events above the rate.
#[derive(Default, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Above {
    #[default]
    Drop,
    Reject,
    Mark,
}

/// The plugin.
pub struct RateLimit {
    per_ns: f64,
    burst: f64,
    /// The header whose values have a rate each; `None`: all events share one.
    by: Option<String>,
    above: Above,
    header: String,
    /// A bucket that was not touched for this long is full again.
    forget: Duration,
}

impl BatchInterceptor for RateLimit {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Settings { events, per, burst, by, above, header } = config.parse()?;
        if !(events.is_finite() && events > 0.0) {
            return Err(format!("config.events: {events} is no rate; write a number above 0"));
        }
        let window = duration(&per).filter(|time| !time.is_zero()).ok_or_else(|| {
            format!("config.per: `{per}` is not a time; write a number with ms, s, m, h or d, such as \"1s\"")
        })?;
        let burst = burst.unwrap_or(events.max(1.0));
        if !(burst.is_finite() && burst >= 1.0) {
            return Err(format!("config.burst: {burst} lets no event through; write 1 or more"));
        }
        let header = match (above, header) {
            (Above::Mark, None) => {
                return Err(
                    "config.header: the key is missing; name the header that marks events above the rate"
                        .to_owned(),
                );
            }
            (Above::Mark, Some(name)) if name.is_empty() => {
                return Err("config.header: an empty name; name a header".to_owned());
            }
            (Above::Mark, Some(name)) => name,
            (_, Some(_)) => {
                return Err("config.header: of use with `above = \"mark\"` only; remove it".to_owned());
            }
            (_, None) => String::new(),
        };
        let mut reads = Reads::time();
        for name in by.iter().chain((above == Above::Mark).then_some(&header)) {
            reads = reads.and_header(name);
        }
        let per_ns = events / window.as_nanos() as f64;
        // A day at most of a state that nobody asks for.
        let forget = Duration::from_nanos((burst / per_ns).clamp(60e9, 86_400e9) as u64);
        Ok((Self { per_ns, burst, by, above, header, forget }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let Some(times) = batch.time() else { return Err("the host did not pass the times".to_owned()) };
        let header = |name: &str| batch.headers().find(|header| header.name() == name);
        let by = self.by.as_deref().and_then(header);
        let key = |row: usize| match by {
            None => b"a".to_vec(),
            Some(by) => match by.get(row) {
                // A key of the state has 1,024 bytes at most.
                Some(value) => [b"h", value.get(..MAX_KEY).unwrap_or(value)].concat(),
                None => b"n".to_vec(),
            },
        };
        let (mut buckets, of_row) = self.buckets(batch.rows(), key)?;
        let mut passes = Vec::with_capacity(batch.rows());
        for (row, time) in times.iter().enumerate() {
            let bucket = of_row.get(row).and_then(|number| buckets.get_mut(*number));
            passes.push(bucket.is_none_or(|(_, bucket)| bucket.take(time, self.per_ns, self.burst)));
        }
        let (mut keys, mut values) = (column(), column());
        for (key, bucket) in &buckets {
            keys.push(key);
            values.push(&bucket.encode());
        }
        state::put_many(keys, values, Some(self.forget))?;
        Ok(self.answer(batch, &passes))
    }
}

const MAX_KEY: usize = 1_000;

impl RateLimit {
    /// The buckets of a batch, and which one each row takes from.
    #[allow(clippy::type_complexity)]
    fn buckets(
        &self,
        rows: usize,
        key: impl Fn(usize) -> Vec<u8>,
    ) -> Result<(Vec<(Vec<u8>, Bucket)>, Vec<usize>), String> {
        let mut numbers: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut of_row = Vec::with_capacity(rows);
        for row in 0..rows {
            let number = *numbers.entry(key(row)).or_insert_with_key(|key| {
                keys.push(key.clone());
                keys.len() - 1
            });
            of_row.push(number);
        }
        let mut asked = column();
        keys.iter().for_each(|key| asked.push(key));
        let values = state::get_many(asked)?;
        let buckets = keys.into_iter().enumerate().map(|(number, key)| {
            let bucket = values.get(number).and_then(Bucket::decode);
            (key, bucket.unwrap_or(Bucket { tokens: self.burst, time: i64::MIN }))
        });
        Ok((buckets.collect(), of_row))
    }

    fn answer(&self, batch: &BatchView, passes: &[bool]) -> Difference {
        let mut difference = Difference::unchanged();
        let rows = || passes.iter().enumerate();
        match self.above {
            _ if passes.iter().all(|passes| *passes) && self.above != Above::Mark => {}
            Above::Drop => {
                difference.keep_rows(rows().filter(|(_, passes)| **passes).map(|(row, _)| row).collect());
            }
            Above::Reject => {
                for (row, _) in rows().filter(|(_, passes)| !**passes) {
                    difference.reject(row, "above the rate");
                }
            }
            Above::Mark => {
                let there = batch.headers().find(|header| header.name() == self.header);
                let mut column = HeaderBuilder::with_capacity(&self.header, passes.len(), 0);
                for (row, passes) in rows() {
                    match passes {
                        true => column.push_option(there.and_then(|there| there.get_str(row))),
                        false => column.push("above"),
                    }
                }
                difference.set_header(column);
            }
        }
        difference
    }
}

/// Tokens, and the newest time that was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bucket {
    tokens: f64,
    time: i64,
}

impl Bucket {
    /// Whether an event of this time passes. Events that come out of order find the bucket as it is.
    fn take(&mut self, time: i64, per_ns: f64, burst: f64) -> bool {
        if time > self.time {
            let passed = time.saturating_sub(self.time.max(i64::MIN / 2)) as f64;
            self.tokens = (self.tokens + passed * per_ns).min(burst);
            self.time = time;
        }
        let passes = self.tokens >= 1.0;
        if passes {
            self.tokens -= 1.0;
        }
        passes
    }

    fn encode(self) -> [u8; 16] {
        let mut out = [0; 16];
        let (tokens, time) = out.split_at_mut(8);
        tokens.copy_from_slice(&self.tokens.to_le_bytes());
        time.copy_from_slice(&self.time.to_le_bytes());
        out
    }

    /// What is not a bucket is none: it begins anew.
    fn decode(bytes: &[u8]) -> Option<Bucket> {
        let (tokens, time) = bytes.split_first_chunk::<8>()?;
        let bucket =
            Bucket { tokens: f64::from_le_bytes(*tokens), time: i64::from_le_bytes(time.try_into().ok()?) };
        (bucket.tokens.is_finite() && bucket.tokens >= 0.0).then_some(bucket)
    }
}

fn column() -> ColumnBuilder {
    ColumnBuilder::with_capacity(0, 0)
}

flumen_sdk::batch_interceptor!(RateLimit);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_to_its_rate_and_burst() {
        // Ten a second, five at once.
        let mut bucket = Bucket { tokens: 5.0, time: i64::MIN };
        let mut passed = 0;
        for event in 0..1_000_i64 {
            passed += usize::from(bucket.take(event * 10_000_000, 10.0 / 1e9, 5.0));
            bucket = Bucket::decode(&bucket.encode()).unwrap();
        }
        assert!((103..=105).contains(&passed), "{passed}");
        // What comes out of order gets no new tokens.
        let mut bucket = Bucket { tokens: 1.0, time: 1_000_000_000 };
        assert!(bucket.take(0, 10.0 / 1e9, 5.0));
        assert!(!bucket.take(500_000_000, 10.0 / 1e9, 5.0));
        assert!(Bucket::decode(&[0; 15]).is_none() && Bucket::decode(&[0xff; 16]).is_none());
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| RateLimit::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error("{}").contains("`events` is missing"));
        assert!(error(r#"{"events":0}"#).starts_with("config.events: 0 is no rate"));
        assert!(error(r#"{"events":1,"per":"1"}"#).starts_with("config.per: `1` is not a time"));
        assert!(error(r#"{"events":1,"burst":0.5}"#).starts_with("config.burst: 0.5 lets no event"));
        assert!(error(r#"{"events":1,"above":"mark"}"#).starts_with("config.header: the key is missing"));
        assert!(error(r#"{"events":1,"header":"x"}"#).starts_with("config.header: of use"));
    }
}
