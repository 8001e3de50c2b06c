//! Events as Apache Flume writes them into Kafka: one bare Avro datum each, headers and body. See README.md.

mod datum;

use datum::{Broken, Datum};
use flumen_sdk::codec::{Decoded, Decoder, Encoder, Payloads};
use flumen_sdk::prelude::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Headers that are written; `*`: all.
    #[serde(default = "all")]
    headers: Vec<String>,
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Reads data that follow each other with nothing between them: one of a message, or many of a file.
struct Reader;

impl Decoder for Reader {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<Self, String> {
        config.parse::<Settings>().map(|_| Reader)
    }

    fn decode(&mut self, input: &[u8], is_last: bool, out: &mut Decoded) -> Result<(), String> {
        let mut start = 0;
        while let Some(rest) = input.get(start..).filter(|rest| !rest.is_empty()) {
            match datum::read(rest) {
                Ok((Datum { headers, body }, length)) => {
                    start += length;
                    let mut event = out.event(start, body);
                    for (name, value) in headers {
                        event = event.header(name, value);
                    }
                }
                Err(Broken::Short) if !is_last => break,
                // Nothing tells where the next one begins.
                Err(broken) => {
                    out.bad(start..input.len(), broken.to_string());
                    break;
                }
            }
        }
        Ok(())
    }
}

struct Writer;

impl Encoder for Writer {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings: Settings = config.parse()?;
        let reads = match settings.headers.iter().any(|name| name == "*") {
            true => Reads::body().and_all_headers(),
            false => settings.headers.into_iter().fold(Reads::body(), Reads::and_header),
        };
        Ok((Writer, reads))
    }

    fn encode(&mut self, batch: &BatchView, _: Option<u64>, out: &mut Payloads) -> Result<(), String> {
        let Some(body) = batch.body() else { return Err("no body was passed".to_owned()) };
        let columns: Vec<HeaderColumn> = batch.headers().collect();
        let mut present: Vec<(&[u8], &[u8])> = Vec::with_capacity(columns.len());
        for (row, body) in body.iter().enumerate() {
            present.clear();
            for column in &columns {
                present.extend(column.get(row).map(|value| (column.name().as_bytes(), value)));
            }
            datum::write(&present, body, out);
            out.end_row();
        }
        Ok(())
    }
}

flumen_sdk::codec!(Reader, Writer);
