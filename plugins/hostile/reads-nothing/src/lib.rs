//! Reads no column and keeps everything: what a call costs.

use flumen_sdk::prelude::*;

struct ReadsNothing;

impl BatchInterceptor for ReadsNothing {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        config.none()?;
        Ok((Self, Reads::nothing()))
    }

    fn process(&mut self, _: &BatchView) -> Result<Difference, String> {
        Ok(Difference::unchanged())
    }
}

flumen_sdk::batch_interceptor!(ReadsNothing);
