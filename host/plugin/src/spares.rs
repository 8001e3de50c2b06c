//! Makes instances before they are needed, so that the flow does not wait for them.
//!
//! A fresh instance is needed after every failure, and when one is worn out. Most take some tens of microseconds, but that of
//! a language with a large runtime takes a millisecond or two, most of it in its own `open`. Of a plugin whose first instance took
//! longer than [`limits::SPARE_WORTH`] one is kept ready; the next one is made while the flow works with it.
//!
//! How it fails: a spare that cannot be made, or is not ready in time, is made by the flow, as if there were none. Plugins that
//! reach out have none: what they opened could be closed by the other side before it is used.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::error::HostError;
use crate::limits;
use crate::version::PluginVersion;

/// The thread's end is this value's end.
pub(crate) struct Spares {
    wanted: SyncSender<Weak<PluginVersion>>,
}

impl Spares {
    pub(crate) fn start() -> Result<Spares, HostError> {
        const NAME: &str = "flumen-spares";
        let (wanted, asked) = sync_channel(limits::SPARES_WANTED_MAX);
        thread::Builder::new()
            .name(NAME.into())
            .spawn(move || run(&asked))
            .map_err(|source| HostError::Thread { name: NAME, source })?;
        Ok(Spares { wanted })
    }

    /// Asks for one, and never waits.
    pub(crate) fn ask(&self, version: Weak<PluginVersion>) {
        // With so many wanted already, the flow makes its own.
        self.wanted.try_send(version).ok();
    }
}

fn run(asked: &Receiver<Weak<PluginVersion>>) {
    while let Ok(version) = asked.recv() {
        if let Some(version) = version.upgrade() {
            version.make_spare();
        }
    }
}
