//! The materialised view of the plugins' state, in memory: every journal keeps one.
//!
//! Constraints: one allocation per key, which holds expiry, key and value; the table's slot points to it. A million
//! keys of 40 bytes take some 100 MB with everything. Tables are cut into parts, so that a part can be walked while
//! the lock is held for a moment only. Keys are unordered until somebody scans them; from then on they are a tree.
//!
//! Expired entries are swept by and by: every write looks at two old ones, so what is dead stays a fraction of what lives.
//! A journal whose writes stand in a log that somebody has to clear hears of each key that is swept.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::limits;
use crate::state::{ByteColumn, StateOp, StateSize, StateStore, StateWrites};

/// Parts of one plugin's table.
const PARTS: usize = 256;

/// Bytes before the key in an entry: expiry and length of the key.
const ENTRY_HEADER_BYTES: usize = 12;

/// Share of the table that an entry takes: 17 bytes per slot, of which 7/16 to 7/8 are in use.
const SLOT_BYTES: u64 = 32;

/// What an allocator adds to an entry.
const ALLOCATION_BYTES: usize = 8;

/// Memory of an entry whose key and value have so many bytes together.
pub fn entry_bytes(key_and_value: usize) -> u64 {
    let entry = ENTRY_HEADER_BYTES + key_and_value + ALLOCATION_BYTES;
    entry.next_multiple_of(16) as u64 + SLOT_BYTES
}

/// Expiry (`i64::MAX`: never), length of the key, key, value.
struct Entry(Box<[u8]>);

impl Entry {
    fn new(key: &[u8], value: &[u8], expiry: Option<i64>) -> Entry {
        let mut bytes = Vec::with_capacity(ENTRY_HEADER_BYTES + key.len() + value.len());
        bytes.extend_from_slice(&expiry.unwrap_or(i64::MAX).to_le_bytes());
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        Entry(bytes.into_boxed_slice())
    }

    fn expiry(&self) -> i64 {
        self.0.first_chunk().map(|bytes| i64::from_le_bytes(*bytes)).unwrap_or(i64::MAX)
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        let length =
            self.0.get(8..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
        let rest = self.0.get(ENTRY_HEADER_BYTES..).unwrap_or_default();
        rest.split_at_checked(length.unwrap_or_default() as usize).unwrap_or_default()
    }

    fn key(&self) -> &[u8] {
        self.parts().0
    }

    fn is_alive(&self, now_ns: i64) -> bool {
        self.expiry() >= now_ns
    }

    fn bytes(&self) -> u64 {
        entry_bytes(self.0.len() - ENTRY_HEADER_BYTES)
    }

    fn op(&self) -> StateOp<'_> {
        let (key, value) = self.parts();
        let expiry = Some(self.expiry()).filter(|expiry| *expiry != i64::MAX);
        StateOp { key, value: Some(value), expiry }
    }
}

// By key, so that a tree of entries is looked up by a key.
impl Borrow<[u8]> for Entry {
    fn borrow(&self) -> &[u8] {
        self.key()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        self.key().cmp(other.key())
    }
}

enum Keys {
    Unordered(Vec<HashTable<Entry>>),
    Ordered(BTreeSet<Entry>),
}

/// One plugin's state.
struct Table {
    keys: Keys,
    count: u64,
    bytes: u64,
    sweep: Sweep,
}

/// Where the sweep is, and how many entries it may look at.
#[derive(Default)]
struct Sweep {
    part: usize,
    after: Option<Vec<u8>>,
    credit: usize,
}

/// The state of all plugins.
pub struct View {
    hasher: RandomState,
    plugins: BTreeMap<Arc<str>, Table>,
}

/// Where a walk over everything is.
#[derive(Default)]
pub struct Walk {
    plugin: Option<Arc<str>>,
    part: usize,
    after: Option<Vec<u8>>,
}

impl Default for View {
    fn default() -> Self {
        View { hasher: RandomState::new(), plugins: BTreeMap::new() }
    }
}

fn part_of(hash: u64) -> usize {
    // The table itself uses the lowest and the highest bits.
    (hash >> 40) as usize % PARTS
}

impl Table {
    fn new() -> Table {
        let parts = (0..PARTS).map(|_| HashTable::new()).collect();
        Table { keys: Keys::Unordered(parts), count: 0, bytes: 0, sweep: Sweep::default() }
    }

