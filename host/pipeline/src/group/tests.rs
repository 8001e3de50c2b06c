//! What a group hands in, looked at step by step.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use flumen_event::BatchBuilder;
use flumen_journal::{ChannelSpec, Commit, FileConfig, FileJournal, Journal, OsClock, OsDisk, Put, Reader};

use super::seats::Seats;
use super::{GroupReader, Member, SinkGroup};
use crate::plan::{Balance, GroupKind, GroupPlan};

struct World {
    _dir: tempfile::TempDir,
    journal: Arc<FileJournal>,
    group: Arc<SinkGroup>,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let spec = |name: &str, reader: &str| ChannelSpec {
        name: name.into(),
        readers: vec![reader.into()],
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    };
    let config = FileConfig { dir: dir.path().to_owned(), ..FileConfig::default() };
    let specs = vec![spec("main", "all"), spec("quarantine", "keeper")];
    let journal = FileJournal::open(config, specs, Arc::new(OsDisk), Arc::new(OsClock)).unwrap();
    let plan = GroupPlan {
        name: "all".into(),
        channel: "main".into(),
        sinks: vec!["a".into(), "b".into()],
        kind: GroupKind::LoadBalancing(Balance::RoundRobin),
        penalty: Duration::from_secs(60),
        penalty_max: Duration::from_secs(60),
    };
    let group = SinkGroup::new(&plan, journal.clone()).unwrap();
    World { _dir: dir, journal, group }
}

impl World {
    fn put(&self, channel: &str, from: u64, rows: u64) -> Commit {
        let mut builder = BatchBuilder::default();
        (from..from + rows).for_each(|position| builder.push(1, position, 0, b"x"));
        let channels = vec![self.journal.channel(channel).unwrap()];
        Commit { puts: vec![Put { channels, batch: builder.finish(vec![]).unwrap() }], ..Commit::default() }
    }

    fn durable(&self, commit: Commit) {
        self.journal.commit(commit, None).unwrap().wait(None).unwrap().unwrap();
    }

    fn cursor(&self) -> u64 {
        self.journal.status().channels[0].readers[0].1
    }

    fn member(&self, sink: &str) -> (Member, GroupReader) {
        let member = self.group.member(sink).unwrap();
        let reader = GroupReader::new(member.clone());
        (member, reader)
    }
}

fn next(reader: &mut GroupReader) -> (u64, u64, u64) {
    let delivery = reader.next(Duration::from_secs(10)).unwrap().unwrap();
    (delivery.first, delivery.next, delivery.batch.position().value(0))
}

/// On a full disk acknowledgements pass puts. What one member took out of the flow must be durable before another member's
/// acknowledgement moves the group's cursor over it.
#[test]
fn the_cursor_waits_for_what_is_not_durable() {
    let world = world();
    let ((a, mut a_reader), (b, mut b_reader)) = (world.member("a"), world.member("b"));
    world.durable(world.put("main", 0, 10));
    assert_eq!(next(&mut a_reader), (0, 10, 0));
    world.durable(world.put("main", 10, 10));
    assert_eq!(next(&mut b_reader), (0, 10, 10), "its own sequence begins at 0");

    a.commit(world.put("quarantine", 0, 10), 10).unwrap().wait(None).unwrap().unwrap();
    assert_eq!(world.cursor(), 10, "in its own commit it counts");
    b.commit(Commit::default(), 10).unwrap().wait(None).unwrap().unwrap();
    assert_eq!(world.cursor(), 10, "for others not yet");
    a.durable();
    b.commit(Commit::default(), 10).unwrap().wait(None).unwrap().unwrap();
    assert_eq!(world.cursor(), 20);
    assert_eq!((a_reader.acknowledged(), b_reader.acknowledged()), (10, 10));
}

