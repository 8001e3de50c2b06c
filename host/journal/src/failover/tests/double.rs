//! Both disks in trouble at once, of which the secondary's lasts longer: nobody waits for that.

use super::*;

/// Events that are on their way to the primary when it is left, or were before: more than a segment has room for, even if they are in memory.
const EVENTS: u64 = 2_000;

/// What is on its way to the primary is on its way to the secondary, and finds no room there. What is small does.
fn leave_for_a_full_one(world: &mut World, has_failed: bool) {
    // It has a segment from here on.
    let small = Commit { positions: vec![(b"a".to_vec(), b"b".to_vec())], ..Commit::default() };
    secondary(world).commit(small, None).unwrap();
    world.wait("a segment", |world| secondary(world).status().commits > 0);
    world.secondary.faults(|faults| faults.capacity = Some(0));
    if world.is_late() {
        (0..EVENTS / 10).for_each(|_| world.put(0, 10));
        drop(late::kill_disk(world));
    } else {
        world.primary.faults(|faults| faults.capacity = Some(0));
        (0..EVENTS / 10).for_each(|_| world.put(0, 10));
        if has_failed {
            break_disk(&world.primary, EIO);
        }
        world.journal().shared_for_tests().health.has_failed();
    }
    world.wait_internal(Place::Leaving);
    world.wait("a full secondary", |world| {
        // Events that it does not have yet count here.
        is_secondary_waiting(world) && secondary(world).status().channels[0].head > 0
    });
    assert!(world.finds_no_place());
}

fn secondary(world: &World) -> Arc<dyn Journal> {
    world.journal().shared_for_tests().secondary.clone()
}

fn is_secondary_waiting(world: &World) -> bool {
    secondary(world).status().waiting_for.is_some()
}

/// There, and with no reason to be left.
fn wait_home(world: &mut World) {
    world.wait("at home again", |world| {
        let shared = world.journal().shared_for_tests();
        let state = shared.state.lock();
        state.place == Place::Home && state.alive().is_some() && !shared.health.is_down()
    });
}

/// What had arrived in the secondary, or does so later, counts for nothing: now, and when it is needed the next time.
#[test]
fn a_primary_that_has_room_again_is_not_left_for_one_that_is_full() {
    for kind in [PrimaryKind::File, PrimaryKind::Memory, PrimaryKind::Spillable] {
        let mut world = World::new(kind, SecondaryKind::File, PATIENT);
        leave_for_a_full_one(&mut world, false);
        mend(&world.primary);
        wait_home(&mut world);
        world.wait_durable();
        world.put(1, 10);
        world.check();
        assert!(is_secondary_waiting(&world));
        assert_eq!(world.journal().status().failovers, 0);
        leave_for_a_full_one(&mut world, false);
        mend(&world.secondary);
        world.wait_place("file");
        let there = world.journal().status().failover_events;
        assert!((1..=EVENTS).contains(&there), "{there}: what was left there before is passed over");
        mend(&world.primary);
        world.wait_place("primary");
        world.check();
        assert_eq!(world.journal().status().failovers, 1);
    }
}

/// It failed, and takes what was on its way to it when it is opened anew: what it has of it already is not written once more.
#[test]
fn a_primary_that_failed_is_opened_anew_while_the_secondary_is_full() {
    for kind in [PrimaryKind::File, PrimaryKind::Memory, PrimaryKind::Spillable, PrimaryKind::SourceBacked] {
        let mut world = World::new(kind, SecondaryKind::File, PATIENT);
        world.is_eager = false;
        leave_for_a_full_one(&mut world, true);
        assert_eq!(number(world.journal().position(&source(0))), EVENTS);
        mend(&world.primary);
        wait_home(&mut world);
        assert_eq!(number(world.journal().position(&source(0))), EVENTS, "it has what was handed in");
        world.is_eager = world.is_late();
        world.put(1, 10);
        world.check();
        assert!(is_secondary_waiting(&world));
        assert_eq!(world.journal().status().failovers, 0);
        mend(&world.secondary);
        if matches!(kind, PrimaryKind::File | PrimaryKind::SourceBacked) {
            world.crash(7);
            world.open().unwrap();
            world.recover();
        } else {
            world.restart();
        }
        assert_eq!(world.place(), "primary");
        world.check();
    }
}

/// What was on its way to it may be more than its channel holds: what its sinks had acknowledged, and was not durable, had made room.
#[test]
fn a_primary_that_is_opened_anew_takes_what_it_had_however_little_it_holds() {
    for kind in [PrimaryKind::File, PrimaryKind::Memory, PrimaryKind::Spillable, PrimaryKind::SourceBacked] {
        let mut world = World::new(kind, SecondaryKind::File, PATIENT);
        world.is_eager = false;
        leave_for_a_full_one(&mut world, true);
        world.journal().set_capacity(MAIN, 10, u64::MAX);
        mend(&world.primary);
        wait_home(&mut world);
        assert!(world.finds_no_place(), "what is new waits for room");
        world.is_eager = world.is_late();
        world.check();
        assert_eq!(world.journal().status().failovers, 0);
        world.put(1, 10);
        world.check();
    }
}

