//! What a group hands in, looked at step by step.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use flumen_event::BatchBuilder;
use flumen_journal::{ChannelSpec, Commit, FileConfig, FileJournal, Journal, OsClock, OsDisk, Put, Reader};

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
