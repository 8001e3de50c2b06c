//! Sets the header `version` to `t`, but traps on events with the status 404: a new version with a bug.

use flumen_sdk::prelude::*;

struct Swap(Finder);

impl BatchInterceptor for Swap {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        config.none()?;
        Ok((Self(Finder::new("\" 404 ")), Reads::body()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let is_met = |body| find_rows(body, &self.0).next().is_some();
        assert!(!batch.body().is_some_and(is_met), "a bug that this version has");
        let mut version = HeaderBuilder::with_capacity("version", batch.rows(), batch.rows());
        (0..batch.rows()).for_each(|_| version.push("t"));
        let mut difference = Difference::unchanged();
        difference.set_header(version);
        Ok(difference)
    }
}

flumen_sdk::batch_interceptor!(Swap);
