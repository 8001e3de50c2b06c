//! A close, wherever events are: nobody waits for it, and the next start has each of them once.

use super::late::{kill_disk, wait_moved, wait_step};
use super::*;

fn quiet(kind: PrimaryKind) -> World {
    let mut world = World::new(kind, SecondaryKind::File, PATIENT);
    world.is_eager = false;
    world
}

/// Closes it, starts again with disks that are well, and looks.
fn close_and_check(mut world: World) {
    let begin = Instant::now();
    // A journal that has no room for what waits says so.
    drop(world.journal().close());
    assert!(begin.elapsed() < LIMIT / 2, "the close waits for somebody");
    for (stream, next, ticket) in std::mem::take(&mut world.tickets) {
        if ticket.wait(Some(LIMIT)).expect("whoever waits is told").is_ok() {
            world.durable[stream] = world.durable[stream].max(next);
        }
    }
    [&world.primary, &world.secondary].into_iter().for_each(mend);
    (world.reader, world.journal) = (None, None);
    world.open().unwrap();
    world.recover();
    world.is_eager = world.is_late();
    world.put(0, 5);
    world.wait_place("primary");
    world.check();
}

#[test]
fn a_close_with_everything_withheld() {
    let mut world = quiet(PrimaryKind::SourceBacked);
    (0..4).for_each(|_| world.put(0, 10));
    assert!(world.take(1));
    close_and_check(world);
}

/// What was on its way to a disk that failed waits for another one, which is full.
#[test]
fn a_close_while_leaving() {
    for kind in [PrimaryKind::File, PrimaryKind::SourceBacked] {
        let mut world = quiet(kind);
        if kind == PrimaryKind::SourceBacked {
            (0..60).for_each(|_| world.put(0, 10));
            world.secondary.faults(|faults| faults.capacity = Some(0));
            drop(kill_disk(&mut world));
        } else {
            world.secondary.faults(|faults| faults.capacity = Some(0));
            world.primary.faults(|faults| faults.capacity = Some(0));
            (0..60).for_each(|_| world.put(0, 10));
            break_disk(&world.primary, EIO);
        }
        world.wait_internal(Place::Leaving);
        assert!(world.finds_no_place());
        assert_eq!(world.place(), "primary");
        world.wait_reason("the failover (file): space on the disk");
        assert_eq!(number(world.journal().position(&source(0))), 600);
        close_and_check(world);
    }
}

#[test]
fn a_close_while_away() {
    for kind in [PrimaryKind::File, PrimaryKind::SourceBacked] {
        let mut world = quiet(kind);
        (0..2).for_each(|_| world.put(0, 10));
        if kind == PrimaryKind::File {
            world.wait_durable();
        }
        drop(kill_disk(&mut world));
        world.wait_place("file");
        world.put(1, 10);
        // One that goes back meanwhile hears that it is over.
        let journal = world.journal().clone();
        let asks = std::thread::spawn(move || drop(journal.position(SINK)));
        drop(world.journal().close());
        asks.join().unwrap();
        close_and_check(world);
    }
}

#[test]
fn a_close_on_the_way_back() {
    for is_last_step in [false, true] {
        let mut world = quiet(PrimaryKind::SourceBacked);
        (0..2).for_each(|_| world.put(0, 10));
        drop(kill_disk(&mut world));
        world.wait_place("file");
        mend(&world.primary);
        wait_step(&mut world, Place::Returning, 20);
        world.put(1, 5);
        if is_last_step {
            wait_moved(&mut world);
            world.recover_sink();
            assert!(world.take(1));
            wait_step(&mut world, Place::Arriving, 5);
        }
        close_and_check(world);
    }
}
