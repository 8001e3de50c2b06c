//! Keeps a share of the events, the same ones whenever they come again. See README.md.

use flumen_sdk::prelude::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    keep: f64,
    #[serde(default = "identity")]
    by: String,
    #[serde(default)]
    header: Option<String>,
    #[serde(default)]
    always: Vec<String>,
}

fn identity() -> String {
    "identity".to_owned()
}

enum By {
    Identity,
    Body,
    Header,
}

/// The plugin.
pub struct Sample {
    by: By,
    /// Hashes below this are kept.
    threshold: u64,
    /// The header that tells the share, and its value.
    header: Option<(String, String)>,
    always: Vec<Finder>,
}

impl BatchInterceptor for Sample {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Settings { keep, by, header, always } = config.parse()?;
        if !(0.0..=1.0).contains(&keep) {
            return Err(format!(
                "config.keep: {keep} is not a share; write a number from 0 to 1, such as 0.1"
            ));
        }
        if header.as_deref() == Some("") {
            return Err("config.header: an empty name; name a header, or leave the key out".to_owned());
        }
        let (by, mut reads) = match by.as_str() {
            "identity" => (By::Identity, Reads::nothing().and_identity()),
            "body" => (By::Body, Reads::body()),
            other => match other.strip_prefix("header.").filter(|name| !name.is_empty()) {
                Some(name) => (By::Header, Reads::nothing().and_header(name)),
                None => {
                    return Err(format!(
                        "config.by: `{other}` is not known; use \"identity\", \"body\" or \"header.NAME\""
                    ));
                }
            },
        };
        if !always.is_empty() {
            reads = reads.and_body();
        }
        // u64::MAX as f64 rounds up to 2^64: the cast saturates, and a share of 1 keeps every hash but the last.
        let threshold = (keep * u64::MAX as f64) as u64;
        let header = header.map(|name| (name, keep.to_string()));
        let always = always.iter().map(Finder::new).collect();
        Ok((Self { by, threshold, header, always }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let hashes: Vec<u64> = match (&self.by, batch.identity(), batch.body()) {
            (By::Identity, Some((streams, positions)), _) => streams
                .iter()
                .zip(positions.iter())
                .map(|(stream, position)| mix(stream ^ mix(position)))
                .collect(),
            (By::Body, _, Some(body)) => body.iter().map(hash).collect(),
            (By::Header, ..) => match batch.header(0) {
                Some(header) => header.values().iter().map(hash).collect(),
                None => return Err("the host did not pass the header".to_owned()),
            },
            _ => return Err("the host did not pass what the share is taken by".to_owned()),
        };
        let mut verdicts: Vec<bool> =
            hashes.iter().map(|hash| *hash < self.threshold || self.threshold == u64::MAX).collect();
        for (finder, body) in self.always.iter().filter_map(|finder| Some((finder, batch.body()?))) {
            for row in find_rows(body, finder) {
                if let Some(verdict) = verdicts.get_mut(row) {
                    *verdict = true;
                }
            }
        }
        let kept: KeptRows =
            verdicts.iter().enumerate().filter(|(_, verdict)| **verdict).map(|(row, _)| row).collect();
        let mut difference = Difference::unchanged();
        if let (Some((name, share)), false) = (&self.header, kept.is_empty()) {
            let mut column = HeaderBuilder::with_capacity(name, kept.len(), kept.len() * share.len());
            (0..kept.len()).for_each(|_| column.push(share));
            difference.set_header(column);
        }
        if kept.len() < batch.rows() {
            difference.keep_rows(kept);
        }
        Ok(difference)
    }
}

/// FNV-1a over words of eight bytes, mixed at the end: every bit of the text reaches the high ones.
fn hash(text: &[u8]) -> u64 {
    let (words, rest) = text.as_chunks::<8>();
    let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ text.len() as u64;
    for word in words {
        state = mix(state ^ u64::from_le_bytes(*word));
    }
    for byte in rest {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(state)
}

/// splitmix64's finisher: a bijection in which every bit depends on every other.
fn mix(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

flumen_sdk::batch_interceptor!(Sample);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer, TestEvent};

    fn run(config: &str, events: &[TestEvent]) -> Answer {
        let (mut plugin, reads) = Sample::open(Config::new(config)).unwrap();
        Answer::new(plugin.process(&testing::batch(&reads, events)).unwrap(), events.len())
    }

    fn events(count: usize) -> Vec<TestEvent> {
        let event = |number: usize| TestEvent {
            body: format!("line {number}").into_bytes(),
            time: 0,
            headers: vec![("user".to_owned(), (number % 100).to_string())],
        };
        (0..count).map(event).collect()
    }

    #[test]
    fn the_share_is_kept_and_stable() {
        let events = events(20_000);
        for by in ["identity", "body"] {
            for keep in [0.0, 0.01, 0.25, 0.9, 1.0] {
                let config = format!(r#"{{"keep":{keep},"by":"{by}"}}"#);
                let kept = run(&config, &events).rows();
                let share = kept.len() as f64 / events.len() as f64;
                assert!((share - keep).abs() < 0.012, "{by} {keep}: {share}");
                assert_eq!(kept, run(&config, &events).rows());
            }
        }
    }

    #[test]
    fn events_with_the_same_header_stay_together() {
        let events = events(1_000);
        let kept = run(r#"{"keep":0.5,"by":"header.user"}"#, &events).rows();
        let users: std::collections::BTreeSet<usize> = kept.iter().map(|row| row % 100).collect();
        assert_eq!(kept.len(), users.len() * 10);
        assert!((20..80).contains(&users.len()), "{}", users.len());
    }

    #[test]
    fn some_are_always_kept_and_the_share_is_told() {
        let events = events(100);
        let answer = run(r#"{"keep":0,"always":["line 42"],"header":"share"}"#, &events);
        assert_eq!(answer.rows(), [42]);
        assert_eq!(answer.header("share", 0), Some("0"));
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| Sample::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error("{}").contains("`keep` is missing"));
        assert!(error(r#"{"keep":2}"#).starts_with("config.keep: 2 is not a share"));
        assert!(error(r#"{"keep":0.1,"by":"user"}"#).starts_with("config.by: `user` is not known"));
    }
}
