//! The host's way out: HTTP and TCP, with or without TLS, for whoever may not open a socket.
//!
//! Everything blocks, and everything ends: each call has a deadline that also bounds looking a name up, connecting
//! and the handshake. What may be reached is a list of hosts and ports; the address that is connected to is the one
//! that was checked, so a name that changes its meaning leads nowhere. Redirects are not followed, no proxy of the
//! environment is asked. Secrets are put in here and are in no error, no counter and no `Debug`.

mod allow;
mod client;
mod counters;
mod failure;
pub mod limits;
mod request;
mod resolve;
mod screen;
mod secret;
mod stream;
mod tcp;
mod tls;
mod transport;

pub use client::{Egress, Settings, SettingsError};
pub use counters::EgressStats;
pub use failure::Failure;
pub use request::{Part, Request, Response};
pub use secret::{Secret, SecretFor};
pub use tcp::Connection;
