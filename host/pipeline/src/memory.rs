//! The gate of the agent's memory budget: while the process has more memory than it may have, its sources wait.
//!
//! Somebody else looks at the memory and says what it is ([`MemoryGate::look`]); a source that hands a batch over asks the gate, which is
//! one relaxed load. It waits where it waits for a full channel, so nothing is lost or dropped, and a consumer stays in its group. Sinks,
//! acknowledgements, ticks of plugins and replays never ask: what frees memory goes on.
//!
//! **There is always an end.** A source waits for what can become free by that: its batches on their way to the journal, and the events
//! that its pipeline's channels have in memory when it begins to wait, which go when sinks acknowledge them; not for what others put there
//! meanwhile, and not for a spillable channel whose memory is full, since what comes then goes to its file. When all of that is gone, waiting longer frees nothing, whatever else takes the memory (another pipeline, plugins, the program
//! itself). Then the source goes on, one batch at a time, each [`crate::limits::MEMORY_LOOK`] or more behind the one before, and
//! [`MemoryGate::passed`] counts them. So the process stays over its budget by what it cannot free, and by one batch for each source.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flumen_journal::{JournalStatus, MemoryFigures};
use parking_lot::{Condvar, Mutex};

use crate::limits;

/// See the module. One for all pipelines of a process.
#[derive(Debug, Default)]
pub struct MemoryGate {
    is_held: AtomicBool,
    times_held: AtomicU64,
    passed: AtomicU64,
    /// Taken to change `is_held`: who is about to wait does not miss it.
    turn: Mutex<()>,
    changed: Condvar,
}

/// What a look at the memory has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryChange {
    /// Sources wait from now on.
    Held,
    /// Sources go on.
    Released,
}

/// Below how many bytes sources go on: further down than where they were held, or each batch would hold them again.
pub fn release_bytes(max_bytes: u64) -> u64 {
    max_bytes - max_bytes / limits::MEMORY_RELEASE_PART
}

impl MemoryGate {
    /// Whether sources wait.
    pub fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// How often they began to.
    pub fn times_held(&self) -> u64 {
        self.times_held.load(Ordering::Relaxed)
    }

    /// Batches that went through while sources waited, because waiting would not have freed anything.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// The process has so much memory, and may have so much.
    pub fn look(&self, bytes: u64, max_bytes: u64) -> Option<MemoryChange> {
        let mut change = None;
        {
            let _turn = self.turn.lock();
            let was_held = self.is_held();
            let is_held = bytes > if was_held { release_bytes(max_bytes) } else { max_bytes };
            if is_held != was_held {
                self.is_held.store(is_held, Ordering::Relaxed);
                self.times_held.fetch_add(u64::from(is_held), Ordering::Relaxed);
                change = Some(if is_held { MemoryChange::Held } else { MemoryChange::Released });
            }
        }
        if change == Some(MemoryChange::Released) {
            self.changed.notify_all();
        }
        change
    }

    /// Waits until sources go on, but not for longer than this.
    pub(crate) fn wait(&self, timeout: Duration) {
        let mut turn = self.turn.lock();
        if self.is_held() {
            self.changed.wait_for(&mut turn, timeout);
        }
    }

    /// A batch goes through all the same.
    pub(crate) fn pass(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }
}

/// The events that channels had in memory when a source began to wait: how far each has to be acknowledged until they are gone.
pub(crate) struct InMemory(Vec<(String, u64)>);

impl InMemory {
    /// Of a journal as it is now.
    pub fn of(status: &JournalStatus) -> InMemory {
        let is_in_memory = |name: &String| status.memory.iter().any(|figures| figures.channel == *name);
        let channels = status.channels.iter().filter(|channel| is_in_memory(&channel.name));
        InMemory(channels.map(|channel| (channel.name.clone(), channel.head)).collect())
    }