    fn get(&self, hasher: &RandomState, key: &[u8]) -> Option<&Entry> {
        match &self.keys {
            Keys::Unordered(parts) => {
                let hash = hasher.hash_one(key);
                parts.get(part_of(hash))?.find(hash, |entry| entry.key() == key)
            }
            Keys::Ordered(tree) => tree.get(key),
        }
    }

    fn put(&mut self, hasher: &RandomState, entry: Entry) {
        let bytes = entry.bytes();
        let old = match &mut self.keys {
            Keys::Unordered(parts) => {
                let hash = hasher.hash_one(entry.key());
                let Some(part) = parts.get_mut(part_of(hash)) else { return };
                match part.find_mut(hash, |old| old.key() == entry.key()) {
                    Some(old) => Some(std::mem::replace(old, entry)),
                    None => {
                        part.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key()));
                        None
                    }
                }
            }
            Keys::Ordered(tree) => tree.replace(entry),
        };
        match old {
            Some(old) => self.bytes -= old.bytes(),
            None => self.count += 1,
        }
        self.bytes += bytes;
    }

    fn remove(&mut self, hasher: &RandomState, key: &[u8]) {
        let old = match &mut self.keys {
            Keys::Unordered(parts) => {
                let hash = hasher.hash_one(key);
                let part = parts.get_mut(part_of(hash));
                part.and_then(|part| part.find_entry(hash, |entry| entry.key() == key).ok())
                    .map(|occupied| occupied.remove().0)
            }
            Keys::Ordered(tree) => tree.take(key),
        };
        if let Some(old) = old {
            self.count -= 1;
            self.bytes -= old.bytes();
        }
    }

    fn sort(&mut self) -> &BTreeSet<Entry> {
        if let Keys::Unordered(parts) = &mut self.keys {
            let tree = std::mem::take(parts).into_iter().flatten().collect();
            self.keys = Keys::Ordered(tree);
            self.sweep = Sweep::default();
        }
        static NOTHING: BTreeSet<Entry> = BTreeSet::new();
        match &self.keys {
            Keys::Ordered(tree) => tree,
            Keys::Unordered(_) => &NOTHING,
        }
    }

    /// Looks at entries until the credit is spent; `swept` hears of each key that is forgotten.
    fn sweep(&mut self, hasher: &RandomState, now_ns: i64, swept: &mut dyn FnMut(&[u8])) {
        match &mut self.keys {
            Keys::Unordered(parts) => {
                while let Some(part) = parts.get_mut(self.sweep.part % PARTS)
                    && self.sweep.credit > part.len()
                {
                    // An empty part costs something too, or this would have no end.
                    self.sweep.credit -= part.len() + 1;
                    self.sweep.part = (self.sweep.part + 1) % PARTS;
                    let (count, bytes) = (&mut self.count, &mut self.bytes);
                    part.retain(|entry| {
                        let is_alive = entry.is_alive(now_ns);
                        if !is_alive {
                            swept(entry.key());
                            *count -= 1;
                            *bytes -= entry.bytes();
                        }
                        is_alive
                    });
                    if part.capacity() > limits::STATE_PART_SLACK.max(part.len() * 4) {
                        // Only where the table grew far beyond what is left.
                        part.shrink_to(part.len() * 2, |entry| hasher.hash_one(entry.key()));
                    }
                }
            }
            Keys::Ordered(tree) => {
                if self.sweep.credit < limits::STATE_SWEEP_KEYS {
                    return;
                }
                self.sweep.credit = 0;
                let from = match &self.sweep.after {
                    Some(after) => Bound::Excluded(after.as_slice()),
                    None => Bound::Unbounded,
                };
                let looked: Vec<&Entry> =
                    tree.range::<[u8], _>((from, Bound::Unbounded)).take(limits::STATE_SWEEP_KEYS).collect();
                let is_last = looked.len() < limits::STATE_SWEEP_KEYS;
                let after = looked.last().map(|entry| entry.key().to_vec()).filter(|_| !is_last);
                let dead: Vec<Vec<u8>> = looked
                    .into_iter()
                    .filter(|entry| !entry.is_alive(now_ns))
                    .map(|entry| entry.key().to_vec())
                    .collect();
                self.sweep.after = after;
                for key in dead {
                    swept(&key);
                    if let Some(old) = tree.take(key.as_slice()) {
                        self.count -= 1;
                        self.bytes -= old.bytes();
                    }
                }
            }
        }
    }
}

