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
    let there = match failover.kind {
        SecondaryKind::File | SecondaryKind::Kafka => None,
        SecondaryKind::Memory => Some(memory(failover.capacity_events, failover.capacity_bytes)),
        SecondaryKind::Spillable => Some(memory(failover.memory_events, failover.memory_bytes)),
    };
    let there = there.map(|lost| format!("; while its failover is in use, {lost} there")).unwrap_or_default();
    let with_disk = match &channel.kind {
        // A clean stop writes it to the journal, which is on that disk.
        ChannelKind::Memory { .. } | ChannelKind::Spillable { .. } => {
            "; a disk that fails takes what is in memory, too, if the agent ends before it is back"
        }
        ChannelKind::File | ChannelKind::SourceBacked | ChannelKind::Shared { .. } => "",
    };
    format!("{own}{there}{with_disk}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Options;
    use crate::limits::KEEP_ALIVE;
    use crate::plan::FailoverPlan;

    fn channel(kind: ChannelKind, failover: Option<SecondaryKind>) -> ChannelPlan {
        let plan = |kind| FailoverPlan {
            kind,
            dir: None,
            check_interval: Duration::from_secs(1),
            fail_after: 1,
            return_after: 1,
            capacity_events: 77,
            capacity_bytes: 78 << 20,
            memory_events: 33,
            memory_bytes: 34 << 20,
        };
        ChannelPlan {
            name: "main".into(),
            capacity_events: 11,
            capacity_bytes: 12 << 20,
            keep_alive: KEEP_ALIVE,
            kind,
            failover: failover.map(plan),
            failover_options: Options::default(),
        }
    }

    #[test]
    fn what_a_failover_can_lose_is_what_it_has_in_memory() {
        let kinds = [
            ChannelKind::File,
            ChannelKind::SourceBacked,
            ChannelKind::Memory { drop_after: None },
            ChannelKind::Spillable { memory_events: 22, memory_bytes: 23 << 20 },
            ChannelKind::Shared { kind: "kafka".into(), options: Options::default() },
        ];
        for kind in kinds {
            let of = |failover| loss_window(&channel(kind.clone(), failover), true);
            let own = of(None);
            let durable = of(Some(SecondaryKind::File));
            assert_eq!(of(Some(SecondaryKind::Kafka)), durable);
            let is_in_memory = matches!(kind, ChannelKind::Memory { .. } | ChannelKind::Spillable { .. });
            assert_eq!(durable == own, !is_in_memory, "{durable}");
            assert!(
                durable.starts_with(&own) && !durable.contains("while its failover is in use"),
                "{durable}"
            );
            for (failover, lost) in [
                (SecondaryKind::Memory, "at most 77 events or 78 MiB there"),
                (SecondaryKind::Spillable, "at most 33 events or 34 MiB there"),
            ] {
                let text = of(Some(failover));
                assert!(
                    text.starts_with(&own) && text.contains("; while its failover is in use, "),
                    "{text}"
                );
                assert!(text.contains(lost), "{text}");
            }
        }
    }
}
