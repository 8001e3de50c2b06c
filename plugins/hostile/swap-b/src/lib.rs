//! Sets the header `version` to `b`: one of two versions for swap tests.

use flumen_sdk::prelude::*;

struct Swap;

impl BatchInterceptor for Swap {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        config.none()?;
        Ok((Self, Reads::nothing()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let mut version = HeaderBuilder::with_capacity("version", batch.rows(), batch.rows());
        (0..batch.rows()).for_each(|_| version.push("b"));
        let mut difference = Difference::unchanged();
        difference.set_header(version);
        Ok(difference)
    }
}

flumen_sdk::batch_interceptor!(Swap);
