//! A real Kafka broker for tests and for people, and an oracle on a client of other make.
//!
//! [`install`] fetches Apache Kafka, a Python client and makes certificates, once per target directory;
//! [`broker`] runs one node (KRaft) with a listener for each way to log in, [`cluster`] three; [`proxy`] stands for the
//! network between a client and the broker; [`client`] asks and feeds the broker through
//! `confluent-kafka`, so that no test has its own client for a witness; [`flume`] runs Flume beside it.
//!
//! Constraints: nothing outlives the process that started it, however that ends ([`process`]); every
//! port is on the loopback; every wait has a deadline.

pub mod broker;
pub mod client;
pub mod cluster;
pub mod flume;
pub mod install;
pub mod lost_ends;
pub mod ports;
pub mod process;
pub mod properties;
pub mod proxy;
pub mod record;
pub mod security;
pub mod tls;

pub(crate) mod maven;
pub mod packages;

pub use broker::{Broker, BrokerOptions};
pub use client::{Client, ConsumeOptions};
pub use cluster::Cluster;
pub use flume::Flume;
pub use proxy::Proxy;
pub use record::{Bytes, Message, Record};
pub use security::{Listener, Mechanism};
