//! Taking partitions over and giving them up, and the group's offsets on the broker.
//!
//! Order, always: the journal first, the group's offset behind it. A partition is given up when both are done.

use std::time::{Duration, Instant};

use flumen_kafka::Context;
use flumen_kafka::rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use flumen_kafka::rdkafka::{Offset, TopicPartitionList};
use flumen_pipeline::{Metric, SourceError};

use super::changes::Change;
use super::limits;
use super::partitions::Position;
use super::reader::Reader;
use super::start::{list, starts};

impl Reader<'_> {
    /// Does what the group decided.
    pub(super) fn carry_out(&mut self, consumer: &BaseConsumer<Context>) -> Result<(), SourceError> {
        while let Some(change) = self.changes.first() {
            self.context.metrics.add(Metric::SourceRebalances, 1);
            match change {
                Change::Assigned(list) => {
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
            let (is_new, generation) =
                (!partition.is_known || partition.emitted != *offset, partition.generation);
            tracing::info!(source = %self.context.name, partition = partition.name(), offset, "reading begins");
            self.table.set(*index, Position { next: *offset, generation });
            if let Some(partition) = self.table.get_mut(*index) {
                partition.is_assigned = true;
                partition.group = group.unwrap_or(-1);
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
                    return Err(flumen_pipeline::Stopped.into());
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
        self.note_durable();
        let behind: Vec<usize> = indexes
            .iter()
            .copied()
            .filter(|index| self.table.get(*index).is_some_and(|p| p.durable >= 0 && p.durable != p.group))
            .collect();
        if !behind.is_empty() {
            let offset =
                |index| Offset::Offset(self.table.get(index).map_or(0, |partition| partition.durable));
            let committed = list(&self.table, &behind, offset)
                .and_then(|list| consumer.commit(&list, CommitMode::Sync).map_err(|e| e.to_string()));
            match committed {
                Ok(()) => {
                    for index in &behind {
                        if let Some(partition) = self.table.get_mut(*index) {
                            partition.group = partition.durable;
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(source = %self.context.name, %error, "the group does not take the offsets of partitions that are given up");
                    self.count_twice(indexes);
                }
            }
        }
        self.forget(indexes);
        Ok(())
    }

    /// Others may read these already.
    pub(super) fn lost(&mut self, indexes: &[usize]) {
        self.note_durable();
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
        let beyond = |index: &usize| {
            let partition = self.table.get(*index).filter(|partition| partition.is_assigned)?;
            let known = if partition.group < 0 { partition.emitted } else { partition.group };
            u64::try_from(partition.emitted - known).ok()
        };
        let twice = indexes.iter().filter_map(beyond).sum();
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
    pub(super) fn commit_durable(&mut self, consumer: &BaseConsumer<Context>) {
        self.committed = Instant::now();
        if !self.settings.uses_group() {
            return;
        }
        self.note_durable();
        let refused = consumer.context().group_commits().refused;
        if refused != self.refused {
            // Which ones is not known, and sending an offset twice costs nothing.
            self.refused = refused;
            self.table.iter_mut().for_each(|partition| partition.group = -1);
        }
        let behind: Vec<usize> = self
            .table
            .iter()
            .filter(|(_, p)| p.is_assigned && p.durable >= 0 && p.durable != p.group)
            .map(|(index, _)| index)
            .collect();
        if behind.is_empty() {
            return;
        }
        let offset = |index| Offset::Offset(self.table.get(index).map_or(0, |partition| partition.durable));
        let sent = list(&self.table, &behind, offset)
            .and_then(|list| consumer.commit(&list, CommitMode::Async).map_err(|error| error.to_string()));
        match sent {
            Ok(()) => {
                self.sent += 1;
                for index in behind {
                    if let Some(partition) = self.table.get_mut(index) {
                        partition.group = partition.durable;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "offsets could not be sent to the group; tried again"),
        }
    }

    /// The end of a run: what was read becomes durable, the group learns of it, then the consumer may go. What is
    /// in the unfinished batch is read again.
    pub fn leave(&mut self) {
        let consumer = self.consumer.clone();
        let begun = Instant::now();
        let settled = |reader: &Self| {
            let progress = reader.context.progress();
            progress.durable >= progress.emitted
        };
        while !settled(self) && begun.elapsed() < limits::LEAVE {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.changes.abandon(&consumer);
        self.commit_durable(&consumer);
        let begun = Instant::now();
        while consumer.context().group_commits().answered < self.sent
            && begun.elapsed() < limits::LEAVE_COMMIT
        {
            // Records that come now are read again.
            drop(consumer.poll(Duration::from_millis(10)));
        }
        self.table.iter_mut().for_each(|partition| partition.is_assigned = false);
        self.context.metrics.set(Metric::SourcePartitions, 0);
    }
}
