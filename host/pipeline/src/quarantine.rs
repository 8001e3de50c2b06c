//! The quarantine: events that could not be processed or delivered, each with its reason.
//!
//! They leave the flow in the same commit that moves the position of their source (or the cursor of
//! their sink), into the channel [`CHANNEL`] of the pipeline's journal. From there [`Keeper`] moves
//! them to a journal of their own, so that an event kept for weeks does not hold the pipeline's
//! segments: a hop, with the cursor stored in the same commit as the events, hence exactly once.
//!
//! The quarantine is bounded ([`limits::QUARANTINE_EVENTS_MAX`], [`limits::QUARANTINE_BYTES_MAX`]); past
//! that the oldest events expire, counted and logged.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::StringArray;
use flumen_event::{Batch, BatchError};
use flumen_journal::{Ack, ChannelId, ChannelSpec, Commit, Journal, Put, Reader, ReaderId};

use crate::interceptor::Quarantined;
use crate::kept::Kept;
use crate::limits;
use crate::sink::SinkError;
use crate::source::Wake;

/// The quarantine's channel in a pipeline's journal.
pub const CHANNEL: &str = "quarantine";
/// The reader of [`CHANNEL`].
pub const READER: &str = "keeper";
/// The channel of the quarantine's own journal.
pub const KEPT_CHANNEL: &str = "events";
/// The reader of [`KEPT_CHANNEL`]: what an operator has replayed or dropped, and what has expired.
pub const KEPT_READER: &str = "operator";

/// Why the event is here.
pub const HEADER_REASON: &str = "flumen.reason";
/// The plugin or component that could not take it.
pub const HEADER_BY: &str = "flumen.by";
/// The plugin's content hash.
pub const HEADER_HASH: &str = "flumen.hash";
/// `rejected` (the plugin's own verdict) or `failed` (trap, timeout, memory, lying answer, destination).
pub const HEADER_KIND: &str = "flumen.kind";
/// What [`HEADER_BY`] is the name of: `source`, `interceptor` or `sink`.
pub const HEADER_ROLE: &str = "flumen.role";

/// The source that the event came from, if it was on its way to the channels: its selector counts when it is replayed.
pub const HEADER_SOURCE: &str = "flumen.source";

/// The headers that an event has in quarantine only.
pub const LABELS: [&str; 6] =
    [HEADER_REASON, HEADER_BY, HEADER_HASH, HEADER_KIND, HEADER_ROLE, HEADER_SOURCE];

const CURSOR_KEY: &[u8] = b"keeper/cursor";

/// The channel in the pipeline's journal.
pub fn channel_spec() -> ChannelSpec {
    ChannelSpec {
        name: CHANNEL.into(),
        readers: vec![READER.into()],
        capacity_events: limits::QUARANTINE_EVENTS_MAX,
        capacity_bytes: limits::QUARANTINE_BYTES_MAX,
    }
}

/// The channel of the quarantine's own journal. The keeper bounds it, so a put never waits.
pub fn kept_channel_spec() -> ChannelSpec {
    ChannelSpec {
        name: KEPT_CHANNEL.into(),
        readers: vec![KEPT_READER.into()],
        capacity_events: u64::MAX,
        capacity_bytes: u64::MAX,
    }
}

/// The events with their reasons as headers.
pub fn labelled(group: Quarantined) -> Result<Batch, BatchError> {
    let rows = group.batch.rows();
    let constant = |value: &str| StringArray::from_iter_values(std::iter::repeat_n(value, rows));
    let kind = if group.rejected { "rejected" } else { "failed" };
    let mut reasons = group.reasons;
    reasons.resize(rows, String::new());
    for reason in &mut reasons {
        truncate(reason, flumen_event::limits::REASON_BYTES_MAX);
    }
    group
        .batch
        .with_header(HEADER_REASON, StringArray::from_iter_values(reasons))?
        .with_header(HEADER_BY, constant(&group.by))?
        .with_header(HEADER_HASH, constant(&group.hash))?
        .with_header(HEADER_KIND, constant(kind))
}

fn truncate(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
}

/// Puts of quarantined groups, for the commit that takes them out of the flow. `role`: what those are that are no plugin.
/// `source`: whose events they are, before the channels.
pub fn puts(channel: ChannelId, groups: Vec<Quarantined>, role: &str, source: Option<&str>) -> Vec<Put> {
    let mut puts = Vec::new();
    for group in groups {
        if group.batch.is_empty() {
            continue;
        }
        let plain = group.batch.clone();
        let role = if group.hash.is_empty() { role } else { "interceptor" };
        let roles = StringArray::from_iter_values(std::iter::repeat_n(role, plain.rows()));
        let labelled = labelled(group).and_then(|batch| batch.with_header(HEADER_ROLE, roles));
        let labelled = labelled.and_then(|batch| match source {
            Some(source) => {
                let sources = StringArray::from_iter_values(std::iter::repeat_n(source, batch.rows()));
                batch.with_header(HEADER_SOURCE, sources)
            }
            None => Ok(batch),
        });
        let batch = labelled.unwrap_or_else(|error| {
            // Too many headers or bytes for the labels: the events matter more than the reason.
            tracing::error!(%error, events = plain.rows(), "events go to quarantine without their reason");
            plain
        });
        puts.push(Put { channels: vec![channel], batch });
    }
    puts
}