/// What is left of a way out that was given up, and is there after a crash or not, is stale.
#[test]
fn a_crash_behind_a_way_out_that_was_given_up() {
    for seed in 0..8 {
        let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
        leave_for_a_full_one(&mut world, seed % 2 == 0);
        mend(&world.primary);
        wait_home(&mut world);
        if seed % 4 < 2 {
            mend(&world.secondary);
            world.wait("room", |world| !is_secondary_waiting(world));
        }
        if seed < 4 {
            world.wait_durable();
        }
        world.crash(seed);
        [&world.primary, &world.secondary].into_iter().for_each(mend);
        world.open().unwrap();
        assert_eq!(world.place(), "primary");
        world.recover();
        world.put(0, 10);
        world.check();
    }
}

/// What had arrived of one that was still waiting for room does not count either.
#[test]
fn a_crash_within_a_way_out_that_finds_no_room() {
    for kind in [PrimaryKind::File, PrimaryKind::SourceBacked] {
        for seed in 0..8 {
            let mut world = World::new(kind, SecondaryKind::File, PATIENT);
            world.is_eager = false;
            leave_for_a_full_one(&mut world, seed % 2 == 0);
            if seed < 4 {
                // Of what is on its way some arrives with the crash, or all of it.
                mend(&world.secondary);
            }
            world.crash(seed);
            [&world.primary, &world.secondary].into_iter().for_each(mend);
            world.open().unwrap();
            world.is_eager = world.is_late();
            world.recover();
            world.wait_place("primary");
            world.put(0, 10);
            world.check();
        }
    }
}

/// What has to be removed behind it needs more than a segment has left: it stays until there is room.
#[test]
fn the_way_back_ends_while_the_secondary_is_full() {
    let mut world = World::away();
    let mut state = StateWrites::new("large".into());
    for key in 0..100_u8 {
        state.push(StateOp { key: &[key; 250], value: Some(b"x"), expiry: None });
    }
    let large = Commit { state: vec![state], ..Commit::default() };
    let ticket = world.journal().commit(large, Some(Instant::now() + LIMIT)).unwrap();
    ticket.wait(Some(LIMIT)).unwrap().unwrap();
    // More than is left of the segment that is as large as that commit: the next one has room for what is small.
    world.put(1, 25);
    world.wait_durable();
    world.secondary.faults(|faults| faults.capacity = Some(0));
    mend(&world.primary);
    world.wait_place("primary");
    world.put(1, 10);
    world.check();
    assert_eq!(world.journal().state().unwrap().size("large").keys, 100);
    mend(&world.secondary);
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    assert_eq!(world.journal().status().failover_events, 10);
    mend(&world.primary);
    world.wait_place("primary");
    world.crash(9);
    world.open().unwrap();
    world.recover();
    world.check();
}

/// What opens it and what closes it find the space that is kept aside for acknowledgements, wherever in a segment the disk is full: it is
/// given up before, or done.
#[test]
fn a_full_disk_holds_no_secondary_between_open_and_closed() {
    let (mut given_up, mut from_reserve) = (0, 0);
    for bytes in (12 << 10..16 << 10).step_by(64) {
        let disk = MemDisk::default();
        let spec = channel_spec("main", &plan(SecondaryKind::File, PATIENT, CHECK_INTERVAL));
        let opened = FileJournal::open(config(), vec![spec], Arc::new(disk.clone()), Arc::new(OsClock));
        let journal = opened.unwrap();
        // It has a segment from here on.
        let first = Commit { positions: vec![(b"a".to_vec(), b"b".to_vec())], ..Commit::default() };
        journal.commit_and_wait(first, None).unwrap();
        let used = disk.used();
        disk.faults(|faults| faults.capacity = Some(used));
        let until = Instant::now() + LIMIT / 4;
        let away = Away::new(journal.clone(), &["main".to_owned()], None).unwrap();
        let away = away.until(move || Instant::now() >= until);
        let mut builder = BatchBuilder::with_capacity(1, 0);
        builder.push(0, 0, 1, &vec![b'x'; bytes]);
        let put = Put { channels: vec![MAIN], batch: builder.finish(Vec::new()).unwrap() };
        let commits = vec![(Some(1), Commit { puts: vec![put], ..Commit::default() })];
        let has_room = || journal.status().waiting_for.is_none();
        match away.open_while(Positions::new(), commits, Vec::new(), &has_room) {
            Ok(()) => {}
            Err(CommitError::Full { .. }) => {
                assert!(!away.is_open());
                given_up += 1;
                continue;
            }
            Err(error) => panic!("{bytes}: {error}"),
        }
        assert!(away.is_open());
        away.close().unwrap();
        assert!(!away.is_open());
        from_reserve += u32::from(!disk.names().contains(&"reserve".to_owned()));
    }
    assert!(given_up > 0 && from_reserve > 0, "{given_up} {from_reserve}");
}
