//! A secondary that is not read yet when the journal is opened.

use super::*;

fn opening(kind: PrimaryKind) -> (World, Arc<Gate>) {
    let mut world = World::unopened((kind, SecondaryKind::File), PATIENT, CHECK_INTERVAL, &["out"]);
    let gate = Arc::new(Gate::default());
    world.gate = Some(gate.clone());
    open_unread(&mut world);
    (world, gate)
}

/// As [`World::open`], but nobody is asked where sources begin.
fn open_unread(world: &mut World) {
    let journal = FailoverJournal::open(world.parts().unwrap()).unwrap();
    world.reader = Some(journal.open_reader(MAIN, OUT));
    world.journal = Some(journal);
}

/// The opening waits for nobody; everybody else waits, tells so, and ends with it.
#[test]
fn a_secondary_that_is_not_read_is_waited_for() {
    for kind in [PrimaryKind::File, PrimaryKind::SourceBacked] {
        let (mut world, gate) = opening(kind);
        world.is_eager = false;
        let status = world.journal().status();
        assert_eq!(status.failover.as_deref(), Some("opening"));
        let reason = status.waiting_for.unwrap();
        assert!(reason.contains("brokers that answer") && reason.contains("not known yet"), "{reason}");
        assert!(!world.journal().is_read());
        assert!(!world.journal().state().unwrap().is_ready());
        assert!(world.finds_no_place());
        assert!(world.reader.as_mut().unwrap().next(Duration::ZERO).unwrap().is_none());
        let journal = world.journal().clone();
        let asks = [source(0), SINK.to_vec()].map(|key| {
            let journal = journal.clone();
            std::thread::spawn(move || (journal.position(&key), journal.positions(&key)))
        });
        let ack = Ack { channel: QUARANTINE, reader: KEEPER, cursor: 0 };
        let ack = journal.commit(Commit { acks: vec![ack], ..Commit::default() }, None).unwrap();
        assert!(ack.wait(Some(Duration::from_millis(20))).is_none(), "there is no primary yet");
        assert!(asks.iter().all(|asks| !asks.is_finished()));
        gate.open();
        for asks in asks {
            assert_eq!(asks.join().unwrap(), (None, Vec::new()));
        }
        ack.wait(Some(LIMIT)).unwrap().unwrap();
        world.is_eager = true;
        world.put(0, 10);
        world.check();
        assert_eq!(world.place(), "primary");
    }
}

#[test]
fn a_close_ends_an_opening() {
    let (world, _gate) = opening(PrimaryKind::File);
    let journal = world.journal().clone();
    let asks = std::thread::spawn(move || (journal.position(b"key"), journal.is_over()));
    let journal = world.journal().clone();
    let puts = std::thread::spawn(move || {
        let put = Put { channels: vec![MAIN], batch: one_event() };
        journal.commit(Commit { puts: vec![put], ..Commit::default() }, None).err()
    });
    let ack = Ack { channel: MAIN, reader: OUT, cursor: 0 };
    let ack = world.journal().commit(Commit { acks: vec![ack], ..Commit::default() }, None).unwrap();
    world.journal().close().unwrap();
    assert_eq!(asks.join().unwrap(), (None, true));
    assert!(matches!(puts.join().unwrap(), Some(CommitError::Closing)));
    assert!(matches!(ack.wait(Some(LIMIT)), Some(Err(CommitError::Closing))));
}

/// Nobody can be told at the start what is wrong with the primary: it is in `status`, and is tried again.
#[test]
fn an_error_of_the_primary_is_told_and_tried_again() {
    let mut world =
        World::unopened((PrimaryKind::File, SecondaryKind::File), PATIENT, CHECK_INTERVAL, &["out"]);
    let gate = Arc::new(Gate::default());
    world.gate = Some(gate.clone());
    let list = Fault { call: Call::List, skip: 0, times: u32::MAX, code: EIO };
    world.primary.faults(|faults| faults.armed.push(list));
    open_unread(&mut world);
    gate.open();
    world.wait_reason("listing /j");
    assert_eq!(world.place(), "opening");
    assert!(world.finds_no_place());
    mend(&world.primary);
    world.wait_place("primary");
    world.put(0, 10);
    world.check();
}

/// What the last life left in it comes first: nobody begins before that is known.
#[test]
fn what_is_in_a_secondary_that_is_not_read_is_not_passed_over() {
    let mut world = World::away();
    world.put(1, 10);
    world.wait_durable();
    world.crash(8);
    mend(&world.primary);
    let gate = Arc::new(Gate::default());
    world.gate = Some(gate.clone());
    open_unread(&mut world);
    let journal = world.journal().clone();
    let asks = std::thread::spawn(move || [0, 1].map(|stream| number(journal.position(&source(stream)))));
    gate.open();
    assert_eq!(asks.join().unwrap(), [20, 10]);
    world.recover();
    world.put(1, 10);
    world.wait_place("primary");
    world.check();
}

/// A full disk is about to be left for what cannot be reached, and has room again: events go on to it, and are there once.
#[test]
fn a_primary_that_is_well_before_it_was_left_is_not_left() {
    // So many that a thread that stands still for a moment is no failure.
    let mut world = World::unopened((PrimaryKind::File, SecondaryKind::File), 100, CHECK_INTERVAL, &["out"]);
    let gate = Arc::new(Gate::default());
    gate.open();
    world.gate = Some(gate.clone());
    world.open().unwrap();
    gate.is_silent.store(true, Ordering::Release);
    world.primary.faults(|faults| faults.capacity = Some(0));
    (0..60).for_each(|_| world.put(0, 10));
    world.wait_internal(Place::Leaving);
    mend(&world.primary);
    world.wait_internal(Place::Home);
    world.wait_durable();
    world.put(0, 10);
    world.check();
    assert_eq!(world.journal().status().failovers, 0);
    gate.is_silent.store(false, Ordering::Release);
}
