//! Lets each body through once, and misbehaves as its configuration says, after it has written to the state.

use std::time::Duration;

use flumen_sdk::prelude::*;
use flumen_sdk::state;

#[derive(Deserialize)]
struct Settings {
    /// `trap`, `err` or `loop`: on a batch with a body that contains `bad`, after writing. `flood`: writes without an end.
    /// `empty-key`, `huge-key`, `huge-value`: a call that the host refuses; the error is the batch's.
    #[serde(default)]
    mode: String,
}

struct Remembers {
    mode: String,
}

impl BatchInterceptor for Remembers {
    fn open(config: Config) -> Result<(Self, Reads), String> {
        let Settings { mode } = config.parse()?;
        if mode == "at-open" {
            state::get_many(one(b"k"))?;
        }
        Ok((Self { mode }, Reads::body()))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let body = batch.body().ok_or("no body")?;
        let mut keys = ColumnBuilder::with_capacity(batch.rows(), body.data().len());
        body.iter().for_each(|body| keys.push(body));
        let new = state::insert_if_absent(keys, None, Some(Duration::from_secs(3_600)))?;
        let is_bad = body.iter().any(|body| body.windows(3).any(|window| window == b"bad"));
        match self.mode.as_str() {
            "trap" if is_bad => std::process::abort(),
            "err" if is_bad => return Err("it is bad".to_owned()),
            "loop" if is_bad => loop {
                core::hint::black_box(0);
            },
            "flood" => (0_u64..).try_for_each(|number| {
                state::put_many(one(&number.to_le_bytes()), one(&[0; 100_000]), None)
            })?,
            "empty-key" => state::remove_many(one(b""))?,
            "huge-key" => state::remove_many(one(&[0; 1_025]))?,
            "huge-value" => state::put_many(one(b"k"), one(&[0; (1 << 20) + 1]), None)?,
            _ => {}
        }
        let mut difference = Difference::unchanged();
        difference.keep_rows((0..batch.rows()).filter(|row| new.get(*row)).collect());
        Ok(difference)
    }
}

fn one(key: &[u8]) -> ColumnBuilder {
    let mut column = ColumnBuilder::with_capacity(1, key.len());
    column.push(key);
    column
}

flumen_sdk::batch_interceptor!(Remembers);