#[test]
fn a_range_changes_hands_only_when_its_member_has_settled() {
    let world = world();
    let ((a, mut a_reader), (b, mut b_reader)) = (world.member("a"), world.member("b"));
    world.durable(world.put("main", 0, 10));
    assert_eq!(next(&mut a_reader), (0, 10, 0));
    a.failed(false);
    assert!(b_reader.next(Duration::from_millis(50)).unwrap().is_none(), "it is in doubt");
    // Its destination has the first four.
    a.settled(4);
    assert_eq!(next(&mut b_reader), (0, 6, 4));
    assert_eq!((a_reader.acknowledged(), b_reader.acknowledged()), (0, 0));
    b.commit(Commit::default(), 6).unwrap().wait(None).unwrap().unwrap();
    assert_eq!(world.cursor(), 0);
    a.commit(Commit::default(), 4).unwrap().wait(None).unwrap().unwrap();
    assert_eq!(world.cursor(), 10);
    // Numbers of a sequence are not used again.
    assert_eq!(a_reader.acknowledged(), 10);
    a.settled(4);
    b.end();
    world.durable(world.put("main", 10, 1));
    drop(b_reader);
    assert!(a_reader.next(Duration::from_millis(50)).unwrap().is_none(), "it rests");
}

#[test]
fn a_mark_is_of_one_member_and_one_journal() {
    let world = world();
    let ((a, mut a_reader), (_b, mut b_reader)) = (world.member("a"), world.member("b"));
    world.durable(world.put("main", 0, 10));
    assert_eq!(next(&mut a_reader), (0, 10, 0));
    let mark = a_reader.mark(10);
    assert_eq!((a_reader.resolve(&mark), b_reader.resolve(&mark)), (Some(10), None));
    assert_eq!(a_reader.resolve(&world.journal.open_reader(a.group.channel, a.group.reader).mark(5)), None);
    let other = self::world();
    let (_member, mut other_reader) = other.member("a");
    assert_eq!(other_reader.resolve(&mark), None);
    // After a restart as before it.
    a.commit(Commit::default(), 10).unwrap().wait(None).unwrap().unwrap();
    let again = SinkGroup::new(&world.group.plan, world.journal.clone()).unwrap();
    let mut reader = GroupReader::new(again.member("a").unwrap());
    assert_eq!((reader.resolve(&mark), reader.acknowledged()), (Some(10), 10));
}

/// What a member has released and nobody has taken yet is in no sequence: a mark that came after it says nothing of it, also after
/// a restart.
#[test]
fn what_is_released_is_not_covered_by_a_later_mark() {
    let world = world();
    let (a, mut a_reader) = world.member("a");
    world.durable(world.put("main", 0, 10));
    assert_eq!(next(&mut a_reader), (0, 10, 0));
    a.settled(0);
    drop(a_reader);
    // It begins again, its destination has nothing; before anybody takes that over, it is assigned more.
    let (a, a_reader) = world.member("a");
    a.settled(0);
    let positions = {
        let mut seats = world.group.seats();
        let at = seats.next;
        seats.assign(0, at, at + 5)
    };
    world.durable(world.put("main", 10, 5));
    world.durable(Commit { positions, ..Commit::default() });
    let mark = a_reader.mark(15);

    let again = SinkGroup::new(&world.group.plan, world.journal.clone()).unwrap();
    let member = again.member("a").unwrap();
    let mut reader = GroupReader::new(member.clone());
    assert_eq!(reader.resolve(&mark), Some(15));
    member.commit(Commit::default(), 15).unwrap().wait(None).unwrap().unwrap();
    assert_eq!(world.cursor(), 0, "the first ten are nobody's");
    member.settled(15);
    assert_eq!(next(&mut reader), (15, 25, 0));
    drop(a);
}

