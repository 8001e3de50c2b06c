//! A primary that acknowledges late.

use super::*;
use crate::failover::state::NUMBER_ACKED;

const SECOND: ReaderId = ReaderId(1);

/// A world in which nothing is taken but what the test takes.
fn quiet(fail_after: u32) -> World {
    let mut world = World::new(PrimaryKind::SourceBacked, SecondaryKind::File, fail_after);
    world.is_eager = false;
    world
}

/// The primary's disk fails, and an acknowledgement finds out; its ticket.
pub(super) fn kill_disk(world: &mut World) -> Box<dyn Ticket> {
    let ack = world.deliver().unwrap();
    break_disk(&world.primary, EIO);
    world.journal().commit(ack, None).unwrap()
}

/// What its sink has is void, and it is told.
pub(super) fn wait_moved(world: &mut World) {
    world.wait("what its sink has is void", |world| match main_reader(world).next(Duration::ZERO) {
        Err(ReadError::Moved(_)) => true,
        other => {
            assert!(other.unwrap().is_none(), "nothing is handed out that would be undone");
            false
        }
    });
}

fn main_reader(world: &mut World) -> &mut Box<dyn Reader> {
    world.reader.as_mut().unwrap()
}

/// A step of the way back waits for its sink, with so many events.
pub(super) fn wait_step(world: &mut World, place: Place, events: u64) {
    world.wait("a step", |world| {
        let state = world.journal().shared_for_tests().state.lock();
        let journal = state.alive().map(|open| open.journal.clone());
        state.place == place && journal.is_some_and(|it| it.status().channels[0].events == events)
    });
}

fn is_refused(outcome: Option<Result<u64, CommitError>>) -> bool {
    matches!(outcome, Some(Err(CommitError::Refused(_))))
}

/// Delivered and not acknowledged, acknowledged and under way, handed in later: all of it is void, and comes once.
#[test]
fn what_a_sink_had_of_a_disk_that_failed_is_undone_and_comes_once() {
    let mut world = quiet(PATIENT);
    assert!(world.journal().acknowledges_late());
    (0..5).for_each(|_| world.put(0, 10));
    assert!(world.take(1));
    world.wait("its ticket", |world| {
        world.settle();
        world.durable[0] == 10
    });
    let primary = world.journal().shared_for_tests().state.lock().primary.clone().unwrap().journal;
    assert!(primary.positions(NUMBER_ACKED).is_empty(), "a promise is exactly what its commit is");
    drop(primary);
    let first = world.deliver().unwrap();
    let second = world.deliver().unwrap();
    break_disk(&world.primary, EIO);
    let under_way = world.journal().commit(first, None).unwrap();
    world.wait_place("file");
    assert!(!world.journal().takes_acknowledgements());
    assert!(world.deliver().is_none(), "it would be undone");
    let held = world.journal().commit(second.clone(), None).unwrap();
    world.put(1, 10);
    let put = world.next;
    world.wait("durable in the secondary", |world| {
        world.settle();
        world.durable == put
    });
    mend(&world.primary);
    assert!(is_refused(under_way.wait(Some(LIMIT))));
    assert!(is_refused(held.wait(Some(LIMIT))));
    let stale = world.journal().commit(second, None);
    assert!(matches!(stale.err(), Some(CommitError::Refused(_))), "it would acknowledge other events");
    wait_moved(&mut world);
    let again = main_reader(&mut world).next(Duration::ZERO);
    assert!(matches!(again, Err(ReadError::Io { .. })), "it is told once, and has to go back");
    assert_eq!(world.out.len(), 30);
    world.recover();
    assert_eq!(world.out.len(), 10, "the journal says what counts");
    world.is_eager = true;
    world.wait_place("primary");
    world.check();
    world.crash(1);
    world.open().unwrap();
    world.recover();
    world.check();
}