    /// Whether they are gone, now that the journal is like this. While a failover in memory is in use its numbers are not those of the
    /// channel: it has to be empty. What overflows into a file takes no memory: sinks that stand still hold nobody there.
    pub fn is_gone(&self, status: &JournalStatus) -> bool {
        let is_acknowledged = |name: &str| {
            let head = self.0.iter().find(|(known, _)| known == name).map(|(_, head)| *head);
            let channel = status.channels.iter().find(|channel| channel.name == name);
            head.zip(channel).is_some_and(|(head, channel)| {
                channel.readers.iter().all(|(_, acknowledged)| *acknowledged >= head)
            })
        };
        let is_away = status.is_away();
        let is_gone =
            |it: &MemoryFigures| it.bytes == 0 || it.overflows || (!is_away && is_acknowledged(&it.channel));
        status.memory.iter().all(is_gone)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flumen_journal::ChannelStatus;

    use super::*;

    const MAX: u64 = 1_000;

    #[test]
    fn it_holds_above_the_budget_and_releases_below_nine_tenths_of_it() {
        let gate = MemoryGate::default();
        assert_eq!(gate.look(MAX, MAX), None, "the budget may be used up");
        assert_eq!(gate.look(MAX + 1, MAX), Some(MemoryChange::Held));
        assert_eq!((gate.look(MAX + 1, MAX), gate.is_held()), (None, true), "told once");
        for bytes in [MAX, MAX - 50, 901] {
            assert_eq!((gate.look(bytes, MAX), gate.is_held()), (None, true), "{bytes}");
        }
        assert_eq!(gate.look(900, MAX), Some(MemoryChange::Released));
        assert_eq!((gate.look(MAX, MAX), gate.is_held()), (None, false), "a little more does not hold again");
        assert_eq!(gate.look(MAX + 1, MAX), Some(MemoryChange::Held));
        assert_eq!((gate.times_held(), gate.passed()), (2, 0));
        // The budget was taken away.
        assert_eq!(gate.look(MAX + 1, u64::MAX), Some(MemoryChange::Released));
    }

    #[test]
    fn who_waits_goes_on_when_it_is_released() {
        let gate = Arc::new(MemoryGate::default());
        gate.look(MAX + 1, MAX);
        let waiting = gate.clone();
        // Without the word this takes an hour, whichever of the two is first.
        let thread = std::thread::spawn(move || waiting.wait(Duration::from_secs(3_600)));
        gate.look(0, MAX);
        thread.join().unwrap();
        gate.wait(Duration::from_secs(3_600));
    }

    /// A journal with a channel in memory and one on disk that nobody reads to its end.
    fn journal(head: u64, acknowledged: &[u64], bytes: u64) -> JournalStatus {
        let channel = |name: &str, head, acknowledged: &[u64]| ChannelStatus {
            name: name.into(),
            head,
            events: 0,
            bytes: 0,
            capacity_events: 0,
            capacity_bytes: 0,
            oldest_unacknowledged_s: None,
            readers: acknowledged.iter().map(|cursor| ("reader".to_owned(), *cursor)).collect(),
        };
        let figures = MemoryFigures { channel: "main".into(), bytes, ..MemoryFigures::default() };
        JournalStatus {
            channels: vec![channel("main", head, acknowledged), channel("quarantine", 900, &[0])],
            memory: vec![figures],
            ..JournalStatus::default()
        }
    }

    #[test]
    fn what_comes_meanwhile_is_not_waited_for() {
        let in_memory = InMemory::of(&journal(100, &[40, 60], 1_000));
        assert!(!in_memory.is_gone(&journal(100, &[40, 60], 1_000)));
        assert!(!in_memory.is_gone(&journal(150, &[99, 150], 600)), "one has not had all of them");
        assert!(in_memory.is_gone(&journal(150, &[100, 150], 500)), "others put what is there now");
        assert!(in_memory.is_gone(&journal(100, &[0, 0], 0)), "a spillable channel may have them on disk");
        let mut overflows = journal(100, &[0, 0], 1_000);
        overflows.memory[0].overflows = true;
        assert!(in_memory.is_gone(&overflows), "what is put goes to its file");
        let away = JournalStatus { failover: Some("memory".into()), ..journal(100, &[100, 100], 10) };
        assert!(!in_memory.is_gone(&away), "what is in the failover has other numbers");
        assert!(InMemory::of(&JournalStatus::default()).is_gone(&JournalStatus::default()));
    }
}
