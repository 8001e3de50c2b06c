//! Another journal in the primary's place.

use super::*;

/// The disk is not mounted any more, and its directory is empty: events do not go there, nor does what is in the secondary.
#[test]
fn a_directory_that_holds_another_journal_is_not_gone_back_to() {
    for kind in [PrimaryKind::File, PrimaryKind::Memory, PrimaryKind::Spillable] {
        let mut world = World::new(kind, SecondaryKind::File, PATIENT);
        (0..4).for_each(|_| world.put(0, 10));
        world.wait_durable();
        fail_listed(&mut world);
        let mounted = world.primary.copy();
        put_in_place(&world.primary, &MemDisk::default());
        mend(&world.primary);
        world.wait_reason("it is a new one, not the one that the failover stands in for");
        world.put(1, 10);
        std::thread::sleep(20 * CHECK_INTERVAL);
        assert_eq!(world.place(), "file");
        fail_listed(&mut world);
        put_in_place(&world.primary, &mounted);
        mend(&world.primary);
        world.wait_place("primary");
        world.check();
    }
}

/// A start finds no journal where one was left: it goes on in the secondary, until the user says that the disk was replaced.
#[test]
fn a_start_asks_before_it_takes_a_replaced_disk() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    (0..4).for_each(|_| world.put(0, 10));
    world.check();
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    world.wait_durable();
    world.crash(5);
    put_in_place(&world.primary, &MemDisk::default());
    mend(&world.primary);
    world.open().unwrap();
    world.wait_reason("make the file /j/replaced, and start it");
    assert_eq!(world.place(), "file");
    world.put(1, 10);
    world.wait_durable();
    world.crash(6);
    mend(&world.primary);
    world.is_replaced.store(true, Ordering::Relaxed);
    world.open().unwrap();
    world.wait_place("primary");
    world.check();
    assert!(!world.is_replaced.load(Ordering::Relaxed), "it counts once");
}

/// What a journal leaves beside its segments is no reason to refuse its directory; what is somebody else's is.
#[test]
fn what_is_left_of_a_journal_is_no_reason_not_to_begin_one() {
    let disk = MemDisk::default();
    for name in ["probe", "spare.0", "spare.1", "damaged", REPLACED] {
        disk.add(&format!("/j/{name}"), b"x".to_vec());
    }
    open_primary(PrimaryKind::File, &disk, specs(&["out"]), None).unwrap().close().unwrap();
    let disk = MemDisk::default();
    disk.add("/j/notes.txt", b"x".to_vec());
    let refused = open_primary(PrimaryKind::File, &disk, specs(&["out"]), None);
    assert!(matches!(refused, Err(OpenError::NotAJournal { .. })));
}

/// The primary's disk fails, so that not even an opening of it is under way.
fn fail_listed(world: &mut World) {
    break_disk(&world.primary, EIO);
    let list = Fault { call: Call::List, skip: 0, times: u32::MAX, code: EIO };
    world.primary.faults(|faults| faults.armed.push(list));
    if world.place() == "primary" {
        world.put(0, 10);
    }
    world.wait_reason("listing /j");
}

/// What is on a disk now is what is on another one.
fn put_in_place(disk: &MemDisk, other: &MemDisk) {
    disk.names().iter().for_each(|name| disk.take(&format!("/j/{name}")));
    for name in other.names() {
        let path = format!("/j/{name}");
        disk.add(&path, other.bytes(&path));
    }
}
