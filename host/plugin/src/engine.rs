//! The one engine of the process, its settings, and the thread that makes deadlines pass.

use std::hash::{Hash, Hasher};
use std::thread;
use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::error::HostError;
use crate::limits;

/// The engine. Its address space is reserved at once; where that is not allowed (`ulimit -v`), instances are
/// allocated one by one, which costs some microseconds more for each.
pub(crate) fn new() -> Result<Engine, HostError> {
    let mut config = settings();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    let engine = Engine::new(&config).or_else(|error| {
        tracing::warn!("plugin sandboxes are allocated one by one: {error:#}");
        Engine::new(&settings())
    });
    let engine = engine.map_err(|error| HostError::Engine(format!("{error:#}")))?;
    start_ticker(&engine)?;
    Ok(engine)
}

fn settings() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.wasm_component_model(true);
    config.wasm_simd(true);
    // The same answer on every machine: a batch may be processed again elsewhere.
    config.relaxed_simd_deterministic(true);
    config.cranelift_nan_canonicalization(true);
    config.cranelift_opt_level(OptLevel::Speed);
    // Backtraces of stripped guests say nothing; without the map the compiled form is a third smaller.
    config.generate_address_map(false);
    config.wasm_backtrace_max_frames(None);
    config
}

fn pool() -> PoolingAllocationConfig {
    let instances = limits::INSTANCES_MAX;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances);
    pool.total_core_instances(instances * 8);
    pool.total_memories(instances);
    pool.total_tables(instances * 4);
    pool.max_core_instances_per_component(limits::CORE_INSTANCES_PER_PLUGIN);
    pool.max_memories_per_component(limits::MEMORIES_PER_PLUGIN);
    pool.max_tables_per_component(limits::TABLES_PER_PLUGIN);
    pool.table_elements(limits::TABLE_ELEMENTS_MAX);
    // Memory of an instance that is gone goes back to the kernel: the process stays small.
    pool.linear_memory_keep_resident(0);
    pool.table_keep_resident(0);
    pool.max_unused_warm_slots(4);
    pool
}

/// Ends when the last plugin and the host are gone.
fn start_ticker(engine: &Engine) -> Result<(), HostError> {
    const NAME: &str = "flumen-ticker";
    let engine = engine.weak();
    let tick = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(limits::EPOCH_TICK);
        }
    };
    thread::Builder::new()
        .name(NAME.into())
        .spawn(tick)
        .map_err(|source| HostError::Thread { name: NAME, source })?;
    Ok(())
}

/// How many ticks give a guest at least this much time.
pub(crate) fn ticks(time: Duration) -> u64 {
    let ticks = time.as_nanos().div_ceil(limits::EPOCH_TICK.as_nanos());
    // The tick that is under way counts as none.
    u64::try_from(ticks).unwrap_or(u64::MAX / 2).saturating_add(1).min(u64::MAX / 2)
}

/// Whatever decides if code that one engine compiled runs in another, as text for a file's name.
pub(crate) fn fingerprint(engine: &Engine) -> blake3::Hash {
    struct Fingerprint(blake3::Hasher);
    impl Hasher for Fingerprint {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut hasher = Fingerprint(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize()
}
