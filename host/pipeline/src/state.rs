//! What a plugin remembers, as one batch sees it: the journal's view, and over it what this batch wrote so far.
//!
//! Constraints: writes go into the commit of the batch and nowhere else. A failed attempt has written nothing: each attempt
//! writes to a layer of its own, which is laid over the batch's when the attempt succeeds and dropped when not. Every call
//! takes whole columns; nothing is allocated per key but where a layer grows.
//!
//! How it fails: a call that breaks a limit gives a text for a person, and has written nothing. What a plugin makes and writes for one
//! commit is bounded over all attempts together: a batch whose rows are tried one by one must neither fill the memory nor make a
//! commit that the journal refuses. Of an attempt that makes more events nothing counts ([`Session::fits`]).

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use flumen_event::{Batch, Identity};
use flumen_journal::{ByteColumn, StateOp, StateStore, StateWrites, state_bytes};
use hashbrown::HashTable;

use crate::limits;

/// What the host itself remembers of a plugin is under this before its name, which no plugin's name begins with.
const HOST_PREFIX: &str = "#";

/// Key of the number of events that the plugin made so far.
const EMITTED: &[u8] = b"emitted";

/// Key of the version that wrote the state last: its hash, a line feed, its own version.
const WRITER: &[u8] = b"writer";

/// Values of a column of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    /// Keys and one more little-endian `u32`s.
    pub offsets: Vec<u8>,
    /// The values.
    pub data: Vec<u8>,
    /// One bit per key, least significant first: it has a value.
    pub present: Vec<u8>,
}

/// Keys with their values, in the order of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// The keys, as offsets and data.
    pub keys: (Vec<u8>, Vec<u8>),
    /// The values, as offsets and data.
    pub values: (Vec<u8>, Vec<u8>),
}

/// Bytes that a write takes beside its key and its value: their lengths, flags, when it expires.
const WRITE_BYTES: usize = 17;

/// New events of a plugin, without identities: their own are ignored.
pub type Emitted = Batch;

/// Writes of one plugin that are in no commit yet.
struct Layer {
    writes: StateWrites,
    /// Places in the writes, by key.
    index: HashTable<u32>,
    /// Memory that its values will take, at most.
    bytes: u64,
    /// Bytes of writes that later ones replaced.
    stale_bytes: usize,
}

impl Layer {
    fn new(plugin: &Arc<str>) -> Layer {
        Layer { writes: StateWrites::new(plugin.clone()), index: HashTable::new(), bytes: 0, stale_bytes: 0 }
    }

    fn get(&self, hasher: &RandomState, key: &[u8]) -> Option<StateOp<'_>> {
        if self.writes.is_empty() {
            return None;
        }
        let is_key = |at: &u32| self.writes.at(*at).is_some_and(|op| op.key == key);
        self.index.find(hasher.hash_one(key), is_key).and_then(|at| self.writes.at(*at))
    }

    fn put(&mut self, hasher: &RandomState, op: StateOp<'_>) {
        self.bytes += op.value.map(|value| state_bytes(op.key, value)).unwrap_or_default();
        let at = self.writes.push(op);
        let Layer { writes, index, stale_bytes, .. } = self;
        let hash_of = |at: &u32| writes.at(*at).map(|op| hasher.hash_one(op.key)).unwrap_or_default();
        let is_key = |at: &u32| writes.at(*at).is_some_and(|other| other.key == op.key);
        match index.find_mut(hasher.hash_one(op.key), is_key) {
            Some(place) => {
                let replaced = std::mem::replace(place, at);
                *stale_bytes += writes.at(replaced).map(write_bytes).unwrap_or_default();
            }
            None => {
                index.insert_unique(hasher.hash_one(op.key), at, hash_of);
            }
        }
        if self.stale_bytes > limits::STATE_STALE_BYTES.max(self.writes.bytes() / 2) {
            self.compact(hasher);
        }
    }

    /// Leaves out the writes that later ones replaced: a plugin that writes the same keys in each of many attempts would fill the
    /// commit with them.
    fn compact(&mut self, hasher: &RandomState) {
        let empty = Layer::new(self.writes.plugin());
        let old = std::mem::replace(self, empty);
        let mut places: Vec<u32> = old.index.iter().copied().collect();
        places.sort_unstable();
        places.iter().filter_map(|at| old.writes.at(*at)).for_each(|op| self.put(hasher, op));
    }

    /// Bytes of the newest write of each key.
    fn newest_bytes(&self) -> u64 {
        self.writes.bytes().saturating_sub(self.stale_bytes) as u64
    }

    /// Takes over what was written later.
    fn lay_over(&mut self, later: Layer, hasher: &RandomState) {
        match self.writes.is_empty() {
            true => *self = later,
            false => later.writes.iter().for_each(|op| self.put(hasher, op)),
        }
    }

    /// The newest write of each key.
    fn ops(&self) -> impl Iterator<Item = StateOp<'_>> {
        self.index.iter().filter_map(|at| self.writes.at(*at))
    }
}

