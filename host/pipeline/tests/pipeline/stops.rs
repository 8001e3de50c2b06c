//! Stops within a limit.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use flumen_journal::{
    ChannelId, Commit, CommitError, Delivery, Journal, JournalStatus, Put, ReadError, Reader, ReaderId,
    Ticket,
};
use flumen_pipeline::StopOutcome;
use flumen_pipeline::deliver::{Outlet, OutletPlace};
use flumen_pipeline::source::Wake;

use crate::support::destination::Destination;
use crate::support::script::{Script, batch};
use crate::support::world::{World, plan};
use crate::support::{assert_exactly, until};

const TOTAL: u64 = 2_000;

#[test]
fn what_a_slow_sink_did_not_deliver_is_left_and_delivered_next_time() {
    let world = World::new(plan(&["one"], &[("main", 1_500)], &[("a", "main"), ("slow", "main")]));
    let (fast, slow) = (Destination::new(), Destination::new());
    // So long that the source is far ahead of it on the busiest machine.
    slow.set_pause(Duration::from_millis(100));
    let script = Script::new(1, TOTAL, 20);
    // No commit waits for room: the last flush of the slow one would let it in while the stop counts what is left.
    script.gate.store(1_400, Ordering::Release);
    let running = world.start(vec![script.make()], Vec::new(), vec![fast.sink(), slow.sink()]);
    slow.wait_for_rows(30);
    until("a long way ahead", || running.head("main") >= 1_400);
    // What is left is what the slow one has not: the fast one must not be behind it.
    fast.wait_for_rows(1_400);
    let journal = running.journal.clone();
    let outcome = running.stop_within(Duration::from_millis(100));
    let channel = journal.status().channels.swap_remove(0);
    drop(journal);
    // Everything that was delivered is flushed and acknowledged, and all the rest is counted.
    assert_eq!(outcome, StopOutcome::Left(channel.head - slow.rows() as u64));
    assert_eq!(slow.rows() as u64, channel.readers[1].1);
    assert!(channel.events > 100, "{} left", channel.events);

    slow.set_pause(Duration::ZERO);
    script.gate.store(u64::MAX, Ordering::Release);
    world.start(vec![script.make()], Vec::new(), vec![fast.sink(), slow.sink()]).finish();
    assert_exactly(&fast.records(), &[1], TOTAL, |_| true, "fast");
    assert_exactly(&slow.records(), &[1], TOTAL, |_| true, "slow");
}

#[test]
fn a_stop_does_not_wait_for_a_destination_that_is_down() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main")]));
    let destination = Destination::new();
    destination.set_down(true);
    let script = Script::new(1, TOTAL, 20);
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    crate::support::until("the channel is full", || running.head("main") >= 500);
    let begin = Instant::now();
    let outcome = running.stop_within(Duration::from_millis(200));
    assert!(begin.elapsed() < Duration::from_secs(30), "it took {:?}", begin.elapsed());
    assert!(matches!(outcome, StopOutcome::Left(500..520)), "{outcome:?}");
    assert_eq!(destination.rows(), 0);

    destination.set_down(false);
    world.start(vec![script.make()], Vec::new(), vec![destination.sink()]).finish();
    assert_exactly(&destination.records(), &[1], TOTAL, |_| true, "after the restart");
}

#[test]
fn a_waiting_source_stops_at_once() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main")]));
    let destination = Destination::new();
    let mut script = Script::new(1, 100, 20);
    script.stays = true;
    let running = world.start(vec![script.make()], Vec::new(), vec![destination.sink()]);
    destination.wait_for_rows(100);
    assert!(!running.pipeline.sources_ended());
    assert_eq!(running.stop_within(Duration::from_secs(30)), StopOutcome::Drained);
    assert_exactly(&destination.records(), &[1], 100, |_| true, "all");
}

/// A journal whose readers learn too late: what comes, comes while they return from an empty read.
struct Late {
    journal: Arc<dyn Journal>,
    finish: Arc<OnceLock<Wake>>,
    /// It has ended, and knows no position.
    is_over: bool,
}

struct LateReader {
    reader: Box<dyn Reader>,
    late: Late,
    channel: ChannelId,
}

