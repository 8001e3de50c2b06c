//! Several core modules in one: their index spaces one behind the other, imports from each other resolved.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
    CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, EntityType, ExportKind,
    ExportSection, FunctionSection, GlobalSection, ImportSection, MemorySection, Module, TableSection,
    TypeSection,
};
use wasmparser::{ExternalKind, Operator};

use super::core::{Core, kind};

/// Where an import of a member comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// From a member: which one, and the index in that one's space.
    Member(usize, u32),
    /// From outside: a function, by a number that the caller understands.
    Outside(u32),
}

/// The modules, each with the sources of its imports.
pub(super) type Members<'m, 'a> = [(&'m Core<'a>, Vec<Source>)];

/// What the module has to export: a name, a member, a kind, an index in the member's space.
pub(super) type Wanted = (String, usize, ExternalKind, u32);

/// The module that they become.
pub(super) struct Merged {
    pub(super) bytes: Vec<u8>,
    /// The functions that it imports.
    pub(super) outside: Vec<u32>,
}

/// Puts them together. `outside_name` tells from where a function from outside is imported.
pub(super) fn merge(
    members: &Members<'_, '_>,
    wanted: &[Wanted],
    outside_name: impl Fn(u32) -> Result<(String, String)>,
) -> Result<Merged> {
    let outside = outside(members);
    let maps = maps(members, &outside)?;
    let globals: usize = members.iter().map(|(core, _)| core.globals.len()).sum();
    let mut sections = Sections { consts: vec![None; globals], ..Sections::default() };
    for number in &outside {
        let (module, name) = outside_name(*number)?;
        let ty = outside_type(members, &maps, *number).context("an import without a type")?;
        sections.imports.import(&module, &name, EntityType::Function(ty));
    }
    for ((core, _), map) in members.iter().zip(&maps) {
        sections.add(core, map)?;
    }
    for (name, member, kind, index) in wanted {
        let map = maps.get(*member).context("no such member")?;
        sections.export(name, *kind, at(map.space(*kind)?, *index)?)?;
    }
    Ok(Merged { bytes: sections.finish(), outside })
}

/// Every function from outside once.
fn outside(members: &Members<'_, '_>) -> Vec<u32> {
    let mut outside = Vec::new();
    for source in members.iter().flat_map(|(_, sources)| sources) {
        if let Source::Outside(function) = source
            && !outside.contains(function)
        {
            outside.push(*function);
        }
    }
    outside
}

fn outside_type(members: &Members<'_, '_>, maps: &[Map], function: u32) -> Option<u32> {
    members.iter().zip(maps).find_map(|((core, sources), map)| {
        let at = sources.iter().position(|source| *source == Source::Outside(function))?;
        match core.imports.get(at)?.ty {
            wasmparser::TypeRef::Func(ty) => Some(map.types + ty),
            _ => None,
        }
    })
}

/// From a member's indexes to those of the module.
#[derive(Debug, Default, Clone)]
struct Map {
    types: u32,
    functions: Vec<u32>,
    tables: Vec<u32>,
    memories: Vec<u32>,
    globals: Vec<u32>,
    elements: u32,
    data: u32,
}

impl Map {
    fn space(&self, kind: ExternalKind) -> Result<&Vec<u32>> {
        Ok(match kind {
            ExternalKind::Func | ExternalKind::FuncExact => &self.functions,
            ExternalKind::Table => &self.tables,
            ExternalKind::Memory => &self.memories,
            ExternalKind::Global => &self.globals,
            ExternalKind::Tag => bail!("tags are not put together"),
        })
    }

    fn space_mut(&mut self, kind: ExternalKind) -> Result<&mut Vec<u32>> {
        Ok(match kind {
            ExternalKind::Func | ExternalKind::FuncExact => &mut self.functions,
            ExternalKind::Table => &mut self.tables,
            ExternalKind::Memory => &mut self.memories,
            ExternalKind::Global => &mut self.globals,
            ExternalKind::Tag => bail!("tags are not put together"),
        })
    }
}

