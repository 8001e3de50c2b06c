//! The ports of one broker: a block on the loopback, so that one number says them all.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::security::Listener;
use crate::{limits, locate, poll};

/// Ports that one broker takes, from the first on: its listeners, the proxy, the controller.
pub const PORTS: u16 = 8;

/// Consecutive ports on the loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The first of [`PORTS`]; the plaintext listener's.
    pub first: u16,
}

impl Ports {
    /// Where the broker itself listens.
    #[must_use]
    pub fn of(self, listener: Listener) -> u16 {
        self.first + listener.offset()
    }

    /// What the PROXIED listener is advertised as; a test's proxy listens there.
    #[must_use]
    pub fn proxy(self) -> u16 {
        self.first + PORTS - 2
    }

    pub(super) fn controller(self) -> u16 {
        self.first + PORTS - 1
    }

    pub(super) fn all(self) -> impl Iterator<Item = u16> {
        self.first..self.first + PORTS
    }
}

/// The claims of this process on its blocks, until it ends: nobody listens on those of a broker between two of its lives, and it must
/// find them again, whatever other processes start meanwhile.
static CLAIMS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// False: another broker has this block, of this process or of another one.
fn claim(ports: Ports) -> Result<bool> {
    let dir = locate::target_dir()?.join("peers").join("ports");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let file = File::create(dir.join(ports.first.to_string()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => CLAIMS.lock().unwrap_or_else(PoisonError::into_inner).push(file),
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(error) => return Err(error).context("cannot claim ports"),
    }
    Ok(true)
}

/// A block of ports that nobody listens on. Below the ports that the kernel gives to outgoing
/// connections: a broker that restarts must find its own again.
pub(crate) fn free_ports(first: Option<u16>) -> Result<Ports> {
    if let Some(first) = first {
        let ports = Ports { first };
        first.checked_add(PORTS).context("there are no ports behind that one")?;
        for port in ports.all() {
            is_free(port)
                .with_context(|| format!("port {port} is taken; the broker needs {PORTS} in a row"))?;
        }
        return Ok(ports);
    }
    // Processes and threads that ask at the same time look at different ones.
    let mut random = SmallRng::seed_from_u64(RandomState::new().hash_one(std::process::id()));
    poll::until_some("free ports", limits::CONDITION, || {
        let ports = Ports { first: random.random_range(1_500..4_000) * PORTS };
        let is_free = ports.all().all(|port| is_free(port).is_ok());
        Ok((is_free && claim(ports)?).then_some(ports))
    })
}

fn is_free(port: u16) -> std::io::Result<()> {
    TcpListener::bind(("127.0.0.1", port)).map(drop)
}