/// Moves events from the pipeline's journal to the quarantine's own. Runs on a thread of its own.
pub struct Keeper {
    /// The pipeline's journal.
    pub from: Arc<dyn Journal>,
    /// The quarantine's journal.
    pub to: Arc<Kept>,
    /// Ends the waits.
    pub wake: Wake,
}

struct Places {
    channel: ChannelId,
    reader: ReaderId,
}

impl Keeper {
    /// Runs until the pipeline stops and the channel is empty, or a journal closes.
    pub fn run(self) {
        let places = (|| {
            let channel = self.from.channel(CHANNEL)?;
            Some(Places { channel, reader: self.from.reader_id(channel, READER)? })
        })();
        let Some(places) = places else {
            tracing::error!(
                "the quarantine's channels are missing; its events stay in the pipeline's journal"
            );
            return;
        };
        let mut reader = self.from.open_reader(places.channel, places.reader);
        let mut pause = limits::RETRY_FIRST;
        loop {
            match self.move_events(&places, reader.as_mut()) {
                Ok(()) | Err(SinkError::Stopped) => return,
                Err(
                    SinkError::Retry(reason)
                    | SinkError::Moved(reason)
                    | SinkError::Fatal(reason)
                    | SinkError::Again { reason, .. },
                ) => {
                    tracing::error!(%reason, "quarantine: cannot keep events now, trying again");
                    if self.wake.wait(pause) {
                        return;
                    }
                    pause = (pause * 2).min(limits::RETRY_MAX);
                }
            }
        }
    }

    fn move_events(&self, places: &Places, reader: &mut dyn Reader) -> Result<(), SinkError> {
        let stored = self.to.position(CURSOR_KEY).and_then(|value| value.as_slice().try_into().ok());
        let stored = stored.map_or(0, u64::from_le_bytes);
        let (acknowledged, head) = (reader.acknowledged(), head(self.from.as_ref(), places.channel));
        if stored > head {
            // Of another journal: to skip up to there would lose events.
            tracing::error!(stored, head, "quarantine: its cursor is past the channel's end and is not used");
        }
        let cursor = if stored > head { acknowledged } else { stored.max(acknowledged) };
        reader.seek(cursor).map_err(retry)?;
        if cursor > acknowledged {
            self.acknowledge(places, cursor)?;
        }
        loop {
            // Asked before the read: only a read that began when all had come finds the channel empty.
            let is_stopping = self.wake.stopping();
            let wait = if is_stopping { Duration::ZERO } else { limits::SINK_WAIT };
            let Some(delivery) = reader.next(wait).map_err(|error| match error {
                flumen_journal::ReadError::Closing => SinkError::Stopped,
                other => retry(other),
            })?
            else {
                if is_stopping {
                    return Ok(());
                }
                continue;
            };
            let cursor = delivery.first + delivery.batch.rows() as u64;
            self.to.put(delivery.batch, vec![(CURSOR_KEY.to_vec(), cursor.to_le_bytes().to_vec())])?;
            self.acknowledge(places, cursor)?;
        }
    }

    fn acknowledge(&self, places: &Places, cursor: u64) -> Result<(), SinkError> {
        let ack = Ack { channel: places.channel, reader: places.reader, cursor };
        settle(self.from.as_ref(), Commit { acks: vec![ack], ..Commit::default() })
    }
}

/// Events ever put to a channel.
pub(crate) fn head(journal: &dyn Journal, channel: ChannelId) -> u64 {
    journal.status().channels.get(usize::from(channel.0)).map_or(0, |channel| channel.head)
}

fn settle(journal: &dyn Journal, commit: Commit) -> Result<(), SinkError> {
    journal.commit_and_wait(commit, None).map(|_| ()).map_err(stopped_or_retry)
}

fn stopped_or_retry(error: flumen_journal::CommitError) -> SinkError {
    match error {
        flumen_journal::CommitError::Closing => SinkError::Stopped,
        other => SinkError::Retry(other.to_string()),
    }
}

fn retry(error: impl std::fmt::Display) -> SinkError {
    SinkError::Retry(error.to_string())
}
