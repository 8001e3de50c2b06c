//! The channel kind `kafka`: a journal whose channels are topics.
//!
//! Events are records of the channel's topic, so that many agents share one durable channel and sinks may stand on
//! other machines. A group of commits is one Kafka transaction of one transactional producer
//! (`flumen/AGENT/PIPELINE/journal`):
//! - puts: one record per event ([`record`]), to the partition of its stream, so that the order of a stream holds;
//! - positions and state: records of the compacted topics `flumen-positions` and `flumen-state` ([`registers`]), each
//!   agent's and pipeline's own; what plugins remember is read back once, at the start ([`remembered`]);
//! - acknowledgements: offsets of the reader's consumer group, sent into the transaction with the member's generation,
//!   so that a member whose partitions have gone to another agent is refused ([`reader`]);
//! - a *commit record* with the group's number: what tells, after an outcome that is not known, whether it counted.
//!
//! A Kafka sink on the same cluster has its reader's acknowledgement in its own transaction ([`handover`]).
//!
//! An unknown outcome: the producer is destroyed and made anew, `init_transactions` ends what was open, the commit
//! record is read back, and the same commits are sent again if it is not there ([`committer`]). If the record is of
//! another session, another agent with the same name has taken over, and this journal fails and says so.
//!
//! The quarantine stays on this machine, in a file journal beside ([`limbo`]): an event that is too large for the
//! topic would not fit into a topic of quarantined events either.
//!
//! Failure modes: no broker: commits wait, readers find nothing, `status` says why; a start without a broker waits
//! with the first read of a position, and with the first batch of a plugin that remembers (both are in Kafka). A reader's partitions go to another agent: the reader
//! says [`flumen_journal::ReadError::Moved`], what was read and not acknowledged is read by the other.

mod assignment;
mod away;
mod committer;
mod connection;
mod handover;
mod health;
mod journal;
mod limbo;
mod mark;
mod monitor;
mod options;
mod place;
mod queue;
mod reader;
mod record;
mod registers;
mod remembered;
mod share;
mod topics;

pub(crate) use connection::in_slices;
pub(crate) use handover::send_offsets;
pub use handover::{Acknowledgement, Acknowledger, Taken};
pub use journal::{KafkaJournal, KafkaOpenError};
pub(crate) use options::check_topic;
pub use options::{ChannelTopic, JournalOptions, SPEC};
