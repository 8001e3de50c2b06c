//! What may happen to a journal, as data that can be shrunk.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::disk::{Call, Fault};

#[derive(Debug, Clone)]
pub enum Step {
    /// Handed in; written when the committer gets a turn.
    Put {
        channels: u8,
        rows: u64,
        size: usize,
    },
    Ack {
        which: usize,
        share: u64,
    },
    Position {
        key: u8,
        value: u8,
    },
    /// Writes to the state of a plugin.
    Remember {
        plugin: u8,
        key: u8,
        count: u8,
        value: u8,
    },
    /// All of these in one commit.
    All {
        channels: u8,
        rows: u64,
        which: usize,
        share: u64,
        key: u8,
    },
    /// A reader of the first channel comes, or comes back, while the journal is open.
    Come,
    Go,
    AckLate {
        share: u64,
    },
    /// How it is written from the next opening on: compression, and the key (0: as before).
    Setting {
        compression: usize,
        key: usize,
    },
    /// The committer works until there is nothing to do, or no space.
    Work,
    /// Some deliveries of one reader.
    Read {
        which: usize,
        deliveries: u8,
    },
    /// All that was handed in is durable, and everything is compared.
    Check,
    /// Some coming calls of the disk fail.
    Fault {
        call: Call,
        skip: u32,
        times: u32,
        code: i32,
    },
    ShortWrites {
        bytes: usize,
    },
    /// The system forgets what failed syncs left in memory only: the disk's own bytes are read from now on.
    Evict {
        seed: u64,
    },
    /// Only so many bytes are free.
    Full {
        free: u64,
    },
    /// As many as one likes.
    Space,
    Close,
    /// The process ends, the machine goes on.
    Kill {
        written: bool,
    },
    /// The power goes after so many calls, and once more so many calls into the next start.
    Crash {
        power: u64,
        seed: u64,
        again: Option<(u64, u64)>,
    },
}

/// Something that happens to bytes that were durable.
#[derive(Debug, Clone)]
pub enum Hit {
    Flip {
        file: usize,
        place: u32,
        bit: u8,
    },
    Fill {
        file: usize,
        place: u32,
        bytes: usize,
        with: u8,
    },
    /// It cannot be read any more.
    Spoil {
        file: usize,
        place: u32,
    },
    Shorten {
        file: usize,
        place: u32,
    },
    Remove {
        file: usize,
    },
    /// A segment of another journal, in the place of one or beside them.
    Foreign {
        file: Option<usize>,
    },
    Slot {
        which: usize,
        place: u32,
    },
    BothSlots {
        place: u32,
    },
    StateFile {
        place: u32,
    },
}

/// How the journal ends before it is damaged.
#[derive(Debug, Clone)]
pub enum End {
    Close,
    Kill,
    Crash(u64),
}

#[derive(Debug, Clone)]
pub struct Schedule {
    pub steps: Vec<Step>,
    pub damage: Option<(End, Vec<Hit>)>,
}

fn channels() -> impl Strategy<Value = u8> {
    1u8..4
}

fn work() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (channels(), 1u64..20, 0usize..400).prop_map(|(channels, rows, size)| Step::Put { channels, rows, size }),
        4 => (0usize..3, 0u64..=100).prop_map(|(which, share)| Step::Ack { which, share }),
        2 => (0u8..4, any::<u8>()).prop_map(|(key, value)| Step::Position { key, value }),
        3 => (0u8..2, 0u8..12, 1u8..9, prop_oneof![Just(0), Just(254), any::<u8>()])
            .prop_map(|(plugin, key, count, value)| Step::Remember { plugin, key, count, value }),
        3 => (channels(), 1u64..20, 0usize..3, 0u64..=100, 0u8..4)
            .prop_map(|(channels, rows, which, share, key)| Step::All { channels, rows, which, share, key }),
        6 => Just(Step::Work),
        3 => (0usize..4, 1u8..5).prop_map(|(which, deliveries)| Step::Read { which, deliveries }),
        1 => Just(Step::Check),
    ]
}

