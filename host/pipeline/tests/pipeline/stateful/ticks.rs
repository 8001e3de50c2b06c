//! The end of the ticks: what the last one made is there for whoever ends behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flumen_journal::{
    ChannelId, Commit, CommitError, Journal, JournalStatus, Reader, ReaderId, StateStore, Ticket,
};
use flumen_pipeline::chain::{Link, Links};
use flumen_pipeline::quarantine;
use flumen_pipeline::selector::PresentSelectors;
use flumen_pipeline::source::Wake;
use flumen_pipeline::state::Session;
use flumen_pipeline::stateful::{Stateful, TickTarget, run_ticks};
use parking_lot::Mutex;

use super::{Tick, Version, counter, remembering, set, with_state, world};

/// A journal that counts its commits, and the outcomes that somebody waited for.
struct Watched {
    journal: Arc<dyn Journal>,
    handed_in: AtomicU64,
    answered: Arc<AtomicU64>,
}

struct WatchedTicket {
    ticket: Box<dyn Ticket>,
    answered: Arc<AtomicU64>,
}

impl Ticket for WatchedTicket {
    fn wait(&self, timeout: Option<Duration>) -> Option<Result<u64, CommitError>> {
        let outcome = self.ticket.wait(timeout)?;
        self.answered.fetch_add(1, Ordering::AcqRel);
        Some(outcome)
    }
}

impl Journal for Watched {
    fn channel(&self, name: &str) -> Option<ChannelId> {
        self.journal.channel(name)
    }

    fn reader_id(&self, channel: ChannelId, reader: &str) -> Option<ReaderId> {
        self.journal.reader_id(channel, reader)
    }

    fn commit(&self, commit: Commit, deadline: Option<Instant>) -> Result<Box<dyn Ticket>, CommitError> {
        let ticket = self.journal.commit(commit, deadline)?;
        self.handed_in.fetch_add(1, Ordering::AcqRel);
        Ok(Box::new(WatchedTicket { ticket, answered: self.answered.clone() }))
    }

    fn position(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.journal.position(key)
    }

    fn positions(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.journal.positions(prefix)
    }

    fn state(&self) -> Option<Arc<dyn StateStore>> {
        self.journal.state()
    }

    fn open_reader(&self, channel: ChannelId, reader: ReaderId) -> Box<dyn Reader> {
        self.journal.open_reader(channel, reader)
    }

    fn status(&self) -> JournalStatus {
        self.journal.status()
    }

    fn close(&self) -> Result<(), CommitError> {
        self.journal.close()
    }
}

/// A sink that is told to finish ends when it finds nothing more. It is told when the ticks have ended: what the last one made, and is not
/// durable yet, would stay in the channel.
#[test]
fn ticks_end_when_what_they_made_is_durable() {
    let world = world();
    let journal: Arc<dyn Journal> = world.open_journal();
    let wake = Wake::default();
    // The pipeline stops in the middle of a tick.
    let stops = wake.clone();
    let tick: Tick = Box::new(move |session: &mut Session| {
        set(session, "count", 1);
        stops.stop();
        Ok(())
    });
    let version = Version { tick: Some(tick), ..counter("c1", |_, _| Ok(())) };
    let link = Link::new(remembering("counter", version), &with_state("counter"));
    let links: Links = Arc::new(vec![Arc::new(link)]);
    let stateful = Stateful::new("test", journal.state());
    stateful.exchange(&links, Duration::ZERO, || {}).unwrap();

    let quarantine = journal.channel(quarantine::CHANNEL).unwrap();
    let watched = Arc::new(Watched { journal, handed_in: AtomicU64::new(0), answered: Arc::default() });
    let plan = Arc::new(Mutex::new(Arc::new(world.plan.clone())));
    let selectors = PresentSelectors::new(plan, watched.clone());
    run_ticks(&stateful, &TickTarget { journal: watched.clone(), selectors, quarantine }, &wake).unwrap();
    let counts = (watched.handed_in.load(Ordering::Acquire), watched.answered.load(Ordering::Acquire));
    assert_eq!(counts, (1, 1));
}
