//! What plugins remember, with everything that was handed in: read out of the topic of state when the journal opens, and
//! from then on one step ahead of it.
//!
//! The order of the view is the order of the queue ([`Remembered::hand_in`] is called with its lock), and a group is
//! sent until it counts, so view and topic cannot disagree but by what is still on its way; if that fails, the journal
//! takes no more.
//!
//! A compacted topic keeps a key until a tombstone removes it. A plugin's removal is one; an entry that expires is swept
//! out of the view, and its tombstone goes before the writes of the next commit: a key that is written anew is
//! behind it. While the topic is read nothing is swept, for the same reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use flumen_journal::{ByteColumn, Commit, MemoryState, StateOp, StateSize, StateStore, StateWrites};
use parking_lot::Mutex;

use super::queue::Queue;
use super::registers::{Key, Owner, read_state_value, state_value};

/// Keys that were swept, as removals, by plugin.
type Swept = BTreeMap<Arc<str>, StateWrites>;

/// The view, and what the topic does not know yet.
#[derive(Default)]
pub(super) struct Remembered {
    view: MemoryState,
    /// Held over every change of the view but the reading at the start.
    swept: Mutex<Swept>,
}

fn note(swept: &mut Swept, plugin: &Arc<str>, key: &[u8]) {
    let removals = swept.entry(plugin.clone()).or_insert_with(|| StateWrites::new(plugin.clone()));
    removals.push(StateOp { key, value: None, expiry: None });
}

impl Remembered {
    /// Takes the commit's writes over; what was swept until now goes before them.
    pub fn hand_in(&self, commit: &mut Commit, now_ns: i64) {
        let mut swept = self.swept.lock();
        let removals: Vec<StateWrites> = std::mem::take(&mut *swept).into_values().collect();
        for writes in &commit.state {
            let plugin = writes.plugin();
            self.view.apply_with(writes, now_ns, &mut |key| note(&mut swept, plugin, key));
        }
        commit.state.splice(0..0, removals);
    }

    /// Forgets a share of what has expired. True: there is something to remove in the topic.
    pub fn sweep_some(&self, now_ns: i64) -> bool {
        let mut swept = self.swept.lock();
        self.view.sweep_some(now_ns, &mut |plugin, key| note(&mut swept, plugin, key));
        !swept.is_empty()
    }

    fn sweep(&self, plugin: &str, now_ns: i64) {
        let mut swept = self.swept.lock();
        let plugin: Arc<str> = plugin.into();
        self.view.sweep_with(&plugin, now_ns, &mut |key| note(&mut swept, &plugin, key));
    }

    /// Before the topic is read, from its beginning.
    pub fn clear(&self) {
        self.view.clear();
    }

    /// Takes a record of the topic over.
    pub fn load(&self, owner: &Owner, key: &[u8], value: Option<&[u8]>) {
        let Some(Key::State(plugin, key)) = owner.own(key) else { return };
        let op = match value.map(read_state_value) {
            None => StateOp { key, value: None, expiry: None },
            Some(Some((value, expiry))) => StateOp { key, value: Some(value), expiry },
            Some(None) => {
                tracing::error!(
                    plugin,
                    "a record of what the plugin remembers is not readable: it is forgotten"
                );
                StateOp { key, value: None, expiry: None }
            }
        };
        self.view.load(plugin, op);
    }

    /// Takes writes over that the topic does not have yet, behind its records.
    pub fn lay_over(&self, writes: &StateWrites) {
        writes.iter().for_each(|op| self.view.load(writes.plugin(), op));
    }

    pub fn sizes(&self) -> Vec<StateSize> {
        self.view.sizes()
    }
}

/// The records of a commit's state, in order: key, and value or tombstone.
pub(super) fn records<'a>(
    owner: &'a Owner,
    state: &'a [StateWrites],
) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    let record = |plugin: &'a Arc<str>, write: StateOp<'a>| {
        let value = write.value.map(|value| state_value(value, write.expiry));
        (owner.state_key(plugin, write.key), value)
    };
    state.iter().flat_map(move |writes| writes.iter().map(move |write| record(writes.plugin(), write)))
}

/// What plugins see: their calls wait until the topic was read.
pub(super) struct Store(pub Arc<Queue>);

impl Store {
    /// If the journal ends before, nothing is known; but then it takes no commits either.
    fn view(&self) -> &MemoryState {
        self.0.wait_open();
        &self.0.remembered.view
    }
}

impl StateStore for Store {
    fn is_ready(&self) -> bool {
        // One that has failed says so at the commit.
        self.0.is_open() || self.0.is_closing()
    }

    fn get_many(
        &self,
        plugin: &str,
        keys: &ByteColumn<'_>,
        now_ns: i64,
        each: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        self.view().get_many(plugin, keys, now_ns, each);
    }

    fn scan(
        &self,
        plugin: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        now_ns: i64,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) {
        self.view().scan(plugin, prefix, after, now_ns, each);
    }

    fn size(&self, plugin: &str) -> StateSize {
        self.view().size(plugin)
    }

    fn sweep(&self, plugin: &str, now_ns: i64) {
        self.0.wait_open();
        self.0.remembered.sweep(plugin, now_ns);
    }

