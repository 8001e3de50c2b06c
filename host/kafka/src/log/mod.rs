//! A failover's journal in a topic of Kafka: the log of a [`LogJournal`] is one partition.
//!
//! The only writer is the transactional producer `flumen/AGENT/PIPELINE/failover`: whoever takes its id over has fenced every earlier
//! one, and what that had begun is undone. An append is one transaction, a place is an offset, and what nobody needs any more is
//! deleted with `DeleteRecords`. Who reads sees what is committed alone.
//!
//! The topic has one partition, because its order is that of the events, and keeps records until they are deleted: it is made so if it is
//! missing ([`topic`]), and refused if it is otherwise. Each record has the id as its key: a topic with those of another id is refused.
//!
//! How it fails: a cluster that cannot be reached is tried for as long as it takes, and so is a topic that is refused: it may be set
//! right meanwhile. A topic that is deleted while it is in use takes nothing any more, also if there is a new one, and that is told: what it
//! held is lost, and only a start goes on without it. An end of a transaction that a broker lost is written again before anything else
//! ([`crate::ends`]).

mod look;
mod options;
mod reader;
mod topic;
mod writer;

use std::io;
use std::sync::Arc;

use flumen_journal::log::{LogConfig, LogJournal};
use flumen_journal::{ChannelSpec, Journal, Keys, OsClock};

pub use look::is_in_use;
pub use options::{LogOptions, SPEC};
use writer::KafkaLog;

/// Begins to open the journal, and returns at once: the cluster is reached from a thread ([`Journal::is_read`]).
///
/// # Errors
/// If the system gives no thread.
pub fn open(options: LogOptions, channels: Vec<ChannelSpec>, keys: Keys) -> io::Result<Arc<dyn Journal>> {
    let config = LogConfig::new(&options.name(), channels, keys);
    let journal = LogJournal::open(config, Box::new(KafkaLog::new(options)), Arc::new(OsClock))?;
    Ok(journal)
}
