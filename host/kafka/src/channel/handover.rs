//! The channel's acknowledgement in another's transaction: how a Kafka sink on the same cluster is exactly-once.
//!
//! The sink's transaction holds its records and, with the member's generation, the group's offsets behind them. So
//! whoever gets the partitions next begins behind exactly what was delivered, on this machine or on another. The rules of
//! [`super::reader`] hold: the generation is fetched first, then the partitions are looked at. The thread that
//! delivers is the one that polls, so nothing changes between the two; a member that the group has dropped meanwhile is
//! refused by the broker.
//!
//! Two ways to write a group's offsets must never be under way side by side, since the older could come last. An
//! acknowledgement that the journal's own transaction has is waited for ([`Taken::Wait`]), and while a sink has this way,
//! the journal's transaction has no offsets of its reader.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::mark;
use super::share::{Behind, ReaderShared};
use crate::context::Context;
use crate::settings::Settings;
use crate::topics::Topics;
use crate::{limits, words};

/// What the reader of a Kafka channel gives to a sink: [`flumen_journal::Reader::acknowledger`].
pub struct Acknowledger {
    shared: Arc<ReaderShared>,
    settings: Arc<Settings>,
    cluster: OnceLock<String>,
}

/// What is to be acknowledged with a mark.
pub enum Taken {
    /// Nothing that is new.
    Nothing,
    /// The journal has an acknowledgement under way: soon.
    Wait,
    /// What was delivered is not ours any more.
    Late(String),
    /// This, as this member of the group.
    Now(Acknowledgement, ConsumerGroupMetadata),
}

/// Offsets for a transaction.
pub struct Acknowledgement {
    shared: Arc<ReaderShared>,
    newer: Behind,
}

impl Acknowledger {
    pub(super) fn new(shared: Arc<ReaderShared>, settings: Arc<Settings>) -> Arc<Acknowledger> {
        Arc::new(Acknowledger { shared, settings, cluster: OnceLock::new() })
    }

    /// The group, and the topic that it reads.
    pub fn group(&self) -> (String, String) {
        (self.shared.group.clone(), self.shared.topic.clone())
    }

    /// The cluster's own name; `None` if no broker says it in time.
    pub fn cluster_id(&self) -> Option<String> {
        if let Some(known) = self.cluster.get() {
            return Some(known.clone());
        }
        let topics = Topics::new(&format!("channel of sink {}", self.shared.name), &self.settings).ok()?;
        let asked = topics.cluster_id()?;
        Some(self.cluster.get_or_init(|| asked).clone())
    }

    /// Learns what the group has of our partitions: after a transaction whose outcome is not known. To be called when
    /// nothing of ours is open any more.
    pub fn refresh(&self) -> Result<(), String> {
        let Some(consumer) = self.shared.consumer.lock().clone() else { return Ok(()) };
        let assigned = self.shared.state().assignments();
        if assigned.is_empty() {
            return Ok(());
        }
        let topic = self.shared.topic.as_str();
        let mut list = TopicPartitionList::new();
        for (number, _) in &assigned {
            list.add_partition(topic, *number);
        }
        let committed = consumer.committed_offsets(list, limits::REQUEST).map_err(|error| {
            format!("the offsets of the group {}: {}", self.shared.group, consumer.context().explain(&error))
        })?;
        let mut found = Behind::new();
        for (number, assignment) in assigned {
            let Some(element) = committed.find_partition(topic, number) else { continue };
            element.error().map_err(|error| {
                let text = consumer.context().explain(&error);
                format!("the offset of the group {} in partition {number}: {text}", self.shared.group)
            })?;
            if let Some(offset) = element.offset().to_raw().filter(|offset| *offset >= 0) {
                found.push((number, assignment, offset));
            }
        }
        self.shared.state().learn(found);
        Ok(())
    }

    /// The acknowledgement that belongs to a mark of the reader.
    pub fn take(&self, mark: &[u8]) -> Taken {
        let late = |reason: &str| Taken::Late(format!("{reason} (group {})", self.shared.group));
        let Some(offsets) = mark::decode(&self.shared.topic, mark) else {
            return late("the mark is of another channel");
        };
        // First the generation, then whether the partitions are ours.
        let member = self.shared.member();
        let newer = match self.shared.state().newer(&offsets) {
            Ok(Some(newer)) if newer.is_empty() => return Taken::Nothing,
            Ok(Some(newer)) => newer,
            Ok(None) => return Taken::Wait,
            Err(reason) => return late(&reason),
        };
        match member {
            Ok(member) => Taken::Now(Acknowledgement { shared: self.shared.clone(), newer }, member),
            Err(reason) => late(&reason),
        }
    }
}

impl Acknowledgement {
    /// Puts the offsets into the producer's open transaction. `owner` has the producer, and is given back; an error
    /// instead of it: nobody wanted to wait any longer, and it went with the call.
    pub fn send<T: Send + 'static>(
        &self,
        member: ConsumerGroupMetadata,
        owner: T,
        producer: fn(&T) -> &BaseProducer<Context>,
        timeout: Duration,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(T, KafkaResult<()>), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (number, _, offset) in &self.newer {
            list.add_partition_offset(&self.shared.topic, *number, Offset::Offset(*offset))?;
        }
        send_offsets(owner, producer, list, member, timeout, give_up)
    }

    /// In words, if the group's members are why the offsets were refused.
    pub fn refusal(&self, error: &KafkaError) -> Option<String> {
        is_membership(error).then(|| {
            let group = &self.shared.group;
            format!("the members of the group {group} have changed")
        })
    }

    /// The transaction counts.
    pub fn counts(self) {
        self.shared.state().settle(&self.newer);
    }
}

/// True if the group coordinator says that the member, or its generation, is not the group's any more.
pub(super) fn is_membership(error: &KafkaError) -> bool {
    matches!(
        words::code(error),
        Some(
            Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::FencedInstanceId
                | Code::RebalanceInProgress
        )
    )
}

/// Sends offsets into the transaction. librdkafka's call has no end while no broker answers, whatever timeout it is
/// given: it is made on a thread of its own, which is left behind, with the producer, when nobody wants the outcome any
/// more. What it may still do then is no commit: the transaction ends with the id's next `init_transactions`.
pub(crate) fn send_offsets<T: Send + 'static>(
    owner: T,
    producer: fn(&T) -> &BaseProducer<Context>,
    offsets: TopicPartitionList,
    member: ConsumerGroupMetadata,
    timeout: Duration,
    give_up: &dyn Fn() -> bool,
) -> Result<(T, KafkaResult<()>), KafkaError> {
    let (tell, told) = crossbeam_channel::bounded(1);
    let call = move || {
        let outcome = producer(&owner).send_offsets_to_transaction(&offsets, &member, timeout);
        // Nobody may be there to hear.
        tell.send((owner, outcome)).ok();
    };
    let timed_out = || KafkaError::Flush(Code::OperationTimedOut);
    std::thread::Builder::new().name("kafka-offsets".into()).spawn(call).map_err(|_| timed_out())?;
    let until = Instant::now() + timeout;
    loop {
        match told.recv_timeout(limits::SLICE) {
            Ok(told) => return Ok(told),
            Err(_) if give_up() || Instant::now() > until => return Err(timed_out()),
            Err(_) => {}
        }
    }
}
