//! What the host offers to a plugin. Each module is imported only if it is called, and then the pipeline must grant
//! it: `grant = ["log", "metrics", "clock"]`.

/// Lines in the agent's own log. Never put event data in them.
pub mod log {
    use crate::abi::bindings::flumen::plugin::log::{Level, write};

    /// For the author of the plugin.
    pub fn debug(message: &str) {
        write(Level::Debug, message);
    }

    /// For whoever runs the agent.
    pub fn info(message: &str) {
        write(Level::Info, message);
    }

    /// Something is odd, work goes on.
    pub fn warn(message: &str) {
        write(Level::Warn, message);
    }

    /// Something failed.
    pub fn error(message: &str) {
        write(Level::Error, message);
    }
}

/// Counters and gauges, shown by `flumen status`. Names: `[a-z][a-z0-9_]*`, at most 64 bytes and 64 names.
pub mod metrics {
    use crate::abi::bindings::flumen::plugin::metrics as wire;

    /// Adds to a counter.
    pub fn add(counter: &str, amount: u64) {
        wire::add(counter, amount);
    }

    /// Sets a gauge.
    pub fn set(gauge: &str, value: f64) {
        wire::set(gauge, value);
    }
}

/// Wall-clock time.
pub mod clock {
    /// Nanoseconds since the Unix epoch, UTC.
    pub fn now() -> i64 {
        crate::abi::bindings::flumen::plugin::clock::now()
    }
}

/// Randomness of the host, fit for keys and identifiers.
pub mod random {
    use crate::abi::bindings::flumen::plugin::random as wire;

    /// `count` random bytes, at most 65,536.
    pub fn bytes(count: u32) -> Vec<u8> {
        wire::bytes(count)
    }

    /// A random number.
    pub fn number() -> u64 {
        wire::number()
    }
}
