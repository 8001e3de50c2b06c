//! The one engine of the process, and its settings.

use std::hash::{Hash, Hasher};

use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::error::HostError;
use crate::{limits, ticker};

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
    ticker::add(&engine)?;
    Ok(engine)
}

/// An engine for one module that runs once: compiled in haste, and nothing is reserved for others.
pub(crate) fn for_one_run() -> Result<Engine, HostError> {
    let mut config = settings();
    config.cranelift_opt_level(OptLevel::None);
    let engine = Engine::new(&config).map_err(|error| HostError::Engine(format!("{error:#}")))?;
    ticker::add(&engine)?;
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
    pool.max_tables_per_module(limits::TABLES_PER_MODULE);
    pool.max_tables_per_component(limits::TABLES_PER_PLUGIN);
    pool.table_elements(limits::TABLE_ELEMENTS_MAX);
    // Memory of an instance that is gone goes back to the kernel: the process stays small.
    pool.linear_memory_keep_resident(0);
    pool.table_keep_resident(0);
    pool.max_unused_warm_slots(4);
    pool
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
