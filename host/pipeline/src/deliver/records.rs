//! What a sink put into quarantine, on record while its destination is about to store the mark behind it ([`pending`]).

use flumen_event::Batch;
use flumen_journal::Put;
use flumen_journal::faults::{self, STORED_MARK_PLACE};

use super::Runner;
use crate::sink::{Sink, SinkError};
use crate::{limits, pending};

impl Runner {
    /// What leaves the flow with the step that has this mark, beside what is on record of earlier ones.
    pub(super) fn put_on_record(&mut self, mark: &[u8], early: &[Put]) -> Result<(), SinkError> {
        self.unsettled.retain(|record| record.mark != mark);
        let batches: Vec<Batch> = early.iter().map(|put| put.batch.clone()).collect();
        if !batches.is_empty() {
            self.unsettled.push(pending::Record { mark: mark.to_vec(), batches });
        }
        let steps = self.unsettled.len();
        self.unsettled.drain(..steps.saturating_sub(limits::PENDING_STEPS_MAX));
        self.pending.commit(self.pending.key.clone(), pending::encode(&self.unsettled))?;
        faults::passed(STORED_MARK_PLACE, "refused-on-record");
        Ok(())
    }

    /// What was on record when the last flush began, if there is a record: of it, the events that left the
    /// flow with what the destination holds. The others are delivered again.
    pub(super) fn settle_pending(&mut self, sink: &mut dyn Sink) -> Result<Option<Vec<Put>>, SinkError> {
        self.unsettled.clear();
        let Some(value) = self.place.journal.position(&self.pending.key) else { return Ok(None) };
        let (Some(records), Some(stored)) = (pending::decode(&value), self.stored) else {
            tracing::error!(sink = &*self.context.name, "a record of events for quarantine is not readable");
            return Ok(Some(Vec::new()));
        };
        // All of them began where the destination was: when it has taken one, the others come too late.
        let may_be_late = !sink.settles() && stored.until == self.reader.acknowledged();
        let (mut puts, mut is_changed): (Vec<Put>, bool) = (Vec::new(), false);
        for record in records {
            let held = sink.holds(&record.mark);
            let cursor = if held.is_none() { self.reader.resolve(&record.mark) } else { None };
            if may_be_late && cursor.is_some_and(|cursor| cursor > stored.until) {
                self.unsettled.push(record);
                continue;
            }
            is_changed = true;
            // Steps that began at one place have their first events in common.
            let earlier = puts.clone();
            for batch in record.batches {
                let mut kept = match cursor {
                    _ if held == Some(true) => batch,
                    Some(cursor) if cursor <= stored.from => batch,
                    Some(cursor) if cursor <= stored.until => {
                        let missing = sink.missing(batch.clone(), cursor)?;
                        pending::without(&batch, &missing)?
                    }
                    _ => continue,
                };
                for put in &earlier {
                    kept = pending::without(&kept, &put.batch)?;
                }
                if !kept.is_empty() {
                    puts.push(Put { channels: vec![self.place.quarantine], batch: kept });
                }
            }
        }
        Ok(is_changed.then_some(puts))
    }
}