fn write_bytes(op: StateOp<'_>) -> usize {
    WRITE_BYTES + op.key.len() + op.value.map_or(0, <[u8]>::len)
}

/// Events that a plugin made. The sums also count those that were taken since.
#[derive(Default)]
struct Made {
    events: Vec<Emitted>,
    rows: u64,
    bytes: u64,
}

impl Made {
    fn of(events: Emitted) -> Made {
        Made { rows: events.rows() as u64, bytes: events.bytes() as u64, events: vec![events] }
    }

    fn append(&mut self, mut later: Made) {
        self.events.append(&mut later.events);
        self.rows += later.rows;
        self.bytes += later.bytes;
    }
}

/// What a version wrote and made for a batch, while another one is tried.
pub struct Aside(Option<(Layer, Made)>);

/// One plugin's state during one batch (or tick). The default one has no state: every call fails.
#[derive(Default)]
pub struct Session(Option<Open>);

struct Open {
    store: Arc<dyn StateStore>,
    plugin: Arc<str>,
    /// Stream of the events that it makes.
    stream: u64,
    bytes_max: u64,
    now_ns: i64,
    hasher: RandomState,
    /// Of batches before this one that go into the same commit.
    sealed: Layer,
    sealed_events: Made,
    /// Of attempts that succeeded.
    kept: Layer,
    kept_events: Made,
    /// Of the present attempt.
    staged: Layer,
    staged_events: Made,
    /// Why the present attempt may not count.
    over: Option<String>,
    /// Why an attempt that was to count did not.
    refused: Option<String>,
    host: StateWrites,
}

impl Session {
    /// A session of a plugin with this name in this pipeline. `bytes_max` bounds what it may remember in all.
    pub fn new(
        store: Arc<dyn StateStore>,
        pipeline: &str,
        plugin: &Arc<str>,
        bytes_max: u64,
        now_ns: i64,
    ) -> Session {
        Session(Some(Open {
            store,
            stream: stream_of(pipeline, plugin),
            bytes_max,
            now_ns,
            hasher: RandomState::new(),
            sealed: Layer::new(plugin),
            sealed_events: Made::default(),
            kept: Layer::new(plugin),
            kept_events: Made::default(),
            staged: Layer::new(plugin),
            staged_events: Made::default(),
            over: None,
            refused: None,
            host: StateWrites::new(format!("{HOST_PREFIX}{plugin}").into()),
            plugin: plugin.clone(),
        }))
    }

    fn open(&mut self) -> Result<&mut Open, String> {
        self.0.as_mut().ok_or_else(|| "there is no state here".to_owned())
    }

    /// The time of this batch, nanoseconds since the Unix epoch.
    pub fn now_ns(&self) -> i64 {
        self.0.as_ref().map(|open| open.now_ns).unwrap_or_default()
    }

