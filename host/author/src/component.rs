//! From a core module to a component.

use anyhow::{Context, Result};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

use crate::merge;
use crate::snapshot::{Run, snapshot};

/// Answers the WASI calls of Go's runtime inside of the module, so that it imports none: no arguments, no
/// environment, no files, a clock that only counts, numbers that are not random.
const ADAPTER: &str = include_str!("../wat/adapter.wat");
const ADAPTER_NAME: &str = "wasi_snapshot_preview1";
/// A plugin that does nothing, to compare others with.
const NO_OP: &str = include_str!("../wat/no-op.wat");
pub(crate) const INTERFACE: &str = include_str!("../../../wit/0.2.0/flumen.wit");

/// Makes a component of a core module that holds the types of its world.
///
/// # Errors
/// If it is none.
pub fn wrap(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default().module(module)?.validate(true).encode()
}

/// The same for a module without its world's types.
pub(crate) fn wrap_for(mut module: Vec<u8>, resolve: &Resolve, world: WorldId) -> Result<Vec<u8>> {
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8, false)?;
    wrap(&module)
}

/// The same for a module of Go's toolchain, which calls WASI and shall not. With `run` its runtime is started now.
pub(crate) fn wrap_go(module: &[u8], resolve: &Resolve, world: WorldId, run: Option<Run>) -> Result<Vec<u8>> {
    let adapter = wat::parse_str(ADAPTER).context("the adapter for Go")?;
    let linked = merge::link(module, &adapter, ADAPTER_NAME)?;
    let started = run.map_or(Ok(linked.clone()), |run| snapshot(&linked, run))?;
    Ok(merge::merge(wrap_for(started, resolve, world)?))
}

/// The component of an interceptor that receives bodies and changes nothing: what crossing the sandbox costs.
///
/// # Errors
/// Never in a binary whose tests passed.
pub fn no_op() -> Result<Vec<u8>> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("flumen.wit", INTERFACE)?;
    let world = resolve.select_world(&[package], Some("interceptor"))?;
    wrap_for(wat::parse_str(NO_OP)?, &resolve, world)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_no_op_is_a_component() {
        assert_eq!(no_op().unwrap().get(..8), Some(&b"\0asm\x0d\0\x01\0"[..]));
    }
}