impl View {
    /// Takes writes over, and sweeps a little.
    pub fn apply(&mut self, writes: &StateWrites, now_ns: i64, swept: &mut dyn FnMut(&[u8])) {
        let View { hasher, plugins } = self;
        let table = plugins.entry(writes.plugin().clone()).or_insert_with(Table::new);
        for op in writes.iter() {
            table.write(hasher, op);
        }
        table.sweep.credit =
            (table.sweep.credit + 2 * writes.len() as usize).min(limits::STATE_SWEEP_CREDIT_MAX);
        table.sweep(hasher, now_ns, swept);
    }

    /// Takes one write over, without sweeping.
    pub fn apply_op(&mut self, plugin: &str, op: StateOp<'_>) {
        let View { hasher, plugins } = self;
        match plugins.get_mut(plugin) {
            Some(table) => table.write(hasher, op),
            None => plugins.entry(plugin.into()).or_insert_with(Table::new).write(hasher, op),
        }
    }

    /// All memory of all plugins.
    pub fn bytes(&self) -> u64 {
        self.plugins.values().map(|table| table.bytes).sum()
    }

    /// Appends the next entries of a walk, without the dead ones, each as `(plugin, write)`; false when the walk is over.
    /// What is written during a walk may be in it or not.
    pub fn walk(&self, walk: &mut Walk, now_ns: i64, out: &mut dyn FnMut(&Arc<str>, StateOp<'_>)) -> bool {
        let from = match &walk.plugin {
            None => Bound::Unbounded,
            Some(plugin) => Bound::Included(plugin.clone()),
        };
        let Some((plugin, table)) = self.plugins.range::<Arc<str>, _>((from, Bound::Unbounded)).next() else {
            return false;
        };
        if walk.plugin.as_ref() != Some(plugin) {
            *walk = Walk { plugin: Some(plugin.clone()), ..Walk::default() };
        }
        let mut put = |entry: &Entry| {
            if entry.is_alive(now_ns) {
                out(plugin, entry.op());
            }
        };
        let is_done = match &table.keys {
            Keys::Unordered(parts) => {
                parts.get(walk.part).into_iter().flatten().for_each(put);
                walk.part += 1;
                walk.part >= PARTS
            }
            Keys::Ordered(tree) => {
                let from = match &walk.after {
                    Some(after) => Bound::Excluded(after.as_slice()),
                    None => Bound::Unbounded,
                };
                let (mut looked, mut last) = (0, None);
                let all = tree.range::<[u8], _>((from, Bound::Unbounded)).take(limits::STATE_SWEEP_KEYS);
                for entry in all {
                    put(entry);
                    (looked, last) = (looked + 1, Some(entry));
                }
                walk.after = last.map(|entry| entry.key().to_vec());
                looked < limits::STATE_SWEEP_KEYS
            }
        };
        if !is_done {
            return true;
        }
        let after = (Bound::Excluded(plugin.clone()), Bound::Unbounded);
        let next = self.plugins.range::<Arc<str>, _>(after).next();
        let Some((next, _)) = next else { return false };
        *walk = Walk { plugin: Some(next.clone()), ..Walk::default() };
        true
    }

    fn size(&self, plugin: &str) -> StateSize {
        let table = self.plugins.get(plugin);
        let (keys, bytes) = table.map(|table| (table.count, table.bytes)).unwrap_or_default();
        StateSize { plugin: plugin.to_owned(), keys, bytes }
    }

    fn sweep_all(&mut self, plugin: &str, now_ns: i64, swept: &mut dyn FnMut(&[u8])) {
        let View { hasher, plugins } = self;
        let Some(table) = plugins.get_mut(plugin) else { return };
        match &mut table.keys {
            Keys::Unordered(_) => {
                table.sweep.credit = table.count as usize + 2 * PARTS;
                table.sweep(hasher, now_ns, swept);
            }
            Keys::Ordered(_) => {
                table.sweep.after = None;
                for _ in 0..=table.count as usize / limits::STATE_SWEEP_KEYS {
                    table.sweep.credit = limits::STATE_SWEEP_KEYS;
                    table.sweep(hasher, now_ns, swept);
                }
            }
        }
        table.sweep.credit = 0;
    }

    /// Looks at a share of every table: what nobody writes to any more is forgotten as well.
    pub fn sweep_some(&mut self, now_ns: i64, swept: &mut dyn FnMut(&Arc<str>, &[u8])) {
        let View { hasher, plugins } = self;
        for (plugin, table) in plugins {
            table.sweep.credit += table.count as usize / limits::STATE_SWEEP_SHARE + 2 * PARTS;
            table.sweep(hasher, now_ns, &mut |key| swept(plugin, key));
        }
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.plugins.values().all(|table| table.count == 0)
    }
}

impl Table {
    fn write(&mut self, hasher: &RandomState, op: StateOp<'_>) {
        match op.value {
            Some(value) => self.put(hasher, Entry::new(op.key, value, op.expiry)),
            None => self.remove(hasher, op.key),
        }
    }
}

/// A view as a store of its own: what a plugin's cases remember, and what a journal shares.
///
/// `swept` hears of each key that is forgotten because it has expired; it must not call the store.
#[derive(Default)]
pub struct MemoryState(Mutex<View>);

impl MemoryState {
    pub(crate) fn of(view: View) -> MemoryState {
        MemoryState(Mutex::new(view))
    }