/// The spaces of the members: imports first, then what they define.
fn maps(members: &Members<'_, '_>, outside: &[u32]) -> Result<Vec<Map>> {
    let mut maps = defined(members, outside.len() as u32);
    let of_defined = maps.clone();
    for ((core, sources), map) in members.iter().zip(&mut maps) {
        let mut imported = Map::default();
        for (import, source) in core.imports.iter().zip(sources) {
            let index = resolve(members, &of_defined, outside, kind(import), *source)?;
            imported.space_mut(kind(import))?.push(index);
        }
        for (space, imported) in [
            (&mut map.functions, &mut imported.functions),
            (&mut map.tables, &mut imported.tables),
            (&mut map.memories, &mut imported.memories),
            (&mut map.globals, &mut imported.globals),
        ] {
            imported.append(space);
            std::mem::swap(space, imported);
        }
    }
    Ok(maps)
}

/// Without imports.
fn defined(members: &Members<'_, '_>, outside: u32) -> Vec<Map> {
    let (mut types, mut elements, mut data) = (0, 0, 0);
    let (mut functions, mut tables, mut memories, mut globals) = (outside, 0, 0, 0);
    let of_member = |(core, _): &(&Core<'_>, Vec<Source>)| {
        let range = |next: &mut u32, count: usize| {
            let begin = *next;
            *next += count as u32;
            (begin..*next).collect::<Vec<u32>>()
        };
        let map = Map {
            types,
            functions: range(&mut functions, core.functions.len()),
            tables: range(&mut tables, core.tables.len()),
            memories: range(&mut memories, core.memories.len()),
            globals: range(&mut globals, core.globals.len()),
            elements,
            data,
        };
        types += core.type_count();
        elements += core.elements.len() as u32;
        data += core.data.len() as u32;
        map
    };
    members.iter().map(of_member).collect()
}

/// Follows an import through members that hand on what they import themselves.
fn resolve(
    members: &Members<'_, '_>,
    defined: &[Map],
    outside: &[u32],
    wanted: ExternalKind,
    mut source: Source,
) -> Result<u32> {
    for _ in 0..=members.len() {
        let (member, index) = match source {
            Source::Member(member, index) => (member, index as usize),
            Source::Outside(function) => {
                let at = outside.iter().position(|other| *other == function);
                return Ok(at.context("an unknown import")? as u32);
            }
        };
        let (core, sources) = members.get(member).context("no such member")?;
        let of_kind = core.imports.iter().zip(sources).filter(|(import, _)| kind(import) == wanted);
        let imported: Vec<Source> = of_kind.map(|(_, source)| *source).collect();
        match imported.get(index) {
            Some(further) => source = *further,
            None => {
                let map = defined.get(member).context("no such member")?;
                return at(map.space(wanted)?, (index - imported.len()) as u32);
            }
        }
    }
    bail!("imports lead in a circle")
}

fn at(space: &[u32], index: u32) -> Result<u32> {
    space.get(index as usize).copied().context("an index leads nowhere")
}

#[derive(Default)]
struct Sections {
    types: TypeSection,
    imports: ImportSection,
    functions: FunctionSection,
    tables: TableSection,
    memories: MemorySection,
    globals: GlobalSection,
    exports: BTreeMap<String, (ExportKind, u32)>,
    elements: ElementSection,
    code: CodeSection,
    data: DataSection,
    /// The value of each global that is a constant.
    consts: Vec<Option<i32>>,
}

impl Sections {
    fn add(&mut self, core: &Core<'_>, map: &Map) -> Result<()> {
        // Before anything uses them.
        let first = map.globals.len() - core.globals.len();
        for (global, index) in core.globals.iter().zip(map.globals.iter().skip(first)) {
            let mut member = Member { map, consts: &self.consts };
            member.parse_global(&mut self.globals, global.clone()).map_err(broken)?;
            let value = member.value(&global.init_expr).filter(|_| !global.ty.mutable);
            if let Some(slot) = self.consts.get_mut(*index as usize) {
                *slot = value;
            }
        }
        let mut member = Member { map, consts: &self.consts };
        for group in &core.types {
            utils::parse_recursive_type_group(&mut member, self.types.ty(), group.clone()).map_err(broken)?;
        }
        core.functions.iter().for_each(|ty| {
            self.functions.function(map.types + ty);
        });
        for table in &core.tables {
            utils::parse_table(&mut member, &mut self.tables, table.clone()).map_err(broken)?;
        }
        for memory in &core.memories {
            self.memories.memory(member.memory_type(*memory).map_err(broken)?);
        }
        for element in &core.elements {
            member.parse_element(&mut self.elements, element.clone()).map_err(broken)?;
        }
        for body in &core.bodies {
            member.parse_function_body(&mut self.code, body.clone()).map_err(broken)?;
        }
        for data in &core.data {
            member.parse_data(&mut self.data, data.clone()).map_err(broken)?;
        }
        Ok(())
    }

