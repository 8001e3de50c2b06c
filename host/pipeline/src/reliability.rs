//! How reliable a flow is, in Flume's three words, and what each can lose.
//!
//! - **end-to-end**: every event is on disk before its source goes on, and until its destination has it. Channels of kind `file`,
//!   and of kind `kafka` on the brokers' disks; of kind `source-backed` the source is that disk.
//! - **store-on-failure**: events are in memory; on disk only while the destination fails or is behind, and drained from there
//!   first. Channels of kind `spillable`.
//! - **best-effort**: memory alone. What finds no room for a while is dropped and counted. Channels of kind `memory`.
//!
//! What is lost, and when, is said by `flumen check`, and how much it would be now by `flumen status` (`events_at_risk`).

use std::time::Duration;

use crate::plan::{ChannelKind, ChannelPlan, SecondaryKind};

/// How long a best-effort flow waits for a destination that takes nothing, unless its file says otherwise: Flume's keep-alive.
pub const DROP_AFTER: Duration = Duration::from_secs(3);

/// Events that a channel holds in memory unless its file says otherwise.
pub const MEMORY_EVENTS: u64 = 1_000_000;

/// Memory that it takes unless its file says otherwise.
pub const MEMORY_BYTES: u64 = 256 << 20;

/// How reliable a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reliability {
    /// On disk until delivered.
    EndToEnd,
    /// On disk while the destination fails.
    StoreOnFailure,
    /// Never on disk.
    BestEffort,
}

impl Reliability {
    /// All of them, the strongest first.
    pub const ALL: [Reliability; 3] =
        [Reliability::EndToEnd, Reliability::StoreOnFailure, Reliability::BestEffort];

    /// The word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Reliability::EndToEnd => "end-to-end",
            Reliability::StoreOnFailure => "store-on-failure",
            Reliability::BestEffort => "best-effort",
        }
    }

    /// What a channel of this kind makes of its flow.
    pub fn of(kind: &ChannelKind) -> Reliability {
        match kind {
            ChannelKind::File | ChannelKind::SourceBacked | ChannelKind::Shared { .. } => {
                Reliability::EndToEnd
            }
            ChannelKind::Spillable { .. } => Reliability::StoreOnFailure,
            ChannelKind::Memory { .. } => Reliability::BestEffort,
        }
    }

    /// The kind of a channel that says nothing itself.
    pub fn kind(self) -> ChannelKind {
        match self {
            Reliability::EndToEnd => ChannelKind::File,
            Reliability::StoreOnFailure => {
                ChannelKind::Spillable { memory_events: MEMORY_EVENTS, memory_bytes: MEMORY_BYTES }
            }
            Reliability::BestEffort => ChannelKind::Memory { drop_after: Some(DROP_AFTER) },
        }
    }
}

/// What a channel can lose, and when. `is_durable`: its journal syncs before it acknowledges.
pub fn loss_window(channel: &ChannelPlan, is_durable: bool) -> String {
    let os = "a power cut can lose, or bring twice, what was taken in the last half minute";
    let with_os = |own: String| if is_durable { own } else { format!("{own}; {os}") };
    let memory = |events: u64, bytes: u64| {
        format!(
            "an end without a clean stop (kill -9, power) loses what is in memory: at most {events} events or {} MiB",
            bytes >> 20
        )
    };
    let own = match &channel.kind {
        ChannelKind::Shared { .. } => "nothing is lost that its brokers keep".to_owned(),
        ChannelKind::SourceBacked => {
            "nothing is lost that its sources can still read after a crash: what is truncated or deleted before it was delivered cannot"
                .to_owned()
        }
        ChannelKind::File if is_durable => "nothing is lost".to_owned(),
        ChannelKind::File => os.to_owned(),
        ChannelKind::Spillable { memory_events, memory_bytes } => {
            with_os(memory(*memory_events, *memory_bytes))
        }
        ChannelKind::Memory { drop_after } => {
            let lost = memory(channel.capacity_events, channel.capacity_bytes);
            let dropped = drop_after.map(|after| {
                let after_s = after.as_secs_f64();
                format!("; when nothing is acknowledged for {after_s} s, events that find no room are dropped and counted")
            });
            with_os(lost + &dropped.unwrap_or_default())
        }
    };
    let Some(failover) = &channel.failover else { return own };
    match (failover.kind, &channel.kind) {
        (SecondaryKind::Memory, _) => {
            let lost = memory(failover.capacity_events, failover.capacity_bytes);
            format!("{own}; while its failover is in use, {lost} there")
        }
        (SecondaryKind::File, ChannelKind::Spillable { .. }) => {
            format!(
                "{own}; a disk that fails takes what is in memory, too, if the agent ends before it is back"
            )
        }
        (SecondaryKind::File, _) => own,
    }
}