/// A full disk is not dead: its sinks go on with what is withheld, which is in the secondary too, and comes once.
#[test]
fn a_full_disk_holds_up_no_sink() {
    // So many that a thread that stands still for a moment is no failure.
    let mut world = quiet(100);
    (0..6).for_each(|_| world.put(0, 10));
    world.primary.faults(|faults| faults.capacity = Some(0));
    world.wait_place("file");
    world.put(1, 10);
    let put = world.next;
    world.wait("durable in the secondary", |world| {
        world.settle();
        world.durable == put
    });
    assert!(world.take(3), "what is withheld is delivered");
    assert_eq!(world.out.len(), 30);
    {
        let shared = world.journal().shared_for_tests();
        let state = shared.state.lock();
        assert!(!state.is_dead && state.generation == 1, "it stays open");
        assert!(!state.undecided.is_empty());
    }
    mend(&world.primary);
    world.wait("its probes are good", |world| !world.journal().shared_for_tests().health.is_down());
    // As long as nothing is acknowledged it is not gone back, however often that is looked at.
    let until = Instant::now() + 6 * crate::limits::FAILOVER_TICK;
    while Instant::now() < until {
        assert_eq!(world.internal_place(), Place::Away, "what is withheld is not decided");
        std::thread::yield_now();
    }
    world.is_eager = true;
    world.wait_place("primary");
    world.check();
    world.wait("it does not say for ever that it waits", |world| {
        world.journal().status().waiting_for.is_none()
    });
    world.crash(2);
    world.open().unwrap();
    world.recover();
    world.check();
}

/// A step of the way back takes as long as its sink: sources are told in their time, and everybody else goes on.
#[test]
fn a_slow_sink_on_the_way_back_keeps_nobody_else() {
    let mut world = quiet(PATIENT);
    (0..2).for_each(|_| world.put(0, 10));
    kill_disk(&mut world);
    world.wait_place("file");
    mend(&world.primary);
    wait_step(&mut world, Place::Returning, 20);
    // Not the last one: sources go on in the secondary.
    world.put(0, 5);
    wait_moved(&mut world);
    world.recover_sink();
    assert!(world.take(1));
    wait_step(&mut world, Place::Arriving, 5);
    let begin = Instant::now();
    assert!(world.finds_no_place());
    assert_eq!(world.place(), "returning");
    assert_eq!(number(world.journal().position(&source(0))), 25);
    assert_eq!(number(world.journal().position(SINK)), 20);
    assert_eq!(world.journal().positions(b"").len(), 2);
    assert!(world.journal().add_reader(MAIN, "late").is_err(), "this kind takes none");
    world.recover();
    assert!(begin.elapsed() < LIMIT / 2);
    assert_eq!(world.internal_place(), Place::Arriving);
    assert!(world.take(1));
    world.wait_place("primary");
    world.check();
}

/// A disk that fails in the middle of a step takes it back; what was moved before stays.
#[test]
fn a_step_that_a_disk_takes_with_it_is_done_again() {
    let mut world = quiet(PATIENT);
    (0..2).for_each(|_| world.put(0, 10));
    for events in [20, 25, 30] {
        kill_disk(&mut world);
        world.wait_place("file");
        mend(&world.primary);
        wait_moved(&mut world);
        world.recover_sink();
        wait_step(&mut world, Place::Returning, events);
        world.put(1, 5);
    }
    world.is_eager = true;
    world.wait_place("primary");
    world.check();
}

/// What a channel gets with one step is one batch: a step ends where that is full, however small its events are.
#[test]
fn more_small_events_than_a_batch_may_have_come_back() {
    let mut world = quiet(PATIENT);
    world.put(0, 10);
    drop(kill_disk(&mut world));
    world.wait_place("file");
    (0..3).for_each(|_| world.put_of(0, 25_000, b"x"));
    mend(&world.primary);
    world.is_eager = true;
    world.wait_place("primary");
    assert_eq!(world.journal().shared_for_tests().state.lock().generation, 2, "no step fails its journal");
    world.check();
}

/// What a sink hands in that has begun, and has read nothing, is of the opening in which it began.
#[test]
fn a_sink_that_begins_while_the_disk_is_away_acknowledges_nothing_of_the_next_opening() {
    let mut world = quiet(PATIENT);
    (0..2).for_each(|_| world.put(0, 10));
    drop(kill_disk(&mut world));
    world.wait_place("file");
    world.reader = Some(world.journal().open_reader(MAIN, OUT));
    mend(&world.primary);
    wait_step(&mut world, Place::Returning, 20);
    let ack = Ack { channel: MAIN, reader: OUT, cursor: 1 };
    let stale = world.journal().commit(Commit { acks: vec![ack], ..Commit::default() }, None);
    assert!(matches!(stale.err(), Some(CommitError::Refused(_))), "it has read none of these events");
    world.recover_sink();
    world.is_eager = true;
    world.wait_place("primary");
    world.check();
}

