//! A position that the broker does not have: records were deleted before they were read, or the log is another one.

use std::time::{Duration, Instant};

use flumen_kafka::admin::questioner;
use flumen_kafka::rdkafka::Offset;
use flumen_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use flumen_kafka::{Context, words};
use flumen_pipeline::{Metric, SourceError, Stopped};

use super::limits;
use super::partitions::Position;
use super::reader::Reader;
use super::start::{list, offsets_at};

/// Pause before partitions that turn out to be in order are read again: bounds how often this is asked.
const AGAIN: Duration = Duration::from_millis(500);

impl Reader<'_> {
    /// librdkafka does not say which partition it was, so all are looked at.
    pub(super) fn gaps(&mut self, consumer: &BaseConsumer<Context>) -> Result<(), SourceError> {
        self.emit()?;
        let assigned = self.table.assigned();
        let (first, end) = match self.ends(consumer, &assigned) {
            Ok(ends) => ends,
            // The next error of the same kind, or a new consumer, asks again.
            Err(text) => return Err(SourceError::Retry(text)),
        };
        let mut moved = Vec::new();
        let (mut is_found, mut is_new_log) = (false, false);
        for ((index, first), end) in assigned.iter().copied().zip(first).zip(end) {
            let (Some(first), Some(end), Some(partition)) = (first, end, self.table.get(index)) else {
                continue;
            };
            let position = Position { next: partition.next, generation: partition.generation };
            let name = partition.name();
            let is_behind = position.next < first;
            if self.trouble.stands(index) || (first..=end).contains(&position.next) {
                continue;
            }
            let goes_on = match is_behind {
                true => self.overrun(index, &name, position, first),
                false => self.new_log(index, &name, position, first, end),
            };
            if goes_on {
                moved.push(index);
                is_new_log |= !is_behind;
            }
            is_found = true;
        }
        if !is_found {
            moved = assigned.into_iter().filter(|index| !self.trouble.stands(*index)).collect();
            self.context.wait(AGAIN)?;
        }
        self.emit()?;
        if is_new_log && self.settings.uses_group() {
            self.overrule_group(&moved)?;
        }
        self.read_again(consumer, &moved).map_err(SourceError::Retry)
    }

    #[allow(clippy::type_complexity, reason = "two columns, taken apart at once")]
    fn ends(
        &mut self,
        consumer: &BaseConsumer<Context>,
        indexes: &[usize],
    ) -> Result<(Vec<Option<i64>>, Vec<Option<i64>>), String> {
        let first = offsets_at(consumer, &mut self.table, indexes, Offset::Beginning)?;
        // For a reader of committed records the end is before the first open transaction. A group's offset may lie
        // behind that, and is no sign of another log.
        let mut config = self.settings.client.config("flumen-end");
        config.set("isolation.level", "read_uncommitted");
        let witness = questioner(&self.context.name, &self.settings.client, &config)
            .map_err(|error| words::explain(&error, &self.settings.client, None))?;
        let end = offsets_at(&witness, &mut self.table, indexes, Offset::End)?;
        Ok((first, end))
    }

    /// False: the partition stops here.
    fn overrun(&mut self, index: usize, name: &str, position: Position, first: i64) -> bool {
        let lost = first - position.next;
        let range = format!("{} to {}", position.next, first - 1);
        let text = format!(
            "the broker deleted records of {name} before they were read: offsets {range}, at most {lost} records; \
             lengthen the topic's retention, or look why reading is slow"
        );
        if self.settings.stops_on_gap {
            let fix = "it is not read any more because on_gap is \"stop\"; to go on behind the gap set it to \"continue\"";
            self.trouble.stand(index, format!("{text}; {fix}"));
            return false;
        }
        tracing::error!(source = %self.context.name, partition = name, offsets = range, records_at_most = lost, "{text}");
        self.context.metrics.add(Metric::SourceRecordsLost, lost.unsigned_abs());
        self.begin_at(index, Position { next: first, ..position });
        true
    }

    /// As [`Reader::overrun`].
    fn new_log(&mut self, index: usize, name: &str, position: Position, first: i64, end: i64) -> bool {
        let text = format!(
            "{name} ends at offset {end}, but was read up to {}: the topic was made anew, or its leader lost its log",
            position.next
        );
        if self.settings.stops_on_gap {
            let fix = "it is not read any more because on_gap is \"stop\"; to read it from its first record set it to \"continue\"";
            self.trouble.stand(index, format!("{text}; {fix}"));
            return false;
        }
        tracing::error!(source = %self.context.name, partition = name, "{text}; it is read from its first record, {first}");
        self.context.metrics.add(Metric::SourceGenerations, 1);
        self.begin_at(index, Position { next: first, generation: position.generation.wrapping_add(1) });
        true
    }

    fn begin_at(&mut self, index: usize, position: Position) {
        self.table.set(index, position);
        if let Some(partition) = self.table.get_mut(index) {
            self.out.touch(index, partition);
        }
    }

    /// The group's offset is of the old log and further; a restart must not take it.
    fn overrule_group(&mut self, indexes: &[usize]) -> Result<(), SourceError> {
        self.context.settle()?;
        self.note_durable();
        let begun = Instant::now();
        loop {
            if self.stay()? {
                self.send(indexes);
            }
            if !self.commits.is_under_way() {
                return Ok(());
            }
            let refused = self.answered(limits::POLL);
            if refused.is_some() || begun.elapsed() > limits::ASK {
                tracing::warn!(source = %self.context.name, error = refused, "the group still has the offset of the old log");
                return Ok(());
            }
            if self.context.stopping() {
                return Err(Stopped.into());
            }
        }
    }

    /// librdkafka stopped fetching what was out of range, and a seek does not start it.
    fn read_again(&mut self, consumer: &BaseConsumer<Context>, indexes: &[usize]) -> Result<(), String> {
        if indexes.is_empty() {
            return Ok(());
        }
        let offset = |index| Offset::Offset(self.table.get(index).map_or(0, |partition| partition.next));
        let list = list(&self.table, indexes, offset)?;
        consumer.incremental_unassign(&list).map_err(|error| error.to_string())?;
        consumer.incremental_assign(&list).map_err(|error| error.to_string())?;
        tracing::debug!(
            partitions = indexes.len(),
            asked_within_ms = limits::ASK.as_millis() as u64,
            "read again"
        );
        Ok(())
    }
}