    /// Whether the present attempt may count. `Err`: what it made is over a limit, together with what was made before it for the same
    /// commit.
    pub fn fits(&self) -> Result<(), String> {
        match self.0.as_ref().and_then(|open| open.over.clone()) {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    /// The attempt succeeded: what it wrote belongs to the batch. Nothing of one that does not fit ([`Session::fits`]).
    pub fn accept(&mut self) {
        let Some(open) = &mut self.0 else { return };
        if let Some(reason) = open.over.take() {
            open.refused = Some(reason);
            return self.reject();
        }
        let staged = std::mem::replace(&mut open.staged, Layer::new(&open.plugin));
        open.kept.lay_over(staged, &open.hasher);
        open.kept_events.append(std::mem::take(&mut open.staged_events));
    }

    /// Why an attempt of the batch that was to count did not: the batch is not what it seems.
    pub(crate) fn refused(&self) -> Option<String> {
        self.0.as_ref().and_then(|open| open.refused.clone())
    }

    /// The attempt failed: it has written nothing.
    pub fn reject(&mut self) {
        let Some(open) = &mut self.0 else { return };
        if !open.staged.writes.is_empty() {
            open.staged = Layer::new(&open.plugin);
        }
        (open.staged_events, open.over) = (Made::default(), None);
    }

    /// The batch is done: what it wrote stays, whatever becomes of the next one.
    pub fn seal(&mut self) {
        let Some(open) = &mut self.0 else { return };
        let kept = std::mem::replace(&mut open.kept, Layer::new(&open.plugin));
        open.sealed.lay_over(kept, &open.hasher);
        open.sealed_events.append(std::mem::take(&mut open.kept_events));
    }

    /// What was made of the batch is thrown away: nothing of it is written.
    pub fn abandon(&mut self) {
        let Some(open) = &mut self.0 else { return };
        (open.staged, open.kept) = (Layer::new(&open.plugin), Layer::new(&open.plugin));
        (open.staged_events, open.kept_events) = (Made::default(), Made::default());
        (open.over, open.refused) = (None, None);
    }

    /// What was made of the batch is put away: the batch begins anew.
    pub fn set_aside(&mut self) -> Aside {
        let aside = self.0.as_mut().map(|open| {
            let kept = std::mem::replace(&mut open.kept, Layer::new(&open.plugin));
            (kept, std::mem::take(&mut open.kept_events))
        });
        self.abandon();
        Aside(aside)
    }

    /// What was put away counts, and not what was made of the batch since.
    pub fn take_back(&mut self, aside: Aside) {
        self.abandon();
        if let (Some(open), Some((kept, events))) = (&mut self.0, aside.0) {
            (open.kept, open.kept_events) = (kept, events);
        }
    }

    /// The values of keys, in their order; `limit` bounds the bytes of the answer.
    pub fn get_many(&mut self, keys: &ByteColumn<'_>, limit: u64) -> Result<Values, String> {
        let open = self.open()?;
        check_keys(keys)?;
        let mut values = Values { present: vec![0; keys.len().div_ceil(8)], ..Values::default() };
        values.offsets.reserve((keys.len() + 1) * 4);
        push_offset(&mut values.offsets, 0);
        let mut is_over = false;
        open.each(keys, &mut |index, value| {
            if let Some(value) = value.filter(|_| !is_over) {
                set_bit(&mut values.present, index);
                values.data.extend_from_slice(value);
                is_over = values.data.len() as u64 > limit;
            }
            push_offset(&mut values.offsets, values.data.len());
        });
        match is_over {
            true => Err(format!(
                "the values of these keys have more than {limit} bytes (`limits.host_call_bytes`)"
            )),
            false => Ok(values),
        }
    }

    /// Sets keys to values.
    pub fn put_many(
        &mut self,
        keys: &ByteColumn<'_>,
        values: &ByteColumn<'_>,
        ttl_ms: Option<u64>,
    ) -> Result<(), String> {
        let open = self.open()?;
        check_keys(keys)?;
        check_values(keys, Some(values))?;
        let sizes = (0..keys.len()).map(|row| state_bytes(keys.row(row), values.row(row))).sum();
        open.check_room(sizes)?;
        let op = |row| StateOp { key: keys.row(row), value: Some(values.row(row)), expiry: None };
        open.check_writes((0..keys.len()).map(|row| write_bytes(op(row))).sum())?;
        let expiry = open.expiry(ttl_ms);
        for row in 0..keys.len() {
            let op = StateOp { key: keys.row(row), value: Some(values.row(row)), expiry };
            open.staged.put(&open.hasher, op);
        }
        Ok(())
    }

    /// Sets each key that has no value yet; one bit per key says whether it was set.
    pub fn insert_if_absent(
        &mut self,
        keys: &ByteColumn<'_>,
        values: Option<&ByteColumn<'_>>,
        ttl_ms: Option<u64>,
    ) -> Result<Vec<u8>, String> {
        let open = self.open()?;
        check_keys(keys)?;
        check_values(keys, values)?;
        let mut absent = vec![0; keys.len().div_ceil(8)];
        open.each(keys, &mut |index, value| {
            if value.is_none() {
                set_bit(&mut absent, index);
            }
        });
        let value_of = |row| values.map(|values| values.row(row)).unwrap_or_default();
        let rows = || (0..keys.len()).filter(|row| bit(&absent, *row));
        open.check_room(rows().map(|row| state_bytes(keys.row(row), value_of(row))).sum())?;
        let op = |row| StateOp { key: keys.row(row), value: Some(value_of(row)), expiry: None };
        open.check_writes(rows().map(|row| write_bytes(op(row))).sum())?;
        let expiry = open.expiry(ttl_ms);
        let mut set = vec![0; absent.len()];
        for row in rows() {
            let key = keys.row(row);
            // Of equal keys in this column the first is set.
            if open.staged.get(&open.hasher, key).is_none_or(|op| op.value.is_none()) {
                set_bit(&mut set, row);
                open.staged.put(&open.hasher, StateOp { key, value: Some(value_of(row)), expiry });
            }
        }
        Ok(set)
    }

    /// Forgets keys.
    pub fn remove_many(&mut self, keys: &ByteColumn<'_>) -> Result<(), String> {
        let open = self.open()?;
        check_keys(keys)?;
        let op = |row| StateOp { key: keys.row(row), value: None, expiry: None };
        open.check_writes((0..keys.len()).map(|row| write_bytes(op(row))).sum())?;
        for row in 0..keys.len() {
            open.staged.put(&open.hasher, op(row));
        }
        Ok(())
    }

    /// Keys that begin with `prefix` and come after `after`, at most `limit` of them and at most about `bytes` bytes:
    /// there may be more when there are fewer than `limit`, but at least one if there is one.
    pub fn scan(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: u32,
        bytes: u64,
    ) -> Result<Entries, String> {
        Ok(self.open()?.scan(prefix, after, limit as usize, bytes))
    }

    /// The plugin made events of its own. Past a limit they are not kept: the attempt does not count ([`Session::fits`]).
    pub fn emit(&mut self, events: Emitted) {
        if let Some(open) = &mut self.0
            && !events.is_empty()
        {
            let made = Made::of(events);
            match open.check_made(&made) {
                Ok(()) => open.staged_events.append(made),
                Err(reason) => open.over = Some(reason),
            }
        }
    }

    /// The version that wrote the state last: hash, and its own version.
    pub fn writer(&self) -> Option<(String, String)> {
        let bytes = self.0.as_ref()?.host_value(WRITER)?;
        let text = String::from_utf8(bytes).ok()?;
        text.split_once('\n').map(|(hash, version)| (hash.to_owned(), version.to_owned()))
    }

    /// This version writes the state from now on.
    pub fn set_writer(&mut self, hash: &str, version: &str) {
        if let Some(open) = &mut self.0 {
            let value = format!("{hash}\n{version}");
            open.host.push(StateOp { key: WRITER, value: Some(value.as_bytes()), expiry: None });
        }
    }

    /// The events that the plugin made in batches that are sealed, with identities.
    pub fn take_events(&mut self) -> Vec<Batch> {
        let Some(open) = &mut self.0 else { return Vec::new() };
        let events = std::mem::take(&mut open.sealed_events.events);
        let rows: u64 = events.iter().map(|batch| batch.rows() as u64).sum();
        if rows == 0 {
            return Vec::new();
        }
        let before = open.host_value(EMITTED).and_then(|bytes| bytes.try_into().ok().map(u64::from_le_bytes));
        let mut next = before.unwrap_or_default();
        let value = (next + rows).to_le_bytes();
        open.host.push(StateOp { key: EMITTED, value: Some(&value), expiry: None });
        let stream = open.stream;
        let identified = |batch: Batch| {
            let first = next;
            next += batch.rows() as u64;
            batch.identified(Identity { stream, position: first })
        };
        events.into_iter().map(identified).collect()
    }

    /// What goes into the commit: of batches that are sealed.
    pub fn into_writes(self) -> Vec<StateWrites> {
        let Some(open) = self.0 else { return Vec::new() };
        [open.sealed.writes, open.host].into_iter().filter(|writes| !writes.is_empty()).collect()
    }
}

impl Open {
    fn staged_op(&self, key: &[u8]) -> Option<StateOp<'_>> {
        let layers = [&self.staged, &self.kept, &self.sealed];
        layers.into_iter().find_map(|layer| layer.get(&self.hasher, key))
    }

    /// All writes so far, the later ones behind.
    fn ops(&self) -> impl Iterator<Item = StateOp<'_>> {
        [&self.sealed, &self.kept, &self.staged].into_iter().flat_map(Layer::ops)
    }