/// What a sink acknowledged and waits for another one is void when its successor begins: it does not come to count behind its back.
#[test]
fn what_a_sink_before_acknowledged_does_not_count_later() {
    let kinds = (PrimaryKind::SourceBacked, SecondaryKind::File);
    let mut world = World::unopened(kinds, PATIENT, CHECK_INTERVAL, &["out", "second"]);
    world.is_eager = false;
    world.open().unwrap();
    (0..2).for_each(|_| world.put(0, 10));
    let mut second = Second::new(&world);
    let fast = world.deliver().unwrap();
    assert!(main_reader(&mut world).flushes_at(1, true), "nobody has passed it");
    let fast = world.journal().commit(fast, None).unwrap();
    let slow = second.deliver().unwrap().unwrap();
    world.reader = Some(world.journal().open_reader(MAIN, OUT));
    assert!(is_refused(fast.wait(Some(LIMIT))));
    let slow = world.journal().commit(slow, None).unwrap();
    assert!(slow.wait(Some(Duration::from_millis(5))).is_none(), "it waits for the other");
    assert_eq!(world.journal().position(SINK), None);
    world.recover_sink();
    world.is_eager = true;
    world.wait("both have everything, and it counts", |world| {
        second.take(world);
        world.settle();
        world.tickets.is_empty()
    });
    world.check();
}

/// Of two sinks that acknowledge together one has, and the other finds the disk dead: neither did.
#[test]
fn two_sinks_that_meet_go_back_together() {
    let kinds = (PrimaryKind::SourceBacked, SecondaryKind::File);
    let mut world = World::unopened(kinds, PATIENT, CHECK_INTERVAL, &["out", "second"]);
    world.is_eager = false;
    world.open().unwrap();
    (0..4).for_each(|_| world.put(0, 10));
    let mut second = Second::new(&world);
    let fast = world.deliver().unwrap();
    assert!(main_reader(&mut world).flushes_at(1, true), "nobody has passed it");
    let fast = world.journal().commit(fast, None).unwrap();
    assert!(fast.wait(Some(Duration::from_millis(5))).is_none(), "it waits for the other");
    let slow = second.deliver().unwrap().unwrap();
    assert!(second.reader.flushes_at(1, false), "it is asked to come together there");
    break_disk(&world.primary, EIO);
    let slow = world.journal().commit(slow, None).unwrap();
    world.wait_place("file");
    world.put(1, 10);
    mend(&world.primary);
    assert!(is_refused(fast.wait(Some(LIMIT))));
    assert!(is_refused(slow.wait(Some(LIMIT))));
    world.is_eager = true;
    world.wait("both have everything, and it counts", |world| {
        second.take(world);
        world.settle();
        world.place() == "primary" && world.tickets.is_empty()
    });
    world.check();
    for stream in 0..2 {
        let own = second.out.iter().filter(|(of, _)| *of == stream).map(|(_, position)| *position);
        assert_eq!(own.collect::<Vec<_>>(), (0..world.next[stream as usize]).collect::<Vec<_>>());
    }
}

/// The sink `second`.
struct Second {
    reader: Box<dyn Reader>,
    out: Vec<(u64, u64)>,
}

impl Second {
    const KEY: &'static [u8] = b"sink/second";

    fn new(world: &World) -> Second {
        Second { reader: world.journal().open_reader(MAIN, SECOND), out: Vec::new() }
    }

    /// Delivers the next; its acknowledgement.
    fn deliver(&mut self) -> Result<Option<Commit>, ReadError> {
        let Some(delivery) = self.reader.next(Duration::ZERO)? else { return Ok(None) };
        let (streams, positions) = (delivery.batch.stream(), delivery.batch.position());
        self.out.extend(streams.values().iter().copied().zip(positions.values().iter().copied()));
        Ok(Some(Commit {
            acks: vec![Ack { channel: MAIN, reader: SECOND, cursor: delivery.next }],
            positions: vec![(Second::KEY.to_vec(), (self.out.len() as u64).to_le_bytes().to_vec())],
            ..Commit::default()
        }))
    }

