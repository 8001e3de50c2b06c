//! Imports all that an interceptor can: `log`, `metrics` and `clock`.

use flumen_sdk::prelude::*;

struct Greedy;

impl BatchInterceptor for Greedy {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        config.none()?;
        Ok((Self, Reads::nothing()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        log::debug("a debug line");
        log::info("an info line");
        log::warn("a warning");
        log::error("an error line");
        metrics::add("rows", batch.rows() as u64);
        metrics::set("clock_seconds", clock::now() as f64 / 1e9);
        // A name that the host must count and drop.
        metrics::add("Not A Name", 1);
        Ok(Difference::unchanged())
    }
}

flumen_sdk::batch_interceptor!(Greedy);
