//! Disks that fill and fail, on either side.

use super::*;

/// Events that waited for the full disk are in doubt, and are there once; its sinks go on meanwhile.
#[test]
fn a_full_disk_is_left_and_its_sinks_go_on() {
    for (primary, secondary) in [
        (PrimaryKind::File, SecondaryKind::File),
        (PrimaryKind::File, SecondaryKind::Memory),
        (PrimaryKind::File, SecondaryKind::Spillable),
        (PrimaryKind::Memory, SecondaryKind::File),
        (PrimaryKind::Spillable, SecondaryKind::File),
    ] {
        let mut world = World::new(primary, secondary, PATIENT);
        (0..40).for_each(|_| world.put(0, 10));
        world.check();
        (0..40).for_each(|_| world.put(1, 10));
        world.wait("durable", |world| {
            world.settle();
            world.tickets.is_empty()
        });
        world.primary.faults(|faults| faults.capacity = Some(0));
        (0..60).for_each(|_| world.put(0, 10));
        world.wait_place(secondary.word());
        (0..40).for_each(|_| world.put(1, 10));
        let put = world.next;
        world.wait("durable in the secondary", |world| {
            world.settle();
            world.durable == put
        });
        assert!(world.take(10), "what is in the primary is delivered");
        let status = world.journal().status();
        assert_eq!(status.failovers, 1);
        assert!(status.waiting_for.unwrap().contains("space on the disk"));
        mend(&world.primary);
        world.wait_place("primary");
        world.put(0, 10);
        world.check();
        assert_eq!(world.journal().status().waiting_for, None);
        world.journal().close().unwrap();
    }
}

/// A disk that takes nothing at all: sinks wait with it, sources do not.
#[test]
fn a_disk_that_fails_is_left_and_opened_anew() {
    for code in [EIO, EROFS] {
        let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
        (0..10).for_each(|_| world.put(0, 10));
        world.wait("a delivery", |world| world.take(1));
        break_disk(&world.primary, code);
        // Its acknowledgement is on its way to the disk that fails.
        world.take(1);
        (0..20).for_each(|_| world.put(0, 10));
        world.wait_place("file");
        world.take(100);
        (0..20).for_each(|_| world.put(1, 10));
        let put = world.next;
        world.wait("durable", |world| {
            world.settle();
            world.durable == put
        });
        mend(&world.primary);
        world.wait_place("primary");
        world.wait("acknowledgements", |world| {
            world.journal().status().channels[0].readers[0].1 == world.out.len() as u64
        });
        world.check();
        // Only what is committed counts after this.
        world.journal().close().unwrap();
        (world.reader, world.journal) = (None, None);
        world.open().unwrap();
        world.recover();
        world.check();
    }
}

/// As long as the secondary is open, sources begin without the primary; without it nobody begins.
#[test]
fn a_start_while_the_primary_is_away() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    (0..10).for_each(|_| world.put(0, 10));
    world.check();
    break_disk(&world.primary, EIO);
    (0..10).for_each(|_| world.put(0, 10));
    world.wait_place("file");
    // By this a reload tells whether sinks can end by themselves: what was opened answers them, also when it has failed.
    let answers = |world: &World| {
        let is_known = world.journal().state().unwrap().is_ready();
        (world.journal().takes_acknowledgements(), is_known)
    };
    assert_eq!(answers(&world), (false, true));
    (0..10).for_each(|_| world.put(1, 10));
    world.crash(3);
    break_disk(&world.primary, EIO);
    world.open().unwrap();
    assert_eq!(world.place(), "file");
    assert_eq!(answers(&world), (false, false));
    (0..10).for_each(|_| world.put(1, 10));
    mend(&world.primary);
    world.recover();
    world.wait_place("primary");
    world.check();
    world.crash(4);
    break_disk(&world.primary, EIO);
    assert!(matches!(world.open(), Err(OpenError::Io { .. })));
}

/// A secondary that is full makes sources wait, and the way back makes room.
#[test]
fn a_full_secondary_makes_sources_wait() {
    let mut world = World::away();
    world.journal().shared_for_tests().secondary.set_capacity(MAIN, 20, u64::MAX);
    world.put(0, 10);
    let full = world.journal().commit(
        Commit { puts: vec![Put { channels: vec![MAIN], batch: one_event() }], ..Commit::default() },
        Some(Instant::now() + Duration::from_millis(50)),
    );
    assert!(matches!(full, Err(CommitError::Full { .. })), "{:?}", full.err());
    mend(&world.primary);
    world.put(0, 10);
    world.wait_place("primary");
    world.check();
}

