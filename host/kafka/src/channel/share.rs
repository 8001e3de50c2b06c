//! What a channel's reader, the committer and rebalances share: which partitions are ours, and how far each is read,
//! acknowledged and durable. The rules stand in [`super::reader`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};

use super::mark::Offsets;
use crate::context::Context;
use crate::member;

/// What the reader, the committer and the rebalances share.
pub(super) struct ReaderShared {
    pub name: String,
    pub topic: String,
    pub group: String,
    state: Mutex<State>,
    pub consumer: Mutex<Option<Arc<BaseConsumer<Context>>>>,
}

#[derive(Default)]
pub(super) struct State {
    /// Rises with each seek: acknowledgements of before do not count after.
    pub epoch: u64,
    /// Why the reader has to go back.
    pub broken: Option<String>,
    /// Say so at the next read.
    pub is_told: bool,
    pub partitions: BTreeMap<i32, Partition>,
    /// The member of the group that they came to.
    member: String,
    /// The membership has to end: the group had given the partitions to others, and librdkafka does not know.
    pub is_expelled: bool,
    pub assignments: u64,
    /// Behind what was handed out last.
    pub cursor: u64,
    /// Handed in as acknowledged.
    pub acknowledged: u64,
    /// Acknowledged in a transaction that counts.
    pub durable: u64,
    /// Offsets behind the last acknowledged delivery and those that are not acknowledged.
    pub table: VecDeque<(u64, Behind)>,
    /// Offsets that a destination has; what comes before them is not read again.
    pub marks: BTreeMap<i32, i64>,
    /// Marks that were asked about since the last seek, while nothing was read.
    pub resolved: Vec<Resolved>,
    /// Events that retention took before they were read.
    pub lost: u64,
}

/// A mark that was asked about. Only the one that reading goes on at is of something that the destination has: that of a step whose
/// outcome is not known may be one that never counted.
pub(super) struct Resolved {
    cursor: u64,
    offsets: Offsets,
    behind: Behind,
}

/// Partition, its assignment, next offset. A partition that went and came back was read by others meanwhile: what
/// is known of an earlier assignment says nothing of the present one.
pub(super) type Behind = Vec<(i32, u64, i64)>;

#[derive(Debug, Clone, Copy)]
pub(super) struct Partition {
    /// Which assignment: it may go and come back.
    pub assignment: u64,
    /// The next offset to hand out; `None`: it is not known yet where to begin, and nothing is read.
    pub read: Option<i64>,
    pub acknowledged: Option<i64>,
    pub durable: Option<i64>,
    /// Nothing followed what was read last.
    pub is_at_end: bool,
}

/// An acknowledgement as offsets.
pub(super) struct ReaderAck {
    pub reader: Arc<ReaderShared>,
    epoch: u64,
    cursor: u64,
    /// Partition, its assignment, next offset.
    pub offsets: Behind,
    /// Nothing is new, and nothing of this reader is under way: it counts already.
    pub is_settled: bool,
}

