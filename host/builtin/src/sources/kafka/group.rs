//! Taking partitions over and giving them up, and the group's offsets on the broker.
//!
//! Order, always: the journal first, the group's offset behind it. A partition is given up when both are done.

use std::time::{Duration, Instant};

use flumen_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use flumen_kafka::rdkafka::{Offset, TopicPartitionList};
use flumen_kafka::{Context, member};
use flumen_pipeline::{Metric, SourceError, Stopped};

use super::changes::Change;
use super::limits;
use super::partitions::{Partition, Position};
use super::reader::{End, Reader};
use super::start::{list, starts};

impl Reader<'_> {
    /// Does what the group decided.
    pub(super) fn carry_out(&mut self, consumer: &BaseConsumer<Context>) -> Result<(), SourceError> {
        while let Some(change) = self.changes.first() {
            self.context.metrics.add(Metric::SourceRebalances, 1);
            match change {
                Change::Assigned { list, member } => {
                    // Those that stayed came to whom they came.
                    if self.table.assigned().is_empty() {
                        self.member = Some(member);
                    }
                    self.stay()?;
                    let indexes = self.indexes(&list);
                    while let Err(text) = self.take_over(consumer, &indexes) {
                        self.trouble.say(text);
                        self.context.wait(limits::ASK_AGAIN)?;
                    }
                }
                Change::Revoked { list, is_lost } => {
                    let indexes = self.indexes(&list);
                    if is_lost || consumer.assignment_lost() {
                        self.lost(&indexes);
                    } else {
                        self.hand_over(consumer, &indexes)?;
                    }
                    consumer.incremental_unassign(&list).map_err(|error| {
                        SourceError::Retry(format!("partitions cannot be given up: {error}"))
                    })?;
                }
            }
            self.changes.done();
            self.count();
        }
        Ok(())
    }

    /// [`Reader::is_member`]; an error: this membership ends.
    pub(super) fn stay(&mut self) -> Result<bool, SourceError> {
        let is_member = self.is_member();
        match self.ends {
            None => Ok(is_member),
            Some(_) => Err(SourceError::Retry("the group has expelled this agent".into())),
        }
    }

    /// Whether the group may hear of offsets: it takes those of any member, also for partitions that are another's.
    fn is_member(&mut self) -> bool {
        let member = self.member.as_ref().filter(|_| !self.table.assigned().is_empty());
        let Some(member) = member else { return true };
        let id = member::id(&self.consumer);
        let is_member = id == *member;
        // Without an id it joins again: then it hears that all is lost, or it is another.
        if !is_member && !id.is_empty() {
            self.end(End::Expelled);
        }
        is_member
    }

    /// Nothing of what is being read is this member's any more.
    pub(super) fn end(&mut self, end: End) {
        self.lost(&self.table.assigned());
        self.out.discard(&mut self.table);
        self.ends = Some(end);
    }

    fn indexes(&mut self, list: &TopicPartitionList) -> Vec<usize> {
        list.elements().iter().map(|element| self.table.index(element.topic(), element.partition())).collect()
    }

    fn count(&self) {
        let assigned = self.table.assigned();
        self.context.metrics.set(Metric::SourcePartitions, assigned.len() as u64);
        tracing::info!(source = %self.context.name, partitions = assigned.len(), "partitions being read");
    }

    /// Begins to read these. An error: nothing was begun.
    fn take_over(&mut self, consumer: &BaseConsumer<Context>, indexes: &[usize]) -> Result<(), String> {
        let uses_group = self.settings.uses_group();
        let found = starts(consumer, &mut self.table, indexes, uses_group, self.settings.start)?;
        for (index, offset, group) in &found {
            let Some(partition) = self.table.get(*index) else { continue };
            // Also what was lost and came back before what had been read of it was durable.
            let is_known = partition.is_known && partition.emitted == *offset && partition.durable == *offset;
            let (is_new, generation) = (!is_known, partition.generation);
            tracing::info!(source = %self.context.name, partition = partition.name(), offset, "reading begins");
            self.table.set(*index, Position { next: *offset, generation });
            if let Some(partition) = self.table.get_mut(*index) {
                partition.is_assigned = true;
                partition.group = group.unwrap_or(-1);
                // Not before it is durable here: an older one of this agent would set the group back.
                partition.durable = if is_new { -1 } else { *offset };
                // What `start` meant is decided once: it goes into the journal before the first record.
                if is_new {
                    self.out.touch(*index, partition);
                }
            }
        }
        let offset = |index| Offset::Offset(self.table.get(index).map_or(0, |partition| partition.next));
        let begin = list(&self.table, indexes, offset)?;
        consumer
            .incremental_assign(&begin)
            .map_err(|error| format!("partitions cannot be taken: {error}"))?;
        self.trouble.over();
        Ok(())
    }

    /// Begins those of a fixed list that are there by now.
    pub(super) fn begin_waiting(&mut self, consumer: &BaseConsumer<Context>) -> Result<(), SourceError> {
        let mut failed = Vec::new();
        let waiting = std::mem::take(&mut self.waiting);
        if self.take_over(consumer, &waiting).is_err() {
            // One that is missing must not hold up the others.
            for index in &waiting {
                if self.context.stopping() {
                    return Err(Stopped.into());
                }
                if let Err(text) = self.take_over(consumer, &[*index]) {
                    failed.push((*index, text));
                }
            }
        }
        if let Some((index, text)) = failed.first() {
            let name = self.table.get(*index).map(|partition| partition.name()).unwrap_or_default();
            self.trouble.say(format!("{} partitions cannot be read yet, {name} first: {text}", failed.len()));
        }
        self.waiting = failed.into_iter().map(|(index, _)| index).collect();
        self.count();
        Ok(())
    }

    /// Everything read of these becomes durable, then the group learns how far they are.
    fn hand_over(&mut self, consumer: &BaseConsumer<Context>, indexes: &[usize]) -> Result<(), SourceError> {
        self.emit()?;
        self.context.settle()?;
        let mut refused = None;
        for _ in 0..limits::HAND_OVER_TRIES {
            self.note_durable();
            if self.behind(indexes).is_empty() {
                self.forget(indexes);
                return Ok(());
            }
            if consumer.assignment_lost() {
                break;
            }
            let is_member = self.stay()?;
            if is_member {
                self.send(indexes);
            }
            while self.commits.is_under_way() && !consumer.assignment_lost() {
                if self.context.stopping() {
                    return Err(Stopped.into());
                }
                refused = self.answered(limits::POLL);
            }
            if refused.is_some() || !is_member {
                self.context.wait(limits::HAND_OVER_AGAIN)?;
            }
        }
        tracing::error!(source = %self.context.name, error = refused, "the group does not take the offsets of partitions that are given up");
        self.lost(indexes);
        Ok(())
    }

    /// Others may read these already.
    pub(super) fn lost(&mut self, indexes: &[usize]) {
        self.note_durable();
        let is_read = |index: &usize| self.table.get(*index).is_some_and(|partition| partition.is_assigned);
        if !indexes.iter().any(is_read) {
            return;
        }
        let twice = self.count_twice(indexes);
        self.forget(indexes);
        if self.table.assigned().is_empty() {
            // Nobody waits for it here, and who reads these partitions now reads it.
            self.out.discard(&mut self.table);
        }
        tracing::error!(
            source = %self.context.name,
            partitions = indexes.len(),
            records_at_most = twice,
            "the group gave partitions of this agent to others because it heard nothing for `session_timeout` (the \
             machine stood still, or no broker could be reached); what was read since the last commit to the group may \
             come twice"
        );
    }

    fn count_twice(&self, indexes: &[usize]) -> u64 {
        let read = indexes.iter().filter_map(|index| self.table.get(*index)).filter(|it| it.is_assigned);
        let twice = read.map(Partition::beyond_group).sum();
        self.context.metrics.add(Metric::SourceRecordsTwice, twice);
        twice
    }

    fn forget(&mut self, indexes: &[usize]) {
        for index in indexes {
            if let Some(partition) = self.table.get_mut(*index) {
                partition.is_assigned = false;
            }
            self.trouble.forget(*index);
        }
        // What becomes durable later must not set the group's offset when the partition comes back.
        for (_, moved) in &mut self.emissions {
            moved.retain(|(index, _)| !indexes.contains(index));
        }
    }

    /// Looks which emissions have become durable.
    pub(super) fn note_durable(&mut self) {
        let durable = self.context.progress().durable;
        while self.emissions.front().is_some_and(|(number, _)| *number <= durable) {
            for (index, next) in self.emissions.pop_front().into_iter().flat_map(|(_, moved)| moved) {
                if let Some(partition) = self.table.get_mut(index) {
                    partition.durable = next;
                }
            }
        }
    }

    /// Tells the group how far the journal is, without waiting for the answer.
    pub(super) fn commit_durable(&mut self) -> Result<(), SourceError> {
        self.committed = Instant::now();
        self.note_durable();
        if let Some(error) = self.answered(Duration::ZERO) {
            // Usual while the group changes; it goes again with the next.
            tracing::debug!(source = %self.context.name, error, "the group did not take the offsets");
        }
        if self.stay()? {
            self.send(&self.table.assigned());
        }
        Ok(())
    }

    /// Those of which the group does not know how far they are.
    fn behind(&self, indexes: &[usize]) -> Vec<usize> {
        let is_behind = |index: &usize| {
            self.table.get(*index).is_some_and(|p| p.is_assigned && p.durable >= 0 && p.durable != p.group)
        };
        match self.settings.uses_group() {
            true => indexes.iter().copied().filter(is_behind).collect(),
            false => Vec::new(),
        }
    }

    /// Sends the group what it does not know yet, unless an answer is awaited.
    pub(super) fn send(&mut self, indexes: &[usize]) {
        let behind = self.behind(indexes);
        if !behind.is_empty() && !self.commits.is_under_way() {
            let offset =
                |index: &usize| self.table.get(*index).map(|p| (p.topic.clone(), p.number, p.durable));
            self.commits.send(behind.iter().filter_map(offset).collect());
        }
    }

    /// Notes the group's answer, if it comes within this time; the error if it refused.
    pub(super) fn answered(&mut self, wait: Duration) -> Option<String> {
        let answer = self.commits.answer(wait)?;
        if let Err(error) = answer.outcome {
            return Some(error.to_string());
        }
        for (topic, number, offset) in answer.offsets {
            let index = self.table.index(&topic, number);
            if let Some(partition) = self.table.get_mut(index) {
                partition.group = offset;
            }
        }
        None
    }

    /// The end of a run: what was read becomes durable, the group learns of it, then the consumer may go. What is
    /// in the unfinished batch is read again.
    pub fn leave(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < limits::LEAVE {
            let progress = self.context.progress();
            if progress.durable >= progress.emitted {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let begun = Instant::now();
        while begun.elapsed() < limits::LEAVE_COMMIT {
            self.note_durable();
            if self.is_member() {
                self.send(&self.table.assigned());
            }
            if !self.commits.is_under_way() {
                break;
            }
            if let Some(error) = self.answered(limits::POLL) {
                tracing::warn!(source = %self.context.name, error, "the group does not take the last offsets");
                break;
            }
        }
        self.table.iter_mut().for_each(|partition| partition.is_assigned = false);
        self.context.metrics.set(Metric::SourcePartitions, 0);
    }
}
