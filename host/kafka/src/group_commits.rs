//! Committing a group's offsets to the broker without waiting, and learning what became of it.
//!
//! librdkafka's own way to commit without waiting tells nobody that a commit was refused (it has an answer only for
//! applications that register a callback, which rdkafka does not). So a thread of its own waits for each answer.
//! One commit is under way at a time; what piles up meanwhile goes with the next.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::context::Context;

/// Topic, partition, and the offset of the next record to read.
pub type Offsets = Vec<(Arc<str>, i32, i64)>;

/// What became of a commit.
#[derive(Debug)]
pub struct Answer {
    /// What was to be committed.
    pub offsets: Offsets,
    /// Whether it is.
    pub outcome: KafkaResult<()>,
}

/// See the module.
#[derive(Debug)]
pub struct GroupCommits {
    orders: Option<Sender<Offsets>>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
    is_under_way: bool,
}

impl GroupCommits {
    /// Starts the thread. It holds the consumer until it has its last answer.
    pub fn start(name: &str, consumer: Arc<BaseConsumer<Context>>) -> io::Result<GroupCommits> {
        let (orders, inbox) = channel::<Offsets>();
        let (outbox, answers) = channel();
        let thread = std::thread::Builder::new().name(format!("group-{name}")).spawn(move || {
            for offsets in inbox {
                let outcome = list(&offsets).and_then(|list| consumer.commit(&list, CommitMode::Sync));
                if outbox.send(Answer { offsets, outcome }).is_err() {
                    return;
                }
            }
        })?;
        Ok(GroupCommits { orders: Some(orders), answers, thread: Some(thread), is_under_way: false })
    }

    /// True while an answer is awaited: nothing can be sent.
    pub fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// Sends offsets. False: the last answer is still awaited.
    pub fn send(&mut self, offsets: Offsets) -> bool {
        if self.is_under_way {
            return false;
        }
        self.is_under_way = self.orders.as_ref().is_some_and(|orders| orders.send(offsets).is_ok());
        self.is_under_way
    }

    /// The answer, if it comes within this time.
    pub fn answer(&mut self, wait: Duration) -> Option<Answer> {
        if !self.is_under_way {
            return None;
        }
        let answer = self.answers.recv_timeout(wait).ok()?;
        self.is_under_way = false;
        Some(answer)
    }
}

impl Drop for GroupCommits {
    fn drop(&mut self) {
        self.orders = None;
        // While it waits for a broker that is away it is left alone: it ends, and lets go of the consumer, by itself.
        if let Some(thread) = self.thread.take().filter(|_| !self.is_under_way)
            && thread.join().is_err()
        {
            tracing::error!("the thread that commits a group's offsets panicked (a bug of Flumen)");
        }
    }
}

fn list(offsets: &Offsets) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (topic, partition, next) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*next))?;
    }
    Ok(list)
}
