//! Consumer groups: who is in them, what they committed, how far behind they are.

use std::collections::BTreeMap;

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::groups::GroupInfo;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use crate::{limits, words};

use super::link::{Link, Trouble};
use super::offsets;
use super::topics::{self, Topic};

/// A group.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// `Stable`, `Empty`, `Dead`, …, as the broker says it.
    pub state: String,
    /// Members that are connected now.
    pub members: usize,
    /// Of all partitions with an offset or a member, by topic and number.
    pub partitions: Vec<Lag>,
}

/// How far behind a group is in one partition.
#[derive(Debug, Clone, Serialize)]
pub struct Lag {
    /// The topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Where the group goes on reading; absent: it has committed nothing here.
    pub committed: Option<i64>,
    /// The offset of the next record that will be written; absent: the partition has no leader.
    pub end: Option<i64>,
    /// Offsets between the two; from the oldest record if nothing is committed.
    pub lag: Option<i64>,
    /// Records that were deleted before the group read them (retention, or someone's hand).
    pub lost: i64,
    /// Who reads it now: `client id @ host`.
    pub member: Option<String>,
}

impl Group {
    /// The sum over its partitions.
    pub fn lag(&self) -> i64 {
        self.partitions.iter().filter_map(|partition| partition.lag).sum()
    }
}

/// The names of all groups that this login may see.
pub fn names(link: &Link) -> Result<Vec<String>, Trouble> {
    let list = link.ask(|limit| link.client().fetch_group_list(None, limit))?;
    let mut names: Vec<String> = list.groups().iter().map(|group| group.name().to_string()).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// One group and its lag in the given topics (all that there are). `None`: the cluster does not know it.
pub fn describe(link: &Link, name: &str, topics: &[Topic]) -> Result<Option<Group>, Trouble> {
    let list = link.ask(|limit| match link.client().fetch_group_list(Some(name), limit) {
        Err(error) if words::code(&error) == Some(Code::GroupAuthorizationFailed) => Ok(None),
        answer => answer.map(Some),
    })?;
    let list = list.ok_or_else(|| hidden(name))?;
    let info = list.groups().iter().find(|group| group.name() == name);
    let owners = info.map(owners).unwrap_or_default();
    let committed = committed(link, name, topics)?;
    let state = info.map(|info| info.state().to_string()).filter(|state| !state.is_empty());
    if committed.is_empty() && owners.is_empty() && state.as_deref().is_none_or(|state| state == "Dead") {
        return Ok(None);
    }
    let of_group = |topic: &str, partition: i32| {
        let key = (topic.to_string(), partition);
        committed.contains_key(&key) || owners.contains_key(&key)
    };
    let mut concerned: Vec<Topic> = topics.to_vec();
    for topic in &mut concerned {
        let name = topic.name.clone();
        topic.partitions.retain(|partition| of_group(&name, partition.id));
    }
    concerned.retain(|topic| !topic.partitions.is_empty());
    let ranges = offsets::ranges(link, &concerned)?;
    let mut partitions = Vec::new();
    for topic in &concerned {
        for partition in &topic.partitions {
            let key = (topic.name.clone(), partition.id);
            let (committed, range) = (committed.get(&key).copied(), ranges.get(&key));
            partitions.push(Lag {
                topic: topic.name.clone(),
                partition: partition.id,
                committed,
                end: range.map(|range| range.end),
                lag: range
                    .map(|range| (range.end - committed.unwrap_or(range.first).max(range.first)).max(0)),
                lost: range.zip(committed).map_or(0, |(range, committed)| (range.first - committed).max(0)),
                member: owners.get(&key).cloned(),
            });
        }
    }
    let members = info.map_or(0, |info| info.members().len());
    Ok(Some(Group { name: name.into(), state: state.unwrap_or_else(|| "Empty".into()), members, partitions }))
}

/// All topics, for [`describe`].
pub fn topics(link: &Link) -> Result<Vec<Topic>, Trouble> {
    topics::list(link, None)
}

fn committed(link: &Link, group: &str, topics: &[Topic]) -> Result<BTreeMap<(String, i32), i64>, Trouble> {
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in &topic.partitions {
            list.add_partition(&topic.name, partition.id);
        }
    }
    if list.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let reader = link.reader(Some(group), false)?;
    let answer = reader.committed_offsets(list, limits::ADMIN).map_err(|error| {
        let context = reader.client().context();
        // librdkafka asks on and on for the coordinator of a group that this login may not see.
        let is_hidden = match words::code(&error) {
            Some(Code::GroupAuthorizationFailed) => true,
            Some(Code::OperationTimedOut) => context.last_error().is_none(),
            _ => false,
        };
        if is_hidden { hidden(group) } else { Trouble(context.explain(&error)) }
    })?;
    let mut committed = BTreeMap::new();
    for element in answer.elements() {
        if let Offset::Offset(offset) = element.offset() {
            committed.insert((element.topic().to_string(), element.partition()), offset);
        }
    }
    Ok(committed)
}

fn hidden(group: &str) -> Trouble {
    Trouble(format!(
        "this login may not see group {group:?}, or the group has no coordinator (`flumen kafka check` tells): ask for \
         DESCRIBE and READ on it"
    ))
}

/// Who reads which partition.
fn owners(group: &GroupInfo) -> BTreeMap<(String, i32), String> {
    let mut owners = BTreeMap::new();
    for member in group.members() {
        let who = format!("{} @ {}", member.client_id(), member.client_host().trim_start_matches('/'));
        let assigned = member.assignment().and_then(assignment).unwrap_or_default();
        owners.extend(assigned.into_iter().map(|key| (key, who.clone())));
    }
    owners
}

/// Kafka's ConsumerProtocolAssignment, any version: `version i16, [topic string, [partition i32]], …`, big-endian.
fn assignment(bytes: &[u8]) -> Option<Vec<(String, i32)>> {
    let mut bytes = super::bytes::Reader(bytes);
    bytes.i16()?;
    let mut all = Vec::new();
    for _ in 0..bytes.i32()? {
        let topic = bytes.string()?;
        for _ in 0..bytes.i32()? {
            all.push((topic.clone(), bytes.i32()?));
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_assignment_is_read() {
        let bytes = b"\x00\x01\x00\x00\x00\x01\x00\x02ab\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x07\xff\xff\xff\xff";
        assert_eq!(assignment(bytes), Some(vec![("ab".into(), 3), ("ab".into(), 7)]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_assignment_or_none(bytes: Vec<u8>) {
            assignment(&bytes);
        }
    }
}
