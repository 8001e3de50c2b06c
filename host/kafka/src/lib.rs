//! Everything that speaks Kafka, through librdkafka: the one crate that depends on it.
//!
//! Layers, bottom up: [`settings`] (what a user says of brokers and security, and librdkafka's configuration made
//! of it), [`context`] (what librdkafka calls back: log, statistics, errors, tokens, delivery reports, rebalances),
//! [`words`] (errors as a person reads them). On top: the parts that components are made of.
//!
//! [`flume_avro`] is the format of record values that Flume reads and writes; [`group_commits`] commits a
//! group's offsets without waiting; [`told`] serves what a consumer's client tells; [`ends`] ends
//! transactions whose end a broker has lost; [`log`] is a failover's journal in a topic; [`admin`] is what `flumen kafka` asks.
//!
//! The sink and the source stand in `host/builtin` like all others; they use this crate.

pub mod admin;
mod certificate;
pub mod channel;
pub mod context;
mod diagnosis;
pub mod ends;
mod files;
pub mod flume_avro;
pub mod group_commits;
pub mod lane;
pub mod limits;
pub mod log;
pub mod member;
mod oauth;
pub mod partition;
pub mod produce;
pub mod progress;
mod read_back;
pub mod settings;
mod statistics;
pub mod told;
pub mod topics;
pub mod words;

pub use context::{Context, Rebalance};
pub use rdkafka;
pub use settings::{CLIENT_OPTIONS, Settings};
