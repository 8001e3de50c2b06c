//! Starts a language's runtime once, when a plugin is built: what it leaves is what instances begin with.
//!
//! What is run here is the author's own, on the author's machine; the limits are there so that a mistake has an end. A module
//! that calls what it imports (the host's powers) before it is opened fails: there is no host.

use std::time::Duration;

use wasmtime::{Engine, Extern, Linker, Module, Store, StoreLimits, StoreLimitsBuilder, Val};

use crate::{engine, ticker};

/// Longer than any runtime takes to start on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Twice what a plugin may have by default.
const MEMORY_BYTES_MAX: usize = 512 << 20;

/// What a module is started by, and where it shows what that left.
#[derive(Debug, Clone, Copy)]
pub struct Names<'n> {
    /// The exported function.
    pub initialize: &'n str,
    /// The exported memory.
    pub memory: &'n str,
    /// The exported globals: this and a number, from 0 on.
    pub global: &'n str,
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no sandbox.
    #[error(transparent)]
    Host(#[from] crate::HostError),
    /// The module is none, it trapped, or it took too long.
    #[error("{0}")]
    Failed(String),
}

/// Instantiates a core module, calls its `initialize`, and returns its memory and the bits of its globals.
///
/// # Errors
/// If it traps, needs more than its limits, or does not export what the names say.
pub fn started(module: &[u8], names: Names<'_>) -> Result<(Vec<u8>, Vec<u64>), StartError> {
    let engine = engine::for_one_run()?;
    run(&engine, module, names).map_err(|error| StartError::Failed(format!("{error:#}")))
}

fn run(engine: &Engine, module: &[u8], names: Names<'_>) -> wasmtime::Result<(Vec<u8>, Vec<u64>)> {
    let module = Module::new(engine, module)?;
    let mut linker = Linker::new(engine);
    linker.define_unknown_imports_as_traps(&module)?;
    let limits = StoreLimitsBuilder::new().memory_size(MEMORY_BYTES_MAX).build();
    let mut store: Store<StoreLimits> = Store::new(engine, limits);
    store.limiter(|limits| limits);
    ticker::set_deadline(&mut store, TIME_MAX);
    let instance = linker.instantiate(&mut store, &module)?;
    instance.get_typed_func::<(), ()>(&mut store, names.initialize)?.call(&mut store, ())?;
    let memory = instance
        .get_memory(&mut store, names.memory)
        .ok_or_else(|| wasmtime::Error::msg(format!("it exports no memory {}", names.memory)))?;
    let memory = memory.data(&store).to_vec();
    let mut globals = Vec::new();
    while let Some(Extern::Global(global)) =
        instance.get_export(&mut store, &format!("{}{}", names.global, globals.len()))
    {
        globals.push(match global.get(&mut store) {
            Val::I32(value) => u64::from(value.cast_unsigned()),
            Val::I64(value) => value.cast_unsigned(),
            Val::F32(bits) => u64::from(bits),
            Val::F64(bits) => bits,
            _ => return Err(wasmtime::Error::msg("it has a global that is no number")),
        });
    }
    Ok((memory, globals))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names<'_> = Names { initialize: "_initialize", memory: "memory", global: "g" };

    fn module(start: &str) -> Vec<u8> {
        let text = format!(
            r#"(module
                (import "host" "power" (func $power))
                (memory (export "memory") 1)
                (global (export "g0") (mut i32) (i32.const 1))
                (global (export "g1") (mut i64) (i64.const -1))
                (func (export "_initialize") {start}))"#
        );
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn what_the_start_left_is_there() {
        let start = "(drop (memory.grow (i32.const 1))) (i32.store8 (i32.const 70000) (i32.const 7)) (global.set 0 (i32.const -2))";
        let (memory, globals) = started(&module(start), NAMES).unwrap();
        assert_eq!((memory.len(), memory[70_000]), (2 << 16, 7));
        assert_eq!(globals, [u64::from(u32::MAX - 1), u64::MAX]);
    }

    #[test]
    fn a_start_that_asks_the_host_or_has_no_memory_fails_in_words() {
        let error = started(&module("(call $power)"), NAMES).unwrap_err().to_string();
        assert!(error.contains("host::power"), "{error}");
        let other = Names { memory: "other", ..NAMES };
        let error = started(&module(""), other).unwrap_err().to_string();
        assert_eq!(error, "it exports no memory other");
    }
}