fn late() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Come),
        1 => Just(Step::Go),
        2 => (0u64..=100).prop_map(|share| Step::AckLate { share }),
        1 => (0usize..3, 0usize..3).prop_map(|(compression, key)| Step::Setting { compression, key }),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    const CALLS: [Call; 11] = [
        Call::Write,
        Call::Sync,
        Call::SyncDir,
        Call::Create,
        Call::Rename,
        Call::Unlink,
        Call::Preallocate,
        Call::Truncate,
        Call::Read,
        Call::Open,
        Call::List,
    ];
    // EIO most often; ENOSPC in the middle of something; a file system that went read-only.
    let code = prop_oneof![4 => Just(5), 2 => Just(28), 1 => Just(30)];
    (0..CALLS.len(), 0u32..6, prop_oneof![6 => Just(1u32), 1 => 2u32..9], code).prop_map(
        |(call, skip, times, code)| {
            // Reading meets bad sectors only.
            let code = if matches!(CALLS[call], Call::Read | Call::Open | Call::List) { 5 } else { code };
            Step::Fault { call: CALLS[call], skip, times, code }
        },
    )
}

fn end() -> impl Strategy<Value = Step> {
    let again = proptest::option::weighted(0.3, (0u64..25, any::<u64>()));
    prop_oneof![
        1 => Just(Step::Close),
        1 => any::<bool>().prop_map(|written| Step::Kill { written }),
        4 => (0u64..40, any::<u64>(), again).prop_map(|(power, seed, again)| Step::Crash { power, seed, again }),
    ]
}

fn space() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u64..80_000).prop_map(|free| Step::Full { free }),
        2 => Just(Step::Space),
        1 => (1usize..3_000).prop_map(|bytes| Step::ShortWrites { bytes }),
    ]
}

fn hit() -> impl Strategy<Value = Hit> {
    let (file, place) = (0usize..64, any::<u32>());
    prop_oneof![
        6 => (file.clone(), place, 0u8..8).prop_map(|(file, place, bit)| Hit::Flip { file, place, bit }),
        2 => (file.clone(), place, 1usize..3_000, any::<u8>())
            .prop_map(|(file, place, bytes, with)| Hit::Fill { file, place, bytes, with }),
        2 => (file.clone(), place).prop_map(|(file, place)| Hit::Spoil { file, place }),
        1 => (file.clone(), place).prop_map(|(file, place)| Hit::Shorten { file, place }),
        1 => file.clone().prop_map(|file| Hit::Remove { file }),
        1 => proptest::option::of(file).prop_map(|file| Hit::Foreign { file }),
        1 => (0usize..2, place).prop_map(|(which, place)| Hit::Slot { which, place }),
        1 => place.prop_map(|place| Hit::BothSlots { place }),
        1 => place.prop_map(|place| Hit::StateFile { place }),
    ]
}

/// Crashes and faults of every kind; in one of three, damage at the end.
pub fn schedule() -> impl Strategy<Value = Schedule> {
    let evict = any::<u64>().prop_map(|seed| Step::Evict { seed });
    let step = prop_oneof![16 => work(), 2 => fault(), 2 => end(), 1 => space(), 2 => late(), 1 => evict];
    let how = prop_oneof![Just(End::Close), Just(End::Kill), any::<u64>().prop_map(End::Crash)];
    let damage = proptest::option::weighted(0.34, (how, vec(hit(), 1..3)));
    (vec(step, 1..60), damage).prop_map(|(steps, damage)| Schedule { steps, damage })
}

/// Nothing fails and nothing is full: the process ends, or the power goes.
pub fn ends() -> impl Strategy<Value = Schedule> {
    let step = prop_oneof![16 => work(), 3 => end()];
    vec(step, 1..60).prop_map(|steps| Schedule { steps, damage: None })
}

impl Step {
    pub fn is_commit(&self) -> bool {
        use Step::*;
        matches!(
            self,
            Put { .. } | Ack { .. } | AckLate { .. } | Position { .. } | Remember { .. } | All { .. }
        )
    }

    pub fn fault(&self) -> Option<Fault> {
        match *self {
            Step::Fault { call, skip, times, code } => Some(Fault { call, skip, times, code }),
            _ => None,
        }
    }
}
