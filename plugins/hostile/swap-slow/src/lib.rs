//! Sets the header `version` to `s`, and takes some microseconds for each event: a new version that costs too much.

use flumen_sdk::prelude::*;

/// Steps of work for an event.
const WORK: u64 = 10_000;

struct Swap;

impl BatchInterceptor for Swap {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        config.none()?;
        Ok((Self, Reads::nothing()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let mut version = HeaderBuilder::with_capacity("version", batch.rows(), batch.rows());
        for row in 0..batch.rows() as u64 {
            // A black box, so that no compiler takes the work out.
            let sum = (0..WORK).fold(row, |sum, step| std::hint::black_box(sum ^ step));
            version.push(if sum == u64::MAX { "never" } else { "s" });
        }
        let mut difference = Difference::unchanged();
        difference.set_header(version);
        Ok(difference)
    }
}

flumen_sdk::batch_interceptor!(Swap);