    /// Takes writes over, in place of a commit.
    pub fn apply(&self, writes: &StateWrites, now_ns: i64) {
        self.apply_with(writes, now_ns, &mut |_| {});
    }

    /// The same; the swept keys are of this plugin.
    pub fn apply_with(&self, writes: &StateWrites, now_ns: i64, swept: &mut dyn FnMut(&[u8])) {
        self.0.lock().apply(writes, now_ns, swept);
    }

    /// Takes a write of a log over, in the log's order. Nothing is swept meanwhile: what has expired may be written again
    /// further on.
    pub fn load(&self, plugin: &str, op: StateOp<'_>) {
        self.0.lock().apply_op(plugin, op);
    }

    /// [`StateStore::sweep`].
    pub fn sweep_with(&self, plugin: &str, now_ns: i64, swept: &mut dyn FnMut(&[u8])) {
        self.0.lock().sweep_all(plugin, now_ns, swept);
    }

    /// Looks at a share of all keys, for plugins that write no more.
    pub fn sweep_some(&self, now_ns: i64, swept: &mut dyn FnMut(&Arc<str>, &[u8])) {
        self.0.lock().sweep_some(now_ns, swept);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.0.lock() = View::default();
    }

    pub(crate) fn view(&self) -> &Mutex<View> {
        &self.0
    }
}

impl StateStore for MemoryState {
    fn get_many(
        &self,
        plugin: &str,
        keys: &ByteColumn<'_>,
        now_ns: i64,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        let view = self.0.lock();
        let table = view.plugins.get(plugin);
        for index in 0..keys.len() {
            let entry = table.and_then(|table| table.get(&view.hasher, keys.row(index)));
            let alive = entry.filter(|entry| entry.is_alive(now_ns));
            each(index, alive.map(|entry| entry.parts().1));
        }
    }

    fn scan(
        &self,
        plugin: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        now_ns: i64,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) {
        let mut view = self.0.lock();
        let Some(table) = view.plugins.get_mut(plugin) else { return };
        let from = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let found = table.sort().range::<[u8], _>((from, Bound::Unbounded));
        for entry in found.take_while(|entry| entry.key().starts_with(prefix)) {
            let (key, value) = entry.parts();
            if entry.is_alive(now_ns) && !each(key, value) {
                return;
            }
        }
    }

    fn size(&self, plugin: &str) -> StateSize {
        self.0.lock().size(plugin)
    }

    fn sweep(&self, plugin: &str, now_ns: i64) {
        self.sweep_with(plugin, now_ns, &mut |_| {});
    }

    fn sizes(&self) -> Vec<StateSize> {
        let view = self.0.lock();
        view.plugins.keys().map(|plugin| view.size(plugin)).filter(|size| size.keys > 0).collect()
    }
}
