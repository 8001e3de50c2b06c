//! The clock of all deadlines: a thread that asks running guests every [`limits::EPOCH_TICK`] whether their time is over.
//!
//! Constraint: it ticks until the last deadline that was asked for has passed, whether its call still runs or not; then it
//! sleeps until the next one. So an agent that has nothing to do is not woken two hundred times a second, which was a third of what
//! ten thousand idle files cost.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::{Engine, EngineWeak, Store};

use crate::error::HostError;
use crate::limits;

const NAME: &str = "flumen-ticker";

/// Of all engines of the process.
static TICKER: Ticker = Ticker::new();

/// An engine whose guests have deadlines. It is let go with the last plugin.
pub(crate) fn add(engine: &Engine) -> Result<(), HostError> {
    TICKER.add(engine)
}

/// Gives the guest in a store at least this much time from now, and interrupts it at the next tick then.
pub(crate) fn set_deadline<T: 'static>(store: &mut Store<T>, time: Duration) {
    TICKER.set_deadline(store, time);
}

struct Ticker {
    /// Ticks so far.
    now: AtomicU64,
    /// Up to this one there may be a deadline.
    until: AtomicU64,
    sleeps: AtomicBool,
    engines: Mutex<Vec<EngineWeak>>,
    thread: OnceLock<Thread>,
}

impl Ticker {
    const fn new() -> Ticker {
        Ticker {
            now: AtomicU64::new(0),
            until: AtomicU64::new(0),
            sleeps: AtomicBool::new(false),
            engines: Mutex::new(Vec::new()),
            thread: OnceLock::new(),
        }
    }

    fn add(&'static self, engine: &Engine) -> Result<(), HostError> {
        let mut engines = self.engines.lock();
        engines.push(engine.weak());
        if self.thread.get().is_none() {
            let spawned = thread::Builder::new().name(NAME.into()).spawn(|| self.run());
            let thread = spawned.map_err(|source| HostError::Thread { name: NAME, source })?;
            self.thread.get_or_init(|| thread.thread().clone());
        }
        Ok(())
    }

    fn set_deadline<T: 'static>(&self, store: &mut Store<T>, time: Duration) {
        let ticks = time.as_nanos().div_ceil(limits::EPOCH_TICK.as_nanos());
        // The tick that is under way counts as none.
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX / 2).saturating_add(1).min(u64::MAX / 2);
        store.set_epoch_deadline(ticks);
        // After it: ticks that passed in between are not among those that are to come.
        self.until.fetch_max(self.now.load(Ordering::SeqCst).saturating_add(ticks), Ordering::SeqCst);
        if self.sleeps.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn run(&self) {
        loop {
            if self.is_over() {
                // Who asks for a deadline from here on sees that it sleeps; who did before is seen now.
                self.sleeps.store(true, Ordering::SeqCst);
                if !self.is_over() {
                    self.sleeps.store(false, Ordering::SeqCst);
                }
                while self.sleeps.load(Ordering::SeqCst) {
                    thread::park();
                }
            }
            thread::sleep(limits::EPOCH_TICK);
            // First: of the ticks that a deadline is counted in, each engine has all.
            self.now.fetch_add(1, Ordering::SeqCst);
            self.engines
                .lock()
                .retain(|engine| engine.upgrade().map(|engine| engine.increment_epoch()).is_some());
        }
    }

    fn is_over(&self) -> bool {
        self.now.load(Ordering::SeqCst) >= self.until.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use wasmtime::{Config, Instance, Module, Trap};

    use super::*;

    /// `(module (func (export "f") (loop (br 0))))`
    const FOREVER: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x05\x01\x01f\0\0\
        \x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";

    /// It sleeps when no deadline is ahead, and a guest that runs for ever is interrupted all the same, again and again.
    #[test]
    fn a_clock_that_sleeps_wakes_for_a_deadline() {
        let ticker: &'static Ticker = Box::leak(Box::new(Ticker::new()));
        let engine = Engine::new(Config::new().epoch_interruption(true)).unwrap();
        ticker.add(&engine).unwrap();
        let module = Module::new(&engine, FOREVER).unwrap();
        let asleep = || {
            let begin = Instant::now();
            while !ticker.sleeps.load(Ordering::SeqCst) {
                assert!(begin.elapsed() < Duration::from_secs(60), "it does not sleep");
                thread::yield_now();
            }
        };
        for round in 1..4 {
            asleep();
            let before = ticker.now.load(Ordering::SeqCst);
            let mut store = Store::new(&engine, ());
            ticker.set_deadline(&mut store, Duration::from_millis(20));
            let instance = Instance::new(&mut store, &module, &[]).unwrap();
            let forever = instance.get_typed_func::<(), ()>(&mut store, "f").unwrap();
            let error = forever.call(&mut store, ()).unwrap_err();
            assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::Interrupt), "round {round}: {error:?}");
            assert!(ticker.now.load(Ordering::SeqCst) >= before + 4);
        }
        asleep();
        drop(engine);
    }
}
