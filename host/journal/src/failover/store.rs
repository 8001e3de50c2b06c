//! What plugins remember: what the primary has, and over it what the secondary got since it is open.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::away::{local_plugin, read_state_value};
use super::state::{Place, Shared};
use crate::state::{ByteColumn, StateSize, StateStore};

/// Its calls wait until the primary was opened.
pub(super) struct Store(pub Arc<Shared>);

/// A value that was laid over: `None` if it was removed or has expired.
fn alive(bytes: &[u8], now_ns: i64) -> Option<&[u8]> {
    let (value, expiry) = read_state_value(bytes)?;
    expiry.is_none_or(|expiry| expiry >= now_ns).then_some(value)
}

impl Store {
    fn primary(&self) -> Option<Arc<dyn StateStore>> {
        self.0.wait_opened()?.journal.state()
    }

    /// What lies over a plugin's state, if anything does. What is there before the secondary is open, and when it is not any more, is left of a
    /// crash: it never counted, or the primary has it and has written over it.
    fn over(&self, plugin: &str) -> Option<(Arc<dyn StateStore>, Arc<str>)> {
        let store = self.0.secondary.state().filter(|_| self.0.is_secondary_open())?;
        let plugin = local_plugin(plugin);
        (store.size(&plugin).keys > 0).then_some((store, plugin))
    }
}

impl StateStore for Store {
    fn is_ready(&self) -> bool {
        let journal = {
            let state = self.0.state.lock();
            // One that has failed says so at the commit.
            if state.is_over() {
                return true;
            }
            state.primary.as_ref().filter(|_| state.place != Place::Opening).map(|open| open.journal.clone())
        };
        // Where a promise has to be decided first, that says what plugins remember.
        journal.is_some_and(|journal| journal.state().is_none_or(|store| store.is_ready()))
    }

    fn get_many(
        &self,
        plugin: &str,
        keys: &ByteColumn<'_>,
        now_ns: i64,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        let Some(primary) = self.primary() else {
            return (0..keys.len()).for_each(|index| each(index, None));
        };
        let Some((over, local)) = self.over(plugin) else {
            return primary.get_many(plugin, keys, now_ns, each);
        };
        let mut laid: BTreeMap<usize, Option<Vec<u8>>> = BTreeMap::new();
        over.get_many(&local, keys, now_ns, &mut |index, value| {
            if let Some(value) = value {
                laid.insert(index, alive(value, now_ns).map(<[u8]>::to_vec));
            }
        });
        primary.get_many(plugin, keys, now_ns, &mut |index, value| match laid.get(&index) {
            Some(value) => each(index, value.as_deref()),
            None => each(index, value),
        });
    }

    fn scan(
        &self,
        plugin: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        now_ns: i64,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) {
        let Some(primary) = self.primary() else { return };
        let Some((over, local)) = self.over(plugin) else {
            return primary.scan(plugin, prefix, after, now_ns, each);
        };
        let mut laid: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        over.scan(&local, prefix, after, now_ns, &mut |key, value| {
            laid.push((key.to_vec(), alive(value, now_ns).map(<[u8]>::to_vec)));
            true
        });
        let mut laid = laid.into_iter().peekable();
        let mut goes_on = true;
        primary.scan(plugin, prefix, after, now_ns, &mut |key, value| {
            while let Some((before, value)) = laid.next_if(|(laid, _)| goes_on && laid.as_slice() < key) {
                goes_on = value.is_none_or(|value| each(&before, &value));
            }
            if goes_on {
                goes_on = match laid.next_if(|(laid, _)| laid == key) {
                    Some((_, value)) => value.is_none_or(|value| each(key, &value)),
                    None => each(key, value),
                };
            }
            goes_on
        });
        for (key, value) in laid {
            goes_on = goes_on && value.is_none_or(|value| each(&key, &value));
        }
    }

    /// What is in both counts twice, until it was moved.
    fn size(&self, plugin: &str) -> StateSize {
        let over = self.over(plugin).map(|(over, local)| over.size(&local));
        let (keys, bytes) = over.map_or((0, 0), |size| (size.keys, size.bytes));
        let known = self.primary().map(|primary| primary.size(plugin));
        let known = known.unwrap_or_else(|| StateSize { plugin: plugin.to_owned(), keys: 0, bytes: 0 });
        StateSize { keys: known.keys + keys, bytes: known.bytes + bytes, ..known }
    }

    fn sweep(&self, plugin: &str, now_ns: i64) {
        if let Some(primary) = self.primary() {
            primary.sweep(plugin, now_ns);
        }
    }

    /// For `status`, which waits for nothing.
    fn sizes(&self) -> Vec<StateSize> {
        let primary = self.0.state.lock().primary.clone();
        let primary = primary.and_then(|open| open.journal.state());
        let mut sizes = primary.map(|primary| primary.sizes()).unwrap_or_default();
        let over = self.0.secondary.state().filter(|_| self.0.is_secondary_open());
        let over = over.map(|store| store.sizes()).unwrap_or_default();
        for laid in over {
            let Some(name) = laid.plugin.strip_prefix(super::away::PLUGIN) else { continue };
            match sizes.iter_mut().find(|size| size.plugin == name) {
                Some(size) => {
                    size.keys += laid.keys;
                    size.bytes += laid.bytes;
                }
                None => sizes.push(StateSize { plugin: name.to_owned(), ..laid }),
            }
        }
        sizes
    }
}
