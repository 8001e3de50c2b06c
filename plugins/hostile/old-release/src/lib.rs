//! A guest of release 0.1.0 of the interface: proof that it still loads. Keeps rows whose body is not empty.

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit/0.1.0", world: "interceptor" });
    use super::Plugin;
    export!(Plugin with_types_in self);
}

use bindings::exports::flumen::plugin::guest::{Batch, Difference, Guest, Reads};

struct Plugin;

impl Guest for Plugin {
    fn open(_: String) -> Result<Reads, String> {
        Ok(Reads { body: true, time: false, identity: false, headers: Vec::new() })
    }

    fn process(batch: Batch) -> Result<Difference, String> {
        let offsets = batch.body.ok_or("the body was asked for")?.offsets;
        let offsets: Vec<u32> = offsets.as_chunks::<4>().0.iter().copied().map(u32::from_le_bytes).collect();
        let is_kept = |(row, ends): (u32, &[u32])| (ends.first() != ends.last()).then_some(row);
        let rows = (0_u32..).zip(offsets.windows(2)).filter_map(is_kept);
        Ok(Difference {
            rows_from: Some(rows.flat_map(u32::to_le_bytes).collect()),
            body: None,
            time: None,
            set_headers: Vec::new(),
            remove_headers: Vec::new(),
            rejected: Vec::new(),
        })
    }
}