    fn export(&mut self, name: &str, kind: ExternalKind, index: u32) -> Result<()> {
        let kind = match kind {
            ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
            ExternalKind::Table => ExportKind::Table,
            ExternalKind::Memory => ExportKind::Memory,
            ExternalKind::Global => ExportKind::Global,
            ExternalKind::Tag => bail!("tags are not put together"),
        };
        self.exports.insert(name.to_owned(), (kind, index));
        Ok(())
    }

    fn finish(self) -> Vec<u8> {
        let mut exports = ExportSection::new();
        for (name, (kind, index)) in &self.exports {
            exports.export(name, *kind, *index);
        }
        let mut module = Module::new();
        module.section(&self.types).section(&self.imports).section(&self.functions).section(&self.tables);
        module.section(&self.memories).section(&self.globals).section(&exports).section(&self.elements);
        module.section(&DataCountSection { count: self.data.len() }).section(&self.code).section(&self.data);
        module.finish()
    }
}

/// One of them while it is written.
struct Member<'m> {
    map: &'m Map,
    consts: &'m [Option<i32>],
}

impl Member<'_> {
    /// What a constant expression of 32 bits comes to, as far as it is known: places of code and data in the shared memory and
    /// table are such sums.
    fn value(&self, expression: &wasmparser::ConstExpr<'_>) -> Option<i32> {
        let mut stack = Vec::new();
        for operator in expression.get_operators_reader() {
            let value = match operator.ok()? {
                Operator::I32Const { value } => value,
                Operator::GlobalGet { global_index } => {
                    let index = at(&self.map.globals, global_index).ok()?;
                    (*self.consts.get(index as usize)?)?
                }
                Operator::I32Add => i32::wrapping_add(stack.pop()?, stack.pop()?),
                Operator::End => continue,
                _ => return None,
            };
            stack.push(value);
        }
        stack.pop().filter(|_| stack.is_empty())
    }
}

/// An index of a member that has no counterpart.
#[derive(Debug)]
struct Nowhere;

impl std::fmt::Display for Nowhere {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("an index leads nowhere")
    }
}

fn broken(error: Error<Nowhere>) -> anyhow::Error {
    match error {
        Error::ParseError(error) => error.into(),
        other => anyhow!("{other}"),
    }
}

impl Reencode for Member<'_> {
    type Error = Nowhere;

    fn type_index(&mut self, ty: u32) -> Result<u32, Error<Nowhere>> {
        Ok(self.map.types + ty)
    }

    fn function_index(&mut self, function: u32) -> Result<u32, Error<Nowhere>> {
        at(&self.map.functions, function).map_err(|_| Error::UserError(Nowhere))
    }

    fn table_index(&mut self, table: u32) -> Result<u32, Error<Nowhere>> {
        at(&self.map.tables, table).map_err(|_| Error::UserError(Nowhere))
    }

    fn memory_index(&mut self, memory: u32) -> Result<u32, Error<Nowhere>> {
        at(&self.map.memories, memory).map_err(|_| Error::UserError(Nowhere))
    }

    fn global_index(&mut self, global: u32) -> Result<u32, Error<Nowhere>> {
        at(&self.map.globals, global).map_err(|_| Error::UserError(Nowhere))
    }

    fn element_index(&mut self, element: u32) -> Result<u32, Error<Nowhere>> {
        Ok(self.map.elements + element)
    }

    fn data_index(&mut self, data: u32) -> Result<u32, Error<Nowhere>> {
        Ok(self.map.data + data)
    }

    fn const_expr(&mut self, expression: wasmparser::ConstExpr<'_>) -> Result<ConstExpr, Error<Nowhere>> {
        match self.value(&expression) {
            Some(value) => Ok(ConstExpr::i32_const(value)),
            None => utils::const_expr(self, expression),
        }
    }
}