/// A group of three whose members all are well and wait for events.
fn waiting(world: &World, kind: GroupKind) -> (GroupPlan, Seats) {
    let group = &world.group;
    let sinks = ["a", "b", "c"].map(String::from).to_vec();
    let plan = GroupPlan { sinks, kind, penalty: Duration::from_secs(10), ..group.plan.clone() };
    let mut seats = Seats::new(&plan, world.journal.as_ref(), group.channel, group.reader);
    for at in 0..plan.sinks.len() {
        let seat = seats.get_mut(at).unwrap();
        seat.is_asking();
        seat.waits = true;
    }
    (plan, seats)
}

/// Who gets something, one time after another; it is the first member that asks.
fn draws(plan: &GroupPlan, seats: &mut Seats, count: usize) -> Vec<usize> {
    let now = Instant::now();
    (0..count).map(|_| seats.choose(plan, 0, now).unwrap()).collect()
}

#[test]
fn round_robin_goes_around_those_that_wait() {
    let world = world();
    let (plan, mut seats) = waiting(&world, GroupKind::LoadBalancing(Balance::RoundRobin));
    assert_eq!(draws(&plan, &mut seats, 7), [0, 1, 2, 0, 1, 2, 0]);
    // Who is at work is passed by, and so is who is given something just now.
    seats.get_mut(1).unwrap().waits = false;
    assert_eq!(draws(&plan, &mut seats, 3), [2, 0, 2]);
    seats.get_mut(1).unwrap().waits = true;
    seats.get_mut(2).unwrap().expects = true;
    assert_eq!(draws(&plan, &mut seats, 3), [0, 1, 0]);
}

#[test]
fn who_has_the_fewest_unacknowledged_events_gets_more() {
    let world = world();
    let (plan, mut seats) = waiting(&world, GroupKind::LoadBalancing(Balance::LeastInFlight));
    seats.assign(0, 0, 10);
    seats.assign(1, 10, 14);
    seats.assign(2, 14, 19);
    // They have 10, 4 and 5; whoever is chosen gets two more.
    for (from, expected) in [(19, 1), (21, 2), (23, 1), (25, 2)] {
        assert_eq!(draws(&plan, &mut seats, 2), [expected; 2], "{from}");
        seats.assign(expected, from, from + 2);
    }
    // 10, 8 and 9.
    seats.acknowledge(0, 3, false).unwrap();
    assert_eq!(draws(&plan, &mut seats, 1), [0]);
    seats.acknowledge(1, 2, false).unwrap();
    assert_eq!(draws(&plan, &mut seats, 1), [1]);
}

#[test]
fn random_gives_to_all_alike_and_in_no_order() {
    let world = world();
    let (plan, mut seats) = waiting(&world, GroupKind::LoadBalancing(Balance::Random));
    let counts = |drawn: &[usize]| [0, 1, 2].map(|at| drawn.iter().filter(|drawn| **drawn == at).count());
    let drawn = draws(&plan, &mut seats, 3_000);
    // The standard deviation is 26.
    let is_third = |count: usize| (800..1_200).contains(&count);
    assert!(counts(&drawn).into_iter().all(is_third), "{:?}", counts(&drawn));
    let doubles = drawn.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(is_third(doubles), "each comes after itself as after any other: {doubles}");

    seats.get_mut(1).unwrap().waits = false;
    let [a, b, c] = counts(&draws(&plan, &mut seats, 300));
    assert!(a > 100 && b == 0 && c > 100, "{a} {b} {c}");
}

#[test]
fn a_failover_group_gives_all_to_the_first_that_is_well() {
    let world = world();
    let (plan, mut seats) = waiting(&world, GroupKind::Failover);
    let now = Instant::now();
    assert_eq!([0, 1, 2].map(|me| seats.choose(&plan, me, now)), [Some(0); 3]);
    // It will come for them in a moment.
    seats.get_mut(0).unwrap().waits = false;
    assert_eq!([0, 1, 2].map(|me| seats.choose(&plan, me, now)), [Some(0), None, None]);
    seats.get_mut(0).unwrap().fail(plan.penalty, plan.penalty_max, now);
    assert_eq!([0, 1, 2].map(|me| seats.choose(&plan, me, now)), [Some(1); 3]);
    seats.get_mut(1).unwrap().has_ended = true;
    assert_eq!([0, 1, 2].map(|me| seats.choose(&plan, me, now)), [Some(2); 3]);
}

