//! A module as it is when its runtime has started, so that an instance of it need not start one.
//!
//! The module's `_initialize` is run when the plugin is built. What it left in memory and globals becomes what the module begins
//! with, and `_initialize` is gone. That the table is as it was is taken for granted: Go never writes to it.

use anyhow::{Context, Result, bail};
use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{ConstExpr, DataSection, ExportKind, ExportSection, GlobalSection, MemorySection, Module};
use wasmparser::{GlobalSectionReader, Parser, ValType};

/// What a reactor's runtime is started with.
pub const INITIALIZE: &str = "_initialize";
/// The exported memory.
pub const MEMORY: &str = "memory";
/// The globals to look at are exported under this name and a number, from 0 on.
pub const GLOBAL: &str = "flumen-global-";
const PAGE_BYTES: usize = 64 << 10;
/// Zeros between two pieces of memory that are not worth a segment of its own.
const GAP_BYTES: usize = 64;

/// What is left when `_initialize` has returned.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The memory, in whole pages.
    pub memory: Vec<u8>,
    /// The bits of each global.
    pub globals: Vec<u64>,
}

/// Runs the [`INITIALIZE`] of a module whose imports are not called by it.
pub type Run = fn(&[u8]) -> Result<State>;

/// The module with the state that it has after its start.
///
/// # Errors
/// If it does not start, or has what is not written down.
pub(crate) fn snapshot(module: &[u8], run: Run) -> Result<Vec<u8>> {
    let state = run(&rewritten(&mut Watched::default(), module)?).context("its runtime does not start")?;
    if !state.memory.len().is_multiple_of(PAGE_BYTES) {
        bail!("its memory ends within a page");
    }
    let started = rewritten(&mut Started(&state), module)?;
    wasmparser::Validator::new().validate_all(&started)?;
    Ok(started)
}

fn rewritten<R: Reencode>(reencoder: &mut R, module: &[u8]) -> Result<Vec<u8>>
where
    R::Error: std::fmt::Display,
{
    let mut out = Module::new();
    let done = reencoder.parse_core_module(&mut out, Parser::new(0), module);
    done.map_err(|error| match error {
        Error::ParseError(error) => error.into(),
        other => anyhow::anyhow!("{other}"),
    })?;
    Ok(out.finish())
}

/// The module with its globals exported.
#[derive(Default)]
struct Watched {
    mutable: Vec<u32>,
}

impl Reencode for Watched {
    type Error = &'static str;

    fn parse_global_section(
        &mut self,
        globals: &mut GlobalSection,
        section: GlobalSectionReader<'_>,
    ) -> Result<(), Error<&'static str>> {
        for (index, global) in (0..).zip(section.clone()) {
            if global?.ty.mutable {
                self.mutable.push(index);
            }
        }
        utils::parse_global_section(self, globals, section)
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Result<(), Error<&'static str>> {
        utils::parse_export_section(self, exports, section)?;
        for (number, index) in self.mutable.iter().enumerate() {
            exports.export(&format!("{GLOBAL}{number}"), ExportKind::Global, *index);
        }
        Ok(())
    }
}

/// The module that begins with a state.
struct Started<'s>(&'s State);

impl Reencode for Started<'_> {
    type Error = &'static str;

    fn parse_memory_section(
        &mut self,
        memories: &mut MemorySection,
        section: wasmparser::MemorySectionReader<'_>,
    ) -> Result<(), Error<&'static str>> {
        if section.count() != 1 {
            return Err(Error::UserError("it has not one memory"));
        }
        for memory in section {
            let mut memory = self.memory_type(memory?)?;
            memory.minimum = (self.0.memory.len() / PAGE_BYTES) as u64;
            memories.memory(memory);
        }
        Ok(())
    }

    fn parse_global_section(
        &mut self,
        globals: &mut GlobalSection,
        section: GlobalSectionReader<'_>,
    ) -> Result<(), Error<&'static str>> {
        let mut values = self.0.globals.iter();
        for global in section {
            let global = global?;
            let ty = self.global_type(global.ty)?;
            if !global.ty.mutable {
                let value = self.const_expr(global.init_expr)?;
                globals.global(ty, &value);
                continue;
            }
            let bits = *values.next().ok_or(Error::UserError("the value of a global is not known"))?;
            let value = match global.ty.content_type {
                ValType::I32 => ConstExpr::i32_const(bits as i32),
                ValType::I64 => ConstExpr::i64_const(bits as i64),
                ValType::F32 => ConstExpr::f32_const(f32::from_bits(bits as u32).into()),
                ValType::F64 => ConstExpr::f64_const(f64::from_bits(bits).into()),
                _ => return Err(Error::UserError("it has a global that is no number")),
            };
            globals.global(ty, &value);
        }
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Result<(), Error<&'static str>> {
        for export in section {
            let export = export?;
            if export.name != INITIALIZE {
                self.parse_export(exports, export)?;
            }
        }
        Ok(())
    }

    fn data_count(&mut self, _count: u32) -> Result<u32, Error<&'static str>> {
        Ok(pieces(&self.0.memory).count() as u32)
    }

    fn parse_data_section(
        &mut self,
        data: &mut DataSection,
        _section: wasmparser::DataSectionReader<'_>,
    ) -> Result<(), Error<&'static str>> {
        for (at, bytes) in pieces(&self.0.memory) {
            data.active(0, &ConstExpr::i32_const(at as u32 as i32), bytes.iter().copied());
        }
        Ok(())
    }
}