impl ReaderShared {
    pub fn new(name: &str, topic: &str, group: &str) -> Arc<ReaderShared> {
        let (state, consumer) = Default::default();
        Arc::new(ReaderShared {
            name: name.into(),
            topic: topic.into(),
            group: group.into(),
            state,
            consumer,
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The acknowledged cursor, and what is handed out and not acknowledged.
    pub fn progress(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.acknowledged, state.cursor.saturating_sub(state.acknowledged))
    }

    /// Acknowledged offset of each partition that is ours, but of those that are read to their end and acknowledged: what
    /// is behind it there is the end of a transaction.
    pub fn unfinished(&self) -> Offsets {
        let state = self.state.lock();
        let is_open = |p: &Partition| !p.is_at_end || p.durable != p.read;
        let open = state.partitions.iter().filter(|(_, partition)| is_open(partition));
        open.filter_map(|(number, partition)| Some((*number, partition.durable?))).collect()
    }

    /// Turns an acknowledgement into offsets; `Err`: it comes too late.
    pub fn acknowledge(self: &Arc<Self>, cursor: u64) -> Result<ReaderAck, String> {
        let mut state = self.state.lock();
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let mut offsets = Vec::new();
        if cursor > state.acknowledged {
            let found = state.table.iter().find(|(behind, _)| *behind == cursor);
            let behind = found.map(|(_, offsets)| offsets.clone());
            let behind = behind.ok_or_else(|| format!("no delivery ends at {cursor}"))?;
            for (number, assignment, offset) in behind {
                let own = state.partitions.get_mut(&number).filter(|own| own.assignment == assignment);
                let Some(partition) = own else { continue };
                if partition.acknowledged.is_none_or(|before| before < offset) {
                    partition.acknowledged = Some(offset);
                    offsets.push((number, assignment, offset));
                }
            }
            state.acknowledged = cursor;
            state.table.retain(|(behind, _)| *behind >= cursor);
        }
        let is_settled = offsets.is_empty() && state.is_settled();
        Ok(ReaderAck { reader: self.clone(), epoch: state.epoch, cursor, offsets, is_settled })
    }

    /// Who the group thinks we are, if that is who our partitions came to. Fetched before [`ReaderShared::check`].
    pub fn member(&self) -> Result<ConsumerGroupMetadata, String> {
        let nobody = || "the reader is no member of its group".to_owned();
        let consumer = self.consumer.lock().clone().ok_or_else(nobody)?;
        let metadata = consumer.group_metadata().ok_or_else(nobody)?;
        // After it: an id that is still the old one was it then, too.
        self.state().is_member(&member::id(&consumer)).map(|()| metadata)
    }

    /// An acknowledgement that can still count.
    pub fn check(&self, ack: &ReaderAck) -> Result<(), String> {
        let state = self.state.lock();
        if state.epoch != ack.epoch {
            return Err("an acknowledgement before it was refused".into());
        }
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let is_ours = |(number, assignment, _): &(i32, u64, i64)| {
            state.partitions.get(number).is_some_and(|partition| partition.assignment == *assignment)
        };
        if ack.offsets.iter().all(is_ours) {
            Ok(())
        } else {
            Err(format!("partitions of {} went to another agent", self.topic))
        }
    }

    /// The acknowledgement's transaction counts.
    pub fn committed(&self, ack: &ReaderAck) {
        let mut state = self.state.lock();
        if state.epoch != ack.epoch {
            return;
        }
        state.durable = state.durable.max(ack.cursor);
        for (number, assignment, offset) in &ack.offsets {
            if let Some(partition) = state.partitions.get_mut(number).filter(|p| p.assignment == *assignment)
            {
                partition.durable = Some(*offset);
            }
        }
    }

    /// The acknowledgement never counts: the reader has to go back.
    pub fn refuse(&self, ack: &ReaderAck, reason: &str) {
        let mut state = self.state.lock();
        if state.epoch == ack.epoch {
            state.set_broken(reason.to_owned());
        }
    }
}

impl State {
    /// Nothing is acknowledged that is not durable.
    fn is_settled(&self) -> bool {
        self.partitions.values().all(|partition| partition.acknowledged == partition.durable)
    }

    /// Our partitions that are read, each with its assignment.
    pub fn assignments(&self) -> Vec<(i32, u64)> {
        let read = self.partitions.iter().filter(|(_, partition)| partition.read.is_some());
        read.map(|(number, partition)| (*number, partition.assignment)).collect()
    }

    /// Of the offsets of a mark those that are not durable; `None` while acknowledgements are under way.
    pub fn newer(&self, offsets: &Offsets) -> Result<Option<Behind>, String> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        if !self.is_settled() {
            return Ok(None);
        }
        let is_it = |behind: &Behind| {
            behind.len() == offsets.len()
                && behind.iter().zip(offsets).all(|(one, other)| (one.0, one.2) == *other)
        };
        let is_durable = |(number, offset): &(i32, i64)| {
            self.partitions
                .get(number)
                .is_none_or(|own| own.durable.is_some_and(|durable| *offset <= durable))
        };
        let Some((_, behind)) = self.table.iter().rev().find(|(_, behind)| is_it(behind)) else {
            let nothing_new = offsets.iter().all(is_durable);
            return if nothing_new {
                Ok(Some(Vec::new()))
            } else {
                Err("no delivery ends at the mark".into())
            };
        };
        let is_new = |(number, assignment, offset): &&(i32, u64, i64)| {
            let own = self.partitions.get(number).filter(|own| own.assignment == *assignment);
            own.is_some_and(|own| own.durable.is_none_or(|durable| durable < *offset))
        };
        Ok(Some(behind.iter().filter(is_new).copied().collect()))
    }

    /// These offsets are in the group.
    pub fn settle(&mut self, offsets: &Behind) {
        for (number, assignment, offset) in offsets {
            if let Some(own) = self.partitions.get_mut(number).filter(|own| own.assignment == *assignment) {
                (own.acknowledged, own.durable) = (Some(*offset), Some(*offset));
            }
        }
    }

    /// The group has these offsets, of whichever transaction: what is new of them counts as acknowledged.
    pub fn learn(&mut self, found: Behind) {
        let newer: Behind = found
            .into_iter()
            .filter(|(number, assignment, offset)| {
                let own = self.partitions.get(number).filter(|own| own.assignment == *assignment);
                own.and_then(|own| own.durable).is_some_and(|durable| durable < *offset)
            })
            .collect();
        for (number, _, offset) in &newer {
            let before = self.partitions.get(number).and_then(|own| own.durable);
            self.durable += before.map_or(0, |before| offset.abs_diff(before));
        }
        self.settle(&newer);
        self.acknowledged = self.durable;
        self.cursor = self.cursor.max(self.durable);
    }

    /// Partitions that came, and of which it is not known yet where to begin.
    pub fn waiting(&self) -> Vec<i32> {
        let waiting = self.partitions.iter().filter(|(_, partition)| partition.read.is_none());
        waiting.map(|(number, _)| *number).collect()
    }

    /// Whether the partitions came to this member.
    pub fn is_member(&mut self, id: &str) -> Result<(), String> {
        if self.partitions.is_empty() || self.member == id {
            return Ok(());
        }
        let reason = "the group had given our partitions to others meanwhile";
        // Without an id, librdkafka may still say that they are lost.
        self.is_expelled |= !id.is_empty();
        self.set_broken(reason.to_owned());
        Err(reason.to_owned())
    }

    /// Partitions come to this member; [`State::begin`] follows.
    pub fn come(&mut self, numbers: &[i32], id: &str) {
        if self.partitions.is_empty() {
            self.member = id.to_owned();
        }
        // Those that stayed are told of.
        self.is_member(id).ok();
        for number in numbers {
            self.assignments += 1;
            let assignment = self.assignments;
            let (read, acknowledged, durable) = Default::default();
            let partition = Partition { assignment, read, acknowledged, durable, is_at_end: false };
            self.partitions.insert(*number, partition);
        }
    }

    /// The cursor of a mark: what it adds to the group's offsets of the partitions that are read.
    pub fn resolve(&mut self, offsets: Offsets) -> u64 {
        let mut cursor = self.durable;
        let mut behind = Behind::new();
        for (number, partition) in &self.partitions {
            let stored = offsets.iter().find(|(of, _)| of == number).map(|(_, offset)| *offset);
            let Some(begin) = partition.durable else { continue };
            let offset = stored.unwrap_or(begin).max(begin);
            cursor += offset.abs_diff(begin);
            behind.push((*number, partition.assignment, offset));
        }
        self.resolved.push(Resolved { cursor, offsets, behind });
        cursor
    }

    /// Reading goes on at this cursor. If it is that of a mark, the destination has what comes before that, also of partitions that
    /// come later; gives back its offsets of those that are read, if it adds something to the group's.
    pub fn take_mark(&mut self, cursor: u64) -> Option<Behind> {
        let resolved = std::mem::take(&mut self.resolved);
        let mark = resolved.into_iter().rev().find(|mark| mark.cursor == cursor)?;
        self.marks.extend(mark.offsets);
        (cursor > self.durable).then_some(mark.behind)
    }

    /// The group's offset of a partition that waits; gives back where reading begins.
    pub fn begin(&mut self, number: i32, group: i64) -> Option<i64> {
        let read = group.max(self.marks.get(&number).copied().unwrap_or(group));
        let partition = self.partitions.get_mut(&number).filter(|partition| partition.read.is_none())?;
        (partition.acknowledged, partition.durable) = (Some(group), Some(group));
        partition.read = Some(read);
        Some(read)
    }

    /// It cannot be begun: it waits again.
    pub fn wait(&mut self, number: i32) {
        if let Some(partition) = self.partitions.get_mut(&number) {
            (partition.read, partition.acknowledged, partition.durable) = Default::default();
        }
    }

    /// The next offset of each partition that is read.
    pub fn places(&self) -> Offsets {
        let places = self.partitions.iter().filter_map(|(number, own)| Some((*number, own.read?)));
        places.collect()
    }

    /// Of a partition, what comes before `next` is gone.
    pub fn pass(&mut self, number: i32, next: i64, lost: u64) {
        self.lost += lost;
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.read = Some(next);
        }
    }

