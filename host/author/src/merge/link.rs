//! A module and an adapter that answers some of its imports, in one: each imports from the other.

use anyhow::{Context, Result};

use super::core::Core;
use super::module::{Source, Wanted, merge};

const MODULE: usize = 0;
const ADAPTER: usize = 1;

/// Links them. What the module imports from `answers` is the adapter's, and what the adapter imports is the module's.
///
/// # Errors
/// If one of them has no such export, or something that cannot be put together.
pub(crate) fn link(module: &[u8], adapter: &[u8], answers: &str) -> Result<Vec<u8>> {
    let (module, adapter) = (Core::read(module)?, Core::read(adapter)?);
    let export = |core: &Core<'_>, name: &str| -> Result<u32> {
        Ok(core.export(name).with_context(|| format!("there is no {name} to import"))?.index)
    };
    let of_module = |(number, import): (u32, &wasmparser::Import<'_>)| {
        Ok(match import.module == answers {
            true => Source::Member(ADAPTER, export(&adapter, import.name)?),
            false => Source::Outside(number),
        })
    };
    let of_module: Vec<Source> = (0..).zip(&module.imports).map(of_module).collect::<Result<_>>()?;
    let of_adapter =
        |import: &wasmparser::Import<'_>| Ok(Source::Member(MODULE, export(&module, import.name)?));
    let of_adapter: Vec<Source> = adapter.imports.iter().map(of_adapter).collect::<Result<_>>()?;
    let exports = module.exports.iter();
    let wanted: Vec<Wanted> =
        exports.map(|export| (export.name.to_owned(), MODULE, export.kind, export.index)).collect();
    let name = |number: u32| {
        let import = module.imports.get(number as usize).context("an unknown import")?;
        Ok((import.module.to_owned(), import.name.to_owned()))
    };
    Ok(merge(&[(&module, of_module), (&adapter, of_adapter)], &wanted, name)?.bytes)
}