    fn each(&self, keys: &ByteColumn<'_>, each: &mut dyn FnMut(usize, Option<&[u8]>)) {
        self.store.get_many(&self.plugin, keys, self.now_ns, &mut |index, stored| match self
            .staged_op(keys.row(index))
        {
            Some(op) => each(index, op.value),
            None => each(index, stored),
        });
    }

    fn expiry(&self, ttl_ms: Option<u64>) -> Option<i64> {
        let ttl_ns = ttl_ms.map(|ttl| i64::try_from(ttl.saturating_mul(1_000_000)).unwrap_or(i64::MAX));
        // The largest number means that it never expires.
        ttl_ns.map(|ttl| self.now_ns.saturating_add(ttl).min(i64::MAX - 1))
    }

    /// Whether so many more bytes may be remembered.
    fn check_room(&self, more: u64) -> Result<(), String> {
        let roughly =
            |now: u64| now + self.sealed.bytes + self.kept.bytes + self.staged.bytes + more <= self.bytes_max;
        if roughly(self.store.size(&self.plugin).bytes) {
            return Ok(());
        }
        self.store.sweep(&self.plugin, self.now_ns);
        let before = self.store.size(&self.plugin).bytes;
        if roughly(before) || before + self.growth() + more <= self.bytes_max {
            return Ok(());
        }
        Err(format!(
            "it would remember more than its limit of {} bytes: let it forget sooner, or raise `limits.state`",
            self.bytes_max
        ))
    }

