//! Acknowledgements while the primary is away.

use super::*;

fn syncs(disk: &MemDisk) -> u64 {
    disk.0.lock().faults.syncs
}

/// Two acknowledgements, of which the second puts as well, are written, and then the disk fails before it says so: they are there when
/// it is back. The first once more would set the sink's position back, and leave its cursor.
#[test]
fn an_acknowledgement_that_is_there_is_not_sent_again() {
    let kinds = (PrimaryKind::File, SecondaryKind::File);
    let mut world = World::probed(kinds, PATIENT, Duration::from_millis(300));
    (0..3).for_each(|_| world.put(0, 10));
    world.wait_durable();
    let (first, mut second) = (world.deliver().unwrap(), world.deliver().unwrap());
    let quarantined = || vec![Put { channels: vec![QUARANTINE], batch: one_event() }];
    second.puts = quarantined();
    let disk = world.primary.clone();
    // The probe syncs as well, so it has to have been just now.
    let before = syncs(&disk);
    world.wait("a probe", |_| syncs(&disk) > before);
    let tickets = {
        let mut image = disk.0.lock();
        // Of what the committer has when the others come; they are its next group.
        image.faults.armed = vec![Fault { call: Call::Sync, skip: 1, times: u32::MAX, code: EIO }];
        let own = Commit { puts: quarantined(), ..Commit::default() };
        let own = world.journal().commit(own, None).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let acks = [first, second].map(|commit| world.journal().commit(commit, None).unwrap());
        drop(image);
        own.wait(Some(LIMIT)).unwrap().unwrap();
        acks
    };
    // All in one group share the sync that is well: then this one meets the other.
    let one_more = Commit { puts: quarantined(), ..Commit::default() };
    drop(world.journal().commit(one_more, None).unwrap());
    world.wait_place("file");
    mend(&world.primary);
    world.wait_place("primary");
    for ticket in tickets {
        ticket.wait(Some(LIMIT)).unwrap().unwrap();
    }
    assert_eq!(number(world.journal().position(SINK)), 20);
    world.crash(1);
    mend(&world.primary);
    world.open().unwrap();
    world.recover();
    assert_eq!(world.out.len(), 20, "the destination is cut back behind what is acknowledged");
    world.check();
}

/// An acknowledgement with events for a quarantine that is full waits; the keeper's makes the room, and has come behind it.
#[test]
fn an_acknowledgement_that_finds_a_channel_full_holds_no_other_reader_up() {
    let mut world = World::new(PrimaryKind::File, SecondaryKind::File, PATIENT);
    let quarantined = || vec![Put { channels: vec![QUARANTINE], batch: one_event() }];
    world.journal().set_capacity(QUARANTINE, 1, u64::MAX);
    drop(world.journal().commit(Commit { puts: quarantined(), ..Commit::default() }, None).unwrap());
    (0..2).for_each(|_| world.put(0, 10));
    world.wait_durable();
    let full = Commit { puts: quarantined(), ..world.deliver().unwrap() };
    let behind = world.deliver().unwrap();
    break_disk(&world.primary, EIO);
    world.put(0, 10);
    world.wait_place("file");
    let keeper = Ack { channel: QUARANTINE, reader: KEEPER, cursor: 1 };
    let keeper = Commit { acks: vec![keeper], ..Commit::default() };
    let tickets = [full, behind, keeper].map(|commit| world.journal().commit(commit, None).unwrap());
    mend(&world.primary);
    for ticket in tickets {
        ticket.wait(Some(LIMIT)).expect("it waits for what is behind it").unwrap();
    }
    world.wait_place("primary");
    assert_eq!(number(world.journal().position(SINK)), 20, "what the same reader had behind it stays there");
    world.check();
}