/// What was put to the secondary, and waits for its disk when everything that can be read of it was moved.
#[test]
fn what_is_on_its_way_to_the_secondary_comes_back_too() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    world.secondary.faults(|faults| faults.capacity = Some(0));
    (0..60).for_each(|_| world.put(0, 10));
    mend(&world.primary);
    world.wait_place("returning");
    world.wait_internal(Place::Arriving);
    assert!(world.finds_no_place(), "it would have no end");
    mend(&world.secondary);
    world.wait_place("primary");
    world.check();
}

/// A disk that fails takes nothing of what was in memory, as long as the agent lives: over openings that fail, too.
#[test]
fn what_is_in_memory_outlives_its_disk() {
    for kind in [PrimaryKind::Memory, PrimaryKind::Spillable] {
        let mut world = World::new(kind, SecondaryKind::File, PATIENT);
        (0..4).for_each(|_| world.put(0, 10));
        world.wait_durable();
        assert!(world.take(1));
        let late = world.deliver().unwrap();
        break_disk(&world.primary, EIO);
        // It does not come to the disk.
        drop(world.journal().commit(late, None).unwrap());
        world.put(0, 5);
        world.wait_place("file");
        // An opening was tried, and has failed.
        world.wait_reason("mending ");
        assert_eq!(world.journal().status().memory[0].channel, "main");
        assert!(world.journal().status().memory[0].events_at_risk >= 20);
        world.put(1, 5);
        mend(&world.primary);
        world.wait_place("primary");
        assert_eq!(world.journal().status().memory[0].lost, 0);
        world.check();
        world.restart();
        world.check();
    }
}

/// What is on its way to a disk that fails finds room in a failover that is to hold less, in a file and in memory: there is no other place.
#[test]
fn what_is_on_its_way_finds_room_in_a_small_failover() {
    for kind in [SecondaryKind::File, SecondaryKind::Memory, SecondaryKind::Spillable] {
        small_failover(kind, 8, &[b'x'; 200]);
    }
}

/// The same of more than one commit there takes.
#[test]
fn more_than_a_commit_of_what_is_on_its_way_finds_room_in_a_small_failover() {
    let body = vec![b'x'; 200 << 10];
    let puts = crate::limits::FAILOVER_OPEN_BYTES / (10 * body.len()) + 2;
    for kind in [SecondaryKind::Memory, SecondaryKind::Spillable] {
        small_failover(kind, puts as u64, &body);
    }
}

/// Puts of ten events each are on their way when the disk fails.
fn small_failover(kind: SecondaryKind, puts: u64, body: &[u8]) {
    let mut world = World::unopened((PrimaryKind::SourceBacked, kind), PATIENT, CHECK_INTERVAL, &["out"]);
    world.failover_events = 15;
    world.is_eager = false;
    world.open().unwrap();
    (0..puts).for_each(|_| world.put_of(0, 10, body));
    late::kill_disk(&mut world);
    world.wait_place(kind.word());
    assert_eq!(world.journal().status().failover_events, puts * 10);
    assert!(world.finds_no_place(), "then it is full");
    mend(&world.primary);
    world.is_eager = true;
    world.wait_place("primary");
    world.check();
}

/// A primary that fails with nothing of ours on its way, as when the disk fails again right behind an opening and takes no name: nobody's
/// ticket tells it, at home or away.
#[test]
fn a_primary_that_fails_by_itself_is_opened_anew() {
    let position = || Commit { positions: vec![(b"own".to_vec(), vec![1])], ..Commit::default() };
    for primary in [PrimaryKind::File, PrimaryKind::Memory, PrimaryKind::Spillable, PrimaryKind::SourceBacked]
    {
        let mut world = World::new(primary, SecondaryKind::File, PATIENT);
        for is_away in [false, true] {
            world.put(0, 10);
            world.check();
            if is_away {
                break_disk(&world.primary, EIO);
                world.put(0, 10);
                world.wait_place("file");
                // It stays away: the disk has no room for a segment when it is well, and the journal opens.
                world.primary.faults(|faults| faults.capacity = Some(0));
                world.primary.faults(|faults| faults.armed.clear());
                world.wait("an opening", |world| {
                    world.journal().shared_for_tests().state.lock().alive().is_some()
                });
            }
            let open = world.journal().shared_for_tests().state.lock().alive().cloned().unwrap();
            break_disk(&world.primary, EIO);
            let ticket = open.journal.commit(position(), None).unwrap();
            assert!(matches!(ticket.wait(None), Some(Err(CommitError::Failed(_)))));
            mend(&world.primary);
            world.wait("another opening", |world| {
                let shared = world.journal().shared_for_tests();
                let generation = shared.state.lock().generation;
                generation > open.generation
            });
            world.put(1, 10);
            world.wait_place("primary");
            world.check();
        }
        world.journal().close().unwrap();
    }
}
