//! Frames: four bytes with the length of a body, the highest first, then the body.

use flumen_sdk::codec::{Decoded, Decoder, Encoder, Payloads};
use flumen_sdk::prelude::*;

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
struct Options {
    #[serde(default = "one_mebibyte")]
    max_bytes: usize,
}

fn one_mebibyte() -> usize {
    1 << 20
}

struct Reader {
    max_bytes: usize,
}

impl Decoder for Reader {
    const OPTIONS: &'static str = r#"{
        "type": "object", "additionalProperties": false,
        "properties": {
            "max_bytes": { "type": "integer", "minimum": 1, "maximum": 67108864, "default": 1048576, "description": "Bytes of the longest body." }
        }
    }"#;

    fn open(config: Config) -> Result<Self, String> {
        let Options { max_bytes } = config.parse()?;
        Ok(Self { max_bytes })
    }

    fn decode(&mut self, input: &[u8], is_last: bool, out: &mut Decoded) -> Result<(), String> {
        let mut start = 0;
        while let Some(rest) = input.get(start..).filter(|rest| !rest.is_empty()) {
            let frame = rest.split_first_chunk::<4>().map(|(length, body)| (u32::from_be_bytes(*length) as usize, body));
            match frame {
                // Nothing tells where the next one begins.
                Some((length, _)) if length > self.max_bytes => {
                    out.bad(start..input.len(), format!("a frame of {length} bytes is longer than max_bytes"));
                    break;
                }
                Some((length, body)) if body.len() >= length => {
                    start += 4 + length;
                    out.event(start, body.get(..length).unwrap_or_default());
                }
                _ if is_last => {
                    out.bad(start..input.len(), "the last frame is not whole");
                    break;
                }
                _ => break,
            }
        }
        Ok(())
    }
}

struct Writer {
    max_bytes: usize,
}

impl Encoder for Writer {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Options { max_bytes } = config.parse()?;
        Ok((Self { max_bytes }, Reads::body()))
    }

    fn encode(&mut self, batch: &BatchView, _file: Option<u64>, out: &mut Payloads) -> Result<(), String> {
        for (row, body) in batch.body().into_iter().flat_map(Column::iter).enumerate() {
            match u32::try_from(body.len()) {
                Ok(length) if body.len() <= self.max_bytes => {
                    out.add(&length.to_be_bytes());
                    out.add(body);
                    out.end_row();
                }
                _ => out.reject(row, format!("a body of {} bytes is longer than max_bytes", body.len())),
            }
        }
        Ok(())
    }
}

flumen_sdk::codec!(Reader, Writer);