    /// Whether so many more bytes may be written for one commit.
    fn check_writes(&self, more: usize) -> Result<(), String> {
        let layers = [&self.sealed, &self.kept, &self.staged];
        let all = layers.into_iter().map(Layer::newest_bytes).sum::<u64>() + more as u64;
        let max = limits::STATE_WRITES_BYTES_MAX;
        match all > max {
            true => Err(format!("it would write {all} bytes of state for one commit, more than {max}")),
            false => Ok(()),
        }
    }

    /// Whether these events may be made as well for one commit.
    fn check_made(&self, more: &Made) -> Result<(), String> {
        let all = [&self.sealed_events, &self.kept_events, &self.staged_events, more];
        let rows: u64 = all.iter().map(|made| made.rows).sum();
        let bytes: u64 = all.iter().map(|made| made.bytes).sum();
        match rows > limits::EMITTED_ROWS_MAX || bytes > limits::EMITTED_BYTES_MAX {
            true => Err(format!(
                "it made {rows} events of its own with {bytes} bytes for one commit: {} with {} bytes are the most",
                limits::EMITTED_ROWS_MAX,
                limits::EMITTED_BYTES_MAX
            )),
            false => Ok(()),
        }
    }

    /// What the writes so far add: those that replace a key count only for what they are larger.
    fn growth(&self) -> u64 {
        let mut newest: BTreeMap<&[u8], u64> = BTreeMap::new();
        for op in self.ops() {
            newest.insert(op.key, op.value.map(|value| state_bytes(op.key, value)).unwrap_or_default());
        }
        let (mut offsets, mut data) = (vec![0; 4], Vec::new());
        for key in newest.keys() {
            data.extend_from_slice(key);
            push_offset(&mut offsets, data.len());
        }
        let Some(keys) = ByteColumn::new(&offsets, &data) else { return 0 };
        let mut before = 0;
        self.store.get_many(&self.plugin, &keys, self.now_ns, &mut |index, value| {
            before += value.map(|value| state_bytes(keys.row(index), value)).unwrap_or_default();
        });
        newest.values().sum::<u64>().saturating_sub(before)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize, bytes: u64) -> Entries {
        let mut own: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        let is_wanted = |key: &[u8]| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        for op in self.ops().filter(|op| is_wanted(op.key)) {
            own.insert(op.key, op.value);
        }
        let mut own = own.into_iter().peekable();
        let mut out = Out::new(limit, bytes);
        self.store.scan(&self.plugin, prefix, after, self.now_ns, &mut |key, value| {
            while let Some((before, value)) = own.next_if(|(own, _)| *own < key) {
                out.push(before, value);
            }
            match own.next_if(|(own, _)| *own == key) {
                Some((key, value)) => out.push(key, value),
                None => out.push(key, Some(value)),
            }
            !out.is_full()
        });
        own.for_each(|(key, value)| out.push(key, value));
        out.entries
    }

