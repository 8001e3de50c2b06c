//! What plugins remember, once it is known what of it counts.

use std::sync::Arc;

use super::Shared;
use crate::state::{ByteColumn, StateSize, StateStore};

pub(super) struct Remembered(pub Arc<Shared>);

impl Remembered {
    fn wait(&self) {
        drop(self.0.decided(|_| true));
    }
}

impl StateStore for Remembered {
    fn is_ready(&self) -> bool {
        self.0.state.lock().undecided.is_none()
    }

    fn get_many(
        &self,
        plugin: &str,
        keys: &ByteColumn<'_>,
        now_ns: i64,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        self.wait();
        self.0.view.get_many(plugin, keys, now_ns, each);
    }

    fn scan(
        &self,
        plugin: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        now_ns: i64,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) {
        self.wait();
        self.0.view.scan(plugin, prefix, after, now_ns, each);
    }

    fn size(&self, plugin: &str) -> StateSize {
        self.0.view.size(plugin)
    }

    fn sweep(&self, plugin: &str, now_ns: i64) {
        self.wait();
        self.0.view.sweep(plugin, now_ns);
    }

    fn sizes(&self) -> Vec<StateSize> {
        self.0.view.sizes()
    }
}