impl Reader for LateReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Delivery>, ReadError> {
        let delivery = self.reader.next(wait)?;
        let finish = self.late.finish.get().filter(|finish| delivery.is_none() && !finish.stopping());
        if let Some(finish) = finish {
            let put = Put { channels: vec![self.channel], batch: batch(1, 0, 20) };
            let commit = Commit { puts: vec![put], ..Commit::default() };
            self.late.journal.commit(commit, None).unwrap().wait(None).unwrap().unwrap();
            finish.stop();
        }
        Ok(delivery)
    }
    fn seek(&mut self, cursor: u64) -> Result<(), ReadError> {
        self.reader.seek(cursor)
    }
    fn acknowledged(&self) -> u64 {
        self.reader.acknowledged()
    }
    fn mark(&self, cursor: u64) -> Vec<u8> {
        self.reader.mark(cursor)
    }
    fn resolve(&mut self, mark: &[u8]) -> Option<u64> {
        self.reader.resolve(mark)
    }
}

impl Journal for Late {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        self.journal.channel(name)
    }
    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        self.journal.reader_id(channel, reader)
    }
    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        self.journal.commit(commit, deadline)
    }
    fn is_over(&self) -> bool {
        self.is_over
    }
    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.journal.position(key).filter(|_| !self.is_over)
    }
    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.journal.positions(prefix)
    }
    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        let late = Late { journal: self.journal.clone(), finish: self.finish.clone(), is_over: self.is_over };
        Box::new(LateReader { reader: self.journal.open_reader(channel, reader), late, channel })
    }
    fn status(&self) -> JournalStatus {
        self.journal.status()
    }
    fn close(&self) -> Result<(), CommitError> {
        self.journal.close()
    }
}

/// The last events come, and the sink is told to finish, between its empty read and its next step.
#[test]
fn events_that_come_just_before_the_end_are_delivered() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main")]));
    let finish = Arc::new(OnceLock::new());
    let journal: Arc<dyn Journal> =
        Arc::new(Late { journal: world.open_journal(), finish: finish.clone(), is_over: false });
    let (channel, quarantine) = (journal.channel("main").unwrap(), journal.channel("quarantine").unwrap());
    let reader = journal.reader_id(channel, "a").unwrap();
    let (reader_name, member) = ("sink".into(), None);
    let place = OutletPlace { journal: journal.clone(), channel, reader, reader_name, member, quarantine };
    let destination = Destination::new();
    let outlet =
        Outlet::start("a", destination.make(), Default::default(), place, Default::default()).unwrap();
    finish.set(outlet.finish.clone()).ok().unwrap();
    until("the sink ends", || outlet.finished());
    assert_exactly(&destination.records(), &[1], 20, |_| true, "what came last");
    assert_eq!(journal.status().channels[0].events, 0);
    journal.close().unwrap();
}

/// A journal that ended before it had read its positions knows none: that is no reason to cut a destination back.
#[test]
fn a_destination_stays_as_it_is_when_the_journal_ends_before_its_positions_are_known() {
    let world = World::new(plan(&["one"], &[("main", 500)], &[("a", "main")]));
    let (destination, script) = (Destination::new(), Script::new(1, 100, 20));
    world.start(vec![script.make()], Vec::new(), vec![destination.sink()]).finish();
    let late = Late { journal: world.open_journal(), finish: Arc::new(OnceLock::new()), is_over: true };
    let journal: Arc<dyn Journal> = Arc::new(late);
    let (channel, quarantine) = (journal.channel("main").unwrap(), journal.channel("quarantine").unwrap());
    let reader = journal.reader_id(channel, "a").unwrap();
    let (reader_name, member) = ("sink".into(), None);
    let place = OutletPlace { journal: journal.clone(), channel, reader, reader_name, member, quarantine };
    let outlet =
        Outlet::start("a", destination.make(), Default::default(), place, Default::default()).unwrap();
    outlet.wake.stop();
    until("the sink ends", || outlet.finished());
    assert_exactly(&destination.records(), &[1], 100, |_| true, "what was there");
    journal.close().unwrap();
}
