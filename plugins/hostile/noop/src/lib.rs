//! Receives the body and keeps everything: what a crossing costs.

use flumen_sdk::prelude::*;

struct Noop;

impl BatchInterceptor for Noop {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        config.none()?;
        Ok((Self, Reads::body()))
    }

    fn process(&mut self, _: &BatchView) -> Result<Difference, String> {
        Ok(Difference::unchanged())
    }
}

flumen_sdk::batch_interceptor!(Noop);
