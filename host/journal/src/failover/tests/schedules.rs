//! Random schedules.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Random puts, deliveries, full disks, disks that fail and come back, and crashes at any moment of all of it.
#[test]
fn each_event_once_over_switches_and_crashes() {
    schedules(12, (PrimaryKind::File, SecondaryKind::File));
}

/// The same of a primary whose commits count when their sinks have acknowledged them, and whose cursors end with its disk.
#[test]
fn each_event_once_where_acknowledgements_are_late() {
    schedules(12, (PrimaryKind::SourceBacked, SecondaryKind::File));
}

/// The same of those where a crash costs what is in memory: with clean stops.
#[test]
fn each_event_once_over_switches_with_memory() {
    for (primary, secondary) in [
        (PrimaryKind::File, SecondaryKind::Memory),
        (PrimaryKind::File, SecondaryKind::Spillable),
        (PrimaryKind::Memory, SecondaryKind::File),
        (PrimaryKind::Memory, SecondaryKind::Spillable),
        (PrimaryKind::Spillable, SecondaryKind::File),
        (PrimaryKind::Spillable, SecondaryKind::Memory),
        (PrimaryKind::SourceBacked, SecondaryKind::Memory),
        (PrimaryKind::SourceBacked, SecondaryKind::Spillable),
    ] {
        schedules(3, (primary, secondary));
    }
}

fn schedules(seeds: u64, kinds: (PrimaryKind, SecondaryKind)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("FLUMEN_FAILOVER_SEED").unwrap_or(0);
    for seed in first..first + number("FLUMEN_FAILOVER_SEEDS").unwrap_or(seeds) {
        eprintln!("{kinds:?} seed {seed}");
        schedule(seed, kinds);
    }
}

/// The secondary's disk is full for a while. Who leaves the primary meanwhile waits, so somebody else has to make room.
fn fill_for_a_while(disk: &MemDisk, pause: Duration) {
    let disk = disk.clone();
    disk.faults(|faults| faults.capacity = Some(0));
    std::thread::spawn(move || {
        std::thread::sleep(pause);
        disk.faults(|faults| faults.capacity = None);
    });
}

/// Both disks are in trouble, and the primary's is well first: who is between the two goes on there.
fn trouble_for_a_while(world: &World, random: &mut SmallRng) {
    let (primary, secondary) = (world.primary.clone(), world.secondary.clone());
    // Or with what is kept aside for acknowledgements.
    let room = if random.random_bool(0.5) { 0 } else { secondary.used() };
    secondary.faults(|faults| faults.capacity = Some(room));
    match random.random_range(0..3) {
        0 => primary.faults(|faults| faults.capacity = Some(0)),
        1 => break_disk(&primary, EIO),
        // It was away before, or is well.
        _ => {}
    }
    let mut pause = || Duration::from_millis(random.random_range(1..250));
    let (first, second) = (pause(), pause());
    std::thread::spawn(move || {
        std::thread::sleep(first);
        mend(&primary);
        std::thread::sleep(second);
        secondary.faults(|faults| faults.capacity = None);
    });
}

fn schedule(seed: u64, kinds: (PrimaryKind, SecondaryKind)) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::probed(kinds, HASTY, CHECK_INTERVAL);
    let may_crash = matches!(kinds, (PrimaryKind::File | PrimaryKind::SourceBacked, SecondaryKind::File));
    let mut is_broken = false;
    for _ in 0..120 {
        let step = random.random_range(0..46);
        if std::env::var("FLUMEN_FAILOVER_TRACE").is_ok() {
            eprintln!(
                "{step} {} {:?} durable {:?} out {}",
                world.place(),
                world.next,
                world.durable,
                world.out.len()
            );
        }
        match step {
            0..16 => world.put(random.random_range(0..2), random.random_range(1..30)),
            16..26 => drop(world.take(random.random_range(1..5))),
            26..28 => {
                break_disk(&world.primary, if random.random_bool(0.5) { EIO } else { EROFS });
                is_broken = true;
            }
            28..30 => {
                let bytes = random.random_range(0..200_000);
                world.primary.faults(|faults| faults.capacity = Some(bytes));
                is_broken = true;
            }
            30..34 => {
                mend(&world.primary);
                is_broken = false;
            }
            34..38 => std::thread::sleep(Duration::from_millis(random.random_range(0..80))),
            38..40 => {
                // One call: more of them would fail the secondary.
                let call = if random.random_bool(0.5) { Call::Write } else { Call::Sync };
                let fault = Fault { call, skip: random.random_range(0..4), times: 1, code: EIO };
                world.secondary.faults(|faults| faults.armed = vec![fault]);
            }
            40..42 => {
                fill_for_a_while(&world.secondary, Duration::from_millis(random.random_range(1..60)));
            }
            42..44 => {
                trouble_for_a_while(&world, &mut random);
                is_broken = true;
            }
            _ if !may_crash => {
                [&world.primary, &world.secondary].into_iter().for_each(mend);
                is_broken = false;
                world.restart();
            }
            _ => {
                world.crash(random.random());
                [&world.primary, &world.secondary].into_iter().for_each(mend);
                is_broken = false;
                world.open().unwrap();
                world.recover();
            }
        }
        world.settle();
    }
    if is_broken {
        mend(&world.primary);
    }
    mend(&world.secondary);
    world.wait_place("primary");
    world.check();
    if may_crash {
        world.crash(seed);
        [&world.primary, &world.secondary].into_iter().for_each(mend);
        world.open().unwrap();
        world.recover();
    } else {
        world.restart();
    }
    world.check();
}
