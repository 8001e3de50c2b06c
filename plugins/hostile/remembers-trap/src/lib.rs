//! Lets each body through once, as `remembers` does and with the same state, but traps on events with the status 404, when it has
//! written already: a new version with a bug.

use std::time::Duration;

use flumen_sdk::prelude::*;
use flumen_sdk::state;

struct Remembers(Finder);

impl BatchInterceptor for Remembers {
    fn open(_: Config) -> Result<(Self, Reads), String> {
        Ok((Self(Finder::new("\" 404 ")), Reads::body()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let body = batch.body().ok_or("no body")?;
        let mut keys = ColumnBuilder::with_capacity(batch.rows(), body.data().len());
        body.iter().for_each(|body| keys.push(body));
        let new = state::insert_if_absent(keys, None, Some(Duration::from_secs(3_600)))?;
        assert!(find_rows(body, &self.0).next().is_none(), "a bug that this version has");
        let mut difference = Difference::unchanged();
        difference.keep_rows((0..batch.rows()).filter(|row| new.get(*row)).collect());
        Ok(difference)
    }
}

flumen_sdk::batch_interceptor!(Remembers);
