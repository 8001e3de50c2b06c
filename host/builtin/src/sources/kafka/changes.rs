//! Changes of the assignment, noted inside the consumer's poll and carried out by the loop around it: giving up a
//! partition needs the pipeline, which cannot be reached from in there.

use std::collections::VecDeque;
use std::sync::Arc;

use flumen_kafka::rdkafka::TopicPartitionList;
use flumen_kafka::rdkafka::consumer::{BaseConsumer, Consumer};
use flumen_kafka::{Context, Rebalance, member};
use parking_lot::Mutex;

/// What the group decided.
#[derive(Debug, Clone)]
pub enum Change {
    /// These come.
    Assigned {
        /// Which.
        list: TopicPartitionList,
        /// The member of the group that they come to.
        member: String,
    },
    /// These go.
    Revoked {
        /// Which.
        list: TopicPartitionList,
        /// Another may have them already.
        is_lost: bool,
    },
}

/// Changes that are not carried out yet, oldest first. librdkafka waits for each, so they are few.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<Mutex<VecDeque<Change>>>);

impl Changes {
    /// The oldest; it stays until [`Changes::done`].
    pub fn first(&self) -> Option<Change> {
        self.0.lock().front().cloned()
    }

    /// The oldest is carried out.
    pub fn done(&self) {
        self.0.lock().pop_front();
    }

    /// Tells librdkafka of everything that was not carried out: a consumer's end waits for it.
    pub fn abandon(&self, consumer: &BaseConsumer<Context>) {
        for change in self.0.lock().drain(..) {
            let outcome = match &change {
                Change::Assigned { list, .. } => consumer.incremental_assign(list),
                Change::Revoked { list, .. } => consumer.incremental_unassign(list),
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "a change of partitions came too late");
            }
        }
    }
}

impl Rebalance for Changes {
    fn assigned(&self, consumer: &BaseConsumer<Context>, partitions: &mut TopicPartitionList) {
        let change = Change::Assigned { list: partitions.clone(), member: member::id(consumer) };
        self.0.lock().push_back(change);
    }

    fn revoked(&self, _: &BaseConsumer<Context>, partitions: &TopicPartitionList, is_lost: bool) {
        self.0.lock().push_back(Change::Revoked { list: partitions.clone(), is_lost });
    }

    fn takes_over(&self) -> bool {
        true
    }
}
