//! Writes a million lines to the agent's log per batch.

use flumen_sdk::prelude::*;

const LINES: usize = 1_000_000;

struct LogFlood;

impl BatchInterceptor for LogFlood {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        config.none()?;
        Ok((Self, Reads::nothing()))
    }

    fn process(&mut self, _: &BatchView) -> Result<Difference, String> {
        (0..LINES).for_each(|_| log::info("one of a million lines"));
        Ok(Difference::unchanged())
    }
}

flumen_sdk::batch_interceptor!(LogFlood);
