//! The quarantine of a Kafka journal, on this machine.
//!
//! Its channel is in a file journal beside. Events leave the flow into it exactly once although two stores have to
//! agree: before a group's transaction what it quarantines is put on record here, with the group's number; when the
//! transaction counts, the record becomes events of the quarantine channel; when the transaction is found not to count,
//! it is forgotten. After a crash the commit record in Kafka tells which.
//!
//! The record is the value of a position: u64 number, then each batch (u64 length, bytes of
//! [`flumen_event::layout`]). Little-endian.

use std::sync::Arc;

use arrow_buffer::Buffer;
use flumen_event::{Batch, layout};
use flumen_journal::{ChannelId, Commit, CommitError, Journal, Put};

pub(super) const KEY: &[u8] = b"limbo";

/// The quarantine's side of a Kafka journal.
pub(super) struct Limbo {
    pub journal: Arc<dyn Journal>,
    pub channel: ChannelId,
}

impl Limbo {
    /// Puts on record what the group `number` takes out of the flow.
    pub fn prepare(&self, number: u64, batches: &[Batch]) -> Result<(), CommitError> {
        if batches.is_empty() && self.journal.position(KEY).is_none() {
            return Ok(());
        }
        let value = if batches.is_empty() { Vec::new() } else { encode(number, batches) };
        self.commit(Commit { positions: vec![(KEY.to_vec(), value)], ..Commit::default() })
    }

    /// `number` is the last group that counted: what is on record counts, or is forgotten.
    pub fn settle(&self, number: u64) -> Result<(), CommitError> {
        let Some(record) = self.journal.position(KEY).filter(|record| !record.is_empty()) else {
            return Ok(());
        };
        let puts = match decode(&record) {
            Some((of, batches)) if of <= number => {
                let put = |batch| Put { channels: vec![self.channel], batch };
                batches.into_iter().map(put).collect()
            }
            Some(_) => Vec::new(),
            None => {
                tracing::error!("a record of events for quarantine is not readable");
                Vec::new()
            }
        };
        self.commit(Commit { puts, positions: vec![(KEY.to_vec(), Vec::new())], ..Commit::default() })
    }

    fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let ticket = self.journal.commit(commit, None)?;
        ticket.wait(None).unwrap_or(Err(CommitError::Closing)).map(|_| ())
    }
}

fn encode(number: u64, batches: &[Batch]) -> Vec<u8> {
    let mut record = number.to_le_bytes().to_vec();
    for batch in batches {
        let bytes = layout::encode(batch).to_vec();
        record.extend((bytes.len() as u64).to_le_bytes());
        record.extend(bytes);
    }
    record
}

fn decode(record: &[u8]) -> Option<(u64, Vec<Batch>)> {
    let (number, mut rest) = record.split_first_chunk::<8>()?;
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let (bytes, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        batches.push(layout::decode(Buffer::from(bytes)).ok()?);
        rest = after;
    }
    Some((u64::from_le_bytes(*number), batches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_event::BatchBuilder;
    use flumen_journal::{FileConfig, FileJournal, OsClock, OsDisk};
    use flumen_pipeline::quarantine;
    use proptest::prelude::*;

    fn batch(rows: u64) -> Batch {
        let mut builder = BatchBuilder::default();
        (0..rows).for_each(|row| builder.push(1, row, 7, b"body"));
        builder.finish(vec![]).unwrap()
    }

    #[test]
    fn what_is_on_record_counts_with_its_group_only() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let config = FileConfig { dir: dir.path().join("j"), reserve_bytes: 0, ..FileConfig::default() };
            let specs = vec![quarantine::channel_spec()];
            let journal = FileJournal::open(config, specs, Arc::new(OsDisk), Arc::new(OsClock)).unwrap();
            let channel = journal.channel(quarantine::CHANNEL).unwrap();
            Limbo { journal, channel }
        };
        let head = |limbo: &Limbo| limbo.journal.status().channels[0].head;
        let limbo = open();
        limbo.prepare(5, &[batch(3), batch(1)]).unwrap();
        limbo.settle(4).unwrap();
        limbo.settle(5).unwrap();
        assert_eq!(head(&limbo), 0, "group 5 did not count");
        limbo.prepare(5, &[batch(3), batch(1)]).unwrap();
        limbo.journal.close().unwrap();
        let limbo = open();
        limbo.settle(5).unwrap();
        limbo.settle(5).unwrap();
        assert_eq!(head(&limbo), 4);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            decode(&bytes);
        }
    }
}