    /// Partitions go. True: something of them was handed out that their next owner delivers again.
    pub fn go(&mut self, numbers: &[i32], is_lost: bool) -> bool {
        let mut is_open = false;
        for number in numbers {
            if let Some(partition) = self.partitions.remove(number) {
                let unsettled = if is_lost { partition.durable } else { partition.acknowledged };
                is_open |= partition.read != unsettled;
            }
        }
        is_open
    }

    pub fn set_broken(&mut self, reason: String) {
        self.broken.get_or_insert(reason);
        self.acknowledged = self.durable;
        for partition in self.partitions.values_mut() {
            partition.acknowledged = partition.durable;
        }
        self.is_told = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Partition 0 is at 10 in the group, and a delivery that ends at 25 was handed out.
    fn delivered() -> State {
        let own = Partition {
            assignment: 1,
            read: Some(25),
            acknowledged: Some(10),
            durable: Some(10),
            is_at_end: false,
        };
        let mut state = State { cursor: 15, ..State::default() };
        state.partitions.insert(0, own);
        state.table.push_back((15, vec![(0, 1, 25)]));
        state
    }

    #[test]
    fn what_a_mark_adds_is_handed_over_once() {
        let mut state = delivered();
        assert_eq!(state.newer(&vec![(0, 25)]), Ok(Some(vec![(0, 1, 25)])));
        assert_eq!(state.newer(&vec![(0, 10)]), Ok(Some(vec![])));
        assert!(state.newer(&vec![(0, 20)]).is_err());
        state.settle(&vec![(0, 1, 25)]);
        assert_eq!(state.newer(&vec![(0, 25)]), Ok(Some(vec![])));
    }

    #[test]
    fn an_acknowledgement_under_way_is_waited_for_and_a_moved_partition_is_left_out() {
        let mut state = delivered();
        state.partitions.get_mut(&0).unwrap().acknowledged = Some(12);
        assert_eq!(state.newer(&vec![(0, 25)]), Ok(None));
        let mut state = delivered();
        state.partitions.get_mut(&0).unwrap().assignment = 2;
        assert_eq!(state.newer(&vec![(0, 25)]), Ok(Some(vec![])));
        state.set_broken("gone".into());
        assert_eq!(state.newer(&vec![(0, 25)]), Err("gone".into()));
    }

    #[test]
    fn a_partition_waits_until_its_offset_is_known() {
        let mut state = State::default();
        state.come(&[0, 1], "a");
        state.marks.insert(1, 30);
        assert_eq!((state.begin(0, 10), state.begin(0, 12), state.waiting()), (Some(10), None, vec![1]));
        assert_eq!((state.places(), state.assignments()), (vec![(0, 10)], vec![(0, 1)]));
        // What a destination has of it is not read again.
        assert_eq!(state.begin(1, 20), Some(30));
        state.wait(1);
        assert_eq!((state.waiting(), state.begin(1, 40)), (vec![1], Some(40)));
        // It went and came back: what was known of it is not any more.
        assert!(!state.go(&[0, 1], false));
        state.come(&[1], "a");
        assert_eq!(state.waiting(), [1]);
    }

    #[test]
    fn a_mark_that_never_counted_says_nothing_of_partitions_that_come_later() {
        let mut state = State::default();
        state.come(&[0, 1], "a");
        state.begin(0, 10);
        // What the destination has. The offset of partition 1 is not known yet.
        let stored = state.resolve(vec![(0, 20), (1, 40)]);
        assert_eq!((stored, state.take_mark(stored)), (10, Some(vec![(0, 1, 20)])));
        // That of a step which was on record when the agent died.
        assert_eq!(state.resolve(vec![(0, 25), (1, 60)]), 15);
        assert_eq!(state.begin(1, 30), Some(40), "40 to 60 are nowhere");
        assert!(state.table.is_empty(), "no delivery ends there");
        // Nor does it later.
        assert_eq!(state.take_mark(stored), None);
        state.go(&[1], false);
        state.come(&[1], "a");
        assert_eq!(state.begin(1, 30), Some(40));
    }

    #[test]
    fn a_mark_that_adds_nothing_to_the_groups_offsets_counts_where_they_are_not_known() {
        let mut state = State::default();
        state.come(&[0, 1], "a");
        state.begin(0, 10);
        let stored = state.resolve(vec![(0, 5), (1, 40)]);
        assert_eq!((stored, state.take_mark(stored)), (0, None));
        assert_eq!(state.begin(1, 30), Some(40));
    }

    #[test]
    fn of_two_marks_of_one_cursor_the_one_that_was_asked_about_last_counts() {
        let mut state = State::default();
        state.come(&[0, 1], "a");
        state.begin(0, 10);
        // Where the number of lanes changed, long ago; then what the destination has.
        let cursors = [state.resolve(vec![(0, 5), (1, 20)]), state.resolve(vec![(0, 10), (1, 40)])];
        assert_eq!((cursors, state.take_mark(0)), ([0, 0], None));
        assert_eq!(state.begin(1, 30), Some(40));
    }

    #[test]
    fn a_partition_that_goes_with_open_deliveries_is_told() {
        let mut state = delivered();
        state.partitions.get_mut(&0).unwrap().acknowledged = Some(25);
        let mut lost = delivered();
        lost.partitions.get_mut(&0).unwrap().acknowledged = Some(25);
        assert!(!state.go(&[0], false), "its acknowledgement may count");
        assert!(lost.go(&[0], true), "its acknowledgement is refused");
        assert!(delivered().go(&[0], false));
    }

    #[test]
    fn what_came_to_another_member_is_not_acknowledged() {
        let mut state = State::default();
        state.come(&[0, 1], "a");
        assert_eq!(state.is_member("a"), Ok(()));
        // It has no id for a moment: librdkafka may say that all is lost, and go on.
        assert!(state.is_member("").is_err() && !state.is_expelled);
        state.go(&[0, 1], true);
        state.broken = None;
        state.come(&[1], "b");
        assert_eq!((state.is_member("b"), state.broken.is_some()), (Ok(()), false));
        // It kept what came to the member that it was.
        state.come(&[], "c");
        assert!(state.is_expelled && state.broken.is_some());
        assert!(state.is_member("c").is_err() && state.newer(&vec![(1, 5)]).is_err());
    }

    #[test]
    fn what_the_group_has_after_a_transaction_in_doubt_counts() {
        let mut state = delivered();
        state.learn(vec![(0, 1, 25), (7, 1, 99)]);
        assert_eq!((state.durable, state.acknowledged), (15, 15));
        state.learn(vec![(0, 1, 20)]);
        assert_eq!(state.partitions[&0].durable, Some(25));
    }
}