#[test]
fn who_failed_is_left_out_until_it_has_recovered_and_rested() {
    let world = world();
    let balances = [Balance::RoundRobin, Balance::Random, Balance::LeastInFlight];
    for kind in balances.map(GroupKind::LoadBalancing).into_iter().chain([GroupKind::Failover]) {
        let (plan, mut seats) = waiting(&world, kind);
        let now = Instant::now();
        // Enough for one that is drawn at random among three.
        let gets =
            |seats: &mut Seats, at: Instant| (0..200).any(|_| seats.choose(&plan, 0, at).unwrap() == 0);
        assert!(gets(&mut seats, now), "{kind:?}");

        seats.get_mut(0).unwrap().fail(plan.penalty, plan.penalty_max, now);
        assert!(!gets(&mut seats, now), "{kind:?}");
        seats.get_mut(0).unwrap().is_asking();
        assert!(!gets(&mut seats, now + plan.penalty - Duration::from_millis(1)), "{kind:?}");
        assert!(gets(&mut seats, now + plan.penalty), "{kind:?}");

        seats.get_mut(0).unwrap().fail(plan.penalty, plan.penalty_max, now);
        assert!(!gets(&mut seats, now + plan.penalty * 2), "{kind:?}: it has not recovered");
        seats.get_mut(0).unwrap().is_asking();
        assert!(!gets(&mut seats, now + plan.penalty), "{kind:?}: twice as long");
        assert!(gets(&mut seats, now + plan.penalty * 2), "{kind:?}");

        for at in 0..3 {
            seats.get_mut(at).unwrap().fail(plan.penalty, plan.penalty_max, now);
        }
        assert_eq!(seats.choose(&plan, 0, now), None, "{kind:?}");
    }
}

#[test]
fn each_failure_in_a_row_doubles_the_rest_up_to_its_limit() {
    let world = world();
    // So long that the time between two lines of the test is nothing beside it.
    let (penalty, penalty_max) = (Duration::from_secs(10_000), Duration::from_secs(60_000));
    let plan = GroupPlan { penalty, penalty_max, ..world.group.plan.clone() };
    let group = SinkGroup::new(&plan, world.journal.clone()).unwrap();
    let a = group.member("a").unwrap();
    // In thousands of seconds.
    let rests = || {
        a.failed(false);
        (group.status().members[0].rests_for_s / 1_000.0).round() as u64
    };
    assert_eq!([rests(), rests(), rests(), rests(), rests()], [10, 20, 40, 60, 60]);
    (0..100).for_each(|_| assert_eq!(rests(), 60));
    assert_eq!(group.status().members[0].failures, 105);
    assert_eq!((group.status().members[1].failures, group.status().members[1].rests_for_s), (0, 0.0));
    a.succeeded();
    assert_eq!(group.status().members[0].failures, 0);
    assert_eq!([rests(), rests()], [10, 20]);
}

#[test]
fn who_has_rested_gets_what_waits() {
    let world = world();
    let penalty = Duration::from_millis(300);
    let plan = GroupPlan { penalty, penalty_max: penalty, ..world.group.plan.clone() };
    let group = SinkGroup::new(&plan, world.journal.clone()).unwrap();
    let a = group.member("a").unwrap();
    let mut reader = GroupReader::new(a.clone());
    world.durable(world.put("main", 0, 10));
    let failed = Instant::now();
    a.failed(false);
    a.settled(0);
    assert_eq!(next(&mut reader), (0, 10, 0));
    assert!(failed.elapsed() >= penalty, "{:?}", failed.elapsed());
}
