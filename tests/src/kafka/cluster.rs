//! Three brokers that are one cluster: what has a leader can lose it.
//!
//! The first node is the controller too, and stays; the others can be killed. What the cluster keeps for itself
//! (transactions, groups) and every topic without replicas of its own lies on all three, and two of them have to
//! have a record before it counts.

use std::thread;

use anyhow::{Result, bail};

use super::broker::{Broker, BrokerOptions};
use super::client::Client;

/// A small heap: there are three.
const HEAP_MIB: u32 = 320;

/// What differs from a broker that is alone.
const REPLICATED: [(&str, &str); 6] = [
    ("default.replication.factor", "3"),
    ("min.insync.replicas", "2"),
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.replication.factor", "3"),
    ("transaction.state.log.min.isr", "2"),
    ("share.coordinator.state.topic.replication.factor", "3"),
];

/// Nodes 1, 2 and 3.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
}

impl Cluster {
    /// Starts all three and waits until they are ready.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn start() -> Result<Self> {
        let properties = REPLICATED.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = BrokerOptions { heap_mib: HEAP_MIB, properties, ..BrokerOptions::default() };
        let mut nodes = vec![Broker::start(&options)?];
        let controller = nodes.first().map(|first| first.ports().controller());
        let others: Vec<Result<Broker>> = thread::scope(|scope| {
            let start = |node: u16| {
                let options = BrokerOptions { node, controller, ..options.clone() };
                scope.spawn(move || Broker::start(&options))
            };
            let threads: Vec<_> = [2, 3].map(start).into_iter().collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        for other in others {
            nodes.push(other?);
        }
        Ok(Self { nodes })
    }

    /// A node, by its number.
    ///
    /// # Errors
    /// If there is none of that number.
    pub fn node(&mut self, number: u16) -> Result<&mut Broker> {
        match self.nodes.get_mut(usize::from(number).wrapping_sub(1)) {
            Some(node) => Ok(node),
            None => bail!("the cluster has no node {number}"),
        }
    }

    /// The addresses of all nodes, for the list of an option.
    #[must_use]
    pub fn brokers(&self) -> Vec<String> {
        self.nodes.iter().map(Broker::bootstrap).collect()
    }

    /// An oracle on all nodes.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.brokers().join(","))
    }
}