/// The parts of a memory that are not zero, with their places.
fn pieces(memory: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = memory.get(at..)?;
        let begin = rest.iter().position(|byte| *byte != 0)?;
        let piece = rest.get(begin..)?;
        // It ends where the next bytes are all zero.
        let (mut end, mut zeros) = (0, 0);
        for (place, byte) in piece.iter().enumerate() {
            zeros = if *byte == 0 { zeros + 1 } else { 0 };
            if zeros == 0 {
                end = place + 1;
            } else if zeros > GAP_BYTES {
                break;
            }
        }
        let found = (at + begin, piece.get(..end)?);
        at += begin + end;
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state that a real engine leaves is tested where there is one.
    const MODULE: &str = r#"(module
        (memory (export "memory") 1)
        (global $count (mut i32) (i32.const 1))
        (global $fixed i32 (i32.const 7))
        (global $wide (mut i64) (i64.const 2))
        (data (i32.const 8) "before")
        (func (export "_initialize"))
        (func (export "count") (result i32) (global.get $count)))"#;

    #[test]
    fn what_was_left_is_what_it_begins_with() {
        fn run(watched: &[u8]) -> Result<State> {
            let text = wasmparser_names(watched);
            assert_eq!(text, ["memory", "_initialize", "count", "flumen-global-0", "flumen-global-1"]);
            let mut memory = vec![0; 2 * PAGE_BYTES];
            memory[70_000..70_003].copy_from_slice(b"two");
            memory[9] = 9;
            Ok(State { memory, globals: vec![u64::from(u32::MAX), 1 << 40] })
        }
        let started = snapshot(&wat::parse_str(MODULE).unwrap(), run).unwrap();
        let expected = r#"(module
            (type (func)) (type (func (result i32)))
            (func (type 0)) (func (type 1) (global.get 0))
            (memory 2)
            (global (mut i32) (i32.const -1)) (global i32 (i32.const 7)) (global (mut i64) (i64.const 1099511627776))
            (export "memory" (memory 0)) (export "count" (func 1))
            (data (i32.const 9) "\09") (data (i32.const 70000) "two"))"#;
        let core = |bytes: &[u8]| {
            let mut out = Vec::new();
            for payload in Parser::new(0).parse_all(bytes) {
                let payload = payload.unwrap();
                if let Some((id, range)) = payload.as_section()
                    && id != 0
                {
                    out.push((id, bytes[range.start as usize..range.end as usize].to_vec()));
                }
            }
            out
        };
        assert_eq!(core(&started), core(&wat::parse_str(expected).unwrap()));
    }

    fn wasmparser_names(module: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(module) {
            if let wasmparser::Payload::ExportSection(exports) = payload.unwrap() {
                names.extend(exports.into_iter().map(|export| export.unwrap().name.to_owned()));
            }
        }
        names
    }

    #[test]
    fn pieces_are_what_is_not_zero() {
        let mut memory = vec![0; 1_000];
        memory[3] = 1;
        memory[3 + GAP_BYTES] = 2;
        memory[999] = 3;
        let found: Vec<(usize, usize)> = pieces(&memory).map(|(at, bytes)| (at, bytes.len())).collect();
        assert_eq!(found, [(3, GAP_BYTES + 1), (999, 1)]);
        assert_eq!(pieces(&[0; 100]).count(), 0);
    }
}