    fn sizes(&self) -> Vec<StateSize> {
        self.view().sizes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLUGIN: &str = "dedup";
    const KEYS: u8 = 6;

    #[derive(Debug, Clone)]
    enum Step {
        /// Keys with their lifetimes; without one it never expires.
        Put(Vec<(u8, Option<i64>)>),
        Remove(u8),
        /// A commit without state.
        Other,
        Sleep(i64),
        SweepSome,
        Sweep,
        /// The broker keeps the newest record of each key, and no tombstone.
        Compact,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let put = (0..KEYS, proptest::option::weighted(0.8, 0..20_i64));
        prop_oneof![
            4 => proptest::collection::vec(put, 1..4).prop_map(Step::Put),
            1 => (0..KEYS).prop_map(Step::Remove),
            1 => Just(Step::Other),
            3 => (1..15_i64).prop_map(Step::Sleep),
            1 => Just(Step::SweepSome),
            1 => Just(Step::Sweep),
            1 => Just(Step::Compact),
            1 => Just(Step::Restart),
        ]
    }

    type Record = (Vec<u8>, Option<Vec<u8>>);

    /// A topic, the view of one owner, and what this one should be.
    struct World {
        owner: Owner,
        now: i64,
        topic: Vec<Record>,
        remembered: Remembered,
        model: BTreeMap<u8, (Vec<u8>, Option<i64>)>,
        written: u64,
    }

    impl World {
        fn new() -> World {
            let (topic, remembered, model) = Default::default();
            World { owner: Owner::new("a", "p"), now: 0, topic, remembered, model, written: 0 }
        }

        fn commit(&mut self, ops: &[(u8, Option<Option<i64>>)]) {
            let mut writes = StateWrites::new(PLUGIN.into());
            for (key, life) in ops {
                self.written += 1;
                let value = self.written.to_le_bytes().to_vec();
                let expiry = life.flatten().map(|life| self.now + life);
                writes.push(StateOp { key: &[*key], value: life.map(|_| &*value), expiry });
                match life {
                    Some(_) => self.model.insert(*key, (value, expiry)),
                    None => self.model.remove(key),
                };
            }
            let state = if ops.is_empty() { Vec::new() } else { vec![writes] };
            let mut commit = Commit { state, ..Commit::default() };
            self.remembered.hand_in(&mut commit, self.now);
            self.topic.extend(records(&self.owner, &commit.state));
            // Another agent's record in the same partition.
            let other = Owner::new("b", "p");
            self.topic.push((other.state_key(PLUGIN, &[0]), Some(state_value(b"other", None))));
        }

        fn step(&mut self, step: &Step) {
            match step {
                Step::Put(puts) => {
                    let ops: Vec<_> = puts.iter().map(|(key, life)| (*key, Some(*life))).collect();
                    self.commit(&ops);
                }
                Step::Remove(key) => self.commit(&[(*key, None)]),
                Step::Other => self.commit(&[]),
                Step::Sleep(time) => self.now += time,
                Step::SweepSome => {
                    self.remembered.sweep_some(self.now);
                }
                Step::Sweep => self.remembered.sweep(PLUGIN, self.now),
                Step::Compact => self.compact(),
                Step::Restart => {
                    self.remembered = Remembered::default();
                    self.topic.iter().for_each(|(key, value)| {
                        self.remembered.load(&self.owner, key, value.as_deref());
                    });
                }
            }
        }

        fn compact(&mut self) {
            let newest: BTreeMap<&[u8], usize> =
                self.topic.iter().enumerate().map(|(at, (key, _))| (key.as_slice(), at)).collect();
            let is_kept = |(at, (key, value)): &(usize, &Record)| {
                newest.get(key.as_slice()) == Some(at) && value.is_some()
            };
            self.topic =
                self.topic.iter().enumerate().filter(is_kept).map(|(_, record)| record.clone()).collect();
        }

        /// What the plugin sees.
        fn seen(&self) -> Vec<Option<Vec<u8>>> {
            let offsets: Vec<u8> = (0..=u32::from(KEYS)).flat_map(u32::to_le_bytes).collect();
            let data: Vec<u8> = (0..KEYS).collect();
            let keys = ByteColumn::new(&offsets, &data).unwrap();
            let mut seen = Vec::new();
            let mut each = |_: usize, value: Option<&[u8]>| seen.push(value.map(<[u8]>::to_vec));
            self.remembered.view.get_many(PLUGIN, &keys, self.now, &mut each);
            seen
        }

        fn expected(&self) -> Vec<Option<Vec<u8>>> {
            let alive = |key: u8| {
                let (value, expiry) = self.model.get(&key)?;
                expiry.is_none_or(|expiry| expiry >= self.now).then(|| value.clone())
            };
            (0..KEYS).map(alive).collect()
        }
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_what_was_remembered(steps in proptest::collection::vec(step(), 1..60)) {
            let mut world = World::new();
            for step in &steps {
                world.step(step);
                prop_assert_eq!(world.seen(), world.expected(), "after {:?}", step);
            }
            // Nothing that has expired stays in the topic.
            world.now += 1_000;
            world.step(&Step::Sweep);
            world.step(&Step::Other);
            world.compact();
            let own = world.topic.iter().filter(|(key, _)| world.owner.own(key).is_some()).count();
            prop_assert_eq!(own, world.expected().iter().flatten().count());
        }
    }

    #[test]
    fn a_record_that_is_not_readable_is_forgotten() {
        let (owner, remembered) = (Owner::new("a", "p"), Remembered::default());
        let key = owner.state_key(PLUGIN, b"k");
        remembered.load(&owner, &key, Some(&state_value(b"v", None)));
        assert_eq!(remembered.sizes().len(), 1);
        remembered.load(&owner, &key, Some(&[7; 20]));
        assert_eq!(remembered.sizes(), []);
    }
}