    /// Delivers what there is; goes back if it has to.
    fn take(&mut self, world: &World) {
        loop {
            match self.deliver() {
                Ok(None) => return,
                Ok(Some(commit)) => drop(world.journal().commit(commit, None).unwrap()),
                Err(ReadError::Moved(_)) => {
                    let position = number(world.journal().position(Second::KEY));
                    self.out.truncate(usize::try_from(position).unwrap());
                    let cursor = self.reader.acknowledged();
                    self.reader.seek(cursor).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A destination decides what became of a promise whose disk failed behind it: its events are there, or come once more.
#[test]
fn a_promise_is_decided_behind_a_disk_that_failed() {
    for is_stored in [true, false] {
        let mut world = quiet(PATIENT);
        assert!(main_reader(&mut world).promises());
        (0..2).for_each(|stream| world.put(stream, 10));
        let first = world.deliver().unwrap();
        let promise = main_reader(&mut world).promise(1, &[], LIMIT).unwrap().unwrap();
        promise.ticket.wait(Some(LIMIT)).unwrap().unwrap();
        let mark = promise.mark.clone();
        drop(promise);
        break_disk(&world.primary, EIO);
        let ticket = world.journal().commit(first, None).unwrap();
        world.wait_place("file");
        let none = main_reader(&mut world).promise(1, &[], Duration::from_millis(5));
        assert!(none.unwrap().is_none(), "there is nobody to promise it, and it does not hang");
        mend(&world.primary);
        assert!(is_refused(ticket.wait(Some(LIMIT))));
        let late = main_reader(&mut world).promise(1, &[], LIMIT);
        assert!(matches!(late.err(), Some(CommitError::Refused(_))), "it was of the opening before");
        wait_moved(&mut world);
        // What counts is not known: nothing is moved, and sources go on in the secondary.
        assert!(!world.journal().shared_for_tests().state.lock().is_counted);
        assert!(!world.journal().state().unwrap().is_ready());
        world.put(1, 5);
        world.wait("well", |world| !world.journal().shared_for_tests().health.is_down());
        assert_eq!(world.internal_place(), Place::Away);
        assert_eq!(number(world.journal().position(&source(1))), 15);
        let reader = main_reader(&mut world);
        let from = match is_stored {
            true => reader.resolve(&mark).expect("its own mark"),
            false => reader.acknowledged(),
        };
        let from = from.max(reader.acknowledged());
        reader.seek(from).unwrap();
        if !is_stored {
            world.out.clear();
        }
        world.is_eager = true;
        world.wait_place("primary");
        world.check();
    }
}

/// The same of a promise of an earlier life: sources wait until it is decided, and are told what counts.
#[test]
fn a_promise_of_an_earlier_life_is_decided_before_sources_begin() {
    let mut world = quiet(PATIENT);
    world.put(0, 10);
    drop(world.deliver().unwrap());
    let promise = main_reader(&mut world).promise(1, &[], LIMIT).unwrap().unwrap();
    promise.ticket.wait(Some(LIMIT)).unwrap().unwrap();
    let mark = promise.mark.clone();
    drop(promise);
    world.crash(3);
    let journal = FailoverJournal::open(world.parts().unwrap()).unwrap();
    world.reader = Some(journal.open_reader(MAIN, OUT));
    world.journal = Some(journal.clone());
    assert!(world.finds_no_place(), "what it would follow is not known");
    let asks = std::thread::spawn(move || number(journal.position(&source(0))));
    assert_eq!(world.journal().position(SINK), None, "it does not hang on it");
    assert!(!asks.is_finished());
    let reader = main_reader(&mut world);
    let from = reader.resolve(&mark).expect("its own mark").max(reader.acknowledged());
    reader.seek(from).unwrap();
    assert_eq!(asks.join().unwrap(), 10, "the destination has it");
    world.is_eager = true;
    world.put(0, 10);
    world.check();
}

/// The disk fails as the answer is written, and nothing else is on its way to it: it is opened anew, and the destination is asked again.
#[test]
fn an_answer_that_a_disk_does_not_take_is_asked_for_again() {
    let mut world = quiet(PATIENT);
    world.put(0, 10);
    drop(world.deliver().unwrap());
    let promise = main_reader(&mut world).promise(1, &[], LIMIT).unwrap().unwrap();
    promise.ticket.wait(Some(LIMIT)).unwrap().unwrap();
    let mark = promise.mark.clone();
    drop(promise);
    world.crash(4);
    let journal = FailoverJournal::open(world.parts().unwrap()).unwrap();
    world.reader = Some(journal.open_reader(MAIN, OUT));
    world.journal = Some(journal);
    break_disk(&world.primary, EIO);
    let reader = main_reader(&mut world);
    assert_eq!(reader.resolve(&mark), None, "it cannot be put into the journal");
    assert!(matches!(reader.seek(0), Err(ReadError::Io { .. })));
    mend(&world.primary);
    world.wait("another opening", |world| {
        let state = world.journal().shared_for_tests().state.lock();
        state.generation == 2 && state.alive().is_some()
    });
    let reader = main_reader(&mut world);
    let from = reader.resolve(&mark).expect("its own mark").max(reader.acknowledged());
    reader.seek(from).unwrap();
    assert_eq!(number(world.journal().position(&source(0))), 10, "the destination has it");
    world.is_eager = true;
    world.put(0, 10);
    world.check();
}