    fn host_value(&self, key: &[u8]) -> Option<Vec<u8>> {
        let written = self.host.iter().filter(|op| op.key == key).last();
        if let Some(op) = written {
            return op.value.map(<[u8]>::to_vec);
        }
        let offsets: Vec<u8> = [0, key.len() as u32].iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let mut found = None;
        let keys = ByteColumn::new(&offsets, key)?;
        self.store.get_many(self.host.plugin(), &keys, self.now_ns, &mut |_, value| {
            found = value.map(<[u8]>::to_vec);
        });
        found
    }
}

/// Entries that a scan gathers.
struct Out {
    entries: Entries,
    left: usize,
    bytes_max: u64,
}

impl Out {
    fn new(limit: usize, bytes_max: u64) -> Out {
        let mut entries = Entries::default();
        push_offset(&mut entries.keys.0, 0);
        push_offset(&mut entries.values.0, 0);
        Out { entries, left: limit.min(limits::STATE_SCAN_MAX), bytes_max }
    }

    fn is_full(&self) -> bool {
        self.left == 0 || (self.entries.keys.1.len() + self.entries.values.1.len()) as u64 > self.bytes_max
    }

    fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Some(value) = value.filter(|_| !self.is_full()) else { return };
        self.left -= 1;
        for ((offsets, data), bytes) in [(&mut self.entries.keys, key), (&mut self.entries.values, value)] {
            data.extend_from_slice(bytes);
            push_offset(offsets, data.len());
        }
    }
}

/// The stream of what a plugin emits: FNV-1a over its names, so that it is the same for ever.
fn stream_of(pipeline: &str, plugin: &str) -> u64 {
    let names = ["plugin", "\0", pipeline, "\0", plugin];
    let bytes = names.iter().flat_map(|name| name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn check_keys(keys: &ByteColumn<'_>) -> Result<(), String> {
    let max = limits::STATE_KEY_BYTES_MAX;
    let is_wrong = |row: &usize| keys.row(*row).is_empty() || keys.row(*row).len() > max;
    match (0..keys.len()).find(is_wrong) {
        Some(row) => Err(format!("key {row} has {} bytes: a key has 1 to {max}", keys.row(row).len())),
        None => Ok(()),
    }
}

fn check_values(keys: &ByteColumn<'_>, values: Option<&ByteColumn<'_>>) -> Result<(), String> {
    let Some(values) = values else { return Ok(()) };
    if values.len() != keys.len() {
        return Err(format!("{} values for {} keys", values.len(), keys.len()));
    }
    let max = limits::STATE_VALUE_BYTES_MAX;
    match (0..values.len()).find(|row| values.row(*row).len() > max) {
        Some(row) => {
            Err(format!("value {row} has {} bytes, a value has at most {max}", values.row(row).len()))
        }
        None => Ok(()),
    }
}

fn push_offset(offsets: &mut Vec<u8>, offset: usize) {
    offsets.extend_from_slice(&(offset as u32).to_le_bytes());
}

fn bit(bits: &[u8], index: usize) -> bool {
    bits.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}

fn set_bit(bits: &mut [u8], index: usize) {
    if let Some(byte) = bits.get_mut(index / 8) {
        *byte |= 1 << (index % 8);
    }
}
